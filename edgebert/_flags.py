"""The flags of the command line that more than one command has; each is a field of the same name of its options.

Only typer and the standard library are imported here, so that `edgebert --help` stays quick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from edgebert.errors import UsageError

if TYPE_CHECKING:
    from edgebert.train.options import LoopOptions

_Options = TypeVar("_Options", bound="LoopOptions")

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Images: a folder (train|val|test/<class>/*, or <class>/*), a folder with labels.csv, a parquet file, "
        "a Hugging Face data set id, or `digits`.",
        show_default=False,
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write; must not exist.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output of the same kind.")]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON on stdout.")]
ClassMap = Annotated[
    list[str] | None,
    typer.Option(metavar="THEIRS=OURS", help="A class name in the data and the model's name for it; repeatable."),
]
Signers = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Allowed signers (OpenSSH), one of whom must have signed.", show_default="none"),
]
Identity = Annotated[
    str | None,
    typer.Option(metavar="ID", help="The one of --signers who must have signed.", show_default="any of them"),
]
Revoked = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keys that are not believed any more, with --signers.", show_default="none"),
]
InstallationFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The installation's folder.", show_default=False)
]
InstallationHost = Annotated[
    str | None,
    typer.Option(
        "--host",
        metavar="USER@HOST[:PORT]",
        help="Of this device, over SSH, or a name of `edgebert devices`; DIR is a folder there.",
        show_default="this computer",
    ),
]
DevicePython = Annotated[
    str | None,
    typer.Option("--python", help="With --host: the device's Python.", show_default="its entry's, or python3"),
]
DeviceWheels = Annotated[
    Path | None,
    typer.Option(
        "--device-wheels",
        metavar="FOLDER",
        help="With --host: where numpy and Pillow lie that a device lacks, where this computer cannot fetch them.",
        show_default="pip fetches them",
    ),
]
SelfTest = Annotated[
    Literal["now", "later"], typer.Option(help="later: at the first opening, for an image that is made elsewhere.")
]
SelfTestTimeout = Annotated[float, typer.Option(metavar="SECONDS", help="Of the self-test.")]
SelfTestTarget = Annotated[
    str | None, typer.Option(help="The form that the self-test opens.", show_default="the first that fits")
]
Host = Annotated[
    str | None,
    typer.Option(
        metavar="USER@HOST[:PORT]",
        help="A device, over SSH; a name of `edgebert devices`; or local: for a process here.",
        show_default="this computer",
    ),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        metavar="USER@HOST[:PORT]",
        help="A device, over SSH; a name of `edgebert devices`; or local: for a process here; repeatable.",
        show_default="this computer",
    ),
]
KeepOnDevice = Annotated[
    bool, typer.Option("--keep-on-device", help="With --host: leave what was sent there, for the next call.")
]
Seed = Annotated[int, typer.Option(help="Every random draw follows from it.")]
Threads = Annotated[int, typer.Option(help="Threads of the backend; 0 for the physical cores.")]
MaxSkipped = Annotated[float, typer.Option(help="Largest share of unreadable images before the run stops.")]
Revision = Annotated[str | None, typer.Option(help="Of the model or teacher, where it comes from the hub.")]

# Of `train` and `distill`.
ImageSize = Annotated[
    int | None,
    typer.Option(help="Side of the square input in pixels.", show_default="the model's own, else from the data"),
]
Resize = Annotated[
    Literal["crop", "stretch"] | None,
    typer.Option(help="How images become square.", show_default="the model's own, else stretch"),
]
Epochs = Annotated[
    int | None,
    typer.Option(help="Passes over the training images.", show_default="100 for a preset, 10 for a pretrained model"),
]
BatchSize = Annotated[int, typer.Option(help="Images per batch.")]
Accumulate = Annotated[int, typer.Option(help="Batches whose gradients make one step.")]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--learning-rate", "--lr", help="The highest.", show_default="1e-3 for a preset, 5e-5 for a pretrained model"
    ),
]
WeightDecay = Annotated[float, typer.Option(help="Of AdamW; none on biases, norms and positions.")]
Warmup = Annotated[float, typer.Option(help="Share of the steps in which the learning rate rises.")]
ClipNorm = Annotated[float, typer.Option(help="The gradient's norm is cut to this; 0 for never.")]
MixedPrecision = Annotated[
    Literal["auto", "no", "bf16", "fp16"], typer.Option(help="auto: bf16 where a CUDA device has it.")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: CUDA where there is a device.")]
Augment = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="Comma-separated: shift, rotate, crop, flip, vertical-flip, jitter, randaugment, erase, mask; or none. "
        "Take only what leaves every class its meaning.",
    ),
]
Shift = Annotated[float, typer.Option(help="For shift: the largest, as a share of the side.")]
Rotation = Annotated[float, typer.Option(help="For rotate: the largest, in degrees.")]
CropScale = Annotated[float, typer.Option(help="For crop: the smallest, as a share of the area.")]
Jitter = Annotated[float, typer.Option(help="For jitter: the largest change of colour, as a share.")]
Erase = Annotated[float, typer.Option(help="For erase: the probability that an image loses a rectangle.")]
Mask = Annotated[float, typer.Option(help="For mask: the share of patches that are hidden.")]
Mixup = Annotated[float, typer.Option(help="Images blended in pairs, shares from Beta(a, a); 0 for never.")]
Cutmix = Annotated[float, typer.Option(help="Rectangles of other images, areas from Beta(a, a); 0 for never.")]
Sampling = Annotated[
    Literal["natural", "balanced"], typer.Option(help="balanced: as many images of each class, rare ones repeated.")
]
ClassWeights = Annotated[
    Literal["none", "inverse", "effective"], typer.Option(help="Weight of each class in the label loss.")
]
Smoothing = Annotated[float, typer.Option(help="Of the labels, spread evenly over all classes.")]
Freeze = Annotated[int, typer.Option(metavar="N", help="Lower blocks, and what is below them, that are not trained.")]
FreezeBatchNorm = Annotated[bool, typer.Option("--freeze-batch-norm", help="Batch norms keep their statistics.")]
LayerDecay = Annotated[float, typer.Option(help="A block's learning rate is this times that of the one above it.")]
GradientCheckpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
]
Patience = Annotated[int, typer.Option(help="Epochs without a better one before the run stops; 0 for never.")]
SaveEvery = Annotated[int, typer.Option(help="Batches after which the state is saved, besides after each epoch.")]
ViewSeed = Annotated[
    int | None, typer.Option(help="Of the views alone, to share a cache between seeds.", show_default="the seed")
]
Ema = Annotated[float, typer.Option(help="Decay of the running average of weights that is kept; 0 for none.")]
Examples = Annotated[
    int, typer.Option(help="Images that travel with the model for self-tests; 0 where none may leave this computer.")
]
Workers = Annotated[int, typer.Option(help="Threads that decode images; 0 for the physical cores.")]
Init = Annotated[
    Literal["auto", "teacher", "anew"],
    typer.Option(help="teacher: start from its own weights, cut to size; auto: where its blocks are of one type."),
]
Task = Annotated[
    Literal["auto", "single-label", "multi-label"],
    typer.Option(help="What the labels mean.", show_default="auto: several to an image where any image has several"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run of this output.")]


def class_map_from(pairs: Sequence[str] | None) -> dict[str, str]:
    """Read `--class-map theirs=ours` flags.

    Raises:
        UsageError: no `=`, an empty side, or a name given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs or ():
        theirs, equals, ours = pair.partition("=")
        if not equals or not theirs.strip() or not ours.strip():
            raise UsageError(f"`--class-map {pair}` cannot be read", expected="`--class-map theirs=ours`")
        if theirs.strip() in found:
            raise UsageError(f"`--class-map` names `{theirs.strip()}` twice")
        found[theirs.strip()] = ours.strip()
    return found


def options_from(kind: type[_Options], given: Mapping[str, object]) -> _Options:
    """Make options from a command's parameters of the same names; a test holds the two against each other.

    Raises:
        UsageError: a value is outside its range, or a class map cannot be read.
    """
    values: dict[str, Any] = {field.name: given[field.name] for field in dataclasses.fields(kind)}
    values["augment"] = names_from(str(values["augment"]))
    values["class_map"] = class_map_from(values["class_map"])
    return kind(**values)


def names_from(text: str) -> tuple[str, ...]:
    """Read a comma-separated list; `none` and nothing are empty."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return () if names == ("none",) else names
