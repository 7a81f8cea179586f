"""Diffusion-NPO and CHATS: another model on the unconditional branch; and what composes with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from guidance_helpers import PIPELINES, PROMPTS, Recorded, lora, network_of, prefix_of, sampled, sd_pipeline
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.guidance import (
    CHATS,
    NAG,
    PGD,
    Contrastive,
    DiffusionNPO,
    Weighted,
    attach,
    chats,
    chats_text,
    compose,
    diffusion_npo,
)
from diffalign.models import load_adapter, remove_adapter, using


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    pipe, folder = sd_pipeline(), tmp_path_factory.mktemp("loras")
    return pipe, lora(pipe, folder, 1), lora(pipe, folder, 2)


def first_call(pipe: Any, **settings: Any) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
    """What the pipeline first gives its network, and what it gets back: 2 unconditional and 2 conditional rows."""
    calls: list[Any] = []
    handle = network_of(pipe).register_forward_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    try:
        sampled(pipe, num_inference_steps=1, **settings)
    finally:
        handle.remove()
    args, kwargs, output = calls[0]
    return args, kwargs, output[0]


def under(pipe: Any, modules: dict[Path, float], args: Any, kwargs: Any) -> Tensor:
    """The network's own prediction with LoRAs on."""
    network = network_of(pipe)
    names = {f"n{number}": module for number, module in enumerate(modules)}
    for name, path in names.items():
        load_adapter(network, path, name, prefix=prefix_of(pipe))
    with torch.no_grad(), using(network, {name: modules[path] for name, path in names.items()}):
        pred: Tensor = network(*args, **kwargs)[0]
    for name in names:
        remove_adapter(network, name)
    return pred


def test_conventions_of_the_scales() -> None:
    """CHATS at 0 is the winner, Diffusion-NPO at 1 the preferred model: the same formula with scales one apart."""
    winner, loser = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).unbind()
    assert torch.equal(chats(winner, loser, scale=0.0), winner)
    torch.testing.assert_close(diffusion_npo(winner, loser, guidance_scale=1.0), winner)
    torch.testing.assert_close(chats(winner, loser, scale=2.5), diffusion_npo(winner, loser, guidance_scale=3.5))


@pytest.mark.parametrize("kind", list(PIPELINES))
def test_each_branch_has_its_own_weights_and_text(kind: str, tmp_path: Path) -> None:
    pipe = PIPELINES[kind]()
    positive, negative = lora(pipe, tmp_path, 1), lora(pipe, tmp_path, 2)
    args, kwargs, _ = first_call(pipe)
    cond = under(pipe, {positive: 1.0}, args, kwargs)[2:]
    uncond = under(pipe, {positive: 0.75, negative: 0.5}, args, kwargs)[:2]
    guide = DiffusionNPO(negative=negative, positive=positive, positive_share=0.75, negative_share=0.5)
    for packed in (True, False):
        with attach(pipe, guide, packed=packed):
            torch.testing.assert_close(first_call(pipe)[2], torch.cat([uncond, cond]), rtol=1e-5, atol=1e-5)

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: one if name == "time_ids" else moved(one) for name, one in value.items()}
        text = isinstance(value, Tensor) and value.ndim in (2, 3) and len(value) == 4
        return torch.cat([chats_text(value[:2], value[2:], alpha=0.5), value[2:]]) if text else value

    texts = ("encoder_hidden_states", "pooled_projections", "added_cond_kwargs")
    loser_inputs = {name: moved(value) if name in texts else value for name, value in kwargs.items()}
    expected = torch.cat([under(pipe, {negative: 1.0}, args, loser_inputs)[:2], cond])
    with attach(pipe, CHATS(winner=positive, loser=negative)):
        torch.testing.assert_close(first_call(pipe)[2], expected, rtol=1e-5, atol=1e-5)


