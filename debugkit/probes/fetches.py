"""The same samples fetched again and again: what is random about them, and where the randomness comes from."""

from __future__ import annotations

import hashlib
import pickle
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader, SequentialSampler

from debugkit.data.loaders import deciding_sampler, draw, fetching, inner_loader, is_map_style, stop_workers
from debugkit.data.rows import RowReader, Rows
from debugkit.data.stream import _time_limit
from debugkit.errors import Broken, Unavailable, one_line
from debugkit.evidence import Cost, Deadline
from debugkit.probes.samples import Samples
from debugkit.sandbox import Sandbox
from debugkit.state.randomness import seed_everything
from debugkit.target import Target

_SAMPLES = 8
_DRAWS = 32
_CHANGES = 6
_SEED = 90_001
_FRESH = 624  # where a Mersenne Twister that was just seeded stands

Contents = dict[str, tuple[bytes, ...]]


@dataclass(frozen=True)
class Reset:
    """Fetching a sample leaves a global generator in a state that does not depend on the one before.

    Attributes:
        same: whether it is the same state after other samples too.
        drawn: whether random numbers were drawn since the generator was seeded.
    """

    same: bool
    drawn: bool


@dataclass(frozen=True, eq=False)
class Fetches:
    """What fetching the same samples several times gives.

    Attributes:
        workers: how many workers the loader has.
        random: the inputs whose content changes from fetch to fetch, by their path.
        recognised: whether samples are still recognised from fetch to fetch: augmented rather than made up anew.
        resets: what fetching does to the global generators (``python``, ``numpy``, ``torch``) that it seeds.
        across_workers: the random inputs that are the same in every worker.
        across_epochs: the random inputs that are the same in two epochs that follow each other.
    """

    cost: ClassVar[Cost] = "data"
    workers: int = 0
    random: frozenset[str] = frozenset()
    recognised: bool = True
    resets: Mapping[str, Reset] = field(default_factory=dict)
    across_workers: frozenset[str] = frozenset()
    across_epochs: frozenset[str] = frozenset()

    @staticmethod
    def collect(
        target: Target,
        sandbox: Sandbox,
        samples: Samples,
        deadline: Deadline,
        *,
        max_seconds: Annotated[float, Field(gt=0, description="seconds to fetch at most")] = 10.0,
    ) -> Fetches:
        """Fetch up to eight samples a few times, with the loader's own workers where it has some.

        Args:
            samples: what the scan found; it goes first, since both draw from the same sampler.

        Raises:
            Unavailable: there is no ``DataLoader`` over a map-style data set, or it can't fetch chosen samples.
        """
        loader = inner_loader(target.train_loader)
        if loader is None or not is_map_style(loader):
            raise Unavailable(
                "`train_loader` is no `DataLoader` over a map-style data set, so samples can't be "
                "fetched by their place"
            )
        seconds = min(max_seconds, deadline.seconds_left)
        sandbox.rewind()
        with sandbox.probe():
            try:
                with _time_limit(seconds, "samples could not be fetched again"):
                    return _fetch(loader, samples.rows)
            except Broken as error:
                raise Unavailable(str(error)) from error
            except Exception as error:
                raise Unavailable(f"samples can't be fetched on their own: {one_line(error)}") from error


def _fetch(loader: DataLoader[Any], rows: Rows) -> Fetches:
    drawn, _ = draw(loader, 4 * _SAMPLES + 2 * (loader.batch_size or 1))
    if not drawn:
        raise Unavailable("the sampler draws nothing")
    some, other = _chosen(drawn, rows if isinstance(deciding_sampler(loader), SequentialSampler) else None)
    workers = min(loader.num_workers, 1) if _forks(loader) else 0
    twin = fetching(loader, [some, some, other], workers=workers, collate=_Witness(loader.collate_fn))
    seen = _read(twin)
    first, second = (_rows(batch) for batch, _ in seen[:2])
    states = [state for _, state in seen]
    resets = {
        name: Reset(other != some and states[2][name] == state, state[1])
        for name, state in states[0].items()
        if states[1][name] == state
    }
    changing = _changing(first, second)
    across_workers: frozenset[str] = frozenset()
    across_epochs: frozenset[str] = frozenset()
    if changing and loader.num_workers:
        across_workers, across_epochs = _compare_workers(loader, some, changing)
    return Fetches(
        workers=loader.num_workers,
        random=frozenset(changing),
        recognised=_recognised(first, second, changing),
        resets=resets,
        across_workers=across_workers,
        across_epochs=across_epochs,
    )


def _forks(loader: DataLoader[Any]) -> bool:
    """Whether workers are forked, which takes no time."""
    context: Any = loader.multiprocessing_context
    return bool((context or torch.multiprocessing).get_start_method() == "fork")


