"""What the loss asks for at the end of rows: padding, which it should not, and the end of text, which it should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from debugkit import Finding, fail, note, warn
from debugkit.data.shares import percent
from debugkit.probes.supervision import SupervisedRow, Supervision

_FEWEST_ROWS = 4
_FEWEST_RUNS = 3


def padding(supervision: Supervision) -> Iterator[Finding]:
    """Padding that has a label."""
    pads = {row.sample: _supervised_pads(row, supervision) for row in supervision.rows}
    if not any(pads.get(sample) for sample in supervision.traced):
        yield from _unmarked_padding(supervision)
        return
    found = sum(len(places) for places in pads.values())
    total = sum(sum(row.supervised) for row in supervision.rows)
    row, place = next((row, pads[row.sample][0]) for row in supervision.rows if pads[row.sample])
    token = _shown(supervision, row.tokens[place])
    make = fail if supervision.declared else warn
    yield make(
        f"{found:,} of {total:,} tokens with a label ({percent(found / total)}) are padding ({token}): the model learns "
        "to predict padding, and the loss looks lower than it is",
        where=supervision.name(row),
        hint=_hint(supervision),
        padding=found,
        supervised=total,
    )


def end_of_text(supervision: Supervision) -> Iterator[Finding]:
    """Texts whose end is there but never has a label."""
    eos = supervision.eos
    if eos is None or supervision.task != "next":
        return
    present, asked, where = 0, 0, ""
    for row in supervision.rows:
        for place in _ends(row, eos, supervision):
            present += 1
            asked += row.supervised[place]
            where = where or supervision.name(row)
    if asked or not present:
        return
    shown = _shown(supervision, eos)
    said = f"{shown} ends {present:,} texts that have labels, and never has one itself: the model never learns to stop"
    if present < _FEWEST_ROWS:
        yield note(said, where=where, ends=present)
        return
    hint = f"include {shown} in the labels"
    shared = eos in (supervision.pad, supervision.codec.roles.get("pad") if supervision.codec else None)
    if shared:
        hint = (
            f"{shown} is the padding token too, and every padding token is ignored: give the tokenizer a padding token "
            "of its own, or ignore by `attention_mask`"
        )
    make = (
        warn if shared and not supervision.masked else fail
    )  # it may be padding alone, and no end of text be there
    yield make(said, where=where, hint=hint, ends=present)


def _ends(row: SupervisedRow, eos: int, supervision: Supervision) -> Iterator[int]:
    """The places of ends of text that follow a token with a label."""
    special = supervision.codec.added if supervision.codec else frozenset[int]()
    for place in range(1, len(row.tokens)):
        before = place - 1
        if row.tokens[place] != eos or not row.supervised[before] or not row.content[place]:
            continue
        if row.tokens[before] not in special:
            yield place


def _supervised_pads(row: SupervisedRow, supervision: Supervision) -> list[int]:
    """The places of padding with a label. An end of text after the content is none, whatever a mask says."""
    found = []
    for place, (content, supervised) in enumerate(zip(row.content, row.supervised, strict=True)):
        if content or not supervised:
            continue
        follows = supervision.task in ("next", "written") and place > 0 and row.content[place - 1]
        if follows and supervision.eos in (None, row.tokens[place]):
            continue
        found.append(place)
    return found


def _unmarked_padding(supervision: Supervision) -> Iterator[Finding]:
    """Sequences to write that end in one id, which nothing declares to be padding and which occurs nowhere else."""
    if supervision.task != "written" or supervision.pad is not None or not supervision.traced:
        return
    last = Counter(row.tokens[-1] for row in supervision.rows if row.tokens)
    if not last:
        return
    filler = last.most_common(1)[0][0]
    runs = [(row, _run(row, filler)) for row in supervision.rows]
    alone = all(filler not in row.tokens[: len(row.tokens) - run] for row, run in runs)
    lengths = {run for _, run in runs}
    if not alone or len(lengths) < _FEWEST_RUNS or max(lengths) < _FEWEST_RUNS or filler < 0:
        return
    asked = [(row, sum(row.supervised[len(row.tokens) - run + 1 :])) for row, run in runs if run > 1]
    traced = sum(count for row, count in asked if row.sample in supervision.traced)
    total = sum(sum(row.supervised) for row in supervision.rows)
    found = sum(count for _, count in asked)
    if traced and len(asked) >= _FEWEST_ROWS:
        yield warn(
            f"{found:,} of {total:,} tokens with a label ({percent(found / total)}) are the id {filler} that fills up the "
            "ends of rows and occurs nowhere else: the model learns to predict padding",
            where=supervision.name(asked[0][0]),
            hint=_hint(supervision),
            padding=found,
            supervised=total,
        )


def _run(row: SupervisedRow, index: int) -> int:
    run = 0
    while run < len(row.tokens) and row.tokens[-1 - run] == index:
        run += 1
    return run


def _hint(supervision: Supervision) -> str:
    if supervision.task == "tags":
        return "label padded positions `-100` (`DataCollatorForTokenClassification`), or pass `ignore_index`"
    if supervision.task == "written":
        return "pad labels with `-100` (`DataCollatorForSeq2Seq`), or pass `ignore_index`"
    return "label padded positions `-100`, or pass the padding id as `ignore_index`"


def _shown(supervision: Supervision, index: int) -> str:
    return f"`{index}`" if supervision.codec is None or index < 0 else supervision.codec.quote((index,))
