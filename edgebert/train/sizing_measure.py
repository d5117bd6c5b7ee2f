"""Builds untrained students as they would ship, and measures them side by side on the target.

An untrained student has the operators, shapes and types of the trained one, and nothing in it depends on the values of the
weights: it takes as long. It is exported, quantised with real images, compiled and bundled by the functions that make a
shipped bundle, and measured by the workers of `edgebert.bench`: one process per artefact, blocks interleaved.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebert._progress import Progress
from edgebert.bench.analysis import failed_queries
from edgebert.bench.arms import ArmRequest
from edgebert.bench.environment.computer import other_busy_ratio
from edgebert.bench.options import BenchOptions
from edgebert.bench.recorder import FLAG_ERROR, FLAG_REWARM, FLAG_WARMUP
from edgebert.bench.selection import Selection
from edgebert.bench.session import Session, open_arms, run_session
from edgebert.bench.statistics.blocks import hierarchical_bootstrap
from edgebert.bench.statistics.formulas import percentile
from edgebert.bench.worker_process import WORKER_COMMAND, WorkerProcess
from edgebert.bundle import write_bundle
from edgebert.calibration.calibrate import unsearched_int8_graph
from edgebert.calibration.images import calibration_examples, check_images_are_real, images_of, spread_over_classes
from edgebert.card import ModelCard, Provenance
from edgebert.data import Dataset
from edgebert.decisions import decisions, said_names
from edgebert.errors import EdgebertError
from edgebert.examples import MIN_EXAMPLES, ExampleImage, example_images
from edgebert.export.forms import form_from_graph
from edgebert.export.graph import ExportOptions, graph_from_checkpoint
from edgebert.export.metadata import bytes_of_model, parse_graph, with_metadata, without_examples
from edgebert.export.place import HERE, Place
from edgebert.export.rules import check_int8_graph
from edgebert.manifest import GRAPH_FILE, BundleForm, Canary, Manifest, Precision, engine_name, tolerance_of
from edgebert.models.checkpoint import new_model, parameter_count, save_checkpoint
from edgebert.preprocess import Preprocessing, load_batch
from edgebert.runtime.pipeline import tensor_sha256
from edgebert.runtime.runner import InputSpec
from edgebert.target import Target

_log = logging.getLogger("edgebert")

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")

# Enough for a p90 with an interval (five blocks; bench.md, section 4.2), and short: ten artefacts share a round.
_QUERIES, _SECONDS, _MAX_SECONDS, _MAX_WARMUP_SECONDS = 200, 1.6, 6.0, 1.2
MAX_OTHER_BUSY = 0.10
"""Share of the processors from which other programs are spoken of, as in `edgebert bench`."""

_ANY_THRESHOLD = 0.5  # of a multi-label student: untrained, it has none that was chosen
_NO_LIMIT = 1_000_000  # of flips: an untrained student decides by a hair, and what it decides is of no account


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """End to end from a decoded image, batch 1, in milliseconds.

    Attributes:
        p50: median.
        p90: what the budget is held against.
        p90_low: lower end of the 95 % interval of p90.
        p90_high: upper end.
        queries: that count.
        size_bytes: of the files that the runtime reads.
    """

    p50: float
    p90: float
    p90_low: float
    p90_high: float
    queries: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A shape with the latency of each precision, all from one interleaved run.

    Attributes:
        shape: its name.
        parameters: number of weights.
        latencies: precision -> figures.
        other_busy: share of the processors that other programs used meanwhile; None where that cannot be read.
    """

    shape: str
    parameters: int
    latencies: dict[Precision, Latency]
    other_busy: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every candidate of a search is built and measured with.

    Attributes:
        dataset: its training images calibrate and its validation images are timed; its test split is not touched.
        target: where it is measured.
        preprocessing: of every candidate.
        calibration_images: how many.
        timed_images: how many different ones.
        threads: of the backend.
        seed: of the untrained weights, the images and the blocks.
    """

    dataset: Dataset
    target: Target
    preprocessing: Preprocessing
    calibration_images: int
    timed_images: int
    threads: int
    seed: int


MeasureArms = Callable[[Sequence[ArmRequest], Selection, BenchOptions], "tuple[dict[str, Latency], float | None]"]
"""Arms, images and options -> the latency of each arm by name, and the share of the processors that other programs used."""


class Workshop:
    """Builds each shape once, and measures any of them together.

    Args:
        setting: see `Setting`.
        folder: temporary; bundles and samples lie there.
        worker_command: what runs an arm; tests give their own.
        place: the computer that the candidates are for, and answered on.
        measure_arms: measures there; with worker processes of this computer if None.
    """

    def __init__(
        self,
        setting: Setting,
        folder: Path,
        worker_command: Sequence[str] = WORKER_COMMAND,
        place: Place = HERE,
        measure_arms: MeasureArms | None = None,
    ) -> None:
        self._place, self._measure_arms = place, measure_arms
        dataset = setting.dataset
        timed = dataset.val if len(dataset.val) >= MIN_EXAMPLES else dataset.train
        chosen = calibration_examples(dataset, setting.calibration_images)
        self._setting, self._folder, self._worker_command = setting, folder, worker_command
        self._timed = spread_over_classes(timed, setting.timed_images)
        check_images_are_real([example.load() for example in chosen[:64]], name=dataset.name)
        self._calibration = np.stack(list(images_of(chosen, setting.preprocessing)()))
        self._examples = example_images(timed, dataset.class_names, setting.preprocessing, MIN_EXAMPLES)
        self._parameters: dict[str, int] = {}

    @property
    def counts(self) -> tuple[int, int]:
        """How many images calibrate, and how many are timed."""
        return len(self._calibration), len(self._timed)

    def measure(self, shapes: Sequence[str]) -> list[Timing]:
        """Build what is not built yet, and measure all of it in one interleaved run.

        Args:
            shapes: names of `edgebert.models.student`, each once.

        Raises:
            UsageError: no such shape.
            UnavailableError: the target cannot run here.
            EdgebertError: a candidate cannot be built, or its queries failed.
        """
        with Progress("build", len(shapes)) as progress:
            for shape in shapes:
                self._build_once(shape)
                progress.advance(note=shape)
        requests = [
            ArmRequest(
                name=f"{shape} {precision}",
                path=self._path(shape, precision),
                kind="bundle",
                target=self._setting.target.name,
            )
            for shape in shapes
            for precision in PRECISIONS
        ]
        latencies, other_busy = self._latencies(requests)
        return [
            Timing(
                shape=shape,
                parameters=self._parameters[shape],
                latencies={precision: latencies[f"{shape} {precision}"] for precision in PRECISIONS},
                other_busy=other_busy,
            )
            for shape in shapes
        ]

    def bundle(self, shape: str, precision: Precision) -> Path:
        """Return the bundle of a shape, which is built if it is not yet; it lies in the workshop's folder."""
        self._build_once(shape)
        return self._path(shape, precision)

    def _build_once(self, shape: str) -> None:
        if shape not in self._parameters:
            _log.info("build `%s`: untrained, exported, quantised, compiled", shape)
            self._parameters[shape] = self._build(shape)

    def _path(self, shape: str, precision: Precision) -> Path:
        return self._folder / f"{shape}.{precision}.edgebert"

    def _build(self, shape: str) -> int:
        """Write the two bundles of a shape and return its parameters."""
        setting = self._setting
        several = setting.dataset.task == "multi-label"
        model = new_model(
            shape, preprocessing=setting.preprocessing, class_names=setting.dataset.class_names, seed=setting.seed
        )
        card = ModelCard(
            class_names=setting.dataset.class_names,
            preprocessing=setting.preprocessing,
            provenance=Provenance(stage="size", options={"student": shape, "seed": setting.seed, "trained": False}),
            task="multi-label" if several else "single-label",
            thresholds=(_ANY_THRESHOLD,) * len(setting.dataset.class_names) if several else (),
        )
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            checkpoint, graph = Path(name) / "checkpoint", Path(name) / "model.onnx"
            checkpoint.mkdir()
            save_checkpoint(checkpoint, model, card, self._examples)
            graph_from_checkpoint(checkpoint, graph, ExportOptions(max_flips=_NO_LIMIT))
            content = graph.read_bytes()
        graphs: dict[Precision, bytes] = {"fp32": content, "int8": _quantised(content, card, self._calibration)}
        for precision, portable in graphs.items():
            path = self._path(shape, precision)
            write_candidate_bundle(path, portable, card, precision, setting.target, self._examples, self._place)
        return parameter_count(model)

    def _latencies(self, requests: Sequence[ArmRequest]) -> tuple[dict[str, Latency], float | None]:
        setting, dataset = self._setting, self._setting.dataset
        order = np.arange(len(dataset.class_names), dtype=np.int64)
        selection = Selection(
            examples=self._timed,
            class_names=dataset.class_names,
            orders=(order,) * len(requests),
            excluded=(),
            name=dataset.name,
            skipped=len(dataset.skipped),
            task="multi-label" if dataset.task == "multi-label" else "single-label",
        )
        options = BenchOptions(
            data=dataset.name,
            launches=1,
            queries=_QUERIES,
            seconds=_SECONDS,
            max_seconds=_MAX_SECONDS,
            max_warmup_seconds=_MAX_WARMUP_SECONDS,
            images=len(self._timed),
            threads=setting.threads,
            seed=setting.seed % 2**32,
        )
        if self._measure_arms is not None:
            return self._measure_arms(requests, selection, options)
        return measured_latencies(requests, selection, options, self._worker_command)


