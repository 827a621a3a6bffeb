#!/usr/bin/env bash
# Pillow 13.0.0: Image.resize(half, BOX), with which ADM's centre crop (and all that copied it) halves photographs, rounds up
# after the columns and again after the rows, so each halving makes an image half a grey level brighter. Image.reduce(2)
# rounds once: an eighth of a level a halving; in mode "F" none. Noise without clipping, 512 to 32 pixels (4 halvings).
# Seen: "BOX +1.99  reduce +0.52  float +0.00 grey levels". Fails when that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import numpy as np
from PIL import Image

values = np.random.default_rng(0).integers(0, 256, (512, 512)).astype(np.uint8)
image = Image.fromarray(values)


def halved(image, how):
    while image.width > 32:
        half = (image.width // 2, image.height // 2)
        image = image.reduce(2) if how == "reduce" else image.resize(half, Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float64).mean() - values.mean()


box, reduced, exact = halved(image, "box"), halved(image, "reduce"), halved(image.convert("F"), "box")
print(f"BOX {box:+.2f}  reduce {reduced:+.2f}  float {exact:+.2f} grey levels")
assert 1.8 < box < 2.2 and 0.4 < reduced < 0.6 and abs(exact) < 0.01, "changed"
P
