from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification

import edgebert.models  # noqa: F401  # registers the architectures
from edgebert.errors import BadDataError, UsageError
from edgebert.models.student import (
    MAX_TOKENS,
    STUDENT_PRESETS,
    StudentConfig,
    StudentForImageClassification,
    shape_name,
    student_shape,
)


def small_config(**changes: Any) -> StudentConfig:
    values: dict[str, Any] = {
        "image_size": (8, 8),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "num_labels": 10,
        **changes,
    }
    return StudentConfig(**values)


def student(config: StudentConfig, seed: int = 0) -> StudentForImageClassification:
    torch.manual_seed(seed)
    model = StudentForImageClassification(config)
    model.eval()  # type: ignore[no-untyped-call]  # transformers has no types here
    return model


@pytest.mark.parametrize(
    ("image_size", "grid"),
    [
        ((8, 8), (4, 4)),
        ((28, 28), (7, 7)),
        ((32, 32), (8, 8)),
        ((224, 224), (7, 7)),
        ((256, 256), (8, 8)),
        ((1, 1), (1, 1)),
        ((33, 33), (5, 5)),
        ((96, 40), (12, 5)),
        ((8, 512), (1, 64)),
        ((4096, 4096), (8, 8)),
    ],
)
def test_token_grid_holds_at_most_64_tokens(image_size: tuple[int, int], grid: tuple[int, int]) -> None:
    config = small_config(image_size=image_size)
    assert config.token_grid == grid
    assert config.tokens <= MAX_TOKENS


@pytest.mark.parametrize("image_size", [(8, 8), (7, 9), (28, 28), (31, 65), (130, 64)])
def test_forward_answers_for_any_image_size(image_size: tuple[int, int]) -> None:
    model = student(small_config(image_size=image_size))
    with torch.no_grad():
        output = model(torch.randn(3, 3, *image_size))
    assert output.logits.shape == (3, 10)
    assert output.logits.dtype == torch.float32
    assert model.positions.shape[1] == model.config.tokens


@pytest.mark.parametrize(
    ("preset", "image_size", "parameters"),
    [
        ("nano", 8, 23_130),
        ("micro", 28, 128_026),
        ("tiny", 32, 898_090),
        ("small", 224, 5_147_290),
    ],
)
def test_presets_have_the_documented_sizes(preset: str, image_size: int, parameters: int) -> None:
    config = STUDENT_PRESETS[preset].config((image_size, image_size))
    config.num_labels = 10
    with torch.device("meta"):
        model = StudentForImageClassification(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_forward_gives_the_loss_and_a_tuple_when_asked() -> None:
    model = student(small_config())
    pixels, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    output = model(pixels, labels=labels)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, labels))
    loss, logits = model(pixels, labels=labels, return_dict=False)
    torch.testing.assert_close((loss, logits), (output.loss, output.logits))
    (only,) = model(pixels, return_dict=False)
    torch.testing.assert_close(only, output.logits)


def test_forward_equals_attention_written_by_torch() -> None:
    """The written-out attention is softmax(Q K^T / sqrt(head size)) V, by heads."""
    model = student(small_config(num_hidden_layers=1))
    attention = model.blocks[0].get_submodule("attention")
    hidden = torch.randn(2, 16, 32)
    reference = nn.MultiheadAttention(32, 2, batch_first=True)
    layers = [attention.get_submodule(name) for name in ("query", "key", "value")]
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([layer.get_parameter("weight") for layer in layers]))
        reference.in_proj_bias.copy_(torch.cat([layer.get_parameter("bias") for layer in layers]))
        reference.out_proj.load_state_dict(attention.get_submodule("output").state_dict())
        expected, _ = reference(hidden, hidden, hidden, need_weights=False)
        torch.testing.assert_close(attention(hidden), expected, rtol=1e-5, atol=1e-6)


