"""Maps of classes held against their images: do their borders lie where the image has edges?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from debugkit import Finding, note, warn
from debugkit.data.batch import split, tensors
from debugkit.data.shares import lower_bound

_SIDE = 96
_SMALLEST = 12
_FEWEST = 12
_MOST = 64
_REACH = 0.25
_NEAR = 2
_CLEAR = 4.0
_VERY_CLEAR = 6.0
_MARGIN = 0.15
_EXPLAINED = 0.05
_TIMES = 4.0
_SOME = 0.1
_FAR = 0.3
_OFTEN = 1.5
_SHARE = 0.12
_Z = 2.33  # 99 % on one side
_MOST_CLASSES = 64
_MOST_CHANNELS = 16

_TURNS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mirrored left to right": lambda values: values.flip(1),
    "mirrored top to bottom": lambda values: values.flip(0),
    "turned by 180 degrees": lambda values: values.flip(0, 1),
    "with rows and columns swapped": lambda values: values.T,
    "turned by 90 degrees": lambda values: values.rot90(1),
    "turned by -90 degrees": lambda values: values.rot90(-1),
}
MOVED = "moved"
_IGNORED = (-100, 255)


@dataclass(frozen=True)
class Verdict:
    """Maps as given against maps changed in one way.

    Attributes:
        way: how they are changed.
        as_given: how many maps fit their image clearly better as given.
        samples: the samples whose map fits clearly better changed.
    """

    way: str
    as_given: int
    samples: frozenset[int]

    @property
    def changed(self) -> int:
        """How many maps fit better changed."""
        return len(self.samples)

    @property
    def proven(self) -> float:
        """The share of maps that the counts prove to fit better changed."""
        clear = self.as_given + self.changed
        return lower_bound(self.changed / clear, clear, _Z) if clear else 0.0


def pairs_of(batches: Sequence[object]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images ``[channels, height, width]`` with their maps ``[height, width]``, from the first batches."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for batch in batches:
        inputs, labels = split(batch)
        given = (
            [t for _, t in tensors(inputs) if _is_whole(t)]
            if labels is None
            else [t for _, t in tensors(labels)]
        )
        maps = next((m for t in given if (m := _maps(t)) is not None), None)
        if maps is None:
            continue
        for _, tensor in tensors(inputs):
            if tensor.ndim != 4 or tensor.is_complex() or len(tensor) != len(maps):
                continue
            images = tensor.detach().cpu().float()
            if images.shape[1] > _MOST_CHANNELS and images.shape[-1] <= 4:
                images = images.movedim(-1, 1)
            if images.shape[1] <= _MOST_CHANNELS and images.shape[-2:] == maps.shape[-2:]:
                found += zip(images, maps, strict=True)
                break
    return found[:_MOST]


def apart(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[Finding]:
    """Maps that were mirrored or moved without their images, or the other way round."""
    scores = [found for image, classes in pairs if (found := _scores(image, classes)) is not None]
    if len(scores) < _FEWEST:
        if pairs:
            yield note(f"{len(scores)} maps with borders: too few to tell whether they fit their images")
        return
    verdicts = [_verdict(way, scores) for way in (*_TURNS, MOVED)]
    fitting = max(verdict.as_given for verdict in verdicts if verdict.way != MOVED)
    least = max(_FEWEST / 2, _SHARE * len(scores))
    apart = [v for v in verdicts if v.changed >= least and v.proven > _SOME and v.way != MOVED]
    moved = verdicts[-1]
    on_edges = sum(_is_above_mirrored(found) for found in scores)
    if moved.changed >= max(least, _OFTEN * on_edges) and moved.proven > _FAR:
        apart.append(moved)
    worst = max(apart, key=lambda verdict: verdict.changed, default=None)
    if worst is not None and all(len(v.samples - worst.samples) <= worst.changed / 2 for v in verdicts[:-1]):
        yield warn(
            f"{worst.changed} of {len(scores)} maps fit their image far better {worst.way} than as they are "
            f"({worst.as_given} fit better as they are): images and maps are changed apart",
            hint="transform an image and its map in one call, or with the same random parameters",
            apart=worst.changed,
            as_given=worst.as_given,
        )
    else:
        yield note(
            f"{fitting or 'none'} of {len(scores)} maps fit their image clearly better than mirrored",
            as_given=fitting,
        )


def _verdict(way: str, scores: Sequence[_Scores]) -> Verdict:
    clear = _VERY_CLEAR if way == MOVED else _CLEAR
    as_given, changed = 0, []
    for number, found in enumerate(scores):
        plain, other = found.edges[""], found.edges[way]
        within, beyond = found.regions[""], found.regions.get(way, math.nan)
        as_given += (plain >= _CLEAR and plain - other >= _MARGIN * plain) or _far_above(within, beyond)
        if (other >= clear and other - plain >= _MARGIN * other) or _far_above(beyond, within):
            changed.append(number)
    return Verdict(way, as_given, frozenset(changed))


def _is_above_mirrored(found: _Scores) -> bool:
    """Whether borders lie on edges as given, and not as much when mirrored."""
    plain = found.edges[""]
    mirrored = min(found.edges[way] for way in [*_TURNS][:2])
    return plain >= _CLEAR and plain - mirrored >= _MARGIN * plain


def _far_above(one: float, other: float) -> bool:
    return one >= _EXPLAINED and one >= _TIMES * other


@dataclass(frozen=True)
class _Scores:
    """How well a map fits its image as given (``""``) and changed in each way.

    Attributes:
        edges: the correlation of borders with edges above what is usual at shifts of up to a quarter of the sides, in
            units of the spread there.
        regions: the share of the image's variance that lies between the classes; not known for other shifts.
    """

    edges: dict[str, float]
    regions: dict[str, float]


def _scores(image: torch.Tensor, classes: torch.Tensor) -> _Scores | None:
    """The scores of one sample; ``None`` where there are no borders or no edges."""
    borders, edges = _borders(classes), _edges(image)
    if min(borders.shape) < _SMALLEST or not borders.any() or float(edges.std()) == 0:
        return None
    plain = _correlation(edges, borders)
    everything = [plain]
    found = {"": _around_centre(plain)}
    regions = {"": _explained(image, classes)}
    for way, change in _TURNS.items():
        changed = _borders(change(classes))
        if changed.shape != edges.shape or change(classes).shape != classes.shape:
            found[way] = -math.inf
            continue
        turned = _correlation(edges, changed)
        everything.append(turned)
        found[way] = _around_centre(turned)
        regions[way] = _explained(image, change(classes))
    rows, columns = (side // 2 for side in plain.shape)
    near = 2 * _NEAR
    moved = plain.clone()
    moved[max(0, rows - near) : rows + near + 1, max(0, columns - near) : columns + near + 1] = -math.inf
    found[MOVED] = float(moved.max())
    values = torch.cat([values.flatten() for values in everything])
    middle = float(values.median())
    spread = 1.4826 * float((values - middle).abs().median()) or 1.0
    return _Scores({way: (score - middle) / spread for way, score in found.items()}, regions)


def _explained(image: torch.Tensor, classes: torch.Tensor) -> float:
    """The share of the variance of an image that lies between the classes of a map."""
    kept = ~torch.isin(classes, torch.tensor(_IGNORED))
    values, groups = image[:, kept].nan_to_num(0.0), classes[kept].unique(return_inverse=True)[1]  # type: ignore[no-untyped-call]
    if not len(groups):
        return 0.0
    counts = torch.bincount(groups).float()
    sums = torch.zeros(len(values), len(counts)).index_add_(1, groups, values)
    centre = values.mean(1, keepdim=True)
    between = float((counts * (sums / counts - centre).square()).sum())
    return between / (float((values - centre).square().sum()) or 1.0)


def _correlation(edges: torch.Tensor, borders: torch.Tensor) -> torch.Tensor:
    """The normalised correlation at every shift up to a quarter of the sides, no shift in the middle."""
    height, width = edges.shape
    one, other = edges - edges.mean(), borders - borders.mean()
    size = (2 * height, 2 * width)
    product = torch.fft.irfft2(torch.fft.rfft2(one, s=size) * torch.fft.rfft2(other, s=size).conj(), s=size)
    rows, columns = max(1, int(_REACH * height)), max(1, int(_REACH * width))
    found: torch.Tensor = product.roll((rows, columns), (0, 1))[: 2 * rows + 1, : 2 * columns + 1]
    return found / (float(one.norm()) * float(other.norm()) or 1.0)


def _around_centre(values: torch.Tensor) -> float:
    """The best value within two pixels of no shift: borders are drawn by hand."""
    rows, columns = (side // 2 for side in values.shape)
    return float(
        values[max(0, rows - _NEAR) : rows + _NEAR + 1, max(0, columns - _NEAR) : columns + _NEAR + 1].max()
    )


def _borders(classes: torch.Tensor) -> torch.Tensor:
    """``[height, width]`` float: where a pixel's class differs from that of the next one; ignored ones apart."""
    ignored = torch.zeros_like(classes, dtype=torch.bool)
    for value in _IGNORED:
        ignored |= classes == value
    found = torch.zeros(classes.shape)
    across = (classes[:, 1:] != classes[:, :-1]) & ~ignored[:, 1:] & ~ignored[:, :-1]
    down = (classes[1:] != classes[:-1]) & ~ignored[1:] & ~ignored[:-1]
    found[:, 1:] += across
    found[1:] += down
    return _resized(found.clamp(max=1))


