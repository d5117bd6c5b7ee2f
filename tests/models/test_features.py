from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import edgebert.models.features
from edgebert.errors import UsageError
from edgebert.models.features import (
    FeatureTap,
    blocks,
    enable_gradient_checkpointing,
    freeze_batch_norm,
    freeze_lower,
    layer_of,
    layers_of,
    pooled,
    regrid,
)
from edgebert.models.pixels import PixelClassifier
from edgebert.preprocess import Preprocessing

MakeClassifier = Callable[..., PreTrainedModel]

# name -> blocks, width of the last, and the grids of all
INSIDES: dict[str, tuple[int, int, list[tuple[int, int]]]] = {
    "nano": (2, 32, [(8, 8)] * 2),
    "d32-l3-h2-r2-t16": (3, 32, [(4, 4)] * 3),
    "bert-nano": (4, 96, [(4, 4)] * 4),
    "cnn": (3, 128, [(8, 8), (4, 4), (2, 2)]),
    "resnet-mini": (3, 128, [(16, 16), (8, 8), (4, 4)]),
    "ViT": (3, 32, [(4, 4)] * 3),
    "DeiT": (3, 32, [(4, 4)] * 3),
    "Beit": (3, 32, [(4, 4)] * 3),
    "Dinov2": (3, 32, [(4, 4)] * 3),
    "Dinov2WithRegisters": (3, 32, [(4, 4)] * 3),
    "Swin": (2, 16, [(4, 4), (4, 4)]),
    "ConvNext": (2, 16, [(8, 8), (4, 4)]),
    "ResNet": (2, 16, [(8, 8), (4, 4)]),
}


def pixels_for(name: str, batch: int = 2) -> torch.Tensor:
    side = 32 if name[0].isupper() else 16
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(edgebert.models.features).failed == 0


@pytest.mark.parametrize("name", sorted(INSIDES))
def test_feature_tap_reads_every_family(name: str, classifier_of: MakeClassifier) -> None:
    model = classifier_of(name)
    count, width, grids = INSIDES[name]
    with torch.no_grad(), FeatureTap(model, range(count)) as tap:
        before = model(pixel_values=pixels_for(name)).logits
    assert len(blocks(model)) == count
    assert [tap.grid[index] for index in range(count)] == grids
    assert tap.features[count - 1].shape == (2, grids[-1][0] * grids[-1][1], width)
    assert pooled(tap.features[count - 1]).shape == (2, width)
    kept = dict(tap.features)
    with torch.no_grad():
        assert torch.equal(model(pixel_values=pixels_for(name)).logits, before)
    assert tap.features == kept  # closed: the second pass left no trace


def test_feature_tap_drops_the_tokens_in_front(classifier_of: MakeClassifier) -> None:
    """The tap's tokens are the last ones of what transformers calls hidden states."""
    for name, prefix in (("ViT", 1), ("DeiT", 2), ("Dinov2WithRegisters", 4)):
        model = classifier_of(name)
        with torch.no_grad(), FeatureTap(model, (1,)) as tap:
            states = model(pixel_values=pixels_for(name), output_hidden_states=True).hidden_states
        assert torch.equal(tap.features[1], states[2][:, prefix:])


def test_feature_tap_reads_maps_row_by_row(classifier_of: MakeClassifier) -> None:
    model = classifier_of("ResNet")
    with torch.no_grad(), FeatureTap(model, (0,)) as tap:
        states = model(pixel_values=pixels_for("ResNet"), output_hidden_states=True).hidden_states
    assert torch.equal(tap.features[0][:, 3 * 8 + 5], states[1][:, :, 3, 5])


def test_feature_tap_keeps_one_pass_through_a_wrapper_and_clears(classifier_of: MakeClassifier) -> None:
    classifier = PixelClassifier(classifier_of("nano"), Preprocessing(height=16, width=16))
    with FeatureTap(classifier, (-1,)) as tap:
        classifier(torch.zeros(4, 16, 16, 3, dtype=torch.uint8))
        classifier(torch.zeros(3, 16, 16, 3, dtype=torch.uint8))
        assert tap.features[1].shape[0] == 3
        tap.clear()
        assert tap.features == {}
        assert tap.grid == {}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in classifier.modules())


def test_feature_tap_works_under_autocast(classifier_of: MakeClassifier) -> None:
    model = classifier_of("nano")
    with FeatureTap(model, (0,)) as tap, torch.autocast("cpu", dtype=torch.bfloat16):
        model(pixel_values=pixels_for("nano"))
    assert bool(torch.isfinite(tap.features[0]).all())


@pytest.mark.parametrize("name", ["nano", "bert-nano", "ViT"])
def test_gradients_through_a_tap_are_equal_with_gradient_checkpointing(
    name: str, classifier_of: MakeClassifier
) -> None:
    gradients = []
    for recompute in (False, True):
        model = classifier_of(name)
        model.train()
        if recompute:
            enable_gradient_checkpointing(model)
        runs: list[int] = []
        blocks(model)[0].get_submodule("attention").register_forward_hook(lambda *_, runs=runs: runs.append(1))
        with FeatureTap(model, (0, -1)) as tap:
            logits = model(pixel_values=pixels_for(name)).logits
            (logits.square().sum() + tap.features[0].square().mean()).backward()
        assert len(runs) == (2 if recompute else 1)
        gradients.append({key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 20
    for key, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], expected, rtol=1e-6, atol=1e-7)


def test_enable_gradient_checkpointing_refuses_a_cnn(classifier_of: MakeClassifier) -> None:
    for name in ("cnn", "ResNet"):
        with pytest.raises(UsageError, match="no gradient checkpointing for a"):
            enable_gradient_checkpointing(classifier_of(name))


