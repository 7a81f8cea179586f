"""Train tiny-judge: a small ResNet with a subject head and a realism head, and features for KID.

Another architecture, width, seed and corpus than tiny-clip's, and ten families of flaws: curation, selection and
training never touch it, so what it says of a result is held-out.
"""

from __future__ import annotations

import argparse

import torch
from common import OUT, SIZE, Corpus, make_corpus, train
from tiny_clip import MEAN, STD, normalise
from torch import Tensor
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification, ConvNextImageProcessor

from diffalign.data.flaws import JUDGE_FLAWS
from diffalign.data.photographs import PHOTOGRAPHS

REALISM = len(PHOTOGRAPHS)  # the logit after the subjects': clean against flawed


def build() -> ResNetForImageClassification:
    names = [photo.name for photo in PHOTOGRAPHS] + ["realism"]
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[2, 2, 2],
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    return ResNetForImageClassification(config)


@torch.no_grad()
def quality(model: ResNetForImageClassification, corpus: Corpus) -> dict[str, float]:
    """Subject accuracy of the clean crops, and per family the area under the ROC curve of clean against flawed."""
    logits = model(normalise(corpus.pixels(torch.arange(len(corpus.images))))).logits
    clean = corpus.flaws < 0
    right = logits[:, :REALISM].argmax(1) == corpus.subjects
    realism = logits[:, REALISM]
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
        logits = model(normalise(corpus.pixels(rows))).logits
        subject = F.cross_entropy(logits[:, :REALISM], corpus.subjects[rows])
        realism = F.binary_cross_entropy_with_logits(logits[:, REALISM], (corpus.flaws[rows] < 0).float())
        return subject + realism, {"subject_loss": subject.item(), "realism_loss": realism.item()}

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


if __name__ == "__main__":
    main()
