"""Short forms of the distillation proof on real images, and of what the proof writes down."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from edgebert._files import sha256_of_file

ROOT = Path(__file__).parents[1]
FASHION = ROOT.parent / "shared" / "data" / "fashion_mnist"

_needs_fashion = pytest.mark.skipif(not FASHION.is_dir(), reason="the shared Fashion-MNIST files are not here")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("fashion_mnist")


@_needs_fashion
def test_fashion_benchmark_compares_students_of_one_start_and_keeps_what_is_made(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = benchmark.fashion_data(FASHION, tmp_path / "data", 600)
    monkeypatch.setitem(benchmark.SCHEDULES, "cpu", benchmark.Schedule(1, 1, 1))
    starts: list[str] = []
    run_epochs = importlib.import_module("edgebert.train.stage").run_epochs

    def noted(run: object, *rest: object) -> object:
        weights = run.learner.classifier.model.state_dict()  # type: ignore[attr-defined]  # a Run
        starts.append(str(sum(float(weight.double().abs().sum()) for weight in weights.values())))
        return run_epochs(run, *rest)

    monkeypatch.setattr("edgebert.train.stage.run_epochs", noted)
    for what, seed in (("teacher", 0), ("labels", 0), ("distilled", 0), ("labels", 1)):
        benchmark.train(what, seed, data, tmp_path / "made", "cpu")
    torch.set_num_threads(threads)
    teacher, labels, distilled, other = starts
    assert labels == distilled
    assert len({teacher, labels, other}) == 3
    made = {name: benchmark.read(tmp_path / "made", name, 0) for name in ("teacher", "labels", "distilled")}
    assert made["labels"].parameters == made["distilled"].parameters <= benchmark.MOST_PARAMETERS
    assert all(0.0 <= entry.top1 <= 1.0 for entry in made.values())
    assert f"{100 * made['distilled'].top1:.2f}" in benchmark.table(
        made["teacher"], [made["labels"]], [made["distilled"]]
    )
    weights = sha256_of_file(tmp_path / "made/labels-0/model.safetensors")
    benchmark.train("labels", 0, data, tmp_path / "made", "cpu")  # kept
    assert len(starts) == 4
    assert sha256_of_file(tmp_path / "made/labels-0/model.safetensors") == weights


@_needs_fashion
def test_memory_of_distillation_grows_by_little(tmp_path: Path) -> None:
    """600 and 3,000 images: mechanism only, the 15 % are judged on 6,000 and 60,000 by the proof."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import distil_memory as d; from pathlib import Path;"
        "d.FEW, d.MANY, d.MOST_RATIO, d.RUNS = 600, 3_000, 1.3, 1; sys.argv = ['', sys.argv[2], '--json', sys.argv[3]];"
        "sys.exit(d.main())"
    )
    result = tmp_path / "memory.json"
    ran = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "benchmarks"), str(FASHION), str(result)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(result.read_text())
    assert 0.9 < told["ratio"] <= 1.3
    assert set(told["bytes"]) == {"600", "3000"}


@pytest.mark.parametrize(
    "command", [["docs/options.py", "--check"], ["benchmarks/refused_teachers.py"]], ids=["options", "refusals"]
)
def test_quick_items_of_the_proof_hold(command: list[str]) -> None:
    ran = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_proof_page_names_no_path_of_this_computer(benchmark: ModuleType) -> None:
    proof = importlib.import_module("proof_distil").PROOF
    assert proof.shown("`/data/here/fashion_mnist` is read", Path("/data/here")) == "`FOLDER/fashion_mnist` is read"
    record = {"passed": True, "said": ["12 of 12"], "minutes": 1.0, "when": "now", "commit": "abc", "load": 0.5}
    page = proof.page([record] * len(proof.items))
    assert all(item.name in page and item.holds in page for item in proof.items)
    assert "FAIL" not in page
    assert "FAIL" in proof.page([{**record, "passed": False}] + [record] * (len(proof.items) - 1))
