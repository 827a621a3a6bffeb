"""What a study is: a YAML file of arms and seeds, made into cells, each a run with all of its settings."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from epg.checkpoint.manifest import ADDED_SETTINGS
from epg.config.complaints import suggestion
from epg.config.objectives import KINDS, Stage
from epg.config.ranges import Seed
from epg.config.recipe import merge, run_config
from epg.config.sections import Section
from epg.config.settings import RunConfig
from epg.config.validation import checked
from epg.config.yaml_file import key_lines, read_yaml
from epg.data.configured import open_training_data
from epg.errors import UserError
from epg.runs import without_encoder
from epg.storage.artefact import fingerprint
from epg.training.resume import belongs, harmless, settings

Name = Annotated[str, Field(pattern=r"^\w[\w .,+/()-]{0,59}$")]
Settings = dict[str, Any]
JUDGED = {"count", "features", "reference", "metrics"}
HASH = 12  # digits of a cell's identity, which is the name of its folder


class Arm(Section):
    """One of the things compared."""

    stage: Stage = "diffusion"
    recipe: str | None = None
    """The study's if not given."""
    encoder: str | None = None
    """The arm that trains it, with the same seed; or a weight file. None: from scratch."""
    generator: str | None = None
    """The arm whose generator is gone on with, with the same seed, as `epg finetune --from` does."""
    settings: Settings = Field({})


class Study(Section):
    """The file."""

    description: str = ""
    recipe: str
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    settings: Settings = Field({})
    """Laid over the recipe of every arm."""
    stages: dict[str, Settings] = Field({})
    """Laid over that, by stage."""
    arms: Annotated[dict[Name, Arm], Field(min_length=1)]
    labels: Literal["balanced", "random"] = "balanced"
    """Of the samples that generators are judged by; how many, and by what, is in the settings' `evaluation`."""
    probe: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shares of noise at which encoders are judged by a linear probe, see `epg.study.readability`."""
    baseline: str | None = None
    """The arm that others are compared with, seed by seed; the first generator if not given."""


@dataclass(frozen=True)
class Cell:
    """One arm with one seed: a run, and how it is judged."""

    arm: str
    seed: int
    config: RunConfig
    labels: Literal["balanced", "random"]
    begins: "Cell | Path | None"
    """With this encoder, or this generator; None is from scratch."""
    identity: str
    """Of settings, images and what it begins with; the name of the run's folder: the same run is trained once."""
    judged: str
    """Of how its samples are made and judged, or of an encoder's probe."""
    probe: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def steps(self) -> int:
        return self.config.training.steps


def read_study(path: Path) -> Study:
    """A study from its file. Raises UserError listing everything wrong in it, by line."""
    content = read_yaml(path)
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: not a study:\n" + "\n".join(_lines(error, path))) from None
    wrong = [
        f"  stages.{name}: no such stage; there are {', '.join(KINDS)}" for name in study.stages if name not in KINDS
    ]
    for name, arm in study.arms.items():
        if arm.stage not in KINDS:
            wrong.append(f"  arms.{name}.stage {arm.stage}: choose one of {', '.join(KINDS)}")
        elif KINDS[arm.stage].continues and arm.generator is None:
            wrong.append(f"  arms.{name}.stage {arm.stage}: goes on from a generator; name its arm as `generator`")
        elif (trained := study.arms.get(arm.encoder or "")) and trained.stage in KINDS and KINDS[trained.stage].samples:
            wrong.append(f"  arms.{name}.encoder {arm.encoder}: is a generator; name an arm that trains an encoder")
        elif arm.encoder is not None and trained is None and not Path(arm.encoder).is_file():
            wrong.append(f"  arms.{name}.encoder {arm.encoder}: neither an arm of this study nor a weight file")
        elif arm.encoder is not None and not KINDS[arm.stage].samples:
            wrong.append(f"  arms.{name}.encoder: {arm.stage} begins without one")
        if arm.generator is not None:
            wrong += _wrong_generator(study, name, arm, arm.generator)
    if study.baseline is not None and study.baseline not in study.arms:
        wrong.append(f"  baseline {study.baseline}: no arm of that name; there are {', '.join(study.arms)}")
    if wrong:
        raise UserError(f"{path}: not a study:\n" + "\n".join(wrong))
    return study


