"""The embedding API on a whole bundle: choosing a form, the self-test, images of every kind, threads, forks."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgebert.runtime.choice as choice_module
import edgebert.runtime.instructions as instructions_module
from edgebert import Classifier
from edgebert._json import dump_json
from edgebert.artefact import verify
from edgebert.bundle import read_bundle
from edgebert.card import ModelCard, Provenance
from edgebert.decisions import softmax
from edgebert.errors import (
    BadDataError,
    EdgebertError,
    ForkedRuntimeError,
    InputNotFoundError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from edgebert.fingerprint import machine
from edgebert.preprocess import Preprocessing, load_image
from edgebert.runtime.instructions import Int8Instructions
from edgebert.runtime.pipeline import Pipeline
from edgebert.runtime.runner import RUNNERS, InputSpec, check_device, open_runner
from edgebert.testing import FakeRunner

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

Bundles = Callable[[Path], Path]


@pytest.fixture(scope="module")
def bundle(make_toy_bundle: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_bundle(tmp_path_factory.mktemp("classifier") / "toy.edgebert")


@pytest.fixture
def own_bundle(make_toy_bundle: Bundles, tmp_path: Path) -> Path:
    """A bundle that the test may change."""
    return make_toy_bundle(tmp_path / "toy.edgebert")


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Backends that this computer shall not have."""
    names: set[str] = set()

    def check(backend: str, device: str) -> None:
        if backend in names:
            raise UnavailableError(f"`{backend}` is not installed", hint=f'pip install "edgebert[{backend}]"')
        check_device(backend, device)

    monkeypatch.setattr(choice_module, "check_device", check)
    return names


_CONFIDENCE = {
    "temperature": 2.5,
    "ece_before": 0.2,
    "ece_after": 0.1,
    "images": 200,
    "abstain_below": 0.45,
    "wanted_precision": 0.9,
    "precision": 0.91,
    "precision_low": 0.87,
    "coverage": 0.8,
}
_NO_THRESHOLD = dict.fromkeys(("abstain_below", "wanted_precision", "precision", "precision_low", "coverage"))


def _frame(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)


