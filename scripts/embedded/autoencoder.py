"""Train the autoencoder of tiny-sd: 32x32 pixels to 16x16 latents of 4 channels.

It starts as a linear map, so that no step is spent on learning to pass pixels through: every residual branch and
attention is zero, the encoder's strided convolution takes the four principal components of 2x2 blocks of pixels, and
signals cross the group norm and SiLU before each output in pairs, because silu(x) - silu(-x) = x and because two
large constants in each group make its norm a fixed scale. Training then adds what is not linear.
"""

from __future__ import annotations

import argparse
import math

import torch
from common import OUT, SIZE, Corpus, make_corpus, train
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from diffalign.data.flaws import CORPUS_FLAWS

CHANNELS = (16, 48)
LATENTS = 4
GROUPS = 4
CONSTANT = 8.0  # beside signals of order 1
LUMA = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
LAPLACE = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).reshape(1, 1, 3, 3)


def build() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=GROUPS,
        sample_size=SIZE,
    )


@torch.no_grad()
def start_linear(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Set the weights to the linear autoencoder described above; ``pixels`` (N, 3, H, W) give the components."""
    for part in (vae.encoder, vae.decoder):
        for layer in part.modules():
            if type(layer).__name__ == "ResnetBlock2D":
                nn.init.zeros_(layer.conv2.weight), nn.init.zeros_(layer.conv2.bias)
                if layer.conv_shortcut is not None:
                    _route(layer.conv_shortcut, {i: (i, 1.0) for i in range(min(CHANNELS))})
            if type(layer).__name__ == "Attention":
                nn.init.zeros_(layer.to_out[0].weight), nn.init.zeros_(layer.to_out[0].bias)

    blocks = F.unfold(pixels, 2, stride=2).transpose(1, 2).reshape(-1, 12)  # order: channel, row, column
    mean = blocks.mean(0)
    variances, components = torch.linalg.eigh(torch.cov((blocks - mean).T))
    components = components.flip(1)[:, :LATENTS]
    gain = variances.flip(0)[:LATENTS] ** -0.25  # halfway to equal variances: coarse stays larger than fine
    analysis = (components * gain).T.reshape(LATENTS, 3, 2, 2)

    encoder = vae.encoder
    _route(encoder.conv_in, {i: (i, 1.0) for i in range(3)})
    down = encoder.down_blocks[0].downsamplers[0].conv
    nn.init.zeros_(down.weight), nn.init.zeros_(down.bias)
    down.weight[:LATENTS, :3, :2, :2] = analysis
    down.bias[:LATENTS] = -(mean @ components) * gain
    _pass_through(encoder.down_blocks[1].resnets[0].conv_shortcut, encoder.conv_norm_out, encoder.conv_out, LATENTS)
    encoder.conv_out.bias[LATENTS:] = math.log(0.02**2)  # the posterior's log-variance, where the mean has std near 1
    for quant, width in ((vae.quant_conv, 2 * LATENTS), (vae.post_quant_conv, LATENTS)):
        _route(quant, {i: (i, 1.0) for i in range(width)})

    decoder = vae.decoder
    _route(decoder.conv_in, {i: (i, 1.0) for i in range(LATENTS)})
    up = decoder.up_blocks[0].upsamplers[0].conv
    _route(up, {})
    lift = (components / gain).reshape(3, 2, 2, LATENTS)
    up.weight[:3, :LATENTS, 1, 1] = lift.mean((1, 2))  # nearest upsampling of each block's mean; training adds detail
    up.bias[:3] = mean.reshape(3, 4).mean(1)
    _pass_through(decoder.up_blocks[1].resnets[0].conv_shortcut, decoder.conv_norm_out, decoder.conv_out, 3)


def _route(conv: nn.Conv2d, routes: dict[int, tuple[int, float]]) -> None:
    """Make ``conv`` copy input channels to output channels at its centre tap: {output: (input, factor)}."""
    nn.init.zeros_(conv.weight), nn.init.zeros_(conv.bias)
    middle = conv.kernel_size[0] // 2
    for output, (source, factor) in routes.items():
        conv.weight[output, source, middle, middle] = factor


def _pass_through(shortcut: nn.Conv2d, norm: nn.GroupNorm, out: nn.Conv2d, signals: int) -> None:
    """Lead ``signals`` channels through norm, SiLU and ``out`` unchanged: x, -x, +constant, -constant in each group."""
    width = norm.num_channels // norm.num_groups
    routes = {}
    for i in range(signals):
        routes |= {i * width: (i, 1.0), i * width + 1: (i, -1.0)}
    _route(shortcut, routes)
    nn.init.normal_(out.weight, std=1e-3), nn.init.zeros_(out.bias)
    out.weight[:signals] = 0
    for i in range(signals):
        shortcut.bias[i * width + 2], shortcut.bias[i * width + 3] = CONSTANT, -CONSTANT
        norm.weight[i * width : i * width + 2] = CONSTANT * math.sqrt(2 / width)  # the group's std, undone
        out.weight[i, i * width, 1, 1], out.weight[i, i * width + 1, 1, 1] = 1.0, -1.0


def texture(pixels: Tensor) -> Tensor:
    """(B, 1, H-2, W-2): Laplacian of luma, pixels in [-1, 1]."""
    return F.conv2d((pixels * LUMA).sum(1, keepdim=True), LAPLACE)


def quality(vae: AutoencoderKL, corpus: Corpus) -> dict[str, float]:
    """PSNR in dB (of the mean error, and the mean over crops) and the share of Laplacian variance kept, in 8 bits."""
    pixels = corpus.pixels(torch.arange(len(corpus.images)))
    with torch.no_grad():
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    original, decoded = ((x.clamp(-1, 1) + 1) * 127.5 for x in (pixels, decoded))
    decoded = decoded.round()
    error = (original - decoded).square().mean((1, 2, 3))
    kept = texture(decoded).var((1, 2, 3)).mean() / texture(original).var((1, 2, 3)).mean()
    return {
        "psnr": 10 * math.log10(255**2 / error.mean().item()),
        "mean_psnr": (10 * torch.log10(255**2 / error.clamp_min(0.05))).mean().item(),
        "laplacian_kept": kept.item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    corpus = make_corpus("train", 20_000, flaws=CORPUS_FLAWS, flawed_share=0.6, seed=0)
    validation = make_corpus("validation", 512, flaws=(), flawed_share=0.0, seed=0)
    torch.manual_seed(arguments.seed)
    vae = build()
    start_linear(vae, corpus.pixels(torch.arange(2000)))
    print("linear start", quality(vae, validation), flush=True)

    def loss_of(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(0, len(corpus.images), (arguments.batch,), generator=generator)
        pixels = corpus.pixels(rows)
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        error = decoded - pixels
        detail = texture(decoded) - texture(pixels)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.square().mean() + 0.02 * error.abs().mean() + 0.01 * detail.square().mean() + 1e-5 * kl
        return loss, {"mse": error.square().mean().item(), "kl": kl.item()}

    train(
        "autoencoder",
        vae,
        loss_of,
        num_steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        ema_decay=0.999,
        measure=lambda module: quality(module, validation),
        measure_every=100,
    )
    with torch.no_grad():
        pixels = corpus.pixels(torch.arange(2000))
        std = vae.encode(pixels).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=round(1 / std, 4))
    vae.half().save_pretrained(OUT / "tiny-sd" / "vae")


if __name__ == "__main__":
    main()
