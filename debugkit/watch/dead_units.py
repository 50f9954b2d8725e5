"""Units that are zero for every sample: outputs of modules, looked at during one step."""

from __future__ import annotations

from typing import Any

import torch
from torch._compile import _disable_dynamo
from torch.nn.modules.module import register_module_forward_hook

from debugkit.watch.recorder import Recorder
from debugkit.watch.tensors import is_plain

_MOST = 500


class DeadUnits:
    """Which units of ReLU-like outputs stay at zero.

    Like that of a ReLU is an output that has a graph, exact zeros and nothing below, where what the module was given
    was not so already. Units are channels of maps ``[N, C, H, W]``, else the last dimension.

    Args:
        recorder: what is watched.

    Attributes:
        broken: whether an output could not be looked at; nothing is from then on.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._alive: dict[torch.nn.Module, torch.Tensor] = {}
        self._seen: set[int] = set()
        self._undo: Any = None
        self.broken = False

    def begin(self) -> None:
        """Look from now on. A program that compiles is left alone: a hook would have it compile again."""
        if self._undo is None and not self._recorder.compiled:
            self._undo = register_module_forward_hook(self._hook())

    def end(self) -> dict[str, tuple[int, int]]:
        """Look no more; by module, how many units are dead, and how many there are."""
        if self._undo is not None:
            self._undo.remove()
            self._undo = None
        name = self._recorder.names.module
        found = {
            name(module): (alive.numel() - int(alive.sum()), alive.numel())
            for module, alive in self._alive.items()
        }
        self._alive.clear()
        self._seen.clear()
        return found

    def _hook(self) -> Any:
        """A hook that never fails the program: what goes wrong in it ends the look."""

        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            try:
                self._look(module, args, output)
            except Exception:
                self.broken = True

        return _disable_dynamo(hook)

    def _look(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if self.broken or not isinstance(output, torch.Tensor) or output.grad_fn is None or output.dim() < 2:
            return
        recorder = self._recorder
        if recorder.in_backward or not recorder.inside or recorder.stopped or len(self._alive) > _MOST:
            return
        if not is_plain(output) or output.is_complex() or not output.numel():
            return
        with recorder.unseen():
            values = output.detach()
            if values.data_ptr() in self._seen or not _is_rectified(values):
                return
            self._seen.add(values.data_ptr())
            given = args[0] if args else None
            if (
                isinstance(given, torch.Tensor)
                and is_plain(given)
                and given.data_ptr() != values.data_ptr()
                and given.numel()
                and _is_rectified(given.detach())
            ):
                return
            unit = 1 if values.dim() >= 4 else values.dim() - 1
            alive = values.movedim(unit, 0).flatten(1).any(1)
            before = self._alive.get(module)
            if before is None or before.shape == alive.shape:
                self._alive[module] = alive if before is None else before | alive


def _is_rectified(values: torch.Tensor) -> bool:
    return float(values.min()) == 0.0
