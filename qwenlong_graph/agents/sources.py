"""Which files a model or a client may name: those below the directories that the host allows."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from qwenlong_graph.errors import DocumentNotAllowedError, DocumentNotFoundError, SettingsError

__all__ = ["AllowedRoots", "bounded_list", "shown"]

NAMES_LISTED = 20
"""A message to a model lists at most so many names."""

ENTRIES_LOOKED_AT = 2_000
"""Looking for names to suggest stops after so many, whatever the directories hold."""

LONGEST_NAME_SHOWN = 200
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?=/)|file:", re.IGNORECASE)


class AllowedRoots:
    """The directories from which documents may be read by name; none by default.

    A name is a path, absolute or relative to one of the directories (the first that has such a
    file), or a `file://` address. Links and `..` are followed, and what they lead to must lie
    below one of the directories. Names that begin with a dot are not read. Files only: a
    directory may hold links to anywhere.

    Raises:
        SettingsError: one of `paths` is no directory.
    """

    def __init__(self, paths: Iterable[str | Path] | str | Path = ()) -> None:
        given = [paths] if isinstance(paths, (str, Path)) else list(paths)
        # Made absolute now, since the working directory may change; links are followed at each
        # call, since a link may be switched to a newer directory.
        self.paths = tuple(Path(os.path.abspath(Path(path).expanduser())) for path in given)  # noqa: PTH100 (resolve follows links)
        for path in self.paths:
            if not path.is_dir():
                raise SettingsError(
                    f"Allowing documents to be read from {str(path)!r}: there is no such "
                    "directory. Create it, or name the directory that holds the documents."
                )

    def __bool__(self) -> bool:
        return bool(self.paths)

    def __repr__(self) -> str:
        return f"AllowedRoots({[str(path) for path in self.paths]})"

    def resolve(self, name: str) -> Path:
        """The file that `name` means, without links in its path.

        What lies outside is refused in the same words whether it exists or not.

        Raises:
            DocumentNotAllowedError: `name` is empty, malformed, hidden, no regular file, or
                outside of the directories.
            DocumentNotFoundError: it would be inside, but there is no such file.
        """
        wanted = self._path_of(name)
        is_inside = False
        for root in self.paths:
            named = os.path.normpath(root / wanted)
            below = self._below(named)
            if below is None or self._below(os.path.realpath(root / wanted)) is None:
                continue
            if any(part.startswith(".") for part in below.parts):
                raise self._refused(name, "names that begin with a dot are not read")
            is_inside = True
            found = Path(os.path.realpath(root / wanted))
            try:
                mode = found.stat().st_mode
            except OSError:
                continue
            if stat.S_ISDIR(mode):
                raise self._directory(name, found)
            if not stat.S_ISREG(mode):
                raise self._refused(name, "it is a device or a pipe, no file")
            return found
        if is_inside:
            raise self._missing(name)
        missing = [str(root) for root in self.paths if not root.is_dir()]
        if missing and len(missing) == len(self.paths):
            raise self._refused(name, f"{' and '.join(missing)} is not there any more")
        raise self._refused(name, "it is outside of what may be read here")

    def files(self) -> Iterator[str]:
        """Names of files that `resolve` takes, in order; ends early in very large directories."""
        left = ENTRIES_LOOKED_AT
        for root in self.paths:
            for folder, folders, files in os.walk(root):
                folders[:] = sorted(part for part in folders if not part.startswith("."))
                for file in sorted(files):
                    left -= 1
                    if left < 0:
                        return
                    path = Path(folder, file)
                    is_inside = self._below(os.path.realpath(path)) is not None
                    if not file.startswith(".") and is_inside and path.is_file():
                        yield path.relative_to(root).as_posix()
                left -= 1
                if left < 0:
                    return

    def told(self) -> str:
        """The directories in words, for a message or a description."""
        if not self.paths:
            return "no directory may be read from here"
        return "files may be read from " + bounded_list([str(path) for path in self.paths])

    def _path_of(self, name: str) -> str:
        """`name` as a path that the system could take; no address, NUL or lone surrogate."""
        wanted = name.strip() if isinstance(name, str) else ""
        if not wanted:
            raise self._refused("", "the name is empty")
        scheme = _SCHEME.match(wanted)
        if scheme:
            if scheme[0].lower() != "file:":
                raise self._refused(name, "addresses are not fetched")
            wanted = self._path_of_address(name, wanted)
        try:
            is_malformed = b"\0" in os.fsencode(wanted)
        except UnicodeEncodeError:
            is_malformed = True
        if is_malformed:
            raise self._refused(name, "it is no name that a file can have")
        # Other users' homes are not looked up: whether "~name" is one is not ours to tell.
        if wanted == "~" or wanted.startswith("~/"):
            wanted = os.path.expanduser(wanted)  # noqa: PTH111 (a str here)
        return wanted

    def _path_of_address(self, name: str, address: str) -> str:
        try:
            parts = urlsplit(address)
        except ValueError:  # a host such as "[" has no end
            raise self._refused(name, "it is a malformed address") from None
        if parts.netloc.lower() not in {"", "localhost"}:
            raise self._refused(name, "it is on another machine")
        return os.fsdecode(unquote_to_bytes(parts.path)) or "."

    def _below(self, path: str | Path) -> Path | None:
        """`path` relative to the allowed directory that it lies in, if any."""
        for root in self.paths:
            for spelled in (root, Path(os.path.realpath(root))):
                if Path(path).is_relative_to(spelled):
                    return Path(path).relative_to(spelled)
        return None

    def _refused(self, name: str, found: str) -> DocumentNotAllowedError:
        do = (
            "Name a file in one of these, by its full path or relative to it."
            if self.paths
            else "Ask about documents that were handed over, or ask the user to allow a directory."
        )
        return DocumentNotAllowedError(
            f"Reading {shown(name)}: {found}; {self.told()}. {do}", source=name[:LONGEST_NAME_SHOWN]
        )

    def _missing(self, name: str) -> DocumentNotFoundError:
        return DocumentNotFoundError(
            f"Reading {shown(name)}: there is no such file; {self.told()}. "
            f"{self._suggestion(name, self.files())}",
            source=name[:LONGEST_NAME_SHOWN],
        )

    def _directory(self, name: str, found: Path) -> DocumentNotAllowedError:
        within = (
            file
            for file in self.files()
            for root in self.paths
            if Path(os.path.realpath(root / file)).is_relative_to(found)
        )
        return DocumentNotAllowedError(
            f"Reading {shown(name)}: it is a directory. {self._suggestion('', within)}",
            source=name[:LONGEST_NAME_SHOWN],
        )

    def _suggestion(self, name: str, files: Iterable[str]) -> str:
        names = list(dict.fromkeys(files))
        if not names:
            return "No file that may be read is in there: ask the user where the document is."
        wanted = name.rpartition("/")[2].lower()
        last = {file: file.rpartition("/")[2].lower() for file in names}
        close = difflib.get_close_matches(wanted, set(last.values()), n=5, cutoff=0.6)
        names.sort(key=lambda file: last[file] not in close)
        return f"Name one of its files: {bounded_list(names)}."


def shown(name: object) -> str:
    """A name that anyone may have written, as one short line in quotes."""
    text = str(name)
    short = text if len(text) <= LONGEST_NAME_SHOWN else text[:LONGEST_NAME_SHOWN] + "..."
    return repr(short)


def bounded_list(names: Iterable[str], *, most: int = NAMES_LISTED) -> str:
    """At most `most` of the names, each in quotes, and how many more there are."""
    rest = iter(names)
    listed = [shown(name) for name in islice(rest, most)]
    more = sum(1 for _ in rest)
    return ", ".join(listed) + (f" and {more:,} more" if more else "")
