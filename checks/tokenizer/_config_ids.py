"""The special ids of a configuration against those of the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from debugkit import Finding, note, warn
from debugkit.probes.token_ids import TokenIds
from debugkit.tokens.codec import Codec

_MOSTLY = 0.5

ROLES = ("pad", "eos", "bos")

_USE = {
    "pad": "the model takes them for text where it counts positions, pools, or leaves padding out",
    "eos": "generation does not stop there",
    "bos": "generation begins with another token",
}


@dataclass(frozen=True)
class Disagreement:
    """One special token under two ids.

    Attributes:
        role: such as ``eos``.
        place: where the other id is given.
        declared: the ids that the configuration gives.
        own: the tokenizer's id.
        deliberate: whether the configuration differs from the default of its class.
        rows: in how many rows the tokenizer's id stands in that role.
    """

    role: str
    place: str
    declared: tuple[int, ...]
    own: int
    deliberate: bool
    rows: int


def disagreements(model: Any, codec: Codec, ids: TokenIds | None) -> list[Disagreement]:
    """The special tokens that the configuration and the tokenizer give different ids."""
    config = text_config(model)
    if config is None:
        return []
    generation = getattr(model, "generation_config", None)
    defaults = _defaults(config)
    found = []
    for role in ROLES:
        own, name = codec.roles.get(role), f"{role}_token_id"
        declared, spoken = _ids(getattr(config, name, None)), _ids(getattr(generation, name, None))
        place, deliberate = f"config.{name}", declared != _ids(getattr(defaults, name, None))
        if role == "eos" and spoken:
            if own in declared and own not in spoken:
                place, deliberate = f"generation_config.{name}", True
            declared = spoken
        if own is not None and declared and own not in declared:
            found.append(Disagreement(role, place, declared, own, deliberate, _rows(role, own, ids)))
    return found


def text_config(model: Any) -> Any:
    """The configuration of the part of a model that reads text; ``None`` without one."""
    config = getattr(model, "config", None)
    getter = getattr(config, "get_text_config", None)
    return getter() if callable(getter) else config


def judged(
    found: Disagreement, codec: Codec, trained: bool, generates: bool, aligned: bool
) -> Iterator[Finding]:
    """A warning where the batches hold the tokenizer's token and the model acts on the other id; a note otherwise.

    Args:
        found: the token.
        codec: the tokenizer.
        trained: whether the model is trained, so that its ids are no mere defaults.
        generates: whether the model is one that writes text.
        aligned: whether training begins by setting the configuration to the tokenizer's ids.
    """
    name = found.place
    declared = ", ".join(map(str, found.declared))
    said = f"`{name}` is {declared} and the tokenizer's is {found.own} ({codec.quote((found.own,))})"
    if aligned:
        yield note(f"{said}; the trainer sets the configuration to the tokenizer's ids when it starts")
    elif not found.rows or not (trained or found.deliberate):
        yield note(f"{said}; no row shows it" if not found.rows else f"{said}, which is left at its default")
    elif found.role in ("eos", "bos") and not generates:
        yield note(f"{said}; this model does not write text")
    else:
        yield warn(
            f"{said}: {found.rows:,} rows hold the tokenizer's; {_USE[found.role]}",
            where=name,
            hint=f"set `model.{name} = tokenizer.{found.role}_token_id`"
            + (", and the same in `model.generation_config`" if name == "config.eos_token_id" else ""),
            declared=list(found.declared),
            tokenizer=found.own,
        )


def _rows(role: str, own: int, ids: TokenIds | None) -> int:
    """In how many rows an id stands where its role has it."""
    if ids is None:
        return 0
    if role == "pad":
        return int(ids.padded.sum()) if ids.pad == own else 0
    spans = zip(ids.ids, ids.starts, ids.stops, strict=True)
    rows = sum(bool((row[start:stop] == own).any()) for row, start, stop in spans)
    return rows if rows >= _MOSTLY * len(ids.ids) else 0


def _defaults(config: Any) -> Any:
    try:
        return type(config)()
    except Exception:  # some can't be made without arguments
        return None


def _ids(value: Any) -> tuple[int, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(index for index in value if isinstance(index, int))
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else ()
