"""Mistakes that a careless contributor could make, one by one: does the test that is named beside each find it?

    python benchmarks/seeded_faults.py [WORD ...]     # all of them, or those with a word in the room, file or test

Each is applied in a copy of `src/epg`, and its test must fail there; all tests must pass on the copy as it is.
Libraries are imported once, and every test runs in a fork. Ends with 1 where a fault survives or its text is gone.
"""

import contextlib
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
LIBRARIES = (
    *("pytest", "xdist", "numpy", "scipy.linalg", "sklearn.datasets", "sklearn.neighbors", "PIL.Image", "pydantic"),
    *("tyro", "rich.progress", "torch", "torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard"),
    *("torchvision", "datasets", "diffusers", "matplotlib.figure", "safetensors.torch"),
)


@dataclass(frozen=True)
class Fault:
    """A line of `seeded_faults.yaml`."""

    file: str
    old: str
    new: str
    test: str

    @property
    def node(self) -> str:
        file, function = self.test.split("::")
        folder, slash, name = file.rpartition("/")
        return f"tests/{folder}{slash}test_{name}.py::test_{function}"

    def stands(self, source: Path) -> bool:
        """Whether its text is there, once."""
        file = source / "epg" / self.file
        return file.is_file() and file.read_text().count(self.old) == 1


def listed() -> list[tuple[str, Fault]]:
    """Every fault with its room."""
    rooms = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    return [(room, Fault(*line)) for room, lines in rooms.items() for line in lines]


def main(words: Sequence[str]) -> int:
    chosen = [f for room, f in listed() if not words or any(word in f"{room} {f.file} {f.test}" for word in words)]
    if not chosen:
        print(f"no fault has one of these words in its room, file or test: {' '.join(words)}")
        return 2
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(shutil.copytree(ROOT / "src", Path(folder) / "src"))
        unknown = [f for f in chosen if not f.stands(source)]
        for fault in unknown:
            print(f"{fault.file}: anchor not found, or twice: {fault.old!r}")
        chosen = [fault for fault in chosen if fault not in unknown]
        if run(source, sorted({fault.node for fault in chosen})) != 0:
            print("The tests fail on the source as it is:")
            run(source, sorted({fault.node for fault in chosen}), quiet=False)
            return 1
        survived = [fault for fault in chosen if not caught(fault, source)]
    print(f"{len(chosen) - len(survived)} of {len(chosen)} faults caught")
    return 1 if survived or unknown else 0


def caught(fault: Fault, source: Path) -> bool:
    file = source / "epg" / fault.file
    sound, begun = file.read_text(), time.monotonic()
    file.write_text(sound.replace(fault.old, fault.new))
    code = run(source, [fault.node])
    file.write_text(sound)
    verdict = {0: "SURVIVED", 1: "caught"}.get(code, f"pytest ended with {code}")
    print(f"{verdict:9} {time.monotonic() - begun:5.1f} s  {fault.file}: {fault.node}", flush=True)
    return code == 1


def run(source: Path, nodes: Sequence[str], quiet: bool = True) -> int:
    """The exit code of pytest on these tests of this source: 0 where all pass, 1 where one fails."""
    import pytest

    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            sys.dont_write_bytecode = True
            sys.path[:0] = [str(source), str(ROOT)]
            os.environ.update(PYTHONPATH=os.pathsep.join([str(source), str(ROOT)]), PYTHONDONTWRITEBYTECODE="1")
            os.chdir(ROOT)
            if quiet:
                for stream in (1, 2):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            code = int(pytest.main(["-n", "0", "-x", "-q", "--timeout", "300", "-p", "no:cacheprovider", *nodes]))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
