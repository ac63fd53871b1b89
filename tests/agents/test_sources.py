from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenlong_graph.agents.sources import AllowedRoots, bounded_list, shown
from qwenlong_graph.errors import DocumentNotAllowedError, DocumentNotFoundError, SettingsError


@pytest.fixture
def house(tmp_path):
    """papers/ may be read; secret/ beside it may not."""
    papers, secret = tmp_path / "papers", tmp_path / "secret"
    for folder in (papers / "deep", papers / ".hidden", secret):
        folder.mkdir(parents=True)
    for path in (
        papers / "a.txt",
        papers / "deep" / "b.txt",
        papers / "with space & ü.txt",
        papers / ".env",
        papers / ".hidden" / "c.txt",
        secret / "key.txt",
    ):
        path.write_text(path.name)
    (papers / "out.txt").symlink_to(secret / "key.txt")
    (papers / "outside").symlink_to(secret)
    (papers / "within.txt").symlink_to(papers / "a.txt")
    os.mkfifo(papers / "pipe")
    return tmp_path


@pytest.fixture
def roots(house):
    return AllowedRoots([house / "papers"])


class TestAllowed:
    @pytest.mark.parametrize(
        ("name", "file"),
        [
            ("a.txt", "a.txt"),
            ("./deep/../a.txt", "a.txt"),
            ("deep/b.txt", "deep/b.txt"),
            (" a.txt ", "a.txt"),
            ("{root}/a.txt", "a.txt"),
            ("file://{root}/a.txt", "a.txt"),
            ("file://localhost{root}/a.txt", "a.txt"),
            ("file://{root}/with%20space%20&%20%C3%BC.txt", "with space & ü.txt"),
            ("within.txt", "a.txt"),
        ],
    )
    def test_files_below_by_relative_and_full_paths_and_addresses(self, house, roots, name, file):
        root = house / "papers"
        assert roots.resolve(name.format(root=root)) == (root / file).resolve()

    def test_the_first_directory_that_has_it(self, house):
        (house / "secret" / "a.txt").write_text("another")
        both = AllowedRoots([house / "secret", house / "papers"])
        assert both.resolve("a.txt") == house / "secret" / "a.txt"
        assert both.resolve("deep/b.txt") == house / "papers" / "deep" / "b.txt"
        assert both.resolve(str(house / "papers" / "a.txt")) == house / "papers" / "a.txt"

    def test_a_directory_that_is_itself_a_link(self, house):
        (house / "door").symlink_to(house / "papers")
        roots = AllowedRoots(house / "door")
        assert roots.resolve("a.txt") == house / "papers" / "a.txt"
        assert roots.resolve(str(house / "papers" / "a.txt")) == house / "papers" / "a.txt"


class TestRefused:
    @pytest.mark.parametrize(
        "name",
        [
            "../secret/key.txt",
            "{house}/secret/key.txt",
            "{house}/papers/../secret/key.txt",
            "file://{house}/secret/key.txt",
            "file://{house}/papers/%2e%2e/secret/key.txt",
            "file://elsewhere/etc/passwd",
            "out.txt",
            "outside/key.txt",
            "deep/../../secret/key.txt",
            "{house}/papersx/a.txt",
            ".env",
            ".hidden/c.txt",
            "deep/../.env",
            "pipe",
            "deep",
            "/dev/zero",
            "/etc/passwd",
            "~root/.ssh/id_rsa",
            "https://example.org/a.txt",
            "file://[",
            "",
            "   ",
            "a.txt\0",
            "a\udcff.txt\ud800",
            "x" * 5_000,
        ],
    )
    def test_what_lies_outside_or_is_no_plain_file(self, house, roots, name):
        with pytest.raises((DocumentNotAllowedError, DocumentNotFoundError)) as caught:
            roots.resolve(name.format(house=house))
        assert len(str(caught.value)) < 3_000
        assert len(caught.value.source) <= 200

    def test_outside_nobody_learns_whether_a_file_is_there(self, house, roots):
        said = []
        for name in ("key.txt", "nokey.txt"):
            with pytest.raises(DocumentNotAllowedError) as caught:
                roots.resolve(str(house / "secret" / name))
            said.append(str(caught.value).replace(name, "it"))
        assert said[0] == said[1]

    def test_by_default_nothing_may_be_read(self, house):
        none = AllowedRoots()
        assert not none
        for name in ("a.txt", str(house / "papers" / "a.txt")):
            with pytest.raises(DocumentNotAllowedError, match="no directory may be read"):
                none.resolve(name)

    def test_a_link_that_was_switched_is_followed_anew(self, house, roots):
        link = house / "papers" / "now.txt"
        link.symlink_to(house / "papers" / "a.txt")
        assert roots.resolve("now.txt").name == "a.txt"
        link.unlink()
        link.symlink_to(house / "secret" / "key.txt")
        with pytest.raises(DocumentNotAllowedError):
            roots.resolve("now.txt")

    def test_another_working_directory_changes_nothing(self, house, monkeypatch):
        monkeypatch.chdir(house)
        roots = AllowedRoots("papers")
        monkeypatch.chdir(house / "secret")
        assert roots.resolve("a.txt") == house / "papers" / "a.txt"
        with pytest.raises(DocumentNotFoundError):
            roots.resolve("key.txt")

    def test_a_root_that_is_no_directory_is_refused_at_once(self, house):
        for path in (house / "nowhere", house / "papers" / "a.txt"):
            with pytest.raises(SettingsError, match="no such directory"):
                AllowedRoots([path])

    @settings(
        max_examples=300,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        st.lists(
            st.sampled_from(
                [
                    *("..", ".", "", "papers", "secret", "key.txt", "a.txt", "deep", "outside"),
                    *("out.txt", "/", "~", "file:", "%2e%2e", "%2F", "\\", *string.punctuation),
                ]
            ),
            max_size=9,
        )
    )
    def test_whatever_is_named_nothing_outside_is_given(self, house, roots, parts):
        root = (house / "papers").resolve()
        for name in (
            "/".join(parts),
            f"{root}/{'/'.join(parts)}",
            f"file://{root}/{'/'.join(parts)}",
        ):
            try:
                found = roots.resolve(name)
            except (DocumentNotAllowedError, DocumentNotFoundError):
                continue
            assert Path(os.path.realpath(found)).is_relative_to(root)
            assert found.is_file()


class TestWords:
    def test_a_missing_file_brings_names_that_are_like_it(self, roots):
        with pytest.raises(DocumentNotFoundError, match="Name one of its files: 'with space"):
            roots.resolve("with space.txt")

    def test_a_directory_brings_its_files(self, roots):
        with pytest.raises(DocumentNotAllowedError, match=r"directory.*'deep/b\.txt'"):
            roots.resolve("deep")

    def test_hidden_files_and_links_to_the_outside_are_not_listed(self, roots):
        assert set(roots.files()) == {
            *("a.txt", "deep/b.txt", "with space & ü.txt", "within.txt"),
        }

    def test_a_large_directory_is_not_walked_to_its_end(self, tmp_path):
        for number in range(2_100):
            (tmp_path / f"{number:04}.txt").touch()
        assert len(list(AllowedRoots(tmp_path).files())) <= 2_000
        with pytest.raises(DocumentNotFoundError) as caught:
            AllowedRoots(tmp_path).resolve("9999.txt")
        assert len(str(caught.value)) < 2_000

    def test_names_of_anyone_are_shown_short_and_on_one_line(self):
        assert shown("a\nb") == r"'a\nb'"
        assert len(shown("x" * 10_000)) < 250
        assert bounded_list(["a", "b", "c"], most=2) == "'a', 'b' and 1 more"
