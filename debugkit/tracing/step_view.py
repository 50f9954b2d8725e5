"""One recorded step, seen from its loss: what the loss depends on, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from debugkit.loss.losses import LOSSES, bind_loss
from debugkit.tracing.graph import Node, ancestors
from debugkit.tracing.recording import Op, Recording, Ref


@dataclass(frozen=True, eq=False)
class StepView:
    """One recorded step.

    Attributes:
        model: the model.
        recording: what the step called.
        loss: the loss that it returned.
        returned: all that it returned.
        outputs: the model's outputs.
        batch: keys of all that was computed from the batch.
        labels: keys of all that was computed from its labels.
        whole: the tensors of a larger batch, by the keys of those that were cut from them.
    """

    model: torch.nn.Module
    recording: Recording
    loss: torch.Tensor
    returned: Any
    outputs: Any
    batch: set[int]
    labels: set[int]
    whole: dict[int, torch.Tensor]

    @cached_property
    def roots(self) -> list[Node]:
        """The nodes that gradients start from: of the loss, and of what the step differentiates itself."""
        return [node for node in (self.loss.grad_fn, *self._differentiated) if node is not None]

    @cached_property
    def nodes(self) -> set[Node]:
        """All nodes that gradients reach."""
        return set(ancestors(self.roots))

    @cached_property
    def trained(self) -> set[int]:
        """Keys of all that was computed from trainable parameters."""
        known = (self.recording.known(p) for p in self.model.parameters() if p.requires_grad)
        return self.recording.derived(key for key in known if key is not None)

    @cached_property
    def targets(self) -> set[int]:
        """What the loss functions that the loss depends on compare predictions with."""
        found = set()
        for op in self.recording.ops:
            if op.func in LOSSES and self.node(op) in self.nodes:
                target = bind_loss(op.func, op.args, op.kwargs).get("target")
                if isinstance(target, Ref):
                    found.add(self.recording.root(target.key))
        return found

    @cached_property
    def _differentiated(self) -> list[Node]:
        recording = self.recording
        keys = [key for key, names in recording.readers.items() if "backward" in names]
        keys += [key for op in recording.ops if op.name == "grad" for key in op.needs]
        return [node for key in keys if (node := self._node(key)) is not None]

    def _node(self, key: int) -> Node:
        value = self.recording.value(key)
        return self.recording.node(key) or (value.grad_fn if value is not None else None)

    def node(self, op: Op) -> Node:
        """The autograd node of a call's result."""
        return self._node(op.results[0])

    def result(self, op: Op) -> torch.Tensor:
        """What a call returned, without its graph."""
        value = self.recording.value(op.results[0])
        return torch.tensor(self.recording.measured[op.results[0]]) if value is None else value.detach()

    def weights(self, op: Op) -> torch.Tensor | None:
        """The derivative of the loss with respect to what a call returned; ``None`` where the graph is gone."""
        node = self.node(op)
        if self._differentiated or node is None or not self.loss.requires_grad:
            return None
        if node is self.loss.grad_fn:
            return torch.ones_like(self.loss)
        edge = torch.autograd.graph.GradientEdge(node, 0)
        (found,) = torch.autograd.grad(self.loss.sum(), [edge], retain_graph=True, allow_unused=True)
        return found

    def path(self, op: Op) -> list[Op]:
        """The calls after one on the way to the loss."""
        after = self.recording.derived(op.results)
        return [
            step
            for step in self.recording.ops[op.index + 1 :]
            if not after.isdisjoint(step.needs) and self.node(step) in self.nodes
        ]
