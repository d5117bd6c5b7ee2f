"""The command line: parse, call one function, print. No logic lives here.

Data goes to stdout, everything else to stderr. Exit codes are those of `edgebert.errors`, and 5 for a measurement that
is not valid. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgebert import __version__, _flags
from edgebert._console import columns, plain, run_command, show
from edgebert._flags import class_map_from, options_from
from edgebert.errors import UsageError

if TYPE_CHECKING:
    from edgebert._json import JsonObject
    from edgebert.bench import BenchOptions
    from edgebert.recipe import StageResult

DEBUG_VARIABLE = "EDGEBERT_DEBUG"

app = typer.Typer(
    name="edgebert",
    help="From a large image classifier to one verified folder a device can load: distilled, INT8, compiled, measured.",
    epilog="Errors say what failed, what was expected, and the command that mends it. Add --debug for a traceback.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    if debug:  # also where `main` was not the way in; the workers that bench starts inherit it
        os.environ[DEBUG_VARIABLE] = "1"
    if version:
        show({"edgebert": __version__}, f"edgebert {__version__}", as_json=False)
        raise typer.Exit


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where everything is kept.")] = Path("edgebert-demo"),
    seed: _flags.Seed = 0,
    as_json: _flags.Json = False,
) -> None:
    """The whole way on the built-in digits: teacher, student, INT8, bundle, bench, report."""

    def command() -> int:
        from edgebert.recipe import DEMO, read_recipe, run_recipe

        recipe = read_recipe(DEMO, [f"seed={seed}"], output=output)
        return _show_run(recipe.output, run_recipe(recipe), as_json=as_json)

    _call(command, as_json=as_json)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.", show_default=False)],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, such as data=FOLDER or train.epochs=3."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where everything is kept.", show_default="the recipe's")
    ] = None,
    as_json: _flags.Json = False,
) -> None:
    """All stages of a recipe; what is already made from the same inputs and options is kept."""

    def command() -> int:
        from edgebert.recipe import read_recipe, run_recipe

        parsed = read_recipe(recipe, changes or (), output=output)
        return _show_run(parsed.output, run_recipe(parsed), as_json=as_json)

    _call(command, as_json=as_json)


@app.command()
def train(
    data: _flags.Data,
    model: Annotated[
        str,
        typer.Option(
            help="A checkpoint folder or a hub id; or a preset to train from scratch: bert-nano, bert-mini, bert-small, "
            "bert-medium, bert-base, cnn, resnet-mini, nano, micro, tiny, small, or a shape such as d64-l3-h2-r2.",
            show_default=False,
        ),
    ],
    output: _flags.Output,
    text_weights: Annotated[
        str | None, typer.Option(help="For a BERT preset: a text BERT whose encoder it starts from.")
    ] = None,
    text_model: Annotated[
        str | None,
        typer.Option(help="Read each image's text, too, with this text BERT (`scratch`: a small one): a teacher only."),
    ] = None,
    pretrain: Annotated[
        Literal["none", "mim"], typer.Option(help="mim: train on hidden patches first, without labels.")
    ] = "none",
    pretrain_epochs: Annotated[int, typer.Option(help="Of --pretrain.")] = 50,
    pretrain_data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images for --pretrain, labelled or not.", show_default="the training split"),
    ] = None,
    image_size: _flags.ImageSize = None,
    resize: _flags.Resize = None,
    epochs: _flags.Epochs = None,
    batch_size: _flags.BatchSize = 64,
    accumulate: _flags.Accumulate = 1,
    learning_rate: _flags.LearningRate = None,
    weight_decay: _flags.WeightDecay = 0.05,
    warmup: _flags.Warmup = 0.05,
    clip_norm: _flags.ClipNorm = 1.0,
    mixed_precision: _flags.MixedPrecision = "auto",
    device: _flags.Device = "auto",
    augment: _flags.Augment = "shift,rotate",
    shift: _flags.Shift = 0.125,
    rotation: _flags.Rotation = 10.0,
    crop_scale: _flags.CropScale = 0.6,
    jitter: _flags.Jitter = 0.3,
    erase: _flags.Erase = 0.25,
    mask: _flags.Mask = 0.3,
    mixup: _flags.Mixup = 0.0,
    cutmix: _flags.Cutmix = 0.0,
    sampling: _flags.Sampling = "natural",
    class_weights: _flags.ClassWeights = "none",
    smoothing: _flags.Smoothing = 0.0,
    ema: _flags.Ema = 0.0,
    freeze: _flags.Freeze = 0,
    freeze_batch_norm: _flags.FreezeBatchNorm = False,
    layer_decay: _flags.LayerDecay = 1.0,
    gradient_checkpointing: _flags.GradientCheckpointing = False,
    patience: _flags.Patience = 0,
    save_every: _flags.SaveEvery = 0,
    seed: _flags.Seed = 0,
    view_seed: _flags.ViewSeed = None,
    task: _flags.Task = "auto",
    examples: _flags.Examples = 4,
    workers: _flags.Workers = 0,
    class_map: _flags.ClassMap = None,
    max_skipped: _flags.MaxSkipped = 0.01,
    revision: _flags.Revision = None,
    resume: _flags.Resume = False,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Fine-tune a pretrained classifier, or train a preset from scratch."""
    given = dict(locals())

    def command() -> int:
        from edgebert.train import TrainOptions, checkpoint_from_data

        report = checkpoint_from_data(data, output, options_from(TrainOptions, given))
        show(plain(report), report.to_text(), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def distill(
    data: _flags.Data,
    teacher: Annotated[
        list[str],
        typer.Option(help="A checkpoint folder, or a classifier's hub id; several are averaged.", show_default=False),
    ],
    student: Annotated[
        str,
        typer.Option(
            help="A preset (nano, micro, tiny, small), a shape such as d64-l3-h2-r2, or a checkpoint folder.",
            show_default=False,
        ),
    ],
    output: _flags.Output,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="DATA is images at any depth; the teacher is the judge.")
    ] = False,
    init: _flags.Init = "auto",
    temperature: Annotated[float, typer.Option(help="Both distributions are softened by it.")] = 4.0,
    kl_weight: Annotated[float, typer.Option(help="Of the teacher's probabilities.")] = 0.9,
    label_weight: Annotated[
        float | None, typer.Option(help="Of the labels.", show_default="0.1, and 0 with --unlabelled")
    ] = None,
    hard_weight: Annotated[float, typer.Option(help="Of the teacher's decisions, taken as labels.")] = 0.0,
    early_weight: Annotated[float, typer.Option(help="Of the likeness of tokens behind the first blocks.")] = 0.0,
    early_layers: Annotated[int, typer.Option(help="How many first blocks --early-weight compares.")] = 2,
    pooled_weight: Annotated[float, typer.Option(help="Of the likeness of the pooled last tokens.")] = 0.0,
    relation_weight: Annotated[float, typer.Option(help="Of the likeness of a batch's similarities.")] = 0.0,
    feature_until: Annotated[
        float, typer.Option(help="Share of the run after which early, pooled and relation end.")
    ] = 0.7,
    cache: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Keep the teacher's answers there, for later runs as well.")
    ] = None,
    cache_views: Annotated[
        int,
        typer.Option(
            help="Views of each image that are answered once and then read.",
            show_default="0: answered in every step; with --cache, 16",
        ),
    ] = 0,
    image_size: _flags.ImageSize = None,
    resize: _flags.Resize = None,
    epochs: _flags.Epochs = None,
    batch_size: _flags.BatchSize = 64,
    accumulate: _flags.Accumulate = 1,
    learning_rate: _flags.LearningRate = None,
    weight_decay: _flags.WeightDecay = 0.05,
    warmup: _flags.Warmup = 0.05,
    clip_norm: _flags.ClipNorm = 1.0,
    mixed_precision: _flags.MixedPrecision = "auto",
    device: _flags.Device = "auto",
    augment: _flags.Augment = "shift,rotate",
    shift: _flags.Shift = 0.125,
    rotation: _flags.Rotation = 10.0,
    crop_scale: _flags.CropScale = 0.6,
    jitter: _flags.Jitter = 0.3,
    erase: _flags.Erase = 0.25,
    mask: _flags.Mask = 0.3,
    mixup: _flags.Mixup = 0.0,
    cutmix: _flags.Cutmix = 0.0,
    sampling: _flags.Sampling = "natural",
    class_weights: _flags.ClassWeights = "none",
    smoothing: _flags.Smoothing = 0.0,
    ema: _flags.Ema = 0.0,
    freeze: _flags.Freeze = 0,
    freeze_batch_norm: _flags.FreezeBatchNorm = False,
    layer_decay: _flags.LayerDecay = 1.0,
    gradient_checkpointing: _flags.GradientCheckpointing = False,
    patience: _flags.Patience = 0,
    save_every: _flags.SaveEvery = 0,
    seed: _flags.Seed = 0,
    view_seed: _flags.ViewSeed = None,
    task: _flags.Task = "auto",
    examples: _flags.Examples = 4,
    workers: _flags.Workers = 0,
    class_map: _flags.ClassMap = None,
    max_skipped: _flags.MaxSkipped = 0.01,
    revision: _flags.Revision = None,
    resume: _flags.Resume = False,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Train a small student from a teacher's answers (knowledge distillation)."""
    given = {**locals(), "teachers": tuple(teacher[1:])}

    def command() -> int:
        from edgebert.train import DistillOptions, checkpoint_from_teacher

        report = checkpoint_from_teacher(data, teacher[0], output, options_from(DistillOptions, given))
        show(plain(report), report.to_text(), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def size(
    data: _flags.Data,
    image_size: Annotated[int, typer.Option(help="Side of the student's square input in pixels.", show_default=False)],
    target: Annotated[str, typer.Option(help="Where it is measured; see `edgebert targets`.", show_default=False)],
    budget_ms: Annotated[
        float,
        typer.Option(help="What p90 may be, end to end from a decoded image, one at a time.", show_default=False),
    ],
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Measure these only, such as d64-l3-h2-r2; repeatable.", show_default="search the grid"),
    ] = None,
    resize: Annotated[Literal["crop", "stretch"], typer.Option(help="How images become square.")] = "stretch",
    threads: _flags.Threads = 0,
    calibration_images: Annotated[int, typer.Option(help="Training images that quantise each candidate.")] = 16,
    timed_images: Annotated[int, typer.Option(help="Different validation images that are timed.")] = 64,
    max_minutes: Annotated[float, typer.Option(help="No round begins that is expected to end later.")] = 5.0,
    seed: _flags.Seed = 0,
    max_skipped: _flags.MaxSkipped = 0.01,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the table as JSON; must not exist.", show_default="nowhere"),
    ] = None,
    host: _flags.Host = None,
    python: _flags.DevicePython = None,
    device_wheels: _flags.DeviceWheels = None,
    keep_on_device: _flags.KeepOnDevice = False,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Measure untrained students on the target and propose the largest inside a latency budget.

    Latency needs no training, accuracy does: this says how large a student may be, and training says how good it gets.
    """

    def command() -> int:
        from edgebert.train.sizing import SizeOptions, sizes_from_data

        options = SizeOptions(
            image_size=image_size,
            target=target,
            budget_ms=budget_ms,
            shapes=tuple(shape or ()),
            resize=resize,
            threads=threads,
            calibration_images=calibration_images,
            timed_images=timed_images,
            max_minutes=max_minutes,
            seed=seed,
            max_skipped=max_skipped,
            force=force,
        )
        if host is not None:
            from edgebert.remote.size import sizes_on
            from edgebert.remote.transport import transport_of

            report = sizes_on(
                transport_of(host, python=python, wheels=device_wheels), data, options, output, keep=keep_on_device
            )
        else:
            _check_no_device_options(python, keep_on_device, device_wheels)
            report = sizes_from_data(data, options, output)
        show(report.to_json(), report.to_text(), as_json=as_json)
        return report.exit_code

    _call(command, as_json=as_json)


@app.command()
def tune(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A TOML file with a table [tune].", show_default=False)
    ],
    trials: Annotated[
        int, typer.Option(help="How many the study shall hold in all, over all workers and calls.", show_default=False)
    ],
    storage: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="sqlite:///FILE, another database of optuna's, or journal:///FILE; workers share it.",
            show_default=False,
        ),
    ],
    study: Annotated[
        str, typer.Option(metavar="NAME", help="Of the study in the storage.", show_default="the recipe's name")
    ] = "",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe, such as data=FOLDER."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a page of the study (.html).", show_default="nowhere")
    ] = None,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Search the options of a recipe's stage; only the validation split decides."""

    def command() -> int:
        from edgebert.recipe import read_recipe
        from edgebert.train.tuning import TuneOptions, tune_recipe

        options = TuneOptions(trials=trials, storage=storage, study=study, force=force)
        report = tune_recipe(read_recipe(recipe, changes or ()), options, output)
        show(plain(report), report.to_text(), as_json=as_json)
        return 0 if report.best is not None else 1

    _call(command, as_json=as_json)


