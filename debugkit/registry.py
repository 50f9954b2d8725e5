"""Which checks exist: found through entry points and local folders."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from debugkit import absent
from debugkit.check import Check, is_check
from debugkit.errors import UsageError, nearest, one_line
from debugkit.evidence import Kind, evidence_id, evidence_place
from debugkit.tracing.source import shorten

GROUP = "debugkit.checks"


class Registry(Mapping[str, Check]):
    """Checks by id, sorted by family and id."""

    def __init__(self, checks: Iterable[Check]) -> None:
        self._checks: dict[str, Check] = {}
        for check in sorted(checks, key=lambda check: (check.family, check.id)):
            check.validate()
            other = self._checks.get(check.id)
            if other is not None and other.function is not check.function:
                raise UsageError(f"{check.place}: check `{check.id}` exists already at {other.place}")
            self._checks[check.id] = check
        self.evidence = _by_id(kind for check in self.values() for kind in check.reads)
        """Every kind of evidence that some check reads, by id."""

    def __getitem__(self, check_id: str) -> Check:
        if check_id not in self._checks:
            raise UsageError(f"no check is called `{check_id}`{nearest(check_id, self._checks)}")
        return self._checks[check_id]

    def __contains__(self, check_id: object) -> bool:
        return check_id in self._checks

    def __iter__(self) -> Iterator[str]:
        return iter(self._checks)

    def __len__(self) -> int:
        return len(self._checks)

    @property
    def families(self) -> list[str]:
        """The families that have checks."""
        return list(dict.fromkeys(check.family for check in self.values()))

    def match(self, patterns: Iterable[str]) -> set[str]:
        """The ids named by ids, families, globs and ``all``.

        Raises:
            UsageError: a pattern names nothing.
        """
        chosen: set[str] = set()
        for pattern in patterns:
            hits = {
                check.id
                for check in self.values()
                if pattern in ("all", check.family) or fnmatchcase(check.id, pattern)
            }
            if not hits:
                hint = nearest(pattern, [*self._checks, *self.families, "all"])
                raise UsageError(f"no check or family is called `{pattern}`{hint}")
            chosen |= hits
        return chosen


def load(folders: Iterable[Path] = (), *, of_checkpoints: bool = False) -> Registry:
    """All checks of the installed providers and of local folders.

    Args:
        folders: the local ones.
        of_checkpoints: of a provider that names its ``OF_CHECKPOINTS``, import only those.

    Raises:
        UsageError: a provider can't be imported, or a check's declaration is wrong.
    """
    checks: list[Check] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        package = _import(entry.module)
        only = getattr(package, "OF_CHECKPOINTS", None) if of_checkpoints else None
        checks += _checks_of(package, entry.name, only)
    for folder in dict.fromkeys(path.resolve() for path in folders):
        checks += _checks_of(_import_folder(folder), folder.name)
    return Registry(checks)


def load_of_checkpoints(folders: Iterable[Path] = ()) -> Registry:
    """The checks that a checkpoint needs, without importing torch.

    Of a provider that names them in ``OF_CHECKPOINTS`` only those are imported; others as a whole. To be called
    in a process that will see no live model.

    Raises:
        UsageError: as for :func:`load`.
    """
    absent.models = "torch" not in sys.modules
    return load(folders, of_checkpoints=True)


def _by_id(kinds: Iterable[Kind]) -> dict[str, Kind]:
    named: dict[str, Kind] = {}
    for kind in sorted(set(kinds), key=lambda kind: (evidence_id(kind), kind.__module__)):
        other = named.setdefault(evidence_id(kind), kind)
        if other is not kind:
            raise UsageError(
                f"{evidence_place(kind)}: evidence `{evidence_id(kind)}` exists already at {evidence_place(other)}"
            )
    return named


def _checks_of(package: ModuleType, provider: str, only: Iterable[str] | None = None) -> Iterator[Check]:
    named = None if only is None else [_import(f"{package.__name__}.{name}") for name in only]
    for module in _walk(package) if named is None else named:
        family = _family(module, package)
        for value in list(vars(module).values()):
            if is_check(value) and value.__module__ == module.__name__:
                yield Check(value, family, provider)


def _walk(module: ModuleType) -> Iterator[ModuleType]:
    """The module and all below it, sorted; names with a leading underscore and what is below them left out."""
    yield module
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    names = {info.name for info in pkgutil.iter_modules(map(str, folders))}
    names |= {below.parent.name for folder in folders for below in folder.glob("*/*.py")}
    for name in sorted(name for name in names if not name.startswith(("_", "."))):
        yield from _walk(_import(f"{module.__name__}.{name}"))


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UsageError(f"{_place(error)}`{name}` can't be imported: {one_line(error)}") from error


def _place(error: Exception) -> str:
    """``file:line: `` of the innermost line that raised, if it has a file."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shorten(error.filename)}:{error.lineno}: "
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith("<") and frame.filename not in (__file__, importlib.__file__):
            return f"{shorten(frame.filename)}:{frame.lineno}: "
    return ""


def _family(module: ModuleType, package: ModuleType) -> str:
    """The name of the folder that a module lies in."""
    inner = module.__name__.removeprefix(package.__name__).strip(".").split(".")
    return inner[-2] if len(inner) > 1 else package.__name__.split(".")[-1]


def _import_folder(folder: Path) -> ModuleType:
    """Import a folder of check files as a package, wherever it lies and with or without ``__init__.py``."""
    if not folder.is_dir():
        raise UsageError(f"`load` names `{folder}`, which is no folder")
    if "." in folder.name:
        raise UsageError(f"`load` names `{folder}`; a folder of checks can't have a dot in its name")
    found = importlib.util.find_spec(folder.name)
    if found is not None:
        if {Path(place).resolve() for place in found.submodule_search_locations or ()} != {folder}:
            raise UsageError(f"the folder `{folder}` has the name of another module; rename it")
        return _import(folder.name)
    init = folder / "__init__.py"
    spec = ModuleSpec(folder.name, None, is_package=True)
    if init.exists():
        spec = importlib.util.spec_from_file_location(folder.name, init) or spec
    spec.submodule_search_locations = [str(folder)]
    module = importlib.util.module_from_spec(spec)
    sys.modules[folder.name] = module
    try:
        if init.exists() and spec.loader is not None:
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[folder.name]
        raise UsageError(f"{_place(error)}`{folder}` can't be imported: {one_line(error)}") from error
    return module