def measured_latencies(
    requests: Sequence[ArmRequest],
    selection: Selection,
    options: BenchOptions,
    worker_command: Sequence[str] = WORKER_COMMAND,
) -> tuple[dict[str, Latency], float | None]:
    """Measure bundles in one run: a worker process each, blocks interleaved.

    Args:
        requests: at least one; with a target.
        selection: the images; all are timed.
        options: `threads` must be set.
        worker_command: what runs an arm.

    Returns:
        name of the arm -> its latency; and the share of the processors that other programs used, None where that is unknown.

    Raises:
        EdgebertError: a worker failed, or a query did.
    """
    with tempfile.TemporaryDirectory(prefix="edgebert-size-") as folder:
        workers = [WorkerProcess(request.name, options.threads, worker_command) for request in requests]
        try:
            opened = open_arms(workers, requests, threads=options.threads, default_target=requests[0].target or "cpu")
            session = run_session(opened, selection, Path(folder), options)
        except BaseException:
            for worker in workers:
                worker.kill()
            raise
        finally:
            for worker in workers:
                worker.close()
    return latencies_of_session(session, [request.name for request in requests])


def latencies_of_session(session: Session, names: Sequence[str]) -> tuple[dict[str, Latency], float | None]:
    """Return what `measured_latencies` does, of a session that was measured.

    Raises:
        EdgebertError: a query failed.
    """
    (before, after), *_ = session.activities
    other_busy = other_busy_ratio(before, after, session.own_cpu_s)
    if other_busy is not None and other_busy > MAX_OTHER_BUSY:
        _log.warning(
            "other programs used %.0f %% of the processors while timing: latencies are too high", 100 * other_busy
        )
    return {name: _latency(session, index, name) for index, name in enumerate(names)}, other_busy


