"""Images per second of `Classifier.submit` under eight clients, against the best offline throughput that the harness finds.

    python benchmarks/submit_throughput.py                           makes a bundle of 14 ms (on one thread)
    python benchmarks/submit_throughput.py --bundle a.edgebert --target cpu --rounds 20 --json submit.json

Offline: the harness's own windows (`edgebert.bench.scenarios.probe`), which sweep batch {1, 2, 4, 8, 16, 32} x calls in flight; the two
best points of the sweep are measured again. Submit: each client sends an image, waits for its answer, and sends the next, so that
there are never more than eight images to make a batch of. All of it runs on the very same opened model, in windows that take turns: a
round is a random order of the two offline points and submit, then its mirror image.

Must hold for every bundle that takes 5 ms and more, in each backend that it has a form for: the median over rounds of submit over the
better of the two offline points is at least 95 %. Its interval is a bootstrap over rounds. Ends with PASS or FAIL and the lowest
figure; returns 1 where one fails. About (points * 2 + 6 * ROUNDS) * WINDOW seconds for each bundle and backend.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from _timed_bundles import TARGETS, timed_bundle
from numpy.typing import NDArray

from edgebert import Classifier
from edgebert._json import Fields
from edgebert.bench.codec import to_json
from edgebert.bench.options import BUDGETS
from edgebert.bench.recorder import FLAG_REWARM, ROW_COLUMNS, quiet
from edgebert.bench.scenarios.plan import offline_points
from edgebert.bench.scenarios.probe import ProbeRequest, probe
from edgebert.bench.schedule import order_of_blocks
from edgebert.bench.statistics.formulas import percentile_interval
from edgebert.bundle import read_bundle
from edgebert.preprocess import RgbImage
from edgebert.runtime import lifetime
from edgebert.runtime.pipeline import Pipeline
from edgebert.runtime.runner import physical_cores

BOUND = 0.95
_LEAST_MS = 5.0  # of an inference; below it the bound is not asked for
_SWEEP_WINDOWS = 2
_MEASURED_AGAIN = 2
_RESAMPLES = 2_000
_FLAGS, _ISSUE, _DONE = (ROW_COLUMNS.index(name) for name in ("flags", "t_issue", "t_done"))

Window = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """What was found for one bundle in one backend; images per second.

    Attributes:
        bundle: its name.
        backend: which runner.
        single_ms: time of one inference, median.
        offline: of the better of the two offline points, median over rounds.
        point: its batch and calls in flight.
        submit: under the clients, median over rounds.
        ratio: submit over offline, median over rounds.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    bundle: str
    backend: str
    single_ms: float
    offline: float
    point: tuple[int, int]
    submit: float
    ratio: float
    low: float
    high: float

    @property
    def judged(self) -> bool:
        """Whether the bundle takes so long that the bound is asked for."""
        return self.single_ms >= _LEAST_MS

    def to_text(self) -> str:
        """Return one line."""
        verdict = ("PASS" if self.ratio >= BOUND else "FAIL") if self.judged else "not judged"
        return (
            f"{self.bundle}, {self.backend} ({self.single_ms:.2f} ms): offline {self.offline:.1f}/s at batch {self.point[0]} x "
            f"{self.point[1]}, submit {self.submit:.1f}/s, ratio {self.ratio:.3f} ({self.low:.3f} to {self.high:.3f}): {verdict}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Measure every bundle in every backend that is asked for; print a line for each and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, action="append", help="repeatable; none makes one of --milliseconds")
    parser.add_argument(
        "--milliseconds", type=float, nargs="+", default=[14.0], help="of the bundles it makes, on one thread"
    )
    parser.add_argument("--target", choices=tuple(TARGETS), action="append", help="repeatable; both if none")
    parser.add_argument("--folder", type=Path, help="where made bundles are kept")
    parser.add_argument("--threads", type=int, default=0, help="of the model; 0 means the physical cores")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--window", type=float, default=1.0, help="seconds")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--images", type=int, default=64, help="distinct ones, in turn")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="submit-throughput-") as scratch:
        bundles = given.bundle or [timed_bundle(ms, given.folder or Path(scratch)) for ms in given.milliseconds]
        found = []
        for bundle in bundles:
            for target in given.target or TARGETS:
                found.append(measured(bundle, target, given))
                print(found[-1].to_text(), flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    judged = [one for one in found if one.judged]
    if not judged:
        print(f"FAIL no bundle takes {_LEAST_MS:g} ms or more")
        return 1
    worst = min(judged, key=lambda one: one.ratio)
    passed = worst.ratio >= BOUND
    print(
        f"{'PASS' if passed else 'FAIL'} submit under {given.clients} clients reaches at least {100 * worst.ratio:.1f} % of the best "
        f"offline throughput ({worst.bundle}, {worst.backend}), of {len(judged)} judged"
    )
    return 0 if passed else 1


def measured(bundle: Path, target: str, given: argparse.Namespace) -> Throughput:
    """Find the best offline points of an opened bundle, and measure them and `submit` in turns."""
    before = set(lifetime._open_models)
    with Classifier(bundle, target=target, threads=given.threads) as classifier:
        (runner,) = (model for model in set(lifetime._open_models) - before if hasattr(model, "infer"))
        spec = classifier.input_spec
        images = list(
            np.random.default_rng(0).integers(0, 256, (given.images, spec.height, spec.width, 3), np.uint8)
        )  # (height, width, 3) each
        # The very model that `classifier` serves with, asked in the harness's way.
        pipeline = Pipeline(runner, read_bundle(bundle).manifest.card)  # type: ignore[arg-type]  # a NativeModel that is a Runner
        single_ns = _single_ns(classifier, images)
        inflight = max(1, physical_cores() // (given.threads or physical_cores()))
        points = offline_points([single_ns], BUDGETS["standard"], inflight)
        swept = {
            point: float(np.mean([offline(pipeline, images, point, given.window) for _ in range(_SWEEP_WINDOWS)]))
            for point in points
        }
        best = sorted(swept, key=swept.__getitem__, reverse=True)[:_MEASURED_AGAIN]
        windows: list[Window] = [partial(offline, pipeline, images, point, given.window) for point in best]
        windows.append(partial(submit, classifier, images, given.clients, given.window))
        rates = interleaved(windows, given.rounds)  # (windows, rounds)
    better = int(np.median(rates[:-1], axis=1).argmax())
    ratios = rates[-1] / rates[better]
    picks = np.random.default_rng(0).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    low, high = percentile_interval(np.median(ratios[picks], axis=1))
    return Throughput(
        bundle=bundle.stem,
        backend=TARGETS[target],
        single_ms=single_ns / 1e6,
        offline=float(np.median(rates[better])),
        point=best[better],
        submit=float(np.median(rates[-1])),
        ratio=float(np.median(ratios)),
        low=low,
        high=high,
    )


def interleaved(windows: Sequence[Window], rounds: int) -> NDArray[np.float64]:
    """Return the mean of the two windows of each kind in every round, float64 (kinds, rounds), images per second."""
    rates = np.zeros((len(windows), rounds))
    for number, order in enumerate(order_of_blocks(arms=len(windows), rounds=rounds, seed=0)):
        for place in order.tolist():
            rates[place, number] += windows[place]() / 2
    return rates


def offline(pipeline: Pipeline, images: Sequence[RgbImage], point: tuple[int, int], seconds: float) -> float:
    """Return the images per second of one window of the harness's offline scenario at a point (batch, calls in flight)."""
    batch, inflight = point
    request = ProbeRequest(
        scenario="offline", point=0, block=0, seed=0, batch=batch, inflight=inflight, seconds=seconds
    )
    rows, _, _ = probe(pipeline, images, Fields(to_json(request), what="the probe"))
    counted = rows[(rows[:, _FLAGS] & FLAG_REWARM) == 0]
    return float(len(counted) / ((counted[:, _DONE].max() - counted[:, _ISSUE].min()) / 1e9))


def submit(classifier: Classifier, images: Sequence[RgbImage], clients: int, seconds: float) -> float:
    """Return the images per second of clients that each wait for an answer before they send the next image."""
    answered, ended = [0] * clients, [0.0] * clients
    begun = [0.0]
    ready = threading.Barrier(clients, action=lambda: begun.__setitem__(0, time.perf_counter()))

    def ask(client: int) -> None:
        classifier.submit(images[client % len(images)]).result()  # as the harness's threads do before a window
        ready.wait()
        until, number = begun[0] + seconds, client
        while time.perf_counter() < until:
            number += clients
            classifier.submit(images[number % len(images)]).result()
            answered[client] += 1
        ended[client] = time.perf_counter()

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
    with quiet():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return sum(answered) / (max(ended) - begun[0])


def _single_ns(classifier: Classifier, images: Sequence[RgbImage]) -> int:
    times = []
    for image in [*images[:5], *images[:20]]:
        started = time.perf_counter_ns()
        classifier.predict(image)
        times.append(time.perf_counter_ns() - started)
    return int(np.median(times[5:]))


if __name__ == "__main__":
    sys.exit(main())
