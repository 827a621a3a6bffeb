#!/usr/bin/env bash
# torchvision 0.29.1: of the two ways from a float image in [0, 1] to eight bits, utils.save_image rounds and
# transforms.functional.to_pil_image cuts off, which makes generated images half a grey level darker on the mean: enough to
# move a Frechet distance between two evaluations of the same samples. Random values, 3x256x256.
# Seen: "save_image +0.00  to_pil_image -0.50 grey levels". Fails when that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torchvision==0.29.1 torch==2.14.1 numpy==2.4.6 pillow==13.0.0
"$folder/venv/bin/python" - "$folder" <<'P'
import sys

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import save_image

image = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0))
exact = float(image.mean()) * 255
save_image(image, f"{sys.argv[1]}/saved.png")
saved = np.asarray(Image.open(f"{sys.argv[1]}/saved.png")).mean() - exact
converted = np.asarray(to_pil_image(image)).mean() - exact
print(f"save_image {saved:+.2f}  to_pil_image {converted:+.2f} grey levels")
assert abs(saved) < 0.02 and abs(converted + 0.5) < 0.02, "changed"
P
