"""The latent cache: encoded once, read back exactly, never mixed, continued when killed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from diffalign.core import DiffalignError
from diffalign.data import (
    LatentCache,
    Posterior,
    Preferences,
    PreferenceWriter,
    ResizeRecipe,
    estimate_bytes,
    image_sha256,
    resize_crop,
    to_tensor,
)

RECIPE = ResizeRecipe(size=8)


class Encoder:
    """A stand-in for a VAE and a text encoder that remembers what it was given."""

    def __init__(self):
        self.batches: list[torch.Tensor] = []
        self.texts: list[list[str]] = []

    def images(self, pixels):
        assert pixels.dtype == torch.float32 and not torch.is_grad_enabled()
        self.batches.append(pixels)
        mean = pixels[:, :, ::2, ::2].repeat(1, 2, 1, 1) * 1.7
        return mean, mean.abs() * 0.1 + 0.01

    def prompts(self, texts):
        self.texts.append(texts)
        lengths = torch.tensor([len(text) for text in texts], dtype=torch.float32)
        return {
            "prompt_embeds": lengths[:, None, None] + torch.arange(10.0).reshape(1, 5, 2) / 3,
            "pooled_prompt_embeds": lengths[:, None] * torch.ones(1, 3),
            "attention_mask": torch.ones(len(texts), 5, dtype=torch.int64),
        }

    @property
    def num_encoded(self):
        return sum(len(batch) for batch in self.batches)


@pytest.fixture
def encoder():
    return Encoder()


@pytest.fixture
def images(image):
    """Five distinct images, the second twice, with loaders that count."""
    loads: list[int] = []
    listed = []
    for seed in (0, 1, 2, 1, 3, 4):
        listed.append((image_sha256(image(seed)), lambda seed=seed: (loads.append(seed), image(seed))[1]))
    return listed, loads


def open_cache(folder, revision="model-a", recipe=RECIPE, **options) -> LatentCache:
    return LatentCache.open(folder, model_revision=revision, recipe=recipe, **options)


def shards(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*.safetensors")}


def test_latents_come_back_exactly(tmp_path, images, encoder, image):
    cache = open_cache(tmp_path)
    assert cache.fill(images[0], encoder.images, views=("plain", "flipped"), batch_size=4, entries_per_shard=6) == 10
    for reopened in (cache, open_cache(tmp_path)):
        for seed in range(5):
            sha256 = image_sha256(image(seed))
            pixels = to_tensor(resize_crop(image(seed), 8))
            for view, expected in (("plain", pixels), ("flipped", pixels.flip(2))):
                mean, std = encode_one(expected)
                posterior = reopened.latents(sha256, view)
                assert torch.equal(posterior.mean, mean) and torch.equal(posterior.std, std)


def encode_one(pixels):
    with torch.no_grad():
        mean, std = Encoder().images(pixels[None])
    return mean[0], std[0]


def test_each_view_is_encoded_once_and_each_image_loaded_once_per_batch(tmp_path, images, encoder):
    listed, loads = images
    cache = open_cache(tmp_path)
    assert cache.fill(listed, encoder.images, batch_size=2) == 5
    assert sorted(loads) == [0, 1, 2, 3, 4] and encoder.num_encoded == 5
    assert cache.fill(listed, encoder.images) == 0 and encoder.num_encoded == 5
    assert open_cache(tmp_path).fill(listed, encoder.images, views=("plain", "flipped")) == 5  # the flipped ones
    assert encoder.num_encoded == 10
    loads.clear()
    open_cache(tmp_path, "model-b").fill(listed, encoder.images, views=("plain", "flipped"), batch_size=2)
    assert sorted(loads) == [0, 1, 2, 3, 4]  # both views of an image share its decoding


def test_batches_do_not_cross_shards(tmp_path, images, encoder):
    open_cache(tmp_path).fill(images[0], encoder.images, batch_size=2, entries_per_shard=3)
    assert [len(batch) for batch in encoder.batches] == [2, 1, 2]
    assert len(shards(tmp_path)) == 2


def test_another_model_recipe_or_type_never_mixes(tmp_path, images, encoder):
    sha256 = images[0][0][0]
    open_cache(tmp_path).fill(images[0], encoder.images)
    open_cache(tmp_path).fill_prompts(["x"], encoder.prompts)
    others = [
        open_cache(tmp_path, "model-b"),
        open_cache(tmp_path, recipe=ResizeRecipe(size=10)),
        open_cache(tmp_path, recipe=ResizeRecipe(size=8, resample="bicubic")),
        open_cache(tmp_path, dtype="float16"),
    ]
    assert not any(other.has_latents(sha256) for other in others)
    assert [other.has_prompt("x") for other in others] == [False, True, True, False]  # text knows no resizing
    others[1].fill(images[0], encoder.images)
    assert others[1].latents(sha256).mean.shape == (6, 5, 5)
    assert open_cache(tmp_path).latents(sha256).mean.shape == (6, 4, 4)


def test_a_killed_fill_goes_on_where_it_was(tmp_path, images, encoder):
    listed, _ = images
    open_cache(tmp_path / "whole").fill(listed, encoder.images, batch_size=2, entries_per_shard=2)
    stopping = Encoder()

    def stop_in_the_second_shard(pixels):
        if stopping.batches:
            raise KeyboardInterrupt
        return stopping.images(pixels)

    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path / "cut").fill(listed, stop_in_the_second_shard, batch_size=2, entries_per_shard=2)
    assert len(shards(tmp_path / "cut")) == 1
    resumed = Encoder()
    cache = open_cache(tmp_path / "cut")
    assert cache.fill(listed, resumed.images, batch_size=2, entries_per_shard=2) == 3
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")


def test_one_process_fills_at_a_time_and_sees_the_others_work(tmp_path, images, encoder):
    early = open_cache(tmp_path)
    open_cache(tmp_path).fill(images[0], encoder.images)
    assert not early.has_latents(images[0][0][0])
    assert early.fill(images[0], encoder.images) == 0
    assert early.has_latents(images[0][0][0])

    def fill_again(pixels):
        open_cache(tmp_path, "model-b").fill(images[0], encoder.images)

    with pytest.raises(DiffalignError, match="in use"):
        open_cache(tmp_path, "model-b").fill(images[0], fill_again)


def test_half_precision(tmp_path, images, encoder):
    sha256 = images[0][0][0]
    exact, half = open_cache(tmp_path), open_cache(tmp_path, dtype="float16")
    for cache in (exact, half):
        cache.fill(images[0], encoder.images)
    mean = half.latents(sha256).mean
    assert mean.dtype == torch.float32 and torch.equal(mean, exact.latents(sha256).mean.half().float())
    with pytest.raises(DiffalignError, match=r"nearest: float16"):
        open_cache(tmp_path, dtype="float61")
    with pytest.raises(DiffalignError, match="revision"):
        open_cache(tmp_path, "")


def test_what_is_wrong_with_encoders_and_images(tmp_path, images, image):
    listed, _ = images

    def check(encode, message, dtype="float32"):
        with pytest.raises(DiffalignError, match=message):
            open_cache(tmp_path, dtype=dtype).fill(listed, encode)

    check(lambda x: (x, x.abs() * float("nan")), "not finite")
    check(lambda x: (x + 1e6, x.abs()), "not finite in float16", "float16")
    check(lambda x: (x[:1], x[:1].abs()), "leading dimension 5")
    check(lambda x: (x, x.abs()[:, :1]), "one shape")
    check(lambda x: (x, x - 2), "std >= 0")
    assert shards(tmp_path) == {}
    with pytest.raises(DiffalignError, match="does not have the hash"):
        open_cache(tmp_path).fill([("0" * 64, image)], Encoder().images)
    with pytest.raises(DiffalignError, match="flipped"):
        open_cache(tmp_path).fill(listed, Encoder().images, views=("fliped",))
    with pytest.raises(DiffalignError, match="at least 1"):
        open_cache(tmp_path).fill(listed, Encoder().images, batch_size=0)
    with pytest.raises(DiffalignError, match="fill it first"):
        open_cache(tmp_path).latents("0" * 64)
    with pytest.raises(DiffalignError, match="leading dimension"):
        open_cache(tmp_path).fill_prompts(["a", "b"], lambda texts: {"prompt_embeds": torch.ones(1, 3)})


def test_prompts(tmp_path, encoder):
    cache = open_cache(tmp_path)
    texts = ["a cat", "", "a cat", "two\ncats", "Ünïcödé 🐈"]
    assert cache.fill_prompts(texts, encoder.prompts, batch_size=3, entries_per_shard=3) == 4
    assert encoder.texts == [["a cat", "", "two\ncats"], ["Ünïcödé 🐈"]]
    assert cache.fill_prompts(iter(texts), encoder.prompts) == 0
    for reopened in (cache, open_cache(tmp_path)):
        for text in texts:
            expected = {name: tensor[0] for name, tensor in Encoder().prompts([text]).items()}
            found = reopened.prompt(text)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert cache.prompt("")["attention_mask"].dtype == torch.int64
    with pytest.raises(DiffalignError, match="'a dog' is not in the latent cache"):
        cache.prompt("a dog")


def test_sampling_from_the_posterior():
    """mean + std * noise: the moments of many draws are those stored, and a seed gives the same draw."""
    posterior = Posterior(mean=torch.full((3, 40, 50), 2.0), std=torch.full((3, 40, 50), 0.5))
    draw = posterior.sample(torch.Generator().manual_seed(1))
    assert torch.equal(draw, posterior.sample(torch.Generator().manual_seed(1)))
    assert not torch.equal(draw, posterior.sample(torch.Generator().manual_seed(2)))
    assert abs(draw.mean().item() - 2) < 5 * 0.5 / math.sqrt(6000)
    assert abs(draw.std().item() - 0.5) < 5 * 0.5 / math.sqrt(2 * 6000)
    noise = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(draw, 2.0 + 0.5 * noise)


def test_shards_are_read_as_they_are_asked_for(tmp_path, images, encoder, monkeypatch):
    monkeypatch.setattr("diffalign.data.latents._MAX_OPEN_SHARDS", 2)
    cache = open_cache(tmp_path)
    cache.fill(images[0], encoder.images, entries_per_shard=1)
    assert len(shards(tmp_path)) == 5
    for sha256, _ in images[0]:
        cache.latents(sha256)
        assert len(cache._latents._open) <= 2


def test_damaged_cache_is_named(tmp_path, images, encoder):
    open_cache(tmp_path).fill(images[0], encoder.images)
    (file,) = tmp_path.rglob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DiffalignError, match="cannot read"):
        open_cache(tmp_path)
    index = file.parent / "index.json"
    file.write_bytes(whole)
    index.write_text(index.read_text().replace("model-a", "model-b"))
    with pytest.raises(DiffalignError, match="remove"):
        open_cache(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_estimate_is_what_the_files_hold(dtype, tmp_path, images, encoder):
    cache = open_cache(tmp_path, dtype=dtype)
    cache.fill(images[0], encoder.images, views=("plain", "flipped"))
    cache.fill_prompts(["a", "b", "c"], lambda texts: {"prompt_embeds": torch.ones(len(texts), 5, 2)})
    stored = 0
    for file in tmp_path.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            stored += sum(shard.get_tensor(name).nbytes for name in shard.keys())  # noqa: SIM118
    assert stored == estimate_bytes(
        num_images=5,
        num_views=2,
        latent_shape=(6, 4, 4),
        num_prompts=3,
        embed_shapes={"prompt_embeds": (5, 2)},
        dtype=dtype,
    )


def test_from_preferences(tmp_path, pair, encoder):
    with PreferenceWriter(tmp_path / "rows", form="pair") as writer:
        for i in range(3):
            writer.write(pair(i))
    rows = Preferences(tmp_path / "rows")
    cache = open_cache(tmp_path / "cache")
    assert cache.fill(rows.images(), encoder.images) == 6
    assert cache.fill_prompts(rows.prompts(), encoder.prompts) == 3
    for hashes, prompt in zip(rows.image_hashes(), rows.prompts(), strict=True):
        assert all(cache.has_latents(sha256) for sha256 in hashes) and cache.has_prompt(prompt)
