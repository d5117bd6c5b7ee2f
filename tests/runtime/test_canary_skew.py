"""Skew: a bundle put together wrongly, then hashed anew as a careless build script would, must not be served.

Two kinds of script. A *careless* one edits the manifest or exchanges files and writes SHA256SUMS: everything is caught by what
the manifest says its canaries were recorded with. A *thorough* one writes those records anew as well (`_reseal`): then the
canaries themselves have to see it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert import Classifier
from edgebert.bundle import read_bundle
from edgebert.calibration.calibrate import unsearched_int8_graph
from edgebert.card import ModelCard, Provenance
from edgebert.errors import BundleError, EdgebertError
from edgebert.examples import ExampleImage, example_png
from edgebert.export.compile import CompileOptions, bundle_from_graph
from edgebert.export.graph import graph_from_checkpoint
from edgebert.export.metadata import bytes_of_model, parse_graph, with_metadata
from edgebert.manifest import recorded_with
from edgebert.models.checkpoint import new_model, save_checkpoint
from edgebert.preprocess import Preprocessing, load_batch

NAMES = tuple(f"class {number}" for number in range(10))
RULE = Preprocessing(
    height=16, width=16, resize="crop", shortest_edge=18, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
TARGETS = ("cpu", "intel-cpu")
TRANSPOSITIONS = list(itertools.combinations(range(len(NAMES)), 2))

Edit = Callable[[Any], object]


def _student(folder: Path, rule: Preprocessing = RULE, *, seed: int = 0, zeroed: str = "", int8: bool = False) -> Path:
    """Make a `nano` of ten classes from coloured images, and compile it for both targets."""
    model = new_model("nano", preprocessing=rule, class_names=NAMES, seed=seed)
    if zeroed:
        parameters = [parameter for name, parameter in model.named_parameters() if zeroed in name]
        assert parameters
        for parameter in parameters:
            parameter.data.zero_()
    images = np.random.default_rng(5).integers(0, 256, (4, 21, 27, 3), np.uint8)
    examples = tuple(ExampleImage((NAMES[0],), example_png(image, rule)) for image in images)
    card = ModelCard(class_names=NAMES, preprocessing=rule, provenance=Provenance(stage="train"))
    save_checkpoint(folder / "student", model, card, examples)
    graph = graph_from_checkpoint(folder / "student", folder / "student.onnx").path
    if int8:
        fp32 = parse_graph(graph)
        quantised = unsearched_int8_graph(fp32, load_batch([example.png for example in examples], rule))
        graph = folder / "student.int8.onnx"
        graph.write_bytes(bytes_of_model(with_metadata(quantised, card, examples)))
    bundle = folder / "student.edgebert"
    bundle_from_graph(graph, bundle, CompileOptions(targets=TARGETS))
    return bundle


@pytest.fixture(scope="module")
def fp32_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _student(tmp_path_factory.mktemp("fp32"))


@pytest.fixture(scope="module")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _student(tmp_path_factory.mktemp("int8"), int8=True)


@pytest.fixture(params=["fp32", "int8"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy to skew, of either precision."""
    return Path(shutil.copytree(request.getfixturevalue(f"{request.param}_bundle"), tmp_path / "skewed.edgebert"))


@pytest.fixture
def fp32_copy(fp32_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fp32_bundle, tmp_path / "skewed.edgebert"))


