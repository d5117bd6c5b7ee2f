"""edgebert's quantiser beside NNCF and ONNX Runtime: accuracy on test images, and latency, of the same FP32 graphs.

    python benchmarks/quantisation.py FOLDER                                       FOLDER holds fashion_mnist/ and bccd_cells/
    python benchmarks/quantisation.py FOLDER --graphs digits,cells --threads 2
    python benchmarks/quantisation.py FOLDER --graph fashion=student.onnx          a ready FP32 graph instead of training one

Every quantiser (`_quantisers.py`) gets the same training images. On the test images, which no quantiser saw, the INT8 graphs
are compared with the FP32 graph in the same engine: top-1, mean KL(FP32 || INT8) of the softmax in nats, and agreement, the
share of images given the same class. The differences from edgebert's are paired: image by image, with a 95 % bootstrap interval
over images. Latency is of one image, batch 1, all quantisers and both engines in one interleaved run: in OpenVINO (static batch,
latency hint, float32 where it is float) each graph as the engine reads it; in ONNX Runtime edgebert's graph in the form that
`edgebert compile --target cpu` makes and the others' as they come, because that is what a user gets.

The verdicts, for each graph and peer:

* edgebert is at least as good, in both engines, unless the interval of the difference in KL lies wholly above 0 or that of the
  difference in agreement wholly below 0;
* edgebert is not slower in OpenVINO by more than 3 % than a graph of NNCF's that agrees with FP32 as well, which is one whose
  agreement is not shown to be lower by the paired interval. Of the untrained `vit-s`, which runs in OpenVINO alone, nothing but
  this is judged: its answers mean nothing, but INT8 can still decide as FP32 or not.

`nncf-performance`, plain min-max without smoothing at the places that edgebert quantises everywhere, is shown and not judged.

Expected: all hold. Eight minutes on two idle cores, without the trainings; twice that and more where others use them. What the
numbers do not mean: latency is of this computer's instruction set, and ratios to FP32 on others will differ; KL differs between
graphs by orders of magnitude, so it compares quantisers of one graph, never graphs.

Writes `quantisation.json` and `quantisation.md` under --output, where graphs, data and the peers' INT8 graphs are kept as well.
Prints one line for each verdict and returns 1 where one fails.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from _graphs import GRAPHS, Subject, subject
from _latency import interleaved_medians
from _paired import Interval, agreement_by_image, kl_by_image, mean_interval
from _quantisers import BASELINE, JUDGED, OURS, PACKAGES, QUANTISERS, Task
from numpy.typing import NDArray

from edgebert.bench.codec import to_json
from edgebert.bench.statistics.formulas import interleaved_ratio
from edgebert.calibration.images import calibration_examples
from edgebert.card import ModelCard
from edgebert.data import Example, align_classes, load_dataset
from edgebert.export.forms import form_from_graph
from edgebert.export.metadata import read_graph_card
from edgebert.extras import installed_version
from edgebert.preprocess import load_image
from edgebert.runtime.runner import InputSpec, ModelSource, Runner, RunnerOptions, open_runner, physical_cores
from edgebert.target import resolve_target

ENGINES = {"openvino": "intel-cpu", "onnxruntime": "cpu"}  # engine -> the target whose form edgebert compiles for it
MOST_SLOWER = 1.03
FLOAT = "fp32"
_TIMED_IMAGES = 8
_COLUMNS = (
    "engine",
    "quantiser",
    "top-1 %",
    "KL",
    "agreement %",
    "edgebert's KL minus this",
    "edgebert's agreement minus this, points",
    "ms",
    "over nncf-default",
)
_UNTRAINED_TESTS = 256
_UNTRAINED_IMAGES = 32  # calibration images of a graph of which only the latency is looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonOptions:
    """How to compare.

    Attributes:
        graphs: of `_graphs.GRAPHS`.
        ready: name of a graph -> an FP32 `.onnx` file of it, instead of one trained here.
        images: calibration images; all there are where the training split is smaller.
        test_images: the first so many of the test split, in order of their hash; None for all.
        epochs: of the trainings, instead of the recipes' own.
        threads: of each engine.
        rounds: of the interleaved run; five or more give an interval.
        seed: of resampling and order.
    """

    graphs: tuple[str, ...] = GRAPHS
    ready: Mapping[str, Path] = field(default_factory=dict)
    images: int = 512
    test_images: int | None = None
    epochs: int | None = None
    threads: int = 1
    rounds: int = 30
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One graph of one quantiser in one engine.

    Attributes:
        quantiser: its name, or `fp32`.
        engine: `openvino` or `onnxruntime`.
        top1: on the test images, in [0, 1]; None of an untrained graph.
        kl: mean KL(FP32 || INT8) in nats.
        agreement: share of test images with the same class as FP32.
        kl_difference: KL of edgebert's graph minus that of this one; below 0 is better.
        agreement_difference: agreement of edgebert's minus that of this one; above 0 is better.
        latency_ms: median over the blocks of their medians.
        ratio: latency over that of NNCF's default in the same engine.
        ours_ratio: latency of edgebert's graph over that of this one.
        quantise_seconds: that the quantiser took; None of one kept from an earlier call, and of FP32.
        size_bytes: of the graph file.
    """

    quantiser: str
    engine: str
    top1: float | None
    kl: Interval
    agreement: Interval
    kl_difference: Interval
    agreement_difference: Interval
    latency_ms: float
    ratio: Interval
    ours_ratio: Interval
    quantise_seconds: float | None
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One line: what must hold, the figures, and whether it does."""

    graph: str
    peer: str
    kind: str  # `accuracy` or `latency`
    says: str
    passed: bool

    def to_text(self) -> str:
        """Return one line for a terminal."""
        return f"{'PASS' if self.passed else 'FAIL'} {self.graph}, {self.kind}: {self.says}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphResult:
    """All rows of one FP32 graph."""

    graph: str
    calibration_images: int
    test_images: int
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]

    def row(self, quantiser: str, engine: str) -> Row:
        """Return one row."""
        return next(row for row in self.rows if (row.quantiser, row.engine) == (quantiser, engine))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What `run` found."""

    graphs: tuple[GraphResult, ...]
    threads: int
    rounds: int
    versions: Mapping[str, str]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All verdicts, graph by graph."""
        return tuple(verdict for result in self.graphs for verdict in result.verdicts)

    @property
    def passed(self) -> bool:
        """Whether all hold."""
        return all(verdict.passed for verdict in self.verdicts)

    def to_markdown(self) -> str:
        """Return one table for each graph."""
        return "\n\n".join(_table(result) for result in self.graphs)


def run(source: Path, output: Path, options: ComparisonOptions | None = None) -> Comparison:
    """Compare the quantisers and write `quantisation.json` and `quantisation.md`.

    Args:
        source: the folder of `fashion_mnist/` and `bccd_cells/`.
        output: the folder to keep everything in.
        options: defaults where None.
    """
    options = options or ComparisonOptions()
    results = []
    for name in options.graphs:
        made = subject(name, source, output, graph=options.ready.get(name), epochs=options.epochs)
        results.append(_compared(made, output, options))
    comparison = Comparison(
        graphs=tuple(results),
        threads=options.threads,
        rounds=options.rounds,
        versions={package: installed_version(package) or "unknown" for package in (*PACKAGES, "openvino")},
    )
    text = json.dumps({**to_json(comparison), "passed": comparison.passed}, indent=1)
    (output / "quantisation.json").write_text(text + "\n", encoding="utf-8")
    (output / "quantisation.md").write_text(comparison.to_markdown() + "\n", encoding="utf-8")
    return comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """An INT8 graph, and how long it took; None where it was kept from an earlier call."""

    graph: bytes
    seconds: float | None


def _compared(made: Subject, output: Path, options: ComparisonOptions) -> GraphResult:
    graph = made.graph.read_bytes()
    card = read_graph_card(graph)
    dataset = align_classes(load_dataset(made.data), card.class_names)
    count = options.images if made.trained else min(options.images, _UNTRAINED_IMAGES)
    calibration = _images(calibration_examples(dataset, count), card)
    tests = dataset.test[: options.test_images if made.trained else _UNTRAINED_TESTS]
    images, labels = _images(tests, card), np.array([example.label for example in tests])
    task = Task(graph=graph, images=calibration, data=made.data)
    graphs = {FLOAT: _Made(graph=graph, seconds=None)}
    graphs |= {name: _int8_graph(name, task, output / "peers") for name in QUANTISERS}
    spec = InputSpec(height=images.shape[1], width=images.shape[2], classes=len(card.class_names))
    engines = tuple(ENGINES) if made.trained else ("openvino",)  # its latency is asked there, and each pass takes long
    with contextlib.ExitStack() as opened:
        runners = {
            (name, engine): opened.enter_context(_opened(name, each.graph, engine, spec, options.threads))
            for name, each in graphs.items()
            for engine in engines
        }
        logits = {arm: _logits(runner, images) for arm, runner in runners.items()}
        medians = interleaved_medians(
            list(runners.values()), images[:_TIMED_IMAGES], rounds=options.rounds, seed=options.seed
        )
    times = dict(zip(runners, medians, strict=True))
    rows = tuple(
        _row(
            name,
            engine,
            graphs[name],
            times,
            _accuracies(name, engine, logits, labels if made.trained else None, options.seed),
            options.seed,
        )
        for engine in engines
        for name in graphs
    )
    return GraphResult(
        graph=made.name,
        calibration_images=len(calibration),
        test_images=len(tests),
        rows=rows,
        verdicts=_verdicts(made.name, rows),
    )


def _images(examples: Sequence[Example], card: ModelCard) -> NDArray[np.uint8]:
    """Return uint8 (images, height, width, 3)."""
    return np.stack([load_image(example.load(), card.preprocessing) for example in examples])


def _int8_graph(name: str, task: Task, folder: Path) -> _Made:
    """Quantise; a peer's graph of the same inputs and versions is kept, edgebert's is always made anew."""
    if name == OURS:
        return _timed(QUANTISERS[name], task)
    key = hashlib.sha256(task.graph)
    key.update(task.images.tobytes())
    key.update("".join(installed_version(package) or "" for package in PACKAGES).encode())
    path = folder / f"{name}-{key.hexdigest()[:16]}.onnx"
    if path.exists():
        return _Made(graph=path.read_bytes(), seconds=None)
    made = _timed(QUANTISERS[name], task)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made.graph)
    return made


def _timed(quantiser: Callable[[Task], bytes], task: Task) -> _Made:
    started = time.monotonic()
    graph = quantiser(task)
    return _Made(graph=graph, seconds=time.monotonic() - started)


def _opened(name: str, graph: bytes, engine: str, spec: InputSpec, threads: int) -> Runner:
    """Open edgebert's graph, and the FP32 one, in the form that `compile` makes; another's as it comes."""
    if name not in (OURS, FLOAT):
        return open_runner(engine, ModelSource(spec=spec, files={"model.onnx": graph}), RunnerOptions(threads=threads))
    form = form_from_graph(graph, resolve_target(ENGINES[engine]))
    options = RunnerOptions(threads=threads, disabled_optimizers=form.disabled_optimizers)
    return open_runner(engine, ModelSource(spec=spec, files=form.files), options)


def _logits(runner: Runner, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return float32 (images, classes), one image at a time, as the latency is measured."""
    return np.concatenate([runner.infer(images[at : at + 1]) for at in range(len(images))])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Accuracy:
    """What a row says of its answers; no top-1 of an untrained graph."""

    top1: float | None
    kl: Interval
    agreement: Interval
    kl_difference: Interval
    agreement_difference: Interval


