"""From a graph to a bundle: forms, canaries, adding to a bundle, and refusing before any work is done."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from edgebert import Classifier
from edgebert.bundle import read_bundle
from edgebert.errors import (
    BadDataError,
    CannotWriteError,
    EdgebertError,
    InputNotFoundError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from edgebert.examples import ExampleImage, example_png
from edgebert.export import compile as compile_module
from edgebert.export.canaries import Candidate, blind_spots, chosen_canaries, synthetic_candidates
from edgebert.export.compile import CompileOptions, bundle_from_graph
from edgebert.export.forms import CompiledForm, form_from_graph
from edgebert.export.metadata import read_graph_examples, with_metadata
from edgebert.extras import installed_version
from edgebert.fingerprint import at_least_release, machine
from edgebert.runtime.runner import check_device, open_runner

BOTH = ("cpu", "intel-cpu")


@pytest.fixture
def toy_graph(toy: Any, tmp_path: Path) -> Path:
    """The linear toy as a graph of edgebert's, with four examples that it decides rightly."""
    return _written_toy(toy, tmp_path / "toy.onnx")


def _written_toy(toy: Any, path: Path, examples: tuple[ExampleImage, ...] | None = None) -> Path:
    model = onnx.ModelProto.FromString(toy.graph())
    path.write_bytes(
        with_metadata(model, toy.card, _examples(toy) if examples is None else examples).SerializeToString()
    )
    return path


def _examples(toy: Any) -> tuple[ExampleImage, ...]:
    images = toy.images(4, seed=9)
    labels = [toy.card.class_names[index] for index in toy.logits(images).argmax(axis=1)]
    return tuple(
        ExampleImage((label,), example_png(image, toy.card.preprocessing))
        for label, image in zip(labels, images, strict=True)
    )