@app.command()
def export(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder or a hub id.", show_default=False)
    ],
    output: _flags.Output,
    data: Annotated[
        str | None, typer.Option(help="DATA whose validation images join the comparison with PyTorch.")
    ] = None,
    opset: Annotated[int, typer.Option(help="Of the ONNX operators: 19 or 20.")] = 20,
    max_logit_difference: Annotated[
        float, typer.Option(help="Allowed between PyTorch and the graph, in units of the largest logit.")
    ] = 1e-3,
    max_flips: Annotated[int, typer.Option(help="How many images may be given another class.")] = 0,
    class_map: _flags.ClassMap = None,
    max_skipped: _flags.MaxSkipped = 0.01,
    revision: _flags.Revision = None,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Export a checkpoint as an FP32 graph, compared with PyTorch on real images."""

    def command() -> int:
        from edgebert.export.graph import ExportOptions, graph_from_checkpoint

        options = ExportOptions(
            data=data,
            opset=opset,
            max_logit_difference=max_logit_difference,
            max_flips=max_flips,
            class_map=class_map_from(class_map),
            max_skipped=max_skipped,
            revision=revision,
            force=force,
        )
        report = graph_from_checkpoint(checkpoint, output, options)
        show(plain(report), report.to_text(), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def quantize(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="An FP32 graph, or a checkpoint folder.", show_default=False)
    ],
    calibration: Annotated[
        str,
        typer.Option(
            metavar="DATA", help="Its training images calibrate, its validation images compare.", show_default=False
        ),
    ],
    output: _flags.Output,
    images: Annotated[int, typer.Option(help="How many training images calibrate.")] = 512,
    effort: Annotated[
        Literal["fast", "standard", "best"],
        typer.Option(help="How many candidates are tried; docs/quantization.md states the time of each."),
    ] = "standard",
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="Guard: so many points of top-1 may be lost.", show_default="no promise"),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT", help="Guard: so many images are decided as FP32 does.", show_default="no promise"
        ),
    ] = None,
    min_int8_share: Annotated[
        float, typer.Option(help="Guard: give up where less of the multiplications would stay in INT8.")
    ] = 0.25,
    sensitivity: Annotated[
        str | None,
        typer.Option(metavar="FILE.json", help="Write what each layer costs, and a chart.", show_default="nowhere"),
    ] = None,
    abstain_precision: Annotated[
        float | None,
        typer.Option(
            help="Abstain where the score is low, so that this share of the other answers is right, such as 0.99.",
            show_default="never abstain",
        ),
    ] = None,
    finetune: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Its training images teach the weights to live with the rounding, its validation images choose the epoch.",
            show_default="no fine-tuning",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|ID", help="For --finetune: a checkpoint to answer as.", show_default="the FP32 graph"
        ),
    ] = None,
    finetune_epochs: Annotated[int, typer.Option(help="1 to 5.")] = 2,
    finetune_scales: Annotated[
        Literal["learned", "frozen"], typer.Option(help="Whether scales are learned with the weights.")
    ] = "learned",
    finetune_learning_rate: Annotated[float, typer.Option(help="The highest.")] = 1e-5,
    audit: Annotated[
        bool, typer.Option("--audit", help="Quantise nothing: look at the images, and write a page of HTML about them.")
    ] = False,
    class_map: _flags.ClassMap = None,
    max_skipped: _flags.MaxSkipped = 0.01,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Quantise a graph to symmetric INT8 with real calibration images."""

    def command() -> int:
        from edgebert.calibration.quantize import QuantizeOptions, int8_graph_from_graph

        options = QuantizeOptions(
            images=images,
            effort=effort,
            max_drop=max_drop,
            min_agreement=min_agreement,
            min_int8_share=min_int8_share,
            sensitivity=sensitivity,
            abstain_precision=abstain_precision,
            finetune=finetune,
            teacher=teacher,
            finetune_epochs=finetune_epochs,
            finetune_scales=finetune_scales,
            finetune_learning_rate=finetune_learning_rate,
            class_map=class_map_from(class_map),
            max_skipped=max_skipped,
            force=force,
        )
        if audit:
            from edgebert.calibration.audit import audit_of_calibration, audit_options_from

            found = audit_of_calibration(source, calibration, output, audit_options_from(options))
            show(found.to_json(), found.to_text(), as_json=as_json)
            return found.exit_code
        report = int8_graph_from_graph(source, calibration, output, options)
        show(plain(report), report.to_text(), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command(name="compile")
def compile_(
    graph: Annotated[Path, typer.Argument(metavar="GRAPH", help="An FP32 or INT8 graph.", show_default=False)],
    output: _flags.Output,
    target: Annotated[
        list[str] | None,
        typer.Option(help="See `edgebert targets`; repeatable, the first that fits is run.", show_default="cpu"),
    ] = None,
    canary: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|synthetic",
            help="Images the bundle checks itself with, where the graph's own must not ship.",
            show_default="the graph's own",
        ),
    ] = None,
    precision: Annotated[
        Literal["as-given", "auto", "int8", "fp32"],
        typer.Option(help="auto: measures INT8 against FP32 and takes one; needs --float and --data."),
    ] = "as-given",
    float_graph: Annotated[
        Path | None,
        typer.Option(
            "--float", metavar="FP32", help="The graph that the INT8 graph was made from.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Its validation images are measured on.", show_default=False)
    ] = None,
    max_drop: Annotated[float, typer.Option(help="Points of accuracy that INT8 may lose.")] = 0.5,
    min_agreement: Annotated[float, typer.Option(help="Per cent of the images that INT8 must decide as FP32.")] = 99.0,
    max_seconds: Annotated[float, typer.Option(help="Timed on each target, at most.")] = 20.0,
    keep_both: Annotated[
        bool, typer.Option("--keep-both", help="Keep the engine of the other precision as well, for bench.")
    ] = False,
    typing: Annotated[
        Literal["auto", "strong", "weak"] | None,
        typer.Option(
            help="Of engines. strong: the graph sets every type; weak: TensorRT 10 does; auto: builds both, keeps the faster "
            "that holds accuracy.",
            show_default="auto",
        ),
    ] = None,
    workspace_mb: Annotated[
        int | None,
        typer.Option(
            metavar="MIB",
            help="Of engines: what one layer may use while it is built.",
            show_default="a share of free memory",
        ),
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(metavar="0-5", help="Of engines: how long TensorRT searches.", show_default="3")
    ] = None,
    dla_core: Annotated[
        int | None, typer.Option(metavar="N", help="Build engines for this DLA core.", show_default="the GPU")
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of engines: the largest batch that they take.", show_default="1"),
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout", metavar="SECONDS", help="After which the build of an engine is ended.", show_default="7200"
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a page (.html) of what was measured, with the images decided otherwise."),
    ] = None,
    weights: Annotated[
        Literal["auto", "8-bit", "7-bit"],
        typer.Option(help="Of INT8 on x86. auto: 7-bit where this CPU has no VNNI or AMX, and 8 bits would saturate."),
    ] = "auto",
    release: Annotated[
        int, typer.Option(help="Number of the product's bundle, from 1 on; devices refuse to go back to a lower one.")
    ] = 0,
    host: _flags.Host = None,
    python: _flags.DevicePython = None,
    device_wheels: _flags.DeviceWheels = None,
    keep_on_device: _flags.KeepOnDevice = False,
    class_map: _flags.ClassMap = None,
    max_skipped: _flags.MaxSkipped = 0.01,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Compile a graph for one or more targets, into a bundle; onto a bundle of the same graph it adds a form.

    With --float and --data it measures both precisions on validation images, decides, and says why.
    """

    def command() -> int:
        from edgebert.export.compile import CompileOptions, bundle_from_graph

        options = CompileOptions(
            targets=tuple(target or ("cpu",)),
            canary=canary,
            precision=precision,
            float_graph=float_graph,
            data=data,
            max_drop=max_drop,
            min_agreement=min_agreement,
            max_seconds=max_seconds,
            keep_both=keep_both,
            typing=typing,
            workspace_mb=workspace_mb,
            optimization_level=optimization_level,
            dla_core=dla_core,
            max_batch=max_batch,
            timeout_s=timeout_s,
            report=report,
            weights=weights,
            release=release,
            class_map=class_map_from(class_map),
            max_skipped=max_skipped,
            force=force,
        )
        if host is not None:
            from edgebert.remote.compile import bundle_on
            from edgebert.remote.transport import transport_of

            transport = transport_of(host, python=python, wheels=device_wheels)
            made = bundle_on(transport, graph, output, options, keep=keep_on_device)
        else:
            _check_no_device_options(python, keep_on_device, device_wheels)
            made = bundle_from_graph(graph, output, options)
        show(plain(made), made.to_text(), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def pack(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, signed or not.", show_default=False)],
    output: _flags.Output,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Write a bundle as one .zip file, for transport; every command that takes a bundle takes it as well."""

    def command() -> int:
        from edgebert.archive import write_archive
        from edgebert.bundle import read_bundle

        read = read_bundle(bundle)
        size = write_archive(read, output, force=force)
        data: JsonObject = {
            "path": str(output),
            "digest": read.digest,
            "signed": read.signature is not None,
            "size_bytes": size,
        }
        signed = "signed" if read.signature is not None else "not signed"
        show(data, f"{output}: {size:,} bytes, digest {read.digest}, {signed}", as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def bench(
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Its test images are measured.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write; must not exist. An audit needs none.", show_default=False),
    ] = None,
    artefacts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]ARTEFACT...", help="Bundles, graphs, checkpoints.", show_default="the *.edgebert here"
        ),
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="Form of bundles, backend of graphs; repeatable.")] = None,
    rigor: Annotated[
        Literal["quick", "standard", "publish"],
        typer.Option(help="quick: 3 launches, ~15 s an arm; standard: 5+, up to 3 min; publish: 10+, up to 20 min."),
    ] = "quick",
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Beside single-stream: multi-stream, offline, paced, server, soak, energy, cold, all; repeatable.",
        ),
    ] = None,
    margin: Annotated[float, typer.Option(help="Difference in speed that matters, 0.01 is 1 %.")] = 0.01,
    launches: Annotated[int | None, typer.Option(help="Fresh processes per arm.", show_default="by rigor")] = None,
    max_launches: Annotated[int | None, typer.Option(help="At most as many.", show_default="by rigor")] = None,
    queries: Annotated[
        int | None, typer.Option(help="Timed per arm, at least; p99 takes 299.", show_default="by rigor")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Timed per arm, at least.", show_default="by rigor")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Timed per arm, at most.", show_default="by rigor")] = None,
    max_warmup_seconds: Annotated[
        float | None, typer.Option(help="Each warm-up, at most.", show_default="by rigor")
    ] = None,
    images: Annotated[int, typer.Option(help="Distinct images that are timed; accuracy takes all.")] = 256,
    fps: Annotated[float, typer.Option(help="paced: frames per second.")] = 30.0,
    deadline_ms: Annotated[
        float | None, typer.Option(help="paced: answered by then.", show_default="the next frame")
    ] = None,
    policy: Annotated[
        Literal["drop", "queue"], typer.Option(help="paced: a frame that comes while another is worked on.")
    ] = "drop",
    streams: Annotated[int, typer.Option(help="multi-stream: images of a query.")] = 8,
    bound_ms: Annotated[
        float | None, typer.Option(help="server: latency to keep.", show_default="five times p50")
    ] = None,
    bound_share: Annotated[float, typer.Option(help="server: share of queries that keep it.")] = 0.99,
    soak_minutes: Annotated[float, typer.Option(help="soak: length.")] = 10.0,
    flipped: Annotated[int, typer.Option(help="Images kept that an arm decides otherwise than its reference.")] = 12,
    threads: _flags.Threads = 0,
    cpus: Annotated[str, typer.Option(metavar="LIST", help="Processors of the workers, `0,1` or `0-3`.")] = "",
    seed: _flags.Seed = 0,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Arm that speed-ups refer to.", show_default="the first")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Arm that agreement refers to.", show_default="the FP32 arm of the same checkpoint"
        ),
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Measure nothing; look for backends that cheat, about a minute an arm.")
    ] = False,
    host: _flags.Hosts = None,
    python: _flags.DevicePython = None,
    device_wheels: _flags.DeviceWheels = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="With --host: the folder of a run whose link broke, to go on from."),
    ] = None,
    keep_on_device: _flags.KeepOnDevice = False,
    class_map: _flags.ClassMap = None,
    max_skipped: _flags.MaxSkipped = 0.01,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Measure accuracy and latency of each artefact: same file, same process, arms interleaved, launches repeated."""

    def command() -> int:
        from edgebert.bench import BenchOptions, result_from_arms, text_table
        from edgebert.bench.codec import to_json
        from edgebert.bench.here import check_targets_are_here

        if not host:
            check_targets_are_here(target or ())
            _check_no_device_options(python, keep_on_device, device_wheels, resume)
        if data is None:
            raise UsageError("`bench` measures on images, and no data is named", hint="--data DATA")
        options = BenchOptions(
            data=data,
            targets=tuple(target or ()),
            rigor=rigor,
            scenarios=tuple(scenario or ()),
            launches=launches,
            max_launches=max_launches,
            queries=queries,
            seconds=seconds,
            max_seconds=max_seconds,
            max_warmup_seconds=max_warmup_seconds,
            margin=margin,
            images=images,
            threads=threads,
            cpus=cpus,
            seed=seed,
            baseline=baseline,
            reference=reference,
            fps=fps,
            deadline_ms=deadline_ms,
            policy=policy,
            streams=streams,
            bound_ms=bound_ms,
            bound_share=bound_share,
            soak_minutes=soak_minutes,
            flipped=flipped,
            class_map=class_map_from(class_map),
            max_skipped=max_skipped,
            force=force,
        )
        if audit:
            if host:
                raise UsageError("`--audit` runs on this computer", expected="--audit, or --host")
            return _audit(artefacts or (), output, options, as_json=as_json)
        if output is None:
            raise UsageError("`bench` writes a result, and no name is given", hint="-o result.json")
        if host:
            from edgebert.remote.fleet import bench_fleet

            benched = bench_fleet(
                host,
                artefacts or (),
                output,
                options,
                python=python,
                wheels=device_wheels,
                resume=resume,
                keep=keep_on_device,
            )
            show(benched.to_json(), benched.to_text(), as_json=as_json)
            return benched.exit_code
        result = result_from_arms(artefacts or (), output, options)
        show(to_json(result), text_table(result), as_json=as_json)
        return result.exit_code

    _call(command, as_json=as_json)


def _check_no_device_options(
    python: str | None, keep_on_device: bool, device_wheels: Path | None, resume: Path | None = None
) -> None:
    """Refuse what only a device has.

    Raises:
        UsageError: one is given.
    """
    given = {
        "--python": python is not None,
        "--keep-on-device": keep_on_device,
        "--device-wheels": device_wheels is not None,
        "--resume": resume is not None,
    }
    named = [flag for flag, is_given in given.items() if is_given]
    if named:
        raise UsageError(f"`{named[0]}` is of a device, and none is named", hint="--host USER@HOST")


def _audit(artefacts: Sequence[str], output: Path | None, options: BenchOptions, *, as_json: bool) -> int:
    from edgebert._files import check_file_is_free
    from edgebert.bench.audit.audit import audit_arms, write_audit

    if output is not None:
        check_file_is_free(output, force=options.force)
    found = audit_arms(artefacts, options)
    if output is not None:
        write_audit(output, found, force=options.force)
    show(found.to_json(), found.to_text(), as_json=as_json)
    return found.exit_code


@app.command()
def compare(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="A [B]", help="Written by `bench`; of two, A is the baseline.", show_default=False),
    ],
    arm: Annotated[
        str | None, typer.Option(metavar="NAME", help="Arm that is judged.", show_default="every one there is")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Arm it is held against.", show_default="the run's; of two, the same name in A"
        ),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="p50, p90, p99 or throughput; repeatable.", show_default="p50")
    ] = None,
    margin: Annotated[
        str | None,
        typer.Option(help="Difference that matters, such as 1% or 0.01.", show_default="the run's; of two, 1%"),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="So many points of top-1 may be lost.", show_default="no guard"),
    ] = None,
    cross_device: Annotated[
        bool, typer.Option("--cross-device", help="Compare two devices on purpose; the verdict says so.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.{md,csv,xml,json}", help="Write it, too.", show_default="nowhere"),
    ] = None,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Give the verdict on arms of one result, or of two, from their raw samples.

    Exit code: 5 where anything is not comparable, else 3 where an arm is slower (or loses more than --max-drop), else 4 where a
    verdict is inconclusive, else 0.
    """

    def command() -> int:
        from edgebert.bench.comparison.compare import compare_options_from, compare_results
        from edgebert.bench.comparison.formats import check_output, write_comparison

        options = compare_options_from(
            arm=arm,
            baseline=baseline,
            metrics=tuple(metric or ("p50",)),
            margin=margin,
            max_drop=max_drop,
            cross_device=cross_device,
        )
        if output is not None:
            check_output(output, results, force=force)
        report = compare_results(results, options)
        if output is not None:
            write_comparison(report, output, force=force)
        show(report.to_json(), report.to_text(), as_json=as_json)
        return report.exit_code

    _call(command, as_json=as_json)


