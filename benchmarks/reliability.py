"""The figures of reliability, each goal with its control: the numbers behind docs/reliability.md.

    python benchmarks/reliability.py --tier nightly --out reliability.json

`nightly` takes about an hour on two cores, `release` several; `quick` tries the script itself. Each part can be run
alone (`--only kills signals`). Exit code 1 if a goal is missed or a control is not caught. What a checkpoint costs
training is `benchmarks/checkpoint.py`.
"""

import argparse
import json
import math
import os
import platform
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' harness is used at other sizes

from tests.reliability import (
    boundaries,
    draws,
    equality,
    inside,
    launched,
    leaks,
    same_bytes,
    sampled,
    signals,
    spikes,
    test_crash_points,
    test_retention,
    workers,
)
from tests.reliability.chains import campaign, state_hash
from tests.reliability.common import Recorder, save
from tests.reliability.driver import Driver, run_config
from tests.reliability.mutations import MUTATIONS

from epg.checkpoint import checkpoint, verify
from epg.sampling import write_samples
from epg.storage import artefact
from epg.training.spikes import SpikeDetector

SIZES = {  # how many, or how long, of each part
    "quick": {
        "kills": 4,
        "mutations": 30,
        "power": 40,
        "retention": 20,
        "equality": 6,
        "worlds": 1,
        "boundaries": 2,
        "signals": 1,
        "order": 50,
        "draws": 640,
        "bytes": 4,
        "inside": 2,
        "launched": 1,
        "loaders": 1,
        "spikes": 6,
        "samples": 24,
        "leaks": 2_000,
    },
    "nightly": {
        "kills": 50,
        "mutations": 1_000,
        "power": 2_000,
        "retention": 5_000,
        "equality": 200,
        "worlds": 10,
        "boundaries": 100,
        "signals": 20,
        "order": 10_000,
        "draws": 50_000,
        "bytes": 200,
        "inside": 99,
        "launched": 7,
        "loaders": 4,
        "spikes": 300,
        "samples": 512,
        "leaks": 10_000,
    },
    "release": {
        "kills": 500,
        "mutations": 10_000,
        "power": 20_000,
        "retention": 50_000,
        "equality": 200,
        "worlds": 20,
        "boundaries": 100,
        "signals": 100,
        "order": 50_000,
        "draws": 200_000,
        "bytes": 200,
        "inside": 99,
        "launched": 7,
        "loaders": 4,
        "spikes": 900,
        "samples": 512,
        "leaks": 30_000,
    },
}


@dataclass
class Figure:
    """One line of the table."""

    goal: str
    what: str
    found: str
    met: bool
    seconds: float = 0.0


