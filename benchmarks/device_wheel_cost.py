"""What the device wheel weighs and what importing it costs: from the file, and installed.

    python benchmarks/device_wheel_cost.py --python ~/.pyenv/versions/3.10.13/bin/python

Each module is imported in fresh processes, in turn from the wheel file on PYTHONPATH and from a folder it was installed to (with its
`.pyc` files), under `-X importtime`: `own` is the sum of the self times of edgebert's modules, `all` that of everything the
import loads, numpy and Pillow included. Medians. From the file Python compiles each module anew, since a zip file has no place
for what was compiled; installed, it reads what it compiled once. Half a minute on two cores.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from edgebert.remote.device_wheel import device_wheel, write_device_wheel

MODULES = ("edgebert", "edgebert.agent", "edgebert.runtime.classifier", "edgebert.bench.worker")
_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s*(\S+)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="an interpreter with numpy and Pillow")
    parser.add_argument("--rounds", type=int, default=11)
    given = parser.parse_args(arguments)
    wheel = device_wheel()
    with tempfile.TemporaryDirectory() as name:
        file, folder = write_device_wheel(Path(name)), Path(name) / "installed"
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
            unpacked = sum(entry.file_size for entry in archive.infolist())
        subprocess.run([given.python, "-m", "compileall", "-q", str(folder)], check=True)
        version = subprocess.run([given.python, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        print(f"{version}, {platform.machine()}, {_cpu()}; {given.rounds} fresh processes each, median, ms")
        print(f"{'module':<30}{'from the file: own':>20}{'all':>8}{'installed: own':>18}{'all':>8}")
        worst = 0.0
        for module in MODULES:
            times: dict[Path, list[tuple[float, float]]] = {file: [], folder: []}
            for _ in range(given.rounds):
                for path, found in times.items():
                    found.append(_import_ms(given.python, module, path))
            row = [statistics.median(found[at] for found in times[path]) for path in (file, folder) for at in (0, 1)]
            worst = max(worst, row[0])
            print(f"{module:<30}{row[0]:>20.1f}{row[1]:>8.1f}{row[2]:>18.1f}{row[3]:>8.1f}")
    print(
        f"{len(wheel.modules)} modules, {len(wheel.content):,} bytes ({unpacked:,} unpacked); from the file, edgebert's own part "
        f"of an import is {worst:.0f} ms at most"
    )
    return 0


def _import_ms(python: str, module: str, path: Path) -> tuple[float, float]:
    """Return milliseconds of edgebert's own modules, and of all that the import loads."""
    code = f"import {module}, edgebert; print(edgebert.__file__)"
    command = [python, "-X", "importtime", "-c", code]
    # In a folder without an `edgebert`: with `-c`, Python looks into the current one first.
    ran = subprocess.run(
        command, env={"PYTHONPATH": str(path)}, cwd=path.parent, capture_output=True, text=True, check=True
    )
    if not ran.stdout.startswith(str(path)):
        raise SystemExit(f"`{ran.stdout.strip()}` was imported, and not `{path}`")
    rows = [(found[3], int(found[1])) for found in map(_LINE.match, ran.stderr.splitlines()) if found]
    start = next(place for place, (name, _) in enumerate(rows) if name == "site") + 1
    own = sum(time for name, time in rows[start:] if name.partition(".")[0] == "edgebert")
    return own / 1000, sum(time for _, time in rows[start:]) / 1000


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "CPU unknown"


if __name__ == "__main__":
    sys.exit(main())
