"""Strict values into typed dataclasses: unknown keys, wrong types and bad choices are errors that name the nearest valid one.

Generic in the class, so that `avff.config` holds nothing but the knobs.
"""

import dataclasses
import difflib
import math
import types
import typing
from typing import Any, Literal, TypeVar

import yaml

from avff.errors import ConfigError

T = TypeVar("T")


def from_dict(cls: type[T], values: dict[str, Any], where: str) -> T:
    """Fills a config dataclass from plain values, strictly.

    Args:
        where: file or source named in every message.
    """
    problems: list[str] = []
    try:
        result = _fill(cls, values, "", problems)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{where}: {p}" for p in [*problems, str(error)])) from error
    if problems:
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems))
    return result


def to_dict(config: Any) -> dict[str, Any]:
    """Returns plain values (dicts, lists, numbers, text) that `from_dict` turns back into the same config."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return value

    return plain(dataclasses.asdict(config))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {`section.key`: value} for every leaf, to compare two configs."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value, f"{prefix}{item.name}."))
        else:
            flat[f"{prefix}{item.name}"] = value
    return flat


def apply_override(values: dict[str, Any], override: str) -> None:
    """Sets one `section.key=value` in nested plain values; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write section.key=value, for example optim.learning_rate=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from error
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
    values[leaf] = "" if value is None and text == "" else value


def _fill(cls: type[T], values: Any, prefix: str, problems: list[str]) -> T:
    if not isinstance(values, dict):
        problems.append(
            f"{prefix.rstrip('.') or 'top level'}: expected a section of `key: value` lines, found {values!r}"
        )
        values = {}
    hints = typing.get_type_hints(cls)
    names = [item.name for item in dataclasses.fields(cls)]  # type: ignore[arg-type]
    before = len(problems)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"valid keys are {', '.join(names)}"
            problems.append(f"unknown key {prefix}{key}; {hint}")
        else:
            arguments[key] = _convert(hints[key], value, prefix + key, problems)
    missing = [
        item.name
        for item in dataclasses.fields(cls)  # type: ignore[arg-type]
        if item.name not in arguments
        and item.default is dataclasses.MISSING
        and item.default_factory is dataclasses.MISSING
    ]
    problems.extend(f"missing key {prefix}{name}" for name in missing)
    if len(problems) > before:
        return typing.cast(T, None)  # reported by from_dict
    return cls(**arguments)


def _convert(kind: Any, value: Any, key: str, problems: list[str]) -> Any:
    """Turns a YAML value into the annotated type, or records what is wrong with it."""
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _fill(typing.cast(type, kind), value, key + ".", problems)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        return _convert(next(c for c in choices if c is not type(None)), value, key, problems)
    if origin is Literal:
        if value in choices and isinstance(value, bool) == isinstance(choices[0], bool):
            return value
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        problems.append(f"{key}: {value!r} is not one of {', '.join(map(repr, choices))}{hint}")
    elif origin is tuple:
        if not isinstance(value, list | tuple):
            problems.append(f"{key}: expected a list, found {value!r}")
        elif choices[-1] is Ellipsis:
            return tuple(_convert(choices[0], item, f"{key}[{i}]", problems) for i, item in enumerate(value))
        elif len(value) != len(choices):
            problems.append(f"{key}: expected {len(choices)} values, found {len(value)}")
        else:
            return tuple(
                _convert(c, v, f"{key}[{i}]", problems) for i, (c, v) in enumerate(zip(choices, value, strict=True))
            )
    elif origin is dict:
        if isinstance(value, dict):
            return {str(k): _convert(choices[1], v, f"{key}.{k}", problems) for k, v in value.items()}
        problems.append(f"{key}: expected a section, found {value!r}")
    elif kind is bool:
        if isinstance(value, bool):
            return value
        problems.append(f"{key}: expected true or false, found {value!r}")
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        problems.append(f"{key}: expected a whole number, found {value!r}")
    elif kind is float:
        number = _as_float(value)
        if number is not None:
            return number
        problems.append(f"{key}: expected a number, found {value!r}")
    elif kind is str:
        if isinstance(value, str):
            return value
        problems.append(f"{key}: expected text, found {value!r}; put it in quotes")
    else:
        raise TypeError(f"config field {key} has unsupported type {kind}")
    return None


def _as_float(value: Any) -> float | None:
    """PyYAML reads `1e-4` as text; a float field takes it all the same."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
