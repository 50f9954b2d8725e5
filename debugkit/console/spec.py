"""SPEC: where a Target is defined, written ``file.py[:attr]`` or ``package.module[:attr]``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from debugkit.errors import UsageError, nearest, one_line, with_article
from debugkit.tracing.source import is_library_file, shorten

if TYPE_CHECKING:
    from debugkit.target import Target

DEFAULT_ATTRIBUTE = "target"

_SHOWN = 5

_OWN = str(Path(__file__).parents[1]) + os.sep


@dataclass(frozen=True)
class Spec:
    """A parsed SPEC.

    Attributes:
        module: the file's path, or the module's dotted name.
        attribute: what to take from it; dots reach into it.
        is_file: whether ``module`` is a path.
    """

    module: str
    attribute: str
    is_file: bool

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read a SPEC; a file must exist.

        Raises:
            UsageError: it is neither a Python file nor a module's name.
        """
        module, colon, attribute = text.rpartition(":")
        if not colon or re.search(r"[\\/]", attribute):
            module, attribute = text, DEFAULT_ATTRIBUTE
        if not all(part.isidentifier() for part in attribute.split(".")):
            raise UsageError(f"`{text}`: `{attribute}` is no attribute's name")
        if not module:
            raise UsageError("SPEC is empty; name a file or a module, such as `train.py`")
        path = Path(module)
        if path.is_dir() and not module.isidentifier():
            raise UsageError(f"`{module}` is a folder; name a file in it, such as `{path / 'train.py'}`")
        if path.suffix == ".py" or re.search(r"[\\/]", module) or path.is_file():
            if not path.is_file():
                siblings = [str(path.with_name(other.name)) for other in path.parent.glob("*.py")]
                raise UsageError(f"there is no file `{module}`{_nearest_module(module, siblings)}")
            if path.suffix != ".py":
                raise UsageError(f"`{module}` is no Python file; name a `.py` file or a module")
            return cls(module, attribute, is_file=True)
        if not all(part.isidentifier() for part in module.split(".")):
            raise UsageError(f"`{text}` is neither a Python file nor a module's name")
        return cls(module, attribute, is_file=False)

    def __str__(self) -> str:
        return f"{self.module}:{self.attribute}"


def load_target(spec: str | Spec) -> Target:
    """Import what SPEC names and return its Target, calling a factory and converting a Trainer.

    Args:
        spec: ``file.py[:attr]`` or ``package.module[:attr]``; ``attr`` is a Target, a Trainer, or a function
            without arguments that returns one; ``target`` by default.

    Raises:
        UsageError: no Target comes of it; one sentence that names the user's line where there is one.
        KeyboardInterrupt: Ctrl-C while the user's code was running.
    """
    spec = Spec.parse(spec) if isinstance(spec, str) else spec
    module = _import_file(spec) if spec.is_file else _import_module(spec)
    value = _attribute(module, spec)
    if _is_factory(value):
        value = _call(value, spec)
    return _as_target(value, spec)


def _import_file(spec: Spec) -> ModuleType:
    path = Path(spec.module).resolve()
    _search_first(path.parent)
    name = path.stem
    known = sys.modules.get(name)
    if known is not None:
        if _file_of(known) == path:
            return known
        name = f"{name}_of_{path.parent.name}"
    description = importlib.util.spec_from_file_location(name, path)
    assert description is not None
    assert description.loader is not None
    module = importlib.util.module_from_spec(description)
    sys.modules[name] = module
    try:
        with _user_code(f"`{spec.module}` can't be imported", f"`{spec.module}` ends the program on import"):
            sys.argv[:] = [spec.module]
            description.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _import_module(spec: Spec) -> ModuleType:
    _search_first(Path.cwd())
    try:
        with _user_code(f"`{spec.module}` can't be imported", f"`{spec.module}` ends the program on import"):
            sys.argv[:] = [spec.module]
            return importlib.import_module(spec.module)
    except UsageError as error:
        cause = error.__cause__
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if missing and f"{spec.module}.".startswith(f"{missing}."):
            parent, dot, _ = missing.rpartition(".")
            folder = Path(*parent.split("."))
            names = [parent + dot + path.stem for path in folder.glob("*") if path.suffix in ("", ".py")]
            raise UsageError(f"no module is called `{missing}`{_nearest_module(missing, names)}") from cause
        raise


def _search_first(folder: Path) -> None:
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))


