"""What `Classifier.predict(array)` takes beyond the bare call of the backend with the same input.

    python benchmarks/runtime_overhead.py                                   makes bundles of 1 and 5 ms
    python benchmarks/runtime_overhead.py --bundle a.edgebert --bundle b.edgebert --json overhead.json

Both sides run in one process on the very same opened model, in blocks of ABBA, on the same images in the same order. The bare
call is the fastest that the backend's own Python API has: in ONNX Runtime `session.run` on the array; in OpenVINO `infer` of a
request, after a copy of the array into the request's input tensor. Shown as well, without a bound: `infer` on an input that is there
already (`preset`), and what OpenVINO's documentation teaches, `request.infer([array])` (`documented`).

Must hold for every bundle whose bare call takes 1 ms and more, in ONNX Runtime and in OpenVINO: the difference of the p50 is at most
max(3 %, 40 microseconds). The figure is the median over rounds of the difference of a round's block medians, its interval a bootstrap
over rounds. What it does not say: what decoding and resizing take; the array has the right size already.

On a busy computer another process takes the processor away in the middle of a call; `--clock cpu` counts the processor time of the
calling thread instead, which is where both backends work with `--threads 1`. A verdict of record is by the wall.

Ends with PASS or FAIL and the worst figure; returns 1 where one fails. About `--seconds` for each bundle and backend.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _timed_bundles import TARGETS, timed_bundle
from numpy.typing import NDArray

from edgebert import Classifier
from edgebert.bench.recorder import quiet
from edgebert.bench.schedule import order_of_blocks
from edgebert.bench.statistics.formulas import percentile_interval
from edgebert.preprocess import RgbImage
from edgebert.runtime import lifetime

RELATIVE, ABSOLUTE_US = 0.03, 40.0
_LEAST_MS = 1.0  # of a bare call; below it the bound is not asked for
_BLOCK_S = 0.01
_REWARM = 1  # queries of a block that are not counted
_RESAMPLES = 2_000

Call = Callable[[int], object]
Clock = Callable[[], int]

_CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter_ns, "cpu": time.thread_time_ns}


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """What was found for one bundle in one backend.

    Attributes:
        bundle: its name.
        backend: which runner.
        bare_us: p50 of the bare call, microseconds.
        extra_us: by how much `predict` takes longer, microseconds.
        low_us: lower end of its 95 % interval.
        high_us: upper end.
        judged: whether the bare call takes 1 ms and more.
        others_us: what other calls of the backend take beyond the bare one, microseconds.
    """

    bundle: str
    backend: str
    bare_us: float
    extra_us: float
    low_us: float
    high_us: float
    judged: bool
    others_us: Mapping[str, float]

    @property
    def bound_us(self) -> float:
        """The most that `predict` may take longer."""
        return max(RELATIVE * self.bare_us, ABSOLUTE_US)

    @property
    def passed(self) -> bool:
        """Whether it holds, or is not asked for."""
        return not self.judged or self.extra_us <= self.bound_us

    def to_text(self) -> str:
        """Return one line."""
        others = "".join(f", {name} {value:+.1f}" for name, value in self.others_us.items())
        verdict = ("PASS" if self.passed else "FAIL") if self.judged else "not judged"
        return (
            f"{self.bundle}, {self.backend}: bare {self.bare_us:,.1f} us, predict {self.extra_us:+.1f} us "
            f"({self.low_us:+.1f} to {self.high_us:+.1f}), bound {self.bound_us:.1f}{others}: {verdict}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Measure every bundle in every backend that it has a form for; print a line for each and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, action="append", help="repeatable; none makes bundles of --milliseconds")
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[1.2, 6.0], help="of the bundles it makes")
    parser.add_argument("--folder", type=Path, help="where made bundles are kept")
    parser.add_argument("--threads", type=int, default=1, help="of the model; 0 means the physical cores")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each bundle and backend")
    parser.add_argument("--images", type=int, default=8, help="distinct ones, in turn")
    parser.add_argument(
        "--clock", choices=tuple(_CLOCKS), default="wall", help="`cpu`: of the calling thread, see above"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="runtime-overhead-") as scratch:
        bundles = given.bundle or [timed_bundle(ms, given.folder or Path(scratch)) for ms in given.milliseconds]
        found = []
        for bundle in bundles:
            for target in TARGETS:
                found.append(measured(bundle, target, given))
                print(found[-1].to_text(), flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    return _verdict(found)


def measured(bundle: Path, target: str, given: argparse.Namespace) -> Overhead:
    """Open a bundle once and measure `predict` against the calls of its backend."""
    images: int = given.images
    before = set(lifetime._open_models)
    with Classifier(bundle, target=target, threads=given.threads) as classifier:
        (runner,) = (model for model in set(lifetime._open_models) - before if hasattr(model, "infer"))
        spec = classifier.input_spec
        pictures = list(
            np.random.default_rng(0).integers(0, 256, (images, spec.height, spec.width, 3), np.uint8)
        )  # (height, width, 3) each
        calls: dict[str, Call] = {"predict": lambda number: classifier.predict(pictures[number % images])}
        calls |= _BARE_CALLS[target](runner._native[0], pictures)
        times = interleaved(list(calls.values()), _CLOCKS[given.clock], seconds=given.seconds)  # (calls, rounds), ns
    bare = times[1]
    extra = (times - bare) / 1e3
    low, high = _interval(extra[0])
    bare_us = float(np.median(bare)) / 1e3
    return Overhead(
        bundle=bundle.stem,
        backend=TARGETS[target],
        bare_us=bare_us,
        extra_us=float(np.median(extra[0])),
        low_us=low,
        high_us=high,
        judged=bare_us >= 1e3 * _LEAST_MS,
        others_us={name: float(np.median(row)) for name, row in zip(list(calls)[2:], extra[2:], strict=True)},
    )


def interleaved(calls: Sequence[Call], clock: Clock, *, seconds: float) -> NDArray[np.float64]:
    """Return the mean of the medians of each call's two blocks in every round, float64 (calls, rounds), in ns.

    A round is a random order of the calls followed by its mirror image: a linear drift hits all alike.
    """
    slowest = max(float(np.median(_block(call, clock, 10))) for call in calls)
    queries = int(np.clip(_BLOCK_S * 1e9 / slowest, 3, 100))
    rounds = max(6, round(seconds * 1e9 / (2 * len(calls) * (queries + _REWARM) * slowest)))
    found = np.zeros((len(calls), rounds))
    with quiet():
        for number, order in enumerate(order_of_blocks(arms=len(calls), rounds=rounds, seed=0)):
            for place in order.tolist():
                found[place, number] += float(np.median(_block(calls[place], clock, queries))) / 2
    return found


def _block(call: Call, clock: Clock, queries: int) -> NDArray[np.int64]:
    times = np.empty(queries + _REWARM, np.int64)
    for number in range(queries + _REWARM):
        started = clock()
        call(number)
        times[number] = clock() - started
    return times[_REWARM:]


def _bare_onnxruntime(session: Any, images: Sequence[RgbImage]) -> dict[str, Call]:
    inputs = [{session.get_inputs()[0].name: image[np.newaxis]} for image in images]  # (1, height, width, 3)
    outputs = [session.get_outputs()[0].name]
    return {"bare": lambda number: session.run(outputs, inputs[number % len(inputs)])[0]}


def _bare_openvino(compiled: Any, images: Sequence[RgbImage]) -> dict[str, Call]:
    request, documented = compiled.create_infer_request(), compiled.create_infer_request()
    tensor, logits = request.get_input_tensor(0).data, request.get_output_tensor(0).data
    inputs = [image[np.newaxis] for image in images]  # (1, height, width, 3)

    def bare(number: int) -> NDArray[np.float32]:
        tensor[0] = images[number % len(images)]
        request.infer(share_outputs=True)
        answer: NDArray[np.float32] = logits.copy()
        return answer

    return {
        "bare": bare,
        "preset": lambda number: request.infer(share_outputs=True),
        "documented": lambda number: documented.infer([inputs[number % len(inputs)]]),
    }


_BARE_CALLS: Mapping[str, Callable[[Any, Sequence[RgbImage]], dict[str, Call]]] = {
    "cpu": _bare_onnxruntime,
    "intel-cpu": _bare_openvino,
}


def _interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the median over rounds."""
    picks = np.random.default_rng(0).integers(len(differences), size=(_RESAMPLES, len(differences)))
    interval = percentile_interval(np.median(differences[picks], axis=1))
    return float(interval[0]), float(interval[1])


def _verdict(found: Sequence[Overhead]) -> int:
    judged = [one for one in found if one.judged]
    if not judged:
        print(f"FAIL no bundle takes {_LEAST_MS:g} ms or more")
        return 1
    worst = max(judged, key=lambda one: one.extra_us / one.bound_us)
    passed = all(one.passed for one in found)
    print(
        f"{'PASS' if passed else 'FAIL'} predict takes at most {worst.extra_us:.1f} us ({100 * worst.extra_us / worst.bare_us:.1f} %) "
        f"more than the bare call of {worst.bare_us / 1e3:.2f} ms ({worst.bundle}, {worst.backend}), of {len(judged)} judged"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
