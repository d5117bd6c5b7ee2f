"""The harness's side of the sampler: starts it, ends it, reads what it wrote. Whatever fails is a warning.

    with Sampler() as sampler:
        ...  # blocks are timed
        telemetry = sampler.finish()

>>> Sampler(command=("/nowhere/python",)).finish().warnings[0].startswith("the sampler was not started")
True
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from edgebert._json import Fields, JsonValue
from edgebert.bench.environment.sensors import CPUINFO_ORIGIN
from edgebert.bench.environment.source import MISSING
from edgebert.bench.environment.system_files import text_of_cpus
from edgebert.bench.environment.telemetry import Telemetry
from edgebert.bench.samples import IntArray
from edgebert.bench.worker_process import worker_environment
from edgebert.errors import BadDataError

if TYPE_CHECKING:
    from typing_extensions import Self

SAMPLER_COMMAND = (sys.executable, "-m", "edgebert.bench.environment.sampler")

_START_SECONDS = 10.0  # to import and open the sensors, on a small board under load
_END_SECONDS = 5.0  # to write its last row, before it is killed
_LINE_BYTES = 64 << 10
_STDERR_CHARACTERS = 500


class Sampler:
    """The sampler's process; it never raises, and never keeps the harness waiting longer than some seconds.

    Args:
        interval_s: between two samples.
        watch: processors whose clock is read, such as those the workers are pinned to; empty for all.
        avoid: processors that the sampler leaves to the workers, as far as there are others.
        root: where `proc` and `sys` lie.
        command: what is started; `edgebert.bench.environment.sampler` but in tests.
    """

    def __init__(
        self,
        interval_s: float = 0.1,
        *,
        watch: Collection[int] = (),
        avoid: Collection[int] = (),
        root: Path = Path("/"),
        command: Sequence[str] = SAMPLER_COMMAND,
    ) -> None:
        self._interval_ns = int(interval_s * 1e9)
        self._arguments = (
            f"--interval-s={interval_s}",
            f"--root={root}",
            f"--watch={text_of_cpus(watch)}",
            f"--avoid={text_of_cpus(avoid)}",
        )
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._begun: Fields | None = None
        self._begun_ns = 0
        self._unread = b""
        self._warnings: list[str] = []
        self._telemetry: Telemetry | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish()

    def start(self) -> None:
        """Start the process and wait until it samples."""
        if sys.platform != "linux":
            self._warnings.append(f"the sampler was not started: it reads /proc and /sys, not {sys.platform}")
            return
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="edgebert-sampler-")
            with (Path(self._folder.name) / "stderr").open("wb") as stderr:
                self._process = subprocess.Popen(
                    [*self._command, str(self._samples), *self._arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=worker_environment(threads=1),
                )
        except OSError as error:
            self._warnings.append(f"the sampler was not started: {error}")
            return
        self._begun = self._line(_START_SECONDS)
        self._begun_ns = time.perf_counter_ns()
        if self._begun is None:
            self._warnings.append(f"the sampler did not begin{self._last_words()}")
            self._process.kill()

    def finish(self) -> Telemetry:
        """End the process and return what it saw; called again, the same once more."""
        if self._telemetry is None:
            ended_ns = time.perf_counter_ns()
            ended = self._end()
            self._telemetry = self._read(ended_ns, ended)
            if self._folder is not None:
                self._folder.cleanup()
        return self._telemetry

    @property
    def pid(self) -> int | None:
        """The sampler's process number, None where it was not started."""
        return None if self._process is None else self._process.pid

    @property
    def columns(self) -> tuple[str, ...]:
        """What it reads; nothing where it did not begin."""
        try:
            return () if self._begun is None else self._begun.texts("columns")
        except BadDataError:
            return ()

    @property
    def _samples(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "samples"

    def _end(self) -> Fields | None:
        """Close the sampler's stdin and return its last line; kill it if it stays."""
        process = self._process
        if process is None:
            if not self._warnings:
                self._warnings.append("the sampler was not started")
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        ended = self._line(_END_SECONDS) if self._begun is not None else None
        try:
            process.wait(timeout=_END_SECONDS if ended is not None else 0.1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if ended is None and self._begun is not None:
            self._warnings.append(f"the sampler ended too early, or did not end{self._last_words()}")
        process.stdout.close()
        return ended

    def _line(self, timeout_s: float) -> Fields | None:
        """Return the sampler's next line, None where it closes, says nonsense, or says nothing in time."""
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor, deadline = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._unread and len(self._unread) < _LINE_BYTES:
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(descriptor, 4096) if readable else b""
            if not part:
                return None
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            return Fields(json.loads(line), what="the sampler's line")
        except (ValueError, BadDataError):
            return None

    def _last_words(self) -> str:
        assert self._folder is not None
        try:
            text = (Path(self._folder.name) / "stderr").read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""
        return f": {text[-_STDERR_CHARACTERS:]}" if text else ""

    def _read(self, ended_ns: int, ended: Fields | None) -> Telemetry:
        try:
            assert self._begun is not None
            names = self._begun.texts("columns")
            rows = _read_rows(self._samples, len(names))
            reasons, origins = (_texts(self._begun.value[name]) for name in ("reasons", "origins"))
            cost = None if ended is None else ended.number("cost_cpu_s")
        except (AssertionError, OSError, KeyError, ValueError, BadDataError) as error:
            if self._begun is not None:
                self._warnings.append(f"the sampler's file could not be read: {error}")
            return _nothing(tuple(self._warnings))
        columns = {name: rows[:, 1 + index].copy() for index, name in enumerate(names)}
        dropped = _nominal(columns, origins)
        expected = max(1, 1 + (ended_ns - self._begun_ns) // self._interval_ns)
        kept = {name: values for name, values in columns.items() if name not in dropped}
        return Telemetry(
            t_ns=rows[:, 0].copy(),
            columns=kept,
            reasons={**reasons, **dropped},
            coverage={
                name: min(1.0, int(np.count_nonzero(values != MISSING)) / expected) for name, values in kept.items()
            },
            origins={name: origin for name, origin in origins.items() if name in kept},
            cost_cpu_s=cost,
            warnings=tuple(self._warnings),
        )


def _read_rows(path: Path, columns: int) -> IntArray:
    """Return (samples, 1 + columns) int64; a row that was cut short by a kill is left out."""
    values = np.frombuffer(path.read_bytes()[: path.stat().st_size // 8 * 8], dtype="<i8").astype(np.int64)
    return values[: len(values) // (1 + columns) * (1 + columns)].reshape(-1, 1 + columns)


def _nominal(columns: Mapping[str, IntArray], origins: Mapping[str, str]) -> dict[str, str]:
    """Return the clocks of /proc/cpuinfo that never moved: some kernels print the nominal clock there."""
    return {
        name: "/proc/cpuinfo shows one value all the time, which is the nominal clock"
        for name, values in columns.items()
        if origins.get(name) == CPUINFO_ORIGIN and len(np.unique(values)) < 2
    }


def _texts(value: JsonValue) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise BadDataError("the sampler's line holds no object", expected="names and texts")
    return {name: str(entry) for name, entry in value.items()}


def _nothing(warnings: tuple[str, ...]) -> Telemetry:
    return Telemetry(t_ns=np.zeros(0, np.int64), columns={}, reasons={}, coverage={}, warnings=warnings)
