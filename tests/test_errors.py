from __future__ import annotations

import pytest
from torch.utils.data import DataLoader, Dataset

from debugkit.errors import one_line, with_article


class Raises(Dataset[int]):
    """A data set whose second sample can't be loaded."""

    def __init__(self, error: Exception, cause: Exception | None = None) -> None:
        self.error, self.cause = error, cause

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 1:
            try:
                if self.cause is not None:
                    raise self.cause
            finally:
                raise self.error
        return index


def passed_on(error: Exception, cause: Exception | None = None) -> Exception:
    with pytest.raises(type(error)) as caught:
        list(DataLoader(Raises(error, cause), num_workers=1))
    return caught.value


def test_one_line() -> None:
    assert one_line(ValueError("two\n  lines")) == "ValueError: two lines"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("x" * 400), 40) == "ValueError: " + "x" * 27 + "…"


@pytest.mark.parametrize(
    ("error", "cause", "said"),
    [
        (RuntimeError("bad image x_40.png"), None, "RuntimeError: bad image x_40.png"),
        (KeyError("label"), None, "KeyError: 'label'"),
        (ValueError("sample 37\n  is corrupt\nand more"), None, "ValueError: sample 37 is corrupt and more"),
        (ValueError("the second"), OSError("the first"), "ValueError: the second"),
        (ValueError(), None, "ValueError"),
    ],
)
def test_an_error_of_a_loader_worker_is_told_as_it_was_raised(
    error: Exception, cause: Exception | None, said: str
) -> None:
    assert one_line(passed_on(error, cause)) == f"{said} (in a loader worker)"


def test_a_long_error_of_a_loader_worker_keeps_its_place() -> None:
    said = one_line(passed_on(RuntimeError("y" * 400)), 60)
    assert len(said) == 60
    assert said.endswith("y… (in a loader worker)")


def test_other_workers_are_named_and_odd_tracebacks_survive() -> None:
    head = "Caught RuntimeError in replica 1 on device 1.\nOriginal Traceback (most recent call last):\n"
    assert one_line(RuntimeError(head + '  File "a.py"\nRuntimeError: no\n')) == (
        "RuntimeError: no (in replica 1 on device 1)"
    )
    assert one_line(RuntimeError(head + '  File "a.py"\n')) == 'File "a.py" (in replica 1 on device 1)'


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("int", "an `int`"),
        ("str", "a `str`"),
        ("MLP", "an `MLP`"),
        ("UNet", "a `UNet`"),
        ("Adam", "an `Adam`"),
    ],
)
def test_articles(name: str, said: str) -> None:
    assert with_article(name) == said
