"""How low the loss can go, whatever the model learns: its output transform against its loss functions."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from debugkit.evidence import Cost
from debugkit.loss.term import LossTerm
from debugkit.probes.loss_tail import LossTail
from debugkit.sandbox import Sandbox, own_steps
from debugkit.tracing.playback import Playback
from debugkit.tracing.recording import VALUES_KEPT
from debugkit.trials.descent import Objective, descend_freely, descend_within

_SCALES = (1.0, 10.0, 1e2, 1e3, 1e4)
_GROWS = 1.5
_CLIMBS = 60
_MOST_VALUES = 2**20
_ENDLESS = 1e6
_DISTANCES = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "difference"})


@dataclass(frozen=True)
class Floor:
    """The lowest value of one or several loss calls on the same predictions.

    Attributes:
        name: the loss function, such as ``cross_entropy``.
        location: the source line that called it.
        heads: names of the parameters that give the raw outputs.
        transforms: the functions between the raw outputs and the loss, in order.
        transform_location: the source line of the last of them that has one.
        raw: whether nothing but reshaping is in between.
        low: the smallest value that the loss function can be given; minus infinity without a bound.
        high: the largest.
        floor: no outputs give less than this.
        free: the lowest value without the transforms.
        chance: the value for a constant prediction.
        unjudged: why there is no floor.
    """

    name: str
    location: str | None
    heads: tuple[str, ...]
    transforms: tuple[str, ...]
    transform_location: str | None
    raw: bool
    low: float = -math.inf
    high: float = math.inf
    floor: float = math.nan
    free: float = math.nan
    chance: float = math.nan
    unjudged: str | None = None

    @property
    def bounded(self) -> bool:
        """Whether the transforms keep the loss's input within bounds."""
        return math.isfinite(self.low) or math.isfinite(self.high)

    @property
    def share(self) -> float:
        """How much of the way from a constant prediction to the lowest loss is out of reach, 0 to 1."""
        room = self.chance - self.free
        return (self.floor - self.free) / room if room > 1e-6 * max(1.0, abs(self.chance)) else 0.0


@dataclass(frozen=True)
class LossFloor:
    """The floor of every loss call of the step.

    What lies between the model's last weights and the loss function is played again with extreme raw outputs, to
    learn which values the loss can be given. Within these bounds, a convex loss has a lowest value, which is found
    by projected gradient descent and certified by its duality gap (Frank and Wolfe; Jaggi, 2013).

    Attributes:
        floors: one per tensor of predictions, in order.
    """

    cost: ClassVar[Cost] = "forward"
    floors: tuple[Floor, ...]

    @staticmethod
    def collect(
        tail: LossTail,
        sandbox: Sandbox,
        *,
        max_seconds: Annotated[float, Field(gt=0, description="seconds per tensor of predictions")] = 20.0,
    ) -> LossFloor:
        """Look at each tensor of predictions; nothing of the model runs again."""
        groups: dict[int, list[LossTerm]] = {}
        for term in tail.terms:
            groups.setdefault(term.way.results[0], []).append(term)
        with sandbox.probe():
            return LossFloor(
                tuple(_floor(terms, time.monotonic() + max_seconds) for terms in groups.values())
            )


def _floor(terms: Sequence[LossTerm], end: float) -> Floor:
    first = terms[0]
    transforms = [op for op in first.way.ops if op.trained and op.name not in VALUES_KEPT]
    places = [op.location for op in transforms if op.location]
    known: dict[str, Any] = {
        "name": first.name,
        "location": first.location,
        "heads": first.heads,
        "transforms": tuple(op.name for op in transforms),
        "transform_location": places[-1] if places else None,
        "raw": first.way.trivial,
    }
    if first.way.trivial:
        return Floor(**known)
    reason = _refusal(terms)
    if reason is not None:
        return Floor(**known, unjudged=reason)
    try:
        return _judged(Floor(**known), terms, end)
    except TimeoutError:
        return Floor(
            **known, unjudged="playing the way to the loss again takes too long (`loss-floor.max-seconds`)"
        )
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return Floor(**known, unjudged=f"the way to the loss can't be played again ({type(error).__name__})")


