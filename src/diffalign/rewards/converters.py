"""Published checkpoints, read once and without running what they contain, to folders of safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPModel,
    CLIPVisionModelWithProjection,
)

from diffalign.core import DiffalignError, atomic_path, sha256_file, unknown, warn, write_json
from diffalign.rewards.aesthetic import AESTHETIC_HEADS
from diffalign.rewards.clip import CLIP_SCORES, LAION_H14
from diffalign.rewards.weights import CONFIGS, MARK, find_folder, load_model, load_tokenizer

__all__ = ["blip_from_image_reward", "clip_from_open_clip", "collapse_affine", "convert_reward"]

State = Mapping[str, Tensor]

_OPEN_CLIP = (
    (r"^visual\.(class_embedding)$", r"vision_model.embeddings.\1"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # transformers spells it so
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_BLIP_VISION = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
)
_HEAD_WIDTH = 64  # of BLIP's attention, in both encoders


def convert_reward(name: str, checkpoint: str | Path, folder: str | Path, *, base: str | Path | None = None) -> Path:
    """Convert a published checkpoint into a folder that `load_reward` takes as ``weights``.

    Args:
        name: "hpsv2", "hpsv2.1", "image_reward", "aesthetic_v1" or "aesthetic_v2".
        checkpoint: the published ``.pt`` or ``.pth`` file. It is read with ``weights_only=True``.
        folder: where to write; it must not exist.
        base: folder or hub id of what the checkpoint lacks: a CLIP of the same architecture (configuration and
            tokenizer) for HPS, CLIP L/14 itself for the aesthetic heads, BERT's tokenizer for ImageReward. None takes
            the published one from the hub.

    Returns:
        ``folder``.

    Raises:
        DiffalignError: an unknown name, a file of another layout, or the folder exists.
    """
    converters = {score.name: (_convert_hps, LAION_H14) for score in CLIP_SCORES if score.converted}
    converters |= dict.fromkeys(AESTHETIC_HEADS, (_convert_aesthetic, "openai/clip-vit-large-patch14"))
    converters["image_reward"] = (_convert_image_reward, "google-bert/bert-base-uncased")
    if name not in converters:
        raise unknown("reward to convert", name, converters)
    if Path(folder).exists():
        raise DiffalignError(f"{folder} exists; name a new folder for the converted weights")
    convert, default = converters[name]
    digest = sha256_file(checkpoint)
    state = _read(checkpoint)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        try:
            convert(state, base or default, temporary)
        except (AttributeError, KeyError, RuntimeError) as error:  # keys or shapes of another model
            raise DiffalignError(f"{checkpoint} has not the layout of {name!r}: {error}") from error
        write_json(temporary / MARK, {"reward": name, "source": Path(checkpoint).name, "source_sha256": digest})
    if name in AESTHETIC_HEADS and not digest.startswith(AESTHETIC_HEADS[name][2]):
        warn(
            f"{checkpoint} is none of the published heads of {name} that are known to be affine (sha256 {digest[:12]})"
        )
    return Path(folder)


def clip_from_open_clip(state: State) -> dict[str, Tensor]:
    """A state dict in open_clip's naming as that of a transformers CLIPModel."""
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _rename(key, _OPEN_CLIP)
        if key in ("visual.proj", "text_projection"):
            converted[name] = value.T.contiguous()
        elif match := re.search(r"\.in_proj_(weight|bias)$", name):
            for letter, rows in zip("qkv", value.chunk(3), strict=True):
                converted[f"{name[: match.start()]}.{letter}_proj.{match[1]}"] = rows.clone()
        else:
            converted[name] = value
    return converted


