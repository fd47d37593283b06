"""Adapt CLIP to your own images without labels."""

__version__ = "0.1.0"

from clipadapt.adapter import Adapter, ZeroShot
from clipadapt.baselines import FLYP, ReCLIP
from clipadapt.captions import AttributeCaptioner, CallableCaptioner, Captioner, TransformersCaptioner, caption, caption_groups
from clipadapt.coreg import CoReg
from clipadapt.data import ImageSet, digits
from clipadapt.features import FeatureStore, StoredCLIP
from clipadapt.grip import FPL, GRIP, IFPL
from clipadapt.latteclip import LatteCLIP
from clipadapt.lpclip import LPCLIP
from clipadapt.retrieval import NearestNeighbours, PrototypeIndex, Prototypes
from clipadapt.zeroshot import CLIP, load_clip
