"""The report: an immutable account of one run, from which every output is rendered."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from debugkit.errors import UsageError
from debugkit.finding import Finding, Text

Status = Literal["pass", "warn", "fail", "skip", "error"]
FailOn = Literal["warn", "fail", "never"]

SCHEMA_VERSION = "1.0"
GRAVITY: tuple[Status, ...] = ("skip", "pass", "warn", "fail", "error")

CLEAN, FOUND, BROKEN, NOTHING_CHECKED, INTERRUPTED = 0, 1, 2, 3, 130


class Result(BaseModel):
    """What one check concluded.

    Attributes:
        check: the check's id.
        family: the check's family.
        status: the gravest unsuppressed finding, or ``skip`` / ``error``.
        reason: why the check was skipped or could not be completed.
        findings: in the order in which the check yielded them.
        seconds: wall time, with the evidence that this check was the first to need.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: str
    family: str
    status: Status
    reason: Text | None = None
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0

    @property
    def active(self) -> tuple[Finding, ...]:
        """The warn and fail findings that are not suppressed."""
        return tuple(f for f in self.findings if f.level != "note" and f.suppressed is None)


class Report(BaseModel):
    """The account of one run of the checklist.

    Attributes:
        schema_version: version of this model; the major part changes when a reader would break.
        debugkit_version: the version that made the report.
        target: the target's name.
        seed: the seed that every probe started from.
        seconds: wall time of the run.
        interrupted: whether Ctrl-C ended the run early.
        notices: what the user should know that is no finding of a check.
        evidence_seconds: wall time per kind of evidence.
        results: one per planned check, in the order of family and id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: str = SCHEMA_VERSION
    debugkit_version: str
    target: Text
    seed: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    notices: tuple[Text, ...] = ()
    evidence_seconds: dict[str, float] = {}
    results: tuple[Result, ...] = ()

    def __getitem__(self, check_id: str) -> Result:
        for result in self.results:
            if result.check == check_id:
                return result
        raise KeyError(check_id)

    @property
    def status(self) -> Status:
        """The gravest status of all results; ``skip`` when nothing was checked."""
        return gravest(result.status for result in self.results)

    @property
    def counts(self) -> Counter[Status]:
        """Number of results by status."""
        return Counter(result.status for result in self.results)

    @property
    def suppressed(self) -> int:
        """Number of suppressed findings."""
        return sum(f.suppressed is not None for result in self.results for f in result.findings)

    def exit_code(self, fail_on: FailOn = "fail") -> int:
        """0 clean, 1 findings at or above ``fail_on``, 2 a check could not be completed, 3 nothing was
        checked, 130 interrupted."""
        counts = self.counts
        if self.interrupted:
            return INTERRUPTED
        if counts["error"]:
            return BROKEN
        if not counts["pass"] + counts["warn"] + counts["fail"]:
            return NOTHING_CHECKED
        if (counts["fail"] and fail_on != "never") or (counts["warn"] and fail_on == "warn"):
            return FOUND
        return CLEAN

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON; numbers that JSON does not have are the strings NaN and Infinity."""
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """Read a report written by :meth:`to_json`.

        Raises:
            UsageError: the text is no report, or one of an incompatible version.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            version = _schema_version(text)
            if version is not None and version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
                raise UsageError(
                    f"the report has schema version {version}; this debugkit reads {SCHEMA_VERSION}"
                ) from error
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UsageError(
                f"not a debugkit report: {place + ': ' if place else ''}{first['msg']}"
            ) from error

    @classmethod
    def schema_of(cls) -> dict[str, Any]:
        """The JSON Schema of :meth:`to_json`."""
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **cls.model_json_schema(mode="serialization"),
        }


def _schema_version(text: str | bytes) -> str | None:
    try:
        data = json.loads(text)
    except ValueError:
        return None
    version = data.get("schema_version") if isinstance(data, dict) else None
    return version if isinstance(version, str) else None


def gravest(statuses: Iterable[Status]) -> Status:
    """The gravest of some statuses; ``skip`` for none."""
    return max(statuses, key=GRAVITY.index, default="skip")
