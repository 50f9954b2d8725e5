"""What does not move when it is changed: asked again with other values, in double precision, or by gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from debugkit.data.batch import tensors
from debugkit.errors import Broken
from debugkit.tracing.cuts import tensors_in
from debugkit.tracing.edits import Material
from debugkit.tracing.influence import Features, Order
from debugkit.tracing.root_call import RootCall
from debugkit.tracing.row_outputs import RowOutputs, row_outputs
from debugkit.trials.same_rows import SameRows, same_bits, with_rows

_ROUNDING = 1e-11
_MOST_KEPT = 2**24
_MOST_COLUMNS = 256
_MARGIN = 0.25
_ATTENTION = (F.scaled_dot_product_attention, F.multi_head_attention_forward)


def is_constant(
    rows: SameRows, material: Material, picked: RootCall, before: Any, paths: Sequence[str]
) -> bool | None:
    """Whether other values of some inputs, in all rows, leave every output exactly as it was.

    Returns:
        ``None`` where there are no other values, or the model does not take them.
    """
    count = len(picked.tensors[material.main])
    sample = Material(picked, count, material.main, material.tokens, _content(picked, material, count))
    moved = False
    for turn in (0, 1):
        changes = [{path: sample.rolled(path, row, turn=turn) for path in paths} for row in range(count)]
        changed = with_rows(picked, changes)
        if all(torch.equal(changed.tensors[path], picked.tensors[path]) for path in paths):
            continue
        moved = True
        try:
            if not same_bits(before, rows.run(changed)):
                return False
        except Broken:
            return None
    return True if moved else None


def _content(picked: RootCall, material: Material, count: int) -> torch.Tensor | None:
    if not material.tokens:
        return None
    found = Material.of(picked, count)
    return found.content if found is not None and found.main == material.main else None


def feature_dim(values: torch.Tensor) -> int | None:
    """The dimension of the features of numbers: the last one, or the channels of images; ``None`` for no numbers."""
    if not values.is_floating_point() or values.ndim not in (2, 3, 4, 5):
        return None
    return 1 if values.ndim > 3 else values.ndim - 1


def ignored_features(
    rows: SameRows, calls: tuple[RootCall, RootCall], material: Material, before: Any, dim: int
) -> Features | None:
    """The features without a gradient, where their values differ and a change of all of them moves no output.

    Args:
        rows: runs the calls.
        calls: a few rows to ask for gradients, and all rows of the first pass.
        material: what may be changed.
        before: the outputs of all rows.
        dim: the dimension of the features.
    """
    few, picked = calls
    values = picked.tensors[material.main].detach()

    def ask(outputs: Any, starts: list[torch.Tensor]) -> torch.Tensor | None:
        total = _total(outputs)
        if total is None:
            return None
        found = torch.autograd.grad(total, starts, allow_unused=True)
        return found[names.index(material.main)]

    count = len(few.tensors[material.main])
    names = [path for path, tensor in few.inputs(count).items() if tensor.is_floating_point()]
    found = rows.differentiate(few, count, ask)
    if found is None:
        return None
    others = [place for place in range(values.ndim) if place != dim]
    flat = ~found.ne(0).movedim(dim, 0).flatten(1).any(1)
    differs = (values != values[:1]).movedim(dim, 0).flatten(1).any(1)
    ignored = (flat & differs).nonzero().flatten()
    count = values.shape[dim]
    if not len(ignored) or len(ignored) == count or not others or _is_margin(values, ignored, count):
        return Features(count, ())
    changed = values.clone()
    places: list[Any] = [slice(None)] * values.ndim
    places[dim] = ignored
    changed[tuple(places)] = values.roll(1, 0)[tuple(places)] + values.std(correction=0)
    try:
        same = same_bits(before, rows.run(picked.with_tensors({material.main: changed})))
    except Broken:
        return None
    return Features(count, tuple(ignored.tolist()) if same else ())


def _is_margin(values: torch.Tensor, ignored: torch.Tensor, count: int) -> bool:
    """Whether these may be what a convolution's stride leaves out of a signal or a spectrogram."""
    if values.ndim > 3 or (values.ndim == 2 and count <= _MOST_COLUMNS):
        return False
    in_one = bool((ignored.diff() == 1).all()) and (int(ignored[0]) == 0 or int(ignored[-1]) == count - 1)
    return not in_one or len(ignored) < _MARGIN * count


def _total(outputs: Any) -> torch.Tensor | None:
    """A weighted sum of all outputs, with their graph."""
    total: torch.Tensor | None = None
    for _, tensor in tensors(outputs):
        if tensor.is_floating_point() and tensor.requires_grad and not tensor.is_sparse:
            flat = torch.where(tensor.isfinite(), tensor, 0.0).flatten()
            weights = torch.cos(torch.arange(len(flat), device=flat.device, dtype=torch.float32)).to(
                flat.dtype
            )
            part = (flat * weights).sum()
            total = part if total is None else total + part
    return total


