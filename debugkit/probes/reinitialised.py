"""The activations of the same architecture as its own library initialises it; run only where some are in doubt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from debugkit.data.batch import fresh
from debugkit.errors import Broken, Unavailable, one_line
from debugkit.evidence import Cost
from debugkit.probes.training_step import TrainingStep
from debugkit.sandbox import Sandbox
from debugkit.target import Target
from debugkit.tracing.layers import Activation
from debugkit.tracing.program import Program
from debugkit.tracing.source import is_library_class
from debugkit.tracing.trace import record

FEWEST_SAMPLES = 16
FEWEST_UNITS = 16
DOUBTFUL = 0.5


@dataclass(frozen=True)
class Reinitialised:
    """Shares of dead units at a default initialisation.

    Attributes:
        dead: by the name of the weight before them and the function.
    """

    cost: ClassVar[Cost] = "backward"
    dead: dict[tuple[str, str], float] = field(default_factory=dict)

    @staticmethod
    def collect(target: Target, sandbox: Sandbox, step: TrainingStep) -> Reinitialised:
        """One forward pass, with every layer that knows how initialised anew.

        Raises:
            Unavailable: no share is in doubt, or the model is not called as a whole.
            Broken: the model raised with these weights.
        """
        if not any(is_in_doubt(one) for one in step.layers.activations):
            raise Unavailable("no share of dead units is in doubt")
        if step.root_call is None:
            raise Unavailable("the training step calls parts of the model, never the model as a whole")
        args, kwargs = step.root_call
        with sandbox.probe():
            target.model.train()
            with torch.no_grad():
                _initialise(target.model)
                with Program(target).precision(), record(target.model, layers=True) as recorder:
                    try:
                        target.model(*fresh(args, target.device), **fresh(kwargs, target.device))
                    except Exception as error:
                        raise Broken(f"the model raised when initialised anew: {one_line(error)}") from error
                found = recorder.layers.activations
        return Reinitialised({(one.layer, one.op): one.dead_share for one in found})


def is_in_doubt(activation: Activation) -> bool:
    """Whether many units are dead, of enough units over enough samples to tell."""
    return (
        activation.dead_share > DOUBTFUL
        and activation.samples >= FEWEST_SAMPLES
        and activation.units >= FEWEST_UNITS
    )


def _initialise(model: torch.nn.Module) -> None:
    """As the libraries that the modules come from do; what a user wrote is not called."""
    for module in model.modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if callable(reset) and is_library_class(type(module)):
            reset()
    for module in model.modules():
        initialise: Any = getattr(module, "_init_weights", None)
        if callable(initialise) and is_library_class(type(module)):
            for part in module.modules():
                initialise(part)
            break
