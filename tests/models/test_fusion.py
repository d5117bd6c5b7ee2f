from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedModel

from edgebert.bench.loading import LoadRequest, load_arm
from edgebert.card import ModelCard, Provenance
from edgebert.card_io import checkpoint_sha256
from edgebert.errors import BadDataError, InputNotFoundError, UsageError
from edgebert.export.graph import graph_from_checkpoint
from edgebert.models.checkpoint import Checkpoint, PixelClassifier, load_checkpoint, save_checkpoint, with_classes
from edgebert.models.features import blocks, enable_gradient_checkpointing, freeze_lower, layers_of
from edgebert.models.fusion import (
    FusionConfig,
    FusionForImageClassification,
    is_fusion,
    new_fusion,
    refuse_fusion,
    tokenizer_from_texts,
)
from edgebert.preprocess import Preprocessing
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, open_runner

CLASSES = ("cat", "dog", "hen")
TEXTS = ("a red scratch on the lid", "no fault found", "the lid is bent", "a scratch, two scratches")
MakeClassifier = Callable[..., PreTrainedModel]


def rule(side: int = 16) -> Preprocessing:
    return Preprocessing(height=side, width=side)


def card(side: int = 16) -> ModelCard:
    return ModelCard(class_names=CLASSES, preprocessing=rule(side), provenance=Provenance(stage="train"))


def images(side: int = 16, count: int = 4) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (count, side, side, 3), np.uint8))


def fusion(classifier_of: MakeClassifier, image: str = "nano", *, seed: int = 0) -> FusionForImageClassification:
    return new_fusion(classifier_of(image), "scratch", TEXTS, CLASSES, seed)


def logits_of(model: PreTrainedModel, texts: tuple[str, ...] | None = None, side: int = 16) -> torch.Tensor:
    assert isinstance(model, FusionForImageClassification)
    with torch.no_grad():
        embedding = None if texts is None else model.text_embedding(**model.encode_texts(texts))
        answer: torch.Tensor = PixelClassifier(model, rule(side))(images(side), embedding)
    return answer


@pytest.fixture
def folder(classifier_of: MakeClassifier, tmp_path: Path) -> Path:
    path = tmp_path / "fusion"
    path.mkdir()
    save_checkpoint(path, fusion(classifier_of), card(), ())
    return path


@pytest.mark.parametrize(
    "name", ["nano", "bert-nano", "resnet-mini", "ViT", "DeiT", "Beit", "Dinov2", "Swin", "ResNet"]
)
def test_any_image_classifier_is_joined_with_a_text(name: str, classifier_of: MakeClassifier, tmp_path: Path) -> None:
    side = 32 if name[0].isupper() else 16
    before = copy.deepcopy(image := classifier_of(name))
    model = new_fusion(image, "scratch", TEXTS, CLASSES, 0)
    kept = model.image.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in before.state_dict().items() if key in kept)
    assert len(kept) == len(before.state_dict()) - 2
    said, silent = logits_of(model, TEXTS, side), logits_of(model, None, side)
    assert said.shape == (4, 3)
    torch.testing.assert_close(silent, logits_of(model, ("",) * 4, side))
    assert float((said - silent).abs().max()) > 1e-4
    save_checkpoint(tmp_path, model, card(side), ())
    loaded = load_checkpoint(tmp_path).model
    assert is_fusion(loaded)
    assert torch.equal(logits_of(loaded, TEXTS, side), said)


def test_features_of_the_image_side_are_what_its_head_is_given(classifier_of: MakeClassifier) -> None:
    image = classifier_of("ViT")
    model = new_fusion(image, "scratch", TEXTS, CLASSES, 0)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        given = model.image(pixel_values=pixels).logits
        expected = image.get_submodule("classifier")(given)
        torch.testing.assert_close(expected, image(pixel_values=pixels).logits)


def test_text_embedding_is_the_mean_without_padding(classifier_of: MakeClassifier) -> None:
    model = fusion(classifier_of)
    with torch.no_grad():
        together = model.text_embedding(**model.encode_texts(TEXTS))
        alone = torch.cat([model.text_embedding(**model.encode_texts([text])) for text in TEXTS])
        one = model.encode_texts(["no fault found"])
        hidden = model.text(**one).last_hidden_state
    assert together.shape == (4, 128)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone[1], hidden[0].mean(dim=0))


