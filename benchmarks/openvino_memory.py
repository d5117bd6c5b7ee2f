"""What OpenVINO keeps of models that are replaced while other threads use them; nothing of edgebert's runtime is in this process.

    python benchmarks/openvino_memory.py                 900 models of one thread each, then of two (2 minutes)

Each line is the resident set in MiB at 15 points, after the C library gave back what is free. It says what `Classifier.swap` cannot
mend: with one thread a model the line is flat, with two it rises.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import threading
import time
from typing import Any

import numpy as np
from _tiny_bundles import HEIGHT, WIDTH, constant
from runtime_soak import CLIENTS, resident_kib

from edgebert.extras import require

POINTS = 15


def main() -> int:
    """Replace models and print what the process holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=900)
    given = parser.parse_args()
    for threads in (1, 2):
        samples = replaced(given.models, threads)
        print(f"{threads} threads a model: {' '.join(f'{kib / 1024:.1f}' for kib in samples)} MiB", flush=True)
    return 0


def replaced(models: int, threads: int) -> list[float]:
    """Compile models one after the other while eight threads ask the newest; return the resident set in KiB at 15 points."""
    openvino = require("openvino")
    graph = constant("a", (2.0, 0.0, -1.0)).graph()
    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}

    def compiled() -> Any:
        model = core.read_model(graph)
        model.reshape([1, HEIGHT, WIDTH, 3])
        return core.compile_model(model, "CPU", settings)

    newest = [compiled()]
    batch = np.ones((1, HEIGHT, WIDTH, 3), np.uint8)
    newest[0].create_infer_request().infer([batch])  # in one thread first: eight first calls at once hung
    stopped = threading.Event()

    def ask() -> None:
        while not stopped.is_set():
            newest[0].create_infer_request().infer([batch])
            time.sleep(0.001)

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    samples = []
    for number in range(models):
        newest[0] = compiled()
        time.sleep(0.02)  # so that every thread has used it
        if number % max(1, models // POINTS) == 0:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            samples.append(resident_kib())
    stopped.set()
    for client in clients:
        client.join()
    return samples


if __name__ == "__main__":
    raise SystemExit(main())
