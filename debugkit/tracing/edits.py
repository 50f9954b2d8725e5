"""Values of one sample in the place of another's: changes that stay inside what a batch holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from debugkit.tracing.root_call import RootCall, is_label

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)
_NO_IDS = ("mask", "pos", "type", "segment")
_SHARED = 0.3
_FEWEST_TOKENS = 3


@dataclass(frozen=True, eq=False)
class Material:
    """The tensors of a call that may be changed row by row.

    Attributes:
        call: the call.
        rows: the number of its rows.
        main: the name of its main input.
        tokens: whether that holds token ids ``[rows, length]``.
        content: bool ``[rows, length]`` on the CPU, what is no padding; ``None`` for no tokens.
    """

    call: RootCall
    rows: int
    main: str
    tokens: bool
    content: torch.Tensor | None = field(repr=False)

    @staticmethod
    def of(call: RootCall, rows: int, known: torch.Tensor | None = None) -> Material | None:
        """What there is to change.

        Args:
            call: the call.
            rows: its rows.
            known: ids that some of its rows are known to be.
        """
        inputs = {
            p: t for p, t in call.inputs(rows).items() if t.layout is torch.strided and not t.is_complex()
        }
        tokens = [path for path, tensor in inputs.items() if _may_be_ids(path, tensor)]
        tokens = [path for path in tokens if rows == 1 or _differs(inputs[path])] or tokens
        same = [path for path in tokens if known is not None and inputs[path].shape[1] == known.shape[1]]
        tokens.sort(
            key=lambda path: (path not in same, path.rpartition(".")[2] != "input_ids", "decoder" in path)
        )
        if tokens:
            shape = inputs[tokens[0]].shape
            return Material(call, rows, tokens[0], True, _content(inputs, shape))
        floats = [
            path for path, tensor in inputs.items() if tensor.is_floating_point() and "mask" not in path
        ]
        if not floats:
            floats = [path for path, tensor in inputs.items() if tensor.dtype != torch.bool]
        if not floats:
            return None
        return Material(call, rows, max(floats, key=lambda path: inputs[path].numel()), False, None)

    @property
    def values(self) -> torch.Tensor:
        """The main input."""
        return self.call.tensors[self.main]

    @property
    def length(self) -> int | None:
        """The number of tokens of a row."""
        return self.values.shape[1] if self.tokens else None

    @property
    def shares_ids(self) -> bool:
        """Whether the same ids stand at different places, as words do and categories of one column each don't."""
        ids = self.values.detach().cpu()
        hits = total = 0
        for place in range(ids.shape[1]):
            others = torch.cat([ids[:, :place], ids[:, place + 1 :]], dim=1)
            hits += int(torch.isin(ids[:, place], others).sum())
            total += len(ids)
        return hits > _SHARED * total

    def others(self) -> list[str]:
        """Further inputs that tell the rows of the batch apart."""
        found = []
        for path, tensor in self.call.inputs(self.rows).items():
            if path == self.main or tensor.layout is not torch.strided or not _differs(tensor):
                continue
            found.append(path)
        return found

    def rolled(
        self, path: str, row: int, start: int = 0, stop: int | None = None, turn: int = 0
    ) -> torch.Tensor:
        """A row of an input with another row's values from one place on.

        Tokens are exchanged only where both rows have content, so that masks still hold.

        Args:
            path: the input.
            row: the row.
            start: the first place that may change, along the second dimension.
            stop: the place after the last one.
            turn: 0 takes the row that differs most, 1 the next one, and so on.

        Returns:
            ``[1, ...]``, equal to the row where there is nothing else to put there.
        """
        tensor = self.call.tensors[path].detach()
        own = tensor[row].clone()
        if own.ndim == 0:
            rest = [other for other in range(self.rows) if not torch.equal(tensor[other], own)]
            return tensor[rest[turn % len(rest)]][None] if rest else own[None]
        places = torch.zeros(len(own), dtype=torch.bool)
        places[start:stop] = True
        best: list[tuple[int, torch.Tensor]] = []
        for other in range(self.rows):
            here = places.clone()
            if self.content is not None and tensor.shape[:2] == self.content.shape and path == self.main:
                here &= self.content[row] & self.content[other]
            here = here.to(own.device)
            kept = here.reshape(-1, *[1] * (own.ndim - 1))
            changed = torch.where(kept, tensor[other], own)
            moved = int((changed != own).sum())
            if moved:
                best.append((moved, changed))
        if not best:
            return self._turned(own, places, row, path, turn)[None]
        best.sort(key=lambda pair: -pair[0])
        return best[turn % len(best)][1][None]

    def reordered(self, row: int) -> torch.Tensor | None:
        """Where each place of a row gets its token from in another order ``[length]``; ``None`` where nothing moves.

        The first and the last token stay, which may be special, and so does padding.
        """
        ids = self.values[row].detach().cpu()
        assert self.content is not None
        places = self.content[row].nonzero().flatten()[1:-1]
        order = torch.arange(len(ids))
        order[places] = places.flip(0)
        return order if bool((ids[order] != ids).any()) else None

    def _turned(
        self, own: torch.Tensor, places: torch.Tensor, row: int, path: str, turn: int
    ) -> torch.Tensor:
        """Values from the other half of the same row, where no other row has different ones."""
        source = torch.ones_like(places)
        if self.content is not None and path == self.main:
            source = self.content[row]
        where, given = (places & source).nonzero().flatten(), source.nonzero().flatten()
        changed = own.clone()
        if len(given):
            rank = torch.searchsorted(given, where) + len(given) // 2 + turn
            changed[where.to(own.device)] = own[given[rank % len(given)].to(own.device)]
        return changed


def _may_be_ids(path: str, tensor: torch.Tensor) -> bool:
    last = path.rpartition(".")[2]
    if (
        tensor.ndim != 2
        or tensor.shape[1] < _FEWEST_TOKENS
        or tensor.dtype not in _WHOLE
        or any(no in last for no in _NO_IDS)
    ):
        return False
    counting = tensor.shape[1] > 1 and bool((tensor.long().diff(dim=1) == 1).all())
    return int(tensor.max()) > 1 and not counting and not is_label(path)


def _content(inputs: dict[str, torch.Tensor], shape: torch.Size) -> torch.Tensor:
    for path, tensor in inputs.items():
        if tensor.shape == shape and path.rpartition(".")[2] == "attention_mask":
            return tensor.detach().cpu() != 0
    return torch.ones(shape, dtype=torch.bool)


def _differs(tensor: torch.Tensor) -> bool:
    return len(tensor) > 1 and bool((tensor != tensor[:1]).any())


def joined(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows ``[1, ...]`` of one input as ``[rows, ...]``."""
    return torch.cat(list(rows))
