"""What options name. That it is there, and that results can be written, is looked at before torch is imported.

Refused is only what nobody could find: names of the Hub, addresses and what a data source of somebody else calls its
images are for the reader, which knows more.
"""

from pathlib import Path
from typing import Annotated

from epg.cli.paths import PLACE, Names
from epg.errors import refuse_missing


def refuse_no_weights(name: str, flag: str) -> None:
    from epg.storage import assets, hub

    repository = name.rpartition(":")[0] or name  # user/repo:FILE
    if not assets.is_asset(name) and not hub.is_repository(repository):
        refuse_missing(name, flag)


def refuse_no_guide(name: str, flag: str) -> None:
    if name != "internal":
        refuse_no_weights(name, flag)


def refuse_no_images(name: str, flag: str) -> None:
    from epg.data.sources.open import refuse_missing

    refuse_missing(name, flag)


def refuse_no_samples(name: str, flag: str) -> None:
    from epg.evaluation.named import refuse_missing

    refuse_missing(name)


def refuse_no_study(name: str, flag: str) -> None:
    from epg.config.yaml_file import read_yaml

    read_yaml(Path(name))


def refuse_no_folder(name: str, flag: str) -> None:
    from epg.storage.outputs import refuse_unwritable

    refuse_unwritable(Path(name), flag, folder=True)


def refuse_no_result(name: str, flag: str) -> None:
    from epg.storage.outputs import refuse_unwritable

    refuse_unwritable(Path(name), flag)


Existing = Annotated[Path, Names(refuse_missing)]
"""A run folder, something in one, or a file of weights."""
Weights = Annotated[str, PLACE, Names(refuse_no_weights)]
"""The same, or the name of a repository, or an asset."""
Guide = Annotated[Path, Names(refuse_no_guide)]
ImageSet = Annotated[str, PLACE, Names(refuse_no_images)]
"""Whatever `epg prepare` takes."""
Samples = Annotated[str, PLACE, Names(refuse_no_samples)]
"""Weights, or images to be judged."""
StudyFile = Annotated[Path, Names(refuse_no_study)]
OutFolder = Annotated[Path, Names(refuse_no_folder)]
Out = Annotated[Path, Names(refuse_no_result)]
"""A file or folder for results."""
