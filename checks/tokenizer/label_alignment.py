"""Labels that stand beside other tokens, spans or pixels than those they were made for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader

from debugkit import Finding, Target, Unavailable, check, note
from debugkit.probes.batches import Batches
from debugkit.probes.samples import Samples
from debugkit.probes.supervision import Supervision
from debugkit.probes.token_ids import TokenIds
from debugkit.probes.token_targets import TokenTargets

from ._answer_spans import span_findings, spans_of
from ._map_edges import apart, pairs_of
from ._tag_shift import shifted_tags
from ._words import inside_words, special_tags


@check
def label_alignment(
    batches: Batches,
    samples: Samples,
    supervision: Supervision | None,
    targets: TokenTargets | None,
    ids: TokenIds | None,
    target: Target,
    *,
    max_changes: Annotated[
        float,
        Field(gt=0, lt=1, description="share of tagged words whose tag may change from piece to piece"),
    ] = 0.25,
) -> Iterator[Finding]:
    """Labels that stand beside other tokens, spans or pixels than those they were made for.

    Tags of tokens are looked at within words of several pieces and at special tokens, and tokens at other distances
    are tried for how well they explain the tags. Answer spans are decoded and compared with the answer, where the
    batch or the data set behind the loader holds it. The borders of label maps are compared with the edges of their
    images, as they are, mirrored and moved.

    ## Why is this bad?
    Labels are made for words, characters or images before these are cut into pieces, truncated or augmented. What
    happens to the one and not to the other moves them apart. The shapes still agree, the loss still falls a little,
    and the model learns that names end in the middle of words, or nothing at all.

    ## What to do
    Let the tokenizer say which word each piece is from (`word_ids()`), give the other pieces -100 or the tag of
    their word, and map characters to tokens by `return_offsets_mapping`. Augment an image and its map in one call.

    ## Known limits
    Words are told apart by the marks of WordPiece, byte-level BPE and SentencePiece. Maps that were scaled or turned by
    small angles without their image are not recognised. Boxes of object detection are not looked at.

    ## References
    - https://huggingface.co/docs/transformers/tasks/token_classification
    - https://huggingface.co/docs/transformers/tasks/question_answering
    """
    spans = spans_of(ids)
    maps = pairs_of(batches.items) if not spans else []
    tagged = supervision is not None and supervision.task == "tags"
    if not (spans or maps or tagged):
        raise Unavailable("labels are neither tags of tokens, nor answer spans, nor maps beside images")
    if tagged and supervision is not None:
        yield from _tags(supervision, targets, samples, target, max_changes)
    if spans and ids is not None:
        yield from span_findings(ids, spans, target)
    yield from apart(maps)


def _tags(
    supervision: Supervision,
    targets: TokenTargets | None,
    samples: Samples,
    target: Target,
    max_changes: float,
) -> Iterator[Finding]:
    found = [*inside_words(supervision, target, samples.labels, max_changes)]
    found = found or [*special_tags(supervision, target, samples.labels)]
    yield from found or shifted_tags(supervision, targets, target)
    rows = supervision.every_row()
    counted = sum(sum(row.supervised) for row in rows)
    yield note(f"{counted:,} tags in {len(rows):,} row{'s' if len(rows) > 1 else ''}", tags=counted)


_STARTS = ("ka", "mi", "to", "re", "su", "no")
_ENDS = ("ro", "na", "li", "ve", "do", "pa")
_PLAIN = ("met", "saw", "near", "and", "left", "after")


def _tokenizer() -> Any:
    """Names are cut into two pieces, other words are whole."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    pieces = (*special, *_PLAIN, *_STARTS, *(f"##{end}" for end in _ENDS))
    raw = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


class _Tagger(torch.nn.Module):
    """Scores ``[batch, classes, length]`` from a token and its neighbours."""

    def __init__(self, vocabulary: int, classes: int = 2) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, 32)
        self.memory = torch.nn.GRU(32, 32, batch_first=True, bidirectional=True)
        self.head = torch.nn.Linear(64, classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        lengths = attention_mask.sum(1).cpu()
        words = torch.nn.utils.rnn.pack_padded_sequence(self.embedding(input_ids), lengths, True, False)
        states, _ = torch.nn.utils.rnn.pad_packed_sequence(
            self.memory(words)[0], batch_first=True, total_length=input_ids.shape[1]
        )
        scores: torch.Tensor = self.head(states)
        return scores.transpose(1, 2)


def _sentences() -> Iterator[tuple[list[str], list[int]]]:
    """Words and their tags: 1 for names."""
    generator = torch.Generator().manual_seed(0)
    for number in range(96):
        draws = torch.randint(6, (5 + number % 5, 3), generator=generator).tolist()
        tags = [int((number + place) % 3 == 0) for place in range(len(draws))]
        words = [
            _STARTS[a] + _ENDS[b] if tag else _PLAIN[c] for (a, b, c), tag in zip(draws, tags, strict=True)
        ]
        yield words, tags


def _tagged(by_words: bool) -> Target:
    tokenizer = _tokenizer()
    rows = []
    for words, tags in _sentences():
        encoded = tokenizer(words, is_split_into_words=True, return_token_type_ids=False)
        places = encoded.word_ids() if by_words else range(len(encoded["input_ids"]))
        labels = [-100 if place is None or place >= len(tags) else tags[place] for place in places]
        rows.append({**encoded, "labels": labels})

    def collate(picked: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in picked)
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {
            key: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in picked])
            for key, value in fill.items()
        }

    loader: Any = DataLoader(rows, batch_size=16, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    return Target(_Tagger(len(tokenizer)), loader, torch.nn.CrossEntropyLoss(), tokenizer=tokenizer)


def _maps(mirrored: bool) -> Target:
    """Find bright rectangles in noise; half the images may be mirrored without their maps."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.randn(64, 1, 24, 24, generator=generator)
    maps = torch.zeros(64, 24, 24, dtype=torch.long)
    for number in range(64):
        top, left, height, width = torch.randint(3, 11, (4,), generator=generator).tolist()
        maps[number, top : top + height, left : left + width] = 1
    images[:, 0] += maps
    if mirrored:
        images[::2] = images[::2].flip(3)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 2, 3, padding=1)
    )
    loader = DataLoader(torch.utils.data.TensorDataset(images, maps), batch_size=16, shuffle=True)
    return Target(model, loader, torch.nn.CrossEntropyLoss())


def good() -> Target:
    return _tagged(by_words=True)


def good_maps() -> Target:
    return _maps(mirrored=False)


def bad_tags_by_position() -> Target:
    return _tagged(by_words=False)


def bad_images_mirrored_alone() -> Target:
    return _maps(mirrored=True)
