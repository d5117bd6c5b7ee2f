"""Every kind of teacher exports and quantises: placement follows the graph's structure, whatever the family is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig, PreTrainedModel

from edgebert.calibration.calibrate import unsearched_int8_graph
from edgebert.calibration.emit import int8_graph
from edgebert.calibration.placement import placement_of_graph
from edgebert.calibration.table import ScaleTable
from edgebert.calibration.torch_graph import TorchGraph
from edgebert.card import ModelCard, Provenance
from edgebert.data import Dataset
from edgebert.examples import example_images
from edgebert.export.graph import graph_from_checkpoint
from edgebert.export.metadata import bytes_of_model, card_of_model, examples_of_model, parse_graph, with_metadata
from edgebert.export.ort_form import ort_form_from_graph
from edgebert.export.rules import check_int8_graph, qdq_counts
from edgebert.models.checkpoint import save_checkpoint
from edgebert.preprocess import Preprocessing, load_batch
from edgebert.runtime.runner import InputSpec, ModelSource, open_runner

_SIDE = 32
_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}


@dataclass(frozen=True)
class Family:
    """A small, untrained member of a family: its settings, how many operators are quantised, and how many are not."""

    settings: Mapping[str, object]
    quantised: Mapping[str, int]
    kept_float: Mapping[str, int]


_FAMILIES = {
    "vit": Family(_VIT, {"MatMul": 12}, {"attention": 4, "head": 1, "stem": 1}),
    "beit": Family(
        {**_VIT, "use_relative_position_bias": True, "out_indices": [1, 2]},
        {"MatMul": 12},
        {"attention": 4, "head": 1, "stem": 1},
    ),
    "swin": Family(
        {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4},
        {"MatMul": 25},
        {"attention": 8, "head": 1, "stem": 1},
    ),
    "convnext": Family(
        {"hidden_sizes": [16, 32], "depths": [1, 2], "num_stages": 2, "patch_size": 4},
        {"Conv": 4, "MatMul": 6},
        {"head": 1, "stem": 1},
    ),
    "resnet": Family(
        {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 2], "layer_type": "basic"},
        {"Conv": 8},
        {"head": 1, "stem": 1},
    ),
    "edgebert-bert": Family(
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8},
        {"MatMul": 12},
        {"attention": 4, "head": 1, "stem": 1},
    ),
}


def _untrained(name: str) -> PreTrainedModel:
    config = AutoConfig.for_model(name, **_FAMILIES[name].settings, image_size=_SIDE, num_labels=10)
    model_class = cast("type[PreTrainedModel]", MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)])
    torch.manual_seed(0)
    make = cast("Callable[..., PreTrainedModel]", model_class._from_config)
    return make(config, attn_implementation="eager")


@pytest.fixture(scope="module", params=sorted(_FAMILIES))
def family(
    request: pytest.FixtureRequest, digits: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Family, Path]:
    """The family, and the FP32 graph of its member; export compares it with PyTorch."""
    name: str = request.param
    rule = Preprocessing(height=_SIDE, width=_SIDE)
    card = ModelCard(class_names=digits.class_names, preprocessing=rule, provenance=Provenance(stage="train"))
    folder = tmp_path_factory.mktemp(name)
    save_checkpoint(folder, _untrained(name), card, example_images(digits.train, digits.class_names, rule, 16))
    report = graph_from_checkpoint(folder, folder / "graph.onnx")
    assert report.flips == 0
    return _FAMILIES[name], report.path


def _quantised(path: Path) -> onnx.ModelProto:
    model = parse_graph(path)
    card, examples = card_of_model(model), examples_of_model(model)
    images = load_batch([example.png for example in examples], card.preprocessing)
    int8 = unsearched_int8_graph(model, images)
    onnx.checker.check_model(int8, full_check=True)
    return with_metadata(int8, card, examples)


def test_family_quantises_by_the_rules_and_both_engines_answer_alike(family: tuple[Family, Path]) -> None:
    member, path = family
    placement = placement_of_graph(parse_graph(path))
    assert Counter(placement.kept_float.values()) == member.kept_float
    int8 = _quantised(path)
    check_int8_graph(int8)
    counts = qdq_counts(int8)
    assert {kind: count for kind, count in counts.items() if not kind.endswith("Linear")} == member.quantised

    images = load_batch([example.png for example in examples_of_model(int8)], card_of_model(int8).preprocessing)
    source = ModelSource(
        spec=InputSpec(height=_SIDE, width=_SIDE, classes=10), files={"model.onnx": bytes_of_model(int8)}
    )
    answers = []
    for engine in ("onnxruntime", "openvino"):
        with open_runner(engine, source) as runner:
            answers.append(runner.infer(images))
    with open_runner("onnxruntime", ModelSource(spec=source.spec, files={"model.onnx": path.read_bytes()})) as runner:
        expected = runner.infer(images)
    error = float(np.abs(answers[0] - expected).max())
    assert 0 < error < 0.1 * max(float(np.abs(expected).max()), float(np.ptp(expected)))
    # A value on the border of two steps may take either; the engines may differ by less than quantisation itself.
    assert float(np.abs(answers[0] - answers[1]).max()) < error


def test_family_compiles_for_onnx_runtime(family: tuple[Family, Path]) -> None:
    member, path = family
    form = ort_form_from_graph(bytes_of_model(_quantised(path)), machine="x86_64")
    convolutions = member.quantised.get("Conv", 0)
    said = [note for note in form.notes if "quantised Conv run in float" in note]
    assert bool(said) == bool(convolutions)
    assert any("answers bit-equal to" in note or "answers within" in note for note in form.notes)


def test_family_runs_in_torch_as_in_onnx_runtime(
    family: tuple[Family, Path],
    run_graph: Callable[..., NDArray[np.float32]],
    minmax_table: Callable[..., ScaleTable],
) -> None:
    model = parse_graph(family[1])
    images = load_batch([example.png for example in examples_of_model(model)], card_of_model(model).preprocessing)
    placement = placement_of_graph(model)
    attention = [name for name, reason in placement.kept_float.items() if reason == "attention"]
    places = {*placement.quantised, *attention}
    table = minmax_table(model, places, images)
    expected, rounded = run_graph(model, images), run_graph(int8_graph(model, table, places), images)
    with torch.no_grad():
        ours = TorchGraph(model)(torch.from_numpy(images)).numpy()
        ours_rounded = TorchGraph(model, table=table, places=places)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))
    # A value on the border of two steps may take either: far below what the rounding itself changes.
    assert float(np.abs(ours_rounded - rounded).max()) < 0.05 * float(np.abs(rounded - expected).max())
