"""Configuration: ``[tool.debugkit]`` in ``pyproject.toml``, strict and with reasons."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from debugkit.errors import UsageError, nearest, one_line
from debugkit.evidence import Cost, collector
from debugkit.finding import Finding
from debugkit.registry import Registry
from debugkit.report import FailOn, Report, Result

Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=3)]


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=_kebab, populate_by_name=True)


class Suppression(_Strict):
    """Findings of one check, at places that match a glob, that do not count, and why.

    ``where`` is matched against the finding's ``where`` and ``location``; ``bert.pooler.*`` also covers
    ``bert.pooler`` itself. Without it every finding of the check is covered.
    """

    check: str
    where: str = "*"
    reason: Reason

    def covers(self, check: str, finding: Finding) -> bool:
        """Whether the suppression applies to a finding of a check."""
        if check != self.check or finding.level == "note":
            return False
        places = [place for place in (finding.where, finding.location) if place] or [""]
        return any(
            place == self.where
            or fnmatchcase(place, _glob(self.where))
            or fnmatchcase(f"{place}.", _glob(self.where))
            for place in places
        )


class Config(_Strict):
    """What a run does, as ``[tool.debugkit]`` says it."""

    select: list[str] = ["all"]
    ignore: dict[str, Reason] = {}
    fail_on: FailOn = "fail"
    load: list[Path] = []
    checks: dict[str, dict[str, Any]] = {}
    evidence: dict[str, dict[str, Any]] = {}
    suppress: list[Suppression] = []
    seed: Annotated[int, Field(ge=0)] = 0
    max_cost: Cost = "training"
    budget: Annotated[float, Field(gt=0)] | None = None

    @classmethod
    def read(cls, source: str | Path | Mapping[str, Any] | Config | None = None) -> Config:
        """From a file, a mapping, or the nearest ``pyproject.toml`` with ``[tool.debugkit]`` upwards.

        Raises:
            UsageError: a file can't be read, or a key or value is not valid.
        """
        if isinstance(source, Config):
            return source
        if isinstance(source, Mapping):
            return cls._validate(source, "config")
        path = Path(source) if source is not None else _nearest_pyproject()
        if path is None:
            return cls()
        table = _table(path)
        if table is None:
            raise UsageError(f"`{path}` has no `[tool.debugkit]` table")
        config = cls._validate(table, str(path))
        return config.model_copy(update={"load": [path.parent.resolve() / folder for folder in config.load]})

    @classmethod
    def _validate(cls, table: Mapping[str, Any], source: str) -> Config:
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            raise UsageError(f"{source}: {sentence(error, cls, prefix='[tool.debugkit] ')}") from error

    def options(
        self, registry: Registry, settings: Iterable[str] = ()
    ) -> tuple[dict[str, BaseModel], dict[str, BaseModel]]:
        """Validated options by check id, and by evidence id.

        Args:
            registry: the checks and evidence that can be set.
            settings: ``ID.option=value`` strings, which win over the tables.

        Raises:
            UsageError: an id, an option or a value is not valid; the message names the nearest valid one.
        """
        evidence = registry.evidence
        for check_id in self.checks:
            _ = registry[check_id]
        for name in self.evidence:
            if name not in evidence:
                raise UsageError(f"no evidence is called `{name}`{nearest(name, evidence)}")
        of_checks = {check.id: check.signature.options for check in registry.values()}
        of_evidence = {name: collector(kind).options for name, kind in evidence.items()}
        wanted_checks, wanted_evidence = _kebab_tables(self.checks), _kebab_tables(self.evidence)
        for setting in settings:
            name, option, value = _parse_setting(setting)
            if name not in registry and name not in evidence:
                raise UsageError(f"no check is called `{name}`{nearest(name, [*registry, *evidence])}")
            is_check = name in registry and (name not in evidence or option in _keys(of_checks[name]))
            (wanted_checks if is_check else wanted_evidence).setdefault(name, {})[option] = value
        return (
            {
                name: _build(name, of_checks[name], wanted_checks.get(name, {}), registry)
                for name in of_checks
            },
            {
                name: _build(name, of_evidence[name], wanted_evidence.get(name, {}), registry)
                for name in of_evidence
            },
        )

    @property
    def names(self) -> set[str]:
        """Every id, family and glob of checks that it names, and every id of evidence."""
        suppressed = (suppression.check for suppression in self.suppress)
        return {*self.select, *self.ignore, *self.checks, *self.evidence, *suppressed}

    def suppressed(self, result: Result, used: set[int]) -> Result:
        """The result with its covered findings marked; indices of applied suppressions join ``used``."""
        findings = []
        for finding in result.findings:
            covering = [
                index
                for index, suppression in enumerate(self.suppress)
                if suppression.covers(result.check, finding)
            ]
            used.update(covering)
            if covering:
                finding = finding.model_copy(update={"suppressed": self.suppress[covering[0]].reason})
            findings.append(finding)
        return result.model_copy(update={"findings": tuple(findings)})


class Baseline:
    """The findings of an earlier report, which do not count again."""

    def __init__(self, report: Report) -> None:
        self._known = {
            self._key(result.check, finding)
            for result in report.results
            for finding in result.findings
            if finding.level != "note"
        }

    @classmethod
    def read(cls, path: str | Path) -> Baseline:
        """From a JSON report.

        Raises:
            UsageError: the file can't be read or is no report.
        """
        try:
            return cls(Report.from_json(Path(path).read_bytes()))
        except OSError as error:
            raise UsageError(f"the baseline `{path}` can't be read: {error.strerror}") from error
        except UsageError as error:
            raise UsageError(f"the baseline `{path}` can't be used: {error}") from error

    def suppressed(self, result: Result) -> Result:
        """The result with its known findings marked."""
        findings = tuple(
            finding.model_copy(update={"suppressed": "in the baseline"})
            if finding.level != "note"
            and finding.suppressed is None
            and self._key(result.check, finding) in self._known
            else finding
            for finding in result.findings
        )
        return result.model_copy(update={"findings": findings})

    @staticmethod
    def _key(check: str, finding: Finding) -> tuple[str, ...]:
        """Measured numbers and line numbers may drift; the check, the place and the words may not."""
        location = (finding.location or "").rpartition(":")[0]
        return (
            check,
            finding.level,
            finding.where or "",
            location,
            re.sub(r"\d[\d,.e+-]*", "#", finding.message),
        )


def sentence(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """The first mistake of a pydantic error as one sentence with the nearest valid name."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    place = ".".join(path)
    if first["type"] == "extra_forbidden":
        valid = _keys(_model_at(model, path))
        return f"{prefix}has no key `{place}`{nearest(path[-1], valid)}; valid keys: {', '.join(valid) or 'none'}"
    if first["type"] == "missing":
        return f"{prefix}`{'.'.join(path[:-1])}` needs a `{path[-1]}`"
    shown = repr(first["input"])
    message = first["msg"][:1].lower() + first["msg"][1:]
    hint = '; write `check = "reason"`' if path[0] == "ignore" else ""
    return f"{prefix}`{place}` = {shown if len(shown) < 80 else shown[:77] + '...'}: {message}{hint}"


