"""Published checkpoints in small: random weights in their own layout, and forward passes in its terms."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import BertTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer

from diffalign.core import numpy_generator, torch_generator
from diffalign.models import embedded_path

PROMPTS = ["a photo of grass", "a wide photo of a tabby cat, top", "old coins"]
VISION, TEXT, PROJECTION, LAYERS = 48, 40, 24, 2  # widths; heads are VISION / 16 and TEXT / 20
SIZE, PATCH = 28, 7
BLIP_VISION, BLIP_TEXT = 128, 64  # heads are 64 wide, as published
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "grass", "old", "coins", "cat", ","]


def image(width: int, height: int, *seeds: object) -> Image.Image:
    """Smooth random colours."""
    noise = numpy_generator("image", *seeds).integers(0, 256, (5, 4, 3), dtype="uint8")
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def images() -> list[Image.Image]:
    """Wide, tall and square."""
    return [image(52, 31, 0), image(29, 44, 1), image(37, 37, 2)]


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of a size that keeps every part of the network alive; gains of layer norms near 1."""
    state = {}
    for name, shape in shapes.items():
        draw = torch.randn(shape, generator=torch_generator("weights", name))
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 16
        state[name] = 0.7 * draw / math.sqrt(fan_in)
        if len(shape) == 1 and name.endswith("weight"):
            state[name] += 1
    return state


def tiny_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(embedded_path("tiny-clip"))


