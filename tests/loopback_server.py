"""A server of captions on this machine that speaks OpenAI's protocol, and misbehaves
as it is told. Of the standard library alone."""

import base64
import hashlib
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

MODEL = "loopback"
FINE = "fine"
ERRORS = {  # what to answer instead: status, headers, body
    "429": (429, {"Retry-After": "0.3"}, {"error": {"message": "slow down"}}),
    "429 soon": (429, {"Retry-After-Ms": "10"}, {"error": {"message": "slow down"}}),
    "429 tomorrow": (429, {"Retry-After": "86400"}, {"error": {"message": "enough"}}),
    "500": (500, {"Retry-After-Ms": "10"}, {"error": {"message": "out of memory"}}),
    "400": (400, {}, {"detail": "this picture cannot be read"}),
    "401": (401, {}, {"error": {"message": "wrong key"}}),
    "404": (404, {}, {"error": {"message": "no such model"}}),
    "307": (307, {"Location": "http://127.0.0.1:9/v1/elsewhere"}, {}),
    "empty choices": (200, {}, {"choices": []}),
    "empty text": (200, {}, {"choices": [{"message": {"content": " \n"}}]}),
    "no text": (200, {}, {"choices": [{"message": {"content": None}}]}),
    "other schema": (200, {}, ["a", "list"]),
}


def describe(image: Image.Image, prompt: str) -> str:
    """What the server says: different for every picture and question."""
    seen = int(np.asarray(image.convert("RGB"), np.int64).sum())
    return f"{image.width} by {image.height} pixels of sum {seen}, asked: {prompt}"


def mark(url: str, prompt: str) -> str:
    """What a plan knows a picture and its question by."""
    return hashlib.md5((url + prompt).encode()).hexdigest()


class LoopbackServer:
    """Answers on 127.0.0.1 while it is entered.

    plan: `plan(which, attempt)` says how to answer: `FINE`, a key of `ERRORS`, "hang",
        "drip", "half", "not json", "echo" for a text with the key in it, "parts" for a
        text in two parts, or "cut" for one that ends at the highest length. `which`
        tells pictures apart, attempts of each are counted from 0.
    seconds: that a request takes at least.
    key: without it in the header, a request gets status 401.
    """

    def __init__(
        self,
        plan: Callable[[str, int], str] = lambda which, attempt: FINE,
        seconds: float = 0,
        key: str = "",
    ):
        self.plan, self.seconds, self.key = plan, seconds, key
        self.attempts: Counter[str] = Counter()
        self.now, self.most, self.times, self.keys = 0, 0, [], []
        self.lock, self.over = threading.Lock(), threading.Event()

    def __enter__(self) -> "LoopbackServer":
        handler = type("Handler", (_Handler,), {"owner": self})
        server = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 256})
        self.server = server(("127.0.0.1", 0), handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,)).start()
        return self

    def __exit__(self, *error) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()

    def count(self, change: int) -> None:
        with self.lock:
            self.now += change
            self.most = max(self.most, self.now)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: LoopbackServer

    def log_message(self, *words) -> None:
        """Quiet."""

    def send(self, status: int, headers: dict, body: bytes, length: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length or len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def has_key(self) -> bool:
        given = self.headers.get("Authorization") or ""
        self.owner.keys.append(given)
        return not self.owner.key or given == f"Bearer {self.owner.key}"

    def answer(self, text: str | list, end: str = "stop") -> bytes:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": end, "message": message}
        whole = {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL}
        return json.dumps({**whole, "choices": [choice]}).encode()

    def do_GET(self) -> None:
        listed = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        status = 200 if self.has_key() else 401
        self.send(status, {}, json.dumps(listed).encode())

    def do_POST(self) -> None:
        owner = self.owner
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        owner.count(1)
        try:
            if owner.seconds:
                time.sleep(owner.seconds)
            self.reply(asked)
        except OSError:  # the other side has gone
            self.close_connection = True
        finally:
            owner.count(-1)

    def reply(self, asked: dict) -> None:
        owner = self.owner
        picture, question = asked["messages"][0]["content"]
        url, prompt = picture["image_url"]["url"], question["text"]
        which = mark(url, prompt)
        with owner.lock:
            attempt = owner.attempts[which]
            owner.attempts[which] += 1
            owner.times.append(time.monotonic())
        how = owner.plan(which, attempt) if self.has_key() else "401"
        if how in ERRORS:
            status, headers, body = ERRORS[how]
            self.send(status, headers, json.dumps(body).encode())
        elif how == "hang":
            owner.over.wait(30)
        elif how == "not json":
            self.send(200, {}, b"<html>a proxy says hello</html>")
        elif how == "half":
            body = self.answer("half an answer")
            self.close_connection = True
            self.send(200, {}, body[: len(body) // 2], len(body))
        elif how == "drip":
            self.send(200, {}, b" ", 10_000)
            while not owner.over.wait(0.02):
                self.wfile.write(b" ")
        elif how == "echo":
            self.send(200, {}, self.answer(f"you sent {owner.keys[-1]}"))
        else:
            image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
            said, end = describe(image, prompt), "length" if how == "cut" else "stop"
            halves = [{"type": "text", "text": half} for half in (said[:9], said[9:])]
            self.send(200, {}, self.answer(halves if how == "parts" else said, end))
