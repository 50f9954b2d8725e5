"""What is broken in a text: wrong decoding, Python values written as text, placeholders, control characters."""

from __future__ import annotations

import ast
import html
import json
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

PLACEHOLDER = "a placeholder for a missing value"
UNDECODED = "bytes that could not be decoded (U+FFFD)"
MISREAD = "UTF-8 that was read as Latin-1 or Windows-1252"
PYTHON = "a Python value written as text"
ESCAPED_TWICE = "HTML that was escaped twice"
CONTROL = "control characters"

_LONGEST = 4000
_PLACEHOLDERS = frozenset(
    {
        "nan",
        "none",
        "null",
        "n/a",
        "#n/a",
        "<na>",
        "nat",
        "undefined",
        "[deleted]",
        "[removed]",
        "#ref!",
        "#value!",
    }
)
_FOREIGN = re.compile(r"[^\x00-\x7f]+")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_OBJECT = re.compile(r"<[\w.]+(?: [\w.]+)* (?:object )?at 0x[0-9a-fA-F]{6,}>")
_CALL = re.compile(r"(?:tensor|array|Series|DataFrame|ndarray)\(.*\)", re.DOTALL)
_TWICE = re.compile(r"&amp;(?:amp|lt|gt|quot|nbsp|apos|#\d+|#x[0-9a-fA-F]+);")
_ENTITY = re.compile(r"& ?(?:[a-zA-Z]{2,8}|# ?\d{2,5}|# ?x[0-9a-fA-F]{2,5}) ?;")
_TAG = re.compile(
    r"</?(?:a|abbr|article|b|blockquote|body|br|button|code|div|em|font|footer|form|h[1-6]|head|header|hr|html|i|iframe"
    r"|img|input|label|li|link|main|meta|nav|ol|option|p|pre|script|section|select|small|span|strong|style|sub|sup"
    r"|svg|table|tbody|td|textarea|th|thead|title|tr|u|ul|video)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_URL = re.compile(r"https?://|www\.\w")


@dataclass(frozen=True)
class Fault:
    """What is broken in a text.

    Attributes:
        kind: in words.
        place: where in the text it begins.
    """

    kind: str
    place: int = 0


def fault(text: str, *, whole: bool = True, sentence: bool = True) -> Fault | None:
    """What is broken in a text; ``None`` where nothing is.

    Args:
        text: the text; its first 4,000 characters are read.
        whole: whether it is a text as it was written, rather than decoded from ids that may be cut anywhere.
        sentence: whether texts beside it are sentences, so that a lone `none` is no answer.
    """
    text = text[:_LONGEST]
    bare = text.strip()
    if sentence and bare.casefold() in _PLACEHOLDERS:
        return Fault(PLACEHOLDER)
    if (place := _misread_at(text)) is not None:
        return Fault(MISREAD, place)
    inner = text if whole else text.strip("\ufffd ")
    if "\ufffd" in inner:
        return Fault(UNDECODED, text.index("\ufffd"))
    if _is_python_value(bare):
        return Fault(PYTHON)
    if match := _TWICE.search(text):
        return Fault(ESCAPED_TWICE, match.start())
    return Fault(CONTROL, match.start()) if (match := _CONTROL.search(text)) else None


def is_misread(text: str) -> bool:
    """Whether a stretch of a text is UTF-8 read in a one-byte encoding, such as `Ã©` for `é`."""
    return _misread_at(text) is not None


def _misread_at(text: str) -> int | None:
    return next((run.start() for run in _FOREIGN.finditer(text) if _is_misread_run(run.group())), None)


@lru_cache(maxsize=4096)
def _is_misread_run(run: str) -> bool:
    found = [_byte(character) for character in run]
    if None in found or len(found) < 2:
        return False
    try:
        meant = bytes(byte for byte in found if byte is not None).decode("utf-8")
    except UnicodeDecodeError:
        return False
    if len(meant) > 1:
        return all(unicodedata.category(character)[0] in "LPSZNMC" for character in meant)
    return "\u00a0" <= meant <= "\u017f" or "\u2010" <= meant <= "\u2122" or meant >= "\U0001f000"


def _byte(character: str) -> int | None:
    try:
        return character.encode("cp1252")[0]
    except UnicodeEncodeError:
        return ord(character) if ord(character) < 256 else None


def _is_python_value(text: str) -> bool:
    if _OBJECT.search(text) or _CALL.fullmatch(text):
        return True
    if not text or text[0] not in "[({b" or text[-1] not in "])}'\"" or len(text) < 3:
        return False
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False
    if isinstance(value, bytes):
        return True
    holds_text = isinstance(value, (list, tuple, dict, set)) and "'" in text and bool(value)
    return holds_text and not _is_json(text)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def has_entities(text: str) -> bool:
    """Whether a text without tags holds HTML entities such as `&quot;`.

    Tokenizers that part punctuation decode one as ``& quot ;``.
    """
    found = [entity.replace(" ", "") for entity in _ENTITY.findall(text[:_LONGEST])]
    return any(html.unescape(entity) != entity for entity in found) and not _TAG.search(text[:_LONGEST])


def markup_share(text: str) -> float:
    """The share of a text's characters that are in HTML tags."""
    text = text[:_LONGEST]
    return sum(len(match.group()) for match in _TAG.finditer(text)) / max(len(text), 1)


def has_url(text: str) -> bool:
    """Whether a text holds a web address."""
    return _URL.search(text[:_LONGEST]) is not None
