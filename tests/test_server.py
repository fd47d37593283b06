"""Captions from a server that misbehaves: nothing that was answered is lost, no more
requests are under way than was said, and nobody sees the key."""

import asyncio
import copy
import itertools
import json
import logging
import pickle
import signal
import threading
import time
import traceback
import warnings
from concurrent.futures import Future, wait
from pathlib import Path

import openai._base_client
import pytest
from click.testing import CliRunner
from loopback_server import ERRORS, FINE, MODEL, LoopbackServer, describe
from PIL import Image

import clipadapt.clip.server
from clipadapt import ImageSet, LatteCLIP, digits, load_clip
from clipadapt.app.cli import main
from clipadapt.clip.captions import CaptionerUnavailable, caption
from clipadapt.clip.server import ServerCaptioner, captioner_at, served_models

KEY = "sk-a-key-that-nobody-may-see"
COUNT = 48


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No key of whoever runs the tests; a moment between two tries; and a proxy that
    does not exist, past which a server on this machine has to be found."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.02, False)


@pytest.fixture(scope="module")
def some():
    return digits("train").subset(range(COUNT))


def ask(server, images, cache=False, prompt="What is it?", **settings):
    settings = {"image_format": "png", "timeout": 5, **settings}
    captioner = ServerCaptioner(server.url, MODEL, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return caption(captioner, images, prompt, cache)


def expected(images, prompt="What is it?"):
    return [describe(image, prompt) for image, _ in images]


LASTING = ("400", "401", "404", "307", "429 tomorrow")
PASSING = ["hang", "drip", "half", "not json", *sorted(ERRORS.keys() - {*LASTING})]


def test_under_all_faults_that_pass_no_caption_is_lost(some):
    def faulty(which, attempt):
        return PASSING[int(which, 16) % len(PASSING)] if attempt < 2 else FINE

    with LoopbackServer(faulty) as server:
        said = ask(server, some, timeout=2, retries=6)
    assert said.texts == expected(some) and said.failures == []
    assert min(server.attempts.values()) == 3  # a busy machine may need one more


@pytest.mark.parametrize(
    ("how", "words", "tries"),
    [
        ("hang", "no whole answer within 0.5 s", 2),
        ("drip", "no whole answer within 0.5 s", 2),
        ("429 soon", "status 429: slow down", 2),
        ("500", "status 500: out of memory", 2),
        ("half", "half an answer", 2),
        ("not json", "no JSON", 2),
        ("empty choices", "no text: choices", 2),
        ("empty text", "no text: choices.0.message.content", 2),
        ("no text", "no text: choices.0.message.content", 2),
        ("other schema", "no text: all of it", 2),
        ("400", "status 400: this picture cannot be read", 1),
    ],
)
def test_a_picture_without_an_answer_is_named_and_asked_about_again(
    some, tmp_path, how, words, tries
):
    """A fault that stays costs its image alone, after a bounded number of tries."""
    bad, few = set(), some.subset(range(7))

    def faulty(which, attempt):
        if len(bad) < 1 or which in bad:
            bad.add(which)
            return how
        return FINE

    with LoopbackServer(faulty) as server:
        settings = {"concurrency": 1, "timeout": 0.5, "retries": 1}
        said = ask(server, few, tmp_path / "c", **settings)
    ((place, reason),) = said.failures
    assert place == 0 and words in reason
    assert said.texts == ["", *expected(few)[1:]]
    assert server.attempts[bad.pop()] == tries
    with LoopbackServer() as server:
        assert ask(server, few, tmp_path / "c").texts == expected(few)
        assert sum(server.attempts.values()) == 1


def test_the_warning_counts_and_names(some, tmp_path):
    some[0][0].save(tmp_path / "first.png")
    images = ImageSet.from_folder(tmp_path)
    with LoopbackServer(lambda which, attempt: "400") as server:
        captioner = ServerCaptioner(server.url, MODEL)
        with pytest.warns(UserWarning, match=r"1 of 1 captions.*first\.png.*cannot be"):
            caption(captioner, images, "?", False)


@pytest.mark.parametrize("concurrency", [1, 5, 32])
def test_as_many_requests_are_under_way_as_was_said_and_no_more(some, concurrency):
    with LoopbackServer(seconds=0.01) as server:

        def patient(which, attempt):
            """No answer before all that may be under way are."""
            wait_for(lambda: server.most >= concurrency)
            return FINE

        few, server.plan = some.subset(range(concurrency + 9)), patient
        said = ask(server, few, concurrency=concurrency, timeout=60)
    assert said.texts == expected(few) and server.most == concurrency


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)


