"""Make `edgebert/remote/wheel_pins.json`: the wheels of numpy and Pillow that a host may bring to a device, by size and SHA-256.

    python benchmarks/wheel_pins.py                        about 200 MB through pip, into a temporary folder
    python benchmarks/wheel_pins.py --check                compares instead of writing, and exits 1 where the table is another

pip fetches each wheel for its Python and architecture from the index that it is configured with, and what is written down is read from the files.
The versions stand below, with the reason for each; `tests/remote/test_wheel_pins.py` holds the table against the floors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TABLE = Path(__file__).parents[1] / "edgebert" / "remote" / "wheel_pins.json"
SCHEMA = "edgebert.wheel-pins/1"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ARCHITECTURES = ("aarch64", "x86_64")
GLIBC = range(17, 29)  # 2.17 to 2.28: nothing that edgebert supports is older than the last

VERSIONS = {
    # numpy 1 wherever it exists: the system's `tensorrt` of JetPack 6, and whatever else a device has for its Python, was compiled
    # when numpy 2 was not there yet, and what was compiled for numpy 2 runs with 1.26 as well. Python 3.13 has numpy 2 only; 2.2 is
    # the last of which wheels ask for no newer glibc than 2.17.
    "numpy": {"3.10": "1.26.4", "3.11": "1.26.4", "3.12": "1.26.4", "3.13": "2.2.6"},
    # The floor itself (SECURITY.md): the last series that has wheels for Python 3.10.
    "Pillow": dict.fromkeys(PYTHONS, "12.3.0"),
}


def wheel(name: str, python: str, architecture: str, folder: Path) -> dict[str, str | int]:
    """Fetch one wheel and return its line of the table."""
    version = VERSIONS[name][python]
    platforms = [f"manylinux_2_{minor}_{architecture}" for minor in GLIBC] + [f"manylinux2014_{architecture}"]
    place = folder / f"{name}-{python}-{architecture}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    command += [f"--abi=cp{python.replace('.', '')}", *(f"--platform={platform}" for platform in platforms)]
    subprocess.run([*command, "--dest", str(place), f"{name}=={version}"], check=True)
    (file,) = place.iterdir()
    content = file.read_bytes()
    return {
        "name": name,
        "version": version,
        "python": python,
        "architecture": architecture,
        "file": file.name,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def main() -> int:
    """Write the table, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check: bool = parser.parse_args().check
    lines = []
    with tempfile.TemporaryDirectory(prefix="wheel-pins-") as folder:
        for name in VERSIONS:
            for python in PYTHONS:
                for architecture in ARCHITECTURES:
                    lines.append(wheel(name, python, architecture, Path(folder)))
                    print(lines[-1]["file"], file=sys.stderr)
    text = json.dumps({"schema": SCHEMA, "wheels": lines}, indent=1) + "\n"
    if not check:
        TABLE.write_text(text, encoding="ascii")
        return 0
    if TABLE.read_text(encoding="ascii") == text:
        return 0
    print(f"{TABLE.name} is another", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
