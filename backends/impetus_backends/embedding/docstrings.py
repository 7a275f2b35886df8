"""The docstrings of Python's own standard library: real documents that every machine has, to measure on."""

from __future__ import annotations

import ast
import sysconfig
import warnings
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING

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
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Docstring] = {}
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).with_suffix("")
        if _LEFT_OUT & set(module.parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for docstring in _in_tree(tree, ".".join(part for part in module.parts if part != "__init__")):
            found.setdefault(docstring.text, docstring)
    return sorted(found.values(), key=lambda each: (each.id.count("."), each.id))[:limit]


def _in_tree(node: ast.AST, name: str) -> Iterator[Docstring]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = cleandoc(ast.get_docstring(node) or "")
        if text:
            yield Docstring(name, text)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _in_tree(child, f"{name}.{child.name}")
