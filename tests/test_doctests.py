"""The examples in docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import pspo

MODULES = [module.name for module in pkgutil.walk_packages(pspo.__path__, "pspo.") if "__main__" not in module.name]


@pytest.mark.parametrize("name", [*MODULES, "studies"])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    count = sum(bool(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert count >= 5
