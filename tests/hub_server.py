"""A small Hub on loopback: enough of the protocol for create_repo, push, pull, tags, revisions, LFS, private repos and data sets.

It keeps repos in memory and speaks to `huggingface_hub` itself, so what is tested is the real client over real HTTP. It can be
told to drop a connection in mid-download or in mid-upload.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Commit:
    oid: str
    files: dict[str, bytes]
    title: str
    parent: str | None = None  # as the upload named it


@dataclass
class Repo:
    private: bool
    commits: list[Commit]
    tags: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str | None) -> Commit | None:
        if revision in ("main", "HEAD", None):
            return self.commits[-1]
        revision = self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == revision), None)


@dataclass
class Hub:
    """What the server knows, and the faults it is told to make."""

    token: str = "a-token"
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)  # LFS, by sha256
    drop_downloads: dict[str, int] = field(default_factory=dict)  # file name: so many of its downloads end after half the bytes
    drop_uploads: int = 0  # so many of the next uploads are cut off
    stalls: dict[str, str] = field(default_factory=dict)  # part of an address: "silent", no answer; "trickle", a byte now and then
    released: threading.Event = field(default_factory=threading.Event)  # ends the stalls
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    url: str = ""

    def start(self) -> Hub:
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def files(self, repo_id: str) -> dict[str, bytes]:
        return self.repos[repo_id].commits[-1].files


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def names_below(folder: str, files: dict[str, bytes], recursive: bool) -> list[str]:
    """Files and folders below `folder` ("" or ending in "/"), the Hub's way."""
    names = set()
    for name in files:
        if name.startswith(folder):
            parts = name.removeprefix(folder).split("/")
            depths = range(1, len(parts) + 1) if recursive else [1]
            names |= {folder + "/".join(parts[:depth]) for depth in depths}
    return sorted(names)


