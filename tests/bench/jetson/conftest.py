"""What the tests of a Jetson's facts share: four boards as trees of files, built from the reference, and real lines of tegrastats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BOARDS = ("orin-nano", "orin-nx", "agx-orin", "agx-thor")


@pytest.fixture
def board(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that lays out one of the boards of `jetson_trees.json` and returns its root."""

    def lay_out(name: str) -> Path:
        trees = json.loads((HERE / "jetson_trees.json").read_text(encoding="utf-8"))["trees"]
        root = tmp_path / name
        for path, text in trees[name].items():
            place = root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        return root

    return lay_out


@pytest.fixture(scope="session")
def lines() -> dict[str, str]:
    """Return release and board -> a line that tegrastats printed there (tensorrt_jetson.md, section 8.1)."""
    found: dict[str, str] = json.loads((HERE / "tegrastats_lines.json").read_text(encoding="utf-8"))
    return found