def _edit(bundle: Path, change: Callable[[Any], object]) -> None:
    import hashlib

    path = bundle / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(dump_json(manifest), encoding="utf-8")
    lines = (bundle / "SHA256SUMS").read_text().splitlines(keepends=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [f"{digest}  manifest.json\n" if line.endswith("  manifest.json\n") else line for line in lines]
    (bundle / "SHA256SUMS").write_text("".join(lines), newline="\n")


# Answers


@pytest.mark.parametrize("target", ["cpu", "intel-cpu"])
def test_predict_gives_the_reference_answer(bundle: Path, toy: Any, target: str) -> None:
    frame = _frame()
    expected = softmax(toy.logits(load_image(frame, toy.card.preprocessing)[np.newaxis]))[0]
    with Classifier(bundle, target=target) as classifier:
        prediction = classifier.predict(frame)
    assert prediction.index == int(np.argmax(expected))
    assert prediction.label == toy.card.class_names[prediction.index]
    assert prediction.score == max(prediction.scores) == pytest.approx(expected.max(), abs=1e-5)
    assert prediction.scores == pytest.approx(expected.tolist(), abs=1e-5)
    assert sum(prediction.scores) == pytest.approx(1)


def test_predict_takes_path_bytes_pillow_image_and_array(bundle: Path, tmp_path: Path) -> None:
    frame = _frame()
    image = Image.fromarray(frame)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    path = tmp_path / "part.png"
    path.write_bytes(stream.getvalue())
    with Classifier(bundle) as classifier:
        answers = [classifier.predict(source) for source in (path, str(path), stream.getvalue(), image, frame)]
    assert all(answer == answers[0] for answer in answers)


def test_predict_never_writes_the_caller_s_array(bundle: Path, toy: Any) -> None:
    # Of the network's own size, where nothing needs to be resized and a view would be the cheapest way.
    frame = toy.images(1)[0]
    copy = frame.copy()
    for target in ("cpu", "intel-cpu"):
        with Classifier(bundle, target=target) as classifier:
            first = classifier.predict(frame)
            classifier.predict(_frame())
            frozen = frame.copy()
            frozen.flags.writeable = False
            assert classifier.predict(frozen) == first
    assert np.array_equal(frame, copy)


@pytest.mark.parametrize("count", [1, 2, 5, 33, 70])
def test_predict_batch_answers_as_predict(bundle: Path, count: int) -> None:
    frames = [_frame(seed) for seed in range(count)]
    with Classifier(bundle) as classifier:
        together = classifier.predict_batch(frames)
        alone = [classifier.predict(frame) for frame in frames]
    assert [answer.label for answer in together] == [answer.label for answer in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)


def test_predict_batch_says_which_image_is_bad(bundle: Path, tmp_path: Path) -> None:
    with Classifier(bundle) as classifier:
        with pytest.raises(BadDataError, match="image 1 of 3"):
            classifier.predict_batch([_frame(), b"no image", _frame()])
        with pytest.raises(InputNotFoundError, match="image 0 of 1"):
            classifier.predict_batch([tmp_path / "none.png"])


@pytest.mark.parametrize("bad", [b"", b"GIF89a", np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_predict_refuses_what_is_no_image(bundle: Path, bad: Any) -> None:
    with Classifier(bundle) as classifier, pytest.raises(BadDataError):
        classifier.predict(bad)


def test_classifier_says_what_it_is(bundle: Path) -> None:
    with Classifier(bundle, threads=1) as classifier:
        assert classifier.class_names == ("bolt", "gear", "nut", "washer")
        assert classifier.input_spec == InputSpec(height=6, width=8, classes=4)
        assert (classifier.target, classifier.backend) == ("cpu", "onnxruntime")
        assert classifier.digest == read_bundle(bundle).digest
        assert classifier.properties()["threads"] == "1"


def test_close_may_be_called_twice_and_ends_use(bundle: Path) -> None:
    classifier = Classifier(bundle)
    classifier.close()
    classifier.close()
    with pytest.raises(EdgebertError, match="was closed"):
        classifier.predict(_frame())
    with pytest.raises(EdgebertError, match="was closed"):
        classifier.predict_batch([_frame()])


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_an_error(number: float) -> None:
    card = ModelCard(
        class_names=("a", "b"), preprocessing=Preprocessing(height=2, width=2), provenance=Provenance(stage="import")
    )
    spec = InputSpec(height=2, width=2, classes=2)
    pipeline = Pipeline(FakeRunner(spec, logits=[number, 1.0]), card)
    logits = pipeline.infer(pipeline.pre(np.zeros((2, 2, 3), np.uint8)))
    with pytest.raises(EdgebertError, match="image 0"):
        pipeline.post(logits)


def test_scores_are_calibrated_and_decisions_are_not_touched(own_bundle: Path, toy: Any) -> None:
    frames = [_frame(seed) for seed in range(20)]
    with Classifier(own_bundle) as classifier:
        before = classifier.predict_batch(frames)
    _edit(own_bundle, lambda manifest: manifest["card"].update(confidence=_CONFIDENCE))
    with Classifier(own_bundle) as classifier:
        after = classifier.predict_batch(frames)
    assert [(answer.label, answer.index, answer.labels) for answer in after] == [
        (answer.label, answer.index, answer.labels) for answer in before
    ]
    logits = toy.logits(np.concatenate([load_image(frame, toy.card.preprocessing)[np.newaxis] for frame in frames]))
    expected = softmax(logits.astype(np.float64) / 2.5)
    for answer, row in zip(after, expected, strict=True):
        assert answer.scores == pytest.approx(row.tolist(), abs=1e-5)
        assert answer.score == max(answer.scores)


def test_an_answer_below_the_threshold_is_abstained_from_and_keeps_its_label(own_bundle: Path) -> None:
    _edit(own_bundle, lambda manifest: manifest["card"].update(confidence=_CONFIDENCE))
    with Classifier(own_bundle) as classifier:
        answers = classifier.predict_batch([_frame(seed) for seed in range(20)])
    assert {answer.abstained for answer in answers} == {False, True}
    for answer in answers:
        assert answer.abstained == (answer.score < _CONFIDENCE["abstain_below"])
        assert answer.label in answer.labels


def test_no_answer_is_abstained_from_where_the_bundle_has_no_threshold(own_bundle: Path) -> None:
    _edit(own_bundle, lambda manifest: manifest["card"].update(confidence={**_CONFIDENCE, **_NO_THRESHOLD}))
    with Classifier(own_bundle) as classifier:
        assert not any(answer.abstained for answer in classifier.predict_batch([_frame(seed) for seed in range(20)]))


def test_softmax_survives_huge_logits() -> None:
    scores = softmax(np.array([[3e38, 0, -3e38]], np.float32))
    assert scores.tolist() == [[1.0, 0.0, 0.0]]


# Which form


def test_first_form_that_can_run_is_taken(bundle: Path, missing: set[str]) -> None:
    missing.add("onnxruntime")
    with Classifier(bundle) as classifier:
        assert (classifier.target, classifier.backend) == ("intel-cpu", "openvino")


def test_a_form_for_another_machine_is_passed_over(own_bundle: Path) -> None:
    _edit(own_bundle, lambda manifest: manifest["forms"][0].update(machine="riscv64"))
    with Classifier(own_bundle) as classifier:
        assert classifier.target == "intel-cpu"
    with pytest.raises(UnavailableError, match="riscv64"):
        Classifier(own_bundle, target="cpu")


def test_portable_graph_is_the_last_resort_and_said(own_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    _edit(own_bundle, lambda manifest: [form.update(machine="riscv64") for form in manifest["forms"]])
    with caplog.at_level(logging.WARNING, "edgebert"), Classifier(own_bundle) as classifier:
        assert (classifier.target, classifier.backend) == ("portable", "onnxruntime")
        classifier.predict(_frame())
    said = [record.getMessage() for record in caplog.records if "portable graph" in record.getMessage()]
    reasons = f"made for riscv64, here is {machine()}"
    what = f"no compiled form of `{own_bundle}` fits this computer: its portable graph runs in onnxruntime"
    assert said == [f"{what} (`cpu`: {reasons}; `intel-cpu`: {reasons})"]


def test_portable_graph_runs_in_the_backend_that_is_here(own_bundle: Path, missing: set[str]) -> None:
    _edit(own_bundle, lambda manifest: [form.update(machine="riscv64") for form in manifest["forms"]])
    missing.add("onnxruntime")
    with Classifier(own_bundle) as classifier:
        assert (classifier.target, classifier.backend) == ("portable", "openvino")


def test_an_explicit_target_is_never_replaced(bundle: Path, missing: set[str]) -> None:
    missing.add("openvino")
    with pytest.raises(UnavailableError, match="openvino"):
        Classifier(bundle, target="intel-cpu")


def test_a_target_without_a_form_is_refused_with_those_that_have_one(bundle: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no form for `intel-gpu`(.|\n)*cpu, intel-cpu(.|\n)*edgebert compile"):
        Classifier(bundle, target="intel-gpu")


def test_an_unknown_target_is_a_usage_error(bundle: Path) -> None:
    with pytest.raises(UsageError, match="intel-cpu"):
        Classifier(bundle, target="intel-cpx")


def test_a_computer_without_any_backend_is_told_what_to_install(bundle: Path, missing: set[str]) -> None:
    missing.update(RUNNERS)
    with pytest.raises(UnavailableError, match=r"forms: cpu, intel-cpu(.|\n)*pip install"):
        Classifier(bundle)


# INT8 on a CPU whose products saturate


@pytest.fixture
def instructions(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool | None], None]:
    """Give this computer's CPU exact int8 sums, saturating ones, or ones that nobody knows."""

    def given(exact: bool | None) -> None:
        for module in (choice_module, instructions_module):
            monkeypatch.setattr(module, "int8_instructions", lambda _: Int8Instructions(name="avx2", exact=exact))

    return given


def _as_int8(bundle: Path, *weight_bits: int) -> None:
    """Let a bundle say that it is INT8, with these bits in the weights of its forms; the network stays as it is."""

    def change(manifest: Any) -> None:
        manifest.update(precision="int8")
        for form, bits in zip(manifest["forms"], weight_bits, strict=True):
            form.update(weight_bits=bits)

    _edit(bundle, change)


def _said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.mark.parametrize(("exact", "target"), [(False, "intel-cpu"), (True, "cpu"), (None, "cpu")])
def test_a_form_that_does_not_saturate_is_preferred(
    own_bundle: Path, instructions: Callable[[bool | None], None], exact: bool | None, target: str
) -> None:
    _as_int8(own_bundle, 8, 7)
    instructions(exact)
    with Classifier(own_bundle) as classifier:
        assert classifier.target == target


@pytest.mark.parametrize("target", [None, "cpu"])
def test_eight_bits_on_a_saturating_cpu_are_used_with_one_warning(
    own_bundle: Path,
    instructions: Callable[[bool | None], None],
    caplog: pytest.LogCaptureFixture,
    target: str | None,
) -> None:
    _as_int8(own_bundle, 8, 8)
    instructions(False)
    with caplog.at_level(logging.INFO, "edgebert"), Classifier(own_bundle, target=target) as classifier:
        classifier.predict(_frame())
        assert classifier.target == "cpu"
    (warning,) = _said(caplog, logging.WARNING)
    assert "no VNNI or AMX (avx2: sums of int8 products saturate)" in warning
    assert "edgebert compile GRAPH --weights 7-bit --target cpu -o NAME.edgebert" in warning


def test_the_portable_int8_graph_is_warned_of_as_well(
    own_bundle: Path, instructions: Callable[[bool | None], None], caplog: pytest.LogCaptureFixture
) -> None:
    _as_int8(own_bundle, 7, 7)
    _edit(own_bundle, lambda manifest: [form.update(machine="riscv64") for form in manifest["forms"]])
    instructions(False)
    with caplog.at_level(logging.INFO, "edgebert"), Classifier(own_bundle) as classifier:
        assert classifier.target == "portable"
    assert any("8-bit weights for `portable`" in text for text in _said(caplog, logging.WARNING))


def test_seven_bits_on_a_cpu_with_vnni_are_one_line_and_no_warning(
    own_bundle: Path, instructions: Callable[[bool | None], None], caplog: pytest.LogCaptureFixture
) -> None:
    _as_int8(own_bundle, 7, 7)
    instructions(True)
    with caplog.at_level(logging.INFO, "edgebert"), Classifier(own_bundle):
        pass
    assert _said(caplog, logging.WARNING) == []
    assert _said(caplog, logging.INFO) == [
        "`toy` has 7-bit weights for `cpu`, for CPUs without VNNI or AMX; this one would take 8"
    ]


@pytest.mark.parametrize(("bits", "exact"), [(8, True), (8, None), (7, False), (7, None)])
def test_nothing_is_said_of_weights_that_fit_or_of_an_unknown_cpu(
    own_bundle: Path,
    instructions: Callable[[bool | None], None],
    caplog: pytest.LogCaptureFixture,
    bits: int,
    exact: bool | None,
) -> None:
    _as_int8(own_bundle, bits, bits)
    instructions(exact)
    with caplog.at_level(logging.INFO, "edgebert"), Classifier(own_bundle):
        pass
    assert [record.getMessage() for record in caplog.records] == []


def test_verify_says_that_a_form_saturates_here(own_bundle: Path, instructions: Callable[[bool | None], None]) -> None:
    _as_int8(own_bundle, 8, 7)
    instructions(False)
    held = [line for line in verify(own_bundle) if "saturate" in line]
    assert len(held) == 1
    assert held[0].startswith("`cpu` has 8-bit weights, which saturate here")


# The self-test: edits that are rightly hashed


def test_every_transposition_of_class_names_is_refused(own_bundle: Path) -> None:
    original = (own_bundle / "manifest.json").read_bytes()
    names = json.loads(original)["card"]["class_names"]
    for first in range(len(names)):
        for second in range(first):
            swapped = list(names)
            swapped[first], swapped[second] = swapped[second], swapped[first]
            (own_bundle / "manifest.json").write_bytes(original)
            _edit(own_bundle, lambda manifest, swapped=swapped: manifest["card"].update(class_names=swapped))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            with pytest.raises(RefusedError, match="canary/"):
                Classifier(own_bundle)


def test_another_rule_with_a_hash_to_match_is_caught_by_the_canary(own_bundle: Path, toy: Any) -> None:
    rule = Preprocessing.from_json({**toy.card.preprocessing.to_json(), "interpolation": "lanczos"})

    def change(manifest: Any) -> None:
        manifest["card"]["preprocessing"] = rule.to_json()
        manifest["preprocessing_sha256"] = rule.sha256()

    _edit(own_bundle, change)
    with pytest.raises(RefusedError, match=r"preprocessing turns canary `canary/0\.png` into another tensor"):
        Classifier(own_bundle)


def test_canaries_that_changed_places_are_refused(own_bundle: Path) -> None:
    def change(manifest: Any) -> None:
        first, second = manifest["canaries"][:2]
        first["file"], second["file"] = second["file"], first["file"]

    _edit(own_bundle, change)
    with pytest.raises(RefusedError, match="another tensor"):
        Classifier(own_bundle)


def test_another_model_is_refused_whose_hash_is_right(own_bundle: Path, toy: Any) -> None:
    import hashlib
    from dataclasses import replace

    other = replace(toy, weight=toy.weight * np.float32(1.05)).graph()
    for name in ("model.onnx", "forms/intel-cpu/model.onnx"):
        (own_bundle / name).write_bytes(other)
    names = [line[66:].rstrip() for line in (own_bundle / "SHA256SUMS").read_text().splitlines()]
    lines = [f"{hashlib.sha256((own_bundle / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (own_bundle / "SHA256SUMS").write_text("".join(lines), newline="\n")
    for target in ("cpu", "intel-cpu"):
        with pytest.raises(RefusedError, match="its input tensor is right"):
            Classifier(own_bundle, target=target)


def test_answers_within_the_tolerance_but_not_equal_are_warned_of(
    own_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(manifest: Any) -> None:
        logits, tolerance = (manifest["canaries"][1][key] for key in ("logits", "tolerance"))
        logits["onnxruntime"]["nut"] -= 0.5 * tolerance["onnxruntime"]

    with caplog.at_level(logging.WARNING, "edgebert"):
        Classifier(own_bundle).close()
        assert not caplog.records
        _edit(own_bundle, change)
        Classifier(own_bundle).close()
    assert ["50 % of the tolerance" in record.getMessage() for record in caplog.records] == [True]


def test_a_refused_bundle_leaves_no_model_open(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def spy(*arguments: Any) -> Any:
        opened.append(open_runner(*arguments))
        return opened[-1]

    monkeypatch.setattr(choice_module, "open_runner", spy)
    _edit(own_bundle, lambda manifest: manifest["canaries"][2].update(input_sha256="0" * 64))
    with pytest.raises(RefusedError):
        Classifier(own_bundle)
    with pytest.raises(EdgebertError, match="was closed"):
        opened[0].properties()


# Threads and processes


def _eight_threads(classifier: Classifier, seconds: float) -> tuple[int, int]:
    frames = [_frame(seed) for seed in range(8)]
    copies = [frame.copy() for frame in frames]
    expected = [classifier.predict(frame) for frame in frames]
    counts, wrong = [0] * 8, [0] * 8
    until = time.monotonic() + seconds

    def work(place: int) -> None:
        while time.monotonic() < until:
            counts[place] += 1
            wrong[place] += classifier.predict(frames[place]) != expected[place]

    threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(frame, copy) for frame, copy in zip(frames, copies, strict=True))
    return sum(counts), sum(wrong)


@pytest.mark.parametrize("target", ["cpu", "intel-cpu"])
def test_predict_answers_alike_from_eight_threads(bundle: Path, target: str) -> None:
    with Classifier(bundle, target=target) as classifier:
        count, wrong = _eight_threads(classifier, 2.0)
    assert count > 100
    assert wrong == 0, f"{wrong} of {count}"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "intel-cpu"])
def test_predict_answers_alike_from_eight_threads_for_half_a_minute(bundle: Path, target: str) -> None:
    with Classifier(bundle, target=target) as classifier:
        count, wrong = _eight_threads(classifier, 30.0)
    assert wrong == 0, f"{wrong} of {count}"


def test_predict_is_refused_in_a_forked_child(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Classifier(bundle) as classifier:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(ForkedRuntimeError, match="spawn"):
            classifier.predict(_frame())
        monkeypatch.undo()
        classifier.predict(_frame())


_POOL = """
import multiprocessing, sys
from edgebert import Classifier
classifier = Classifier({bundle!r}, target={target!r})
image = {image!r}
classifier.predict(image)

def work(_):
    try:
        classifier.predict(image)
    except Exception as error:
        return type(error).__name__

with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(work, range(4)))
classifier.predict(image)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
@pytest.mark.parametrize("target", ["cpu", "intel-cpu"])
def test_forked_workers_get_errors_and_the_program_ends(bundle: Path, target: str) -> None:
    script = _POOL.format(bundle=str(bundle), target=target, image=str(bundle / "canary" / "0.png"))
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == str(["ForkedRuntimeError"] * 4)


@pytest.mark.parametrize("target", ["cpu", "intel-cpu"])
def test_a_program_that_never_closes_ends_cleanly(bundle: Path, target: str) -> None:
    code = f"from edgebert import Classifier\nc = Classifier({str(bundle)!r}, target={target!r})\nprint(c.class_names)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
