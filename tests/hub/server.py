"""A Hub of our own: repositories in memory behind the Hub's addresses, for `huggingface_hub` itself to talk to."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"
COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """`repositories`: name -> path -> bytes. `requests` are those that came in, `METHOD path`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.read_file()

    def do_GET(self) -> None:
        parts = self.parts()
        if parts[:2] != ["api", "models"]:
            return self.read_file()
        files = self.server.repositories.get("/".join(parts[2:4]))
        if files is None:
            return self.refuse(404, "RepoNotFound")
        if parts[4:5] == ["tree"]:
            listing = [{"type": "file", "path": p, "size": len(c), "oid": digest(c)} for p, c in sorted(files.items())]
            return self.answer(json.dumps(listing).encode())
        siblings = [{"rfilename": path} for path in sorted(files)]
        return self.answer(json.dumps({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings}).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.parts()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            return self.answer(json.dumps({"url": f"{self.server.address}/{name}"}).encode())
        if parts == ["api", "validate-yaml"]:  # the header of a model card
            return self.answer(json.dumps({"errors": [], "warnings": []}).encode())
        files = self.server.repositories["/".join(parts[2:4])]
        if parts[4] == "preupload":
            modes = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self.answer(json.dumps({"files": modes}).encode())
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.server.address}/{parts[2]}/{parts[3]}/commit/{COMMIT}"
        return self.answer(json.dumps({"commitUrl": url, "commitOid": COMMIT, "success": True}).encode())

    def read_file(self) -> None:
        """/user/repo/resolve/revision/path"""
        parts = self.parts()
        files = self.server.repositories.get("/".join(parts[:2]))
        path = "/".join(parts[4:])
        if files is None:
            return self.refuse(404, "RepoNotFound")
        if path not in files:
            return self.refuse(404, "EntryNotFound")
        return self.answer(files[path], {"ETag": f'"{digest(files[path])}"', "X-Repo-Commit": COMMIT})

    def parts(self) -> list[str]:
        self.server.requests.append(f"{self.command} {self.path}")
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def answer(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
