"""The latent cache: every image and every prompt is encoded once, whatever is trained on them later.

    <folder>/latents-<hash of model revision, resize recipe, number type>/latents-00000.safetensors ...
    <folder>/prompts-<hash of model revision, number type>/prompts-00000.safetensors ...

Each of these folders tells in ``index.json`` what it was made with. Inside, images go by their content hash and view,
prompts by the hash of their text. No training option is part of any key.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from PIL import Image

from diffalign.core import DiffalignError, atomic_path, content_hash, folder_lock, read_json, unknown, write_json
from diffalign.core.files import remove_stale
from diffalign.data.images import ResizeRecipe, image_sha256, to_tensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["LatentCache", "Posterior", "View", "estimate_bytes"]

View = Literal["plain", "flipped"]
StoredType = Literal["float32", "float16"]
EncodeImages = Callable[["Tensor"], tuple["Tensor", "Tensor"]]
EncodePrompts = Callable[[list[str]], Mapping[str, "Tensor"]]
T = TypeVar("T")

_FORMAT = 1
_BYTES_PER_NUMBER = {"float32": 4, "float16": 2}
_MAX_OPEN_SHARDS = 64


@dataclass(frozen=True)
class Posterior:
    """The VAE's diagonal Gaussian over the latents of one image, in the scale the denoiser works in.

    Attributes:
        mean: (C, H, W) float32, ``(mean - shift) * scale``.
        std: (C, H, W) float32, ``std * scale``.
    """

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """A draw, mean + std * noise: (C, H, W) float32; the noise is drawn on the generator's device."""
        import torch

        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        return self.mean + self.std * noise.to(self.mean.device)


