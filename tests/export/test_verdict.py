"""Whether INT8 is worth it: the decision on made-up numbers, the clockwork on a made-up clock, and the command on real digits."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgebert import Classifier
from edgebert.bench.rounds import timed_rounds
from edgebert.bundle import read_bundle
from edgebert.data import Example, load_dataset
from edgebert.errors import BadDataError, CannotWriteError, EdgebertError, UsageError
from edgebert.export import compile as compile_module
from edgebert.export import precision as precision_module
from edgebert.export.compile import CompileOptions, bundle_from_graph
from edgebert.export.metadata import bytes_of_model, card_of_model, examples_of_model, parse_graph, with_metadata
from edgebert.export.verdict import (
    Figures,
    Flip,
    Limits,
    Measurement,
    decision_of,
    merged_choice,
    ratio_text,
    verdict_of,
)
from edgebert.export.verdict_measure import verdict_from_forms
from edgebert.export.verdict_report import page_of_verdict
from edgebert.runtime.runner import check_device
from edgebert.stages import STAGES, StageCall

if TYPE_CHECKING:
    from tests.export.conftest import GraphPair

LIMITS = Limits(max_drop=0.5, min_agreement=99.0)


def _figures(accuracy: float = 0.992, p50_ms: float = 0.092, weight_bits: int | None = None) -> Figures:
    return Figures(
        accuracy=accuracy,
        p50_ns=round(p50_ms * 1e6),
        p90_ns=round(1.5e6 * p50_ms),
        size_bytes=100_000,
        weight_bits=weight_bits,
        times_ns=(p50_ms * 1e6 * np.linspace(0.9, 1.5, 200)).astype(np.int64),
    )


def _measurement(**changes: Any) -> Measurement:
    """Return a target on which INT8 takes 0.4 times as long and decides alike."""
    given: dict[str, Any] = {
        "target": "cpu",
        "metric": "top-1",
        "images": 1450,
        "images_sha256": "ab" * 32,
        "fp32": _figures(),
        "int8": _figures(p50_ms=0.0368, weight_bits=8),
        "agreement": 1.0,
        "flips": (),
        "ratio": 0.4,
        "ratio_ci95": (0.38, 0.41),
        "hardware": "A processor",
        "instructions": "avx512_vnni: sums of int8 products are exact",
        "versions": {"onnxruntime": "1.31.1"},
        "threads": "2",
        **changes,
    }
    return Measurement(**given)


# The decision


def test_decision_is_int8_when_it_is_faster_and_as_good() -> None:
    assert decision_of(_measurement(), LIMITS).sentence == (
        "INT8 ships: p50 0.037 ms against 0.092 ms (0.40 times, 95 % interval 0.38 to 0.41), "
        "accuracy 99.20 % against 99.20 %, agreement 100.00 % on 1,450 validation images"
    )


def test_decision_is_fp32_when_int8_is_slower() -> None:
    slower = _measurement(int8=_figures(p50_ms=0.114), ratio=1.24, ratio_ci95=(1.19, 1.28), images=145)
    decision = decision_of(slower, LIMITS)
    assert decision.precision == "fp32"
    assert decision.sentence == (
        "FP32 ships: INT8 is not worth it here: p50 0.114 ms against 0.092 ms (1.24 times, 95 % interval 1.19 to 1.28), "
        "accuracy 99.20 % against 99.20 %, agreement 100.00 % on 145 validation images"
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ratio": 0.99, "ratio_ci95": (0.97, 1.0)}, "INT8 is not shown to be faster here"),
        ({"ratio": 0.4, "ratio_ci95": None}, "INT8 was timed too little to tell"),
        ({"int8": _figures(0.986)}, "INT8 loses 0.60 points of accuracy (0.5 are allowed): "),
        ({"agreement": 0.98}, "INT8 agrees with FP32 on less than 99 % of the images"),
        (
            {"agreement": 0.98, "ratio": 2.0, "ratio_ci95": (1.9, 2.1)},
            "INT8 agrees with FP32 on less than 99 % of the images and is not worth it here",
        ),
        (
            {"int8": _figures(0.9), "agreement": 0.91, "ratio_ci95": (1.9, 2.1)},
            "INT8 loses 9.20 points of accuracy (0.5 are allowed), agrees with FP32 on less than 99 % of the images and is not",
        ),
    ],
)
def test_decision_is_fp32_and_says_why(changes: dict[str, Any], why: str) -> None:
    decision = decision_of(_measurement(**changes), LIMITS)
    assert decision.precision == "fp32"
    assert decision.sentence.startswith(f"FP32 ships: {why}".removesuffix(": "))


@pytest.mark.parametrize(
    "changes",
    [
        {"int8": _figures(0.987)},  # 0.5 points, which is no more than 0.5
        {"int8": _figures(1.0)},
        {"agreement": 0.99},
        {"ratio_ci95": (0.9, 0.999)},
    ],
)
def test_decision_is_int8_at_the_limits(changes: dict[str, Any]) -> None:
    assert decision_of(_measurement(**changes), LIMITS).precision == "int8"


def test_decision_names_exact_match_where_images_have_several_labels() -> None:
    assert ", exact match 99.20 % against" in decision_of(_measurement(metric="exact match"), LIMITS).sentence


@pytest.mark.parametrize(("ratio", "text"), [(1.0, "1.00"), (1.004, "1.004"), (0.999, "0.999"), (0.7, "0.70")])
def test_ratio_text_tells_a_ratio_from_one(ratio: float, text: str) -> None:
    assert ratio_text(ratio) == text


def test_first_target_decides_and_another_opinion_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    slower = _measurement(target="intel-cpu", ratio=1.2, ratio_ci95=(1.1, 1.3))
    with caplog.at_level(logging.WARNING, "edgebert"):
        verdict = verdict_of((_measurement(), slower), "auto", LIMITS)
    assert verdict.precision == "int8"
    assert [record.getMessage() for record in caplog.records] == [
        "`intel-cpu` alone would ship FP32; `cpu` decides, as the first target. A bundle for each ships both"
    ]


@pytest.mark.parametrize(
    ("asked", "begins"),
    [
        ("fp32", "FP32 ships, as asked (`auto` would take INT8): p50 0.037 ms"),
        ("int8", "INT8 ships, as asked (as `auto` would): p50"),
    ],
)
def test_verdict_obeys_and_says_what_it_would_have_taken(asked: Any, begins: str) -> None:
    verdict = verdict_of((_measurement(),), asked, LIMITS)
    assert verdict.precision == asked
    assert verdict.sentence.startswith(begins)


def test_verdict_for_the_manifest_holds_no_time_of_day_and_no_image_name() -> None:
    content = verdict_of((_measurement(),), "auto", LIMITS).to_json()
    assert set(content) == {
        "asked",
        "decided_on",
        "max_drop",
        "min_agreement",
        "sentence",
        "ships",
        "targets",
    }
    assert json.loads(json.dumps(content))["targets"]["cpu"]["int8"] == {
        "accuracy": 0.992,
        "p50_ms": 0.0368,
        "p90_ms": 0.0552,
        "queries": 200,
        "size_bytes": 100_000,
        "weight_bits": 8,
    }


def test_merged_choice_keeps_the_first_verdict_and_adds_targets() -> None:
    first = verdict_of((_measurement(),), "auto", LIMITS)
    second = verdict_of((_measurement(target="intel-cpu", ratio=0.3),), "auto", LIMITS)
    merged: Any = merged_choice(first.to_json(), second)
    assert (merged["decided_on"], set(merged["targets"])) == ("cpu", {"cpu", "intel-cpu"})


# The clockwork


class _Clock:
    """Nanoseconds that pass only when a model runs."""

    def __init__(self) -> None:
        self.now = 0
        self.log: list[tuple[str, int]] = []

    def __call__(self) -> int:
        return self.now

    def model(self, name: str, takes_ms: float) -> Callable[[Any], None]:
        def infer(batch: Any) -> None:
            assert batch.shape == (1, 2, 2, 3)
            self.now += round(takes_ms * 1e6)
            self.log.append((name, int(batch[0, 0, 0, 0])))

        return infer


def _pictures(count: int) -> Any:
    """Return uint8 (count, 2, 2, 3), each of its own grey."""
    return np.repeat(np.arange(count, dtype=np.uint8), 12).reshape(count, 2, 2, 3)


def _timed(first_ms: float, second_ms: float, *, max_seconds: float = 20.0) -> tuple[_Clock, Any]:
    clock = _Clock()
    models = [clock.model("a", first_ms), clock.model("b", second_ms)]
    return clock, timed_rounds(models, _pictures(7), max_seconds=max_seconds, clock=clock)


def test_timed_rounds_interleave_abba_and_baab() -> None:
    clock, times = _timed(10, 20)
    counted = "".join(name for name, _ in clock.log)
    assert len(times[0]) == 12
    order = [name for name, count in _runs(counted)][2:]
    assert order[:3] == ["a", "b", "a"]  # A BB A, then B AA B: equal neighbours run into one another
    assert dict(_runs(counted)[2:4]) == {"a": 10, "b": 10}


def _runs(text: str) -> list[tuple[str, int]]:
    return [(found[0][0], len(found[0])) for found in re.finditer(r"(.)\1*", text)]


def test_timed_rounds_count_all_but_the_first_tenth_of_a_block() -> None:
    _, times = _timed(10, 20)
    assert {len(block) for round_ in times[0] for block in round_} == {9}
    assert {len(block) for round_ in times[1] for block in round_} == {4}
    assert all((block == 10_000_000).all() for round_ in times[0] for block in round_)


def test_timed_rounds_use_every_picture() -> None:
    clock, _ = _timed(10, 20)
    assert {picture for name, picture in clock.log if name == "b"} == set(range(7))


@pytest.mark.parametrize(("takes_ms", "seconds"), [(10, 2.0), (100, 20.0), (300, 20.0)])
def test_timed_rounds_keep_the_time_and_still_make_five(takes_ms: float, seconds: float) -> None:
    clock, times = _timed(takes_ms, takes_ms, max_seconds=seconds)
    warmup = 2 * max(300, 3 * takes_ms)
    assert len(times[0]) >= 5
    assert clock.now / 1e6 <= warmup + 1000 * seconds


def test_timed_rounds_make_one_round_of_a_model_that_is_too_slow_for_more() -> None:
    _, times = _timed(5000, 5000, max_seconds=1.0)
    assert [len(round_) for round_ in times[0]] == [2]


# The page


def _page(flips: int = 0, name: str = "widgets", label: str = "nut", image: Any = None) -> str:
    example = load_dataset("digits").val[0]
    if image is not None:
        example = replace(example, id=image)
    flip = Flip(example=example, true=(label,), fp32=(label,), int8=("gear",))
    verdict = verdict_of((_measurement(flips=(flip,) * flips),), "auto", LIMITS)
    return page_of_verdict(verdict, name).decode()


def test_page_holds_sentence_table_and_figure() -> None:
    page = _page()
    assert "INT8 ships: p50 0.037 ms against 0.092 ms" in page
    assert page.count("<svg") == 1
    for text in ("0.40 (0.38 to 0.41)", "A processor", "onnxruntime 1.31.1", "8 bits", "None."):
        assert text in page


def test_page_shows_each_flip_with_its_image_and_three_answers() -> None:
    page = _page(flips=1)
    assert page.count('src="data:image/png;base64,') == 1
    assert re.search(r'<dd class="right">nut</dd><dt>INT8</dt><dd>gear</dd><dt>true</dt><dd>nut</dd>', page)


def test_page_shows_at_most_24_flips_and_counts_all() -> None:
    page = _page(flips=40)
    assert page.count("<img") == 24
    assert "40 of 1,450" in page


def test_page_names_nothing_outside_and_runs_nothing() -> None:
    page = _page(flips=2)
    assert not re.search(r"<script|javascript:|\son\w+=|https?://(?!www\.w3\.org/)", page)


def test_page_escapes_hostile_names() -> None:
    hostile = '"><script>alert(1)</script>'
    page = _page(flips=1, name=hostile, label=hostile, image=hostile + "\x1b[31m")
    assert "<script" not in page
    assert "\x1b" not in page


def test_page_of_large_photographs_stays_below_two_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    monkeypatch.setattr(Example, "load", lambda _: noise)
    assert len(_page(flips=24)) < 2 << 20


# The command, on a student that knows its digits

SHORT = {"data": "digits", "max_seconds": 0.5}


def _options(pair: GraphPair, **changes: Any) -> CompileOptions:
    # One of 145 images is 0.7 %: the student of these tests is trained for seconds, and the ratios are to decide.
    limits = {"min_agreement": 90.0, "max_drop": 5.0}
    given: dict[str, Any] = {"precision": "auto", "float_graph": pair.fp32, **limits, **SHORT, **changes}
    return CompileOptions(**given)


@pytest.fixture
def measured_as(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace what the clock says by made-up ratios, target by target; accuracy and agreement stay real."""
    real = verdict_from_forms

    def given(**ratios: float) -> None:
        def verdict(*arguments: Any, asked: Any, limits: Any, max_seconds: float) -> Any:
            found = real(*arguments, asked=asked, limits=limits, max_seconds=max_seconds)
            changed = tuple(
                replace(
                    each, ratio=ratios[each.target], ratio_ci95=(0.99 * ratios[each.target], 1.01 * ratios[each.target])
                )
                for each in found.measurements
            )
            return verdict_of(changed, asked, limits)

        monkeypatch.setattr(precision_module, "verdict_from_forms", verdict)

    return given