@contextmanager
def _user_code(failed: str, exited: str) -> Iterator[None]:
    """Turn what the user's code raises into one sentence; its own command line stays its own."""
    arguments = sys.argv[:]
    try:
        yield
    except SystemExit as error:
        raise UsageError(
            f"{exited}: {_with_place(one_line(error), error)}; build the Target in a function without arguments "
            'and keep the rest under `if __name__ == "__main__":`'
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UsageError(f"{failed}: {_describe(error)}") from error
    finally:
        sys.argv[:] = arguments


def _describe(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({shorten(error.filename)}:{error.lineno})"
    said = " ".join(str(error).split()) if isinstance(error, UsageError) else one_line(error)
    hint = "; name it as a module, `package.module`" if "no known parent package" in said else ""
    return _with_place(said, error) + hint


def _with_place(said: str, error: BaseException) -> str:
    """The sentence and the innermost line of the user's own code in the traceback, or of a library's."""
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(("<", _OWN))
    ]
    own = [frame for frame in frames if not is_library_file(frame[0])]
    for filename, line in reversed(own or frames):
        return f"{said} ({shorten(filename)}:{line})"
    return said


def _attribute(module: ModuleType, spec: Spec) -> Any:
    value: Any = module
    for part in spec.attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise UsageError(_missing(module, value, part, spec)) from None
    return value


def _missing(module: ModuleType, owner: Any, name: str, spec: Spec) -> str:
    names = (
        [other for other in vars(owner) if not other.startswith("_")] if hasattr(owner, "__dict__") else []
    )
    sentence = f"`{spec.module}` has no `{spec.attribute}`"
    guess = nearest(name, names) if name != DEFAULT_ATTRIBUTE else ""
    candidates = sorted(_candidates(module)) if owner is module else []
    if candidates:
        first = get_close_matches(name, candidates, n=_SHOWN, cutoff=0)
        found = ", ".join(f"`{spec.module}:{candidate}`" for candidate in first)
        more = f" and {len(candidates) - len(first)} more" if len(candidates) > len(first) else ""
        return f"{sentence}{guess}; it offers {found}{more}"
    return (
        f"{sentence}{guess}; define `target = Target(model, train_loader, ...)` at module level, or a function that "
        "returns it"
    )


def _candidates(module: ModuleType) -> Iterator[str]:
    """The names of Targets, Trainers and functions without arguments that seem to make one."""
    from debugkit.target import Target

    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, type):
            continue
        if isinstance(value, Target) or _is_trainer(value):
            yield name
        elif inspect.isfunction(value) and value.__module__ == module.__name__ and not _required(value):
            returns = str(inspect.signature(value).return_annotation)
            makes_one = re.search(r"\b(Target|\w*Trainer)\b", returns) or "Target" in value.__code__.co_names
            if (makes_one and name != "main") or "target" in name.lower():
                yield name


def _is_factory(value: Any) -> bool:
    import torch

    return callable(value) and not (isinstance(value, (type, torch.nn.Module)) or _is_trainer(value))


def _required(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _call(factory: Callable[..., Any], spec: Spec) -> Any:
    if required := _required(factory):
        names = ", ".join(f"`{name}`" for name in required)
        raise UsageError(
            f"`{spec}` needs arguments ({names}); give them defaults, or name a function that takes none"
        )
    with _user_code(f"`{spec}` raised", f"`{spec}` ends the program"):
        sys.argv[:] = [spec.module]
        return factory()


def _as_target(value: Any, spec: Spec) -> Target:
    import torch

    from debugkit.target import Target

    if isinstance(value, Target):
        return value
    if _is_trainer(value):
        with _user_code(f"`{spec}` can't be made a Target", f"`{spec}` ends the program"):
            return Target.from_trainer(value)
    if isinstance(value, type):
        kind = f"the class `{value.__name__}`"
    else:
        kind = "`None`" if value is None else with_article(type(value).__name__)
    hint = ""
    if isinstance(value, torch.nn.Module):
        hint = f"; wrap it: `Target({spec.attribute.rpartition('.')[2]}, train_loader, ...)`"
    elif value is None and spec.attribute:
        hint = "; a factory must return it"
    raise UsageError(f"`{spec}` gives {kind}, not a `debugkit.Target`{hint}")


def _is_trainer(value: Any) -> bool:
    """Whether it is a ``transformers.Trainer``, or anything that carries the same two attributes."""
    return not isinstance(value, type) and hasattr(value, "train_dataset") and hasattr(value, "args")


def _nearest_module(name: str, others: Iterable[str]) -> str:
    """A hint at the nearest module, compared without what all of a folder's modules share."""
    stems = {re.split(r"[./\\]", other.removesuffix(".py"))[-1]: other for other in others}
    stem = re.split(r"[./\\]", name.removesuffix(".py"))[-1]
    close = get_close_matches(stem, stems, n=1, cutoff=0.5)
    return f" (did you mean `{stems[close[0]]}`?)" if close else ""


def _file_of(module: ModuleType) -> Path | None:
    filename = getattr(module, "__file__", None)
    return Path(filename).resolve() if isinstance(filename, str) else None
