"""Whether a model's own ``load_state_dict`` restores what its own ``state_dict`` saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.parameter import is_lazy

from debugkit.errors import Unavailable, one_line
from debugkit.evidence import Cost
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.state.tensor_state import same_bits
from debugkit.target import Target

LARGEST = 2**28


@dataclass(frozen=True)
class StateDictTrip:
    """What training changes (trainable parameters, running statistics) after it was saved, overwritten and loaded.

    Attributes:
        tensors: how many tensors the state dict holds.
        checked: how many of them were overwritten.
        lost: dotted names of those that loading did not restore.
        refusal: why a strict load of the model's own state dict raises; ``None`` where it does not.
    """

    cost: ClassVar[Cost] = "static"
    tensors: int
    checked: int
    lost: tuple[str, ...]
    refusal: str | None

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, step: TrainingStep | None) -> StateDictTrip:
        """Overwrite what training changes with noise in the sandbox, and load the saved values.

        Raises:
            Unavailable: there is nothing to overwrite, the model is too large for a copy, or it has no state dict.
        """
        model = target.model
        truth: dict[str, torch.Tensor] = {
            name: p for name, p in model.named_parameters() if p.requires_grad and _is_plain(p)
        }
        if not truth:
            raise Unavailable("no parameter is trainable, so training changes nothing that has to be saved")
        moved = step.moved_buffers if step is not None else frozenset()
        truth |= {
            name: b
            for name, b in _persistent(model)
            if name in moved and _is_plain(b) and not torch._debug_has_internal_overlap(b)
        }
        total = sum(p.nbytes for p in model.parameters() if not is_lazy(p))
        if total > LARGEST:
            raise Unavailable(
                f"the model's {total / 2**20:,.0f} MiB are too much for a copy to save and load"
            )
        with sandbox.probe():
            copies = {name: p.detach().clone() for name, p in truth.items()}
            try:
                saved = copy.copy(model.state_dict())  # keeps the versions that it carries
                for key, value in saved.items():
                    saved[key] = _copy(value)
            except Exception as error:  # a foreign method may refuse in any way
                raise Unavailable(f"`state_dict` raised: {one_line(error)}") from error
            with torch.no_grad():
                for parameter in truth.values():
                    parameter.normal_()
            refusal = _load(model, saved, strict=True)
            if refusal is not None:
                _load(model, saved, strict=False)
            now: dict[str, torch.Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            lost = tuple(
                name
                for name, value in copies.items()
                if name not in now or not same_bits(now[name].detach(), value)
            )
        tensors = sum(isinstance(value, torch.Tensor) for value in saved.values())
        return StateDictTrip(tensors, len(copies), lost, refusal)


def _persistent(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The buffers that a state dict is meant to hold."""
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, buffer


def _is_plain(tensor: torch.Tensor) -> bool:
    if is_lazy(tensor) or tensor.is_meta or not tensor.is_floating_point():
        return False
    return type(tensor.data) is torch.Tensor and tensor.layout is torch.strided and tensor.numel() > 0


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _load(model: torch.nn.Module, saved: dict[str, Any], *, strict: bool) -> str | None:
    try:
        model.load_state_dict(saved, strict=strict)
    except Exception as error:  # a foreign method may refuse in any way
        return one_line(error)
    return None