def _accuracies(
    name: str,
    engine: str,
    logits: Mapping[tuple[str, str], NDArray[np.float32]],
    labels: NDArray[np.int64] | None,
    seed: int,
) -> _Accuracy:
    before, after, ours = (logits[each, engine] for each in (FLOAT, name, OURS))
    kl, our_kl = kl_by_image(before, after), kl_by_image(before, ours)
    agreement, our_agreement = agreement_by_image(before, after), agreement_by_image(before, ours)
    return _Accuracy(
        top1=None if labels is None else float((after.argmax(axis=1) == labels).mean()),
        kl=mean_interval(kl, seed=seed),
        agreement=mean_interval(agreement, seed=seed),
        kl_difference=mean_interval(our_kl - kl, seed=seed),
        agreement_difference=mean_interval(our_agreement - agreement, seed=seed),
    )


def _row(
    name: str,
    engine: str,
    made: _Made,
    times: Mapping[tuple[str, str], NDArray[np.float64]],
    accuracy: _Accuracy,
    seed: int,
) -> Row:
    mine, baseline, ours = (times[each, engine] for each in (name, BASELINE, OURS))
    return Row(
        quantiser=name,
        engine=engine,
        top1=accuracy.top1,
        kl=accuracy.kl,
        agreement=accuracy.agreement,
        kl_difference=accuracy.kl_difference,
        agreement_difference=accuracy.agreement_difference,
        latency_ms=float(np.median(mine)) / 1e6,
        ratio=_ratio(baseline, mine, seed),
        ours_ratio=_ratio(mine, ours, seed),
        quantise_seconds=made.seconds,
        size_bytes=len(made.graph),
    )


