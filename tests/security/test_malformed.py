"""S2: whatever is done to a file's bytes, reading it ends in one kind of error, at a bounded cost."""

import copy
import json
import random
import shutil
import struct
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from epg.checkpoint import checkpoint, export
from epg.checkpoint.loading import load
from epg.checkpoint.state_dict import read_state_dict
from epg.checkpoint.verify import verify
from epg.config.recipe import run_config
from epg.config.settings import parse
from epg.errors import ArtefactError, UserError
from epg.evaluation.npz import Npz
from epg.storage.artefact import read_json, read_tensors
from tests.helpers import tiny_config
from tests.security.common import case, make_run, run_audited

Reader = Callable[[Path], Any]
MUTATIONS = 2_000
TELLING = [b"\xff" * 8, b"\x00" * 8, b"9" * 30, b'{"a":' * 8, b"NaN", b"-1", b"!!python/name:os.system", b"\n- "]
HALF_GIGABYTE = 2**29


def read_npz(path: Path) -> None:
    archive = Npz(path)
    for name, limit in (("mu", (64, 64)), ("sigma", (64, 64)), ("arr_0", (64, 64, 64, 64))):
        if name in archive:
            archive.small(name, limit)


def read_config(path: Path) -> None:
    run_config(str(path))


READERS: dict[str, Reader] = {
    "model.safetensors": read_tensors,
    "manifest.json": lambda path: checkpoint.read(path.parent),
    "state.json": read_json,
    "config.json": lambda path: export.read(path.parent),
    "config.yaml": read_config,
    "statistics.npz": read_npz,
    "state.pth": read_state_dict,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("malformed") / "run")


