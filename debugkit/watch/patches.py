"""Seeing torch at work: its own hooks where it has some, its classes and functions wrapped where it has none.

Only torch itself is wrapped, and only while watched. The user's objects stay as they are, so that copies, pickles and
compiled models of a watched run work as they do without.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from threading import get_ident
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.amp.grad_scaler
import torch.optim.lr_scheduler
import torch.utils.data
from torch._compile import _disable_dynamo
from torch.compiler import is_compiling
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import dataloader

if TYPE_CHECKING:
    from debugkit.watch.recorder import Recorder

_CLIPPING: Any = torch.nn.utils.clip_grad
_SCHEDULERS: Any = torch.optim.lr_scheduler
_LOSSES = (
    "cross_entropy",
    "nll_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
)


_STEP_CODE = torch.optim.Optimizer.profile_hook_step(lambda self: None).__code__


def _outermost(
    recorder: Recorder, tell: Callable[[Any, Any, Any], object]
) -> Callable[[Any, Any, Any], None]:
    """A hook that stays silent for the ``super().step()`` inside of an optimizer's step, and in other threads."""

    def hook(optimizer: Any, args: Any, kwargs: Any) -> None:
        if not recorder.in_backward and not recorder.is_here():
            if tell == recorder.step_begins:
                recorder.steps_elsewhere(optimizer)
            return
        frame, steps = sys._getframe(1), 0
        while frame is not None and steps < 2:
            steps += frame.f_code is _STEP_CODE and frame.f_locals.get("self") is optimizer
            frame = frame.f_back  # type: ignore[assignment]
        if steps < 2:
            tell(optimizer, args, kwargs)

    silent: Callable[[Any, Any, Any], None] = _disable_dynamo(hook)
    return silent