@pytest.mark.parametrize(("ratio", "precision"), [(0.5, "int8"), (1.5, "fp32")])
def test_compile_auto_ships_what_the_measurement_says(
    digits_pair: GraphPair, tmp_path: Path, measured_as: Callable[..., None], ratio: float, precision: str
) -> None:
    measured_as(cpu=ratio)
    report = bundle_from_graph(digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair))
    manifest = read_bundle(report.path).manifest
    shipped = digits_pair.int8 if precision == "int8" else digits_pair.fp32
    assert (report.precision, manifest.precision) == (precision, precision)
    assert manifest.made_from == hashlib.sha256(shipped.read_bytes()).hexdigest()
    assert report.verdict.startswith(f"{precision.upper()} ships: ")
    assert report.to_text().startswith(report.verdict)


def test_compile_auto_writes_real_numbers_into_the_manifest(digits_pair: GraphPair, tmp_path: Path) -> None:
    bundle_from_graph(digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair, targets=("cpu", "intel-cpu")))
    choice: Any = read_bundle(tmp_path / "d.edgebert").manifest.measured["precision_choice"]
    assert (choice["asked"], choice["decided_on"], set(choice["targets"])) == ("auto", "cpu", {"cpu", "intel-cpu"})
    val = load_dataset("digits").val
    for target, version in (("cpu", "onnxruntime"), ("intel-cpu", "openvino")):
        found = choice["targets"][target]
        assert (found["images"], found["metric"]) == (len(val), "top-1")
        assert list(found["versions"]) == [version]
        assert 0.9 < found["fp32"]["accuracy"] <= 1
        assert found["agreement"] == 1 - found["flips"] / len(val)
        for precision in ("fp32", "int8"):
            assert 0 < found[precision]["p50_ms"] <= found[precision]["p90_ms"]
        assert found["int8"]["weight_bits"] in (8, 7)  # as this CPU needs them
        assert "weight_bits" not in found["fp32"]


