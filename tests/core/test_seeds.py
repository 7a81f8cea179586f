"""The mapping from content to seeds must never drift: stored latents and published runs depend on it."""

import hashlib
import math
from types import MappingProxyType

import numpy as np
import pytest
import torch

from diffalign.core import content_hash, numpy_generator, seed_from, torch_generator


def field(tag: bytes, payload: bytes) -> bytes:
    return tag + len(payload).to_bytes(8, "big") + payload


def test_the_encoding_is_as_documented():
    """content_hash("ab", 7) is the sha256 of L<len>(S<len>"ab" I<len>"7"), written out by hand."""
    encoded = field(b"L", field(b"S", b"ab") + field(b"I", b"7"))
    assert content_hash("ab", 7) == hashlib.sha256(encoded).hexdigest()


def test_known_values():
    assert content_hash() == hashlib.sha256(b"L" + bytes(8)).hexdigest()
    everything = content_hash(None, True, -3, 0.1, "é", b"\0", [1, [2]], {"b": 1, "a": None})
    assert everything == "48e650073a46d56242eb9ff1165de1f96f32be22a352b8bdc68295b63d53dbcf"
    assert seed_from("row-17", "noise", 0) == 8970074639793642590
    assert torch.randn(3, generator=torch_generator("row-17")).tolist() == pytest.approx(
        [-1.320078, -1.636271, 1.257448], abs=1e-6
    )
    assert numpy_generator("row-17").integers(0, 1000, 4).tolist() == [563, 380, 680, 220]


def test_values_are_equal_only_if_type_and_content_are():
    values = [
        None,
        False,
        True,
        0,
        1,
        0.0,
        1.0,
        "",
        "1",
        b"",
        b"1",
        [],
        [1],
        {},
        {"1": 1},
        {1: 1},
        [[1]],
        math.inf,
        "None",
    ]
    assert len({content_hash(value) for value in values}) == len(values)


def test_parts_do_not_run_into_each_other():
    splits = [("ab", "c"), ("a", "bc"), ("abc",), (["ab", "c"],), ("abc", ""), (["ab"], "c")]
    assert len({content_hash(*parts) for parts in splits}) == len(splits)


def test_what_counts_as_equal():
    assert content_hash((1, 2)) == content_hash([1, 2])
    assert content_hash({"a": 1, "b": 2}) == content_hash(MappingProxyType({"b": 2, "a": 1}))
    assert content_hash(-0.0) == content_hash(0.0)


@pytest.mark.parametrize("part", [object(), {1, 2}, np.int64(3), np.zeros(2), 1j])
def test_other_types_are_refused(part):
    with pytest.raises(TypeError, match=type(part).__name__):
        content_hash("a", [part])


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        content_hash(math.nan)


def test_seeds_fit_every_generator_and_differ():
    seeds = [seed_from("row", index) for index in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds) and len(set(seeds)) == 1000
    assert max(seeds) > 2**62  # all 63 bits are used


def test_generators_are_fresh_each_time():
    first, again = torch_generator("a", 1), torch_generator("a", 1)
    assert torch.equal(torch.randn(5, generator=first), torch.randn(5, generator=again))
    assert not torch.equal(
        torch.randn(5, generator=torch_generator("a", 2)), torch.randn(5, generator=torch_generator("a", 1))
    )
    assert numpy_generator("a").random() == numpy_generator("a").random() != numpy_generator("b").random()
