"""Settings to draw with: those of a model, those that are asked for, and what is wrong with them."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from epg.samplers import SAMPLERS

MOST_STEPS = 10_000
HIGHEST_LEVEL = 1e6  # of the highest that a model is trained with, ten times
GRIDS = ("karras", "uniform_t")
GUIDES = ("unconditional", "internal")
SETTINGS = {
    "sampler": "heun",
    "steps": 32,
    "guide": "unconditional",
    "guidance": 1.0,
    "interval": (0.19, 1.61),
    "grid": "karras",
    "levels": None,
}


def jumping(sampler: str) -> bool:
    """Whether a model that draws with this sampler by itself jumps to the end of the walk."""
    return sampler in SAMPLERS and SAMPLERS[sampler].jumps


def settled(saved: Mapping[str, Any], given: Mapping[str, Any], jumps: bool) -> dict[str, Any]:
    """The settings `given`, over the `saved` ones of a model, over the defaults: what is then sampled with.

    The number of steps follows given levels, and given steps take the place of saved levels. A model that jumps takes
    one step or several by their number. Another guide than the saved one acts everywhere, unless an interval is given.
    """
    settings: dict[str, Any] = {**SETTINGS, **saved, **given}
    if "interval" not in given and settings["guide"] != saved.get("guide", SETTINGS["guide"]):
        settings["interval"] = (0.0, HIGHEST_LEVEL)
    steps, levels = given.get("steps"), given.get("levels")
    if levels is None and steps is not None:
        settings["levels"] = None
    if settings["levels"] is not None:
        settings["levels"] = tuple(settings["levels"])
        settings["steps"] = steps = len(settings["levels"])
    if jumps and "sampler" not in given and steps is not None:
        settings["sampler"] = "one_step" if steps == 1 else "multistep"
    if settings["sampler"] == "one_step" and steps is None:
        settings["steps"] = 1
    if settings["sampler"] == "multistep" and steps is None and saved.get("sampler") == "one_step":
        settings["steps"] = 2
    return settings


def problems(
    settings: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    jumps: bool,
    conditional: bool,
    noise: tuple[float, float],
    internal: bool = False,
    guided: bool = False,
) -> Iterator[str]:
    """What is wrong with complete settings, each by the name that the caller has for it, with the cure.

    Args:
        names: of the settings, such as `--steps`.
        jumps: see `jumping`.
        noise: sigma_min and sigma_max of the model, unshifted.
        internal: whether the model has the head of internal guidance.
        guided: whether a weaker model guides.
    """
    sampler, steps, levels, scale = (settings[name] for name in ("sampler", "steps", "levels", "guidance"))
    low, high = settings["interval"]
    serving = [name for name, one in SAMPLERS.items() if one.jumps == jumps]
    if sampler not in SAMPLERS:
        yield f"{names['sampler']} {sampler}: choose one of {', '.join(SAMPLERS)}"
    elif sampler not in serving:
        this, other = ("one-step", "diffusion") if jumps else ("diffusion", "one-step")
        fits = ", ".join(serving)
        yield f"{names['sampler']} {sampler}: for {other} models; this is a {this} model, which takes {fits}"
    fewest = 2 if levels is None and sampler in SAMPLERS and not SAMPLERS[sampler].jumps else 1
    if sampler == "one_step" and steps != 1:
        many = f"{names['steps']} {steps}" if levels is None else f"{names['levels']}: {steps} of them"
        yield f"{many}: one_step is 1 step; {names['sampler']} multistep takes several"
    elif not fewest <= steps <= MOST_STEPS:
        yield f"{names['steps']} {steps}: must be between {fewest} and {MOST_STEPS}"
    if settings["grid"] not in GRIDS:
        yield f"{names['grid']} {settings['grid']}: choose one of {', '.join(GRIDS)}"
    if levels is not None:
        inside = all(noise[0] <= level <= noise[1] for level in levels)
        if not (levels and inside and all(a > b for a, b in pairwise(levels))):
            given = " ".join(f"{level:g}" for level in levels)
            ends = f"between {noise[1]:g} and {noise[0]:g}, the model's noise.sigma_max and noise.sigma_min"
            yield f"{names['levels']} {given}: must fall, {ends}"
    if not 0 <= scale < 1000:
        yield f"{names['guidance']} {scale}: must be at least 0 and less than 1000; 1 is none"
    if not 0 <= low < high <= HIGHEST_LEVEL:
        yield f"{names['interval']} {low} {high}: must be 0 <= low < high <= {HIGHEST_LEVEL:g}"
    if settings["guide"] not in GUIDES:
        yield f"{names['guide']} {settings['guide']}: choose one of {', '.join(GUIDES)}"
    elif settings["guide"] == "internal":
        guided = True
        if not internal:
            yield f"{names['guide']} internal: this model was trained without --objective.internal-weight"
    if scale != 1 and not guided and (jumps or not conditional):
        why = "is trained without label dropping" if conditional else "is unconditional"
        yield f"{names['guidance']} {scale:g}: this model {why}; leave it at 1"
