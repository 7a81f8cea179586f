"""One diffusers architecture: load it, encode prompts and images, predict, decode; chosen by ``model_index.json``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from diffalign.core import DiffalignError, Registry, content_hash, nearest, read_json, sha256_file
from diffalign.models.embedded import EMBEDDED_MODELS, embedded_path
from diffalign.models.processes import RectifiedFlow, VariancePreserving, process_from_scheduler

__all__ = [
    "Family",
    "families",
    "family_of",
    "find_index",
    "is_denoiser",
    "load_denoiser",
    "load_family",
    "quiet_loading",
]

families: Registry[type[Family]] = Registry("model family")  # by the pipeline class in model_index.json


class Family:
    """A loaded text-to-image model behind one interface; a subclass per architecture.

    Tensors: images (B, 3, H, W) in [-1, 1]; latents (B, C, h, w), VAE-scaled; timesteps (B,), what the network is fed.

    Attributes:
        denoiser: the UNet or transformer, frozen; adapters go on it.
        vae: the autoencoder, frozen; float32 where its config says ``force_upcast``.
        process: how latents are noised and what the denoiser predicts.
        lora_prefix: the denoiser's name in pipelines and LoRA files.
        lora_targets: layers that adapters take by default.
    """

    lora_prefix: ClassVar[str]
    lora_targets: ClassVar[tuple[str, ...]]
    left_out: ClassVar[tuple[str, ...]] = ()
    pipeline_options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, pipeline: Any, *, folder: Path | None = None, commit: str = "") -> None:
        """Takes over a diffusers pipeline's modules: freezes them and keeps them in evaluation mode.

        Args:
            pipeline: of the class that the family is registered under.
            folder: where its files are, for ``revision``.
            commit: its hub id and commit, for ``revision``, if it came from a hub.
        """
        self._pipeline = pipeline
        self._folder = folder
        self._commit = commit
        self.denoiser: nn.Module = getattr(pipeline, self.lora_prefix)
        self.vae: Any = pipeline.vae
        self.process: VariancePreserving | RectifiedFlow = process_from_scheduler(pipeline.scheduler)
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)
        if self.vae.config.force_upcast:
            _run_in_float32(self.vae)
        else:
            self.vae.to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser's weights."""
        return next(self.denoiser.parameters()).dtype  # the model's own property walks through every layer, 6 ms

    @property
    def device(self) -> torch.device:
        """Of the denoiser's weights."""
        return next(self.denoiser.parameters()).device

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell, in each direction."""
        return int(self._pipeline.vae_scale_factor)

    @property
    def size_multiple(self) -> int:
        """Image height and width must be multiples of this many pixels."""
        return self.vae_scale_factor

    @cached_property
    def revision(self) -> str:
        """What identifies the weights: hub id and commit, or a sha256 over all files of the folder.

        The first use reads every file of a local folder once, about a second per gigabyte; the result is remembered.

        Raises:
            DiffalignError: the model was made in memory.
        """
        if self._commit:
            return self._commit
        if self._folder is None:
            raise DiffalignError("this model was made in memory and has no revision; save it and use load_family")
        parts = [self._folder / name for name in sorted(self._pipeline.components)]
        files = sorted(file for part in parts for file in part.rglob("*") if file.is_file())
        return content_hash({file.relative_to(self._folder).as_posix(): sha256_file(file) for file in files})

    @property
    def encoder_revision(self) -> str:
        """What decides the numbers that ``encode_prompts`` and ``encode_images`` give, for the latent cache's key.

        The weights, the precision they run in, and ``encoder_options``.
        """
        modules = {name: one for name, one in self._pipeline.components.items() if isinstance(one, nn.Module)}
        dtypes = {name: str(module.dtype) for name, module in modules.items() if name != self.lora_prefix}
        return content_hash("encoders", self.revision, dtypes, self.encoder_options)

    @property
    def encoder_options(self) -> Mapping[str, Any]:
        """Settings besides the weights that change what the encoders give; none by default."""
        return {}

    def pipeline(self) -> Any:
        """A diffusers pipeline over the very same modules, with a scheduler of its own."""
        kind, scheduler = type(self._pipeline), self._pipeline.scheduler
        accepted = inspect.signature(kind).parameters
        settings = {key: value for key, value in self._pipeline.config.items() if key in accepted}
        components = self._pipeline.components | {"scheduler": type(scheduler).from_config(scheduler.config)}
        return kind(**settings | components | dict(self.pipeline_options))

    def to(self, device: str | torch.device) -> Family:
        """Moves all modules to a device, in place."""
        self._pipeline.to(device)
        return self

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of what ``encode_prompts`` gives for one prompt, from the configs alone."""
        raise NotImplementedError

    def move_encoders(self, device: str | torch.device, *, vae: bool = True) -> None:
        """Moves text encoders and autoencoder alone, in place: off the accelerator while only the denoiser is needed.

        Encoding and decoding want them on the denoiser's device again.

        Args:
            device: where to.
            vae: move the autoencoder too; without it, images can still be decoded.
        """
        stay = (self.denoiser,) if vae else (self.denoiser, self.vae)
        for component in self._pipeline.components.values():
            if isinstance(component, nn.Module) and not any(component is one for one in stay):
                component.to(device)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What ``predict`` takes as condition for these prompts, equal to the pipeline's own encoding.

        Args:
            prompts: B texts; "" is the unconditional branch.

        Returns:
            prompt_embeds (B, L, D), and pooled_prompt_embeds (B, P) where the architecture has them.

        Raises:
            ValueError: one text instead of a list.
        """
        if isinstance(prompts, str):
            raise ValueError(f"expected a list of texts, got the text {prompts!r}; put it into a list")
        with torch.autocast(self.device.type, enabled=False):
            return self._encode_prompts(list(prompts))

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's posterior, both in scaled latent units.

            mean = (m - shift) * scale,  std = s * scale,  a sample is mean + std * N(0, 1)

        Args:
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            mean and std, (B, C, h, w) in the VAE's dtype.

        Raises:
            ValueError: the shape or the range is another.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"expected float images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        if bool((images.abs() > 1.001).any()):
            low, high = images.min().item(), images.max().item()
            raise ValueError(f"expected images in [-1, 1], got values from {low:.3g} to {high:.3g}")
        self.latent_shape(images.shape[2], images.shape[3])
        with torch.autocast(self.device.type, enabled=False):
            posterior = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist
        shift, scale = self._vae_shift_and_scale()
        return (posterior.mean - shift) * scale, posterior.std * scale

    def decode(self, latents: Tensor) -> Tensor:
        """Images of scaled latents. Differentiable: wrap it in ``torch.no_grad()`` where no gradient is wanted.

        Args:
            latents: (B, C, h, w).

        Returns:
            (B, 3, H, W) in the VAE's dtype, clamped to [-1, 1].
        """
        shift, scale = self._vae_shift_and_scale()
        with torch.autocast(self.device.type, enabled=False):
            latents = latents.to(self.device, self.vae.dtype) / scale + shift
            images: Tensor = self.vae.decode(latents).sample
        return images.clamp(-1, 1)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor], *, denoiser: nn.Module | None = None
    ) -> Tensor:
        """The network's raw output.

        Args:
            noisy: (B, C, h, w), cast to the denoiser's dtype.
            timesteps: (B,) what the network is fed: integers for SD, 1000 s for SD3.
            condition: what ``encode_prompts`` returned, with B rows.
            denoiser: called instead of the family's own, e.g. a compiled or distributed wrapper or a frozen copy.

        Returns:
            model_pred, shape of ``noisy``, in the network's output dtype.

        Raises:
            ValueError: batch sizes differ.
        """
        sizes = {"noisy": len(noisy), "timesteps": timesteps.numel()} | {k: len(v) for k, v in condition.items()}
        if len(set(sizes.values())) != 1 or timesteps.ndim != 1:
            raise ValueError(f"expected one batch size B and timesteps (B,), got {sizes}")
        condition = {  # masks and token ids keep their type
            key: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for key, value in condition.items()
        }
        return self._forward(denoiser or self.denoiser, noisy.to(self.device, self.dtype), timesteps, condition)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Latent (C, h, w) of an image of ``height`` x ``width`` pixels.

        Raises:
            ValueError: a side is not a positive multiple of ``size_multiple``.
        """
        if height < 1 or width < 1 or height % self.size_multiple or width % self.size_multiple:
            raise ValueError(f"expected height and width in multiples of {self.size_multiple}, got {height} x {width}")
        factor = self.vae_scale_factor
        return int(self.vae.config.latent_channels), height // factor, width // factor

    def _encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        raise NotImplementedError

    def _forward(
        self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]
    ) -> Tensor:
        raise NotImplementedError

    def _vae_shift_and_scale(self) -> tuple[float, float]:
        config = self.vae.config
        return float(config.shift_factor or 0.0), float(config.scaling_factor)


