"""What the tests share."""

from __future__ import annotations

from collections import Counter

import pytest

from debugkit.registry import Registry, load

pytest_plugins = ["pytester"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: builds packages or starts many processes")


@pytest.fixture(scope="session")
def registry() -> Registry:
    """All built-in checks."""
    return load()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many of the zoo's mistakes were found, and how many of its healthy twins were not quiet."""
    told = [
        str(value).split()
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "zoo" and report.when == "call"
    ]
    if not told:
        return
    terminalreporter.section("zoo: recall at the right check, noise on healthy twins")
    for family in [*sorted({family for family, _ in told}), "all"]:
        counts = Counter(outcome for each, outcome in told if family in (each, "all"))
        broken, twins = counts["found"] + counts["missed"], sum(counts[k] for k in ("quiet", "warn", "fail"))
        terminalreporter.line(
            f"{family:<12}{counts['found']:>4} of {broken:>3} found    twins: {counts['fail']} fail, "
            f"{counts['warn']} warn of {twins}"
        )
