"""The process in which LoadGen and our recorder time the same pipeline object: `python _loadgen.py REQUEST.json ANSWER.json`.

A process of its own, because LoadGen ends the process it is in where something goes wrong (bench.md, section 2.2): an exception in
a callback aborts its next run, two runs in threads abort, a missing output folder is a segmentation fault. So its runs follow one
another in the main thread, its folder is made before, and the first exception is kept and told after the run.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _peers import MAX_WARMUP_NS, blocks_of

from edgebert.bench.images import read_images
from edgebert.bench.loading import LoadRequest, load_arm
from edgebert.bench.recorder import FLAG_ERROR, Recorder, Warmup
from edgebert.bench.schedule import order_of_blocks
from edgebert.bench.statistics.formulas import percentile
from edgebert.errors import EdgebertError
from edgebert.extras import require
from edgebert.preprocess import RgbImage
from edgebert.runtime.pipeline import Pipeline

SHARES = {"p50": 0.50, "p90": 0.90}
DETAIL_FILE = "mlperf_log_detail.txt"

_SEGMENT_S = 0.5
_MIN_QUERIES = 64  # MLPerf's least for a bound on p90
_LINE = ":::MLLOG "
_DETAIL_KEYS = {"p50": "result_50.00_percentile_latency_ns", "p90": "result_90.00_percentile_latency_ns"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One stretch of queries, timed by one of the two.

    Attributes:
        by: `edgebert` or `loadgen`.
        queries: timed.
        p50: ns.
        p90: ns.
    """

    by: str
    queries: int
    p50: int
    p90: int


def main(request_path: Path, answer_path: Path) -> None:
    """Serve one request: open, warm up, then segments of the two in turn, ABBA or BAAB by quartet."""
    from edgebert._json import Fields

    lg = require("mlperf_loadgen")
    request = json.loads(request_path.read_text(encoding="utf-8"))
    arm = load_arm(LoadRequest(**request["load"]), lambda: None)
    images = read_images(Fields(request["images"], what="the images"))
    recorder = Recorder(arm.pipeline, images)
    warmup = recorder.warm_up(MAX_WARMUP_NS)
    # Short segments, so that a busy neighbour hits both; each has enough queries for LoadGen to call it valid.
    seconds = max(_SEGMENT_S, 1.1 * _MIN_QUERIES * warmup.mean_ns / 1e9)
    quartets = max(1, round(request["seconds"] / seconds / 2))
    timers: tuple[Callable[[], Segment], ...] = (
        lambda: recorded(recorder, warmup, seconds),
        lambda: load_generated(lg, arm.pipeline, images, warmup, seconds, request["seed"]),
    )
    order = order_of_blocks(arms=len(timers), rounds=quartets, seed=request["seed"])
    segments = [timers[index]() for index in order.reshape(-1).tolist()]  # (quartets, 4) -> (4 * quartets,)
    answer_path.write_text(json.dumps([asdict(segment) for segment in segments]), encoding="utf-8")


def recorded(recorder: Recorder, warmup: Warmup, seconds: float) -> Segment:
    """Time `seconds` of blocks with the harness's recorder; the first queries of a block do not count."""
    before = len(recorder.columns()["block"])
    blocks, queries = blocks_of(warmup.median_ns, seconds)
    for index in range(blocks):
        recorder.block(index, queries)
    recorded_now = recorder.columns()
    columns = {name: recorded_now[name][before:] for name in ("flags", "t_issue", "t_done")}
    if (columns["flags"] & FLAG_ERROR).any():
        raise EdgebertError(f"a query failed: {recorder.first_error}", expected="an answer to every query")
    times = (columns["t_done"] - columns["t_issue"])[columns["flags"] == 0]
    return Segment(by="edgebert", queries=len(times), **{name: percentile(times, at) for name, at in SHARES.items()})


def load_generated(
    lg: Any, pipeline: Pipeline, images: Sequence[RgbImage], warmup: Warmup, seconds: float, seed: int
) -> Segment:
    """Time `seconds` of queries with LoadGen: SingleStream, performance mode.

    Args:
        lg: the module `mlperf_loadgen`.
        pipeline: preprocessing, model and decision; one query is one image through all three.
        images: LoadGen draws from them, with replacement.
        warmup: LoadGen generates its queries beforehand and has to be told how long one takes; with a guess that is too
            long it runs out of queries, and the run is INVALID.
        seconds: at least so long.
        seed: of the images' order.
    """
    settings = lg.TestSettings()
    settings.scenario, settings.mode = lg.TestScenario.SingleStream, lg.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = round(seconds * 1e3), _MIN_QUERIES
    settings.single_stream_expected_latency_ns = warmup.median_ns / 2
    settings.sample_index_rng_seed = settings.qsl_rng_seed = settings.schedule_rng_seed = seed
    errors: list[Exception] = []
    with tempfile.TemporaryDirectory(prefix="loadgen-") as folder:
        output = lg.LogOutputSettings()
        output.outdir, output.copy_summary_to_stdout = folder, False
        logs = lg.LogSettings()
        logs.log_output, logs.enable_trace = output, False
        _start(lg, settings, logs, _system_under_test(lg, pipeline, images, errors), len(images))
        detail = (Path(folder) / DETAIL_FILE).read_text(encoding="utf-8")
    if errors:
        raise EdgebertError(f"a query failed: {errors[0]}", expected="an answer to every query")
    return segment_of_detail(detail)


def segment_of_detail(text: str) -> Segment:
    """Read LoadGen's detail log.

    Raises:
        EdgebertError: LoadGen calls the run invalid, or its figures are not there.
    """
    lines = [line.removeprefix(_LINE) for line in text.splitlines() if line.startswith(_LINE)]
    found = {entry["key"]: entry["value"] for entry in map(json.loads, lines)}
    wanted = ("result_validity", "result_query_count", *_DETAIL_KEYS.values())
    if missing := [key for key in wanted if key not in found]:
        raise EdgebertError(f"LoadGen's detail log has no `{missing[0]}`", expected=", ".join(wanted))
    if found["result_validity"] != "VALID":
        reasons = [str(value) for key, value in found.items() if "invalid" in key.lower()]
        raise EdgebertError(f"LoadGen calls its run {found['result_validity']}: {reasons}", expected="VALID")
    figures = {name: int(found[key]) for name, key in _DETAIL_KEYS.items()}
    return Segment(by="loadgen", queries=int(found["result_query_count"]), **figures)


def _system_under_test(
    lg: Any, pipeline: Pipeline, images: Sequence[RgbImage], errors: list[Exception]
) -> Callable[[Any], None]:
    """Return LoadGen's callback; it answers every query, also one that failed, since LoadGen waits for ever otherwise."""
    pre, infer, post = pipeline.pre, pipeline.infer, pipeline.post

    def issue(samples: Any) -> None:
        for sample in samples:
            try:
                post(infer(pre(images[sample.index])))
            except Exception as error:  # noqa: BLE001  # an exception in a callback would abort LoadGen's next run
                errors.append(error)
        lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0) for sample in samples])

    return issue


def _start(lg: Any, settings: Any, logs: Any, issue: Callable[[Any], None], images: int) -> None:
    """Run LoadGen once, the garbage collector off as in our blocks."""
    system = lg.ConstructSUT(issue, lambda: None)
    library = lg.ConstructQSL(images, images, lambda indices: None, lambda indices: None)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        lg.StartTestWithLogSettings(system, library, settings, logs, "")
    finally:
        gc.enable()
        gc.unfreeze()
        lg.DestroyQSL(library)
        lg.DestroySUT(system)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except EdgebertError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
