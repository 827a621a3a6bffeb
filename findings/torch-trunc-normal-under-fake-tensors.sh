#!/usr/bin/env bash
# torch 2.14.1: networks are counted (memory, FLOPs) by building them under FakeTensorMode, which needs no numbers. That works with
# torch.nn.init's normal_, kaiming_ and xavier_, and on the meta device with trunc_normal_ too, but trunc_normal_ under
# FakeTensorMode raises: it draws again until all values lie within its bounds, and so reads one from the tensor. Every ViT
# begins with it. (It also means that on a GPU each such tensor makes the host wait.) Build on the meta device, then give memory.
# Seen: "fake: normal_ fine, xavier_uniform_ fine, trunc_normal_ DataDependentOutputException; meta: fine, fine, fine".
# Fails when that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import torch
from torch._subclasses.fake_tensor import FakeTensorMode


def outcome(name: str, device: str) -> str:
    try:
        getattr(torch.nn.init, name)(torch.empty(8, 8, device=device))
    except RuntimeError as error:
        return type(error).__name__
    return "fine"


NAMES = ("normal_", "xavier_uniform_", "trunc_normal_")
with FakeTensorMode():
    fake = [outcome(name, "cpu") for name in NAMES]
meta = [outcome(name, "meta") for name in NAMES]
print("fake:", ", ".join(f"{name} {found}" for name, found in zip(NAMES, fake)) + "; meta:", ", ".join(meta))
assert fake == ["fine", "fine", "DataDependentOutputException"] and meta == ["fine"] * 3, "changed"
P
