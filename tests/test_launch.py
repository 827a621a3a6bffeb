"""Launching: real torchrun and accelerate, the SLURM script with stand-ins for its programs, the Kubernetes file."""

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from epg.checkpoint import checkpoint
from epg.cli import configure, parse
from epg.training.tracking import read_log

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "docs" / "launch"
TINY = [
    *("--training.batch-size", "32", "--training.log-every", "1", "--training.preview-every", "0"),
    *("--training.trackers", "--model.encoder.width", "16", "--model.encoder.heads", "2"),
    *("--model.encoder.depth", "1", "--model.projector-hidden", "16"),
]


def environment(**more: str) -> dict[str, str]:
    bin_folder = str(Path(sys.executable).parent)
    paths = {"PATH": os.pathsep.join([bin_folder, os.environ["PATH"]]), "PYTHONPATH": str(ROOT / "src")}
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **paths, **more}


def run(command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=300)


def start(launcher: list[str], out: Path) -> str:
    done = run([*launcher, "pretrain", "digits", "--out", str(out), "--training.steps", "2", *TINY])
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow  # with every change: tests/reliability/test_launched.py
def test_torchrun_trains_with_two_processes(tmp_path: Path) -> None:
    options = "--standalone --nproc-per-node 2 -m epg.cli"
    said = start([sys.executable, "-m", "torch.distributed.run", *options.split()], tmp_path)
    assert "2 processes" in said
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]


@pytest.mark.slow  # tests/training/test_faults.py has it without torchrun
def test_a_terminal_that_goes_away_saves_under_the_documented_torchrun(tmp_path: Path) -> None:
    """torchrun hears of it twice: from the kernel, and from the shell."""
    page = (ROOT / "docs" / "launch.md").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^torchrun (.*SIGHUP.*) -m epg.cli", page, flags=re.M)
    options = shlex.split(command)
    options[options.index("--nproc-per-node") + 1] = "2"
    launcher = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "epg.cli"]
    training = ["pretrain", "digits", "--out", str(tmp_path / "run"), "--training.steps", "100000", *TINY]
    log, env = tmp_path / "log", environment()
    with log.open("w") as said:
        job = subprocess.Popen([*launcher, *training], stderr=said, env=env, start_new_session=True)
        while "pretraining 3/" not in log.read_text():
            assert job.poll() is None, log.read_text()
            time.sleep(0.1)
        for _ in range(2):
            job.send_signal(signal.SIGHUP)
            time.sleep(0.05)
        job.wait(timeout=120)
    deadline = time.monotonic() + 60
    while log.read_text().count("error: stopped by SIGHUP after step") < 2:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    assert checkpoint.find(tmp_path / "run").step >= 3


@pytest.mark.slow
def test_accelerate_trains_with_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    options = "launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *options.split(), "--module", "epg.cli"]
    assert "2 processes" in start(launcher, tmp_path)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]


# SLURM --------------------------------------------------------------------------------------------------------------

SCRIPT = LAUNCH / "slurm.sbatch"


def program(folder: Path, name: str, code: str) -> None:
    file = folder / name
    file.write_text(f"#!{sys.executable}\n" + textwrap.dedent(code))
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


SRUN = """
    import os, signal, subprocess, sys, time
    command = sys.argv[1:]
    while command[0].startswith("-"):
        command.pop(0)
    task = subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    log = os.environ["WAIT_FOR_LOG"]
    while task.poll() is None and not (os.path.exists(log) and os.path.getsize(log)):
        time.sleep(0.05)
    if os.environ["INTERRUPT"] == "yes":
        task.send_signal(signal.SIGUSR1)  # the time limit is near
    sys.exit(task.wait())
"""
SCONTROL = """
    import os, sys
    if sys.argv[1:3] == ["show", "hostnames"]:
        print("127.0.0.1")
    with open(os.environ["SCONTROL_CALLS"], "a") as stream:
        print(*sys.argv[1:], file=stream)
"""


def test_slurm_script_requeues_an_interrupted_job_which_then_ends(tmp_path: Path) -> None:
    program(tmp_path, "srun", SRUN)
    program(tmp_path, "scontrol", SCONTROL)
    calls, out = tmp_path / "calls", tmp_path / "run"
    variables = {
        "PATH": os.pathsep.join([str(tmp_path), environment()["PATH"]]),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "node[0]",
        "SLURM_NTASKS": "1",
        "SLURM_CPUS_PER_TASK": "1",
        "SCONTROL_CALLS": str(calls),
        "WAIT_FOR_LOG": str(out / "log.jsonl"),
    }
    command = ["bash", str(SCRIPT), "digits", "--out", str(out), *TINY, "--training.steps"]
    interrupted = run([*command, "100000"], **variables, INTERRUPT="yes")
    assert interrupted.returncode == 75, interrupted.stderr
    assert calls.read_text().splitlines() == ["show hostnames node[0]", "requeue 77"]
    saved = checkpoint.find(out).step
    assert 0 < saved < 100000
    refused = run([*command, "0"], **variables, INTERRUPT="no")
    assert refused.returncode == 2
    assert "--training.steps 0" in refused.stderr
    assert "requeue" not in calls.read_text().splitlines()[2:]  # it would fail again


