"""Imports point one way, in no circle, and each module has one name."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "sparsify": ROOT / "sparsify",
    "sparsify.passes": ROOT / "passes",
    "sparsify.codegen": ROOT / "codegen",
}


def modules() -> dict[str, Path]:
    return {
        ".".join([name, *path.relative_to(folder).with_suffix("").parts]).removesuffix(
            ".__init__"
        ): path
        for name, folder in FOLDERS.items()
        for path in folder.rglob("*.py")
    }


def imported(name: str, path: Path) -> Iterator[tuple[str, ...]]:
    """By each import of a module, those in functions and of types included: the names that can be
    a module's, the longest first."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", base) for alias in node.names)


def imports() -> dict[str, set[str]]:
    known = modules()
    return {
        name: {
            found
            for names in imported(name, path)
            if (found := next((one for one in names if one in known), None))
        }
        for name, path in known.items()
    }


def test_no_circle() -> None:
    graph = imports()
    assert len(graph) > 100 and "sparsify.passes.facts" in graph["sparsify.passes.masks"]
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("sparsify.codegen", ("sparsify.codegen",)),
        ("sparsify.passes", ("sparsify.passes", "sparsify.codegen")),
    ],
)
def test_one_way(package: str, allowed: tuple[str, ...]) -> None:
    for name, found in imports().items():
        if f"{name}.".startswith(f"{package}."):
            assert all(f"{one}.".startswith(tuple(f"{a}." for a in allowed)) for one in found), name


@pytest.mark.parametrize("name", ["passes", "codegen", "passes.rules", "codegen.geometry"])
def test_a_folder_is_no_package_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the repository's root it would be found, and be a second registry."""
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(ImportError, match=f"import sparsify.{name.split('.')[0]}"):
        importlib.import_module(name)
