"""LoRA files in the formats people share, read into one form: module name -> down, up, alpha.

Formats: diffusers (``unet.<module>.lora_A.weight``, also its older ``to_q_lora.down`` spelling), peft (a folder with
``adapter_config.json``) and kohya (``lora_unet_<module with underscores>.lora_down.weight`` and ``.alpha``; for SDXL
and SD 3 under the original checkpoints' names: the one counts its blocks through, the other has query, key and value in
one layer).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from diffusers.loaders.lora_conversion_utils import _convert_unet_lora_key, _maybe_map_sgm_blocks_to_diffusers
from diffusers.utils import convert_unet_state_dict_to_peft
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffalign.core import DiffalignError, atomic_path, nearest, read_json

__all__ = ["LoraPair", "missing_weights", "read_lora", "write_lora"]

_TEXT_ENCODERS = ("text_encoder", "lora_te")
_PEFT_PREFIX = "base_model.model."
_KOHYA_PREFIXES = ("lora_unet_", "lora_transformer_")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_SGM_NAMES = ("input_blocks_", "middle_block_", "output_blocks_", "time_embed_", "label_emb_", "out_2")
_FIRST_RESNETS = re.compile(r"down_blocks\.0\.resnets\.\d+")
_SD3_BLOCK = re.compile(r"joint_blocks_(?P<block>\d+)_(?P<layer>(?:x|context)_block_.+)")
_SD3_LAYERS = {
    "x_block_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block_attn_proj": ("attn.to_out.0",),
    "x_block_attn2_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block_attn2_proj": ("attn2.to_out.0",),
    "x_block_mlp_fc1": ("ff.net.0.proj",),
    "x_block_mlp_fc2": ("ff.net.2",),
    "x_block_adaLN_modulation_1": ("norm1.linear",),
    "context_block_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block_attn_proj": ("attn.to_add_out",),
    "context_block_mlp_fc1": ("ff_context.net.0.proj",),
    "context_block_mlp_fc2": ("ff_context.net.2",),
    "context_block_adaLN_modulation_1": ("norm1_context.linear",),
}
_KEY = re.compile(
    r"(?P<module>.+)\.(?:(?P<down>lora_A(?:\.default)?\.weight|lora_down\.weight)"
    r"|(?P<up>lora_B(?:\.default)?\.weight|lora_up\.weight)|alpha)"
)


@dataclass(frozen=True, eq=False)
class LoraPair:
    """One adapted layer: ``W + alpha/rank * up @ down``.

    Attributes:
        down: (rank, in), or (rank, in, kh, kw) for a convolution.
        up: (out, rank), or (out, rank, 1, 1).
        alpha: scale times rank.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Number of rows of ``down``."""
        return int(self.down.shape[0])


def read_lora(
    path: str | Path, *, prefix: str, modules: Iterable[str], ignore_text_encoders: bool = False
) -> dict[str, LoraPair]:
    """Reads a LoRA file or folder for a denoiser.

    Args:
        path: a ``.safetensors`` file, or a folder that holds one.
        prefix: the denoiser's name in diffusers files: "unet" or "transformer".
        modules: names of the denoiser's linear and convolution layers.
        ignore_text_encoders: leave out parts of the file that adapt text encoders, instead of refusing the file.

    Returns:
        Module name -> its pair, tensors on the CPU as stored.

    Raises:
        DiffalignError: no such file, a pickled or damaged file, a LoRA variant or layer that is not known here.
    """
    file = _find_file(Path(path))
    tensors, metadata = _read_safetensors(file)
    text_keys = [key for key in tensors if key.startswith(_TEXT_ENCODERS)]
    if text_keys and not ignore_text_encoders:
        raise DiffalignError(
            f"{file} also adapts text encoders ({_few(text_keys)}), which stay frozen here. "
            "Pass ignore_text_encoders=True to load only the denoiser's part."
        )
    tensors = {key: tensor for key, tensor in tensors.items() if key not in text_keys}
    if any(key.startswith(_KOHYA_PREFIXES) for key in tensors):
        tensors, scales = _from_kohya(tensors, modules), {}
    elif any(key.startswith(_PEFT_PREFIX) for key in tensors):
        tensors = {key.removeprefix(_PEFT_PREFIX): tensor for key, tensor in tensors.items()}
        scales = _read_peft_config(file)
    else:
        tensors, scales = _from_diffusers(tensors, metadata, prefix)
    return _pair_up(tensors, scales, file, set(modules))


def write_lora(path: Path, pairs: Mapping[str, LoraPair], *, prefix: str, config: Mapping[str, Any]) -> None:
    """Writes pairs as diffusers does, so that ``pipe.load_lora_weights`` on the folder restores rank and alpha too.

    Args:
        path: the file, named ``pytorch_lora_weights.safetensors`` if diffusers shall find it in its folder.
        pairs: module name -> its pair.
        prefix: "unet" or "transformer".
        config: the LoraConfig entries that rebuild the adapter: r, lora_alpha, patterns, target_modules.
    """
    tensors = {}
    for module, pair in pairs.items():
        tensors[f"{prefix}.{module}.lora_A.weight"] = pair.down.detach().cpu().contiguous()
        tensors[f"{prefix}.{module}.lora_B.weight"] = pair.up.detach().cpu().contiguous()
    described = {f"{prefix}.{key}": value for key, value in config.items()}
    metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(described, sort_keys=True)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def missing_weights(path: Path) -> str:
    """What to say of a path that holds no weights: that nothing is there, or where a training run keeps its own."""
    if not path.exists():
        return f"{path} does not exist"
    kept = [one for one in (path / "policy", *sorted(path.glob("*/policy"))) if one.is_dir()]
    return f"found none in {path}" + (f"; this run's weights lie in {kept[-1]}" if kept else "")


def _find_file(path: Path) -> Path:
    if path.is_file():
        candidates = [path]
    elif path.is_dir():
        named = [path / name for name in ("adapter_model.safetensors", LORA_WEIGHT_NAME_SAFE)]
        candidates = [one for one in named if one.is_file()][:1]
        candidates = candidates or sorted(path.glob("*.safetensors"))
        candidates = candidates or sorted(one for one in path.iterdir() if one.suffix in _PICKLED)
    else:
        raise DiffalignError(f"expected a LoRA file or folder, found nothing at {path}; download it first")
    if not candidates:
        raise DiffalignError(f"expected one .safetensors file: {missing_weights(path)}")
    if len(candidates) > 1:
        found = _few([one.name for one in candidates])
        raise DiffalignError(f"expected one .safetensors file in {path}, found {found}: name the file")
    if candidates[0].suffix in _PICKLED:
        raise DiffalignError(
            f"{candidates[0]} is pickled: opening it can run code, so it is not read. Ask for a .safetensors file, "
            "or, if you trust it, convert it with torch.load(..., weights_only=True) and safetensors.torch.save_file."
        )
    return candidates[0]


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as handle:
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118  (not a mapping)
            raw = (handle.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
            metadata = json.loads(raw) if raw else {}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise DiffalignError(f"{file} is not a whole safetensors file ({error}); fetch it again") from error
    if not tensors or not isinstance(metadata, dict):
        raise DiffalignError(f"{file} holds no tensors, or {LORA_ADAPTER_METADATA_KEY} that is not an object")
    return tensors, metadata


def _from_kohya(tensors: Mapping[str, Tensor], modules: Iterable[str]) -> dict[str, Tensor]:
    """Kohya writes the module's path with underscores; only the network itself can say where the dots were."""
    names = {module.replace(".", "_"): module for module in modules}
    known = set(names.values())
    layers_per_block = len({match[0] for match in map(_FIRST_RESNETS.match, known) if match})
    renamed = {}
    for key, tensor in tensors.items():
        flat, _, part = key.partition(".")
        flat = next((flat.removeprefix(prefix) for prefix in _KOHYA_PREFIXES if flat.startswith(prefix)), flat)
        name = names.get(flat) or _from_sgm(flat, layers_per_block)
        if name in known:
            renamed[f"{name}.{part}"] = tensor
        else:
            renamed |= _from_kohya_sd3(flat, part, tensor, known) or {key: tensor}
    return renamed