class Patches:
    """The wrappers of one watch.

    Args:
        recorder: what is told.

    Attributes:
        at_work: those that are installed in this process: two would see each other.
    """

    at_work: ClassVar[Patches | None] = None

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._undo: list[Callable[[], object]] = []

    def install(self) -> None:
        """Begin to see. The wrappers of a forked child, such as a loader's worker, stay silent."""
        recorder = self._recorder
        Patches.at_work = self
        os.register_at_fork(after_in_child=self._forked)
        self._undo += [
            register_optimizer_step_pre_hook(_outermost(recorder, recorder.step_begins)).remove,
            register_optimizer_step_post_hook(_outermost(recorder, recorder.step_ends)).remove,
        ]
        self._wrap_module()
        self._wrap_backward()
        self._wrap_loaders()
        self._wrap_scaler()
        self._after(torch.optim.Optimizer, "__init__", lambda self, *_, **__: recorder.optimizer_made(self))
        for kind in vars(_SCHEDULERS).values():
            if (
                isinstance(kind, type)
                and issubclass(kind, _SCHEDULERS.LRScheduler)
                and "__init__" in vars(kind)
            ):
                self._after(kind, "__init__", lambda self, *_, **__: recorder.scheduler_made(self))
        if hasattr(_CLIPPING, "_clip_grads_with_norm_"):
            self._before(_CLIPPING, "_clip_grads_with_norm_", recorder.clips)
        self._wrap_losses()
        self._wrap_states()
        self._before(torch, "compile", recorder.compiles)

    def remove(self) -> None:
        """Put torch back as it was."""
        while self._undo:
            self._undo.pop()()
        if Patches.at_work is self:
            Patches.at_work = None

    def _forked(self) -> None:
        self._recorder.stop()
        if Patches.at_work is self:
            Patches.at_work = None

    def _replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        original = vars(owner)[name]
        setattr(owner, name, make(original))
        self._undo.append(lambda: setattr(owner, name, original))

    def _before(self, owner: Any, name: str, tell: Callable[..., object]) -> None:
        recorder = self._recorder

        def make(original: Any) -> Any:
            @wraps(original)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                if recorder.listens():
                    tell(*args, **kwargs)
                return original(*args, **kwargs)

            return wrapper

        self._replace(owner, name, make)

    def _after(self, owner: Any, name: str, tell: Callable[..., object]) -> None:
        recorder = self._recorder

        def make(original: Any) -> Any:
            @wraps(original)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                result = original(*args, **kwargs)
                if recorder.listens():
                    tell(*args, **kwargs)
                return result

            return wrapper

        self._replace(owner, name, make)

    def _wrap_module(self) -> None:
        recorder = self._recorder

        def make(original: Any) -> Any:
            def __call__(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
                if recorder.inside or is_compiling() or get_ident() != recorder.thread:
                    return original(self, *args, **kwargs)
                return recorder.outer_call(original, self, args, kwargs)

            return __call__

        self._replace(torch.nn.Module, "__call__", make)

    def _wrap_backward(self) -> None:
        recorder = self._recorder

        def make(original: Any) -> Any:
            @wraps(original)
            def run_backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
                if not recorder.listens() or recorder.in_backward or not recorder.is_here():
                    return original(tensors, *args, **kwargs)
                recorder.backward_begins(tensors, accumulates=kwargs.get("accumulate_grad", True))
                try:
                    result = original(tensors, *args, **kwargs)
                finally:
                    recorder.in_backward = False
                recorder.backward_ends()
                return result

            return run_backward

        self._replace(torch.autograd, "_engine_run_backward", make)

    def _wrap_loaders(self) -> None:
        recorder = self._recorder

        def make_iter(original: Any) -> Any:
            @wraps(original)
            def __iter__(self: Any) -> Any:  # noqa: N807
                iterator = original(self)
                if recorder.listens():
                    recorder.pass_begins(self, iterator)
                return iterator

            return __iter__

        def make_next(original: Any) -> Any:
            @wraps(original)
            def __next__(self: Any) -> Any:  # noqa: N807
                if not recorder.listens():
                    return original(self)
                start = time.perf_counter()
                try:
                    batch = original(self)
                except StopIteration:
                    recorder.pass_ends(self)
                    raise
                recorder.batch_read(self, batch, time.perf_counter() - start)
                return batch

            return __next__

        self._replace(torch.utils.data.DataLoader, "__iter__", make_iter)
        self._replace(dataloader._BaseDataLoaderIter, "__next__", make_next)
        self._after(
            torch.utils.data.DataLoader, "__init__", lambda self, *_, **__: recorder.loader_made(self)
        )

    def _wrap_scaler(self) -> None:
        recorder = self._recorder
        scaler = torch.amp.grad_scaler.GradScaler

        def make_scale(original: Any) -> Any:
            @wraps(original)
            def scale(self: Any, outputs: Any) -> Any:
                scaled = original(self, outputs)
                if recorder.listens() and scaled is not outputs:
                    recorder.scales(self, outputs, scaled)
                return scaled

            return scale

        def make_step(original: Any) -> Any:
            @wraps(original)
            def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
                if not (recorder.listens() and self.is_enabled()):
                    return original(self, optimizer, *args, **kwargs)
                recorder.scaler_step_begins(self, optimizer)
                try:
                    return original(self, optimizer, *args, **kwargs)
                except RuntimeError as error:
                    recorder.scaler_refuses(self, error)
                    raise
                finally:
                    recorder.scaler_step_ends(self, optimizer)

            return step

        def make_unscale(original: Any) -> Any:
            @wraps(original)
            def unscale_(self: Any, optimizer: Any) -> Any:
                if not recorder.listens():
                    return original(self, optimizer)
                recorder.unscales(self, optimizer)
                try:
                    return original(self, optimizer)
                except RuntimeError as error:
                    recorder.scaler_refuses(self, error)
                    raise

            return unscale_

        self._replace(scaler, "scale", make_scale)
        self._replace(scaler, "step", make_step)
        self._replace(scaler, "unscale_", make_unscale)
        self._after(scaler, "update", lambda self, *_, **__: recorder.scaler_updates(self))

    def _wrap_losses(self) -> None:
        """Losses that a validation computes by a function; modules are seen as modules."""
        recorder, compiling = self._recorder, is_compiling
        scope = vars(torch.nn.functional)

        def make(original: Any) -> Any:
            def loss(*args: Any, **kwargs: Any) -> Any:
                value = original(*args, **kwargs)
                if not compiling() and not recorder.inside and recorder.listens():
                    recorder.loss_given(value)
                return value

            # torch.jit.script reads the original's source, and looks its names up where this function is at home.
            at_home = FunctionType(loss.__code__, scope, closure=loss.__closure__)
            return wraps(original)(at_home)

        for name in _LOSSES:
            self._replace(torch.nn.functional, name, make)

    def _wrap_states(self) -> None:
        recorder = self._recorder

        def make_state_dict(original: Any) -> Any:
            @wraps(original)
            def state_dict(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
                if recorder.in_state_dict or not recorder.listens():
                    return original(self, *args, **kwargs)
                recorder.in_state_dict = True
                try:
                    state = original(self, *args, **kwargs)
                finally:
                    recorder.in_state_dict = False
                recorder.state_taken(self, state)
                return state

            return state_dict

        self._replace(torch.nn.Module, "state_dict", make_state_dict)
        self._before(
            torch.nn.Module, "load_state_dict", lambda self, state, *_, **__: recorder.state_used(state, self)
        )
        self._before(torch, "save", lambda saved, *_, **__: recorder.state_used(saved))
