"""The same numbers whatever lies around: bytes of a run (D1), the order (D3), draws (D4), samples (D5)."""

import random
from pathlib import Path

import torch
from tests.reliability import draws, same_bytes, sampled

from epg.sampling import write_samples
from goals.figure import Figure, listed


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