def test_a_pause_that_the_server_wants_is_kept_by_all(some):
    """After the first 429 with its Retry-After of 0.3 s nobody knocks for as long."""
    few = some.subset(range(18))
    with LoopbackServer(
        lambda which, attempt: "429" if not attempt else FINE
    ) as server:
        said = ask(server, few, concurrency=6)
    assert said.texts == expected(few)
    gaps = [b - a for a, b in zip(server.times, server.times[1:])]
    assert max(gaps) > 0.2


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("401", "read from the environment variable OPENAI_API_KEY"),
        ("404", "is the model's name right"),
        ("307", "status 307"),
        ("429 tomorrow", "long pause"),
        ("500", "out of memory"),
    ],
)
def test_a_server_that_is_gone_ends_the_run_and_what_was_answered_is_kept(
    some, tmp_path, how, words
):
    with LoopbackServer() as server:
        server.plan = lambda which, attempt: FINE if len(server.attempts) <= 20 else how
        with pytest.raises(CaptionerUnavailable, match=words):
            ask(server, some, tmp_path / "c", concurrency=4, retries=0)
        assert len(server.attempts) < COUNT
    with LoopbackServer() as server:
        assert ask(server, some, tmp_path / "c").texts == expected(some)
        assert sum(server.attempts.values()) == COUNT - 20


@pytest.mark.parametrize(
    ("how", "words"),
    [("no text", "no text: choices.0"), ("400", "status 400: this picture cannot")],
)
def test_a_server_that_never_gives_a_caption_ends_the_run(some, tmp_path, how, words):
    with LoopbackServer(lambda which, attempt: how) as server:
        with pytest.raises(ValueError, match=f"got a usable caption; .*{words}"):
            ask(server, some, tmp_path / "c", concurrency=2, retries=1)
        assert 32 <= len(server.attempts) <= 35
        server.plan = lambda which, attempt: FINE
        assert ask(server, some, tmp_path / "c").texts == expected(some)


def test_an_answer_in_parts_is_read(some):
    few = some.subset(range(5))
    with LoopbackServer(lambda which, attempt: "parts") as server:
        assert ask(server, few).texts == expected(few)
        assert sum(server.attempts.values()) == 5


def test_answers_that_were_cut_off_are_counted_once(some):
    few = some.subset(range(5))
    cut = {}

    def faulty(which, attempt):
        return "cut" if cut.setdefault(which, len(cut)) < 3 else FINE

    with LoopbackServer(faulty) as server:
        captioner = ServerCaptioner(server.url, MODEL, image_format="png")
        with pytest.warns(UserWarning) as said:
            assert caption(captioner, few, "What is it?", False).texts == expected(few)
    (warning,) = said
    assert str(warning.message).startswith("3 answers were cut off")


def test_where_nobody_listens_and_what_has_no_list_of_models(some):
    with LoopbackServer() as server:
        url = server.url
    nobody = ServerCaptioner(url, MODEL)
    with pytest.raises(CaptionerUnavailable, match="no connection"):
        caption(nobody, some, "?", False)
    with LoopbackServer() as server:
        assert served_models(server.url.removesuffix("/v1")) == [MODEL]
        assert captioner_at(server.url).model == MODEL
        assert served_models(f"{server.url}/deeper") == [MODEL]


