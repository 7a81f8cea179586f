"""Guides by name, made of plain settings as configs and the command line have them, and what identifies one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from diffalign.core import DiffalignError, Registry, content_hash, sha256_file, unknown
from diffalign.guidance.contract import Guide
from diffalign.models import is_denoiser, missing_weights

__all__ = ["GUIDES", "GuideSpec", "guide_identity", "make_guide", "module_hash", "refuse_denoiser", "register_guide"]

Kind = TypeVar("Kind", bound=type)


@dataclass(frozen=True, kw_only=True)
class GuideSpec:
    """A guide that has a name.

    Attributes:
        name: as configs and ``--guide`` write it.
        kind: its class, a dataclass whose fields are its settings.
        strength: the setting that says how strong it is; empty where text guidance says it.
        positive: the setting that takes the LoRA to go towards (``--positive``); empty where there is none.
        negative: the setting that takes the LoRA to go away from (``--negative``); empty where there is none.
        weighted: settings that take several LoRAs, path -> weight; ``--set`` alone gives them.
    """

    name: str
    kind: type
    strength: str
    positive: str
    negative: str
    weighted: tuple[str, ...] = ()

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of all settings."""
        return tuple(field.name for field in fields(self.kind))

    @property
    def required(self) -> tuple[str, ...]:
        """Those that have no default."""
        return tuple(
            field.name for field in fields(self.kind) if field.default is MISSING and field.default_factory is MISSING
        )

    @property
    def modules(self) -> tuple[str, ...]:
        """Settings that take one LoRA."""
        return tuple(name for name in (self.positive, self.negative) if name)

    def described(self, setting: str) -> str:
        """A setting with the option of the command line that gives it."""
        if setting in self.weighted:
            return f"{setting} (--set 'guide.settings.{setting}={{LORA: WEIGHT, ...}}')"
        options = {self.positive: "--positive", self.negative: "--negative", self.strength: "--scale"}
        return f"{setting} ({options[setting]})" if setting in options else setting


GUIDES: Registry[GuideSpec] = Registry("guide")


def register_guide(
    name: str, *, strength: str = "", positive: str = "", negative: str = "", weighted: tuple[str, ...] = ()
) -> Callable[[Kind], Kind]:
    """A decorator that registers a guide's dataclass and returns it unchanged; see ``GuideSpec``."""

    def register(kind: Kind) -> Kind:
        spec = GuideSpec(
            name=name, kind=kind, strength=strength, positive=positive, negative=negative, weighted=weighted
        )
        GUIDES.register(name)(spec)
        return kind

    return register


def make_guide(name: str, settings: Mapping[str, Any]) -> Guide:
    """The guide of this name, from settings as YAML has them; no file is read.

    Args:
        name: pgd, cpgd, plus_minus, weighted, npo, chats or nag.
        settings: the fields of its class.

    Raises:
        DiffalignError: an unknown name or setting (with the nearest), a setting that is missing, or a wrong value.

    Example:
        >>> make_guide("pgd", {"tuned": "runs/dpo", "scale": 2, "stop": 0.5}).scale
        2.0
    """
    spec = GUIDES.get(name)
    for key in settings:
        if key not in spec.settings:
            raise unknown(f"setting of guide {name!r}", key, spec.settings)
    missing = [spec.described(key) for key in spec.required if key not in settings]
    if missing:
        raise DiffalignError(f"guide {name!r} needs {' and '.join(missing)}")
    types = get_type_hints(spec.kind)
    values = {key: _checked(value, types[key], f"guide {name!r}, {key}") for key, value in settings.items()}
    return cast(Guide, spec.kind(**values))


def guide_identity(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what a guide does, as JSON values: its name and settings, hashes of files for its LoRAs.

    Several LoRAs with weights are sorted pairs (hash, weight), since their order means nothing.

    Args:
        name: as for ``make_guide``.
        settings: as for ``make_guide``; those left out stand in it with their defaults.

    Raises:
        DiffalignError: see ``make_guide``; or there is no LoRA where a setting says, also at strength 0.
    """
    made, spec = make_guide(name, settings), GUIDES.get(name)
    values = {key: getattr(made, key) for key in spec.settings}
    for key in spec.modules:
        if values[key] is not None:
            values[key] = _lora_hash(values[key], spec, key)
    for key in spec.weighted:
        values[key] = sorted((_lora_hash(path, spec, key), weight) for path, weight in values[key].items())
    identity: dict[str, Any] = json.loads(json.dumps({"name": name, **values}))  # lists for tuples, as files have them
    return identity


def _lora_hash(path: str | Path, spec: GuideSpec, setting: str) -> str:
    refuse_denoiser(path)
    if not (found := module_hash(path)):
        raise DiffalignError(
            f"guide {spec.name!r} expects a LoRA in safetensors as {spec.described(setting)}: "
            f"{missing_weights(Path(path))}"
        )
    return found


def module_hash(path: str | Path) -> str:
    """A hash of the files of a LoRA (file or folder) or of a denoiser's folder; empty where there is none."""
    path = Path(path)
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*config.json")])
    if not any(file.suffix == ".safetensors" for file in files):
        return ""
    return content_hash({file.name: sha256_file(file) for file in files})


def refuse_denoiser(path: str | Path) -> None:
    """Raise DiffalignError for a folder of all weights, which no guide can use."""
    if is_denoiser(path):
        raise DiffalignError(
            f"{path} holds a whole denoiser, and guides take LoRAs on one network: train the module as a LoRA "
            "(--set stages.0.train=lora), or merge it with diffalign merge"
        )


def _checked(value: Any, kind: Any, what: str) -> Any:
    """The value as this type, by the rules of ``Config``: exact, finite, a list for a tuple."""
    adapter = TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))
    try:
        return adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        message = error.errors()[0]["msg"].replace("Input should be", "expected")
        raise DiffalignError(f"{what}: {message}, got {value!r}") from None
