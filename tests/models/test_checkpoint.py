from __future__ import annotations

import doctest
import importlib
import json
import logging
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig, PreTrainedModel

from edgebert.card import ImageSet, ModelCard, Provenance
from edgebert.card_io import checkpoint_sha256, read_checkpoint_examples
from edgebert.errors import BadDataError, EdgebertError, InputNotFoundError, RefusedError, UsageError
from edgebert.examples import ExampleImage, examples_from_json
from edgebert.models.checkpoint import (
    PRESETS,
    Checkpoint,
    PixelClassifier,
    is_preset,
    load_checkpoint,
    new_model,
    parameter_count,
    read_checkpoint_card,
    save_checkpoint,
    with_classes,
)
from edgebert.preprocess import Preprocessing

CLASSES = ("cat", "dog", "hen")
RULE = Preprocessing(height=8, width=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"  # one red pixel


def card(class_names: tuple[str, ...] = CLASSES, preprocessing: Preprocessing = RULE) -> ModelCard:
    return ModelCard(
        class_names=class_names,
        preprocessing=preprocessing,
        provenance=Provenance(stage="train", made_from={"data": "ab" * 32}, metrics={"val_top1": 0.5}),
        seen=ImageSet.from_hashes(["cd" * 32]),
    )


def examples() -> tuple[ExampleImage, ...]:
    return examples_from_json([{"label": name, "png": PNG} for name in CLASSES], what="a test")


def saved(folder: Path, *, preset: str = "nano", seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model = new_model(preset, preprocessing=RULE, class_names=CLASSES, seed=seed)
    save_checkpoint(folder, model, card(), examples())
    return folder


def logits_of(model: PreTrainedModel, batch: int = 3, rule: Preprocessing = RULE) -> torch.Tensor:
    images = np.random.default_rng(1).integers(0, 256, (batch, rule.height, rule.width, 3), np.uint8)
    with torch.inference_mode():
        answer: torch.Tensor = PixelClassifier(model, rule)(torch.from_numpy(images))
    return answer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(saved(tmp_path_factory.mktemp("nano")))


@pytest.mark.parametrize("name", ["bert", "checkpoint", "pixels", "processor", "student"])
def test_examples_in_docstrings_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"edgebert.models.{name}")).failed == 0


# Our own checkpoints


@pytest.mark.parametrize("preset", ["nano", "bert-nano", "cnn", "resnet-mini", "d24-l2-h3-r2-t9"])
def test_load_checkpoint_gives_back_what_save_checkpoint_wrote(preset: str, tmp_path: Path) -> None:
    model = new_model(preset, preprocessing=RULE, class_names=CLASSES, seed=1)
    save_checkpoint(tmp_path, model, card(), examples())
    loaded = load_checkpoint(tmp_path)
    assert torch.equal(logits_of(loaded.model), logits_of(model))
    assert loaded.card == card()
    assert loaded.examples == examples()
    assert not loaded.model.training
    assert loaded.sha256 == checkpoint_sha256(tmp_path)
    assert loaded.model.config.label2id == {"cat": 0, "dog": 1, "hen": 2}
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        *("config.json", "examples/0.png", "examples/1.png", "examples/2.png", "model.safetensors"),
        "preprocessing.json",
    ]


def test_save_checkpoint_writes_equal_bytes_and_no_path(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a"), saved(tmp_path / "b" / "c")
    names = [path.relative_to(first) for path in sorted(first.rglob("*")) if path.is_file()]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    again = load_checkpoint(first)
    third = tmp_path / "d"
    third.mkdir()
    save_checkpoint(third, again.model, again.card, again.examples)
    assert all((first / name).read_bytes() == (third / name).read_bytes() for name in names)
    assert str(tmp_path) not in (third / "config.json").read_text()


def test_save_checkpoint_takes_the_class_names_of_the_card(tmp_path: Path) -> None:
    model = new_model("nano", preprocessing=RULE, class_names=CLASSES, seed=0)
    save_checkpoint(tmp_path, model, card(("x", "y", "z")), ())
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "x", "1": "y", "2": "z"}


