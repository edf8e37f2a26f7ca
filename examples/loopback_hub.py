"""A stand-in for the Hub on this machine: enough of its interface to push to, pull from, and break on purpose.

It keeps repositories in memory, answers on loopback alone, and checks no password: for trying and testing, not for sharing.

    with LoopbackHub() as hub:
        subprocess.run(command, env={**os.environ, **hub.environment(cache_folder)})
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

MEMBER_TOKEN = "hf_member"  # may read and write private repositories, and read gated ones


@dataclass
class Repo:
    """A repository: its branches, and the files of each commit."""

    kind: str = "models"
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Makes ``files`` the branch's state, and returns the commit's name."""
        parts = [len(self.commits).to_bytes(8, "big")]
        parts += [part for name in sorted(files) for part in (name.encode(), hashlib.sha256(files[name]).digest())]
        sha = hashlib.sha1(b"\0".join(parts)).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch or a commit's own name stands for."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class LoopbackHub:
    """The server. Use it as a context manager.

    Attributes:
        repos: by ``"org/name"``.
        asked: method and path of each request, in order.
        lfs: whether large files (``*.safetensors``) go by Git LFS; else everything is in the commit itself.
        cut_upload: answer requests that carry a large file, or the commit, by closing the connection.
        cut_download: close the connection after so many bytes of a ``*.safetensors`` file.
    """

    def __init__(self, lfs: bool = False) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[str] = []
        self.lfs = lfs
        self.objects: dict[str, bytes] = {}
        self.cut_upload = False
        self.cut_download: int | None = None
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: str | Path, token: str | None = MEMBER_TOKEN) -> dict[str, str]:
        """Variables for a process that shall take this for the Hub; they are read when huggingface_hub is imported."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """A revision's files by their paths."""
        return self.repos[repo].commits[str(self.repos[repo].resolve(revision))]


