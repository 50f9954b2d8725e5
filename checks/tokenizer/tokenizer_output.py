"""Token ids that are not what the model's tokenizer makes of the text."""

from __future__ import annotations

import inspect
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.probes.decoded import Decoded, TokenRow

_FEWEST_ROWS = 2
_TAIL = 4
_FEWEST_TOKENS = 32
_MOST_TOKENS = 4096


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
    their padding, are held against that: special tokens missing or doubled, no end of text, segments without
    token types, unknown tokens, and ids that decode to a text whose own ids are different.

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
    findings = [
        *_missing(decoded),
        *_doubled(decoded),
        *_endless(decoded),
        *_segments(decoded, target.model),
        *_unknown(decoded, max_unknown, mostly_unknown),
    ]
    if not findings or all(finding.level == "note" for finding in findings):
        findings += [*_round_trip(decoded, min_recovered), *_lossy(decoded, max_lost)]
    yield from findings
    rows, tokens = len(decoded.rows), decoded.tokens
    yield note(
        f"{rows} rows, {tokens / rows:.3g} tokens a row, {_percent(_unknown_share(decoded))} unknown; the first is "
        f'"{excerpt(decoded.codec.decode(decoded.rows[0].ids) or "")}"',
        rows=rows,
        tokens=tokens,
    )


def _missing(decoded: Decoded) -> Iterator[Finding]:
    """Special tokens that the tokenizer adds and no row has."""
    pieces = not decoded.varied and not decoded.sequence_labels
    if pieces or len(decoded.rows) < _FEWEST_ROWS:
        return
    prefix, suffix = decoded.habits.prefix, decoded.habits.suffix
    added = decoded.codec.added
    lost = []
    judged = prefix and not _pad_in(decoded, prefix)
    if judged and not any(row.ids[0] in added or _holds(row, prefix) for row in decoded.rows):
        lost.append(f"{_tokens(decoded, prefix)} before")
    whole = [row for row in decoded.rows if len(row.ids) < decoded.longest]
    judged = suffix and len(whole) >= _FEWEST_ROWS and not _pad_in(decoded, suffix)
    if judged and not any(row.ids[-1] in added or _holds(row, suffix) for row in whole):
        lost.append(f"{_tokens(decoded, suffix)} after")
    if not lost:
        return
    said = f"the tokenizer puts {' and '.join(lost)} a text, and none of {len(decoded.rows)} rows has it"
    hint = "encode with `add_special_tokens=True`, which is the default"
    if decoded.trained:
        yield fail(
            f"{said}: the pretrained model never saw text like that", hint=hint, rows=len(decoded.rows)
        )
    elif decoded.sequence_labels:
        yield warn(f"{said}: what the model pools is an arbitrary token", hint=hint, rows=len(decoded.rows))
    else:
        yield note(said, rows=len(decoded.rows))


def _doubled(decoded: Decoded) -> Iterator[Finding]:
    """Special tokens that were added twice."""
    twice = {**_twice_at_start(decoded), **_twice_at_end(decoded)}
    if len(decoded.rows) < _FEWEST_ROWS or not twice:
        return
    most = max(map(len, twice.values()))
    said = " and ".join(place for place, rows in twice.items() if len(rows) == most)
    first = min(row.sample for rows in twice.values() for row in rows)
    everywhere = most == len(decoded.rows)
    make = fail if everywhere else warn
    yield make(
        f"{most} of {len(decoded.rows)} rows {said} twice: the text holds it and the tokenizer adds it again",
        where=None if everywhere else f"train[{first}]",
        hint="encode rendered or marked text with `add_special_tokens=False`",
        rows=most,
    )


def _twice_at_start(decoded: Decoded) -> dict[str, list[TokenRow]]:
    for mark in _marks(decoded, decoded.habits.prefix, ("bos", "cls"), ("pad", "eos", "sep")):
        rows = [row for row in decoded.rows if row.ids[: 2 * len(mark)] == 2 * mark]
        if rows and (decoded.exact or not _pad_in(decoded, mark)):
            return {f"begin with {_tokens(decoded, mark)}": rows}
    return {}


def _twice_at_end(decoded: Decoded) -> dict[str, list[TokenRow]]:
    for mark in _marks(decoded, decoded.habits.suffix, ("eos", "sep"), ("bos", "cls")):
        rows = [
            row for row in decoded.rows if row.ids[-2 * len(mark) :] == 2 * mark and not any(row.types or ())
        ]
        padding = any(row.ids[-3 * len(mark) :] == 3 * mark for row in rows)
        empty_second = len(rows) < len(decoded.rows) and any(
            _segment_count(row, decoded) > 1 for row in decoded.rows
        )
        if rows and decoded.exact and not padding and not empty_second:
            return {f"end with {_tokens(decoded, mark)}": rows}
    return {}


