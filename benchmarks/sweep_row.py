"""What the checklist said about the pairs, and how it is shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Row:
    """What the checklist said about one (architecture, head) pair.

    Attributes:
        architecture: the model type, such as ``bert``, or ``hand``.
        head: what the model is for, such as ``sequence``; the model's name when it is written by hand.
        status: the report's status, ``unbuilt``, or ``lost`` when the pair ended its process or the time.
        reason: why it could not be built or was lost.
        alarms: ``[check, status, message]`` of every warn, fail and error.
        skipped: the checks that were skipped, with the reason.
        seconds: wall time of the run.
        passes: forward passes of the run in F (see ``passes.py``).
        parameters: the model's size.
    """

    architecture: str
    head: str
    status: str = "unbuilt"
    reason: str | None = None
    alarms: list[tuple[str, str, str]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    passes: float = 0.0
    parameters: int = 0


def show(row: Row, done: int, count: int) -> str:
    """One line for the pair, and one more for each alarm."""
    name = f"{done:>4}/{count:<4} {row.architecture:<26}{row.head:<18}"
    if row.status == "unbuilt":
        return f"{name}{'-':<7}{row.reason}"
    line = f"{name}{row.status:<7}{row.seconds:6.1f} s {row.passes:6.1f} F"
    return "\n".join([line, *(f"    {level} {check}: {message}" for check, level, message in row.alarms)])


def summary(found: list[Row]) -> str:
    """Counts by status, alarms by check with the pairs, skips by check."""
    built = [row for row in found if row.status != "unbuilt"]
    statuses = Counter(row.status for row in built)
    alarms = Counter((check, level) for row in built for check, level in {a[:2] for a in row.alarms})
    skips = Counter(check for row in built for check in row.skipped)
    lines = [
        f"{len(built)} pairs judged ({len({row.architecture for row in built})} architectures): "
        + ", ".join(f"{count} {status}" for status, count in statuses.most_common()),
        f"{len(found) - len(built)} pairs could not be built",
    ]
    for (check, level), count in alarms.most_common():
        names = [f"{r.architecture}/{r.head}" for r in built if (check, level) in {a[:2] for a in r.alarms}]
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        lines.append(f"  {level} {check}: {count} pairs ({shown})")
    lines += [f"  skip {check}: {count} pairs" for check, count in skips.most_common()]
    if built:
        slowest, costliest = max(built, key=lambda r: r.seconds), max(built, key=lambda r: r.passes)
        lines.append(
            f"  {sum(row.seconds for row in built):.0f} s in all; slowest {slowest.architecture}/{slowest.head} "
            f"{slowest.seconds:.1f} s; most passes {costliest.architecture}/{costliest.head} "
            f"{costliest.passes:.1f} F"
        )
    return "\n".join(lines)
