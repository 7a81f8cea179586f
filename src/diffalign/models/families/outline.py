"""A model's architecture without its weights, to say before anything loads what a run would take."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import snapshot_download
from torch import nn

from diffalign.core import DiffalignError, read_json
from diffalign.models.families.base import Family, family_of, find_index, quiet_loading

__all__ = ["outline_family"]


def outline_family(path_or_hub_id: str | Path, *, dtype: torch.dtype = torch.float32) -> Family:
    """The denoiser and autoencoder of a model on torch's meta device: shapes, no numbers, no text encoders.

    Passes through it cost no memory and no time worth naming; ``add_adapter`` and gradients work.

    Args:
        path_or_hub_id: as ``load_family`` takes it; of a hub model only the small files are fetched.
        dtype: of the denoiser.

    Raises:
        DiffalignError: nothing there, or an unknown architecture.
    """
    index, commit = find_index(path_or_hub_id)
    if commit:
        snapshot_download(str(path_or_hub_id), revision=commit, allow_patterns=["*.json", "*.txt", "*.model"])
    family = family_of(index)
    with quiet_loading():
        pipeline_class = getattr(diffusers, str(read_json(index)["_class_name"]))
    parts: dict[str, Any] = {
        name: None if parameter.default is parameter.empty else parameter.default
        for name, parameter in inspect.signature(pipeline_class).parameters.items()
    }
    for name, entry in read_json(index).items():
        if name not in parts or name in family.left_out:
            continue
        if not isinstance(entry, list):
            parts[name] = entry  # a setting of the pipeline
        elif entry[1] is not None:
            parts[name] = _component(index.parent / name, str(entry[1]), dtype)
    try:
        return family(pipeline_class(**parts | dict(family.pipeline_options)))
    except ValueError as error:
        raise DiffalignError(f"cannot use {path_or_hub_id}: {error}") from error


def _component(folder: Path, class_name: str, dtype: torch.dtype) -> Any:
    """A diffusers network on the meta device, a tokenizer or scheduler as it is, None for a text encoder."""
    with quiet_loading():
        cls = getattr(diffusers, class_name, None) or getattr(transformers, class_name)
        if not issubclass(cls, nn.Module):
            return cls.from_pretrained(folder)
        if not issubclass(cls, diffusers.ModelMixin):
            return None
        with torch.device("meta"):
            return cls.from_config(cls.load_config(folder)).to(dtype)
