"""The balance loss of a mixture of experts: whether what the config asks for is part of the loss."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from debugkit.errors import Broken, Unavailable
from debugkit.evidence import Cost
from debugkit.loss.losses import LOSSES
from debugkit.probes.batches import Batches
from debugkit.probes.loss_tail import few_rows, weights_behind
from debugkit.probes.training_step import run_step
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.graph import ancestors
from debugkit.tracing.playback import Playback
from debugkit.tracing.program import Outcome
from debugkit.tracing.recording import Recording

_SWITCH = "output_router_logits"
_COEFFICIENT = re.compile(r"(aux|balanc|router|moe|z_loss)\w*(coef|weight|alpha|factor)")


@dataclass(frozen=True)
class BalanceLoss:
    """A loss with and without the router logits that a balance loss is computed from.

    Attributes:
        coefficient: place of the configured weight, such as ``config.router_aux_loss_coef``.
        value: the weight.
        switch: place of the setting that hands the router logits on.
        on: whether it is on.
        with_it: the loss with the setting on.
        without: the loss with the setting off.
        trainable: whether some weight behind the router logits is trained.
        chosen: whether the weight is another than the config's class gives.
        left_out: whether the setting is on, and the model gives a balance loss that the step's loss does not contain.
    """

    cost: ClassVar[Cost] = "forward"
    coefficient: str
    value: float
    switch: str
    on: bool
    with_it: float
    without: float
    trainable: bool
    chosen: bool
    left_out: bool

    @property
    def matters(self) -> bool:
        """Whether the setting changes the loss."""
        return not math.isclose(self.with_it, self.without, rel_tol=1e-6)

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, batches: Batches) -> BalanceLoss:
        """Run the step on a few samples with the setting on and off; only where a weight is configured.

        Raises:
            Unavailable: no balance loss is configured, or the model can't run with it.
        """
        for place, config in _configs(getattr(target.model, "config", None)):
            for name, value in vars(config).items():
                if _COEFFICIENT.search(name) and isinstance(value, (int, float)) and value > 0:
                    return _measure(
                        target, sandbox, batches, (place, config), (f"{place}.{name}", float(value))
                    )
        raise Unavailable("no balance loss of experts is configured")


def _configs(config: Any, place: str = "config", depth: int = 2) -> Iterator[tuple[str, Any]]:
    """A config that has the setting, and those inside it."""
    values = getattr(config, "__dict__", {})
    if isinstance(getattr(config, _SWITCH, None), bool):
        yield place, config
    for name, inner in values.items() if depth else ():
        if name.endswith("config") and hasattr(inner, "__dict__"):
            yield from _configs(inner, f"{place}.{name}", depth - 1)


def _measure(
    target: Target,
    sandbox: Sandbox,
    batches: Batches,
    switch: tuple[str, Any],
    coefficient: tuple[str, float],
) -> BalanceLoss:
    place, config = switch
    before = getattr(config, _SWITCH)
    losses, trainable, left_out = {}, True, False
    batch = few_rows(batches.first)
    try:
        for on in (False, True):
            setattr(config, _SWITCH, on)
            with sandbox.probe(), Recording(LOSSES) as recording:
                if not sandbox.training[""]:
                    target.model.train()
                outcome = run_step(target, batch)
                losses[on] = float(outcome.loss.detach().float().mean())
            if on:
                trainable = _is_trainable(target.model, recording, outcome.outputs)
                left_out = before and _is_left_out(outcome)
    except Broken as error:
        raise Unavailable(f"the model does not run with `{place}.{_SWITCH}`: {error}") from error
    finally:
        setattr(config, _SWITCH, before)
    return BalanceLoss(
        *coefficient,
        f"{place}.{_SWITCH}",
        before,
        losses[True],
        losses[False],
        trainable=trainable,
        left_out=left_out,
        chosen=_default(config, coefficient[0].rpartition(".")[2]) != coefficient[1],
    )


def _is_left_out(outcome: Outcome) -> bool:
    found = getattr(outcome.outputs, "aux_loss", None)
    node = found.grad_fn if isinstance(found, torch.Tensor) else None
    return node is not None and node not in set(ancestors([outcome.loss.grad_fn]))


def _default(config: Any, name: str) -> Any:
    """What a config's class gives for a setting; ``None`` where it can't be built without arguments."""
    try:
        return getattr(type(config)(), name, None)
    except Exception:  # a foreign class may refuse in any way
        return None


def _is_trainable(model: torch.nn.Module, recording: Recording, outputs: Any) -> bool:
    """Whether a weight that gave the model's `aux_loss` is trained; taken for granted where there is none."""
    found = getattr(outputs, "aux_loss", None)
    key = recording.known(found) if isinstance(found, torch.Tensor) else None
    if key is None:
        return True
    names, _ = weights_behind(recording, Playback(recording, [key]), model)
    return any(model.get_parameter(name).requires_grad for name in names)
