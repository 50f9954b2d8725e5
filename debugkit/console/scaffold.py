"""A new check file that works at once, to be changed from there."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

from debugkit.errors import UsageError

_ID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_TEMPLATE = '''\
"""Samples whose every input is zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from debugkit import Finding, Target, Unavailable, check, note, warn
from debugkit.data.batch import split, tensors
from debugkit.probes.batches import Batches
from debugkit.testing import blobs, mlp
from pydantic import Field

Share = Annotated[float, Field(ge=0, le=1, description="share that is fine")]


@check
def {function}(batches: Batches, *, max_share: Share = 0.01) -> Iterator[Finding]:
    """Samples arrive with every input at zero.

    ## Why is this bad?
    A sample without input has a label all the same, so the model learns to guess.

    ## What to do
    Find where the values get lost: an empty file, a failed download, a mask applied twice.

    ## References
    - https://karpathy.github.io/2019/04/25/recipe/
    """
    seen = zero = 0
    for batch in batches.items:
        inputs, _ = split(batch)
        columns = [x.flatten(1) for _, x in tensors(inputs) if x.ndim > 1]
        if columns:
            empty = torch.stack([(x == 0).all(dim=1) for x in columns]).all(dim=0)
            seen += len(empty)
            zero += int(empty.sum())
    if not seen:
        raise Unavailable("the batches hold no tensors, so there is nothing to look at")
    found = f"{{zero}} of {{seen}} samples have every input at 0"
    if zero / seen > max_share:
        yield warn(
            f"{{found}}, so nothing can be learned from them",
            hint="look at these samples where they are loaded",
            share=zero / seen,
        )
    else:
        yield note(found)


def good() -> Target:
    return Target(mlp(), blobs(), torch.nn.CrossEntropyLoss())


def bad_every_fourth_sample_is_zero() -> Target:
    data = [(x.clone(), y.clone()) for x, y in blobs()]
    for x, _ in data:
        x[::4] = 0
    return Target(mlp(), data, torch.nn.CrossEntropyLoss())
'''


def write_check(check_id: str, folder: Path, family: str) -> Path:
    """Write a working check file.

    Args:
        check_id: the new check's id in kebab-case.
        folder: the local folder of checks, made if it is missing.
        family: the sub-folder.

    Returns:
        The file's path.

    Raises:
        UsageError: a name is not valid, or the file exists.
    """
    _validate(check_id, "a check's id")
    _validate(family, "a family")
    if re.match(r"(good|bad)(-|$)", check_id):
        raise UsageError(f"`{check_id}` would be taken for an example; start it with another word")
    if folder.resolve().name in sys.stdlib_module_names:
        raise UsageError(f"`{folder}` has the name of a standard module; name another folder")
    function = check_id.replace("-", "_")
    package = folder / family.replace("-", "_")
    path = package / f"{function}.py"
    if path.exists():
        raise UsageError(f"`{path}` exists already")
    try:
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        path.write_text(_TEMPLATE.format(function=function), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"`{path}` can't be written: {error.strerror}") from error
    return path


def _validate(name: str, what: str) -> None:
    if not _ID.fullmatch(name):
        guess = "-".join(re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()))
        hint = f" (`{guess}`?)" if _ID.fullmatch(guess) else ""
        raise UsageError(f"`{name}` is no name for {what}: use lower-case words joined by hyphens{hint}")
    if keyword.iskeyword(name):
        raise UsageError(f"`{name}` is a Python keyword; use another name")
