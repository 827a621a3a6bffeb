"""The rooms of the package import one way: each only what stands before it, lazy imports included."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src/epg"
ROOMS = [
    ("cell", "command_line"),
    ("errors", "extras", "memory", "messages", "progress", "signals"),  # no science
    ("randomness", "distributed"),
    ("sharding", "circumstances"),
    ("storage",),
    ("schedule", "labels"),
    ("samplers",),
    ("drawing",),
    ("config",),
    ("cost",),
    ("data", "data.order", "data.workers"),
    ("data.pixels",),
    ("data.decode",),
    ("data.sources",),
    ("data.prepared",),
    ("data.loading", "data.views"),
    ("data.dataset",),
    ("data.configured",),
    ("networks",),
    ("denoiser", "losses", "moments", "weighting"),
    ("guidance",),
    ("grids",),
    ("features",),
    ("generator",),
    ("objectives",),
    ("pipeline",),
    ("checkpoint",),
    ("sampling",),
    ("training",),
    ("evaluation",),
    ("analysis", "publish"),
    ("runs", "report"),
    ("python",),
    ("bench",),
    ("demo", "quickstart", "study"),
    ("cli",),
]
LEVEL = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}
ENTRIES = ("__init__", "__main__")  # of the package: `epg.load`, `python -m epg`


def modules() -> dict[str, Path]:
    """Dotted name inside the package -> file."""
    names = {file: ".".join(file.relative_to(SOURCE).with_suffix("").parts) for file in SOURCE.rglob("*.py")}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


def imports(text: str, known: set[str]) -> set[str]:
    """Modules of the package that a text imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            inner = name.removeprefix("epg.")
            if name.startswith("epg."):
                found.add(inner if inner in known else inner.rpartition(".")[0])
    return found - {""}


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(file.read_text(), set(known)) - {name} for name, file in known.items()}


def room(module: str) -> str:
    """The room within a room where that has an order of its own, else the room."""
    inner = ".".join(module.split(".")[:2])
    return inner if inner in LEVEL else module.partition(".")[0]


def test_every_room_has_its_place() -> None:
    assert {room(name) for name in modules()} - set(ENTRIES) == set(LEVEL)


def test_rooms_import_only_what_stands_before_them() -> None:
    upwards = [
        f"{name} -> {other}"
        for name, others in graph().items()
        for other in others
        if room(name) not in ENTRIES and room(other) != room(name) and LEVEL[room(other)] >= LEVEL[room(name)]
    ]
    assert upwards == []


def test_no_circle_of_modules() -> None:
    edges, done = graph(), set[str]()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in edges.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def too_long(text: str) -> list[str]:
    """What of a module is longer than a reader wants: 250 lines of it all, 60 of a function with its docstring."""
    lines = text.count("\n")
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions}
    return [f"{name}: {n} lines" for name, n in sizes.items() if n > 60] + ([f"{lines} lines"] if lines > 250 else [])


def test_files_and_functions_are_short() -> None:
    found = {str(file.relative_to(SOURCE)): too_long(file.read_text()) for file in SOURCE.rglob("*.py")}
    assert {file: what for file, what in found.items() if what} == {}


def test_control_what_is_long_is_seen() -> None:
    assert too_long("def f():\n" + "    x = 1\n" * 60) == ["f: 61 lines"]
    assert too_long("def f():\n" + "    x = 1\n" * 59) == []
    assert too_long("x = 1\n" * 251) == ["251 lines"]


@pytest.mark.parametrize(
    "text", ["from epg.cli import verbs", "def f():\n    import epg.cli.verbs", "from epg import cli"]
)
def test_control_an_import_is_seen(text: str) -> None:
    assert imports(text, {"cli", "cli.verbs"}) <= {"cli", "cli.verbs"} != set()
    assert imports(text, {"cli", "cli.verbs"})
