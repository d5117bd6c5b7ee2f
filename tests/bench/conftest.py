"""What the tests of bench share: a tiny data set, arms that are scripts, and a result made without any process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from PIL import Image

from edgebert import cli
from edgebert._json import JsonValue
from edgebert.bench.accuracy import logit_bits
from edgebert.bench.arms import ArmRequest
from edgebert.bench.environment.computer import Activity
from edgebert.bench.options import BenchOptions
from edgebert.bench.record import Measured, result_from_session
from edgebert.bench.recorder import FLAG_REWARM, FLAG_WARMUP
from edgebert.bench.samples import IntArray, Samples
from edgebert.bench.schedule import order_of_blocks
from edgebert.bench.schema import HarnessCost, Lateness, Result
from edgebert.bench.selection import Selection
from edgebert.bench.session import (
    ArmSession,
    FinishedFacts,
    LaunchFacts,
    LoadedFacts,
    Session,
    WarmFacts,
    merged_columns,
)
from edgebert.card import ImageSet, ModelCard, Provenance
from edgebert.data import Example
from edgebert.preprocess import Preprocessing

NOTHING_SEEN = ImageSet()
CLASSES = ("ant", "bee", "cat")
ROUNDS, BLOCK, WARM = 6, 40, 30
SURE = 900_000_000  # probability of every made-up answer, in 1e-9


class ScriptArm(Protocol):
    """Writes an arm that `fake_worker.py` understands and returns its path."""

    def __call__(
        self,
        name: str,
        *,
        seen: ImageSet = ...,
        class_names: tuple[str, ...] = ...,
        **script: JsonValue,
    ) -> Path: ...


@pytest.fixture(scope="session")
def worker_command() -> list[str]:
    """Return the command of the fake worker."""
    return [sys.executable, str(Path(__file__).with_name("fake_worker.py"))]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of three classes; the red value of a test image's first pixel is its class + 16 n."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4), ("test", 12)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
                pixels[0, 0, 0] = label + 16 * index
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture
def script_arm(tmp_path: Path) -> ScriptArm:
    """Return a function that writes arms; by default an arm is right on every image, in 0.2 ms."""

    def write(
        name: str, *, seen: ImageSet = NOTHING_SEEN, class_names: tuple[str, ...] = CLASSES, **script: JsonValue
    ) -> Path:
        card = ModelCard(
            class_names=class_names,
            preprocessing=Preprocessing(height=8, width=8),
            provenance=Provenance(stage="export", parameters=1_234),
            seen=seen,
        )
        order = [class_names.index(name) if name in class_names else 0 for name in CLASSES]
        answers = [order[label] if label < len(order) else 0 for label in range(16)]
        content = {"card": card.to_json(), "answers": answers, "latency_ms": 0.2, "source_model": "ab" * 32, **script}
        path = tmp_path / f"{name}.onnx"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def quick(image_folder: Path) -> BenchOptions:
    """Return options of the shortest measurement that still has rounds enough for an interval."""
    return BenchOptions(
        data=str(image_folder),
        launches=1,
        seconds=0.5,
        queries=40,
        max_warmup_seconds=0.0,
        threads=1,
        force=True,
    )


@pytest.fixture
def synthetic() -> Callable[..., tuple[Result, Samples]]:
    """Return `synthetic_result`."""
    return synthetic_result


def synthetic_result(
    names: tuple[str, ...] = ("teacher", "student"),
    *,
    times_ms: tuple[float, ...] = (4.0, 1.0),
    class_names: tuple[str, ...] = CLASSES,
    wrong: int = 3,
    mismatch: bool = False,
    queries: int = BLOCK,
    launches: int = 3,
    noise: float = 0.0,
) -> tuple[Result, Samples]:
    """Return a result of made-up times, the same ones at every call, and its samples; the A/A control comes last."""
    images = 30
    labels = np.arange(images, dtype=np.int64) % len(class_names)
    arms = (*names, f"{names[0]} (A/A)")
    parts: list[dict[str, IntArray]] = []
    for launch in range(launches):
        schedule = order_of_blocks(arms=len(arms), rounds=ROUNDS, seed=0, launch=launch).reshape(-1)
        parts.append({"schedule": schedule, "schedule_launch": np.full_like(schedule, launch)})
        for arm, time_ms in enumerate((*times_ms, times_ms[0])):
            blocks = np.flatnonzero(schedule == arm)
            wobble = 1 + noise * np.random.default_rng([arm, launch]).normal()
            parts.append(
                _columns(arm, launch, blocks, time_ms * wobble, _decisions(labels, arm, wrong, names), queries)
            )
    for arm in range(len(arms)):
        decisions = _decisions(labels, arm, wrong, names)
        logits = 4 * np.eye(len(class_names), dtype=np.float32)[decisions]
        parts.append(
            {
                "accuracy_arm": np.full(images, arm, np.int64),
                "accuracy_sample": np.arange(images, dtype=np.int64),
                "accuracy_label": labels,
                "accuracy_pred": decisions,
                "accuracy_confidence": np.full(images, SURE, np.int64),
                "accuracy_rank": (decisions != labels).astype(np.int64),
                "logit": logit_bits(logits),
            }
        )
    columns = merged_columns(parts)
    if mismatch:
        at = np.flatnonzero(columns["arm"] == len(names) - 1)[-1]
        columns["pred"][at] = (columns["pred"][at] + 1) % len(class_names)
    samples = Samples(columns)
    return result_from_session(_measured(arms, samples, class_names, labels, launches)), samples


def _decisions(labels: IntArray, arm: int, wrong: int, names: tuple[str, ...]) -> IntArray:
    decisions: IntArray = labels.copy()
    classes = int(labels.max()) + 1
    mistakes = 0 if arm == len(names) else wrong * arm  # the A/A control answers as the first arm
    decisions[:mistakes] = (decisions[:mistakes] + 1) % classes
    return decisions


def _columns(
    arm: int, launch: int, blocks: IntArray, time_ms: float, decisions: IntArray, queries: int
) -> dict[str, IntArray]:
    generator = np.random.default_rng([arm, launch])
    count = WARM + len(blocks) * queries
    block = np.concatenate([np.full(WARM, -1), np.repeat(blocks, queries)]).astype(np.int64)
    flags = np.where(block < 0, FLAG_WARMUP, 0).astype(np.int64)
    flags[WARM:][np.arange(len(blocks) * queries) % queries < max(2, queries // 10)] = FLAG_REWARM
    infer = (time_ms * 1e6 * generator.gamma(60.0, 1 / 60.0, count)).astype(np.int64)
    start = 1_000 + np.cumsum(infer + 30_000) + 10**9 * np.maximum(block, 0) + 10**12 * launch
    sample = np.arange(count, dtype=np.int64) % len(decisions)
    done = start + 5_000 + infer + 2_000
    starts = np.array([start[block == index][0] for index in blocks], np.int64)
    walls = np.array([int(done[block == index][-1]) for index in blocks], np.int64) - starts
    zeros = np.zeros(len(blocks), np.int64)
    return {
        "arm": np.full(count, arm, np.int64),
        "launch": np.full(count, launch, np.int64),
        "scenario": np.zeros(count, np.int64),
        "point": np.zeros(count, np.int64),
        "block": block,
        "flags": flags,
        "sample_index": sample,
        "t_sched": start,
        "t_issue": start,
        "t_pre_end": start + 5_000,
        "t_inf_end": start + 5_000 + infer,
        "t_done": done,
        "pred": decisions[sample],
        "confidence": np.full(count, SURE, np.int64),
        "block_arm": np.full(len(blocks), arm, np.int64),
        "block_launch": np.full(len(blocks), launch, np.int64),
        "block_scenario": zeros,
        "block_point": zeros,
        "block_index": blocks.astype(np.int64),
        "block_start_ns": starts,
        "block_wall_ns": walls,
        "block_cpu_ns": walls * 2,
        "block_involuntary": zeros,
        "block_major_faults": zeros,
        "block_rss": zeros + 70_000_000,
    }


def _measured(
    names: tuple[str, ...], samples: Samples, class_names: tuple[str, ...], labels: IntArray, launches: int
) -> Measured:
    card = ModelCard(
        class_names=class_names,
        preprocessing=Preprocessing(height=8, width=8),
        provenance=Provenance(stage="export", parameters=23_130),
    )
    idle = Activity(load=(0.1, 0.1, 0.1), ticks=(0, 100, 200), throttle_events=0, swap_used_bytes=0)
    sessions = tuple(
        ArmSession(card=card, launches=tuple(_launch_facts(index, names) for _ in range(launches)))
        for index in range(len(names))
    )
    order = np.arange(len(class_names), dtype=np.int64)
    examples = tuple(
        Example(
            id=f"test/{index}", labels=(int(label),), pixel_sha256=f"{index:064x}", source=np.zeros((8, 8, 3), np.uint8)
        )
        for index, label in enumerate(labels)
    )
    selection = Selection(
        examples=examples,
        class_names=class_names,
        orders=tuple(order for _ in names),
        excluded=(),
        name="animals",
        skipped=0,
    )
    session = Session(
        arms=sessions, samples=samples, timed=30, activities=((idle, idle),) * launches, own_cpu_s=0.0, looks=1
    )
    requests = tuple(
        ArmRequest(name=name, path=Path(__file__), kind="graph", target=None, control=index == len(names) - 1)
        for index, name in enumerate(names)
    )
    return Measured(
        arms=requests,
        hashes=tuple("ef" * 32 for _ in names),
        selection=selection,
        session=session,
        options=BenchOptions(data="animals"),
        threads=2,
        baseline=0,
        reference=None,
    )


def _launch_facts(index: int, names: tuple[str, ...]) -> LaunchFacts:
    return LaunchFacts(
        loaded=LoadedFacts(
            target="cpu",
            backend="onnxruntime",
            device="CPU",
            files={"model.onnx": 123_456},
            precision="fp32",
            source_model=None if index in (0, len(names) - 1) else "cd" * 32,
            bundle_digest=None,
            import_ns=10**8,
            load_ns=10**7,
            rss_before_load=50_000_000,
            rss_after_load=60_000_000,
        ),
        warm=WarmFacts(
            converged=True,
            queries=WARM,
            ns=2 * 10**9,
            median_ns=10**6,
            mean_ns=10**6,
            first_ns=3 * 10**6,
            rss=65_000_000,
        ),
        finished=FinishedFacts(
            peak=70_000_000,
            properties={"threads": "2"},
            input_sensitivity=1.0,
            first_error=None,
            harness=HarnessCost(
                recorder_ns=500,
                recorder_p99_ns=900,
                timer_overhead_ns=40,
                lateness=Lateness(p50=2_000, p99=30_000, max=90_000, n=300),
            ),
        ),
        images_bytes=5_760,
    )


@pytest.fixture(autouse=True)
def no_preflight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the half second in which the state of the computer is watched; tests of `preflight` call it themselves."""
    monkeypatch.setattr("edgebert.bench.harness.preflight_records", lambda: ())


@pytest.fixture
def recorded_tree(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that lays out one of the computers of `system_trees.json` and returns its root."""

    def lay_out(name: str) -> Path:
        trees = json.loads(Path(__file__).with_name("system_trees.json").read_text(encoding="utf-8"))
        root = tmp_path / name
        for path, text in trees[name].items():
            place = root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        return root

    return lay_out


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command line and gives its exit code, stdout and stderr."""

    def command(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, told.out, told.err

    return command
