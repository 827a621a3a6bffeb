"""How fast a run is: FLOPs of a training step, the device's peak, memory.

FLOPs are *model* FLOPs: two per multiply-add of linear layers, convolutions and the attention's products, counted by
running the networks on the meta device, see `epg.objectives.base.Objective.macs`. Elementwise work, the losses and what
activation checkpointing computes again do not count.
"""

import functools
import re
import sys
import time

import torch

from epg.config.settings import RunConfig
from epg.networks.build import without_numbers
from epg.objectives import OBJECTIVES

# Dense bf16 tensor-core peaks in TFLOP/s from the makers' data sheets (where a sheet states the figure "with
# sparsity", half of it). MFU is stated against these whatever the run's precision.
PEAKS = {
    "B200": 2250.0,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "GH200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "A100": 312.0,
    "A30": 165.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "MI300X": 1307.4,
}


def training_flops(config: RunConfig) -> float:
    """FLOPs that training spends on one image in one step, see `Objective.macs`."""
    with without_numbers():
        return 2 * OBJECTIVES[config.stage].macs(config)


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s the device can do at best: the data sheet's for known accelerators, else a measured matrix product."""
    if device.type == "cuda":
        known = known_peak(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    return measured_peak(device, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32))


def known_peak(device_name: str) -> float | None:
    """Dense bf16 peak (FLOP/s) of an accelerator by the name its driver gives, None if it is not in the table."""
    for name, teraflops in PEAKS.items():
        if re.search(rf"\b{name}\b", device_name):
            return teraflops * 1e12
    return None


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
