"""A rich result made by hand for the tests of the report: every scenario, an A/A arm, sensors, flipped images.

Its times are drawn from a seeded generator, so the same call gives the same result. The statistics are computed here from the
made-up samples in the plainest way, so that the page has numbers that fit together; they are no measurement of anything.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import replace

import numpy as np
from PIL import Image

from edgebert.bench.samples import SCENARIOS, IntArray, Samples
from edgebert.bench.schema import (
    SCHEMA,
    Accuracy,
    AccuracyTwin,
    Agreement,
    Arm,
    Artifact,
    Calibration,
    Cgroup,
    ClassAccuracy,
    ColdStart,
    Comparison,
    Consistency,
    Cpu,
    CurvePoint,
    DatasetRecord,
    Deadlines,
    Device,
    Distribution,
    Excluded,
    FlippedImage,
    HarnessCost,
    Interference,
    Latency,
    Lateness,
    LogitGap,
    Memory,
    NoiseFloor,
    OperatingSystem,
    Outliers,
    PipelineRecord,
    PowerState,
    PreflightCheck,
    Quantile,
    Result,
    Rigor,
    Scenario,
    ScenarioName,
    ScenarioParams,
    Seeds,
    ServerLimit,
    Share,
    SoakDrift,
    Spread,
    Startup,
    Status,
    Verdict,
    WarmupRecord,
)
from edgebert.bench.statistics.formulas import mcnemar_exact, minimum_queries, percentile, wilson_interval

NAMES = ("teacher", "student", "student int8")
TIMES_MS = (4.0, 1.4, 0.62)
CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
MARGIN = 0.01
_T95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 10: 2.262}  # Student's t, two-sided 95 %, by launches


def rich_result(
    names: tuple[str, ...] = NAMES,
    *,
    times_ms: tuple[float, ...] = TIMES_MS,
    class_names: tuple[str, ...] = CLASSES,
    images: int = 240,
    wrong: int = 5,
    launches: int = 5,
    blocks: int = 8,
    block: int = 60,
    aa: bool = True,
    everything: bool = True,
    mismatch: int = 0,
    rigor: Rigor = "standard",
) -> tuple[Result, Samples]:
    """Return a result and its samples.

    Args:
        names: of the arms, the baseline first; an A/A arm comes last.
        times_ms: about what each takes.
        class_names: of the data.
        images: of the test split.
        wrong: further images that each arm decides wrongly.
        launches: of every arm.
        blocks: of every arm in a launch.
        block: queries of a block.
        aa: whether there is an A/A arm.
        everything: with every scenario, cold starts, sensors and flipped images.
        mismatch: timed answers of the last arm that differ, which makes the run invalid.
        rigor: as recorded.
    """
    times_ms = times_ms + (times_ms[0],) * aa
    ids = names + (f"{names[0]} (A/A)",) * aa
    generator = np.random.default_rng(7)
    labels = np.arange(images, dtype=np.int64) % len(class_names)
    decisions = [
        _decisions(labels, wrong * (index if index < len(names) else 0), len(class_names)) for index in range(len(ids))
    ]
    samples = Samples(_columns(generator, times_ms, decisions, launches, blocks, block, everything))
    arms = [
        _arm(index, ids, names, samples, labels, decisions, class_names, launches, everything, mismatch)
        for index in range(len(ids))
    ]
    comparisons = tuple(
        _comparison(samples, ids, index, share, labels, decisions, launches, aa)
        for index in range(1, len(ids))
        for share in (0.5, 0.9, 0.99)
    )
    if everything:
        comparisons += tuple(
            replace(comparison, metric="throughput", scenario="offline")
            for comparison in comparisons
            if comparison.metric == "latency.e2e.p50" and comparison.b in names
        )
    reasons = (f"`{ids[-1]}`: {mismatch} timed answers differ from the accuracy pass",) if mismatch else ()
    result = Result(
        schema=SCHEMA,
        run_id="run",
        created="2026-11-25T12:00:00+00:00",
        edgebert="0.1.0",
        command=("edgebert", "bench", *(f"{name}={name}.onnx" for name in names), "--data", "animals", "-o", "r.json"),
        rigor=rigor,
        seeds=Seeds(inputs=0, schedule=1, bootstrap=2),
        status=Status(
            valid=not mismatch,
            converged=True,
            throttled=None,
            virtualised=True,
            partial=False,
            reasons=reasons,
            warnings=("other programs used 12 % of the processors while timing",),
        ),
        dataset=_dataset(class_names, labels),
        arms=tuple(arms),
        comparisons=comparisons,
        files={},
        **_surroundings(),  # type: ignore[arg-type]  # five records by name
    )
    return result, samples


def partial_result() -> Result:
    """Return a result that was cut short before any arm had answered."""
    result, _ = rich_result(everything=False)
    status = replace(
        result.status, valid=False, converged=False, partial=True, reasons=("interrupted in launch 1 of 5",)
    )
    return replace(result, arms=(), comparisons=(), dataset=None, status=status)


def thumbnail(seed: int, *, side: int = 48) -> str:
    """Return a small PNG in base64."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _decisions(labels: IntArray, wrong: int, classes: int) -> IntArray:
    decided: IntArray = labels.copy()
    chosen = np.random.default_rng(3).permutation(labels.size)[: min(wrong, labels.size)]
    decided[chosen] = (decided[chosen] + 1) % classes
    return decided