def test_save_checkpoint_keeps_bars_off_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_checkpoint(saved(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_read_checkpoint_card_reads_the_card(tmp_path: Path) -> None:
    assert read_checkpoint_card(saved(tmp_path)) == card()
    with pytest.raises(InputNotFoundError, match="no such folder"):
        read_checkpoint_card(tmp_path / "absent")
    with pytest.raises(InputNotFoundError, match="cannot read the card"):
        read_checkpoint_card(tmp_path / "examples")


def test_checkpoint_sha256_covers_weights_config_and_card_but_no_notes(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    before = checkpoint_sha256(folder)
    (folder / "README.md").write_text("notes")
    assert checkpoint_sha256(folder) == before
    for name in ("config.json", "model.safetensors", "preprocessing.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert checkpoint_sha256(folder) != before
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ([{"file": "../0.png", "label": "cat"}], "../0.png"),
        ([{"file": "examples/9.png", "label": "cat"}], "9.png"),
        ([{"file": "config.json", "label": "cat"}], "config.json"),
        ([{"file": "examples/0.png"}], "label"),
        ("none", "examples"),
        ([{"file": "examples/0.png", "label": "cat"}] * 65, "65"),
    ],
)
def test_read_checkpoint_examples_refuses_a_malformed_list(listed: Any, found: str, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    content = json.loads((folder / "preprocessing.json").read_text())
    (folder / "preprocessing.json").write_text(json.dumps({**content, "examples": listed}))
    with pytest.raises(EdgebertError) as raised:
        read_checkpoint_examples(folder)
    assert found in str(raised.value)
    assert isinstance(raised.value, (BadDataError, InputNotFoundError))


def test_read_checkpoint_examples_refuses_a_damaged_image(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    whole = (folder / "examples/1.png").read_bytes()
    (folder / "examples/1.png").write_bytes(whole[:30])
    with pytest.raises(BadDataError, match="cannot be read"):
        read_checkpoint_examples(folder)


# New models


def test_new_model_gives_the_same_weights_for_a_seed_and_leaves_the_random_state() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    models = [new_model("nano", preprocessing=RULE, class_names=CLASSES, seed=seed).state_dict() for seed in (4, 4, 5)]
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["classifier.weight"], models[2]["classifier.weight"])


@pytest.mark.parametrize(
    "preset", ["nano", "micro", "tiny", "bert-nano", "cnn", "resnet-mini", "d16-l1-h2-r1", "d24-l2-h3-r2-t6"]
)
def test_new_model_takes_size_and_classes(preset: str) -> None:
    rule = Preprocessing(height=12, width=20)
    model = new_model(preset, preprocessing=rule, class_names=CLASSES, seed=0)
    assert is_preset(preset)
    assert (preset in PRESETS) == (not preset.startswith("d"))
    assert not model.training
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "hen"}
    assert logits_of(model, rule=rule).shape == (3, 3)


def test_new_model_names_the_presets_when_there_is_none_of_this_name() -> None:
    with pytest.raises(UsageError, match="no such model: `nan0`") as raised:
        new_model("nan0", preprocessing=RULE, class_names=CLASSES, seed=0)
    assert "nano, micro, tiny, small, bert-nano" in str(raised.value)
    assert "cnn, resnet-mini, or a student's shape such as `d64-l3-h2-r2`" in str(raised.value)
    assert not is_preset("nan0")


@pytest.mark.parametrize("preset", ["cnn", "d32-l2-h2-r2"])
def test_new_model_refuses_text_weights_for_what_is_no_bert(preset: str) -> None:
    with pytest.raises(
        UsageError, match=f"`{preset}` is no BERT; text weights fit a BERT only\nexpected: one of bert-nano"
    ):
        new_model(preset, preprocessing=RULE, class_names=CLASSES, seed=0, text_weights="owner/bert")


# PixelClassifier


def test_pixel_classifier_normalises_inside_and_keeps_it_out_of_the_state_dict() -> None:
    model = new_model("nano", preprocessing=RULE, class_names=CLASSES, seed=0)
    classifier = PixelClassifier(model, RULE)
    image = torch.tensor([0, 128, 255], dtype=torch.uint8).expand(1, 8, 8, 3)
    expected = torch.tensor([(0 - 0.4) / 0.2, (128 / 255 - 0.5) / 0.25, (1 - 0.6) / 0.3])
    torch.testing.assert_close(classifier.normalized(image)[0, :, 3, 5], expected)
    assert set(classifier.state_dict()) == {f"model.{name}" for name in model.state_dict()}


def test_pixel_classifier_turns_channels_before_normalising_when_the_network_takes_bgr() -> None:
    model = new_model("nano", preprocessing=RULE, class_names=CLASSES, seed=0)
    rule = Preprocessing(height=8, width=8, mean=RULE.mean, std=RULE.std, channel_order="bgr")
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(PixelClassifier(model, rule)(images), PixelClassifier(model, RULE)(images.flip(3)))


def test_pixel_classifier_answers_the_same_twice_and_for_each_image_alone(checkpoint: Checkpoint) -> None:
    assert torch.equal(logits_of(checkpoint.model), logits_of(checkpoint.model))
    torch.testing.assert_close(logits_of(checkpoint.model, 3)[:1], logits_of(checkpoint.model, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", ["nano", "bert-nano"])
def test_pixel_classifier_exports_with_a_symbolic_batch_and_no_mask(preset: str) -> None:
    """A mask leaves Where and IsNaN in the graph, which engines do not fuse (compression.md, sections 7 and 14)."""
    model = new_model(preset, preprocessing=RULE, class_names=CLASSES, seed=0)
    batch = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    classifier = PixelClassifier(model, RULE).eval()
    exported = torch.export.export(classifier, (batch,), dynamic_shapes={"image": {0: torch.export.Dim("batch")}})
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not {name for name in called if "where" in name or "isnan" in name or "scaled_dot_product" in name}
    images = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(exported.module()(images), classifier(images), rtol=1e-5, atol=1e-6)


# Other classes


def test_with_classes_returns_the_same_model_when_names_are_equal(checkpoint: Checkpoint) -> None:
    assert with_classes(checkpoint, CLASSES) is checkpoint.model


@pytest.mark.parametrize("preset", ["nano", "bert-nano"])
def test_with_classes_permutes_the_head_when_the_order_differs(
    preset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_checkpoint(saved(tmp_path, preset=preset))
    before = logits_of(loaded.model)
    with caplog.at_level(logging.INFO, "edgebert"):
        permuted = with_classes(loaded, ("hen", "cat", "dog"))
    assert torch.equal(logits_of(permuted), before[:, [2, 0, 1]])
    assert torch.equal(logits_of(loaded.model), before)
    assert permuted.config.id2label == {0: "hen", 1: "cat", 2: "dog"}
    assert "permuted" in caplog.text


@pytest.mark.parametrize("names", [("ant", "bee", "cow"), ("ant", "bee"), ("a", "b", "c", "d", "e")])
def test_with_classes_starts_a_new_head_when_names_differ(
    names: tuple[str, ...], checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "edgebert"):
        model = with_classes(checkpoint, names, seed=3)
    assert logits_of(model).shape == (3, len(names))
    old, new = checkpoint.model.state_dict(), model.state_dict()
    kept = set(old) - {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(new[name], old[name]) for name in kept)
    assert not torch.equal(new["classifier.weight"][:2], old["classifier.weight"][:2])
    assert torch.equal(
        new["classifier.weight"], with_classes(checkpoint, names, seed=3).state_dict()["classifier.weight"]
    )
    assert "its head starts anew" in caplog.text


# Foreign checkpoints

VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
BIT = {
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 36},
    "crop_size": {"height": 32, "width": 32},
}
CONVNEXT = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.875}
ENCODER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
STAGES: dict[str, Any] = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
DEIT = {"image_processor_type": "DeiTImageProcessor", "size": 36, "crop_size": 32}
MOBILEVIT = {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32}

FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ViT": (ENCODER, VIT),
    "DeiT": (ENCODER, DEIT),
    "Beit": (ENCODER, {"image_processor_type": "BeitImageProcessor", "size": 32}),
    "Dinov2": ({**ENCODER, "mlp_ratio": 2}, BIT),
    "Swin": (
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        VIT,
    ),
    "ConvNext": ({**STAGES, "image_size": 32}, CONVNEXT),
    "ResNet": ({**STAGES, "embedding_size": 8, "layer_type": "basic"}, CONVNEXT),
    "MobileViT": (
        {
            "image_size": 32,
            "hidden_sizes": [16, 16, 16],
            "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
            "num_attention_heads": 2,
        },
        MOBILEVIT,
    ),
}


def foreign(folder: Path, family: str = "ViT", *, config: dict[str, Any] | None = None, **labels: Any) -> Path:
    """Save a tiny random classifier of a family of transformers, as a user has it on disk."""
    shape, processor = FAMILIES[family]
    config_class = getattr(transformers, f"{family}Config")
    values = {**shape, "id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    made: PretrainedConfig = config_class(**{**values, **labels, **(config or {})})
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, f"{family}ForImageClassification")(made)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def vit_copy(vit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(vit, tmp_path / "vit"))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_load_checkpoint_takes_image_classifiers_of_transformers(family: str, tmp_path: Path) -> None:
    folder = foreign(tmp_path, family)
    loaded = load_checkpoint(folder)
    assert loaded.card.class_names == CLASSES
    assert loaded.card.provenance.stage == "import"
    assert loaded.card.provenance.options["architecture"] == f"{family}ForImageClassification"
    assert loaded.card.provenance.parameters == parameter_count(loaded.model)
    assert loaded.examples == ()
    rule = loaded.card.preprocessing
    assert (rule.height, rule.width) == (32, 32)
    one, three = logits_of(loaded.model, 1, rule), logits_of(loaded.model, 3, rule)
    assert three.shape == (3, 3)
    assert three.dtype == torch.float32
    torch.testing.assert_close(one[0], three[0], rtol=1e-4, atol=1e-5)
    reference = getattr(transformers, f"{family}ForImageClassification").from_pretrained(folder).eval()
    torch.testing.assert_close(logits_of(reference, 3, rule), three, rtol=1e-4, atol=1e-5)
    assert getattr(loaded.model.config, "_attn_implementation", "eager") == "eager"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_with_classes_finds_the_head_of_any_family(family: str, tmp_path: Path) -> None:
    loaded = load_checkpoint(foreign(tmp_path, family))
    rule = loaded.card.preprocessing
    before = logits_of(loaded.model, 2, rule)
    permuted = logits_of(with_classes(loaded, ("hen", "dog", "cat")), 2, rule)
    torch.testing.assert_close(permuted, before.flip(1), rtol=1e-4, atol=1e-6)
    assert logits_of(with_classes(loaded, ("ant", "bee", "cow", "doe")), 2, rule).shape == (2, 4)


def test_load_checkpoint_gives_back_a_foreign_model_that_was_saved_by_us(vit: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(vit)
    save_checkpoint(tmp_path, loaded.model, loaded.card, ())
    again = load_checkpoint(tmp_path)
    assert again.card == loaded.card
    rule = loaded.card.preprocessing
    assert torch.equal(logits_of(again.model, 2, rule), logits_of(loaded.model, 2, rule))
    assert str(vit) not in "".join(path.read_text() for path in tmp_path.glob("*.json"))


def test_load_checkpoint_widens_half_precision(vit_copy: Path) -> None:
    weights = {name: weight.half() for name, weight in load_file(vit_copy / "model.safetensors").items()}
    save_file(weights, vit_copy / "model.safetensors", metadata={"format": "pt"})
    change_json(vit_copy / "config.json", dtype="float16")
    model = load_checkpoint(vit_copy).model
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}


def test_load_checkpoint_reads_the_processor_where_newer_versions_put_it(vit_copy: Path) -> None:
    old = vit_copy / "preprocessor_config.json"
    expected = load_checkpoint(vit_copy).card.preprocessing
    (vit_copy / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(old.read_text())}))
    old.unlink()
    assert load_checkpoint(vit_copy).card.preprocessing == expected


