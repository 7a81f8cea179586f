"""Where each setting of a recipe comes from, read off the comments of its own code."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from diffalign.core import Config
from diffalign.train import Plan

__all__ = ["DEFAULT", "SourcedSetting", "setting_sources"]

DEFAULT = "default"

# What an expression of a recipe's code says of settings: a comment for a value; by name for a config or a dict; by
# position for stages; None for what says nothing.
Said = Any


@dataclass(frozen=True)
class SourcedSetting:
    """A setting of a stage.

    Attributes:
        key: dotted, as ``--set stages.0.KEY=VALUE`` takes it.
        value: what it is.
        source: the comment in the recipe, such as "[code] constant, no warm-up"; "default" where the recipe leaves it
            at its default; empty where the recipe changes it without a comment.
    """

    key: str
    value: Any
    source: str


def setting_sources(build: Callable[..., Plan], data: str = "DATA") -> list[list[SourcedSetting]]:
    """Every setting of a recipe with the comment behind it.

    A recipe is code of few forms: configs made with one setting a line, ``replace``, names, and calls of other
    functions of recipes. A setting's comment is the one on the line where its value ends.

    Args:
        build: a recipe's function.
        data: it is called with.

    Returns:
        The settings of each stage, nested ones in their place.

    Raises:
        OSError: Python cannot find the recipe's code.

    Example:
        >>> from diffalign.recipes import realalign_sd15
        >>> [one for one in setting_sources(realalign_sd15)[1] if one.key == "settings.beta"]
        [SourcedSetting(key='settings.beta', value=2000.0, source='[code] early runs 5000')]
    """
    said = _of_function(build, {})["stages"]
    return [list(_settings(stage, comments)) for stage, comments in zip(build(data).stages, said, strict=True)]


def _settings(config: Config, said: Said, prefix: str = "") -> Iterator[SourcedSetting]:
    said = said if isinstance(said, dict) else {}
    for name, field in type(config).model_fields.items():
        value, below, key = getattr(config, name), said.get(name), prefix + name
        if isinstance(value, Config):
            yield from _settings(value, below, f"{key}.")
        elif value and isinstance(value, dict):
            comments = below if isinstance(below, dict) else {}
            yield from (SourcedSetting(f"{key}.{one}", held, comments.get(one) or "") for one, held in value.items())
        else:
            is_default = not field.is_required() and value == field.get_default(call_default_factory=True)
            yield SourcedSetting(key, value, below or (DEFAULT if is_default else ""))


def _of_function(function: Callable[..., Any], arguments: dict[str, Said]) -> Said:
    """What a function's result says, given what its arguments say."""
    code = textwrap.dedent(inspect.getsource(function))
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    (definition,) = ast.parse(code).body
    assert isinstance(definition, ast.FunctionDef)
    reader = _Reader(inspect.unwrap(function).__globals__, comments, dict(arguments))
    for statement in definition.body:
        if isinstance(statement, ast.Assign):
            reader.assign(statement.targets[0], reader.read(statement.value))
        elif isinstance(statement, ast.Return) and statement.value is not None:
            return reader.read(statement.value)
    raise ValueError(f"expected {function.__name__} to return at its end")


class _Reader:
    """Reads the expressions of one function.

    Args:
        known: the names of its module.
        comments: by line.
        names: what its own names say; grows as they are assigned.
    """

    def __init__(self, known: dict[str, Any], comments: dict[int, str], names: dict[str, Said]) -> None:
        self.known, self.comments, self.names = known, comments, names

    def assign(self, target: ast.expr, said: Said) -> None:
        if isinstance(target, ast.Tuple):
            for part, below in zip(target.elts, said, strict=True):
                self.assign(part, below)
        elif isinstance(target, ast.Name):
            self.names[target.id] = said

    def read(self, node: ast.expr) -> Said:
        if isinstance(node, ast.Name) and self.names.get(node.id):
            return self.names[node.id]
        if isinstance(node, ast.Tuple) and any(isinstance(part, (ast.Call, ast.Name)) for part in node.elts):
            return [self.read(part) for part in node.elts]
        if isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            return dict(zip(keys, map(self.read, node.values), strict=True))
        if isinstance(node, ast.Attribute) and isinstance(said := self.read(node.value), dict):
            return said.get(node.attr)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            return self.read(node.value)[node.slice.value]
        if isinstance(node, ast.Call):
            return self._call(node)
        return self.comments.get(node.end_lineno or 0)

    def _call(self, node: ast.Call) -> Said:
        given = {one.arg: self.read(one.value) for one in node.keywords if one.arg is not None}
        if isinstance(node.func, ast.Attribute) and node.func.attr == "replace":
            return self.read(node.func.value) | given
        called = self.known.get(node.func.id) if isinstance(node.func, ast.Name) else None
        if isinstance(called, type) and issubclass(called, Config):
            return given
        if inspect.isfunction(called):
            placed = zip(inspect.signature(called).parameters, map(self.read, node.args), strict=False)
            return _of_function(called, dict(placed) | given)
        return self.comments.get(node.end_lineno or 0)
