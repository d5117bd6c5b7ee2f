"""Every example runs as its first lines say; 07_c_program has its own tests, in test_examples_c.py."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgebert.data import load_dataset
from edgebert.recipe import _stage_options, read_recipe
from edgebert.stages import STAGES
from tests.recipes import finish

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
CELLS = ROOT.parent / "shared" / "data" / "bccd_cells"


def test_every_example_is_named_in_a_test() -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_examples*.py"))
    assert all(folder.name in text for folder in EXAMPLES.iterdir() if folder.is_dir())


def test_01_blood_cells_recipe_is_valid() -> None:
    pytest.importorskip("pydantic")
    recipe = read_recipe(EXAMPLES / "01_blood_cells" / "recipe.toml", ["data=elsewhere"])
    assert list(recipe.tables) == list(STAGES)
    for name, table in recipe.tables.items():
        _stage_options(STAGES[name], table, recipe)


@pytest.mark.slow
@pytest.mark.skipif(not CELLS.is_dir(), reason="the blood-cell photographs are not beside this checkout")
def test_01_blood_cells_runs_unattended_and_the_second_call_executes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgebert", "run", str(EXAMPLES / "01_blood_cells" / "recipe.toml")]
    command += ["--set", f"data={CELLS}", "-o", str(tmp_path / "out")]
    command += ["--set", "train.epochs=2", "--set", "distill.epochs=2"]
    before = load_dataset(CELLS).sha256()
    assert "student-int8" in finish(command)
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "made nothing" in second.stdout
    assert load_dataset(CELLS).sha256() == before


def test_02_embed_classifies_files(make_toy_bundle: Callable[[Path], Path], tmp_path: Path) -> None:
    bundle = make_toy_bundle(tmp_path / "toy.edgebert")
    stream = io.BytesIO()
    Image.fromarray(np.full((9, 9, 3), 200, np.uint8)).save(stream, "PNG")
    photo = tmp_path / "photo.png"
    photo.write_bytes(stream.getvalue())
    command = [sys.executable, str(EXAMPLES / "02_embed" / "classify.py"), str(bundle), str(photo), str(photo)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = [line.split("\t") for line in ran.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(photo), str(photo)]
    assert {line[1] for line in lines} <= {"bolt", "gear", "nut", "washer"}
