"""A Jetson that is none: the doubles of TensorRT and of CUDA where edgebert looks for the real ones, and engines built on it."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgebert._json import Fields
from edgebert.export import engine_child
from edgebert.export.engine_build import PlanRequest, build_plan
from edgebert.export.engine_process import MemoryPeak
from edgebert.fingerprint import GpuFacts
from edgebert.runtime import tensorrt_runner
from edgebert.runtime.engine_manifest import ENGINE_FILE, PLAN_FILE, EngineManifest, engine_fingerprint
from edgebert.runtime.runner import InputSpec, ModelSource
from tests.tensorrt.cudart import CudartDouble, compiled
from tests.tensorrt.double import Script, tensorrt_double

ORIN_NANO = GpuFacts(
    name="Orin",
    compute_capability="8.7",
    multiprocessors=8,
    module="p3767-0003",
    driver="540.4.0",
    cuda="12.6",
    l4t="36.4.3",
)
REQUEST = PlanRequest(
    typing="strong",
    precision="int8",
    workspace_bytes=256 << 20,
    optimization_level=3,
    dla_core=None,
    min_batch=1,
    opt_batch=1,
    max_batch=1,
)


class Jetson:
    """An Orin Nano with JetPack 6.2 and a TensorRT of any version.

    Attributes:
        cudart: the double of CUDA; None on a computer without a C compiler where none is needed.
        script: what the double of TensorRT does and saw.
        trt: the module.
        facts: what the driver says of the GPU.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, version: str, cudart: CudartDouble | None) -> None:
        self._patch = monkeypatch
        self.cudart, self.script, self.facts = cudart, Script(cudart=cudart), ORIN_NANO
        self.trt: ModuleType = tensorrt_double(version, self.script)
        self.install()

    def install(self) -> None:
        """Put the doubles where edgebert looks."""
        patch = self._patch.setattr
        self._patch.setitem(sys.modules, "tensorrt", self.trt)
        for module in ("edgebert.fingerprint", tensorrt_runner.__name__, engine_child.__name__):
            patch(f"{module}.gpu_facts", lambda: self.facts)
        patch("edgebert.fingerprint.machine", lambda: "aarch64")
        if self.cudart is not None:
            runtime = self.cudart.runtime
            patch(tensorrt_runner, "load_cuda", lambda: runtime)

    def update(self, version: str) -> None:
        """Install another TensorRT."""
        self.trt = tensorrt_double(version, self.script)
        self._patch.setitem(sys.modules, "tensorrt", self.trt)

    def builds_here(self) -> None:
        """Let engines be built in this process, as the child process builds them; it is started for real in `test_engine.py`."""
        for module in ("edgebert.export.forms", "edgebert.export.place"):
            self._patch.setattr(f"{module}.machine", lambda: "aarch64")
        self._patch.setattr("edgebert.export.engine.run_build", self._run_build)
        self._patch.setattr(
            "edgebert.export.engine_choice.run_once", lambda folder, spec: None
        )  # a process without doubles

    def _run_build(
        self,
        request: PlanRequest,
        graph: Path,
        plan: Path,
        cache: Path | None,
        *,
        what: str,
        timeout_s: float,
        progress: Callable[[str, int], Any],
    ) -> tuple[Fields, MemoryPeak]:
        version = self.trt.__version__
        fingerprint = engine_fingerprint(self.facts, tensorrt=version, machine="aarch64")
        with progress(what, 100) as shown:
            built = build_plan(
                self.trt, graph, request, plan, None, lambda share, phase: shown.advance(note=phase) is None
            )
        told = {**asdict(built), "flags": list(built.flags), "notes": list(built.notes), "tensorrt": version}
        answer = Fields({**told, "fingerprint": fingerprint.to_json()}, what="a build")
        return answer, MemoryPeak(resident_mib=700, least_available_mib=3000)

    def engine(self, graph: bytes, **changes: Any) -> dict[str, bytes]:
        """Build an engine in this process and return its files."""
        request = replace(REQUEST, **changes)
        with tempfile.TemporaryDirectory() as folder:
            model, plan = Path(folder) / "model.onnx", Path(folder) / PLAN_FILE
            model.write_bytes(graph)
            built = build_plan(self.trt, model, request, plan, None, lambda share, phase: True)
            content = plan.read_bytes()
        manifest = EngineManifest(
            plan_sha256=hashlib.sha256(content).hexdigest(),
            plan_bytes=len(content),
            graph_sha256=hashlib.sha256(graph).hexdigest(),
            typing=request.typing,
            precision=request.precision,
            flags=built.flags,
            min_batch=built.min_batch,
            max_batch=built.max_batch,
            fingerprint=engine_fingerprint(self.facts, tensorrt=self.trt.__version__, machine="aarch64"),
            versions={"tensorrt": self.trt.__version__},
        )
        return {PLAN_FILE: content, ENGINE_FILE: manifest.to_bytes()}

    def source(self, toy: Any, files: Mapping[str, bytes] | None = None, **changes: Any) -> ModelSource:
        """Return what a runner opens: the toy's engine, or other files."""
        spec: InputSpec = toy.spec
        return ModelSource(spec=spec, files=self.engine(toy.graph(), **changes) if files is None else files)


def jetson_double(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str = "10.3.0") -> Jetson:
    """Return a Jetson with a CUDA of its own; skip where no compiler can make one."""
    library = folder / "libcudart_double.so"
    shutil.copyfile(_library(folder.parent), library)  # each copy is loaded anew, with nothing allocated
    return Jetson(monkeypatch, version, CudartDouble(library))


def _library(folder: Path) -> Path:
    """Return the compiled library, made once in the folder of a whole run."""
    library = folder / "libcudart_double.so"
    return library if library.is_file() else compiled(folder)