def test_slurm_script_is_valid_and_asks_for_what_it_uses() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", SCRIPT.read_text(), flags=re.M))
    assert options.keys() >= {"requeue", "signal", "nodes", "ntasks-per-node", "gpus-per-node"}
    assert re.fullmatch(r"USR1@\d+", options["signal"])  # to the tasks; with B: only the script would get it
    assert options["ntasks-per-node"] == options["gpus-per-node"]


# Kubernetes ---------------------------------------------------------------------------------------------------------


def kubernetes() -> tuple[dict[str, Any], dict[str, Any]]:
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    return service, job


def test_kubernetes_file_is_consistent() -> None:
    service, job = kubernetes()
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["metadata"]["name"] == pod["subdomain"]  # the pods' addresses are under the Service's name
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert spec["completionMode"] == "Indexed"
    assert pod["restartPolicy"] == "Never"  # what a podFailurePolicy requires
    options = torchrun_options(container["args"][0])
    assert int(options["--nnodes"]) == spec["completions"] == spec["parallelism"]
    assert int(options["--nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    host = options["--rdzv-endpoint"].partition(":")[0]
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert int(options["--shutdown-timeout"]) < pod["terminationGracePeriodSeconds"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_pytorchjob_file_is_consistent() -> None:
    job = pytorchjob()
    spec, worker = job["spec"], job["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"
    assert spec["elasticPolicy"]["minReplicas"] == spec["elasticPolicy"]["maxReplicas"] == worker["replicas"]
    assert int(spec["nprocPerNode"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert container["command"] == ["torchrun"]
    assert not any("nnodes" in word or "rdzv" in word for word in container["args"])  # the operator sets them
    grace = worker["template"]["spec"]["terminationGracePeriodSeconds"]
    assert int(container["args"][0].removeprefix("--shutdown-timeout=")) < grace
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in worker["template"]["spec"]["volumes"]}


def pytorchjob() -> dict[str, Any]:
    (job,) = yaml.safe_load_all((LAUNCH / "pytorchjob.yaml").read_text())
    return job


def test_both_kubernetes_files_start_the_same_training() -> None:
    (one,) = kubernetes()[1]["spec"]["template"]["spec"]["containers"]
    (other,) = pytorchjob()["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    assert " ".join(other["args"]).partition("epg.cli ")[2] == one["args"][0].partition("epg.cli ")[2].strip()
    assert one["env"] == other["env"]


@pytest.mark.parametrize(("index", "host"), [("0", "1"), ("3", "0")])
def test_the_first_pod_hosts_the_rendezvous(index: str, host: str) -> None:
    (container,) = kubernetes()[1]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["bash", "-c"]
    echoed = container["args"][0].replace("exec torchrun", "echo")
    done = run(["bash", "-c", echoed], JOB_COMPLETION_INDEX=index)
    assert f"--rdzv-conf is_host={host} " in done.stdout


def torchrun_options(command: str) -> dict[str, str]:
    words = shlex.split(command.split("-m epg.cli")[0].replace("exec torchrun", ""))
    return dict(zip(words[::2], words[1::2], strict=True))


# Every launched command ---------------------------------------------------------------------------------------------


def launched() -> list[str]:
    """What follows `epg.cli` in the page and in the Kubernetes file, and the SLURM script's own example."""
    page = (ROOT / "docs" / "launch.md").read_text().replace("\\\n", " ")
    (container,) = kubernetes()[1]["spec"]["template"]["spec"]["containers"]
    found = re.findall(r"epg\.cli (\w+ .*)", "\n".join([page, container["args"][0]]))
    found += [f"pretrain {rest}" for rest in re.findall(r"^# +sbatch \S+ (.*)$", SCRIPT.read_text(), flags=re.M)]
    found += [f"pretrain {rest}" for rest in re.findall(r"^sbatch \S+ (.*)$", page, flags=re.M)]
    found += [f"{verb} {rest}" for verb, rest in re.findall(r"^EPG_COMMAND=(\w+) sbatch \S+ (.*)$", page, flags=re.M)]
    return found


@pytest.mark.parametrize("command", launched())
def test_launched_command_is_understood(command: str) -> None:
    options, overrides = parse(shlex.split(command))
    if command.split()[0] not in ("pretrain", "finetune"):
        assert not overrides
        return
    stage = getattr(options, "stage", "pretraining")
    assert configure(options.recipe, stage, overrides).stage == stage


def test_there_are_launched_commands() -> None:
    assert len(launched()) >= 10