def test_load_checkpoint_says_when_classes_have_no_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = {f"LABEL_{index}": index for index in range(3)}
    folder = foreign(tmp_path, id2label={index: name for name, index in labels.items()}, label2id=labels)
    assert load_checkpoint(folder).card.class_names == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert "does not name its 3 classes" in caplog.text


def test_load_checkpoint_tells_equal_class_names_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ImageNet's list holds `crane` twice."""
    folder = foreign(tmp_path, id2label={0: "crane", 1: "hen", 2: "crane"}, label2id={"crane": 0, "hen": 1})
    with caplog.at_level(logging.INFO, "edgebert"):
        assert load_checkpoint(folder).card.class_names == ("crane (0)", "hen", "crane (2)")
    assert "appear twice" in caplog.text


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def remove_key(path: Path, key: str) -> None:
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))


def corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4] ^= 0xFF
    path.write_bytes(bytes(content))


def with_weight(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    weights = load_file(folder / "model.safetensors")
    changed = change(weights.pop(name).clone())
    if changed is not None:
        weights[name] = changed
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


HEAD = "classifier.weight"
BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
    "no model type": (lambda f: remove_key(f / "config.json", "model_type"), "no model_type"),
    "text model": (
        lambda f: change_json(f / "config.json", model_type="bert", architectures=["BertModel"]),
        "`BertModel`",
    ),
    "no head": (lambda f: change_json(f / "config.json", architectures=["ViTModel"]), "no trained classification head"),
    "detector": (lambda f: change_json(f / "config.json", model_type="detr"), "image classifier"),
    "regression": (lambda f: change_json(f / "config.json", problem_type="regression"), "trained for `regression`"),
    "quantised": (lambda f: change_json(f / "config.json", quantization_config={"bits": 4}), "quantised"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "weights of Flax": (lambda f: (f / "model.safetensors").rename(f / "flax_model.msgpack"), "flax_model.msgpack"),
    "truncated weights": (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 5), "cannot be loaded"),
    "corrupt weights": (lambda f: corrupt(f / "model.safetensors"), "cannot be loaded"),
    "missing weight": (lambda f: with_weight(f, HEAD, lambda _: None), "`classifier.weight` is missing"),
    "other width": (lambda f: change_json(f / "config.json", hidden_size=24), "vit"),
    "impossible width": (lambda f: change_json(f / "config.json", hidden_size=-1), "cannot be loaded"),
    "width is text": (lambda f: change_json(f / "config.json", hidden_size="wide"), "cannot be loaded"),
    "other classes": (lambda f: change_json(f / "config.json", id2label={"0": "a", "1": "b"}), "vit"),
    "NaN": (lambda f: with_weight(f, HEAD, lambda w: w.fill_(float("nan"))), "not finite: `classifier.weight`"),
    "infinity": (lambda f: with_weight(f, HEAD, lambda w: w.fill_(float("inf"))), "not finite"),
    "no processor": (lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
    "other size": (lambda f: change_json(f / "preprocessor_config.json", size=40), "40 x 40 pixels"),
    "gap in classes": (
        lambda f: change_json(f / "config.json", id2label={"0": "a", "1": "b", "3": "c"}),
        "does not name every class",
    ),
    "one empty class name": (lambda f: change_json(f / "config.json", id2label={"0": "", "1": "b", "2": "c"}), "empty"),
}


@pytest.mark.parametrize("damage", sorted(BAD_FOLDERS))
def test_load_checkpoint_refuses_a_bad_folder(damage: str, vit_copy: Path) -> None:
    damage_folder, found = BAD_FOLDERS[damage]
    damage_folder(vit_copy)
    with pytest.raises(BadDataError) as raised:
        load_checkpoint(vit_copy)
    assert found in str(raised.value)


def test_load_checkpoint_refuses_our_folder_when_config_and_card_disagree(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    content = json.loads((folder / "preprocessing.json").read_text())
    (folder / "preprocessing.json").write_text(json.dumps({**content, "class_names": ["cat", "dog"]}))
    with pytest.raises(BadDataError, match="answers with shape"):
        load_checkpoint(folder)


# Several labels of an image


def test_load_checkpoint_takes_a_foreign_model_of_several_labels(vit_copy: Path, tmp_path: Path) -> None:
    change_json(vit_copy / "config.json", problem_type="multi_label_classification")
    loaded = load_checkpoint(vit_copy)
    assert loaded.card.task == "multi-label"
    assert loaded.card.thresholds == (0.5, 0.5, 0.5)
    ours = tmp_path / "ours"
    ours.mkdir()
    save_checkpoint(ours, loaded.model, loaded.card, ())
    assert load_checkpoint(ours).card == loaded.card


def test_save_checkpoint_writes_the_task_of_the_card(tmp_path: Path) -> None:
    model = new_model("nano", preprocessing=RULE, class_names=CLASSES, seed=0)
    several = replace(card(), task="multi-label", thresholds=(0.2, 0.5, 0.9))
    for name, kept, problem in (
        ("several", several, "multi_label_classification"),
        ("one", card(), None),
    ):
        folder = tmp_path / name
        folder.mkdir()
        save_checkpoint(folder, model, kept, ())
        assert json.loads((folder / "config.json").read_text()).get("problem_type") == problem
        assert load_checkpoint(folder).card == kept


def test_load_checkpoint_refuses_a_task_that_config_and_card_tell_differently(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    change_json(folder / "config.json", problem_type="multi_label_classification")
    with pytest.raises(BadDataError, match=r"is `single-label` in its card, and config\.json has problem_type"):
        load_checkpoint(folder)


@pytest.mark.parametrize("preset", ["nano", "bert-nano", "cnn"])
def test_the_loss_of_several_labels_is_the_binary_cross_entropy(preset: str) -> None:
    model = new_model(preset, preprocessing=RULE, class_names=CLASSES, seed=0)
    model.config.problem_type = "multi_label_classification"
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    output = model(torch.randn(2, 3, 8, 8), labels=labels)
    chance = torch.sigmoid(output.logits)
    expected = -(labels * chance.log() + (1 - labels) * (1 - chance).log()).mean()
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "best.pth", "x.ckpt"]
)
def test_load_checkpoint_refuses_pickles_without_opening_them(name: str, vit_copy: Path) -> None:
    (vit_copy / "model.safetensors").rename(vit_copy / name)
    with pytest.raises(RefusedError, match="pickled weights only") as raised:
        load_checkpoint(vit_copy)
    assert f"`{name}`" in str(raised.value)
    assert "save_pretrained" in str(raised.value.hint)
    assert raised.value.exit_code == 77


def test_load_checkpoint_ignores_a_pickle_beside_safetensors(vit_copy: Path) -> None:
    (vit_copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert load_checkpoint(vit_copy).card.class_names == CLASSES


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModelForImageClassification": "modeling.Mine"}},
        {"backbone_config": {"auto_map": {"AutoConfig": "owner/name--mine.Mine"}}},
        {"layers": [{"custom_pipelines": {"x": {"impl": "mine.Mine"}}}]},
        {"_attn_implementation": "owner/kernel"},
        {"attn_implementation": "owner/kernel:attention"},
        {"experts_implementation": "owner/kernel"},
    ],
)
def test_load_checkpoint_refuses_code_of_its_own(changes: dict[str, Any], vit_copy: Path) -> None:
    change_json(vit_copy / "config.json", **changes)
    (vit_copy / "modeling.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(RefusedError, match="code of its own") as raised:
        load_checkpoint(vit_copy)
    assert raised.value.exit_code == 77


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_load_checkpoint_uses_eager_attention_when_the_config_asks_for_another(key: str, vit_copy: Path) -> None:
    change_json(vit_copy / "config.json", **{key: "sdpa"})
    assert load_checkpoint(vit_copy).model.config._attn_implementation == "eager"


@pytest.mark.parametrize("source", ["absent", "./owner/name", "/no/such/folder", "a/b/c", "owner/", "~/absent"])
def test_load_checkpoint_says_when_there_is_no_such_folder(source: str) -> None:
    with pytest.raises(InputNotFoundError, match="no such folder") as raised:
        load_checkpoint(source)
    assert source in str(raised.value)


def test_load_checkpoint_says_when_the_source_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadDataError, match="is a file"):
        load_checkpoint(tmp_path / "model.safetensors")


