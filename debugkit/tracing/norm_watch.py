"""Watching normalisations: how many values share a mean, and how large their variance is beside ``eps``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from debugkit.tracing.layer_flow import Flow
from debugkit.tracing.layers import Norm, is_plain
from debugkit.tracing.source import user_location

_ROWS = 16
_MOST_NORMS = 2048
_BUILTINS = {
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "batch_norm": ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
    "instance_norm": (
        "input", "weight", "bias", "running_mean", "running_var", "use_input_stats", "momentum", "eps",
    ),
}  # fmt: skip


class NormWatch:
    """Collects the normalisations of one step."""

    def __init__(self) -> None:
        self._norms: dict[tuple[str | None, str, str | None], tuple[Norm, torch.Tensor]] = {}

    @torch.no_grad()
    def see(
        self,
        func: Any,
        op: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        flow: Flow,
        bias: str | None,
        dropout: float,
        module: str | None,
    ) -> None:
        """Look at one call.

        Args:
            func: the function.
            op: its name.
            args: positional arguments.
            kwargs: keyword arguments.
            flow: what lies behind its input.
            bias: name of a bias that was added right before.
            dropout: rate of a dropout right before.
            module: the module in whose forward it runs.
        """
        location = user_location()
        if (module, op, location) in self._norms or len(self._norms) >= _MOST_NORMS:
            return
        given = _bound(func, op, args, kwargs)
        x = given.get("input")
        if not isinstance(x, torch.Tensor) or not is_plain(x) or x.ndim < 1:
            return
        dims, over, groups = _statistics(op, given, x)
        if not dims or not over:
            return
        own = bool(given.get("training", given.get("use_input_stats", True)))
        rows = x.detach() if 0 in dims else x.detach()[:_ROWS]
        rows = rows.float() if rows.element_size() < 4 else rows
        if groups:
            rows = rows.reshape(len(rows), groups, -1)
            variance = rows.var(-1, correction=0)
        else:
            variance = rows.var(dims, correction=0)
        if op == "rms_norm":
            variance = rows.square().mean(dims)
        eps = given.get("eps")
        norm = Norm(
            op=op,
            module=module,
            location=location,
            shape=tuple(x.shape),
            over=over,
            own_statistics=own,
            variance=math.nan,
            eps=float(eps) if isinstance(eps, (int, float)) else float(torch.finfo(x.dtype).eps),
            layer=flow.source,
            layer_axis=flow.axis,
            normalised=tuple(dims),
            adds_bias=bias if op in ("batch_norm", "instance_norm") and own else None,
            dropout=dropout,
        )
        self._norms[module, op, location] = norm, variance.flatten().median()

    def norms(self) -> tuple[Norm, ...]:
        """What was seen, in order."""
        return tuple(replace(norm, variance=float(variance)) for norm, variance in self._norms.values())


def _bound(func: Any, op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found = inspect.signature(func).bind(*args, **kwargs)
    except (ValueError, TypeError):
        return dict(zip(_BUILTINS[op], args, strict=False)) | dict(kwargs)
    found.apply_defaults()
    return dict(found.arguments)


def _statistics(op: str, given: Mapping[str, Any], x: torch.Tensor) -> tuple[list[int], int, int]:
    """The dimensions that share a mean, how many values that is, and in how many groups the channels are."""
    if op in ("layer_norm", "rms_norm"):
        shape = given.get("normalized_shape")
        count = len(shape) if isinstance(shape, (list, tuple, torch.Size)) else 1
        dims = list(range(x.ndim - count, x.ndim))
    elif op == "batch_norm":
        dims = [d for d in range(x.ndim) if d != 1]
    elif op == "instance_norm":
        dims = list(range(2, x.ndim))
    else:
        groups = int(given.get("num_groups", 1))
        if x.ndim < 2 or not groups or x.shape[1] % groups:
            return [], 0, 0
        return list(range(1, x.ndim)), math.prod(x.shape[1:]) // groups, groups
    return dims, math.prod(x.shape[d] for d in dims), 0
