"""YAML as people expect it: 1e-4 is a number, `no` and 16:9 are text, a key given twice is an error."""

from __future__ import annotations

import re
from typing import Any

import yaml

from diffalign.core.errors import DiffalignError

__all__ = ["dump_yaml", "parse_yaml"]

# What a plain word means, by YAML 1.2's core schema; PyYAML's own tables are those of YAML 1.1.
_PLAIN = (
    ("tag:yaml.org,2002:null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own attribute)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                mark = node.value[position][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", mark)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either this loader or a YAML 1.1 reader would take for something else."""


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # decimal: PyYAML's own reads 010 as 8


for _tag, _pattern, _first in _PLAIN:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^{_pattern}$"), _first)
    _Dumper.add_implicit_resolver(_tag, re.compile(rf"^{_pattern}$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str, *, where: str) -> Any:
    """The value of one YAML document, made of dicts, lists, text, numbers, booleans and None.

    Args:
        text: the document.
        where: what error messages call it, such as the file's name.

    Raises:
        DiffalignError: it is not YAML, holds a key twice, or asks for other types (with the line).

    Example:
        >>> parse_yaml("{lr: 1e-4, ratio: 16:9, plain: no}", where="example")
        {'lr': 0.0001, 'ratio': '16:9', 'plain': 'no'}
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise DiffalignError(f"{where}{line} is not valid YAML: {problem}") from error
    except (ValueError, RecursionError) as error:  # "!!float x", a number of thousands of digits, endless nesting
        raise DiffalignError(f"{where} is not valid YAML: {error}") from error


def dump_yaml(value: Any) -> str:
    """``value`` as YAML text, in its own order, that ``parse_yaml`` reads back unchanged."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text
