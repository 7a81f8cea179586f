"""Locators with networks: tiny ones of the true architectures, saved as they are published, loaded by the real code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    PreTrainedTokenizerFast,
    SamConfig,
    SamModel,
    SamProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from diffalign.core import DiffalignError
from diffalign.curate import embedded_photographs
from diffalign.curate.locate import Locator, load_locator, mask_of, min_max
from diffalign.curate.locate.onnx_saliency import IMAGENET_MEAN, IMAGENET_STD, square_pixels
from diffalign.curate.locate.saliency_model import foreground

AREA = (0.1, 0.6)
PHOTOS = [photo.image for photo in embedded_photographs("train", 3, 48)]
IMAGES = [PHOTOS[0], PHOTOS[1].resize((40, 56)), PHOTOS[2].resize((61, 37))]
PROMPTS = ["a cat", "Two red dogs.", "grass"]


def covered(mask: Image.Image | None) -> np.ndarray:
    assert mask is not None and mask.mode == "L" and set(np.unique(np.asarray(mask))) <= {0, 255}
    return np.asarray(mask) == 255


def same(one: Image.Image | None, other: Image.Image | None) -> bool:
    """But for float noise: a pixel in two hundred may fall on the other side of a cut."""
    if one is None or other is None:
        return one is other
    return bool((covered(one) ^ covered(other)).mean() < 0.005)


def check_contract(locator: Locator, *, seeds_matter: bool = False) -> None:
    """Sizes, bounds, independence of the batch, and of seeds where nothing is drawn."""
    together = locator(IMAGES, PROMPTS, [5, 6, 7])
    for image, mask in zip(IMAGES, together, strict=True):
        assert covered(mask).shape == (image.height, image.width) and AREA[0] <= covered(mask).mean() <= AREA[1]
    alone = [
        locator([image], [prompt], [seed])[0] for image, prompt, seed in zip(IMAGES, PROMPTS, [5, 6, 7], strict=True)
    ]
    assert all(map(same, together, alone))
    seeds = [locator(IMAGES[:1], PROMPTS[:1], [seed])[0] for seed in range(8)]
    assert all(same(seeds[0], mask) for mask in seeds) != seeds_matter
    assert json.loads(json.dumps(locator.parameters)) == locator.parameters
    assert len(locator.model_revision) == 12


def randomise(model: torch.nn.Module, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, scale, generator=generator)


# ONNX


def save_onnx(
    path: Path, *, shape: Sequence[Any] = ("batch", 3, 320, 320), logits: bool = False, broken: bool = False
) -> Path:
    """sigmoid(red - blue), or red - blue itself, as (B, 1, h, w), and a side output that must not be looked at."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    kernel = np.array([1.0, 0.0, np.nan if broken else -1.0], dtype=np.float32).reshape(1, 3, 1, 1)
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["difference"]),
        helper.make_node("Identity" if logits else "Sigmoid", ["difference"], ["first"]),
        helper.make_node("Neg", ["first"], ["side"]),
    ]
    outputs = [helper.make_tensor_value_info(one, kinds.FLOAT, (shape[0], 1, *shape[2:])) for one in ("first", "side")]
    graph = helper.make_graph(
        nodes,
        "saliency",
        [helper.make_tensor_value_info("input", kinds.FLOAT, shape)],
        outputs,
        [onnx.numpy_helper.from_array(kernel, "kernel")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_onnx_saliency_keeps_the_contract(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    free, fixed = (save_onnx(tmp_path / f"{batch}.onnx", shape=(batch, 3, 320, 320)) for batch in ("batch", 1))
    locator = load_locator({"name": "onnx_saliency", "weights": free, "batch_size": 2}, area=AREA)
    check_contract(locator)
    assert locator.parameters["weights"] == "batch.onnx" and locator.parameters["size"] == 320
    one_by_one = load_locator({"name": "onnx_saliency", "weights": str(fixed)}, area=AREA)
    assert all(map(same, locator(IMAGES, PROMPTS, [0] * 3), one_by_one(IMAGES, PROMPTS, [0] * 3)))
    assert one_by_one.model_revision != locator.model_revision


def test_onnx_saliency_is_the_published_recipe(tmp_path: Path) -> None:
    """By hand: over the image's own largest value, mean and std, sigmoid, min-max, bilinear, above 0.5."""
    pytest.importorskip("onnxruntime")
    shape = ("batch", 3, "height", "width")
    settings = {"name": "onnx_saliency", "weights": save_onnx(tmp_path / "net.onnx", shape=shape), "size": 48}
    dark = PHOTOS[0].point(lambda value: value // 2)
    [mask] = load_locator(settings, area=(0.01, 0.99))([dark], [""], [0])
    pixels = np.asarray(dark, dtype=np.float64)
    pixels = (pixels / pixels.max() - IMAGENET_MEAN) / IMAGENET_STD
    saliency = 1 / (1 + np.exp(pixels[..., 2] - pixels[..., 0]))
    scaled = (saliency - saliency.min()) / (saliency.max() - saliency.min())
    assert same(mask, mask_of(scaled, area=(0.01, 0.99))) and 0.02 < covered(mask).mean() < 0.98


def test_onnx_logits_are_not_scaled_so_that_nothing_may_be_found(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    weights = save_onnx(tmp_path / "net.onnx", shape=("batch", 3, 40, 40), logits=True)
    settings: dict[str, Any] = {"name": "onnx_saliency", "weights": weights}
    cold, warm = Image.new("RGB", (40, 40), (10, 20, 250)), Image.new("RGB", (40, 40), (10, 20, 250))
    cold.paste((90, 20, 250), (0, 0, 20, 16))  # redder than the rest, yet blue
    warm.paste((250, 20, 10), (0, 0, 20, 16))
    logits = load_locator(settings | {"output": "logits"}, area=AREA)([cold, warm], ["", ""], [0, 0])
    scaled = load_locator(settings, area=AREA)([cold, warm], ["", ""], [0, 0])
    assert logits[0] is None and covered(logits[1]).sum() == covered(scaled[0]).sum() == 20 * 16
    grey = Image.new("RGB", (30, 20), "grey")
    assert load_locator(settings)([grey], [""], [0]) == [None]  # flat


def test_pixels_are_squeezed_and_normalised() -> None:
    image = Image.new("RGB", (6, 4), (20, 40, 80))
    expected = np.array([0.25, 0.5, 1.0]) - [0.1, 0.2, 0.3]
    np.testing.assert_allclose(square_pixels(image, 5, [0.1, 0.2, 0.3], [1.0] * 3)[:, 2, 3], expected, rtol=1e-6)
    np.testing.assert_allclose(
        square_pixels(image, 5, [0.0] * 3, [1.0] * 3, peak=255)[:, 0, 0], np.array([20, 40, 80]) / 255, rtol=1e-6
    )
    assert not square_pixels(Image.new("RGB", (6, 4)), 5, [0.0] * 3, [1.0] * 3).any()  # black


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((2, 3, 320, 320), {}, "with a free B or 1, got input tensor"),
        (("b", 1, 320, 320), {}, "with a free B or 1"),
        (("b", 3, 320, 256), {}, "takes 320x256 pixels, expected a square"),
        (("b", 3, 320, 320), {"size": 300}, "expected a square of 300 pixels"),
        (("b", 3, 320, 320), {"std": [0.2, 0.0, 0.2]}, "std above 0"),
        (("b", 3, 320, 320), {"mean": [0.2]}, "at least 3 items"),
        (("b", 3, 320, 320), {"output": "sigmoid"}, "'saliency' or 'logits'"),
        (("b", 3, 320, 320), {"sise": 320}, "nearest: size"),
    ],
)
def test_onnx_files_that_do_not_fit_are_refused(
    tmp_path: Path, shape: Sequence[Any], settings: dict[str, Any], message: str
) -> None:
    pytest.importorskip("onnxruntime")
    kernel_fits = (shape[0], 3, *shape[2:])
    path = save_onnx(tmp_path / "net.onnx", shape=kernel_fits)
    if shape != kernel_fits:
        onnx = pytest.importorskip("onnx")
        loaded = onnx.load(path)
        kernel = onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), dtype=np.float32), "kernel")
        loaded.graph.initializer[0].CopyFrom(kernel)
        loaded.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
        onnx.save(loaded, path)
    with pytest.raises(DiffalignError, match=message):
        load_locator({"name": "onnx_saliency", "weights": str(path), **settings})


