"""The schema of preferences on disk: the columns of both row forms, and a row to and from a record.

A shard is a Parquet file whose images are encoded bytes inside `datasets` Image columns, so that
`datasets.load_dataset("parquet", data_files=...)` and the Hub's viewer show pictures without knowing this package.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from numbers import Real
from typing import Any, Literal

import pyarrow as pa
import pyarrow.types as pat
from PIL import Image

from diffalign.core import DiffalignError, nearest
from diffalign.data.images import BadImage, ImageLimits, check_size, decode_image, encode_png, image_sha256
from diffalign.types import CandidateSet, Pair, Provenance

__all__ = ["LABEL_METRIC", "Form", "Row", "arrow_schema", "pair_as_candidates", "require_columns", "validate_row"]

Form = Literal["pair", "candidates"]
Row = Pair | CandidateSet
Record = dict[str, Any]

LABEL_METRIC = "label"
"""The metric under which `pair_as_candidates` keeps a pair's label; no pair may use it for a score of its own."""


@cache
def arrow_schema(form: Form) -> Any:
    """The Arrow schema of a form, carrying the `datasets` features in its metadata.

    Args:
        form: "pair" or "candidates".

    Returns:
        A ``pyarrow.Schema``.
    """
    from datasets import Features, Image, List, Value

    text, number = Value("string"), Value("float64")
    provenance = {
        "source": text,
        "license": text,
        "sha256": List(text),
        "method": text,
        "parameters": text,  # JSON: every method has its own
        "seed": Value("int64"),
        "model_revision": text,
    }
    if form == "pair":
        columns = {
            "id": text,
            "prompt": text,
            "chosen": Image(),
            "rejected": Image(),
            "mask": Image(),
            "label": number,
            "scores": List({"metric": text, "chosen": number, "rejected": number}),
            "provenance": provenance,
        }
    elif form == "candidates":
        columns = {
            "id": text,
            "prompt": text,
            "images": List(Image()),
            "scores": List({"metric": text, "values": List(number)}),
            "provenance": provenance,
        }
    else:
        raise DiffalignError(f"unknown row form {form!r}; known: pair, candidates")
    return Features(columns).arrow_schema


def row_images(row: Row) -> tuple[Image.Image, ...]:
    """The images of a row in the order of its hashes: (chosen, rejected), or the K candidates."""
    return (row.chosen, row.rejected) if isinstance(row, Pair) else tuple(row.images)


def pair_as_candidates(pair: Pair) -> CandidateSet:
    """A pair as a set of K = 2 candidates (chosen, rejected); its label becomes the metric `LABEL_METRIC`.

    The two scores of that metric are (label, 1 - label), so no preference is lost where there are no other scores.
    """
    scores = {LABEL_METRIC: (pair.label, 1.0 - pair.label), **{name: tuple(two) for name, two in pair.scores.items()}}
    return CandidateSet(
        id=pair.id, prompt=pair.prompt, images=(pair.chosen, pair.rejected), scores=scores, provenance=pair.provenance
    )


def validate_row(row: Row) -> None:
    """Refuse a row that could not be trained on.

    Raises:
        DiffalignError: names the row and says what was expected.
    """
    if not isinstance(row.id, str) or not row.id:
        raise DiffalignError(f"a row's id must be a text that is not empty, got {row.id!r}")
    if not isinstance(row.prompt, str) or not row.prompt.strip():
        raise _row_error(row, f"the prompt must be a text that is not empty, got {row.prompt!r}")
    origin = row.provenance
    for text in (row.id, row.prompt, *row.scores, origin.source, origin.license, origin.method, origin.model_revision):
        if not is_unicode(text):
            raise _row_error(row, f"expected valid Unicode text, got {text!r}")
    images = row_images(row)
    if not images:
        raise _row_error(row, "a candidate set needs at least one image (K >= 1), got none")
    for image in images:
        if not isinstance(image, Image.Image) or image.mode != "RGB":
            got = getattr(image, "mode", type(image).__name__)
            raise _row_error(row, f'images must be PIL images of mode "RGB", got {got}; decode_image makes them so')
    for metric, values in row.scores.items():
        if len(values) != len(images) or not all(_is_finite(value) for value in values):
            raise _row_error(row, f"metric {metric!r} needs {len(images)} finite scores, one per image, got {values}")
    if isinstance(row, Pair):
        _validate_pair(row)