def write_candidate_bundle(
    path: Path,
    graph: bytes,
    card: ModelCard,
    precision: Precision,
    target: Target,
    examples: Sequence[ExampleImage],
    place: Place = HERE,
) -> None:
    """Compile a graph for a target and write it as a bundle, which holds what a shipped one holds.

    `edgebert.export.compile` does more: it refuses a graph on which two engines decide differently, which an untrained one
    does by chance. Here only the target's own engine is asked.

    Args:
        path: the folder to make.
        graph: an ONNX file of edgebert's.
        card: of the graph.
        precision: of the graph.
        target: one that can run here.
        examples: at least three; they become the canaries.
        place: the computer that it is for, built by and answered on.
    """
    form = form_from_graph(graph, target, place.builder)
    tensors = load_batch([example.png for example in examples], card.preprocessing)
    spec = InputSpec(height=card.preprocessing.height, width=card.preprocessing.width, classes=len(card.class_names))
    rows = place.answers(form.backend, form.device, form.files, form.disabled_optimizers, spec, tensors)
    if not np.isfinite(rows).all():
        raise EdgebertError(f"`{path.name}` answers with numbers that are not finite", expected="finite logits")
    engine = engine_name(form.backend, form.device)
    canaries = tuple(
        _canary(number, tensor, row, engine, precision, form.device, card)
        for number, (tensor, row) in enumerate(zip(tensors, rows, strict=True))
    )
    compiled = {f"forms/{target.name}/{name}": content for name, content in form.files.items()}
    pngs = {canary.file: example.png for canary, example in zip(canaries, examples, strict=True)}
    files = {GRAPH_FILE: without_examples(graph), **compiled, **pngs}
    manifest = Manifest(
        name=path.name.removesuffix(".edgebert"),
        card=card,
        precision=precision,
        made_from=hashlib.sha256(graph).hexdigest(),
        forms=(
            BundleForm(
                target=target.name,
                backend=form.backend,
                device=form.device,
                files=tuple(compiled),
                disabled_optimizers=form.disabled_optimizers,
                versions=form.versions,
                notes=form.notes,
                weight_bits=8 if precision == "int8" else None,
            ),
        ),
        canaries=canaries,
        preprocessing_sha256=card.preprocessing.sha256(),
        sizes={name: len(content) for name, content in files.items()},
    )
    path.mkdir(parents=True)
    write_bundle(path, manifest, files)


