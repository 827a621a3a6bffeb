"""The model card of published weights: `README.md` with the Hub's header, and a grid of samples beside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from epg.checkpoint.loading import Trained
from epg.config.settings import RunConfig
from epg.errors import ArtefactError
from epg.generator import Generator
from epg.sampling.pictures import save_grid
from epg.storage.artefact import read_json

CARD, GRID, RECIPE = "README.md", "samples.png", "recipe.yaml"
PAPER = "2510.12586"
LARGEST_GRID = 36
RECEIPTS = ("evaluation.json", "receipt.json", "evaluation/*.json")  # what `epg evaluate` leaves in a run folder


@dataclass(frozen=True)
class Origin:
    """What a card tells of weights besides their configuration."""

    license: str | None
    """Identifier of the Hub (apache-2.0, cc-by-nc-4.0...); None leaves the field out, and the card says so."""
    dataset: str | None
    """Name of the training data on the Hub, if they are there."""
    receipts: Mapping[str, Mapping[str, Any]]
    """Measured numbers by the name of the file they come from."""
    library: Literal["epg", "diffusers"] = "epg"
    """What opens the folder."""


def receipts_beside(path: Path) -> dict[str, dict[str, Any]]:
    """Every evaluation receipt of the run that a checkpoint, an export or a run folder belongs to."""
    folders = [folder for folder in (path, *path.parents[:2]) if (folder / "config.yaml").is_file()] or [path]
    found = {}
    for pattern in RECEIPTS:
        for file in sorted(folders[0].glob(pattern)):
            try:
                found[file.relative_to(folders[0]).as_posix()] = read_json(file)[0]
            except ArtefactError:  # a damaged receipt is no reason to publish nothing
                continue
    return found


def write_card(
    folder: Path, trained: Trained, origin: Origin, model: Generator | None, name: str, how: str, seed: int = 0
) -> None:
    """Writes `README.md` and `recipe.yaml`; with a generator, also the grid of samples. Raises OSError.

    Args:
        name: of the repository or folder.
        how: code that uses the weights.
    """
    if model is not None:
        count = min(LARGEST_GRID, max(16, 4 * model.num_classes))
        labels = model.make_labels(count, balanced=True, seed=seed)
        save_grid(model.sample(labels, count, seed=seed), folder / GRID)
    trained = replace(trained, config=without_paths(trained.config))
    (folder / RECIPE).write_text(trained.config.to_yaml())
    parts = [header(name, trained.config, origin), *body(name, trained, origin, model, how, seed)]
    (folder / CARD).write_text("\n".join(parts) + "\n")


def without_paths(config: RunConfig) -> RunConfig:
    """The configuration with the data's name in place of its path on this machine."""
    source = config.data.source
    name = Path(source).name if Path(source).is_absolute() else source
    return config.model_copy(update={"data": config.data.model_copy(update={"source": name})})


def header(name: str, config: RunConfig, origin: Origin) -> str:
    """The YAML header that the Hub reads."""
    encoder = not config.objective.samples
    fields: dict[str, Any] = {"license": origin.license} if origin.license else {}
    fields |= {
        "library_name": origin.library,
        "pipeline_tag": "image-feature-extraction" if encoder else "unconditional-image-generation",
        "tags": ["epg", "pixel-space", config.stage, f"arxiv:{PAPER}"],
    }
    if origin.dataset:
        fields["datasets"] = [origin.dataset]
    metrics = [
        {"type": key, "name": number.name, "value": number.value}
        for receipt in origin.receipts.values()
        for key, number in numbers_of(receipt).items()
    ]
    if metrics:
        data = {"name": origin.dataset or config.data.source, "type": origin.dataset or config.data.source}
        task = {"type": fields["pipeline_tag"]}
        fields["model-index"] = [{"name": name, "results": [{"task": task, "dataset": data, "metrics": metrics}]}]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def body(name: str, trained: Trained, origin: Origin, model: Generator | None, how: str, seed: int) -> Iterator[str]:
    """The text of the card, paragraph by paragraph."""
    config = trained.config
    size = config.data.image_size
    yield f"\n# {name}\n\n{config.objective.title}, {size}x{size} pixels.\n"
    if model is not None:
        yield f"![Samples]({GRID})\n\nSamples of seed {seed}, classes in turn, none left out.\n"
    yield f"## Use\n\n```python\n{how.strip()}\n```\n"
    yield "## Training\n\n" + table({key: str(value) for key, value in facts(trained)})
    yield f"\nEvery setting is in [{RECIPE}]({RECIPE}); `epg` trains with it again.\n"
    if origin.receipts:
        yield "## Evaluation\n"
        for file, receipt in origin.receipts.items():
            rows = {number.name: str(number) for number in numbers_of(receipt).values()}
            yield table(rows, f"from {file}") + "\n"
    yield "## Licence\n\n" + (origin.license or "Not stated by who published these weights.") + "\n"


def facts(trained: Trained) -> Iterator[tuple[str, object]]:
    """What the weights are, in the order in which one asks."""
    config = trained.config
    model, data, training = config.model, config.data, config.training
    yield "recipe", config.recipe
    yield "data", data.source
    yield "images", f"{data.image_size}x{data.image_size}x{data.channels}, normalisation {data.normalization}"
    if config.objective.samples:
        yield "classes", model.num_classes or "none (unconditional)"
    yield "patches", f"{model.patch_size}x{model.patch_size} pixels"
    yield "encoder", f"{model.encoder.depth} blocks, width {model.encoder.width}, {model.encoder.heads} heads"
    if config.objective.samples:
        yield "decoder", f"{model.encoder.depth} blocks, width {model.decoder.width}, {model.decoder.heads} heads"
    yield "steps", f"{trained.step:,} of {training.steps:,}" if trained.step else "not recorded"
    yield "batch size", training.batch_size
    yield (
        "weights",
        trained.kind.replace("ema-", "EMA with decay ") if trained.kind != "model" else "as trained, no EMA",
    )
    if config.objective.samples:
        sampling = config.sampling
        yield "sampling", f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}"
        if sampling.guidance != 1:
            yield "guidance interval", f"{sampling.interval[0]:g} to {sampling.interval[1]:g} (unshifted sigma)"


def table(rows: Mapping[str, str], title: str = "") -> str:
    lines = [f"| {title} | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    return "\n".join(lines)


@dataclass(frozen=True)
class Number:
    """One measured number."""

    name: str
    value: float
    error: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.4g}" + ("" if self.error is None else f" ± {self.error:.2g}")


def numbers_of(receipt: Mapping[str, Any]) -> dict[str, Number]:
    """The numbers of a receipt: its `metrics`, or those that it holds itself. Nothing else of it is published."""
    found = {}
    metrics = receipt.get("metrics")
    for key, value in (metrics if isinstance(metrics, dict) else receipt).items():
        fields = value if isinstance(value, dict) else {"value": value}
        number, error = fields.get("value"), fields.get("error")
        if isinstance(number, int | float) and not isinstance(number, bool):
            found[str(key)] = Number(str(fields.get("name", key)), number, error if isinstance(error, float) else None)
    return found
