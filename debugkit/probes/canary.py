"""Whether a trained model understands the ids that its tokenizer makes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from debugkit.data.batch import map_tensors, size, sliceable, take
from debugkit.data.columns import columns_of
from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost
from debugkit.probes.batches import Batches
from debugkit.probes.initial_state import InitialState
from debugkit.probes.token_ids import TokenIds
from debugkit.probes.training_step import run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tokens.lexicon import Kinship, kinship
from debugkit.tracing.program import primary_output
from debugkit.weights.input_embedding import input_embedding, is_trained

_ROWS = 4
_SHORT_ROWS = 8
_SHORT = 128
_SUSPICIOUS = 0.9
_FEWEST_TOKENS = 32
_FEW = 0.05
_SLIGHT = 1.15  # a loss is a witness of its own
_MOST_SCORES = 2**27


@dataclass(frozen=True)
class TextLoss:
    """How well a language model predicts the tokens of the batch.

    Attributes:
        loss: mean negative log-likelihood of a token, given those before it.
        shuffled: the same with the tokens of each row in random order; ``None`` where the loss is no cause for doubt.
        chance: what it is without any knowledge, the logarithm of the number of tokens.
        entropy: mean entropy of the predictions; near chance where the model has no opinion.
        tokens: how many were predicted.
    """

    loss: float
    shuffled: float | None
    chance: float
    entropy: float
    tokens: int


@dataclass(frozen=True)
class Canary:
    """What a trained model makes of its tokenizer's ids.

    Attributes:
        kinship: from the vectors of the embedding; ``None`` where they can't tell.
        text: from its loss on text; ``None`` where it is no language model, or the vectors told already.
    """

    cost: ClassVar[Cost] = "forward"
    kinship: Kinship | None
    text: TextLoss | None

    @staticmethod
    def collect(
        target: Target,
        sandbox: Sandbox,
        batches: Batches | None,
        ids: TokenIds | None,
        state: InitialState | None,
    ) -> Canary:
        """Look at the vectors; where they can't tell, run a few rows, and again shuffled if their loss is near chance.

        Raises:
            Unavailable: there is no tokenizer, or the model is not trained.
        """
        if target.tokenizer is None:
            raise Unavailable("the target has no tokenizer; pass `Target(tokenizer=...)`")
        weight = input_embedding(target.model, 0 if ids is None else max(int(row.max()) for row in ids.ids))
        tables = [weight, *_outputs_like(target.model, weight)] if weight is not None else []
        if not any(is_trained(table, _SLIGHT) for table in tables):
            raise Unavailable("the embedding is freshly drawn, so that any tokenizer is as good as another")
        assert weight is not None
        vocabulary = _vocabulary(target.tokenizer)
        found = kinship(weight, vocabulary) if vocabulary and is_trained(weight) else None
        text = None
        if found is None and ids is not None and batches is not None and _may_be_trained(target.model, state):
            text = _text_loss(target, sandbox, batches.first, ids)
        return Canary(found, text)


def _outputs_like(model: torch.nn.Module, table: torch.Tensor) -> list[torch.Tensor]:
    """The weights of layers that give a score for every row of a table."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    return [layer.weight for layer in layers if layer.out_features == len(table)]


def _vocabulary(tokenizer: Any) -> Mapping[str, int]:
    getter = getattr(getattr(tokenizer, "tokenizer", tokenizer), "get_vocab", None)
    try:
        table = getter() if callable(getter) else {}
    except Exception:  # a foreign tokenizer may refuse in any way
        return {}
    if not isinstance(table, Mapping):
        return {}
    return {t: i for t, i in table.items() if isinstance(t, str) and isinstance(i, int)}


def _may_be_trained(model: torch.nn.Module, state: InitialState | None) -> bool:
    """Whether no layer behind the body, and hardly one in it, is as it was drawn: a fresh head knows no token."""
    if state is None:
        return True
    if state.determined and state.initial_share > _FEW:
        return False
    body = getattr(model, "base_model_prefix", "")
    initial = [name for (name, _), found in state.states.items() if found == "initial"]
    return all(body and f".{body}." in f".{name}" for name in initial)


def _text_loss(target: Target, sandbox: Sandbox, batch: Any, ids: TokenIds) -> TextLoss | None:
    part = batch
    most = _SHORT_ROWS if len(ids.ids[0]) <= _SHORT else _ROWS
    if sliceable(batch) and (size(batch) or 0) > most:
        part = take(batch, range(most))
    given = columns_of(part).tensors.get(ids.path)
    if not isinstance(given, torch.Tensor) or given.ndim != 2:
        return None
    rows = min(len(given), len(ids.ids))
    content = torch.zeros(given.shape, dtype=torch.bool)
    for row in range(rows):
        content[row, ids.starts[row] : ids.stops[row]] = True
    found = _loss(target, sandbox, part, given.cpu(), content)
    if found is None:
        return None
    if found.loss < _SUSPICIOUS * found.chance:
        return found
    generator = torch.Generator().manual_seed(0)
    mixed = given.cpu().clone()
    for row in range(rows):
        places = content[row].nonzero().flatten()
        mixed[row, places] = mixed[row, places[torch.randperm(len(places), generator=generator)]]
    again = _loss(target, sandbox, _with(part, given, mixed), mixed, content)
    return replace(found, shuffled=None if again is None else again.loss)


def _with(batch: Any, old: torch.Tensor, new: torch.Tensor) -> Any:
    def swap(tensor: torch.Tensor) -> torch.Tensor:
        return new.to(tensor) if tensor.shape == old.shape and torch.equal(tensor, old) else tensor

    return map_tensors(batch, swap)


def _loss(
    target: Target, sandbox: Sandbox, batch: Any, ids: torch.Tensor, content: torch.Tensor
) -> TextLoss | None:
    """How the next token (or the token itself, whichever is easier) is predicted."""
    with sandbox.probe(), torch.no_grad():
        target.model.eval()
        try:
            logits = primary_output(run_step(target, batch).outputs)
        except Broken:
            return None
        if not isinstance(logits, torch.Tensor) or logits.ndim != 3 or logits.shape[:2] != ids.shape:
            return None
        classes = logits.shape[2]
        if classes <= int(ids.max()) or logits.numel() > _MOST_SCORES:
            return None
        losses, entropies = [], []
        for shift in (0, 1):
            scores = logits[:, : ids.shape[1] - shift].float().cpu()
            kept = content[:, shift:] & content[:, : ids.shape[1] - shift]
            if int(kept.sum()) < _FEWEST_TOKENS:
                return None
            logs = scores[kept].log_softmax(-1)
            losses.append(float(F.nll_loss(logs, ids[:, shift:][kept].long())))
            entropies.append(float(-(logs.exp() * logs).sum(1).mean()))
        return TextLoss(min(losses), None, math.log(classes), min(entropies), int(kept.sum()))
