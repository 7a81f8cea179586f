"""What locators with a transformers model share: finding, loading and naming it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffalign.core import DiffalignError, content_hash, sha256_file
from diffalign.models import quiet_loading
from diffalign.rewards.weights import WEIGHTS, find_folder, load_model, weights_revision

if TYPE_CHECKING:
    import torch

__all__ = ["find_model", "load_image_processor", "load_network", "model_revision"]


def find_model(weights: str, *, code: bool = False) -> Path:
    """The local folder of a model folder or hub id.

    Args:
        weights: the folder, or "owner/name".
        code: its Python files are wanted too.

    Raises:
        DiffalignError: it is neither, or cannot be reached; says how to get it.
    """
    return find_folder(weights, (*WEIGHTS, "*.py") if code else WEIGHTS)


def load_network(model_class: Any, folder: Path, device: str | torch.device, **options: Any) -> Any:
    """A frozen float32 network on a device.

    Raises:
        DiffalignError: weights are missing, the code needs a package that is not there, or the device cannot be used.
    """
    try:
        model = load_model(model_class, folder, **options)
    except ImportError as error:
        raise DiffalignError(f"cannot load {folder}: {error}") from error
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise DiffalignError(
            f"cannot use the device {str(device)!r}: {str(error).splitlines()[0]}; `diffalign env` lists those that "
            "are here"
        ) from error


def load_image_processor(folder: Path) -> Any:
    """The preprocessing that a model folder names, by Pillow, whatever else is installed.

    Raises:
        DiffalignError: the folder names none, or one that needs other packages.
    """
    from transformers import AutoImageProcessor

    return _load(AutoImageProcessor.from_pretrained, folder, "an image processor", backend="pil")


def model_revision(folder: Path) -> str:
    """Twelve hex digits of a sha256 over weights, configurations, tokenizer, preprocessing and code."""
    decisive = [folder / name for name in ("preprocessor_config.json", "processor_config.json")]
    files = sorted(file for file in [*decisive, *folder.glob("*.py")] if file.is_file())
    return content_hash(weights_revision(folder), [(file.name, sha256_file(file)) for file in files])[:12]


def _load(load: Callable[..., Any], folder: Path, what: str, **options: Any) -> Any:
    try:
        with quiet_loading():
            return load(folder, **options)
    except (OSError, ValueError, ImportError) as error:
        raise DiffalignError(f"cannot load {what} from {folder}: {error}") from error
