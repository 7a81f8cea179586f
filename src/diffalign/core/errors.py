"""The one error shown to people, and the wording of unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["DiffalignError", "nearest", "unknown"]

_LISTED = 30


class DiffalignError(Exception):
    """A mistake a person can mend: the command line prints its message without a traceback.

    The message says what was expected, what came, and how to mend it.
    """


def nearest(name: str, names: Iterable[str], n: int = 3) -> list[str]:
    """The at most ``n`` of ``names`` most like ``name``, best first; upper and lower case count as equal.

    Example:
        >>> nearest("beta_dop", ["beta", "beta_dpo", "lr"])
        ['beta_dpo', 'beta']
    """
    originals: dict[str, str] = {}
    for known in names:
        originals.setdefault(known.casefold(), known)
    matches = difflib.get_close_matches(name.casefold(), originals, n=n, cutoff=0.6)
    return [originals[match] for match in matches]


def unknown(kind: str, name: str, names: Iterable[str], *, prefix: str = "") -> DiffalignError:
    """The error for a name that is not among ``names``; the caller raises it.

    Args:
        kind: what the name should have named, in the singular.
        name: what came.
        names: what there is.
        prefix: shown before every name, as the parents of a dotted key.

    Example:
        >>> str(unknown("objective", "dop", ["dpo", "kto"]))
        "unknown objective 'dop'; nearest: dpo (known: dpo, kto)"
    """
    known = sorted(set(names))
    close = [prefix + match for match in nearest(name, known)]
    hint = f"; nearest: {', '.join(close)}" if close else ""
    listed = ", ".join(prefix + each for each in known[:_LISTED]) or "none"
    rest = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return DiffalignError(f"unknown {kind} {prefix + name!r}{hint} (known: {listed}{rest})")
