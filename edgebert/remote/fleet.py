"""One bench on several devices at once: a result for each, and one report that puts them side by side.

Each device has its own session, its own A/A control and its own intervals. Between devices nothing is claimed: another processor
runs at another speed, and no interval of one speaks of the other.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from edgebert._console import printable
from edgebert._json import JsonObject
from edgebert.bench.codec import to_json
from edgebert.bench.options import BenchOptions
from edgebert.bench.report.table import text_table
from edgebert.bench.schema import Result
from edgebert.errors import EdgebertError, UsageError
from edgebert.remote.bench import bench_on
from edgebert.remote.ssh import SshOptions
from edgebert.remote.transport import Transport, transport_of

MAX_DEVICES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReport:
    """What became of each device.

    Attributes:
        results: device -> its result.
        outputs: device -> where it was written.
        failed: device -> why it has none.
    """

    results: Mapping[str, Result]
    outputs: Mapping[str, Path]
    failed: Mapping[str, EdgebertError] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """That of the first device that failed, else of the first result that is not valid, else 0."""
        codes = [error.exit_code for error in self.failed.values()]
        return next((code for code in (*codes, *(result.exit_code for result in self.results.values())) if code), 0)

    def to_json(self) -> JsonObject:
        """Return the result of a single device as it is; of several, an object of them."""
        if len(self.outputs) == 1 and self.results:
            return to_json(next(iter(self.results.values())))
        return {
            "devices": {name: to_json(result) for name, result in self.results.items()},
            "failed": {
                name: {"exit_code": error.exit_code, "what": error.what, "expected": error.expected, "hint": error.hint}
                for name, error in self.failed.items()
            },
            "exit_code": self.exit_code,
        }

    def to_text(self) -> str:
        """Return the tables, device by device; no speed-up is stated across devices."""
        if len(self.outputs) == 1 and self.results:
            return text_table(next(iter(self.results.values())))
        parts = []
        for name, output in self.outputs.items():
            if name in self.results:
                parts.append(f"## {name} ({output})\n\n{text_table(self.results[name])}")
            else:
                parts.append(f"## {name}\n\nno result: {printable(str(self.failed[name]))}")
        parts.append("Speed-ups are within a device; between devices none is claimed.")
        return "\n\n".join(parts)


def bench_fleet(
    hosts: Sequence[str],
    paths: Sequence[str | Path],
    output: Path,
    options: BenchOptions,
    *,
    python: str | None = None,
    resume: Path | None = None,
    keep: bool = False,
    ssh: SshOptions | None = None,
) -> FleetReport:
    """Measure on one device, or on several at once; a device that fails does not keep the others from being measured.

    Args:
        hosts: as `--host` takes them, each once.
        paths: as `bench_on` takes them.
        output: the result of a single device; of several, `NAME.json` gives `NAME.DEVICE.json` for each.
        options: how to measure.
        python: the devices' Python.
        resume: the folder of a run of a single device.
        keep: leave what is pushed on the devices.
        ssh: how they are reached.

    Raises:
        UsageError: a device is named twice; or a run is taken up again on several.
        EdgebertError: what the measurement on a single device failed with.
    """
    transports = _transports(hosts, python)
    if len(transports) == 1:
        name, transport = next(iter(transports.items()))
        result = bench_on(transport, paths, output, options, resume=resume, keep=keep, ssh=ssh)
        return FleetReport(results={name: result}, outputs={name: output})
    if resume is not None:
        raise UsageError(f"`--resume {resume}` for several devices", expected="one `--host`, the run's own")
    return bench_transports(transports, paths, output, options, keep=keep, ssh=ssh)


def bench_transports(
    transports: Mapping[str, Transport],
    paths: Sequence[str | Path],
    output: Path,
    options: BenchOptions,
    *,
    keep: bool = False,
    ssh: SshOptions | None = None,
) -> FleetReport:
    """Measure on several devices at once; see `bench_fleet`."""
    outputs = _outputs(output, tuple(transports))
    results: dict[str, Result] = {}
    failed: dict[str, EdgebertError] = {}
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=len(transports)) as pool:
        running = {
            name: pool.submit(bench_on, transport, paths, outputs[name], options, keep=keep, ssh=ssh, stop=stop)
            for name, transport in transports.items()
        }
        for name, future in running.items():
            try:
                results[name] = future.result()
            except EdgebertError as error:
                failed[name] = error
            except KeyboardInterrupt:  # here alone, and the others would measure to their end
                stop.set()
                raise
    return FleetReport(results=results, outputs=outputs, failed=failed)


def _transports(hosts: Sequence[str], python: str | None) -> dict[str, Transport]:
    if len(set(hosts)) < len(hosts):
        raise UsageError(f"devices `{', '.join(hosts)}`", expected="each once: two at once would measure each other")
    if len(hosts) > MAX_DEVICES:
        raise UsageError(f"{len(hosts)} devices", expected=f"at most {MAX_DEVICES} at once")
    return {host: transport_of(host, python=python) for host in hosts}


def _outputs(output: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return a file for each device: `result.json` -> `result.pi-camera-3.json`."""
    found: dict[str, Path] = {}
    for name in names:
        stem = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "device"
        while output.with_name(f"{output.stem}.{stem}{output.suffix}") in found.values():
            stem += "-2"
        found[name] = output.with_name(f"{output.stem}.{stem}{output.suffix}")
    return found
