"""Imports go down the list of rooms, never up; the reading core does no I/O; the door is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "qwenlong_graph"

# From low to high. Rooms of one level do not know each other. The front door is "__init__".
LEVELS: list[set[str]] = [
    {"errors", "types"},
    {"reading"},
    {"documents"},
    {"models"},
    {"graph"},
    {"runs"},
    {"testing"},
    {"agents"},
    {"report"},
    {"evals", "train"},
    {"mcp"},
    {"cli"},
    {"__init__"},
]
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

# What a pure core has no use for, by first part of the module's name.
IMPURE_MODULES = {
    "aiohttp", "asyncio", "concurrent", "ctypes", "glob", "http", "httpx", "io", "markitdown",
    "multiprocessing", "openai", "os", "pathlib", "pypdfium2", "requests", "select", "shutil",
    "socket", "sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "tokenizers",
    "transformers", "urllib", "xllamacpp",
}  # fmt: skip
IMPURE_PREFIXES = ("langchain", "langgraph", "langsmith")
IMPURE_CALLS = {"open", "print", "input", "breakpoint", "__import__"}

# None of these may be loaded by `import qwenlong_graph` alone.
HEAVY_MODULES = {
    "httpx", "langchain_core", "langgraph", "markitdown", "numpy", "openai", "pandas", "pypdfium2",
    "rich", "torch", "transformers", "typer", "xllamacpp",
}  # fmt: skip


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module, given the parts of its name below the package."""
    return parts[0] if parts else "__init__"


def imported_modules(tree: ast.Module, package: Path, file: Path) -> Iterator[tuple[int, str]]:
    """Each import of a file, wherever it stands, as (line, absolute dotted name)."""
    here = (package.name, *file.relative_to(package).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            # `from package import name` means a submodule where there is one, else the package.
            yield from ((node.lineno, ".".join((*module, alias.name))) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            name = node.args[0]
            if (
                called in {"import_module", "__import__"}
                and isinstance(name, ast.Constant)
                and isinstance(name.value, str)
            ):
                yield node.lineno, name.value


def imported_room(name: str, package: Path) -> str | None:
    """The room that an absolute dotted name leads to; None outside the package."""
    root, *parts = name.split(".")
    if root != package.name:
        return None
    if parts and ((package / parts[0]).is_dir() or (package / f"{parts[0]}.py").is_file()):
        return room_of(tuple(parts))
    return "__init__"


def faults_of_direction(package: Path) -> list[str]:
    """Every import that goes up or sideways, and every module that belongs to no room."""
    faults = []
    for file in sorted(package.rglob("*.py")):
        where = file.relative_to(package)
        room = room_of(where.with_suffix("").parts)
        if room not in LEVEL_OF:
            faults.append(f"{where}: no room named {room!r}")
            continue
        for line, name in imported_modules(ast.parse(file.read_text("utf-8")), package, file):
            target = imported_room(name, package)
            if target is None or target == room:
                continue
            if target not in LEVEL_OF:
                faults.append(f"{where}:{line}: imports {name}, of no known room")
            elif LEVEL_OF[target] >= LEVEL_OF[room]:
                faults.append(f"{where}:{line}: {room} imports {name}, which is not below it")
    return faults


def faults_of_purity(package: Path) -> list[str]:
    """Every import and call by which `reading` could touch the world outside."""
    faults = []
    for file in sorted((package / "reading").rglob("*.py")):
        where = file.relative_to(package)
        tree = ast.parse(file.read_text("utf-8"))
        for line, name in imported_modules(tree, package, file):
            root = name.partition(".")[0]
            if root in IMPURE_MODULES or root.startswith(IMPURE_PREFIXES):
                faults.append(f"{where}:{line}: imports {name}")
        faults += [
            f"{where}:{node.lineno}: calls {node.func.id}()"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in IMPURE_CALLS
        ]
    return faults


def write_package(root: Path, files: dict[str, str]) -> Path:
    package = root / "qwenlong_graph"
    for name, source in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, "utf-8")
    return package


def test_imports_go_down_the_rooms() -> None:
    assert faults_of_direction(PACKAGE) == []


def test_the_reading_core_does_no_io() -> None:
    assert faults_of_purity(PACKAGE) == []


@pytest.mark.parametrize(
    "source",
    [
        "import qwenlong_graph.graph.agent",
        "from qwenlong_graph.graph import agent",
        "from qwenlong_graph import graph",
        "from ..graph import agent",
        "from .. import graph",
        "def late():\n    from qwenlong_graph.graph import agent",
        "if TYPE_CHECKING:\n    import qwenlong_graph.graph.agent",
        "import importlib\nimportlib.import_module('qwenlong_graph.graph.agent')",
        "from qwenlong_graph import connect",
        "import qwenlong_graph",
    ],
)
def test_an_upward_import_is_seen_in_every_form(tmp_path: Path, source: str) -> None:
    package = write_package(tmp_path, {"graph/agent.py": "", "models/connect.py": source})
    (fault,) = faults_of_direction(package)
    assert fault.startswith("models/connect.py:")


def test_downward_and_inward_imports_are_allowed(tmp_path: Path) -> None:
    source = "from qwenlong_graph import errors\nfrom ..types import Span\nfrom . import tgi\n"
    package = write_package(
        tmp_path,
        {"errors.py": "", "types.py": "", "models/tgi.py": "", "models/connect.py": source},
    )
    assert faults_of_direction(package) == []


def test_rooms_of_one_level_do_not_know_each_other(tmp_path: Path) -> None:
    package = write_package(
        tmp_path, {"types.py": "", "errors.py": "from qwenlong_graph.types import Span"}
    )
    assert len(faults_of_direction(package)) == 1


def test_a_module_outside_the_rooms_is_refused(tmp_path: Path) -> None:
    package = write_package(tmp_path, {"utils.py": "", "graph/agent.py": "from .. import utils"})
    assert len(faults_of_direction(package)) == 2


@pytest.mark.parametrize(
    "source",
    [
        "import os.path",
        "from pathlib import Path",
        "import langchain_core.messages",
        "from langgraph.graph import StateGraph",
        "def read(p):\n    return open(p).read()",
        "def read():\n    import socket",
    ],
)
def test_io_in_the_reading_core_is_seen(tmp_path: Path, source: str) -> None:
    package = write_package(tmp_path, {"reading/prompts.py": source})
    assert len(faults_of_purity(package)) == 1


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = (
        f"import sys; before = set(sys.modules); import qwenlong_graph; "
        f"print(*sorted((set(sys.modules) - before) & {HEAVY_MODULES!r}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert loaded.stdout.split() == []
