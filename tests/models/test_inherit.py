from __future__ import annotations

import doctest
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import edgebert.models.inherit
from edgebert.card import ModelCard, Provenance
from edgebert.errors import UsageError
from edgebert.models.checkpoint import Checkpoint, new_model
from edgebert.models.features import FeatureTap, blocks, submodule
from edgebert.models.inherit import can_inherit, evenly_spaced, inherit_weights
from edgebert.models.pixels import PixelClassifier
from edgebert.models.student import StudentForImageClassification
from edgebert.preprocess import Preprocessing

CLASSES = ("cat", "dog", "hen")
MakeClassifier = Callable[..., PreTrainedModel]


def student(shape: str, side: int = 16, *, seed: int = 5, classes: tuple[str, ...] = CLASSES) -> Any:
    return new_model(shape, preprocessing=Preprocessing(height=side, width=side), class_names=classes, seed=seed)


def taught_by(model: PreTrainedModel, side: int) -> Checkpoint:
    rule = Preprocessing(height=side, width=side)
    card = ModelCard(class_names=CLASSES, preprocessing=rule, provenance=Provenance(stage="train"))
    return Checkpoint(model=model, card=card, examples=(), sha256="00" * 32)


def images(side: int, count: int = 6) -> torch.Tensor:
    return torch.randint(256, (count, side, side, 3), generator=torch.Generator().manual_seed(2)).to(torch.uint8)


def trained(shape: str = "d32-l4-h4-r2", side: int = 16) -> Checkpoint:
    """A student some steps from its random start, so that no norm, bias or statistic is a constant."""
    model = student(shape, side)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 3, side, side), labels=torch.arange(8) % 3).loss.backward()
        optimizer.step()
    model.eval()
    return taught_by(model, side)


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(edgebert.models.inherit).failed == 0


def test_evenly_spaced_numbers_differ_and_reach_both_ends() -> None:
    for of in range(1, 25):
        for count in range(1, of + 1):
            numbers = evenly_spaced(count, of)
            assert len(set(numbers)) == count
            assert list(numbers) == sorted(numbers)
            assert numbers[0] == 0
            assert numbers[-1] == (of - 1 if count > 1 else 0)


def test_a_student_of_the_teachers_own_shape_answers_identically() -> None:
    teacher = trained()
    made = student("d32-l4-h4-r2", seed=9)
    report = inherit_weights(made, teacher, images(16))
    with torch.no_grad():
        ours, theirs = (
            PixelClassifier(model, teacher.card.preprocessing)(images(16)) for model in (made, teacher.model)
        )
    assert torch.equal(ours, theirs)
    assert report.layers == (0, 1, 2, 3)
    assert report.channels == tuple(range(32))
    assert report.classes == CLASSES
    assert report.anew == {}


@pytest.mark.parametrize("family", ["ViT", "DeiT", "Beit", "Dinov2", "Dinov2WithRegisters"])
def test_blocks_of_the_same_shape_answer_as_the_teachers(family: str, classifier_of: MakeClassifier) -> None:
    """With no class token in front: the teacher's block on the same tokens, layer scale and all."""
    model = classifier_of(family, **({"use_relative_position_bias": False} if family == "Beit" else {}))
    made = student("d32-l3-h4-r2", 32)
    report = inherit_weights(made, taught_by(model, 32), images(32))
    tokens = torch.randn(2, 16, 32)
    with torch.no_grad():
        for ours, theirs in zip(blocks(made), blocks(model), strict=True):
            torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-4, atol=1e-5)
    assert report.teacher_heads == 4
    assert report.anew["stem"] == "the teacher has none of this kind"
    assert ("positions" in report.anew) == (family == "Beit")
    head = submodule(model, "classifier")
    assert isinstance(head, nn.Linear)
    assert torch.equal(made.classifier.weight, head.weight[:, -32:])
    with torch.no_grad(), FeatureTap(made, (2,)) as tap:
        made(torch.randn(1, 3, 32, 32))
        assert bool(torch.isfinite(tap.features[2]).all())


