"""Our `infer` against the latency of OpenVINO's benchmark_app, on the same IR with the same settings.

    python benchmarks/against_benchmark_app.py digits.onnx fashion.onnx --json against_benchmark_app.json

A MODEL is a bundle with a form for `intel-cpu`, or an `.onnx` graph, which is compiled first. benchmark_app gets the very
`model.xml` and `model.bin` that our runner reads, and `-api sync -hint none -nstreams 1 -nthreads N -pin NO -infer_precision f32`
at batch 1: what our runner sets. What both sides say they really use (threads, streams, pinning, precision) must be equal.

Must hold: the medians over launches of our `infer` p50 and of its median latency differ by at most max(3 %, 30 µs). What the number
does not say: both regions are not the same. benchmark_app's time is taken inside the plugin, and with static shapes it fills the
input once; ours is taken in Python, copies the image into the input and the logits out, and checks them. Two more rows show what
reused inputs change, without a bound: benchmark_app with distinct inputs (`-inference_only false`), and ours with one image.

Each launch is a fresh process. Duration: about (5 + SECONDS) * 4 * LAUNCHES seconds for each model.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _peers import (
    MAX_WARMUP_NS,
    TARGET,
    Bound,
    Comparison,
    blocks_of,
    bundle_of,
    images_of,
    launch_order,
    model_paths,
    peer_parser,
    run_comparison,
)

from edgebert._json import JsonObject
from edgebert.bench.images import write_images
from edgebert.bench.statistics.formulas import percentile
from edgebert.bench.worker_process import WorkerProcess, worker_environment
from edgebert.bundle import read_bundle
from edgebert.errors import EdgebertError
from edgebert.extras import require
from edgebert.preprocess import RgbImage, load_image
from edgebert.runtime.choice import choices_for

BOUND = Bound(relative=0.03, absolute_ns=30_000)
MEASURERS = ("edgebert", "benchmark_app", "benchmark_app, distinct inputs", "edgebert, one image")
JUDGED = "benchmark_app"

# The tool's own entry point, less the event that `import openvino` otherwise sends to its makers.
_APP = "from edgebert.extras import require; require('openvino.tools.benchmark.main').main()"
_TIMEOUT_S = 600.0

# Our runner's name of a property -> benchmark_app's, as its step 8 prints it.
SETTINGS: Mapping[str, str] = {
    "threads": "INFERENCE_NUM_THREADS",
    "streams": "NUM_STREAMS",
    "precision": "INFERENCE_PRECISION_HINT",
    "pinning": "ENABLE_CPU_PINNING",
}
_TYPE_NAMES = {"<Type: 'float32'>": "f32", "<Type: 'bfloat16'>": "bf16", "<Type: 'float16'>": "f16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What one launch gave.

    Attributes:
        median_ns: median time of an inference.
        count: inferences it is the median of.
        settings: keys of `SETTINGS` -> what the runtime really used.
    """

    median_ns: float
    count: int
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model as both sides get it.

    Attributes:
        name: for the table.
        bundle: what our worker opens.
        model: the file that our runner compiles, on disk: `model.xml` with its weights beside it.
        images: uint8 (height, width, 3) each.
        inputs: folder of the same images at the model's size, an `.npy` file each.
    """

    name: str
    bundle: Path
    model: Path
    images: Sequence[RgbImage]
    inputs: Path


def main(arguments: argparse.Namespace) -> list[Comparison]:
    """Measure every model; the comparisons with reused inputs the other way round are shown and not judged."""
    require("openvino")
    comparisons: list[Comparison] = []
    for path in model_paths(arguments):
        with tempfile.TemporaryDirectory(prefix="against-benchmark-app-") as name:
            subject = subject_of(path, Path(name), arguments)
            launches = measure(subject, arguments)
        check_settings(subject.name, launches)
        ours, *others = [tuple(launch.median_ns for launch in each) for each in launches]
        for peer, theirs in zip(MEASURERS[1:], others, strict=True):
            bound = BOUND if peer == JUDGED else None
            comparisons.append(
                Comparison(model=subject.name, figure="infer p50", peer=peer, ours=ours, theirs=theirs, bound=bound)
            )
    return comparisons


def subject_of(path: Path, folder: Path, arguments: argparse.Namespace) -> Subject:
    """Write the IR and the inputs of one model under `folder`."""
    bundle = bundle_of(path, folder)
    read = read_bundle(bundle)
    card = read.manifest.card
    choice = choices_for(read, TARGET, arguments.threads)[0]
    for name, content in choice.source.files.items():
        (folder / name).write_bytes(content)
    images = images_of(card, arguments.data, arguments.images, seed=arguments.seed)
    inputs = folder / "inputs"
    inputs.mkdir()
    for number, image in enumerate(images):
        np.save(inputs / f"{number:06}.npy", load_image(image, card.preprocessing)[np.newaxis])
    model = folder / next(name for name in ("model.xml", "model.onnx") if name in choice.source.files)
    return Subject(name=path.stem, bundle=bundle, model=model, images=images, inputs=inputs)


def measure(subject: Subject, arguments: argparse.Namespace) -> list[list[Launch]]:
    """Return the launches of each of `MEASURERS`, run in turn; prints them as they end."""
    seconds, threads = arguments.seconds, arguments.threads
    measurers: tuple[Callable[[], Launch], ...] = (
        lambda: launch_edgebert(subject.bundle, subject.images, threads=threads, seconds=seconds),
        lambda: launch_app(app_arguments(subject, threads=threads, seconds=seconds), threads=threads),
        lambda: launch_app(app_arguments(subject, threads=threads, seconds=seconds, distinct=True), threads=threads),
        lambda: launch_edgebert(subject.bundle, subject.images[:1], threads=threads, seconds=seconds),
    )
    launches: list[list[Launch]] = [[] for _ in measurers]
    for index in launch_order(len(measurers), arguments.launches, seed=arguments.seed):
        launch = measurers[index]()
        launches[index].append(launch)
        print(
            f"{subject.name}, {MEASURERS[index]}: {launch.median_ns / 1e3:.2f} µs, {launch.count} inferences",
            flush=True,
        )
    return launches


def launch_edgebert(
    bundle: Path, images: Sequence[RgbImage], *, threads: int, seconds: int, max_warmup_ns: int = MAX_WARMUP_NS
) -> Launch:
    """Time `infer` in a worker of the harness: its warm-up, its blocks, its recorder."""
    with tempfile.TemporaryDirectory(prefix="edgebert-launch-") as name, WorkerProcess("edgebert", threads) as worker:
        folder = Path(name)
        request: JsonObject = {"path": str(bundle), "kind": "bundle", "target": TARGET, "threads": threads, "cpus": []}
        worker.ask("load", request, timeout_s=_TIMEOUT_S)
        worker.ask("images", write_images(folder / "images", images), timeout_s=_TIMEOUT_S)
        warm = worker.ask("warm", {"max_ns": max_warmup_ns}, timeout_s=_TIMEOUT_S)
        blocks, queries = blocks_of(warm.integer("median_ns"), seconds)
        for index in range(blocks):
            worker.ask("block", {"index": index, "queries": queries}, timeout_s=_TIMEOUT_S)
        finished = worker.ask("finish", {"file": str(folder / "samples.npz"), "cost": False}, timeout_s=_TIMEOUT_S)
        if (error := finished.optional_text("first_error")) is not None:
            raise EdgebertError(f"a query failed: {error}", expected="an answer to every query")
        properties = finished.fields("properties")
        with np.load(folder / "samples.npz", allow_pickle=False) as archive:
            timed = archive["flags"] == 0  # neither warm-up nor the first queries of a block
            infer = (archive["t_inf_end"] - archive["t_pre_end"])[timed]
    settings = {each: properties.text(each) for each in SETTINGS}
    return Launch(median_ns=float(percentile(infer, 0.5)), count=len(infer), settings=settings)


def app_arguments(subject: Subject, *, threads: int, seconds: int, distinct: bool = False) -> list[str]:
    """Return benchmark_app's arguments: the latency mode with our runner's settings, spelled out.

    It refuses `-nthreads` together with `-hint latency`; `-hint none -nstreams 1` compiles the same (its step 8 says
    `PERFORMANCE_HINT: LATENCY`).
    """
    height, width = np.load(next(subject.inputs.glob("*.npy"))).shape[1:3]
    plain = ["-m", str(subject.model), "-d", "CPU", "-shape", f"[1,{height},{width},3]", "-t", str(seconds)]
    mode = ["-api", "sync", "-hint", "none", "-nstreams", "1", "-nthreads", str(threads), "-pin", "NO"]
    inputs = ["-i", str(subject.inputs), "-inference_only", "false"] if distinct else []
    return [*plain, *mode, "-infer_precision", "f32", *inputs]


def launch_app(arguments: Sequence[str], *, threads: int) -> Launch:
    """Run benchmark_app once.

    Raises:
        EdgebertError: it failed.
    """
    command = [sys.executable, "-c", _APP, *arguments]
    environment = dict(worker_environment(threads))
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, errors="replace"
    )
    if done.returncode != 0:
        raise EdgebertError(
            f"benchmark_app ended with exit code {done.returncode}",
            expected=f"0; the end of what it said:\n{(done.stdout + done.stderr)[-2_000:]}",
        )
    return launch_of_output(done.stdout)


def launch_of_output(text: str) -> Launch:
    """Read what benchmark_app prints.

    Its JSON report rounds to 0.01 ms; on the console a model below 1 ms has microseconds with two decimals.

    Raises:
        EdgebertError: the figures are not there.
    """
    median = re.search(r"^\[ INFO \]\s+Median:\s+([\d.]+) (us|ms)$", text, re.MULTILINE)
    count = re.search(r"^\[ INFO \] Count:\s+(\d+) iterations$", text, re.MULTILINE)
    if median is None or count is None:
        raise EdgebertError(
            f"benchmark_app's output has no median or no count: {text[-500:]!r}",
            expected="`Median: 155.90 us` and `Count: 17270 iterations`, as version 2026.4.1 prints them",
        )
    found: dict[str, str] = dict(re.findall(r"^\[ INFO \]\s+([A-Z_]+): (.+)$", text, re.MULTILINE))
    settings = {ours: found[theirs] for ours, theirs in SETTINGS.items() if theirs in found}
    return Launch(
        median_ns=float(median[1]) * {"us": 1e3, "ms": 1e6}[median[2]],
        count=int(count[1]),
        settings={name: _TYPE_NAMES.get(value) or value for name, value in settings.items()},
    )


def check_settings(model: str, launches: Sequence[Sequence[Launch]]) -> None:
    """Raise where two launches did not run with the same settings: their times would not be comparable."""
    first = launches[0][0].settings
    for name, each in zip(MEASURERS, launches, strict=True):
        for launch in each:
            if launch.settings != first:
                raise EdgebertError(
                    f"{name} ran `{model}` with {dict(launch.settings)}",
                    expected=f"{dict(first)}, as {MEASURERS[0]} did",
                )


if __name__ == "__main__":
    sys.exit(run_comparison(main, peer_parser(__doc__).parse_args(), ("edgebert", "openvino", "numpy")))