def test_broken_onnx_files_and_missing_packages_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    settings = {"name": "onnx_saliency", "weights": str(tmp_path / "net.onnx")}
    with pytest.raises(DiffalignError, match="there is no file"):
        load_locator(settings)
    (tmp_path / "net.onnx").write_bytes(b"not a network")
    with pytest.raises(DiffalignError, match="as an ONNX file"):
        load_locator(settings)
    save_onnx(tmp_path / "net.onnx", broken=True)
    with pytest.raises(DiffalignError, match="not finite"):
        load_locator(settings)(IMAGES, PROMPTS, [0] * 3)
    with pytest.raises(DiffalignError, match="'cpu' or 'cuda'"):
        load_locator(settings, device="meta")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DiffalignError, match=r"pip install 'diffalign\[onnx\]'"):
        load_locator(settings)


# salient-object models of transformers


def save_segformer(folder: Path, labels: Sequence[str]) -> SegformerForSemanticSegmentation:
    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 12], num_attention_heads=[1, 2],
        patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2], decoder_hidden_size=10,
        id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config).eval()
    randomise(model, 0.5)
    model.save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return model


@pytest.mark.parametrize("labels", [["object"], ["nothing", "object"], ["dog", "Background", "cat"]])
def test_segmentation_models_tell_foreground(tmp_path: Path, labels: list[str]) -> None:
    model = save_segformer(tmp_path / "model", labels)
    locator = load_locator({"name": "saliency_model", "weights": tmp_path / "model", "batch_size": 2}, area=AREA)
    masks = locator(IMAGES, PROMPTS, [5, 6, 7])
    pixels = SegformerImageProcessorPil(size={"height": 64, "width": 64})(IMAGES, return_tensors="pt")
    with torch.no_grad():
        logits = model(**pixels).logits
    values = logits[:, 0].sigmoid() if len(labels) == 1 else 1 - logits.softmax(1)[:, len(labels) - 2]
    for image, mask, one in zip(IMAGES, masks, values.numpy(), strict=True):
        full = np.asarray(Image.fromarray(one).resize(image.size, Image.Resampling.BILINEAR))
        assert same(mask, mask_of(full, area=AREA) if (full > 0.5).any() else None)
    assert any(mask is not None for mask in masks)