def load_family(
    path_or_hub_id: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> Family:
    """Loads a model folder, a model of the Hugging Face hub or an embedded one as the family it says it is of.

    Only safetensors weights are read. The VAE stays float32 where its config says ``force_upcast``.

    Args:
        path_or_hub_id: a folder with a ``model_index.json``, a hub id such as "owner/name", or "tiny-sd", "tiny-sd3".
        dtype: of the denoiser and the text encoders.
        device: where to put all modules.
        revision: branch, tag or commit on the hub.

    Raises:
        DiffalignError: nothing there, an unknown architecture, or weights that cannot be read.
    """
    index, commit = find_index(path_or_hub_id, revision)
    components, family = read_json(index), family_of(index)
    absent = [name for name, value in components.items() if value == [None, None]]  # SD3 saved without T5
    try:
        with quiet_loading():
            pipeline = DiffusionPipeline.from_pretrained(
                path_or_hub_id if commit else index.parent,
                revision=commit or None,
                dtype={"default": dtype, "vae": torch.float32},
                use_safetensors=True,
                **dict.fromkeys([*family.left_out, *absent]),
                **family.pipeline_options,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise DiffalignError(
            f"cannot load {path_or_hub_id}: {error}\nExpected a complete model folder with safetensors weights."
        ) from error
    source = f"{path_or_hub_id}@{commit}" if commit else ""
    try:
        return family(pipeline, folder=index.parent, commit=source).to(device)
    except ValueError as error:  # a scheduler of another process
        raise DiffalignError(f"cannot use {path_or_hub_id}: {error}") from error


def is_denoiser(path: str | Path) -> bool:
    """Whether a path is a denoiser's folder in diffusers' format, rather than a LoRA; "" is neither."""
    config = Path(path) / "config.json"
    return bool(str(path)) and config.is_file() and "_class_name" in read_json(config)


def load_denoiser(denoiser: nn.Module, folder: str | Path) -> None:
    """Overwrites a denoiser's weights with those of a fine-tuned one of the same architecture.

    Args:
        denoiser: a family's, without adapters, or a copy of it.
        folder: a denoiser in diffusers' format: ``config.json`` and safetensors.

    Raises:
        DiffalignError: it cannot be read, or has other layers.
    """
    kind = type(denoiser).__name__
    found = read_json(Path(folder) / "config.json").get("_class_name")
    if found != kind:
        raise DiffalignError(f"{folder} does not hold weights of this model's {kind}, but of a {found}")
    try:
        with quiet_loading():
            tuned = type(denoiser).from_pretrained(folder, use_safetensors=True)  # type: ignore[attr-defined]
        denoiser.load_state_dict(tuned.state_dict())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DiffalignError(f"{folder} does not hold weights of this model's {kind}: {str(error)[:500]}") from error


def find_index(path_or_hub_id: str | Path, revision: str | None = None) -> tuple[Path, str]:
    """The model_index.json and, for a model of the hub, the commit it belongs to.

    Raises:
        DiffalignError: there is none, or it cannot be reached.
    """
    folder = embedded_path(str(path_or_hub_id)) if path_or_hub_id in EMBEDDED_MODELS else Path(path_or_hub_id)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise DiffalignError(f"expected a diffusers model folder with a model_index.json, found none in {folder}")
        return folder / "model_index.json", ""
    try:
        index = Path(hf_hub_download(str(path_or_hub_id), "model_index.json", revision=revision))
    except HFValidationError as error:
        raise DiffalignError(
            f"there is no folder {path_or_hub_id}, and it is not a hub id such as 'owner/name'{_did_you_mean(folder)}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise DiffalignError(
            f"{path_or_hub_id} is neither a folder nor in the local hub cache, and the hub cannot be reached (or "
            f"HF_HUB_OFFLINE is set): give a folder, or run `hf download` while online{_did_you_mean(folder)}"
        ) from error
    except HfHubHTTPError as error:
        raise DiffalignError(
            f"cannot read model_index.json of {path_or_hub_id}: {error}\nCheck the id and the revision; gated models "
            "need `hf auth login` after accepting their licence"
        ) from error
    return index, index.parent.name


def _did_you_mean(path: Path) -> str:
    near = [name for name in nearest(str(path), EMBEDDED_MODELS) if "sd" in name]
    return f". Embedded models: {', '.join(near)}" if near else ""


def family_of(index: Path) -> type[Family]:
    """The family that a model_index.json names.

    Raises:
        DiffalignError: an architecture that is not known here.
    """
    class_name = str(read_json(index).get("_class_name"))
    if class_name not in families:
        raise DiffalignError(
            f"{index.parent} is a {class_name}; known are {', '.join(families.names())}. "
            "docs/adding-a-family.md shows how to add one in a file"
        )
    return families.get(class_name)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Inside the block diffusers and transformers report errors alone, and bars are for terminals alone."""
    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            if not sys.stderr.isatty():
                library.disable_progress_bar()
        yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def _run_in_float32(vae: nn.Module) -> None:
    """Casts what enters the VAE's parts, so that half-precision pipelines can decode with it as it is."""

    def cast(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].float(), *inputs[1:])

    vae.float()
    for name in ("encoder", "post_quant_conv", "decoder"):
        part = getattr(vae, name)
        if part is not None:  # VAEs of SD 3 have no post_quant_conv
            part.register_forward_pre_hook(cast)
