"""What `epg evaluate` and `epg reference` do."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from epg.command_line import written
from epg.distributed import failing_together, processes
from epg.errors import UserError
from epg.evaluation import reference_files
from epg.evaluation.extractors import choices
from epg.evaluation.jury import Options, open_extractors, open_jury, reporting
from epg.evaluation.npz import NpzSource
from epg.evaluation.receipt import Receipt
from epg.evaluation.reference import Reference, make_reference
from epg.evaluation.sources import DatasetSource, ImageSource
from epg.evaluation.subjects import only_split, open_subject, open_whole
from epg.messages import say
from epg.sampling import Request

OUT = "evaluation.json"


def run_evaluate(
    samples: str,
    reference: str | None,
    words: Sequence[str] | None,
    count: int | None,
    request: Request,
    options: Options,
    *,
    samples_split: str | None = None,
    out: Path | None = None,
) -> Receipt | None:
    """`epg evaluate`: prints a table and writes the receipt; returns it on the first process."""
    if out is not None and (out.is_dir() or not out.name):
        raise UserError(f"--out {out}: is a folder; name a JSON file for the receipt")
    with processes():
        with failing_together():
            subject = open_subject(samples, count, request, image_size=options.image_size, split=samples_split)
        receipt = open_jury(subject, samples, reference, words, request.ema, options).judge(subject)
    if receipt is None:
        return None
    file = out or (Path(samples) / OUT if Path(samples).is_dir() else Path(OUT))
    receipt.write(file)  # before anything is shown: a terminal that cannot show it costs no result
    Console().print(receipt.table())
    for warning in receipt.warnings:
        say(f"note: {warning}")
    print(f"receipt in {file}")
    return receipt


def run_reference(dataset: str, out: Path, options: Options) -> Reference | None:
    """`epg reference`: statistics and features of a data set into a folder that `--reference` takes."""
    with processes():
        with failing_together():
            chosen = choices(options.features or ("inception",), options.inception)
            if any(choice.name == "classifier" for choice in chosen):
                raise UserError(
                    "--features classifier: belongs to a data set, and is kept with it; pass the data set itself to "
                    "`epg evaluate` as --reference"
                )
            source: ImageSource
            whole = None
            if dataset.endswith(".npz"):
                source = NpzSource(Path(dataset))
            else:
                split = options.split or only_split(dataset) or "train"
                whole = open_whole(dataset, image_size=options.image_size, split=split, rules=options.rules())
                source = DatasetSource(whole, Path(dataset).name, details={"split": split})
        extractors = open_extractors(chosen, None, source.shape, None, options)
        with reporting("reference") as report:
            made = make_reference(
                source,
                extractors,
                kept=options.kept,
                seed=options.seed,
                batch_size=options.batch_size,
                on_progress=report,
            )
    if made is None:
        return None
    reference_files.save(made, out)
    for line in whole.report("--") if whole else ():
        print(line)
    print(f"{made.manifest['count']} images, features of {made.manifest['kept']} of them, in {out}")
    print(f"It is compared with by epg evaluate SAMPLES --reference {written(out)}")
    return made
