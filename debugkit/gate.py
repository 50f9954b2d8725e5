"""The gate: stop a training script before it spends anything."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from debugkit.config import Config
from debugkit.errors import ChecklistFailed
from debugkit.report import CLEAN, Report
from debugkit.runner import run
from debugkit.target import Target


def gate(
    target: Target,
    select: Iterable[str] | str | None = None,
    ignore: Iterable[str] | str | None = None,
    config: str | Path | Mapping[str, Any] | Config | None = None,
) -> Report:
    """Run the checklist, print the report to stderr, and raise when it fails.

    Args:
        target: what will be trained.
        select: as for :func:`debugkit.run`.
        ignore: as for :func:`debugkit.run`.
        config: as for :func:`debugkit.run`; its ``fail-on`` says what fails.

    Returns:
        The report, when training may go on.

    Raises:
        ChecklistFailed: a finding at or above ``fail-on``, a check that could not be completed, or nothing
            was checked. Its ``report`` attribute has the details.
        UsageError: the request is not valid.
    """
    from debugkit.render.text import print_report

    settings = Config.read(config)
    report = run(target, select=select, ignore=ignore, config=settings)
    print_report(report, sys.stderr)
    stop_unless_clean(report, settings)
    return report


def stop_unless_clean(report: Report, config: Config) -> None:
    """Raise when a report fails by the standard of a configuration.

    Raises:
        ChecklistFailed: as :func:`gate` does.
    """
    if report.exit_code(config.fail_on) != CLEAN:
        failed = [result.check for result in report.results if result.status in ("fail", "error")]
        named = ", ".join(failed) or ("a warning" if report.counts["warn"] else "nothing was checked")
        raise ChecklistFailed(f"debugkit: {named}; see the report above", report)