def _edges(image: torch.Tensor) -> torch.Tensor:
    """``[height, width]`` float: how much neighbouring pixels differ, smoothed, its largest values cut off."""
    smooth = F.avg_pool2d(image[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    found = torch.zeros(image.shape[-2:])
    found[:, 1:] += (smooth[:, :, 1:] - smooth[:, :, :-1]).abs().sum(0)
    found[1:] += (smooth[:, 1:] - smooth[:, :-1]).abs().sum(0)
    found = found.nan_to_num(0.0)
    return (
        _resized(found.clamp(max=float(found.flatten().quantile(0.98))))
        if found.numel() < 2**23
        else _resized(found)
    )


def _resized(values: torch.Tensor) -> torch.Tensor:
    step = max(1, -(-max(values.shape) // _SIDE))
    return values if step == 1 else F.avg_pool2d(values[None, None], step)[0, 0]


def _is_whole(values: torch.Tensor) -> bool:
    """Whether an unnamed tensor can hold one class for each pixel: whole numbers ``[batch, height, width]``."""
    return values.ndim == 3 and not values.is_floating_point() and not values.is_complex()


def _maps(labels: torch.Tensor) -> torch.Tensor | None:
    """Labels as ``[batch, height, width]`` class numbers; ``None`` where they are none."""
    if labels.is_complex() or labels.ndim not in (3, 4) or not labels.numel():
        return None
    found = labels.detach().cpu()
    if found.ndim == 4:
        if found.shape[1] == 1:
            found = found[:, 0]
        elif bool(((found == 0) | (found == 1)).all()) and found.shape[1] <= _MOST_CLASSES:
            found = found.float().argmax(1)
        else:
            return None
    if found.is_floating_point() and not bool((found == found.round()).all()):
        return None
    return found.long() if len(found.unique()) <= _MOST_CLASSES else None  # type: ignore[no-untyped-call]