def test_load_checkpoint_refuses_a_revision_of_a_folder(vit: Path) -> None:
    with pytest.raises(UsageError, match="`main` is no revision"):
        load_checkpoint(vit, revision="main")


# The hub


def test_load_checkpoint_names_the_local_way_when_the_hub_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputNotFoundError, match="the hub cannot be reached") as raised:
        load_checkpoint("owner/name")
    assert raised.value.exit_code == 66
    assert "hf download owner/name --local-dir FOLDER" in str(raised.value.hint)


def hub_with(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., str]) -> None:
    monkeypatch.setattr("edgebert.models.source.snapshot_download", answer)


def test_load_checkpoint_fetches_json_and_safetensors_only(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    snapshot = Path(shutil.copytree(vit, tmp_path / commit))
    asked: list[tuple[str, object, list[str]]] = []

    def answer(hub_id: str, *, revision: object, allow_patterns: list[str]) -> str:
        asked.append((hub_id, revision, allow_patterns))
        return str(snapshot)

    hub_with(monkeypatch, answer)
    loaded = load_checkpoint("owner/name", revision="v1")
    assert [(hub_id, revision) for hub_id, revision, _ in asked] == [("owner/name", "v1")]
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in asked[0][2])
    assert loaded.card.provenance.options["name"] == "owner/name"
    assert loaded.card.provenance.options["revision"] == commit
    assert loaded.sha256 == load_checkpoint(vit).sha256