def _wrong_generator(study: Study, name: str, arm: Arm, generator: str) -> Iterator[str]:
    chain, other = [name], generator
    while other in study.arms and other not in chain:
        chain, other = [*chain, other], study.arms[other].generator or ""
    if arm.encoder is not None:
        yield f"  arms.{name}.generator: not with encoder; the generator brings its own"
    elif generator not in study.arms or not getattr(KINDS.get(study.arms[generator].stage), "samples", True):
        yield f"  arms.{name}.generator {generator}: no arm of this study that trains a generator"
    elif arm.stage in KINDS and not KINDS[arm.stage].samples:
        yield f"  arms.{name}.generator: {arm.stage} begins without one"
    elif other in chain:
        yield f"  arms.{name}.generator {generator}: leads back to {other}"


def _lines(error: ValidationError, path: Path) -> Iterator[str]:
    lines = key_lines(path)
    for found in error.errors(include_url=False):
        keys = tuple(map(str, found["loc"]))
        known = Arm if len(keys) == 3 and keys[0] == "arms" else Study
        extra = found["type"] == "extra_forbidden"
        text = f"no such setting{suggestion(keys[-1:], known)}" if extra else found["msg"]
        place = f" (line {lines[keys]})" if keys in lines else ""
        yield f"  {'.'.join(keys)}: {text}{place}"


def cells_of(study: Study, path: Path, *, images: bool = True) -> list[Cell]:
    """Every cell, each after the one it begins with; cells that are the same are one object.

    Args:
        images: False where none need be there: identities are then those of no data, and hold for a look only.

    Raises UserError listing what is wrong with the settings of any arm.
    """
    wrong: list[str] = []
    configs: dict[tuple[str, int], RunConfig] = {}
    for name, arm in study.arms.items():
        for seed in study.seeds:
            try:
                configs[name, seed] = _config(study, arm, seed, f"{path}: arm {name}")
            except UserError as error:
                wrong.append(str(error))
                break
    if wrong:
        raise UserError("\n".join(wrong))
    prints: dict[str, str] = {}
    made: dict[tuple[str, int], Cell] = {}
    for name, arm in sorted(study.arms.items(), key=lambda item: _depth(study, item[1])):
        for seed in study.seeds:
            config = configs[name, seed]
            begins: Cell | Path | None = made.get((arm.encoder or arm.generator or "", seed))
            if begins is None and arm.encoder is not None:
                begins = Path(arm.encoder)
            data = config.data.model_dump_json()
            if images and data not in prints:
                prints[data] = open_training_data(config.data).fingerprint()
            identity = identity_of(config, prints.get(data, ""), begins)
            how = judged(config, study.labels, study.probe)
            made[name, seed] = Cell(name, seed, config, study.labels, begins, identity, how, study.probe)
    return list(made.values())


def _depth(study: Study, arm: Arm) -> int:
    """How many generators, itself included, an arm goes through; 0 of an encoder."""
    return KINDS[arm.stage].samples + (_depth(study, study.arms[arm.generator]) if arm.generator else 0)


def _config(study: Study, arm: Arm, seed: int, where: str) -> RunConfig:
    content: Mapping[str, Any] = run_config(arm.recipe or study.recipe, arm.stage).model_dump()
    for over in (study.settings, study.stages.get(arm.stage, {}), arm.settings, {"seed": seed}):
        content = merge(content, over)
    config = checked(content, where)
    return without_encoder(config, None) if arm.encoder is None and arm.generator is None else config


def identity_of(config: RunConfig, data: str, begins: Cell | Path | None) -> str:
    """What makes a run this one: whatever resuming would refuse to see changed (images by content, epg by its major
    version; not device, loader or log) except the recipe's name, and what it begins with. A setting that a later
    version added counts where it is used, so that an update finds what was trained before."""
    found = settings(config, data, importlib.metadata.version("epg"), 1)
    own = {k: v for k, v in _used(found).items() if not belongs(k, harmless(config)) and k != "recipe"}
    return _hash([own, begins.identity if isinstance(begins, Cell) else begins and fingerprint(begins)["sha256"]])


def judged(config: RunConfig, labels: str, probe: Sequence[float] = ()) -> str:
    """What the numbers of a trained run depend on: sampling, and the evaluation's features, reference and count; of an
    encoder the levels of its probe."""
    if not config.objective.samples:
        return f"probe-{_hash(list(probe))}" if probe else "log"
    sampling = {f"sampling.{k}": v for k, v in config.sampling.model_dump(mode="json").items()}
    return _hash([_used(sampling), config.evaluation.model_dump(include=JUDGED), labels])


def _used(found: Settings) -> Settings:
    """Settings, without the later ones that are as they were before they could be set."""
    return {name: value for name, value in found.items() if ADDED_SETTINGS.get(name, ...) != value}


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:HASH]