class LatentCache:
    """Latents and prompt embeddings on disk, read one entry at a time from memory-mapped files.

    Open one with `LatentCache.open`, fill it, then ask for entries. Filling encodes only what is missing, in shards
    that appear whole or not at all: a killed run goes on where it was. Reading needs no lock.

    Attributes:
        recipe: how images are resized before they are encoded.
    """

    def __init__(self, recipe: ResizeRecipe, dtype: StoredType, latents: _TensorStore, prompts: _TensorStore) -> None:
        self.recipe = recipe
        self._dtype = dtype
        self._latents = latents
        self._prompts = prompts

    @classmethod
    def open(
        cls, folder: str | Path, *, model_revision: str, recipe: ResizeRecipe, dtype: StoredType = "float32"
    ) -> LatentCache:
        """Open the cache of one model, resize recipe and number type; others live beside it and never mix with it.

        Args:
            folder: where all caches live; made when missing.
            model_revision: identifies the VAE, the text encoders and everything that changes what they give, such as
                their precision and the maximal length of a prompt: a family's ``encoder_revision``.
            recipe: how images are resized.
            dtype: type of the stored numbers; "float16" halves the size and costs three decimal digits.

        Raises:
            DiffalignError: an unknown number type, no model revision, or a damaged cache.
        """
        if dtype not in _BYTES_PER_NUMBER:
            raise unknown("number type of a latent cache", dtype, _BYTES_PER_NUMBER)
        if not model_revision:
            raise DiffalignError("a latent cache needs the model's revision: without it, models would share latents")
        prompt_key: dict[str, Any] = {"format": _FORMAT, "model_revision": model_revision, "dtype": dtype}
        latent_key = {**prompt_key, "recipe": recipe.identity}
        stores = [_TensorStore(Path(folder), "latents", latent_key), _TensorStore(Path(folder), "prompts", prompt_key)]
        return cls(recipe, dtype, *stores)

    def fill(
        self,
        images: Iterable[tuple[str, Callable[[], Image.Image]]],
        encode_images: EncodeImages,
        *,
        views: Sequence[View] = ("plain",),
        batch_size: int = 8,
        entries_per_shard: int = 512,
    ) -> int:
        """Encode the views of images that are not in the cache yet.

        Args:
            images: (content hash, function that decodes the image), as `Preferences.images` gives them.
            encode_images: (B, 3, H, W) float32 in [-1, 1] -> (mean, std), each (B, C, h, w), already scaled.
            views: which views to encode.
            batch_size: views encoded at once; batches do not cross shards.
            entries_per_shard: views in a file; what a killed run loses at most.

        Returns:
            The number of views encoded.

        Raises:
            DiffalignError: an image does not have its hash, or its latents are not finite numbers.
        """
        for view in views:
            _check_view(view)
        with self._latents.writing():
            count = 0
            for shard in _chunks(self._missing(images, views), entries_per_shard):
                entries: dict[str, dict[str, Tensor]] = {}
                for batch in _chunks(shard, batch_size):
                    entries.update(self._encode(batch, encode_images))
                self._latents.add(entries)
                count += len(shard)
        return count

    def fill_prompts(
        self,
        prompts: Iterable[str],
        encode_prompts: EncodePrompts,
        *,
        batch_size: int = 16,
        entries_per_shard: int = 512,
    ) -> int:
        """Encode the prompts that are not in the cache yet, each distinct text once.

        Args:
            prompts: any texts, also the empty one; repetitions cost nothing.
            encode_prompts: B texts -> named tensors with leading dimension B, such as ``prompt_embeds``.
            batch_size: prompts encoded at once.
            entries_per_shard: prompts in a file.

        Returns:
            The number of prompts encoded.

        Raises:
            DiffalignError: an embedding has another leading dimension or is not finite.
        """
        with self._prompts.writing():
            count = 0
            missing = (text for text in dict.fromkeys(prompts) if _prompt_key(text) not in self._prompts)
            for shard in _chunks(missing, entries_per_shard):
                entries: dict[str, dict[str, Tensor]] = {}
                for batch in _chunks(shard, batch_size):
                    for name, tensor in encode_prompts(batch).items():
                        _check_leading(f"prompt embedding {name!r}", tensor, len(batch))
                        for text, one in zip(batch, tensor, strict=True):
                            entries.setdefault(_prompt_key(text), {})[name] = self._stored(one, f"prompt {text!r}")
                self._prompts.add(entries)
                count += len(shard)
        return count

    def has_latents(self, sha256: str, view: View = "plain") -> bool:
        """Whether a view of an image is in the cache."""
        return f"{sha256}/{view}" in self._latents

    def has_prompt(self, prompt: str) -> bool:
        """Whether a prompt is in the cache."""
        return _prompt_key(prompt) in self._prompts

    def latents(self, sha256: str, view: View = "plain") -> Posterior:
        """The posterior of a view of an image.

        Raises:
            DiffalignError: it is not in the cache.
        """
        _check_view(view)
        if not self.has_latents(sha256, view):
            raise DiffalignError(f"the {view} view of image {sha256} is not in the latent cache; fill it first")
        entry = self._latents.read(f"{sha256}/{view}")
        return Posterior(mean=entry["mean"].float(), std=entry["std"].float())

    def prompt(self, prompt: str) -> dict[str, Tensor]:
        """The embeddings of a prompt without batch dimension, as `encode_prompts` named them; numbers as float32.

        Raises:
            DiffalignError: it is not in the cache.
        """
        if not self.has_prompt(prompt):
            raise DiffalignError(f"prompt {prompt!r} is not in the latent cache; fill its prompts first")
        entry = self._prompts.read(_prompt_key(prompt))
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in entry.items()}

    def _missing(
        self, images: Iterable[tuple[str, Callable[[], Image.Image]]], views: Sequence[View]
    ) -> Iterator[tuple[str, View, Callable[[], Image.Image]]]:
        queued: set[str] = set()
        for sha256, load in images:
            if sha256 in queued:
                continue
            queued.add(sha256)
            for view in dict.fromkeys(views):
                if not self.has_latents(sha256, view):
                    yield sha256, view, load

    def _encode(
        self, batch: list[tuple[str, View, Callable[[], Image.Image]]], encode_images: EncodeImages
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        import torch

        pixels: dict[str, Tensor] = {}
        for sha256, _, load in batch:
            if sha256 not in pixels:
                pixels[sha256] = self._pixels(sha256, load)
        stacked = torch.stack([pixels[sha].flip(-1) if view == "flipped" else pixels[sha] for sha, view, _ in batch])
        with torch.no_grad():
            mean, std = encode_images(stacked)
        for name, tensor in (("mean", mean), ("std", std)):
            _check_leading(f"the posterior's {name}", tensor, len(batch))
        if mean.shape != std.shape or bool((std < 0).any()):
            raise DiffalignError(
                f"expected mean and std of one shape with std >= 0, got {tuple(mean.shape)} and {tuple(std.shape)}"
            )
        for (sha256, view, _), one_mean, one_std in zip(batch, mean, std, strict=True):
            what = f"image {sha256}"
            yield f"{sha256}/{view}", {"mean": self._stored(one_mean, what), "std": self._stored(one_std, what)}

    def _pixels(self, sha256: str, load: Callable[[], Image.Image]) -> Tensor:
        image = load()
        if image_sha256(image) != sha256:
            raise DiffalignError(f"an image does not have the hash {sha256} it is listed under; write its row again")
        return to_tensor(self.recipe(image))

    def _stored(self, tensor: Tensor, what: str) -> Tensor:
        """A tensor as it is stored; masks and token ids keep their type."""
        import torch

        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(getattr(torch, self._dtype))
            if not bool(tensor.isfinite().all()):
                raise DiffalignError(
                    f"encoding {what} gave numbers that are not finite in {self._dtype}; "
                    "run the encoder in float32, and store float32"
                )
        return tensor.clone(memory_format=torch.contiguous_format)


def estimate_bytes(
    *,
    num_images: int,
    num_views: int,
    latent_shape: Sequence[int],
    num_prompts: int,
    embed_shapes: Mapping[str, Sequence[int]],
    dtype: StoredType = "float32",
) -> int:
    """Bytes a full cache takes on disk, but for about 200 bytes of header per entry.

    Args:
        num_images: distinct images.
        num_views: views of each.
        latent_shape: (C, H, W) of one latent.
        num_prompts: distinct prompts.
        embed_shapes: shape of each prompt embedding without batch dimension.
        dtype: type of the stored numbers.

    Example:
        >>> estimate_bytes(num_images=2, num_views=1, latent_shape=(4, 64, 64), num_prompts=1,
        ...                embed_shapes={"prompt_embeds": (77, 768)})
        498688
    """
    if dtype not in _BYTES_PER_NUMBER:
        raise unknown("number type of a latent cache", dtype, _BYTES_PER_NUMBER)
    latent_numbers = num_images * num_views * 2 * math.prod(latent_shape)  # mean and std
    prompt_numbers = num_prompts * sum(math.prod(shape) for shape in embed_shapes.values())
    return (latent_numbers + prompt_numbers) * _BYTES_PER_NUMBER[dtype]


class _TensorStore:
    """Entries, each a few named tensors, in safetensors shards under names ``<entry key>/<tensor name>``."""

    def __init__(self, folder: Path, kind: str, key: Mapping[str, Any]) -> None:
        self._kind = kind
        self._folder = folder / f"{kind}-{content_hash(dict(key))[:16]}"
        self._key = dict(key)
        self._files: list[Path] = []
        self._entries: dict[str, tuple[int, list[str]]] = {}
        self._open: OrderedDict[int, Any] = OrderedDict()
        index = self._folder / "index.json"
        if index.exists() and read_json(index) != self._key:
            raise DiffalignError(f"{index} does not say what its folder's name stands for; remove {self._folder}")
        self._find_new_shards()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder for this process and see what others have added."""
        with folder_lock(self._folder):
            remove_stale(self._folder)
            if not (self._folder / "index.json").exists():
                write_json(self._folder / "index.json", self._key)
            self._find_new_shards()
            yield

    def add(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write one shard."""
        from safetensors.torch import save_file

        tensors = {f"{key}/{name}": tensor for key, entry in entries.items() for name, tensor in entry.items()}
        with atomic_path(self._shard_path(len(self._files))) as temporary:
            save_file(tensors, temporary)
        self._find_new_shards()

    def read(self, key: str) -> dict[str, Tensor]:
        shard, names = self._entries[key]
        file = self._shard(shard)
        return {name: file.get_tensor(f"{key}/{name}") for name in names}

    def _shard_path(self, index: int) -> Path:
        return self._folder / f"{self._kind}-{index:05d}.safetensors"

    def _find_new_shards(self) -> None:
        while (path := self._shard_path(len(self._files))).exists():
            self._files.append(path)
            shard = len(self._files) - 1
            for tensor_name in self._shard(shard).keys():  # noqa: SIM118 (not a dict)
                key, name = tensor_name.rsplit("/", 1)
                self._entries.setdefault(key, (shard, []))[1].append(name)

    def _shard(self, index: int) -> Any:
        """An open shard; the most recently used stay open."""
        from safetensors import SafetensorError, safe_open

        if index not in self._open:
            try:
                self._open[index] = safe_open(self._files[index], framework="pt")
            except (OSError, SafetensorError) as error:
                path = self._files[index]
                raise DiffalignError(f"cannot read {path}: {error}; remove {path.parent} and fill it again") from error
        self._open.move_to_end(index)
        while len(self._open) > _MAX_OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[index]


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    if size < 1:
        raise DiffalignError(f"a batch or shard needs at least 1 entry, got {size}")
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _prompt_key(prompt: str) -> str:
    return content_hash("prompt", prompt)


def _check_view(view: str) -> None:
    if view not in get_args(View):
        raise unknown("view", view, get_args(View))


def _check_leading(what: str, tensor: Tensor, batch_size: int) -> None:
    if tensor.ndim < 1 or tensor.shape[0] != batch_size:
        raise DiffalignError(f"{what} must have leading dimension {batch_size}, got shape {tuple(tensor.shape)}")
