"""What tests of curation need: a folder such as people have, and a reward that fails."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from diffalign.core import numpy_generator
from diffalign.curate.sources import Photo, Rejected
from diffalign.data import draw_crop

SIZE = 32


def picture(number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A crop of a photograph, another for each number."""
    return draw_crop("train", numpy_generator("hostile", number), size=64).image.resize(size)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def bomb(side: int = 50_000) -> bytes:
    """A PNG of few bytes whose header promises billions of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


ODD = "\\udcff.png"  # how the name of the byte 255 is shown

# every name below the folder and why it is rejected; None where it is a photograph
HOSTILE: dict[str, str | None] = {
    "../outside.png": "outside",
    "/etc/hostname": "outside",
    "animated.gif": None,
    "a..b.png": None,
    "bad caption.png": "bad caption",
    "bomb.png": "too_large",
    "cmyk.jpg": None,
    "corrupt.png": "corrupt",
    "deep.png": None,
    "empty.png": "empty",
    "link.png": "unreadable",
    "long caption.png": "bad caption",
    "markup.png": None,
    "no caption.png": "no caption",
    "notes.pdf": "not_an_image",
    "one.png": "too_small",
    "only markup.png": "no caption",
    "small.png": "too_small",
    "tabby_cat/1.png": None,
    "tabby_cat/again.png": None,  # the same picture as 1.png
    "truncated.jpg": "truncated",
    "turned.jpg": None,
    "two\nlines.png": None,
    ODD: None,
}


def hostile_folder(folder: Path) -> Path:
    """Writes the photographs of `HOSTILE`."""
    folder.mkdir()
    (folder / "tabby_cat").mkdir()
    whole = png(picture(1))
    files = {
        "a..b.png": png(picture(2)),
        "bad caption.png": whole,
        "bomb.png": bomb(),
        "corrupt.png": whole[:60] + bytes(byte ^ 0xFF for byte in whole[60:90]) + whole[90:],
        "empty.png": b"",
        "long caption.png": whole,
        "markup.png": png(picture(3)),
        "no caption.png": whole,
        "notes.pdf": b"%PDF-1.7",
        "one.png": png(Image.new("RGB", (1, 1))),
        "only markup.png": whole,
        "small.png": png(picture(4, (SIZE - 1, 90))),
        "tabby_cat/1.png": png(picture(5)),
        "tabby_cat/again.png": png(picture(5)),
        "two\nlines.png": png(picture(6)),
        ".hidden.png": whole,
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(png(picture(7)))
    (folder / "link.png").symlink_to("nowhere.png")
    picture(8).convert("CMYK").save(folder / "cmyk.jpg")
    picture(9).save(folder / "truncated.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "truncated.jpg").read_bytes()[:-300])
    frames = [Image.new("RGB", (SIZE, 33), colour) for colour in ("red", "lime", "blue")]
    frames[0].paste("white", (4, 4, 12, 12))
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    ramp = np.linspace(0, 65535, 36 * 32).reshape(36, 32).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "deep.png")
    lying = Image.new("RGB", (64, 32), "blue")
    lying.paste("red", (0, 0, 32, 32))  # the left half comes to the top
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    lying.save(folder / "turned.jpg", quality=95, exif=exif)
    write_captions(folder)
    return folder


def write_captions(folder: Path) -> None:
    (folder / "markup.txt").write_text("<p>A <b>cat</b>,\n1 &amp; only</p><script>alert('x')</script>")
    (folder / "only markup.txt").write_text("<img src=x onerror=alert(1)>")
    (folder / "bad caption.txt").write_bytes("ein schönes Bild".encode("latin-1"))
    (folder / "long caption.txt").write_text("cat " * 10_000)
    captioned = [name for name, reason in HOSTILE.items() if reason != "no caption" and "/1" not in name]
    alone = {"markup.png", "only markup.png", "no caption.png", "tabby_cat/again.png"}
    names = [os.fsdecode(b"\xff.png") if name == ODD else name for name in captioned if name not in alone]
    rows = [{"file_name": name, "text": f"a photo, number {number}"} for number, name in enumerate(names)]
    rows[names.index("cmyk.jpg")]["license"] = "CC0-1.0"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def nan_for_flowers(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """A reward that has no score for flowers, and else prefers contrast."""
    return [
        float("nan") if "flower" in prompt else float(np.asarray(image).std())
        for image, prompt in zip(images, prompts, strict=True)
    ]


WORDS = ("a", "b", "c", "d", "cat", "dog", "tree", "house", "red", "green", "user", "assistant")


def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = [*special.values(), "<image>", *WORDS]
    built = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    built.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=built, extra_special_tokens={"image_token": "<image>"}, **special)


TEMPLATE = (
    "{% for message in messages %}{{ message.role }}{% for part in message.content %}"
    " {{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endfor %} assistant"
)


def tiny_llava(folder: Path, seed: int = 0, template: str | None = TEMPLATE) -> Path:
    """A LLaVA of few channels, saved as published ones are; it never ends a caption by itself."""
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor
    from transformers import LlavaForConditionalGeneration as Llava

    tokenizer = _tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
    )
    torch.manual_seed(seed)
    model = Llava(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight))
        model.model.language_model.layers[0].self_attn.o_proj.weight *= 20  # else every image reads alike
        model.lm_head.weight[:5] = 0  # special tokens are never likely
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def tiny_blip(folder: Path) -> Path:
    """A BLIP of few channels, saved as published ones are."""
    import torch
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        BlipTextConfig,
        BlipVisionConfig,
    )

    folder.mkdir(exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = BlipTextConfig(
        vocab_size=len(words),
        encoder_hidden_size=8,
        bos_token_id=5,
        eos_token_id=3,
        pad_token_id=0,
        sep_token_id=3,
        **shape,
    )
    config = BlipConfig(text_config=text, vision_config=BlipVisionConfig(image_size=24, patch_size=8, **shape))
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 24, "width": 24}), tokenizer).save_pretrained(folder)
    return folder


def album(folder: Path, count: int) -> Path:
    """Pictures 0.png, 1.png and on, each with its caption beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(picture(number)))
        (folder / f"{number}.txt").write_text(f"photo {number}")
    return folder


def write_parquet(
    file: Path, numbers: Iterable[int], *, image: str = "image", license: str = "", row_group_size: int = 2
) -> None:
    """Pictures and captions in a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = list(numbers)
    cells = [{"bytes": png(picture(number)), "path": f"{number}.png"} for number in numbers]
    columns = {"id": numbers, image: cells, "text": [f"photo {number}" for number in numbers]}
    columns |= {"license": [license] * len(numbers)} if license else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=row_group_size)


def prompts(photos: Iterable[Photo | Rejected]) -> list[str]:
    """Captions; a photograph that was rejected shows why."""
    return [one.prompt if isinstance(one, Photo) else f"{one.name}: {one.reason}, {one.detail}" for one in photos]


def reasons(photos: Iterable[Photo | Rejected]) -> list[str | None]:
    """Why each was rejected; None where it was not."""
    return [one.reason if isinstance(one, Rejected) else None for one in photos]
