"""Many matrices analysed side by side, within bounds of time and memory, by any number of processes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from debugkit.weights.blas import cores, one_blas_thread
from debugkit.weights.eigenvalue_cache import EigenvalueCache
from debugkit.weights.layer_spectrum import LayerSpectrum, layer_spectra
from debugkit.weights.matrix import Matrix
from debugkit.weights.readings import read
from debugkit.weights.settings import Progress, Settings

_OPERATIONS_PER_SECOND = 2e10
_EVEN = 0.6180339887498949


@dataclass(frozen=True)
class Analysis:
    """The spectra of matrices.

    Attributes:
        layers: one for each part of a matrix, in the order of the matrices.
        analysed: how many matrices were analysed in the time given.
        shares: the names of the matrices that each process analysed.
        cached: how many were known from the cache.
    """

    layers: tuple[LayerSpectrum, ...] = field(repr=False)
    analysed: int
    shares: tuple[tuple[str, ...], ...] = field(repr=False)
    cached: int = 0


def analyse(
    matrices: Sequence[Matrix], settings: Settings | None = None, seconds: float = math.inf
) -> Analysis:
    """Analyse each matrix once; every process of a group gets the whole result.

    Args:
        matrices: those to analyse.
        settings: workers, memory, precision, cache, and who is told.
        seconds: no matrix is begun that is not expected to end within this time; what is done covers the depth
            evenly however early the time is up, and embeddings come last.

    Raises:
        OSError, ValueError: the values of a matrix can't be read.
    """
    settings = settings or Settings()
    ranks = settings.ranks
    shares = assign([matrix.cost for matrix in matrices], ranks.world if ranks else 1)
    run = _Run(matrices, shares[ranks.rank if ranks else 0], settings, seconds)
    if ranks is None:
        run.work()
        found, hits = [run.found], run.hits
    else:
        failure = run.try_work()
        answers = ranks.gather((run.found, run.hits, failure))
        for _, _, error in answers:
            if error is not None:
                raise error
        found, hits = [answer[0] for answer in answers], sum(answer[1] for answer in answers)
    spectra = {index: layers for share in found for index, layers in share.items()}
    return Analysis(
        tuple(layer for index in sorted(spectra) for layer in spectra[index]),
        len(spectra),
        tuple(tuple(matrices[index].name for index in sorted(share)) for share in found),
        hits,
    )


def assign(costs: Sequence[float], world: int) -> list[list[int]]:
    """The indices that each of ``world`` processes analyses: the costliest first, each to whom has least to do."""
    shares: list[list[int]] = [[] for _ in range(world)]
    loads = [0.0] * world
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        least = min(range(world), key=lambda rank: (loads[rank], rank))
        shares[least].append(index)
        loads[least] += costs[index]
    return [sorted(share) for share in shares]


class _Run:
    """The work of one process: threads that take the next matrix that fits into time and memory."""

    def __init__(
        self, matrices: Sequence[Matrix], share: list[int], settings: Settings, seconds: float
    ) -> None:
        self.found: dict[int, list[LayerSpectrum]] = {}
        self._matrices = matrices
        self._settings = settings
        self._start = time.monotonic()
        self._end = self._start + seconds
        self._waiting = _in_order(matrices, share, hurried=math.isfinite(seconds))
        self._total = len(share)
        self._cache = EigenvalueCache(settings.cache, settings.precision) if settings.cache else None
        self._changed = threading.Condition()
        self._running: dict[int, int] = {}
        self._stopped = False
        self._costs_done = 0.0
        self._paces: dict[int, tuple[float, float]] = {}
        self._costs_left = sum(matrices[index].cost for index in share)

    @property
    def hits(self) -> int:
        """How many matrices the cache knew."""
        return self._cache.hits if self._cache else 0

    def work(self) -> None:
        """Analyse until nothing is left that fits.

        Raises:
            OSError, ValueError: the values of a matrix can't be read.
        """
        workers = max(1, min(self._settings.workers or cores(), len(self._waiting)))
        with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
            try:
                for future in [pool.submit(self._serve) for _ in range(workers)]:
                    future.result()
            finally:
                with self._changed:
                    self._stopped = True
                    self._changed.notify_all()

    def try_work(self) -> Exception | None:
        """As :meth:`work`; an exception is handed back, since the other processes wait for this one."""
        try:
            self.work()
        except Exception as error:  # raised again in every process
            return error
        return None

    def _serve(self) -> None:
        while (index := self._take()) is not None:
            matrix = self._matrices[index]
            start = time.monotonic()
            try:
                layers = self._analyse(matrix)
            except BaseException:
                with self._changed:
                    self._stopped = True
                    self._changed.notify_all()
                raise
            with self._changed:
                self.found[index] = layers
                del self._running[index]
                self._costs_done += matrix.cost
                self._costs_left -= matrix.cost
                done, took = self._paces.get(_size(matrix.cost), (0.0, 0.0))
                self._paces[_size(matrix.cost)] = (done + matrix.cost, took + time.monotonic() - start)
                self._tell(matrix)
                self._changed.notify_all()

    def _analyse(self, matrix: Matrix) -> list[LayerSpectrum]:
        precision, device = self._settings.precision, self._settings.device
        key = self._cache.key(matrix) if self._cache else ""
        readings = self._cache.get(key) if self._cache else None
        if readings is None:
            readings = read(matrix, precision, device)
            if self._cache:
                self._cache.put(key, readings)
        return layer_spectra(matrix, readings, precision)

    def _take(self) -> int | None:
        """The next matrix to begin; waits while only the memory is short."""
        with self._changed:
            while not self._stopped:
                free = self._settings.memory - sum(self._running.values())
                late = set()
                for index in self._waiting:
                    need = self._matrices[index].memory
                    if not self._is_in_time(index):
                        late.add(index)
                    elif need <= free or not self._running:
                        self._running[index] = need
                        self._waiting = [
                            other for other in self._waiting if other != index and other not in late
                        ]
                        return index
                self._waiting = [index for index in self._waiting if index not in late]
                if not self._waiting:
                    return None
                self._changed.wait()
        return None

    def _is_in_time(self, index: int) -> bool:
        """Whether a matrix is expected to end in time, by the pace of those of its size and larger."""
        if math.isinf(self._end):
            return True
        cost = self._matrices[index].cost
        alike = [one for size, one in self._paces.items() if size >= _size(cost)]
        pace = (
            sum(done for done, _ in alike) / sum(took for _, took in alike)
            if alike
            else _OPERATIONS_PER_SECOND
        )
        return time.monotonic() + cost / pace < self._end

    def _tell(self, matrix: Matrix) -> None:
        if self._settings.on_progress is None:
            return
        left = (time.monotonic() - self._start) * self._costs_left / self._costs_done
        if math.isfinite(self._end):
            left = min(left, max(0.0, self._end - time.monotonic()))
        self._settings.on_progress(Progress(len(self.found), self._total, matrix.name, left))


def _size(cost: float) -> int:
    """The order of magnitude of a cost: small matrices are slower for what they cost."""
    return int(math.log10(max(1.0, cost)))


def _in_order(matrices: Sequence[Matrix], share: list[int], hurried: bool) -> list[int]:
    """The costliest first; in a hurry an order that covers the depth evenly however early it ends."""
    if not hurried:
        return sorted(share, key=lambda index: -matrices[index].cost)
    judged = [index for index in share if not matrices[index].unjudged]
    others = [index for index in share if matrices[index].unjudged]
    even = sorted(range(len(judged)), key=lambda place: place * _EVEN % 1)
    return [judged[place] for place in even] + others