@pytest.fixture
def interruptible():
    """Ctrl-C is heard, also where a shell has put the tests into the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_stops_at_once_and_keeps_what_is_there(
    some, tmp_path, interruptible
):
    """Ctrl-C does not wait for a server that hangs."""
    with LoopbackServer() as server:
        asked = itertools.count()  # whoever asks at the same time
        server.plan = lambda which, attempt: FINE if next(asked) < 10 else "hang"

        def interrupt():
            wait_for(lambda: len(server.attempts) == 14)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            ask(server, some, tmp_path / "c", concurrency=4, timeout=60)
        assert server.now == 4, "they hang still, and nobody waits for them"
    with LoopbackServer() as server:
        assert ask(server, some, tmp_path / "c").texts == expected(some)
        assert sum(server.attempts.values()) == COUNT - 10


def test_no_wait_is_endless(monkeypatch):
    """A Ctrl-C that comes just before a wait is noticed when the wait is over."""
    future, waits = Future(), []

    def waited(running, seconds, until):
        waits.append(seconds)
        if len(waits) == 3:
            future.set_result("there")
        return wait(running, 0, until)

    monkeypatch.setattr(clipadapt.clip.server, "wait", waited)
    found = clipadapt.clip.server._finished({future: "picture"})
    assert found == {"picture": "there"}
    assert len(waits) == 3 and 0 < max(waits) <= 1


def test_it_works_where_an_event_loop_runs_already(some):
    async def cell():
        with LoopbackServer() as server:
            return ask(server, some.subset(range(3)))

    assert asyncio.run(cell()).texts == expected(some.subset(range(3)))


def test_captions_are_kept_under_what_changes_them_and_not_under_the_address(some):
    def name(url="http://127.0.0.1:1/v1", model=MODEL, **settings):
        return ServerCaptioner(url, model, **settings).name

    same = [{"url": "https://there/v1"}, {"concurrency": 1}, {"retries": 0}]
    same += [{"timeout": 3.0}, {"key_variable": ""}]
    other = [{"model": "b"}, {"max_new_tokens": 9}, {"side": 99}, {"version": "4 bit"}]
    other += [{"image_format": "png"}, {"options": {"seed": 1}}]
    other += [{"options": {"temperature": 1}}]
    assert {name(**settings) for settings in same} == {name()}
    assert len({name(), *(name(**settings) for settings in other)}) == len(other) + 1


def test_a_picture_is_reduced_and_a_field_left_out(some):
    seen = []
    with LoopbackServer() as server:
        server.plan = lambda which, attempt: FINE
        handler = server.server.RequestHandlerClass
        handler.reply = lambda self, asked, old=handler.reply: (
            seen.append(asked),
            old(self, asked),
        )
        options = {"max_tokens": None, "max_completion_tokens": 5, "seed": 3}
        large = ImageSet.from_arrays([Image.new("RGB", (400, 200))], classnames=["a"])
        said = ask(server, large, side=100, options=options)
    assert said.texts[0].startswith("100 by 50 pixels")
    (asked,) = seen
    del asked["messages"]
    assert asked == {
        "model": MODEL,
        "temperature": 0,
        "max_completion_tokens": 5,
        "seed": 3,
    }


def files_with(secret, folder):
    return [
        path
        for path in Path(folder).rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]


def test_nobody_sees_the_key(some, tmp_path, monkeypatch, caplog, capfd):
    """Not the captions, the cache, messages, logs, nor copies of the captioner, even if
    the server says it aloud."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-another-one")
    monkeypatch.setattr(
        "loopback_server.ERRORS",
        {**ERRORS, "told": (400, {}, {"error": {"message": f"what is {KEY}?"}})},
    )
    hows = ["echo", "told", "500", FINE]
    with LoopbackServer(lambda which, _: hows[int(which, 16) % 4], key=KEY) as server:
        captioner = ServerCaptioner(server.url, MODEL, timeout=1, retries=1)
        with pytest.warns(UserWarning, match="captions are missing"):
            said = caption(captioner, some, "?", tmp_path / "c")
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert any("you sent Bearer ***" in text for text in said.texts)
    assert any("what is ***?" in reason for _, reason in said.failures)
    with LoopbackServer(key=f"{KEY} of somebody else") as server:
        refused = ServerCaptioner(server.url, MODEL)
        with pytest.raises(CaptionerUnavailable) as error:
            caption(refused, some, "?", tmp_path / "c")
    clip = load_clip()
    method = LatteCLIP(clip, ["a", "b"], captioner=captioner)
    told = [
        *said.texts,
        *map(str, said.failures),
        captioner.name,
        repr(captioner),
        str(vars(captioner)),
        repr(captioner._way()),
        str(method.get_params()),
        str(vars(copy.deepcopy(captioner))),
        "".join(traceback.format_exception(error.value)),
        caplog.text,
        *capfd.readouterr(),
    ]
    assert not [text for text in told if KEY in text]
    assert KEY.encode() not in pickle.dumps(captioner)
    assert files_with("pixels of sum", tmp_path) and not files_with(KEY, tmp_path)