def test_answers_do_not_depend_on_the_rest_of_the_batch() -> None:
    model = student(small_config())
    pixels = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        together = model(pixels).logits
        alone = torch.cat([model(pixels[index : index + 1]).logits for index in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_initialisation_is_mimetic() -> None:
    """W_q^T W_k lies near +0.7 I and the value-output product near -0.4 I, as far as two heads of rank 16 can."""
    model = student(small_config())
    attention = model.blocks[0].get_submodule("attention")
    query, key, value, output = (
        attention.get_submodule(name).get_parameter("weight").detach() for name in ("query", "key", "value", "output")
    )
    assert 0.3 < float((query.T @ key).diagonal().mean()) < 1.4
    assert -0.8 < float((output @ value).diagonal().mean()) < -0.15


def test_every_weight_is_trained() -> None:
    model = student(small_config())
    model.train()
    model(torch.randn(4, 3, 8, 8), labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    untrained = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert untrained == []


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (student(small_config(), seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["positions"], other["positions"])


def test_save_pretrained_and_auto_classes_give_the_same_model(tmp_path: Path) -> None:
    model = student(small_config(image_size=(12, 20)))
    model.train()
    model(torch.randn(8, 3, 12, 20))  # moves batch norm's statistics away from their start
    model.eval()  # type: ignore[no-untyped-call]  # transformers has no types here
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert isinstance(again, StudentForImageClassification)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), StudentConfig)
    assert again.config.token_grid == (6, 10)
    pixels = torch.randn(2, 3, 12, 20)
    with torch.no_grad():
        assert torch.equal(again(pixels).logits, model(pixels).logits)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"image_size": (8, 8, 3)}, "image_size"),
        ({"image_size": (0, 8)}, "image_size"),
        ({"image_size": 5000}, "image_size"),
        ({"image_size": (8.0, 8.0)}, "image_size"),
        ({"hidden_size": 4}, "hidden_size"),
        ({"hidden_size": 33}, "33"),
        ({"num_attention_heads": 1}, "num_attention_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"mlp_ratio": 0}, "mlp_ratio"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_config_refuses_impossible_shapes(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(BadDataError, match=found):
        small_config(**changes)


# Shapes by name


@pytest.mark.parametrize(
    ("most", "grid"), [(256, (16, 16)), (64, (8, 8)), (49, (4, 4)), (16, (4, 4)), (5, (2, 2)), (1, (1, 1))]
)
def test_max_tokens_bounds_the_grid(most: int, grid: tuple[int, int]) -> None:
    model = student(small_config(image_size=(32, 32), max_tokens=most))
    assert model.config.token_grid == grid
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).logits.shape == (2, 10)


def test_a_config_of_before_max_tokens_has_64(tmp_path: Path) -> None:
    model = student(small_config(image_size=(32, 32)))
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["max_tokens"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert AutoModelForImageClassification.from_pretrained(tmp_path).config.max_tokens == MAX_TOKENS


@pytest.mark.parametrize("name", ["d64-l3-h2-r2", "d64-l3-h2-r2-t49", "d16-l1-h2-r1-t1", "d1024-l24-h32-r8-t256"])
def test_student_shape_and_shape_name_are_inverse(name: str) -> None:
    shape = student_shape(name)
    assert shape is not None
    assert shape_name(shape.config((64, 64))) == name


def test_student_shape_knows_presets_and_what_is_neither() -> None:
    for name, preset in STUDENT_PRESETS.items():
        assert student_shape(name) is preset
        assert student_shape(shape_name(preset.config((32, 32)))) is not None
    assert shape_name(STUDENT_PRESETS["small"].config((224, 224))) == "d256-l6-h8-r4"
    for name in ("bert-nano", "runs/d64-l3-h2-r2", "d64", "d64-run", "owner/d64-l3", ""):
        assert student_shape(name) is None


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("d64-l3", "`d64-l3` is no shape of a student\nexpected: dWIDTH-lLAYERS-hHEADS-rRATIO"),
        ("d64-l3-h2-r2-49", "is no shape"),
        ("D64-L3-H2-R2", "is no shape"),
        ("d64-l3-h2-r2-t0", r"number of tokens \(t\) 0\nexpected: 1 to 256"),
        ("d64-l0-h2-r2", r"number of layers \(l\) 0\nexpected: 1 to 24"),
        ("d64-l3-h2-r9", r"MLP ratio \(r\) 9\nexpected: 1 to 8"),
        ("d8-l3-h2-r2", r"width \(d\) 8\nexpected: 16 to 1024"),
        ("d68-l3-h2-r2", r"width \(d\) 68\nexpected: a multiple of 8"),
        ("d64-l3-h1-r2", r"1 heads \(h\) for the width 64\nexpected: a divisor .*: 2, 4, 8$"),
        ("d64-l3-h3-r2", r"3 heads \(h\) for the width 64"),
        ("d64-l3-h16-r2", r"16 heads \(h\) for the width 64"),
    ],
)
def test_student_shape_says_what_is_possible(name: str, found: str) -> None:
    with pytest.raises(UsageError, match=found):
        student_shape(name)
