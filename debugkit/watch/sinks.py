"""Where metrics go: JSON lines, TensorBoard, Weights & Biases, or an object of the user's own."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from debugkit.errors import UsageError, with_article

_EXTRAS = ("tensorboard", "wandb")


@dataclass(frozen=True)
class Histogram:
    """How the finite elements of a tensor are spread.

    Attributes:
        low: the least element.
        high: the greatest element.
        counts: elements in each of as many equal parts of the range from ``low`` to ``high``.
        total: the sum of the elements.
        squares: the sum of their squares.
        left_out: how many elements are not finite.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    total: float
    squares: float
    left_out: int = 0


@runtime_checkable
class Sink(Protocol):
    """What metrics are written to. Steps are optimizer steps; names have parts, such as ``layers/0.weight``."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers."""

    def histograms(self, step: int, values: Mapping[str, Histogram]) -> None:
        """Write distributions."""

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write text in rows and columns."""

    def alert(self, step: int, title: str, text: str) -> None:
        """Tell a person."""

    def close(self) -> None:
        """Nothing more comes."""


class JsonLines:
    """A JSON object a line; numbers that JSON does not have are text.

    Args:
        path: the file, which is written anew; its folder is made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line for all; ``lr/AdamW`` becomes the entry ``AdamW`` of ``lr``."""
        line: dict[str, Any] = {}
        for name, value in values.items():
            group, _, rest = name.partition("/")
            if rest:
                line.setdefault(group, {})[rest] = value
            else:
                line[name] = value
        self._write(step, line)

    def histograms(self, step: int, values: Mapping[str, Histogram]) -> None:
        """One line for all."""
        self._write(
            step,
            {"histograms": {name: {**vars(one), "counts": [*one.counts]} for name, one in values.items()}},
        )

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """One line with an object for each row."""
        self._write(step, {name: [dict(zip(columns, row, strict=True)) for row in rows]})

    def alert(self, step: int, title: str, text: str) -> None:
        """One line."""
        self._write(step, {"alert": {"title": title, "text": text}})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, step: int, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(_plain({"step": step, **line})) + "\n")
        self._file.flush()


def openers(log: Any) -> list[Callable[[], Sink]]:
    """What opens each destination, in order. Nothing is opened or imported yet.

    Args:
        log: a file for JSON lines, ``tensorboard:DIR``, ``wandb``, ``wandb:PROJECT``, a ``SummaryWriter``, a run of
            wandb, or a :class:`Sink`; several in a list; ``None`` for nothing.

    Raises:
        UsageError: a destination is not valid, or what it needs is not installed.
    """
    if log is None:
        return []
    several = isinstance(log, Iterable) and not isinstance(log, str | os.PathLike) and not _is_known(log)
    return [_opener(one) for one in (log if several else [log])]


def _opener(one: Any) -> Callable[[], Sink]:
    if isinstance(one, Sink):
        return lambda: one
    if isinstance(one, str) and (parts := one.partition(":"))[0] in _EXTRAS:
        kind, _, rest = parts
        if importlib.util.find_spec(kind) is None:
            raise UsageError(f'`{one}` needs `{kind}`: `pip install "debugkit[{kind}]"`')
        if kind == "tensorboard" and not rest:
            raise UsageError("TensorBoard needs a folder to write to: `tensorboard:DIR`")
        return (lambda: _writer(rest)) if kind == "tensorboard" else (lambda: _run(rest or None))
    if isinstance(one, str | os.PathLike):
        if not os.fspath(one) or Path(one).is_dir():
            raise UsageError(f"metrics can't be written to `{os.fspath(one)}`: it is not a file")
        return lambda: JsonLines(one)
    if _is_writer(one):
        return lambda: _writer(one)
    if _is_run(one):
        return lambda: _run(one)
    raise UsageError(
        "`log` must be a file, `tensorboard:DIR`, `wandb:PROJECT`, a `SummaryWriter`, a run of wandb or a sink, not "
        + with_article(type(one).__name__)
    )


def _is_known(log: object) -> bool:
    return isinstance(log, Sink) or _is_writer(log) or _is_run(log)


def _is_writer(one: object) -> bool:
    return all(callable(getattr(one, name, None)) for name in ("add_scalar", "add_histogram_raw", "add_text"))


def _is_run(one: object) -> bool:
    return all(callable(getattr(one, name, None)) for name in ("log", "define_metric", "finish"))


def _writer(given: Any) -> Sink:
    from debugkit.integrations.tensorboard import TensorBoard

    return TensorBoard(given)


def _run(given: Any) -> Sink:
    from debugkit.integrations.wandb import WeightsAndBiases

    return WeightsAndBiases(given)


def _plain(value: Any) -> Any:
    """Numbers that JSON does not have as text."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return list(map(_plain, value))
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
