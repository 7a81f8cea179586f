"""Options of guidance: from --guide, --positive, --negative, --scale and --guidance to settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Literal, cast

from diffalign.core import DiffalignError

if TYPE_CHECKING:
    from diffalign.guidance import GuideSpec
    from diffalign.sample import GuideConfig

__all__ = ["GuideOptions", "parse_strengths"]

_MOST = 50  # strengths of a range


def parse_strengths(text: str, option: str) -> tuple[float, ...]:
    """One strength, or those of a range A:B:STEP, both ends included.

    Args:
        text: such as 4, 0:10:2 or 0:1:0.25.
        option: what it was given for, as errors name it.

    Raises:
        DiffalignError: not of this form, below 0, a step that does not lead from A to B, or more than 50 strengths.

    Example:
        >>> parse_strengths("0:0.3:0.1", "--scale")
        (0.0, 0.1, 0.2, 0.3)
    """
    numbers = [_number(part, text, option) for part in text.split(":")]
    if len(numbers) == 1:
        return (float(numbers[0]),)
    if len(numbers) != 3:
        raise _wrong(text, option, "it has another number of colons")
    first, last, step = numbers
    if not (step > 0 and last > first):
        raise _wrong(text, option, "B must be above A, and STEP above 0")
    steps = (last - first) / step
    if steps > _MOST - 1:
        count = int(steps) + 1 if steps < 10**9 else "very many"
        raise _wrong(text, option, f"these are {count} strengths, and {_MOST} are the most: take larger steps")
    if steps != int(steps):
        below, above = first + int(steps) * step, first + (int(steps) + 1) * step
        raise _wrong(text, option, f"steps of {step} lead to {below} and {above}, and never to {last}")
    return tuple(float(first + step * number) for number in range(int(steps) + 1))


def _number(part: str, text: str, option: str) -> Decimal:
    try:
        number = Decimal(part.strip())
    except InvalidOperation:
        raise _wrong(text, option, f"{part!r} is no number") from None
    if not number.is_finite() or not math.isfinite(float(number)):
        raise _wrong(text, option, f"{part!r} is not finite")
    if number < 0:
        raise _wrong(text, option, "strengths are at least 0")
    return number


def _wrong(text: str, option: str, why: str) -> DiffalignError:
    return DiffalignError(f"expected {option} as a number or a range A:B:STEP, such as 0:10:2, got {text!r}: {why}")


@dataclass(frozen=True, kw_only=True)
class GuideOptions:
    """What the command line says of guidance; None where it says nothing.

    Attributes:
        name: of the guide.
        positive: LoRA to go towards.
        negative: LoRA to go away from.
        scale: strengths of the guide, one or those of a range.
        guidance: scales of text guidance, one or those of a range.
    """

    name: str | None = None
    positive: str | None = None
    negative: str | None = None
    scale: tuple[float, ...] = ()
    guidance: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.scale) > 1 and len(self.guidance) > 1:
            raise DiffalignError("expected one range at most, got one for --scale and one for --guidance")

    def merged(self, before: GuideConfig | None) -> GuideConfig | None:
        """The guide's settings; those of before stay where nothing is said and the guide is the same.

        Of a range, the first strength stands in them.

        Raises:
            DiffalignError: an unknown guide, an option that it has not, or options without a guide.
        """
        from diffalign.guidance import GUIDES
        from diffalign.sample import GuideConfig

        if self.name is not None and (before is None or before.name != self.name):
            before = GuideConfig(name=self.name)
        given = {"--positive": self.positive, "--negative": self.negative, "--scale": (*self.scale[:1], None)[0]}
        said = {option: value for option, value in given.items() if value is not None}
        if before is None:
            if said:
                raise DiffalignError(f"{', '.join(said)}: expected --guide to say of which guide, such as --guide cpgd")
            return None
        spec = GUIDES.get(before.name)
        fields = {"--positive": spec.positive, "--negative": spec.negative, "--scale": spec.strength}
        for option in said:
            if not fields[option]:
                raise DiffalignError(f"guide {spec.name!r} takes no {option}{_instead(option, spec)}")
        values: Mapping[str, Any] = {fields[option]: value for option, value in said.items()}
        return before.replace(settings={**before.settings, **values}) if values else before

    def axis(self, guide: GuideConfig | None) -> Literal["scale", "phi", "guidance"]:
        """What the range is over."""
        from diffalign.guidance import GUIDES

        if len(self.guidance) > 1 or guide is None:
            return "guidance"
        return cast(Literal["scale", "phi"], GUIDES.get(guide.name).strength)

    @property
    def range(self) -> tuple[float, ...]:
        """Its strengths; empty without one."""
        return next((each for each in (self.scale, self.guidance) if len(each) > 1), ())


def _instead(option: str, spec: GuideSpec) -> str:
    if option == "--scale":
        return ": text guidance is its strength, so give --guidance"
    if spec.weighted:
        return f": it takes LoRAs with weights, as {' and '.join(map(spec.described, spec.weighted))}"
    also = "; cpgd has a positive and a negative one" if spec.name in ("pgd", "nag") else ""
    return f": it has no such module{also}"
