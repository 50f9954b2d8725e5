"""A row read at once, and the same row read with a cache: what the scores are at its last positions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from debugkit.data.batch import tensors
from debugkit.tracing.program import primary_output

_POSITIONS = ("pos", "offset")


class NoCache(Exception):  # noqa: N818 - a refusal, not an error
    """The model keeps no cache, or it can't be told how to hand it back."""


@dataclass(frozen=True)
class Pair:
    """Scores ``[vocabulary]`` of one position.

    Attributes:
        position: where, counted from 0.
        cached: whether the second comes from a cache.
        full: with the whole row read at once.
        other: with the row read up to there.
    """

    position: int
    cached: bool
    full: torch.Tensor
    other: torch.Tensor


def by_generate(model: Any, ids: torch.Tensor, prefix: int, source: torch.Tensor | None = None) -> list[Pair]:
    """Read a row as the ``generate`` of transformers does, made to choose the row's own tokens.

    Args:
        model: a model with ``generate``.
        ids: ``[1, length]`` the row; of a decoder where there is a source.
        prefix: how many tokens are read before the cache is used.
        source: ``[1, length]`` what an encoder reads.

    Raises:
        NoCache: it reads more than one token at a time, or chooses others than it is told to.
    """
    steps = ids.shape[1] - prefix
    full = _scores(model(**_inputs(ids, source)))
    name = "input_ids" if source is None else "decoder_input_ids"
    ahead = set(ids[0, prefix:].tolist())
    with _lengths_of(model, name) as lengths:
        out = model.generate(
            **_inputs(ids[:, :prefix], source),
            max_new_tokens=steps,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            output_logits=True,
            return_dict_in_generate=True,
            logits_processor=[_Chosen(ids[0])],
            eos_token_id=next(number for number in range(len(ahead) + 1) if number not in ahead),
            pad_token_id=0,
        )
    if not any(len(read) >= steps and {1} == set(read[1:]) for read in lengths):
        raise NoCache("generation reads the whole row anew for each token")
    if out.sequences[0, -steps:].tolist() != ids[0, prefix:].tolist():
        raise NoCache("its `generate` chooses other tokens than a logits processor tells it to")
    return [
        Pair(prefix - 1 + number, number > 0, _at(full, prefix - 1 + number), other[0])
        for number, other in enumerate(out.logits)
    ]


def by_hand(model: torch.nn.Module, ids: torch.Tensor, prefix: int) -> list[Pair]:
    """Read a row with the cache that a model gives and takes back.

    Raises:
        NoCache: it takes none, or gives none that grows with what it has read.
    """
    name, options, places = _cache_parameter(model)
    full = _scores(model(ids))
    outputs = model(ids[:, :prefix], **options)
    cache = _cache_in(outputs, name, prefix)
    pairs = [Pair(prefix - 1, False, _at(full, prefix - 1), _scores(outputs)[0, -1])]
    for place in range(prefix, ids.shape[1]):
        position = {key: _position(key, place, ids) for key in places}
        outputs = model(ids[:, place : place + 1], **{name: cache}, **options, **position)
        cache = _cache_in(outputs, name, place + 1)
        pairs.append(Pair(place, True, _at(full, place), _scores(outputs)[0, -1]))
    wide = full.shape[1] == ids.shape[1]
    return pairs if wide else [pairs[-1]]


def by_length(
    model: torch.nn.Module, ids: torch.Tensor, prefix: int, source: torch.Tensor | None = None
) -> Pair:
    """The scores of the last token of a row's beginning, as training reads it, in the longer row and alone."""
    full, alone = (_scores(model(**_inputs(part, source))) for part in (ids, ids[:, :prefix]))
    return Pair(prefix - 1, False, _at(full, prefix - 1), alone[0, -1])


def _inputs(ids: torch.Tensor, source: torch.Tensor | None) -> dict[str, torch.Tensor]:
    given = ids if source is None else source
    inputs = {"input_ids": given, "attention_mask": torch.ones_like(given)}
    return inputs if source is None else {**inputs, "decoder_input_ids": ids}


class _Chosen:
    """Makes generation choose the tokens of a row."""

    def __init__(self, ids: torch.Tensor) -> None:
        self._ids = ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, self._ids[input_ids.shape[1]]] = 0
        return chosen


@contextmanager
def _lengths_of(model: torch.nn.Module, name: str) -> Iterator[list[list[int]]]:
    """How many tokens each call reads, of the model and of those inside it that generate, as adapters wrap them."""
    lengths: list[list[int]] = []
    hooks = []
    for module in model.modules():
        if module is not model and not hasattr(module, "prepare_inputs_for_generation"):
            continue
        read: list[int] = []

        def keep(_: torch.nn.Module, args: Any, kwargs: dict[str, Any], read: list[int] = read) -> None:
            given = kwargs.get(name, args[0] if args else None)
            read.append(given.shape[-1] if isinstance(given, torch.Tensor) else -1)

        lengths.append(read)
        hooks.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        yield lengths
    finally:
        for hook in hooks:
            hook.remove()


def _cache_parameter(model: torch.nn.Module) -> tuple[str, dict[str, Any], list[str]]:
    """The parameter of forward that takes a cache, what asks for one, and what takes a position."""
    try:
        parameters = [*inspect.signature(model.forward).parameters.values()]
    except (TypeError, ValueError):
        raise NoCache("the model takes no cache") from None
    names, options, places = [], {}, []
    for parameter in parameters[1:]:
        name = parameter.name
        if any(part in name for part in _POSITIONS) and parameter.default in (None, 0):
            places.append(name)
        elif parameter.default is False and "cache" in name:
            options[name] = True
        elif parameter.default is None and ("past" in name or "cache" in name or name.startswith("kv")):
            names.append(name)
    if len(names) != 1:
        raise NoCache("the model takes no cache")
    return names[0], options, places


def _position(name: str, place: int, ids: torch.Tensor) -> Any:
    if "ids" in name or name == "positions":
        return torch.full_like(ids[:, :1], place)
    return torch.tensor([place], device=ids.device) if name == "cache_position" else place


def _cache_in(outputs: Any, name: str, length: int) -> Any:
    """What a model gives to be handed back: it holds something for each token read."""
    if isinstance(outputs, Mapping):
        candidates = [outputs[name]] if name in outputs else []
    elif isinstance(outputs, (tuple, list)):
        candidates = [*outputs[1:]]
    else:
        candidates = [getattr(outputs, name, None)]
    for value in candidates:
        if isinstance(value, (list, tuple, Mapping)):
            found = [tensor for _, tensor in tensors(value)]
            if found and all(length in tensor.shape for tensor in found):
                return value
    raise NoCache("the model gives no cache that grows with what it has read")


def _scores(outputs: Any) -> torch.Tensor:
    main = primary_output(outputs)
    if not isinstance(main, torch.Tensor) or main.ndim != 3 or main.shape[0] != 1:
        raise NoCache("the model gives no scores for each position")
    return main.detach()


def _at(full: torch.Tensor, position: int) -> torch.Tensor:
    return full[0, position if position < full.shape[1] else -1]


def furthest(pairs: Sequence[Pair]) -> float:
    """The largest difference between two scores, relative to the spread of the first; 0 without any."""
    found = []
    for pair in pairs:
        full, other = pair.full.double(), pair.other.to(pair.full.device).double()
        seen = full.isfinite() & other.isfinite()
        spread = float(full[seen].std(correction=0)) if bool(seen.any()) else 0.0
        if spread:
            found.append(float((full - other)[seen].abs().max()) / spread)
    return max(found, default=0.0)