def entry(name: str, files: dict[str, bytes]) -> dict:
    if name not in files:
        return {"type": "directory", "oid": git_oid(name.encode()), "size": 0, "path": name}
    return {"type": "file", "oid": git_oid(files[name]), "size": len(files[name]), "path": name}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args) -> None:
        pass

    # ------------------------------------------------------------------ plumbing

    def answer(self, code: int, body=b"", headers: dict | None = None) -> None:
        headers = dict(headers or {})
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        headers.setdefault("Content-Length", str(len(body)))
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.hub.requests.append((self.command, self.path, code))

    def refuse(self, code: int, kind: str, message: str) -> None:
        self.answer(code, {"error": message}, {"X-Error-Code": kind, "X-Error-Message": message})

    def stall(self) -> bool:
        """Whether this request was kept waiting until the test was over, and has had no answer of use."""
        kind = next((kind for part, kind in self.hub.stalls.items() if part in urllib.parse.unquote(self.path)), None)
        if kind == "trickle" and self.command == "GET":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            with suppress(OSError):  # the reader may go
                while not self.hub.released.wait(0.05):
                    self.wfile.write(b"x")
        elif kind == "silent":
            self.hub.released.wait(60)
        else:
            return False
        self.hang_up()
        return True

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while True:
            size = int(self.rfile.readline().split(b";")[0], 16)
            content += self.rfile.read(size)
            self.rfile.readline()
            if size == 0:
                return content

    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def repo(self, repo_id: str) -> Repo | None:
        """The repo, or None after refusing: a private one looks missing to those without a token, as on the Hub."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self.has_token()):
            self.refuse(404 if self.has_token() else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    # ------------------------------------------------------------------ reading

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.stall():
            return
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            if not self.has_token():
                return self.refuse(401, "Unauthorized", "Invalid user token")
            token = {"role": "write", "displayName": "t"}
            return self.answer(200, {"type": "user", "name": "tester", "orgs": [], "auth": {"type": "access_token", "accessToken": token}})
        if match := re.match(r"^/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+|refs/[^/]+/[^/]+)/(.+)$", path):
            return self.get_file(*match.groups())
        if match := re.match(r"^/api/(?:models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|refs|commits)(?:/([^/]+))?(?:/(.*))?)?$", path):
            return self.get_info(*match.groups())
        self.refuse(404, "NotFound", f"no route {path}")

    def repo_at(self, repo_id: str, revision: str | None):
        """`(repo, commit)`; what is not there has been refused, and is None."""
        repo = self.repo(repo_id)
        commit = repo.at(revision) if repo is not None else None
        if repo is not None and commit is None:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        return repo, commit

    def get_file(self, repo_id: str, revision: str, path: str) -> None:
        repo, commit = self.repo_at(repo_id, revision)
        if commit is None:
            return
        about = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            return self.answer(404, b"Entry not found", {**about, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        content = commit.files[path]
        about |= {"ETag": f'"{git_oid(content)}"', "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if self.command == "GET" and self.hub.drop_downloads.get(path, 0) > 0:
            self.hub.drop_downloads[path] -= 1
            self.send_response(200)
            for name, value in {**about, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            return self.hang_up()
        if match := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):  # the client goes on where it was cut off
            start = int(match[1])
            about["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.answer(206, content[start:], about)
        self.answer(200, content, about)

    def get_info(self, repo_id: str, endpoint: str | None, revision: str | None, folder: str | None) -> None:
        repo, commit = self.repo_at(repo_id, revision)
        if commit is None:
            return
        if endpoint == "refs":
            tags = [{"name": k, "ref": f"refs/tags/{k}", "targetCommit": v} for k, v in repo.tags.items()]
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1].oid}
            return self.answer(200, {"branches": [main], "tags": tags, "converts": []})
        if endpoint == "commits":
            about = {"message": "", "date": DATE, "authors": [{"user": "tester"}]}
            return self.answer(200, [{"id": c.oid, "title": c.title, **about} for c in reversed(repo.commits)])
        if endpoint == "tree":
            below = folder.rstrip("/") + "/" if folder else ""
            recursive = "recursive=true" in self.path.lower()
            return self.answer(200, [entry(n, commit.files) for n in names_below(below, commit.files, recursive)])
        self.answer(200, {
            "_id": "0", "id": repo_id, "modelId": repo_id, "sha": commit.oid, "private": repo.private, "tags": [], "downloads": 0,
            "likes": 0, "siblings": [{"rfilename": name} for name in sorted(commit.files)], "lastModified": DATE,
            "createdAt": DATE, "gated": False, "disabled": False,
        })  # fmt: skip

    # ------------------------------------------------------------------ writing

    def do_PUT(self) -> None:
        if self.hub.drop_uploads > 0:
            self.hub.drop_uploads -= 1
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            return self.hang_up()
        self.hub.blobs[self.path.rsplit("/", 1)[-1]] = self.body()
        self.answer(200)

    def do_POST(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        raw = self.body()
        if self.stall():
            return
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if not (self.has_token() or "/paths-info/" in path):
            return self.refuse(401, "Unauthorized", "Writing needs a token")
        if path == "/api/repos/create":
            return self.create(json.loads(raw))
        if match := re.match(r"^/(?:datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch$", path):
            return self.lfs_batch(json.loads(raw))
        if match := re.match(r"^/api/(?:models|datasets)/([^/]+/[^/]+)/(preupload|commit|paths-info|tag)/(.+)$", path):
            repo = self.repo(match[1])
            return None if repo is None else getattr(self, match[2].replace("-", "_"))(repo, match[1], match[3], raw)
        self.refuse(404, "NotFound", f"no route {path}")

    def create(self, wanted: dict) -> None:
        repo_id = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        url = {"url": f"{self.hub.url}/{repo_id}"}
        if repo_id in self.hub.repos:
            return self.answer(409, {"error": "You already created this model repo", **url})
        first = Commit(hashlib.sha1(repo_id.encode()).hexdigest(), {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.hub.repos[repo_id] = Repo(bool(wanted.get("private") or wanted.get("visibility") == "private"), [first])
        self.answer(200, {**url, "name": repo_id, "id": "0"})

    def lfs_batch(self, wanted: dict) -> None:
        objects = []
        for entry in wanted["objects"]:
            missing = entry["oid"] not in self.hub.blobs
            actions = {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}", "header": {}}}} if missing else {}
            objects.append({**entry, **actions})
        self.answer(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def preupload(self, repo: Repo, repo_id: str, revision: str, raw: bytes) -> None:
        mode = {True: "lfs", False: "regular"}
        files = [f["path"] for f in json.loads(raw)["files"]]
        self.answer(200, {"files": [{"path": p, "uploadMode": mode[p.endswith(".safetensors")], "shouldIgnore": False} for p in files]})

    def commit(self, repo: Repo, repo_id: str, revision: str, raw: bytes) -> None:
        head = repo.commits[-1]
        files, title, parent = dict(head.files), "", None
        for line in raw.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                title, parent = value["summary"], value.get("parentCommit")
                if parent not in (None, head.oid):
                    return self.refuse(412, "PreconditionFailed", "The repo has moved on")
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif operation["key"] == "deletedFile":
                files.pop(value["path"], None)
        listed = sorted((name, git_oid(content)) for name, content in files.items())
        oid = hashlib.sha1(json.dumps([head.oid, title, listed]).encode()).hexdigest()
        repo.commits.append(Commit(oid, files, title, parent))
        self.answer(200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}", "commitOid": oid, "hookOutput": ""})

    def paths_info(self, repo: Repo, repo_id: str, revision: str, raw: bytes) -> None:
        wanted = json.loads(raw) if raw.startswith(b"{") else urllib.parse.parse_qs(raw.decode())
        files = repo.at(revision).files
        folders = names_below("", files, recursive=True)
        self.answer(200, [entry(name, files) for name in wanted.get("paths", []) if name in folders])

    def tag(self, repo: Repo, repo_id: str, revision: str, raw: bytes) -> None:
        repo.tags[json.loads(raw)["tag"]] = repo.at(revision).oid
        self.answer(200, {})
