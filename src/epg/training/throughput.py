"""How fast a run may be: the device's peak, and memory."""

import functools
import sys
import time

import torch

from epg.cost.devices import known_peak


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s the device can do at best: the data sheet's for known accelerators, else a measured matrix product."""
    if device.type == "cuda":
        known = known_peak(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    return measured_peak(device, multiplied(precision))


def multiplied(precision: str) -> torch.dtype:
    """What large products are computed in."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


@functools.cache
def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products, doubled in size until one takes 10 ms; a fraction of a second in all."""
    best, size = 0.0, 256
    while True:
        a = torch.ones(size, size, dtype=dtype, device=device)
        seconds = min(_matmul_seconds(a) for _ in range(4))
        best = max(best, 2 * size**3 / seconds)
        if seconds > 0.01 or size == 8192:
            return best
        size *= 2


def _matmul_seconds(a: torch.Tensor) -> float:
    synchronize(a.device)
    started = time.perf_counter()
    a @ a
    synchronize(a.device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Waits until an accelerator has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> float:
    """Largest memory so far in GiB: allocated on an NVIDIA GPU, resident in this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
