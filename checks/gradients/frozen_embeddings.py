"""Embedding tables that are frozen though they are random, hold new rows, or sit in a fresh model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, note
from debugkit.probes.batches import Batches
from debugkit.probes.frozen_tables import FrozenState
from debugkit.probes.training_step import TrainingStep
from debugkit.weights.model_matrices import is_table

from ._frozen_table import Body, FrozenTable


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
        body = Body.of(target.model, tables, frozen.layers)
        covered = _covered(target.model)
        origins = frozen.tables.origins
        for name, weight in used.items():
            if name in origins and id(weight) not in covered:
                table = FrozenTable(name, weight, getattr(tables[name], "padding_idx", None), body)
                finding = table.added(batches, target.tokenizer) or table.untrained(
                    origins[name], max_frozen_share
                )
                if finding is not None:
                    yield finding
    yield _costs(target.model, used)


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