def test_unknown_architectures_and_blocks_are_named(classifier_of: MakeClassifier) -> None:
    with pytest.raises(UsageError, match=r"the blocks of a `mobilevit`.*\nexpected: one of edgebert-student"):
        blocks(classifier_of("MobileViT"))
    with pytest.raises(
        UsageError, match=r"no block 2 in a `edgebert-student` of 2 blocks\nexpected: 0 to 1, or -2 to -1"
    ):
        FeatureTap(classifier_of("nano"), (2,))
    with pytest.raises(UsageError, match="a `Linear` holds no image classifier"):
        blocks(nn.Linear(1, 1))


def test_regrid_averages_down_interpolates_up_and_leaves_equal_grids() -> None:
    ramp = torch.arange(4.0)[None, :].expand(4, 4)  # columns 0 1 2 3
    tokens = torch.stack((ramp, ramp.T), dim=-1).reshape(1, 16, 2)  # (1, 16, 2): its column and its row
    assert regrid(tokens, (4, 4), (4, 4)) is tokens
    half = regrid(tokens, (4, 4), (2, 2))
    assert half[0].tolist() == [[0.5, 0.5], [2.5, 0.5], [0.5, 2.5], [2.5, 2.5]]
    mixed = regrid(tokens, (4, 4), (2, 8))  # coarser in one direction, finer in the other
    assert mixed.shape == (1, 16, 2)
    torch.testing.assert_close(mixed[0, :8, 1], torch.full((8,), 0.5))
    torch.testing.assert_close(mixed[0, 1:7, 0], torch.linspace(0.25, 2.75, 6))


@pytest.mark.parametrize("name", sorted(INSIDES))
def test_layers_grow_from_input_to_head(name: str, classifier_of: MakeClassifier) -> None:
    model = classifier_of(name)
    layers = layers_of(model)
    count = INSIDES[name][0]
    assert layers.keys() == dict(model.named_parameters()).keys()
    assert set(layers.values()) == {*range(count + 2)} - ({0} if name == "cnn" else set())
    assert all(layers[key] == count + 1 for key in layers if key.startswith("classifier."))
    assert all(layers[key] == 0 for key in layers if "embeddings" in key or key in ("positions", "class_token"))
    assert layer_of(model, next(key for key in layers if layers[key] == 2)) == 2


def test_layer_of_takes_names_of_the_wrapper_and_refuses_others(classifier_of: MakeClassifier) -> None:
    classifier = PixelClassifier(classifier_of("nano"), Preprocessing(height=16, width=16))
    assert layer_of(classifier, "model.blocks.1.mlp.expand.bias") == 2
    with pytest.raises(UsageError, match=r"no weight `blocks\.1"):
        layer_of(classifier, "blocks.1.mlp.expand.bias")


@pytest.mark.parametrize("name", ["micro", "bert-nano", "resnet-mini", "ViT", "ResNet"])
def test_freeze_lower_leaves_the_lower_part_as_it_is(name: str, classifier_of: MakeClassifier) -> None:
    model = classifier_of(name)
    frozen = freeze_lower(model, 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    frozen.to_evaluation()
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1.0)
    for step in range(2):
        optimizer.zero_grad()
        model(pixel_values=pixels_for(name, 4) + step).logits.square().sum().backward()
        optimizer.step()
    first = {id(part) for part in blocks(model)[0].modules()}
    lower = [part for part in model.modules() if id(part) in first]
    assert not any(part.training for part in lower)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    layers = layers_of(model)
    assert set(frozen.names) == {key for key, layer in layers.items() if layer <= 1}
    assert changed & set(layers) == {key for key, layer in layers.items() if layer > 1}
    buffers = [key for key in changed - set(layers) if "running" in key]
    assert all(key.startswith(("stages.1", "stages.2", "resnet.encoder.stages.1")) for key in buffers)
    assert bool(buffers) == (name in ("resnet-mini", "ResNet"))


def test_freeze_lower_knows_none_and_too_many(classifier_of: MakeClassifier) -> None:
    model = classifier_of("nano")
    assert freeze_lower(model, 0).names == ()
    assert all(weight.requires_grad for weight in model.parameters())
    for count in (3, -1):
        with pytest.raises(
            UsageError, match=f"{count} frozen blocks in a `edgebert-student` of 2 blocks\nexpected: 0 to 2"
        ):
            freeze_lower(model, count)


def test_freeze_batch_norm_keeps_statistics_and_trains_scales(classifier_of: MakeClassifier) -> None:
    model = classifier_of("resnet-mini")
    model.train()
    freeze_batch_norm(model)
    before = {key: value.clone() for key, value in model.named_buffers()}
    together = model(pixel_values=pixels_for("resnet-mini", 4)).logits
    together.square().sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    assert all(weight.grad is not None for weight in model.parameters())
    alone = model(pixel_values=pixels_for("resnet-mini", 4)[:1]).logits
    torch.testing.assert_close(alone, together[:1], rtol=1e-4, atol=1e-6)


def test_feature_tap_works_in_a_data_parallel_model(classifier_of: MakeClassifier, tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(classifier_of("nano"))
        with FeatureTap(wrapped, (1,)) as tap:
            logits = wrapped(pixel_values=pixels_for("nano")).logits
            (logits.sum() + tap.features[1].square().mean()).backward()
        assert all(weight.grad is not None for weight in wrapped.parameters())
    finally:
        torch.distributed.destroy_process_group()
