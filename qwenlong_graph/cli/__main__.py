"""`python -m qwenlong_graph.cli`, for where the console script is not on the PATH."""

from __future__ import annotations

from qwenlong_graph.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
