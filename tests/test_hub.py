"""Methods on the Hub: there and back, what the card says, and what is refused."""

import json
import logging
import pickle
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer, Repository
from huggingface_hub import ModelCard, constants, file_download, utils
from sklearn.exceptions import NotFittedError
from tiny_models import TINY, tiny

import clipadapt
from clipadapt import (
    FLYP,
    FPL,
    GRIP,
    Adapter,
    CoReg,
    NearestNeighbours,
    Prototypes,
    ZeroShot,
    digits,
    load_clip,
)
from clipadapt.app.runs import saved_method
from clipadapt.clip.model import builtin_directory
from clipadapt.images.files import write_arrays
from clipadapt.learning.hub import SAVED_FILE, card_text, clip_facts, fetch, to_share
from clipadapt.methods.grip import SMALL

FILES = {SAVED_FILE, "README.md", "config.json"}
TOKEN = "hf_ThisIsTheTokenOfTheTests"


def move(monkeypatch, url):
    """From now on the Hub is asked for at `url`. Its address is kept in two places, in
    three before huggingface_hub 1.0."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    for place in (constants, file_download):
        if hasattr(place, "HUGGINGFACE_CO_URL_TEMPLATE"):
            monkeypatch.setattr(place, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def work_offline(monkeypatch):
    """From now on nothing is asked, as with HF_HUB_OFFLINE=1."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget_sessions()


def forget_sessions():
    """Before 1.0, huggingface_hub keeps for each session whether it is offline."""
    getattr(utils, "reset_sessions", lambda: None)()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of the test's own, where `me` is logged in, and a cache of its own."""
    with HubServer(TOKEN) as server:
        move(monkeypatch, server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "all"))
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
    monkeypatch.undo()
    forget_sessions()


@pytest.fixture(scope="module")
def train():
    return digits("train").subset(range(120))


@pytest.fixture(scope="module")
def method(clip, train):
    return Prototypes(clip, train.classnames).fit(train)


def fitted(kind, clip, train):
    """A method of each kind of state, small and quick."""
    few = {"epochs": 1}
    made = {
        "features": lambda: NearestNeighbours(clip, train.classnames),
        "prompt": lambda: FPL(clip, train.classnames, **{**SMALL, **few}),
        "tower": lambda: FLYP(clip, train.classnames, **few),
        "student": lambda: CoReg(
            clip,
            train.classnames,
            image_size=8,
            options={"width": 4, "depth": [1]},
            views=2,
            warmup_epochs=1,
            **few,
        ),
    }
    return made[kind]().fit(train)


@pytest.mark.parametrize("kind", ["features", "prompt", "tower", "student"])
def test_there_and_back(hub, clip, train, test_images, kind):
    model = fitted(kind, clip, train)
    address = model.push_to_hub("me/pets")
    assert address.startswith(f"{hub.url}/me/pets/commit/")
    again = Adapter.from_pretrained("me/pets")
    assert type(again) is type(model)
    expected = model.predict_proba(test_images)
    assert np.array_equal(again.predict_proba(test_images), expected)


def test_a_card_says_of_how_many_classes_it_has_seen_images(method, test_images):
    rare = test_images.subset(test_images.labels == test_images.labels[0])
    some = to_share(method, "me/pets", test=rare).card
    assert some.measured.classes == 1
    assert "which show 1 of the 10 classes:" in card_text(some)
    every = to_share(method, "me/pets", test=digits("test").subset(range(100))).card
    assert every.measured.classes == 10 and "which show" not in card_text(every)


