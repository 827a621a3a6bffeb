"""Weights as one file at an address with its hash: made, fetched, kept, refused."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

import epg
from epg.cli import main
from epg.errors import ArtefactError
from epg.storage import assets
from tests.generators import save_run
from tests.helpers import tiny_config

HASH = "0" * 64


class Shelf(ThreadingHTTPServer):
    """Files by name; those asked for are counted. It may claim another length than it sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.claimed: int | None = None

    def address(self, name: str, sha256: str | None = None) -> str:
        digest = sha256 or hashlib.sha256(self.files[name]).hexdigest()
        return f"http://127.0.0.1:{self.server_address[1]}/{name}#sha256={digest}"


class Handler(BaseHTTPRequestHandler):
    server: Shelf

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.server.asked.append(name)
        content = self.server.files.get(name)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"") if self.server.claimed is None else 10**15))
        self.end_headers()
        self.wfile.write(content or b"")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An asset of a tiny run, and the run beside it."""
    folder = tmp_path_factory.mktemp("made")
    save_run(folder / "run", tiny_config())
    assert (
        main(["convert", str(folder / "run"), "--to", "asset", "--out", str(folder / "tiny.zip"), "--no-samples"]) == 0
    )
    return folder / "tiny.zip"


@pytest.fixture
def shelf(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setenv("EPG_CACHE", str(tmp_path / "cache"))
    with Shelf() as server:
        server.files["tiny.zip"] = made.read_bytes()
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_made_by_one_command_and_used_by_its_address(made: Path, shelf: Shelf, tmp_path: Path, capsys) -> None:
    again = tmp_path / "again.zip"
    assert main(["convert", str(made.parent / "run"), "--to", "asset", "--out", str(again), "--no-samples"]) == 0
    sha256 = hashlib.sha256(again.read_bytes()).hexdigest()
    assert f"'ADDRESS/again.zip#sha256={sha256}'" in capsys.readouterr().out
    address = shelf.address("tiny.zip")
    drawn = epg.load(address).sample(["dog", 0], seed=1)
    assert torch.equal(drawn, epg.load(made.parent / "run").sample(["dog", 0], seed=1))
    assert main(["sample", address, "--count", "3", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert torch.equal(epg.load(Path(address)).sample(["dog", 0], seed=1), drawn)  # pathlib takes a slash out
    assert shelf.asked == ["tiny.zip"]  # once; then it is in the cache
    assert torch.equal(epg.load(made).sample(["dog", 0], seed=1), drawn)  # the file itself
    assert main(["convert", address, "--out", str(tmp_path / "pipeline"), "--no-samples"]) == 0
    assert epg.load(tmp_path / "pipeline").class_names == ("cat", "dog", "goldfish")


@pytest.mark.parametrize("harm", [lambda file: file.write_bytes(file.read_bytes()[:-4] + b"\0\1\0\1"), Path.unlink])
def test_what_was_damaged_in_the_cache_is_fetched_anew(
    harm: Callable[[Path], object], made: Path, shelf: Shelf, capsys
) -> None:
    address = shelf.address("tiny.zip")
    file = assets.local(address) / "model.safetensors"
    whole = file.read_bytes()
    harm(file)
    assert epg.load(address).num_classes == 3
    assert file.read_bytes() == whole
    assert shelf.asked == ["tiny.zip"] * 2
    assert "damaged since it was fetched; it is fetched anew" in capsys.readouterr().err
    harm(file)
    epg.load(made)  # the file itself
    assert file.read_bytes() == whole
    assert len(shelf.asked) == 2
    assert [entry.name for entry in file.parents[1].iterdir() if entry.name.startswith(".")] == []
    harm(file)
    shelf.files.clear()  # what is there stays until there is better
    with pytest.raises(ArtefactError, match="Not Found"):
        epg.load(address)
    assert (file.parent / "config.json").is_file()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (lambda shelf: shelf.address("tiny.zip").partition("#")[0], "say which file you mean"),
        (lambda shelf: shelf.address("tiny.zip").replace("=", "=z"), "say which file you mean"),
        (lambda shelf: shelf.address("tiny.zip", HASH), "not the file that is meant: its sha256 is"),
        (lambda shelf: shelf.address("other.zip", HASH), "Not Found"),
        (lambda shelf: f"http://127.0.0.1:9/tiny.zip#sha256={HASH}", "pass the .zip file"),
    ],
)
def test_refused(asked: Callable[[Shelf], str], told: str, shelf: Shelf, tmp_path: Path, capsys) -> None:
    assert main(["sample", asked(shelf), "--out", str(tmp_path / "out")]) == 77
    assert told in capsys.readouterr().err
    assert not list((tmp_path / "cache").rglob("*.*"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("claimed", [None, 10**15])
def test_too_large(claimed: int | None, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the other side says so, or sends without end."""
    shelf.claimed = claimed
    if claimed is None:
        monkeypatch.setattr(assets, "MOST_BYTES", 1000)
    with pytest.raises(ArtefactError, match="more than"):
        epg.load(shelf.address("tiny.zip"))
    assert not list((tmp_path / "cache").rglob("*.*"))


def archive(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with zipfile.ZipFile(file, "w", compression) as written:
            for name, content in files.items():
                written.writestr(name, content)

    return write


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda file: file.write_bytes(b"no archive"), "a damaged zip archive, or none"),
        (archive({"config.json": b"{}" * 10**6}, zipfile.ZIP_DEFLATED), "is compressed"),
        (archive({"../config.json": b"{}", "/tmp/model.safetensors": b""}), "no weights of ours"),
        (archive({"config.json": b"{}", "transformer/../../x.json": b"{}"}), "leads out of it"),
        (archive({"model.pkl": b"cos\nsystem\n"}), "no weights of ours"),
        (archive({"config.json": json.dumps({"format": 99}).encode(), "model.safetensors": b""}), "format 99"),
    ],
)
def test_hostile_archives(write: Callable[[Path], None], told: str, shelf: Shelf, tmp_path: Path) -> None:
    write(tmp_path / "bad.zip")
    shelf.files["bad.zip"] = (tmp_path / "bad.zip").read_bytes()
    for place in (shelf.address("bad.zip"), tmp_path / "bad.zip"):
        with pytest.raises(ArtefactError, match=told):
            epg.load(place)
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    entries = hashlib.sha256(shelf.files["bad.zip"]).hexdigest() + ".json"
    assert written <= {"bad.zip", "config.json", "model.safetensors", entries}
