"""The inside of a classifier, whoever's it is: its blocks in order, what they answer, and how deep a weight lies.

Feature distillation taps blocks of teacher and student; freezing and layer-wise learning rates count them; weight inheritance
reads them. What a block is depends on the architecture: a transformer block, a stage of Swin, a stage of a CNN.

>>> from edgebert.models.student import StudentConfig, StudentForImageClassification
>>> model = StudentForImageClassification(StudentConfig(image_size=8, hidden_size=32, num_hidden_layers=3, num_attention_heads=2))
>>> with FeatureTap(model, (0, -1)) as tap:
...     logits = model(torch.zeros(5, 3, 8, 8)).logits
>>> sorted(tap.features), tap.features[2].shape, tap.grid[2]
([0, 2], torch.Size([5, 16, 32]), (4, 4))
>>> layer_of(model, "positions"), layer_of(model, "blocks.2.mlp.expand.weight"), layer_of(model, "norm.weight")
(0, 3, 4)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from edgebert.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

Grid = tuple[int, int]
"""Rows and columns of the places that tokens or map entries stand for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Architecture:
    """Where the blocks of an architecture are and what their answers look like.

    Attributes:
        blocks: the list of blocks; the newest name first, then those of older versions of transformers.
        answer: `tokens` (batch, tokens, width), `maps` (batch, channels, rows, columns), or `stages`, tokens whose grid halves
            from stage to stage.
        prefix: tokens in front of the spatial ones: class, distillation, registers.
    """

    blocks: tuple[str, ...]
    answer: Literal["tokens", "maps", "stages"]
    prefix: Callable[[Any], int] = lambda config: 0


_ARCHITECTURES: dict[str, _Architecture] = {
    "edgebert-student": _Architecture(blocks=("blocks",), answer="tokens"),
    "edgebert-bert": _Architecture(blocks=("bert.encoder.layer",), answer="tokens", prefix=lambda config: 1),
    "edgebert-cnn": _Architecture(blocks=("stages",), answer="maps"),
    "vit": _Architecture(blocks=("vit.layers", "vit.encoder.layer"), answer="tokens", prefix=lambda config: 1),
    "deit": _Architecture(blocks=("deit.layers", "deit.encoder.layer"), answer="tokens", prefix=lambda config: 2),
    "beit": _Architecture(blocks=("beit.layers", "beit.encoder.layer"), answer="tokens", prefix=lambda config: 1),
    "dinov2": _Architecture(blocks=("dinov2.encoder.layer",), answer="tokens", prefix=lambda config: 1),
    "dinov2_with_registers": _Architecture(
        blocks=("dinov2_with_registers.encoder.layer",),
        answer="tokens",
        prefix=lambda config: 1 + int(config.num_register_tokens),
    ),
    "swin": _Architecture(blocks=("swin.encoder.layers",), answer="stages"),
    "resnet": _Architecture(blocks=("resnet.encoder.stages",), answer="maps"),
    "convnext": _Architecture(blocks=("convnext.encoder.stages",), answer="maps"),
}


def classifier_in(model: nn.Module) -> PreTrainedModel:
    """Return the image classifier itself: without normalisation, data-parallel wrapper, or the text side of a fusion.

    Raises:
        UsageError: there is none inside.
    """
    found: object = model
    while isinstance(found, nn.Module):
        if isinstance(found, PreTrainedModel) and not isinstance(getattr(found, "image", None), PreTrainedModel):
            return found
        # PixelClassifier holds `model`, DistributedDataParallel `module`, a fusion `image`.
        found = next((getattr(found, name) for name in ("module", "model", "image") if hasattr(found, name)), None)
    raise UsageError(f"a `{type(model).__name__}` holds no image classifier", expected="a model of transformers")


def blocks(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return transformer blocks or stages of a CNN, from input to output.

    Raises:
        UsageError: the inside of this architecture is not known.
    """
    classifier = classifier_in(model)
    for path in _architecture(classifier).blocks:
        found = submodule(classifier, path)
        if isinstance(found, nn.ModuleList):
            return tuple(found)
    raise _unknown(classifier)


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a dotted path, or None."""
    found: object = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, nn.Module) else None


def prefix_tokens(model: nn.Module) -> int:
    """Return how many tokens stand in front of the spatial ones: class, distillation and register tokens.

    Raises:
        UsageError: the inside of this architecture is not known.
    """
    classifier = classifier_in(model)
    return _architecture(classifier).prefix(classifier.config)


