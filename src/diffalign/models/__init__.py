"""Diffusion models: noise processes, architectures, adapters."""

from __future__ import annotations

from diffalign.models.adapter_layers import adapter_update
from diffalign.models.adapter_rows import FoldedRowsError, RowSwitch, row_adapters
from diffalign.models.adapters import (
    LoraSettings,
    adapter_names,
    adapter_parameters,
    add_adapter,
    adding,
    concatenate_adapters,
    copy_adapter,
    fuse_adapter,
    load_adapter,
    remove_adapter,
    save_adapter,
    using,
)
from diffalign.models.conversions import Prediction, flow_from_vp, vp_from_flow
from diffalign.models.embedded import EMBEDDED_MODELS, embedded_path
from diffalign.models.families import (
    Family,
    StableDiffusion,
    StableDiffusion3,
    StableDiffusionXL,
    families,
    find_index,
    is_denoiser,
    load_denoiser,
    load_family,
    outline_family,
    quiet_loading,
)
from diffalign.models.lora_formats import missing_weights
from diffalign.models.processes import (
    Process,
    RectifiedFlow,
    VariancePreserving,
    denoising_error,
    process_from_scheduler,
)

__all__ = [
    "EMBEDDED_MODELS",
    "Family",
    "FoldedRowsError",
    "LoraSettings",
    "Prediction",
    "Process",
    "RectifiedFlow",
    "RowSwitch",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
    "VariancePreserving",
    "adapter_names",
    "adapter_parameters",
    "adapter_update",
    "add_adapter",
    "adding",
    "concatenate_adapters",
    "copy_adapter",
    "denoising_error",
    "embedded_path",
    "families",
    "find_index",
    "flow_from_vp",
    "fuse_adapter",
    "is_denoiser",
    "load_adapter",
    "load_denoiser",
    "load_family",
    "missing_weights",
    "outline_family",
    "process_from_scheduler",
    "quiet_loading",
    "remove_adapter",
    "row_adapters",
    "save_adapter",
    "using",
    "vp_from_flow",
]
