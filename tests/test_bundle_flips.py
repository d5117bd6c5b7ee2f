"""The short form of benchmarks/bundle_flips.py: flipped bits are refused before any parser meets them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def flips(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script adds tests/ to it
    return importlib.import_module("bundle_flips")


def test_flipped_bits_are_refused_before_any_parser(flips: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert flips.main(["--manifest", "400", "--flips", "600", "--mib", "0.02"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "600 of 600 sampled flips" in said
    assert "0 calls of a parser" in said


def test_the_script_fails_where_hashes_are_not_looked_at(flips: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch("edgebert.bundle._check_hash", return_value=None):
        assert flips.main(["--manifest", "40", "--flips", "40", "--mib", "0.02"]) == 1
    assert "reached: the JSON parser" in capsys.readouterr().out


@pytest.mark.slow
def test_every_bit_of_a_manifest_is_looked_at(flips: Any) -> None:
    assert flips.main(["--flips", "0", "--mib", "0.01"]) == 0
