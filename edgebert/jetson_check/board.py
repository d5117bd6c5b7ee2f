"""Which board this is, which JetPack, and whether edgebert supports it."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL

from edgebert._json import Fields, JsonObject
from edgebert.bench.environment.jetson.identity import read_identity, read_l4t
from edgebert.bench.environment.system_files import SystemFiles, read_memory
from edgebert.bench.protocol import error_content
from edgebert.errors import UnavailableError
from edgebert.fingerprint import GpuFacts, gpu_facts, machine
from edgebert.runtime.tensorrt_api import check_board

_CONTAINER = "/.dockerenv"


def board(request: Fields) -> JsonObject:
    """Return the board's facts, and the refusal of one that is too old."""
    files = SystemFiles(Path(request.text("root")))
    identity = read_identity(files)
    assert identity is not None, "asked for on a Jetson only"
    gpu = board_gpu(files.root)
    facts: JsonObject = {
        "sold as": identity.module_name,
        "model": files.text("/proc/device-tree/model"),
        "module": identity.module,
        "family": identity.family,
        "soc": identity.soc,
        "l4t": gpu.l4t,
        "jetpack": identity.jetpack,
        "tensorrt package": identity.tensorrt,
        "cuda package": identity.cuda,
        "gpu": gpu.name,
        "compute capability": gpu.compute_capability,
        "multiprocessors": gpu.multiprocessors,
        "driver": gpu.driver,
        "cuda of the driver": gpu.cuda,
        "memory_bytes": read_memory(files).get("MemTotal"),
        "contiguous_memory_bytes": read_memory(files).get("CmaTotal"),
        "in a container": files.exists(_CONTAINER),
        "kernel": platform.release(),
        "machine": machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
    named = identity.module_name or identity.family or "a Jetson that this version does not know"
    jetpack = f"JetPack {identity.jetpack}" if identity.jetpack else "of a JetPack that this version does not know"
    found = f"{named}, " + ("L4T not known: a container?" if gpu.l4t is None else f"L4T {gpu.l4t}, {jetpack}")
    try:
        check_board(gpu)
    except UnavailableError as error:
        return {"found": found, "facts": facts, "error": error_content(error)}
    return {"found": found, "facts": facts}


def board_gpu(root: Path) -> GpuFacts:
    """Return what the driver says of the GPU, and the L4T, which a container may know from dpkg alone."""
    return replace(gpu_facts(root), l4t=read_l4t(SystemFiles(root)))
