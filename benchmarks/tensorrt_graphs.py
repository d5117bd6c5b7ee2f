"""Hold the graphs for TensorRT of every family against the parser's rules and ONNX Runtime: strongly typed INT8 and FP16, weakly typed too.

    python benchmarks/tensorrt_graphs.py                  # published sizes, about half an hour on a busy core
    python benchmarks/tensorrt_graphs.py --only vit-s --only resnet
    python benchmarks/tensorrt_graphs.py --small          # two blocks of 32 pixels, a minute

Random weights (`_tensorrt_subjects.py`), crops of two photographs. Of each network the FP16 form, the INT8 form of the portable
graph, of that with an INT8 stem (what TensorRT is given) and, where there is attention, with INT8 attention. A line is PASS where
the form breaks no rule (`edgebert.export.tensorrt_rules`), no activation lies beyond FP16, it answers as its source within what
rounding explains (`edgebert.export.half_parity`), no image that is not a near-tie gets another class, and the weakly typed form
answers as its source in float32: within 1e-4 of the largest logit without Q/DQ, within what rounding explains with them.

Expected: PASS for each. What it does not say: that TensorRT builds the graph, is fast, or adds up as assumed. Nothing ran in TensorRT.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from _tensorrt_subjects import SUBJECTS, Subject, subject

from edgebert.calibration.placement import Layout
from edgebert.errors import EdgebertError
from edgebert.export.half_overflow import check_half_range
from edgebert.export.half_parity import answers_in_float32, half_parity
from edgebert.export.tensorrt_graph import strong_graph, weak_graph

SAME = (
    1e-4  # of the largest logit: the weakly typed form moves one factor of attention, and nothing else that is computed
)


def sources(network: Subject) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield the name of each form and the graph it is made of."""
    yield "fp16", network.float32
    yield "int8", network.int8()
    yield "int8, stem", network.int8(Layout(stem=True))
    if network.has_attention:
        yield "int8, attention", network.int8(Layout(attention="full"))


def held(network: Subject, form: str, source: onnx.ModelProto) -> dict[str, object]:
    """Make both forms of one graph and compare them with it.

    Raises:
        EdgebertError: a rule is broken, or FP16 does not hold a value.
    """
    strong, weak = strong_graph(source), weak_graph(source)
    onnx.checker.check_model(strong, full_check=True)
    peaks = check_half_range(source, network.images[:4])
    parity = half_parity(source, strong, network.images)
    reference, portable = (answers_in_float32(each, network.images) for each in (source, weak))
    weakly = float(np.abs(reference - portable).max())
    # In an INT8 graph one unit in the last place of float32 changes which of two steps a value between them takes.
    allowed = SAME * parity.scale if form == "fp16" else parity.allowed
    return {
        "nodes": len(strong.graph.node),
        "largest": peaks[0].largest,
        "parity": parity.to_text(),
        "of_control": parity.rounded_difference / max(parity.control, 1e-30),
        "flips": parity.flips,
        "decided": parity.decided,
        "images": parity.images,
        "weak_difference": weakly,
        "passed": parity.holds and weakly <= allowed,
    }


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each form and the summary; return 1 where one does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SUBJECTS, action="append", help="this network; repeatable")
    parser.add_argument("--small", action="store_true", help="small configurations")
    parser.add_argument("--images", type=int, default=16, help="how many crops are compared on")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    rows: list[dict[str, object]] = []
    for name in given.only or SUBJECTS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="edgebert-") as folder:
            network = subject(name, Path(folder), full=not given.small, judge=given.images)
            for form, source in sources(network):
                try:
                    row = held(network, form, source)
                    said = f"{row['nodes']} nodes, activations up to {row['largest']:.3g}; {row['parity']}; weakly typed {row['weak_difference']:.2g}"
                except EdgebertError as error:
                    row, said = {"passed": False}, str(error).replace("\n", "; ")
                rows.append({"network": name, "form": form, **row})
                print(f"{'PASS' if row['passed'] else 'FAIL'} {name}, {form}: {said}", flush=True)
        print(f"     {name}: {time.monotonic() - started:.0f} s", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    passed = [row for row in rows if row["passed"]]
    print(f"{'PASS' if len(passed) == len(rows) else 'FAIL'} {_summary(rows)}")
    return 0 if len(passed) == len(rows) else 1


def _summary(rows: list[dict[str, object]]) -> str:
    measured = [row for row in rows if "flips" in row]
    images = sum(int(str(row["images"])) for row in measured)
    flips = sum(int(str(row["flips"])) for row in measured)
    decided = sum(int(str(row["decided"])) for row in measured)
    ratio = max((float(str(row["of_control"])) for row in measured), default=0.0)
    held_ = sum(bool(row["passed"]) for row in rows)
    return (
        f"{held_} of {len(rows)} strongly typed forms of {len({row['network'] for row in rows})} networks break no rule and answer "
        f"as their sources: at most {ratio:.2f} times the control, {flips} of {images} decisions differ, none of {decided} that are "
        "no near-ties; nothing ran in TensorRT"
    )


if __name__ == "__main__":
    sys.exit(main())