def test_compile_auto_measures_the_accuracy_that_the_bundle_has(digits_pair: GraphPair, tmp_path: Path) -> None:
    report = bundle_from_graph(digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair))
    choice: Any = read_bundle(report.path).manifest.measured["precision_choice"]
    dataset = load_dataset("digits")
    with Classifier(report.path) as classifier:
        answers = classifier.predict_batch([example.load() for example in dataset.val])
    right = [answer.index == example.label for answer, example in zip(answers, dataset.val, strict=True)]
    assert choice["targets"]["cpu"][report.precision]["accuracy"] == pytest.approx(np.mean(right))


def test_compile_auto_reads_no_test_image(
    digits_pair: GraphPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    load = Example.load

    def spy(example: Example) -> Any:
        seen.add(example.pixel_sha256)
        return load(example)

    monkeypatch.setattr(Example, "load", spy)
    bundle_from_graph(digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair))
    assert seen == {example.pixel_sha256 for example in load_dataset("digits").val}


def test_compile_auto_writes_the_report_beside_the_bundle(digits_pair: GraphPair, tmp_path: Path) -> None:
    report = bundle_from_graph(
        digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair, report=tmp_path / "why.html")
    )
    assert report.verdict.replace("<", "&lt;") in (tmp_path / "why.html").read_text()