def _ratio(first: NDArray[np.float64], second: NDArray[np.float64], seed: int) -> Interval:
    """Return the time of the second over that of the first; without an interval where there are too few rounds."""
    contrast = interleaved_ratio(first, second, seed=seed)
    low, high = contrast.ci95 or (0.0, float("inf"))
    return Interval(value=contrast.ratio, low=low, high=high)


def _verdicts(graph: str, rows: Sequence[Row]) -> tuple[Verdict, ...]:
    found: list[Verdict] = []
    for peer in JUDGED:
        mine = [row for row in rows if row.quantiser == peer]
        if all(row.top1 is not None for row in mine):
            found.append(accuracy_verdict(graph, peer, mine))
        (openvino,) = (row for row in mine if row.engine == "openvino")
        if peer.startswith("nncf") and as_accurate(openvino):
            found.append(latency_verdict(graph, peer, openvino))
    return tuple(found)


def as_accurate(peer: Row) -> bool:
    """Say whether a peer's graph may agree with FP32 as well as edgebert's, by the paired interval."""
    return bool(peer.agreement_difference.low <= 0)


def accuracy_verdict(graph: str, peer: str, rows: Sequence[Row]) -> Verdict:
    """Say whether edgebert's graph is at least as good as a peer's in every engine; `rows` are the peer's."""
    parts, passed = [], True
    for row in rows:
        kl, agreement = row.kl_difference, row.agreement_difference
        passed = passed and kl.low <= 0 and agreement.high >= 0
        parts.append(
            f"{row.engine}: KL {kl.value:+.2e} [{kl.low:+.2e}, {kl.high:+.2e}], agreement "
            f"{100 * agreement.value:+.2f} points [{100 * agreement.low:+.2f}, {100 * agreement.high:+.2f}]"
        )
    return Verdict(
        graph=graph,
        peer=peer,
        kind="accuracy",
        says=f"edgebert minus {peer}, in {'; in '.join(parts)}",
        passed=passed,
    )


