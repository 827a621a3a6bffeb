"""Time and memory of the metrics at the size of a paper's evaluation: 50,000 samples against a reference of 10,000.

    OMP_NUM_THREADS=2 python benchmarks/metrics.py

Features are random, non-negative and correlated, like pool features; no network is involved.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from epg.evaluation.metrics import frechet, kernels, manifolds, score


def pool_like(count: int, width: int, seed: int) -> np.ndarray:
    """Float32 (count, width), rectified mixtures of a few hundred directions."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width // 8, width, generator=torch.Generator().manual_seed(0)) / (width // 8) ** 0.5
    parts = []
    for start in range(0, count, 5000):
        n = min(5000, count - start)
        rows = torch.randn(n, width // 8, generator=generator) @ mixing
        rows += 0.3 * torch.randn(n, width, generator=generator)
        parts.append(torch.relu(rows).numpy())
    return np.concatenate(parts)


def measure(name: str, compute: Callable[[], Any]) -> dict[str, Any]:
    started, started_cpu = time.perf_counter(), time.process_time()
    value = compute()
    seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    took = f"{seconds:8.1f} s {cpu:8.1f} s of CPU   peak so far {peak:5.2f} GiB"
    print(f"{name:<6} {took}   {value}", file=sys.stderr, flush=True)
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_gib": round(peak, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--reference", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--only", nargs="*", default=["fid", "pr", "kid", "is"])
    options = parser.parse_args()
    fake, real = pool_like(options.samples, options.width, 1), pool_like(options.reference, options.width, 2)
    logits = fake[:, : min(1008, options.width)]
    work: dict[str, Callable[[], Any]] = {
        "fid": lambda: frechet.frechet_between(fake, fake[: len(fake) // 2].repeat(2, 0)),  # 50k on both sides
        "pr": lambda: manifolds.precision_recall(manifolds.Manifold(real), manifolds.Manifold(fake)),
        "kid": lambda: kernels.kernel_inception_distance(real, fake).value,
        "is": lambda: score.inception_score(logits).value,
    }
    results = {name: measure(name, work[name]) for name in options.only}
    shape = {"samples": options.samples, "reference": options.reference, "width": options.width}
    print(json.dumps({**shape, "threads": torch.get_num_threads(), "results": results}))


if __name__ == "__main__":
    main()
