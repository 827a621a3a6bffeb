#!/usr/bin/env bash
# torch 2.14.1 on a CPU with AMX (Sapphire Rapids and later): a bfloat16 convolution whose stride is its kernel, as every ViT
# embeds its patches, gives unrelated numbers where there are 8 or 16 input channels; with 3 channels (an image), with 32, and
# without AMX (ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16) it is right to rounding. A network with a thin stem before its patches
# trains under autocast without a sign of it, and is noise in float32 afterwards. As one matrix product it is right.
# Seen, relative to float32: "3: 0.003  8: 1.118  16: 1.218  32: 0.003; product of 16: 0.003". Fails when that changes; without
# AMX it cannot be seen, and the script says so.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import sys

import torch
import torch.nn.functional as F

if not torch.cpu._is_amx_tile_supported():
    sys.exit("this CPU has no AMX: nothing to see")
torch.manual_seed(0)


def error(half, exact):
    return float((half.float() - exact).norm() / exact.norm())


found = {}
for channels in (3, 8, 16, 32):
    images, weight = torch.randn(4, channels, 32, 32), torch.randn(192, channels, 8, 8)
    exact = F.conv2d(images, weight, stride=8)
    found[channels] = error(F.conv2d(images.bfloat16(), weight.bfloat16(), stride=8), exact)
    if channels == 16:
        patches = F.unfold(images, 8, stride=8).transpose(1, 2)
        product = F.linear(patches.bfloat16(), weight.flatten(1).bfloat16()).transpose(1, 2).reshape(exact.shape)
        as_product = error(product, exact)
print("  ".join(f"{c}: {e:.3f}" for c, e in found.items()), f"; product of 16: {as_product:.3f}", sep="")
assert found[8] > 0.5 and found[16] > 0.5 and max(found[3], found[32], as_product) < 0.02, "changed"
P