def test_a_shared_folder_at_home(method, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    to_share(method).save_pretrained("~/look")
    assert {path.name for path in (tmp_path / "look").iterdir()} == FILES
    method.save("~/pets")
    assert type(Adapter.from_pretrained("~/pets", clip)) is Prototypes


METHODS = [getattr(clipadapt, name) for name in clipadapt.__all__]
METHODS = [
    kind
    for kind in METHODS
    if isinstance(kind, type) and issubclass(kind, Adapter) and kind is not Adapter
]


@pytest.mark.parametrize("kind", METHODS)
def test_the_base_class_finds_every_method(kind):
    assert Adapter._class_named(kind.__name__, "here") is kind
    other = ZeroShot if kind is not ZeroShot else GRIP
    with pytest.raises(ValueError, match=f"here holds a '{kind.__name__}', not a"):
        other._class_named(kind.__name__, "here")


@pytest.mark.parametrize("name", ["FPL", "GRIP", "LPCLIP", "Prototypes", "ZeroShot"])
def test_a_folder_is_shared_and_read_without_a_network(tmp_path, name):
    saved = Path(__file__).with_name("saved-0.1.0") / name
    model = Adapter.from_pretrained(saved)
    assert type(model).__name__ == name
    to_share(model).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    images = digits("test").subset(range(5))
    again = type(model).from_pretrained(str(tmp_path))
    assert np.array_equal(again.predict_proba(images), model.predict_proba(images))
    assert ModelCard.load(tmp_path / "README.md").data.license == "apache-2.0"


def test_a_push_is_one_commit_of_three_files_in_a_private_repository(
    hub, method, test_images
):
    method.push_to_hub("me/pets", test=test_images, commit_message="for you")
    assert hub.private == [True] * 2
    repository = hub.repositories["me/pets"]
    assert repository.private and len(repository.commits) == 2
    assert set(repository.commits[-1]) == FILES | {".gitattributes"}
    assert hub.messages == ["for you"]


def test_public_has_to_be_asked_for(hub, method):
    method.push_to_hub("me/open", private=False)
    assert set(hub.private) == {False}
    assert not hub.repositories["me/open"].private
    for wrong in (None, "yes", 1):
        with pytest.raises(ValueError, match="private must be True or False"):
            method.push_to_hub("me/other", private=wrong)
    assert "me/other" not in hub.repositories


@pytest.mark.parametrize("private", [True, False])
def test_what_is_as_private_as_nobody_asked_for_stays_as_it_is(hub, method, private):
    hub.repositories["me/pets"] = Repository(private=not private)
    kind, other = ("public", "private") if private else ("private", "public")
    with pytest.raises(ValueError, match=f"me/pets on the Hub is {kind}, not {other}"):
        method.push_to_hub("me/pets", private=private)
    assert len(hub.repositories["me/pets"].commits) == 1


def test_a_repository_of_something_else_stays_as_it_is(hub, method):
    hub.repositories["me/bert"] = Repository(True)
    hub.repositories["me/bert"].commits.append({"pytorch_model.bin": b"pickle"})
    with pytest.raises(ValueError, match="something else .*'pytorch_model.bin'"):
        method.push_to_hub("me/bert")
    assert len(hub.repositories["me/bert"].commits) == 2
    with pytest.raises(FileNotFoundError, match="no adapter.safetensors"):
        Adapter.from_pretrained("me/bert")


def test_one_file_is_fetched_whatever_else_is_there(hub, method, train, tmp_path):
    method.push_to_hub("me/pets")
    files = hub.repositories["me/pets"].commits[-1]
    files |= {"model.pkl": b"cos\nsystem\n", "config.json": b"[not what it was"}
    files |= {
        "adapter.json": b"{}",
        "modeling.py": b"raise SystemExit",
        "README.md": b"",
    }
    hub.asked.clear()
    again = Adapter.from_pretrained("hf-hub:me/pets")
    assert np.array_equal(again.prototypes_, method.prototypes_)
    assert {path for _, path in hub.asked} == {f"/me/pets/resolve/main/{SAVED_FILE}"}
    assert [path.name for path in fetch("me/pets").iterdir()] == [SAVED_FILE]


def test_earlier_versions_are_there_by_revision(hub, clip, method, train):
    first = method.push_to_hub("me/pets").rpartition("/")[2]
    ZeroShot(clip, train.classnames).fit(train).push_to_hub("me/pets")
    assert type(Adapter.from_pretrained("me/pets")) is ZeroShot
    assert type(Adapter.from_pretrained("me/pets", revision=first)) is Prototypes
    hub.repositories["me/pets"].tags |= {"v1": 1, "refs/pr/7": 1}
    for name in ("hf-hub:me/pets@v1", "me/pets@refs/pr/7", f"me/pets@{first}"):
        folder, record = saved_method(f"hf-hub:{name.removeprefix('hf-hub:')}")
        assert fetch(name) == folder
        assert (folder.name, record.method) == (first, "Prototypes")
    for name, revision in (("me/pets", "v9"), ("me/pets@v9", None)):
        with pytest.raises(FileNotFoundError, match="me/pets on .* no revision 'v9'"):
            Adapter.from_pretrained(name, revision=revision)
    with pytest.raises(ValueError, match="another revision than 'v1'"):
        fetch("me/pets@main", revision="v1")


WRONG = ["", "../../x", "/etc", "a b", "a\0", "x" * 300, "-f", "v1/", "a..b", "a@{1}"]


@pytest.mark.parametrize("revision", WRONG)
def test_what_is_no_revision_is_not_looked_for(hub, revision):
    """It becomes a part of a path in the cache."""
    for how in ((f"hf-hub:me/pets@{revision}", None), ("me/pets", revision)):
        with pytest.raises(ValueError, match="is no revision"):
            fetch(how[0], revision=how[1])
    with pytest.raises(ValueError, match="is no revision"):
        load_clip(f"hf-hub:me/pets@{revision}")
    assert not hub.asked


def test_what_was_fetched_once_is_there_offline(hub, method, monkeypatch):
    method.push_to_hub("me/pets")
    with pytest.raises(OSError, match="not in the cache"):
        Adapter.from_pretrained("me/pets", local_files_only=True)
    Adapter.from_pretrained("me/pets")
    hub.asked.clear()
    Adapter.from_pretrained("me/pets", local_files_only=True)
    work_offline(monkeypatch)
    Adapter.from_pretrained("me/pets")
    assert not hub.asked


STALE = {  # how the Hub answers, and what the warning says
    "401": (r"the Hub does not take your token for me/pets: run `hf auth login`"),
    "403": (r"your token may not read me/pets"),
    "404": (r"there is no me/pets on the Hub"),
    "503": (r"the Hub has trouble \(status 503\)"),
    "gone": (r"the Hub cannot be reached \(.*(refused|retries)"),
    "another": (r"the Hub cannot be reached \(what answers at .* is not the Hub"),
}


@pytest.mark.parametrize("case", STALE)
def test_what_comes_from_the_cache_instead_says_so(hub, method, monkeypatch, case):
    commit = method.push_to_hub("me/pets").rpartition("/")[2]
    hub.repositories["me/pets"].tags["v1"] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # fetched, and asked again with an answer
        for name in ("me/pets", "me/pets", "me/pets@v1"):
            fetch(name)
    hub.plan = lambda verb, path: int(case) if case.isdigit() else None
    if case == "another":
        hub.plan = lambda verb, path: 200
    if case == "gone":
        leave(monkeypatch)
    for name in ("me/pets", "hf-hub:me/pets@v1"):
        hub.asked.clear()
        with pytest.warns(UserWarning, match=STALE[case]) as said:
            fetch(name)
        (text,) = [str(one.message) for one in said]
        assert f"me/pets is taken from the cache, at revision {commit}," in text
        assert "\n" not in text and TOKEN not in text and len(hub.asked) < 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fetch(f"me/pets@{commit}")  # which never changes
        fetch("me/pets", local_files_only=True)
        work_offline(monkeypatch)
        fetch("me/pets")


def test_a_clip_from_the_cache_says_so_too(hub, monkeypatch, clip):
    files = {one.name: one.read_bytes() for one in builtin_directory().iterdir()}
    hub.repositories["me/clip"] = Repository(False)
    hub.repositories["me/clip"].commits.append(files)
    hub.repositories["me/clip"].tags["v1"] = 1
    commit = hub.repositories["me/clip"].oid(1)
    with pytest.raises(FileNotFoundError, match="me/clip .* has no revision 'v2'"):
        load_clip("hf-hub:me/clip@v2")
    found = load_clip("hf-hub:me/clip@v1", device="cpu")
    assert found.fingerprint == clip.fingerprint
    assert clip_facts(found).repository == "me/clip"
    leave(monkeypatch)
    with pytest.warns(UserWarning, match=f"at revision {commit}, .* cannot be reached"):
        load_clip("hf-hub:me/clip@v1", device="cpu")


def leave(monkeypatch):
    """From now on nobody answers where the Hub was."""
    move(monkeypatch, "http://127.0.0.1:9")


NOBODY = "does not know who you are: run `hf auth login`, or set HF_TOKEN"
PUSHES = {  # how the Hub answers what; the error, and what it says
    "nobody": (None, PermissionError, NOBODY),
    "wrong token": ("hf_WrongToken", PermissionError, "does not take your token"),
    "not mine": (TOKEN, PermissionError, "your token may not write to you/pets"),
    "500": (TOKEN, ConnectionError, r"the Hub has trouble \(status 500\)"),
    "429": (TOKEN, ConnectionError, r"the Hub has trouble \(status 429\)"),
    "gone": (TOKEN, ConnectionError, r"could not send me/pets \(.*(refused|retries)"),
}


@pytest.mark.parametrize("case", PUSHES)
def test_a_push_that_fails_says_why_in_one_sentence(hub, method, monkeypatch, case):
    token, kind, message = PUSHES[case]
    monkeypatch.delenv("HF_TOKEN")
    if case.isdigit():
        hub.plan = lambda verb, path: int(case)
    if case == "gone":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    name = "you/pets" if case == "not mine" else "me/pets"
    with pytest.raises(kind, match=message) as caught:
        method.push_to_hub(name, token=token)
    assert "\n" not in str(caught.value) and not hub.repositories


READS = {
    "nobody": (
        None,
        PermissionError,
        f"me/pets is private, or not there, and .*{NOBODY}",
    ),
    "wrong token": ("hf_WrongToken", PermissionError, "does not take your token"),
    "not there": (TOKEN, FileNotFoundError, "there is no me/other on the Hub"),
    "403": (TOKEN, PermissionError, "may not read me/pets"),
    "500": (TOKEN, ConnectionError, r"the Hub has trouble \(status 500\)"),
    "half": (TOKEN, ConnectionError, "could not fetch me/pets"),
    "gone": (TOKEN, ConnectionError, r"could not fetch me/pets \(.*(refused|retries)"),
}


@pytest.mark.parametrize("case", READS)
def test_a_download_that_fails_says_why(hub, method, monkeypatch, tmp_path, case):
    token, kind, message = READS[case]
    method.push_to_hub("me/pets")
    monkeypatch.delenv("HF_TOKEN")
    hub.plan = lambda verb, path: int(case) if case.isdigit() else case
    if case == "gone":
        leave(monkeypatch)
    name = "me/other" if case == "not there" else "me/pets"
    for force in (False, True):
        with pytest.raises(kind, match=message) as caught:
            Adapter.from_pretrained(name, token=token, force_download=force)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob(SAVED_FILE))