def blip_from_image_reward(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """ImageReward's state dict as those of a BlipVisionModel and a BlipTextModel."""
    vision = {_rename(key, _BLIP_VISION): value for key, value in _below("blip.visual_encoder.", state).items()}
    text = _below("blip.text_encoder.", state)
    text.pop("embeddings.position_ids", None)
    return vision, text


def collapse_affine(layers: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A stack of linear layers without activations, the last one wide, as the one map it is.

        W_n (... (W_1 x + b_1) ...) + b_n = w . x + b

    Args:
        layers: (weight (out, in), bias (out,)) in the order they are applied.

    Returns:
        w (d,) and b (), float64.

    Example:
        >>> one, two = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.0]])
        >>> collapse_affine([(one, torch.tensor([1.0, 1.0])), (two, torch.tensor([5.0]))])
        (tensor([ 3., 10.], dtype=torch.float64), tensor(12., dtype=torch.float64))
    """
    weight, bias = (value.double() for value in layers[0])
    for next_weight, next_bias in layers[1:]:
        weight, bias = next_weight.double() @ weight, next_weight.double() @ bias + next_bias.double()
    return weight.squeeze(0), bias.squeeze(0)


def _convert_hps(state: State, base: str | Path, folder: Path) -> None:
    source = find_folder(base, CONFIGS)
    model = CLIPModel(AutoConfig.from_pretrained(source))
    model.load_state_dict(clip_from_open_clip(state["state_dict"]))  # type: ignore[arg-type]  # nested once
    model.float().save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)


def _convert_aesthetic(state: State, base: str | Path, folder: Path) -> None:
    clip = load_model(CLIPModel, find_folder(base))
    config = clip.config.vision_config
    config.projection_dim = clip.config.projection_dim
    model = CLIPVisionModelWithProjection(config)
    model.vision_model.load_state_dict(clip.vision_model.state_dict())
    model.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    model.save_pretrained(folder)
    _save_head(state, config.projection_dim, folder)


def _convert_image_reward(state: State, base: str | Path, folder: Path) -> None:
    vision_state, text_state = blip_from_image_reward(state)
    head = _below("mlp.", state)
    vision = BlipVisionModel(_blip_vision_config(vision_state))
    vision.load_state_dict(vision_state)
    text = BlipTextModel(_blip_text_config(text_state), add_pooling_layer=False)
    text.load_state_dict(text_state)
    vision.float().save_pretrained(folder / "vision")
    text.float().save_pretrained(folder / "text")
    load_tokenizer(find_folder(base, CONFIGS)).save_pretrained(folder)
    _save_head(head, text.config.hidden_size, folder)


def _blip_vision_config(state: State) -> BlipVisionConfig:
    _, num_tokens, hidden = state["embeddings.position_embedding"].shape
    patch = state["embeddings.patch_embedding.weight"].shape[-1]
    return BlipVisionConfig(
        hidden_size=hidden,
        intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_count(r"^encoder\.layers\.(\d+)\.", state),
        num_attention_heads=hidden // _HEAD_WIDTH,
        image_size=patch * round((num_tokens - 1) ** 0.5),
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )


def _blip_text_config(state: State) -> BlipTextConfig:
    vocabulary, hidden = state["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_count(r"^encoder\.layer\.(\d+)\.", state),
        num_attention_heads=hidden // _HEAD_WIDTH,
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,  # so that there is cross-attention
    )


def _save_head(state: State, width: int, folder: Path) -> None:
    weight, bias = collapse_affine([(state[f"{name}weight"], state[f"{name}bias"]) for name in _linear_layers(state)])
    if weight.shape != (width,):
        raise RuntimeError(f"expected a head from {width} values to one, got weights {tuple(weight.shape)}")
    save_file({"weight": weight.contiguous(), "bias": bias.contiguous()}, folder / "head.safetensors")


def _linear_layers(state: State) -> list[str]:
    """Prefixes of the layers that have a weight, in the order they are applied: "" alone, or "layers.0." and on."""
    names = [key.removesuffix("weight") for key in state if key.endswith("weight")]
    return sorted(names, key=lambda name: int((re.findall(r"\d+", name) or ["0"])[0]))


def _count(pattern: str, state: State) -> int:
    return len({match[1] for key in state if (match := re.search(pattern, key))})


def _below(prefix: str, state: State) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _rename(key: str, table: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return key


def _read(path: str | Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # nearly any type, for bytes that are not to be trusted
        raise DiffalignError(f"cannot read {path} as a checkpoint of tensors alone: {error}") from error
    if not isinstance(state, dict):
        raise DiffalignError(f"expected {path} to hold named tensors, got {type(state).__name__}")
    return state
