"""Our use of TensorRT against the official bindings of five versions: tests/tensorrt, and how much it is that they hold.

    python benchmarks/tensorrt_bindings.py

The wheels come from PyPI into temporary folders and are removed (their licence); they are loaded over stub libraries that gcc makes on the
spot. For each version prints how many names our code asks for, at how many places it calls something, and how many mutants of our
code (a name misspelt, an argument too many, none at all) and losses of a name were tried; the tests found them all, or this
fails. Returns 1 where a test failed, or was skipped because the wheels cannot be had here: two minutes on a busy core.

What it does not say: that an engine is built or runs. Nothing ran in TensorRT.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import held_by_tests

ROOT = Path(__file__).parent.parent
_LOSABLE = ("attribute", "guard", "override")  # a keyword goes with its method


def main() -> int:
    """Run the tests, print the figures, and return 0 where all of them passed."""
    failed = held_by_tests.main(["--counted", "tests of the bindings", "tests/tensorrt"])
    sys.path.insert(0, str(ROOT))
    from tests.tensorrt.wheels import WheelsMissing

    try:
        versions, tried, lost = _figures()
    except WheelsMissing as error:
        print(f"FAIL nothing was held against the bindings: {error}")
        return 1
    said = f"{tried} mutants of our code and {lost} losses of a name tried on the bindings of {versions}"
    print(f"FAIL {said}, and a test failed" if failed else f"PASS {said}: all found, and nothing else")
    return failed


def _figures() -> tuple[str, int, int]:
    """Print a line for each version; return the versions, how many mutants there are, and how many names can be lost."""
    from tests.tensorrt.mutants import mutants
    from tests.tensorrt.program import tensorrt_sources
    from tests.tensorrt.usage import usage_of
    from tests.tensorrt.wheels import all_bindings

    sources = tensorrt_sources(ROOT)
    with tempfile.TemporaryDirectory(prefix="bindings-") as name:
        apis = {version: each.api for version, each in all_bindings(Path(name)).items()}
    usage = usage_of(sources, apis)
    lost = 0
    for version, uses in usage.uses.items():
        names = {use.full_name for use in uses if use.what != "call"}
        lost += len({(use.owner, use.name) for use in uses if use.present and use.what in _LOSABLE})
        calls = sum(use.what == "call" for use in uses)
        print(f"{version}: {len(names)} names and {calls} calls of {len(sources)} modules")
    return ", ".join(apis), sum(1 for _ in mutants(sources, usage, apis)), lost


if __name__ == "__main__":
    sys.exit(main())
