"""What pytest does in its own way here."""

from __future__ import annotations

import pytest


def pytest_unconfigure(config: pytest.Config) -> None:
    """Name what failed in the last lines: what a failure tells may be long, and of a long output the end is kept."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    for kind in ("failed", "error"):
        for report in reporter.stats.get(kind, ()):
            reporter.write_line(f"{kind}: {getattr(report, 'nodeid', '?')}")
