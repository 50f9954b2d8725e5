"""Metrics of a watch in a run of Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from debugkit.errors import UsageError
from debugkit.watch.sinks import Histogram

_PREFIX = "debugkit/"


class WeightsAndBiases:
    """A sink that logs to the run that is active, else to a run of its own; all names begin with ``debugkit/``.

    The step axis is ``debugkit/step``. In the program's run nothing is committed: what is logged goes along with the
    program's next ``log``, so that its steps are counted as without. Between two of these only the latest values
    remain.

    Args:
        run: the project of a run of its own, a run that exists and stays open, or ``None``.

    Raises:
        UsageError: ``wandb`` is not installed.
    """

    def __init__(self, run: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UsageError(
                'logging to Weights & Biases needs `wandb`: `pip install "debugkit[wandb]"`'
            ) from error
        self._wandb: Any = wandb
        given = wandb.run if run is None or isinstance(run, str) else run
        self._own = given is None
        self._run = self._begin(run) if given is None else given
        self._run.define_metric(f"{_PREFIX}step", hidden=True)
        self._run.define_metric(f"{_PREFIX}*", step_metric=f"{_PREFIX}step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """A point for each name."""
        self._log(step, values)

    def histograms(self, step: int, values: Mapping[str, Histogram]) -> None:
        """A histogram for each name, with the bins as they are."""
        self._log(step, {name: self._histogram(one) for name, one in values.items()})

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table."""
        self._log(step, {name: self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def alert(self, step: int, title: str, text: str) -> None:
        """An alert, which the service sends as the user has set it up."""
        self._run.alert(title=title, text=text, level=self._wandb.AlertLevel.ERROR)

    def close(self) -> None:
        """Finish an own run; one that was given stays open."""
        if self._own:
            self._run.finish()

    def _begin(self, project: str | None) -> Any:
        """A run beside any that the program may begin, which captures no output."""
        return self._wandb.init(
            project=project or "debugkit",
            job_type="debugkit",
            reinit="create_new",
            save_code=False,
            settings=self._wandb.Settings(console="off", silent=True),
        )

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        named = {f"{_PREFIX}step": step, **{_PREFIX + name: value for name, value in values.items()}}
        self._run.log(named, commit=self._own)

    def _histogram(self, one: Histogram) -> Any:
        edges = np.linspace(one.low, one.high, len(one.counts) + 1)
        return self._wandb.Histogram(np_histogram=(np.array(one.counts), edges))
