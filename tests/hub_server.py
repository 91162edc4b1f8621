"""A stand-in for the Hugging Face Hub: one data set of files, served over HTTP to the real client libraries.

It answers what ``huggingface_hub`` and ``datasets`` ask for: repository facts, the tree, paths-info, and files with
the Hub's headers, ranges included. ``cut_after`` makes it stop in the middle of a file, as a network does.
"""

import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPO = "someone/sums"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class HubServer:
    """Serves ``files[commit][path]`` (bytes) as the data set ``REPO`` on a free local port. A context manager.

    Attributes:
        url: what ``HF_ENDPOINT`` must be.
        requests: method and path of everything that was asked for.
        cut_after: after so many bytes of a file the connection is closed; None: never.
    """

    def __init__(self, files: dict[str, dict[str, bytes]], cut_after: int | None = None):
        self.files, self.cut_after, self.requests = files, cut_after, []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self):  # noqa: N802 (the base class decides the name)
        self._answer()

    def do_GET(self):  # noqa: N802
        self._answer()

    def do_POST(self):  # noqa: N802
        self._answer()

    def log_message(self, *_):
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if match := re.fullmatch(rf"/api/datasets/{REPO}(?:/revision/(.+))?", path):
            self._facts(match[1] or "main")
        elif match := re.fullmatch(rf"/api/datasets/{REPO}/tree/([^/]+)/?(.*)", path):
            self._tree(match[1], match[2], recursive="recursive=true" in self.path.lower())
        elif match := re.fullmatch(rf"/api/datasets/{REPO}/paths-info/(.+)", path):
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else re.findall(r"paths=([^&]+)", body.decode())
            self._paths([unquote(name) for name in wanted], match[1])
        elif match := re.fullmatch(rf"/datasets/{REPO}/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2])
        else:
            self._missing("RepoNotFound" if REPO not in path else "EntryNotFound")

    def _commit(self, revision: str) -> str | None:
        commit = COMMITS.get(revision, revision)
        return commit if commit in self.hub.files else None

    def _facts(self, revision: str) -> None:
        commit = self._commit(revision)
        if commit is None:
            self._missing("RevisionNotFound")
            return
        files = [{"rfilename": name} for name in self.hub.files[commit]]
        self._json({"id": REPO, "sha": commit, "private": False, "disabled": False, "gated": False, "downloads": 0,
                    "likes": 0, "tags": [], "siblings": files, "lastModified": "2024-01-01T00:00:00.000Z"})

    def _tree(self, revision: str, folder: str, recursive: bool) -> None:
        commit = self._commit(revision)
        if commit is None:
            self._missing("RevisionNotFound")
            return
        prefix = f"{folder}/" if folder else ""
        below = {name: data for name, data in self.hub.files[commit].items() if name.startswith(prefix)}
        here = {name: data for name, data in below.items() if recursive or "/" not in name.removeprefix(prefix)}
        folders = {prefix + name.removeprefix(prefix).split("/")[0] for name in below} - set(below)
        self._json([{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders)]
                   + [_entry(name, data) for name, data in here.items()])

    def _paths(self, names: list[str], revision: str) -> None:
        files = self.hub.files[self._commit(revision)]
        self._json([_entry(name, files[name]) for name in names if name in files])

    def _file(self, revision: str, name: str) -> None:
        commit = self._commit(revision)
        data = self.hub.files.get(commit, {}).get(name)
        if data is None:
            self._missing("EntryNotFound")
            return
        first, last, status = 0, len(data) - 1, 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last, status = int(match[1]), min(int(match[2] or last), last), 206
        self.send_response(status)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{_git_id(data)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(last - first + 1))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            part = data[first:last + 1]
            if self.hub.cut_after is not None and len(part) > self.hub.cut_after:
                self.wfile.write(part[:self.hub.cut_after])
                self.close_connection = True
            else:
                self.wfile.write(part)

    def _json(self, value) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "not here")
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(name: str, data: bytes) -> dict:
    return {"type": "file", "oid": _git_id(data), "size": len(data), "path": name}


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


if __name__ == "__main__":  # look at it with a browser: python tests/hub_server.py FILE.parquet
    content = Path(sys.argv[1]).read_bytes()
    with HubServer({commit: {"data/train.parquet": content} for commit in COMMITS.values()}) as server:
        print(server.url)
        threading.Event().wait()
