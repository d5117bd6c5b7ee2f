"""Runs the example in the docstring of every module that is safe on a device."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import edgebert

# The workbench: these import torch or onnx at their top.
WORKBENCH = ("edgebert.models", "edgebert.train", "edgebert.export", "edgebert.calibration")


def modules() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(edgebert.__path__, "edgebert.", onerror=lambda name: None)]
    return [name for name in names if not name.startswith(WORKBENCH) and not name.endswith(("_runner", "__main__"))]


def test_modules_finds_the_device_safe_ones() -> None:
    assert {"edgebert.data", "edgebert.preprocess", "edgebert.errors", "edgebert.runtime.runner"} <= set(modules())


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_are_true(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0
