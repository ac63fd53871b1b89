"""The fenced blocks of README.md, CONTRIBUTING.md and docs/ do what they say.

What happens to a block is decided by its language:

    python    linted, and run; the blocks of one file share a namespace and run in order
    console   lines "$ qwenlong-graph ..." run as real processes and must exit with 0;
              lines "$ make ..." must name targets of the Makefile
    json      must parse
    text, mermaid, toml, yaml, diff      left alone

Everything runs in a temporary directory with a copy of `examples/data/`, so that a command can be
written as it is typed in the repository's root. On the line before a fence, a comment may steer:

    <!-- snippet: skip REASON -->   not run; the reason is shown by pytest
    <!-- snippet: fresh -->         python: starts a new namespace for itself and those after it
    <!-- snippet: scripted -->      python: runs with `model` set to a scripted ConnectedModel
    <!-- snippet: output -->        text: what the python block just before it prints
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])

STEERING = {"", "skip", "fresh", "scripted", "output"}
LANGUAGES = {"python", "console", "json", "text", "mermaid", "toml", "yaml", "diff"}
# Commands of a setting-up that a test cannot repeat; any other must be run or skipped by name.
NOT_RUN = {"cd", "export", "git", "pip"}


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is the line of its opening fence, counted from 1."""

    page: str
    line: int
    language: str
    code: str
    steer: str = ""
    reason: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """The fenced blocks of a page in order, each with the comment on the line before it."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opening = re.match(r"( *)(`{3,}|~{3,})\s*([\w+-]*)", lines[number])
        if opening is None:
            number += 1
            continue
        margin, fence, language = opening.groups()
        start = number
        number += 1
        while number < len(lines) and not re.fullmatch(
            rf" *{re.escape(fence[0])}{{{len(fence)},}}\s*", lines[number]
        ):
            number += 1
        assert number < len(lines), f"{page}:{start + 1}: this fence is never closed"
        code = [line.removeprefix(margin) for line in lines[start + 1 : number]]
        number += 1
        comment = re.fullmatch(
            r"\s*<!--\s*snippet:\s*(\w*)\s*(.*?)\s*-->\s*", lines[start - 1] if start else ""
        )
        steer, reason = comment.groups() if comment else ("", "")
        yield Block(page, start + 1, language, "\n".join(code) + "\n", steer, reason)


def faults_of_form(block: Block) -> list[str]:
    """What is wrong with a block before anything of it runs."""
    faults = []
    if block.language not in LANGUAGES:
        faults.append(f"name one of {', '.join(sorted(LANGUAGES))} as its language")
    if block.steer not in STEERING:
        faults.append(f"there is no marker {block.steer!r}")
    if block.steer == "skip" and not block.reason:
        faults.append("a skip needs a reason")
    if block.steer in {"fresh", "scripted"} and block.language != "python":
        faults.append(f"{block.steer!r} is for python blocks")
    if block.steer == "output" and block.language != "text":
        faults.append("'output' is for text blocks")
    return [f"{block.place}: {fault}" for fault in faults]


def namespaces_of(blocks: list[Block]) -> list[list[Block]]:
    """The python blocks of a page, with the outputs they promise, grouped by shared namespace."""
    groups: list[list[Block]] = [[]]
    before = ""
    for block in blocks:
        if block.language == "python":
            if block.steer == "fresh":
                groups.append([])
            groups[-1].append(block)
        elif block.steer == "output":
            assert before == "python", f"{block.place}: an output follows the block that prints it"
            groups[-1].append(block)
        before = block.language
    return [group for group in groups if group]


def at_its_line(blocks: list[Block]) -> str:
    """Python blocks as one source in which each line has the number it has on its page."""
    lines: list[str] = []
    for block in blocks:
        lines += [""] * (block.line - len(lines))
        lines += block.code.splitlines()
    return "\n".join(lines) + "\n"


def lint(blocks: list[Block]) -> str:
    """What ruff finds in python blocks that share a namespace; nothing when all is well."""
    known = (
        ["--config", 'builtins = ["model"]'] if any(b.steer == "scripted" for b in blocks) else []
    )
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,E9", "--quiet",
         "--output-format", "concise", "--stdin-filename", f"{blocks[0].page}.py", *known, "-"],
        input=at_its_line(blocks), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return found.stdout + found.stderr


def run_python(blocks: list[Block]) -> None:
    """Runs blocks in one namespace and compares what they print with the outputs they promise."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed: str | None = None
    for block in blocks:
        if block.steer == "output":
            if printed is not None:
                assert stripped(printed) == stripped(block.code), f"{block.place}: other output"
            continue
        if block.steer == "skip":
            printed = None
            continue
        if block.steer == "scripted":
            namespace["model"] = scripted_model()
        # Compiled at its place on the page, so that a traceback shows the page's own lines.
        code = compile(at_its_line([block]), str(ROOT / block.page), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, namespace)
        printed = out.getvalue()


