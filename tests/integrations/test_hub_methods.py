"""Every method as the Hub gets it, and a push by a Python that was told of a mirror."""

import os
import subprocess
import sys

import numpy as np
from fuzz.state import quick_methods, some_images
from hub_server import HubServer

from clipadapt import Adapter
from clipadapt.learning.hub import to_share

PROGRAM = """
from clipadapt import Adapter, ZeroShot, digits, load_clip

images = digits("test").subset(range(20))
model = ZeroShot(load_clip(), images.classnames).fit(images)
print(model.push_to_hub("me/pets", test=images))
again = Adapter.from_pretrained("me/pets", force_download=True)
assert (again.predict_proba(images) == model.predict_proba(images)).all()
"""


def test_every_method_goes_through_a_folder(clip, tmp_path):
    images = some_images(24)
    for name, unfitted in quick_methods(clip).items():
        model = unfitted.fit(images)
        to_share(model).save_pretrained(tmp_path / name)
        again = Adapter.from_pretrained(tmp_path / name, clip)
        assert type(again) is type(model)
        expected = model.predict_proba(images)
        np.testing.assert_allclose(again.predict_proba(images), expected, atol=1e-6)


def test_a_mirror_is_named_before_python_starts(tmp_path):
    with HubServer() as hub:
        told = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path)}
        told |= {"HF_HUB_DISABLE_XET": "1"}
        answer = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | told,
            capture_output=True,
            text=True,
        )
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.startswith(f"{hub.url}/me/pets/commit/")
        assert hub.repositories["me/pets"].private
        contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        assert contents and not [
            each for each in contents if hub.token.encode() in each
        ]
