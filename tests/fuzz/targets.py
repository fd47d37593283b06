"""All targets by their names."""

from .features import Features
from .images import Images
from .inputs import (
    ClassLists,
    CommandLine,
    Config,
    Frames,
    Labels,
    Splits,
    Templates,
)
from .state import Checkpoints, ModelFolders, Rows, SavedIndexes, SavedMethods

KINDS = (
    Images,
    Features,
    ModelFolders,
    SavedMethods,
    SavedIndexes,
    Checkpoints,
    Rows,
    ClassLists,
    Labels,
    Frames,
    Templates,
    Splits,
    CommandLine,
    Config,
)
TARGETS = {target.name: target for target in KINDS}