def _rehash(bundle: Path) -> None:
    names = sorted(file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file())
    lines = [f"{_sha256(bundle / name)}  {name}\n" for name in names if name != "SHA256SUMS"]
    (bundle / "SHA256SUMS").write_text("".join(lines), encoding="ascii", newline="\n")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _edit(bundle: Path, change: Edit, *, reseal: bool) -> None:
    """Change the manifest and hash everything anew; a thorough script also writes anew what the canaries were recorded with."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    manifest["sizes"] = {name: (bundle / name).stat().st_size for name in manifest["sizes"]}
    if reseal:
        card = ModelCard.from_json(manifest["card"], what="card")
        manifest["preprocessing_sha256"] = card.preprocessing.sha256()
        manifest["recorded_with"] = recorded_with(card, {name: _sha256(bundle / name) for name in manifest["sizes"]})
    path.write_text(json.dumps(manifest), encoding="utf-8")
    _rehash(bundle)


def _unchanged(manifest: Any) -> None:
    pass


def _swap_names(first: int, second: int) -> Edit:
    def change(manifest: Any) -> None:
        names = manifest["card"]["class_names"]
        names[first], names[second] = names[second], names[first]

    return change


def _rename(first: int, second: int) -> Edit:
    """Let two classes change their names everywhere, in the canaries too: what a wrong label file does."""

    def change(manifest: Any) -> None:
        renamed = {NAMES[first]: NAMES[second], NAMES[second]: NAMES[first]}
        _swap_names(first, second)(manifest)
        for canary in manifest["canaries"]:
            canary["label"] = renamed.get(canary["label"], canary["label"])
            for engine, logits in canary["logits"].items():
                canary["logits"][engine] = {renamed.get(name, name): value for name, value in logits.items()}

    return change


def _rule(**changes: object) -> Edit:
    return lambda manifest: manifest["card"]["preprocessing"].update(changes)


def _stretch(manifest: Any) -> None:
    manifest["card"]["preprocessing"].update(resize="stretch", shortest_edge=None)


RULES: dict[str, Edit] = {
    **{f"filter {name}": _rule(interpolation=name) for name in ("nearest", "box", "hamming", "bicubic", "lanczos")},
    "stretch": _stretch,
    "stretch-crop": _rule(resize="stretch-crop"),
    "shortest edge + 1": _rule(shortest_edge=19),
    "shortest edge - 1": _rule(shortest_edge=17),
    "another shortest edge": _rule(shortest_edge=32),
    "lower input": _rule(height=12),
    "narrower input": _rule(width=12),
    "larger input": _rule(height=18, width=18),
}
ONLY_SAID: dict[str, Edit] = {
    "bgr": _rule(channel_order="bgr"),
    "mean": _rule(mean=[0.5, 0.5, 0.5]),
    "std": _rule(std=[0.5, 0.5, 0.5]),
    "mean of other channels": _rule(mean=[0.406, 0.456, 0.485]),
}
ALL_RULES: dict[str, Edit] = {**RULES, **ONLY_SAID}


def _refusal(bundle: Path, target: str) -> EdgebertError:
    with pytest.raises(EdgebertError) as caught:
        Classifier(bundle, target=target).close()
    assert isinstance(caught.value, BundleError), caught.value
    return caught.value


@pytest.mark.parametrize("target", TARGETS)
def test_the_bundle_itself_is_served(bundle: Path, target: str) -> None:
    _edit(bundle, _unchanged, reseal=True)
    Classifier(bundle, target=target).close()


# Class names


@pytest.mark.parametrize("change", [_swap_names, _rename], ids=["names", "names and canaries"])
def test_every_transposition_is_refused_before_any_parser(bundle: Path, change: Callable[[int, int], Edit]) -> None:
    original = (bundle / "manifest.json").read_bytes()
    for pair in TRANSPOSITIONS:
        (bundle / "manifest.json").write_bytes(original)
        _edit(bundle, change(*pair), reseal=False)
        with pytest.raises(BundleError):
            read_bundle(bundle)


@pytest.mark.parametrize("pair", TRANSPOSITIONS)
def test_every_transposition_is_seen_by_the_canaries(bundle: Path, pair: tuple[int, int]) -> None:
    _edit(bundle, _swap_names(*pair), reseal=True)
    for target in TARGETS:
        assert isinstance(_refusal(bundle, target), BundleError)


def test_a_reversed_list_is_seen_by_the_canaries(bundle: Path) -> None:
    _edit(bundle, lambda manifest: manifest["card"]["class_names"].reverse(), reseal=True)
    for target in TARGETS:
        assert isinstance(_refusal(bundle, target), BundleError)


# How answers become decisions: no canary need see it, so that the record must


def _temperature(manifest: Any) -> None:
    manifest["card"]["confidence"] = {"temperature": 3.0, "images": 100, "ece_before": 0.1, "ece_after": 0.05}


def test_another_temperature_is_refused_before_any_parser(bundle: Path) -> None:
    _edit(bundle, _temperature, reseal=False)
    with pytest.raises(BundleError, match="decisions"):
        read_bundle(bundle)


def test_another_threshold_is_recorded() -> None:
    card = ModelCard(
        class_names=("bolt", "nut"),
        preprocessing=Preprocessing(height=8, width=8),
        provenance=Provenance(stage="export"),
        task="multi-label",
        thresholds=(0.5, 0.4),
    )
    changed = replace(card, thresholds=(0.5, 0.41))
    assert recorded_with(changed, {})["decisions"] != recorded_with(card, {})["decisions"]


# Preprocessing: what the manifest says


@pytest.mark.parametrize("change", ALL_RULES.values(), ids=ALL_RULES)
def test_another_rule_is_refused_before_any_parser(bundle: Path, change: Edit) -> None:
    _edit(bundle, change, reseal=False)
    with pytest.raises(BundleError):
        read_bundle(bundle)


@pytest.mark.parametrize("change", RULES.values(), ids=RULES)
@pytest.mark.parametrize("target", TARGETS)
def test_another_rule_is_seen_by_the_canaries(fp32_copy: Path, change: Edit, target: str) -> None:
    _edit(fp32_copy, change, reseal=True)
    _refusal(fp32_copy, target)


# Preprocessing and weights: what is in the graph


OTHERS: dict[str, Callable[[Path], Path]] = {
    "bgr graph": lambda folder: _student(folder, replace(RULE, channel_order="bgr")),
    "mean of one half": lambda folder: _student(folder, replace(RULE, mean=(0.5, 0.5, 0.5))),
    "mean off by a hundredth": lambda folder: _student(folder, replace(RULE, mean=(0.485, 0.456, 0.416))),
    "std of one half": lambda folder: _student(folder, replace(RULE, std=(0.5, 0.5, 0.5))),
    "std in another order": lambda folder: _student(folder, replace(RULE, std=(0.225, 0.224, 0.229))),
    "other weights": lambda folder: _student(folder, seed=1),
    "a head of zeros": lambda folder: _student(folder, zeroed="classifier"),
    "normalisations of zeros": lambda folder: _student(folder, zeroed="attention_norm"),
    "one weight matrix of zeros": lambda folder: _student(folder, zeroed="blocks.1.mlp.contract.weight"),
}
_QUICK = ("bgr graph", "mean off by a hundredth", "a head of zeros")  # each takes an export and a compilation
_PARAMETERS = [
    pytest.param(make, id=name, marks=() if name in _QUICK else pytest.mark.slow) for name, make in OTHERS.items()
]


@pytest.fixture(scope="module", params=_PARAMETERS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose graph and forms get into the wrong place."""
    made: Path = request.param(tmp_path_factory.mktemp("other"))
    return made


