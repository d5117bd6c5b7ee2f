"""The process that runs one arm: `python -m edgebert.bench.worker`, spoken to through stdin and stdout.

    load {path, kind, target, threads}    -> loaded {target, backend, device, card, …}
    classify {file, heights, widths, answers}      -> classified {predictions, first_error}; a multi-label arm writes what
                                              it said and how sure it was into the file `answers`
    images {file, heights, widths}                 -> ready {bytes}
    warm {max_ns}                         -> warmed {converged, queries, ns, median_ns, mean_ns, timer_overhead_ns}
    block {index, queries}                -> done
    finish {file}                         -> finished {peak, properties, input_sensitivity, first_error}

One runtime per process: two in one process disturb each other (bench.md, section 3). A worker that is not asked
anything blocks in a read. It ends when its stdin closes, or, on Linux, at once when its parent dies.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from edgebert._json import Fields, JsonObject
from edgebert.bench.images import read_images
from edgebert.bench.loading import LoadedArm, LoadRequest, load_arm
from edgebert.bench.protocol import error_content, read_message, write_message
from edgebert.bench.recorder import NO_CLASS, Recorder, timer_overhead_ns
from edgebert.bench.samples import write_columns
from edgebert.bench.schema import ArtefactKind
from edgebert.bench.several import answer_code, answer_columns
from edgebert.errors import EdgebertError
from edgebert.runtime.pipeline import Prediction

Loader = Callable[[LoadRequest, Callable[[], None]], LoadedArm]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SENSITIVITY_PAIRS = 64
_KINDS: Mapping[str, ArtefactKind] = {"bundle": "bundle", "graph": "graph", "checkpoint": "checkpoint"}


class Worker:
    """Answers the messages of one arm.

    Args:
        load: opens an artefact; `edgebert.bench.loading.load_arm` but in tests.
    """

    def __init__(self, load: Loader) -> None:
        self._load = load
        self._arm: LoadedArm | None = None
        self._recorder: Recorder | None = None
        self._answers: Mapping[str, tuple[str, Callable[[Fields], JsonObject]]] = {
            "load": ("loaded", self._on_load),
            "classify": ("classified", self._on_classify),
            "images": ("ready", self._on_images),
            "warm": ("warmed", self._on_warm),
            "block": ("done", self._on_block),
            "finish": ("finished", self._on_finish),
        }

    def serve(self, requests: IO[bytes], answers: IO[bytes]) -> None:
        """Answer until the other side closes, or an error of edgebert's was told."""
        while (request := read_message(requests)) is not None:
            seq = request.integer("seq")
            kind, answer = self._answers[request.text("type")]
            try:
                content = answer(request)
            except EdgebertError as error:
                write_message(answers, "error", seq, error_content(error))
                return
            write_message(answers, kind, seq, content)

    def _on_load(self, request: Fields) -> JsonObject:
        memory: list[int | None] = []
        load_request = LoadRequest(
            path=request.text("path"),
            kind=_KINDS[request.text("kind")],
            target=request.optional_text("target"),
            threads=request.integer("threads"),
        )
        arm = self._arm = self._load(load_request, lambda: memory.append(_resident_bytes("VmRSS")))
        return {
            "target": arm.target,
            "backend": arm.backend,
            "device": arm.device,
            "files": dict(arm.files),
            "precision": arm.precision,
            "source_model": arm.source_model,
            "bundle_digest": arm.bundle_digest,
            "import_ns": arm.import_ns,
            "load_ns": arm.load_ns,
            "rss_before_load": memory[0] if memory else None,
            "rss_after_load": _resident_bytes("VmRSS"),
            "card": arm.pipeline.card.to_json(),
        }

    def _on_classify(self, request: Fields) -> JsonObject:
        pipeline, first_error = self._loaded().pipeline, None
        predictions: list[Prediction | None] = []
        for image in read_images(request):
            try:
                # One image at a time, as timed: a larger batch may round otherwise.
                predictions.append(pipeline.post(pipeline.infer(pipeline.pre(image)))[0])
            except Exception as error:  # noqa: BLE001  # whatever a backend raises: it is counted and makes the arm invalid
                first_error = first_error or f"{type(error).__name__}: {error}"
                predictions.append(None)
        if pipeline.card.task == "multi-label":
            write_columns(Path(request.text("answers")), answer_columns(predictions, pipeline.card))
        code = answer_code(pipeline.card)
        return {
            "predictions": [NO_CLASS if prediction is None else code(prediction) for prediction in predictions],
            "first_error": first_error,
        }

    def _on_images(self, request: Fields) -> JsonObject:
        images = read_images(request)
        self._recorder = Recorder(self._loaded().pipeline, images)
        return {"bytes": sum(image.nbytes for image in images)}

    def _on_warm(self, request: Fields) -> JsonObject:
        recorder = self._recording()
        warmup = recorder.warm_up(request.integer("max_ns"))
        return {
            "converged": warmup.converged,
            "queries": warmup.queries,
            "ns": warmup.ns,
            "median_ns": warmup.median_ns,
            "mean_ns": warmup.mean_ns,
            "timer_overhead_ns": timer_overhead_ns(),
        }

    def _on_block(self, request: Fields) -> JsonObject:
        self._recording().block(request.integer("index"), request.integer("queries"))
        return {}

    def _on_finish(self, request: Fields) -> JsonObject:
        recorder = self._recording()
        peak = _resident_bytes("VmHWM")  # before the check below and the copies of the columns add to it
        write_columns(Path(request.text("file")), recorder.columns())
        sensitivity = None if recorder.first_error else recorder.input_sensitivity(_SENSITIVITY_PAIRS)
        return {
            "peak": peak,
            "properties": dict(self._loaded().pipeline.runner.properties()),
            "input_sensitivity": sensitivity,
            "first_error": recorder.first_error,
        }

    def _loaded(self) -> LoadedArm:
        assert self._arm is not None, "`load` comes first"
        return self._arm

    def _recording(self) -> Recorder:
        assert self._recorder is not None, "`images` comes first"
        return self._recorder


def run_worker(load: Loader) -> None:
    """Serve stdin and stdout of this process; whatever else prints to stdout goes to stderr."""
    die_with_parent()
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    Worker(load).serve(requests, answers)
    # Not through the destructors of native libraries: they have nothing to save, and one that hangs would be waited for.
    sys.stderr.flush()
    os._exit(0)


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies (Linux), and leave Ctrl-C to the parent.

    A parent that died before this call has closed its end of stdin, so the first read ends the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _resident_bytes(name: str) -> int | None:
    """Return a field of /proc/self/status in bytes (proc(5)), or None where there is none."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


if __name__ == "__main__":
    run_worker(load_arm)
