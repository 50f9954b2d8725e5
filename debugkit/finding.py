"""A finding: what a check saw, where, and what to do about it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

Level = Literal["note", "warn", "fail"]


_NO_JSON_NUMBER = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _plain(value: Any) -> Any:
    """NumPy and torch values as Python ones; the names that JSON reports use for NaN and infinity as numbers."""
    if isinstance(value, str):
        return _NO_JSON_NUMBER.get(value, value)
    tolist = getattr(value, "tolist", None)
    return tolist() if callable(tolist) else value


def _encodable(text: Any) -> Any:
    """Text from data may hold lone surrogates, which no output can encode."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(text, str) else text


Text = Annotated[str, BeforeValidator(_encodable)]
Scalar = Annotated[bool | int | float | Text | None, BeforeValidator(_plain)]
Measure = Annotated[Scalar | list[Scalar], BeforeValidator(_plain)]


class Finding(BaseModel):
    """One statement of a check.

    Attributes:
        level: ``fail`` (an exact contract is broken), ``warn`` (a statistic is out of range) or
            ``note`` (a measurement).
        message: number, place and consequence, with identifiers in backticks.
        where: dotted name of a tensor or module, or a sample such as ``train[17]``.
        location: source line, such as ``train.py:41``.
        hint: the one next action.
        measured: the numbers behind the message, by name.
        suppressed: the reason why this finding does not count, if it was suppressed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    level: Level
    message: Text
    where: Text | None = None
    location: Text | None = None
    hint: Text | None = None
    measured: dict[str, Measure] = {}
    suppressed: Text | None = None


def fail(
    message: str,
    *,
    where: str | None = None,
    location: str | None = None,
    hint: str | None = None,
    **measured: Any,
) -> Finding:
    """An exact contract is broken; further keywords are the measured numbers."""
    return Finding(
        level="fail", message=message, where=where, location=location, hint=hint, measured=measured
    )


def warn(
    message: str,
    *,
    where: str | None = None,
    location: str | None = None,
    hint: str | None = None,
    **measured: Any,
) -> Finding:
    """A statistic is out of range; further keywords are the measured numbers."""
    return Finding(
        level="warn", message=message, where=where, location=location, hint=hint, measured=measured
    )


def note(
    message: str,
    *,
    where: str | None = None,
    location: str | None = None,
    hint: str | None = None,
    **measured: Any,
) -> Finding:
    """A measurement, shown on a pass too; further keywords are the measured numbers."""
    return Finding(
        level="note", message=message, where=where, location=location, hint=hint, measured=measured
    )
