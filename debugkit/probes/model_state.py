"""The model as it was handed over, before anything was touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from debugkit.evidence import Cost
from debugkit.sandbox import Sandbox
from debugkit.target import Target


@dataclass(frozen=True)
class ModelState:
    """Flags as given.

    Attributes:
        training: each module's training flag, by dotted name; the root is ``""``.
        requires_grad: each parameter's flag, by dotted name (every name of a shared parameter).
        grad_enabled: whether gradients were enabled where debugkit was called.
    """

    cost: ClassVar[Cost] = "static"
    training: Mapping[str, bool]
    requires_grad: Mapping[str, bool]
    grad_enabled: bool

    @staticmethod
    def collect(target: Target, sandbox: Sandbox) -> ModelState:
        """Read the flags that the sandbox recorded."""
        flags = {n: p.requires_grad for n, p in target.model.named_parameters(remove_duplicate=False)}
        return ModelState(sandbox.training, flags, sandbox.grad_enabled)
