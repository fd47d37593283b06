"""Every method as an ONNX file, on every kind of CLIP: whether onnxruntime answers as
the method does, how large the file is and what eight bits cost.

python benchmarks/export.py [--kind "ViT-B/32" ...] [--case FLYP ...] [--threads 2]

The models are random (`tests/conformance`): a whole ViT-B/32 and narrow ones of other
kinds. They are shown photographs of every size and shape in 47 classes, one at a time,
and the same at the size that the model reads, in one batch. The exit code is 1 when a
probability is off by more than 0.0001, or a case fails. Each case has a process of its
own, so that the memory of a writer is given back. What random models have learned
does not last eight bits, so that column says how often the same class is named, and no
more; a trained one loses less.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from clipadapt import ImageSet, load_clip  # noqa: E402
from clipadapt.learning.export import Session  # noqa: E402
from tests.conformance.cases import CASES, REFUSED, _learn, choose  # noqa: E402
from tests.conformance.models import KINDS, write_model  # noqa: E402
from tests.conformance.photographs import write_photographs  # noqa: E402

QUICK = {"templates": "single", "views": 1}
CHANGED = {
    "CoReg, resnet": {"views": 1, "options": {"width": 8}},
    **dict.fromkeys(("CoReg, as for EuroSAT", "CoReg, head", "CoReg, clip"), QUICK),
    **dict.fromkeys(("LPCLIP", "LPCLIP, new views"), {"templates": "single"}),
}
# A variance estimated from eight images is next to nothing: such a fit depends on the
# last digits of its features, and its own answers differ between batches by 0.1.
POOLS = {"TransCLIP": 64}


def difference(session, method, images):
    """The largest difference of a probability; images of one size come as a batch."""
    arrays = [np.asarray(image) for image in images]
    alike = len({array.shape for array in arrays}) == 1
    batches = [np.stack(arrays)] if alike else [array[None] for array in arrays]
    found = np.concatenate([session(batch) for batch in batches])
    return np.abs(found - method.predict_proba(images)).max()


def measure(clip, name, photographs, folder, unlabelled):
    """A row: a method fitted, written, and asked."""
    case = CASES[name]
    params = {**case.params, **CHANGED.get(name, {})}
    method = case.method(clip, photographs.pool.classnames, **params)
    _learn(method, case, photographs, unlabelled)
    start = time.process_time()
    path = method.export(folder / "method.onnx")
    row = {"seconds": time.process_time() - start}
    session, size = Session(path.read_bytes()), method._picture().size
    photos = [image.convert("RGB") for image, _ in photographs.test]
    # twice as tall as wide: Pillow's columns come first, and bytes differ
    usual = [image for image in photos if image.height <= 2 * image.width]
    row["photographs"] = difference(session, method, usual)
    same = [image.resize(size[::-1]) for image in photos]
    row["same size"] = difference(session, method, same)
    row["MB"] = path.stat().st_size / 1e6
    del session
    smaller = method.export(
        folder / "int8.onnx", int8=True, images=ImageSet(usual), resize=True
    )
    row["int8 MB"] = smaller.stat().st_size / 1e6
    return row


def main() -> None:
    """Measure what is asked for, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", action="append", choices=list(KINDS))
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--unlabelled", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    given, wrong = parser.parse_args(), 0
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_photographs(folder / "photographs")
        for number, kind in enumerate(given.kind or reversed(KINDS)):
            model = write_model(kind, folder / f"model {number}")
            names = [n for n in given.case or CASES if (kind, n) not in REFUSED]
            for name in names:
                with context.Pool(1) as pool:
                    case = kind, name, str(model), folder, given
                    wrong += not pool.apply(said, case)
    sys.exit(bool(wrong))


def said(kind, name, model, folder, given) -> bool:
    """Print the line of a case; whether it is as it should be."""
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)  # random models have gradients of 1e-40: slow
    warnings.simplefilter("ignore")
    try:
        unlabelled = POOLS.get(name, given.unlabelled)
        photographs = choose(folder / "photographs", unlabelled, test=6)
        clip = load_clip(model, device="cpu", precision="float32")
        row = measure(clip, name, photographs, folder, unlabelled)
        right = max(row["photographs"], row["same size"]) < 1e-4
        text = "  ".join(f"{key} {value:.2g}" for key, value in row.items())
    except Exception:
        right, text = False, traceback.format_exc(limit=-2)
    print(f"{kind:16} {name:38} {'' if right else 'WRONG'} {text}", flush=True)
    return right


if __name__ == "__main__":
    main()