@pytest.fixture
def files(run: Path, tmp_path: Path) -> dict[str, Path]:
    """A file of each kind, each where its reader expects it."""
    shutil.copytree(run, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "step-00000010"
    (tmp_path / "config.yaml").write_text(tiny_config().to_yaml())
    numbers = np.arange(12.0).reshape(3, 4)
    np.savez(tmp_path / "statistics.npz", mu=numbers, sigma=numbers, arr_0=np.zeros((2, 8, 8, 1), np.uint8))
    torch.save({"a": torch.zeros(3, 4), "b": torch.ones(2)}, tmp_path / "state.pth")
    save_file({"a": torch.zeros(3, 4), "b": torch.ones(2)}, tmp_path / "model.safetensors")
    return {
        "model.safetensors": tmp_path / "model.safetensors",
        "manifest.json": step / "manifest.json",
        "state.json": step / "state.json",
        "config.json": tmp_path / "run" / "export" / "config.json",
        "config.yaml": tmp_path / "config.yaml",
        "statistics.npz": tmp_path / "statistics.npz",
        "state.pth": tmp_path / "state.pth",
    }


def mutated(content: bytes, chooser: random.Random) -> bytes:
    """One to four changes: bits, bytes, cuts, repeats, insertions, telling numbers."""
    data = bytearray(content)
    for _ in range(chooser.randint(1, 4)):
        place = chooser.randrange(len(data) + 1)
        kind = chooser.randrange(7)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << chooser.randrange(8)
        elif kind == 1 and place < len(data):
            data[place] = chooser.randrange(256)
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            del data[place : place + chooser.randint(1, 16)]
        elif kind == 4:
            data[place:place] = data[place : place + chooser.randint(1, 64)]
        elif kind == 5:
            data[place:place] = chooser.randbytes(chooser.randint(1, 16))
        else:
            telling = [
                b"\xff" * 8,
                b"\x00" * 8,
                b"9" * 30,
                b'{"a":' * 8,
                b"NaN",
                b"-1",
                b"!!python/name:os.system",
                b"\n- ",
            ]
            data[place : place + 4] = chooser.choice(telling)
        data = data or bytearray(b"\0")
    return bytes(data)


def campaign(name: str, file: Path, count: int, seed: int) -> Counter[str]:
    """Reads that many mutations; returns how often each outcome came."""
    reader, original, found = READERS[name], file.read_bytes(), Counter[str]()
    chooser = random.Random(f"{name} {seed}")
    for number in range(count):
        content = mutated(original, chooser)
        file.write_bytes(content)
        start = time.process_time()
        try:
            reader(file)
            found["read"] += 1
        except UserError as error:
            found[type(error).__name__ if str(error) else "silent"] += 1
        except Exception as error:
            raise AssertionError(f"{name}, mutation {number}: {error!r} from {content[:200]!r}") from error
        assert time.process_time() - start <= 2, (name, number)
    assert not found["silent"]
    file.write_bytes(original)
    reader(file)
    return found


@pytest.mark.parametrize("name", READERS)
def test_mutations(name: str, files: dict[str, Path]) -> None:
    found = campaign(name, files[name], MUTATIONS // len(READERS), 0)
    assert sum(found.values()) - found["read"] > MUTATIONS // len(READERS) // 4, found


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_hundred_thousand_mutations(name: str, files: dict[str, Path]) -> None:
    campaign(name, files[name], 100_000 // len(READERS), 1)


def test_control_torch_fails_in_many_ways(files: dict[str, Path]) -> None:
    """Reading without the checks ends in all kinds of exceptions, none of which a caller can expect."""
    chooser, file, classes = random.Random(0), files["state.pth"], set()
    original = file.read_bytes()
    for _ in range(300):
        file.write_bytes(mutated(original, chooser))
        try:
            torch.load(file, weights_only=True)
        except Exception as error:
            classes.add(type(error))
    assert len(classes) >= 3


# Files that claim or unpack to far more than they hold ----------------------------------------------------------------


def zip_bomb_pt(folder: Path) -> Path:
    """A .pt of half a MB whose one tensor unpacks to half a GB: torch.load would allocate all of it."""
    torch.save({"w": torch.zeros(2)}, folder / "plain.pt")
    with zipfile.ZipFile(folder / "plain.pt") as plain, zipfile.ZipFile(folder / "bomb.pt", "w") as bomb:
        for info in plain.infolist():
            if not info.filename.endswith("/data/0"):
                bomb.writestr(info.filename, plain.read(info))
                continue
            deep = zipfile.ZipInfo(info.filename)
            deep.compress_type = zipfile.ZIP_DEFLATED
            with bomb.open(deep, "w", force_zip64=True) as stream:
                for _ in range(HALF_GIGABYTE // 2**26):
                    stream.write(bytes(2**26))
    return folder / "bomb.pt"


def npz_bomb(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("mu.npy", "w", force_zip64=True) as stream:
            header = {"descr": "<f8", "fortran_order": False, "shape": (2**13, 2**13)}
            np.lib.format.write_array_header_1_0(stream, header)
            for _ in range(HALF_GIGABYTE // 2**26):
                stream.write(bytes(2**26))
    return folder / "bomb.npz"


def tensors_file(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "bomb.safetensors").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return folder / "bomb.safetensors"


def long_header(folder: Path) -> Path:
    entries = b'"%040d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},' * 840_000
    return tensors_file(folder, b"{" + entries % tuple(range(840_000)) + b'"last":{}}')


def huge_shape(folder: Path) -> Path:
    return tensors_file(folder, {"w": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 4]}}, b"1234")


def false_length(folder: Path) -> Path:
    return tensors_file(folder, {}, length=2**62)


def deep_header(folder: Path) -> Path:
    return tensors_file(folder, b'{"a":' * 100_000)


def overlapping(folder: Path) -> Path:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return tensors_file(folder, {f"w{i}": entry for i in range(1000)}, b"1234")


def many_tensors(folder: Path) -> Path:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return tensors_file(folder, {f"w{i}": entry for i in range(30_000)})


def not_finite(folder: Path) -> Path:
    save_file({"w": torch.tensor([1.0, float("nan")])}, folder / "bomb.safetensors")
    return folder / "bomb.safetensors"


def infinite_pth(folder: Path) -> Path:
    torch.save({"w": torch.tensor([1.0, float("inf")])}, folder / "bomb.pt")
    return folder / "bomb.pt"


def complex_weights(folder: Path) -> Path:
    save_file({"w": torch.zeros(2, dtype=torch.complex64)}, folder / "bomb.safetensors")
    return folder / "bomb.safetensors"


def long_json(folder: Path) -> Path:
    (folder / "config.json").write_text('{"a": "' + "x" * (20 * 2**20) + '"}')
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def long_number(folder: Path) -> Path:
    (folder / "config.json").write_text('{"format": ' + "9" * 100_000 + "}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


BOMBS = [
    zip_bomb_pt,
    npz_bomb,
    long_header,
    huge_shape,
    false_length,
    deep_header,
    overlapping,
    many_tensors,
    not_finite,
    infinite_pth,
    complex_weights,
    long_json,
    long_number,
]


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bombs")
    places = {build: folder / build.__name__ for build in BOMBS}
    for place in places.values():
        place.mkdir()
    return {build.__name__: build(place) for build, place in places.items()}


def test_bombs(bombs: dict[str, Path], tmp_path: Path) -> None:
    """Each given to every verb that could read it, in a process whose memory is watched."""
    cases = [case("info", "digits", tmp_path, tmp_path, tmp_path, 0)]
    for path in bombs.values():
        for verb, template in [
            ("finetune", "digits --encoder {path} --training.device cpu --out {out}"),
            ("sample", "{path} --out {out} --device cpu"),
            ("verify", "{path}"),
            ("inspect", "{path} --image-size 8 --workers 0 --sheet {out}.png"),
        ]:
            cases.append(case(verb, template, path, tmp_path, tmp_path, len(cases)))
    warm = [cases[0], {**cases[0], "arguments": ["finetune", "digits", "--encoder", "nowhere"]}]
    first, *rest = run_audited([*warm, *cases])[1:]
    before = first["memory"]
    for what, found in zip(cases, rest, strict=True):
        if what is cases[0]:
            continue
        told = f"epg {' '.join(what['arguments'])}\n{ {**found, 'output': found['output'][-800:]} }"
        assert found["code"] in (65, 77), told
        assert "Traceback" not in found["output"], told
        assert found["seconds"] <= 2, told
        assert found["memory"] - before <= 300, told
        assert not found["events"], told


# Weights of another network -------------------------------------------------------------------------------------------


def spoil(run: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Changes the weights of the export and signs them anew."""
    tensors = read_tensors(run / "export" / "model.safetensors")
    change(tensors)
    content, _ = read_json(run / "export" / "config.json")
    shutil.rmtree(run / "export")
    export.write(
        run / "export", 10, {"ema-0.9": tensors}, {**copy.deepcopy(content), "class_names": [], "class_counts": []}
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("decoder.out.bias"), "missing: decoder.out.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda t: t.update({"decoder.out.bias": torch.zeros(5)}), r"decoder.out.bias: \(5,\)"),
        (lambda t: t["decoder.out.bias"].fill_(float("inf")), "decoder.out.bias holds values that are not finite"),
    ],
)
def test_weights_that_do_not_fit(run: Path, tmp_path: Path, change: Any, words: str) -> None:
    shutil.copytree(run / "export", tmp_path / "export")
    spoil(tmp_path, change)
    with pytest.raises(ArtefactError, match=words):
        load(tmp_path / "export")


def test_the_digests_of_a_spoiled_file_are_not_enough(run: Path, tmp_path: Path) -> None:
    """Control: signing anew gives a file that is whole; what refuses it is the comparison with the network."""
    shutil.copytree(run / "export", tmp_path / "export")
    spoil(tmp_path, lambda tensors: tensors.update(extra=torch.zeros(1)))
    assert "extra" in export.read(tmp_path / "export").tensors()
    verify(tmp_path / "export")


def test_control_bombs_are_bombs(bombs: dict[str, Path]) -> None:
    """Without the checks the small archives unpack to far more than the limit."""
    for kind, name in (("zip_bomb_pt", "plain/data/0"), ("npz_bomb", "mu.npy")):
        with zipfile.ZipFile(bombs[kind]) as archive:
            assert archive.getinfo(name).file_size >= HALF_GIGABYTE
        assert bombs[kind].stat().st_size < 2**20
    assert bombs["long_header"].stat().st_size > 70e6


def test_the_configuration_that_is_mutated_is_valid() -> None:
    assert parse(yaml.safe_load(tiny_config().to_yaml()), "tiny").recipe == "tiny"
