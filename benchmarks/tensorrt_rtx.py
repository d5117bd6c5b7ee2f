"""Build the strongly typed graphs of every family with NVIDIA's own parser and builder: TensorRT for RTX, which needs no GPU to build.

    python benchmarks/tensorrt_rtx.py                     # published sizes, about half an hour on a busy core
    python benchmarks/tensorrt_rtx.py --small             # two blocks of 32 pixels, five minutes

The networks and forms of `tensorrt_graphs.py`, each through `edgebert.export.engine_build.build_plan` in a process of its own, for
batches of 1, and 1 to 8. A line is PASS where the parser takes the graph and the builder gives an engine. 93 MB of wheels are
fetched into a temporary folder. Exit 69 where they cannot be had.

What it does not say: that TensorRT on a Jetson builds the graph (its builder is another one), is fast, or answers as ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import onnx
from _tensorrt_subjects import SUBJECTS, subject
from tensorrt_graphs import sources

from edgebert.errors import UnavailableError
from edgebert.export.tensorrt_graph import strong_graph

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.tensorrt.rtx import VERSION, Rtx, installed_rtx
from tests.tensorrt.wheels import WheelsMissing

BATCHES = ((1, 1, 1), (1, 4, 8))


def built(rtx: Rtx, graph: onnx.ModelProto, folder: Path, precision: str) -> tuple[bool, str]:
    """Build one graph for each range of batches; say whether it went, and what there is to say."""
    file = folder / "model.onnx"
    file.write_bytes(graph.SerializeToString())
    done = [rtx.build(file, folder / "engine.plan", precision=precision, batches=batches) for batches in BATCHES]
    errors = "; ".join(each.error for each in done if each.error).replace("\n", "; ")
    notes = " ".join(sorted({note.strip() for each in done for note in each.notes}))
    return not errors, errors or f"{done[0].layers} layers, {done[0].plan_bytes / (1 << 20):.1f} MiB. {notes}"


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each form and the summary; return 1 where one is not built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SUBJECTS, action="append", help="this network; repeatable")
    parser.add_argument("--small", action="store_true", help="small configurations")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="edgebert-rtx-") as place:
        try:
            rtx = installed_rtx(Path(place))
        except WheelsMissing as error:
            print(f"not run: {error}")
            return UnavailableError.exit_code
        for name in given.only or SUBJECTS:
            started = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="edgebert-") as folder:
                network = subject(name, Path(folder), full=not given.small, judge=4)
                for form, source in sources(network):
                    passed, said = built(rtx, strong_graph(source), Path(folder), "fp16" if form == "fp16" else "int8")
                    rows.append({"network": name, "form": form, "passed": passed, "said": said})
                    print(f"{'PASS' if passed else 'FAIL'} {name}, {form}: {said}", flush=True)
            print(f"     {name}: {time.monotonic() - started:.0f} s", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    count = sum(bool(row["passed"]) for row in rows)
    print(
        f"{'PASS' if count == len(rows) else 'FAIL'} {count} of {len(rows)} strongly typed forms of "
        f"{len({row['network'] for row in rows})} networks are parsed and built by TensorRT for RTX {VERSION}; none was run"
    )
    return 0 if count == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
