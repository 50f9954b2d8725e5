"""Processes that judge one pair at a time, and are ended when one takes too long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from sweep_row import Row

Pair = tuple[str, str]
Judge = Callable[..., Row]


def _serve(pipe: Connection, judge: Judge) -> None:
    while (call := pipe.recv()) is not None:
        try:
            row = judge(*call)
        except Exception as error:
            row = _crashed(call[0], call[1], f"{type(error).__name__}: {error}")
        pipe.send(row)


def _crashed(architecture: str, head: str, reason: str, seconds: float = 0.0) -> Row:
    alarms = [("(sweep)", "lost", reason)]
    return Row(architecture, head, status="lost", reason=reason, alarms=alarms, seconds=seconds)


class Worker:
    """A process that judges pairs.

    Args:
        judge: what it calls with the pair and the options; it must be importable.
        options: what follows the pair in the call.
        timeout: seconds that a pair may take.
    """

    def __init__(self, judge: Judge, options: tuple[Any, ...], timeout: float) -> None:
        self._judge, self._options, self._timeout = judge, options, timeout
        self.pair: Pair | None = None
        self._start()

    def _start(self) -> None:
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._judge), daemon=True)
        self._process.start()
        other.close()

    def give(self, pair: Pair) -> None:
        """Begin with a pair."""
        self.pair, self._since = pair, time.monotonic()
        self.pipe.send((*pair, *self._options))

    @property
    def seconds_left(self) -> float:
        """How much longer the pair may take."""
        return self._timeout - (time.monotonic() - self._since)

    def take(self) -> Row | None:
        """The finished row; one that says so when the pair was lost; ``None`` when it is still at work."""
        assert self.pair is not None
        if self.pipe.poll():
            try:
                row: Row = self.pipe.recv()
            except EOFError:
                return self._lost("the process ended")
            self.pair = None
            return row
        if self.seconds_left <= 0:
            return self._lost(f"it took more than {self._timeout:g} s")
        return None

    def _lost(self, reason: str) -> Row:
        assert self.pair is not None
        row = _crashed(*self.pair, reason, time.monotonic() - self._since)
        self.close()
        self.pair = None
        self._start()
        return row

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


def rows(
    pairs: list[Pair], judge: Judge, options: tuple[Any, ...], jobs: int, timeout: float
) -> Iterator[Row]:
    """The row of each pair, as they finish.

    Args:
        pairs: what to judge.
        judge: called with ``(architecture, head, *options)`` in another process.
        options: what follows the pair.
        jobs: number of processes.
        timeout: seconds for a pair, the building included.
    """
    waiting = list(reversed(pairs))
    workers = [Worker(judge, options, timeout) for _ in range(min(jobs, len(pairs)))]
    try:
        while waiting or any(worker.pair for worker in workers):
            for worker in workers:
                if worker.pair is None and waiting:
                    worker.give(waiting.pop())
            busy = [worker for worker in workers if worker.pair]
            wait([worker.pipe for worker in busy], max(0.0, min(worker.seconds_left for worker in busy)))
            for worker in busy:
                if (row := worker.take()) is not None:
                    yield row
    finally:
        for worker in workers:
            worker.close()