def clip_config() -> CLIPConfig:
    tokenizer = tiny_tokenizer()
    shared = {"num_hidden_layers": LAYERS, "hidden_act": "gelu"}
    text = shared | {
        "hidden_size": TEXT,
        "intermediate_size": 3 * TEXT,
        "num_attention_heads": TEXT // 20,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = shared | {
        "hidden_size": VISION,
        "intermediate_size": 2 * VISION,
        "num_attention_heads": VISION // 16,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION)


def clip_folder(folder: Path) -> Path:
    """A CLIP of random weights in transformers' own form."""
    torch.manual_seed(0)
    model = CLIPModel(clip_config())
    with torch.no_grad():
        for parameter in model.parameters():  # the initialisation is so small that all embeddings agree
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(math.log(90))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def open_clip_state() -> dict[str, Tensor]:
    """HPSv2's layout in small."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "positional_embedding": (24, TEXT),
        "token_embedding.weight": (len(tiny_tokenizer()), TEXT),
        "ln_final.weight": (TEXT,),
        "ln_final.bias": (TEXT,),
        "text_projection": (TEXT, PROJECTION),
        "visual.class_embedding": (VISION,),
        "visual.positional_embedding": ((SIZE // PATCH) ** 2 + 1, VISION),
        "visual.conv1.weight": (VISION, 3, PATCH, PATCH),
        "visual.ln_pre.weight": (VISION,),
        "visual.ln_pre.bias": (VISION,),
        "visual.ln_post.weight": (VISION,),
        "visual.ln_post.bias": (VISION,),
        "visual.proj": (VISION, PROJECTION),
    }
    for tower, width, inner in (("", TEXT, 3 * TEXT), ("visual.", VISION, 2 * VISION)):
        for layer in range(LAYERS):
            block = f"{tower}transformer.resblocks.{layer}."
            shapes |= {f"{block}{name}.{kind}": (width,) for name in ("ln_1", "ln_2") for kind in ("weight", "bias")}
            shapes |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)}
            shapes |= {f"{block}attn.out_proj.weight": (width, width), f"{block}attn.out_proj.bias": (width,)}
            shapes |= {f"{block}mlp.c_fc.weight": (inner, width), f"{block}mlp.c_fc.bias": (inner,)}
            shapes |= {f"{block}mlp.c_proj.weight": (width, inner), f"{block}mlp.c_proj.bias": (width,)}
    return random_state(shapes)


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state: dict[str, Tensor], name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """(B, L, d) each; ``mask`` is added to the logits."""
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)]
    logits = split[0] @ split[1].transpose(-1, -2) / math.sqrt(split[0].shape[-1])
    weights = (logits if mask is None else logits + mask).softmax(-1)
    return (weights @ split[2]).transpose(1, 2).flatten(2)


def open_clip_blocks(state: dict[str, Tensor], tower: str, x: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    for layer in range(LAYERS):
        block = f"{tower}transformer.resblocks.{layer}."
        inputs = norm(state, f"{block}ln_1", x)
        qkv = inputs @ state[f"{block}attn.in_proj_weight"].T + state[f"{block}attn.in_proj_bias"]
        x = x + linear(state, f"{block}attn.out_proj", attend(*qkv.chunk(3, -1), heads, mask))
        hidden = F.gelu(linear(state, f"{block}mlp.c_fc", norm(state, f"{block}ln_2", x)))
        x = x + linear(state, f"{block}mlp.c_proj", hidden)
    return x


def open_clip_cosine(state: dict[str, Tensor], pixels: Tensor, ids: list[list[int]]) -> Tensor:
    """Cosines (B,) of normalised pixels and token ids with their ends."""
    patches = F.conv2d(pixels, state["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
    x = norm(state, "visual.ln_pre", torch.cat([first, patches], 1) + state["visual.positional_embedding"])
    x = open_clip_blocks(state, "visual.", x, VISION // 16, None)
    image_embeds = norm(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"]
    text_embeds = []
    for row in ids:
        mask = torch.full((len(row), len(row)), -torch.inf).triu(1)
        x = state["token_embedding.weight"][row][None] + state["positional_embedding"][: len(row)]
        x = norm(state, "ln_final", open_clip_blocks(state, "", x, TEXT // 20, mask))
        text_embeds.append(x[0, -1] @ state["text_projection"])
    return F.cosine_similarity(image_embeds, torch.stack(text_embeds))


def head_state(width: int, prefix: str = "") -> dict[str, Tensor]:
    """A published head: five linear layers, numbered as with the dropouts between them."""
    sizes = [width, 19, 11, 7, 5, 1]
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (inner, outer) in zip((0, 2, 4, 6, 7), itertools.pairwise(sizes), strict=True):
        shapes |= {f"{prefix}layers.{number}.weight": (outer, inner), f"{prefix}layers.{number}.bias": (outer,)}
    return random_state(shapes)


def run_head(state: dict[str, Tensor], features: Tensor, prefix: str = "") -> Tensor:
    """The head layer by layer, in float64, (B,)."""
    state = {name: value.double() for name, value in state.items()}
    features = features.double()
    for number in (0, 2, 4, 6, 7):
        features = linear(state, f"{prefix}layers.{number}", features)
    return features[:, 0]


def bert_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: index for index, word in enumerate(BERT_WORDS)})


def image_reward_state() -> dict[str, Tensor]:
    """ImageReward's layout in small, with the parts that are ignored."""
    tokens = (SIZE // PATCH) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, BLIP_VISION),
        "blip.visual_encoder.pos_embed": (1, tokens, BLIP_VISION),
        "blip.visual_encoder.patch_embed.proj.weight": (BLIP_VISION, 3, PATCH, PATCH),
        "blip.visual_encoder.patch_embed.proj.bias": (BLIP_VISION,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (len(BERT_WORDS) + 2, BLIP_TEXT),
        "blip.text_encoder.embeddings.position_embeddings.weight": (41, BLIP_TEXT),
    }

    def dense(name: str, outer: int, inner: int) -> None:
        shapes.update({f"blip.{name}.weight": (outer, inner), f"blip.{name}.bias": (outer,)})

    def gains(name: str, width: int) -> None:
        shapes.update({f"blip.{name}.weight": (width,), f"blip.{name}.bias": (width,)})

    gains("visual_encoder.norm", BLIP_VISION)
    gains("text_encoder.embeddings.LayerNorm", BLIP_TEXT)
    dense("vision_proj", 9, BLIP_VISION)
    dense("text_proj", 9, BLIP_TEXT)
    for layer in range(LAYERS):
        block = f"visual_encoder.blocks.{layer}"
        gains(f"{block}.norm1", BLIP_VISION)
        gains(f"{block}.norm2", BLIP_VISION)
        dense(f"{block}.attn.qkv", 3 * BLIP_VISION, BLIP_VISION)
        dense(f"{block}.attn.proj", BLIP_VISION, BLIP_VISION)
        dense(f"{block}.mlp.fc1", 2 * BLIP_VISION, BLIP_VISION)
        dense(f"{block}.mlp.fc2", BLIP_VISION, 2 * BLIP_VISION)
        block = f"text_encoder.encoder.layer.{layer}"
        for part, source in (("attention", BLIP_TEXT), ("crossattention", BLIP_VISION)):
            dense(f"{block}.{part}.self.query", BLIP_TEXT, BLIP_TEXT)
            dense(f"{block}.{part}.self.key", BLIP_TEXT, source)
            dense(f"{block}.{part}.self.value", BLIP_TEXT, source)
            dense(f"{block}.{part}.output.dense", BLIP_TEXT, BLIP_TEXT)
            gains(f"{block}.{part}.output.LayerNorm", BLIP_TEXT)
        dense(f"{block}.intermediate.dense", 3 * BLIP_TEXT, BLIP_TEXT)
        dense(f"{block}.output.dense", BLIP_TEXT, 3 * BLIP_TEXT)
        gains(f"{block}.output.LayerNorm", BLIP_TEXT)
    positions = {"blip.text_encoder.embeddings.position_ids": torch.arange(41)[None]}
    return random_state(shapes) | positions | head_state(BLIP_TEXT, "mlp.")


def image_reward_hidden(state: dict[str, Tensor], pixels: Tensor, ids: list[list[int]]) -> Tensor:
    """What the head reads, (B, d): normalised pixels, and token ids without padding."""
    vision = {k.removeprefix("blip.visual_encoder."): v for k, v in state.items() if "visual" in k}
    patches = F.conv2d(pixels, vision["patch_embed.proj.weight"], vision["patch_embed.proj.bias"], stride=PATCH)
    first = vision["cls_token"].expand(len(pixels), -1, -1)
    x = torch.cat([first, patches.flatten(2).transpose(1, 2)], 1) + vision["pos_embed"]
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        qkv = linear(vision, f"{block}.attn.qkv", norm(vision, f"{block}.norm1", x, 1e-6))
        x = x + linear(vision, f"{block}.attn.proj", attend(*qkv.chunk(3, -1), BLIP_VISION // 64))
        hidden = F.gelu(linear(vision, f"{block}.mlp.fc1", norm(vision, f"{block}.norm2", x, 1e-6)))
        x = x + linear(vision, f"{block}.mlp.fc2", hidden)
    tokens = norm(vision, "norm", x, 1e-6)
    return torch.cat([_read(state, one[None], row) for one, row in zip(tokens, ids, strict=True)])


def _read(state: dict[str, Tensor], tokens: Tensor, ids: list[int]) -> Tensor:
    text = {k.removeprefix("blip.text_encoder."): v for k, v in state.items() if "text_encoder" in k}
    embeds = text["embeddings.word_embeddings.weight"][ids] + text["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(text, "embeddings.LayerNorm", embeds[None], 1e-12)
    for layer in range(LAYERS):
        block = f"encoder.layer.{layer}"
        for part in ("attention", "crossattention"):
            source = x if part == "attention" else tokens
            inputs = [
                linear(text, f"{block}.{part}.self.{name}", y)
                for name, y in (("query", x), ("key", source), ("value", source))
            ]
            found = linear(text, f"{block}.{part}.output.dense", attend(*inputs, BLIP_TEXT // 64))
            x = norm(text, f"{block}.{part}.output.LayerNorm", x + found, 1e-12)
        hidden = F.gelu(linear(text, f"{block}.intermediate.dense", x))
        x = norm(text, f"{block}.output.LayerNorm", x + linear(text, f"{block}.output.dense", hidden), 1e-12)
    return x[:, 0]
