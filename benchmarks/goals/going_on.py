"""Runs that go on: at every boundary (R5), with other processes (R7, D2), after signals (R8)."""

import random
from pathlib import Path
from typing import Any

from tests.reliability import boundaries, equality, signals
from tests.reliability.driver import Driver

from goals.figure import Figure, encoder, listed


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