def test_saliency_models_keep_the_contract(tmp_path: Path) -> None:
    save_segformer(tmp_path, ["background", "object", "other"])
    locator = load_locator({"name": "saliency_model", "weights": str(tmp_path), "batch_size": 2}, area=AREA)
    check_contract(locator)
    before = locator.model_revision
    file = tmp_path / "preprocessor_config.json"
    file.write_text(file.read_text().replace('"height": 64', '"height": 32'))
    assert load_locator({"name": "saliency_model", "weights": str(tmp_path)}).model_revision != before


OWN_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel

class NetConfig(PretrainedConfig):
    model_type = "net"

class Net(PreTrainedModel):
    config_class = NetConfig

    def __init__(self, config):
        super().__init__(config)
        self.convolution = torch.nn.Conv2d(3, 1, 1)
        self.post_init()

    def forward(self, pixels):
        values = self.convolution(pixels)
        return [-values, values]
"""


def save_own_code(folder: Path, bias: float) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "net.py").write_text(OWN_CODE)
    auto = {"AutoConfig": "net.NetConfig", "AutoModelForImageSegmentation": "net.Net"}
    (folder / "config.json").write_text(json.dumps({"architectures": ["Net"], "auto_map": auto, "model_type": "net"}))
    kernel = torch.tensor([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1)
    weights = {"convolution.weight": kernel, "convolution.bias": torch.tensor([bias])}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_code_of_a_models_own_runs_only_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    pixels = (np.asarray(PHOTOS[0]) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    difference = pixels[..., 0] - pixels[..., 2]
    bias = -float(np.quantile(difference, 0.7))
    save_own_code(tmp_path / "net", bias)
    settings = {"name": "saliency_model", "weights": str(tmp_path / "net"), "size": 48}
    with pytest.raises(DiffalignError, match="trust_remote_code"):
        load_locator(settings)
    assert not (tmp_path / "modules").exists()
    locator = load_locator(settings | {"trust_remote_code": True}, area=AREA)
    [mask] = locator(PHOTOS[:1], [""], [0])
    assert same(mask, mask_of(1 / (1 + np.exp(-difference - bias)), area=AREA))
    assert covered(mask).mean() == pytest.approx(0.3, abs=0.01)
    before = locator.model_revision
    (tmp_path / "net" / "net.py").write_text(OWN_CODE + "\n")
    assert load_locator(settings | {"trust_remote_code": True}).model_revision != before


def test_outputs_that_tell_no_foreground_are_refused() -> None:
    class Output:
        alphas = torch.full((2, 1, 3, 4), 0.25)

    assert torch.equal(foreground(Output(), None), torch.full((2, 3, 4), 0.25))
    for output, background in (
        ([torch.zeros(2, 5, 3, 4)], None),
        ([torch.zeros(2, 3, 4)], 0), ([[torch.zeros(2, 1, 3, 4)]], 0), ([], 0), (3, 0),
    ):  # fmt: skip
        with pytest.raises(DiffalignError, match="tells foreground"):
            foreground(output, background)


def test_models_of_another_kind_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_sam(tmp_path)
    for name in ("saliency_model", "grounded"):
        with pytest.raises(DiffalignError, match=r"got SamModel|Unrecognized|cannot load"):
            load_locator({"name": name, "weights": str(tmp_path)})
    with pytest.raises(DiffalignError, match=r"neither a folder nor in the local hub cache"):
        load_locator({"name": "sam", "weights": "nobody/nothing"})
    (tmp_path / "config.json").unlink()
    with pytest.raises(DiffalignError, match=r"config\.json"):
        load_locator({"name": "saliency_model", "weights": str(tmp_path)})


# Segment Anything


def save_sam(folder: Path) -> SamModel:
    torch.manual_seed(0)
    config = SamConfig(
        vision_config={
            "hidden_size": 8, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 8, "window_size": 3, "global_attn_indexes": [0],
            "num_pos_feats": 8, "mlp_dim": 12, "initializer_range": 0.5,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 12,
            "iou_head_hidden_dim": 8, "iou_head_depth": 2,
        },
    )  # fmt: skip
    model = SamModel(config).eval()
    randomise(model, 0.5)
    model.save_pretrained(folder)
    sam_processor().save_pretrained(folder)
    return model


def sam_processor() -> SamImageProcessorPil:
    return SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})


def test_sam_draws_a_segment_of_its_own(tmp_path: Path) -> None:
    save_sam(tmp_path)
    asked = {"points_per_side": 4, "points_per_batch": 7, "min_iou": 0.0, "min_stability": 0.0, "max_overlap": 1.0}
    locator = load_locator({"name": "sam", "weights": str(tmp_path), **asked}, area=AREA)
    check_contract(locator, seeds_matter=True)


def test_sam_asks_at_the_points_of_its_grid(tmp_path: Path) -> None:
    """One point a side is the centre: the three masks that the model itself gives for it."""
    model = save_sam(tmp_path)
    asked = {"points_per_side": 1, "min_iou": 0.0, "min_stability": 0.0, "max_overlap": 1.0}
    locator: Any = load_locator({"name": "sam", "weights": str(tmp_path), **asked})
    image = IMAGES[2]
    processor = SamProcessor(sam_processor())
    inputs = processor(image, input_points=[[[[image.width / 2, image.height / 2]]]], return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=inputs.pixel_values, input_points=inputs.input_points.float())
    [masks] = processor.image_processor.post_process_masks(
        output.pred_masks, inputs.original_sizes, inputs.reshaped_input_sizes
    )
    scores = output.iou_scores.flatten()
    expected = [masks[0][index].numpy() for index in scores.argsort(descending=True)]
    found = locator._segments(image)
    assert len(found) == 3 and len({mask.tobytes() for mask in found}) == 3
    assert all((one ^ other).mean() < 0.005 for one, other in zip(found, expected, strict=True))


def test_sam_keeps_what_its_thresholds_let_pass_and_tells_of_nan(tmp_path: Path) -> None:
    save_sam(tmp_path)
    settings = {"name": "sam", "weights": str(tmp_path), "points_per_side": 2, "min_iou": 0.0, "min_stability": 0.0}
    many: Any = load_locator(settings | {"max_overlap": 1.0})
    few: Any = load_locator(settings | {"max_overlap": 0.1})
    assert 0 < len(few._segments(IMAGES[0])) < len(many._segments(IMAGES[0]))
    assert load_locator(settings | {"min_stability": 1.0, "min_iou": 1.0})(IMAGES, PROMPTS, [0] * 3) == [None] * 3
    with torch.no_grad():
        few.generator.model.vision_encoder.pos_embed.fill_(torch.nan)
    with pytest.raises(DiffalignError, match="not finite"):
        few(IMAGES[:1], PROMPTS[:1], [0])


# text-grounded detectors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?", "a", "cat", "two", "red", "dogs", "grass"]


def save_tokenizer(folder: Path, start: str, end: str) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(start, WORDS.index(start)), (end, WORDS.index(end))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=special)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


def save_owlv2(folder: Path) -> None:
    torch.manual_seed(0)
    config = Owlv2Config(
        text_config={
            "vocab_size": 12, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 7, "bos_token_id": 2, "eos_token_id": 3,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        projection_dim=8,
    )  # fmt: skip
    model = Owlv2ForObjectDetection(config).eval()
    randomise(model, 0.4)
    model.save_pretrained(folder)
    Owlv2ImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    save_tokenizer(folder, "[CLS]", "[SEP]")


def save_grounding_dino(folder: Path) -> None:
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone_config={
            "model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2,
            "image_size": 32, "patch_size": 4, "out_features": ["stage1", "stage2"],
        },
        text_config={
            "model_type": "bert", "vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 24,
        },
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=12, decoder_ffn_dim=12, num_queries=9,
        encoder_attention_heads=4, decoder_attention_heads=4, num_feature_levels=3, max_text_len=20,
        disable_custom_kernels=True,
    )  # fmt: skip
    model = GroundingDinoForObjectDetection(config).eval()
    randomise(model, 0.4)
    model.save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 50}).save_pretrained(folder)
    save_tokenizer(folder, "[CLS]", "[SEP]")


SAVERS = {"owlv2": save_owlv2, "grounding-dino": save_grounding_dino}


@pytest.fixture(scope="module", params=sorted(SAVERS))
def detector(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector") / request.param
    SAVERS[request.param](folder)
    return folder


def grounded(folder: Path, **settings: Any) -> Any:
    return load_locator({"name": "grounded", "weights": str(folder), "threshold": 0.01, **settings}, area=AREA)


def test_detectors_keep_the_contract(detector: Path) -> None:
    check_contract(grounded(detector))


def test_boxes_are_those_of_the_prompt(detector: Path) -> None:
    locator = grounded(detector, max_boxes=3)
    boxes = locator._boxes(IMAGES[1], "a cat")
    assert boxes.shape == (3, 4) and not np.allclose(boxes, locator._boxes(IMAGES[1], "two red dogs"))
    assert grounded(detector, max_boxes=2)._boxes(IMAGES[1], "a cat") == pytest.approx(boxes[:2], abs=1e-3)


def test_long_prompts_are_cut_and_empty_ones_find_nothing(detector: Path) -> None:
    locator = grounded(detector)
    masks = locator([IMAGES[0]] * 3, ["two red dogs " * 40, " \n", "..."], [0, 0, 0])
    assert masks[0] is not None and masks[1:] == [None, None]
    assert grounded(detector, threshold=0.999999)(IMAGES, PROMPTS, [0] * 3) == [None] * 3


def test_detectors_with_numbers_that_are_not_finite_are_told(detector: Path) -> None:
    locator = grounded(detector)
    with torch.no_grad():
        for weight in locator.model.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(DiffalignError, match="not finite"):
        locator(IMAGES[:1], PROMPTS[:1], [0])


def test_boxes_of_owlv2_are_in_pixels_of_the_padded_square(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A box over the left half of the square is over all of the left half of a wide image."""
    save_owlv2(tmp_path)
    locator = grounded(tmp_path)
    forward: Callable[..., Any] = locator.model.forward

    def left_half(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.pred_boxes[:] = torch.tensor([0.25, 0.5, 0.5, 1.0])
        return output

    monkeypatch.setattr(locator.model, "forward", left_half)
    expected = np.zeros((10, 24), dtype=bool)
    expected[:, :12] = True
    np.testing.assert_array_equal(covered(locator([IMAGES[0].resize((24, 10))], ["a cat"], [0])[0]), expected)


def test_min_max_of_a_networks_noise_is_flat() -> None:
    assert not min_max(np.array([[0.5, 0.5004], [0.5, 0.5]]), flat=1e-3).any()