def _validate_pair(pair: Pair) -> None:
    if not _is_finite(pair.label) or not 0 <= pair.label <= 1:
        raise _row_error(pair, f"the label must be a number in [0, 1] (1: chosen is better), got {pair.label!r}")
    if LABEL_METRIC in pair.scores:
        raise _row_error(pair, f"the metric name {LABEL_METRIC!r} is taken by the pair's own label; name it otherwise")
    if pair.mask is not None and (pair.mask.mode != "L" or pair.mask.size != pair.chosen.size):
        raise _row_error(
            pair,
            f'the mask must be an "L" image of the chosen one\'s size {pair.chosen.size}, '
            f"got {pair.mask.mode!r} of size {pair.mask.size}",
        )


def is_unicode(text: object) -> bool:
    """Whether this is text that UTF-8 can store: halves of characters, as in cut JSON, are not."""
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _row_error(row: Row, problem: str) -> DiffalignError:
    return DiffalignError(f"row {row.id!r}: {problem}")


def to_record(row: Row, original: Sequence[bytes] | None = None) -> Record:
    """A validated row as one record of its form's Arrow schema, its images as PNG bytes.

    Args:
        row: as `validate_row` accepts it. Hashes in its provenance are filled in, or checked where given.
        original: the images' own encoded bytes, one per image, to be stored instead of PNG; they must decode to the
            row's very pixels.

    Raises:
        DiffalignError: names the row.
    """
    validate_row(row)
    images = row_images(row)
    hashes = tuple(image_sha256(image) for image in images)
    if row.provenance.sha256 and tuple(row.provenance.sha256) != hashes:
        raise _row_error(row, "the hashes in its provenance are not those of its images; leave them out to have them")
    if original is None:
        encoded = [encode_png(image) for image in images]
    else:
        encoded = list(original)
        if [image_sha256(decode_image(data)) for data in encoded] != list(hashes):
            raise _row_error(row, "the original bytes do not decode to the row's images")
    for image, data in zip(images, encoded, strict=True):
        try:
            check_size(image.size, len(data), ImageLimits())
        except BadImage as bad:
            raise _row_error(row, f"readers would refuse an image: {bad}") from bad
    stored = [{"bytes": data, "path": None} for data in encoded]
    record: Record = {"id": row.id, "prompt": row.prompt, "provenance": _provenance_record(row, hashes)}
    if isinstance(row, Pair):
        record["chosen"], record["rejected"] = stored
        record["mask"] = None if row.mask is None else {"bytes": encode_png(row.mask), "path": None}
        record["label"] = float(row.label)
        record["scores"] = [
            {"metric": metric, "chosen": float(chosen), "rejected": float(rejected)}
            for metric, (chosen, rejected) in row.scores.items()
        ]
    else:
        record["images"] = stored
        record["scores"] = [{"metric": name, "values": [float(v) for v in vs]} for name, vs in row.scores.items()]
    return record


def _provenance_record(row: Row, hashes: tuple[str, ...]) -> Record:
    provenance = row.provenance
    try:
        parameters = json.dumps(dict(provenance.parameters), sort_keys=True, ensure_ascii=False, allow_nan=False)
        parameters.encode()
    except (TypeError, ValueError) as error:
        raise _row_error(row, f"the parameters of its provenance must be plain JSON: {error}") from error
    if provenance.seed is not None and not -(2**63) <= provenance.seed < 2**63:
        raise _row_error(row, f"the seed of its provenance must fit in 64 bits, got {provenance.seed}")
    return {
        "source": provenance.source,
        "license": provenance.license,
        "sha256": list(hashes),
        "method": provenance.method,
        "parameters": parameters,
        "seed": provenance.seed,
        "model_revision": provenance.model_revision,
    }


def from_record(record: Mapping[str, Any], form: Form, limits: ImageLimits) -> Row:
    """The row a record holds: the inverse of `to_record`, for records that may come from anyone.

    Raises:
        DiffalignError: names the row.
    """
    name = record["id"]
    common = {"id": name, "prompt": record["prompt"], "provenance": _to_provenance(name, record["provenance"])}
    scores = record["scores"] or ()
    if any(score is None or None in score.values() for score in scores):
        raise DiffalignError(f"row {name!r}: an entry of its scores is empty; expected a metric and its scores")
    row: Row
    if form == "pair":
        mask = record["mask"]
        row = Pair(
            **common,
            chosen=decode_stored(record["chosen"], name, "chosen", limits),
            rejected=decode_stored(record["rejected"], name, "rejected", limits),
            mask=None if mask is None else decode_stored(mask, name, "mask", limits).convert("L"),
            label=record["label"],
            scores={score["metric"]: (score["chosen"], score["rejected"]) for score in scores},
        )
    else:
        row = CandidateSet(
            **common,
            images=tuple(decode_stored(one, name, "images", limits) for one in record["images"] or ()),
            scores={score["metric"]: tuple(score["values"]) for score in scores},
        )
    validate_row(row)
    return row


