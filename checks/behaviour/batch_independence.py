"""Samples whose outputs depend on the rest of their batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.probes.dependence import Dependence
from debugkit.testing import blobs, mlp
from debugkit.tracing.influence import Mixing

_SMALL = 0.1


@check
def batch_independence(dependence: Dependence) -> Iterator[Finding]:
    """The output of one sample depends on the other samples of its batch.

    A few rows run twice in eval mode, with the same random numbers. The second time all but one have other values;
    the outputs of that one must stay as they are. Where they don't, it is tried again with one row more, and the
    gradient tells whether values flow from row to row.

    ## Why is this bad?
    A `view` or `reshape` where a `permute` was meant, a softmax or mean over dimension 0, a module that takes
    `[length, batch, width]` and is given `[batch, length, width]`: each mixes samples. The model trains on features
    of other samples, results change with the batch size and the order of the data, and evaluation differs from use.

    ## What to do
    Look at the line that is named. `transpose` or `permute` change the order of dimensions, `view` and `reshape` cut
    the same order of values anew. Pass `batch_first=True`, and a dimension counted from the end (`dim=-1`).

    ## Known limits
    Batch normalisation mixes rows in train mode by design, so eval mode is judged. Similarities of all samples with
    all others, normalisation without running statistics and routing with a limited capacity are told in a note; so are
    models that take one size of batch only, and rows that belong to one graph are not judged.

    ## References
    - https://github.com/Lightning-AI/pytorch-lightning/issues/1237
    - https://github.com/pytorch/pytorch/issues/63560
    """
    mixing = dependence.mixing
    if mixing is None:
        raise Unavailable(f"rows can't be told apart: {dependence.unmixed_because}")
    if not mixing.change:
        yield note(
            f"a row stays as it is when {dependence.rows - 1} other{'s' if dependence.rows > 2 else ''} of its batch "
            "change",
            rows=dependence.rows,
        )
        return
    yield _explained(mixing, dependence)


def _explained(mixing: Mixing, dependence: Dependence) -> Finding:
    touch = mixing.touch
    said = (
        f"the output of a row moves by {mixing.change:.2g} (in widths of the middle half of all outputs) when only other "
        "rows of its batch change"
    )
    if touch is not None and touch.batch_statistics:
        return note(
            f"{said}: `batch_norm` has no running statistics and uses those of the batch", where=touch.module
        )
    if mixing.follows:
        return note(
            f"{said}: it holds a value for each pair of rows, as similarities do", change=mixing.change
        )
    if mixing.way == "choices":
        return note(
            f"{said}, but no value flows from row to row: rows compete for places, as in routing with limited capacity",
            change=mixing.change,
        )
    if mixing.fixed:
        return note(
            f"{said}; the model takes no other number of rows than {dependence.rows:,}, so they may belong together",
            change=mixing.change,
        )
    if mixing.along_second:
        return note(
            f"{said}, and not when other columns change: the second dimension may be that of the samples",
            change=mixing.change,
        )
    if mixing.way == "unknown" and mixing.change < _SMALL:
        return note(
            f"{said}; no gradient tells why, as where layers are quantised with one scale for the whole batch",
            change=mixing.change,
        )
    at = f", first in the result of `{touch.op}`" if touch is not None else ""
    make = fail if mixing.way == "values" else warn
    return make(
        f"{said}{at}: predictions depend on what else is in the batch",
        where=touch.module if touch is not None and touch.module else None,
        location=touch.location if touch is not None else None,
        hint="keep dimension 0 for samples: `permute` before `reshape`, `batch_first=True`, `dim=-1` for softmax and mean",
        change=mixing.change,
    )


class _Pooled(nn.Module):
    """A classifier of sequences that averages over one dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.dim = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x)
        logits: torch.Tensor = self.head((h - h.mean(self.dim, keepdim=True)).relu().mean(1))
        return logits


def _sequences(model: nn.Module) -> Target:
    x = torch.randn(32, 6, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, :, 0].mean(1) > 0).long()
    rows = list(zip(torch.split(x, 8), torch.split(y, 8), strict=True))
    return Target(model, rows, nn.CrossEntropyLoss())


def good() -> Target:
    return _sequences(_Pooled(dim=1))


def good_batch_norm() -> Target:
    return Target(nn.Sequential(nn.BatchNorm1d(8), mlp()), blobs(), nn.CrossEntropyLoss())


def bad_mean_over_the_batch() -> Target:
    return _sequences(_Pooled(dim=0))


def bad_batch_as_length() -> Target:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.LSTM(4, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.body(x)[0][:, -1])
            return logits

    return _sequences(Tagger())
