#!/usr/bin/env bash
# datasets 5.2.0: load_dataset("imagefolder") looks for names of splits before it looks for classes. Of the class folders
# airplane, car, train it keeps the images of "train" alone, as the training split, without labels; "test_card" beside cat
# and kite becomes the test split of a set that has no other. Nothing is said. Without such a name there are classes.
# Seen: "airplane car train: train 3 of 9, no labels", "cat kite test_card: test 3 of 9, no labels",
# "cat dog: train 6 of 6, cat dog". Fails when that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install datasets==5.2.0 pillow==13.0.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'P'
import sys
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()
seen = []
for classes in (("airplane", "car", "train"), ("cat", "kite", "test_card"), ("cat", "dog")):
    root = Path(sys.argv[1], "-".join(classes))
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / name / f"{number}.png")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir=str(root.with_suffix(".cache")))
    (split,) = loaded
    label = loaded[split].features.get("label")
    names = " ".join(label.names) if label is not None else "no labels"
    seen.append(f"{' '.join(classes)}: {split} {len(loaded[split])} of {3 * len(classes)}, {names}")
    print(seen[-1])
expected = ["train 3 of 9, no labels", "test 3 of 9, no labels", "train 6 of 6, cat dog"]
assert [line.split(": ")[1] for line in seen] == expected, "changed"
P