def test_limits_and_batches_of_npo(sd: tuple[Any, Path, Path]) -> None:
    """Without any share both branches are the base, bit for bit; images of one prompt stand behind each other."""
    pipe, positive, negative = sd
    plain = sampled(pipe)
    with Recorded(pipe.unet) as seen, attach(pipe, DiffusionNPO(negative=negative, negative_share=0.0)):
        assert torch.equal(sampled(pipe), plain) and seen.rows == [4, 4]
    guide = DiffusionNPO(negative=negative, positive=positive)
    with Recorded(pipe.unet) as seen, attach(pipe, guide):
        pairs = sampled(pipe, [PROMPTS[0]], num_images_per_prompt=2)
        assert seen.rows == [4, 4]
        torch.testing.assert_close(sampled(pipe, [PROMPTS[0]] * 2), pairs, rtol=1e-5, atol=1e-5)
        with pytest.raises(DiffalignError, match="guidance_scale above 1"):
            sampled(pipe, guidance_scale=1.0)
    assert torch.equal(sampled(pipe), plain)
    with pytest.raises(DiffalignError, match=r"shares in \[0, 1\]"):
        DiffusionNPO(negative=negative, negative_share=1.5)


def test_rows_are_named_where_no_pipeline_says_them(sd: tuple[Any, Path, Path]) -> None:
    _, positive, negative = sd
    pipe = sd_pipeline()
    noisy, text = torch.randn(2, 1, 4, 8, 8), torch.randn(2, 1, 77, 96)
    guide = DiffusionNPO(negative=negative, positive=positive)
    with torch.no_grad():
        with attach(pipe, guide), pytest.raises(DiffalignError, match="text_rows='uncond_cond'"):
            pipe.unet(noisy[:, 0], 500, encoder_hidden_states=text[:, 0])
        with attach(pipe, guide, text_rows="uncond_cond"):
            pred = pipe.unet(noisy[:, 0], 500, encoder_hidden_states=text[:, 0]).sample
    parts = [
        under(pipe, weights, (noisy[row], 500), {"encoder_hidden_states": text[row]})
        for row, weights in ((0, {positive: 1.0, negative: 1.0}), (1, {positive: 1.0}))
    ]
    torch.testing.assert_close(pred, torch.cat(parts), rtol=1e-5, atol=1e-5)


def test_a_difference_is_added_to_what_the_branches_predict(sd: tuple[Any, Path, Path]) -> None:
    pipe, positive, negative = sd
    args, kwargs, _ = first_call(pipe)
    p, n = (under(pipe, {path: 1.0}, args, kwargs) for path in (positive, negative))
    base = under(pipe, {}, args, kwargs)
    expected = torch.cat([n[:2], base[2:]]) + 2 * (p - n)
    guide = compose(DiffusionNPO(negative=negative), Contrastive(positive=positive, negative=negative, scale=2.0))
    for options in ({"packed": True}, {"packed": False}, {"refresh_every": 2}):
        with attach(pipe, guide, **options):
            torch.testing.assert_close(first_call(pipe)[2], expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_compose_is_refused_by_name() -> None:
    npo, contrast = DiffusionNPO(negative="n"), Contrastive(positive="p", negative="n", scale=1.0)
    tuned, words = PGD(tuned="t", scale=1.0), NAG(negative_prompt="blurry")
    for guides, message in (
        ((npo, CHATS(winner="w", loser="l")), "DiffusionNPO and CHATS do not compose"),
        ((contrast, tuned), "Weighted takes several"),
        ((npo, tuned), "PGD and DiffusionNPO do not compose"),
        ((Weighted(positives={"a": 1.0}, scale=1.0), npo), "Weighted and DiffusionNPO do not compose"),
        ((words, words), "NAG and NAG"),
        ((object(),), "object does not compose"),
    ):
        with pytest.raises(DiffalignError, match=message):
            compose(*guides)  # type: ignore[arg-type]
    assert compose(tuned, words).adapters == {"tuned": "t"} and compose(contrast, npo, words).needs_branches
