"""A tokenizer that the model was not trained with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader

from debugkit import Finding, Target, Unavailable, check, fail, note
from debugkit.probes.canary import Canary, TextLoss
from debugkit.probes.token_ids import TokenIds
from debugkit.testing import word_tokenizer
from debugkit.tokens.codec import Codec
from debugkit.tokens.lexicon import Kinship
from debugkit.weights.input_embedding import input_embedding, is_trained

from ._config_ids import disagreements, judged

_SURE = 3.0  # standard errors
_LIKE_SHUFFLED = 0.75
_OPINION = 0.9


@check
def tokenizer_match(
    target: Target,
    ids: TokenIds | None,
    canary: Canary | None,
    *,
    min_kinship: Annotated[
        float,
        Field(
            gt=0.5,
            lt=1,
            description="how often two forms of one word have to be more alike than two arbitrary tokens in a trained "
            "embedding; 0.5 is chance, real models have 0.91 to 0.99",
        ),
    ] = 0.65,
    min_clusters: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="how much closer vectors are to their nearest than independent ones (0), from which an embedding "
            "counts as trained on text; real models have 0.29, the first hundreds of steps give 0.02",
        ),
    ] = 0.15,
    min_text_loss: Annotated[
        float,
        Field(
            gt=0,
            description="loss of a trained language model on its tokens, relative to chance, that is too much",
        ),
    ] = 0.95,
) -> Iterator[Finding]:
    """A tokenizer that the model was not trained with.

    In any model that was trained on text, tokens that are one word in two forms (case, the space before, a plural
    s) have vectors that are alike. Under another tokenizer the same rows are those of arbitrary tokens. Where a
    vocabulary has too few such pairs, a trained language model reads four rows: it has to predict them better than
    chance, or better than the same tokens in random order. Special ids in the configuration are compared with the
    tokenizer's.

    ## Why is this bad?
    Every id is in range, so nothing fails: the model reads a random text of the same length. What it learned before
    is lost, and fine-tuning is slow training from scratch. With other special ids a model that writes does not stop,
    counts the positions of padding, or pools the wrong token.

    ## What to do
    Load both from one place: `AutoTokenizer.from_pretrained(name)` and `AutoModel.from_pretrained(name)`. After
    changing special tokens set the ids in `model.config` and `model.generation_config`.

    ## Known limits
    A model in training from scratch has no tokenizer to be wrong about. Vocabularies without English words (proteins,
    molecules, characters) are judged by the loss alone, which needs a language model with all its layers trained.

    ## References
    - https://huggingface.co/docs/transformers/main_classes/tokenizer
    - https://arxiv.org/abs/1301.3781
    """
    if target.tokenizer is None:
        raise Unavailable("the target has no tokenizer; pass `Target(tokenizer=...)`")
    codec = Codec(getattr(target.tokenizer, "tokenizer", target.tokenizer))
    trained = bool(is_trained(input_embedding(target.model)))
    findings: list[Finding] = []
    if canary is not None and canary.kinship is not None:
        findings += _by_vectors(canary.kinship, target, min_kinship, min_clusters)
    if canary is not None and canary.text is not None:
        findings += _by_loss(canary.text, target, min_text_loss)
    if not findings:
        state = (
            "trained, and neither its vectors nor a loss can tell for which tokenizer"
            if trained
            else "freshly drawn or unknown, so that it is bound to no tokenizer"
        )
        yield note(f"the embedding is {state}")
    yield from findings
    if not any(finding.level == "fail" for finding in findings):
        for found in disagreements(target.model, codec, ids):
            yield from judged(found, codec, trained, _generates(target.model), _is_aligned(target))
        yield from _names(target)


def _by_vectors(kin: Kinship, target: Target, min_kinship: float, min_clusters: float) -> Iterator[Finding]:
    measured = {"kinship": kin.auc, "pairs": kin.pairs}
    said = (
        f"two forms of one word are more alike than two arbitrary tokens in {kin.auc:.0%} of "
        f"{kin.pairs} cases"
    ).replace("%", " %")
    if kin.auc + _SURE * kin.error >= min_kinship:
        yield note(f"{said} in the trained embedding", **measured)  # type: ignore[arg-type]
    elif kin.clusters < min_clusters:
        yield note(f"{said}; the embedding is not trained enough to tell", **measured)  # type: ignore[arg-type]
    else:
        yield fail(
            f"{said}, as by chance, while the embedding is trained: its rows stand for the tokens of another tokenizer"
            f"{_origin(target)}",
            hint="load the tokenizer from the folder or the name that the model comes from",
            **measured,  # type: ignore[arg-type]
        )


def _by_loss(text: TextLoss, target: Target, least: float) -> Iterator[Finding]:
    said = (
        f"the trained model's loss on {text.tokens:,} tokens is {text.loss:.3g} (chance: {text.chance:.3g})"
    )
    measured = {"loss": text.loss, "chance": text.chance}
    lost = text.shuffled is not None and text.loss > _LIKE_SHUFFLED * text.shuffled
    if text.loss >= least * text.chance and text.entropy < _OPINION * text.chance and lost:
        yield fail(
            f"{said}, no better than with the tokens in random order ({text.shuffled:.3g}), though it is sure of its "
            f"predictions: it was trained with another tokenizer{_origin(target)}",
            hint="load the tokenizer from the folder or the name that the model comes from",
            **measured,  # type: ignore[arg-type]
        )
    else:
        yield note(said, **measured)  # type: ignore[arg-type]


def _names(target: Target) -> Iterator[Finding]:
    if origin := _origin(target):
        yield note(origin.strip(" ()"))


def _origin(target: Target) -> str:
    """`` (tokenizer from `a`, model from `b`)`` where they differ."""
    tokenizer = getattr(target.tokenizer, "name_or_path", None)
    config = getattr(target.model, "config", None)
    model = getattr(target.model, "name_or_path", None) or getattr(config, "_name_or_path", None)
    if not isinstance(tokenizer, str) or not isinstance(model, str) or not tokenizer or not model:
        return ""
    names = [PurePath(name).name for name in (tokenizer, model)]
    return "" if names[0] == names[1] else f" (tokenizer from `{names[0]}`, model from `{names[1]}`)"


def _generates(model: Any) -> bool:
    can = getattr(model, "can_generate", None)
    return bool(can()) if callable(can) else False


def _is_aligned(target: Target) -> bool:
    """Whether a trainer will set the configuration's special ids to the tokenizer's."""
    return getattr(target.training_step, "__module__", "") == "debugkit.integrations.transformers"


_STEMS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdgklmnprt"]
_WIDTH = 64


class _Trained(torch.nn.Module):
    """Logits ``[batch, 2]`` from the mean of vectors in which the forms of a word are alike."""

    def __init__(self, forms: list[int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        topics = torch.randn(_WIDTH, generator=generator)
        stems = torch.randn(max(forms) + 1, _WIDTH, generator=generator)
        noise = torch.randn(len(forms), _WIDTH, generator=generator)
        self.embedding = torch.nn.Embedding(len(forms), _WIDTH)
        with torch.no_grad():
            self.embedding.weight.copy_(stems[torch.tensor(forms)] + 0.4 * noise + topics)
        self.hidden = torch.nn.Linear(_WIDTH, 32)
        self.head = torch.nn.Linear(32, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        seen = attention_mask.unsqueeze(-1).float()
        pooled = (self.embedding(input_ids) * seen).sum(1) / seen.sum(1)
        logits: torch.Tensor = self.head(torch.relu(self.hidden(pooled)))
        return logits


def _vocabulary() -> list[str]:
    """Made-up words with their plurals and capitals, in an order of no meaning."""
    words = [
        form for stem in _STEMS for form in (stem, f"{stem}s", stem.capitalize(), f"{stem}s".capitalize())
    ]
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(1)).tolist()
    return [words[place] for place in order]


def _stem_numbers(words: list[str]) -> list[int]:
    stems = {stem: number for number, stem in enumerate(_STEMS)}
    return [*range(len(_STEMS), len(_STEMS) + 4), *(stems[word.lower().removesuffix("s")] for word in words)]


def _target(words: list[str]) -> Target:
    """A model that was trained with the vocabulary, and the tokenizer of some words."""
    tokenizer = word_tokenizer(words)
    generator = torch.Generator().manual_seed(2)
    rows = []
    for number in range(64):
        half = _STEMS[len(_STEMS) // 2 * (number % 2) :][: len(_STEMS) // 2]
        length = int(torch.randint(5, 12, (1,), generator=generator))
        picks = torch.randint(len(half), (length,), generator=generator).tolist()
        rows.append((tokenizer(" ".join(half[pick] for pick in picks))["input_ids"], number % 2))

    def collate(picked: list[tuple[list[int], int]]) -> dict[str, Any]:
        batch = dict(tokenizer.pad({"input_ids": [row for row, _ in picked]}, return_tensors="pt"))
        return {**batch, "labels": torch.tensor([label for _, label in picked])}

    data: Any = rows
    loader = DataLoader(data, batch_size=16, shuffle=True, collate_fn=collate)
    model = _Trained(_stem_numbers(_vocabulary()))
    return Target(model, loader, torch.nn.CrossEntropyLoss(), tokenizer=tokenizer)


def good() -> Target:
    return _target(_vocabulary())


def bad_vocabulary_in_another_order() -> Target:
    return _target(sorted(_vocabulary()))
