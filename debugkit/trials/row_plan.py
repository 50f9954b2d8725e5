"""Which rows of a call to run, and what to change in each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from debugkit.data.batch import split
from debugkit.data.documents import documents
from debugkit.errors import Unavailable
from debugkit.tracing.edits import Material
from debugkit.tracing.root_call import RootCall
from debugkit.tracing.row_axis import knows_axis, row_count, unaligned_input

_MOST_ROWS = 8
_FEW_ROWS = 4
_FEWEST_STEPS = 3


@dataclass(frozen=True, eq=False)
class Asked:
    """What positions of some rows have to predict, as seen in a step.

    Attributes:
        rows: the numbers of the rows in the batch.
        ids: ``[rows, length]``, what the model looked up.
        targets: ``[rows, length]``, -1 where nothing is asked.
        decoder: whether these are the tokens of a decoder beside other inputs.
        next_step: whether targets are the next token.
    """

    rows: tuple[int, ...]
    ids: torch.Tensor
    targets: torch.Tensor
    decoder: bool
    next_step: bool


@dataclass(frozen=True, eq=False)
class Change:
    """One change of the tokens of one row.

    Attributes:
        row: its place among the rows of the pass.
        path: the input.
        start: the first changed place.
        stop: the place after the last one.
        asked: bool ``[length]``, which positions have a target.
        documents: ``[length]``, the document of each position, where the row holds several.
        declared: what says so.
        ahead: 1 where the input are the targets themselves.
    """

    row: int
    path: str
    start: int
    stop: int | None
    asked: torch.Tensor | None = None
    documents: torch.Tensor | None = None
    declared: str | None = None
    ahead: int = 0


@dataclass(frozen=True, eq=False)
class RowPlan:
    """The rows of both passes and their changes.

    Attributes:
        material: what may be changed.
        picks: the rows of the batch to run, in this order; the first is changed, the second stays.
        main: the change of the first row.
        decoder: the change of what a decoder is given.
        order: the row that gets another order, and where each place gets its token from.
        keys: by input, the row in which it is changed.
        next_step: whether positions have to predict what comes next in the main input.
        unaligned: an input that has no entry for each row.
        whole: whether all rows run as they are.
        known_axis: whether the first dimension is certainly that of the samples.
    """

    material: Material
    picks: tuple[int, ...]
    main: Change
    decoder: Change | None
    order: tuple[int, torch.Tensor] | None
    keys: Mapping[str, int] = field(default_factory=dict)
    next_step: bool = False
    unaligned: str | None = None
    whole: bool = False
    known_axis: bool = True

    def changes(self, turn: int = 0) -> list[dict[str, torch.Tensor]]:
        """By row, what to put at each path."""
        found: list[dict[str, torch.Tensor]] = [{} for _ in self.picks]
        material = self.material
        for change in (self.main, self.decoder):
            if change is not None:
                found[change.row][change.path] = material.rolled(
                    change.path, self.picks[change.row], change.start, change.stop, turn
                )
        if (change := self.decoder) is not None:
            own = material.call.tensors[change.path].detach()[self.picks[change.row]][None]
            found[change.row][change.path] = _within_targets(own, found[change.row][change.path])
        if self.order is not None:
            row, order = self.order
            found[row][material.main] = material.values[self.picks[row]][order.to(material.values.device)][
                None
            ]
        for path, row in self.keys.items():
            found[row][path] = material.rolled(path, self.picks[row], turn=turn)
        return found


def plan_rows(
    call: RootCall, batch: Any, asked: Asked | None, loader_rows: int | None, *, whole: bool = False
) -> RowPlan:
    """Choose rows and changes.

    Args:
        call: the model's call.
        batch: the batch that it came from.
        asked: what is known of what positions have to predict.
        loader_rows: the batch size of the loader, where it has one.
        whole: run all rows as they are, and change only the first.

    Raises:
        Unavailable: there is nothing to change.
    """
    count = row_count(call, batch)
    known = asked.ids if asked is not None and not asked.decoder else None
    material = Material.of(call, count, known)
    if material is None:
        raise Unavailable("the model's call holds no tensor with a row for each sample")
    found = None if not material.tokens else documents(call.tensors, count, material.values.shape[1])
    packed = [] if found is None else (found[0].amax(1) > 0).nonzero().flatten().tolist()
    unaligned = unaligned_input(call, material)
    whole |= unaligned is not None
    first = 0 if whole else _first_row(material, packed, asked)
    keys = [] if count < 2 else material.others()
    decoder = None if asked is None or not asked.decoder else _decoder(material, asked)
    reorders = material.tokens and not packed and count > 1 and material.shares_ids
    wanted = 2 + len(keys) + (decoder is not None) + reorders
    rows = 1 if count == 1 else min(_MOST_ROWS, max(2, 3 * count // 2), max(wanted, min(count, _FEW_ROWS)))
    rows = count if whole else rows
    picks = ([first, *(row for row in range(count) if row != first)] * rows)[:rows]
    next_step = _is_next(material, batch) or (asked is not None and asked.next_step and not asked.decoder)
    main = _main_change(
        material, first, asked, None if found is None or first not in packed else found, next_step
    )
    free = [] if whole else [*range(2, rows)]
    placed_decoder = replace(decoder, row=free.pop(0)) if decoder is not None and free else None
    placed_keys: dict[str, int] = {}
    spare = 1 if reorders and len(free) > 1 else 0
    for path in keys:
        if decoder is not None and path == decoder.path:
            continue
        row = next((r for r in free if not _stays(material, path, picks[r])), None)
        if row is not None and len(free) > spare:
            free.remove(row)
            placed_keys[path] = row
    orders = ((row, material.reordered(picks[row])) for row in free) if reorders else ()
    order = next(((row, order) for row, order in orders if order is not None), None)
    return RowPlan(
        material=material,
        picks=tuple(picks),
        main=main,
        decoder=placed_decoder,
        order=order,
        keys=placed_keys,
        next_step=next_step,
        unaligned=unaligned,
        whole=whole,
        known_axis=knows_axis(call, material, batch, loader_rows),
    )


def _within_targets(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Other ids ``[1, length]`` where both are ids; the last one stays, with which some decoders start."""
    kept = (own < 0) | (other < 0)
    live = (own[0] >= 0).nonzero().flatten()
    if len(live):
        kept[0, live[-1]] = True
    return torch.where(kept, own, other)


