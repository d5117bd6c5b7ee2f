"""NVIDIA's own parser and builder on a computer without a GPU: TensorRT for RTX, the sibling of TensorRT for desktop cards.

Its wheels on PyPI hold the libraries, which those of TensorRT do not; its API is TensorRT's without what only other products have
(weak typing, INT8 and FP16 flags, calibration), its ONNX parser is built from the same source, and it builds engines without a GPU.
So `build_plan` runs here on the real thing: logger, network, parser, profile, limits, timing cache, monitor, writer.

What this does not say: that TensorRT on a Jetson picks fast kernels, computes what ONNX Runtime does, or takes each graph too: its
builder is another one. The wheels are proprietary: fetched when the tests run, into a folder that is removed, and never committed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.tensorrt.wheels import WheelsMissing, fetched

VERSION = "1.7.1.116"
REQUIREMENTS = (f"tensorrt-rtx-cu12-bindings=={VERSION}", f"tensorrt-rtx-cu12-libs=={VERSION}")
CHILD = Path(__file__).with_name("rtx_child.py")
ROOT = Path(__file__).parents[2]
_OLDEST, _NEWEST = (3, 10), (3, 14)  # CPython for which there are bindings; checked on the index, 2026-11-26


@dataclass(frozen=True, kw_only=True)
class Built:
    """What became of one graph.

    Attributes:
        error: kind and text of the error, empty where there is an engine.
        plan_bytes: of the engine.
        layers: of the network, as parsed.
        shares: how much was done, each time the monitor said so, in [0, 1].
        timing_cache: bytes of the times that were kept; 0 without any.
        notes: warnings of the builder's.
    """

    error: str = ""
    plan_bytes: int = 0
    layers: int = 0
    shares: tuple[float, ...] = ()
    timing_cache: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rtx:
    """TensorRT for RTX, installed into a folder."""

    site: Path

    def build(
        self, graph: Path, plan: Path, *, precision: str = "int8", batches: tuple[int, int, int] = (1, 1, 1)
    ) -> Built:
        """Build an engine with `edgebert.export.engine_build.build_plan`, in a process of its own.

        Args:
            graph: a strongly typed ONNX file.
            plan: the file to write.
            precision: that the graph holds: `int8`, `fp16` or `fp32`.
            batches: smallest, best and largest.

        Raises:
            AssertionError: the process ended by itself; the message holds what it said.
        """
        answer = json.loads(
            self.run([str(CHILD), str(graph), str(plan), precision, *map(str, batches)]).splitlines()[-1]
        )
        return Built(**{**answer, "shares": tuple(answer["shares"]), "notes": tuple(answer["notes"])})

    def run(self, arguments: list[str]) -> str:
        """Run Python where `import tensorrt_rtx_bindings` gives it, and return what it printed."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.site), str(ROOT)])}
        command = [sys.executable, "-B", "-W", "ignore::DeprecationWarning", *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
        assert ran.returncode == 0, f"exit {ran.returncode}: {ran.stdout}{ran.stderr}"
        return ran.stdout


def installed_rtx(folder: Path) -> Rtx:
    """Install TensorRT for RTX into a folder; 93 MB are fetched.

    Raises:
        WheelsMissing: this computer cannot load it, or pip reaches no index that has it.
        AssertionError: pip reaches one, and fails.
    """
    system, machine, libc = platform.system(), platform.machine(), platform.libc_ver()[0]
    if (system, machine, libc) != ("Linux", "x86_64", "glibc"):
        raise WheelsMissing(f"the wheels are for Linux on x86-64 with glibc, this is {system} on {machine}")
    if not _OLDEST <= sys.version_info[:2] <= _NEWEST:
        raise WheelsMissing(f"TensorRT for RTX has no wheel for Python {platform.python_version()}")
    return Rtx(site=fetched(REQUIREMENTS, folder / f"rtx-{VERSION}"))
