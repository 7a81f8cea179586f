"""Named things: objectives, families, rewards; and the user's own callables."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from diffalign.core.errors import DiffalignError, unknown

__all__ = ["Registry", "resolve"]

T = TypeVar("T")
Registered = TypeVar("Registered")


class Registry(Generic[T]):
    """Things of one kind under unique names.

    Args:
        kind: what the things are, in the singular, as error messages word it.

    Example:
        >>> rewards: Registry[Callable[..., float]] = Registry("reward")
        >>> @rewards.register("constant")
        ... def constant() -> float:
        ...     return 1.0
        >>> rewards.names(), "constant" in rewards, rewards.get("constant")()
        (['constant'], True, 1.0)
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """A decorator that files the decorated thing under ``name`` and returns it unchanged.

        Raises:
            ValueError: the name is empty, holds a colon, or is taken.
        """
        if not name or ":" in name:
            raise ValueError(f"expected a {self.kind} name that is not empty and holds no colon, got {name!r}")

        def file_it(item: Registered) -> Registered:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is already registered, as {self._items[name]!r}")
            self._items[name] = item  # type: ignore[assignment]  # the decorated keeps its precise type
            return item

        return file_it

    def get(self, name: str) -> T:
        """The thing registered under ``name``.

        Raises:
            DiffalignError: there is none; lists the nearest names.
        """
        if name not in self._items:
            raise unknown(self.kind, name, self._items)
        return self._items[name]

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        return sorted(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._items)


def resolve(spec: str) -> Callable[..., Any]:
    """The user's own callable, named as ``"module:function"`` (dots after the colon reach into classes).

    Raises:
        DiffalignError: the form is wrong, the module cannot be imported, or it holds no such callable.

    Example:
        >>> resolve("math:hypot")(3, 4)
        5.0
    """
    module_name, colon, attribute = spec.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise DiffalignError(f"expected 'module:function', such as 'my_rewards:brightness', got {spec!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise DiffalignError(f"{spec!r}: module {module_name!r} needs {error.name!r}, not installed") from error
        raise DiffalignError(
            f"{spec!r}: there is no module {module_name!r}. Install it or put its folder on PYTHONPATH."
        ) from error
    except Exception as error:  # whatever the user's module raises while it loads is theirs to read
        raise DiffalignError(f"{spec!r}: importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise unknown(f"name in {module_name!r}", part, public)
        found = getattr(found, part)
    if not callable(found):
        raise DiffalignError(f"{spec!r}: expected something to call, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]  # callable() above is the check
