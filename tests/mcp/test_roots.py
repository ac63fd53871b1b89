"""Which files may be named: by the command line, by the client, by nobody."""

from __future__ import annotations

import pytest
from mcp.types import ErrorData

from tests.mcp.conftest import FACT, QUESTION, Model, error_of

pytestmark = pytest.mark.contract


async def ask(client, name):
    return await client.call_tool("ask_documents", {"question": QUESTION, "documents": [name]})


async def test_without_any_nothing_may_be_read(reader_of, client_of, folder, tmp_path):
    model = Model(FACT)
    async with client_of(reader_of(model)) as client:
        for tool in ("ask_documents", "estimate"):
            arguments = {"documents": [str(folder / "mill.txt")]}
            if tool == "ask_documents":
                arguments["question"] = QUESTION
            result = await client.call_tool(tool, arguments)
            assert error_of(result).startswith("No directory may be read from here.")
            assert "--root DIRECTORY" in error_of(result)
    # Nothing was connected to or kept in vain.
    assert model.connections == 0
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("spelled", ["mill.txt", "{folder}/mill.txt", "file://{folder}/mill.txt"])
async def test_those_of_the_command_line(reader_of, client_of, folder, spelled):
    async with client_of(reader_of(Model(FACT)), folder) as client:
        result = await ask(client, spelled.format(folder=folder))
    assert result.structuredContent["answer"] == FACT


async def test_those_of_the_client(reader_of, client_of, folder):
    async with client_of(reader_of(Model(FACT)), declared=[f"file://{folder}"]) as client:
        result = await ask(client, "mill.txt")
    assert result.structuredContent["answer"] == FACT


async def test_a_client_may_change_them_at_any_time(reader_of, client_of, folder):
    declared = []
    async with client_of(reader_of(Model(FACT)), declared=declared) as client:
        before = await ask(client, "mill.txt")
        declared.append(f"file://{folder}")
        await client.send_roots_list_changed()
        after = await ask(client, "mill.txt")
        declared.clear()
        at_last = await ask(client, "mill.txt")
    assert error_of(before).startswith("No directory may be read")
    assert after.structuredContent["answer"] == FACT
    assert error_of(at_last).startswith("No directory may be read")


async def test_a_client_cannot_add_to_those_of_the_command_line(
    reader_of, client_of, folder, tmp_path
):
    (tmp_path / "secret.txt").write_text("The password is sesame.", "utf-8")
    reader = reader_of(Model(FACT))
    async with client_of(reader, folder, declared=[f"file://{tmp_path}"]) as client:
        result = await ask(client, str(tmp_path / "secret.txt"))
    assert "outside of what may be read here" in error_of(result)


async def test_names_with_odd_characters_in_a_clients_root(reader_of, client_of, tmp_path):
    path = tmp_path / "Ärger & 50 % #1"
    path.mkdir()
    (path / "mill.txt").write_text(FACT, "utf-8")
    async with client_of(reader_of(Model(FACT)), declared=[path.as_uri()]) as client:
        result = await ask(client, "mill.txt")
    assert result.structuredContent["documents"] == ["mill.txt"]


@pytest.mark.parametrize(
    "uri", ["file:///no/such/folder", "file://elsewhere/share", "file:///etc/passwd", "file:///%00"]
)
async def test_roots_that_are_no_directory_here_are_passed_over(reader_of, client_of, uri):
    async with client_of(reader_of(Model(FACT)), declared=[uri]) as client:
        result = await ask(client, "mill.txt")
    assert error_of(result).startswith("No directory may be read")


async def test_a_client_that_gives_no_list(reader_of, folder):
    from mcp.shared.memory import create_connected_server_and_client_session

    from qwenlong_graph.mcp.server import build_server

    async def refuse(_):
        return ErrorData(code=-32603, message="The user said no.")

    server = build_server(reader_of(Model(FACT)))
    async with create_connected_server_and_client_session(
        server, list_roots_callback=refuse
    ) as client:
        result = await ask(client, "mill.txt")
    assert "gave no list (The user said no.)" in error_of(result)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/etc/passwd", "outside of what may be read here"),
        ("../secret.txt", "outside of what may be read here"),
        ("link.txt", "outside of what may be read here"),
        ("file:///etc/passwd", "outside of what may be read here"),
        ("https://example.org/x.pdf", "addresses are not fetched"),
        ("mil.txt", "there is no such file"),
        (".", "it is a directory"),
        ("-", "there is no such file"),
        ("", "the name is empty"),
        ("a\x00b", "no name that a file can have"),
    ],
)
async def test_names_that_are_refused(reader_of, client_of, folder, tmp_path, name, told):
    (tmp_path / "secret.txt").write_text("The password is sesame.", "utf-8")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    async with client_of(reader_of(Model(FACT)), folder) as client:
        result = await ask(client, name)
    assert told in error_of(result)
    assert "sesame" not in error_of(result)


async def test_a_missing_file_is_told_with_those_that_are_there(reader_of, client_of, folder):
    async with client_of(reader_of(Model(FACT)), folder) as client:
        result = await ask(client, "mil.txt")
    assert "Name one of its files: 'mill.txt'." in error_of(result)


async def test_an_unreadable_document_is_told_as_such(reader_of, client_of, folder):
    (folder / "empty.txt").write_bytes(b"")
    (folder / "blob.bin").write_bytes(bytes(range(256)) * 40)
    async with client_of(reader_of(Model(FACT)), folder) as client:
        empty, blob = await ask(client, "empty.txt"), await ask(client, "blob.bin")
    assert "the file is empty" in error_of(empty)
    assert error_of(blob).startswith("Loading ")
