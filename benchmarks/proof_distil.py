"""The list that the distillation stands by: one line for each item with its figure, and docs/proofs/distil.md.

    make proof-distil DATA=FOLDER          FOLDER holds fashion_mnist/ and bccd_cells/
    python benchmarks/proof_distil.py FOLDER --only memory

Long: an hour and more on two cores. What an item found is kept under runs/proof-distil/, with the commit, the computer and the
time; `--keep` takes what is there and runs the rest, so that an interrupted proof goes on. Returns 1 where an item fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/proofs/distil.md"


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the list: what must hold, and the command that shows it; `{name}` is filled in."""

    name: str
    holds: str
    command: tuple[str, ...]


ITEMS = (
    Item(
        "fashion",
        "Fashion-MNIST, three seeds, at most 15 epochs on two CPU cores: a student of at most 0.11 M parameters has >= 92.0 % (predicted 91.8), and >= 0.3 points more than on labels only (predicted 0.5; both bars moved once, after the first three seeds)",
        ("benchmarks/fashion_mnist.py", "{data}/fashion_mnist", "--json", "{json}"),
    ),
    Item(
        "kills",
        "100 SIGKILLs at steps, epoch borders, inside writes and at random times: all resume to bit-equal weights",
        ("benchmarks/kill_resume.py", "--kills", "100", "--json", "{json}"),
    ),
    Item(
        "size",
        "`edgebert size` at 224 px, intel-cpu, 3 ms ends in minutes (aim 5), and the proposed student, trained, is within 10 % of its untrained twin",
        ("benchmarks/size_twin.py", "{data}/bccd_cells", "--images", "300", "--json", "{json}"),
    ),
    Item(
        "memory",
        "peak memory of `distill` on 60,000 images within 15 % of that on 6,000",
        ("benchmarks/distil_memory.py", "{data}/fashion_mnist", "--json", "{json}"),
    ),
    Item(
        "refusals",
        "a teacher with other or missing class names, or one that answers NaN, is refused with the difference or the images",
        ("benchmarks/refused_teachers.py", "--json", "{json}"),
    ),
    Item(
        "options",
        "every key of a recipe is in the docs with what it is for, its default and its source",
        ("docs/options.py", "--check"),
    ),
    Item(
        "cache",
        "a step with the cache costs at most 1.1 times one with labels only",
        ("benchmarks/cached_step.py", "{data}/fashion_mnist", "--json", "{json}"),
    ),
    Item(
        "processes",
        "two processes give the loss curve of one with the same global batch",
        ("-m", "pytest", "-q", "tests/train/test_train_loop.py", "-k", "two_processes"),
    ),
)


def main() -> int:
    """Run the items and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds fashion_mnist/ and bccd_cells/")
    parser.add_argument(
        "--only", choices=[item.name for item in ITEMS], action="append", help="run this item; repeatable"
    )
    parser.add_argument("--keep", action="store_true", help="take what an earlier call found, run the rest")
    arguments = parser.parse_args()
    folder = ROOT / "runs/proof-distil"
    folder.mkdir(parents=True, exist_ok=True)
    for item in ITEMS:
        chosen = not arguments.only or item.name in arguments.only
        if chosen and not (arguments.keep and (folder / f"{item.name}.record.json").exists()):
            run_item(item, arguments.data.absolute(), folder)
    records = [read_record(folder, item) for item in ITEMS]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(records), encoding="utf-8")
    return 0 if all(record["passed"] for record in records) else 1


def run_item(item: Item, data: Path, folder: Path) -> None:
    """Run one item, print its line, and keep what it said."""
    command = [part.format(data=data, json=folder / f"{item.name}.json") for part in item.command]
    started = time.monotonic()
    ran = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "CI": "1"},
    )
    said = [shown(line, data) for line in ran.stdout.strip().splitlines() if line.strip()]
    record = {
        "passed": ran.returncode == 0,
        "said": said[-12:],
        "minutes": (time.monotonic() - started) / 60,
        "when": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "load": os.getloadavg()[1],
    }
    (folder / f"{item.name}.record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{'PASS' if record['passed'] else 'FAIL'} {item.name}: {said[-1] if said else 'said nothing'}", flush=True)


def shown(line: str, data: Path) -> str:
    """Return a line without the paths of this computer."""
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[^/\s`]+", "TMP", line.replace(str(data), "FOLDER"))


def read_record(folder: Path, item: Item) -> dict[str, object]:
    """Return what an item found, or that it was not run."""
    path = folder / f"{item.name}.record.json"
    if not path.exists():
        return {"passed": False, "said": ["not run"], "minutes": 0.0, "when": "-", "commit": "-", "load": 0.0}
    record: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return record


def page(records: list[dict[str, object]]) -> str:
    """Return the page."""
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "kornia", "accelerate", "openvino")
    )
    lines = [
        "# Proof: distillation",
        "",
        "Written by `make proof-distil DATA=FOLDER` (`benchmarks/proof_distil.py`); FOLDER holds `fashion_mnist/` and `bccd_cells/`.",
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}, Python {platform.python_version()}, {packages}.",
        "",
        "| item | what must hold | | minutes | when, at which commit | load |",
        "|---|---|---|--:|---|--:|",
    ]
    for item, record in zip(ITEMS, records, strict=True):
        lines.append(
            f"| {item.name} | {item.holds} | **{'PASS' if record['passed'] else 'FAIL'}** | {record['minutes']:.1f} "
            f"| {record['when']}, {record['commit']} | {record['load']:.1f} |"
        )
    for item, record in zip(ITEMS, records, strict=True):
        said = record["said"]
        assert isinstance(said, list)
        command = " ".join(item.command).replace("{json}", "FILE").replace("{data}", "FOLDER")
        lines += ["", f"## {item.name}", "", f"`python {command}`", "", "```", *said, "```"]
    lines += ["", "Load: of the computer over five minutes, at the end of the item; the machine is a shared one."]
    return "\n".join(lines) + "\n"


def _commit() -> str:
    ran = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return ran.stdout.strip() or "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
