"""What every `make proof-*` does: run the items of a list, print one line for each, and write its page under docs/proofs/.

What an item found is kept under runs/, with the commit, the computer and the time; `--keep` takes what is there and runs the
rest, so that an interrupted proof goes on.
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
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a list: what must hold, and the command that shows it; `{data}`, `{json}` and `{folder}` are filled in."""

    name: str
    holds: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A list and its page.

    Attributes:
        name: of the make target and the page, such as `distil`.
        title: of the page.
        items: in their order.
        packages: whose versions the page names.
    """

    name: str
    title: str
    items: tuple[Item, ...]
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the records lie."""
        return ROOT / f"runs/proof-{self.name}"

    @property
    def takes_data(self) -> bool:
        """Whether an item reads images that are not in the repository."""
        return any("{data}" in part for item in self.items for part in item.command)

    def run(self, description: str | None, arguments: Sequence[str] | None = None) -> int:
        """Run the items that the command line names, write the page, and return 1 where one fails."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        if self.takes_data:
            parser.add_argument("data", type=Path, help="holds fashion_mnist/ and bccd_cells/")
        else:
            parser.set_defaults(data=ROOT)
        parser.add_argument(
            "--only", choices=[item.name for item in self.items], action="append", help="run this item; repeatable"
        )
        parser.add_argument("--keep", action="store_true", help="take what an earlier call found, run the rest")
        given = parser.parse_args(arguments)
        self.folder.mkdir(parents=True, exist_ok=True)
        for item in self.items:
            chosen = not given.only or item.name in given.only
            if chosen and not (given.keep and (self.folder / f"{item.name}.record.json").exists()):
                self._run_item(item, given.data.absolute())
        records = [self._record(item) for item in self.items]
        page = ROOT / f"docs/proofs/{self.name}.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text(self.page(records), encoding="utf-8")
        return 0 if all(record["passed"] for record in records) else 1

    def _run_item(self, item: Item, data: Path) -> None:
        """Run one item, print its line, and keep what it said."""
        command = [
            part.format(data=data, json=self.folder / f"{item.name}.json", folder=self.folder) for part in item.command
        ]
        started = time.monotonic()
        ran = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "CI": "1"},
        )
        said = [self.shown(line, data) for line in ran.stdout.strip().splitlines() if line.strip()]
        record = {
            "passed": ran.returncode == 0,
            "said": said[-_LINES:],
            "minutes": (time.monotonic() - started) / 60,
            "when": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": commit_of_checkout(),
            "load": os.getloadavg()[1],
        }
        (self.folder / f"{item.name}.record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(
            f"{'PASS' if record['passed'] else 'FAIL'} {item.name}: {said[-1] if said else 'said nothing'}", flush=True
        )

    def shown(self, line: str, data: Path) -> str:
        """Return a line without the paths of this computer."""
        line = line.replace(str(data), "FOLDER").replace(str(self.folder), f"runs/proof-{self.name}")
        return re.sub(rf"{re.escape(tempfile.gettempdir())}/[^/\s`]+", "TMP", line.replace(f"{ROOT}/", ""))

    def _record(self, item: Item) -> dict[str, object]:
        """Return what an item found, or that it was not run."""
        path = self.folder / f"{item.name}.record.json"
        if not path.exists():
            return {"passed": False, "said": [_NOT_RUN], "minutes": 0.0, "when": "-", "commit": "-", "load": 0.0}
        record: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
        return record

    def page(self, records: list[dict[str, object]]) -> str:
        """Return the page of as many records as there are items."""
        packages = ", ".join(f"{name} {version(name)}" for name in self.packages)
        lines = [
            f"# Proof: {self.title}",
            "",
            f"Written by `make proof-{self.name} DATA=FOLDER`; FOLDER holds `fashion_mnist/` and `bccd_cells/`."
            if self.takes_data
            else f"Written by `make proof-{self.name}`.",
            f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}, Python {platform.python_version()}, {packages}.",
            "",
            "| item | what must hold | | minutes | when, at which commit | load |",
            "|---|---|---|--:|---|--:|",
        ]
        for item, record in zip(self.items, records, strict=True):
            lines.append(
                f"| {item.name} | {item.holds} | **{_verdict(record)}** | {record['minutes']:.1f} "
                f"| {record['when']}, {record['commit']} | {record['load']:.1f} |"
            )
        for item, record in zip(self.items, records, strict=True):
            said = record["said"]
            assert isinstance(said, list)
            command = " ".join(item.command).format(json="FILE", data="FOLDER", folder=f"runs/proof-{self.name}")
            lines += ["", f"## {item.name}", "", f"`python {command}`", "", "```", *said, "```"]
        lines += ["", "Load: of the computer over five minutes, at the end of the item; the machine is a shared one."]
        return "\n".join(lines) + "\n"


_NOT_RUN = "not run"
_LINES = 120  # of what an item says, the last ones


def _verdict(record: dict[str, object]) -> str:
    if record["said"] == [_NOT_RUN]:
        return _NOT_RUN
    return "PASS" if record["passed"] else "FAIL"


def commit_of_checkout() -> str:
    """Return the commit that runs, with `-dirty` where files differ from it; the proofs' own pages, written as they go, do not count."""
    commit = _git("describe", "--always", "--exclude=*")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/proofs")
    return f"{commit}-dirty" if changed else commit or "unknown"


def _git(*arguments: str) -> str:
    ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
