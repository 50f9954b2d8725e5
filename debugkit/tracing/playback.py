"""Parts of a recorded step, run again with other values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from debugkit.tracing.recording import Op, Recording, tensors_in, with_tensors

# fmt: off
_RANDOM = frozenset(
    {
        "rand_like", "randn_like", "randint_like", "bernoulli", "multinomial", "normal", "normal_", "uniform_",
        "bernoulli_", "exponential_", "poisson", "gumbel_softmax", "rrelu",
    }
)
# fmt: on


class Playback:
    """A part of a recording: from some variables to some results.

    Variables are what training can move freely: outputs of calls that mix values by a trainable weight, trainable
    parameters used otherwise, and outputs of custom functions. All else is as it was recorded.

    Args:
        recording: the recording.
        results: keys of the tensors to compute.
        sources: keys of the variables, where they are others than these.

    Attributes:
        variables: the variables as they were, by key.
        ops: the calls in between, in order.
        complete: whether all that the calls take is at hand.
    """

    def __init__(
        self, recording: Recording, results: Sequence[int], sources: Iterable[int] | None = None
    ) -> None:
        self.results = tuple(results)
        sources = _variables(recording, results) if sources is None else sources
        self.variables = {key: _free(recording, key) for key in sources}
        self.ops = _between(recording, set(self.variables), results)
        made = {key for op in self.ops for key in op.results}
        outside = {key for op in self.ops for key in op.needs} - made - set(self.variables)
        values = {key: recording.value(key) for key in outside}
        self._constants = {key: _single(value) for key, value in values.items() if value is not None}
        given = made | set(self.variables)
        self.complete = len(self._constants) == len(outside) and given.issuperset(results)

    @property
    def outside(self) -> set[int]:
        """Keys of what the calls take beside the variables and their own results."""
        return set(self._constants)

    @property
    def trivial(self) -> bool:
        """Whether the results are variables themselves."""
        return all(key in self.variables for key in self.results)

    def __call__(self, values: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        """Compute the results from values for some or all variables."""
        known: dict[int, torch.Tensor] = {**self._constants, **self.variables, **values}

        for op in self.ops:
            args, kwargs = with_tensors((op.args, op.kwargs), known.__getitem__)
            if op.in_place:
                args = (args[0].clone(), *args[1:])
            result = op.func(*args, **kwargs)
            given = [args[0]] if op.in_place else tensors_in(result)
            made = given if op.trained else (tensor.detach() for tensor in given)
            known.update(zip(op.results, made, strict=True))
        return [known[key] for key in self.results]


def _variables(recording: Recording, results: Sequence[int]) -> list[int]:
    """Where the gradients of some results end, or a weight mixes values."""
    needed, found = set(results), []
    for op in reversed(recording.ops):
        if needed.isdisjoint(op.results):
            continue
        if op.trained and not recording.is_weighted(op):
            needed.difference_update(op.results)
            needed.update(op.needs)
    for key in sorted(needed):
        value = recording.value(key)
        if value is not None and recording.carries_gradient(key) and value.is_floating_point():
            found.append(key)
    return found


def _free(recording: Recording, key: int) -> torch.Tensor:
    value = recording.value(key)
    assert value is not None
    return _single(value).clone()


def _single(value: torch.Tensor) -> torch.Tensor:
    """Without a graph, and in single precision where it had less."""
    return value.detach().float() if value.dtype in (torch.float16, torch.bfloat16) else value.detach()


def _between(recording: Recording, variables: set[int], results: Sequence[int]) -> list[Op]:
    """The calls on the way from the variables to the results, in order."""
    moved, ahead = set(variables), []
    for op in recording.ops:
        depends = moved.isdisjoint(op.results) and not moved.isdisjoint(op.needs)
        if depends and op.name not in _RANDOM and not recording.is_weighted(op):
            moved.update(op.results)
            ahead.append(op)
    wanted, kept = set(results), []
    for op in reversed(ahead):
        if not wanted.isdisjoint(op.results):
            wanted.update(op.needs)
            kept.append(op)
    return kept[::-1]
