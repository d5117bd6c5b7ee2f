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

from edgebert._json import JsonValue
from edgebert.bench.arms import ArmRequest
from edgebert.bench.environment import Activity
from edgebert.bench.options import BenchOptions
from edgebert.bench.record import Measured, result_from_session
from edgebert.bench.recorder import FLAG_REWARM, FLAG_WARMUP
from edgebert.bench.samples import IntArray, Samples
from edgebert.bench.schedule import order_of_blocks
from edgebert.bench.schema import Result
from edgebert.bench.selection import Selection
from edgebert.bench.session import ArmSession, FinishedFacts, LoadedFacts, Session, WarmFacts
from edgebert.card import ImageSet, ModelCard, Provenance
from edgebert.data import Example
from edgebert.preprocess import Preprocessing

NOTHING_SEEN = ImageSet()
CLASSES = ("ant", "bee", "cat")
ROUNDS, BLOCK, WARM = 6, 40, 30


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
    return BenchOptions(data=str(image_folder), seconds=0.5, queries=40, max_warmup_seconds=0.0, threads=1, force=True)


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
) -> tuple[Result, Samples]:
    """Return a result of made-up times, the same ones at every call, and its samples."""
    images = 30
    labels = np.arange(images, dtype=np.int64) % len(class_names)
    parts: list[dict[str, IntArray]] = []
    schedule = order_of_blocks(arms=len(names), rounds=ROUNDS, seed=0)
    for arm, time_ms in enumerate(times_ms):
        decisions = labels.copy()
        decisions[: wrong * arm] = (decisions[: wrong * arm] + 1) % len(class_names)
        blocks = np.flatnonzero(schedule.reshape(-1) == arm)
        parts.append(_columns(arm, blocks, time_ms, decisions, queries))
        parts[-1].update(
            accuracy_arm=np.full(images, arm, np.int64),
            accuracy_sample=np.arange(images, dtype=np.int64),
            accuracy_label=labels,
            accuracy_pred=decisions,
        )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if mismatch:
        columns["pred"][-1] = (columns["pred"][-1] + 1) % len(class_names)
    samples = Samples({**columns, "schedule": schedule.reshape(-1)})
    return result_from_session(_measured(names, samples, class_names, labels)), samples


def _columns(arm: int, blocks: IntArray, time_ms: float, decisions: IntArray, queries: int) -> dict[str, IntArray]:
    generator = np.random.default_rng(arm)
    count = WARM + len(blocks) * queries
    block = np.concatenate([np.full(WARM, -1), np.repeat(blocks, queries)]).astype(np.int64)
    flags = np.where(block < 0, FLAG_WARMUP, 0).astype(np.int64)
    flags[WARM:][np.arange(len(blocks) * queries) % queries < max(2, queries // 10)] = FLAG_REWARM
    infer = (time_ms * 1e6 * generator.gamma(60.0, 1 / 60.0, count)).astype(np.int64)
    start = 1_000 + np.cumsum(infer + 30_000) + 10**9 * np.maximum(block, 0)
    sample = np.arange(count, dtype=np.int64) % len(decisions)
    done = start + 5_000 + infer + 2_000
    walls = [int(done[block == index][-1] - start[block == index][0]) for index in blocks]
    return {
        "arm": np.full(count, arm, np.int64),
        "launch": np.zeros(count, np.int64),
        "block": block,
        "flags": flags,
        "sample_index": sample,
        "t_issue": start,
        "t_pre_end": start + 5_000,
        "t_inf_end": start + 5_000 + infer,
        "t_done": done,
        "pred": decisions[sample],
        "block_arm": np.full(len(blocks), arm, np.int64),
        "block_index": blocks.astype(np.int64),
        "block_wall_ns": np.array(walls, np.int64),
        "block_cpu_ns": np.array(walls, np.int64) * 2,
        "block_involuntary": np.zeros(len(blocks), np.int64),
    }


def _measured(names: tuple[str, ...], samples: Samples, class_names: tuple[str, ...], labels: IntArray) -> Measured:
    card = ModelCard(
        class_names=class_names,
        preprocessing=Preprocessing(height=8, width=8),
        provenance=Provenance(stage="export", parameters=23_130),
    )
    idle = Activity(load=(0.1, 0.1, 0.1), ticks=(0, 100, 200), throttle_events=0, swap_used_bytes=0)
    sessions = tuple(
        ArmSession(
            loaded=LoadedFacts(
                target="cpu",
                backend="onnxruntime",
                device="CPU",
                files={"model.onnx": 123_456},
                precision="fp32",
                source_model=None if index == 0 else "cd" * 32,
                bundle_digest=None,
                import_ns=10**8,
                load_ns=10**7,
                rss_before_load=50_000_000,
                rss_after_load=60_000_000,
            ),
            card=card,
            warm=WarmFacts(
                converged=True, queries=WARM, ns=2 * 10**9, median_ns=10**6, mean_ns=10**6, timer_overhead_ns=40
            ),
            finished=FinishedFacts(
                peak=70_000_000, properties={"threads": "2"}, input_sensitivity=1.0, first_error=None
            ),
            images_bytes=5_760,
        )
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
    session = Session(arms=sessions, samples=samples, timed=30, before=idle, after=idle)
    requests = tuple(ArmRequest(name=name, path=Path(__file__), kind="graph", target=None) for name in names)
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