def stripped(text: str) -> str:
    """A text without blanks at the ends of its lines, nor empty lines around it."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def commands_of(block: Block) -> list[str]:
    """The commands typed in a console block; a line that ends in a backslash goes on."""
    joined = re.sub(r"\\\n\s*", "", block.code)
    return [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]


def kind_of(command: str) -> str:
    """Whether a command is for "run", for "make", or passed over as "setup"; else "unknown"."""
    words = command.partition(" #")[0].split()
    if "qwenlong-graph" in words:
        return "run"
    if words[:1] == ["make"]:
        return "make"
    return "setup" if words and words[0] in NOT_RUN else "unknown"


def unknown_targets(command: str, makefile: str) -> list[str]:
    """The targets that a make command names and the Makefile does not have."""
    targets = set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.MULTILINE))
    words = re.sub(r"=(\"[^\"]*\"|'[^']*'|\S*)", "=", command.partition(" #")[0]).split()[1:]
    return [word for word in words if "=" not in word and word not in targets]


def is_run(block: Block) -> bool:
    return block.language == "python" and block.steer != "skip"


def scripted_model() -> object:
    """What `model` stands for in a block that is marked as scripted."""
    from qwenlong_graph.testing.scripted import scripted

    return scripted(lambda messages: "NOT FOUND")


def blocks_on(path: Path) -> list[Block]:
    return list(blocks_of(str(path.relative_to(ROOT)), path.read_text("utf-8")))


ALL_BLOCKS = [block for page in PAGES for block in blocks_on(page)]
NAMESPACES = [group for page in PAGES for group in namespaces_of(blocks_on(page))]


def named(blocks: list[Block]) -> list[object]:
    return [pytest.param(block, id=block.place) for block in blocks]


def named_groups(groups: list[list[Block]]) -> list[object]:
    return [pytest.param(group, id=group[0].place) for group in groups]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory of a snippet: `examples/data/` as in the repository, and no more.

    Runs and stored texts go to a place of its own; the cache, with the model in it, is shared.
    """
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "examples" / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user-data"))
    return tmp_path


@pytest.mark.parametrize("block", named(ALL_BLOCKS))
def test_a_block_has_a_known_form(block: Block) -> None:
    assert faults_of_form(block) == []


@pytest.mark.parametrize("block", named([b for b in ALL_BLOCKS if b.language == "json"]))
def test_a_json_block_parses(block: Block) -> None:
    json.loads(block.code)


@pytest.mark.parametrize("blocks", named_groups(NAMESPACES))
def test_python_blocks_pass_the_linter(blocks: list[Block]) -> None:
    assert lint([b for b in blocks if b.language == "python"]) == ""


@pytest.mark.alone
@pytest.mark.end_to_end
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "blocks", named_groups([g for g in NAMESPACES if any(is_run(b) for b in g)])
)
def test_python_blocks_run_and_print_what_they_promise(
    blocks: list[Block], workplace: Path
) -> None:
    run_python(blocks)


CONSOLE = [b for b in ALL_BLOCKS if b.language == "console" and b.steer != "skip"]


@pytest.mark.parametrize("block", named(CONSOLE))
def test_console_commands_are_run_or_known(block: Block) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for command in commands_of(block):
        assert kind_of(command) != "unknown", f"{block.place}: run it or skip it: {command}"
        if kind_of(command) == "make":
            assert unknown_targets(command, makefile) == []


