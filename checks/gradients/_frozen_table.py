"""One frozen embedding table: what its values and the rest of the model say about freezing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from debugkit import Finding, fail, note, warn
from debugkit.data.batch import input_ids, named
from debugkit.probes.batches import Batches
from debugkit.probes.initial_state import InitialState
from debugkit.weights.model_matrices import adapter_parameters
from debugkit.weights.new_rows import NewRows, new_rows
from debugkit.weights.table_origin import Origin

_SHOWN_TOKENS = 5
_PADDED_ROWS = 8  # tables that are padded for speed have a multiple of 8 rows or more
_WIDE_STD = 0.3  # torch's default N(0, 1) still looks random after a training that is short


@dataclass(frozen=True)
class Body:
    """The weights beside the embedding tables and adapters.

    Attributes:
        layers: how far they are from their initialisation.
        frozen_share: share of their values that is frozen.
        frozen_trained: whether those that are frozen are seen to be trained.
        adapted: whether the model has adapters.
    """

    layers: InitialState
    frozen_share: float
    frozen_trained: bool
    adapted: bool

    @staticmethod
    def of(model: nn.Module, tables: dict[str, nn.Module], layers: InitialState) -> Body:
        """Look at a model without its ``tables``."""
        adapters = adapter_parameters(model)
        skipped = adapters | {id(p) for module in tables.values() for p in module.parameters()}
        weights = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and id(p) not in skipped}
        frozen = {name: weight.numel() for name, weight in weights.items() if not weight.requires_grad}
        seen = [found for (name, _), found in layers.states.items() if name in frozen]
        total = sum(weight.numel() for weight in weights.values())
        return Body(
            layers=layers,
            frozen_share=sum(frozen.values()) / total if total else 0.0,
            frozen_trained=seen.count("trained") > seen.count("initial"),
            adapted=bool(adapters),
        )


class FrozenTable:
    """A frozen table in its model.

    Args:
        name: the module's name.
        weight: the values ``[rows, width]``.
        padding: the row of the padding token.
        body: the rest of the model.
    """

    def __init__(self, name: str, weight: torch.Tensor, padding: int | None, body: Body) -> None:
        self._name = name
        self._weight = weight.detach()
        self._padding = padding
        self._body = body
        self._rows, self._width = weight.shape
        self._shown = f"`{name}` [{self._rows}, {self._width}]"
        self._where = f"{name}.weight"

    def added(self, batches: Batches, tokenizer: Any) -> Finding | None:
        """Whether its last rows were added for new tokens."""
        new = new_rows(self._weight, self._padding)
        if new is None:
            return None
        reached, seen = self._reached(new, tokenizer, batches)
        if reached:
            return self._new(new, reached, tokenizer)
        if new.mark == "mean" and not seen and self._rows % _PADDED_ROWS:
            return self._new(new, [], None)
        if new.mark == "mean":
            return note(
                f"`{self._name}` is frozen; its last {len(new.rows)} of {self._rows} rows are the mean of the "
                "others, and no token is seen to use them",
                where=self._where,
            )
        return None

    def untrained(self, origin: Origin, max_frozen_share: float) -> Finding | None:
        """Whether its values, or those of the layers around it, still wait for a training."""
        body = self._body
        if origin == "random":
            return self._random()
        if origin in ("like an initialiser", "undetermined"):
            return self._small(origin == "like an initialiser", max_frozen_share)
        if origin == "structured" and body.layers.fresh and body.frozen_share <= max_frozen_share:
            return warn(
                f"{self._shown} is frozen with pretrained values in a model that is otherwise fresh and trainable "
                f"({body.layers.count('initial')} of {body.layers.determined} layers look like their initialisation), "
                "so the embeddings can't adapt to the task",
                where=self._where,
                hint="pass `freeze=False` to `nn.Embedding.from_pretrained`, or ignore this check if it is frozen on "
                "purpose",
                rows=self._rows,
                width=self._width,
            )
        return None

    def _random(self) -> Finding:
        body, values = self._body, self._weight.float()
        std = float(values.std())
        barely_moved = std > _WIDE_STD and body.layers.count("trained") > body.layers.count("initial")
        if body.frozen_share and (barely_moved or not body.frozen_trained):
            return note(
                f"{self._shown} is frozen and looks random, and so are other weights frozen: the model may be a "
                "stand-in for a pretrained one",
                where=self._where,
                std=std,
            )
        make = warn if barely_moved else fail
        doubt = ", unless it was trained little from a wide initialisation" if barely_moved else ""
        return make(
            f"{self._shown} is frozen while its values are random (mean {float(values.mean()):.1e}, std {std:.3g}, no "
            f"structure){doubt}: what it looks up can never be learned",
            where=self._where,
            hint=f"{self._unfreeze}, or load its pretrained values first",
            rows=self._rows,
            width=self._width,
            std=std,
        )

    def _small(self, like: bool, max_frozen_share: float) -> Finding:
        """A table too small for its spectrum to tell; ``like`` an initialiser's by its moments or not."""
        if not like or self._body.frozen_share > max_frozen_share:
            return note(
                f"{self._shown} is frozen, and too small to tell trained values from random ones",
                where=self._where,
            )
        values = self._weight.float()
        return warn(
            f"{self._shown} is frozen in a trainable model while its values are like an initialiser's (mean "
            f"{float(values.mean()):.1e}, std {float(values.std()):.3g}): if it was never trained, what it looks up is "
            "noise for good",
            where=self._where,
            hint=f"{self._unfreeze}; if it was loaded on purpose, ignore this check",
            rows=self._rows,
            width=self._width,
            std=float(values.std()),
        )

    def _new(self, new: NewRows, reached: list[int], tokenizer: Any) -> Finding:
        looks = {
            "mean": "equal to the mean of the others",
            "zero": "zero",
            "norm": "of a norm far outside the others'",
        }[new.mark]
        first, last = new.rows[0], new.rows[-1]
        place = f"row {first}" if first == last else f"rows {first} to {last}"
        tokens = ""
        if reached and callable(getattr(tokenizer, "convert_ids_to_tokens", None)):
            shown = [f"`{token}`" for token in tokenizer.convert_ids_to_tokens(reached[:_SHOWN_TOKENS])]
            tokens = f" ({', '.join(shown)}{', …' if len(reached) > _SHOWN_TOKENS else ''})"
        leaf = self._name.rpartition(".")[2]
        adapted = (
            f'pass `modules_to_save=["{leaf}"]` or `trainable_token_indices={{"{leaf}": [...]}}` to the adapter\'s '
            "config"
        )
        make = fail if reached else warn
        return make(
            f"{self._shown} is frozen while it holds new rows: {place}{tokens} {'is' if first == last else 'are'} "
            f"{looks}, so the new tokens stay without a meaning of their own",
            where=self._where,
            hint=adapted
            if self._body.adapted
            else f"unfreeze it: `{self._name}.weight.requires_grad_(True)`",
            first_new_row=first,
            new_rows=len(new.rows),
        )

    @property
    def _unfreeze(self) -> str:
        return f"unfreeze it (`{self._name}.weight.requires_grad_(True)`)"

    def _reached(self, new: NewRows, tokenizer: Any, batches: Batches) -> tuple[list[int], bool]:
        """Those of the new rows that a token stands for, and whether a tokenizer was there to say so."""
        rows = set(new.rows) - {self._padding, getattr(tokenizer, "pad_token_id", None)}
        vocabulary = getattr(tokenizer, "get_vocab", None)
        in_batches = sorted(rows & _ids(batches))
        if in_batches or new.mark != "mean" or not callable(vocabulary):
            return in_batches, callable(vocabulary)
        return sorted(rows.intersection(vocabulary().values())), True


def _ids(batches: Batches) -> set[int]:
    """The token ids of the batches that are not masked as padding."""
    found: set[int] = set()
    for batch in batches.items:
        ids = input_ids(batch)
        if ids is None:
            continue
        mask = named(batch, "attention_mask")
        if mask is not None and mask.shape == ids.shape:
            ids = ids[mask != 0]
        found.update(ids.flatten().tolist())
    return found
