"""Short forms of `make proof-quantise`: what takes an hour there is looked at for its mechanism here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let modules of benchmarks/ be imported by their names."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_each_kind_of_wrong_calibration_data_is_refused_in_its_own_words(benchmarks: None, tmp_path: Path) -> None:
    said = importlib.import_module("refused_calibrations").cases(tmp_path)
    wanted = {
        "constant images": "of one colour",
        "all-black images": "are black",
        "noise": "look like noise",
        "one class only": "class `1` has 0",
        "ten images": "at least 16",
        "NaN activations": "gives NaN or infinity",
    }
    assert set(said) == set(wanted)
    assert all(part in said[name] for name, part in wanted.items()), said


@pytest.mark.parametrize(
    ("how", "lost", "agreement", "holds"),
    [
        ("as quantised", (0.0010, 0.0, 0.002), 0.995, True),
        ("as quantised", (0.0011, 0.0, 0.002), 0.999, False),
        ("as quantised", (0.0, 0.0, 0.0), 0.9949, False),
        ("fine-tuned", (0.0005, -0.0001, 0.001), 0.9, True),
        ("fine-tuned", (0.0005, 0.0001, 0.001), 1.0, False),
    ],
)
def test_row_of_int8_drop_holds_as_the_list_says(
    benchmarks: None, how: str, lost: tuple[float, float, float], agreement: float, holds: bool
) -> None:
    drop, paired = importlib.import_module("int8_drop"), importlib.import_module("_paired")
    same = paired.Interval(value=agreement, low=agreement, high=agreement)
    row = drop.Row(
        how=how,
        target="cpu",
        top1_before=0.9,
        top1=0.9,
        lost=paired.Interval(value=lost[0], low=lost[1], high=lost[2]),
        agreement=same,
        kl=same,
    )
    assert row.holds is holds
    assert row.to_text().startswith("PASS" if holds else "FAIL")


def test_every_item_of_the_proof_names_what_is_there(benchmarks: None) -> None:
    proof = importlib.import_module("proof_quantise").PROOF
    for item in proof.items:
        paths = [part for part in item.command if "/" in part and "{" not in part]
        assert paths
        assert all((ROOT / path).exists() for path in paths), item.name
    page = proof.page(
        [{"passed": True, "said": ["1"], "minutes": 1.0, "when": "n", "commit": "a", "load": 0.0}] * len(proof.items)
    )
    assert all(item.holds in page for item in proof.items)
    assert sys.executable not in page
