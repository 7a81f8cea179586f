"""Finding weights, loading them whole or not at all, and their revision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoTokenizer

from diffalign.core import DiffalignError, content_hash, read_json, sha256_file
from diffalign.models import EMBEDDED_MODELS, embedded_path, quiet_loading

__all__ = ["converted_folder", "find_folder", "load_model", "load_tokenizer", "weights_revision"]

MARK = "reward.json"  # beside converted weights: which reward they are of, and the sha256 of what was converted
CONFIGS = ("*.json", "*.txt")
WEIGHTS = (*CONFIGS, "model*.safetensors")
TOKENIZER = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
}


def find_folder(weights: str | Path, files: tuple[str, ...] = WEIGHTS) -> Path:
    """The local folder of a model: a folder, an embedded model, or a hub id (downloaded or in the hub's cache).

    Args:
        weights: path of a folder, name of an embedded model, or "owner/name".
        files: patterns of what is wanted from the hub.

    Raises:
        DiffalignError: it is none of these, or cannot be reached; says how to get it.
    """
    if Path(weights).is_dir():
        return Path(weights)
    if weights in EMBEDDED_MODELS:
        return embedded_path(str(weights))
    try:
        return Path(snapshot_download(str(weights), allow_patterns=list(files)))
    except HFValidationError as error:
        raise DiffalignError(f"there is no folder {weights}, and it is not a hub id such as 'owner/name'") from error
    except LocalEntryNotFoundError as error:
        raise DiffalignError(
            f"{weights} is neither a folder nor in the local hub cache, and the hub cannot be reached (or "
            f"HF_HUB_OFFLINE is set): run `hf download {weights}` while online, or give the folder as weights=..."
        ) from error
    except HfHubHTTPError as error:
        raise DiffalignError(
            f"cannot get {weights} from the hub: {error}\nCheck the id and your access to it"
        ) from error


def converted_folder(name: str, weights: str | Path | None, wanted: str) -> Path:
    """The folder that ``convert_reward`` wrote for this reward.

    Args:
        name: of the reward.
        weights: the folder.
        wanted: the published file it is made from, for the message.

    Raises:
        DiffalignError: no folder given, or it holds something else; says which file is wanted and what to do with it.
    """
    advice = f"get {wanted}, run convert_reward({name!r}, <that file>, <folder>) once, then give weights=<folder>"
    if weights is None:
        raise DiffalignError(f"reward {name!r} needs converted weights: {advice}")
    mark = Path(weights) / MARK
    if not mark.is_file():
        raise DiffalignError(f"{weights} holds no converted weights of reward {name!r}: {advice}")
    found = read_json(mark).get("reward")
    if found != name:
        raise DiffalignError(f"{weights} holds the weights of reward {found!r}, not of {name!r}: {advice}")
    return Path(weights)


def load_model(model_class: Any, folder: Path, **options: Any) -> Any:
    """A transformers model in float32, frozen, in evaluation mode, with every weight read from safetensors.

    Raises:
        DiffalignError: weights are missing, of another shape or unreadable.
    """
    try:
        with quiet_loading():
            model, info = model_class.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DiffalignError(
            f"cannot load {folder} as a {model_class.__name__}: {error}\nExpected config.json and safetensors weights."
        ) from error
    if info["missing_keys"] or info["mismatched_keys"]:  # transformers would leave these at random
        lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise DiffalignError(
            f"{folder} is not a whole {model_class.__name__}: {len(lacking)} weights lack: {lacking[:3]}"
        )
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        DiffalignError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise DiffalignError(f"cannot load a tokenizer from {folder}: {error}") from error


def weights_revision(folder: Path, tokenizer: Path | None = None) -> str:
    """Twelve hex digits of a sha256 over the weights, configurations and tokenizer; about a second per gigabyte.

    Args:
        folder: of the model.
        tokenizer: its tokenizer's folder, where that is another.
    """
    decisive = {"config.json", *TOKENIZER}
    files = [(folder, file) for file in folder.rglob("*") if file.suffix == ".safetensors" or file.name in decisive]
    if tokenizer is not None and tokenizer != folder:
        files += [(tokenizer, file) for file in tokenizer.iterdir() if file.name in TOKENIZER]
    return content_hash(sorted((file.relative_to(place).as_posix(), sha256_file(file)) for place, file in files))[:12]
