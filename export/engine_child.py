"""The process that builds one engine, or runs it for the first time: `python -m edgebert.export.engine_child`, started by
`edgebert.export.engine_process`.

    build {request, graph, plan, cache}  -> progress {share, phase} ..., then built {...} or error {...}
    run {spec, folder}                   -> ran {} or error {...}

A build takes the memory of the whole device and may be ended by the system for it, so it has a process of its own; and an engine that
crashes must not take with it the process that has another one. It ends when its stdin closes, within a second, whatever TensorRT is
doing.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np

from edgebert._json import Fields, JsonObject
from edgebert.bench.child import die_with_parent
from edgebert.bench.out_of_memory import memory_exhausted
from edgebert.bench.protocol import error_content, read_message, write_message
from edgebert.errors import BadDataError, CannotWriteError, EdgebertError, UnreadableError
from edgebert.export.engine_build import PlanRequest, build_plan
from edgebert.export.engine_cache import TimingCache
from edgebert.fingerprint import gpu_facts, machine
from edgebert.runtime.engine_manifest import ENGINE_FILE, PLAN_FILE, engine_fingerprint
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, open_runner
from edgebert.runtime.tensorrt_api import load_tensorrt


def answer(request: Fields, answers: IO[bytes]) -> None:
    """Do what was asked for, and write messages about it; every failure of our own kinds is one of them."""
    runs = request.text("type") == "run"
    try:
        kind, content = ("ran", _ran(request)) if runs else ("built", _built(request, answers))
    except EdgebertError as error:
        kind, content = "error", error_content(error)
    except MemoryError as error:
        kind, content = "error", error_content(memory_exhausted("run" if runs else "build", error))
    except OSError as error:
        reason = error.strerror or error
        cannot: EdgebertError = CannotWriteError(f"cannot write the engine: {reason}", hint="free space on the disk")
        if runs:
            cannot = UnreadableError(f"cannot read the engine: {reason}", hint="run the command again")
        kind, content = "error", error_content(cannot)
    write_message(answers, kind, request.integer("seq"), content)


def _built(request: Fields, answers: IO[bytes]) -> JsonObject:
    gpu = gpu_facts()
    trt = load_tensorrt(facts=gpu)
    version = str(trt.__version__)
    fingerprint = engine_fingerprint(gpu, tensorrt=version, machine=machine())  # before minutes of work, not after
    folder = request.optional_text("cache")
    cache, without = None, ""
    try:
        cache = None if folder is None else TimingCache.of(Path(folder), gpu, version)
    except (
        CannotWriteError
    ) as error:  # a home that cannot be written: the build takes longer the next time, and that is all
        cause = error.__cause__  # without the path: this goes into the bundle, which others read
        without = f"its folder cannot be made ({cause.strerror if isinstance(cause, OSError) else 'refused'})"
    sequence, lock = request.integer("seq"), threading.Lock()

    def share(done: float, phase: str) -> bool:
        try:
            with lock:
                write_message(answers, "progress", sequence, {"share": done, "phase": phase})
        except OSError:  # the parent has gone
            return False
        return True

    plan = build_plan(
        trt,
        Path(request.text("graph")),
        PlanRequest.from_fields(request.fields("request")),
        Path(request.text("plan")),
        cache,
        share,
    )
    facts: JsonObject = {"tensorrt": version, "fingerprint": fingerprint.to_json()}
    if without:
        facts = {**facts, "timing_cache": f"off: {without}"}
    return {**asdict(plan), "flags": list(plan.flags), "notes": list(plan.notes), **facts}


def _ran(request: Fields) -> JsonObject:
    """Open an engine as an application will, and ask it of one image."""
    folder, asked = Path(request.text("folder")), request.fields("spec")
    spec = InputSpec(height=asked.integer("height"), width=asked.integer("width"), classes=asked.integer("classes"))
    files = {name: (folder / name).read_bytes() for name in (PLAN_FILE, ENGINE_FILE)}
    with open_runner("tensorrt", ModelSource(spec=spec, files=files), RunnerOptions(device="GPU")) as runner:
        runner.infer(np.zeros((1, spec.height, spec.width, 3), np.uint8))
    return {}


def main() -> None:
    """Serve one request of the parent process."""
    die_with_parent()
    requests, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    request = read_message(requests)
    if request is None:
        raise BadDataError("the parent process asked for nothing")
    threading.Thread(target=_end_with_parent, args=(requests,), daemon=True).start()
    answer(request, answers)
    sys.stderr.flush()
    # Not through the destructors of native libraries: what they built is on the disk.
    os._exit(0)


def _end_with_parent(requests: IO[bytes]) -> None:
    """Wait for the end of stdin, which nothing but the parent's end or its wish brings, and end."""
    while requests.read(1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
