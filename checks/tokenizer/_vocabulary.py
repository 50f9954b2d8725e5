"""The tokenizer's ids against the rows of the embedding that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from debugkit import Finding, fail, note, warn
from debugkit.data.shares import percent
from debugkit.tokens.codec import Codec

_MULTIPLE = 128
_MOST_TRIED = 64
_MOST_SHOWN = 3


def tokens_without_a_row(
    codec: Codec, tokenizer: Any, model: Any, table: str, rows: int
) -> Iterator[Finding]:
    """Tokens that the tokenizer can make and the embedding has no row for."""
    if codec.size is None or codec.size <= rows:
        return
    roles = {role: index for role, index in codec.roles.items() if index >= rows}
    beyond = sorted(index for index in codec.added if index >= rows) or [*range(rows, codec.size)]
    made = [index for index in beyond[-_MOST_TRIED:] if _makes(codec, index)]
    if not roles and not made:
        return
    tokens = sorted({*roles.values(), *made})
    shown = ", ".join(f"{codec.quote((index,))} ({index})" for index in tokens[:_MOST_SHOWN])
    more = f" and {len(tokens) - _MOST_SHOWN} more" if len(tokens) > _MOST_SHOWN else ""
    said = (
        f"the tokenizer has {codec.size:,} ids and `{table}` {rows:,} rows: {shown}{more} can't be looked up"
    )
    if not roles and _ships_with_model(tokenizer, model, tokens):
        yield note(f"{said}; the checkpoint comes like that, and the data does not use it")
        return
    used = f" (the `{next(iter(roles))}` token)" if roles else ""
    yield fail(
        f"{said}{used}",
        where=table,
        hint="call `model.resize_token_embeddings(len(tokenizer))` after adding tokens"
        if hasattr(model, "resize_token_embeddings")
        else f"give `{table}` `len(tokenizer)` rows",
        tokens=codec.size,
        rows=rows,
    )


def unreachable_rows(
    codec: Codec, table: str, rows: int, highest: int, max_unreachable: float, spare: int
) -> Iterator[Finding]:
    """Rows beyond every id that the tokenizer, or the data, has."""
    if codec.size is None:
        return
    needed = max(codec.size, highest + 1)
    padded = -(-needed // _MULTIPLE) * _MULTIPLE
    beyond = rows - needed
    if rows <= padded or beyond <= spare or beyond <= max_unreachable * rows:
        return
    yield warn(
        f"`{table}` has {rows:,} rows and the tokenizer {codec.size:,} ids: {percent(beyond / rows, both_ends=True)} of the rows can "
        "never be looked up",
        where=table,
        hint="load the tokenizer that belongs to the model and look at `len(tokenizer)`"
        if beyond > rows / 2
        else "make the model with `vocab_size=len(tokenizer)`, or load the tokenizer that belongs to it",
        rows=rows,
        tokens=codec.size,
    )


def _makes(codec: Codec, index: int) -> bool:
    """Whether some text is encoded to this id."""
    text = codec.decode((index,))
    return bool(text) and index in (codec.encode(text) or ())  # type: ignore[arg-type]


def _ships_with_model(tokenizer: Any, model: Any, tokens: list[int]) -> bool:
    """Whether tokens were in the tokenizer's files, which come from the model's own folder."""
    files = getattr(tokenizer, "init_kwargs", None)
    loaded = files.get("added_tokens_decoder") if isinstance(files, dict) else None
    name = getattr(tokenizer, "name_or_path", None)
    same = bool(name) and name in (
        getattr(model, "name_or_path", None),
        getattr(getattr(model, "config", None), "_name_or_path", None),
    )
    return same and isinstance(loaded, dict) and {str(token) for token in loaded} >= {str(t) for t in tokens}