def _model_at(model: type[BaseModel], path: Iterable[str]) -> type[BaseModel]:
    """The model that the last key of a path belongs to."""
    for part in path:
        for name, field in model.model_fields.items():
            if part in (name, field.alias):
                inner = [kind for kind in get_args(field.annotation) if isinstance(kind, type)]
                model = next((kind for kind in inner if issubclass(kind, BaseModel)), model)
                break
    return model


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _kebab_tables(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {_kebab(key): value for key, value in table.items()} for name, table in tables.items()}


def _build(name: str, model: type[BaseModel], values: Mapping[str, Any], registry: Registry) -> BaseModel:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden" and name in registry:
            key = str(first["loc"][-1])
            for other, kind in registry.evidence.items():
                if kind in registry[name].reads and key in _keys(collector(kind).options):
                    raise UsageError(
                        f"`{name}` has no option `{key}` (did you mean `{other}.{key}`?)"
                    ) from error
            valid = _keys(model)
            shown = ", ".join(f"`{option}`" for option in valid) or "none"
            raise UsageError(
                f"`{name}` has no option `{key}`{nearest(key, valid)}; its options: {shown}"
            ) from error
        raise UsageError(f"option {sentence(error, model, prefix=f'of `{name}` ')}") from error


def _parse_setting(setting: str) -> tuple[str, str, Any]:
    name, dot, rest = setting.partition(".")
    option, equals, value = rest.partition("=")
    if not (dot and equals and name and option):
        raise UsageError(f"`--set {setting}` must read `ID.option=value`")
    try:
        return name, _kebab(option), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, _kebab(option), value


def _glob(pattern: str) -> str:
    """Square brackets are part of names such as ``train[17]``; only ``*`` and ``?`` are wild."""
    return pattern.replace("[", "[[]")


def _nearest_pyproject() -> Path | None:
    here = Path.cwd()
    for folder in (here, *here.parents):
        path = folder / "pyproject.toml"
        if path.is_file() and _table(path) is not None:
            return path
    return None


def _table(path: Path) -> Mapping[str, Any] | None:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"`{path}` can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"`{path}` is no valid TOML: {one_line(error)}") from error
    tools = data.get("tool", {})
    table = tools.get("debugkit") if isinstance(tools, Mapping) else None
    if table is None and path.name != "pyproject.toml":
        table = data
    if table is not None and not isinstance(table, Mapping):
        raise UsageError(f"`{path}`: `tool.debugkit` must be a table")
    return table
