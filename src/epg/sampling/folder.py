"""The folder of a sampling run: what is in it, and the record that keeps other settings out."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from epg.errors import ArtefactError, UserError
from epg.messages import say
from epg.sampling.files import is_complete_png, replace_file
from epg.storage.artefact import encode_json, read_json
from epg.storage.files import clear_rests
from epg.storage.outputs import writing

RECORD = "samples.json"
FORMAT = 2  # 2: noise is Philox's, so images of format 1 are others
# What decides an image; whatever else a record names changes at most its rounding.
DECISIVE = ("weights", "guide", "seed", "classes", "labels", "sampling", "dtype")
OURS = re.compile(r"\d{6,}\.png|grid\.png|samples\.npz")
# What is in a run, its checkpoints, each of them, an export, a pipeline, a prepared set, a reference and a study.
TAKEN = re.compile(r"config\.yaml|step-\d{8}|manifest\.json|config\.json|model_index\.json|plan\.json")


class SampleFolder:
    """`000000.png` and so on, `samples.json`, and what is made from them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def image(self, index: int) -> Path:
        return self.path / f"{index:06d}.png"

    def refuse_taken(self) -> None:
        """Raises UserError where pictures would come among the files of something else, of which nothing changes."""
        names = sorted(entry.name for pattern in ("*", "checkpoints/step-*") for entry in self.path.glob(pattern))
        if taken := next((name for name in names if TAKEN.fullmatch(name)), None):
            raise UserError(
                f"--out {self.path}: holds {taken}, so it is no folder for pictures. Give them one of their own, such "
                f"as {self.path / 'samples'}."
            )

    def claim(self, record: Mapping[str, Any]) -> bool:
        """Makes the folder and records the settings, or compares them with those it was begun with.

        Returns whether it goes on with an earlier run. Removes what a killed run left unfinished.

        Raises UserError for other settings, fewer images, or pictures of something else; OutputError.
        """
        file = self.path / RECORD
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            clear_rests(self.path)
            recorded = file.is_file()
            foreign = [] if recorded else [entry.name for entry in self.path.iterdir() if OURS.fullmatch(entry.name)]
        if foreign:
            raise UserError(
                f"--out {self.path}: holds pictures already ({min(foreign)}) but no {RECORD} that says what they are. "
                "Choose another folder."
            )
        if recorded:
            self.compare(record)
        if not recorded or read_json(file)[0].get("count") != record["count"]:
            replace_file(file, encode_json({"format": FORMAT, **record}))
        return recorded

    def compare(self, record: Mapping[str, Any]) -> None:
        """Raises UserError listing settings, old -> new, that would make other images; notes those that would not."""
        file = self.path / RECORD
        old, _ = read_json(file)
        if old.get("format") != FORMAT or not isinstance(old.get("count"), int):
            raise ArtefactError(f"{file}: not a record of this version of epg. Choose another --out.")
        different = [name for name in record if name not in ("count",) and old.get(name) != record[name]]
        changes = {name: f"  {name}: {old.get(name)} -> {record[name]}" for name in different}
        decisive = [changes[name] for name in different if name in DECISIVE]
        if decisive:
            raise UserError(
                f"--out {self.path}: was begun with other settings:\n"
                + "\n".join(decisive)
                + "\nChoose another --out, or the settings it was begun with."
            )
        if record["count"] < old["count"]:
            raise UserError(
                f"--count {record['count']}: {self.path} was begun for {old['count']}. Choose another --out, or at "
                "least that many."
            )
        if changes:
            say(
                "images drawn from now on may differ in rounding from the earlier ones:\n" + "\n".join(changes.values())
            )

    def missing(self, count: int) -> list[int]:
        """Indices below `count` of images that are not there or cut off."""
        return [i for i in range(count) if not is_complete_png(self.image(i))]