def _stays(material: Material, path: str, row: int) -> bool:
    return bool(torch.equal(material.rolled(path, row)[0], material.call.tensors[path][row]))


def _first_row(material: Material, packed: list[int], asked: Asked | None) -> int:
    """A packed row, else one whose targets are known, else one that has something else to put there."""
    known = (
        [] if asked is None or asked.decoder else [row for row in asked.rows if _is_row(material, asked, row)]
    )
    if packed:
        return next((row for row in packed if row in known), packed[0])
    if known and asked is not None:
        return max(known, key=lambda row: int((asked.targets[asked.rows.index(row)] >= 0).sum()))
    return next((row for row in range(material.rows) if not _stays(material, material.main, row)), 0)


def _is_row(material: Material, asked: Asked, row: int) -> bool:
    own = material.values
    ids = asked.ids[asked.rows.index(row)]
    return material.tokens and row < len(own) and torch.equal(own[row].cpu().long()[: len(ids)], ids)


def _main_change(
    material: Material,
    row: int,
    asked: Asked | None,
    packed: tuple[torch.Tensor, str] | None,
    next_step: bool,
) -> Change:
    values = material.values
    if values.ndim < 2 or not (material.tokens or next_step):
        return Change(0, material.main, 0, None)
    length = values.shape[1]
    wanted = None
    if asked is not None and not asked.decoder and row in asked.rows and _is_row(material, asked, row):
        wanted = asked.targets[asked.rows.index(row)] >= 0
    places = torch.arange(length)
    if material.content is not None:
        places = material.content[row].nonzero().flatten()
    stop = length
    if packed is not None:
        places = (packed[0][row] == 0).nonzero().flatten()
        stop = int(places[-1]) + 1 if len(places) else length
    other = material.rolled(material.main, row)[0]
    moves = (other != values[row]).reshape(length, -1).any(1).cpu()
    inner = [place for place in places.tolist()[1:] if place > 0]
    better = [place for place in inner if bool(moves[place])] or inner or [length // 2]
    if wanted is not None:
        better = [place for place in better if bool(wanted[: len(moves)][place - 1])] or better
    start = better[len(better) // 2]
    if packed is None and material.tokens and bool(moves[start : places[-1]].any()):
        stop = int(places[-1])  # some decoders start with the last token
    return Change(
        row=0,
        path=material.main,
        start=start,
        stop=stop,
        asked=wanted,
        documents=None if packed is None else packed[0][row],
        declared=None if packed is None else packed[1],
    )


def _decoder(material: Material, asked: Asked) -> Change | None:
    """The input that a decoder reads, or is made to read from its targets."""
    for path, tensor in material.call.tensors.items():
        if (
            tensor.ndim != 2
            or len(tensor) != material.rows
            or tensor.is_floating_point()
            or path == material.main
        ):
            continue
        ids = tensor.detach().cpu().long()
        if ids.shape[1] < _FEWEST_STEPS or ids.shape[1] != asked.ids.shape[1] or max(asked.rows) >= len(ids):
            continue
        own = ids[list(asked.rows)]
        live = asked.targets >= 0
        if torch.equal(own, asked.ids):
            return Change(0, path, ids.shape[1] // 2, ids.shape[1] - 1)
        if bool(live.any()) and torch.equal(own[live], asked.targets[live]):
            return Change(0, path, ids.shape[1] // 2, ids.shape[1] - 1, ahead=1)
    return None


def _is_next(material: Material, batch: Any) -> bool:
    """Whether the labels are the main input one step later, step by step."""
    _, labels = split(batch)
    given = material.values
    if not isinstance(labels, torch.Tensor) or labels.layout is not torch.strided or given.ndim < 2:
        return False
    if labels.shape != given.shape or given.shape[1] < _FEWEST_STEPS or labels.dtype != given.dtype:
        return False
    given = given.detach().to(labels.device)
    moves = bool((given[:, 1:] != given[:, :-1]).any()) and not torch.equal(labels, given)
    return moves and torch.equal(labels[:, :-1], given[:, 1:])