@pytest.mark.alone
@pytest.mark.end_to_end
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "block", named([b for b in CONSOLE if "run" in map(kind_of, commands_of(b))])
)
def test_console_commands_exit_with_zero(block: Block, workplace: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command in commands_of(block):
        if kind_of(command) != "run":
            continue
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
            env={**os.environ, "PATH": path}, timeout=800,
        )  # fmt: skip
        assert done.returncode == 0, f"{block.place}: {command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("block", named([b for b in ALL_BLOCKS if b.steer == "skip"]))
def test_skipped(block: Block) -> None:
    pytest.skip(block.reason)


# The rules above, on pages made up to break them.


def made_up(text: str) -> list[Block]:
    return list(blocks_of("page.md", textwrap.dedent(text)))


def test_a_block_knows_its_line_its_language_and_its_marker() -> None:
    first, second = made_up(
        """\
        Words.
        <!-- snippet: skip needs a GPU -->
        ```python
        x = 1
        ```
        1. A list:

           ~~~~json
           ```
           ~~~~
        """
    )
    assert first == Block("page.md", 3, "python", "x = 1\n", "skip", "needs a GPU")
    assert second == Block("page.md", 8, "json", "```\n")


@pytest.mark.parametrize(
    "text",
    [
        "```\nx\n```",
        "```bash\nls\n```",
        "<!-- snippet: skip -->\n```python\n```",
        "<!-- snippet: skipped because -->\n```python\n```",
        "<!-- snippet: output -->\n```python\n```",
        "<!-- snippet: scripted -->\n```text\n```",
    ],
)
def test_a_block_of_unknown_form_is_refused(text: str) -> None:
    (block,) = made_up(text)
    assert faults_of_form(block)


def test_an_open_fence_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"page\.md:1"):
        made_up("```python\nx = 1\n")


def test_an_output_without_its_python_block_is_refused() -> None:
    blocks = made_up("<!-- snippet: output -->\n```text\n1\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:2"):
        namespaces_of(blocks)


def test_blocks_share_a_namespace_until_one_starts_afresh() -> None:
    blocks = made_up(
        """\
        ```python
        import json
        ```
        ```python
        print(json.dumps([1]))
        ```
        <!-- snippet: output -->
        ```text
        [1]
        ```
        <!-- snippet: fresh -->
        ```python
        print(json)
        ```
        """
    )
    shared, fresh = namespaces_of(blocks)
    run_python(shared)
    assert lint([b for b in shared if b.language == "python"]) == ""
    with pytest.raises(NameError):
        run_python(fresh)
    assert "page.md.py:13:7: F821" in lint(fresh)


def test_a_scripted_block_finds_its_model_and_any_other_does_not() -> None:
    scripted, plain = made_up(
        "<!-- snippet: scripted -->\n```python\nprint(model)\n```\n```python\nprint(model)\n```\n"
    )
    assert lint([scripted]) == ""
    assert "F821" in lint([plain])


def test_other_output_than_promised_is_seen() -> None:
    blocks = made_up("```python\nprint('one')\n```\n<!-- snippet: output -->\n```text\ntwo\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:5: other output"):
        run_python(blocks)


def test_a_skipped_block_promises_no_output() -> None:
    run_python(
        made_up(
            """\
            <!-- snippet: skip needs a server -->
            ```python
            raise SystemExit
            ```
            <!-- snippet: output -->
            ```text
            anything
            ```
            """
        )
    )


def test_commands_are_joined_and_told_apart() -> None:
    (block,) = made_up(
        """\
        ```console
        $ git clone somewhere   # qwenlong-graph
        $ cat a.txt | qwenlong-graph ask "What?" \\
            -
        the answer
        $ make ask QUESTION="clean dishes?" tset
        $ docker run it
        ```
        """
    )
    commands = commands_of(block)
    assert commands[1] == 'cat a.txt | qwenlong-graph ask "What?" -'
    assert [kind_of(c) for c in commands] == ["setup", "run", "make", "unknown"]
    assert unknown_targets(commands[2], "ask: x\nVENV := y\n") == ["tset"]
