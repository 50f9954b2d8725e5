"""Run the whole checklist on healthy models: transformers' of as many architectures as can be built small, and others.

Every model is initialised by its own architecture and gets data that it can learn. A warning or a failure is
therefore a false alarm of a check, or a true property of that architecture; both are listed. Exits 1 when
there is any.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from sweep_pool import rows
from sweep_row import Row, show, summary

TIMEOUT = 300.0


def pairs() -> list[tuple[str, str]]:
    """Every (architecture, head) pair: the models written by hand, then those that transformers names."""
    import auto_models
    import hand_models

    return [*hand_models.pairs(), *auto_models.pairs()]


def target_of(architecture: str, head: str, *, padded: bool = False) -> Any:
    """The target of a pair."""
    import auto_models
    import hand_models

    if architecture == "hand":
        return hand_models.target_of(head)
    return auto_models.target_of(architecture, head, padded=padded)


def judge(
    architecture: str, head: str, select: str | None, ignore: str | None, max_cost: str, padded: bool
) -> Row:
    """Build one pair and run the checklist on it."""
    from passes import Counter as PassCounter

    from debugkit.errors import one_line
    from debugkit.runner import Run

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    _silence()
    row = Row(architecture, head)
    try:
        target = target_of(architecture, head, padded=padded)
    except (Exception, SystemExit) as error:
        row.reason = one_line(error, 160)
        return row
    row.parameters = sum(p.numel() for p in target.model.parameters())
    counter = PassCounter.of(target)
    counter.attach(target.model)
    start = time.perf_counter()
    report = Run(target, select=select, ignore=ignore, config={"max-cost": max_cost}).execute()
    row.seconds, row.passes, row.status = time.perf_counter() - start, counter.total.cost, report.status
    for result in report.results:
        if result.status in ("warn", "fail"):
            row.alarms += [(result.check, f.level, _line(f)) for f in result.active]
        elif result.status == "error":
            row.alarms.append((result.check, "error", result.reason or ""))
        elif result.status == "skip":
            row.skipped[result.check] = result.reason or ""
    return row


def _line(finding: Any) -> str:
    return f"{finding.where}: {finding.message}" if finding.where else str(finding.message)


def _silence() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def main() -> int:
    """Judge the pairs that the options choose."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        metavar="PATTERNS",
        default="*",
        help="ARCHITECTURE/HEAD globs with commas, such as 'bert/*'",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most N pairs")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (%(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT, metavar="SECONDS", help="for one pair (%(default)g)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows to a file")
    parser.add_argument("--select", metavar="CHECKS", help="checks or families to run")
    parser.add_argument("--ignore", metavar="CHECKS", help="checks or families to leave out")
    parser.add_argument("--padded", action="store_true", help="pad half of the samples of text heads")
    parser.add_argument("--max-cost", default="training", help="as for debugkit check (%(default)s)")
    arguments = parser.parse_args()
    patterns = arguments.only.split(",")
    chosen = [p for p in pairs() if any(fnmatch.fnmatchcase("/".join(p), pattern) for pattern in patterns)]
    chosen = chosen[: arguments.limit]
    options = (arguments.select, arguments.ignore, arguments.max_cost, arguments.padded)
    found: list[Row] = []
    for row in rows(chosen, judge, options, arguments.jobs, arguments.timeout):
        found.append(row)
        print(show(row, len(found), len(chosen)), flush=True)
    print(f"\n{summary(found)}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in found], indent=1))
    return int(any(row.alarms for row in found))


if __name__ == "__main__":
    sys.exit(main())
