"""Typed settings: one frozen class per stage, wrong keys and values told plainly before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from diffalign.core.errors import DiffalignError, unknown
from diffalign.core.files import read_json, read_text
from diffalign.core.yamls import dump_yaml, parse_yaml

__all__ = ["Config", "Setting", "config_to_yaml", "describe", "dump_config", "load_config", "override", "setting"]

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """The base of every stage's settings: frozen, named arguments only, exact types, finite floats, no unknown keys.

    Only an int may stand for a float. A mistake is a ``DiffalignError`` with the dotted name of the setting.

    Example:
        >>> class Train(Config):
        ...     lr: float = setting(1e-4, "learning rate", source="this example")
        ...     steps: int = setting(100, "number of optimiser steps", unit="steps", gt=0)
        >>> override(Train(), ["steps=50"])
        Train(lr=0.0001, steps=50)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _explain(type(self), error) from None

    # pydantic: nested settings are validated as part of the whole, so that an error knows its full dotted name
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def replace(self, **changes: Any) -> Self:
        """A copy with some settings changed, validated like a new one."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)


def setting(default: Any, doc: str, *, unit: str = "", source: str = "", **constraints: Any) -> Any:
    """A field of a ``Config`` with its documentation.

    Args:
        default: its default; ``...`` when it must be given.
        doc: its meaning in one line.
        unit: steps, pairs, pixels, ...; empty when it has none.
        source: where the default comes from (a paper's table, a measurement); empty when it is a plain choice.
        **constraints: pydantic's, such as ``gt=0``, ``le=1``, ``min_length=1``, ``allow_inf_nan=True``.
    """
    return Field(default, description=doc, json_schema_extra={"unit": unit, "source": source}, **constraints)


def load_config(cls: type[C], path: str | Path) -> C:
    """Read a config file (.yaml, .yml or .json); what it leaves out keeps its default.

    Raises:
        DiffalignError: the file is unreadable, or a key or value is wrong.
    """
    path = Path(path)
    if path.suffix == ".json":
        values = read_json(path)
    elif path.suffix in {".yaml", ".yml"}:
        values = parse_yaml(read_text(path), where=str(path))
    else:
        raise DiffalignError(f"expected a config file ending in .yaml, .yml or .json, got {path}")
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise DiffalignError(f"{path}: expected settings as 'key: value' lines, got {type(values).__name__}")
    return _validate(cls, values, where=f"{path}: ")


def dump_config(config: Config) -> dict[str, Any]:
    """Every setting as plain dicts, lists, text and numbers, in the order of the class."""
    return config.model_dump(mode="json")


def config_to_yaml(config: Config) -> str:
    """Every setting as YAML that ``load_config`` reads back to an equal config."""
    return dump_yaml(dump_config(config))


def override(config: C, assignments: Sequence[str]) -> C:
    """Change settings by text, as ``--set stages.0.num_steps=50`` does; later assignments win.

    Args:
        config: what to start from; it stays as it is.
        assignments: ``dotted.key=value`` each; the value is YAML, so ``null``, ``1e-4`` and ``[1, 2]`` work. A number
            after a dot picks from a list.

    Raises:
        DiffalignError: an assignment without ``=``, an unknown key (with the nearest), or a wrong value.
    """
    values = dump_config(config)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise DiffalignError(f"expected key=value, such as stages.0.num_steps=50, got {assignment!r}")
        _assign(type(config), values, key.strip(), parse_yaml(text, where=f"the value of {assignment!r}"))
    return _validate(type(config), values)


def _assign(cls: type[Config], values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = keys = dotted.split(".")
    _check_key(cls, keys)
    here: Any = values
    for position, key in enumerate(parents):
        if isinstance(here, list):
            here = here[_list_index(here, key, dotted)]
        else:
            if here.get(key) is None:
                here[key] = {}
            here = here[key]
        if not isinstance(here, (dict, list)):
            raise DiffalignError(f"{dotted}: {'.'.join(keys[: position + 1])} is a single value without parts")
    here[_list_index(here, last, dotted) if isinstance(here, list) else last] = value


def _list_index(items: list[Any], key: str, dotted: str) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        raise DiffalignError(f"{dotted}: expected a position from 0 to {len(items) - 1} of a list, got {key!r}")
    return int(key)


def _check_key(cls: type[Config], keys: Sequence[str]) -> None:
    """Raise for a name that no class on the way has; what lies in a dict or list is left to validation."""
    owners: list[type[Config]] = [cls]
    for position, key in enumerate(keys):
        annotations = [owner.model_fields[key].annotation for owner in owners if key in owner.model_fields]
        if not annotations:
            raise _unknown_key(cls, ".".join(keys[: position + 1]), owners)
        owners = [nested for annotation in annotations for nested in _nested(annotation)]
        if not owners or any(_holds(annotation, (dict, list, tuple, Mapping, Sequence)) for annotation in annotations):
            return


def _validate(cls: type[C], values: dict[str, Any], where: str = "") -> C:
    """Through JSON: exact types, yet a list may fill a tuple and text a path, which have no YAML of their own."""
    try:
        text = json.dumps(values)
    except (TypeError, ValueError) as error:
        raise DiffalignError(
            f"{where}{error}; expected text, numbers, true, false, null, lists and mappings"
        ) from error
    try:
        return cls.model_validate_json(text)
    except ValidationError as error:
        raise _explain(cls, error, where) from None


def _explain(cls: type[Config], error: ValidationError, where: str = "") -> DiffalignError:
    return DiffalignError("\n".join(f"{where}{_sentence(cls, details)}" for details in error.errors()))


def _sentence(cls: type[Config], details: ErrorDetails) -> str:
    dotted, owners = _locate(cls, details["loc"])
    if details["type"] == "extra_forbidden":
        return str(_unknown_key(cls, dotted, owners))
    if details["type"] == "missing":
        return f"{dotted}: must be given, it has no default"
    message = details["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if details["type"] == "value_error":  # a validator of ours, which says itself what came
        return f"{dotted}: {message}" if dotted else message
    got = repr(details["input"])
    return f"{dotted}: {message}, got {got if len(got) <= 80 else got[:77] + '...'} ({type(details['input']).__name__})"


def _locate(cls: type[Config], location: Sequence[int | str]) -> tuple[str, list[type[Config]]]:
    """The dotted key a person writes, without pydantic's tags of unions, and the classes its last part belongs to."""
    owners: list[type[Config]] = [cls]
    path: list[str] = []
    in_mapping = False
    for position, key in enumerate(location):
        annotations = [owner.model_fields[key].annotation for owner in owners if key in owner.model_fields]
        last = position == len(location) - 1
        if isinstance(key, int) or annotations or in_mapping or (last and owners):
            path.append(str(key))
        if annotations and not last:
            owners = [nested for annotation in annotations for nested in _nested(annotation)]
            in_mapping = any(_holds(annotation, (dict, Mapping)) for annotation in annotations)
        else:
            in_mapping = False
    return ".".join(path), owners


def _unknown_key(cls: type[Config], dotted: str, owners: Sequence[type[Config]]) -> DiffalignError:
    parent, dot, name = dotted.rpartition(".")
    error = unknown("setting", name, [known for owner in owners for known in owner.model_fields], prefix=parent + dot)
    elsewhere = [row.key for row in describe(cls) if row.key.endswith(f".{name}")]
    return DiffalignError(f"{error}; there is {', '.join(elsewhere)}") if elsewhere else error


def _nested(annotation: Any) -> list[type[Config]]:
    """The configs an annotation may hold, such as those of ``A | B | None`` or ``list[A]``."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [nested for argument in get_args(annotation) for nested in _nested(argument)]


def _holds(annotation: Any, origins: tuple[Any, ...]) -> bool:
    return get_origin(annotation) in origins or any(_holds(argument, origins) for argument in get_args(annotation))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One documented setting, as help and reference pages show it."""

    key: str
    type: str
    default: str
    doc: str
    unit: str
    source: str


def describe(cls: type[Config], prefix: str = "") -> list[Setting]:
    """Every setting of a config class and of those nested in it, in order, under its dotted key.

    Settings inside a list or dict are listed under ``key.*``.
    """
    return list(_describe(cls, prefix))


def _describe(cls: type[Config], prefix: str) -> Iterator[Setting]:
    for name, field in cls.model_fields.items():
        key = f"{prefix}{name}"
        nested = _nested(field.annotation)
        if nested != [field.annotation]:
            yield _row(key, field)
        many = _holds(field.annotation, (dict, list, tuple, Mapping, Sequence))
        for part in nested:
            yield from _describe(part, f"{key}.*." if many else f"{key}.")


def _row(key: str, field: FieldInfo) -> Setting:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    annotation = field.annotation
    default = field.get_default(call_default_factory=True, validated_data={}) if not field.is_required() else None
    return Setting(
        key=key,
        type=annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", ""),
        default="required" if field.is_required() else str(default),
        doc=field.description or "",
        unit=str(extra.get("unit", "")),
        source=str(extra.get("source", "")),
    )
