"""Teachers that `distill` must refuse, by the command line: other class names, missing ones, and one that answers NaN.

    python benchmarks/refused_teachers.py

On a part of the digits, written as a folder. Expected: each is refused with exit code 65 or 1 and the exact difference or the
images named, nothing is written, and `--class-map` lets the renamed class through.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands below as well

from PIL import Image


def main() -> int:
    """Print one line for each case; return 0 where all came out as expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="refused-teachers-") as name:
        cases = run_cases(Path(name))
    for case, held in cases.items():
        print(f"{'PASS' if held else 'FAIL'}: {case}")
    passed = all(cases.values())
    if arguments.json:
        result = {"cases": cases, "passed": passed}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if passed else 1


def run_cases(folder: Path) -> dict[str, bool]:
    """Return what each case is and whether it came out as expected."""
    from edgebert.data import load_dataset

    digits = load_dataset("digits")
    for example in digits.train[:300]:
        kind = folder / "data" / digits.class_names[example.label]
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(example.load()).save(kind / f"{example.pixel_sha256[:12]}.png")
    data = folder / "data"
    teacher = folder / "teacher"
    made = _edgebert("train", str(data), "--model", "nano", "--epochs", "2", "--device", "cpu", "-o", str(teacher))
    if made.returncode:
        raise SystemExit(made.stderr)
    broken = folder / "broken"
    _overflowing(teacher, broken)
    output = folder / "student"
    distil = ["--student", "nano", "--epochs", "1", "--device", "cpu", "-o", str(output)]

    cases = {}
    ran = _edgebert("distill", str(data), "--teacher", str(broken), *distil)
    cases["a teacher that answers NaN or infinity: the images of the batch are named"] = (
        ran.returncode == 1
        and "the teacher answers with NaN or infinity" in ran.stderr
        and ".png`" in ran.stderr
        and not output.exists()
    )
    (data / "0").rename(data / "zero")
    ran = _edgebert("distill", str(data), "--teacher", str(teacher), *distil)
    cases["a teacher with another class name: both names are told"] = (
        ran.returncode == 65
        and "only in the data `zero`, only in the model `0`" in ran.stderr
        and "--class-map zero=0" in ran.stderr
        and not output.exists()
    )
    ran = _edgebert("distill", str(data), "--teacher", str(teacher), "--class-map", "zero=0", *distil)
    cases["the same with --class-map zero=0: distilled"] = ran.returncode == 0 and output.exists()
    (data / "zero").rename(folder / "aside")
    ran = _edgebert("distill", str(data), "--teacher", str(teacher), *distil, "--force")
    cases["a class that the data lack: it is told"] = (
        ran.returncode == 65 and "only in the data none, only in the model `0`" in ran.stderr
    )
    return cases


def _overflowing(teacher: Path, output: Path) -> None:
    """Write a copy of a teacher whose finite weights give logits beyond the range of float32."""
    import torch

    from edgebert.models.checkpoint import load_checkpoint, save_checkpoint
    from edgebert.models.student import StudentForImageClassification

    checkpoint = load_checkpoint(teacher)
    assert isinstance(checkpoint.model, StudentForImageClassification)
    with torch.no_grad():
        checkpoint.model.classifier.weight.fill_(3e38)
    output.mkdir()
    save_checkpoint(output, checkpoint.model, checkpoint.card, checkpoint.examples)


def _edgebert(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edgebert", *arguments], capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
