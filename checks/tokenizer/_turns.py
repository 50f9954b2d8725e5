"""The turns of a conversation, found by the marks that the tokenizer's own chat template puts around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from debugkit import Finding, Target, warn
from debugkit.data.shares import percent
from debugkit.probes.supervision import SupervisedRow, Supervision
from debugkit.tokens.codec import Codec

_WORDS = ("Quokka", "Numbat", "Wombat", "Bilby")
_FEWEST_ROWS = 4
_MOST = 0.5

Marks = tuple[int, ...]


@dataclass(frozen=True)
class Turns:
    """What a chat template puts around turns, as ids.

    Attributes:
        to_assistant: between a user's turn and the answer.
        to_user: between an answer and the user's next turn.
        prompt: what it adds for generation; empty where it adds nothing.
    """

    to_assistant: Marks
    to_user: Marks
    prompt: Marks

    @staticmethod
    def of(tokenizer: Any, codec: Codec) -> Turns | None:
        """Learn the marks from a conversation of four turns; ``None`` without a chat template that takes it."""
        user, assistant = ("user", "assistant")
        roles = (user, assistant, user, assistant)
        chat = [{"role": role, "content": word} for role, word in zip(roles, _WORDS, strict=True)]
        whole = _rendered(tokenizer, chat)
        places = [-1 if whole is None else whole.find(word) for word in _WORDS]
        if whole is None or places != sorted(places) or places[0] < 0:
            return None
        between = [whole[places[n] + len(_WORDS[n]) : places[n + 1]] for n in range(2)]
        open_end = _rendered(tokenizer, chat[:1], add_generation_prompt=True)
        closed = _rendered(tokenizer, chat[:1], add_generation_prompt=False)
        added = open_end[len(closed) :] if open_end and closed and open_end.startswith(closed) else ""
        marks = [tuple(codec.encode(text) or ()) for text in (*between, added)]
        return Turns(*marks) if marks[0] and marks[1] else None


def prompts(supervision: Supervision, target: Target, most: float) -> Iterator[Finding]:
    """What users say has labels."""
    found = _turns(supervision, target)
    if found is None:
        return
    turns, rows = found
    asked = spoken = total = answered = 0
    for row in rows:
        starts = _find(row.tokens, turns.to_assistant)
        begin = 0
        for start in starts:
            places = [
                p for p in range(begin, start) if row.content[p] and _is_text(row.tokens[p], supervision)
            ]
            spoken += len(places)
            asked += sum(row.supervised[p] for p in places)
            after = [p for p in _find(row.tokens, turns.to_user) if p >= start]
            answered += sum(row.supervised[start + len(turns.to_assistant) : after[0] if after else None])
            begin = after[0] + len(turns.to_user) if after else len(row.tokens)
        total += sum(row.supervised)
    if len(rows) < _FEWEST_ROWS or not spoken or asked <= most * spoken:
        return
    learned = "questions too" if answered else "questions and no answer"
    yield warn(
        f"{percent(asked / spoken)} of the words of users and system have labels; they are {percent(asked / total)} of "
        f"all tokens with a label in {len(rows)} conversations: the model learns to write {learned}",
        where=supervision.name(rows[0]),
        hint="label what the assistant says only: `assistant_only_loss=True` in TRL, or -100 for all other tokens",
        prompt=asked / spoken,
        share=asked / total,
    )


def open_ends(supervision: Supervision, target: Target) -> Iterator[Finding]:
    """Rows that end where an answer should begin."""
    found = _turns(supervision, target)
    if found is None or not found[0].prompt:
        return
    prompt = found[0].prompt
    rows = [row for row in supervision.rows if row.length > len(prompt) and any(row.supervised)]
    ends = []
    for row in rows:
        content = [token for token, counts in zip(row.tokens, row.content, strict=True) if counts]
        if tuple(content[-len(prompt) :]) == prompt:
            ends.append(row)
    if len(rows) < _FEWEST_ROWS or len(ends) < _MOST * len(rows):
        return
    assert supervision.codec is not None
    yield warn(
        f"{len(ends)} of {len(rows)} rows end with {supervision.codec.quote(prompt)} and no answer after it: the model "
        "learns to open another turn after its own",
        where=supervision.name(ends[0]),
        hint="render training texts with `add_generation_prompt=False`",
        rows=len(ends),
    )


def _turns(supervision: Supervision, target: Target) -> tuple[Turns, list[SupervisedRow]] | None:
    """The marks as they occur, and the rows in which an answer begins."""
    tokenizer = getattr(target.tokenizer, "tokenizer", target.tokenizer)
    if supervision.codec is None or supervision.task != "next":
        return None
    turns = Turns.of(tokenizer, supervision.codec)
    if turns is None:
        return None
    rows = supervision.rows
    turns = Turns(_as_met(turns.to_assistant, rows), _as_met(turns.to_user, rows), turns.prompt)
    return turns, [row for row in rows if _find(row.tokens, turns.to_assistant)]


def _as_met(marks: Marks, rows: Sequence[SupervisedRow]) -> Marks:
    """The marks, without the ids at their ends that text beside them may have swallowed."""
    ways = [way for way in (marks, marks[:-1], marks[1:], marks[1:-1]) if len(way) > 1] or [marks]
    return max(ways, key=lambda way: sum(bool(_find(row.tokens, way)) for row in rows))


def _find(tokens: Sequence[int], marks: Marks) -> list[int]:
    """Where a run of ids begins in a row."""
    size = len(marks)
    return [
        p
        for p in range(len(tokens) - size + 1)
        if tokens[p] == marks[0] and tuple(tokens[p : p + size]) == marks
    ]


def _is_text(token: int, supervision: Supervision) -> bool:
    assert supervision.codec is not None
    return token not in supervision.codec.added


def _rendered(tokenizer: Any, chat: list[dict[str, str]], **options: Any) -> str | None:
    render = getattr(tokenizer, "apply_chat_template", None)
    if not callable(render) or not getattr(tokenizer, "chat_template", None):
        return None
    try:
        text = render(chat, tokenize=False, **options)
    except Exception:  # a template may refuse in any way
        return None
    return text if isinstance(text, str) else None