@pytest.mark.parametrize("reseal", [False, True], ids=["careless", "thorough"])
@pytest.mark.parametrize("target", TARGETS)
def test_another_graph_is_refused(fp32_copy: Path, other: Path, target: str, reseal: bool) -> None:
    for name in read_bundle(fp32_copy).manifest.sizes:
        if not name.startswith("canary/"):
            shutil.copyfile(other / name, fp32_copy / name)
    _edit(fp32_copy, _unchanged, reseal=reseal)
    assert isinstance(_refusal(fp32_copy, target), BundleError)


@pytest.mark.parametrize("reseal", [False, True], ids=["careless", "thorough"])
def test_canaries_that_changed_places_are_refused(bundle: Path, reseal: bool) -> None:
    first, second = (bundle / "canary" / name for name in ("0.png", "1.png"))
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])
    _edit(bundle, _unchanged, reseal=reseal)
    assert isinstance(_refusal(bundle, "cpu"), BundleError)


# A tolerance is no way out


def test_a_tolerance_that_hides_everything_is_refused(bundle: Path) -> None:
    def change(manifest: Any) -> None:
        for canary in manifest["canaries"]:
            canary["tolerance"] = dict.fromkeys(canary["tolerance"], 1e9)

    _edit(bundle, change, reseal=True)
    with pytest.raises(BundleError, match="tolerance"):
        read_bundle(bundle)
