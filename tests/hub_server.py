"""A small Hugging Face Hub on this machine, which misbehaves as it is told. It speaks
as much of the Hub's HTTP as a push and a download want. Of the standard library, and
PyYAML, which huggingface_hub brings."""

import base64
import hashlib
import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

LICENCES = {"apache-2.0", "mit", "cc-by-nc-4.0", "unknown", "other"}
ERRORS = {"RepoNotFound": 404, "EntryNotFound": 404, "RevisionNotFound": 404}


_NUMBERS = itertools.count()


class Repository:
    """One repository: `commits` are folders, {name: content}, the newest last; `tags`
    are numbers of commits by name."""

    def __init__(self, private: bool):
        self.private, self.commits = private, [{".gitattributes": b""}]
        self.number, self.tags = next(_NUMBERS), {}

    def oid(self, number: int) -> str:
        return hashlib.sha1(f"{self.number} {number}".encode()).hexdigest()

    def find(self, revision: str) -> int | None:
        if revision == "main":
            return len(self.commits) - 1
        if revision in self.tags:
            return self.tags[revision]
        oids = [self.oid(number) for number in range(len(self.commits))]
        return oids.index(revision) if revision in oids else None


class HubServer:
    """Answers on 127.0.0.1 while it is entered.

    token: who sends it is the user "me", and may write to "me/..." and read it.
    plan: `plan(method, path)` gives a status to answer with instead, "half" for a
        download that breaks off, "echo" for a refusal that repeats the token, or None.
    """

    def __init__(self, token: str = "hf_of_the_tests", plan=lambda method, path: None):
        self.token, self.plan = token, plan
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str]] = []
        self.private: list[bool] = []  # what was asked for, each time
        self.messages: list[str] = []
        self.objects: dict[str, bytes] = {}

    def __enter__(self) -> "HubServer":
        handler = type("Handler", (_Handler,), {"owner": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,)).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()


def complaint(content: str) -> str | None:
    """What the Hub's validator would say of a card."""
    _, front, _ = content.split("---\n", 2)
    data = yaml.safe_load(front)
    if data.get("license") not in LICENCES:
        return '"license" must be one of [apache-2.0, mit, ...]'
    for entry in data.get("model-index", []):
        for result in entry["results"]:
            if not {"task", "dataset", "metrics"} <= set(result):
                return '"model-index[0].results[0]" is incomplete'
            if not {"type", "name"} <= set(result["dataset"]):
                return '"dataset.type" is required'
    return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: HubServer

    def log_message(self, *words) -> None:
        """Quiet."""

    def send(self, status: int, body: bytes = b"", length: int = 0, **headers) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, answer, status: int = 200) -> None:
        self.send(status, json.dumps(answer).encode(), Content_Type="application/json")

    def error(self, code: str) -> None:
        self.send(ERRORS[code], X_Error_Code=code, X_Error_Message=code)

    def handle_any(self) -> None:
        owner, path = self.owner, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        owner.asked.append((self.command, path))
        how = owner.plan(self.command, path)
        given = self.headers.get("Authorization") or ""
        if how == "echo":
            self.send(403, X_Error_Message=f"you sent {given}")
        elif isinstance(how, int):
            self.send(how, b"an error page")
        else:
            self.user = "me" if given == f"Bearer {owner.token}" else None
            self.reply(path, body, how == "half")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def reply(self, path: str, body: bytes, half: bool) -> None:
        """Whatever is asked."""
        if path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            wrong = complaint(json.loads(body)["content"])
            errors = [{"message": wrong}] if wrong else []
            self.json({"errors": errors, "warnings": []}, 400 if wrong else 200)
        elif path.startswith("/lfs/"):
            self.owner.objects[path.removeprefix("/lfs/")] = body
            self.send(200)
        elif path.startswith("/api/models/"):
            name, _, rest = path.removeprefix("/api/models/").partition("/")
            name, rest = f"{name}/{rest.partition('/')[0]}", rest.partition("/")[2]
            self.model(name, rest, body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.batch(json.loads(body))
        elif "/resolve/" in path:
            name, _, rest = path.lstrip("/").partition("/resolve/")
            self.resolve(name, *rest.rsplit("/", 1), half)
        else:
            self.send(404)

    def may(self, name: str, write: bool = False) -> bool:
        """Whether this user may; answers if not."""
        found = self.owner.repositories.get(name)
        mine = self.user == name.partition("/")[0]
        if write and self.user is None:
            self.send(401, X_Error_Message="Invalid username or password.")
        elif found is None or (found.private and not mine):
            if self.user is None:
                self.send(401, X_Error_Message="Invalid username or password.")
            else:
                self.error("RepoNotFound")
        elif write and not mine:
            self.send(403, X_Error_Message="you may not write here")
        else:
            return True
        return False

    def create(self, asked: dict) -> None:
        if self.user is None:
            self.send(401, X_Error_Message="Invalid username or password.")
            return
        whose = asked.get("organization") or self.user
        name = f"{whose}/{asked['name']}"
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.owner.private.append(private)
        exists = name in self.owner.repositories
        if whose != self.user:
            self.send(403, X_Error_Message="you may not create here")
            return
        if not exists:
            self.owner.repositories[name] = Repository(private)
        answer = {"url": f"{self.owner.url}/{name}", "name": name}
        self.json(answer, 409 if exists else 200)

    def model(self, name: str, rest: str, body: bytes) -> None:
        """Facts about a repository, or a step of a commit."""
        step = rest.partition("/")[0]
        if not self.may(name, write=step in ("preupload", "commit")):
            return
        found = self.owner.repositories[name]
        newest = found.commits[-1]
        if step == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if "safetensors" in file["path"] else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.json({"files": files})
        elif step == "commit":
            self.commit(name, [json.loads(line) for line in body.splitlines()])
        else:
            self.json(
                {
                    "id": name,
                    "private": found.private,
                    "sha": found.oid(len(found.commits) - 1),
                    "siblings": [{"rfilename": file} for file in newest],
                }
            )

    def commit(self, name: str, lines: list[dict]) -> None:
        """All files or none."""
        found = self.owner.repositories[name]
        files = dict(found.commits[-1])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.owner.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.owner.objects[value["oid"]]
        found.commits.append(files)
        oid = found.oid(len(found.commits) - 1)
        url = f"{self.owner.url}/{name}/commit/{oid}"
        self.json(
            {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""}
        )

    def batch(self, asked: dict) -> None:
        objects = [
            {
                **each,
                "actions": {"upload": {"href": f"{self.owner.url}/lfs/{each['oid']}"}},
            }
            for each in asked["objects"]
        ]
        self.json({"transfer": "basic", "objects": objects})

    def resolve(self, name: str, revision: str, file: str, half: bool) -> None:
        """A file, or what is said of it."""
        if not self.may(name):
            return
        found = self.owner.repositories[name]
        number = found.find(revision)
        if number is None:
            self.error("RevisionNotFound")
            return
        content = found.commits[number].get(file)
        if content is None:
            self.error("EntryNotFound")
            return
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X_Repo_Commit": found.oid(number),
        }
        if half and self.command == "GET":
            self.send(200, content[: len(content) // 2], len(content), **headers)
            self.close_connection = True
        else:
            self.send(200, content, **headers)
