"""The real backends: a bundle, a graph and a checkpoint are opened by real workers and measured together."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from PIL import Image

from edgebert._files import sha256_of_path
from edgebert.bench import loading
from edgebert.bench.graph_card import graph_card
from edgebert.bench.harness import result_from_arms
from edgebert.bench.loading import LoadRequest, load_arm
from edgebert.bench.options import BenchOptions
from edgebert.card import ModelCard
from edgebert.errors import BadDataError, RefusedError, UnavailableError, UsageError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


class Toy(Protocol):
    card: ModelCard

    def graph(self) -> bytes: ...


@pytest.fixture(scope="module")
def graph_bytes(toy: Toy) -> bytes:
    """Return the toy's graph with its card."""
    from edgebert.export.metadata import parse_graph, with_metadata

    content: bytes = with_metadata(parse_graph(toy.graph()), toy.card, ()).SerializeToString(deterministic=True)
    return content


@pytest.fixture(scope="module")
def toy_images(tmp_path_factory: pytest.TempPathFactory, toy: Toy) -> Path:
    """Return a folder of images of the toy's classes."""
    root = tmp_path_factory.mktemp("toys")
    generator = np.random.default_rng(5)
    for split, count in (("train", 3), ("val", 3), ("test", 8)):
        for name in toy.card.class_names:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (15 + index, 21, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def test_graph_card_reads_what_export_writes(graph_bytes: bytes, toy: Toy) -> None:
    assert graph_card(graph_bytes, what="g") == toy.card


def test_graph_card_refuses_a_graph_without_a_card(toy: Toy) -> None:
    with pytest.raises(BadDataError, match="holds no card"):
        graph_card(toy.graph(), what="g")


def test_graph_card_refuses_every_truncation_and_noise(graph_bytes: bytes) -> None:
    generator = np.random.default_rng(0)
    contents = [graph_bytes[:length] for length in range(0, len(graph_bytes) - 1, 97)]
    contents += [generator.bytes(200) for _ in range(300)]
    contents += [b"\xff" * 50, b"\x72" + b"\xff" * 20, b"\x0b\x0c"]
    for content in contents:
        with pytest.raises(BadDataError):
            graph_card(content, what="g")


def load(path: Path, kind: str, target: str | None = None) -> str:
    request = LoadRequest(path=str(path), kind=kind, target=target, threads=1)  # type: ignore[arg-type]  # a test's own
    arm = load_arm(request, lambda: None)
    arm.pipeline.runner.close()
    return f"{arm.target} {arm.backend}"


def test_load_arm_takes_the_form_that_the_target_names(make_toy_bundle: Callable[[Path], Path], tmp_path: Path) -> None:
    bundle = make_toy_bundle(tmp_path / "b.edgebert")
    assert load(bundle, "bundle") == "cpu onnxruntime"
    assert load(bundle, "bundle", "intel-cpu") == "intel-cpu openvino"
    with pytest.raises(UnavailableError, match="intel-gpu"):
        load(bundle, "bundle", "intel-gpu")


def test_load_arm_refuses_a_bundle_that_was_changed(make_toy_bundle: Callable[[Path], Path], tmp_path: Path) -> None:
    bundle = make_toy_bundle(tmp_path / "b.edgebert")
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(RefusedError, match=r"model\.onnx"):
        load(bundle, "bundle")


@pytest.mark.parametrize("kind", ["bundle", "graph"])
def test_load_arm_names_the_two_ways_to_a_board_where_there_is_none(
    make_toy_bundle: Callable[[Path], Path],
    graph_bytes: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (tmp_path / "g.onnx").write_bytes(graph_bytes)
    path = {"bundle": make_toy_bundle(tmp_path / "b.edgebert"), "graph": tmp_path / "g.onnx"}[kind]
    with pytest.raises(UnavailableError, match="TensorRT is not on this computer") as caught:
        load(path, kind, "jetson")
    assert "--host USER@HOST" in str(caught.value.hint)
    assert "on the board itself" in str(caught.value.hint)


def test_load_arm_runs_a_graph_where_the_target_says(
    graph_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = tmp_path / "g.onnx"
    graph.write_bytes(graph_bytes)
    assert load(graph, "graph") == "cpu onnxruntime"
    assert load(graph, "graph", "intel-cpu") == "intel-cpu openvino"
    monkeypatch.setattr(loading, "check_device", lambda backend, device: None)
    with pytest.raises(UnavailableError, match="tensorrt takes a compiled form only"):
        load(graph, "graph", "jetson")
    with pytest.raises(UsageError):
        load(graph, "graph", "jetsam")


def test_result_from_arms_measures_bundle_graph_and_checkpoint_together(
    make_toy_bundle: Callable[[Path], Path], graph_bytes: bytes, toy: Toy, toy_images: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from edgebert.models.checkpoint import new_model, save_checkpoint

    bundle = make_toy_bundle(tmp_path / "toy.edgebert")
    graph = tmp_path / "toy.onnx"
    graph.write_bytes(graph_bytes)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    rule = replace(toy.card.preprocessing, height=16, width=16)
    model = new_model("nano", preprocessing=rule, class_names=toy.card.class_names, seed=0)
    save_checkpoint(checkpoint, model, replace(toy.card, preprocessing=rule), ())
    before = [sha256_of_path(path) for path in (bundle, graph, checkpoint)]
    options = BenchOptions(data=str(toy_images), launches=1, seconds=0.2, queries=30, max_warmup_seconds=0.0, threads=1)
    result = result_from_arms([checkpoint, bundle, f"graph={graph}"], tmp_path / "r.json", options)
    assert [(arm.id, arm.backend, arm.target) for arm in result.measured_arms] == [
        ("checkpoint", "torch", "pytorch"),
        ("toy", "onnxruntime", "cpu"),
        ("graph", "onnxruntime", "cpu"),
    ]
    assert result.status.valid
    # The same model in a bundle and as a graph: the same decisions on every image.
    assert result.arms[1].accuracy.confusion == result.arms[2].accuracy.confusion
    assert [arm.effective["threads"] for arm in result.measured_arms] == ["1", "1", "1"]
    assert set(result.arms[1].artifact.files) == {"model.onnx", "manifest.json"}
    assert set(result.arms[0].artifact.files) == {"config.json", "model.safetensors", "preprocessing.json"}
    assert before == [sha256_of_path(path) for path in (bundle, graph, checkpoint)]
    assert before == [result.arms[index].artifact.sha256 for index in (1, 2, 0)]
    assert torch is not None
