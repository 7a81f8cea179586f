"""The tiny models inside the package, in the formats of diffusers and transformers; ``scripts/embedded`` trains them.

tiny-sd      Stable Diffusion 1.x: 32x32 pixels, epsilon prediction, pretrained on flawed and clean crops
tiny-sd3     Stable Diffusion 3: rectified flow, random transformer and text encoders, for tests of the code
tiny-clip    a CLIPModel that tells subjects, framings and flaws apart: in-training
tiny-judge   a ResNet that names subject and flaw, never used to curate, select or train: held-out
"""

from __future__ import annotations

from pathlib import Path

from diffalign.core import unknown

__all__ = ["EMBEDDED_MODELS", "embedded_path"]

EMBEDDED_MODELS = ("tiny-sd", "tiny-sd3", "tiny-clip", "tiny-judge")


def embedded_path(name: str) -> Path:
    """Folder of an embedded model, for any library's ``from_pretrained``.

    Raises:
        DiffalignError: no such model; lists the nearest names.

    Example:
        >>> (embedded_path("tiny-sd") / "model_index.json").is_file()
        True
    """
    if name not in EMBEDDED_MODELS:
        raise unknown("embedded model", name, EMBEDDED_MODELS)
    return Path(__file__).parent / name
