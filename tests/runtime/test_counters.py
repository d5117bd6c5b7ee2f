"""The counters: what is counted, how exact a quantile is, and that the text is what Prometheus reads."""

from __future__ import annotations

import math
import re
import sys
import threading
from dataclasses import FrozenInstanceError
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from edgebert.errors import ImageError
from edgebert.runtime.counters import BOUNDS_NS, STAGES, Counters, Tally, prometheus_text


def _counters(tally: Tally, digest: str = "ab" * 32) -> Counters:
    return tally.counters(digest=digest, queue_depth=0)


def _with_whole(*nanoseconds: int) -> Counters:
    tally = Tally()
    for value in nanoseconds:
        tally.answered(1, value)
    return _counters(tally)


def test_bounds_are_log_spaced_from_a_microsecond_to_100_seconds() -> None:
    assert (BOUNDS_NS[0], BOUNDS_NS[-1]) == (1_000, 100_000_000_000)
    ratios = [high / low for low, high in pairwise(BOUNDS_NS)]
    assert max(ratios) / min(ratios) < 1.002


def test_answered_alone_counts_each_step_once() -> None:
    tally = Tally()
    tally.answered_alone(0, 1_000_000, 4_000_000, 4_500_000)
    counters = _counters(tally)
    assert counters.answers == 1
    assert dict(counters.batch_sizes) == {1: 1}
    sums = {stage: counters.stage(stage).sum_s for stage in STAGES}
    assert sums == {"preprocess": 0.001, "infer": 0.003, "postprocess": 0.0005, "queue": 0.0, "whole": 0.0045}


def _count_everything(tally: Tally) -> None:
    for _ in range(3):
        tally.answered_alone(0, 1_000_000, 3_000_000, 6_000_000)
    tally.ran(2, 0, 1_000_000, 2_000_000)
    tally.prepared(1_000_000)
    tally.answered(2, 1_000_000)
    tally.waited(1_000_000)
    tally.failed(ImageError("no image"))
    tally.cancelled()
    tally.swapped("done")
    _counters(tally)


def test_a_signal_handler_that_counts_in_the_middle_of_counting_loses_nothing() -> None:
    once = Tally()
    _count_everything(once)
    _count_everything(once)
    expected = _counters(once)
    place, interrupted, before = 0, True, sys.getprofile()
    while interrupted:
        place, interrupted, tally = place + 1, False, Tally()
        left = place

        def interrupt(frame: FrameType, event: str, argument: object) -> None:
            # Python runs a signal handler where a function is entered and where one of C's returns.
            nonlocal left, interrupted
            if event not in ("call", "c_return") or Path(frame.f_code.co_filename).name != "counters.py":
                return
            left -= 1
            if left == 0:
                sys.setprofile(before)
                interrupted = True
                _count_everything(tally)  # noqa: B023  # called in this turn of the loop

        sys.setprofile(interrupt)
        try:
            _count_everything(tally)
        finally:
            sys.setprofile(before)
        if interrupted:
            assert _counters(tally) == expected, place
    assert place > 50


@pytest.mark.parametrize("place", [0, 1, 57, len(BOUNDS_NS) - 1])
def test_a_value_on_a_bound_lies_within_it(place: int) -> None:
    assert _with_whole(BOUNDS_NS[place]).whole.counts[place] == 1


def test_what_is_longer_than_all_bounds_is_counted_last() -> None:
    whole = _with_whole(BOUNDS_NS[-1] + 1).whole
    assert whole.counts[-1] == 1
    assert whole.p50_ms == BOUNDS_NS[-1] / 1e6


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_quantile_is_at_most_a_bucket_off(share: float) -> None:
    values = np.random.default_rng(5).lognormal(math.log(3e6), 0.8, 4_000).astype(np.int64)
    found = _with_whole(*values.tolist()).whole.quantile_ms(share)
    assert found is not None
    exact = float(np.quantile(values, share, method="inverted_cdf")) / 1e6
    assert exact / 1.13 < found < exact * 1.13


def test_quantiles_of_nothing_are_none() -> None:
    whole = _counters(Tally()).whole
    assert (whole.p50_ms, whole.p90_ms, whole.p99_ms) == (None, None, None)


def test_counters_are_a_snapshot_that_nobody_can_change() -> None:
    tally = Tally()
    before = _counters(tally)
    tally.answered_alone(0, 1, 2, 3)
    tally.failed(ImageError("bad"))
    assert (before.answers, dict(before.errors), before.whole.count) == (0, {}, 0)
    with pytest.raises(FrozenInstanceError):
        before.answers = 1  # type: ignore[misc]  # what is tested
    with pytest.raises(TypeError):
        before.errors["x"] = 1  # type: ignore[index]  # what is tested


