"""S3 and S6: with local inputs nothing is asked of the network, and nothing secret gets into what is written."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from epg.cli import VERBS
from tests.data.photos import photo_folder
from tests.security.common import case, make_run, run_audited, templates_of

TINY = (
    "--training.steps 2 --training.batch-size 16 --training.log-every 1 --training.device cpu --model.encoder.depth 1 "
    "--model.encoder.width 16 --model.encoder.heads 2 --model.decoder.width 16 --model.decoder.heads 2"
)
COMMANDS = [
    f"pretrain digits {TINY}",
    f"finetune digits --encoder runs/digits/pretraining --training.power-ema 0.1 {TINY}",
    "sample runs/digits/diffusion --count 4 --npz --animation gif --device cpu --out samples",
    "verify runs/digits/diffusion",
    "info digits",
    "prepare pictures prepared --image-size 8 --workers 1",
    "inspect prepared --workers 1 --sheet sheet.png --report report.json",
    "ema runs/digits/diffusion --sigma-rel 0.1 --out averaged",
]
SLOW_COMMANDS = [
    "denoising runs/digits/diffusion --levels 2 --out analysis",
    "convert runs/digits/diffusion --to pipeline --out pipeline",
    "sample pipeline --count 2 --device cpu --out more",
    f"finetune digits --stage consistency --encoder runs/digits/pretraining {TINY}",
    "evaluate runs/digits/diffusion --count 40 --device cpu --out receipt.json",
    "evaluate runs/digits/diffusion --count 40 --seed 1 --device cpu --out other.json",
    "compare receipt.json other.json --out table.md",
    "probe runs/digits/pretraining --levels 0.1 --device cpu --out probe",
    "neighbours runs/digits/diffusion --count 40 --device cpu --out neighbours",
    "quickstart --minutes 0.2 --out quickstart",
]
TOO_FAST = "--optimizer.lr 10 --optimizer.warmup-steps 0 --training.precision fp16"  # the first update is beyond half
DIVERGING = f"finetune digits --from-scratch --out diverging --training.max-nonfinite 1 {TINY} {TOO_FAST}"
SECRETS = {
    "HF_TOKEN": "hf_CANARYaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "HUGGING_FACE_HUB_TOKEN": "hf_CANARYbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
    "WANDB_API_KEY": "CANARY0123456789abcdef0123456789abcdef01",
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY0001",
    "AWS_SECRET_ACCESS_KEY": "CANARY/secret/key/0000000000000000000000",
    "AWS_SESSION_TOKEN": "CANARYsessiontokenCANARYsessiontoken",
    "HTTPS_PROXY": "http://somebody:CANARYpassword@127.0.0.1",
    "DATABASE_URL": "postgres://somebody:CANARYsecret@db.internal/x",
    "GITHUB_TOKEN": "ghp_CANARYcccccccccccccccccccccccccccc",
}
HOST = "canary-host-0042"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with something for every verb in it."""
    home = tmp_path_factory.mktemp("people") / "CANARYhome"
    home.mkdir()
    photo_folder(home / "pictures", classes=2, each=2)
    return home