def test_a_key_stays_at_home_when_it_would_travel_in_the_open(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert ServerCaptioner("http://gpu7:8000/v1", MODEL)._way().key == ""
    assert ServerCaptioner("https://gpu7/v1", MODEL)._way().key == KEY
    for settings in ({"version": KEY}, {"options": {"user": KEY}}, {"model": KEY}):
        with pytest.raises(ValueError, match="environment variable alone") as error:
            ServerCaptioner("https://gpu7/v1", **{"model": MODEL, **settings})
        assert KEY not in str(error.value)
    for url in (f"http://me:{KEY}@gpu7/v1", f"https://gpu7/v1?api_key={KEY}"):
        with pytest.raises(ValueError, match="without a name, a password") as error:
            ServerCaptioner(url, MODEL)
        assert KEY not in str(error.value)
    with pytest.raises(ValueError, match="variable NOT_THERE is empty"):
        ServerCaptioner("https://gpu7/v1", MODEL, key_variable="NOT_THERE")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(clipadapt.clip.server, "find_spec", lambda name: None)
    for call in (
        lambda: ServerCaptioner("http://127.0.0.1:1/v1", MODEL),
        lambda: served_models("http://127.0.0.1:1/v1"),
    ):
        with pytest.raises(ModuleNotFoundError, match=r"clipadapt\[server\]"):
            call()


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def photos(some, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (tmp_path / "photos").mkdir()
    for i in range(4):
        some[i][0].save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def test_the_command_asks_a_server_and_writes_no_key(photos, tmp_path):
    out = tmp_path / "captions.csv"
    with LoopbackServer(key=KEY) as server:
        asked = ("caption", "--images", photos, "--captioner", server.url)
        done = run(*asked, "--out", out)
        assert done.exit_code == 0, done.output
        assert f"captions by {MODEL} at {server.url}" in done.stderr
        latte = ("--method", "latteclip", "--set", "epochs=1", "--classes", "a,b")
        done = run("adapt", "--captioner", server.url, *latte, "--images", photos)
        assert done.exit_code == 2 and "--out" in done.stderr
        done = run(
            *("adapt", "--images", photos, "--captioner", server.url, *latte),
            *("--captioner-model", MODEL, "--out", tmp_path / "run"),
        )
        assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert json.loads(record["captioner"])["served model"] == MODEL
    assert (config["captioner"], config["captioner_model"]) == (server.url, MODEL)
    assert out.read_text().count("pixels of sum") == 4
    assert files_with("pixels of sum", tmp_path) and not files_with(KEY, tmp_path)
    config["captioner"] = "https://example.invalid/v1"
    (tmp_path / "theirs.json").write_text(json.dumps(config))
    done = run("adapt", "--config", tmp_path / "theirs.json", "--out", tmp_path / "x")
    assert done.exit_code == 1 and "only if you say so" in done.stderr


def test_a_command_without_one_caption_fails(photos, tmp_path):
    out = tmp_path / "captions.csv"
    with LoopbackServer(lambda which, attempt: "400") as server:
        asked = ("caption", "--images", photos, "--captioner", server.url)
        done = run(*asked, "--prompt", "What is wrong?", "--out", out)
    assert done.exit_code == 1 and not out.exists()
    assert "there is no caption" in done.stderr and "cannot be read" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--captioner", f"http://me:{KEY}@gpu7/v1"], 1, "without a name, a password"),
        (
            ["--captioner", "attributes", "--captioner-model", "a"],
            2,
            "with --captioner",
        ),
        (["--captioner", "http://127.0.0.1:9/v1"], 1, "does not answer"),
    ],
)
def test_mistakes_are_one_line(photos, arguments, code, words):
    done = run("caption", "--images", photos, *arguments)
    assert done.exit_code == code and words in done.stderr
    assert KEY not in done.output and "Traceback" not in done.output
