"""Accelerators and their peaks."""

import re

from epg.errors import UserError

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


def known_peak(device_name: str) -> float | None:
    """Dense bf16 peak (FLOP/s) of an accelerator by the name its driver gives, None if it is not in the table."""
    for name, teraflops in PEAKS.items():
        if re.search(rf"\b{name}\b", device_name):
            return teraflops * 1e12
    return None


def named_peak(name: str) -> float:
    """The same by a name of the table, in any case. Raises UserError."""
    for known, teraflops in PEAKS.items():
        if known.lower() == name.lower():
            return teraflops * 1e12
    raise UserError(f"--gpu {name}: not in the table; choose one of {', '.join(PEAKS)}")