@pytest.fixture(scope="module")
def int8_file(int8_graph: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "student.int8.onnx"
    path.write_bytes(int8_graph)
    return path


@pytest.fixture(scope="module")
def int8_bundle(int8_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundle") / "student.edgebert"
    bundle_from_graph(int8_file, output, CompileOptions(targets=BOTH))
    return output


# A real student


def test_bundle_from_an_int8_graph_holds_both_forms(int8_bundle: Path) -> None:
    manifest = read_bundle(int8_bundle).manifest
    assert (manifest.name, manifest.precision) == ("student", "int8")
    assert [(form.target, form.machine) for form in manifest.forms] == [("cpu", machine()), ("intel-cpu", "x86_64")]
    assert [form.conditions.to_json() for form in manifest.forms] == [
        {"machine": machine(), "backend_version": ">= 1.18"},  # opset 20 in IR version 10
        {"machine": "x86_64", "backend_version": at_least_release(str(installed_version("openvino")))},
    ]
    assert manifest.forms[0].disabled_optimizers == ("MatMulAddFusion",)
    assert set(manifest.forms[1].files) == {"forms/intel-cpu/model.bin", "forms/intel-cpu/model.xml"}
    assert set(manifest.canaries[0].logits) == {"onnxruntime", "openvino"}
    assert [step.stage for step in manifest.card.provenance.chain()][:2] == ["compile", "export"]


def test_bundle_holds_no_example_images_but_its_canaries(int8_bundle: Path, int8_graph: bytes) -> None:
    bundle = read_bundle(int8_bundle)
    assert read_graph_examples(bundle.files["model.onnx"]) == ()
    pngs = [bundle.files[canary.file] for canary in bundle.manifest.canaries]
    made = {candidate.png for candidate in synthetic_candidates(bundle.manifest.card.preprocessing)}
    assert set(pngs) <= {example.png for example in read_graph_examples(int8_graph)} | made
    for name, content in bundle.files.items():
        if not name.endswith(".png"):
            assert b"edgebert.examples" not in content, name


@pytest.mark.parametrize("target", BOTH)
def test_bundle_answers_as_its_portable_graph(int8_bundle: Path, target: str) -> None:
    bundle = read_bundle(int8_bundle)
    images = [bundle.files[canary.file] for canary in bundle.manifest.canaries]
    with Classifier(int8_bundle, target=target) as classifier:
        assert [answer.label for answer in classifier.predict_batch(images)] == [
            canary.labels[0] for canary in bundle.manifest.canaries
        ]


def test_bundles_of_the_same_graph_are_equal_byte_by_byte(int8_file: Path, int8_bundle: Path, tmp_path: Path) -> None:
    report = bundle_from_graph(int8_file, tmp_path / "student.edgebert", CompileOptions(targets=BOTH))
    assert report.digest == read_bundle(int8_bundle).digest


def test_adding_a_form_gives_the_bundle_that_one_call_gives(int8_file: Path, int8_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "student.edgebert"
    first = bundle_from_graph(int8_file, output, CompileOptions(targets=("cpu",)))
    second = bundle_from_graph(int8_file, output, CompileOptions(targets=("intel-cpu",)))
    assert [form.target for form in first.forms] == ["cpu"]
    assert second.added == ("intel-cpu",)
    assert second.verified == BOTH
    assert second.digest == read_bundle(int8_bundle).digest


# What it says


def test_report_counts_what_was_made(toy_graph: Path, tmp_path: Path) -> None:
    report = bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions(targets=BOTH))
    bundle = read_bundle(report.path)
    assert report.digest == bundle.digest
    assert report.canaries == len(bundle.manifest.canaries) == 5  # four examples, and a made one that sees filters
    assert report.size_bytes == sum(bundle.manifest.sizes.values())
    assert (report.precision, report.added, report.verified) == ("fp32", BOTH, BOTH)


def test_an_fp32_graph_is_its_own_form_for_onnx_runtime(toy_graph: Path, tmp_path: Path) -> None:
    bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions(targets=("cpu",)))
    (form,) = read_bundle(tmp_path / "toy.edgebert").manifest.forms
    assert (form.files, form.machine) == (("model.onnx",), None)
    assert form.conditions.to_json() == {"backend_version": ">= 1.18"}


# Refusals before any work


@pytest.mark.parametrize("targets", [(), ("cpu", "cpu"), ("cpux",)])
def test_options_refuse_impossible_targets(targets: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        CompileOptions(targets=targets)


@pytest.mark.parametrize("target", ["intel-gpu", "intel-npu", "jetson", "jetson-agx-thor"])
def test_compile_refuses_a_device_that_is_not_here_before_work(
    toy_graph: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        check_device("openvino", {"intel-gpu": "GPU", "intel-npu": "NPU"}.get(target, "none"))
        pytest.skip("this computer has the device")
    except UnavailableError:
        pass
    monkeypatch.setattr(compile_module, "form_from_graph", lambda *_: pytest.fail("work was done"))
    with pytest.raises(UnavailableError):
        bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions(targets=("cpu", target)))
    assert not (tmp_path / "toy.edgebert").exists()


def test_compile_refuses_a_form_for_another_processor(
    toy_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgebert.export.place.machine", lambda: "aarch64")
    with pytest.raises(UnavailableError, match="aarch64"):
        bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions(targets=("intel-cpu",)))


def test_compile_refuses_a_graph_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="the graph"):
        bundle_from_graph(tmp_path / "none.onnx", tmp_path / "toy.edgebert", CompileOptions())


def test_compile_refuses_a_graph_of_somebody_else(toy: Any, tmp_path: Path) -> None:
    graph = tmp_path / "foreign.onnx"
    graph.write_bytes(toy.graph())
    with pytest.raises(BadDataError, match="metadata"):
        bundle_from_graph(graph, tmp_path / "toy.edgebert", CompileOptions())


def test_compile_refuses_an_existing_bundle_of_another_graph(toy: Any, toy_graph: Path, tmp_path: Path) -> None:
    output = tmp_path / "toy.edgebert"
    bundle_from_graph(toy_graph, output, CompileOptions())
    digest = read_bundle(output).digest
    other = _written_toy(replace(toy, bias=toy.bias + np.float32(1)), tmp_path / "other.onnx")
    with pytest.raises(CannotWriteError, match=r"another graph(.|\n)*--force"):
        bundle_from_graph(other, output, CompileOptions(targets=("intel-cpu",)))
    assert read_bundle(output).digest == digest
    bundle_from_graph(other, output, CompileOptions(targets=("intel-cpu",), force=True))
    assert [form.target for form in read_bundle(output).manifest.forms] == ["intel-cpu"]


def test_compile_refuses_a_form_that_is_there_already(toy_graph: Path, tmp_path: Path) -> None:
    bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions())
    with pytest.raises(CannotWriteError, match="`cpu` already"):
        bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions(targets=BOTH))


