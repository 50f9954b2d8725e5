"""Answer spans of extractive question answering, held against the answers and the rows that they point into."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from debugkit import Finding, Target, fail, note, warn
from debugkit.data.loaders import inner_loader, is_map_style, whole_item
from debugkit.data.shares import percent
from debugkit.probes.token_ids import TokenIds
from debugkit.tokens.codec import Codec, excerpt

_MOST_ITEMS = 128
_FEWEST = 5
_MANY = 0.1
_SOME = 0.03
_DEEPEST = 3


@dataclass(frozen=True)
class Span:
    """A span of one row.

    Attributes:
        row: the number of the row in :class:`TokenIds`.
        start: the first token.
        end: the last token.
    """

    row: int
    start: int
    end: int


def spans_of(ids: TokenIds | None) -> list[Span]:
    """The spans of all scanned rows, where the batches name them."""
    if ids is None or len(ids.ids) != ids.rows.count:
        return []
    columns = {
        path: column
        for path, column in ids.rows.columns.items()
        if not column.is_floating
        and len(column.values) == len(ids.ids)
        and all(value.numel() == 1 for value in column.values)
    }
    for path, first in columns.items():
        last = columns.get(path.replace("start", "end"))
        if last is None or last is first:
            continue
        starts, ends = ([int(value) for value in column.values] for column in (first, last))
        spans = [Span(row, start, end) for row, (start, end) in enumerate(zip(starts, ends, strict=True))]
        if path.endswith("start_positions") or 2 * len(_within(ids, spans)) > len(spans):
            return spans
    return []


def span_findings(ids: TokenIds, spans: Sequence[Span], target: Target) -> Iterator[Finding]:
    """What is wrong with the spans: those that no prediction can meet, and the wrong ones by the best proof there is."""
    within = _within(ids, spans)
    yield from _backwards(ids, within)
    texts = [*_misplaced(ids, within, target)]
    if all(finding.level == "note" for finding in texts):
        yield from _in_padding(ids, within)
        yield from _in_question(ids, within)
    yield from texts
    if (outside := len(spans) - len(within)) > _SOME * len(spans):
        yield warn(
            f"{outside:,} of {len(spans):,} answers ({percent(outside / len(spans))}) lie outside of their row: models of "
            "transformers leave them out without a word",
            hint="raise `max_length`, use a `stride`, or point answers that were cut off at the first token",
            outside=outside,
        )
    if not texts:
        yield note(f"{len(spans):,} answer spans; the texts of the answers are not known", spans=len(spans))


def _within(ids: TokenIds, spans: Sequence[Span]) -> list[Span]:
    return [s for s in spans if min(s.start, s.end) >= 0 and max(s.start, s.end) < len(ids.ids[s.row])]


def _backwards(ids: TokenIds, spans: Sequence[Span]) -> Iterator[Finding]:
    found = [span for span in spans if span.end < span.start]
    if found:
        yield fail(
            f"{len(found):,} of {len(spans):,} answers end before they begin (tokens {found[0].start} to "
            f"{found[0].end}): no prediction can be right",
            where=ids.name(found[0].row),
            hint="swap start and end, or look at how characters are mapped to tokens",
            reversed=len(found),
        )


def _in_padding(ids: TokenIds, spans: Sequence[Span]) -> Iterator[Finding]:
    padded = [span for span in spans if _is_padding(ids, span)]
    if len(padded) >= max(_FEWEST, 0.01 * len(spans)):
        yield fail(
            f"{len(padded):,} of {len(spans):,} answers lie in the padding (token {padded[0].end} of a text of "
            f"{int(ids.stops[padded[0].row])})",
            where=ids.name(padded[0].row),
            hint="map characters to tokens with the offsets of the same encoding that gives `input_ids`",
            padding=len(padded),
        )


def _in_question(ids: TokenIds, spans: Sequence[Span]) -> Iterator[Finding]:
    """Spans in the other segment than most."""
    column = next((c for p, c in ids.rows.columns.items() if p.rpartition(".")[2] == "token_type_ids"), None)
    if column is None or column.reduced or len(column.values) != len(ids.ids):
        return
    kinds = [
        (span, int(column.values[span.row].flatten()[span.start]))
        for span in _answered(ids, spans)
        if column.values[span.row].numel() == len(ids.ids[span.row])
    ]
    segments = {kind for _, kind in kinds}
    paired = any(len(column.values[span.row].unique()) > 1 for span, _ in kinds[:_MOST_ITEMS])  # type: ignore[no-untyped-call]
    if not paired or not segments:
        return
    in_second = sum(kind == 1 for _, kind in kinds)
    odd = [span for span, kind in kinds if kind == (0 if 2 * in_second > len(kinds) else 1)]
    if len(odd) >= _FEWEST and len(odd) > _SOME * len(kinds):
        yield warn(
            f"{len(odd):,} of {len(kinds):,} answers begin in the segment of the question",
            where=ids.name(odd[0].row),
            hint="skip the tokens of the question when characters are mapped to tokens (`sequence_ids()`)",
            question=len(odd),
        )


def _misplaced(ids: TokenIds, spans: Sequence[Span], target: Target) -> Iterator[Finding]:
    """Spans that decode to another text than the answer."""
    codec = ids.codec
    if codec is None:
        return
    judged, wrong = 0, []
    for span, answers in _with_answers(ids, _answered(ids, spans), target):
        tokens = [int(index) for index in ids.ids[span.row][span.start : span.end + 1]]
        verdict = _fits(codec, tokens, answers)
        if verdict is None:
            continue
        judged += 1
        if not verdict:
            wrong.append((span, tokens, answers[0]))
    if judged < _FEWEST:
        return
    share = len(wrong) / judged
    if not wrong or share <= _SOME:
        yield note(f"{judged - len(wrong)} of {judged} answer spans decode to their answer", judged=judged)
        return
    span, tokens, answer = wrong[0]
    make = fail if share > _MANY and len(wrong) >= _FEWEST else warn
    yield make(
        f"{len(wrong)} of {judged} answer spans ({percent(share)}) decode to another text than the answer: "
        f'"{excerpt(codec.decode(tokens) or "")}" for "{excerpt(answer)}"',
        where=ids.name(span.row),
        hint="map characters to tokens with `return_offsets_mapping=True` of the encoding that gives `input_ids`; the "
        "end is the last token of the answer, not the one after it",
        wrong=len(wrong),
        judged=judged,
    )


def _answered(ids: TokenIds, spans: Sequence[Span]) -> list[Span]:
    """Spans within their rows that are no sign for a question without an answer: one special token."""
    special = frozenset[int]() if ids.codec is None else ids.codec.special
    return [
        s
        for s in spans
        if 0 <= s.start <= s.end < len(ids.ids[s.row])
        and not (s.start == s.end and (s.start == 0 or int(ids.ids[s.row][s.start]) in special))
    ]


def _is_padding(ids: TokenIds, span: Span) -> bool:
    start, stop = int(ids.starts[span.row]), int(ids.stops[span.row])
    none = span.start == span.end == 0
    return not none and (span.start < start or span.end >= stop) and span.end >= span.start


def _with_answers(
    ids: TokenIds, spans: Sequence[Span], target: Target
) -> Iterator[tuple[Span, tuple[str, ...]]]:
    """Spans with the texts that may be their answer, from the batch or from the data set behind the loader."""
    texts = {path: column for path, column in ids.rows.texts.items() if len(column) == ids.rows.count}
    loader = inner_loader(target.train_loader)
    places = ids.rows.indices
    step = max(1, len(spans) // _MOST_ITEMS)
    for span in spans[::step]:
        sample = int(ids.samples[span.row])
        found = answers_in({path: column[sample] for path, column in texts.items()})
        if not found and loader is not None and is_map_style(loader) and places is not None:
            try:
                found = answers_in(whole_item(target, loader.dataset, places[sample]))
            except Exception:  # the data set may be read in another way only
                return
        if found:
            yield span, found


def answers_in(item: Any) -> tuple[str, ...]:
    """The texts of an item that are called answers, or else those that stand inside a longer text of it."""
    found = [*_strings(item, "", _DEEPEST)]
    named = tuple(text for path, text in found if "answer" in path.lower() and text.strip())
    if named:
        return named
    longest = max((text for _, text in found), key=len, default="")
    return tuple(text for _, text in found if text.strip() and text != longest and text in longest)


def _strings(value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif depth and isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(inner, f"{path}.{key}", depth - 1)
    elif depth and isinstance(value, (list, tuple, np.ndarray)) and len(value) <= 64:
        for inner in value:
            yield from _strings(inner, path, depth - 1)


def _fits(codec: Codec, tokens: Sequence[int], answers: Sequence[str]) -> bool | None:
    """Whether tokens are the fewest that hold an answer; ``None`` where there is nothing to compare."""
    whole = codec.decode(tokens)
    wanted = [plain for answer in answers if (plain := _plain(answer))]
    if whole is None or not wanted:
        return None
    text = _plain(whole)
    less = [_plain(codec.decode(part) or "") for part in (tokens[1:], tokens[:-1]) if part]
    for answer in wanted:
        if text == answer or (text and answer.startswith(text) and len(text) > len(answer) / 2):
            return True
        if answer in text and not any(answer in part for part in less):
            return True
    return False


def _plain(text: str) -> str:
    """Letters and digits alone, without case and accents."""
    spread = unicodedata.normalize("NFKD", text).casefold()
    return re.sub(r"[\W_]+", "", spread)
