"""The sandbox: training proceeds bit for bit as if nothing had been measured.

The state is recorded before anything is touched, and every probe is followed by a restore. Only what a
probe may change is copied: attributes and buffers always (they are small), parameters only for probes that
train (:meth:`Sandbox.protect`).
"""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from debugkit.errors import Broken
from debugkit.hooks import quiet_hooks
from debugkit.objects import Attributes, reachable
from debugkit.target import Target


class Randomness:
    """The state of every global random generator: Python, NumPy, torch and each CUDA device."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = np.random.get_state()
        self._torch = torch.get_rng_state()
        ready = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._cuda = torch.cuda.get_rng_state_all() if ready else []

    def restore(self) -> None:
        """Put every generator back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch.

    CUDA devices that are not in use yet are left alone: ``torch.manual_seed`` would queue a seed for the
    moment when they are, and so change the user's own.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


class _Switches:
    """Global switches of torch that a forward pass may flip."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._dtype = torch.get_default_dtype()
        self._deterministic = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        self._matmul = torch.get_float32_matmul_precision()
        self._cudnn = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
        self._anomaly = torch.is_anomaly_enabled()
        self._autocast = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
        }

    def restore(self) -> None:
        torch.set_grad_enabled(self._grad)
        if torch.get_default_dtype() is not self._dtype:
            torch.set_default_dtype(self._dtype)
        torch.use_deterministic_algorithms(self._deterministic[0], warn_only=self._deterministic[1])
        if torch.get_float32_matmul_precision() != self._matmul:
            torch.set_float32_matmul_precision(self._matmul)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = self._cudnn
        torch.set_anomaly_enabled(self._anomaly)
        for kind, (enabled, dtype) in self._autocast.items():
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)


class _TensorState:
    """A tensor's flags and gradient; its values too once :meth:`keep_values` was called."""

    def __init__(self, tensor: torch.Tensor, *, values: bool) -> None:
        self.tensor = tensor
        self.requires_grad = tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None
        self.grad_copy: torch.Tensor | None = None
        self.version = tensor._version if not tensor.is_inference() else 0
        self.values: torch.Tensor | None = None
        if values:
            self.keep_values()

    def keep_values(self) -> None:
        if self.values is None and not self.tensor.is_meta:
            self.values = self.tensor.detach().to("cpu", copy=True)

    @property
    def changed(self) -> bool:
        return not self.tensor.is_inference() and self.tensor._version != self.version

    def restore(self) -> None:
        if self.tensor.is_leaf:
            if self.tensor.requires_grad != self.requires_grad:
                self.tensor.requires_grad_(self.requires_grad)
            if self.tensor.grad is not self.grad:
                self.tensor.grad = self.grad
        if self.values is not None and not torch.equal(self.tensor.detach().cpu(), self.values):
            keep_version = torch.autograd._unsafe_preserve_version_counter  # type: ignore[attr-defined]
            with torch.no_grad(), keep_version(self.tensor):
                self.tensor.copy_(self.values)
            self.version = self.tensor._version


