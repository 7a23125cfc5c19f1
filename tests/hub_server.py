"""A server on this machine that answers as the Hugging Face hub does for one small data set."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    files: Mapping[str, bytes]
    repo: str
    sent: list[int]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path.startswith(f"/api/datasets/{self.repo}/paths-info/"):
            wanted = json.loads(body)["paths"]
            self._json([self._entry(name) for name in wanted if name in self.files])
        else:
            self._json({"error": "not here"}, status=404)

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api, raw = f"/api/datasets/{self.repo}", f"/datasets/{self.repo}/resolve/"
        if path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name} for name in self.files]
            self._json({"id": self.repo, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
        elif path.startswith(f"{api}/tree/"):
            below = path.removeprefix(f"{api}/tree/").partition("/")[2].rstrip("/")
            names = [name for name in self.files if name.startswith(f"{below}/" if below else "")]
            if below and not names:
                self._json({"error": "EntryNotFound"}, status=404, code="EntryNotFound")
            else:
                self._json([self._entry(name) for name in names])
        elif path.startswith(raw):
            name = path.removeprefix(raw).partition("/")[2]
            if name in self.files:
                self._bytes(self.files[name])
            else:
                self._json({"error": "Entry not found"}, status=404, code="EntryNotFound")
        else:
            self._json({"error": "Repository not found"}, status=404, code="RepoNotFound")

    def _entry(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        return {"type": "file", "path": name, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}

    def _json(self, value: Any, *, status: int = 200, code: str = "") -> None:
        self._reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"}, code)

    def _bytes(self, content: bytes) -> None:
        tag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked is None:
            self._reply(200, content, tag)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        tag["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self._reply(206, part, tag)

    def _reply(self, status: int, content: bytes, headers: Mapping[str, str], code: str = "") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self.sent.append(len(content))

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def hub(repo: str, files: Mapping[str, bytes]) -> Iterator[tuple[str, list[int]]]:
    """Yield the server's address, and the sizes of what it has sent so far."""
    sent: list[int] = []
    handler = type("OwnHub", (_Hub,), {"files": files, "repo": repo, "sent": sent})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