def latency_verdict(graph: str, peer: str, row: Row) -> Verdict:
    """Say whether edgebert's graph is at most 3 % slower than a peer's; `row` is the peer's in OpenVINO."""
    ratio = row.ours_ratio
    return Verdict(
        graph=graph,
        peer=peer,
        kind="latency",
        says=f"edgebert over {peer} in {row.engine}: {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}], "
        f"at most {MOST_SLOWER}",
        passed=ratio.value <= MOST_SLOWER,
    )


def _table(result: GraphResult) -> str:
    lines = [
        f"### {result.graph}",
        "",
        f"{result.calibration_images:,} calibration images, {result.test_images:,} test images.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result.rows:
        own = row.quantiser in (OURS, FLOAT)
        cells = [
            row.engine,
            row.quantiser,
            "" if row.top1 is None else f"{100 * row.top1:.2f}",
            "" if row.quantiser == FLOAT else f"{row.kl.value:.2e}",
            "" if row.quantiser == FLOAT else f"{100 * row.agreement.value:.2f}",
            "" if own else _shown(row.kl_difference, 1, "+.2e"),
            "" if own else _shown(row.agreement_difference, 100, "+.2f"),
            f"{row.latency_ms:.3f}",
            _shown(row.ratio, 1, ".3f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(interval: Interval, unit: float, form: str) -> str:
    value, low, high = (format(unit * each, form) for each in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def main() -> int:
    """Print the tables and the verdicts; return 0 where all hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="holds fashion_mnist/ and bccd_cells/")
    parser.add_argument("--graphs", default=",".join(GRAPHS), help="which, with commas between them")
    parser.add_argument(
        "--graph", action="append", default=[], metavar="NAME=FILE", help="a ready FP32 graph; repeatable"
    )
    parser.add_argument("--images", type=int, default=512, help="calibration images")
    parser.add_argument("--test-images", type=int, help="so many test images alone")
    parser.add_argument("--epochs", type=int, help="of the trainings, instead of the recipes' own")
    parser.add_argument(
        "--threads", type=int, default=1, help=f"of each engine; 0 for the {physical_cores()} cores here"
    )
    parser.add_argument("--rounds", type=int, default=30, help="of the interleaved run")
    parser.add_argument("--output", type=Path, default=Path("runs/quantisation"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    graphs = tuple(arguments.graphs.split(","))
    ready = dict(entry.partition("=")[::2] for entry in arguments.graph)
    unknown = sorted({*graphs, *ready} - set(GRAPHS))
    if unknown:
        parser.error(f"no such graph: {unknown[0]}; there are {', '.join(GRAPHS)}")
    options = ComparisonOptions(
        graphs=graphs,
        ready={name: Path(file) for name, file in ready.items()},
        images=arguments.images,
        test_images=arguments.test_images,
        epochs=arguments.epochs,
        threads=arguments.threads or physical_cores(),
        rounds=arguments.rounds,
    )
    comparison = run(arguments.source, arguments.output, options)
    print(comparison.to_markdown(), end="\n\n")
    for verdict in comparison.verdicts:
        print(verdict.to_text())
    return 0 if comparison.passed else 1


if __name__ == "__main__":
    sys.exit(main())
