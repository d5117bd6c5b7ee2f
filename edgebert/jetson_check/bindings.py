"""TensorRT's Python module: whether it is here and of a supported version, and whether its parser takes the small graphs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from edgebert._json import Fields, JsonObject
from edgebert.export.engine_build import parsed
from edgebert.jetson_check.board import board_gpu
from edgebert.jetson_check.reference import ReferenceEngine, read_reference
from edgebert.runtime.tensorrt_api import is_strong_only, load_tensorrt, logger_of, network_flags, new_builder, recorded
from edgebert.runtime.tensorrt_errors import error_from_texts

if TYPE_CHECKING:
    import tensorrt  # type: ignore[import-not-found, unused-ignore]  # the bindings have no types; tests/tensorrt makes some

# The versions whose official bindings edgebert's use of the API is checked against (`tests/tensorrt`), by major and minor.
CHECKED = ("10.3", "10.7", "10.13", "10.16", "11.4")


def bindings(request: Fields) -> JsonObject:
    """Import TensorRT and return its version."""
    trt = load_tensorrt(facts=board_gpu(Path(request.text("root"))))
    version = str(trt.__version__)
    held = ".".join(version.split(".")[:2]) in CHECKED
    note = "" if held else f"; between those that edgebert's calls were checked against ({', '.join(CHECKED)})"
    facts: JsonObject = {
        "tensorrt": version,
        "calls checked against it": held,
        "builds strongly typed networks only": is_strong_only(trt),
    }
    return {"found": f"TensorRT {version}{note}", "facts": facts}


def parse(_request: Fields) -> JsonObject:
    """Parse every graph that this TensorRT can build from."""
    trt = load_tensorrt()
    logger = logger_of(trt)
    engines = [each for each in read_reference().engines if each.typing == "strong" or not is_strong_only(trt)]
    with recorded(logger):
        builder = new_builder(trt, logger)
        cores = builder.num_DLA_cores
    for engine in engines:
        _parse(trt, engine)
    names = ", ".join(engine.name for engine in engines)
    return {"found": f"{len(engines)} graphs ({names})", "facts": {"graphs": len(engines), "dla cores": cores}}


def _parse(trt: ModuleType, engine: ReferenceEngine) -> None:
    logger = logger_of(trt)
    with recorded(logger) as log, tempfile.TemporaryDirectory(prefix="edgebert-check-") as folder:
        file = Path(folder) / engine.file
        file.write_bytes(engine.graph())
        builder = new_builder(trt, logger)
        network: tensorrt.INetworkDefinition | None = builder.create_network(network_flags(trt, engine.typing))
        if network is None:
            raise error_from_texts(log.errors(), doing="TensorRT makes no network")
        parser = parsed(trt, network, logger, file, log)
        del parser  # not before: the network refers to its weights
