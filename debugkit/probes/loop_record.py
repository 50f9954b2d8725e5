"""What was seen of a training loop while it ran: the root that the checks of the loop family read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from debugkit.evidence import root

GradientState = Literal["live", "zero", "none"]
Mode = Literal["train", "eval"]


@dataclass(frozen=True)
class StepWindow:
    """What happened from one optimizer step to the next, the next included.

    Attributes:
        step: the step that ends the window, from 1.
        location: the line that called ``step``.
        backwards: backward passes that reached the optimizer's parameters.
        carried: those of them that belong to the pass over the data before.
        passes: backward passes at all.
        gradients: what the optimizer found: gradients, only zeros, or none.
        stale: parameters whose gradient of the step before was never cleared, though a backward added to it.
        parameters: how many parameters have a gradient.
        reused: whether the gradient is exactly the one that the step before has used already.
        discarded: backward passes whose gradients were cleared before any optimizer used them.
        wiped: whether gradients were there after the last backward, and cleared when the step began.
        still_scaled: whether the gradients of a scaled loss were not unscaled.
        norm: the L2 norm of all gradients as the optimizer found them; ``None`` without any.
    """

    step: int
    location: str | None
    backwards: int
    carried: int
    passes: int
    gradients: GradientState
    stale: tuple[str, ...]
    parameters: int
    reused: bool
    discarded: int
    wiped: bool
    still_scaled: bool
    norm: float | None


@dataclass(frozen=True)
class LayerLog:
    """How one parameter moved.

    Attributes:
        name: its dotted name.
        size: its number of elements.
        moved: whether any looked-at element differs from the first look.
        steps: optimizer steps from the first look to the latest.
        with_gradient: windows in which it had a gradient that is not zero.
        gradient: the largest norm of its gradient.
        windows: windows looked at.
        ratios: relative size of single updates, ``|Δw| / |w|``, oldest first.
        requires_grad: whether it is trainable.
        in_model: whether a model that was called holds it.
        rate: the largest learning rate that its group had when it was looked at.
        push: the largest update that plain gradient descent would have made, in units of the weights' rounding.
        still: the latest looks in a row at which it stayed, with a gradient and a rate as when it moved.
        distance: norm of what it has moved since the first look; ``None`` if that was not looked at.
        start: its norm at the first look.
    """

    name: str
    size: int
    in_model: bool
    rate: float
    moved: bool
    steps: int
    with_gradient: int
    gradient: float
    windows: int
    ratios: tuple[float, ...]
    requires_grad: bool
    push: float = 0.0
    still: int = 0
    distance: float | None = None
    start: float | None = None


@dataclass(frozen=True)
class OptimizerLog:
    """One optimizer.

    Attributes:
        name: its class, numbered if there are several.
        steps: its steps so far.
        windows: the windows looked at closely, oldest first.
        open_discarded: discarded backward passes since the last step.
        open_backwards: backward passes since the last step that reached its parameters.
        rates: ``(step, learning rate of each group)`` wherever one changed.
        layers: its parameters.
        modes: ``(step, mode)`` wherever the mode in which its models ran changed.
        mode_dependent: what behaves otherwise in train mode than in eval mode, such as ``dropout (p=0.1)``.
        evaluated_at: the steps after which a model of it ran without a backward.
        has_closure: whether ``step`` is given a closure.
        by_hand: whether its weights changed between two backward passes without its step.
        alone: whether no other optimizer holds its parameters.
    """

    name: str
    steps: int
    windows: tuple[StepWindow, ...]
    open_discarded: int
    open_backwards: int
    rates: tuple[tuple[int, tuple[float, ...]], ...]
    layers: tuple[LayerLog, ...]
    modes: tuple[tuple[int, Mode], ...]
    mode_dependent: tuple[str, ...]
    evaluated_at: tuple[int, ...]
    has_closure: bool
    by_hand: bool
    alone: bool


@dataclass(frozen=True)
class SchedulerLog:
    """One learning-rate scheduler.

    Attributes:
        name: its class.
        optimizer: the name of its optimizer; ``None`` for one that never stepped.
        steps: how often it was stepped.
        optimizer_steps: steps of its optimizer since it was made.
        before_first: its steps before the optimizer's first.
        horizon: after how many steps it is at its end; ``None`` where it does not say.
        passes: finished training passes over the data since it was made.
        resumed: whether its state was loaded.
        milestones: the steps at which it changes the learning rate, where it holds such a list.
    """

    name: str
    optimizer: str | None
    steps: int
    optimizer_steps: int
    before_first: int
    horizon: int | None
    passes: int
    resumed: bool
    milestones: tuple[int, ...] = ()


@dataclass(frozen=True)
class Blame:
    """Where values that are not finite come from.

    Attributes:
        place: ``weights``: they were not finite any more; ``batch``: what the first module was given; ``module``: the
            first that gave such values; ``between``: what a module was given, though those before it gave finite
            values; ``loss``: all modules gave finite values; ``unknown``: no module could be looked at.
        module: the dotted name of that module.
        own_code: whether it holds other modules, which gave finite values where they were given such.
        before: the class of the module before, for ``between``; the first module inside of it that was given values
            that are not finite, for ``module``.
        largest: the largest absolute value among its inputs and weights.
        weights: names of weights that were not finite, the first and the last if they are many.
        bad: their number.
        parameters: the number of all.
        gradients: whether the averages that the optimizer keeps of their gradients were finite.
    """

    place: Literal["weights", "batch", "module", "between", "loss", "unknown"]
    module: str | None = None
    own_code: bool = False
    before: str | None = None
    largest: float = 0.0
    weights: tuple[str, ...] = ()
    bad: int = 0
    parameters: int = 0
    gradients: bool | None = None


@dataclass(frozen=True)
class LossLog:
    """The losses of one ``backward`` line.

    Attributes:
        location: the line.
        values: the loss of each backward, not scaled, oldest first.
        steps: the optimizer steps taken before each.
        first_bad: index of the first value that is not finite.
        blame: what was not finite first; ``None`` if not looked at.
        classes: the width of the model's outputs, if they look like class scores.
    """

    location: str | None
    values: tuple[float, ...]
    steps: tuple[int, ...]
    first_bad: int | None
    blame: Blame | None
    classes: int | None


@dataclass(frozen=True)
class ClipLog:
    """One line that clips gradients by their norm.

    Attributes:
        location: the line.
        calls: how often it ran.
        limit: the latest ``max_norm``.
        ratios: ``limit / norm`` of each call, at most 1,000.
        after_step: calls with no backward since the optimizer's latest step.
        before_backward: calls that found no gradient.
        scaled: calls that found the gradients of a scaled loss.
    """

    location: str | None
    calls: int
    limit: float
    ratios: tuple[float, ...]
    after_step: int
    before_backward: int
    scaled: int


@dataclass(frozen=True)
class ScalerLog:
    """One gradient scaler.

    Attributes:
        steps: calls of ``scaler.step``.
        taken: those in which the optimizer stepped.
        updates: calls of ``scaler.update``.
        scale: the latest scale.
        refused: what the scaler raised instead of doing what it was asked.
    """

    steps: int
    taken: int
    updates: int
    scale: float
    refused: str | None = None


@dataclass(frozen=True)
class DataPass:
    """One pass over a loader.

    Attributes:
        data: which data set, numbered in the order of first use.
        batches: batches read.
        backwards: backward passes and gradients computed while its batches were the latest.
        steps: optimizer steps taken meanwhile.
        model_calls: calls of trained models, by ``(mode, whether gradients were enabled)``.
        finished: whether the loader was exhausted.
        after_step: optimizer steps taken before it.
        graphs: calls whose outputs hold a graph.
        shared: samples of its data that the latest pass of training before it read too, out of another cut of the
            same data set.
    """

    data: int
    batches: int
    backwards: int
    steps: int
    model_calls: tuple[tuple[tuple[Mode, bool], int], ...]
    finished: bool
    after_step: int
    graphs: int
    shared: int = 0


@dataclass(frozen=True)
class DataLog:
    """One data set behind loaders.

    Attributes:
        index: its number.
        name: its class and length.
        location: where the first loader over it was made.
        read: whether any loader over it was iterated.
    """

    index: int
    name: str
    location: str | None
    read: bool


@dataclass(frozen=True)
class QuietCalls:
    """Calls of a trained model with gradients off and outside of loaders over other data.

    Attributes:
        model: its class.
        train_calls: calls in train mode.
        stretches: stretches between two optimizer steps with such a call.
        steps: optimizer steps.
        mode_dependent: what behaves otherwise in train mode.
    """

    model: str
    train_calls: int
    stretches: int
    steps: int
    mode_dependent: tuple[str, ...]


@dataclass(frozen=True)
class StateLog:
    """A ``state_dict`` that shares its tensors with a model that went on training.

    Attributes:
        model: the model's class.
        location: the line that took it.
        taken_at: optimizer steps before.
        used: ``loaded`` or ``saved``: what was done with it after more steps.
        used_at: optimizer steps before that.
        used_location: the line.
    """

    model: str
    location: str | None
    taken_at: int
    used: Literal["loaded", "saved"]
    used_at: int
    used_location: str | None


@dataclass(frozen=True)
class GraphLog:
    """How many graphs of earlier steps are still alive.

    Attributes:
        location: the line of the ``backward``, or of the call of the model in evaluation.
        made: graphs marked.
        alive: those of them that are still alive.
        run: how many of the latest marked in a row are alive.
        evaluation: whether the graphs are of a pass without a backward.
    """

    location: str | None
    made: int
    alive: int
    run: int
    evaluation: bool


@dataclass(frozen=True)
class Evaluation:
    """One pass over other data than trained on: the mean loss that the model or a loss module gave.

    Attributes:
        after_step: optimizer steps before it.
        loss: the mean.
        batches: losses seen.
        location: the line that computed it, where no loader gave the batch.
        data: the data set that was read, where a loader gave the batches.
        model: tells models apart that are evaluated one after the other.
    """

    after_step: int
    loss: float
    batches: int
    location: str | None = None
    data: int | None = None
    model: int = 0


@dataclass(frozen=True)
class TimeLog:
    """Where the time of training steps went.

    Attributes:
        steps: steps timed, without the first few.
        seconds: their wall time.
        waiting: the share of it that was spent in ``next`` of a loader.
    """

    steps: int
    seconds: float
    waiting: float


@root
@dataclass(frozen=True)
class LoopRecord:
    """A training loop as it was seen from outside.

    Attributes:
        name: the script.
        finished: whether the loop is over; while it runs, more may come.
        error: what ended it, if it raised.
        steps: optimizer steps of all optimizers.
        backwards: backward passes.
        grad_enabled: whether gradients were enabled when the latest model was called.
        without_graph: backward passes of a loss that has no graph, with gradients disabled.
        states_taken: how often a model gave its ``state_dict``.
        unheld: parameters of trained models that have a gradient, while no optimizer holds them.
        broken: what was not finite when an error ended the loop between a call of the model and its backward.
    """

    moment: ClassVar[str] = "live"

    name: str | None = None
    finished: bool = True
    error: str | None = None
    steps: int = 0
    backwards: int = 0
    grad_enabled: bool = True
    without_graph: int = 0
    states_taken: int = 0
    unheld: tuple[str, ...] = ()
    broken: Blame | None = None
    optimizers: tuple[OptimizerLog, ...] = ()
    schedulers: tuple[SchedulerLog, ...] = ()
    losses: tuple[LossLog, ...] = ()
    clips: tuple[ClipLog, ...] = ()
    scalers: tuple[ScalerLog, ...] = ()
    passes: tuple[DataPass, ...] = ()
    data: tuple[DataLog, ...] = ()
    quiet_calls: tuple[QuietCalls, ...] = ()
    states: tuple[StateLog, ...] = ()
    graphs: tuple[GraphLog, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    times: TimeLog | None = None
