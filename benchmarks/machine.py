"""What every benchmark says of where it ran. Imports nothing of the package: `loop.py` measures
memory in processes of its own, which inherit the peak of the one that starts them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

__all__ = ["told_machine"]


def told_machine(packages: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Prints the machine and the versions of `packages` on one line, and returns both."""
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
    }
    versions = {name: version(name) for name in packages}
    print(*(f"{key} {value}" for key, value in {**machine, **versions}.items()), sep=", ")
    return machine, versions