def _chosen(drawn: list[Any], rows: Rows | None) -> tuple[Any, Any]:
    """A few samples, and others, as the loader's sampler would draw them for a batch.

    Of the same class, where the labels of ``rows`` are known: if one is recognised, then not by its class.
    """
    if not isinstance(drawn[0], list):
        return drawn[0], drawn[-1]
    flat = [place for batch in drawn for place in batch]
    some = drawn[0][:_SAMPLES]
    if rows is not None and rows.indices is not None and rows.label_digests:
        label = dict(zip(rows.indices, rows.label_digests, strict=True))
        usual, _ = Counter(label.get(place) for place in flat).most_common(1)[0]
        alike = [place for place in flat if label.get(place) == usual]
        some = alike[: max(2, len(some))] if len(alike) > 1 else some
    rest = [place for place in flat if place not in some]
    return some, rest[: len(some)] or some


class _Witness:
    """A collate function that adds the states of the global generators, then seeds them anew.

    Args:
        collate: the loader's own collate function.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate
        self._calls = 0

    def __call__(self, items: Any) -> tuple[Any, dict[str, tuple[bytes, bool]]]:
        batch, states = self._collate(items), _states()
        self._calls += 1
        seed_everything(_SEED + self._calls)
        return batch, states


def _states() -> dict[str, tuple[bytes, bool]]:
    """Per global generator its state, and whether anything was drawn from it since it was seeded."""
    python, vector, torchs = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    unused = torch.Generator().manual_seed(torch.initial_seed()).get_state()
    return {
        "python": (_digest(python), python[1][-1] != _FRESH),
        "numpy": (_digest(vector), vector["state"].get("pos") != _FRESH),
        "torch": (_digest(torchs.numpy()), not torch.equal(torchs, unused)),
    }


def _digest(state: Any) -> bytes:
    return hashlib.blake2b(pickle.dumps(state)).digest()


def _read(twin: DataLoader[Any]) -> list[Any]:
    try:
        return [*twin]
    finally:
        stop_workers(twin)


def _rows(batch: Any) -> Rows:
    reader = RowReader("train")
    reader.add(batch)
    return reader.read(complete=True)


def _contents(rows: Rows) -> Contents:
    """Per input that could be the outcome of a random transformation, the content of each sample."""
    found = {
        column.path: tuple(column.digests)
        for column in rows.inputs
        if column.is_floating or any(value.numel() > 1 for value in column.values[:1])
    }
    texts = {
        path: tuple(text.encode(errors="surrogatepass") for text in rows.texts[path]) for path in rows.texts
    }
    return found | texts


def _changing(first: Rows, second: Rows) -> list[str]:
    one, two = _contents(first), _contents(second)
    return [path for path in one if path in two and one[path] != two[path]]


def _recognised(first: Rows, second: Rows, changing: list[str]) -> bool:
    """Whether each sample of the second fetch is nearest to itself in the first, by some input."""
    steady = [
        path for path, content in _contents(first).items() if path not in changing and len({*content}) > 1
    ]
    if steady or not changing:
        return True
    return any(
        _found_again([*first.columns[path].values], [*second.columns[path].values])
        for path in changing
        if path in first.columns
    )


def _found_again(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    if len(before) < 2 or len({value.shape for value in (*before, *after)}) != 1:
        return False
    one, two = (torch.stack(values).flatten(1) for values in (before, after))
    differences = one[:, None] - two[None] if one.is_floating_point() else one[:, None] != two[None]
    distances = differences.double().abs().mean(2)
    nearest = distances.argmin(1) == torch.arange(len(before))
    return float(nearest.double().mean()) > 0.5


def _compare_workers(
    loader: DataLoader[Any], some: Any, changing: list[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """The inputs that come out the same in two workers, and in two epochs, although they change within one."""
    workers = min(loader.num_workers, 2)
    rounds = -(-_DRAWS // (len(some) if isinstance(some, list) else 1))
    twin = fetching(loader, [some] * (rounds * workers), workers=workers)
    try:
        epochs = [[_contents(_rows(batch)) for batch in twin] for _ in range(2)]
    finally:
        stop_workers(twin)
    across_workers, across_epochs = set(), set()
    for path in changing:
        if any(path not in content for epoch in epochs for content in epoch):
            continue
        streams = [
            [[content[path] for content in epoch[worker::workers]] for worker in range(workers)]
            for epoch in epochs
        ]
        if min(_changes(stream) for epoch in streams for stream in epoch) < _CHANGES:
            continue
        if workers > 1 and all(epoch[0] == epoch[1] for epoch in streams):
            across_workers.add(path)
        if streams[0] == streams[1]:
            across_epochs.add(path)
    return frozenset(across_workers), frozenset(across_epochs)


def _changes(stream: list[tuple[bytes, ...]]) -> int:
    """How often a sample differs from its content in the first fetch."""
    return sum(now != before for content in stream for now, before in zip(content, stream[0], strict=True))