Outcome = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def everything(home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """(case, what happened): every command in that folder, then every verb with files that are not there, then a
    program that calls home; the network is allowed, and the environment is full of secrets."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    good, gone = make_run(elsewhere / "good"), elsewhere / "gone" / "weights"
    cases: list[dict[str, Any]] = [{"arguments": c.split(), "cwd": str(home)} for c in [*COMMANDS, DIVERGING]]
    for verb in VERBS:
        for template in templates_of(verb):
            cases.append({**case(verb, template, gone, good, elsewhere, len(cases)), "gone": str(gone)})
    cases.append({"phone": "192.0.2.1"})
    umask = os.umask(0o022)
    environment = {**SECRETS, "HOME": str(home), "HOSTNAME": HOST, "EPG_TEST_HOST": HOST, "HF_HUB_OFFLINE": "0"}
    found = run_audited(cases, **environment)
    os.umask(umask)
    return list(zip(cases, found, strict=True))


@pytest.fixture
def outcomes(everything: list[Outcome]) -> list[tuple[str, dict[str, Any]]]:
    """(command, what happened) of those that work."""
    return [(" ".join(what["arguments"]), found) for what, found in everything[: len(COMMANDS) + 1]]


def calls(found: dict[str, Any]) -> list[str]:
    """Events that concern the network (matplotlib asks the system for its fonts the first time)."""
    return [event for event in found["events"] if not event.startswith("subprocess.Popen ('fc-list'")]


def test_every_verb_works_and_asks_nobody(outcomes: list[tuple[str, dict[str, Any]]]) -> None:
    for command, found in outcomes:
        assert found["code"] == (70 if command == DIVERGING else 0), (command, found["output"][-1500:])
        assert not calls(found), (command, found["events"])


def test_a_missing_file_is_named_and_not_looked_for_elsewhere(everything: list[Outcome]) -> None:
    cases = [(what, found) for what, found in everything if "gone" in what]
    assert len(cases) >= len(VERBS)
    for what, found in cases:
        told = f"epg {' '.join(what['arguments'])}: {found}"
        assert found["code"] in (2, 65, 77), told
        assert what["gone"] in found["output"].replace("\n", ""), told
        assert not calls(found), told
        assert found["seconds"] < 10, told


def test_control_a_call_home_is_noticed(everything: list[Outcome]) -> None:
    assert any("socket.connect" in event for event in everything[-1][1]["events"])


@pytest.mark.slow
def test_without_any_network(home: Path, outcomes: Any, tmp_path: Path) -> None:
    """In a network namespace of its own, where nothing could answer."""
    shutil.copytree(home / "pictures", tmp_path / "pictures")
    for command in [*COMMANDS, *SLOW_COMMANDS]:
        done = subprocess.run(
            ["unshare", "-rn", sys.executable, "-m", "epg.cli", *command.split()],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, (command, done.stderr)


# Secrets --------------------------------------------------------------------------------------------------------------


def hits(folder: Path, secrets: dict[str, str]) -> Iterator[str]:
    """Files that hold a secret, in name or content."""
    for file in folder.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        # TensorBoard gives its files the host's name; what is in them has to be clean.
        name = "" if file.name.startswith("events.out.tfevents") else file.name
        for kind, secret in secrets.items():
            if secret.encode() in content or secret in name:
                yield f"{kind} in {file.relative_to(folder)}"


def secrets_of(home: Path) -> dict[str, str]:
    """Ten, and what an address would hide of its password."""
    return {**SECRETS, "password": "CANARYpassword", "home folder": str(home), "host name": HOST}


def test_nothing_secret_is_written(home: Path, outcomes: list[tuple[str, dict[str, Any]]]) -> None:
    written = [file for file in home.rglob("*") if file.is_file()]
    assert {".safetensors", ".json", ".jsonl", ".png", ".npz", ".gif", ".yaml"} <= {f.suffix for f in written}
    found = list(hits(home, secrets_of(home)))
    assert not found, "\n".join(found)


def test_nothing_secret_is_printed(home: Path, outcomes: list[tuple[str, dict[str, Any]]]) -> None:
    for command, found in outcomes:
        for name, secret in secrets_of(home).items():
            if name != "home folder":
                assert secret not in found["output"], (command, name)


def test_files_are_not_open_to_everybody(home: Path, outcomes: Any) -> None:
    for file in home.rglob("*"):
        assert not stat.S_IMODE(file.stat().st_mode) & stat.S_IWOTH, file
        if file.is_file():
            assert stat.S_IMODE(file.stat().st_mode) in (0o600, 0o644), file


def test_control_a_dump_of_the_environment_is_found(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(str(SECRETS))
    save_file({"w": torch.zeros(1)}, tmp_path / "m.safetensors", metadata={"host": HOST})
    found = list(hits(tmp_path, secrets_of(tmp_path)))
    assert len({hit.split(" in ")[0] for hit in found}) == len(SECRETS) + 2
