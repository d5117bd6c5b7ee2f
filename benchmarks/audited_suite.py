"""Runs the whole test suite under its audit hook (tests/audit/hook.py), and counts what was judged.

    python benchmarks/audited_suite.py                      every test, slow ones too: half an hour on two quiet cores
    python benchmarks/audited_suite.py -m "not slow"        as `make test`
    python benchmarks/audited_suite.py tests/runtime        a part; lines of the table that it does not use fail nothing

The hook is on in every run of pytest; this adds what a hook cannot see. Files that git knows or would know, and the top of the home
folder, are listed before and after, so that a write of native code or of another program shows too. Arguments are pytest's.
Prints the counts by event, the exceptions that were used, and the violations; the summary comes last. Returns 1 where a test failed,
a rule was broken or a file was left.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Run pytest, print the counts, and return 0 where nothing broke a rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result there as well")
    given, passed_on = parser.parse_known_args(arguments)
    before = _files()
    with tempfile.TemporaryDirectory(prefix="audited-suite-") as name:
        found = Path(name) / "audit.json"
        command = [sys.executable, "-m", "pytest", "-q", "--audit-json", str(found), *passed_on]
        ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        print(ran.stdout.strip()[-4000:])
        if not found.exists():
            print("pytest ended before it could count anything")
            return 1
        result = json.loads(found.read_text(encoding="utf-8"))
    left = sorted(_files() - before)
    for event, count in result["counts"].items():
        print(f"{event}: {count:,}")
    for line in (*result["violations"], *(f"left behind: {path}" for path in left)):
        print(line)
    if given.json:
        given.json.write_text(
            json.dumps({**result, "left": left, "pytest": ran.returncode}, indent=1) + "\n", encoding="utf-8"
        )
    print(
        f"{sum(result['counts'].values()):,} events judged in {result['processes']:,} processes, {len(result['used'])} of "
        f"{result['exemptions']} exceptions used, {len(result['violations'])} violations, {len(left)} files left behind; pytest: "
        f"{ran.stdout.strip().splitlines()[-1] if ran.stdout.strip() else ran.returncode}"
    )
    return 1 if ran.returncode or result["violations"] or left else 0


def _files() -> set[str]:
    """Return what lies in the checkout outside ignored folders, with its state, and at the top of the home folder."""
    status = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {*status.stdout.splitlines(), *(f"~/{path.name}" for path in Path.home().iterdir())}


if __name__ == "__main__":
    sys.exit(main())