def is_reached(rows: SameRows, picked: RootCall, changed: RootCall, count: int) -> bool | None:
    """Whether some output is computed from what a change of the inputs changes, as far as gradients flow.

    Args:
        rows: runs the calls.
        picked: a call.
        changed: the same with other inputs.
        count: how many rows they have.

    Returns:
        ``None`` where gradients can't tell.
    """

    def ask(outputs: Any, starts: list[torch.Tensor]) -> list[tuple[torch.Tensor, bool]]:
        total = _total(outputs)
        if total is None or not starts:
            return [(start.detach(), False) for start in starts]
        grads = torch.autograd.grad(total, starts, allow_unused=True)
        return [(start.detach(), grad is not None) for start, grad in zip(starts, grads, strict=True)]

    before, after = (rows.differentiate(call, count, ask) for call in (picked, changed))
    if not before or after is None or len(before) != len(after):
        return None
    return any(
        reached and not torch.equal(one, other)
        for (one, reached), (other, _) in zip(before, after, strict=True)
    )


def same_from(rows: SameRows, model: torch.nn.Module, picked: RootCall, count: int) -> str | None:
    """The first module whose outputs are the same in all rows although its inputs are not."""
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def see(module: torch.nn.Module, args: Any, output: Any) -> None:
            given = next((t for _, t in tensors(args) if t.ndim and len(t) == count), None)
            if (
                given is None
                or not isinstance(output, torch.Tensor)
                or not output.ndim
                or len(output) != count
            ):
                return
            if bool((given != given[:1]).any()) and not bool((output != output[:1]).any()):
                found.append(name)

        return see

    @contextmanager
    def watching() -> Iterator[None]:
        handles = [
            module.register_forward_hook(look(name))
            for name, module in model.named_modules()
            if name and not isinstance(module, torch.jit.ScriptModule) and not any(module.children())
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    try:
        rows.run(picked, watch=watching())
    except Broken:
        return None
    return found[0] if found else None


def first_moved(
    rows: SameRows,
    model: torch.nn.Module,
    calls: tuple[RootCall, RootCall],
    row: int,
    places: slice | None,
    tolerance: float,
) -> str | None:
    """The first module whose outputs differ between two calls at some places of a row.

    Args:
        rows: runs the calls.
        model: the model.
        calls: the same call twice, with a change of some tokens of the row in the second.
        row: the row.
        places: the places, in outputs ``[rows, length, width]`` of modules.
        tolerance: a difference, relative to the values' size, that rounding explains.
    """
    if places is None:
        return None
    seen: list[dict[str, torch.Tensor]] = []
    room = _MOST_KEPT

    def look(name: str) -> Callable[..., None]:
        def see(module: torch.nn.Module, args: Any, output: Any) -> None:
            nonlocal room
            first = output[0] if isinstance(output, tuple) and output else output
            if not isinstance(first, torch.Tensor) or first.ndim < 3 or not first.is_floating_point():
                return
            if len(first) <= row or room <= 0:
                return
            kept = first.detach()[row, places].float().clone()
            room -= kept.numel()
            seen[-1].setdefault(name, kept)

        return see

    @contextmanager
    def watching() -> Iterator[None]:
        seen.append({})
        handles = [
            module.register_forward_hook(look(name))
            for name, module in model.named_modules()
            if name and not isinstance(module, torch.jit.ScriptModule)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    try:
        for call in calls:
            rows.run(call, watch=watching())
    except Broken:
        return None
    for name, before in seen[0].items():
        after = seen[1].get(name)
        if after is None or after.shape != before.shape or not before.numel():
            continue
        if float((after - before).abs().max()) > tolerance * (float(before.abs().max()) or 1.0):
            return name
    return None


class _Pairs(TorchFunctionMode):
    """Sees whether some operation compares the positions of a row with each other."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.seen = False
        self._length = length

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if func in _ATTENTION:
            self.seen |= any(self._length in t.shape for t in list(tensors_in(args, {}))[:1])
        elif name == "softmax" and isinstance(result, torch.Tensor):
            self.seen |= tuple(result.shape[-2:]) == (self._length, self._length)
        return result


def order_of(
    rows: SameRows,
    picked: RootCall,
    reordered: RootCall,
    row: int,
    order: torch.Tensor,
    material: Material,
    first: float,
) -> Order:
    """Whether another order of tokens moves nothing in double precision either."""
    pairs = _Pairs(len(order))
    before, after = rows.run_double(picked, pairs), rows.run_double(reordered)
    count = len(picked.tensors[material.main])
    exact = False
    if before is not None and after is not None:
        one, other = (row_outputs(found, count, material.length, False) for found in (before, after))
        if one and other and one[0].values.shape == other[0].values.shape:
            exact = float(reordered_change(one[0], other[0], row, order, one[0].spread).max()) <= _ROUNDING
    return Order(first, exact, pairs.seen)


def reordered_change(
    before: RowOutputs, after: RowOutputs, row: int, order: torch.Tensor, spread: float
) -> torch.Tensor:
    """How far the outputs of a row moved, positions put in the order of the tokens."""
    own = before.values[row]
    if before.positions == len(order):
        own = own[order.to(own.device)]
    return ((after.values[row] - own).abs() / spread).nan_to_num(0.0)
