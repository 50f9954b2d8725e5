"""Token ids that are not what the model's tokenizer makes of the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader

from debugkit import Finding, Target, check, note
from debugkit.data.shares import percent
from debugkit.probes.decoded import Decoded
from debugkit.testing import word_tokenizer
from debugkit.tokens.codec import excerpt

from ._ends import endless, endless_targets
from ._origin import foreign, round_trip
from ._special_tokens import doubled, missing, segments
from ._text import lossy, tokenised_before
from ._unknown_tokens import unknown, unknown_share


@check
def tokenizer_output(
    decoded: Decoded,
    target: Target,
    *,
    max_unknown: Annotated[
        float, Field(gt=0, lt=1, description="share of unknown tokens above which the check warns")
    ] = 0.01,
    mostly_unknown: Annotated[
        float, Field(gt=0, le=1, description="share of unknown tokens from which the check fails")
    ] = 0.5,
    min_recovered: Annotated[
        float, Field(ge=0, lt=1, description="share of tokens that decoding and encoding again must recover")
    ] = 0.5,
    max_lost: Annotated[
        float,
        Field(
            gt=0, lt=1, description="share of a text's letters and digits that may be missing in its tokens"
        ),
    ] = 0.05,
) -> Iterator[Finding]:
    """Token ids that are not what the model's tokenizer makes of the text.

    The tokenizer encodes a piece of text to show what it adds around it. The rows of the first batches, without
    their padding, are held against that: ids that the tokenizer does not have or that decode to a text whose own ids
    are different, special tokens missing or doubled, no end of text, segments without token types, unknown tokens,
    and text that was tokenised before. Labels that a decoder learns to write are looked at for their end.

    ## Why is this bad?
    A pretrained model has learned with these tokens. Without `[CLS]` a classifier pools whatever word comes first;
    without a beginning-of-text token some models lose most of their quality; with two of them the rows look like
    nothing seen before. A generator that never sees an end of text does not stop. An unknown token is a word that
    the model can't read.

    ## What to do
    Let the tokenizer add its tokens (`add_special_tokens=True`) and do it once: a text that a chat template has
    rendered already begins with them, so encode it with `add_special_tokens=False`. Pass on all that the tokenizer
    returns, `token_type_ids` included. Load the tokenizer from the folder of the model.

    ## Known limits
    Rows that nearly all have one length, with labels per token, are taken for pieces of longer texts, where special
    tokens stand only at the seams. A tokenizer of the same family with another vocabulary can decode to nonsense that encodes to the same
    ids; `tokenizer-match` asks the model. Where the padding token also ends a text and no mask tells them apart,
    the ends of rows are not judged.

    ## References
    - https://huggingface.co/docs/transformers/chat_templating
    - https://github.com/huggingface/transformers/issues/22794
    """
    findings = [*foreign(decoded, min_recovered)]
    if not _grave(findings):
        findings += round_trip(decoded, min_recovered)
    if not _grave(findings):
        findings += _by_the_rules(decoded, target, max_unknown, mostly_unknown, min_recovered)
    if not _grave(findings):
        findings += lossy(decoded, max_lost)
    yield from findings
    rows, tokens = len(decoded.rows), decoded.tokens
    known = [index for index in decoded.rows[0].ids if decoded.codec.knows(index)]
    beside = f" and {len(decoded.targets)} rows to write" if decoded.targets else ""
    yield note(
        f"{rows} rows{beside}, {tokens / rows:.3g} tokens a row, {percent(unknown_share(decoded))} unknown; the first "
        f'is "{excerpt(decoded.codec.decode(known) or "")}"',
        rows=rows,
        tokens=tokens,
    )


def _grave(findings: Sequence[Finding]) -> bool:
    return any(finding.level != "note" for finding in findings)


def _by_the_rules(
    decoded: Decoded, target: Target, max_unknown: float, mostly_unknown: float, min_recovered: float
) -> list[Finding]:
    """What is wrong with rows that are this tokenizer's."""
    return [
        *missing(decoded),
        *doubled(decoded),
        *endless(decoded),
        *endless_targets(decoded, min_recovered),
        *segments(decoded, target.model),
        *unknown(decoded, max_unknown, mostly_unknown),
        *tokenised_before(decoded),
    ]


_WORDS = ("good", "fine", "great", "lovely", "bad", "poor", "awful", "dull", "film", "plot", "actor", "scene")


class _WordCounter(torch.nn.Module):
    """Logits ``[batch, 2]`` from the mean vector of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(64, 32)
        self.hidden = torch.nn.Linear(32, 32)
        self.head = torch.nn.Linear(32, 2)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        seen = attention_mask.unsqueeze(-1).float()
        pooled = (self.embedding(input_ids) * seen).sum(1) / seen.sum(1)
        logits: torch.Tensor = self.head(torch.relu(self.hidden(pooled)))
        return logits


def _reviews() -> tuple[list[str], list[int]]:
    """Short reviews: words of one mood among neutral ones, every text a different one."""
    generator = torch.Generator().manual_seed(0)
    texts, labels = [], []
    for number in range(64):
        label = number % 2
        mood = _WORDS[4 * label : 4 * label + 4]
        length = 3 + number % 7
        picks = torch.randint(4, (length,), generator=generator).tolist()
        texts.append(" ".join((mood if place % 2 else _WORDS[8:])[pick] for place, pick in enumerate(picks)))
        labels.append(label)
    return texts, labels


def _target(tokenizer: Any, texts: Sequence[Any], labels: Sequence[int], **options: Any) -> Target:
    rows = [{**tokenizer(*([text] if isinstance(text, str) else text), **options)} for text in texts]

    def collate(picked: list[tuple[dict[str, Any], int]]) -> dict[str, Any]:
        batch = dict(tokenizer.pad([row for row, _ in picked], return_tensors="pt"))
        return {**batch, "labels": torch.tensor([label for _, label in picked])}

    data: Any = list(zip(rows, labels, strict=True))
    loader = DataLoader(data, batch_size=16, shuffle=True, collate_fn=collate)
    return Target(_WordCounter(), loader, torch.nn.CrossEntropyLoss(), tokenizer=tokenizer)


def good() -> Target:
    return _target(word_tokenizer(_WORDS), *_reviews(), return_token_type_ids=False)


def bad_no_special_tokens() -> Target:
    return _target(word_tokenizer(_WORDS), *_reviews(), add_special_tokens=False, return_token_type_ids=False)


def bad_doubled_special_tokens() -> Target:
    texts, labels = _reviews()
    return _target(
        word_tokenizer(_WORDS), [f"[CLS] {text} [SEP]" for text in texts], labels, return_token_type_ids=False
    )


def bad_unknown_words() -> Target:
    return _target(word_tokenizer(_WORDS[:6]), *_reviews(), return_token_type_ids=False)


def bad_token_types_dropped() -> Target:
    texts, labels = _reviews()
    return _target(
        word_tokenizer(_WORDS),
        list(zip(texts, reversed(texts), strict=True)),
        labels,
        return_token_type_ids=False,
    )