class FeatureTap:
    """Keeps what chosen blocks answered in the last forward pass, with its gradient.

    A context manager; outside of `with`, `close` removes the hooks. The model's answers are not changed. Reading needs nothing
    but a forward pass of the model, whoever calls it: under autocast, inside a data-parallel wrapper, with gradient
    checkpointing (where blocks run again in the backward pass: that second run is not looked at).

    Args:
        model: an image classifier of a known architecture, wrapped or not.
        numbers: of the blocks, from 0; negative ones count from the end.

    Attributes:
        features: number from 0 -> (batch, tokens, width): spatial tokens only, row by row. Empty before a forward pass.
        grid: number from 0 -> rows and columns of these tokens.

    Raises:
        UsageError: the inside of this architecture is not known, or there is no such block.
    """

    def __init__(self, model: nn.Module, numbers: Sequence[int]) -> None:
        self.features: dict[int, torch.Tensor] = {}
        self.grid: dict[int, Grid] = {}
        self._classifier = classifier_in(model)
        self._architecture = _architecture(self._classifier)
        self._image: Grid = (0, 0)
        found = blocks(model)
        self._last = len(found) - 1
        self._handles: list[RemovableHandle] = []
        for number in numbers:
            if not -len(found) <= number < len(found):
                raise UsageError(
                    f"no block {number} in a `{self._classifier.config.model_type}` of {len(found)} blocks",
                    expected=f"0 to {len(found) - 1}, or -{len(found)} to -1",
                )
        # At the start of each forward pass, so that what is kept is of one pass.
        self._handles.append(self._classifier.register_forward_pre_hook(self._begin, with_kwargs=True))
        for number in sorted({number % len(found) for number in numbers}):
            self._handles.append(found[number].register_forward_hook(functools.partial(self._keep, number)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks; what was read stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def clear(self) -> None:
        """Forget what was read, and with it the graph that it holds in memory."""
        self.features.clear()
        self.grid.clear()

    def _begin(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.clear()
        pixels = named["pixel_values"] if "pixel_values" in named else arguments[0]
        self._image = (int(pixels.shape[2]), int(pixels.shape[3]))

    def _keep(self, number: int, module: nn.Module, arguments: object, output: Any) -> None:
        if number in self.features:
            return  # the second run of gradient checkpointing
        answer: torch.Tensor = output[0] if isinstance(output, tuple) else output
        if self._architecture.answer == "maps":
            self.grid[number] = (int(answer.shape[2]), int(answer.shape[3]))
            self.features[number] = answer.flatten(2).transpose(1, 2)  # (batch, rows * columns, channels)
        else:
            self.grid[number] = self._token_grid(number)
            self.features[number] = answer[:, self._architecture.prefix(self._classifier.config) :]

    def _token_grid(self, number: int) -> Grid:
        config = self._classifier.config
        if hasattr(config, "token_grid"):
            rows, columns = config.token_grid
            return int(rows), int(columns)
        patch = config.patch_size
        high, wide = (patch, patch) if isinstance(patch, int) else patch
        if self._architecture.answer == "tokens":
            return self._image[0] // high, self._image[1] // wide
        # Swin fills the last patch with zeros and halves the grid behind each stage but the last.
        halvings = min(number + 1, self._last)
        rows, columns = -(-self._image[0] // high), -(-self._image[1] // wide)
        return -(-rows >> halvings), -(-columns >> halvings)


def pooled(features: torch.Tensor) -> torch.Tensor:
    """Return one vector an image: the mean over its tokens.

    Args:
        features: (batch, tokens, width), as `FeatureTap` keeps them.

    Returns:
        (batch, width).
    """
    return features.mean(dim=1)


def regrid(tokens: torch.Tensor, grid: Grid, new_grid: Grid) -> torch.Tensor:
    """Bring tokens to another grid: averages of what falls into a place where it gets coarser, bilinear where it gets finer.

    Args:
        tokens: (batch, rows * columns, width), row by row.
        grid: their rows and columns.
        new_grid: the rows and columns wanted.

    Returns:
        (batch, new rows * new columns, width); the tokens themselves where the grids are equal.
    """
    if grid == new_grid:
        return tokens
    maps = tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)  # (batch, width, rows, columns)
    coarse = (min(grid[0], new_grid[0]), min(grid[1], new_grid[1]))
    if coarse != grid:
        maps = nn.functional.adaptive_avg_pool2d(maps, coarse)
    if coarse != new_grid:
        maps = nn.functional.interpolate(maps, size=new_grid, mode="bilinear", align_corners=False)
    return maps.flatten(2).transpose(1, 2)


def layer_of(model: nn.Module, parameter_name: str) -> int:
    """Return how deep a weight lies, for learning rates that decay from the head to the input.

    Args:
        model: an image classifier of a known architecture, wrapped or not.
        parameter_name: as `model.named_parameters()` has it.

    Returns:
        0 for all before the blocks (stem, embeddings, positions, class token), i + 1 for block i, and the number of blocks + 1
        for all behind them: norm, pooler, head, and the text side of a fusion.

    Raises:
        UsageError: the inside of this architecture is not known, or there is no such weight.
    """
    layers = layers_of(model)
    if parameter_name not in layers:
        raise UsageError(f"no weight `{parameter_name}` in a `{type(model).__name__}`", expected="a parameter's name")
    return layers[parameter_name]


def layers_of(model: nn.Module) -> dict[str, int]:
    """Return `layer_of` of every weight, by name.

    Raises:
        UsageError: the inside of this architecture is not known.
    """
    found = blocks(model)
    in_block = {id(weight): index + 1 for index, block in enumerate(found) for weight in block.parameters()}
    inside = {id(weight) for weight in classifier_in(model).parameters()}
    layers: dict[str, int] = {}
    begun = False  # weights come in the order in which modules were made: embeddings, blocks, norm, head
    for name, weight in model.named_parameters():
        layer = in_block.get(id(weight))
        begun = begun or layer is not None
        before = not begun and id(weight) in inside
        layers[name] = layer if layer is not None else 0 if before else len(found) + 1
    return layers


@dataclass(frozen=True, slots=True)
class FrozenLower:
    """The lower part of a model, which training leaves alone.

    Attributes:
        names: the frozen weights, as `model.named_parameters()` has them.
        modules: their modules, which stay in evaluation mode: a batch norm would move its statistics, a dropout its answers.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]

    def to_evaluation(self) -> None:
        """Put the frozen modules into evaluation mode again; to be called after each `model.train()`."""
        for module in self.modules:
            module.eval()


def freeze_lower(model: nn.Module, count: int) -> FrozenLower:
    """Freeze all before the blocks, and the first blocks.

    Args:
        model: an image classifier of a known architecture, wrapped or not; its frozen weights need no gradient from here on,
            and their modules are put into evaluation mode.
        count: how many blocks; 0 freezes nothing at all, not even the embeddings.

    Returns:
        What was frozen; its `to_evaluation` belongs behind each `model.train()`.

    Raises:
        UsageError: the inside of this architecture is not known, or it has fewer blocks.
    """
    if count == 0:
        return FrozenLower((), ())
    found = blocks(model)
    if not 0 < count <= len(found):
        raise UsageError(
            f"{count} frozen blocks in a `{classifier_in(model).config.model_type}` of {len(found)} blocks",
            expected=f"0 to {len(found)}",
        )
    layers = layers_of(model)
    names = tuple(name for name, layer in layers.items() if layer <= count)
    weights = dict(model.named_parameters())
    for name in names:
        weights[name].requires_grad_(False)
    frozen = FrozenLower(names, (*_before_blocks(classifier_in(model), found), *found[:count]))
    frozen.to_evaluation()
    return frozen


def freeze_batch_norm(model: nn.Module) -> None:
    """Let every batch norm use its running statistics and leave them as they are; to be called after each `model.train()`.

    Its scale and shift are trained on. Wanted where batches are too small or differ between processes.
    """
    for module in model.modules():
        # The common base class of the one-, two- and three-dimensional kinds, and of the synchronised one.
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Keep only the inputs of each block, and run the blocks again in the backward pass: equal gradients from less memory.

    Raises:
        UsageError: this architecture cannot.
    """
    classifier = classifier_in(model)
    if not classifier.supports_gradient_checkpointing:
        raise UsageError(
            f"no gradient checkpointing for a `{classifier.config.model_type}`",
            expected="a transformer: running a stage of a CNN twice would move its batch norms twice",
        )
    # transformers 5.23 warns of the older name, which is the only one before; both use the form without re-entry.
    newer = getattr(classifier, "activation_checkpointing_enable", None)
    if newer is not None:
        newer(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        classifier.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[no-untyped-call]  # transformers has no types here


def _before_blocks(classifier: PreTrainedModel, found: tuple[nn.Module, ...]) -> tuple[nn.Module, ...]:
    """Return the modules in front of the first block that hold no block: stem, embeddings."""
    in_blocks = {id(part) for block in found for part in block.modules()}
    before: list[nn.Module] = []
    for module in classifier.modules():
        if module is found[0]:
            break
        if not any(id(part) in in_blocks for part in module.modules()):
            before.append(module)
    return tuple(before)


def _architecture(classifier: PreTrainedModel) -> _Architecture:
    known = _ARCHITECTURES.get(str(classifier.config.model_type))
    if known is None:
        raise _unknown(classifier)
    return known


def _unknown(classifier: PreTrainedModel) -> UsageError:
    return UsageError(
        f"the blocks of a `{classifier.config.model_type}` ({type(classifier).__name__}) are not known",
        expected=f"one of {', '.join(_ARCHITECTURES)}",
        hint="leave out what reaches into a model: features, freezing, layer decay, inheritance",
    )