def test_compile_refuses_other_canaries_for_an_existing_bundle(toy_graph: Path, tmp_path: Path) -> None:
    bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions())
    with pytest.raises(UsageError, match="has its canaries already"):
        bundle_from_graph(
            toy_graph, tmp_path / "toy.edgebert", CompileOptions(targets=("intel-cpu",), canary="synthetic")
        )


def test_compile_refuses_to_add_to_a_damaged_bundle(toy_graph: Path, tmp_path: Path) -> None:
    output = tmp_path / "toy.edgebert"
    bundle_from_graph(toy_graph, output, CompileOptions())
    (output / "canary" / "0.png").write_bytes(b"")
    with pytest.raises(RefusedError, match=r"canary/0\.png"):
        bundle_from_graph(toy_graph, output, CompileOptions(targets=("intel-cpu",)))


@pytest.mark.parametrize("force", [False, True])
def test_compile_never_replaces_a_folder_of_the_user_s(toy_graph: Path, tmp_path: Path, force: bool) -> None:
    output = tmp_path / "photos"
    output.mkdir()
    (output / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(CannotWriteError):
        bundle_from_graph(toy_graph, output, CompileOptions(force=force))
    assert (output / "cat.jpg").read_bytes() == b"cat"


def test_compile_leaves_nothing_behind_when_the_self_test_fails(
    toy_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, *, target: str) -> None:
        assert (folder / "SHA256SUMS").exists()
        raise RefusedError(f"`{target}` answers wrongly")

    monkeypatch.setattr("edgebert.export.place.Classifier", refuse)
    with pytest.raises(RefusedError):
        bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["toy.onnx"]


# Canaries


def test_compile_asks_for_canaries_when_the_graph_holds_none(toy: Any, tmp_path: Path) -> None:
    graph = _written_toy(toy, tmp_path / "bare.onnx", examples=())
    with pytest.raises(UsageError, match="--canary synthetic"):
        bundle_from_graph(graph, tmp_path / "toy.edgebert", CompileOptions())
    report = bundle_from_graph(graph, tmp_path / "toy.edgebert", CompileOptions(canary="synthetic"))
    assert report.canaries >= 3
    Classifier(tmp_path / "toy.edgebert").close()


def test_synthetic_canaries_are_larger_than_the_input_and_all_different(toy_graph: Path, tmp_path: Path) -> None:
    bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions(canary="synthetic"))
    canaries = sorted((tmp_path / "toy.edgebert" / "canary").iterdir())
    assert len({path.read_bytes() for path in canaries}) == len(canaries) == 4
    for path in canaries:
        with Image.open(path) as image:
            assert image.width > 8
            assert image.height > 6


def test_canaries_from_a_folder_are_shrunk_and_stripped(toy: Any, toy_graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "nut").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        name = f"nut/{number}.jpg" if number % 2 else f"{number}.webp"
        exif = Image.Exif()
        exif[0x010E] = "secret"
        Image.fromarray(rng.integers(0, 256, (60, 90, 3), np.uint8)).save(folder / name, exif=exif)
    report = bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions(canary=str(folder)))
    assert report.canaries == 4
    for path in (report.path / "canary").iterdir():
        assert b"secret" not in path.read_bytes()
        with Image.open(path) as image:
            assert (image.format, min(image.size)) == ("PNG", 16)


@pytest.mark.parametrize("count", [0, 2, 65])
def test_a_canary_folder_needs_three_to_sixty_four_images(toy_graph: Path, tmp_path: Path, count: int) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(b"")
    with pytest.raises(BadDataError, match=f"holds {count} files"):
        bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions(canary=str(folder)))


def test_a_canary_folder_names_the_file_that_is_no_image(toy_graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(b"no image")
    with pytest.raises(BadDataError, match=r"a\.png"):
        bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions(canary=str(folder)))
    with pytest.raises(InputNotFoundError, match="no such folder"):
        bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions(canary=str(tmp_path / "none")))


