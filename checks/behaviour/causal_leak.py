"""Language models that see the tokens they have to predict."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import nn

from debugkit import Finding, Target, Unavailable, check, fail, note
from debugkit.probes.dependence import Dependence
from debugkit.probes.token_targets import TokenTargets
from debugkit.probes.training_step import TrainingStep
from debugkit.tracing.influence import Span
from debugkit.tracing.source import is_library_class


@check
def causal_leak(
    target: Target, dependence: Dependence, step: TrainingStep, targets: TokenTargets | None
) -> Iterator[Finding]:
    """A model that has to predict what comes next sees it.

    A row runs twice in eval mode, as the training step calls the model; the second time its tokens are others from
    some place on. The outputs before that place must stay as they are. Judged are models whose positions are trained
    to predict the next token (or the next step of a series) of what they are given, and decoders.

    ## Why is this bad?
    Where attention is not masked, a convolution is padded on both sides or a recurrent layer runs backwards, each
    position reads its answer from the input. The loss falls far below anything a language model can reach, in
    evaluation too, and generation, which has no later tokens to read, gives noise.

    ## What to do
    Mask attention with `is_causal=True` or a mask that is true on and below the diagonal; pad convolutions on the left
    only; leave out `bidirectional=True`. A model of transformers that is an encoder by default needs
    `config.is_decoder = True`. Shifting the targets further does not help.

    ## Known limits
    Outputs that have no target, such as the prefix of a prefix language model, may depend on later tokens. What a
    model of permuted tokens (XLNet) sees is up to its `perm_mask`; without one it is told in a note. Whether targets
    are the next token is read from the gradient of cross-entropy; for other losses, labels have to be the inputs moved
    by one step.

    ## References
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html
    - https://github.com/rasbt/LLMs-from-scratch/issues/1062
    """
    spans = []
    if dependence.next_step and dependence.span is not None:
        spans.append(dependence.span)
    if dependence.decoder is not None and targets is not None and targets.shift == 1:
        spans.append(dependence.decoder)
    if not spans:
        raise Unavailable(
            "no output stands for a position that is trained to predict the next token or step of its own input"
        )
    if dependence.mixing is not None and dependence.mixing.change:
        raise Unavailable(
            "outputs depend on other rows too (see `batch-independence`), so no row can be judged"
        )
    for span in spans:
        yield _judged(span, dependence, target, step)


def _judged(span: Span, dependence: Dependence, target: Target, step: TrainingStep) -> Finding:
    moved = float(span.before.max()) if len(span.before) else 0.0
    count = len(span.before)
    unasked = float(span.change[: span.start].max())
    if not count:
        return note(
            f"no output before token {span.start} of `{span.path}` has a target, so there is none to judge"
        )
    if moved > dependence.tolerance and span.repeated:
        if _permutes(target, dependence):
            return note(
                "without `perm_mask` each position sees the whole row, as in a model of permuted tokens",
                change=moved,
            )
        if _puts_prompt_before(span, target, step):
            return note(
                "the model puts a prompt of its own before the tokens and reads all of it both ways, as a prefix language "
                "model does: give it targets only where it writes",
                change=moved,
            )
        nearest = int((span.change[: span.start] > dependence.tolerance).nonzero().max())
        at = f", first in the output of `{span.touch}`" if span.touch else ""
        return fail(
            f"outputs see what they have to predict: other values of `{span.path}` from position {span.start} on move "
            f"the {count} outputs before it by up to {moved:.2g} (up to position {nearest}{at}), so the loss measures "
            "how well the answer is copied",
            where=span.touch or span.path,
            hint="mask attention so that position t sees only positions up to t (`is_causal=True`, "
            "`config.is_decoder=True`), pad convolutions on the left, make recurrent layers run forwards only",
            change=moved,
        )
    said = f"other values of `{span.path}` from position {span.start} on leave the {count} outputs before it as they are"
    if unasked > dependence.tolerance:
        said += ", apart from a prefix without targets"
    return note(said, change=moved)


def _permutes(target: Target, dependence: Dependence) -> bool:
    """Whether the model would take the order in which tokens are predicted, and is given none."""
    try:
        parameters = inspect.signature(target.model.forward).parameters
    except (TypeError, ValueError):
        return False
    return "perm_mask" in parameters and "perm_mask" not in dependence.names


def _puts_prompt_before(span: Span, target: Target, step: TrainingStep) -> bool:
    """Whether a model that is not configured as a decoder computes on longer rows than it is given."""
    config = getattr(target.model, "config", None)
    if getattr(config, "is_decoder", False) and hasattr(type(config), "is_decoder"):
        return False
    width = step.module_shapes.get(span.touch or "", ())[-1:]
    return (
        bool(width)
        and is_library_class(type(target.model))
        and len(span.change) < width[0] < 2**15
        and any(len(shape) == 3 and shape[1] == width[0] for shape in step.module_shapes.values())
    )


class _Attention(nn.Module):
    """A language model with one attention layer."""

    def __init__(self, causal: bool, vocabulary: int = 12, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(torch.randn(10, width) * 0.1)
        self.mix = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, vocabulary)
        self.causal = causal

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.embed(ids) + self.place[: ids.shape[1]]
        q, k, v = self.mix(h).chunk(3, dim=-1)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        logits: torch.Tensor = self.head(h + seen)
        return logits


def _next_tokens(causal: bool) -> Target:
    ids = torch.randint(0, 12, (32, 11), generator=torch.Generator().manual_seed(0))
    rows = [(row[:, :-1], row[:, 1:]) for row in torch.split(ids, 8)]
    return Target(
        _Attention(causal),
        rows,
        lambda logits, y: nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()),
    )


def good() -> Target:
    return _next_tokens(causal=True)


def good_series_read_forwards() -> Target:
    return _series(bidirectional=False)


def bad_unmasked_attention() -> Target:
    return _next_tokens(causal=False)


def bad_series_read_both_ways() -> Target:
    return _series(bidirectional=True)


def _series(bidirectional: bool) -> Target:
    class Forecast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.GRU(2, 8, batch_first=True, bidirectional=bidirectional)
            self.head = nn.Linear(16 if bidirectional else 8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            steps: torch.Tensor = self.head(self.body(x)[0])
            return steps

    series = torch.randn(32, 13, 2, generator=torch.Generator().manual_seed(0)).cumsum(1) * 0.3
    rows = [(part[:, :-1], part[:, 1:]) for part in torch.split(series, 8)]
    return Target(Forecast(), rows, nn.MSELoss())
