#!/usr/bin/env bash
# torch 2.14.1: torch.compiler.cudagraph_mark_step_begin(), which loops call at every step because it is said to matter only to
# CUDA graphs, imports the whole compiler at its first call: on a CPU, with nothing compiled, no device and no graph. It costs
# more than the rest of a short program, and a program that never compiles has inductor, dynamo and sympy in memory.
# Seen: "inductor modules: 0 before, 198 after; 1.8 s of CPU". Fails when that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import sys
import time

import torch


def inductor() -> int:
    return sum(name.startswith("torch._inductor") for name in sys.modules)


before, begin = inductor(), time.process_time()
torch.compiler.cudagraph_mark_step_begin()
after, spent = inductor(), time.process_time() - begin
print(f"inductor modules: {before} before, {after} after; {spent:.1f} s of CPU")
assert before == 0 and after > 50 and spent > 0.5, "changed"
P