def _marks(
    decoded: Decoded, learned: tuple[int, ...], own: Sequence[str], other: Sequence[str]
) -> list[tuple[int, ...]]:
    """What the tokenizer adds at one end of a text, and the special tokens that can only mean that end."""
    roles = decoded.codec.roles
    shared = {roles.get(role) for role in other}
    alone = [(roles[role],) for role in own if role in roles and roles[role] not in shared]
    return [mark for mark in dict.fromkeys([learned, *alone]) if mark]


def _endless(decoded: Decoded) -> Iterator[Finding]:
    """Texts to generate that never end."""
    eos = decoded.codec.roles.get("eos")
    suffix_judged = decoded.habits.suffix and not _pad_in(decoded, decoded.habits.suffix)
    if eos is None or not decoded.next_token or not decoded.varied or suffix_judged:
        return
    start = max(1, len(decoded.habits.prefix))
    if any(not decoded.codec.added.isdisjoint(row.ids[start:][-_TAIL:]) for row in decoded.rows):
        return
    if eos == decoded.codec.roles.get("pad") and not _ends_are_seen(decoded):
        return
    make = fail if decoded.trained else warn
    yield make(
        f"none of {len(decoded.rows)} rows ends with {_tokens(decoded, (eos,))}: the model never learns to stop",
        hint="append `tokenizer.eos_token` to each text before encoding it",
        rows=len(decoded.rows),
    )


def _ends_are_seen(decoded: Decoded) -> bool:
    """Whether an end of text equal to the padding would have stayed visible.

    A mask made by comparing ids with the padding hides the end too, but then the longest row of a batch that is
    padded to its longest row seems shorter than the batch.
    """
    widths: dict[int, list[int]] = {}
    for row in decoded.rows:
        widths.setdefault(row.width, []).append(len(row.ids))
    return len(widths) > 1 and all(max(lengths) == width for width, lengths in widths.items())


def _segments(decoded: Decoded, model: torch.nn.Module) -> Iterator[Finding]:
    """Pairs of texts without the token types that tell them apart."""
    if not decoded.habits.pair_types or not _takes(model, "token_type_ids"):
        return
    pairs = sum(_segment_count(row, decoded) == 2 for row in decoded.rows)
    if pairs < _FEWEST_ROWS or pairs < 0.9 * len(decoded.rows):
        return
    absent = all(row.types is None for row in decoded.rows)
    if not absent and any(any(row.types or ()) for row in decoded.rows):
        return
    state = "the batch has no `token_type_ids`" if absent else "all `token_type_ids` are 0"
    make = fail if absent and decoded.trained and pairs == len(decoded.rows) else warn
    yield make(
        f"{pairs} of {len(decoded.rows)} rows hold two texts and {state}: the model reads both as one text",
        hint="encode pairs as `tokenizer(first, second)` and pass on the `token_type_ids` that it returns",
        rows=pairs,
    )


def _unknown(decoded: Decoded, max_unknown: float, mostly_unknown: float) -> Iterator[Finding]:
    share, count = _unknown_share(decoded), len(_words(decoded))
    if not count or share <= max_unknown:
        return
    name = _tokens(decoded, (decoded.codec.roles["unk"],))
    said = f"{_percent(share)} of {count:,} tokens are {name}"
    if share >= mostly_unknown:
        yield fail(
            f"{said}: the model can't read the text",
            hint="load the tokenizer from the model's folder and look at `len(tokenizer)`; transformers 5 takes "
            "`vocab=`, and an unknown keyword such as `vocab_file=` leaves the vocabulary empty",
            unknown=share,
        )
    elif _lower_bound(share, count) > max_unknown:
        yield warn(
            f"{said}, more than {_percent(max_unknown)}: these words are the same to the model",
            where=f"train[{max(decoded.rows, key=lambda row: _unknowns(row, decoded)).sample}]",
            hint="normalise the text as the tokenizer expects it (case, accents, script), or use a tokenizer with "
            "subwords",
            unknown=share,
        )


def _round_trip(decoded: Decoded, min_recovered: float) -> Iterator[Finding]:
    """Decode the rows, encode the text again: are these the ids that the tokenizer makes?"""
    spans: list[tuple[int, ...]] = []
    for row in decoded.rows:
        if sum(map(len, spans)) < _MOST_TOKENS:
            spans += decoded.spans(row)
    share, again = _recovered(decoded, spans)
    if share is None or share >= min_recovered or sum(map(len, spans)) < _FEWEST_TOKENS:
        return
    own, _ = _recovered(decoded, again)
    if own is None or own < max(min_recovered, 2 * share):
        yield note("the tokenizer does not recover its own ids from the text that it decodes them to")
        return
    yield warn(
        f"{_percent(share)} of {sum(map(len, spans)):,} tokens come back when the rows are decoded and encoded again: "
        "these ids were not made by this tokenizer",
        hint="pass the tokenizer that encoded the data, and let it be the model's own",
        recovered=share,
    )