class _Handler(BaseHTTPRequestHandler):
    """One request. Routes are named as the Hub's own interface names them."""

    state: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.route()

    def do_HEAD(self) -> None:
        self.route()

    def do_POST(self) -> None:
        self.route()

    def do_PUT(self) -> None:
        self.route()

    def log_message(self, *_: Any) -> None:
        pass

    def route(self) -> None:
        self.url = urlparse(self.path)
        path = unquote(self.url.path).strip("/")
        self.state.asked.append(f"{self.command} {path}")
        # Read before answering, or the connection could not be used again.
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if "chunked" not in (
            self.headers.get("Transfer-Encoding") or ""
        ) else b"".join(self.chunks())  # fmt: skip
        carries = self.command == "PUT" or "/commit/" in path
        if self.state.cut_upload and carries:
            self.close_connection = True
            self.connection.close()
            return
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, path):
                getattr(self, method)(**{name: found for name, found in match.groupdict().items() if found is not None})
                return
        self.refuse(404, "EntryNotFound", f"No such path: {path}")

    def chunks(self) -> Any:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def answer(self, content: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps({} if content is None else content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def member(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {MEMBER_TOKEN}"

    def readable(self, kind: str, name: str, content: bool = False) -> Repo | None:
        repo = self.state.repos.get(name)
        if repo is None or repo.kind != kind or (repo.private and not self.member()):
            self.refuse(404 if self.member() else 401, "RepoNotFound", "Repository not found")
            return None
        if content and repo.gated and not self.member():
            self.refuse(403, "GatedRepo", f"Access to {name} is restricted: accept its conditions on its page.")
            return None
        return repo

    def who(self) -> None:
        if not self.member():
            return self.refuse(401, "", "Invalid username or password.")
        self.answer({"type": "user", "name": "member", "orgs": [{"name": "org"}]})

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'member'}/{asked['name']}"
        if not self.member():
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if name in self.state.repos:
            return self.answer({"url": f"{self.state.endpoint}/{name}", "error": "You already have it"}, 409)
        repo = Repo(private=bool(asked.get("private") or asked.get("visibility") == "private"))
        repo.commit("main", {".gitattributes": b""})
        self.state.repos[name] = repo
        self.answer({"url": f"{self.state.endpoint}/{name}", "id": name})

    def check_card(self) -> None:
        self.answer({"errors": [], "warnings": []})

    def branch(self, kind: str, name: str, revision: str) -> None:
        if repo := self.readable(kind, name):
            if revision in repo.branches:
                return self.refuse(409, "", "Reference already exists")
            repo.branches[revision] = repo.branches["main"]
            self.answer()

    def preupload(self, kind: str, name: str, revision: str) -> None:
        if (repo := self.readable(kind, name)) is None:
            return
        if repo.resolve(revision) is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        paths = [entry["path"] for entry in json.loads(self.body)["files"]]
        large = [self.state.lfs and fnmatch.fnmatch(path, "*.safetensors") for path in paths]
        modes = ["lfs" if is_large else "regular" for is_large in large]
        self.answer({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in zip(paths, modes)]})

    def lfs_batch(self, name: str) -> None:
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.state.endpoint}/lfs/{entry['oid']}"}}}
            if entry["oid"] not in self.state.objects
            else entry
            for entry in json.loads(self.body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.refuse(400, "", "The object's bytes are not those of its name")
        self.state.objects[oid] = self.body
        self.answer()

    def commit(self, kind: str, name: str, revision: str) -> None:
        if (repo := self.readable(kind, name)) is None:
            return
        if not self.member():
            return self.refuse(403, "", "You do not have write access")
        pull_request = "create_pr" in parse_qs(self.url.query)
        files = dict(repo.commits[str(repo.resolve(revision))])
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.state.objects:
                    return self.refuse(400, "", f"{value['path']}: its object was not uploaded")
                files[value["path"]] = self.state.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        branch = f"refs/pr/{1 + sum(b.startswith('refs/pr/') for b in repo.branches)}" if pull_request else revision
        sha = repo.commit(branch, files)
        url = f"{self.state.endpoint}/{name}"
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}"}
        if pull_request:
            answer["pullRequestUrl"] = f"{url}/discussions/{branch.rsplit('/', 1)[1]}"
        self.answer(answer)

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        if (repo := self.readable(kind, name)) is None:
            return
        sha = repo.resolve(revision)
        if sha is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = [{"rfilename": path} for path in sorted(repo.commits[sha])]
        self.answer(
            {"id": name, "sha": sha, "private": repo.private, "gated": repo.gated and "auto", "siblings": files}
        )

    def tree(self, kind: str, name: str, revision: str, folder: str = "") -> None:
        if (repo := self.readable(kind, name, content=True)) is None:
            return
        sha = repo.resolve(revision)
        if sha is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if folder and not any(path.startswith(f"{folder}/") for path in repo.commits[sha]):
            return self.refuse(404, "EntryNotFound", f"{folder} is not in the tree")
        self.answer(
            [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in sorted(repo.commits[sha].items())
                if not folder or path.startswith(f"{folder}/")
            ]
        )

    def content(self, name: str, revision: str, file: str, kind: str = "models") -> None:
        if (repo := self.readable(kind.strip("/"), name, content=True)) is None:
            return
        sha = repo.resolve(revision)
        if sha is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        data = repo.commits[sha].get(file)
        if data is None:
            self.send_response(404)
            for header, value in {"X-Repo-Commit": sha, "X-Error-Code": "EntryNotFound", "Content-Length": "0"}.items():
                self.send_header(header, value)
            self.end_headers()
            return
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        most = self.state.cut_download
        if self.command == "GET" and most is not None and file.endswith(".safetensors"):
            self.send_response(200)
            for header, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(data[:most])
            self.wfile.flush()
            self.close_connection = True
            return
        begin = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") :].split("-")[0] or 0)
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self.answer(data[begin:], 206 if begin else 200, headers)


_REPO = r"(?P<name>(?:[^/]+/)?[^/]+)"
_KIND = r"api/(?P<kind>models|datasets)/"
_ROUTES = [
    (r"api/whoami-v2", "who"),
    (r"api/repos/create", "create"),
    (r"api/validate-yaml", "check_card"),
    (rf"{_KIND}{_REPO}/branch/(?P<revision>.+)", "branch"),
    (rf"{_KIND}{_REPO}/preupload/(?P<revision>.+)", "preupload"),
    (rf"{_KIND}{_REPO}/commit/(?P<revision>.+)", "commit"),
    (rf"{_KIND}{_REPO}/revision/(?P<revision>.+)", "info"),
    (rf"{_KIND}{_REPO}/tree/(?P<revision>refs/pr/\d+|[^/]+)(?:/(?P<folder>.+))?", "tree"),
    (rf"{_KIND}{_REPO}", "info"),
    (rf"{_REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    (rf"{_REPO}/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<file>.+)", "content"),
    (rf"(?P<kind>datasets/){_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", "content"),
]