def test_compile_auto_adds_a_target_to_a_bundle_of_the_precision_that_ships(
    digits_pair: GraphPair, tmp_path: Path, measured_as: Callable[..., None]
) -> None:
    measured_as(**{"cpu": 0.5, "intel-cpu": 0.6})
    for target in ("cpu", "intel-cpu"):
        bundle_from_graph(digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair, targets=(target,)))
    manifest = read_bundle(tmp_path / "d.edgebert").manifest
    choice: Any = manifest.measured["precision_choice"]
    assert [form.target for form in manifest.forms] == ["cpu", "intel-cpu"]
    assert (choice["decided_on"], set(choice["targets"])) == ("cpu", {"cpu", "intel-cpu"})


def test_compile_auto_refuses_a_bundle_of_the_other_precision(
    digits_pair: GraphPair, tmp_path: Path, measured_as: Callable[..., None]
) -> None:
    measured_as(**{"intel-cpu": 0.5})
    digest = bundle_from_graph(digits_pair.fp32, tmp_path / "d.edgebert", CompileOptions()).digest
    with pytest.raises(CannotWriteError, match="another graph"):
        bundle_from_graph(digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair, targets=("intel-cpu",)))
    assert read_bundle(tmp_path / "d.edgebert").digest == digest


def test_compile_auto_leaves_neither_bundle_nor_report_when_the_self_test_fails(
    digits_pair: GraphPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise EdgebertError("answers wrongly")

    monkeypatch.setattr("edgebert.export.place.Classifier", refuse)
    with pytest.raises(EdgebertError, match="answers wrongly"):
        bundle_from_graph(
            digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair, report=tmp_path / "why.html")
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_compile_takes_the_precision_that_was_asked_for_and_measures(
    digits_pair: GraphPair, tmp_path: Path, precision: Any
) -> None:
    report = bundle_from_graph(digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair, precision=precision))
    assert report.precision == precision
    assert report.verdict.startswith(f"{precision.upper()} ships, as asked")


