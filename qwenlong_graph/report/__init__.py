"""One reading as one HTML page: how its answer came about."""

from __future__ import annotations

from qwenlong_graph.report.page import report_page
from qwenlong_graph.report.server import reading_of_server
from qwenlong_graph.report.sources import Reading, reading_of_run, reading_of_thread

__all__ = ["Reading", "reading_of_run", "reading_of_server", "reading_of_thread", "report_page"]
