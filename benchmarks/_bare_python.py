"""A device's Python: an environment with numpy, Pillow and ONNX Runtime, and with nothing of edgebert or its workbench."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("numpy", "pillow", "onnxruntime")
ABSENT = ("edgebert", "typer", "torch", "onnx", "openvino", "tensorrt", "asyncssh")
_LIST = """
import importlib.util, json, platform, sys
from importlib.metadata import version
packages, absent = json.loads(sys.argv[1])
print(json.dumps([[name for name in absent if importlib.util.find_spec(name)],
                  f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in packages)]))
"""


def bare_python(folder: Path = ROOT / "runs/bare-python") -> Path:
    """Return the interpreter; the environment is made where it is not there, with the versions of constraints.txt.

    Raises:
        CalledProcessError: pip cannot fetch the packages.
    """
    python, complete = folder / "bin/python", folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary",
            ":all:",
        ]
        subprocess.run([*command, "-c", str(ROOT / "constraints.txt"), *PACKAGES], check=True)
        complete.touch()
    return python


def described(python: Path) -> str:
    """Return its version and those of what it has.

    Raises:
        ValueError: it has what a bare device has not.
    """
    asked = json.dumps([PACKAGES, ABSENT])
    ran = subprocess.run([str(python), "-I", "-c", _LIST, asked], capture_output=True, text=True, check=True)
    too_much, said = json.loads(ran.stdout)
    if too_much:
        raise ValueError(f"the device's Python has {', '.join(too_much)}")
    return str(said)