def test_compile_fp32_without_data_measures_nothing_and_says_so(
    digits_pair: GraphPair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "edgebert"):
        report = bundle_from_graph(
            digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair, precision="fp32", data=None)
        )
    assert (report.precision, report.verdict) == ("fp32", "")
    assert read_bundle(report.path).manifest.measured == {}
    assert any("nothing was measured: `--data DATA`" in record.getMessage() for record in caplog.records)


def test_compile_as_given_still_measures_nothing(digits_pair: GraphPair, tmp_path: Path) -> None:
    report = bundle_from_graph(digits_pair.int8, tmp_path / "d.edgebert", CompileOptions())
    assert (report.precision, read_bundle(report.path).manifest.measured) == ("int8", {})


@pytest.mark.parametrize(
    ("precision", "target", "given"),
    [
        ("as-given", "cpu", (None, None)),
        ("as-given", "jetson", ("digits", None)),  # the typings of its engine are measured on them
        ("auto", "cpu", ("digits", Path("student.onnx"))),
    ],
)
def test_compile_stage_of_a_recipe_names_data_and_float_graph_where_they_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, target: str, given: tuple[str | None, Path | None]
) -> None:
    called: list[CompileOptions] = []

    def compile_(graph: Path, output: Path, options: CompileOptions) -> SimpleNamespace:
        assert graph == Path("student.int8.onnx")
        called.append(options)
        return SimpleNamespace(verdict="")

    monkeypatch.setattr(compile_module, "bundle_from_graph", compile_)
    STAGES["compile"].run(
        StageCall(
            data="digits",
            inputs={"export": Path("student.onnx"), "quantize": Path("student.int8.onnx")},
            output=tmp_path / "d.edgebert",
            options=CompileOptions(targets=(target,), precision=precision, data="digits"),
            interrupted=False,
        )
    )
    assert [(options.data, options.float_graph) for options in called] == [given]


# Refusals, before anything is measured


@pytest.fixture
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "verdict_from_forms", lambda *_, **__: pytest.fail("it was measured"))


