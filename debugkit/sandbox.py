"""The sandbox: training proceeds bit for bit as if nothing had been measured.

The state is recorded before anything is touched, and every probe is followed by a restore. Buffers and small
models are copied on entry; of large ones, a parameter is copied to the CPU just before something writes to it.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from debugkit.errors import Broken, one_line
from debugkit.hooks import quiet_hooks
from debugkit.objects import Snapshot, attempt, one_way, reachable, run_all
from debugkit.target import Target

COPIED_BYTES = 2**26
_BUFFER_BYTES = 2**28  # BatchNorm kernels write to their buffers without saying so
_DATA_BYTES = 2**26
_LOOKED_INTO = 2_000
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Randomness:
    """The state of every global random generator: Python, NumPy, torch and each accelerator in use."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = np.random.get_state()
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else []
        self._mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore(self) -> None:
        """Put every generator back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (the CPU and every accelerator in use).

    ``torch.manual_seed`` would also seed a CUDA device that nobody has used yet, which could not be undone.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if _cuda_in_use():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def _cuda_in_use() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


class _Switches:
    """Global switches of torch that a forward pass may flip."""

    def __init__(self) -> None:
        deterministic = torch.is_deterministic_algorithms_warn_only_enabled
        cudnn = torch.backends.cudnn
        self._undo = [
            *_switch(torch.is_grad_enabled, torch.set_grad_enabled),
            *_switch(torch.get_default_dtype, torch.set_default_dtype),
            *_switch(torch.is_anomaly_enabled, torch.set_anomaly_enabled),
            *_switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
            *_switch(
                lambda: (torch.are_deterministic_algorithms_enabled(), deterministic()),
                lambda state: torch.use_deterministic_algorithms(state[0], warn_only=state[1]),
            ),
            *_switch(lambda: cudnn.benchmark, lambda state: setattr(cudnn, "benchmark", state)),
            *_switch(lambda: cudnn.deterministic, lambda state: setattr(cudnn, "deterministic", state)),
        ]
        for kind in ("cpu", "cuda"):
            self._undo += [
                *_switch(partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind)),
                *_switch(partial(torch.get_autocast_dtype, kind), partial(torch.set_autocast_dtype, kind)),
            ]

    def restore(self) -> None:
        run_all([*self._undo, torch.clear_autocast_cache])


def _switch(read: Callable[[], Any], write: Callable[[Any], object]) -> Iterator[Callable[[], object]]:
    """How to put a switch back; nothing for one that torch refuses to read (a precision set in two ways)."""
    with suppress(RuntimeError):
        state = read()
        yield lambda: None if read() == state else write(state)


class _TensorState:
    """A tensor's memory, flags, gradient and version; its values too once :meth:`keep_values` was called."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.bytes = tensor.numel() * tensor.element_size() if not _is_lazy(tensor) else 0
        self.grad = tensor.grad if tensor.is_leaf else None
        self._leaf = tensor.is_leaf
        self._requires_grad = tensor.requires_grad
        self._values: torch.Tensor | None = None
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        self._data = tensor.data if plain and not tensor.is_meta else None
        counter = torch.autograd._unsafe_preserve_version_counter  # type: ignore[attr-defined]
        self._version = None if tensor.is_inference() else counter(tensor)

    @property
    def kept(self) -> bool:
        """Whether nothing more has to be copied before the values may change."""
        return self._values is not None or self.tensor.is_meta or not self.bytes

    def keep_values(self) -> None:
        if not self.kept:
            self._values = _distinct(self.tensor.detach()).to("cpu", copy=True)

    def restore(self) -> None:
        tensor = self.tensor
        if self._data is not None and self._is_elsewhere(self._data):
            tensor.data = self._data
        free = torch.inference_mode() if tensor.is_inference() else torch.no_grad()
        with free, self._version or nullcontext():
            if self._values is not None and not same_bits(_distinct(tensor.detach()).cpu(), self._values):
                _distinct(tensor).copy_(self._values)
        if self._leaf:
            if not tensor.is_leaf and not tensor._is_view():
                tensor.detach_()
            if tensor.requires_grad != self._requires_grad:
                tensor.requires_grad_(self._requires_grad)
            if tensor.grad is not self.grad:
                tensor.grad = self.grad

    def _is_elsewhere(self, data: torch.Tensor) -> bool:
        return self.tensor.device != data.device or not self.tensor.data.is_set_to(data)


def _cheap(states: Iterable[_TensorState], room: int) -> Iterator[_TensorState]:
    """What is cheap to copy: the smallest tensors that ``room`` bytes have space for."""
    for state in sorted(states, key=lambda state: state.bytes):
        if (room := room - state.bytes) < 0:
            break
        yield state


def _is_lazy(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer))