def kills(count: int, folder: Path) -> list[Figure]:
    """R1: half of the kills in each stage, half of them aimed at a write of a checkpoint."""
    figures = []
    driver = Driver()
    for stage in ("pretraining", "diffusion"):
        found = campaign(driver, folder / stage, stage, count // 2, seed=1, aimed=0.5)
        figures.append(
            Figure(
                "R1",
                f"{stage}: kill -9 of a run of 120 steps that saves every 2",
                f"{found.kills} kills, {found.inside_write} inside a write, {found.chains} chains, "
                f"{len(found.broken)} broken, at most {found.largest_loss} logged steps lost",
                not found.broken and found.inside_write >= 0.4 * found.kills and found.largest_loss <= 4,
            )
        )
    found = campaign(
        driver, folder / "naive", "diffusion", max(3, count // 8), seed=1, aimed=1.0, naive=True, kills_per_chain=1
    )
    result = f"{len(found.broken)} of {found.chains} chains broken"
    figures.append(Figure("R1", "control: naive writer", result, 2 * len(found.broken) >= found.chains))
    return figures


def power(count: int, folder: Path) -> list[Figure]:
    """R2: power failures at random moments of three saves, and with one kind of sync left out."""
    figures = []
    kinds: dict[str, Callable[[Any], bool]] = {"": lambda operation: False}
    kinds |= {kind: test_crash_points.sync_of(kind) for kind in ("file", "temporary folder", "parent folder")}
    start = folder / "start"
    start.mkdir(parents=True)
    test_crash_points.two(start / "checkpoints")
    real = shutil.copytree(start, folder / "real")
    operations = test_crash_points.record(real / "checkpoints", [6, 8, 10], Recorder())
    for kind, leave_out in kinds.items():
        kept = [operation for operation in operations if not leave_out(operation)]
        replays = count if not kind else max(100, count // 10)
        broken = test_crash_points.lost(start, kept, "checkpoints", replays, folder, seed=1)
        what = f"control: no sync of the {kind}" if kind else f"power failure during {len(operations)} operations"
        result = f"{len(broken)} of {replays} replays lost a checkpoint"
        figures.append(Figure("R2", what, result, bool(broken) if kind else not broken))
    return figures


def mutations(count: int, folder: Path) -> list[Figure]:
    """R4: damage of the newest checkpoint, looked for by loading and by `epg verify`; and without the hash."""
    for step in (2, 4):
        save(folder / "start" / "checkpoints", step, size=2000)
    chooser, detected, verified = random.Random(1), 0, 0
    for _ in range(count):
        run = shutil.copytree(folder / "start", folder / "run")
        path = run / "checkpoints" / "step-00000004"
        chooser.choice(MUTATIONS)(path, chooser)
        try:
            detected += (checkpoint.newest(run / "checkpoints") or checkpoint.read(path)).step == 2
        except artefact.ArtefactError:
            detected += 1
        verified += any(finding.problem for finding in verify.check(run))
        shutil.rmtree(run)
    missed, original = 0, checkpoint.fingerprint
    checkpoint.fingerprint = lambda file: json.loads((file.parent / "manifest.json").read_text())["files"][file.name]
    for _ in range(100):
        run = shutil.copytree(folder / "start", folder / "run")
        file = run / "checkpoints" / "step-00000004" / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
        file.write_bytes(content)
        try:
            checkpoint.read(file.parent).tensors("model")
            missed += 1
        except artefact.ArtefactError:
            pass
        shutil.rmtree(run)
    checkpoint.fingerprint = original
    found = f"{detected} of {count} by loading, {verified} by verify"
    return [
        Figure("R4", "mutations of the newest checkpoint", found, detected == verified == count),
        Figure("R4", "control: no hash", f"{missed} of 100 bit flips missed", missed >= 60),
    ]


def retention(count: int, folder: Path) -> list[Figure]:
    """R9: random sequences of save, failure, crash, prune, clock jump, restart, damage."""
    broken = 0
    for seed in range(count):
        try:
            test_retention.play(folder / str(seed), 10_000 + seed, test_retention.never_fewer_than_two)
        except AssertionError:
            broken += 1
        shutil.rmtree(folder / str(seed))
    what = f"sequences of {test_retention.LENGTH} events"
    return [Figure("R9", what, f"{broken} of {count} broke the rule", not broken)]


def listed(problems: Sequence[str]) -> str:
    """How many, and the first."""
    return f"{len(problems)} broken" + (f": {problems[0][:200]}" if problems else "")


def encoder(driver: Driver, folder: Path) -> Path:
    """A pre-trained encoder for the consistency stage's auxiliary loss."""
    job = driver.train(folder / "encoder", run_config("pretraining", 2))
    assert job.codes == [0], job.said
    return folder / "encoder"


def equal(steps: int, folder: Path) -> list[Figure]:
    """D2: one process, two processes and accumulation, in float64."""
    figures = []
    driver = Driver()
    source = encoder(driver, folder)
    for stage in ("pretraining", "diffusion", "consistency"):
        ways = ["ddp", "fsdp"] + (["accumulation"] if stage != "pretraining" else [])
        for way, distance in equality.compare(driver, folder / stage, stage, steps, ways, source).items():
            figures.append(Figure("D2", f"{stage}, {way}: {steps} steps in float64", str(distance), distance.equal))
    for control in ("uneven_shares", "schedule_by_process"):
        more: dict[str, Any] = {control: {}}
        (distance,) = equality.compare(driver, folder / control, "diffusion", 20, ["ddp"], None, **more).values()
        figures.append(Figure("D2", f"control: {control}", str(distance), not distance.equal))
    return figures


def worlds(count: int, folder: Path) -> list[Figure]:
    """R7: the number of processes changes on the way, at random steps."""
    steps, figures = 200, []
    driver = Driver()
    for precision in ("fp64", "fp32"):
        one = folder / f"one-{precision}"
        equality.run(driver, one, equality.config("diffusion", steps, precision), record={})
        found = []
        for seed in range(count):
            many = folder / f"many-{precision}-{seed}"
            schedule = ((1, 2, 1), (2, 1, 2))[seed % 2]
            equality.change_on_the_way(driver, many, "diffusion", steps, schedule, precision, seed)
            found.append(equality.distance(one, many))
        worst = equality.Distance(
            max(d.loss for d in found), 0.0, max(d.weights for d in found), all(d.order for d in found)
        )
        met = worst.order and worst.loss <= 1e-6 and (precision == "fp32" or worst.weights <= equality.WEIGHTS)
        what = f"{count} runs of {steps} steps in {precision}, 1-2-1 and 2-1-2 processes"
        figures.append(Figure("R7", what, str(worst), met))
    broken = folder / "broken"
    equality.change_on_the_way(driver, broken, "diffusion", steps, (1, 2, 1), "fp64", 0, noise_by_rank={})
    distance = equality.distance(folder / "one-fp64", broken)
    figures.append(Figure("R7", "control: noise depends on the rank", str(distance), not distance.equal))
    return figures


def resumed(limit: int, folder: Path) -> list[Figure]:
    """R5: every kind of boundary, resumed twice in a row, without and with loader processes."""
    figures = []
    driver = Driver()
    source = encoder(driver, folder)
    for stage, loaders in [("pretraining", 0), *((s, n) for s in ("diffusion", "consistency") for n in (0, 2))]:
        options: dict[str, Any] = {"encoder": None if stage == "pretraining" else source}
        if loaders:
            options["uncached"] = {}
        place = folder / f"{stage}-{loaders}"
        wanted = boundaries.undisturbed(driver, place / "undisturbed", stage, **options)
        cases = list(boundaries.cases(stage))[:limit]
        broken = [
            f"{name}: {problem}"
            for i, (name, *case) in enumerate(cases)
            if (problem := boundaries.interrupted(driver, place / str(i), stage, *case, wanted, **options))
        ]
        what = f"{stage}, {loaders} loader processes: {len(cases)} boundaries, resumed twice"
        figures.append(Figure("R5", what, listed(broken), not broken))
    wanted = boundaries.undisturbed(driver, folder / "random", "diffusion", global_generator={})
    arguments = (driver, folder / "broken", "diffusion", "boundary", 6, "SIGTERM", wanted)
    found = boundaries.interrupted(*arguments, global_generator={})
    figures.append(Figure("R5", "control: a generator whose state is lost", found, bool(found)))
    return figures


def signalled(count: int, folder: Path) -> list[Figure]:
    """R8: in the middle of every kind of work, and after random times."""
    figures = []
    driver = Driver()
    for processes in (1, 2):
        place = folder / str(processes)
        wanted = signals.expected(driver, place / "undisturbed", "diffusion", processes)
        timing = driver.train(place / "timing", signals.config("diffusion"), processes=processes).seconds
        broken, i = [], 0
        for moment in signals.MOMENTS:
            for number in signals.NUMBERS:
                ranks = [0] if moment == "save" or processes == 1 else [1]
                case = (place / f"moment-{i}", "diffusion", processes, moment, number, ranks, wanted)
                broken += filter(None, [signals.at_a_moment(driver, *case)])
                i += 1
        what = f"{processes} processes, one signalled: {i} times inside a step, a save, a preview, start-up"
        figures.append(Figure("R8", what, listed(broken), not broken))
        kinds = [(None, False, "all signalled"), (None, True, "all signalled twice")]
        for ranks, twice, name in kinds + ([([1], False, "one signalled")] if processes == 2 else []):
            found, chooser = signals.Figures(), random.Random(f"{processes} {name}")
            for i in range(count):
                run = place / f"{name.replace(' ', '-')}-{i}"
                case = (run, "diffusion", processes, ranks, twice, chooser, timing, wanted, found)
                found.broken += filter(None, [signals.at_random(driver, *case)])
            what = f"{processes} processes, {name}: {count} random times"
            result = f"{listed(found.broken)}; slowest end {found.slowest:.1f} s; {found.finished} had finished"
            figures.append(Figure("R8", what, result, not found.broken))
    return figures


def order(count: int, folder: Path) -> list[Figure]:
    """D3: random divisions, seeds and starts."""
    chooser = random.Random(1)
    broken = [problem for _ in range(count) if (problem := draws.order_problem(chooser))]
    seek = draws.seek_seconds()
    stateful = sum(bool(draws.order_problem(chooser, draws.Stateful())) for _ in range(100))
    return [
        Figure("D3", f"{count} random cases", listed(broken), not broken),
        Figure("D3", "first batch of step 1,000,000,000", f"{1e3 * seek:.1f} ms", seek <= 1),
        Figure("D3", "control: a sampler with a state", f"{stateful} of 100 caught", stateful >= 90),
    ]


def drawn(samples: int, folder: Path) -> list[Figure]:
    """D4: what every sample draws."""
    different = []
    for batch in (256, 64):
        whole = draws.recorded(samples, batch, 1, batch)
        for world, micro in [(1, 16), (2, 32), (2, 16), (4, 16)]:
            parts = draws.recorded(samples, batch, world, micro)
            different += [name for name in whole if not torch.equal(whole[name], parts[name])]
    repeated, p = draws.repeated(whole), draws.p_values(whole)
    twice = draws.repeated({name: torch.cat([values, values[:3]]) for name, values in whole.items()})
    what = f"draws of {len(whole['level']):,} samples on 1, 2, 4 processes"
    return [
        Figure("D4", what, listed(different), not different),
        Figure("D4", "draws shared by two samples", str(repeated), not repeated),
        Figure("D4", "Kolmogorov-Smirnov", ", ".join(f"{k} p = {v:.3f}" for k, v in p.items()), min(p.values()) > 1e-3),
        Figure("D4", "control: three samples repeated", f"{twice} found", twice == 9),
    ]


def surroundings(steps: int, folder: Path) -> list[Figure]:
    """D1: other directory, hash seed, locale, time zone, loader processes, order on the disk."""
    data = same_bytes.images(folder / "images")
    ends = [same_bytes.surroundings(folder, data, number, steps) for number in range(4)]
    broken = [same_bytes.surroundings(folder, data, number, 2, broken=True) for number in (4, 5)]
    different, caught = sum(end != ends[0] for end in ends), broken[0] != broken[1]
    what = f"both stages, {steps} steps each, in 4 surroundings with 0, 1, 2, 4 loader processes"
    return [
        Figure("D1", what, f"{different} differ", not different),
        Figure("D1", "control: files in the order of a set", "differ" if caught else "the same", caught),
    ]


def inside_a_step(count: int, folder: Path) -> list[Figure]:
    """F1: every kind of fault at every place of the forward pass, in one rank of one and of two processes."""
    figures = []
    driver = Driver()
    source = encoder(driver, folder)
    for stage in inside.PLACES:
        given = None if stage == "pretraining" else source
        cases = [
            (fault, processes, precision)
            for processes in (1, 2)
            for precision in ("fp32", "bf16", "fp16")
            for fault in inside.faults(stage, passes=3)
            if fault[1] in ("nan", "inf")
        ][:count]
        broken = [
            problem
            for i, (fault, processes, precision) in enumerate(cases)
            if (problem := inside.problem(driver, folder / f"{stage}-{i}", stage, fault, processes, given, precision))
        ]
        what = f"{stage}: {len(cases)} faults inside a step, 1 and 2 processes, three precisions: as without the step"
        figures.append(Figure("F1", what, listed(broken), not broken))
    fault = ("network.encoder.blocks.0", "nan", 0)
    found = inside.problem(driver, folder / "control", "diffusion", fault, 1, None, nan_to_num={})
    figures.append(Figure("F1", "control: nan_to_num on the gradient", found[:120], bool(found)))
    return figures


def spiking(trials: int, folder: Path) -> list[Figure]:
    """F2: spikes of the loss, a third of them in each stage; what caused them; and the batch left out."""
    figures = []
    driver = Driver()
    source, wanted = encoder(driver, folder), spikes.raised_steps(trials // 3)
    for stage in ("pretraining", "diffusion", "consistency"):
        given, place = None if stage == "pretraining" else source, folder / stage
        spikes.train(place, stage, trials // 3, given)
        spikes.train(place / "clean", stage, trials // 3, given, factor=1.0)
        found, clean = spikes.noticed(place, wanted), spikes.noticed(place / "clean", set())
        met = found.found >= 0.99 * found.raised and not found.alarms + clean.alarms
        figures.append(Figure("F2", f"{stage}: loss x 20", f"{found}; {clean} of another run", met))
        problem = spikes.rolled_back(driver, folder / f"{stage}-back", stage, 5, given)
        what = f"{stage}: rolled back and the batch left out, as without it"
        figures.append(Figure("F2", what, problem or "bit-identical", not problem))
    off = spikes.noticed(place, wanted, SpikeDetector(factor=math.inf))
    figures.append(Figure("F2", "control: threshold off", str(off), not off.found))
    chooser, each = random.Random(1), max(1, trials // 15)
    for kind, cause in {"data": "data", "loss": "machine", "bit": "machine"}.items():
        told = [spikes.told_apart(driver, folder / f"{kind}-{i}", kind, chooser) for i in range(each)]
        what = {"data": "a bad batch", "loss": "a loss wrong once", "bit": "a gradient's bit flipped once"}[kind]
        right = told.count(cause)
        figures.append(Figure("F2", what, f"{right} of {each} told to be the {cause}", right == each))
    told = [spikes.told_apart(driver, folder / "broken", "data", chooser, global_generator={})]
    figures.append(Figure("F2", "control: noise with a history, a bad batch", f"told: {told[0]}", told != ["data"]))
    return figures


def sampling(count: int, folder: Path) -> list[Figure]:
    """D5: other batches, orders and processes, kills on the way; metrics of one and of two processes."""
    export, kills = sampled.export(folder / "export"), min(10, count // 8)
    chooser, request = random.Random(1), sampled.request(count)
    batches = (1, 7, 64)
    apart = sampled.largest_difference(export, count, batches, chooser)
    write_samples(export, folder / "whole", request)
    wanted, grey = sampled.pictures(folder / "whole"), 0
    for batch in batches:
        write_samples(export, folder / f"by-{batch}", sampled.request(count, batch_size=batch))
        one, other = (sampled.pixels(folder / name, count) for name in ("whole", f"by-{batch}"))
        grey = max(grey, int(abs(one - other).max()))
    done = sampled.sample(export, folder / "two", count, processes=2)
    two = done.returncode == 0 and sampled.pictures(folder / "two") == wanted
    (killed := folder / "killed").mkdir()
    times = sampled.run_and_kill(lambda: write_samples(export, killed, request), killed, count, kills, chooser)
    with sampled.OneGenerator() as control:
        off = sampled.largest_difference(export, min(count, 128), batches, chooser)
        control.restart()
        write_samples(export, folder / "one generator", request)
        control.restart()
        (broken := folder / "broken").mkdir()
        sampled.run_and_kill(lambda: write_samples(export, broken, request), broken, count, kills, chooser)
    survived = sampled.pictures(broken) == sampled.pictures(folder / "one generator")
    run = sampled.run_of_digits(folder / "run")
    one, two_metrics, other = (
        sampled.metrics(run, folder / f"{name}.json", max(count, 40), *more, processes=processes)
        for name, processes, more in [("one", 1, ()), ("both", 2, ()), ("other", 1, ("--seed", "1"))]
    )
    far, control_far = sampled.relative(one, two_metrics), sampled.relative(one, other)
    sizes, names = ", ".join(map(str, batches)), ", ".join(one)
    met = apart <= sampled.VALUES and grey <= sampled.LEVELS
    same = {True: "identical files", False: "DIFFERENT files"}
    killed_as = sampled.pictures(killed) == wanted
    return [
        Figure(
            "D5", f"{count} images in batches of {sizes}, two orders", f"values {apart:.1e}, grey levels {grey}", met
        ),
        Figure("D5", "by two processes as by one", same[two], two),
        Figure("D5", f"killed {times} times", same[killed_as], killed_as and times >= kills - 2),
        Figure("D5", f"{names} by two processes", f"{far:.1e} apart", far <= sampled.METRICS),
        Figure(
            "D5",
            "control: one generator for all batches",
            f"values {off:.1e}, after kills {same[survived]}",
            off > sampled.VALUES and not survived,
        ),
        Figure("D5", "control: metrics of another seed", f"{control_far:.1e} apart", control_far > sampled.METRICS),
    ]


def under_torchrun(count: int, folder: Path) -> list[Figure]:
    """F3: rank 1 of two dies or hangs."""
    assert launched.torchrun(folder / "undisturbed").code == 0
    wanted, figures = state_hash(folder / "undisturbed"), []
    for fault in list(launched.FAULTS)[:count]:
        found, seconds = launched.problem(folder / fault, fault, wanted)
        text = found or f"gone after {seconds:.0f} s, rank named, nothing left behind, restart bit-identical"
        figures.append(Figure("F3", f"torchrun, rank 1: {fault}", text, not found))
    return figures


def loaders(count: int, folder: Path) -> list[Figure]:
    """F4: a loader process dies or hangs."""
    driver = Driver()
    broken = [p for fault in workers.FAULTS[:count] if (p := workers.problem(driver, folder / fault, fault))]
    control = workers.problem(driver, folder / "control", "SIGSTOP", timeout=1e6)
    what = f"loader process: {', '.join(workers.FAULTS[:count])}"
    return [
        Figure("F4", what, f"{listed(broken)}; each named with its image", not broken),
        Figure("F4", "control: no timeout", "only the watchdog ends it", "ended with [71]" in control),
    ]


def leaking(steps: int, folder: Path) -> list[Figure]:
    """F5: memory, files, threads, disk over many steps."""
    resumes = max(2, steps // 1000)
    driver = Driver()
    found = leaks.measure(driver, folder / "run", steps, resumes)
    hoard = leaks.measure(driver, folder / "hoard", min(3000, steps), 2, hoard={})
    text = (
        f"{found.slope / 1e6:+.2f} MB per 1,000 steps, files +-{found.files}, threads +-{found.threads}, at most "
        f"{found.checkpoints} checkpoints, log {found.log:.0f} bytes per step"
    )
    return [
        Figure("F5", f"{steps:,} steps, {10 * resumes} saves, {resumes} starts", text, found.fine),
        Figure("F5", "control: losses kept", f"{hoard.slope / 1e6:+.2f} MB per 1,000 steps", hoard.slope > leaks.SLOPE),
    ]


PARTS: dict[str, tuple[str, Callable[[int, Path], list[Figure]]]] = {
    "kills": ("R1", kills),
    "mutations": ("R4", mutations),
    "power": ("R2", power),
    "retention": ("R9", retention),
    "boundaries": ("R5", resumed),
    "signals": ("R8", signalled),
    "equality": ("D2", equal),
    "worlds": ("R7", worlds),
    "order": ("D3", order),
    "draws": ("D4", drawn),
    "bytes": ("D1", surroundings),
    "inside": ("F1", inside_a_step),
    "spikes": ("F2", spiking),
    "samples": ("D5", sampling),
    "launched": ("F3", under_torchrun),
    "loaders": ("F4", loaders),
    "leaks": ("F5", leaking),
}


def show(figures: Sequence[Figure]) -> None:
    table = Table("goal", "what", "found", "met", "s", box=None)
    for figure in figures:
        met = "yes" if figure.met else "NO"
        what, found = Text(figure.what), Text(figure.found)  # which may hold anything, brackets too
        table.add_row(figure.goal, what, found, met, f"{figure.seconds:.0f}" if figure.seconds else "")
    Console(width=160).print(table)


def show_stored(files: Sequence[Path]) -> int:
    """Figures of earlier runs as a markdown table, in the order of the goals."""
    stored = [Figure(**figure) for file in files for figure in json.loads(file.read_text())["figures"]]
    print("| Goal | What | Found | Met |\n|---|---|---|---|")
    for figure in sorted(stored, key=lambda figure: (figure.goal[0] != "R", figure.goal[0], int(figure.goal[1:]))):
        print(f"| {figure.goal} | {figure.what} | {figure.found} | {'yes' if figure.met else '**no**'} |")
    return int(not all(figure.met for figure in stored))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=SIZES, default="nightly")
    parser.add_argument("--size", type=int, help="how many, or how long, instead of the tier's")
    parser.add_argument("--out", type=Path, help="JSON file for the figures, written after every part")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--show", type=Path, nargs="+", help="only print the figures in such JSON files, as markdown")
    parser.add_argument("--scratch", type=Path, help="folder to work in; a temporary one if not given")
    options = parser.parse_args()
    if options.show:
        return show_stored(options.show)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    machine = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for name in options.only:
            folder, started = Path(scratch) / name, time.perf_counter()
            goal, part = PARTS[name]
            folder.mkdir()
            try:
                new = part(options.size or SIZES[options.tier][name], folder)
            except Exception as error:  # the other parts have figures of their own
                new = [Figure(goal, f"{name}: could not be run", f"{type(error).__name__}: {error}"[:300], False)]
            new[-1].seconds = time.perf_counter() - started
            figures += new
            shutil.rmtree(folder, ignore_errors=True)
            if options.out:
                content = {
                    "tier": options.tier,
                    "size": options.size,
                    **machine,
                    "figures": [asdict(figure) for figure in figures],
                }
                options.out.write_text(json.dumps(content, indent=1) + "\n")
            show(new)
    show(figures)
    return int(not all(figure.met for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
