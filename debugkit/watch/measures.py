"""What metrics are made of: numbers and distributions of a loop at one step."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from statistics import median

import torch

from debugkit.probes.movement import by_block
from debugkit.watch.optimizer_track import OptimizerTrack
from debugkit.watch.places import shown
from debugkit.watch.recorder import Recorder
from debugkit.watch.sinks import Histogram
from debugkit.watch.tensors import is_plain, norms

_BINS = 32
_ELEMENTS = 65_536


def scalars(recorder: Recorder) -> Iterator[tuple[str, float]]:
    """The latest numbers of a recorder by name.

    Losses by source line, ``eval_loss``; by optimizer the learning rate of each group, the norm of all gradients and
    the median update; ``layers``, relative size of a parameter's latest update; norms of each parameter and its
    gradient; ``layer_moved``, relative distance to the first look, and ``moved``, the same by block.
    """
    for stream in recorder.losses.streams.values():
        stream.flush()
        if stream.values:
            yield f"loss/{shown(stream.line) or 'loss'}", stream.values[-1]
    if evaluations := recorder.data.logs()[2]:
        yield "eval_loss", evaluations[-1].loss
    for track in recorder.tracks:
        yield from _of_optimizer(track)
    yield "memory_mb", memory() / 2**20
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield "cuda_memory_mb", torch.cuda.memory_allocated() / 2**20


def _of_optimizer(track: OptimizerTrack) -> Iterator[tuple[str, float]]:
    name = track.name
    rates = track.rates[-1][1] if track.rates else ()
    for index, rate in enumerate(rates):
        yield f"lr/{name}" + (f".{index}" if len(rates) > 1 else ""), rate
    if track.windows and (norm := track.windows[-1].norm) is not None:
        yield f"grad_norm/{name}", norm
    layers = track.movements()
    paces = {layer.name: layer.ratios[-1] for layer in layers if layer.ratios}
    if paces:
        yield f"update/{name}", median(paces.values())
    yield from ((f"layers/{layer}", pace) for layer, pace in paces.items())
    parameters = track.parameters()
    for kind, sizes in (
        ("layer_weight_norm", norms([p for _, p in parameters])),
        ("layer_grad_norm", norms([p.grad for _, p in parameters])),
    ):
        for (parameter, _), size in zip(parameters, sizes, strict=True):
            if size is not None:
                yield f"{kind}/{parameter}", size
    for layer in layers:
        if layer.distance is not None and layer.start:
            yield f"layer_moved/{layer.name}", layer.distance / layer.start
    for block, share in by_block(layers):
        yield f"moved/{block}", share


def histograms(recorder: Recorder) -> dict[str, Histogram]:
    """The distributions of each parameter, under ``weights``, and of its gradient, under ``gradients``."""
    found: dict[str, Histogram] = {}
    for track in recorder.tracks:
        for name, parameter in track.parameters():
            for kind, tensor in (("weights", parameter), ("gradients", parameter.grad)):
                if tensor is not None and (one := histogram(tensor)) is not None:
                    found[f"{kind}/{name}"] = one
    return found


def histogram(tensor: torch.Tensor) -> Histogram | None:
    """The distribution of at most 65,536 elements spread over a tensor; ``None`` if it is not plain or has none."""
    if not is_plain(tensor) or tensor.is_complex() or not tensor.numel():
        return None
    values = tensor.detach().reshape(-1)
    values = values[:: -(-values.numel() // _ELEMENTS)].float()
    finite = values[values.isfinite()]
    if not finite.numel():
        return None
    low, high = (float(value) for value in finite.aminmax())
    width = (high - low) / _BINS
    if not width or not math.isfinite(width):
        counts = torch.tensor([finite.numel()] + [0] * (_BINS - 1))
    else:
        counts = ((finite - low) / width).long().clamp_(0, _BINS - 1).bincount(minlength=_BINS)
    double = finite.double()
    return Histogram(
        low=low,
        high=high,
        counts=tuple(counts.tolist()),
        total=float(double.sum()),
        squares=float(double.square().sum()),
        left_out=values.numel() - finite.numel(),
    )


def memory() -> int:
    """Bytes of this process in memory; the most so far where the present is not known."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _most_memory()


def _most_memory() -> int:
    try:
        import resource
    except ImportError:
        return 0
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (
        1 if os.uname().sysname == "Darwin" else 1024
    )