class Sandbox:
    """Records a target's state on entry and restores it on exit, also after an error or Ctrl-C.

    Args:
        target: what will be measured.
        seed: every probe starts from this seed, so that verdicts repeat.

    Attributes:
        grad_enabled: whether gradients were enabled when the sandbox was entered.
        notices: what the user should know about the run that could not be undone.
        training: each module's training flag, by dotted name (the root is ``""``), as given.
    """

    def __init__(self, target: Target, seed: int = 0) -> None:
        self._target = target
        self._seed = seed
        self.notices: list[str] = []
        self.grad_enabled = torch.is_grad_enabled()
        self.training = {name: module.training for name, module in target.model.named_modules()}

    def __enter__(self) -> Sandbox:
        self._randomness = Randomness()
        self._switches = _Switches()
        self._modules = list(self._target.model.modules())
        for part in (self._target.loss_fn, self._target.metric, self._target.training_step):
            if isinstance(part, torch.nn.Module):
                self._modules += [module for module in part.modules() if module not in self._modules]
        owners: list[Any] = [*self._modules]
        owners += reachable(self._target.train_loader, self._target.eval_loader, self._target.scheduler)
        for module in self._modules:
            owners += [value for value in vars(module).values() if _is_state(value)]
        self._attributes = [Attributes(owner) for owner in {id(owner): owner for owner in owners}.values()]
        self._optimizer = Attributes(self._target.optimizer) if self._target.optimizer is not None else None
        self._parameters = {
            id(tensor): _TensorState(tensor, values=False)
            for module in self._modules
            for tensor in module._parameters.values()
            if tensor is not None
        }
        self._buffers = [_TensorState(tensor, values=True) for tensor in self._loose_tensors()]
        return self

    def __exit__(self, *exc: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Put everything back as it was on entry. An interrupt waits until this is done."""
        with _uninterrupted():
            for attributes in self._attributes:
                attributes.restore()
            if self._optimizer is not None:
                self._optimizer.restore()
            for state in (*self._parameters.values(), *self._buffers):
                state.restore()
            self._switches.restore()
            self._randomness.restore()

    def protect(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy the values of these parameters to the CPU now, so that a probe may change them."""
        for tensor in tensors:
            if (state := self._parameters.get(id(tensor))) is not None:
                state.keep_values()

    def changed_parameters(self) -> list[str]:
        """Names of parameters that the model's own forward pass changed in place and nobody protected."""
        return [
            name
            for name, tensor in self._target.model.named_parameters()
            if (state := self._parameters.get(id(tensor))) is not None
            and state.values is None
            and state.changed
        ]

    @contextmanager
    def probe(self, *, hooks: bool = False) -> Iterator[None]:
        """Run the user's program inside: seeded, with gradients enabled and cleared, then restore.

        The user's own hooks stay out, unless ``hooks`` or the model depends on them (see
        :mod:`debugkit.hooks`). A compiled model runs eagerly. An optimizer step inside is refused.
        """
        refusal = register_optimizer_step_pre_hook(_refuse_step)
        try:
            seed_everything(self._seed)
            for state in self._parameters.values():
                state.tensor.grad = None
            quiet = nullcontext() if hooks else quiet_hooks(self._modules)
            with quiet, _eager(), torch.enable_grad():
                yield
        finally:
            refusal.remove()
            self.restore()

    def _loose_tensors(self) -> Iterator[torch.Tensor]:
        """Buffers and tensors that are plain attributes of a module."""
        seen: set[int] = set(self._parameters)
        for module in self._modules:
            for value in (*module._buffers.values(), *vars(module).values()):
                if isinstance(value, torch.Tensor) and id(value) not in seen and value.is_leaf:
                    seen.add(id(value))
                    yield value


def _is_state(value: Any) -> bool:
    """A plain object beside the modules that a forward pass may write to, such as a model's config."""
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, (torch.nn.Module, torch.Tensor, type))
        and not callable(value)
        and type(value).__module__ != "builtins"
    )


class _TwinStep(threading.local):
    allowed = False


_TWIN = _TwinStep()


@contextmanager
def own_steps() -> Iterator[None]:
    """Allow optimizer steps of debugkit's own optimizers inside a probe."""
    _TWIN.allowed = True
    try:
        yield
    finally:
        _TWIN.allowed = False


def _refuse_step(optimizer: Any, *_: Any) -> None:
    if not _TWIN.allowed:
        raise Broken(
            f"`training_step` calls `{type(optimizer).__name__}.step()`; pass a step that computes and returns "
            "the loss only"
        )


@contextmanager
def _eager() -> Iterator[None]:
    """Compiled models run eagerly inside, so that no probe compiles or pollutes a cache."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C until the block is done (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[Any] = []
    try:
        before = signal.signal(signal.SIGINT, lambda *received: pending.append(received))
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pending and callable(before):
            before(*pending[0])