def _from_sgm(flat: str, layers_per_block: int) -> str:
    """A layer under the original SDXL checkpoint's name, such as ``input_blocks_4_1_proj_in``, as diffusers calls it.

    Empty if it is none. diffusers' mapping is given one name at a time: of a file with both spellings it drops layers.
    """
    if not flat.startswith(_SGM_NAMES):
        return ""
    key = f"lora_unet_{flat}.lora_down.weight"
    try:
        (key,) = _maybe_map_sgm_blocks_to_diffusers({key: None}, SimpleNamespace(layers_per_block=layers_per_block))
        (key,) = convert_unet_state_dict_to_peft({_convert_unet_lora_key(key): None})
    except (ValueError, IndexError):  # no UNet has such a block
        return ""
    return str(key).removesuffix(".lora_A.weight")


def _from_kohya_sd3(flat: str, part: str, tensor: Tensor, modules: Iterable[str]) -> dict[str, Tensor]:
    """One tensor of an SD 3 layer under the names of diffusers, empty if it is none.

    A fused layer's update is ``up @ down``: its parts share ``down`` and each takes a third of the rows of ``up``.
    """
    match = _SD3_BLOCK.fullmatch(flat)
    targets = _SD3_LAYERS.get(match["layer"], ()) if match else ()
    if match is None or not targets:
        return {}
    block = f"transformer_blocks.{match['block']}."
    rows = list(tensor.chunk(len(targets))) if part == "lora_up.weight" else [tensor] * len(targets)
    if targets == ("norm1_context.linear",) and f"{block}attn.to_add_out" not in modules and part == "lora_up.weight":
        rows = [torch.cat(tensor.chunk(2)[::-1])]  # the last block, where diffusers stores scale before shift
    return {f"{block}{target}.{part}": row.clone() for target, row in zip(targets, rows, strict=True)}