def decode_stored(stored: Mapping[str, Any] | None, row_id: str, column: str, limits: ImageLimits) -> Image.Image:
    """The image of one Image cell; only bytes inside the file count, a path in it is never followed."""
    if stored is None or stored["bytes"] is None:
        raise DiffalignError(f"row {row_id!r}: column {column!r} holds no image bytes; embed the images in the file")
    try:
        return decode_image(stored["bytes"], limits=limits)
    except BadImage as bad:
        raise DiffalignError(f"row {row_id!r}: column {column!r}: {bad}") from bad


def _to_provenance(row_id: str, record: Mapping[str, Any] | None) -> Provenance:
    if record is None:
        return Provenance()
    try:
        parameters = json.loads(record["parameters"] or "{}")
    except json.JSONDecodeError as error:
        raise DiffalignError(f"row {row_id!r}: the parameters of its provenance are not JSON: {error}") from error
    if not isinstance(parameters, dict):
        raise DiffalignError(f"row {row_id!r}: the parameters of its provenance must be a JSON object")
    texts = {key: record[key] or "" for key in ("source", "license", "method", "model_revision")}
    return Provenance(**texts, sha256=tuple(record["sha256"] or ()), parameters=parameters, seed=record["seed"])


def require_columns(there: Iterable[str], expected: Iterable[str], where: object) -> None:
    """Refuse a table that lacks columns.

    Args:
        there: the table's column names.
        expected: the names that must be among them.
        where: the file, for the message.

    Raises:
        DiffalignError: says what is missing, what is there, and which names come nearest.
    """
    there, expected = list(there), list(expected)
    missing = [name for name in expected if name not in there]
    if not missing:
        return
    spare = [name for name in there if name not in expected]
    hints = {name: nearest(name, spare, 1) for name in missing}
    listed = ", ".join(repr(name) + (f" (nearest there: {near[0]!r})" if near else "") for name, near in hints.items())
    raise DiffalignError(f"{where}: missing {listed}; expected: {', '.join(expected)}; there: {', '.join(there)}")


def form_of(schema: Any, where: object) -> Form:
    """The row form of a file's Arrow schema.

    Raises:
        DiffalignError: columns are missing or hold something else.
    """
    names = schema.names
    overlap = {form: len(set(names) & set(arrow_schema(form).names)) for form in ("pair", "candidates")}
    form: Form = "candidates" if overlap["candidates"] > overlap["pair"] or "images" in names else "pair"
    expected = arrow_schema(form)
    require_columns(names, expected.names, where)
    for field in expected:
        problem = _type_problem(schema.field(field.name).type, field.type)
        if problem:
            raise DiffalignError(f"{where}: column {field.name!r} {problem}")
    return form


def _type_problem(there: Any, expected: Any) -> str:
    """Why values of type ``there`` cannot be read as ``expected``; empty when they can."""
    if pat.is_struct(expected):
        names = [field.name for field in there] if pat.is_struct(there) else []
        missing = [field.name for field in expected if field.name not in names]
        if missing:
            return f"lacks the field {missing[0]!r}; expected: {expected}, there: {there}"
        problems = [_type_problem(there.field(field.name).type, field.type) for field in expected]
        return next(filter(None, problems), "")
    if pat.is_list(expected):
        is_list = pat.is_list(there) or pat.is_large_list(there)
        return _type_problem(there.value_type, expected.value_type) if is_list else f"must be a list, got {there}"
    kinds = {
        pa.string(): (pat.is_string, pat.is_large_string),
        pa.binary(): (pat.is_binary, pat.is_large_binary),
        pa.float64(): (pat.is_floating, pat.is_integer),
        pa.int64(): (pat.is_integer,),
    }
    fits = pat.is_null(there) or any(is_kind(there) for is_kind in kinds[expected])
    return "" if fits else f"must hold {expected}, got {there}"
