"""Training and validation that read the same data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Subset

from debugkit import Finding, Unavailable, check, fail, note, warn
from debugkit.probes.loop_record import DataPass, LoopRecord
from debugkit.testing import blobs, mlp, watched

_CERTAIN = 2


@check
def eval_data(loop: LoopRecord) -> Iterator[Finding]:
    """Training reads the validation data, or validation reads the training data.

    Loaders over the same data set count as the same data. A pass with backward passes is training, one with calls
    of the trained model and none is validation.

    ## Why is this bad?
    Validation on what was trained on shows how well the model remembers. It looks excellent, picks the wrong
    checkpoint, and hides overfitting.

    ## What to do
    Hand each loop its own loader: `train_loader` to training, `val_loader` to validation.

    ## Known limits
    Two data sets with the same samples inside are compared before training, by `train-eval-leakage`.

    ## References
    - https://scikit-learn.org/stable/common_pitfalls.html#data-leakage
    """
    training = {read.data for read in loop.passes if read.backwards}
    if not training:
        raise Unavailable("no loader was read for training while the loop was watched")
    checked = [read for read in loop.passes if not read.backwards and _evaluates(read)]
    evaluated = {read.data for read in checked}
    unread = [data for data in loop.data if not data.read]
    names = {data.index: data.name for data in loop.data}
    if evaluated and evaluated <= training and loop.finished:
        shared = min(evaluated)
        if unread:
            yield fail(
                f"training and validation both read {names[shared]}, while the loader over {unread[0].name} "
                f"({unread[0].location}) is never read",
                location=unread[0].location,
                hint="hand training and validation each its own loader",
                passes=len(checked),
            )
        elif len(training) > 1:
            yield warn(
                f"all data that validation reads is trained on too: {names[shared]} of {len(training)} data sets "
                "that training reads",
                hint="hand training and validation each its own loader",
                passes=len(checked),
            )
    yield from _shared_samples(checked, training, names)
    yield from _steps_in_validation(loop.passes, names)
    yield note(
        f"training reads {_listed(training, names)}; validation reads {_listed(evaluated, names)}",
        passes=len(loop.passes),
    )


def _shared_samples(checked: list[DataPass], training: set[int], names: dict[int, str]) -> Iterator[Finding]:
    """Cuts of one data set that overlap, where no other data is validated on: else they may measure training."""
    worst = max(checked, key=lambda read: read.shared, default=None)
    clean = {read.data for read in checked if not read.shared} - training
    if worst is not None and worst.shared and not clean:
        yield warn(
            f"{worst.shared:,} samples of {names[worst.data]} that validation reads are in the data that training reads "
            "too: both are cut from the same data set, and the cuts overlap",
            hint="give each index to one of the two",
            shared=worst.shared,
        )


def _steps_in_validation(passes: tuple[DataPass, ...], names: dict[int, str]) -> Iterator[Finding]:
    """Steps taken in eval mode on one data set, while another is trained on in train mode."""
    modes = {
        data: {
            mode
            for read in passes
            if read.data == data and read.backwards
            for (mode, _), _ in read.model_calls
        }
        for data in names
    }
    if not any(seen == {"train"} for seen in modes.values()):
        return
    for data, seen in modes.items():
        steps = sum(read.steps for read in passes if read.data == data)
        if seen == {"eval"} and steps >= _CERTAIN:
            yield fail(
                f"{steps} optimizer steps were taken on {names[data]}, which the model reads in eval mode only: the "
                "validation data is trained on",
                hint="leave `backward` and `step` out of the validation loop",
                steps=steps,
            )


def _evaluates(read: DataPass) -> bool:
    return read.batches > 1 and any(mode == "eval" or not grad for (mode, grad), _ in read.model_calls)


def _listed(numbers: set[int], names: dict[int, str]) -> str:
    return " and ".join(names[number] for number in sorted(numbers)) or "none"


def _train(train: str, validate: str, *, steps: bool = False) -> None:
    loaders = {"train": blobs(), "validation": blobs(samples=48, seed=1)}
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        model.train()
        for x, y in loaders[train]:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        model.eval()
        with torch.set_grad_enabled(steps):
            for x, y in loaders[validate]:
                loss = torch.nn.functional.cross_entropy(model(x), y)
                if steps:
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()


def _train_on_subsets(first: int, *, probe: bool = False) -> None:
    data = blobs().dataset
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    train = DataLoader(Subset(data, range(first, 64)), batch_size=16, shuffle=True)
    held_out = DataLoader(Subset(data, range(16)), batch_size=8)
    some_of_train = DataLoader(Subset(data, range(16, 32)), batch_size=8)
    for _ in range(2):
        for x, y in train:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            for loader in [held_out, some_of_train] if probe else [held_out]:
                for x, _ in loader:
                    model(x)


def good_measures_training_too() -> LoopRecord:
    return watched(lambda: _train_on_subsets(16, probe=True))


def good_subsets() -> LoopRecord:
    return watched(lambda: _train_on_subsets(16))


def bad_subsets_overlap() -> LoopRecord:
    return watched(lambda: _train_on_subsets(8))


def good() -> LoopRecord:
    return watched(lambda: _train("train", "validation"))


def bad_validates_on_train() -> LoopRecord:
    return watched(lambda: _train("train", "train"))


def bad_trains_on_validation() -> LoopRecord:
    return watched(lambda: _train("validation", "validation"))


def bad_steps_in_validation() -> LoopRecord:
    return watched(lambda: _train("train", "validation", steps=True))
