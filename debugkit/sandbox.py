"""The sandbox: training proceeds bit for bit as if nothing had been measured.

The state is recorded before anything is touched, and every probe is followed by a restore. Buffers and small
models are copied on entry; of large ones, a parameter is copied to the CPU just before something writes to it.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from debugkit.errors import Broken, one_line
from debugkit.evidence import root
from debugkit.state.hooks import quiet_hooks
from debugkit.state.interrupts import uninterrupted
from debugkit.state.objects import Snapshot, attempt, one_way, reachable, run_all
from debugkit.state.randomness import Randomness, seed_everything
from debugkit.state.tensor_state import CopyOnWrite, TensorState, cheapest, tensor_states
from debugkit.target import Target

COPIED_BYTES = 2**26
_BUFFER_BYTES = 2**28  # BatchNorm kernels write to their buffers without saying so
_DATA_BYTES = 2**26
_LOOKED_INTO = 2_000


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


@root
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
        other = reachable(target.eval_loader, target.tokenizer, leave=train, stop=stop, most=_LOOKED_INTO)
        self.one_way = one_way(train)
        learners = [value for value in (*train, *other) if isinstance(value, stop)]
        train, other = ([value for value in part if not isinstance(value, stop)] for part in (train, other))
        data = train + other
        rest = (target.loss_fn, target.training_step, target.metric, target.optimizer, target.scheduler)
        program = reachable(target.model, *learners, *rest, leave=data)
        self._train, self._data, self._program = Snapshot(train), Snapshot(other), Snapshot(program)
        self._modules = [value for value in program if isinstance(value, torch.nn.Module)]
        missed = [*self._train.missed, *self._data.missed, *self._program.missed]
        self._data_tensors = tensor_states(data, missed)
        self._tensors = tensor_states(program, missed)
        parameters = {id(p) for module in self._modules for p in module._parameters.values()}
        others = (state for key, state in self._tensors.items() if key not in parameters)
        for states, room in (
            (others, _BUFFER_BYTES),
            (self._tensors.values(), COPIED_BYTES),
            (self._data_tensors.values(), _DATA_BYTES),
        ):
            attempt(TensorState.keep_values, cheapest(states, room), missed)
        self._report("recorded", missed)
        _ENTERED.times += 1
        return self

    def __exit__(self, *exc: object) -> None:
        with uninterrupted():
            self._undo(self._data, self._data_tensors, self._train)
            self.restore()
            _ENTERED.times -= 1
        del self._train, self._data, self._program, self._modules, self._data_tensors, self._tensors

    def restore(self) -> None:
        """Put everything back as it was on entry, but for the data. An interrupt waits until this is done."""
        with uninterrupted():
            self._undo(self._program, self._tensors, self._switches, self._randomness)

    def rewind(self) -> None:
        """Put the training data back as it was on entry, to read it as if for the first time."""
        with uninterrupted():
            self._undo(self._train, self._data_tensors)

    def _undo(self, snapshot: Snapshot, tensors: Mapping[int, TensorState], *more: Any) -> None:
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
        :mod:`debugkit.state.hooks`). A compiled model runs eagerly. An optimizer step inside is refused. Warnings
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
                    stack.enter_context(CopyOnWrite(watched))
                stack.enter_context(_eager())
                stack.enter_context(torch.enable_grad())
                yield
        finally:
            refusal.remove()
            self.restore()


class _Entered(threading.local):
    times = 0


_ENTERED = _Entered()


def is_measuring() -> bool:
    """Whether a sandbox is entered in this thread, so that what runs is no part of the user's training."""
    return _ENTERED.times > 0


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
