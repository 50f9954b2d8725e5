"""Images and sequences whose dimensions are in the wrong place, or whose values were scrambled on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Finding, Target, Unavailable, check, fail, note, warn
from debugkit.data.columns import columns_of
from debugkit.probes.batches import Batches
from debugkit.probes.eval_samples import EvalSamples
from debugkit.probes.samples import Samples
from debugkit.probes.training_step import TrainingStep
from debugkit.tracing.entries import Entry

from ._arrival import called
from ._colours import reversed_colours
from ._layouts import Layout, layout_of, viewed
from ._neighbours import Arrangement, smoothness, unscrambled

_ROWS = 8
_MOST_VALUES = 2**20
_FEW_CHANNELS = range(2, 5)
_SMALLEST_SIDE = 8
_LINE_MARGIN, _LINE_FLOOR = 0.3, 0.7


@check
def image_layout(
    batches: Batches,
    samples: Samples,
    step: TrainingStep | None,
    others: EvalSamples | None,
    *,
    margin: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="by how much the correlation of neighbouring pixels rises when a scrambled image is put right",
        ),
    ] = 0.15,
    floor: Annotated[
        float, Field(gt=0, lt=1, description="the correlation of neighbouring pixels that has to come of it")
    ] = 0.5,
) -> Iterator[Finding]:
    """Images or sequences have their dimensions in the wrong place, or were scrambled by a reshape.

    What reaches the first convolutions is compared with what the loader gave, and the correlation of neighbouring
    values says along which dimensions there are neighbours at all.

    ## Why is this bad?
    `x.view(n, 3, h, w)` on channels-last images does not move the channels: it deals the pixels of three colours
    out over three planes that are no images. A convolution whose `in_channels` happens to be the height takes
    channels-last images without a word and slides over the colours. Both train, worse than they could.

    ## What to do
    Move dimensions with `permute` or `transpose`, and never with `view` or `reshape`:
    `x.permute(0, 3, 1, 2)` for images, `x.transpose(1, 2)` for sequences in front of a `Conv1d`.

    ## Known limits
    In noise there are no neighbours, so only a `view` between the loader and a layer is seen there. Swapped height
    and width, and colours that are swapped in both splits alike, leave no trace in the statistics.

    ## References
    - https://karpathy.github.io/2019/04/25/recipe/
    - https://docs.pytorch.org/docs/stable/generated/torch.permute.html
    """
    columns = _columns(batches)
    entries = [entry for entry in (step.entries if step else ()) if entry.sample is not None]
    judged, looked = set(), []
    for path, values in columns.items():
        for entry in entries:
            if viewed(entry, values):
                judged |= {path, entry.module}
                yield _viewed(path, values, entry)
                break
    for entry in entries:
        if entry.module in judged or not entry.dims:
            continue
        if layout := layout_of(entry):
            judged.add(entry.module)
            yield _wrong_layout(layout, entry)
    for path, values in columns.items():
        if path in judged or not _is_image(values) or _is_flattened(values, step):
            continue
        looked.append(
            f"`{path}` {_shape(values)}: {_correlations(values)}" if path else _correlations(values)
        )
        if found := unscrambled(values, margin, floor):
            judged |= {path, *(entry.module for entry in entries)}
            yield _scrambled(f"`{path}`" if path else "the input", path or None, None, found)
    for entry in entries:
        if entry.module in judged or not entry.dims or entry.sample is None:
            continue
        looked.append(f"{called(entry)} gets {_shape(entry.sample)}: {_correlations(entry.sample)}")
        limits = (_LINE_MARGIN, _LINE_FLOOR) if entry.dims == 1 else (margin, floor)
        if _may_be_scrambled(entry) and (found := unscrambled(entry.sample, *limits)):
            judged.add(entry.module)
            yield _scrambled(f"what {called(entry)} gets", entry.module, entry.location, found)
    if others is not None:
        for path, said in reversed_colours(samples.rows, others.rows):
            judged.add(path)
            yield warn(
                f"the first and the last colour of `{path}` are swapped between the splits: {said}",
                where=path or None,
                hint="read both splits with the same library, or convert (`cv2.cvtColor(image, cv2.COLOR_BGR2RGB)`)",
            )
    if judged:
        return
    if not looked:
        raise Unavailable(
            "no input is an image and no convolution was seen at work, so there is no layout to judge"
        )
    yield note("; ".join(looked[:3]))


def _columns(batches: Batches) -> dict[str, torch.Tensor]:
    """The first rows of every input of numbers, float32 on the CPU."""
    found, kept = columns_of(batches.first), {}
    for path, given in found.tensors.items():
        rows = [*given[:_ROWS]]
        while len(rows) > 1 and sum(row.numel() for row in rows) > _MOST_VALUES:
            rows.pop()
        if path in found.labels or not rows or len({row.shape for row in rows}) > 1 or rows[0].ndim < 2:
            continue
        if rows[0].dtype is not torch.bool and 0 < rows[0].numel() <= 4 * _MOST_VALUES:
            kept[path] = torch.stack([row.to("cpu", torch.float32) for row in rows])
    return kept


def _is_image(values: torch.Tensor) -> bool:
    return values.ndim == 4 and values.shape[1] in _FEW_CHANNELS and min(values.shape[2:]) >= _SMALLEST_SIDE


def _is_flattened(values: torch.Tensor, step: TrainingStep | None) -> bool:
    """Whether all that takes the values is a layer over all of an image's pixels, to which order means nothing."""
    sizes = (
        [entry.shape[-1] for entry in step.entries if entry.op in ("linear", "matmul", "addmm")]
        if step
        else []
    )
    whole = values[0].numel()
    return whole in sizes and not any(entry.dims for entry in (step.entries if step else ()))


