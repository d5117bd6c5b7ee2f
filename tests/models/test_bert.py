from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, BertConfig, BertForMaskedLM, BertModel

from edgebert.errors import BadDataError, InputNotFoundError, RefusedError, UsageError
from edgebert.models.bert import (
    BERT_PRESETS,
    BertForImageClassification,
    BertImageConfig,
    patch_size_for,
)
from edgebert.models.checkpoint import new_model
from edgebert.preprocess import Preprocessing

CLASSES = ("cat", "dog", "hen")


def small_config(**changes: Any) -> BertImageConfig:
    values: dict[str, Any] = {
        "image_size": (8, 8),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_labels": 3,
        **changes,
    }
    return BertImageConfig(**values)


def bert(config: BertImageConfig, seed: int = 0) -> BertForImageClassification:
    torch.manual_seed(seed)
    model = BertForImageClassification(config)
    model.eval()  # type: ignore[no-untyped-call]  # transformers has no types here
    return model


@pytest.fixture(scope="module")
def text_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text BERT as a user has it: with a word table, a masked-language head and 40 positions."""
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=40,
    )
    folder = tmp_path_factory.mktemp("text")
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("image_size", "patch_size"),
    [
        ((8, 8), 2),
        ((28, 28), 4),
        ((32, 32), 4),
        ((64, 64), 8),
        ((224, 224), 16),
        ((384, 384), 16),
        ((1, 1), 1),
        ((32, 128), 8),
    ],
)
def test_patch_size_for_is_the_power_of_two_near_the_root(image_size: tuple[int, int], patch_size: int) -> None:
    assert patch_size_for(*image_size) == patch_size


@pytest.mark.parametrize("image_size", [(8, 8), (9, 8), (28, 30), (5, 17)])
def test_forward_answers_for_any_image_size(image_size: tuple[int, int]) -> None:
    model = bert(small_config(image_size=image_size))
    with torch.no_grad():
        logits = model(torch.randn(2, 3, *image_size)).logits
    assert logits.shape == (2, 3)
    assert bool(torch.isfinite(logits).all())


def test_forward_sees_the_last_rows_and_columns_when_the_image_is_no_multiple_of_the_patch() -> None:
    model = bert(small_config(image_size=(9, 11)))
    pixels = torch.randn(1, 3, 9, 11)
    changed = pixels.clone()
    changed[0, :, 8, 10] += 1
    with torch.no_grad():
        assert not torch.equal(model(pixels).logits, model(changed).logits)


def test_forward_equals_bert_model_on_embeddings() -> None:
    """The two steps taken here are what `BertModel.forward` does with `inputs_embeds`."""
    config = small_config()
    model = bert(config)
    reference = BertModel(config.encoder_config(), add_pooling_layer=False)
    reference.eval()  # type: ignore[no-untyped-call]  # transformers has no types here
    state = model.bert.state_dict()
    state["embeddings.word_embeddings.weight"] = torch.zeros(1, 32)
    reference.load_state_dict(state)
    pixels = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        patches = model.patches(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat((model.class_token.expand(2, -1, -1), patches), dim=1)
        expected = model.classifier(reference(inputs_embeds=tokens).last_hidden_state[:, 0])
        torch.testing.assert_close(model(pixels).logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("preset", "image_size", "tokens", "parameters"),
    [
        ("bert-nano", 8, 17, 502_035),
        ("bert-mini", 28, 50, 3_186_179),
        ("bert-base", 224, 197, 85_801_731),
    ],
)
def test_presets_have_the_documented_sizes(preset: str, image_size: int, tokens: int, parameters: int) -> None:
    config = BERT_PRESETS[preset].config((image_size, image_size))
    config.num_labels = 3
    with torch.device("meta"):
        model = BertForImageClassification(config)
    assert config.tokens == tokens
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(("width", "expected"), [(768, 0.02), (192, 0.04), (48, 0.08)])
def test_weights_start_larger_when_the_layers_are_narrower(width: int, expected: float) -> None:
    config = small_config(hidden_size=width, num_attention_heads=12)
    assert config.initializer_range == pytest.approx(expected)
    spread = float(bert(config).bert.encoder.layer[0].get_parameter("intermediate.dense.weight").detach().std())
    assert spread == pytest.approx(expected, rel=0.05)


def test_every_weight_is_trained() -> None:
    model = bert(small_config())
    model.train()
    output = model(torch.randn(3, 3, 8, 8), labels=torch.tensor([0, 1, 2]))
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2])))
    output.loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_save_pretrained_and_auto_classes_give_the_same_model(tmp_path: Path) -> None:
    model = bert(small_config(image_size=(9, 8)))
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert isinstance(again, BertForImageClassification)
    pixels = torch.randn(2, 3, 9, 8)
    with torch.no_grad():
        assert torch.equal(again(pixels).logits, model(pixels).logits)
        _, logits = again(pixels, labels=torch.tensor([0, 1]), return_dict=False)
        assert torch.equal(logits, model(pixels).logits)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"image_size": (8, -8)}, "image_size"),
        ({"patch_size": 0}, "patch_size"),
        ({"hidden_size": 33}, "33"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers"),
        ({"intermediate_size": 0}, "intermediate_size"),
    ],
)
def test_config_refuses_impossible_shapes(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(BadDataError, match=found):
        small_config(**changes)


def test_new_model_starts_from_text_weights(text_bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "edgebert"):
        model = new_model(
            "bert-nano",
            preprocessing=Preprocessing(height=8, width=8),
            class_names=CLASSES,
            seed=0,
            text_weights=str(text_bert),
        )
    assert isinstance(model, BertForImageClassification)
    text = BertModel.from_pretrained(text_bert, add_pooling_layer=False).state_dict()
    image = model.bert.state_dict()
    blocks = [name for name in text if name.startswith("encoder.")]
    assert len(blocks) == 3 * 16
    assert all(torch.equal(image[name], text[name]) for name in [*blocks, "embeddings.LayerNorm.weight"])
    positions, types = "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"
    assert torch.equal(image[positions], text[positions][:17])
    assert torch.equal(image[types], text[types][:1])
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.intermediate_size) == (24, 3, 40)
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "hen"}
    assert f"started from `{text_bert.name}`: 3 layers of width 24" in caplog.text
    assert model(torch.zeros(1, 3, 8, 8)).logits.shape == (1, 3)


def new_from_text(text_weights: Path, *, preset: str = "bert-nano", side: int = 8) -> None:
    rule = Preprocessing(height=side, width=side)
    new_model(preset, preprocessing=rule, class_names=CLASSES, seed=0, text_weights=str(text_weights))


def test_new_model_refuses_text_weights_with_too_few_positions(text_bert: Path) -> None:
    with pytest.raises(BadDataError, match=r"50 tokens.*40 positions"):
        new_from_text(text_bert, side=28)


def test_new_model_refuses_text_weights_for_a_student(text_bert: Path) -> None:
    with pytest.raises(UsageError, match="`nano` is no BERT"):
        new_from_text(text_bert, preset="nano")


def test_new_model_refuses_text_weights_that_are_no_bert(tmp_path: Path) -> None:
    bert(small_config()).save_pretrained(tmp_path)
    with pytest.raises(BadDataError, match="edgebert-bert"):
        new_from_text(tmp_path)


def test_new_model_refuses_text_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="no such folder"):
        new_from_text(tmp_path / "absent")


def test_new_model_refuses_pickled_text_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(RefusedError, match=r"pytorch_model\.bin"):
        new_from_text(tmp_path)


def test_new_model_refuses_text_weights_that_do_not_fit_their_config(text_bert: Path, tmp_path: Path) -> None:
    config = json.loads((text_bert / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    (tmp_path / "model.safetensors").write_bytes((text_bert / "model.safetensors").read_bytes())
    with pytest.raises(BadDataError, match=r"encoder\.layer\.3.*missing"):
        new_from_text(tmp_path)
