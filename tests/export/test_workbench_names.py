"""The public lists of the two workbench packages are sorted, complete and resolve."""

from __future__ import annotations

import importlib

import pytest

import edgebert.calibration
import edgebert.export

_NAMES = [(package, name) for package in (edgebert.calibration, edgebert.export) for name in package.__all__]


@pytest.mark.parametrize("name", ["calibration", "export"])
def test_all_is_sorted_and_complete(name: str) -> None:
    package = importlib.import_module(f"edgebert.{name}")
    assert list(package.__all__) == sorted(package.__all__)
    assert set(package.__all__) == set(package._HOME)


@pytest.mark.parametrize(("package", "name"), _NAMES)
def test_public_name_resolves(package: object, name: str) -> None:
    assert getattr(package, name).__name__ == name


@pytest.mark.parametrize("package", [edgebert.calibration, edgebert.export])
def test_unknown_name_is_an_attribute_error(package: object) -> None:
    with pytest.raises(AttributeError, match="graph_from_chekpoint"):
        getattr(package, "graph_from_chekpoint")  # noqa: B009  # a misspelt name, on purpose