def test_channels_heads_and_columns_are_the_strongest(classifier_of: MakeClassifier) -> None:
    """Parts that are made loud are taken, everywhere in the stream."""
    model = classifier_of("ViT")
    with torch.no_grad():
        loud = torch.tensor([1, 4, 6, 7, 10, 12, 13, 15, 17, 18, 20, 22, 25, 28, 30, 31])
        places = model.get_parameter("vit.embeddings.position_embeddings")
        places[..., loud] += 5000.0
        for block in blocks(model):
            value = block.get_submodule("attention.v_proj")
            assert isinstance(value, nn.Linear)
            value.weight[8:16] *= 30.0  # heads 1 and 3 of width 8
            value.weight[24:32] *= 20.0
            expand = block.get_submodule("mlp.fc1")
            assert isinstance(expand, nn.Linear)
            expand.bias[32:] += 40.0
    made = student("d16-l2-h2-r2", 32)
    report = inherit_weights(made, taught_by(model, 32), images(32))
    assert report.layers == (0, 2)
    assert report.channels == tuple(loud.tolist())
    assert report.heads == ((1, 3), (1, 3))
    assert report.mlp_columns == (tuple(range(32, 64)),) * 2
    third = blocks(model)[2]
    rows = [*range(8, 16), *range(24, 32)]
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        expected = third.get_submodule(f"attention.{theirs}").get_parameter("weight")[rows][:, loud]
        assert torch.equal(made.blocks[1].get_submodule(f"attention.{ours}").weight, expected)
    assert report.to_text() == (
        "started from weights of the `vit`: layers 0, 2 of 3, 16 of 32 channels, 2 of 4 heads, 32 of 64 MLP columns,"
        " the head's rows of 3 classes; anew: stem (the teacher has none of this kind)"
    )


def test_narrower_heads_keep_the_scores_of_their_dimensions() -> None:
    """Of each chosen head the dimensions of largest |q||k|, at the teacher's temperature."""
    teacher = trained("d32-l2-h2-r2")
    block = blocks(teacher.model)[0]
    query, key = (block.get_submodule(f"attention.{name}") for name in ("query", "key"))
    assert isinstance(query, nn.Linear)
    assert isinstance(key, nn.Linear)
    with torch.no_grad():
        for layer in (query, key):
            layer.weight[::2] *= 1e-3  # every second dimension carries next to nothing
            layer.bias[::2] = 0.0
    made = student("d32-l2-h2-r1", seed=9)
    wide = inherit_weights(made, teacher, images(16))
    assert wide.head_widths == (16, 16)
    narrow = student("d16-l1-h2-r2", seed=9)
    report = inherit_weights(narrow, teacher, images(16))
    assert report.head_widths == (8, 16)
    assert "2 of 2 heads, 8 of 16 dimensions of each" in report.to_text()
    chosen = list(range(1, 32, 2))
    ours = narrow.blocks[0].attention
    channels = list(report.channels)
    assert torch.equal(ours.key.weight, key.weight[chosen][:, channels])
    torch.testing.assert_close(ours.query.weight, query.weight[chosen][:, channels] * 0.5**0.5)
    # The student divides by sqrt(8) where the teacher divided by sqrt(16).
    token = torch.randn(16)
    full = torch.zeros(32)
    full[channels] = token
    with torch.no_grad():
        score = (ours.query(token)[:8] @ ours.key(token)[:8]) / 8**0.5
        expected = (query(full)[:16] @ key(full)[:16]) / 16**0.5
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-4)


def test_positions_go_to_the_students_grid(classifier_of: MakeClassifier) -> None:
    model = classifier_of("ViT")  # 4 x 4 patches
    made = student("d32-l3-h4-r2-t4", 32)
    inherit_weights(made, taught_by(model, 32), images(32))
    positions = model.get_parameter("vit.embeddings.position_embeddings")[0, 1:].reshape(4, 4, 32)
    expected = positions.reshape(2, 2, 2, 2, 32).mean(dim=(1, 3)).reshape(1, 4, 32)
    torch.testing.assert_close(made.positions.detach(), expected.detach())


