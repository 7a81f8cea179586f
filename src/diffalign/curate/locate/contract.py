"""What a locator is: images, prompts and seeds to masks of a bounded area, with settings for the provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from diffalign.core import Config, DiffalignError, Registry, dump_config
from diffalign.curate.locate.masks import check_area

if TYPE_CHECKING:
    import torch

__all__ = ["LOCATORS", "Locator", "load_locator"]


class Locator:
    """Finds where to damage images. A subclass overrides `locate`, and ``Settings`` where it has any.

    Attributes:
        name: as `load_locator` takes it.
        Settings: the class of its settings.
        settings: those it was made with.
        area: least and largest share of an image that a mask covers.
        parameters: settings and area as plain values, for provenance; of a local path, the last part alone.
        model_revision: of the network's files; empty without a network.
    """

    name: ClassVar[str] = ""
    Settings: ClassVar[type[Config]] = Config

    def __init__(self, settings: Config, *, area: tuple[float, float], device: str | torch.device = "cpu") -> None:
        check_area(area)
        self.settings = settings
        self.area = area
        self.device = device
        self.parameters: dict[str, Any] = {**_without_folders(dump_config(settings)), "area": list(area)}
        self.model_revision = ""

    def locate(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image | None]:
        """Masks of N "RGB" images, N at least 1."""
        raise NotImplementedError

    def __call__(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image | None]:
        """Where to damage each image; a mask depends on its own image, prompt and seed alone.

        Args:
            images: N images of any sizes.
            prompts: N texts.
            seeds: N seeds; they matter only where something is drawn by chance.

        Returns:
            N "L" images of the images' sizes, of 0 and 255 alone; None where nothing to damage was found.

        Raises:
            ValueError: the numbers of images, prompts and seeds differ, or one text came instead of a list.
            DiffalignError: the network's numbers are not finite.
        """
        counts = (len(images), len(prompts), len(seeds))
        if isinstance(prompts, str) or len(set(counts)) != 1:
            raise ValueError(f"expected lists of as many images, prompts and seeds, got {counts}")
        return self.locate([image.convert("RGB") for image in images], prompts, seeds) if images else []


# By name. A new way to find places is a new file that registers its class.
LOCATORS: Registry[type[Locator]] = Registry("locator")


def load_locator(
    settings: Mapping[str, Any] | str,
    *,
    area: tuple[float, float] = (0.15, 0.5),
    device: str | torch.device = "cpu",
) -> Locator:
    """Load a locator.

    Args:
        settings: a name in `LOCATORS`, or a mapping of ``name`` and the locator's own settings.
        area: least and largest share of an image that a mask covers.
        device: where its network runs, if it has one.

    Raises:
        DiffalignError: an unknown name or setting (with the nearest), wrong values, or weights that are missing.

    Example:
        >>> locator = load_locator({"name": "full_image"})
        >>> [mask.getextrema() for mask in locator([Image.new("RGB", (5, 6))], ["a photo of snow"], [0])]
        [(255, 255)]
        >>> load_locator("ful_image")
        Traceback (most recent call last):
        ...
        diffalign.core.errors.DiffalignError: unknown locator 'ful_image'; nearest: full_image (known: \
colour_saliency, full_image, grounded, onnx_saliency, random_shapes, saliency_model, sam, spectral_residual)
    """
    values = {"name": settings} if isinstance(settings, str) else dict(settings)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise DiffalignError(f"expected the locator's name as text, got {name!r}; known: {', '.join(LOCATORS)}")
    kind = LOCATORS.get(name)
    values = {key: str(value) if isinstance(value, PurePath) else value for key, value in values.items()}
    try:
        made = kind.Settings(**values)
    except DiffalignError as error:
        raise DiffalignError(f"locator {name!r}: {error}") from None
    return kind(made, area=area, device=device)


def _without_folders(values: dict[str, Any]) -> dict[str, Any]:
    """Provenance is the same wherever the weights lie; ``model_revision`` says which they are."""
    weights = values.get("weights")
    return values | {"weights": Path(weights).name} if weights and Path(weights).exists() else values
