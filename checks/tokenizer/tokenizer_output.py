"""Token ids that are not what the model's tokenizer makes of the text."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.utils.data import DataLoader

from debugkit import Finding, Target, check, fail, note, warn
from debugkit.probes.decoded import Decoded, TokenRow, shorter, takes

_FEWEST_ROWS = 2
_FEWEST_TOKENS = 32
_MOST_TOKENS = 4096
_FEW = 0.1
_SURELY_OWN = 0.8
_MOST_WORDS = 500
_WORD = re.compile(r"\w+")
_PIECES = re.compile(r"\w+(?:[^\S\n]*#[^\S\n]?#[^\S\n]?\w+)+")


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
    findings = [*_foreign(decoded, min_recovered)]
    if not _grave(findings):
        findings += _round_trip(decoded, min_recovered)
    if not _grave(findings):
        findings += _by_the_rules(decoded, target, max_unknown, mostly_unknown, min_recovered)
    if not _grave(findings):
        findings += _lossy(decoded, max_lost)
    yield from findings
    rows, tokens = len(decoded.rows), decoded.tokens
    known = [index for index in decoded.rows[0].ids if decoded.codec.knows(index)]
    beside = f" and {len(decoded.targets)} rows to write" if decoded.targets else ""
    yield note(
        f"{rows} rows{beside}, {tokens / rows:.3g} tokens a row, {_percent(_unknown_share(decoded))} unknown; the first "
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
        *_missing(decoded),
        *_doubled(decoded),
        *_endless(decoded),
        *_endless_targets(decoded, min_recovered),
        *_segments(decoded, target.model),
        *_unknown(decoded, max_unknown, mostly_unknown),
        *_tokenised_before(decoded),
    ]


def _foreign(decoded: Decoded, min_recovered: float) -> Iterator[Finding]:
    """Ids that the tokenizer does not have."""
    knows, size = decoded.codec.knows, decoded.codec.size
    found = [(row, index) for row in decoded.rows for index in row.ids if not knows(index)]
    if not found:
        strange = sorted(index for index in decoded.padding if not knows(index))
        if strange:
            yield warn(
                f"the padding is `{strange[0]}`, and the tokenizer has no such id: an embedding has no vector for it",
                hint="pad the inputs with `tokenizer.pad_token_id`; only labels are padded with `-100`",
            )
        return
    ids = [index for _, index in found]
    lowest, highest = min(ids), max(ids)
    if lowest < 0:
        which = f"negative, down to {lowest}"
        hint = "pad and mask the inputs with ids of the tokenizer; `-100` is for labels only"
    else:
        which = f"{lowest} to {highest}"
        hint = "pass the tokenizer that encoded the data, with the tokens that were added to it"
    said = f"{len(ids):,} of {decoded.tokens:,} token ids are {which}: the tokenizer has no such id"
    said += f", its last one is {size - 1}" if size else ""
    where = f"train[{found[0][0].sample}]"
    within = lowest >= 0 and decoded.vectors is not None and highest < decoded.vectors
    if decoded.media:
        yield note(f"{said}; they may stand for what comes with the text", where=where, foreign=len(ids))
    elif within and _is_own(decoded, decoded.rows, min_recovered):
        yield warn(f"{said}; the rest is this tokenizer's", where=where, hint=hint, foreign=len(ids))
    else:
        yield fail(said, where=where, hint=hint, foreign=len(ids))


def _missing(decoded: Decoded) -> Iterator[Finding]:
    """Special tokens that the tokenizer adds and no row has."""
    pieces = not decoded.varied and not decoded.sequence_labels
    if pieces or len(decoded.rows) < _FEWEST_ROWS:
        return
    prefix, suffix = decoded.habits.prefix, decoded.habits.suffix
    added = decoded.codec.added
    lost, most = [], 0
    judged = prefix and not _pad_in(decoded, prefix)
    if judged and not any(row.ids[0] in added or _holds(row, prefix) for row in decoded.rows):
        lost.append(f"{_tokens(decoded, prefix)} before")
    whole = shorter(decoded.rows)
    judged = suffix and len(whole) >= _FEWEST_ROWS and not _pad_in(decoded, suffix)
    closed = sum(row.ids[-1] in added or _holds(row, suffix) for row in whole)
    if judged and closed <= _FEW * len(whole):
        lost.append(f"{_tokens(decoded, suffix)} after")
        most = closed
    if not lost:
        return
    share = f"{most or 'none'} of {len(decoded.rows)} rows {'have' if most > 1 else 'has'} it"
    said = f"the tokenizer puts {' and '.join(lost)} a text, and {share}"
    hint = "encode with `add_special_tokens=True`, which is the default"
    if decoded.trained and not most:
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
    if eos == decoded.codec.roles.get("pad") and not _ends_are_seen(decoded):
        return
    closed, judged = _closed(decoded.rows, decoded)
    if not judged or closed > _FEW * judged:
        return
    make = fail if decoded.trained and not closed else warn
    yield make(
        f"{closed or 'none'} of {judged} rows {_end(closed)} with {_tokens(decoded, (eos,))}: the model never learns to "
        "stop",
        hint="append `tokenizer.eos_token` to each text before encoding it",
        rows=judged - closed,
    )


def _endless_targets(decoded: Decoded, min_recovered: float) -> Iterator[Finding]:
    """Texts for a decoder to write that never end."""
    rows, eos = decoded.targets, decoded.codec.roles.get("eos")
    mark = decoded.habits.suffix or (() if eos is None else (eos,))
    if not mark or _pad_in(decoded, mark) or len(shorter(rows)) <= len(rows) / 4:
        return
    closed, judged = _closed(rows, decoded)
    if not judged or closed > _FEW * judged:
        return
    if not _is_own(decoded, rows, min_recovered):
        return
    make = fail if decoded.trained and not closed else warn
    yield make(
        f"{closed or 'none'} of {judged} rows of labels {_end(closed)} with {_tokens(decoded, mark)}: the model never "
        "learns to stop",
        hint="encode the labels with `tokenizer(text_target=...)`, which adds it"
        if decoded.habits.suffix
        else "append `tokenizer.eos_token` to each target before encoding it",
        rows=judged - closed,
    )


def _closed(rows: Sequence[TokenRow], decoded: Decoded) -> tuple[int, int]:
    """How many rows come to an end, and of how many: those that hold text and are shorter than the longest.

    A row has an end where its last token, white space aside, is a special or an added one, and where an end of
    text stands inside, as between the turns of a conversation.
    """
    codec, eos = decoded.codec, decoded.codec.roles.get("eos")
    closed = judged = 0
    for row in shorter(rows):
        ids = list(row.ids)
        while ids and codec.is_blank(ids[-1]):
            ids.pop()
        start = next((place for place, index in enumerate(ids) if index not in codec.added), None)
        if start is not None:
            judged += 1
            closed += ids[-1] in codec.added or eos in ids[start:]
    return closed, judged


def _end(rows: int) -> str:
    return "end" if rows > 1 else "ends"


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
    if not decoded.habits.pair_types or not takes(model.forward, "token_type_ids"):
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
    elif _reads_anything(decoded):
        yield note(f"{said}: the text holds it, and the tokenizer can read any other word", unknown=share)
    elif _lower_bound(share, count) > max_unknown:
        yield warn(
            f"{said}, more than {_percent(max_unknown)}: these words are the same to the model",
            where=f"train[{max(decoded.rows, key=lambda row: _unknowns(row, decoded)).sample}]",
            hint="normalise the text as the tokenizer expects it (case, accents, script), or use a tokenizer with "
            "subwords",
            unknown=share,
        )


def _reads_anything(decoded: Decoded) -> bool:
    """Whether the tokenizer falls back on bytes, so that an unknown token stands in the text itself."""
    ids = decoded.codec.encode("\u2603 \U0001f680 \ua66e \u732b \u0ca0 \u1300")
    return ids is not None and bool(ids) and decoded.codec.roles.get("unk") not in ids


def _round_trip(decoded: Decoded, min_recovered: float) -> Iterator[Finding]:
    """Decode the rows, encode the text again: are these the ids that the tokenizer makes?"""
    spans = _some_spans(decoded.rows, decoded)
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


def _is_own(decoded: Decoded, rows: Sequence[TokenRow], min_recovered: float) -> bool:
    """Whether rows are beyond doubt made by this tokenizer."""
    spans = _some_spans(rows, decoded)
    share = _recovered(decoded, spans)[0] or 0.0
    return sum(map(len, spans)) >= _FEWEST_TOKENS and share >= max(min_recovered, _SURELY_OWN)


def _some_spans(rows: Sequence[TokenRow], decoded: Decoded) -> list[tuple[int, ...]]:
    """Stretches of text from the first rows, up to a number of tokens that takes no time to decode."""
    spans: list[tuple[int, ...]] = []
    tokens = 0
    for row in rows:
        if tokens < _MOST_TOKENS:
            spans += (found := list(decoded.spans(row, intact=True)))
            tokens += sum(map(len, found))
    return spans


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


def _tokenised_before(decoded: Decoded) -> Iterator[Finding]:
    """Marks that tokenizers put at the border of tokens, where they are letters of the text."""
    codec = decoded.codec
    texts = ["\n".join(codec.decode(span) or "" for span in decoded.spans(row)) for row in decoded.rows]
    words = [len(_WORD.findall(text)) for text in texts]
    own = codec.decode(codec.encode("hello world, unbelievable zyxwvuq jkqxz") or ()) or ""
    hits = {mark: [text.count(mark) for text in texts] for mark in ("\u0120", "\u2581")}
    hits["##"] = [len(_PIECES.findall(text)) for text in texts]
    for mark, found in hits.items():
        rows = [row for row, count in zip(decoded.rows, found, strict=True) if count]
        least = 0.3 if mark != "##" else 0.05
        if (
            mark in own
            or sum(words) < _FEWEST_TOKENS
            or len(rows) < len(texts) / 2
            or sum(found) < least * sum(words)
        ):
            continue
        if mark == "##" and not _are_pieces(decoded, texts):
            continue
        yield warn(
            f"{len(rows)} of {len(texts)} rows hold the tokenizer mark `{mark}` as text: it was tokenised twice",
            where=f"train[{rows[0].sample}]",
            hint="pass the text itself to the tokenizer, not the output of `tokenizer.tokenize(text)`",
            marks=sum(found),
        )


def _are_pieces(decoded: Decoded, texts: Sequence[str]) -> bool:
    """Whether words with `##` between their parts are what the tokenizer makes of the words without; a heading is not."""
    chains = [re.split(r"\s*#\s?#\s?", chain) for text in texts for chain in _PIECES.findall(text)][
        :_MOST_WORDS
    ]
    same = sum(len(decoded.codec.encode("".join(chain)) or ()) == len(chain) for chain in chains)
    return same > len(chains) / 2


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