def _from_diffusers(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], prefix: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Strips the prefix, if the file uses one, and modernises older spellings."""
    dotted = f"{prefix}."
    if any(key.startswith(dotted) for key in tensors):
        metadata = {key.removeprefix(dotted): value for key, value in metadata.items() if key.startswith(dotted)}
        tensors = {key.removeprefix(dotted): tensor for key, tensor in tensors.items()}
    if any("_lora." in key or ".lora." in key for key in tensors):
        tensors = convert_unet_state_dict_to_peft(dict(tensors))
    return dict(tensors), dict(metadata)


def _read_peft_config(file: Path) -> dict[str, Any]:
    path = file.with_name("adapter_config.json")
    if not path.is_file():
        raise DiffalignError(f"{file} is a peft file: expected its adapter_config.json (rank, alpha) beside it")
    config: dict[str, Any] = read_json(path)
    unsupported = [
        key for key in ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices") if config.get(key)
    ]
    if config.get("peft_type", "LORA") != "LORA" or config.get("bias", "none") != "none" or unsupported:
        raise DiffalignError(
            f"{path}: expected plain LoRA, got peft_type {config.get('peft_type')!r}, bias {config.get('bias')!r}"
            + (f" with {', '.join(unsupported)}" if unsupported else "")
        )
    return config


def _pair_up(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], file: Path, modules: set[str]
) -> dict[str, LoraPair]:
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    unknown = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or match["module"] not in modules:
            unknown.append(key)
        else:
            kind = "down" if match["down"] else "up" if match["up"] else "alpha"
            parts[match["module"]][kind] = tensor
    if unknown:
        known = nearest(unknown[0].rsplit(".lora", 1)[0], modules, n=1)
        raise DiffalignError(
            f"{file} holds {len(unknown)} entries that are not plain LoRA of this network: {_few(unknown)}. "
            "It was made for another architecture or by another method (DoRA, LoHa, LoKr, full weights)"
            + (f"; the nearest layer here is {known[0]}." if known else ".")
        )
    pairs = {}
    for module, part in parts.items():
        if "down" not in part or "up" not in part:
            raise DiffalignError(f"{file}: layer {module} has only {', '.join(sorted(part))}, expected down and up")
        stored = part.get("alpha")
        if part["down"].ndim < 2 or not part["down"].numel() or (stored is not None and stored.numel() != 1):
            raise DiffalignError(f"{file}: layer {module} holds no matrices, or an alpha that is not one number")
        alpha = stored.item() if stored is not None else _alpha(config, module, rank=len(part["down"]))
        pairs[module] = LoraPair(part["down"], part["up"], float(alpha))
    return pairs


def _alpha(config: Mapping[str, Any], module: str, *, rank: int) -> float:
    """The layer's alpha after patterns and rank-stabilised scaling; files without a config mean scale 1."""
    patterns = config.get("alpha_pattern") or {}
    default = config.get("lora_alpha", rank) if config else rank
    alpha = float(patterns.get(get_pattern_key(list(patterns), module), default))
    return alpha * rank**0.5 if config.get("use_rslora") else alpha


def _few(names: Iterable[str], limit: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