def _may_be_scrambled(entry: Entry) -> bool:
    channels, *sides = entry.shape[1:] if len(entry.shape) == entry.dims + 2 else entry.shape
    if entry.dims == 1:
        return channels > 1 and sides[0] >= 2 * _SMALLEST_SIDE
    if entry.dims != 2 or min(sides) < _SMALLEST_SIDE:
        return False
    return channels in _FEW_CHANNELS or (channels == 1 and sides[0] != sides[1])


def _viewed(path: str, values: torch.Tensor, entry: Entry) -> Finding:
    name = f"`{path}`" if path else "the input"
    return fail(
        f"{name} is {_shape(values)} and {called(entry)} gets it as {list(entry.shape[1:])} with every value at its "
        "old place in memory: `view` or `reshape` was used where dimensions have to be moved, and the values are "
        "scrambled",
        where=entry.module or path or None,
        location=entry.location,
        hint=f"use `{_permute(values.shape[1:], entry.shape[1:])}`",
    )


def _permute(given: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if len(given) == 2:
        return "x.transpose(1, 2)"
    order, left = [], [*range(len(given))]
    for size in wanted:
        place = next(index for index in left if given[index] == size)
        left.remove(place)
        order.append(place + 1)
    return f"x.permute(0, {', '.join(map(str, order))})"


def _wrong_layout(layout: Layout, entry: Entry) -> Finding:
    return (fail if layout.proven else warn)(
        f"{called(entry)} (`{entry.op}`) gets {list(entry.shape)} and {layout.said}",
        where=entry.module,
        location=entry.location,
        hint=layout.hint,
        **layout.measured,
    )


def _scrambled(name: str, where: str | None, location: str | None, found: Arrangement) -> Finding:
    return warn(
        f"{name} looks scrambled: neighbours correlate {found.before:.2f}, and {found.after:.2f} when the memory is "
        f"read as {found.description}",
        where=where,
        location=location,
        hint="move dimensions with `permute` or `transpose`; `view` and `reshape` keep the order in memory",
        before=found.before,
        after=found.after,
    )


def _shape(values: torch.Tensor) -> str:
    return str([*values.shape[1:]])


def _correlations(values: torch.Tensor) -> str:
    return "neighbours correlate " + " and ".join(f"{one:.2f}" for one in smoothness(values))


def _pictures(samples: int = 64, side: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth coloured pictures ``[samples, 3, side, side]`` whose class is the corner that is bright."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(samples, 3, 4, 4, generator=generator)
    y = torch.arange(samples) % 2
    coarse[:, :, 0, 0] += 4 * y[:, None] - 2
    return F.interpolate(coarse, size=(side, side), mode="bilinear"), y


def _program(x: torch.Tensor, y: torch.Tensor, model: torch.nn.Module) -> Target:
    return Target(
        model, DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True), torch.nn.CrossEntropyLoss()
    )


def _cnn(channels: int = 3, out: int = 8 * 14 * 14) -> torch.nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(channels, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(out, 2)
        )


class _Viewed(torch.nn.Module):
    """Calls a network on channels-last images, with their channels moved or only renamed."""

    def __init__(self, network: torch.nn.Module, move: bool) -> None:
        super().__init__()
        self.network = network
        self.move = move

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, height, width, channels = x.shape
        moved = x.permute(0, 3, 1, 2) if self.move else x.reshape(n, channels, height, width)
        return self.network(moved)  # type: ignore[no-any-return]


def good() -> Target:
    return _program(*_pictures(), _cnn())


def good_permuted_in_the_model() -> Target:
    x, y = _pictures()
    return _program(x.permute(0, 2, 3, 1).contiguous(), y, _Viewed(_cnn(), move=True))


def good_noise() -> Target:
    x, y = _pictures()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return _program(noise + (2.0 * y - 1)[:, None, None, None], y, _cnn())


def bad_reshaped_data() -> Target:
    x, y = _pictures()
    return _program(x.permute(0, 2, 3, 1).reshape(x.shape), y, _cnn())


def bad_view_in_the_model() -> Target:
    x, y = _pictures()
    return _program(x.permute(0, 2, 3, 1).contiguous(), y, _Viewed(_cnn(), move=False))


def bad_channels_last_into_a_convolution() -> Target:
    x, y = _pictures()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(16, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(384, 2)
        )
    return _program(x.permute(0, 2, 3, 1).contiguous(), y, model)