@pytest.mark.usefixtures("nothing_is_measured")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, r"`--precision auto` without `--data DATA`"),
        ({"float_graph": None}, r"`--precision auto` without `--float FP32\.onnx`"),
        ({"precision": "as-given"}, r"`--float FP32\.onnx`, and no precision"),
        ({"precision": "as-given", "float_graph": None}, r"`--data DATA`, and no precision"),
        ({"precision": "fp32", "data": None, "report": Path("why.html")}, "nothing is measured"),
        ({"precision": "fp32", "float_graph": None, "data": None}, r"the graph is INT8(.|\n)*--float"),
    ],
)
def test_compile_refuses_a_request_that_cannot_be_meant(
    digits_pair: GraphPair, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        bundle_from_graph(digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair, **changes))
    assert (caught.value.exit_code, caught.value.hint is None) == (2, False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_is_measured")
def test_compile_auto_refuses_a_float_graph_that_int8_was_not_made_from(digits_pair: GraphPair, tmp_path: Path) -> None:
    model = parse_graph(digits_pair.fp32)
    other = tmp_path / "other.onnx"
    other.write_bytes(bytes_of_model(with_metadata(model, card_of_model(model), examples_of_model(model)[:3])))
    with pytest.raises(BadDataError) as caught:
        bundle_from_graph(digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair, float_graph=other))
    assert caught.value.exit_code == 65
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (other, digits_pair.fp32)]
    assert hashes[0] in caught.value.what
    assert hashes[1] in (caught.value.expected or "")


@pytest.mark.usefixtures("nothing_is_measured")
def test_compile_auto_refuses_two_graphs_of_the_wrong_precision(digits_pair: GraphPair, tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="the graph is FP32"):
        bundle_from_graph(digits_pair.fp32, tmp_path / "d.edgebert", _options(digits_pair))
    with pytest.raises(BadDataError, match="the graph of `--float` is INT8"):
        bundle_from_graph(
            digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair, float_graph=digits_pair.int8)
        )


@pytest.mark.usefixtures("nothing_is_measured")
def test_compile_auto_refuses_data_of_other_classes(digits_pair: GraphPair, tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="not the model's"):
        bundle_from_graph(
            digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair, class_map={"0": "zero"}, data="digits")
        )


@pytest.mark.usefixtures("nothing_is_measured")
def test_compile_auto_refuses_a_report_that_is_there(digits_pair: GraphPair, tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    page.write_text("mine")
    with pytest.raises(CannotWriteError, match=r"why\.html"):
        bundle_from_graph(digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair, report=page))
    with pytest.raises(UsageError, match="lies in the bundle"):
        bundle_from_graph(
            digits_pair.int8, tmp_path / "d.edgebert", _options(digits_pair, report=tmp_path / "d.edgebert" / "x.html")
        )
    assert page.read_text() == "mine"


def test_compile_refuses_seven_bits_of_an_fp32_graph(digits_pair: GraphPair, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`--weights 7-bit` for an FP32 graph"):
        bundle_from_graph(digits_pair.fp32, tmp_path / "d.edgebert", CompileOptions(weights="7-bit"))


@pytest.mark.parametrize(
    "changes", [{"max_drop": -1.0}, {"min_agreement": 101.0}, {"max_seconds": 0.0}, {"max_skipped": 1.0}]
)
def test_options_refuse_what_lies_outside_its_range(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        CompileOptions(**changes)


# 7-bit weights in a bundle


def test_compile_with_seven_bits_records_them_and_answers_alike(digits_pair: GraphPair, tmp_path: Path) -> None:
    report = bundle_from_graph(
        digits_pair.int8, tmp_path / "d.edgebert", CompileOptions(targets=("cpu", "intel-cpu"), weights="7-bit")
    )
    forms = read_bundle(report.path).manifest.forms
    assert [form.weight_bits for form in forms] == [7, 7]
    assert json.loads((report.path / "manifest.json").read_text())["forms"][0]["weight_bits"] == 7


def test_compile_takes_seven_bits_by_itself_on_a_cpu_that_is_made_to_have_no_vnni(
    digits_pair: GraphPair, tmp_path: Path
) -> None:
    check_device("openvino", "CPU")
    code = (
        "import sys\nfrom pathlib import Path\nfrom edgebert.export.compile import CompileOptions, bundle_from_graph\n"
        "made = bundle_from_graph(Path(sys.argv[1]), Path(sys.argv[2]), CompileOptions(targets=('intel-cpu',)))\n"
        "print(made.forms[0].weight_bits)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(digits_pair.int8), str(tmp_path / "d.edgebert")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
    )
    if os.uname().machine != "x86_64":
        pytest.skip("oneDNN's limit emulates nothing here")
    assert ran.stdout == "7\n", ran.stderr