def test_errors_are_counted_by_the_name_of_their_class() -> None:
    tally = Tally()
    for error in (ImageError("a"), ImageError("b"), RuntimeError("c")):
        tally.failed(error)
    assert dict(_counters(tally).errors) == {"ImageError": 2, "RuntimeError": 1}


def test_no_count_is_lost_between_threads() -> None:
    tally = Tally()

    def work() -> None:
        for _ in range(5_000):
            tally.answered_alone(0, 2_000, 4_000, 6_000)
            tally.failed(ValueError())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counters = _counters(tally)
    assert (counters.answers, counters.whole.count, counters.errors["ValueError"]) == (20_000,) * 3
    assert counters.whole.sum_s == pytest.approx(20_000 * 6e-6)


# Prometheus' text, read by its grammar (https://prometheus.io/docs/instrumenting/exposition_formats/)

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ([0-9.e+-]+|\+Inf|NaN)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"(?:,|$)')


def _read(text: str) -> tuple[dict[str, str], dict[tuple[str, tuple[tuple[str, str], ...]], float]]:
    """Return type of each family, and value of each sample by its name and labels; refuses what Prometheus would."""
    assert text.endswith("\n")
    kinds: dict[str, str] = {}
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    family = ""
    for line in text.splitlines():
        if line.startswith("# "):
            _, keyword, name, rest = line.split(" ", 3)
            if keyword == "TYPE":
                assert name not in kinds, "a family may come once"
                kinds[name], family = rest, name
            continue
        found = _SAMPLE.fullmatch(line)
        assert found is not None, line
        name, inside, value = found.groups()
        suffixes = ("_bucket", "_sum", "_count") if kinds[family] == "histogram" else ("",)
        assert name in {family + suffix for suffix in suffixes}, line
        labels = tuple(_LABEL.findall(inside or ""))
        assert "".join(f'{key}="{text}",' for key, text in labels).rstrip(",") == (inside or "")
        assert (name, labels) not in samples, "a sample may come once"
        samples[name, labels] = float(value)
    return kinds, samples


@pytest.fixture
def busy() -> Counters:
    tally = Tally()
    for value in (1_000, 50_000, 3_000_000, 3_000_000, 200_000_000_000):
        tally.answered_alone(0, value // 4, value // 2, value)
    tally.ran(8, 0, 5_000_000, 5_100_000)
    tally.ran(2_000, 0, 5_000_000, 5_100_000)
    tally.failed(ImageError("x"))
    tally.swapped("failed")
    tally.cancelled()
    tally.queued(7)
    return tally.counters(digest="cd" * 32, queue_depth=3)


def test_prometheus_text_is_valid_and_says_every_counter(busy: Counters) -> None:
    kinds, samples = _read(prometheus_text(busy))
    assert kinds["edgebert_latency_seconds"] == "histogram"
    expected: dict[Any, float] = {
        ("edgebert_answers_total", ()): 5,
        ("edgebert_errors_total", (("kind", "ImageError"),)): 1,
        ("edgebert_cancelled_total", ()): 1,
        ("edgebert_swaps_total", (("outcome", "done"),)): 0,
        ("edgebert_swaps_total", (("outcome", "failed"),)): 1,
        ("edgebert_queue_depth", ()): 3,
        ("edgebert_queue_depth_max", ()): 7,
        ("edgebert_bundle_info", (("digest", "cd" * 32),)): 1,
        ("edgebert_batch_images_count", ()): 7,
        ("edgebert_batch_images_sum", ()): 2_013,
        ("edgebert_batch_images_bucket", (("le", "8"),)): 6,
        ("edgebert_batch_images_bucket", (("le", "+Inf"),)): 7,
        ("edgebert_latency_seconds_count", (("stage", "whole"),)): 5,
    }
    assert {key: samples.get(key) for key in expected} == expected


@pytest.mark.parametrize("stage", STAGES)
def test_prometheus_buckets_only_grow_and_end_with_the_count(busy: Counters, stage: str) -> None:
    _, samples = _read(prometheus_text(busy))
    buckets = [
        (float(dict(labels)["le"]), value)
        for (name, labels), value in samples.items()
        if name == "edgebert_latency_seconds_bucket" and dict(labels)["stage"] == stage
    ]
    assert buckets == sorted(buckets)
    assert [value for _, value in buckets] == sorted(value for _, value in buckets)
    assert buckets[-1] == (math.inf, samples["edgebert_latency_seconds_count", (("stage", stage),)])


def test_prometheus_text_tells_several_classifiers_apart(busy: Counters) -> None:
    name = 'front "left"\\\n'
    _, samples = _read(prometheus_text({name: busy, "rear": _counters(Tally())}))
    escaped = r"front \"left\"\\\n"
    assert samples["edgebert_answers_total", (("classifier", escaped),)] == 5
    assert samples["edgebert_answers_total", (("classifier", "rear"),)] == 0