def _recovered(
    decoded: Decoded, spans: Sequence[tuple[int, ...]]
) -> tuple[float | None, list[tuple[int, ...]]]:
    """The share of ids that come back, and what came back."""
    back = []
    for span in spans:
        text = decoded.codec.decode(span)
        again = decoded.codec.encode(text) if text is not None else None
        if again is None:
            return None, []
        back.append(tuple(again))
    same = sum(sum((Counter(one) & Counter(two)).values()) for one, two in zip(spans, back, strict=True))
    return (same / total if (total := sum(map(len, spans))) else None), back


def _lossy(decoded: Decoded, max_lost: float) -> Iterator[Finding]:
    """Compare with the text where the batch holds it: which letters and digits are gone?"""
    lost = total = 0
    for row in decoded.rows:
        if row.text is None or len(row.ids) == decoded.longest:
            continue
        kept = "".join(decoded.codec.decode(span) or "" for span in decoded.spans(row))
        before, after = _letters(row.text), _letters(kept)
        lost += sum((before - after).values())
        total += sum(before.values())
    if total >= _FEWEST_TOKENS and max_lost < lost / total < 0.5:
        yield warn(
            f"{_percent(lost / total)} of the letters and digits of the texts are not in their tokens",
            hint="compare a text with `tokenizer.decode(tokenizer(text).input_ids)`; use a tokenizer that covers it",
            lost=lost / total,
        )


def _segment_count(row: TokenRow, decoded: Decoded) -> int:
    """How many texts a row holds by the tokenizer's own layout for pairs; 0 where it has another layout."""
    prefix, middle, suffix = decoded.habits.prefix, decoded.habits.middle, decoded.habits.suffix
    if not middle or not suffix or row.ids[: len(prefix)] != prefix or row.ids[-len(suffix) :] != suffix:
        return 0
    inner = row.ids[len(prefix) : -len(suffix)]
    cuts = [at for at in range(len(inner)) if inner[at : at + len(middle)] == middle]
    if cuts and (cuts[0] == 0 or cuts[-1] + len(middle) == len(inner)):
        return 0
    return len(cuts) + 1


def _takes(model: torch.nn.Module, name: str) -> bool:
    try:
        return name in inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return False


def _holds(row: TokenRow, marks: tuple[int, ...]) -> bool:
    return not set(marks).isdisjoint(row.ids)


def _pad_in(decoded: Decoded, marks: tuple[int, ...]) -> bool:
    return decoded.codec.roles.get("pad") in marks


def _words(decoded: Decoded) -> list[int]:
    """All ids that stand for text, the unknown one included."""
    unknown = decoded.codec.roles.get("unk")
    return [i for row in decoded.rows for i in row.ids if i == unknown or i not in decoded.codec.special]


def _unknowns(row: TokenRow, decoded: Decoded) -> int:
    return row.ids.count(decoded.codec.roles.get("unk", -1))


def _unknown_share(decoded: Decoded) -> float:
    roles = decoded.codec.roles
    words = _words(decoded)
    if not words or roles.get("unk") in (None, roles.get("bos"), roles.get("eos"), roles.get("pad")):
        return 0.0
    return sum(_unknowns(row, decoded) for row in decoded.rows) / len(words)


def _lower_bound(share: float, count: int, z: float = 2.33) -> float:
    """The Wilson lower bound of a share, at 99 %."""
    centre = share + z * z / (2 * count)
    margin: float = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return (centre - margin) / (1 + z * z / count)


def _letters(text: str) -> Counter[str]:
    folded = unicodedata.normalize("NFKD", text).casefold()
    return Counter(character for character in folded if character.isalnum())


def _tokens(decoded: Decoded, ids: tuple[int, ...]) -> str:
    return f"`{excerpt(decoded.codec.decode(ids) or ' '.join(map(str, ids))).replace('`', chr(39))}`"


def _percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %") if 0 < share < 0.01 else f"{share:.0%}".replace("%", " %")


def excerpt(text: str, length: int = 60) -> str:
    """The beginning of a text on one line, control and invisible characters written out."""
    line = " ".join(text[: 4 * length].split())
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode("ascii") for c in line
    )
    return shown if len(shown) <= length else shown[: length - 1] + "…"


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


def _tokenizer(words: Sequence[str] = _WORDS) -> Any:
    """A tokenizer of whole words that puts `[CLS]` before and `[SEP]` after a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate((*special, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


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
    return _target(_tokenizer(), *_reviews(), return_token_type_ids=False)


def bad_no_special_tokens() -> Target:
    return _target(_tokenizer(), *_reviews(), add_special_tokens=False, return_token_type_ids=False)


def bad_doubled_special_tokens() -> Target:
    texts, labels = _reviews()
    return _target(
        _tokenizer(), [f"[CLS] {text} [SEP]" for text in texts], labels, return_token_type_ids=False
    )


def bad_unknown_words() -> Target:
    return _target(_tokenizer(_WORDS[:6]), *_reviews(), return_token_type_ids=False)


def bad_token_types_dropped() -> Target:
    texts, labels = _reviews()
    return _target(
        _tokenizer(), list(zip(texts, reversed(texts), strict=True)), labels, return_token_type_ids=False
    )
