"""A Hugging Face Hub on this machine: as much of its protocol as reading one public data set takes."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REVISION = "0" * 39 + "1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer()

    def do_POST(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not urlsplit(self.path).path.startswith(f"{self.api}/paths-info/"):
            return self.send(404)
        paths = json.loads(data)["paths"]
        return self.send_json([item for item in self.items() if item["path"] in paths])

    @property
    def api(self):
        return f"/api/datasets/{self.server.name}"

    def answer(self, body=True):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        resolve = f"/datasets/{self.server.name}/resolve/"
        if path.startswith(resolve):
            file = self.server.root / path.removeprefix(resolve).partition("/")[2]
            return self.send_file(file, body) if file.is_file() else self.send(404, {"X-Error-Code": "EntryNotFound"})
        if path == self.api or path.startswith(f"{self.api}/revision/"):
            siblings = [{"rfilename": item["path"]} for item in self.items() if item["type"] == "file"]
            info = {"id": self.server.name, "sha": REVISION, "private": False, "gated": False, "tags": []}
            return self.send_json({**info, "disabled": False, "downloads": 0, "likes": 0, "siblings": siblings})
        if path.startswith(f"{self.api}/tree/"):
            folder = path.removeprefix(f"{self.api}/tree/").partition("/")[2]
            return self.send_json([item for item in self.items() if item["path"].startswith(folder)])
        return self.send(404, {"X-Error-Code": "RepoNotFound"})

    def items(self):
        for path in sorted(self.server.root.rglob("*")):
            name = path.relative_to(self.server.root).as_posix()
            if path.is_file():
                yield {"type": "file", "path": name, "size": path.stat().st_size, "oid": oid(path)}
            else:
                yield {"type": "directory", "path": name, "oid": "0" * 40}

    def send_file(self, file, body):
        data = file.read_bytes()
        headers = {"ETag": f'"{oid(file)}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if first:
            end = min(int(last or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            data = data[int(first) : end + 1]
        self.send(206 if first else 200, headers, data, body)

    def send_json(self, content):
        self.send(200, {"Content-Type": "application/json", "X-Repo-Commit": REVISION}, json.dumps(content).encode())

    def send(self, status, headers=None, data=b"", body=True):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def oid(path):
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def fake_hub(root: Path, name: str):
    """Serves the files below `root` as the data set `name`: its address, and the list of paths that were asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.root, server.name, server.asked, server.daemon_threads = root, name, [], True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked
    finally:
        server.shutdown()
        server.server_close()
