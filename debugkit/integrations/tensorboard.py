"""Metrics of a watch in TensorBoard's event files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from debugkit.errors import UsageError
from debugkit.watch.sinks import Histogram

_PREFIX = "debugkit/"


class TensorBoard:
    """A sink that writes event files; all tags begin with ``debugkit/``, steps are optimizer steps.

    Args:
        writer: a folder, or a ``SummaryWriter`` that exists and stays open.

    Raises:
        UsageError: ``tensorboard`` is not installed.
    """

    def __init__(self, writer: Any) -> None:
        self._own = isinstance(writer, str)
        if self._own:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UsageError(
                    'writing for TensorBoard needs `tensorboard`: `pip install "debugkit[tensorboard]"`'
                ) from error
            writer = SummaryWriter(writer)
        self._writer = writer

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """A point for each name."""
        for name, value in values.items():
            self._writer.add_scalar(_tag(name), value, step)
        self._writer.flush()

    def histograms(self, step: int, values: Mapping[str, Histogram]) -> None:
        """A histogram for each name, with the bins as they are."""
        for name, one in values.items():
            width = (one.high - one.low) / len(one.counts)
            self._writer.add_histogram_raw(
                _tag(name),
                min=one.low,
                max=one.high,
                num=sum(one.counts),
                sum=one.total,
                sum_squares=one.squares,
                bucket_limits=[one.low + width * (index + 1) for index in range(len(one.counts))],
                bucket_counts=list(one.counts),
                global_step=step,
            )
        self._writer.flush()

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Text with a table in Markdown, in which nothing of the cells counts as markup."""
        lines = [columns, ["---"] * len(columns), *([_cell(part) for part in row] for row in rows)]
        self._text(step, name, "\n".join(f"| {' | '.join(line)} |" for line in lines))

    def alert(self, step: int, title: str, text: str) -> None:
        """Text under ``alert``."""
        self._text(step, "alert", f"**{_cell(title)}**: {_cell(text)}")

    def close(self) -> None:
        """Write what waits; a writer that was given stays open."""
        (self._writer.close if self._own else self._writer.flush)()

    def _text(self, step: int, name: str, text: str) -> None:
        self._writer.add_text(_tag(name), text, step)
        self._writer.flush()


def _tag(name: str) -> str:
    return _PREFIX + re.sub(r"[^-/\w.]", "_", name)


def _cell(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("\r", "").replace("\n", " ↵ ")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", text)