def _canary(
    number: int,
    tensor: NDArray[np.uint8],
    row: NDArray[np.float32],
    engine: str,
    precision: Precision,
    device: str,
    card: ModelCard,
) -> Canary:
    answer = tuple(float(value) for value in row)
    return Canary(
        file=f"canary/{number}.png",
        labels=said_names(decisions(row[np.newaxis], card.thresholds)[0], card.class_names),
        input_sha256=tensor_sha256(tensor[np.newaxis]),
        logits={engine: answer},
        tolerance={engine: tolerance_of(answer, precision, device)},
    )


def _quantised(graph: bytes, card: ModelCard, calibration: NDArray[np.uint8]) -> bytes:
    """Return the INT8 graph in the placement that `edgebert quantize` gives it; nothing is searched, since ranges do not change the latency."""
    model = parse_graph(graph)
    quantised = unsearched_int8_graph(model, calibration)
    check_int8_graph(quantised)
    provenance = Provenance(
        stage="quantize",
        made_from={"graph": hashlib.sha256(graph).hexdigest()},
        options={"images": len(calibration)},
        source=card.provenance,
    )
    return bytes_of_model(with_metadata(quantised, replace(card, provenance=provenance), ()))


def _latency(session: Session, arm: int, name: str) -> Latency:
    failed = failed_queries(session.samples, arm)
    if failed:
        raise EdgebertError(
            f"{failed} queries of `{name}` failed; the first: {session.arms[arm].first_error}",
            expected="an answer to each",
        )
    rows = session.samples.queries_of(arm)
    counted = (rows["flags"] & (FLAG_WARMUP | FLAG_REWARM | FLAG_ERROR)) == 0
    times, blocks = (rows["t_done"] - rows["t_issue"])[counted], rows["block"][counted]
    (interval,) = hierarchical_bootstrap([[times[blocks == block] for block in np.unique(blocks)]], (0.9,), seed=0)
    low, high = interval or (float(times.min()), float(times.max()))  # fewer than five blocks: all that is known
    return Latency(
        p50=percentile(times, 0.5) / 1e6,
        p90=percentile(times, 0.9) / 1e6,
        p90_low=low / 1e6,
        p90_high=high / 1e6,
        queries=int(times.size),
        size_bytes=sum(session.arms[arm].loaded.files.values()),
    )
