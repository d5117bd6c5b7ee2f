"""Short forms of the benchmarks of the runtime: that they measure what they say, and their bounds; never a time."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgebert import Classifier

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a module of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    pytest.importorskip("onnx")
    return importlib.import_module


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle of the smallest graph that the benchmarks make, with forms for both backends."""
    for module in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("_timed_bundles").timed_bundle(0.0, tmp_path_factory.mktemp("timed"))


def overhead(module: ModuleType, bare_us: float, extra_us: float) -> Any:
    return module.Overhead(
        bundle="b",
        backend="openvino",
        bare_us=bare_us,
        extra_us=extra_us,
        low_us=extra_us,
        high_us=extra_us,
        judged=bare_us >= 1_000,
        others_us={},
    )


@pytest.mark.parametrize(
    ("bare_us", "extra_us", "passed"),
    [
        (1_000, 40.0, True),
        (1_000, 40.1, False),
        (5_000, 150.0, True),
        (5_000, 150.1, False),
        (900, 500.0, True),  # not asked for
    ],
)
def test_overhead_passes_within_three_per_cent_or_forty_microseconds(
    benchmark: Callable[[str], ModuleType], bare_us: float, extra_us: float, passed: bool
) -> None:
    one = overhead(benchmark("runtime_overhead"), bare_us, extra_us)
    assert one.passed is passed


def test_overhead_fails_where_nothing_was_judged(
    benchmark: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    module = benchmark("runtime_overhead")
    assert module._verdict([overhead(module, 900, 1.0)]) == 1
    assert capsys.readouterr().out.startswith("FAIL")


@pytest.mark.parametrize("target", ["cpu", "intel-cpu"])
def test_overhead_measures_predict_and_the_bare_call_of_one_model(
    benchmark: Callable[[str], ModuleType], bundle: Path, target: str
) -> None:
    module = benchmark("runtime_overhead")
    given = argparse.Namespace(threads=1, seconds=0.1, images=2, clock="wall")
    one = module.measured(bundle, target, given)
    assert one.backend == module.TARGETS[target]
    assert one.bare_us > 0
    assert one.low_us <= one.extra_us <= one.high_us


@pytest.mark.parametrize("target", ["cpu", "intel-cpu"])
def test_bare_calls_give_the_logits_of_predict(
    benchmark: Callable[[str], ModuleType], bundle: Path, target: str
) -> None:
    module = benchmark("runtime_overhead")
    images = list(np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8))
    before = set(module.lifetime._open_models)
    with Classifier(bundle, target=target, threads=1) as classifier:
        (runner,) = set(module.lifetime._open_models) - before
        bare = module._BARE_CALLS[target](runner._native[0], images)["bare"]
        for number, image in enumerate(images):
            np.testing.assert_array_equal(bare(number), runner.infer(image[np.newaxis]))
            assert int(bare(number).argmax()) == classifier.predict(image).index


def test_interleaved_gives_each_call_two_blocks_of_every_round(benchmark: Callable[[str], ModuleType]) -> None:
    module = benchmark("runtime_overhead")
    now = [0]

    def taking(nanoseconds: int) -> Callable[[int], None]:
        return lambda number: now.__setitem__(0, now[0] + nanoseconds)

    times = module.interleaved([taking(1_000_000), taking(2_000_000)], lambda: now[0], seconds=1.0)
    assert times.shape[0] == 2
    assert (times[0] == 1_000_000).all()
    assert (times[1] == 2_000_000).all()


def test_start_time_starts_both_sides(benchmark: Callable[[str], ModuleType], bundle: Path) -> None:
    found = benchmark("start_time").measured(bundle, starts=1)
    assert len(found.ours_s) == len(found.bare_s) == 1
    assert min(found.ours_s + found.bare_s) > 0


@pytest.mark.parametrize(("ours", "verdict"), [(1.99, "PASS"), (2.01, "FAIL")])
def test_start_time_passes_up_to_twice_the_bare_start(
    benchmark: Callable[[str], ModuleType], ours: float, verdict: str
) -> None:
    found = benchmark("start_time").Start(bundle="b", size_bytes=1, ours_s=(ours,) * 5, bare_s=(1.0,) * 5)
    assert found.to_text().endswith(verdict)


@pytest.mark.parametrize(
    ("ratio", "single_ms", "verdict"), [(0.95, 5.0, "PASS"), (0.949, 5.0, "FAIL"), (0.5, 4.9, "not judged")]
)
def test_submit_throughput_passes_from_95_per_cent(
    benchmark: Callable[[str], ModuleType], ratio: float, single_ms: float, verdict: str
) -> None:
    found = benchmark("submit_throughput").Throughput(
        bundle="b",
        backend="openvino",
        single_ms=single_ms,
        offline=100.0,
        point=(1, 2),
        submit=100 * ratio,
        ratio=ratio,
        low=ratio,
        high=ratio,
    )
    assert found.to_text().endswith(verdict)


def test_submit_throughput_counts_both_sides(
    benchmark: Callable[[str], ModuleType], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = argparse.Namespace(threads=1, images=4, window=0.05, clients=3, rounds=1)
    module = benchmark("submit_throughput")
    monkeypatch.setattr(module, "_SWEEP_WINDOWS", 1)
    found = module.measured(bundle, "cpu", given)
    assert found.offline > 0
    assert found.submit > 0