def test_new_fusion_gives_the_same_model_for_a_seed_and_leaves_the_random_state(classifier_of: MakeClassifier) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second, other = (fusion(classifier_of, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["fuse.0.weight"], other["fuse.0.weight"])


def test_training_reaches_image_and_text(classifier_of: MakeClassifier) -> None:
    model = fusion(classifier_of)
    model.train()
    embedding = model.text_embedding(**model.encode_texts(TEXTS))
    model(torch.randn(4, 3, 16, 16), text_embedding=embedding, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_a_fusion_learns_what_only_the_text_says(classifier_of: MakeClassifier) -> None:
    model = fusion(classifier_of)
    labels = torch.tensor([0, 1, 2, 0])
    same = torch.zeros(4, 3, 16, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(25):
        optimizer.zero_grad()
        embedding = model.text_embedding(**model.encode_texts(TEXTS))
        model(same, text_embedding=embedding, labels=labels).loss.backward()
        optimizer.step()
    with torch.no_grad():
        embedding = model.text_embedding(**model.encode_texts(TEXTS))
        assert torch.equal(model(same, text_embedding=embedding).logits.argmax(1), labels)


# The tokenizer


def test_tokenizer_from_texts_counts_words_and_spells_the_rest() -> None:
    tokenizer = tokenizer_from_texts(["Scratch on lid", "scratch on box.", "a box"])
    pieces = tokenizer.encode("SCRATCH on a lid ?").tokens
    assert pieces == ["[CLS]", "scratch", "on", "a", "l", "##i", "##d", "[UNK]", "[SEP]"]
    vocabulary = tokenizer.get_vocab()
    assert [vocabulary[name] for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")] == [0, 1, 2, 3]
    assert {"scratch", "on", "box"} == {word for word in vocabulary if len(word) > 1 and word[0] not in "#["}


def test_tokenizer_from_texts_is_the_same_in_any_order() -> None:
    assert tokenizer_from_texts(TEXTS).to_str() == tokenizer_from_texts(TEXTS[::-1]).to_str()


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_tokenizer_from_texts_wants_a_word(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="there is no text"):
        tokenizer_from_texts(texts)


def test_long_texts_are_cut(classifier_of: MakeClassifier) -> None:
    tokens = fusion(classifier_of).encode_texts(["lid " * 500, "lid"])
    assert tokens["input_ids"].shape == (2, 128)
    assert tokens["attention_mask"].sum(dim=1).tolist() == [128, 3]


# Text from a BERT on disk


@pytest.fixture
def text_bert(tmp_path: Path) -> Path:
    tokenizer = tokenizer_from_texts([*TEXTS, *TEXTS])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size() + 3,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
    )
    path = tmp_path / "bert"
    BertModel(config).save_pretrained(path)
    (path / "tokenizer.json").write_text(tokenizer.to_str())
    return path


def test_new_fusion_starts_from_a_text_bert(text_bert: Path, classifier_of: MakeClassifier) -> None:
    model = new_fusion(classifier_of("nano"), str(text_bert), (), CLASSES, 0)
    reference = BertModel.from_pretrained(text_bert).state_dict()
    assert all(torch.equal(value, reference[key]) for key, value in model.text.state_dict().items())
    assert model.encode_texts(["lid " * 50])["input_ids"].shape == (1, 20)
    assert logits_of(model, TEXTS).shape == (4, 3)


def test_new_fusion_refuses_text_sources_that_do_not_fit(
    text_bert: Path, classifier_of: MakeClassifier, tmp_path: Path
) -> None:
    image = classifier_of("nano")
    tokenizer = (text_bert / "tokenizer.json").read_text()
    (text_bert / "tokenizer.json").write_text("{}")
    with pytest.raises(BadDataError, match=r"tokenizer\.json of `bert` is malformed"):
        new_fusion(image, str(text_bert), (), CLASSES, 0)
    large = Tokenizer(models.WordLevel({f"w{index}": index for index in range(5000)}, unk_token="w0"))
    large.pre_tokenizer = pre_tokenizers.Whitespace()
    (text_bert / "tokenizer.json").write_text(large.to_str())
    with pytest.raises(BadDataError, match="has 5000 pieces"):
        new_fusion(image, str(text_bert), (), CLASSES, 0)
    (text_bert / "tokenizer.json").unlink()
    with pytest.raises(BadDataError, match=r"has no tokenizer\.json(?s:.*)A\.from_pretrained"):
        new_fusion(image, str(text_bert), (), CLASSES, 0)
    (text_bert / "tokenizer.json").write_text(tokenizer)
    config = json.loads((text_bert / "config.json").read_text())
    (text_bert / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}))
    with pytest.raises(BadDataError, match="has model_type `roberta`\nexpected: `bert`, or `scratch`"):
        new_fusion(image, str(text_bert), (), CLASSES, 0)
    with pytest.raises(InputNotFoundError, match="no such folder"):
        new_fusion(image, str(tmp_path / "absent"), (), CLASSES, 0)
    with pytest.raises(UsageError, match="fusion model as the image side"):
        new_fusion(fusion(classifier_of), "scratch", TEXTS, CLASSES, 0)


# Checkpoints


def test_a_fusion_checkpoint_round_trips(folder: Path, classifier_of: MakeClassifier, tmp_path: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessing.json",
        "tokenizer.json",
    ]
    loaded = load_checkpoint(folder)
    assert torch.equal(logits_of(loaded.model, TEXTS), logits_of(fusion(classifier_of), TEXTS))
    second = tmp_path / "again"
    second.mkdir()
    save_checkpoint(second, loaded.model, loaded.card, ())
    assert all((second / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())
    assert load_checkpoint(second).sha256 == loaded.sha256
    assert str(tmp_path) not in (folder / "config.json").read_text()


def test_the_hash_covers_the_tokenizer(folder: Path) -> None:
    before = checkpoint_sha256(folder)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"lid"', '"lids"'))
    assert checkpoint_sha256(folder) != before


def test_a_fusion_checkpoint_without_its_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadDataError, match=r"`fusion` has no tokenizer\.json"):
        load_checkpoint(folder)


def test_a_fusion_keeps_its_tokenizer_in_copies_and_for_other_classes(folder: Path) -> None:
    loaded = load_checkpoint(folder)
    assert torch.equal(logits_of(copy.deepcopy(loaded.model), TEXTS), logits_of(loaded.model, TEXTS))
    turned = with_classes(loaded, ("hen", "dog", "cat"))
    torch.testing.assert_close(logits_of(turned, TEXTS), logits_of(loaded.model, TEXTS).flip(1))
    assert logits_of(with_classes(loaded, ("a", "b")), TEXTS).shape == (4, 2)


def test_without_a_tokenizer_there_is_nothing_to_read_or_write(classifier_of: MakeClassifier, tmp_path: Path) -> None:
    model = fusion(classifier_of)
    model.tokenizer = None
    with pytest.raises(BadDataError, match="has no tokenizer"):
        model.encode_texts(["lid"])
    with pytest.raises(BadDataError, match="has no tokenizer"):
        save_checkpoint(tmp_path, model, card(), ())


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"image": {"model_type": "edgebert-fusion"}}, "image config of `edgebert-fusion`"),
        ({"image": {"hidden_size": 8}}, "image config of `None`"),
        ({"image": {"model_type": "nothing"}}, "image config of `nothing`"),
        ({"text_length": 1}, "text_length `1`"),
        ({"text_length": 600}, "text_length `600`"),
    ],
)
def test_fusion_config_refuses_what_it_cannot_be(values: dict[str, Any], found: str) -> None:
    with pytest.raises(BadDataError, match=found):
        FusionConfig(**values).image_config()


