"""What users may rely on: the front door, each module's `__all__`, docstrings, the error tree."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import qwenlong_graph
from qwenlong_graph import errors

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qwenlong_graph"

# Changing this list is a change for every user: say so in CHANGELOG.md.
FRONT_DOOR = [
    "ConnectedModel",
    "QwenLongGraphError",
    "ReadingSettings",
    "SourceCitation",
    "UnsupportedClaim",
    "__version__",
    "aread",
    "build_memory_graph",
    "connect",
    "create_memory_agent",
    "read",
]


def module_names() -> list[str]:
    """Every module of the package, by its file, without importing any."""
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in PACKAGE.rglob("*.py")]
    names = (".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts)
    return sorted(name for name in names if not name.endswith(".__main__"))


def holds_only_a_docstring(module: ModuleType) -> bool:
    body = ast.parse(Path(module.__file__ or "").read_text("utf-8")).body
    return len(body) == 1 and ast.get_docstring(ast.Module(body, [])) is not None


def public_objects(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The classes and functions of a module's `__all__`."""
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            yield name, value


def own_docstring(value: object) -> str:
    """The docstring somebody wrote for it: not inherited, not the signature dataclasses put in."""
    text = (vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__) or ""
    return "" if inspect.isclass(value) and text.startswith(f"{value.__name__}(") else text


def test_the_front_door_is_the_pinned_list() -> None:
    assert sorted(FRONT_DOOR) == FRONT_DOOR
    assert list(qwenlong_graph.__all__) == FRONT_DOOR


@pytest.mark.parametrize("name", FRONT_DOOR)
def test_a_front_door_name_is_importable_and_listed(name: str) -> None:
    assert getattr(qwenlong_graph, name) is not None
    assert name in dir(qwenlong_graph)


def test_an_unknown_front_door_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        qwenlong_graph.no_such_name  # noqa: B018 - the access is what is tested


@pytest.mark.parametrize("name", module_names())
def test_a_module_lists_its_public_names_and_has_them(name: str) -> None:
    module = importlib.import_module(name)
    if holds_only_a_docstring(module):
        return
    assert hasattr(module, "__all__"), f"{name} has no __all__"
    missing = [public for public in module.__all__ if not hasattr(module, public)]
    assert missing == []
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("name", module_names())
def test_every_public_name_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert [n for n, value in public_objects(module) if not own_docstring(value).strip()] == []


def test_the_signature_that_a_dataclass_puts_in_is_no_docstring() -> None:
    @dataclass
    class Undocumented:
        size: int

    @dataclass
    class Documented:
        """A size."""

        size: int

    assert own_docstring(Undocumented) == ""
    assert own_docstring(Documented) == "A size."


def drawn_tree(text: str) -> dict[str, tuple[str | None, int | None]]:
    """Reads a drawn class tree: each name with the name above it and the exit code beside it."""
    tree: dict[str, tuple[str | None, int | None]] = {}
    above: list[str] = []
    drawn = re.compile(r"^([ │├└─]*)([A-Z]\w*Error)\b(?: +exit (\d+))?", re.MULTILINE)
    margin = None
    for prefix, name, code in drawn.findall(text):
        margin = len(prefix) if margin is None else margin
        depth = (len(prefix) - margin) // 4
        del above[depth:]
        assert name not in tree, f"{name} is drawn twice"
        tree[name] = (above[-1] if above else None, int(code) if code else None)
        above.append(name)
    return tree


def error_classes() -> list[type[errors.QwenLongGraphError]]:
    """Every error class that the package defines, wherever it stands."""
    for name in module_names():
        importlib.import_module(name)
    found, open_classes = [], [errors.QwenLongGraphError]
    while open_classes:
        current = open_classes.pop()
        if current.__module__.partition(".")[0] == "qwenlong_graph":
            found.append(current)
        open_classes += current.__subclasses__()
    return found


def test_the_drawn_error_tree_is_the_real_one() -> None:
    drawn = drawn_tree(errors.__doc__ or "")
    real = {
        cls.__name__: None if cls is errors.QwenLongGraphError else cls.__base__.__name__
        for cls in error_classes()
    }
    assert {name: parent for name, (parent, _) in drawn.items()} == real
    assert sorted(real) == sorted(errors.__all__)


def test_the_drawn_exit_codes_are_the_real_ones() -> None:
    expected: dict[str, int] = {}
    for name, (parent, code) in drawn_tree(errors.__doc__ or "").items():
        expected[name] = code if code is not None else expected.get(parent or "", 1)
    assert {cls.__name__: cls.exit_code for cls in error_classes()} == expected


def test_the_documented_error_tree_is_the_drawn_one() -> None:
    documented = (ROOT / "docs" / "errors.md").read_text("utf-8")
    assert drawn_tree(documented) == drawn_tree(errors.__doc__ or "")
