"""YAML files of users: plain data, small and shallow, and on which line each key stands."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from epg.errors import UserError
from epg.storage.plain_file import open_plain

SIZE_CAP = 100_000  # bytes
DEPTH_CAP = 16
NODE_CAP = 20_000  # with every alias written out
SCALAR_CAP = 4_000  # characters; longer numbers take long to read

Keys = tuple[str, ...]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError, with the line, for anything that is no plain, modest data."""
    with _explained(path):
        loader, root = _tree(path)
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path}: a recipe is a mapping of sections")
        for _ in _checked(root, path):
            pass
        content: dict[str, Any] = loader.construct_document(root)
    return content


def key_lines(path: Path) -> dict[Keys, int]:
    """The line (from 1) of every key of a file that `read_yaml` reads."""
    with _explained(path):
        return {keys: node.start_mark.line + 1 for keys, node in _checked(_tree(path)[1], path)}


def _tree(path: Path) -> tuple[yaml.SafeLoader, yaml.Node | None]:
    """The file as nodes, nothing of it made into an object, and what makes plain objects of them."""
    with open_plain(path) as stream:
        data = stream.read(SIZE_CAP + 1)
    if len(data) > SIZE_CAP:
        raise UserError(f"{path}: larger than {SIZE_CAP:,} bytes; that is no recipe")
    loader = yaml.SafeLoader(data.decode("utf-8"))
    return loader, loader.get_single_node()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what can go wrong inside the `with` into UserErrors."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise UserError(f"{path}: nested more than {DEPTH_CAP} deep") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _checked(root: yaml.Node | None, path: Path) -> Iterator[tuple[Keys, yaml.Node]]:
    """Every key with its node, aliases followed. Raises UserError where there are too many, too deep, twice or long."""
    count = 0

    def walk(node: yaml.Node, keys: Keys) -> Iterator[tuple[Keys, yaml.Node]]:
        nonlocal count
        count += 1
        where = f"{path} line {node.start_mark.line + 1}: {'.'.join(keys) or 'the file'}"
        if len(keys) > DEPTH_CAP:
            raise UserError(f"{where}: nested more than {DEPTH_CAP} deep")
        if count > NODE_CAP:
            raise UserError(f"{where}: more than {NODE_CAP:,} values, with all aliases (*name) written out")
        if isinstance(node, yaml.ScalarNode):
            if len(node.value) > SCALAR_CAP:
                raise UserError(f"{where}: {len(node.value):,} characters; the limit is {SCALAR_CAP:,}")
            if any(character < " " and character not in "\t\n" for character in node.value):
                raise UserError(f"{where}: holds control characters")
        elif isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                yield from walk(item, (*keys, str(i)))
        elif isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise UserError(f"{where}: a key must be a word (line {key.start_mark.line + 1})")
                is_name = key.tag.endswith((":str", ":merge"))  # unquoted, `on` and `1` are none
                if not is_name or len(key.value) > 200 or any(character < " " for character in key.value):
                    raise UserError(
                        f"{where}: {key.value[:40]!r} is no name of a setting (line {key.start_mark.line + 1})"
                    )
                if key.value in seen:
                    raise UserError(f"{where}: {key.value} is given twice (line {key.start_mark.line + 1})")
                seen.add(key.value)
                inner = keys if key.tag.endswith(":merge") else (*keys, key.value)
                if inner is not keys:
                    yield inner, key
                yield from walk(value, inner)

    if root is not None:
        yield from walk(root, ())
