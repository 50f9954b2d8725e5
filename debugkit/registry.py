"""Which checks exist: found through entry points and local folders."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from debugkit.check import Check, is_check
from debugkit.errors import UsageError, nearest, one_line
from debugkit.evidence import Kind, closure, evidence_id

GROUP = "debugkit.checks"


class Registry(Mapping[str, Check]):
    """Checks by id, sorted by family and id."""

    def __init__(self, checks: Iterable[Check]) -> None:
        self._checks: dict[str, Check] = {}
        for check in sorted(checks, key=lambda check: (check.family, check.id)):
            check.validate()
            if (other := self._checks.get(check.id)) is not None:
                raise UsageError(f"{check.place}: check `{check.id}` exists already at {other.place}")
            self._checks[check.id] = check

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

    @property
    def evidence(self) -> dict[str, Kind]:
        """Every kind of evidence that some check reads, by id."""
        kinds: set[Kind] = set().union(*(check.reads for check in self.values()))
        kinds |= {kind for need in kinds for kind in closure(need)}
        return {evidence_id(kind): kind for kind in sorted(kinds, key=evidence_id)}

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


def load(folders: Iterable[Path] = ()) -> Registry:
    """All checks of the installed providers and of local folders.

    Raises:
        UsageError: a provider can't be imported, or a check's declaration is wrong.
    """
    checks: list[Check] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            package = importlib.import_module(entry.value)
        except Exception as error:
            raise UsageError(
                f"the check provider `{entry.name}` can't be imported: {one_line(error)}"
            ) from error
        checks += _walk(package, entry.name)
    for folder in dict.fromkeys(path.resolve() for path in folders):
        checks += _walk(_import_folder(folder), folder.name)
    return Registry(checks)


def _walk(package: ModuleType, provider: str) -> Iterator[Check]:
    seen: set[int] = set()
    modules = [package]
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if any(part.startswith("_") for part in info.name.split(".")[1:]):
            continue
        try:
            modules.append(importlib.import_module(info.name))
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"`{info.name}` can't be imported: {one_line(error)}") from error
    for module in modules:
        family = _family(module, package)
        for value in vars(module).values():
            if is_check(value) and value.__module__ == module.__name__ and id(value) not in seen:
                seen.add(id(value))
                yield Check(value, family, provider)


def _family(module: ModuleType, package: ModuleType) -> str:
    """The name of the folder that a module lies in."""
    inner = module.__name__.removeprefix(package.__name__).strip(".").split(".")
    return inner[-2] if len(inner) > 1 else package.__name__.split(".")[-1]


def _import_folder(folder: Path) -> ModuleType:
    """Import a folder of check files as a package, wherever it lies and with or without ``__init__.py``."""
    if not folder.is_dir():
        raise UsageError(f"`load` names `{folder}`, which is no folder")
    known = sys.modules.get(folder.name)
    if known is not None and [str(folder)] == [
        str(Path(path).resolve()) for path in getattr(known, "__path__", [])
    ]:
        return known
    if known is not None or importlib.util.find_spec(folder.name) is not None:
        origin = importlib.util.find_spec(folder.name)
        places = list(getattr(origin, "submodule_search_locations", None) or []) if origin else []
        if [str(Path(place).resolve()) for place in places] != [str(folder)]:
            raise UsageError(f"the folder `{folder}` has the name of another module; rename it")
    init = folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        folder.name, init if init.exists() else None, submodule_search_locations=[str(folder)]
    )
    if spec is None:
        spec = importlib.machinery.ModuleSpec(folder.name, None, is_package=True)
    if not init.exists():
        spec = importlib.machinery.ModuleSpec(folder.name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    module = importlib.util.module_from_spec(spec)
    sys.modules[folder.name] = module
    if spec.loader is not None:
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[folder.name]
            raise UsageError(f"`{init}` can't be imported: {one_line(error)}") from error
    return module