# What a fusion is for, and what not


def test_features_of_a_fusion_are_those_of_its_image_side(classifier_of: MakeClassifier) -> None:
    model = fusion(classifier_of, "ViT")
    assert blocks(model) == blocks(model.image)
    layers = layers_of(model)
    assert layers["image.vit.embeddings.cls_token"] == 0
    assert layers["text.embeddings.word_embeddings.weight"] == layers["classifier.weight"] == 4
    frozen = freeze_lower(model, 2)
    assert frozen.names
    assert all(name.startswith(("image.vit.embeddings", "image.vit.layers.")) for name in frozen.names)
    enable_gradient_checkpointing(model)
    model.train()
    model(torch.randn(2, 3, 32, 32)).logits.sum().backward()
    assert model.get_parameter("image.vit.layers.2.mlp.fc1.weight").grad is not None


def test_devices_have_no_texts(folder: Path, tmp_path: Path, classifier_of: MakeClassifier) -> None:
    hint = "edgebert distill DATA --teacher CHECKPOINT --student"
    spec = InputSpec(height=16, width=16, classes=3)
    loaded = load_checkpoint(folder)
    for refused in (
        lambda: refuse_fusion(loaded),
        lambda: graph_from_checkpoint(folder, tmp_path / "out.onnx"),
        lambda: open_runner("torch", ModelSource(spec=spec, folder=folder), RunnerOptions()),
        lambda: load_arm(LoadRequest(path=str(folder), kind="checkpoint", target=None, threads=1), lambda: None),
    ):
        with pytest.raises(UsageError, match="it sees a text with each image") as raised:
            refused()
        assert hint in str(raised.value.hint)
    assert not (tmp_path / "out.onnx").exists()
    image_only = Checkpoint(model=classifier_of("nano"), card=card(), examples=(), sha256="00" * 32)
    refuse_fusion(image_only)
    assert not is_fusion(image_only.model)
