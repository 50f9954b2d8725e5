"""Count the forward and backward passes of one run, per kind of evidence.

The unit is one forward pass (F) of the user's own batch: a pass over part of it counts as that part, and a
backward pass counts as two forward passes, one through some of the layers as that part of it. Exits 1 when a run
without the training probes takes more than the bound.
"""

from __future__ import annotations

import argparse
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from debugkit import Target
from debugkit.data.batch import split, tensors
from debugkit.runner import Run

BOUND = 24.0
SETUP = "(before any)"


@dataclass
class Passes:
    """Forward and backward passes, counted as calls and as shares of the user's batch.

    Attributes:
        calls: number of forward calls.
        forward: forward passes in F.
        backward: backward passes, each as large as its forward pass (costs 2 F).
    """

    calls: int = 0
    forward: float = 0.0
    backward: float = 0.0

    @property
    def cost(self) -> float:
        """The cost in F."""
        return self.forward + 2 * self.backward


@dataclass
class Counter:
    """Counts what a model does, by whatever label is current.

    Attributes:
        batch_values: the number of values in the user's batch, which one F stands for.
        names: the fields of that batch; empty where they have no names.
        label: what the passes are attributed to.
        passes: the counts by label.
    """

    batch_values: int
    names: frozenset[str] = frozenset()
    label: str = SETUP
    passes: defaultdict[str, Passes] = field(default_factory=lambda: defaultdict(Passes))

    @staticmethod
    def of(target: Target) -> Counter:
        """A counter whose unit is the first batch of a target."""
        state = torch.get_rng_state()
        inputs, _ = split(next(iter(target.train_loader or ()), None))
        torch.set_rng_state(state)
        names = frozenset(map(str, inputs)) if isinstance(inputs, Mapping) else frozenset()
        return Counter(_values(inputs), names)

    def attach(self, model: torch.nn.Module) -> None:
        """Count the model's forward passes from now on.

        The class of the model is replaced by a subclass of the same name; the model has no new hook and no new
        attribute that a sandbox could take away.
        """
        kind = type(model)
        forward = kind.forward

        @functools.wraps(forward)
        def counted(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            share = self._share(args, kwargs)
            self.passes[self.label].calls += 1
            self.passes[self.label].forward += share
            outputs = forward(module, *args, **kwargs)
            self._count_backward(outputs, share)
            return outputs

        model.__class__ = type(kind.__name__, (kind,), {"forward": counted, "__module__": kind.__module__})

    @property
    def total(self) -> Passes:
        """The sum over all labels."""
        parts = self.passes.values()
        return Passes(
            sum(p.calls for p in parts), sum(p.forward for p in parts), sum(p.backward for p in parts)
        )

    def _share(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        """How much of the batch a call gets; a cache or what an encoder said is no part of it."""
        known = [args, {name: value for name, value in kwargs.items() if name in self.names}]
        given = known if any(True for _ in tensors(known)) else [args, kwargs]
        return _values(given) / self.batch_values

    def _count_backward(self, outputs: Any, share: float) -> None:
        """Count each node behind the outputs that uses a trainable parameter as its part, when gradients run it."""
        nodes = _weighted(tensor.grad_fn for _, tensor in tensors(outputs))

        def count(_: Any) -> None:
            self.passes[self.label].backward += share / len(nodes)

        for node in nodes:
            node.register_prehook(count)


def count(target: Target, config: Mapping[str, Any] | None = None) -> Counter:
    """Run the checklist on a target whose model is counted (and stays counted)."""
    counter = Counter.of(target)

    def label(event: str, value: Any) -> None:
        if event == "evidence":
            counter.label = str(value)
        elif event == "check":
            counter.label = f"check {value}"

    counter.attach(target.model)
    Run(target, config=dict(config or {}), on_event=label).execute()
    return counter


def _values(inputs: Any) -> int:
    """The size of the largest input, labels apart: what a pass costs is proportional to it."""
    found = [t for path, t in tensors(inputs) if not path.endswith("labels")]
    return max((tensor.numel() for tensor in found), default=1)


def _weighted(roots: Iterable[Any]) -> list[Any]:
    """The nodes of a graph that take a leaf themselves; the roots where none does."""
    stack = [node for node in roots if node is not None]
    first, seen, found = list(dict.fromkeys(stack)), set(stack), []
    while stack:
        node = stack.pop()
        after = [other for other, _ in node.next_functions if other is not None]
        if any(hasattr(other, "variable") for other in after):
            found.append(node)
        fresh = {other for other in after if other not in seen}
        seen |= fresh
        stack += fresh
    return found or first


def encoder(batch_size: int = 16) -> Target:
    """A BERT classifier with dropout."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    ids = _token_ids(vocabulary=60)
    labels = torch.arange(len(ids)) % 2
    ids[:, 1] = 3 + labels
    return _transformer(BertForSequenceClassification(config).train(), ids, labels, batch_size)


def decoder(batch_size: int = 16) -> Target:
    """A small Llama that learns to repeat."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    ids = _token_ids(vocabulary=60)[:, :4].repeat(1, 3)
    return _transformer(LlamaForCausalLM(config).train(), ids, ids.clone(), batch_size)


def cnn(batch_size: int = 16) -> Target:
    """A convolutional classifier with BatchNorm."""
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    images = torch.randn(64, 3, 12, 12) + labels.view(-1, 1, 1, 1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 2),
    )
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, labels), batch_size=batch_size, shuffle=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Target(model, loader, torch.nn.CrossEntropyLoss(), optimizer=optimizer)


TARGETS: dict[str, Callable[..., Target]] = {"encoder": encoder, "decoder": decoder, "cnn": cnn}


def _token_ids(vocabulary: int) -> torch.Tensor:
    return torch.randint(5, vocabulary, (64, 12), generator=torch.Generator().manual_seed(0))


def _transformer(model: torch.nn.Module, ids: torch.Tensor, labels: torch.Tensor, batch_size: int) -> Target:
    rows = [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": y}
        for i, y in zip(ids, labels, strict=True)
    ]
    loader = torch.utils.data.DataLoader(rows, batch_size=batch_size, shuffle=True)  # type: ignore[arg-type]
    return Target(model, loader, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3))


def table(counter: Counter) -> str:
    """The counts, one line per label and a total."""
    lines = [f"  {'evidence':<36}{'calls':>7}{'forward':>10}{'backward':>10}{'F':>8}"]
    for name, part in [*counter.passes.items(), ("total", counter.total)]:
        lines.append(
            f"  {name:<36}{part.calls:>7}{part.forward:>10.2f}{part.backward:>10.2f}{part.cost:>8.2f}"
        )
    return "\n".join(lines)


def main() -> int:
    """Print the tables; 1 when a run is above the bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bound", type=float, default=BOUND, help="most F without training probes (%(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="samples per batch (%(default)s)")
    parser.add_argument("--training", action="store_true", help="also count a run with the training probes")
    arguments = parser.parse_args()
    above = 0
    for name, make in TARGETS.items():
        counter = count(make(arguments.batch_size), {"max-cost": "backward"})
        cost = counter.total.cost
        above += cost > arguments.bound
        print(f"{name}: {cost:.1f} F (bound {arguments.bound:g})\n{table(counter)}\n")
        if arguments.training:
            print(f"{name} with training probes\n{table(count(make(arguments.batch_size)))}\n")
    return int(above > 0)


if __name__ == "__main__":
    raise SystemExit(main())
