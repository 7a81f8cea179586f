"""The examples in the docstrings of core are run."""

import doctest
import importlib
import pkgutil

import pytest

import diffalign.core


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(diffalign.core.__path__)])
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"diffalign.core.{name}"))
    assert result.failed == 0
