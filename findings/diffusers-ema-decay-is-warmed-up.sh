#!/usr/bin/env bash
# diffusers 0.42.1: EMAModel(decay=0.9999), with use_ema_warmup=False as it comes, does not average with that decay: at step t
# it uses min(decay, (1 + t) / (10 + t)), so the asked decay begins after 90,000 steps. After 1,000 steps of weights 0 one step of 1
# makes the average 0.0089, not 0.0001. Whoever compares averages of short runs with those of other code compares other decays.
# Seen: "after one step of 1: 0.00891 (decay 0.9999 alone would give 0.00010)". Fails when that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install diffusers==0.42.1 torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import torch
from diffusers.training_utils import EMAModel

weight = torch.nn.Parameter(torch.zeros(1))
average = EMAModel([weight], decay=0.9999, use_ema_warmup=False)
for _ in range(1000):
    average.step([weight])
with torch.no_grad():
    weight.fill_(1.0)
average.step([weight])
found = average.shadow_params[0].item()
print(f"after one step of 1: {found:.5f} (decay 0.9999 alone would give {1 - 0.9999:.5f})")
assert abs(found - (1 - 1001 / 1010)) < 1e-4, "changed"
P
