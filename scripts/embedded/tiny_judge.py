"""Train tiny-judge: a small ResNet that names the subject and the condition of a picture, and gives features for KID.

The conditions are "clean" and ten families of flaws; realism is the log-odds of clean against all flaws together.

Another architecture, width, seed and corpus than tiny-clip's, and ten families of flaws: curation, selection and
training never touch it, so what it says of a result is held-out.
"""

from __future__ import annotations

import argparse

import torch
from common import OUT, SIZE, Corpus, load_as_float32, make_corpus, train
from tiny_clip import MEAN, STD, normalise
from torch import Tensor
from torch.nn import functional as F
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

from diffalign.data.flaws import JUDGE_FLAWS
from diffalign.data.photographs import PHOTOGRAPHS

SUBJECTS = len(PHOTOGRAPHS)  # logits: 16 subjects, then clean, then ten flaws


def build() -> ResNetForImageClassification:
    names = [*(photo.name for photo in PHOTOGRAPHS), "clean", *JUDGE_FLAWS]
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[2, 2, 2],
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    return ResNetForImageClassification(config)


def read_logits(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Subject logits (B, 16), condition logits (B, 11), and realism (B,) = log p(clean) / p(flawed)."""
    subject, condition = logits[:, :SUBJECTS], logits[:, SUBJECTS:]
    return subject, condition, condition[:, 0] - condition[:, 1:].logsumexp(1)


@torch.no_grad()
def quality(model: ResNetForImageClassification, corpus: Corpus) -> dict[str, float]:
    """Subject accuracy of the clean crops, and per family the area under the ROC curve of clean against flawed."""
    pixels = normalise(corpus.pixels(torch.arange(len(corpus.images))))
    subject, _, realism = read_logits(model(pixels).logits)
    clean = corpus.flaws < 0
    right = subject.argmax(1) == corpus.subjects
    figures = {
        "subject_accuracy": right[clean].float().mean().item(),
        "realism_accuracy": ((realism > 0) == clean).float().mean().item(),
    }
    for index, name in enumerate(JUDGE_FLAWS):
        flawed = realism[corpus.flaws == index]
        if len(flawed):
            figures[f"auc_{name}"] = (realism[clean][:, None] > flawed[None, :]).float().mean().item()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=2)
    arguments = parser.parse_args()

    corpus = make_corpus("train", 24_000, flaws=JUDGE_FLAWS, flawed_share=0.5, seed=2)
    validation = make_corpus("validation", 1024, flaws=JUDGE_FLAWS, flawed_share=0.5, seed=2)
    torch.manual_seed(arguments.seed)
    model = build()

    def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(0, len(corpus.images), (arguments.batch,), generator=generator)
        subject, condition, _ = read_logits(model(normalise(corpus.pixels(rows))).logits)
        subject_loss = F.cross_entropy(subject, corpus.subjects[rows])
        condition_loss = F.cross_entropy(condition, corpus.flaws[rows] + 1)
        figures = {"subject_loss": subject_loss.item(), "condition_loss": condition_loss.item()}
        return subject_loss + condition_loss, figures

    train(
        "tiny-judge",
        model,
        loss_of,
        num_steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        weight_decay=0.05,
        seed=arguments.seed,
        measure=lambda module: quality(module, validation),
        measure_every=200,
    )
    folder = OUT / "tiny-judge"
    model.half().save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": SIZE}, crop_pct=1.0, image_mean=MEAN, image_std=STD).save_pretrained(
        folder
    )
    load_as_float32(folder)


if __name__ == "__main__":
    main()