def test_chosen_canaries_are_right_clear_and_spread() -> None:
    names = ("a", "b")
    logits = np.zeros((12, 2), np.float32)
    logits[:10, 0] = np.arange(1, 11)  # decided for `a`, the tenth most clearly
    logits[10:, 1] = (0.5, 20)  # decided for `b`
    labels = ["a"] * 9 + ["b", "b", "b"]  # the tenth image is decided wrongly
    chosen = chosen_canaries([Candidate(png=b"", labels=(label,)) for label in labels], logits, names)
    assert len(chosen) == 8
    assert {10, 11, 8} <= set(chosen)
    assert 9 not in chosen


def test_chosen_canaries_fall_back_to_wrong_ones() -> None:
    logits = np.eye(3, dtype=np.float32)
    candidates = [Candidate(png=b"", labels=("a",))] * 3
    assert chosen_canaries(candidates, logits, ("a", "b", "c")) == [0, 1, 2]


def test_a_narrow_decision_is_warned_of(toy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flat = replace(toy, weight=toy.weight * 0 + np.float32(0.001) * toy.weight, bias=np.zeros(4, np.float32))
    flat.bias[1] = np.float32(100)
    flat.bias[2] = np.float32(100.0005)
    graph = _written_toy(flat, tmp_path / "flat.onnx", examples=_examples(flat))
    with caplog.at_level(logging.WARNING, "edgebert"):
        bundle_from_graph(graph, tmp_path / "toy.edgebert", CompileOptions())
    assert any("by a hair" in record.getMessage() for record in caplog.records)


# Forms that answer differently


def _with_other_weights(toy: Any) -> Callable[..., CompiledForm]:
    """Return a compiler that makes another model of every graph."""

    def compile_wrongly(graph: bytes, target: Any, *_: Any) -> CompiledForm:
        form = form_from_graph(graph, target)
        return replace(form, files={"model.onnx": toy.graph()})

    return compile_wrongly


def test_compile_refuses_forms_that_decide_differently(
    toy: Any, toy_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(toy, weight=-toy.weight)
    monkeypatch.setattr(compile_module, "form_from_graph", _with_other_weights(wrong))
    with pytest.raises(EdgebertError, match=r"engines disagree on `canary/0\.png`: onnxruntime says") as caught:
        bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions(targets=("intel-cpu",)))
    assert caught.value.exit_code == 1
    assert not (tmp_path / "toy.edgebert").exists()


def test_compile_refuses_a_form_that_differs_from_the_graph(
    toy: Any, toy_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(toy, weight=toy.weight * np.float32(1.01))
    monkeypatch.setattr(compile_module, "form_from_graph", _with_other_weights(wrong))
    with pytest.raises(EdgebertError, match="differently than the portable graph"):
        bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions())


def test_compile_refuses_a_model_that_answers_nan(toy: Any, tmp_path: Path) -> None:
    broken = replace(toy, bias=np.array([0, np.nan, 0, 0], np.float32))
    graph = _written_toy(broken, tmp_path / "broken.onnx", examples=_examples(toy))
    with pytest.raises(EdgebertError, match="finite logits"):
        bundle_from_graph(graph, tmp_path / "toy.edgebert", CompileOptions())


def test_answers_are_recorded_with_one_thread(toy_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def spy(backend: str, source: Any, options: Any) -> Any:
        threads.append(options.threads)
        return open_runner(backend, source, options)

    monkeypatch.setattr("edgebert.export.place.open_runner", spy)
    bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions())
    assert threads
    assert set(threads) == {1}


# Canaries that see, numbers of releases, and what a newer version wrote


def _made_images(bundle: Path) -> int:
    read = read_bundle(bundle)
    made = {candidate.png for candidate in synthetic_candidates(read.manifest.card.preprocessing)}
    return sum(read.files[canary.file] in made for canary in read.manifest.canaries)


def test_a_made_image_is_added_where_the_chosen_ones_are_blind(toy_graph: Path, tmp_path: Path) -> None:
    bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions())  # noise of the input's own size
    assert _made_images(tmp_path / "toy.edgebert") == 1
    manifest = read_bundle(tmp_path / "toy.edgebert").manifest
    assert manifest.card.provenance.options["canary"] == "examples and synthetic"
    pngs = [read_bundle(tmp_path / "toy.edgebert").files[canary.file] for canary in manifest.canaries]
    assert blind_spots(pngs, manifest.card.preprocessing) == []


