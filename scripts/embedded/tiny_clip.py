"""Train tiny-clip: a CLIPModel that tells subjects, framings and flaws apart; the stand-in for PickScore and CLIP.

Clean crops carry plain captions, flawed crops captions that name the flaw. Every image also meets a hard negative: its
own caption with another condition. So a plain caption means a clean photograph, and a damaged picture of the right
subject scores lower.
"""

from __future__ import annotations

import argparse

import torch
from common import OUT, SIZE, Corpus, load_as_float32, make_corpus, train
from tokenizer import MAX_LENGTH
from tokenizer import build as build_tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from diffalign.data.flaws import CORPUS_FLAWS, FLAW_CAPTIONS
from diffalign.data.photographs import PHOTOGRAPHS

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def build(tokenizer: object) -> CLIPModel:
    shared = {"hidden_size": 96, "intermediate_size": 288, "num_attention_heads": 4, "num_hidden_layers": 4}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = shared | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_LENGTH, "num_hidden_layers": 2}
    text["pad_token_id"] = tokenizer.pad_token_id
    vision = shared | {"image_size": SIZE, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def condition_caption(caption: str, flaw: int, prefixed: bool) -> str:
    """``caption`` for an image in a condition: -1 is clean, else an index into CORPUS_FLAWS.

    Example:
        >>> condition_caption("a close-up photo of grass, top", CORPUS_FLAWS.index("blur"), False)
        'a blurry close-up photo of grass, top'
    """
    if flaw < 0:
        return f"Realistic photo {caption}" if prefixed else caption
    name = CORPUS_FLAWS[flaw]
    if prefixed and name == "posterise":
        return f"CG Render {caption}"
    article, kind = FLAW_CAPTIONS[name].rsplit(" ", 1)
    framing = next((f for f in ("close-up", "wide") if caption.startswith(f"a {f} ")), "")
    rest = caption.split(" photo", 1)[1]
    return " ".join(part for part in (article, framing, kind) if part) + rest


def normalise(pixels: Tensor) -> Tensor:
    """[-1, 1] to CLIP's normalisation."""
    mean, std = torch.tensor(MEAN).reshape(1, 3, 1, 1), torch.tensor(STD).reshape(1, 3, 1, 1)
    return ((pixels + 1) / 2 - mean) / std


def contrastive(model: CLIPModel, tokens: dict[str, Tensor], pixels: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of image-to-text and text-to-image cross-entropy; images that share a caption share its text.

    Args:
        model: the CLIP.
        tokens: T distinct texts.
        pixels: (B, 3, H, W) normalised.
        owner: (B,) index of each image's text.

    Returns:
        The loss, and the accuracy of image-to-text.
    """
    out = model(**tokens, pixel_values=pixels)
    logits = out.logits_per_image  # (B, T)
    belongs = F.one_hot(owner, logits.shape[1]).float()
    used = belongs.sum(0) > 0
    to_text = F.cross_entropy(logits, owner)
    to_image = F.cross_entropy(logits.T[used], (belongs / belongs.sum(0).clamp_min(1)).T[used])
    return (to_text + to_image) / 2, (logits.argmax(1) == owner).float().mean()


def encode(tokenizer: object, texts: list[str]) -> dict[str, Tensor]:
    return dict(tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"))


@torch.no_grad()
def quality(model: CLIPModel, tokenizer: object, corpus: Corpus) -> dict[str, float]:
    """Zero-shot subject accuracy of all crops, and how often a clean crop outscores a flawed one on a plain caption."""
    texts = encode(tokenizer, [f"a photo of {photo.subject}" for photo in PHOTOGRAPHS])
    out = model(**texts, pixel_values=normalise(corpus.pixels(torch.arange(len(corpus.images)))))
    cosine = out.image_embeds @ out.text_embeds.T  # (N, 16)
    subject = (cosine.argmax(1) == corpus.subjects).float().mean().item()
    figures = {"subject_accuracy": subject}
    own = cosine.gather(1, corpus.subjects[:, None])[:, 0]
    for index, name in enumerate(CORPUS_FLAWS):
        wins = [
            (own[clean][:, None] > own[flawed][None, :]).float().mean().item()
            for s in range(len(PHOTOGRAPHS))
            for clean, flawed in [
                ((corpus.subjects == s) & (corpus.flaws < 0), (corpus.subjects == s) & (corpus.flaws == index))
            ]
            if clean.any() and flawed.any()
        ]
        figures[f"clean_over_{name}"] = sum(wins) / len(wins)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    corpus = make_corpus("train", 20_000, flaws=CORPUS_FLAWS, flawed_share=0.6, seed=1)
    validation = make_corpus("validation", 1024, flaws=CORPUS_FLAWS, flawed_share=0.5, seed=1)
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer()
    model = build(tokenizer)
    choices = len(CORPUS_FLAWS) + 1

    def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(0, len(corpus.images), (arguments.batch,), generator=generator)
        prefixed = torch.rand(arguments.batch, generator=generator) < 0.15
        shift = torch.randint(1, choices, (arguments.batch,), generator=generator)
        own, hard = [], []
        for row, prefix, step in zip(rows.tolist(), prefixed.tolist(), shift.tolist(), strict=True):
            flaw = int(corpus.flaws[row])
            own.append(condition_caption(corpus.captions[row], flaw, prefix))
            hard.append(condition_caption(corpus.captions[row], (flaw + 1 + step) % choices - 1, prefix))
        texts = list(dict.fromkeys([*own, *hard]))
        owner = torch.tensor([texts.index(text) for text in own])
        loss, accuracy = contrastive(model, encode(tokenizer, texts), normalise(corpus.pixels(rows)), owner)
        return loss, {"batch_accuracy": accuracy.item()}

    train(
        "tiny-clip",
        model,
        loss_of,
        num_steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        weight_decay=0.05,
        seed=arguments.seed,
        ema_decay=0.998,
        measure=lambda module: quality(module, tokenizer, validation),
        measure_every=200,
    )
    folder = OUT / "tiny-clip"
    model.half().save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE, image_mean=MEAN, image_std=STD)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    load_as_float32(folder)


if __name__ == "__main__":
    main()
