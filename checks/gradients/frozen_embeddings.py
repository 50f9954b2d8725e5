"""Embedding tables that are frozen though they are random, hold new rows, or sit in a fresh model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.batch import input_ids, named
from debugkit.probes.batches import Batches
from debugkit.probes.initial_state import FrozenState, InitialState
from debugkit.probes.layer_spectra import adapter_parameters, is_table
from debugkit.probes.training_step import TrainingStep

_MOST_NEW_ROWS = 4096
_SHOWN_TOKENS = 5
_PADDED_ROWS = 8  # tables that are padded for speed have a multiple of 8 rows or more
_WIDE_STD = 0.3  # torch's default N(0, 1) still looks random after a training that is short

Mark = Literal["mean", "zero", "norm"]


@check
def frozen_embeddings(
    target: Target,
    step: TrainingStep,
    frozen: FrozenState | None,
    batches: Batches,
    *,
    max_frozen_share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of the other weights that may be frozen in a model called trainable",
        ),
    ] = 0.1,
) -> Iterator[Finding]:
    """An embedding table is frozen though it is random, holds new rows, or belongs to a fresh model.

    Looks at the tables that one traced step reads, and at their values.

    ## Why is this bad?
    A frozen table can't learn. Random rows stay random, so the model sees every token as noise and must learn
    around it; rows of added tokens stay at the mean of the others, so the model can't tell the new tokens
    apart. Nothing raises, and the loss still falls. `nn.Embedding.from_pretrained` freezes unless it is told
    `freeze=False`, and LoRA freezes the whole base model, rows added by `resize_token_embeddings` included.

    ## What to do
    Unfreeze the table (`embedding.weight.requires_grad_(True)`), or load its pretrained values before freezing
    it. With LoRA, name the embedding in `modules_to_save`, or the new rows in `trainable_token_indices`.

    ## Known limits
    A table whose lookup is not a call of the embedding module (`F.embedding` on a bare parameter) is not seen.
    New rows are recognised by their values: at the mean of the others, zero, or of a norm far outside theirs;
    rows drawn at the others' scale are not. A table under 32 rows or 8 columns is judged by its pooled moments
    alone, which a trained one can share, so it is a warning at most. A table that was trained little from torch's default N(0, 1) can't
    be told from a random one, so beside trained layers that is a warning. Where the rest of the body is frozen too and is not seen to be
    trained, a random table is a note: stand-ins for a pretrained model look like that.

    ## References
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.Embedding.html#torch.nn.Embedding.from_pretrained
    - https://huggingface.co/docs/peft/developer_guides/lora#extending-the-vocabulary
    - https://nlp.stanford.edu/~johnhew/vocab-expansion.html
    """
    tables = {name: module for name, module in target.model.named_modules() if is_table(module)}
    if not tables:
        raise Unavailable("the model has no embedding table")
    used = {
        name: weight
        for name, module in tables.items()
        if step.module_calls.get(name) and (weight := module._parameters.get("weight")) is not None
    }
    if not used:
        raise Unavailable("the traced step calls none of the model's embedding tables")
    if frozen is not None:
        body = _Body.of(target.model, tables, frozen.layers)
        covered = _covered(target.model)
        for name, weight in used.items():
            if name in frozen.tables.origins and id(weight) not in covered:
                finding = _judge(
                    target, name, weight.detach(), tables[name], frozen, body, batches, max_frozen_share
                )
                if finding is not None:
                    yield finding
    yield _costs(target.model, used)


@dataclass(frozen=True)
class _Body:
    """The weights beside the embedding tables and adapters.

    Attributes:
        frozen_share: share of their values that is frozen.
        frozen_trained: whether those that are frozen are seen to be trained.
        adapted: whether the model has adapters.
    """

    frozen_share: float
    frozen_trained: bool
    adapted: bool

    @staticmethod
    def of(model: nn.Module, tables: dict[str, nn.Module], state: InitialState) -> _Body:
        adapters = adapter_parameters(model)
        skipped = adapters | {id(p) for module in tables.values() for p in module.parameters()}
        weights = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and id(p) not in skipped}
        frozen = {name: weight.numel() for name, weight in weights.items() if not weight.requires_grad}
        seen = [found for (name, _), found in state.states.items() if name in frozen]
        total = sum(weight.numel() for weight in weights.values())
        return _Body(
            frozen_share=sum(frozen.values()) / total if total else 0.0,
            frozen_trained=seen.count("trained") > seen.count("initial"),
            adapted=bool(adapters),
        )


def _judge(
    target: Target,
    name: str,
    weight: torch.Tensor,
    module: nn.Module,
    frozen: FrozenState,
    body: _Body,
    batches: Batches,
    max_frozen_share: float,
) -> Finding | None:
    state = frozen.layers
    new = _new_rows(weight, getattr(module, "padding_idx", None))
    if new is not None:
        reached, seen = _reached(new, target.tokenizer, batches, module)
        if reached:
            return _new_rows_finding(name, weight, new, reached, target.tokenizer, body)
        if new.mark == "mean" and not seen and len(weight) % _PADDED_ROWS:
            return _new_rows_finding(name, weight, new, [], None, body)
        if new.mark == "mean":
            return note(
                f"`{name}` is frozen; its last {len(new.rows)} of {len(weight)} rows are the mean of the others, and no "
                "token is seen to use them",
                where=f"{name}.weight",
            )
    origin = frozen.tables.origins[name]
    shape = f"[{weight.shape[0]}, {weight.shape[1]}]"
    if origin == "random":
        return _random(name, weight, state, body)
    if origin in ("like an initialiser", "undetermined"):
        return _small(name, weight, origin == "like an initialiser", body, max_frozen_share)
    if origin == "structured" and state.fresh and body.frozen_share <= max_frozen_share:
        return warn(
            f"`{name}` {shape} is frozen with pretrained values in a model that is otherwise fresh and trainable "
            f"({state.count('initial')} of {state.determined} layers look like their initialisation), so the "
            "embeddings can't adapt to the task",
            where=f"{name}.weight",
            hint="pass `freeze=False` to `nn.Embedding.from_pretrained`, or ignore this check if it is frozen on purpose",
            rows=weight.shape[0],
            width=weight.shape[1],
        )
    return None


def _random(name: str, weight: torch.Tensor, state: InitialState, body: _Body) -> Finding:
    std = float(weight.float().std())
    shape = f"[{weight.shape[0]}, {weight.shape[1]}]"
    barely_moved = std > _WIDE_STD and state.count("trained") > state.count("initial")
    if body.frozen_share and (barely_moved or not body.frozen_trained):
        return note(
            f"`{name}` {shape} is frozen and looks random, and so are other weights frozen: the model may be a stand-in "
            "for a pretrained one",
            where=f"{name}.weight",
            std=std,
        )
    make = warn if barely_moved else fail
    doubt = ", unless it was trained little from a wide initialisation" if barely_moved else ""
    return make(
        f"`{name}` {shape} is frozen while its values are random (mean {float(weight.float().mean()):.1e}, std {std:.3g}, "
        f"no structure){doubt}: what it looks up can never be learned",
        where=f"{name}.weight",
        hint=f"unfreeze it (`{name}.weight.requires_grad_(True)`), or load its pretrained values first",
        rows=weight.shape[0],
        width=weight.shape[1],
        std=std,
    )


def _small(name: str, weight: torch.Tensor, like: bool, body: _Body, max_frozen_share: float) -> Finding:
    values = weight.float()
    shape = f"[{weight.shape[0]}, {weight.shape[1]}]"
    if like and body.frozen_share <= max_frozen_share:
        return warn(
            f"`{name}` {shape} is frozen in a trainable model while its values are like an initialiser's (mean "
            f"{float(values.mean()):.1e}, std {float(values.std()):.3g}): if it was never trained, what it looks up is "
            "noise for good",
            where=f"{name}.weight",
            hint=f"unfreeze it (`{name}.weight.requires_grad_(True)`); if it was loaded on purpose, ignore this check",
            rows=weight.shape[0],
            width=weight.shape[1],
            std=float(values.std()),
        )
    return note(
        f"`{name}` {shape} is frozen, and too small to tell trained values from random ones",
        where=f"{name}.weight",
    )


@dataclass(frozen=True)
class _NewRows:
    rows: range
    mark: Mark


@torch.no_grad()
def _new_rows(weight: torch.Tensor, padding: int | None) -> _NewRows | None:
    """The last rows of a table, where they differ from the others as rows do that were added later."""
    count = len(weight)
    norms = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).cpu()
    tail_start = max(count // 2, count - _MOST_NEW_ROWS)
    mean = weight.mean(0, dtype=torch.float32)
    sample = weight[:: max(1, count // _MOST_NEW_ROWS)].float()
    spread = float(torch.linalg.vector_norm(sample - mean, dim=1).median())
    if not 0 < spread < float("inf"):
        return None
    rounding = 2 * torch.finfo(weight.dtype).eps * float(mean.norm()) / spread
    near = (
        torch.linalg.vector_norm(weight[tail_start:].float() - mean, dim=1).cpu() < (0.01 + rounding) * spread
    )
    zero = norms[tail_start:] == 0
    marks: list[tuple[Mark, torch.Tensor]] = [("zero", zero), ("mean", near)]
    for mark, marked in marks:
        length = _trailing(marked)
        rows = range(count - length, count)
        if not length or length == count - tail_start:
            continue
        if mark == "zero" and bool((norms[: rows.start] == 0).sum() > (padding is not None)):
            return None
        return _NewRows(rows, mark)
    return _odd_norms(norms, tail_start)


def _odd_norms(norms: torch.Tensor, tail_start: int) -> _NewRows | None:
    """Trailing rows whose norms are all beyond twice the largest, or below half of the smallest, of the others."""
    others = norms[:tail_start]
    others = others[others > 0]
    if len(others) < 8:
        return None
    low, high = float(others.min()) / 2, float(others.max()) * 2
    length = _trailing((norms[tail_start:] < low) | (norms[tail_start:] > high))
    if not length or length == len(norms) - tail_start:
        return None
    return _NewRows(range(len(norms) - length, len(norms)), "norm")


def _trailing(marked: torch.Tensor) -> int:
    """How many values at the end are true."""
    misses = (~marked).nonzero()
    return len(marked) - 1 - int(misses[-1]) if len(misses) else len(marked)


def _reached(new: _NewRows, tokenizer: Any, batches: Batches, module: nn.Module) -> tuple[list[int], bool]:
    """Those of the new rows that a token stands for, and whether a tokenizer was there to say so."""
    rows = set(new.rows)
    rows -= {getattr(module, "padding_idx", None), getattr(tokenizer, "pad_token_id", None)}
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


def _new_rows_finding(
    name: str, weight: torch.Tensor, new: _NewRows, reached: list[int], tokenizer: Any, body: _Body
) -> Finding:
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
    leaf = name.rpartition(".")[2]
    adapted = f'pass `modules_to_save=["{leaf}"]` or `trainable_token_indices={{"{leaf}": [...]}}` to the adapter\'s config'
    make = fail if reached else warn
    return make(
        f"`{name}` [{weight.shape[0]}, {weight.shape[1]}] is frozen while it holds new rows: {place}{tokens} "
        f"{'is' if first == last else 'are'} {looks}, so the new tokens stay without a meaning of their own",
        where=f"{name}.weight",
        hint=adapted if body.adapted else f"unfreeze it: `{name}.weight.requires_grad_(True)`",
        first_new_row=first,
        new_rows=len(new.rows),
    )


def _covered(model: nn.Module) -> set[int]:
    """The ids of parameters that an adapter with trainable values of its own stands in for."""
    covered: set[int] = set()
    for module in model.modules():
        base = module._modules.get("base_layer")
        if isinstance(base, nn.Module):
            inside = {id(p) for p in base.parameters()}
            if any(p.requires_grad and id(p) not in inside for p in module.parameters()):
                covered |= inside
    return covered


def _costs(model: nn.Module, used: dict[str, nn.Parameter]) -> Finding:
    """What training or freezing the largest table means."""
    name, weight = max(used.items(), key=lambda item: item[1].numel())
    total = sum(parameter.numel() for parameter in model.parameters())
    megabytes = 3 * weight.numel() * weight.element_size() / 2**20
    share = weight.numel() / total if total else 0.0
    frozen = sum(not table.requires_grad for table in used.values())
    does = "freezing it would save" if weight.requires_grad else "being frozen saves"
    return note(
        f"{len(used)} embedding tables in use, {frozen} of them frozen: `{name}` holds {share:.0%} of the parameters, and {does} "
        f"{megabytes:,.3g} MiB of gradients and Adam state",
        where=f"{name}.weight",
        tables=len(used),
        frozen=frozen,
        megabytes=megabytes,
    )


class _Classifier(nn.Module):
    """Token ids ``[batch, length]`` to logits ``[batch, 2]``."""

    def __init__(self, tokens: nn.Embedding, positions: nn.Embedding | None = None) -> None:
        super().__init__()
        self.tokens = tokens
        self.positions = positions
        self.body = nn.Sequential(
            nn.Linear(tokens.embedding_dim, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids)
        if self.positions is not None:
            x = x + self.positions(torch.arange(ids.shape[1], device=ids.device))
        return self.body(x.mean(1))  # type: ignore[no-any-return]


def _texts(vocabulary: int = 300, rows: int = 64, length: int = 12) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Token ids ``[rows, length]`` whose range depends on the label, in random order."""
    labels = torch.arange(rows) % 2
    ids = torch.randint(0, vocabulary // 2, (rows, length)) + labels[:, None] * (vocabulary // 2)
    return DataLoader(TensorDataset(ids, labels), batch_size=16, shuffle=True)


def _pretrained(rows: int = 300, width: int = 64) -> torch.Tensor:
    """A table as training leaves it: some directions strong, frequent rows longer, a common mean."""
    scale = torch.arange(1, width + 1) ** -0.5
    norms = 0.5 + torch.rand(rows, 1)
    return (torch.randn(rows, width) * scale + 0.3 * torch.randn(width) * scale) * norms


def _sinusoids(rows: int = 32, width: int = 64) -> torch.Tensor:
    angles = torch.arange(rows)[:, None] * 10_000 ** (-torch.arange(0, width, 2) / width)
    return torch.cat([angles.sin(), angles.cos()], 1)


def _table(values: torch.Tensor, **options: bool) -> nn.Embedding:
    return nn.Embedding.from_pretrained(values, **options)  # type: ignore[no-any-return,no-untyped-call]


def good() -> Target:
    return Target(_Classifier(nn.Embedding(300, 64)), _texts(), nn.CrossEntropyLoss())


def good_pretrained_unfrozen() -> Target:
    table = _table(_pretrained(), freeze=False)
    return Target(_Classifier(table), _texts(), nn.CrossEntropyLoss())


def good_frozen_sinusoids() -> Target:
    positions = _table(_sinusoids())
    return Target(_Classifier(nn.Embedding(300, 64), positions), _texts(), nn.CrossEntropyLoss())


def bad_frozen_random() -> Target:
    model = _Classifier(nn.Embedding(300, 64))
    model.tokens.weight.requires_grad_(False)
    return Target(model, _texts(), nn.CrossEntropyLoss())


def bad_from_pretrained_freezes() -> Target:
    return Target(_Classifier(_table(_pretrained())), _texts(), nn.CrossEntropyLoss())


def bad_new_rows_at_the_mean() -> Target:
    table = _pretrained(297)
    table = torch.cat([table, table.mean(0).expand(3, -1)])
    return Target(_Classifier(_table(table)), _texts(), nn.CrossEntropyLoss())