@app.command()
def validate(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Written by `bench`.", show_default=False)],
    as_json: _flags.Json = False,
) -> None:
    """Check results: schema, hashes, and every statistic made again from the raw samples.

    Exit code 65 where a number does not follow from the samples, 77 where a file is not the one that was recorded.
    """

    def command() -> int:
        from edgebert.bench.comparison.validation import validate_results

        checked = validate_results(results)
        show(checked.to_json(), checked.to_text(), as_json=as_json)
        return checked.exit_code

    _call(command, as_json=as_json)


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Written by `bench`.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE.{html,md,csv,xml}", help="The suffix is the format.", show_default=False
        ),
    ],
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Make one self-contained page (.html) of results, a table (.md), tidy rows (.csv), or JUnit test cases (.xml)."""

    def command() -> int:
        from edgebert.bench.comparison.exports import write_results

        page = write_results(results, output, force=force)
        show({"path": str(page)}, str(page), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="NAME.edgebert", show_default=False)],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.", show_default=False)],
    target: Annotated[str | None, typer.Option(help="The form to run.", show_default="the first that fits")] = None,
    threads: _flags.Threads = 0,
    as_json: _flags.Json = False,
) -> None:
    """Classify image files; one line each: file, class (several joined by `|`), highest score, `abstained` where it is so."""

    def command() -> int:
        from edgebert.artefact import predict_files, text_of_answers

        answers = predict_files(bundle, images, target=target, threads=threads)
        show({"predictions": [plain(answer) for answer in answers]}, text_of_answers(answers), as_json=as_json)
        return max(answer.exit_code for answer in answers)

    _call(command, as_json=as_json)


@app.command()
def inspect(
    artefact: Annotated[
        Path, typer.Argument(metavar="ARTEFACT", help="Checkpoint, graph, bundle or result.", show_default=False)
    ],
    as_json: _flags.Json = False,
) -> None:
    """Show what an artefact says of itself: classes, preprocessing, and what it was made from."""

    def command() -> int:
        from edgebert.artefact import describe

        description = describe(artefact)
        show(description.to_json(), description.to_text(), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def verify(
    artefact: Annotated[
        Path,
        typer.Argument(
            metavar="ARTEFACT", help="Checkpoint, graph, bundle, installation or result.", show_default=False
        ),
    ],
    signers: _flags.Signers = None,
    identity: _flags.Identity = None,
    revoked: _flags.Revoked = None,
    model_signing: Annotated[
        bool, typer.Option("--model-signing", help="Check the OpenSSF model signature beside a bundle as well.")
    ] = False,
    public_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of --model-signing, a PEM file.", show_default="none")
    ] = None,
    as_json: _flags.Json = False,
) -> None:
    """Check an artefact as its users would meet it: signature, hashes, canaries, rules."""

    def command() -> int:
        from edgebert.artefact import verify as verified
        from edgebert.openssf import check_model_signature
        from edgebert.signing import policy_from

        held = check_model_signature(artefact, public_key) if model_signing or public_key else []
        held += verified(artefact, policy_from(signers, identity, revoked))
        show({"artefact": str(artefact), "held": held}, "\n".join(held), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="NAME.edgebert", show_default=False)],
    key: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="An SSH private key; or a public one whose private half is in the SSH agent. Of --model-signing a PEM file.",
            show_default=False,
        ),
    ],
    model_signing: Annotated[
        bool,
        typer.Option(
            "--model-signing", help="Write an OpenSSF model signature beside the bundle instead (extra sign)."
        ),
    ] = False,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Sign a bundle with an SSH key, so that a device can tell who answers for it."""

    def command() -> int:
        from edgebert.openssf import sign_model
        from edgebert.signing import sign_bundle

        if model_signing:
            written = sign_model(bundle, key, force=force)
            show({"path": str(written)}, f"{written}: the model signature of {bundle}", as_json=as_json)
            return 0
        fingerprint = sign_bundle(bundle, key, force=force)
        show({"bundle": str(bundle), "key": fingerprint}, f"{bundle}: signed with {fingerprint}", as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def install(
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE",
            help="NAME.edgebert, packed or not; - for a packed one on stdin, without --host.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path,
        typer.Option("--to", metavar="DIR", help="The installation's folder; made if missing.", show_default=False),
    ],
    self_test: _flags.SelfTest = "now",
    timeout: _flags.SelfTestTimeout = 120.0,
    target: _flags.SelfTestTarget = None,
    signers: _flags.Signers = None,
    identity: _flags.Identity = None,
    revoked: _flags.Revoked = None,
    require_signature: Annotated[
        bool,
        typer.Option(
            "--require-signature", help="From now on every bundle there must be signed, whenever it is opened."
        ),
    ] = False,
    weaken_policy: Annotated[
        bool,
        typer.Option(
            "--weaken-policy",
            help="Let these signature options replace stricter ones; without any, demand no signatures any more.",
        ),
    ] = False,
    allow_downgrade: Annotated[
        bool,
        typer.Option(
            "--allow-downgrade",
            help="Accept an older release, or a bundle that was replaced there; its release is the highest from then on.",
        ),
    ] = False,
    allow_bad: Annotated[
        bool, typer.Option("--allow-bad", help="Accept a bundle that failed there and is marked bad.")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="USER@HOST[:PORT]",
            help="Install on this device, over SSH; --to is a folder there.",
            show_default="this computer",
        ),
    ] = None,
    python: _flags.DevicePython = None,
    device_wheels: _flags.DeviceWheels = None,
    as_json: _flags.Json = False,
) -> None:
    """Put a bundle in place, here or on a device, after its self-test and in one step; what was there stays the previous one."""

    def command() -> int:
        from edgebert.install import InstallOptions, install

        options = InstallOptions(
            self_test=self_test,
            timeout=timeout,
            target=target,
            allow_downgrade=allow_downgrade,
            allow_bad=allow_bad,
            signers=signers,
            identity=identity,
            revoked=revoked,
            require_signature=require_signature,
            weaken_policy=weaken_policy,
        )
        if host is not None:
            from edgebert.remote.install import install_on

            there = install_on(host, bundle, str(to), options, python=python, wheels=device_wheels)
            show(there.to_json(), there.to_text(), as_json=as_json)
            return 0
        _check_no_device_options(python, False, device_wheels)
        report = install(bundle, to, options)
        show(report.to_json(), report.to_text(), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def rollback(
    path: _flags.InstallationFolder,
    self_test: _flags.SelfTest = "now",
    timeout: _flags.SelfTestTimeout = 120.0,
    target: _flags.SelfTestTarget = None,
    host: _flags.InstallationHost = None,
    python: _flags.DevicePython = None,
    device_wheels: _flags.DeviceWheels = None,
    as_json: _flags.Json = False,
) -> None:
    """Make the previous bundle of an installation current again; a second time goes forward again."""

    def command() -> int:
        from edgebert.install import rollback

        if host is not None:
            from edgebert.remote.installation import rollback_on

            there = rollback_on(
                host,
                str(path),
                self_test=self_test,
                timeout=timeout,
                target=target,
                python=python,
                wheels=device_wheels,
            )
            show(there.to_json(), there.to_text(), as_json=as_json)
            return 0
        _check_no_device_options(python, False, device_wheels)
        report = rollback(path, self_test=self_test, timeout=timeout, target=target)
        show(report.to_json(), report.to_text(), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def status(
    path: _flags.InstallationFolder,
    host: _flags.InstallationHost = None,
    python: _flags.DevicePython = None,
    device_wheels: _flags.DeviceWheels = None,
    as_json: _flags.Json = False,
) -> None:
    """Say what is installed in a folder, what went bad there, and whose signatures it demands."""

    def command() -> int:
        from edgebert.install import status

        if host is not None:
            from edgebert.remote.installation import status_on

            there = status_on(host, str(path), python=python, wheels=device_wheels)
            show(there.to_json(), there.to_text(), as_json=as_json)
            return 0
        _check_no_device_options(python, False, device_wheels)
        report = status(path)
        show(report.to_json(), report.to_text(), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


devices = typer.Typer(help="Devices by name, for --host.", no_args_is_help=True)
app.add_typer(devices, name="devices")


@devices.command(name="add")
def devices_add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What --host takes.", show_default=False)],
    host: Annotated[str, typer.Argument(metavar="USER@HOST[:PORT]", help="The device.", show_default=False)],
    python: Annotated[str, typer.Option(help="Its Python.")] = "python3",
    force: Annotated[bool, typer.Option("--force", help="Replace a device of this name.")] = False,
    as_json: _flags.Json = False,
) -> None:
    """Give a device a name."""

    def command() -> int:
        from edgebert.remote.devices import KnownDevice, add_device

        device = KnownDevice(name=name, host=host, python=python)
        path = add_device(device, force=force)
        show({**plain(device), "file": str(path)}, f"{name}: {host}, kept in {path}", as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@devices.command(name="list")
def devices_list(as_json: _flags.Json = False) -> None:
    """List the devices that have names."""

    def command() -> int:
        from edgebert.remote.devices import known_devices

        found = [device for _, device in sorted(known_devices().items())]
        rows = [(device.name, device.host, device.python) for device in found]
        text = columns(("name", "host", "python"), rows) if rows else "none: edgebert devices add NAME USER@HOST"
        show({"devices": [plain(device) for device in found]}, text, as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@devices.command(name="check")
def devices_check(
    host: Annotated[str, typer.Argument(metavar="NAME|USER@HOST[:PORT]", help="The device.", show_default=False)],
    python: Annotated[str | None, typer.Option(help="Its Python.", show_default="its entry's, or python3")] = None,
    device_wheels: _flags.DeviceWheels = None,
    as_json: _flags.Json = False,
) -> None:
    """Say whether a device can be used: host key, Python, numpy, backend, disk, lock, clock. It exits 1 where a check failed."""

    def command() -> int:
        from edgebert.remote.devices import check_device_at

        checked = check_device_at(host, python=python, wheels=device_wheels)
        show(checked.to_json(), checked.to_text(), as_json=as_json)
        return checked.exit_code

    _call(command, as_json=as_json)


@app.command(name="device-wheel")
def device_wheel(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder it is written to.", show_default=False)
    ],
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Write the device wheel: the part of edgebert that runs on a device, straight from the file or installed by pip."""

    def command() -> int:
        from edgebert.remote.device_wheel import write_device_wheel

        path = write_device_wheel(output, force=force)
        show({"path": str(path)}, str(path), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def targets(as_json: _flags.Json = False) -> None:
    """List the targets, and whether this computer can run each."""

    def command() -> int:
        from edgebert.doctor import device_facts, target_states

        states, device = target_states(), device_facts()
        rows = [(state.name, state.summary, "yes" if state.here else f"no: {state.reason}") for state in states]
        show(
            {"targets": [plain(state) for state in states], **({"device": device} if device else {})},
            "\n\n".join(
                filter(
                    None,
                    (
                        columns(("target", "device and backend", "runs here"), rows),
                        columns(("", ""), list(device.items())).lstrip("\n") if device else "",
                    ),
                )
            ),
            as_json=as_json,
        )
        return 0

    _call(command, as_json=as_json)


@app.command()
def doctor(
    bench: Annotated[
        bool,
        typer.Option(
            "--bench", help="Say what would disturb a measurement here, and the command that mends it; changes nothing."
        ),
    ] = False,
    jetson: Annotated[
        bool, typer.Option("--jetson", help="Check a Jetson rung by rung, and write one file to attach to a report.")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(metavar="USER@HOST[:PORT]", help="With --jetson: check this device over SSH.", show_default=False),
    ] = None,
    python: _flags.DevicePython = None,
    device_wheels: _flags.DeviceWheels = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Of --jetson.", show_default="named by board and day"),
    ] = None,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Say what works on this computer, and the command that adds the rest; with --bench, whether to measure on it.

    With --bench it exits 1 where a check failed; warnings are for the reader to weigh, and exit 0. With --jetson it exits as the first
    rung that failed would elsewhere, and 69 off a Jetson.
    """

    def board() -> int:
        from edgebert.jetson_check.ladder import check_jetson
        from edgebert.jetson_check.output import CheckFile, check_into_file

        if host is None:
            _check_no_device_options(python, keep_on_device=False, device_wheels=device_wheels)
        file = CheckFile(output, force=force)
        if host is None:
            return check_into_file(lambda told: check_jetson(told=told), file, as_json=as_json)
        from edgebert.remote.jetson_check import check_jetson_on
        from edgebert.remote.transport import transport_of

        device = transport_of(host, python=python, wheels=device_wheels)
        return check_into_file(lambda told: check_jetson_on(device, told=told), file, as_json=as_json)

    def before_bench() -> int:
        from edgebert.bench.environment.preflight import exit_code, preflight, text_of_checks, worst

        checks = preflight()
        data: JsonObject = {"state": worst(checks), "checks": [plain(check) for check in checks]}
        show(data, text_of_checks(checks), as_json=as_json)
        return exit_code(checks)

    def command() -> int:
        from edgebert.doctor import computer, diagnose, target_states

        facts, packages, states = computer(), diagnose(), target_states()
        rows = [
            (row.extra, row.module, row.version or "-", f">= {row.floor}", row.state, row.command) for row in packages
        ]
        text = "\n\n".join(
            (
                columns(("", ""), list(facts.items())).lstrip("\n"),
                columns(("extra", "module", "version", "accepted", "state", "to add it"), rows),
                columns(("target", "runs here"), [(s.name, "yes" if s.here else f"no: {s.reason}") for s in states]),
            )
        )
        data: JsonObject = {
            "computer": facts,
            "packages": [plain(p) for p in packages],
            "targets": [plain(s) for s in states],
        }
        show(data, text, as_json=as_json)
        return 0

    def asked() -> int:
        if jetson and bench:
            raise UsageError("`--jetson` and `--bench` are two checks", hint="one after the other")
        if jetson:
            return board()
        if any(each is not None for each in (host, python, device_wheels, output)) or force:
            raise UsageError(
                "`--host`, `--python`, `--device-wheels`, `--output` and `--force` belong to `--jetson`",
                hint="--jetson",
            )
        return before_bench() if bench else command()

    _call(asked, as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with the code of the command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" in given:  # wherever it stands: people add it to the end of a command that failed
        os.environ[DEBUG_VARIABLE] = "1"
        given = [argument for argument in given if argument != "--debug"]
    app(args=given, prog_name="edgebert")


def _show_run(output: Path, results: Sequence[StageResult], *, as_json: bool) -> int:
    """Print what a recipe made: the stages, and the table of its bench."""
    from edgebert.recipe import text_of_run

    show(
        {"output": str(output), "stages": [plain(result) for result in results]},
        text_of_run(results),
        as_json=as_json,
    )
    return 0


def _call(command: Callable[[], int], *, as_json: bool) -> None:
    debug = bool(os.environ.get(DEBUG_VARIABLE))
    raise typer.Exit(run_command(command, debug=debug, as_json=as_json))


if __name__ == "__main__":
    main()
