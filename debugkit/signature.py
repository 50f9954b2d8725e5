"""A function's signature as its declaration: which evidence it needs, which options it takes."""

from __future__ import annotations

import inspect
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from debugkit.errors import UsageError, one_line


@dataclass(frozen=True)
class Need:
    """One positional parameter: the kind of evidence, and whether ``| None`` makes it optional."""

    kind: type[object]
    optional: bool


@dataclass(frozen=True)
class Signature:
    """The needs (positional parameters) and the options (keyword-only parameters) of a function."""

    needs: tuple[Need, ...]
    options: type[BaseModel]

    def values(self, options: BaseModel) -> dict[str, Any]:
        """The keyword arguments that validated options stand for."""
        return {name: getattr(options, name) for name in self.options.model_fields}

    def defaults(self, place: str) -> BaseModel:
        """The options with nothing set.

        Raises:
            UsageError: a default breaks its own constraint; the message starts with ``place``.
        """
        try:
            return self.options()
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(
                f"{place}: the default of option `{first['loc'][0]}` is not valid: {first['msg']}"
            ) from error


def read_signature(function: Callable[..., Any]) -> Signature:
    """Read needs and options from annotations.

    Raises:
        UsageError: a parameter is not annotated with evidence, or an option has no default; the message
            starts with ``file:line``.
    """
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:
        raise UsageError(
            f"{place_of(function)}: an annotation can't be resolved (evidence must be imported at run time): {error}"
        ) from error
    needs: list[Need] = []
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty:
                raise UsageError(f"{place_of(function)}: option `{name}` has no default")
            if name.startswith("_"):
                raise UsageError(f"{place_of(function)}: option `{name}` starts with an underscore")
            if name not in hints:
                raise UsageError(f"{place_of(function)}: option `{name}` has no type")
            fields[name] = (hints[name], parameter.default)
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            needs.append(_need(function, parameter, hints.get(name)))
        else:
            raise UsageError(f"{place_of(function)}: `*args` and `**kwargs` declare nothing; name each need")
    return Signature(tuple(needs), _options(function, fields))


def place_of(function: Callable[..., Any]) -> str:
    """``path/to/file.py:12``, where a function is defined, relative to the working directory if below it."""
    code = inspect.unwrap(function).__code__
    path = Path(code.co_filename)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{path}:{code.co_firstlineno}"


def describe_option(field: FieldInfo) -> tuple[str, str]:
    """``(type and constraints, description)`` of an option, for people."""
    kind = getattr(field.annotation, "__name__", str(field.annotation))
    bounds = []
    for constraint in field.metadata:
        for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if (bound := getattr(constraint, attribute, None)) is not None:
                bounds.append(f"{sign} {bound}")
    return f"{kind} {', '.join(bounds)}".rstrip(), field.description or ""


def _options(function: Callable[..., Any], fields: dict[str, Any]) -> type[BaseModel]:
    config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        populate_by_name=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        alias_generator=lambda field: field.replace("_", "-"),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: type[BaseModel] = create_model("Options", __config__=config, **fields)
    except Exception as error:
        raise UsageError(f"{place_of(function)}: the options can't be read: {one_line(error)}") from error
    return model


def _need(function: Callable[..., Any], parameter: inspect.Parameter, annotation: Any) -> Need:
    from debugkit.evidence import is_evidence

    optional = False
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [part for part in get_args(annotation) if part is not type(None)]
        if len(rest) == 1:
            annotation, optional = rest[0], True
    if not is_evidence(annotation):
        shown = getattr(annotation, "__name__", annotation)
        is_option = parameter.default is not parameter.empty
        hint = "; an option stands after `*`" if is_option else " (a class with a `collect` method)"
        raise UsageError(
            f"{place_of(function)}: parameter `{parameter.name}` asks for `{shown}`, which is no evidence{hint}"
        )
    return Need(annotation, optional)