def _columns(
    generator: np.random.Generator,
    times_ms: tuple[float, ...],
    decisions: list[IntArray],
    launches: int,
    blocks: int,
    block: int,
    everything: bool,
) -> dict[str, IntArray]:
    parts: list[dict[str, IntArray]] = []
    block_parts: list[dict[str, IntArray]] = []
    schedule, schedule_launch = [], []
    now = 10**12
    bounds = []
    for launch in range(launches):
        start = now
        drift = generator.normal(1, 0.004)
        for arm, time_ms in enumerate(times_ms):
            warm = _queries(generator, arm, launch, -1, 40, time_ms * 1.3, decisions[arm], now, warm=True)
            now = int(warm["t_done"][-1]) + 50_000_000
            parts.append(warm)
        order = [int(arm) for _ in range(blocks) for arm in generator.permutation(len(times_ms))]
        for number, arm in enumerate(order):
            queries = _queries(generator, arm, launch, number, block, times_ms[arm] * drift, decisions[arm], now)
            wall = int(queries["t_done"][-1] - now)
            block_parts.append(_block(arm, launch, number, now, wall))
            now += wall + 30_000_000
            parts.append(queries)
        schedule += order
        schedule_launch += [launch] * len(order)
        bounds.append((start, now))
        now += 20_000_000_000
    if everything:
        for arm, time_ms in enumerate(times_ms):
            soak = _queries(generator, arm, 0, 0, 2_000, time_ms, decisions[arm], now)
            soak["scenario"][:] = SCENARIOS.index("soak")
            parts.append(soak)
            now = int(soak["t_done"][-1]) + 10**9
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns |= {name: np.concatenate([part[name] for part in block_parts]) for name in block_parts[0]}
    columns |= {name: np.zeros(0, np.int64) for name in ("point_scenario", "point_number", "point_batch", "point_inflight", "point_rate_mhz")}  # fmt: skip
    images = decisions[0].size
    columns |= {
        "accuracy_arm": np.repeat(np.arange(len(times_ms), dtype=np.int64), images),
        "accuracy_sample": np.tile(np.arange(images, dtype=np.int64), len(times_ms)),
        "accuracy_label": np.tile(decisions[0], len(times_ms)),
        "accuracy_pred": np.concatenate(decisions),
        "accuracy_confidence": np.full(images * len(times_ms), 900_000_000, np.int64),
        "accuracy_rank": np.zeros(images * len(times_ms), np.int64),
        "schedule_launch": np.array(schedule_launch, np.int64),
        "schedule": np.array(schedule, np.int64),
    }
    columns |= {f"recheck_{name}": np.zeros(0, np.int64) for name in ("arm", "launch", "sample", "pred", "confidence")}
    return columns | (_telemetry(generator, bounds) if everything else {})


