"""Engines of the small graphs: running them, timing them, and refusing what was built elsewhere, through the runner that ships.

`run`, `timing` and `refusal` are tasks of the child. An engine's folder holds `engine.plan` and `engine.json`, as `build_engine` left it.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebert._json import Fields, JsonObject
from edgebert.errors import BadDataError, EdgebertError, RefusedError, UnavailableError
from edgebert.fingerprint import Fingerprint, gpu_facts, machine
from edgebert.jetson_check.reference import SPEC, ReferenceEngine, pictures
from edgebert.runtime.engine_manifest import ENGINE_FILE, PLAN_FILE, EngineManifest, engine_fingerprint
from edgebert.runtime.runner import ModelSource, RunnerOptions, open_runner
from edgebert.runtime.tensorrt_api import load_tensorrt
from edgebert.runtime.tensorrt_runner import DEVICE, TensorRtRunner

_WARM_UP_S = 0.3  # kernels are loaded when they are first used: 200 ms at least (tensorrt_jetson.md, section 9)
_TIMED_S = 1.0
_FEWEST, _MOST = 20, 400  # runs that are timed
_NO_ENGINE = b"no engine: whoever deserialises this is told so by TensorRT"


def run(request: Fields) -> JsonObject:
    """Run an engine on the pictures, one at a time, and return its answers as `logits`."""
    images = pictures()
    with _opened(request) as runner:
        rows = [runner.infer(images[at : at + 1])[0] for at in range(len(images))]
        told = runner.properties()
    graph = told["cuda_graph"]
    logits: NDArray[np.float32] = np.stack(rows)  # (images, classes)
    if not np.isfinite(logits).all():
        raise EdgebertError(
            "the engine answers with NaN or infinity",
            expected="numbers: FP16 holds every value of this network",
            hint="attach the file of this check to a report",
        )
    return {
        "found": f"{len(images)} images, {told['form']}, memory {told['memory']}, CUDA graph {graph}",
        "facts": {name: str(value) for name, value in told.items()},
        "logits": [[float(value) for value in row] for row in logits],
    }


def timing(request: Fields) -> JsonObject:
    """Time an engine for about a second each way: by CUDA's events, and by the clock around `infer`.

    Both are a look and no measurement: the board is not prepared, and other programs run. `edgebert bench` measures.
    """
    image = pictures()[:1]
    with _opened(request) as runner:
        count = _count(runner, image)
        device_ms = runner.device_times_ms(image, count)
        wall_ms = [_timed_ms(runner, image) for _ in range(count)]
    if not all(math.isfinite(value) and value >= 0 for value in device_ms) or max(device_ms) == 0:
        raise EdgebertError(
            f"CUDA's events say that {count} runs took {min(device_ms):g} to {max(device_ms):g} ms",
            expected="times above 0",
            hint="attach the file of this check to a report",
        )
    facts: JsonObject = {"runs": count, **_percentiles("gpu", device_ms), **_percentiles("wall", wall_ms)}
    return {
        "found": f"p50 {np.median(device_ms):.3f} ms on the GPU, {np.median(wall_ms):.3f} ms around it, of {count} runs",
        "facts": facts,
    }


def refusal(_request: Fields) -> JsonObject:
    """Open what must not be opened: an engine of another GPU, and one that was changed. Neither may reach TensorRT.

    Raises:
        EdgebertError: one was not refused, or it was deserialised to find out.
    """
    trt = load_tensorrt()
    fingerprint = engine_fingerprint(gpu_facts(), tensorrt=str(trt.__version__), machine=machine())
    foreign = replace(fingerprint, multiprocessors=(fingerprint.multiprocessors or 0) + 1)
    said = _refused(
        _manifest(_NO_ENGINE, foreign),
        UnavailableError,
        "the engine does not fit",
        "an engine that was built on another GPU",
    )
    _refused(
        _manifest(b"another", fingerprint), RefusedError, f"`{PLAN_FILE}` has SHA-256", "an engine that was changed"
    )
    return {"found": "an engine of another GPU and a changed one, neither deserialised", "facts": {"said": said}}


def difference(engine: ReferenceEngine, logits: NDArray[np.float32]) -> tuple[str, JsonObject, EdgebertError | None]:
    """Compare float32 (8, 10) with ONNX Runtime's answers: in words, as facts, and the error where they differ too much."""
    apart = np.abs(logits - engine.logits)
    largest, scale = float(apart.max()), float(np.abs(engine.logits).max())
    others = int(np.count_nonzero(logits.argmax(axis=1) != engine.logits.argmax(axis=1)))
    found = f"differs by {largest:.2g} at most, allowed {engine.allowed:.2g}; |logit| up to {scale:.2g}; {others} other classes"
    facts: JsonObject = {
        "largest_difference": largest,
        "mean_difference": float(apart.mean()),
        "allowed": engine.allowed,
        "control": engine.control,
        "other classes": others,
        "logits": [round(float(value), 5) for value in logits.ravel()],
    }
    if largest <= engine.allowed:
        return found, facts, None
    error = EdgebertError(
        f"the engine's logits differ from ONNX Runtime's by {largest:.2g}",
        expected=f"at most {engine.allowed:.2g}, ten times what rounding to FP16 moves them",
        hint="attach the file of this check to a report; until then hold engines against test images: edgebert bench",
    )
    return found, facts, error


def _opened(request: Fields) -> TensorRtRunner:
    folder = Path(request.text("folder"))
    files = {name: (folder / name).read_bytes() for name in (PLAN_FILE, ENGINE_FILE)}
    runner = open_runner("tensorrt", ModelSource(spec=SPEC, files=files), RunnerOptions(device=DEVICE))
    assert isinstance(runner, TensorRtRunner)
    return runner


def _count(runner: TensorRtRunner, image: NDArray[np.uint8]) -> int:
    """Warm up, and return how many runs take about a second."""
    runs, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < _WARM_UP_S or runs == 0:
        runner.infer(image)
        runs += 1
    return min(_MOST, max(_FEWEST, int(runs * _TIMED_S / spent)))


def _timed_ms(runner: TensorRtRunner, image: NDArray[np.uint8]) -> float:
    started = time.perf_counter_ns()
    runner.infer(image)
    return (time.perf_counter_ns() - started) / 1e6


def _percentiles(name: str, times_ms: Sequence[float]) -> JsonObject:
    return {f"{name}_p{share}_ms": round(float(np.percentile(times_ms, share)), 5) for share in (0, 50, 90, 99, 100)}


def _manifest(plan: bytes, fingerprint: Fingerprint) -> EngineManifest:
    return EngineManifest(
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        graph_sha256="0" * 64,
        typing="strong",
        precision="fp16",
        flags=(),
        min_batch=1,
        max_batch=1,
        fingerprint=fingerprint,
    )


def _refused(manifest: EngineManifest, kind: type[EdgebertError], begins: str, what: str) -> str:
    """Return what the runner says of what is no engine and must be refused by its manifest; TensorRT would say something else."""
    files = {PLAN_FILE: _NO_ENGINE, ENGINE_FILE: manifest.to_bytes()}
    try:
        TensorRtRunner.open(ModelSource(spec=SPEC, files=files), RunnerOptions(device=DEVICE)).close()
    except (kind, BadDataError) as error:
        if error.what.startswith(begins):
            return error.what
        raise _deserialised(what) from error
    raise _deserialised(what)


def _deserialised(what: str) -> EdgebertError:
    return EdgebertError(
        f"{what} was deserialised",
        expected="a refusal by `engine.json` alone: to deserialise an engine is to run it",
        hint="do not open engines of others with this version, and report this",
    )
