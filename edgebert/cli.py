"""The command line: parse, call one function, print. No logic lives here.

Data goes to stdout, everything else to stderr. Exit codes are those of `edgebert.errors`, and 5 for a measurement that
is not valid. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgebert import __version__, _flags
from edgebert._console import columns, plain, run_command, show
from edgebert._flags import class_map_from, names_from

if TYPE_CHECKING:
    from edgebert._json import JsonObject
    from edgebert.recipe import StageResult

NOT_COMPARABLE_EXIT_CODE = 5
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
            "bert-medium, bert-base, nano, micro, tiny, small.",
            show_default=False,
        ),
    ],
    output: _flags.Output,
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
    augment: _flags.Augment = "shift,rotate",
    shift: _flags.Shift = 0.125,
    rotation: _flags.Rotation = 10.0,
    crop_scale: _flags.CropScale = 0.6,
    mixup: _flags.Mixup = 0.0,
    ema: _flags.Ema = 0.0,
    seed: _flags.Seed = 0,
    examples: _flags.Examples = 4,
    workers: _flags.Workers = 0,
    text_weights: Annotated[
        str | None, typer.Option(help="For a BERT preset: a text BERT whose encoder it starts from.")
    ] = None,
    class_map: _flags.ClassMap = None,
    max_skipped: _flags.MaxSkipped = 0.01,
    revision: _flags.Revision = None,
    resume: _flags.Resume = False,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Fine-tune a pretrained classifier, or train a preset from scratch."""

    def command() -> int:
        from edgebert.train import TrainOptions, checkpoint_from_data

        options = TrainOptions(
            model=model,
            image_size=image_size,
            resize=resize,
            epochs=epochs,
            batch_size=batch_size,
            accumulate=accumulate,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup=warmup,
            clip_norm=clip_norm,
            mixed_precision=mixed_precision,
            augment=names_from(augment),  # type: ignore[arg-type]  # checked where the options are made
            shift=shift,
            rotation=rotation,
            crop_scale=crop_scale,
            mixup=mixup,
            ema=ema,
            seed=seed,
            examples=examples,
            workers=workers,
            text_weights=text_weights,
            class_map=class_map_from(class_map),
            max_skipped=max_skipped,
            revision=revision,
            resume=resume,
            force=force,
        )
        report = checkpoint_from_data(data, output, options)
        show(plain(report), report.to_text(), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def distill(
    data: _flags.Data,
    teacher: Annotated[str, typer.Option(help="A checkpoint folder, or a classifier's hub id.", show_default=False)],
    student: Annotated[
        str,
        typer.Option(help="A preset (nano, micro, tiny, small) or a checkpoint folder.", show_default=False),
    ],
    output: _flags.Output,
    temperature: Annotated[float, typer.Option(help="Both distributions are softened by it.")] = 4.0,
    alpha: Annotated[float, typer.Option(help="Weight of the teacher's answers; the labels get the rest.")] = 0.9,
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
    augment: _flags.Augment = "shift,rotate",
    shift: _flags.Shift = 0.125,
    rotation: _flags.Rotation = 10.0,
    crop_scale: _flags.CropScale = 0.6,
    mixup: _flags.Mixup = 0.0,
    ema: _flags.Ema = 0.0,
    seed: _flags.Seed = 0,
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

    def command() -> int:
        from edgebert.train import DistillOptions, checkpoint_from_teacher

        options = DistillOptions(
            student=student,
            temperature=temperature,
            alpha=alpha,
            image_size=image_size,
            resize=resize,
            epochs=epochs,
            batch_size=batch_size,
            accumulate=accumulate,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup=warmup,
            clip_norm=clip_norm,
            mixed_precision=mixed_precision,
            augment=names_from(augment),  # type: ignore[arg-type]  # checked where the options are made
            shift=shift,
            rotation=rotation,
            crop_scale=crop_scale,
            mixup=mixup,
            ema=ema,
            seed=seed,
            examples=examples,
            workers=workers,
            class_map=class_map_from(class_map),
            max_skipped=max_skipped,
            revision=revision,
            resume=resume,
            force=force,
        )
        report = checkpoint_from_teacher(data, teacher, output, options)
        show(plain(report), report.to_text(), as_json=as_json)
        return 0

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
    class_map: _flags.ClassMap = None,
    max_skipped: _flags.MaxSkipped = 0.01,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Quantise a graph to symmetric INT8 with real calibration images."""

    def command() -> int:
        from edgebert.calibration.quantize import QuantizeOptions, int8_graph_from_graph

        options = QuantizeOptions(
            images=images, class_map=class_map_from(class_map), max_skipped=max_skipped, force=force
        )
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
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Compile a graph for one or more targets, into a bundle; onto a bundle of the same graph it adds a form."""

    def command() -> int:
        from edgebert.export.compile import CompileOptions, bundle_from_graph

        options = CompileOptions(targets=tuple(target or ("cpu",)), canary=canary, force=force)
        report = bundle_from_graph(graph, output, options)
        show(plain(report), report.to_text(), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def bench(
    data: Annotated[str, typer.Option(metavar="DATA", help="Its test images are measured.", show_default=False)],
    output: _flags.Output,
    artefacts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]ARTEFACT...", help="Bundles, graphs, checkpoints.", show_default="the *.edgebert here"
        ),
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="Form of bundles, backend of graphs; repeatable.")] = None,
    queries: Annotated[int, typer.Option(help="Timed per arm, at least; p99 takes 299.")] = 330,
    seconds: Annotated[float, typer.Option(help="Timed per arm, at least.")] = 4.0,
    max_seconds: Annotated[float, typer.Option(help="Timed per arm, at most.")] = 30.0,
    max_warmup_seconds: Annotated[float, typer.Option(help="Warm-up per arm, at most.")] = 8.0,
    images: Annotated[int, typer.Option(help="Distinct images that are timed; accuracy takes all.")] = 256,
    threads: _flags.Threads = 0,
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
    class_map: _flags.ClassMap = None,
    max_skipped: _flags.MaxSkipped = 0.01,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Measure accuracy and latency of each artefact: same file, same process, arms interleaved."""

    def command() -> int:
        from edgebert.bench import BenchOptions, result_from_arms, text_table
        from edgebert.bench.codec import to_json

        options = BenchOptions(
            data=data,
            targets=tuple(target or ()),
            queries=queries,
            seconds=seconds,
            max_seconds=max_seconds,
            max_warmup_seconds=max_warmup_seconds,
            images=images,
            threads=threads,
            seed=seed,
            baseline=baseline,
            reference=reference,
            class_map=class_map_from(class_map),
            max_skipped=max_skipped,
            force=force,
        )
        result = result_from_arms(artefacts or (), output, options)
        show(to_json(result), text_table(result), as_json=as_json)
        return result.exit_code

    _call(command, as_json=as_json)


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Written by `bench`.", show_default=False)],
    output: _flags.Output,
    force: _flags.Force = False,
    as_json: _flags.Json = False,
) -> None:
    """Make one self-contained HTML page of one or more results."""

    def command() -> int:
        from edgebert.bench import report_from_results

        page = report_from_results(results, output, force=force)
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
    """Classify image files; one line each: file, class, score."""

    def command() -> int:
        from edgebert.artefact import predict_files

        answers = predict_files(bundle, images, target=target, threads=threads)
        rows = [
            f"{answer.file}\t{answer.label or '-'}\t{'-' if answer.score is None else format(answer.score, '.4f')}"
            for answer in answers
        ]
        show({"predictions": [plain(answer) for answer in answers]}, "\n".join(rows), as_json=as_json)
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
        Path, typer.Argument(metavar="ARTEFACT", help="Checkpoint, graph, bundle or result.", show_default=False)
    ],
    as_json: _flags.Json = False,
) -> None:
    """Check an artefact as its users would meet it: hashes, canaries, rules."""

    def command() -> int:
        from edgebert.artefact import verify as verified

        held = verified(artefact)
        show({"artefact": str(artefact), "held": held}, "\n".join(held), as_json=as_json)
        return 0

    _call(command, as_json=as_json)


@app.command()
def targets(as_json: _flags.Json = False) -> None:
    """List the targets, and whether this computer can run each."""

    def command() -> int:
        from edgebert.doctor import target_states

        states = target_states()
        rows = [(state.name, state.summary, "yes" if state.here else f"no: {state.reason}") for state in states]
        show(
            {"targets": [plain(state) for state in states]},
            columns(("target", "device and backend", "runs here"), rows),
            as_json=as_json,
        )
        return 0

    _call(command, as_json=as_json)


@app.command()
def doctor(as_json: _flags.Json = False) -> None:
    """Say what works on this computer, and the command that adds the rest."""

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

    _call(command, as_json=as_json)


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
