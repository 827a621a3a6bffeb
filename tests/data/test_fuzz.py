"""Mutated real photographs: each failure is reported by name, nothing crashes or hangs, memory stays bounded."""

import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from tests.data.photos import encoded, photo

from epg.data.prepared.store import Store, read_manifest

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MUTATIONS = ("truncate", "flip bits", "wrong header", "huge size", "splice", "repeat")


SCRIPT = """
import resource, sys
from pathlib import Path
from epg.data.prepared.encode import PixelOptions
from epg.data.prepared.prepare import prepare

if __name__ == "__main__":
    prepare(sys.argv[1] + "/in", Path(sys.argv[1]) / "out", PixelOptions(64), workers=1)
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(max(int(own.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""


def mutate(data, kind, other, rng):
    """`data` with one kind of damage."""
    new = bytearray(data)
    if kind == "truncate":
        del new[int(rng.integers(0, len(new))) :]
    elif kind == "flip bits":
        for place in rng.integers(0, len(new), int(rng.integers(1, 30))):
            new[place] ^= 1 << int(rng.integers(0, 8))
    elif kind == "wrong header":
        count = int(rng.integers(1, 40))
        new[:count] = other[:count]
    elif kind == "huge size":  # wherever the size may be declared
        place = int(rng.integers(4, min(len(new) - 8, 200)))
        new[place : place + 4] = struct.pack(rng.choice([">I", "<I"]), int(rng.choice([2**31 - 1, 60_000, 2**32 - 1])))
    elif kind == "splice":
        place = int(rng.integers(0, len(new)))
        new[place:] = other[int(rng.integers(0, len(other))) :]
    else:
        place = int(rng.integers(0, len(new)))
        new[place:place] = new[place : place + 5_000] * int(rng.integers(1, 20))
    return bytes(new)


def fuzz(folder, count, seed):
    """Prepare `count` mutated images; every one of them must end in the store or in the report."""
    rng = np.random.default_rng(seed)
    originals = [encoded(photo(i).convert("P" if f == "GIF" else "RGB"), f) for i in range(12) for f in FORMATS]
    (folder / "in").mkdir()
    for i in range(count):
        data = originals[i % len(originals)]
        other = originals[int(rng.integers(0, len(originals)))]
        suffix = rng.choice(["jpg", "png", "webp", "bmp", "tif", "gif", "ppm"])
        (folder / "in" / f"{i:05d}.{suffix}").write_bytes(mutate(data, MUTATIONS[i % 6 if i % 7 else 1], other, rng))
    start = os.times()
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, check=True)
    end = os.times()
    seconds = sum(end[2:4]) - sum(start[2:4])  # CPU time of child processes: others may be busy
    peak = int(done.stdout) * 1024
    manifest = read_manifest(folder / "out")
    report = [json.loads(line) for line in (folder / "out" / "report.jsonl").open()]
    stored = {Store(folder / "out").name(i) for i in range(manifest["images"])}
    names = {path.name for path in (folder / "in").iterdir()}
    assert stored | {item["name"] for item in report} == names
    assert len(stored) + len(report) == count
    assert all(item["reason"] for item in report)
    assert not any("killed the process" in item["reason"] or "took more" in item["reason"] for item in report)
    print(f"{count} images: {len(report)} refused, {len(stored)} decoded, {seconds:.1f} s, peak {peak / 1e6:.0f} MB")
    assert peak < 10**9
    assert len(report) > count / 5
    return seconds


def test_a_few_hundred_mutated_images(tmp_path):
    assert fuzz(tmp_path, 400, seed=0) < 60


@pytest.mark.slow
def test_five_thousand_mutated_images(tmp_path):
    fuzz(tmp_path, 5_000, seed=1)
