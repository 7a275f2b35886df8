"""The docstrings of Python's own standard library: real documents that every machine has, to measure on."""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING

from impetus_backends.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__", "ensurepip"}


@dataclass(frozen=True, slots=True)
class Docstring:
    id: str
    """Where it stands: `json.decoder.JSONDecoder.decode`."""
    text: str


def docstrings(limit: int | None = None) -> list[Docstring]:
    """The distinct docstrings of modules, classes and functions, the outermost first. Reads source, imports nothing."""
    found: dict[str, Docstring] = {}
    for path in _sources():
        for docstring in _in_file(path):
            found.setdefault(docstring.text, docstring)
    return sorted(found.values(), key=lambda each: (each.id.count("."), each.id))[:limit]


def some(count: int) -> list[str]:
    """So many texts of them, always the same, for which few files are read. Raises as `sample`."""
    found: dict[str, None] = {}
    for path in random.Random(1).sample(sources := _sources(), len(sources)):
        found |= dict.fromkeys(docstring.text for docstring in _in_file(path))
        if len(found) >= count:
            return list(found)[:count]
    raise _too_few(len(found), count)


def sample(count: int) -> list[str]:
    """So many of them at random, always the same. Raises `BackendError` where this Python has the sources of fewer."""
    texts = [docstring.text for docstring in docstrings()]
    if len(texts) < count:
        raise _too_few(len(texts), count)
    return random.Random(1).sample(texts, count)


def _too_few(there: int, wanted: int) -> BackendError:
    return BackendError(f"this Python has the sources of only {there} docstrings, and {wanted} are needed")


def _sources() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(root.rglob("*.py"))
    return [path for path in paths if not _LEFT_OUT & set(path.relative_to(root).with_suffix("").parts)]


def _in_file(path: Path) -> Iterator[Docstring]:
    module = path.relative_to(sysconfig.get_path("stdlib")).with_suffix("")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    yield from _in_tree(tree, ".".join(part for part in module.parts if part != "__init__"))


def _in_tree(node: ast.AST, name: str) -> Iterator[Docstring]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = cleandoc(ast.get_docstring(node) or "")
        if text:
            yield Docstring(name, text)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _in_tree(child, f"{name}.{child.name}")
