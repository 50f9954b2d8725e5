"""The layers of a model as one step used them: sizes of what goes in and out, activations, norms, dropout."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Layer:
    """A weight that mixes data, over all calls of a step.

    Attributes:
        name: the weight's dotted name.
        op: such as ``linear`` or ``conv2d``.
        units: how many outputs it has.
        fan_in: how many inputs each output has.
        axis: the dimension of the weight along which its outputs stand.
        grouped: whether a convolution's outputs see different inputs.
        bias: the name of the bias that is added with it.
        before: names of the weights that lie right before it.
        input_rms: root mean square of what went in.
        output_rms: root mean square of what came out.
        output_spread: the same after the mean over the batch was taken off.
        location: the user's source line.
    """

    name: str
    op: str
    units: int
    fan_in: int
    axis: int
    grouped: bool
    bias: str | None
    before: frozenset[str]
    input_rms: float
    output_rms: float
    output_spread: float
    location: str | None

    @property
    def module(self) -> str:
        """Dotted name of the module that holds the weight; the weight's own name at the root."""
        return self.name.rpartition(".")[0] or self.name


@dataclass(frozen=True)
class Activation:
    """A non-linear function behind a layer, over all its calls.

    Attributes:
        layer: name of the weight whose units it gets.
        op: such as ``relu`` or ``tanh``.
        module: the module in whose forward it ran.
        location: the user's source line.
        units: how many units it gets.
        samples: how many values of each.
        dead_share: share of the units whose every value is where the function is flat at 0.
        margin: by how many standard deviations the largest value lies under that place; negative: above it.
        saturated_share: share of the values where a bounded function is flat.
        input_rms: root mean square of its input.
    """

    layer: str
    op: str
    module: str | None
    location: str | None
    units: int
    samples: int
    dead_share: float
    margin: float
    saturated_share: float
    input_rms: float


@dataclass(frozen=True)
class Norm:
    """A normalisation, at its first call.

    Attributes:
        op: such as ``layer_norm``.
        module: the module in whose forward it ran.
        location: the user's source line.
        shape: of its input.
        over: how many values share one mean and variance.
        own_statistics: whether these come from its input, and not from running averages.
        variance: the median variance of its input.
        eps: what is added to the variance.
        layer: name of the weight whose units its input holds.
        layer_axis: the dimension of these units.
        normalised: the dimensions that share a mean and variance.
        adds_bias: name of a bias that was added right before and that the norm takes off again.
        dropout: the rate of a dropout right before; 0 without.
    """

    op: str
    module: str | None
    location: str | None
    shape: tuple[int, ...]
    over: int
    own_statistics: bool
    variance: float
    eps: float
    layer: str | None
    layer_axis: int
    normalised: tuple[int, ...]
    adds_bias: str | None
    dropout: float


@dataclass(frozen=True)
class Dropout:
    """An active dropout.

    Attributes:
        rate: the share that it drops.
        module: the module in whose forward it ran.
        location: the user's source line.
        on_outputs: whether a loss was given its result as it is.
    """

    rate: float
    module: str | None
    location: str | None
    on_outputs: bool


@dataclass(frozen=True)
class Collapse:
    """Weighted layers in series with nothing but affine functions between, in a model that has no others.

    All of them run while the model is called as a whole: what a step makes of parts is its own matter.

    Attributes:
        layers: names of the weights in series.
        narrow: whether some layer between is narrower than what is before and after it, so that the product has a
            lower rank.
    """

    layers: tuple[str, ...]
    narrow: bool


@dataclass(frozen=True)
class Layers:
    """What one step did with its layers.

    Attributes:
        layers: by the weight's name, in the order of their first calls.
        activations: in order.
        norms: in order.
        dropouts: in order.
        collapse: where the whole model is one affine map of its data.
        weighted: how many layers the affine test followed.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    activations: tuple[Activation, ...] = ()
    norms: tuple[Norm, ...] = ()
    dropouts: tuple[Dropout, ...] = ()
    collapse: Collapse | None = None
    weighted: int = 0

    @property
    def hidden(self) -> frozenset[str]:
        """Names of the weights whose outputs reach another weight."""
        return frozenset[str]().union(*(layer.before for layer in self.layers.values()))

    def after(self, name: str) -> list[Layer]:
        """The layers that get what a layer gave."""
        return [layer for layer in self.layers.values() if name in layer.before]


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the values of a tensor can be read like those of any other."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.is_floating_point()
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and not tensor.is_nested
        and not tensor.is_quantized
        and tensor.numel() > 0
    )
