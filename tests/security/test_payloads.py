"""S1: no artefact can run code, whichever verb reads it."""

from pathlib import Path
from typing import Any

import pytest

from epg.cli import VERBS
from tests.security.common import case, make_run, run_audited, templates_of
from tests.security.payloads import PAYLOADS, WITH_RUN

PICKLES = {"zip_pt", "legacy_pt", "tar_pt", "torchscript", "plain_pickle", "text_pickle", "persistence_pickle"}
REFUSALS = (2, 65, 74, 77)
Outcome = tuple[str, dict[str, Any], dict[str, Any]]


def test_every_verb_is_covered() -> None:
    for verb in VERBS:
        assert any("{path}" in template for template in templates_of(verb)), verb


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canary") / "sang"


@pytest.fixture(scope="module")
def control_canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("control") / "sang"


def build_all(folder: Path, canary: Path) -> dict[str, Path]:
    """Every payload in a folder of its own."""
    paths = {}
    for build in PAYLOADS:
        (place := folder / build.__name__).mkdir(parents=True)
        paths[build.__name__] = build(place, canary)
    return paths


@pytest.fixture(scope="module")
def everything(
    tmp_path_factory: pytest.TempPathFactory, canary: Path, control_canary: Path
) -> tuple[list[Outcome], list[tuple[str, Any]]]:
    """What happened to every payload given to every verb in every place that takes a path, and to careless readers."""
    folder = tmp_path_factory.mktemp("payloads")
    good = make_run(folder / "good")
    (cwd := folder / "cwd").mkdir()
    paths = build_all(folder, canary)
    for spoil in WITH_RUN:
        (place := folder / spoil.__name__).mkdir()
        paths[spoil.__name__] = spoil(place, canary, good)
    names, cases = [], []
    for name, path in paths.items():
        for verb in VERBS:
            for template in templates_of(verb):
                names.append(name)
                cases.append(case(verb, template, path, good, cwd, len(cases)))
    readable = (".pt", ".pth", ".pkl", ".npy", ".npz", ".yaml", "")
    careless = {n: p for n, p in build_all(folder / "control", control_canary).items() if p.suffix in readable}
    found = run_audited([*cases, *({"careless": str(path)} for path in careless.values())])
    outcomes = list(zip(names, cases, found[: len(cases)], strict=True))
    return outcomes, list(zip(careless, found[len(cases) :], strict=True))


@pytest.fixture
def outcomes(everything: tuple[list[Outcome], Any]) -> list[Outcome]:
    """(payload, command line, what happened)."""
    return everything[0]


@pytest.fixture
def controls(everything: tuple[Any, list[tuple[str, Any]]]) -> list[tuple[str, Any]]:
    """(payload, what a careless reader caused)."""
    return everything[1]


def told(outcome: Outcome) -> str:
    name, what, found = outcome
    return f"{name}: epg {' '.join(what['arguments'])}\n{found['code']} {found['events']}\n{found['output'][-1500:]}"


def test_no_payload_runs(outcomes: list[Outcome], canary: Path) -> None:
    assert len(outcomes) >= 20 * len(VERBS)
    for outcome in outcomes:
        assert not outcome[2]["events"], told(outcome)
    assert not canary.exists()


def test_every_payload_is_refused(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        # One is plain YAML, in which `schema` looks at no setting, so that editors can show what is wrong.
        if (outcome[0], outcome[1]["arguments"][0]) != ("target_yaml", "schema"):
            assert outcome[2]["code"] in REFUSALS, told(outcome)
        assert "Traceback" not in outcome[2]["output"], told(outcome)


def test_refused_weights_say_how_to_convert_them(outcomes: list[Outcome]) -> None:
    asked = 0
    for outcome in outcomes:
        name, what, found = outcome
        if name in PICKLES and what["arguments"][0] in ("sample", "verify", "ema", "finetune"):
            asked += 1
            assert found["code"] == 77, told(outcome)
            assert "save as safetensors" in found["output"] or "with safetensors" in found["output"], told(outcome)
    assert asked >= 4 * len(PICKLES)


def test_control_careless_readers_set_the_payloads_off(controls: list[tuple[str, Any]], control_canary: Path) -> None:
    fired = {name for name, found in controls if found["events"]}
    wanted = {"zip_pt", "legacy_pt", "plain_pickle", "text_pickle", "persistence_pickle", "object_npy", "object_npz"}
    assert wanted | {"python_yaml", "dcp_folder"} <= fired
    assert control_canary.read_text() == "EPG-CANARY"
