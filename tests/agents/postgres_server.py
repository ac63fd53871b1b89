"""A PostgreSQL of one's own, from the programs that Debian's package installs."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",
    "shared_buffers": "16MB",
    "max_connections": "40",
    "log_min_messages": "fatal",
}


def programs():
    """The directory of the newest version's programs, None where there is none."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve())
    return (
        max(found, key=lambda path: [*map(int, re.findall(r"\d+", str(path)))]).parent
        if found
        else None
    )


@contextlib.contextmanager
def postgres_server():
    """The address of a running server, on a socket that only this machine's users reach."""
    directory = programs()
    if directory is None:
        pytest.skip("PostgreSQL is not installed: on Debian, apt-get install postgresql")
    # The path of a socket has at most 107 characters, fewer than pytest's directories take, and
    # another user has to reach it.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    who = {}
    if os.geteuid() == 0:
        # PostgreSQL does not run as root.
        names = {entry.pw_name: entry for entry in pwd.getpwall()}
        user = names.get("postgres") or names["nobody"]
        os.chown(folder, user.pw_uid, user.pw_gid)
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data = folder / "data"
    log = folder / "log"
    try:
        made = subprocess.run(
            [directory / "initdb", "-D", data, "-U", "reader", "-A", "trust", "-E", "UTF8",
             "--no-sync", "--no-locale"],
            cwd=folder, capture_output=True, text=True, timeout=120, **who,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        options = [part for name, value in OPTIONS.items() for part in ("-c", f"{name}={value}")]
        with log.open("w") as output:
            server = subprocess.Popen(
                [directory / "postgres", "-D", data, "-k", folder, *options],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **who,
            )  # fmt: skip
        try:
            address = f"postgresql:///postgres?host={folder}&user=reader"
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(psycopg.OperationalError):
                    psycopg.connect(address).close()
                    break
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield address
        finally:
            server.send_signal(signal.SIGINT)  # at once, whoever is still connected
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