def test_no_image_is_added_where_the_chosen_ones_see(toy: Any, tmp_path: Path) -> None:
    images = np.random.default_rng(2).integers(0, 256, (4, 11, 12, 3), np.uint8)
    examples = tuple(ExampleImage(("bolt",), example_png(image, toy.card.preprocessing)) for image in images)
    graph = _written_toy(toy, tmp_path / "toy.onnx", examples)
    bundle_from_graph(graph, tmp_path / "toy.edgebert", CompileOptions())
    assert _made_images(tmp_path / "toy.edgebert") == 0


def test_blind_canaries_are_said_where_no_made_image_is_clear(
    toy_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compile_module, "synthetic_candidates", lambda rule: synthetic_candidates(rule, 1))
    monkeypatch.setattr(compile_module, "margins", lambda rows, thresholds: np.zeros(len(rows)))
    with caplog.at_level(logging.WARNING, "edgebert"):
        bundle_from_graph(toy_graph, tmp_path / "toy.edgebert", CompileOptions())
    assert any("no canary would show interpolation `nearest`" in record.getMessage() for record in caplog.records)
    assert _made_images(tmp_path / "toy.edgebert") == 0


def test_release_is_written_and_kept_when_a_form_is_added(toy_graph: Path, tmp_path: Path) -> None:
    output = tmp_path / "toy.edgebert"
    bundle_from_graph(toy_graph, output, CompileOptions(release=7))
    bundle_from_graph(toy_graph, output, CompileOptions(targets=("intel-cpu",)))
    assert read_bundle(output).manifest.release == 7
    with pytest.raises(UsageError, match="release is `-1`"):
        CompileOptions(release=-1)


def test_adding_a_form_keeps_what_a_newer_version_wrote(toy_graph: Path, tmp_path: Path) -> None:
    output = tmp_path / "toy.edgebert"
    bundle_from_graph(toy_graph, output, CompileOptions())
    manifest = json.loads((output / "manifest.json").read_bytes())
    manifest["invented"] = {"later": [1]}
    manifest["forms"][0]["cores"] = 4
    manifest["forms"].append({"target": "riscv-npu", "files": ["model.onnx"]})
    (output / "manifest.json").write_text(json.dumps(manifest))
    sums = (output / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256((output / "manifest.json").read_bytes()).hexdigest()
    lines = [f"{digest}  manifest.json" if line.endswith("  manifest.json") else line for line in sums]
    (output / "SHA256SUMS").write_text("".join(f"{line}\n" for line in lines), newline="\n")
    bundle_from_graph(toy_graph, output, CompileOptions(targets=("intel-cpu",)))
    written = json.loads((output / "manifest.json").read_bytes())
    assert written["invented"] == {"later": [1]}
    assert written["forms"][0]["cores"] == 4
    assert [form["target"] for form in written["forms"]] == ["cpu", "intel-cpu", "riscv-npu"]


@pytest.mark.parametrize("what", ["bundle", "page"])
def test_an_output_that_cannot_be_written_is_said_before_anything_is_compiled(
    toy_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def compiled(*arguments: object) -> None:
        raise AssertionError("a form was compiled")

    monkeypatch.setattr(compile_module, "chosen_graph", compiled)
    (tmp_path / "a-file").write_bytes(b"")
    nowhere = tmp_path / "a-file" / "toy.edgebert"
    options = CompileOptions(canary="synthetic")
    if what == "page":
        options = CompileOptions(
            precision="auto", float_graph=toy_graph, data="digits", report=nowhere.with_suffix(".html")
        )
    with pytest.raises(CannotWriteError, match=r"cannot write `.*/a-file/toy"):
        bundle_from_graph(toy_graph, nowhere if what == "bundle" else tmp_path / "toy.edgebert", options)
    assert not (tmp_path / "toy.edgebert").exists()
