"""The embedding API for minutes: many threads, many swaps, many calls. Nothing may be wrong, lost or left behind.

    python benchmarks/runtime_soak.py threads            8 threads, 60 s for each backend and way of asking (6 minutes)
    python benchmarks/runtime_soak.py swaps              500 and 1,000 swaps under 8 clients, for each backend (7 minutes)
    python benchmarks/runtime_soak.py leaks              1,000,000 inferences and 100,000 failing calls, for each backend (10 minutes)

Sizes can be given: `--seconds`, `--swaps`, `--inferences`, `--failures`. Each backend runs in a process of its own, since
memory is what is looked at. What is done lies in `--json FILE`, one line for each backend, and `--keep` does not do it again. The last
line says the figures; 1 is returned where something does not hold. Minutes are those of two quiet cores.

* threads: every answer is held against a float64 computation of the same classifier (the largest probability within 1e-5, and the
  class), through `predict`, `predict_batch` and `submit`; images are plain, read-only, mirrored views, and of other sizes; all are compared
  with copies afterwards.
* swaps: two bundles answer every image alike, but not as the other; an answer whose digest is of one and whose numbers are of the other is
  mixed. Every tenth candidate is damaged or fails its self-test, and must never serve. Memory is looked at after `--warm-up` swaps more:
  each of the clients' threads first finds its place in the C library's allocator. From then on the resident set may grow by 2 %.
  Models have one thread each: OpenVINO 2026.4.1 keeps some kilobytes of every model with two that is replaced while many threads
  use it, without anything of ours in the process (openvino_memory.py shows it).
* leaks: resident anonymous memory at 40 points, a straight line through those after the first quarter, and its rise over all calls; file
  descriptors and threads before and after.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from _tiny_bundles import BLACK, HEIGHT, TARGETS, WIDTH, Tiny, constant, linear
from numpy.typing import NDArray

from edgebert import Classifier, Prediction
from edgebert.decisions import softmax
from edgebert.errors import EdgebertError, RefusedBundleError
from edgebert.preprocess import resize_image

CLIENTS = 8
POINTS = 40
WARM_UP_SHARE = 0.25  # of the points, before the line is fitted
CLOSE = 1e-5  # probability; float32 against float64, sums of 144 products
GROWTH_KIB = 1024.0  # over all inferences: what the issue allows
FAILURE_GROWTH_KIB = 256.0  # over all failing calls: "none", to the resolution of the resident set
SWAP_GROWTH = 0.02  # of the resident set, over all swaps after the warm-up; a leak of one kilobyte a swap shows

Record = dict[str, object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(_PARTS))
    parser.add_argument("--backend", choices=list(TARGETS), action="append", help="only this one; repeatable")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each way of asking, in `threads`")
    parser.add_argument("--swaps", type=int, default=1_000)
    parser.add_argument("--warm-up", type=int, default=500, help="swaps before those whose memory is looked at")
    parser.add_argument("--inferences", type=int, default=1_000_000)
    parser.add_argument("--failures", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="where each backend's figures are kept, one line each")
    parser.add_argument("--keep", action="store_true", help="do not do again what lies in --json")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process, its record on stdout
    given = parser.parse_args()
    if given.here:
        print(json.dumps(_PARTS[given.part](given.backend[0], given)))
        return 0
    known = _known(given) if given.keep else {}
    if given.json is not None and not given.keep:
        given.json.unlink(missing_ok=True)
    records = []
    for backend in given.backend or list(TARGETS):
        record = known.get(backend) or _in_process(backend, given)
        records.append(record)
        print(_line(record), flush=True)
    held = all(record["held"] for record in records)
    print(f"{given.part}: " + "; ".join(str(record["figure"]) for record in records))
    return 0 if held else 1


def _in_process(backend: str, given: argparse.Namespace) -> Record:
    names = ("seconds", "swaps", "warm_up", "inferences", "failures")
    sizes = [f"--{name.replace('_', '-')}={getattr(given, name)}" for name in names]
    command = [sys.executable, __file__, given.part, "--backend", backend, *sizes, "--here"]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode:
        return {"backend": backend, "held": False, "figure": f"{backend} ended with {ran.returncode}"}
    record: Record = json.loads(ran.stdout.splitlines()[-1])
    if given.json is not None:
        with given.json.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"part": given.part, **record}) + "\n")
    return record


def _known(given: argparse.Namespace) -> dict[str, Record]:
    if given.json is None or not given.json.exists():
        return {}
    records = [json.loads(line) for line in given.json.read_text(encoding="utf-8").splitlines()]
    return {record["backend"]: record for record in records if record["part"] == given.part}


def _line(record: Record) -> str:
    return "  ".join(f"{name}={value}" for name, value in record.items() if name not in ("figure", "samples_kib"))


# Threads


def threads(backend: str, given: argparse.Namespace) -> Record:
    """Ask from eight threads in three ways, and compare every answer and every array."""
    model = linear()
    found: Record = {"backend": backend}
    answers = wrong = changed = 0
    with _folder() as folder, Classifier(model.write(folder / "a"), target=TARGETS[backend]) as classifier:
        asks: dict[str, Callable[[list[NDArray[np.uint8]]], list[Prediction]]] = {
            "predict": lambda images: [classifier.predict(image) for image in images],
            "predict_batch": classifier.predict_batch,
            "submit": lambda images: [future.result() for future in [classifier.submit(image) for image in images]],
        }
        for name, ask in asks.items():
            clients = [_Client(model, seed) for seed in range(CLIENTS)]
            _all_at_once([lambda client=client, ask=ask: client.ask(ask, given.seconds) for client in clients])
            found[name] = sum(client.answers for client in clients)
            answers += sum(client.answers for client in clients)
            wrong += sum(client.wrong for client in clients)
            changed += sum(client.changed for client in clients)
    figure = f"{backend} {wrong} wrong of {answers:,} answers, {changed} arrays changed"
    return {
        **found,
        "wrong": wrong,
        "changed": changed,
        "held": answers > 0 and wrong == changed == 0,
        "figure": figure,
    }


class _Client:
    """One thread's images, their right answers, and what it got."""

    def __init__(self, model: Tiny, seed: int) -> None:
        rng = np.random.default_rng(seed)
        plain = rng.integers(0, 256, (4, HEIGHT, WIDTH, 3), np.uint8)
        large = rng.integers(0, 256, (20, 31, 3), np.uint8)
        plain[1].flags.writeable = False
        self.images = [plain[0], plain[1], plain[2][:, ::-1], np.asfortranarray(plain[3]), large, large[::-1]]
        self.images[1].flags.writeable = False
        rule = model.card.preprocessing
        logits = model.logits(np.stack([resize_image(image, rule) for image in self.images]))
        self._scores = softmax(logits)  # (images, classes)
        self._copies = [image.copy() for image in self.images]
        self.answers = self.wrong = 0

    def ask(self, ask: Callable[[list[NDArray[np.uint8]]], list[Prediction]], seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for answer, scores in zip(ask(self.images), self._scores, strict=True):
                self.answers += 1
                self.wrong += answer.index != int(scores.argmax()) or bool(np.abs(answer.scores - scores).max() > CLOSE)

    @property
    def changed(self) -> int:
        pairs = zip(self.images, self._copies, strict=True)
        return sum(not np.array_equal(image, copy) for image, copy in pairs)


# Swaps


def swaps(backend: str, given: argparse.Namespace) -> Record:
    """Swap between two bundles while eight clients ask, and hold each answer against the bundle it names."""
    models = [constant("a", (2.0, 0.0, -1.0)), constant("b", (-1.0, 0.5, 3.0))]
    with _folder() as folder:
        paths = [model.write(folder / model.name) for model in models]
        refused = [_damaged(paths[0], folder / "damaged"), constant("c", (0.0, 9.0, 0.0), lie=1.0).write(folder / "c")]
        with Classifier(paths[0], target=TARGETS[backend], threads=1) as classifier:
            said: dict[str, tuple[float, ...]] = {}
            for path in (paths[1], paths[0]):
                classifier.swap(path)
                said[classifier.digest] = classifier.predict(BLACK + 1).scores
            assert len(set(said.values())) == 2
            load = _Load(classifier, said)
            load.start()
            load.settle(3.0)
            calm_ms = classifier.counters().whole.p99_ms
            _swap_often(classifier, paths, refused, given.warm_up)
            samples = _swap_often(classifier, paths, refused, given.swaps)
            load.stop()
            counters = classifier.counters()
    growth = _rise(samples) / samples[-1]
    done = given.warm_up + given.swaps
    all_done = counters.swaps - 2 == done and counters.failed_swaps == sum(
        -(-times // 10) for times in (given.warm_up, given.swaps)
    )
    held = all_done and load.answers > 0 and load.failed == load.mixed == 0 and growth <= SWAP_GROWTH
    return {
        "backend": backend,
        "swaps": counters.swaps - 2,
        "refused": counters.failed_swaps,
        "answers": load.answers,
        "failed": load.failed,
        "mixed": load.mixed,
        "rss_growth": round(growth, 5),
        "p99_ms_before": calm_ms,
        "p99_ms_all": counters.whole.p99_ms,
        "samples_kib": samples,
        "held": held,
        "figure": f"{backend} {counters.swaps - 2} swaps, {counters.failed_swaps} candidates refused, {load.failed} failed "
        f"and {load.mixed} mixed of {load.answers:,} answers, memory {100 * growth:+.2f} % over the last {given.swaps}",
    }


class _Load:
    """Clients that ask in every way until they are stopped."""

    def __init__(self, classifier: Classifier, said: dict[str, tuple[float, ...]]) -> None:
        self._classifier, self._said = classifier, said
        self._stopped = threading.Event()
        self._counts = np.zeros((CLIENTS, 3), np.int64)  # answers, failed, mixed; a row for each client
        self._threads = [threading.Thread(target=self._ask, args=(place,)) for place in range(CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def settle(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    @property
    def answers(self) -> int:
        return int(self._counts[:, 0].sum())

    @property
    def failed(self) -> int:
        return int(self._counts[:, 1].sum())

    @property
    def mixed(self) -> int:
        return int(self._counts[:, 2].sum())

    def _ask(self, place: int) -> None:
        image = np.random.default_rng(place).integers(1, 256, (HEIGHT, WIDTH, 3), np.uint8)
        counts, classifier = self._counts[place], self._classifier
        asks: list[Callable[[], list[Prediction]]] = [
            lambda: [classifier.predict(image)],
            lambda: classifier.predict_batch([image, image]),
            lambda: [future.result() for future in [classifier.submit(image) for _ in range(3)]],
        ]
        while not self._stopped.is_set():
            for ask in asks:
                try:
                    answers = ask()
                except EdgebertError as error:
                    print(error, file=sys.stderr)
                    counts[1] += 1
                    continue
                counts[0] += len(answers)
                counts[2] += any(answer.digest != answers[0].digest for answer in answers) and ask is asks[1]
                counts[2] += sum(not self._is_whole(answer) for answer in answers)
            time.sleep(0.001)  # leaves the swaps some of two cores

    def _is_whole(self, answer: Prediction) -> bool:
        expected = self._said.get(answer.digest)
        return expected is not None and bool(np.allclose(answer.scores, expected, atol=CLOSE))


def _swap_often(classifier: Classifier, paths: list[Path], refused: list[Path], times: int) -> list[float]:
    """Swap and return the resident set in KiB at up to 40 points on the way."""
    samples = []
    for number in range(times):
        classifier.swap(paths[(number + 1) % 2])
        if number % 10 == 0:
            try:
                classifier.swap(refused[number // 10 % 2])
            except RefusedBundleError:
                pass
            else:
                print("a refused candidate serves", file=sys.stderr)
        if number % max(1, times // POINTS) == 0:
            gc.collect()
            samples.append(resident_kib())
    return samples


def _damaged(bundle: Path, folder: Path) -> Path:
    shutil.copytree(bundle, folder)
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    return folder


# Leaks


def leaks(backend: str, given: argparse.Namespace) -> Record:
    """Call very often, rightly and wrongly, and look at what the process holds."""
    with _folder() as folder, Classifier(linear().write(folder / "a"), target=TARGETS[backend]) as classifier:
        image = np.random.default_rng(0).integers(1, 256, (HEIGHT, WIDTH, 3), np.uint8)
        classifier.submit(image).result()  # starts the worker
        for call in _failures(classifier, image):
            _expect_failure(call)
        before = _held()
        right = _sampled(given.inferences, lambda: classifier.predict(image))
        failing = _endless(list(_failures(classifier, image)))
        wrong = _sampled(given.failures, lambda: _expect_failure(next(failing)))
        after = _held()
        counters = classifier.counters()
    grown, failures_grown = _rise(right), _rise(wrong)
    held = grown <= GROWTH_KIB and failures_grown <= FAILURE_GROWTH_KIB and before == after
    return {
        "backend": backend,
        "answers": counters.answers,
        "errors": dict(counters.errors),
        "grown_kib": round(grown, 1),
        "failures_grown_kib": round(failures_grown, 1),
        "descriptors_threads_before": before,
        "descriptors_threads_after": after,
        "samples_kib": [right, wrong],
        "held": held,
        "figure": f"{backend} {grown:+.0f} KiB over {given.inferences:,} inferences, {failures_grown:+.0f} KiB over "
        f"{given.failures:,} failing calls, {after[0]} descriptors and {after[1]} threads (before: {before[0]} and {before[1]})",
    }


def _failures(classifier: Classifier, image: NDArray[np.uint8]) -> Iterator[Callable[[], object]]:
    """Yield calls that fail, each in its own way."""
    yield lambda: classifier.predict(image.astype(np.float32))
    yield lambda: classifier.predict(image[:, :, :2])
    yield lambda: classifier.predict(b"no image")
    yield lambda: classifier.predict(BLACK)  # NaN
    yield lambda: classifier.predict_batch([])
    yield lambda: classifier.predict_batch([image, BLACK])
    yield lambda: classifier.predict_batch([image, None])  # type: ignore[list-item]  # what is wrong with it
    yield lambda: classifier.submit(BLACK).result()
    yield lambda: classifier.submit(image[0]).result()


def _endless(calls: list[Callable[[], object]]) -> Iterator[Callable[[], object]]:
    while True:
        yield from calls


def _expect_failure(call: Callable[[], object]) -> None:
    try:
        call()
    except EdgebertError:
        return
    raise AssertionError("a call that must fail did not")


def _sampled(times: int, call: Callable[[], object]) -> list[float]:
    """Call so often and return the resident set in KiB at 40 points on the way."""
    samples = []
    for _ in range(POINTS):
        for _ in range(max(1, times // POINTS)):
            call()
        gc.collect()
        samples.append(resident_kib())
    return samples


def _rise(samples_kib: list[float]) -> float:
    """Return the rise in KiB over all samples of the least-squares line through those after the warm-up."""
    kept = np.array(samples_kib[int(WARM_UP_SHARE * len(samples_kib)) :])
    slope = np.polyfit(np.arange(len(kept)), kept, 1)[0]
    return float(slope) * len(samples_kib)


# What a process holds


def resident_kib() -> float:
    """Return the anonymous part of the resident set: what a leak grows, and nothing that comes and goes with files."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return float(line.split()[1])


def _held() -> list[int]:
    """Return how many file descriptors and threads there are."""
    return [sum(1 for _ in Path(f"/proc/self/{kind}").iterdir()) for kind in ("fd", "task")]


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _all_at_once(functions: list[Callable[[], object]]) -> None:
    running = [threading.Thread(target=function) for function in functions]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


_PARTS = {"threads": threads, "swaps": swaps, "leaks": leaks}

if __name__ == "__main__":
    sys.exit(main())
