"""What tests of the suite hold of a list: they are run, counted by file, and a test that was skipped is one that holds nothing.

    python benchmarks/held_by_tests.py tests/remote/test_remote_hostile.py
    python benchmarks/held_by_tests.py tests/remote/test_ssh.py --counted "host key" -k host_key

Arguments are paths and options of pytest; slow tests run too. Prints a line for each file, one for every test that failed or
was skipped with its reason, and a summary. Returns 1 where a test failed, was skipped, or none was found: what a proof says of a
test that did not run would be nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests, print what they say, and return 0 where all of them passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counted", default="tests", metavar="WHAT", help="what the summary calls them")
    given, passed_on = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory(prefix="held-by-tests-") as name:
        found = Path(name) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", f"--junitxml={found}", *passed_on]
        ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if not found.exists():
            print(ran.stdout.strip()[-4000:])
            print("FAIL pytest ended before it could count anything")
            return 1
        held = holds(found.read_text(encoding="utf-8"), ran.stdout, given.counted)
    return 0 if held and ran.returncode == 0 else 1


def holds(report: str, output: str, counted: str) -> bool:
    """Print what a run of pytest found, and say whether every test passed.

    Args:
        report: the run's JUnit XML.
        output: what pytest printed.
        counted: what the summary calls the tests.
    """
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    for file, number in sorted(Counter(str(case.get("classname")) for case in cases).items()):
        print(f"{number} in {file.replace('.', '/')}.py")
    bad = [said for case in cases if (said := _said(case))]
    for line in (*bad, *_notes(output)):
        print(line)
    held = bool(cases) and not bad
    print(f"{'PASS' if held else 'FAIL'} {len(cases) - len(bad)} of {len(cases)} {counted} passed")
    return held


def _said(case: ElementTree.Element) -> str:
    """Return why a test holds nothing; empty where it passed."""
    for tag in ("failure", "error", "skipped"):
        part = case.find(tag)
        if part is not None:
            reason = " ".join((part.get("message") or "").split())
            return f"{tag}: {case.get('name')}: {reason:.300}"
    return ""


def _notes(output: str) -> list[str]:
    """Return what the suite's own plug-ins say at the end of a run."""
    return [line for line in output.splitlines() if line.startswith(("audit: ", "tensorrt: "))]


if __name__ == "__main__":
    sys.exit(main())