def _distinct(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, an expanded dimension cut to the one element that it has in memory."""
    if tensor.layout is torch.strided:
        for dimension, stride in enumerate(tensor.stride()):
            if stride == 0 and tensor.shape[dimension] > 1:
                tensor = tensor.narrow(dimension, 0, 1)
    return tensor


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits, whatever their strides; ``False`` where torch can't say."""
    if one.layout is not torch.strided or one.shape != other.shape or one.dtype != other.dtype:
        return False
    try:
        return torch.equal(_bits(one), _bits(other))
    except (RuntimeError, NotImplementedError):  # quantized tensors and other subclasses
        return False


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.resolve_neg().view(_INTEGERS[tensor.element_size()])


class _CopyOnWrite(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies the values of a watched tensor just before an operation writes to its memory, by any alias."""

    supports_higher_order_operators = True

    def __init__(self, states: Iterable[_TensorState]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watched: defaultdict[int, list[_TensorState]] = defaultdict(list)
        for state in states:
            self._watched[_memory(state.tensor)].append(state)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for tensor in _written(func, args, kwargs or {}):
            for state in self._watched.pop(_memory(tensor), ()):
                state.keep_values()
        return func(*args, **(kwargs or {}))


def _memory(tensor: torch.Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # no storage of its own, such as a sparse tensor
        return id(tensor)


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that an operation's schema says it writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, torch.Tensor):
                    yield item


class Sandbox:
    """Records a target's state on entry and restores it on exit, also after an error or Ctrl-C.

    Args:
        target: what will be measured.
        seed: every probe starts from this seed, so that verdicts repeat.

    Attributes:
        grad_enabled: whether gradients were enabled when the sandbox was entered.
        notices: what the user should know about the run that could not be undone.
        training: each module's training flag, by dotted name (the root is ``""``), as given.
        one_way: the kinds of iterators behind ``train_loader`` that reading uses up.
    """

    def __init__(self, target: Target, seed: int = 0) -> None:
        self._target = target
        self._seed = seed
        self.notices: list[str] = []
        self.grad_enabled = torch.is_grad_enabled()
        self.training = {name: module.training for name, module in target.model.named_modules()}
        self.one_way: list[str] = []

    def __enter__(self) -> Sandbox:
        target = self._target
        self._randomness = Randomness()
        self._switches = _Switches()
        stop = (torch.nn.Module, torch.optim.Optimizer)
        train = reachable(target.train_loader, stop=stop, most=_LOOKED_INTO)
        data = train + reachable(
            target.eval_loader, target.tokenizer, leave=train, stop=stop, most=_LOOKED_INTO
        )
        self.one_way = one_way(train)
        learners = [value for value in data if isinstance(value, stop)]
        data = [value for value in data if not isinstance(value, stop)]
        rest = (target.loss_fn, target.training_step, target.metric, target.optimizer, target.scheduler)
        program = reachable(target.model, *learners, *rest, leave=data)
        self._data, self._program = Snapshot(data), Snapshot(program)
        self._modules = [value for value in program if isinstance(value, torch.nn.Module)]
        missed = [*self._data.missed, *self._program.missed]
        self._data_tensors = _states(data, missed)
        self._tensors = _states(program, missed)
        parameters = {id(p) for module in self._modules for p in module._parameters.values()}
        others = (state for key, state in self._tensors.items() if key not in parameters)
        for states, room in (
            (others, _BUFFER_BYTES),
            (self._tensors.values(), COPIED_BYTES),
            (self._data_tensors.values(), _DATA_BYTES),
        ):
            attempt(_TensorState.keep_values, _cheap(states, room), missed)
        self._report("recorded", missed)
        return self

    def __exit__(self, *exc: object) -> None:
        with _uninterrupted():
            self._undo(self._data, self._data_tensors)
            self.restore()
        del self._data, self._program, self._modules, self._data_tensors, self._tensors

    def restore(self) -> None:
        """Put everything back as it was on entry, but for the data. An interrupt waits until this is done."""
        with _uninterrupted():
            self._undo(self._program, self._tensors, self._switches, self._randomness)

    def _undo(self, snapshot: Snapshot, tensors: Mapping[int, _TensorState], *more: Any) -> None:
        failures: list[Exception] = []
        attempt(lambda state: state.restore(), [snapshot, *tensors.values(), *more], failures)
        self._report("put back", failures)

    def _report(self, done: str, failures: list[Exception]) -> None:
        """One notice for a kind of failure, however often it comes back."""
        if failures:
            first: BaseException = failures[0]
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            notice = (
                f"a part of the target's state could not be {done} ({one_line(first)}); build the target anew to "
                "train it"
            )
            if notice not in self.notices:
                self.notices.append(notice)

    def protect(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy the values of these tensors to the CPU now, so that training them is not slowed down by a watch."""
        for tensor in tensors:
            if (state := self._tensors.get(id(tensor))) is not None:
                state.keep_values()

    @contextmanager
    def probe(self, *, hooks: bool = False) -> Iterator[None]:
        """Run the user's program inside: seeded, with gradients enabled and cleared, then restore.

        The user's own hooks stay out, unless ``hooks`` or the model depends on them (see
        :mod:`debugkit.hooks`). A compiled model runs eagerly. An optimizer step inside is refused. Warnings
        are left for training to show.
        """
        states = [*self._tensors.values(), *self._data_tensors.values()]
        refusal = register_optimizer_step_pre_hook(_refuse_step)
        try:
            seed_everything(self._seed)
            for state in states:
                if state.grad is not None:
                    state.tensor.grad = None
            with ExitStack() as stack:
                stack.enter_context(warnings.catch_warnings(action="ignore"))
                if not hooks:
                    stack.enter_context(quiet_hooks(self._modules, [state.tensor for state in states]))
                if watched := [state for state in states if not state.kept]:
                    stack.enter_context(_CopyOnWrite(watched))
                stack.enter_context(_eager())
                stack.enter_context(torch.enable_grad())
                yield
        finally:
            refusal.remove()
            self.restore()


def _states(values: Iterable[Any], missed: list[Exception]) -> dict[int, _TensorState]:
    found = (value for value in values if isinstance(value, torch.Tensor))
    return {id(state.tensor): state for state in attempt(_TensorState, found, missed)}


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
    stance = getattr(torch.compiler, "set_stance", None)
    with stance("force_eager") if stance and "torch._dynamo" in sys.modules else nullcontext():
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
