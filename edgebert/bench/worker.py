"""The process that runs one arm: `python -m edgebert.bench.worker`, spoken to through stdin and stdout.

    load {path, kind, target, threads, cpus}  -> loaded {target, backend, device, card, …}
    classify {file, heights, widths, answers} -> classified {predictions, confidences, first_error}; what an arm said in full goes
                                                 into the file `answers`: logits, or the sets and probabilities of several labels
    images {file, heights, widths}            -> ready {bytes}
    warm {max_ns}                             -> warmed {converged, queries, ns, median_ns, mean_ns, first_ns, rss}
    block {index, queries}                    -> done
    probe {scenario, point, …}                -> probed {…}; see `edgebert.bench.scenarios.probe`
    audit {order, queries, noise, columns}    -> audited {…}; see `edgebert.bench.audit.block`
    first {load's, images'}                   -> answered {…}; a cold start, see `edgebert.bench.scenarios.first_answer`
    finish {file, cost}                       -> finished {peak, properties, input_sensitivity, first_error, harness}

One runtime per process: two in one process disturb each other (bench.md, section 3). A worker that is not asked
anything blocks in a read. It ends when its stdin closes, or, on Linux, at once when its parent dies.
"""

from __future__ import annotations

from time import monotonic_ns

FIRST_LINE_NS = monotonic_ns()  # what is imported from here on is part of a cold start

from edgebert.bench.child import die_with_parent

if (
    __name__ == "__main__"
):  # what follows takes seconds to import on a busy device, and nobody may be waiting for it any more
    die_with_parent()

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgebert._json import Fields, JsonObject
from edgebert.bench.accuracy import logit_bits
from edgebert.bench.audit.block import audit_block
from edgebert.bench.codec import to_json
from edgebert.bench.environment.threads import affinity_text, thread_facts
from edgebert.bench.harness_cost import harness_cost
from edgebert.bench.images import read_images
from edgebert.bench.loading import LoadedArm, LoadRequest, load_arm
from edgebert.bench.out_of_memory import memory_exhausted, raise_out_of_memory
from edgebert.bench.protocol import error_content, read_message, write_message
from edgebert.bench.recorder import Recorder, answer_rows, resident_bytes
from edgebert.bench.samples import write_columns
from edgebert.bench.scenarios.first_answer import first_answer
from edgebert.bench.scenarios.probe import probe
from edgebert.bench.schema import ArtefactKind
from edgebert.bench.scratch import writing_to
from edgebert.bench.several import answer_code, answer_columns
from edgebert.errors import EdgebertError
from edgebert.runtime.pipeline import Prediction

Loader = Callable[[LoadRequest, Callable[[], None]], LoadedArm]

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
        self._affinity = ""
        self._answers: Mapping[str, tuple[str, Callable[[Fields], JsonObject]]] = {
            "load": ("loaded", self._on_load),
            "classify": ("classified", self._on_classify),
            "images": ("ready", self._on_images),
            "warm": ("warmed", self._on_warm),
            "block": ("done", self._on_block),
            "probe": ("probed", self._on_probe),
            "first": ("answered", self._on_first),
            "audit": ("audited", self._on_audit),
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
            except MemoryError as error:
                write_message(answers, "error", seq, error_content(memory_exhausted(request.text("type"), error)))
                return
            write_message(answers, kind, seq, content)

    def _on_load(self, request: Fields) -> JsonObject:
        memory: list[int | None] = []
        _keep_to(request.integers("cpus"))
        load_request = LoadRequest(
            path=request.text("path"),
            kind=_KINDS[request.text("kind")],
            target=request.optional_text("target"),
            threads=request.integer("threads"),
        )
        self._affinity = affinity_text()
        arm = self._arm = self._load(load_request, lambda: memory.append(resident_bytes()))
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
            "rss_after_load": resident_bytes(),
            "card": arm.pipeline.card.to_json(),
        }

    def _on_classify(self, request: Fields) -> JsonObject:
        pipeline, first_error = self._loaded().pipeline, None
        card = pipeline.card
        predictions: list[Prediction | None] = []
        rows: list[NDArray[np.float32]] = []
        for image in read_images(request):
            logits = np.full(len(card.class_names), np.nan, np.float32)
            try:
                # One image at a time, as timed: a larger batch may round otherwise.
                found = pipeline.infer(pipeline.pre(image))
                predictions.append(pipeline.post(found)[0])
                logits = found[0]
            except MemoryError:
                raise  # of the computer, not of this image
            except Exception as error:  # noqa: BLE001  # whatever a backend raises: it is counted and makes the arm invalid
                raise_out_of_memory(error)
                first_error = first_error or f"{type(error).__name__}: {error}"
                predictions.append(None)
            rows.append(logits)
        several, file = card.task == "multi-label", Path(request.text("answers"))
        said = answer_columns(predictions, card) if several else {"logit": logit_bits(np.array(rows, np.float32))}
        with writing_to(file.parent):
            write_columns(file, said)
        answers = answer_rows(predictions, answer_code(card))
        return {
            "predictions": answers[:, 0].tolist(),
            "confidences": answers[:, 1].tolist(),
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
            "first_ns": warmup.first_ns,
            "rss": resident_bytes(),
        }

    def _on_block(self, request: Fields) -> JsonObject:
        self._recording().block(request.integer("index"), request.integer("queries"))
        return {}

    def _on_probe(self, request: Fields) -> JsonObject:
        recorder = self._recording()
        rows, block, answer = probe(recorder.pipeline, recorder.images, request)
        recorder.keep(rows, block)
        recorder.first_error = recorder.first_error or Fields(answer, what="the answer").optional_text("first_error")
        return answer

    def _on_first(self, request: Fields) -> JsonObject:
        _keep_to(request.integers("cpus"))
        return first_answer(self._load, request, first_line_ns=FIRST_LINE_NS)

    def _on_audit(self, request: Fields) -> JsonObject:
        recorder = self._recording()
        return audit_block(recorder.pipeline, recorder.images, request)

    def _on_finish(self, request: Fields) -> JsonObject:
        recorder = self._recording()
        peak = resident_bytes("VmHWM")  # before the checks below and the copies of the columns add to it
        file = Path(request.text("file"))
        with writing_to(file.parent):
            write_columns(file, recorder.columns())
        sensitivity = None if recorder.first_error else recorder.input_sensitivity(_SENSITIVITY_PAIRS)
        return {
            "peak": peak,
            "properties": {**self._loaded().pipeline.runner.properties(), **thread_facts(self._affinity)},
            "input_sensitivity": sensitivity,
            "first_error": recorder.first_error,
            "harness": to_json(harness_cost()) if request.value.get("cost") is True else None,
        }

    def _loaded(self) -> LoadedArm:
        assert self._arm is not None, "`load` comes first"
        return self._arm

    def _recording(self) -> Recorder:
        assert self._recorder is not None, "`images` comes first"
        return self._recorder


def _keep_to(cpus: Sequence[int]) -> None:
    """Run on these processors only, before any backend counts them; on all that are allowed where none is named."""
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


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


if __name__ == "__main__":
    run_worker(load_arm)