def test_the_head_takes_classes_by_name() -> None:
    teacher = trained()
    made = student("d32-l4-h4-r2", seed=9, classes=("hen", "ant", "cat"))
    before = made.classifier.weight.detach().clone()
    report = inherit_weights(made, teacher, images(16))
    theirs = teacher.model.get_parameter("classifier.weight")
    assert torch.equal(made.classifier.weight[0], theirs[2])
    assert torch.equal(made.classifier.weight[1], before[1])
    assert torch.equal(made.classifier.weight[2], theirs[0])
    assert report.classes == ("hen", "cat")
    assert report.anew == {"head of other classes": "the teacher does not know them"}
    other = student("d32-l4-h4-r2", seed=9, classes=("a", "b"))
    assert inherit_weights(other, teacher, images(16)).anew == {"head": "no class of the same name"}


def test_a_smaller_student_trains_from_there_the_same_way_each_time() -> None:
    teacher = trained()
    teacher.model.train()
    runs = []
    for _ in range(2):
        made = student("d16-l2-h2-r1")
        report = inherit_weights(made, teacher, images(16))
        assert report.anew["stem"] == "the teacher's has another shape"
        made.train()
        optimizer = torch.optim.SGD(made.parameters(), lr=0.05)
        torch.manual_seed(1)
        for _ in range(4):
            optimizer.zero_grad()
            loss = made(torch.randn(8, 3, 16, 16), labels=torch.arange(8) % 3).loss
            loss.backward()
            optimizer.step()
        runs.append((loss.item(), made.state_dict()))
    assert runs[0][0] == runs[1][0] < 10.0
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])
    assert teacher.model.training  # left as it was
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in teacher.model.modules())


@pytest.mark.parametrize(
    ("teacher", "shape", "reason"),
    [
        ("bert-nano", "nano", r"post-LN"),
        ("Swin", "nano", "windows"),
        ("ResNet", "nano", "a `resnet` has no blocks of a plain vision transformer"),
        ("cnn", "nano", "a `edgebert-cnn` has no blocks"),
        ("ViT", "d64-l2-h4-r1", "the teacher has 32 channels, the student 64"),
        ("ViT", "d32-l4-h4-r2", "the teacher has 3 layers, the student 4"),
        ("nano", "d32-l2-h4-r2", "the teacher has 2 heads, the student 4"),
        ("ViT", "nano", "the teacher has 8 dimensions of a head, the student 16"),
        ("ViT", "d32-l2-h4-r3", "the teacher has 64 MLP columns, the student 96"),
    ],
)
def test_can_inherit_says_why_not(teacher: str, shape: str, reason: str, classifier_of: MakeClassifier) -> None:
    model, made = classifier_of(teacher), student(shape, 32)
    assert reason in can_inherit(model, made)
    with pytest.raises(UsageError, match=f"the student cannot start from the teacher's weights: .*{reason}"):
        inherit_weights(made, taught_by(model, 32), images(32))


def test_can_inherit_knows_what_is_no_student_or_has_other_parts(classifier_of: MakeClassifier) -> None:
    assert can_inherit(classifier_of("ViT"), classifier_of("cnn")) == "a `CnnForImageClassification` is no student"
    made = student("d16-l2-h2-r2", 32)
    assert can_inherit(classifier_of("ViT"), made) == ""
    assert "other parts" in can_inherit(classifier_of("Dinov2", use_swiglu_ffn=True), made)
    assert "activation is `relu`" in can_inherit(classifier_of("ViT", hidden_act="relu"), made)


def test_inherit_weights_wants_an_image() -> None:
    teacher = replace(trained(), sha256="11" * 32)
    made = student("d32-l4-h4-r2")
    assert isinstance(made, StudentForImageClassification)
    with pytest.raises(UsageError, match="no image"):
        inherit_weights(made, teacher, images(16, 0))