def test_load_checkpoint_names_the_pickle_of_a_hub_model(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = Path(shutil.copytree(vit, tmp_path / "snapshot"))
    (snapshot / "model.safetensors").unlink()
    hub_with(monkeypatch, lambda *_, **__: str(snapshot))
    monkeypatch.setattr(
        "edgebert.models.source.HfApi.list_repo_files", lambda *_, **__: ["config.json", "pytorch_model.bin"]
    )
    with pytest.raises(RefusedError, match=r"`owner/name` has pickled weights only: `pytorch_model\.bin`"):
        load_checkpoint("owner/name")


@pytest.mark.parametrize(
    ("error", "found"),
    [
        ("RepositoryNotFoundError", "neither a folder nor a model"),
        ("GatedRepoError", "gated"),
        ("RevisionNotFoundError", "no revision `v9`"),
        ("HfHubHTTPError", "cannot be reached"),
    ],
)
def test_load_checkpoint_says_what_the_hub_answered(error: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.errors as hub_errors

    def answer(*_: object, **__: object) -> str:
        raised = getattr(hub_errors, error).__new__(getattr(hub_errors, error))
        raised.args = ("503 Service Unavailable",)
        raise raised

    hub_with(monkeypatch, answer)
    with pytest.raises(InputNotFoundError, match=found):
        load_checkpoint("owner/name", revision="v9")