@pytest.mark.parametrize("where", ["preupload", "/lfs/", "/commit/"])
def test_a_push_that_breaks_off_leaves_what_was_there(hub, method, clip, train, where):
    method.push_to_hub("me/pets")
    before = dict(hub.repositories["me/pets"].commits[-1])
    hub.plan = lambda verb, path: 403 if where in path else None
    with pytest.raises(PermissionError, match="may not write"):
        ZeroShot(clip, train.classnames).fit(train).push_to_hub("me/pets")
    assert hub.repositories["me/pets"].commits[-1] == before


def test_nothing_is_sent_of_what_cannot_be_shared(hub, clip, train, method):
    with pytest.raises(NotFittedError):
        Prototypes(clip, train.classnames).push_to_hub("me/pets")
    broken = Prototypes(clip, train.classnames).fit(train)
    broken.prototypes_ = broken.prototypes_ * np.nan
    with pytest.raises(ValueError, match="cannot be saved"):
        broken.push_to_hub("me/pets")
    with pytest.raises(ValueError, match="has a label"):
        method.push_to_hub("me/pets", test=train.unlabelled())
    with pytest.raises(ValueError, match="finite numbers"):
        method.push_to_hub("me/pets", scores={"accuracy": float("nan")})
    assert not hub.asked
    with pytest.raises(ValueError, match="cannot be shared so: .*license"):
        method.push_to_hub("me/pets", license="mine")
    assert not hub.repositories


