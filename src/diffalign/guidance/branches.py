"""Which rows of a batch belong to which text branch, and batches of chosen rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.guidance.chats import chats_text
from diffalign.guidance.contract import Branch

__all__ = ["TextBranches", "TextRows", "extrapolate_text", "pack_rows", "text_branches"]

TextRows = Literal["auto", "uncond_cond", "cond"]

# of diffusers' pipelines: names of those whose batches have the unconditional half first, by how they start
_UNCOND_FIRST = ("StableDiffusion", "Kolors", "HunyuanDiT", "SanaPipeline", "SanaControlNet", "SanaPAG")
_THIRD_BRANCH = ("do_perturbed_attention_guidance", "image_guidance_scale")  # of diffusers' pipelines
_UNBATCHED = ("img_ids", "txt_ids")  # positions of tokens, the same for every row
_TEXT_FIELDS = ("encoder_hidden_states", "pooled_projections", "text_embeds")


@dataclass(frozen=True)
class TextBranches:
    """Rows of a batch, the unconditional ones before the conditional ones, as diffusers puts them.

    Attributes:
        num_uncond: 0 without text guidance.
        num_rows: of the batch.
    """

    num_uncond: int
    num_rows: int

    def rows(self, branch: Branch) -> range:
        """Numbers of the branch's rows."""
        if branch == "both":
            return range(self.num_rows)
        return range(self.num_uncond) if branch == "uncond" else range(self.num_uncond, self.num_rows)


def text_branches(pipeline: Any, num_rows: int, text_rows: TextRows) -> TextBranches:
    """How the rows of the running batch are laid out.

    Args:
        pipeline: while it is being called, where ``text_rows`` is "auto".
        num_rows: of the batch.
        text_rows: "auto" asks the ``do_classifier_free_guidance`` of pipelines that put the unconditional half first;
            others call the network once per branch, or lay rows out the other way round. "uncond_cond" is half and
            half, "cond" has no unconditional rows.

    Raises:
        DiffalignError: that is not known of the pipeline, or halves are not equal.
    """
    if text_rows == "auto":
        if any(getattr(pipeline, name, None) for name in _THIRD_BRANCH):
            raise DiffalignError(
                f"{type(pipeline).__name__} puts a third branch into its batches, for which this guide is not defined: "
                "turn its pag_scale off, or use a guide of both text branches"
            )
        known = any(kind.__name__.startswith(_UNCOND_FIRST) for kind in type(pipeline).__mro__)
        guided = known and getattr(pipeline, "do_classifier_free_guidance", None)
        if not known or guided is None:
            raise DiffalignError(
                f"cannot tell conditional from unconditional rows: it is not known how {type(pipeline).__name__} lays "
                "them out, or it is not what calls the denoiser. Give attach text_rows='uncond_cond' if batches hold "
                "the unconditional half first, or text_rows='cond' without text guidance"
            )
    else:
        guided = text_rows == "uncond_cond"
    if guided and num_rows % 2:
        raise DiffalignError(f"expected an unconditional and a conditional half of equal size, got {num_rows} rows")
    return TextBranches(num_rows // 2 if guided else 0, num_rows)


def pack_rows(parts: Sequence[tuple[Mapping[str, Any], range]], num_rows: int) -> dict[str, Any]:
    """A denoiser's arguments for chosen rows of several calls, one after the other in one batch.

    Args:
        parts: arguments (name -> value; tensors may lie in lists, tuples and dicts) and the rows to take of them. They
            differ between parts in what has a row per sample alone.
        num_rows: of the batch that every part's arguments are for; tensors of that length have a row per sample.
    """
    names = parts[0][0]
    rows = [each for _, each in parts]
    return {
        name: value if name in _UNBATCHED else _pack([arguments[name] for arguments, _ in parts], rows, num_rows)
        for name, value in names.items()
    }


def _pack(values: Sequence[Any], rows: Sequence[range], num_rows: int) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        if first.ndim == 0 or len(first) != num_rows:
            return first
        taken = [value[each.start : each.stop] for value, each in zip(values, rows, strict=True)]
        return taken[0] if len(taken) == 1 else torch.cat(taken)
    if isinstance(first, (list, tuple)):
        return type(first)(_pack(each, rows, num_rows) for each in zip(*values, strict=True))
    if isinstance(first, Mapping):
        return {key: _pack([value[key] for value in values], rows, num_rows) for key in first}
    return first


def extrapolate_text(arguments: Mapping[str, Any], branches: TextBranches, alpha: float) -> dict[str, Any]:
    """A denoiser's arguments with the text of unconditional rows moved away from that of conditional ones.

    See ``chats_text``; it is done to token and pooled embeddings.
    """

    if not alpha:
        return dict(arguments)
    moved: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            moved[name] = extrapolate_text(value, branches, alpha)
        elif name in _TEXT_FIELDS and isinstance(value, Tensor):
            uncond, cond = value[: branches.num_uncond], value[branches.num_uncond :]
            moved[name] = torch.cat([chats_text(uncond, cond, alpha=alpha), cond])
        else:
            moved[name] = value
    return moved
