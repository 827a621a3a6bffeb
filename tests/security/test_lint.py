"""S1: the package holds nothing that runs what it reads."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "epg"
FILES = sorted(SOURCE.rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "globals"}
FORBIDDEN_CALLS = {
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "torch.jit.load",
    "torch.hub.load",
    "torch.package.PackageImporter",
    "dcp.load",
    "tempfile.mktemp",
    "pandas.read_pickle",
    "pd.read_pickle",
}
FORBIDDEN_METHODS = {"extractall", "extract", "load_state", "read_pickle", "unpack_archive"}
FORBIDDEN_ARGUMENTS = {"shell": True, "allow_pickle": True, "trust_remote_code": True, "weights_only": False}


def findings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of everything that could run code from a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = []
        for name in names:
            if name.split(".")[0] in FORBIDDEN_MODULES or name.startswith("torch.distributed.checkpoint.load"):
                yield node.lineno, f"import {name}"
        if isinstance(node, ast.Call):
            yield from call_findings(node)


def call_findings(node: ast.Call) -> Iterator[tuple[int, str]]:
    name = ast.unparse(node.func)
    keywords = {k.arg: k.value for k in node.keywords}
    method = name.split(".")[-1] if "." in name else ""
    if name in FORBIDDEN_NAMES or name in FORBIDDEN_CALLS or method in FORBIDDEN_METHODS:
        yield node.lineno, name
    if name == "torch.load" and ast.unparse(keywords.get("weights_only", ast.Constant(None))) != "True":
        yield node.lineno, "torch.load without weights_only=True"
    literal = bool(node.args) and isinstance(node.args[0], ast.Constant)
    if name.split(".")[-1] == "import_module" and not literal:
        yield node.lineno, "import of a computed name"
    for argument, value in FORBIDDEN_ARGUMENTS.items():
        if argument in keywords and ast.unparse(keywords[argument]) == str(value):
            yield node.lineno, f"{argument}={value}"
    if name in ("np.load", "numpy.load") and ast.unparse(keywords.get("allow_pickle", ast.Constant(None))) != "False":
        yield node.lineno, "np.load without allow_pickle=False"


def test_the_package_is_clean() -> None:
    assert len(FILES) > 80
    found = [
        f"{file.relative_to(SOURCE)}:{line}: {what}"
        for file in FILES
        for line, what in findings(ast.parse(file.read_text()))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "from pickle import loads",
        "import dill as json",
        "import joblib",
        "from torch.distributed.checkpoint import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "yaml.load(stream, Loader=yaml.Loader)",
        "yaml.unsafe_load(stream)",
        "archive.extractall(folder)",
        "tar.extract(member)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "DiffusionPipeline.from_pretrained(path, trust_remote_code=True)",
        "importlib.import_module(config['class'])",
        "globals()[name]()",
        "torch.jit.load(path)",
        "accelerator.load_state(path)",
        "dcp.load(state, checkpoint_id=path)",
    ],
)
def test_control_each_habit_is_found(bad: str) -> None:
    assert list(findings(ast.parse(f"def f():\n    {bad}\n")))


def test_control_good_habits_pass() -> None:
    good = (
        "torch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)\nyaml.safe_load(text)\n"
        "subprocess.run([program, path])\n'trust_remote_code=True'\nre.compile(text)\nblock.compile()\nmodel.eval()\n"
        "importlib.import_module('torch')"
    )
    assert not list(findings(ast.parse(good)))
