"""What `edgebert bench --target jetson` says on a computer that is no Jetson: exit code 69, what is missing, and the two ways on.

    python benchmarks/jetson_not_here.py

Runs the command without `--host`, shows what it says, and returns 1 where the exit code is another one, a part of the answer is not
there, or something was written. On a Jetson, where the target can run, there is nothing to see: it says so and returns 77, as
automake's tests do for what is skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from edgebert.errors import UnavailableError
from edgebert.runtime.runner import check_device

ROOT = Path(__file__).parent.parent
SKIPPED = 77
# What the answer must hold, and what that is.
PARTS = {
    "`--target jetson`": "the target",
    "tensorrt": "what is missing",
    "--host USER@HOST": "the way over SSH",
    "on the device itself": "the way on the device",
}


def main() -> int:
    """Run the command and return 0 where it ends as it must."""
    try:
        check_device("tensorrt", "GPU")
        print("skipped: this computer runs TensorRT")
        return SKIPPED
    except UnavailableError:
        pass
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "edgebert", "bench", "--target", "jetson"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(
            command, cwd=name, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        left = [path.name for path in Path(name).iterdir()]
    print(ran.stderr.strip())
    missing = [what for part, what in PARTS.items() if part not in ran.stderr]
    held = ran.returncode == UnavailableError.exit_code and not missing and not left and not ran.stdout
    print(
        f"{'PASS' if held else 'FAIL'} exit code {ran.returncode}, {len(PARTS) - len(missing)} of {len(PARTS)} parts said"
        f"{''.join(f', not {what}' for what in missing)}, {len(left)} files written"
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
