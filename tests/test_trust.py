"""Models from strangers: nothing that a model folder says is run, and what is wrong with it is said in one sentence."""
import json
import shutil
import sys

import pytest

from clipadapt import load_clip
from clipadapt.zeroshot import builtin_directory

STARTS = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.startfile")
watched = []


def watch(event, arguments):
    """An audit hook: Python calls it before it starts a process or imports a module."""
    if watched and event in STARTS:
        watched[0].append((event, str(arguments)))


sys.addaudithook(watch)


@pytest.fixture
def started(monkeypatch):
    """The processes that were started since the test began; a question at the terminal counts, too."""
    events = []
    monkeypatch.setattr("builtins.input", lambda question="": events.append(("input", question)) or "y")
    watched.append(events)
    yield events
    watched.clear()


ATTACK = """
import subprocess
subprocess.Popen(["touch", {harmed!r}]).wait()
from transformers import PreTrainedTokenizerFast

class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


class Stranger:
    """A copy of the built-in model whose configuration and files a test changes; `harmed` exists once its code has run."""

    def __init__(self, folder):
        self.folder, self.harmed = folder / "model", folder / "harmed"
        shutil.copytree(builtin_directory(), self.folder)
        (self.folder / "tokenizer_attack.py").write_text(ATTACK.format(harmed=str(self.harmed)))

    def configure(self, part, **options):
        """Set options of `part` ("text_cfg") of the model's configuration."""
        path = self.folder / "open_clip_config.json"
        config = json.loads(path.read_text())
        config["model_cfg"].setdefault(part, {}).update(options)
        path.write_text(json.dumps(config))

    def write(self, name, content):
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(content if isinstance(content, str) else json.dumps(content))

    def load(self):
        return load_clip(f"local-dir:{self.folder}", device="cpu")


@pytest.fixture
def stranger(tmp_path):
    return Stranger(tmp_path)


OWN_TOKENIZER = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "tokenizer_attack.Tokenizer"]}}


def load_and_watch(stranger, started):
    """Load a stranger's model; return the error. Fails when anything was run or asked on the way."""
    error = None
    try:
        stranger.load()
    except Exception as caught:
        error = caught
    assert not stranger.harmed.exists() and started == [], "code of the folder was run"
    return error


@pytest.mark.parametrize("options", [{"tokenizer_kwargs": {"trust_remote_code": True}}, {}], ids=["told to", "asked"])
def test_a_model_folder_cannot_run_its_tokenizer(stranger, started, options):
    stranger.configure("text_cfg", hf_tokenizer_name="tokenizer", **options)
    stranger.write("tokenizer_config.json", OWN_TOKENIZER)
    error = load_and_watch(stranger, started)
    assert isinstance(error, ValueError) and ("trust_remote_code" if options else "auto_map") in str(error)