def _queries(
    generator: np.random.Generator,
    arm: int,
    launch: int,
    number: int,
    count: int,
    time_ms: float,
    decisions: IntArray,
    start: int,
    *,
    warm: bool = False,
) -> dict[str, IntArray]:
    infer = time_ms * 1e6 * generator.gamma(400.0, 1 / 400.0, count)
    infer *= np.where(generator.random(count) < 0.015, generator.uniform(1.3, 4.0, count), 1.0)
    if warm:
        infer *= np.linspace(2.5, 1.0, count)
    pre, post, gap = 60_000, 9_000, 4_000
    whole = infer.astype(np.int64) + pre + post
    issue = start + np.concatenate([[0], np.cumsum(whole + gap)[:-1]]).astype(np.int64)
    flags = np.zeros(count, np.int64)
    flags[: max(2, count // 10)] = 2
    sample = np.arange(count, dtype=np.int64) % decisions.size
    return {
        "arm": np.full(count, arm, np.int64),
        "launch": np.full(count, launch, np.int64),
        "scenario": np.zeros(count, np.int64),
        "point": np.zeros(count, np.int64),
        "block": np.full(count, number, np.int64),
        "flags": np.ones(count, np.int64) if warm else flags,
        "sample_index": sample,
        "t_sched": issue,
        "t_issue": issue,
        "t_pre_end": issue + pre,
        "t_inf_end": issue + whole - post,
        "t_done": issue + whole,
        "pred": decisions[sample],
        "confidence": np.full(count, 900_000_000, np.int64),
    }


def _block(arm: int, launch: int, number: int, start: int, wall: int) -> dict[str, IntArray]:
    values = (arm, launch, 0, 0, number, start, wall, 2 * wall, 0, 0, 80_000_000)
    names = ("arm", "launch", "scenario", "point", "index", "start_ns", "wall_ns", "cpu_ns", "involuntary", "major_faults", "rss")  # fmt: skip
    return {f"block_{name}": np.array([value], np.int64) for name, value in zip(names, values, strict=True)}


def _telemetry(generator: np.random.Generator, bounds: list[tuple[int, int]]) -> dict[str, IntArray]:
    stamps = np.arange(bounds[0][0] - 10**9, bounds[-1][1] + 10**9, 100_000_000, dtype=np.int64)
    count = stamps.size
    clock = (2_900_000 + 40_000 * generator.standard_normal(count)).astype(np.int64)
    clock[::17] = -1
    temperature = (48_000 + 9_000 * (1 - np.exp(-np.arange(count) / 300)) + 400 * generator.standard_normal(count)).astype(np.int64)  # fmt: skip
    steal = np.cumsum(generator.poisson(0.2, count) + 4 * (np.arange(count) % 220 > 205))
    return {
        "telemetry_t_ns": stamps,
        "telemetry_clock_khz": clock,
        "telemetry_temperature_mc": temperature,
        "telemetry_steal_ticks": steal.astype(np.int64),
        "telemetry_quota_us": np.zeros(count, np.int64),
    }


def _quantile(times: IntArray, share: float) -> Quantile:
    needs = minimum_queries(share)
    if times.size < needs:
        return Quantile(value=None, ci95=None, upper95=None, needs=needs)
    ordered = np.sort(times)
    spread = 1.96 * math.sqrt(times.size * share * (1 - share))
    low, high = (int(np.clip(times.size * share + sign * spread, 0, times.size - 1)) for sign in (-1, 1))
    return Quantile(
        value=percentile(times, share),
        ci95=(int(ordered[low]), int(ordered[high])) if share < 0.99 else None,
        upper95=int(ordered[high]),
        needs=needs,
    )


def _distribution(times: IntArray) -> Distribution:
    p50, p90, p95, p99, p99_9 = (_quantile(times, share) for share in (0.5, 0.9, 0.95, 0.99, 0.999))
    return Distribution(
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        p99_9=p99_9,
        min=int(times.min()),
        max=int(times.max()),
        mean=float(times.mean()),
        mad=int(np.median(np.abs(times - np.median(times)))),
        jitter=None if p99.value is None or p50.value is None else p99.value - p50.value,
    )


def _counted(samples: Samples, arm: int) -> dict[str, IntArray]:
    rows = samples.queries_of(arm)
    return {name: values[rows["flags"] == 0] for name, values in rows.items()}


def _scenario(samples: Samples, arm: int, launches: int) -> Scenario:
    rows = _counted(samples, arm)
    e2e = rows["t_done"] - rows["t_sched"]
    low, high = np.percentile(e2e, [25, 75])
    beyond = [int((e2e > high + fences * (high - low)).sum()) for fences in (1.5, 3.0)]
    mild, severe = beyond[0] - beyond[1], beyond[1]
    zero = np.zeros_like(e2e)
    rate = 1e9 / float(e2e.mean())
    return Scenario(
        name="single-stream",
        params=ScenarioParams(
            batch=1, inflight=1, start="memory", region="decoded image in memory to decision, end to end"
        ),
        warmup=WarmupRecord(converged=True, queries=40 * launches, ns=2 * 10**9),
        launches=launches,
        looks=2,
        blocks=8 * launches,
        queries=int(e2e.size),
        effective_queries=0.6 * e2e.size,
        latency=Latency(
            e2e=_distribution(e2e),
            queue=_distribution(zero),
            pre=_distribution(rows["t_pre_end"] - rows["t_issue"]),
            infer=_distribution(rows["t_inf_end"] - rows["t_pre_end"]),
            post=_distribution(rows["t_done"] - rows["t_inf_end"]),
            mlperf_bound_p90=int(np.sort(e2e)[-20]),
            mlperf_bound_p99=int(e2e.max()),
        ),
        throughput=rate,
        throughput_ci95=(0.99 * rate, 1.01 * rate),
        cpu_seconds_per_query=2e-9 * float(e2e.mean()),
        outliers=Outliers(
            mild=mild, severe=severe, attributed={"involuntary switch": severe, "major fault": 0, "unexplained": mild}
        ),
        gap_ratio=0.004,
        involuntary_switches=12,
        throttled_blocks=None,
    )


def _other_scenarios(base: Scenario, images: int) -> tuple[Scenario, ...]:
    lateness = Lateness(p50=1_400, p99=15_000, max=90_000, n=1_000)

    def named(name: ScenarioName, region: str, **params: object) -> Scenario:
        changed = replace(base.params, region=region, **params)  # type: ignore[arg-type]  # of one dataclass
        return replace(base, name=name, params=changed, gap_ratio=None, lateness=lateness)

    rate, p50 = base.throughput, base.latency.e2e.p50.value or 1
    curve = tuple(
        CurvePoint(
            batch=batch,
            inflight=inflight,
            windows=10,
            queries=400,
            throughput=rate * (1 + 0.35 * math.log2(batch)) * (1 + 0.15 * (inflight - 1)),
            throughput_ci95=(0.97 * rate * (1 + 0.35 * math.log2(batch)), 1.2 * rate * (1 + 0.35 * math.log2(batch))),
            p50=int(p50 * batch * inflight * 0.8),
            p99=int(p50 * batch * inflight * 1.3),
        )
        for batch in (1, 2, 4, 8, 16, 32)
        for inflight in (1, 2)
    )
    server = tuple(
        CurvePoint(
            batch=1,
            inflight=1,
            windows=1,
            queries=800,
            throughput=rate * load,
            throughput_ci95=None,
            p50=p50,
            p99=4 * p50,
            rate=rate * load,
            within=Share(value=kept, ci95=wilson_interval(round(800 * kept), 800), n=800),
            kept=kept > 0.995,
        )
        for load, kept in ((0.3, 1.0), (0.5, 0.999), (0.7, 0.992), (0.85, 0.93), (0.95, 0.71))
    )
    missed = Share(value=0.013, ci95=wilson_interval(13, 1_000), n=1_000)
    return (
        named("multi-stream", "8 images of one query to the last decision", samples_per_query=8),
        replace(named("offline", "all images as fast as they go", seconds=1.0), curve=curve, throughput=curve[-1].throughput),
        replace(
            named("paced", "due time of a frame to decision", fps=30.0, deadline_ns=33_333_333, policy="drop"),
            deadlines=Deadlines(frames=1_000, answered=995, missed=8, dropped=5, miss_rate=missed),
        ),
        replace(
            named("server", "arrival to decision", bound_ns=5 * p50, bound_share=0.99),
            curve=server,
            server=ServerLimit(rate=0.5 * rate, confirmed=True, probes=5),
        ),
        replace(
            named("soak", "decoded image in memory to decision", seconds=600.0),
            soak=SoakDrift(
                first_p50=p50, last_p50=int(1.04 * p50), ratio=1.04, rss_growth=240_000, throttle_events=None
            ),
        ),
    )  # fmt: skip


def _share(right: int, count: int) -> Share:
    return Share(value=right / count, ci95=wilson_interval(right, count), n=count)


def _accuracy(
    index: int,
    ids: tuple[str, ...],
    labels: IntArray,
    decisions: list[IntArray],
    names: tuple[str, ...],
    everything: bool,
) -> Accuracy:
    decided, count = decisions[index], labels.size
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (labels, decided), 1)
    per_class = []
    for number, name in enumerate(names):
        hit, said, true = (
            int(confusion[number, number]),
            int(confusion[:, number].sum()),
            int(confusion[number].sum()),
        )
        precision, recall = hit / max(1, said), hit / max(1, true)
        f1 = 2 * precision * recall / (precision + recall) if hit else 0.0
        per_class.append(ClassAccuracy(name=name, precision=precision, recall=recall, f1=f1, support=true))
    differing = np.flatnonzero(decided != decisions[0])
    flipped = tuple(
        FlippedImage(
            sample=int(sample),
            id=f"test/{sample}.png",
            label=names[labels[sample]],
            decision=names[decided[sample]],
            confidence=0.81,
            reference_decision=names[decisions[0][sample]],
            reference_confidence=0.62,
            thumbnail=thumbnail(int(sample)),
        )
        for sample in differing[:12]
    )
    right = int((decided == labels).sum())
    reference = index > 0
    delta = (right - int((decisions[0] == labels).sum())) / count
    return Accuracy(
        top1=_share(right, count),
        macro_f1=float(np.mean([row.f1 for row in per_class])),
        agreement=Agreement(reference=ids[0], share=_share(int((decided == decisions[0]).sum()), count))
        if reference
        else None,
        delta_top1=delta if reference else None,
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
        per_class=tuple(per_class),
        multi_label=None,
        top5=_share(count - 1, count) if len(names) > 5 else None,
        macro_f1_ci95=(0.93, 0.99),
        auc=0.9912,
        calibration=Calibration(ece=0.034, mean_confidence=0.91),
        delta_top1_ci95=(delta - 0.01, delta + 0.004) if reference else None,
        mcnemar_p=mcnemar_exact(0, int(differing.size)) if reference else None,
        logit_gap=LogitGap(max_abs=0.31, kl=0.0021) if reference else None,
        flipped=flipped if everything else (),
        flipped_count=int(differing.size) if reference else None,
    )


def _spread(*values: int) -> Spread:
    return Spread(median=int(np.median(values)), values=values)


def _arm(
    index: int,
    ids: tuple[str, ...],
    names: tuple[str, ...],
    samples: Samples,
    labels: IntArray,
    decisions: list[IntArray],
    class_names: tuple[str, ...],
    launches: int,
    everything: bool,
    mismatch: int,
) -> Arm:
    control = index >= len(names)
    scenario = _scenario(samples, index, launches)
    others = _other_scenarios(scenario, labels.size) if everything and not control else ()
    ms = 1_000_000
    cold = ColdStart(
        process=_spread(*(40 * ms + step for step in range(5))),
        import_backend=_spread(*(180 * ms + 5 * ms * step for step in range(5))),
        load=_spread(*(60 * ms + ms * step for step in range(5))),
        first_infer=_spread(*(9 * ms + step for step in range(5))),
        total=_spread(*(289 * ms + 6 * ms * step for step in range(5))),
        page_cache="dropped for the files of the artefact",
    )
    return Arm(
        id=ids[index],
        role="aa" if control else "baseline" if index == 0 else "candidate",
        target="cpu",
        backend="onnxruntime",
        options={"device": "CPU", "threads": "2"},
        effective={"intra_op_threads": "2", "provider": "CPUExecutionProvider"},
        temperature=1.3,
        artifact=Artifact(
            name=f"{names[0 if control else index]}.onnx",
            kind="graph",
            sha256=f"{index + 10:02x}" * 32,
            bytes=22_300_000 // (index % len(names) + 1),
            bytes_on_disk=23_000_000,
            files={"model.onnx": 22_300_000},
            precision="int8" if "int8" in ids[index] else "fp32",
            quantiser="edgebert 0.1.0" if "int8" in ids[index] else None,
            source_model="cd" * 32,
            parameters=5_570_000,
            bundle_digest=None,
        ),
        pipeline=PipelineRecord(
            pre="resize 224x224 bilinear@0123456789ab",
            infer="onnxruntime, normalisation in the graph",
            post="softmax, argmax, class name",
            input="uint8 HWC RGB, decoded, original size",
        ),
        accuracy=_accuracy(index, ids, labels, decisions, class_names, everything and not control),
        consistency=Consistency(
            timed_checked=int((samples["arm"] == index).sum()),
            mismatch=mismatch if index == len(ids) - 1 else 0,
            rechecked=4 * labels.size,
            recheck_mismatch=0,
            errors=0,
            first_error=None,
            input_sensitivity=0.998,
            cpu_ratio=1.94,
            instant_share=0.0,
            rss_growth_per_query=0.4,
        ),
        startup=Startup(
            import_ns=_spread(*(100 * ms + step for step in range(launches))),
            load_ns=_spread(*(12 * ms + step for step in range(launches))),
            first_query_ns=_spread(*(6 * ms + step for step in range(launches))),
            time_to_steady_ns=_spread(*(2_000 * ms + step for step in range(launches))),
            cold=cold if everything and not control else None,
        ),
        memory=Memory(
            rss_before_load=50_000_000,
            rss_after_load=78_000_000,
            rss_after_warmup=84_000_000,
            peak=91_000_000,
            images_bytes=4_000_000,
        ),
        harness=HarnessCost(
            recorder_ns=350,
            recorder_p99_ns=610,
            timer_overhead_ns=52,
            lateness=Lateness(p50=1_500, p99=16_000, max=110_000, n=1_000),
        ),
        scenarios=(scenario, *others),
    )


def _comparison(
    samples: Samples,
    ids: tuple[str, ...],
    index: int,
    share: float,
    labels: IntArray,
    decisions: list[IntArray],
    launches: int,
    aa: bool,
) -> Comparison:
    ratio, interval = _contrast(samples, index, share, launches)
    floor = None
    if aa and index < len(ids) - 1:
        noise, bounds = _contrast(samples, len(ids) - 1, share, launches)
        floor = NoiseFloor(ratio=noise, ci95=bounds)
    delta = max(MARGIN, *(abs(bound - 1) for bound in (floor.ci95 if floor is not None and floor.ci95 else (1.0, 1.0))))
    verdict: Verdict = "inconclusive"
    if interval is not None:
        low, high = interval
        if high < 1 - delta:
            verdict = "faster"
        elif low > 1 + delta:
            verdict = "slower"
        elif 1 - delta < low and high < 1 + delta:
            verdict = "equivalent"
    only_a = int(((decisions[0] == labels) & (decisions[index] != labels)).sum())
    change = -only_a / labels.size
    return Comparison(
        a=ids[0],
        b=ids[index],
        metric={0.5: "latency.e2e.p50", 0.9: "latency.e2e.p90", 0.99: "latency.e2e.p99"}[share],
        scenario="single-stream",
        paired=True,
        ratio=ratio,
        speedup=1 / ratio,
        ci95=interval,
        confidence=0.975,
        scope="launches" if launches >= 5 else "within-run only",
        method="the mean over launches of the logarithm of the ratio, t interval",
        launches=launches,
        rounds=8 * launches,
        margin=MARGIN,
        noise_floor=floor,
        delta=delta,
        verdict=verdict,
        launches_needed=launches + 9 if verdict == "inconclusive" else None,
        p_holm=0.0004 if verdict in ("faster", "slower") else 0.4,
        accuracy=AccuracyTwin(
            delta_top1=change,
            delta_ci95=(change - 0.01, change + 0.006) if only_a else (0.0, 0.0),
            only_a_right=only_a,
            only_b_right=0,
            mcnemar_p=mcnemar_exact(only_a, 0),
        ),
    )


def _contrast(samples: Samples, index: int, share: float, launches: int) -> tuple[float, tuple[float, float] | None]:
    logs = []
    for launch in range(launches):
        quantiles = []
        for arm in (0, index):
            rows = _counted(samples, arm)
            own = rows["launch"] == launch
            quantiles.append(percentile((rows["t_done"] - rows["t_sched"])[own], share))
        logs.append(math.log(quantiles[1] / quantiles[0]))
    mean = float(np.mean(logs))
    if launches < 2:
        return math.exp(mean), None
    half = _T95.get(launches, 2.2) * float(np.std(logs, ddof=1)) / math.sqrt(launches)
    return math.exp(mean), (math.exp(mean - half), math.exp(mean + half))


def _dataset(class_names: tuple[str, ...], labels: IntArray) -> DatasetRecord:
    return DatasetRecord(
        name="animals",
        split="test",
        n=int(labels.size),
        timed=int(min(256, labels.size)),
        sha256="ab" * 32,
        class_names=class_names,
        per_class=tuple(int((labels == number).sum()) for number in range(len(class_names))),
        excluded=(Excluded(id="test/seen.png", pixel_sha256="00" * 32, seen_by=("student",)),),
        skipped=0,
    )


def _surroundings() -> dict[str, object]:
    return {
        "device": Device(
            arch="x86_64",
            model=None,
            cpu=Cpu(
                model="Some Processor 7B12",
                vendor="AuthenticAMD",
                sockets=1,
                cores=1,
                threads=2,
                usable_threads=2,
                microcode="0x1000065",
                flags=("avx2", "fma", "avx512_vnni"),
                caches={"L1d": "32K", "L2": "512K", "L3": "16384K"},
            ),
            memory_bytes=8_000_000_000,
            transport="local",
        ),
        "os": OperatingSystem(
            system="Linux",
            kernel="6.1.0",
            distro="Debian GNU/Linux 12",
            container=None,
            hypervisor="KVM",
            cgroup=Cgroup(cpu_max=None, cpuset="0-1", memory_max_bytes=None),
        ),
        "power_state": PowerState(driver=None, governor=(), turbo=None, epp=None, smt=True, ac=None),
        "interference": Interference(
            load_before=(0.4, 0.5, 0.6),
            load_after=(2.1, 1.4, 0.9),
            steal_ratio=0.012,
            other_busy_ratio=0.12,
            swap_used_bytes=0,
        ),
        "preflight": (
            PreflightCheck(name="load average", state="pass", found="0.4 on 2 processors", fix=""),
            PreflightCheck(name="governor", state="unknown", found="no cpufreq: virtualised", fix=""),
            PreflightCheck(
                name="swap", state="warn", found="120 MB in use", fix="sudo swapoff -a, or stop what uses the memory"
            ),
        ),
        "software": {"numpy": "2.4.6", "onnxruntime": "1.23.0"},
        "env": {"OMP_NUM_THREADS": "2"},
        "not_measured": {
            "power_state.governor": "no cpufreq: virtualised",
            "telemetry.energy_package_uj": "no powercap: virtualised",
            "telemetry.throttle_events": "no thermal_throttle: virtualised",
        },
    }
