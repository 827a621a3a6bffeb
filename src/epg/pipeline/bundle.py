"""One file out of several modules: the code that a saved pipeline carries, taken from this package's own sources.

diffusers copies the modules of a folder into one common folder of its cache, where modules of several files would mix
with those of other models. So what is needed is laid into a single file: the definitions that the wanted classes reach,
verbatim and in their order, without the package's own imports.
"""

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

PACKAGE = "epg"
ROOTS = {"pipeline_epg": ("epg.pipeline.call", "EPGPipeline"), "modeling_epg": ("epg.pipeline.model", "EPGModel")}
HEADER = '''"""{docstring}

Made from the sources of epg {version} (Apache-2.0): what `{name}` needs of it, so that this folder works without it.
"""
'''


@dataclass(frozen=True)
class Source:
    """A module of the package: its text, and what its top level defines and imports."""

    name: str
    lines: list[str]
    docstring: str
    statements: list[ast.stmt]
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Local name -> module and name there ("" for a module itself)."""


@cache
def code() -> dict[str, str]:
    """The modules of a saved folder: name -> text."""
    return {name: bundle(*root) for name, root in ROOTS.items()}


def bundle(module: str, name: str) -> str:
    """One file that defines `name` of `module` and everything that it reaches inside the package."""
    reached = reach(module, name)
    outside: dict[str, tuple[str, str]] = {}
    owners: dict[str, str] = {}
    sections = []
    for source in in_order(module, reached):
        names = reached[source.name]
        for used in names & source.imports.keys():
            imported = source.imports[used]
            assert outside.setdefault(used, imported) == imported, f"{used} is imported in two ways"
        defined = names & source.definitions.keys()
        for taken in defined:
            assert owners.setdefault(taken, source.name) == source.name, f"{taken} is defined in two modules"
        if defined:
            sections.append(f"# {source.name.replace('.', '/')}.py {'-' * (110 - len(source.name))}\n")
            wanted = {id(source.definitions[n]) for n in defined}
            sections += [text_of(source, i) for i, s in enumerate(source.statements) if id(s) in wanted]
        attributes = sorted(n for n in defined if n in reached.get(f"{source.name}.*", ()))
        if attributes:
            fields = "".join(f"    {n}={n},\n" for n in attributes)
            sections.append(f"{source.name.rpartition('.')[2]} = SimpleNamespace(\n{fields})\n")
            outside["SimpleNamespace"] = ("types", "SimpleNamespace")
    header = HEADER.format(docstring=read(module).docstring.splitlines()[0], version=version(PACKAGE), name=name)
    return "\n\n".join([f"{header}\n{import_lines(outside)}\n", *sections])


def reach(module: str, name: str) -> dict[str, set[str]]:
    """Names that are needed, by module: its own definitions and its imports from outside. Under `module.*`: the
    definitions that others use as attributes of the module."""
    reached: dict[str, set[str]] = {}
    waiting = [(module, name)]
    while waiting:
        module, name = waiting.pop()
        source = read(module)
        if name in reached.setdefault(module, set()):
            continue
        if name in source.definitions:
            reached[module].add(name)
            for used, attribute in used_names(source.definitions[name]):
                target, original = source.imports.get(used, ("", ""))
                if not target.startswith(PACKAGE):
                    waiting.append((module, used))
                elif original:
                    waiting.append((target, original))
                elif attribute:
                    waiting.append((target, attribute))
                    reached.setdefault(f"{target}.*", set()).add(attribute)
        elif name in source.imports:
            target, original = source.imports[name]
            if target.startswith(PACKAGE):  # handed on, as a package's __init__ does
                waiting.append((target, original))
            else:
                reached[module].add(name)
    return reached


def used_names(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Names that a piece of code reads, each with the attribute it takes of it ("" for the name alone)."""
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name):
            yield child.value.id, child.attr
        elif isinstance(child, ast.Name):
            yield child.id, ""


def in_order(root: str, reached: dict[str, set[str]]) -> list[Source]:
    """The reached modules, each after those that it imports."""
    order: dict[str, Source] = {}

    def visit(module: str) -> None:
        if module in order:
            return
        source = read(module)
        for target, _ in source.imports.values():
            if target.startswith(PACKAGE):
                visit(target)
        order[module] = source

    visit(root)
    return [source for module, source in order.items() if module in reached]


@cache
def read(module: str) -> Source:
    """A module's source, parsed."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text()
    tree = ast.parse(text)
    source = Source(module, text.splitlines(), ast.get_docstring(tree) or module, tree.body)
    for_types = [inner for s in tree.body if isinstance(s, ast.If) for inner in s.body]  # if TYPE_CHECKING
    for statement in (*tree.body, *for_types):
        match statement:
            case ast.ImportFrom(module=str(origin)):
                for alias in statement.names:
                    whole = is_module(f"{origin}.{alias.name}") if origin.startswith(PACKAGE) else False
                    target = (f"{origin}.{alias.name}", "") if whole else (origin, alias.name)
                    source.imports[alias.asname or alias.name] = target
            case ast.Import():
                source.imports.update({alias.asname or alias.name: (alias.name, "") for alias in statement.names})
            case ast.FunctionDef() | ast.ClassDef():
                source.definitions[statement.name] = statement
            case ast.Assign() | ast.AnnAssign():
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
                source.definitions.update(dict.fromkeys(names, statement))
    return source


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, not a package
        return False


def import_lines(imports: Mapping[str, tuple[str, str]]) -> str:
    """Import statements for local names -> (module, name there; "" for the module itself)."""
    lines = []
    for module in sorted({module for module, _ in imports.values()}):
        here = {local: name for local, (origin, name) in sorted(imports.items()) if origin == module}
        lines += [f"import {module}" + aliased(local, module) for local, name in here.items() if not name]
        names = ", ".join(name + aliased(local, name) for local, name in here.items() if name)
        lines += [f"from {module} import {names}"] if names else []
    return "\n".join(lines)


def aliased(local: str, name: str) -> str:
    return "" if local == name else f" as {local}"


def text_of(source: Source, index: int) -> str:
    """A top-level statement as it stands in its file, with decorators and, of an assignment, its description."""
    statement = source.statements[index]
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(d.lineno for d in decorators)])
    last = statement.end_lineno
    if isinstance(statement, ast.Assign | ast.AnnAssign) and index + 1 < len(source.statements):
        following = source.statements[index + 1]
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            last = following.end_lineno
    return "\n".join(source.lines[first - 1 : last]) + "\n"
