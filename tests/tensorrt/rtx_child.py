"""Builds one engine with TensorRT for RTX in TensorRT's place and prints what became of it, as JSON; see `tests.tensorrt.rtx`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_rtx_bindings  # type: ignore[import-not-found, unused-ignore]  # there in the process that the tests start

from edgebert.errors import EdgebertError
from edgebert.export.engine_build import PlanRequest, build_plan


class Times:
    """The timing cache of one build, in memory."""

    def __init__(self) -> None:
        self.content = b""

    def read(self) -> bytes:
        """Return what was measured before."""
        return self.content

    def write(self, content: bytes) -> None:
        """Keep what was measured."""
        self.content = content


def main(graph: str, plan: str, precision: Any, *batches: str) -> None:
    """Build, and print the outcome."""
    smallest, best, largest = map(int, batches)
    request = PlanRequest(
        typing="strong",
        precision=precision,
        workspace_bytes=256 << 20,
        optimization_level=3,
        dla_core=None,
        min_batch=smallest,
        opt_batch=best,
        max_batch=largest,
    )
    shares: list[float] = []
    layers: list[int] = []
    times: Any = Times()
    trt = tensorrt_rtx_bindings

    class Builder(trt.Builder):  # type: ignore[misc, name-defined, unused-ignore]  # its base is not known before
        """Counts the layers of what is built."""

        def build_serialized_network_to_stream(self, network: Any, config: Any, writer: Any) -> bool:
            layers.append(network.num_layers)
            return bool(super().build_serialized_network_to_stream(network, config, writer))

    trt.Builder = Builder

    def share(done: float, _phase: str) -> bool:
        shares.append(done)
        return True

    found: dict[str, object] = {"error": ""}
    try:
        built = build_plan(trt, Path(graph), request, Path(plan), times, share)
        found |= {"plan_bytes": Path(plan).stat().st_size, "notes": built.notes}
    except EdgebertError as error:
        found |= {"error": f"{type(error).__name__}: {error}", "notes": ()}
    found |= {"layers": sum(layers), "shares": shares, "timing_cache": len(times.content)}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
