"""The training step of a script, rebuilt from what its first iteration did."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch

from debugkit.data.batch import size, sliceable, split, take, tensors
from debugkit.errors import Unavailable
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.tape import Entry, Tape, flat, written
from debugkit.watch.first_iteration import FirstIteration, Taken

# fmt: off
_SHAPED = frozenset(
    {
        "view", "reshape", "expand", "repeat", "tile", "broadcast_to", "unflatten", "zeros", "ones", "full", "empty",
        "arange", "new_zeros", "new_ones", "new_full", "new_empty",
    }
)
# fmt: on
_FACTORS = frozenset(
    {"div", "true_divide", "divide", "__truediv__", "__rtruediv__", "mul", "multiply", "__mul__", "__rmul__"}
)
_DIVISIONS = frozenset({"div", "true_divide", "__truediv__", "divide"})
_PLAIN = (int, float, complex, str, bool, bytes, slice, type(None), type(...))
_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, torch.Generator)


@dataclass
class SeenStep:
    """A training step that computes what the script's own did.

    Attributes:
        model: the model that the loss went through.
        batch: the batch.
        loader: the loader that gave it; ``None`` without one.
        loss: the loss that the script saw, not divided by the accumulation steps.
        accumulation_steps: what the loss was divided by.
        autocast: the dtype in which the model ran under autocast.
    """

    model: torch.nn.Module
    batch: Any
    loader: Any
    loss: torch.Tensor
    accumulation_steps: int
    autocast: torch.dtype | None
    _taken: list[Taken] = field(repr=False)
    _rows: int | None = None
    _scaled: bool = False

    @staticmethod
    def of(first: FirstIteration, model: torch.nn.Module) -> SeenStep:
        """The step of a first iteration, through a model.

        Raises:
            Unavailable: it can't be told from what was seen, and why.
        """
        loss, accumulation_steps = _undivided(first.calls, _loss(first))
        taken = _leading_to(first.calls, loss)
        outside = _outside(taken)
        read = [seen for seen in first.batches if seen.leaves & outside.keys()]
        if len(read) > 1:
            raise Unavailable("the loss of the first iteration goes through batches of several loaders")
        if read:
            batch, loader = read[0].batch, read[0].loader
        else:
            taken = _without_cutting(taken, model, outside)
            outside = _outside(taken)
            batch, loader = _loose_batch(taken, model, outside), None
        casting = [call.entry.autocast for call in taken if call.entry.func is model]
        if any(tensor.grad_fn is not None for tensor in outside.values()):
            raise Unavailable("the loss goes through what was computed before its batch was read")
        rows, leaves = size(batch), {id(tensor) for _, tensor in tensors(batch)}
        for call in taken:
            _can_be_followed(call.entry, rows, outside.keys() - leaves)
        return SeenStep(model, batch, loader, loss, accumulation_steps, casting[0], taken, rows)

    def __call__(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The loss of a batch."""
        given = dict(_pairs(self.batch, batch))
        return self._replay(given, model, size(batch))

    @property
    def own_loss(self) -> bool:
        """Whether the model is called on the batch as it is and returns the loss."""
        call = self._root_call()
        if call is None or not _same(self.batch, call.args, call.kwargs):
            return False
        return any(tensor is self.loss for tensor in flat(call.result))

    def loss_fn(self) -> Callable[[Any, Any], torch.Tensor] | None:
        """``(outputs, targets) -> loss``, where the loss takes nothing else of the batch."""
        call = self._root_call()
        inputs, labels = split(self.batch)
        if call is None or not isinstance(labels, torch.Tensor) or not _same(inputs, call.args, call.kwargs):
            return None
        outputs = list(flat(call.result))
        after = [taken for taken in self._taken if taken.entry is not call]
        taken_in = (tensor for taken in after for tensor in flat((taken.entry.args, taken.entry.kwargs)))
        others = {id(tensor) for _, tensor in tensors(self.batch)} - {id(labels)}
        if any(id(tensor) in others for tensor in taken_in):
            return None

        def loss(outputs_now: Any, targets: Any) -> torch.Tensor:
            given = {id(old): new for old, new in zip(outputs, flat(outputs_now), strict=False)}
            return self._replay({**given, id(labels): targets}, None, size(targets), after)

        return loss

    def prove(self, name: str | None) -> None:
        """See that the rebuilt step gives the loss that was seen, and runs on a part of the batch too.

        Raises:
            Unavailable: it does not, and why.
        """
        seen = float(self.loss.detach())
        with Sandbox(Target(self.model, name=name)) as sandbox, sandbox.probe():
            again = self._again()
            if not _close(seen, again, rough=self.autocast is not None):
                raise Unavailable(
                    f"run again, the first iteration gave a loss of {again:.6g}, where the script saw {seen:.6g}"
                )
            self._fit_rows()

    def _again(self) -> float:
        next(call.random for call in self._taken if call.random is not None).restore()
        given = {id(tensor): tensor.clone() for _, tensor in tensors(self.batch)}
        try:
            return float(self._replay(given, None, None).detach())
        except Exception as error:
            raise Unavailable(f"the first iteration can't be run again ({type(error).__name__})") from error

    def _fit_rows(self) -> None:
        """Find out whether numbers in the script that follow the batch's size must follow it here."""
        rows = self._rows
        if not rows or rows < 2 or not sliceable(self.batch):
            return
        for self._scaled in (False, True):
            try:
                for part in {rows // 2, rows - 1}:
                    self(self.model, take(self.batch, list(range(part))))
                return
            except Exception:
                continue
        raise Unavailable(f"the script's step takes batches of {rows} rows only")

    def _replay(
        self,
        given: Mapping[int, torch.Tensor],
        model: torch.nn.Module | None,
        rows: int | None,
        calls: list[Taken] | None = None,
    ) -> torch.Tensor:
        tape, changed = Tape(), dict[int, tuple[Any, ...]]()
        for number, taken in enumerate(self._taken if calls is None else calls):
            entry = taken.entry
            func = model if model is not None and entry.func is self.model else entry.func
            tape.entries.append(dataclasses.replace(entry, func=_at(taken.line, func)))
            if any(tensor.requires_grad for tensor in flat(entry.result)):
                changed[number] = entry.args
            if rows and self._rows and rows != self._rows:
                args = tuple(self._fitted(entry, rows))
                if _numbers(args) != _numbers(entry.args):
                    changed[number] = args
        return tape.replay(given, changed).of(self.loss)

    def _fitted(self, entry: Entry, rows: int) -> Iterator[Any]:
        """The arguments of a call for another number of rows."""
        name, was = getattr(entry.func, "__name__", ""), self._rows or 1
        for value in entry.args:
            if name in _FACTORS and type(value) in (int, float) and value == was:
                yield type(value)(rows)
            elif name in _SHAPED and self._scaled:
                yield _scaled(value, was, rows)
            else:
                yield value

    def _root_call(self) -> Entry | None:
        """The call of the model, if it is called once."""
        calls = [taken.entry for taken in self._taken if taken.entry.func is self.model]
        return calls[0] if len(calls) == 1 else None


def _undivided(calls: list[Taken], loss: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The loss before it was divided by a whole number, and that number."""
    for taken in reversed(calls):
        entry = taken.entry
        if entry.result is not loss:
            continue
        name = getattr(entry.func, "__name__", "")
        tensor = next((part for part in entry.args if isinstance(part, torch.Tensor)), None)
        number = next((part for part in entry.args if type(part) in (int, float)), None)
        if tensor is None or tensor.numel() != 1 or number is None or name not in _FACTORS or number <= 0:
            break
        steps = number if name in _DIVISIONS else 1 / number
        whole = round(steps)
        if whole >= 2 and math.isclose(steps, whole, rel_tol=1e-9):
            return tensor, whole
        break
    return loss, 1


def _leading_to(calls: list[Taken], loss: torch.Tensor) -> list[Taken]:
    """The calls that the loss depends on, oldest first."""
    needed, kept = {id(loss)}, []
    for taken in reversed(calls):
        entry = taken.entry
        target = written(entry.func, entry.args, entry.kwargs)
        made = {id(tensor) for tensor in flat(entry.result)}
        if made & needed or (target is not None and id(target) in needed):
            kept.append(taken)
            needed |= {id(tensor) for tensor in flat((entry.args, entry.kwargs))}
    return kept[::-1]


def _loss(first: FirstIteration) -> torch.Tensor:
    if first.loss is None:
        raise Unavailable("the first backward is not called on one loss")
    return first.loss


def model_of(first: FirstIteration) -> torch.nn.Module:
    """The one module with parameters that the loss of a first iteration goes through with a graph.

    Raises:
        Unavailable: there is none, or there are several.
    """
    taken = _leading_to(first.calls, _loss(first))
    models = {
        id(call.entry.func): call.entry.func
        for call in taken
        if isinstance(call.entry.func, torch.nn.Module)
        and call.entry.grad
        and any(parameter.requires_grad for parameter in call.entry.func.parameters())
    }
    if not models:
        raise Unavailable("no module that is called as a whole gave the first loss")
    if len(models) > 1:
        names = ", ".join(f"`{type(model).__name__}`" for model in models.values())
        raise Unavailable(f"the first loss goes through several models ({names})")
    return next(iter(models.values()))


def _can_be_followed(entry: Entry, rows: int | None, constants: Set[int]) -> None:
    """Refuse calls whose arguments hold what can't be followed from batch to batch."""
    target = written(entry.func, entry.args, entry.kwargs)
    if target is not None and id(target) in constants:
        raise Unavailable("the first iteration writes to a tensor that is no part of its batch")
    queue: list[Any] = [entry.args, entry.kwargs]
    while queue:
        value = queue.pop()
        if type(value) is dict:
            queue += value.values()
        elif isinstance(value, list | tuple):
            if rows and rows > 1 and len(value) == rows and all(type(part) in (int, float) for part in value):
                raise Unavailable("the step is given numbers of each sample as a list")
            queue += value
        elif not (
            isinstance(value, (torch.Tensor, *_PLAIN, *_TORCH)) or callable(value) or _is_frozen(value)
        ):
            raise Unavailable(f"the model is given a `{type(value).__name__}`, which holds more than tensors")


def _is_frozen(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not any(True for _ in tensors(value))


def _outside(taken: list[Taken]) -> dict[int, torch.Tensor]:
    """Tensors that calls take and none of them made, in the order of their use."""
    made: set[int] = set()
    outside: dict[int, torch.Tensor] = {}
    for call in taken:
        for tensor in flat((call.entry.args, call.entry.kwargs)):
            if id(tensor) not in made:
                outside.setdefault(id(tensor), tensor)
        made |= {id(tensor) for tensor in flat(call.entry.result)} - outside.keys()
    return outside


def _without_cutting(
    taken: list[Taken], model: torch.nn.Module, outside: Mapping[int, torch.Tensor]
) -> list[Taken]:
    """The calls but those that only cut a batch out of whole data, such as ``y[i : i + 32]``."""
    inputs = _inputs(taken, model, outside)
    rows = inputs[0].shape[0] if inputs else None
    kept, made = [], set[int]()
    for call in taken:
        result, given = call.entry.result, list(flat((call.entry.args, call.entry.kwargs)))
        whole = given and all(
            id(tensor) not in made and not tensor.requires_grad and not isinstance(tensor, torch.nn.Parameter)
            for tensor in given
        )
        cut = isinstance(result, torch.Tensor) and result.ndim > 0 and result.shape[0] == rows
        if whole and cut and not isinstance(call.entry.func, torch.nn.Module) and not result.requires_grad:
            continue
        kept.append(call)
        made |= {id(tensor) for tensor in flat(result)}
    return kept


def _inputs(
    taken: list[Taken], model: torch.nn.Module, outside: Mapping[int, torch.Tensor]
) -> list[torch.Tensor]:
    """What the model is given that nothing made."""
    return [
        tensor
        for call in taken
        if call.entry.func is model
        for tensor in flat((call.entry.args, call.entry.kwargs))
        if id(tensor) in outside and tensor.ndim
    ]


def _loose_batch(taken: list[Taken], model: torch.nn.Module, outside: Mapping[int, torch.Tensor]) -> Any:
    """What the script gave the model and the loss, where no loader gave it: inputs first."""
    inputs = _inputs(taken, model, outside)
    if not inputs:
        raise Unavailable("the model is not called on what a loader gave")
    rows, known = inputs[0].shape[0], {id(tensor) for tensor in inputs}
    targets = [
        tensor
        for key, tensor in outside.items()
        if key not in known
        and tensor.ndim
        and tensor.shape[0] == rows
        and not tensor.requires_grad
        and not isinstance(tensor, torch.nn.Parameter)
    ]
    return (*inputs, *targets)


def _same(inputs: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a model was called on inputs as they are."""
    if isinstance(inputs, torch.Tensor):
        return len(args) == 1 and args[0] is inputs and not kwargs
    if isinstance(inputs, Mapping):
        return not args and set(kwargs) == set(inputs) and all(kwargs[key] is inputs[key] for key in inputs)
    if isinstance(inputs, list | tuple):
        pairs = zip(args, inputs, strict=False)
        return not kwargs and len(args) == len(inputs) and all(one is other for one, other in pairs)
    return False


def _pairs(old: Any, new: Any) -> Iterator[tuple[int, torch.Tensor]]:
    before, now = dict(tensors(old)), dict(tensors(new))
    if before.keys() != now.keys():
        raise ValueError(f"this batch holds {', '.join(now)}; the first one held {', '.join(before)}")
    return ((id(before[path]), now[path]) for path in before)


def _numbers(args: tuple[Any, ...]) -> list[Any]:
    found: list[Any] = []
    for value in args:
        if isinstance(value, list | tuple):
            found += _numbers(tuple(value))
        elif isinstance(value, int | float):
            found.append(value)
    return found


def _scaled(value: Any, was: int, now: int) -> Any:
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_scaled(part, was, now) for part in value)
    follows = type(value) is int and value > 0 and value % was == 0
    return value // was * now if follows else value


def _close(seen: float, again: float, *, rough: bool) -> bool:
    if not math.isfinite(seen):
        return not math.isfinite(again)
    return math.isclose(seen, again, rel_tol=3e-2 if rough else 1e-4, abs_tol=1e-6)


def _at(line: tuple[str, int] | None, func: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called as if from a line of the script, so that findings name it."""
    if line is None:
        return func

    def call(*args: Any, **kwargs: Any) -> Any: return func(*args, **kwargs)  # fmt: skip

    code = call.__code__.replace(co_filename=line[0], co_firstlineno=line[1], co_name="<module>")
    made = FunctionType(code, {}, getattr(func, "__name__", "call"), None, call.__closure__)
    made.__name__ = getattr(func, "__name__", "call")
    return made