def _judged(floor: Floor, terms: Sequence[LossTerm], end: float) -> Floor:
    way = terms[0].way

    def objective(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([_evaluate(term, values) for term in terms]).sum()

    low, high, reached = _reach(way, objective, end)
    floor = replace(floor, low=float(low.min()), high=float(high.max()))
    if bool((low.isinf() & high.isinf()).all()):
        return floor
    whole = _elementwise(terms, low, high)
    lowest, free, chance = _lowest(terms, objective, low, high) if whole is None else whole
    reached = math.inf if whole is not None else reached
    if not all(map(math.isfinite, (lowest, free, chance))):
        return replace(floor, unjudged="the loss has no lowest value")
    if reached < lowest - 1e-3 * abs(chance):
        return replace(floor, unjudged="its bounds are not known well enough")
    return replace(floor, floor=lowest, free=free, chance=chance)


def _refusal(terms: Sequence[LossTerm]) -> str | None:
    if not all(term.way.complete and term.back.complete for term in terms):
        return "a part of the way to the loss could not be recorded"
    if not all(term.from_batch for term in terms):
        return "its targets do not come from the batch"
    if any(term.weights is not None and bool((term.weights < 0).any()) for term in terms):
        return "a part of it is maximised"
    if sum(value.numel() for value in terms[0].way.variables.values()) > _MOST_VALUES:
        return "there are too many outputs to play through"
    return None


def _reach(way: Playback, objective: Objective, end: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The smallest and largest values per channel (the last dimension) of a tensor, infinite where they grow on.

    Returns:
        Both, and the lowest value of the objective that was met.
    """
    start = way({})[0]
    channels = start.shape[-1] if start.ndim > 1 else 1
    ranges = [
        _joined([_range(way(values)[0], channels) for values in _extremes(way, scale)]) for scale in _SCALES
    ]
    (bottom, top), (inner_bottom, inner_top) = ranges[-1], ranges[_SCALES.index(max(_SCALES) / 100)]
    rises = (top > _GROWS * inner_top.clamp_min(1e-3)) | (top > _ENDLESS)
    sinks = (bottom < _GROWS * inner_bottom.clamp_max(-1e-3)) | (bottom < -_ENDLESS)
    reached = math.inf
    if not bool((rises & sinks).all()):
        for towards in (torch.sum, lambda values: -values.sum(), objective):
            climbed, lowest = _climb(way, towards, channels, end)
            ranges += climbed
            reached = lowest if towards is objective else reached
    low, high = _joined(ranges)
    return low.masked_fill(sinks, -math.inf), high.masked_fill(rises, math.inf), reached


def _extremes(way: Playback, scale: float) -> Iterator[dict[int, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for sign in (1.0, -1.0):
        yield {key: torch.full_like(value, sign * scale) for key, value in way.variables.items()}
    for _ in range(2):
        noise = {key: _normal(value, generator) for key, value in way.variables.items()}
        yield {key: value * scale for key, value in noise.items()}
        yield {key: value.sign() * scale for key, value in noise.items()}
        yield {
            key: value**9 * scale for key, value in noise.items()
        }  # mostly one value, for what is normalised


def _climb(
    way: Playback, towards: Objective, channels: int, end: float
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], float]:
    """The ranges met on the way down from random outputs, and the lowest value."""
    generator = torch.Generator().manual_seed(1)
    values = {key: _normal(value, generator).requires_grad_() for key, value in way.variables.items()}
    adam = torch.optim.Adam(list(values.values()), lr=0.3)
    ranges, lowest = [], math.inf
    for _ in range(_CLIMBS):
        if time.monotonic() > end:
            raise TimeoutError
        result = way(values)[0]
        ranges.append(_range(result, channels))
        adam.zero_grad()
        value = towards(result.float())
        lowest = min(lowest, float(value.detach()))
        value.backward()  # type: ignore[no-untyped-call]
        with own_steps():
            adam.step()
    return ranges, lowest


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)


def _range(values: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = values.detach().float().reshape(-1, channels)
    low = rows.nan_to_num(math.inf, math.inf, -math.inf).amin(0)
    return low, rows.nan_to_num(-math.inf, math.inf, -math.inf).amax(0)


def _joined(ranges: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    lows, highs = zip(*ranges, strict=True)
    return torch.stack(lows).amin(0), torch.stack(highs).amax(0)


def _elementwise(
    terms: Sequence[LossTerm], low: torch.Tensor, high: torch.Tensor
) -> tuple[float, float, float] | None:
    """The same for differences from targets, which are lowest at the nearest value: on the whole batch."""
    term, targets = terms[0], terms[0].whole_target
    plain = term.name in _DISTANCES and not term.back.ops and _is_even(term.weights)
    if len(terms) > 1 or targets is None or not plain or targets.shape[1:] != term.given["target"].shape[1:]:
        return None
    if term.given["input"].shape != term.given["target"].shape:
        return None
    targets = targets.to(low.device).float()
    rows = targets.reshape(-1, len(low))
    nearest = torch.minimum(torch.maximum(rows, low), high).reshape(targets.shape)
    at_best, at_mean = (
        float(term.call(input=values, target=targets).mean())
        for values in (nearest, targets.mean(0, keepdim=True).expand_as(targets))
    )
    return at_best, 0.0, at_mean


def _is_even(weights: torch.Tensor | None) -> bool:
    return weights is None or bool((weights == weights.flatten()[0]).all())


def _lowest(
    terms: Sequence[LossTerm], objective: Objective, low: torch.Tensor, high: torch.Tensor
) -> tuple[float, float, float]:
    """``floor``, ``free`` and ``chance`` of the weighted sum of the calls."""
    first = terms[0]
    start = first.way({})[0].detach().float()
    start = start.nan_to_num(0.0, 1e4, -1e4).clamp(-1e4, 1e4)
    domain = _domain(first)
    chance = min(float(objective(constant)) for constant in _constants(terms, start))
    if domain is None:
        best, at = descend_freely(objective, start)
        if not math.isfinite(best):
            return math.nan, best, chance
        width = float(at.max() - at.min())
        lowest, highest = at.reshape(-1, len(low)).amin(0), at.reshape(-1, len(high)).amax(0)
        bottom = torch.where(low.isinf(), torch.minimum(lowest, high.clamp_max(_ENDLESS) - width), low)
        top = torch.where(high.isinf(), torch.maximum(highest, low.clamp_min(-_ENDLESS) + width), high)
    else:
        bottom, top = low.clamp(*domain), high.clamp(*domain)
        best, _ = descend_within(
            objective, start, torch.full_like(low, domain[0]), torch.full_like(high, domain[1])
        )
    slack = 0.01 * (top - bottom).abs()
    bottom, top = bottom - slack, top + slack
    if domain is not None:
        bottom, top = bottom.clamp_min(domain[0]), top.clamp_max(domain[1])
    _, certified = descend_within(objective, start, bottom, top)
    return max(certified, best), best, chance


def _domain(term: LossTerm) -> tuple[float, float] | None:
    """The values that a loss's input may have, where they are limited."""
    if term.normalised or term.expects not in ("probabilities", "log-probabilities"):
        return None
    return (0.0, 1.0) if term.expects == "probabilities" else (-50.0, 0.0)


def _constants(terms: Sequence[LossTerm], like: torch.Tensor) -> Iterator[torch.Tensor]:
    """Constant predictions."""
    first = terms[0]
    yield (
        torch.full_like(like, -math.log(max(like.shape[-1], 2)))
        if _domain(first) == (-50.0, 0.0)
        else (torch.full_like(like, 0.5) if _domain(first) else torch.zeros_like(like))
    )
    if first.expects == "values" and isinstance(first.given.get("target"), torch.Tensor):
        centre = first.centre()
        if centre.ndim <= like.ndim and all(
            one in (1, other) for one, other in zip(centre.shape[::-1], like.shape[::-1], strict=False)
        ):
            yield centre.expand_as(like).clone()


def _evaluate(term: LossTerm, values: torch.Tensor) -> torch.Tensor:
    result = term.call(input=term.back({term.way.results[0]: values})[0])
    weights = term.weights
    return result.sum() if weights is None else (result * weights.detach().float()).sum()
