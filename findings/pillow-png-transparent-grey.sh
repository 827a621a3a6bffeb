#!/usr/bin/env bash
# Pillow 13.0.0: the transparent grey that a PNG names (tRNS) is compared with grey that was already scaled to 8 bits, so for
# 2 and 4 bits other pixels become transparent; and convert("RGBA") of 16-bit grey drops it, of 16-bit colour compares high
# bytes. pypng 0.20220715 writes the files. The PNG specification: the sample value as it is stored.
# Seen: "2 bits: value 1 transparent in 0 of 64 pixels, right 16", the same for 4 bits; "16 bits grey: 0 of 64, right 16";
# "16 bits colour: 0 of 64, right 16". Fails when that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install pillow==13.0.0 pypng==0.20220715 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import io
import numpy as np, png
from PIL import Image


def transparent(values, bits, named, greyscale):
    """How many pixels of an 8x8 PNG Pillow makes transparent, and how many have the named value."""
    stream = io.BytesIO()
    writer = png.Writer(8, 8, bitdepth=bits, greyscale=greyscale, transparent=named)
    writer.write(stream, [row.reshape(-1).tolist() for row in values])
    image = Image.open(io.BytesIO(stream.getvalue())).convert("RGBA")
    alpha = np.asarray(image)[..., 3]
    right = (values == named) if greyscale else (values == named).all(-1)
    return int((alpha == 0).sum()), int(right.sum())


steps = np.arange(64).reshape(8, 8) % 4
outcomes = {}
for bits in (2, 4, 8):
    outcomes[f"{bits} bits"] = transparent(steps, bits, 1, True)
outcomes["16 bits grey"] = transparent(steps * 300, 16, 300, True)
colour = np.stack([steps * 300] * 3, axis=-1)
outcomes["16 bits colour"] = transparent(colour, 16, (300, 300, 300), False)
for kind, (seen, right) in outcomes.items():
    print(f"{kind}: value 1 transparent in {seen} of 64 pixels, right {right}")
assert outcomes["8 bits"] == (16, 16)
assert all(seen != right for kind, (seen, right) in outcomes.items() if kind != "8 bits"), "mended?"
P