def test_a_token_is_shown_to_nobody(hub, clip, method, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    method.push_to_hub("me/pets", token=TOKEN)
    Adapter.from_pretrained("me/pets", clip, token=TOKEN)
    caplog.set_level(logging.INFO)  # httpcore traces what a server sends
    hub.plan = lambda verb, path: "echo"
    texts = []
    for call in (method.push_to_hub, Adapter.from_pretrained):
        with pytest.raises(PermissionError) as caught:
            call("me/other", token=TOKEN)
        texts += traceback.format_exception(caught.value)
    texts += [record.getMessage() for record in caplog.records]
    texts += capfd.readouterr()
    assert not [text for text in texts if TOKEN in text]
    contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    contents += hub.repositories["me/pets"].commits[-1].values()
    assert contents and not [each for each in contents if TOKEN.encode() in each]


def test_the_card_says_what_was_measured(hub, method, train, test_images):
    address = method.push_to_hub(
        "me/pets",
        test=test_images,
        split="twenty scans",
        scores={"on paper": 0.25},
        datasets=["me/scans"],
    )
    files = hub.repositories["me/pets"].commits[-1]
    card = ModelCard(files["README.md"].decode())
    data = card.data
    written = data.to_dict()
    assert written["license"] == "apache-2.0"
    assert written["library_name"] == "clipadapt"
    assert data.datasets == ["me/scans"] and "Prototypes" in data.tags
    said = {each.metric_type: each.metric_value for each in data.eval_results}
    assert said["accuracy"] == round(method.score(test_images), 4)
    assert data.eval_results[0].dataset_name == "twenty scans"
    for text in (
        f"{method.score(test_images):.1%}",
        "on 20 labelled images (`twenty scans`)",
        "| `on paper` | 0.25 |",
        method.clip.fingerprint,
        'Adapter.from_pretrained("me/pets")',
        *(f"`{name}`" for name in train.classnames),
    ):
        assert text in card.text, text
    config = json.loads(files["config.json"])
    assert config["measured"]["images"] == 20 and config["reported"] == {
        "on paper": 0.25
    }
    assert address.rpartition("/")[2] == hub.repositories["me/pets"].oid(1)


def test_a_card_without_measurements_says_so(method):
    shared = to_share(method)
    text = str(shared.generate_model_card())
    assert "Nothing was measured" in text and "%" not in text
    assert "accuracy" not in text and "model-index" not in text


def test_the_example_in_the_card_runs(hub, method, monkeypatch, tmp_path, capsys):
    method.push_to_hub("me/pets")
    text = hub.repositories["me/pets"].commits[-1]["README.md"].decode()
    example = text.partition("```python\n")[2].partition("```")[0]
    image = digits("test")[0][0]
    image.save(tmp_path / "photograph.jpg")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert capsys.readouterr().out.strip() in method.classnames_


def test_a_clip_of_ones_own_has_to_be_brought_and_its_path_stays_here(
    hub, train, tmp_path, clip
):
    own = tiny(TINY["plain"])
    own.name, own.pretrained = f"local-dir:{tmp_path}/secret", None
    model = ZeroShot(own, train.classnames).fit(train)
    model.push_to_hub("me/pets")
    contents = hub.repositories["me/pets"].commits[-1].values()
    assert not [each for each in contents if b"secret" in each]
    with pytest.raises(ValueError, match="pass it as clip="):
        Adapter.from_pretrained("me/pets")
    with pytest.raises(ValueError, match="another CLIP"):
        Adapter.from_pretrained("me/pets", clip)
    again = Adapter.from_pretrained("me/pets", clip=own)
    images = train.subset(range(3))
    assert np.array_equal(again.predict_proba(images), model.predict_proba(images))
    card = ModelCard(hub.repositories["me/pets"].commits[-1]["README.md"].decode())
    assert card.data.license == "unknown" and "load_clip(...)" in card.text


def forged(hub, folder, content=None, saved=()):
    """A repository with a file that somebody else wrote."""
    path = folder / "gift" / SAVED_FILE
    if content is None:
        write_arrays(path, *saved)
        content = path.read_bytes()
    hub.repositories["me/gift"] = Repository(True)
    hub.repositories["me/gift"].commits.append({SAVED_FILE: content})


def test_what_comes_back_is_checked_as_every_file(hub, method, tmp_path, clip):
    arrays, record = method._saveable()
    strange = record.model_copy(update={"method": "FeatureStore"})
    forged(hub, tmp_path, saved=(arrays, strange))
    with pytest.raises(ValueError, match="no method that is known here"):
        Adapter.from_pretrained("me/gift")
    forged(hub, tmp_path, saved=(arrays | {"more_": np.zeros(3)}, record))
    with pytest.raises(ValueError, match="more_ does not belong there"):
        Adapter.from_pretrained("me/gift")
    whole = (tmp_path / "gift" / SAVED_FILE).read_bytes()
    forged(hub, tmp_path, whole.replace(b'format\\":2', b'format\\":9'))
    with pytest.raises(ValueError, match="a newer clipadapt"):
        Adapter.from_pretrained("me/gift")
    forged(hub, tmp_path, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="not what was written"):
        Adapter.from_pretrained("me/gift")
    for content in (b"", b"no safetensors", pickle.dumps(record.model_dump())):
        forged(hub, tmp_path, content)
        with pytest.raises(ValueError, match="is damaged"):
            Adapter.from_pretrained("me/gift")


class Own(ZeroShot):
    """A method that somebody wrote for a day."""


def test_a_method_of_ones_own_is_found_where_it_is_defined(hub, clip, train):
    Own(clip, train.classnames).fit(train).push_to_hub("me/own")
    assert type(Adapter.from_pretrained("me/own")) is Own
    with pytest.raises(ValueError, match="me/own holds a 'Own', not a ZeroShot"):
        ZeroShot.from_pretrained("me/own")


@pytest.mark.parametrize(
    "name", ["pets", "a/b/c", "me/", "../x", "me/-x", "me/x--y", ""]
)
def test_what_is_no_name_is_not_looked_for(hub, method, name):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a name"):
        Adapter.from_pretrained(name)
    with pytest.raises(ValueError, match="is no name on the Hub"):
        fetch(f"hf-hub:{name}")
    with pytest.raises(ValueError, match="is no name on the Hub"):
        method.push_to_hub(name)
    assert not hub.asked


def test_importing_clipadapt_does_not_import_the_hub():
    program = "import sys, clipadapt; assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
