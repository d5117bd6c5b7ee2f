"""The schema `edgebert.bench/1`: what a result holds, as dataclasses that `edgebert.bench.codec` turns into JSON.

Times are integers in nanoseconds, sizes in bytes, shares in [0, 1]; every number is finite. What was not measured is
null, and `not_measured` says why, by the path of the field. It is one long module because it is one document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgebert.bench.environment.schema import (
    Battery,
    ClockLimits,
    CpuTopology,
    GpuClock,
    JetsonFacts,
    KernelSettings,
    PowerMode,
    Pressure,
    ProcessState,
    QuotaUsage,
)
from edgebert.card import Task

SCHEMA = "edgebert.bench/1"
NOT_COMPARABLE_EXIT_CODE = 5  # bench.md, section 4.3

Interval = tuple[float, float]
ArtefactKind = Literal["bundle", "graph", "checkpoint"]
Precision = Literal["fp32", "int8"]
Rigor = Literal["quick", "standard", "publish"]
Role = Literal["baseline", "candidate", "aa"]
Verdict = Literal["faster", "slower", "equivalent", "inconclusive", "not comparable"]
ScenarioName = Literal["single-stream", "multi-stream", "offline", "paced", "server", "soak", "energy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeds:
    """Seeds of the order of images, the order of blocks and the bootstrap."""

    inputs: int
    schedule: int
    bootstrap: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Whether the numbers may be compared.

    Attributes:
        valid: False after a failed query, a timed answer that differs from the accuracy pass, or answers that are not
            computed (`edgebert.bench.audit.honesty`).
        converged: the interval of every comparison became as narrow as the rigor asks before the budget was spent, and
            every warm-up steady before its cap. `quick` sets no goal for the interval.
        throttled: a throttle counter moved while timing; None where there is none to read.
        virtualised: the CPU says that it is a virtual one; None where that is unknown.
        partial: the run was cut short.
        reasons: why it is not valid, not converged, throttled or partial.
        warnings: what may have disturbed it.
    """

    valid: bool
    converged: bool
    throttled: bool | None
    virtualised: bool | None
    partial: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The processor; `flags` holds only those that decide which kernels run."""

    model: str | None
    vendor: str | None
    sockets: int | None
    cores: int | None
    threads: int
    usable_threads: int
    microcode: str | None
    flags: tuple[str, ...]
    caches: Mapping[str, str]
    topology: CpuTopology | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where it was measured."""

    arch: str
    model: str | None
    cpu: Cpu
    memory_bytes: int | None
    transport: Literal["local", "ssh"]
    jetson: JetsonFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """The limits of the control group; None where there is none."""

    cpu_max: str | None
    cpuset: str | None
    memory_max_bytes: int | None
    version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingSystem:
    """Kernel, distribution, and what it runs inside of."""

    system: str
    kernel: str
    distro: str | None
    container: str | None
    hypervisor: str | None
    cgroup: Cgroup
    settings: KernelSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerState:
    """What decides the clock; None where it cannot be read.

    `nvpmodel`, `jetson_clocks` and `gpu_clock` are a Jetson's; `jetson_clocks` says whether GPU and memory are held at one clock.
    """

    driver: str | None
    governor: tuple[str, ...]
    turbo: bool | None
    epp: str | None
    smt: bool | None
    ac: bool | None
    clock: ClockLimits | None = None
    battery: Battery | None = None
    nvpmodel: PowerMode | None = None
    jetson_clocks: bool | None = None
    gpu_clock: GpuClock | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interference:
    """What else ran: load averages before and after, and shares of all processors' time while timing.

    Attributes:
        load_before: over 1, 5 and 15 minutes, when the first block began.
        load_after: when the last ended.
        steal_ratio: given to other guests by the hypervisor.
        other_busy_ratio: used by other programs of this computer.
        swap_used_bytes: at the end.
        pressure_before: waiting of the last ten seconds, when the first block began.
        pressure_after: when the last ended.
        quota_before: how often the quota had stopped the control group, when the first block began.
        quota_after: when the last ended.
    """

    load_before: tuple[float, ...]
    load_after: tuple[float, ...]
    steal_ratio: float | None
    other_busy_ratio: float | None
    swap_used_bytes: int | None
    pressure_before: Pressure | None = None
    pressure_after: Pressure | None = None
    quota_before: QuotaUsage | None = None
    quota_after: QuotaUsage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A test image left out because an arm has seen it."""

    id: str
    pixel_sha256: str
    seen_by: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRecord:
    """The images: `n` of the split were used, `timed` distinct ones for latency."""

    name: str
    split: Literal["test"]
    n: int
    timed: int
    sha256: str
    class_names: tuple[str, ...]
    per_class: tuple[int, ...]
    excluded: tuple[Excluded, ...]
    skipped: int
    task: Task = "single-label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What was measured.

    Attributes:
        name: of the file or folder.
        kind: bundle, graph or checkpoint.
        sha256: of the file, or of the folder's names and contents; the same after the run.
        bytes: of the files that this arm executes, class names and preprocessing included.
        bytes_on_disk: of the whole artefact, with what other targets execute.
        files: name -> bytes of what this arm executes.
        precision: of the weights and activations, from the provenance.
        quantiser: what made the INT8 graph, with version.
        source_model: SHA-256 of the checkpoint it was made from.
        parameters: number of weights of the model.
        bundle_digest: of a bundle's SHA256SUMS.
    """

    name: str
    kind: ArtefactKind
    sha256: str
    bytes: int
    bytes_on_disk: int
    files: Mapping[str, int]
    precision: Precision
    quantiser: str | None
    source_model: str | None
    parameters: int | None
    bundle_digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRecord:
    """The three timed steps, by name and hash, and what they were fed with."""

    pre: str
    infer: str
    post: str
    input: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of n images with its 95 % Wilson interval."""

    value: float
    ci95: Interval
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAccuracy:
    """How well one class is told from the others."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The share of images on which this arm decides as `reference` does."""

    reference: str
    share: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiLabelAccuracy:
    """How well an arm says any number of labels; see `edgebert.metrics`.

    Attributes:
        exact_match: share of images of which exactly their labels are said.
        micro_f1: F1 over the decisions on all classes together.
        macro_f1: plain mean of the classes' F1.
        mean_average_precision: over the classes that occur, from the probabilities alone; None where no image has a label.
    """

    exact_match: Share
    micro_f1: float
    macro_f1: float
    mean_average_precision: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How well probabilities say how often an answer is right.

    Attributes:
        ece: expected calibration error in [0, 1], 15 bins of equal width (Guo et al. 2017, section 2).
        mean_confidence: mean probability of the decided class.
    """

    ece: float
    mean_confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitGap:
    """How far an arm's outputs lie from its reference's on the same images.

    Attributes:
        max_abs: largest absolute difference of a logit.
        kl: mean KL divergence of the softmax of the reference's logits from this arm's, in nats.
    """

    max_abs: float
    kl: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FlippedImage:
    """A test image on which an arm decides otherwise than its reference.

    Attributes:
        sample: number of the test image in the samples.
        id: its name in the data set.
        label: the true class.
        decision: of this arm, with its probability.
        reference_decision: of the reference, with its probability.
        thumbnail: PNG in base64, at most 64 pixels wide and high; None where none is kept.
    """

    sample: int
    id: str
    label: str
    decision: str
    confidence: float
    reference_decision: str
    reference_confidence: float
    thumbnail: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """On every image of the test split, in the session that was timed.

    A decision of a multi-label arm is all that it says of an image, and is right where exactly the image's labels are said: its
    `top1` is the exact match, and agreement, changes and McNemar's test are of such decisions.

    Attributes:
        top1: share of right decisions.
        macro_f1: plain mean of the classes' F1.
        agreement: None for an arm without a reference, or that is the reference.
        delta_top1: top-1 minus the reference's.
        confusion: rows the true class, columns the decided one; empty for a multi-label arm.
        per_class: in the order of the data set's classes.
        multi_label: what only a multi-label arm has; None for others.
        top5: share of images whose true class is among the five likeliest; None with fewer than six classes.
        macro_f1_ci95: bootstrap over images.
        auc: area under the ROC curve, the mean over classes of one against the rest (of two classes, that of the second);
            None where it was not measured.
        calibration: of the probabilities that the artefact ships; None for a multi-label arm.
        delta_top1_ci95: of `delta_top1`, from the paired decisions.
        mcnemar_p: exact, of the same pairs; None without a reference.
        logit_gap: None without a reference, or where logits were not kept.
        flipped: the first images on which the arm and its reference decide otherwise, the surest first.
        flipped_count: all of them; None without a reference.
    """

    top1: Share
    macro_f1: float
    agreement: Agreement | None
    delta_top1: float | None
    confusion: tuple[tuple[int, ...], ...]
    per_class: tuple[ClassAccuracy, ...]
    multi_label: MultiLabelAccuracy | None
    top5: Share | None
    macro_f1_ci95: Interval | None
    auc: float | None
    calibration: Calibration | None
    delta_top1_ci95: Interval | None
    mcnemar_p: float | None
    logit_gap: LogitGap | None
    flipped: tuple[FlippedImage, ...]
    flipped_count: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """Whether what was timed is what was judged.

    Attributes:
        timed_checked: timed queries, warm-up and every scenario included, whose answer was compared with the accuracy pass.
        mismatch: those that decide otherwise, or are sure of it to another degree.
        rechecked: answers of the accuracy passes of later launches that were compared with the first's.
        recheck_mismatch: those that differ.
        errors: queries that failed, in any pass.
        first_error: the message of the first.
        input_sensitivity: time of a repeated input over that of a new one, median of the launches; far below 1 means
            remembered answers; None where queries failed.
        cpu_ratio: processor time over wall time of the single-stream blocks; far below 1 on a CPU means that the backend
            waits instead of computing.
        instant_share: share of timed queries whose inference took less than a quarter of their block's lower quartile.
        rss_growth_per_query: bytes, the slope of the resident memory over the timed blocks; None where it is not known.
    """

    timed_checked: int
    mismatch: int
    rechecked: int
    recheck_mismatch: int
    errors: int
    first_error: str | None
    input_sensitivity: float | None
    cpu_ratio: float | None
    instant_share: float
    rss_growth_per_query: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A time that every launch has once: values in the order of the launches, and their median."""

    median: int
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """Fresh processes that were started for this alone, one after the other.

    Attributes:
        process: from the start of the process to Python's first line of ours.
        total: from the start of the process to the first answer.
        page_cache: what was done with the files' pages before each start.
    """

    process: Spread
    import_backend: Spread
    load: Spread
    first_infer: Spread
    total: Spread
    page_cache: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Startup:
    """Importing the backend; loading and compiling the model, with the inference that checks it; the first query.

    Attributes:
        import_ns: of every launch.
        load_ns: of every launch.
        first_query_ns: end to end, of the first image of every launch.
        time_to_steady_ns: length of every launch's warm-up, whether it became steady or not.
        cold: None where cold starts were not asked for.
    """

    import_ns: Spread
    load_ns: Spread
    first_query_ns: Spread
    time_to_steady_ns: Spread
    cold: ColdStart | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident bytes of the worker, in the launch where they are highest: before and after loading the model, after the
    warm-up, and the peak when timing ended.

    `images_bytes` of the peak are the timed images themselves.
    """

    rss_before_load: int | None
    rss_after_load: int | None
    rss_after_warmup: int | None
    peak: int | None
    images_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupRecord:
    """How the warm-ups ended: all of them steady or not, queries and time of all launches together."""

    converged: bool
    queries: int
    ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantile:
    """A percentile by nearest rank.

    Attributes:
        value: None where there are fewer than `needs` queries: not estimable.
        ci95: hierarchical bootstrap, launches and then their blocks; None with fewer than five blocks.
        upper95: the percentile is at most this with 95 % confidence, for independent queries.
        needs: the fewest queries from which it is stated.
    """

    value: int | None
    ci95: tuple[int, int] | None
    upper95: int | None
    needs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Times of one stage over all queries but the first of each block.

    Attributes:
        jitter: p99 minus p50; None where p99 is not estimable.
        mad: median absolute deviation from the median.
    """

    p50: Quantile
    p90: Quantile
    p95: Quantile
    p99: Quantile
    p99_9: Quantile
    min: int
    max: int
    mean: float
    mad: int
    jitter: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """End to end and by stage; the stages of a query add up to its end-to-end time.

    In a closed loop a query is due when it is issued, so `queue` is 0. In an open loop (paced, server) it is due at its
    scheduled time, and end to end counts from there.
    """

    e2e: Distribution
    queue: Distribution
    pre: Distribution
    infer: Distribution
    post: Distribution
    mlperf_bound_p90: int | None
    mlperf_bound_p99: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outliers:
    """Slow queries by Tukey's fences; counted, never removed.

    Attributes:
        mild: beyond 1.5 interquartile ranges.
        severe: beyond 3.
        attributed: of both, by what their block met: `involuntary switch`, `major fault`, `throttle`, `unexplained`.
    """

    mild: int
    severe: int
    attributed: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioParams:
    """What defines the scenario; results with other parameters are not comparable.

    Attributes:
        batch: images of a call of the model.
        inflight: queries at once, at most.
        start: where the timed region begins.
        region: what is timed, in words.
        samples_per_query: images that one query asks for (multi-stream).
        fps: arrivals per second (paced).
        deadline_ns: by which a query must be done, counted from its scheduled time (paced).
        policy: what becomes of a frame that comes while another is worked on (paced).
        bound_ns: latency that `bound_share` of the queries must keep (server).
        bound_share: in (0, 1) (server).
        seconds: that it ran for (soak), or that a window has (offline, energy).
    """

    batch: int
    inflight: int
    start: Literal["memory"]
    region: str
    samples_per_query: int = 1
    fps: float | None = None
    deadline_ns: int | None = None
    policy: Literal["drop", "queue"] | None = None
    bound_ns: int | None = None
    bound_share: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One point of a sweep: offline by batch and in-flight, server by rate.

    Attributes:
        throughput: images per second, mean over windows (offline), or answered in time and late (server).
        throughput_ci95: over launches, or over windows within one launch; None with too few.
        rate: of arrivals per second (server).
        p50: of the end-to-end time of a query.
        within: share of queries inside the bound, with its interval (server).
        kept: whether the bound is kept with 95 % confidence (server).
    """

    batch: int
    inflight: int
    windows: int
    queries: int
    throughput: float
    throughput_ci95: Interval | None
    p50: int
    p99: int | None
    rate: float | None = None
    within: Share | None = None
    kept: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lateness:
    """How late queries of an open loop were issued although nothing was in their way, in nanoseconds."""

    p50: int
    p99: int
    max: int
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """What became of the frames of a camera: `missed` of the answered ones came too late, `dropped` were never looked at."""

    frames: int
    answered: int
    missed: int
    dropped: int
    miss_rate: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimit:
    """The largest rate of Poisson arrivals at which the bound is kept.

    Attributes:
        rate: per second; None where even the lowest one tried did not keep it.
        confirmed: a run of its own, with another seed, kept it too.
        probes: how many rates were tried.
    """

    rate: float | None
    confirmed: bool
    probes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakDrift:
    """A long run: how the last minute differs from the first.

    Attributes:
        first_p50: of the first tenth, at most a minute.
        last_p50: of the last tenth, at most a minute.
        ratio: of both; above 1 means that it became slower.
        rss_growth: bytes, over the whole.
        throttle_events: None where they cannot be read.
    """

    first_p50: int
    last_p50: int
    ratio: float
    rss_growth: int | None
    throttle_events: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessCost:
    """What the harness itself adds, measured in the worker of this arm, in every result.

    Attributes:
        recorder_ns: end-to-end time of a query of a pipeline that does nothing, median; of the first launch.
        recorder_p99_ns: the same, p99.
        timer_overhead_ns: between two stamps with nothing in between, median.
        lateness: of an open loop of 1,000 arrivals per second.
    """

    recorder_ns: int
    recorder_p99_ns: int
    timer_overhead_ns: int
    lateness: Lateness


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of an image, from the power rails; the method stands in `edgebert.bench.energy`.

    Attributes:
        scope: what the power is of, such as `input rail of the module` or `sum of monitored rails`.
        rails: that were added up.
        idle_w: mean of the times before and after the run in which nothing ran.
        idle_before_w: before.
        idle_after_w: after; None where only one was measured.
        mean_w: while images were answered.
        gross_j_per_image: all of it.
        above_idle_j_per_image: less idle power times the time.
        above_idle_ci95: Student's, over the windows; None with fewer than three. The sensor's own error is not in it.
        images: that were answered in the windows.
        windows: how many.
        seconds: of all windows, without the first second of each.
        coverage: smallest share of the expected samples that have a value.
        sample_interval_ms: between two samples, median.
        change_interval_ms: between two samples that differ, median: how often the sensor really shows something new.
    """

    scope: str
    rails: tuple[str, ...]
    idle_w: float
    idle_before_w: float
    idle_after_w: float | None
    mean_w: float
    gross_j_per_image: float
    above_idle_j_per_image: float
    above_idle_ci95: Interval | None
    images: int
    windows: int
    seconds: float
    coverage: float
    sample_interval_ms: float
    change_interval_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One way of asking, and what came of it.

    Attributes:
        queries: that the statistics count; `effective_queries` are what they are worth as independent ones.
        looks: how often the intervals were looked at before the run was ended.
        throughput: images per second: of block time (closed loop), at the best point (offline), answered (open loop).
        cpu_seconds_per_query: processor time over all threads, of whole blocks.
        gap_ratio: share of block time that belongs to no query; None in an open loop, which waits.
        involuntary_switches: how often the system took the processor away during blocks.
        lateness: of an open loop.
        deadlines: paced only.
        curve: offline and server: every point of the sweep.
        server: server only.
        soak: soak only.
        energy: of `energy` and `soak`, where power rails were read.
    """

    name: ScenarioName
    params: ScenarioParams
    warmup: WarmupRecord
    launches: int
    looks: int
    blocks: int
    queries: int
    effective_queries: float
    latency: Latency
    throughput: float
    throughput_ci95: Interval | None
    cpu_seconds_per_query: float
    outliers: Outliers
    gap_ratio: float | None
    involuntary_switches: int | None
    throttled_blocks: int | None
    lateness: Lateness | None = None
    deadlines: Deadlines | None = None
    curve: tuple[CurvePoint, ...] = ()
    server: ServerLimit | None = None
    soak: SoakDrift | None = None
    energy: Energy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One artefact on one backend.

    Attributes:
        role: `aa` is the baseline's artefact once more: whatever tells it from the baseline is noise.
        options: requested.
        effective: what the runtime says it really uses, and what the system says of the process.
        temperature: that the artefact divides its logits by before it says how sure it is; 1 for none.
        scenarios: single-stream first, always.
    """

    id: str
    role: Role
    target: str
    backend: str
    options: Mapping[str, str]
    effective: Mapping[str, str]
    temperature: float
    artifact: Artifact
    pipeline: PipelineRecord
    accuracy: Accuracy
    consistency: Consistency
    startup: Startup
    memory: Memory
    harness: HarnessCost
    scenarios: tuple[Scenario, ...]

    def scenario(self, name: ScenarioName) -> Scenario | None:
        """Return the scenario of this name, or None where it was not run."""
        return next((scenario for scenario in self.scenarios if scenario.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyTwin:
    """The change of accuracy that goes with a change of speed: b minus a, and McNemar's exact p."""

    delta_top1: float
    delta_ci95: Interval
    only_a_right: int
    only_b_right: int
    mcnemar_p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseFloor:
    """The baseline against itself, in the same run: what differs here is noise."""

    ratio: float
    ci95: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Arm `b` against the baseline `a`, from their interleaved blocks.

    Attributes:
        metric: `latency.e2e.p50`, `latency.e2e.p90`, `latency.e2e.p99` or `throughput`.
        ratio: time of b over time of a; below 1 means that b is faster. Of throughput, that of a over that of b.
        speedup: 1 / ratio.
        ci95: of the ratio, simultaneous over the arms of the run; None where it cannot be stated.
        confidence: of the interval of each arm alone that makes it so.
        scope: what the interval covers: `launches` how launches differ, `within-run only` does not.
        launches: fresh processes of each arm.
        rounds: of interleaved blocks, in all launches.
        margin: difference that matters to the user.
        noise_floor: the A/A control of the same metric; None in the control itself.
        delta: the larger of the margin and the noise floor's bounds: less than this is not claimed.
        verdict: of b.
        launches_needed: about as many decide, as their interval is as narrow as `delta`, or as the ratio's distance from it; None where the
            verdict is not `inconclusive`.
        p_holm: of the t-test over launches, adjusted over the arms; None within one run.
        accuracy: what goes with it.
    """

    a: str
    b: str
    metric: str
    scenario: str
    paired: bool
    ratio: float
    speedup: float
    ci95: Interval | None
    confidence: float
    scope: Literal["launches", "within-run only"]
    method: str
    launches: int
    rounds: int
    margin: float
    noise_floor: NoiseFloor | None
    delta: float
    verdict: Verdict
    launches_needed: int | None
    p_holm: float | None
    accuracy: AccuracyTwin


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """A file beside the result."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightCheck:
    """One line of `edgebert doctor --bench` as it stood before the run; see `edgebert.bench.environment.preflight`."""

    name: str
    state: Literal["pass", "warn", "fail", "unknown"]
    found: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that one call of `bench` measured; the fields are those of `edgebert.bench/1`.

    A result that was cut short before every arm had answered has no arms and no dataset, and `status.partial`.
    """

    schema: str
    run_id: str
    created: str
    edgebert: str
    command: tuple[str, ...]
    rigor: Rigor
    seeds: Seeds
    status: Status
    device: Device
    os: OperatingSystem
    power_state: PowerState
    interference: Interference
    preflight: tuple[PreflightCheck, ...]
    software: Mapping[str, str]
    env: Mapping[str, str]
    dataset: DatasetRecord | None
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    files: Mapping[str, FileRecord]
    not_measured: Mapping[str, str]
    process: ProcessState | None = None

    def arm(self, name: str) -> Arm:
        """Return the arm of this name."""
        return next(arm for arm in self.arms if arm.id == name)

    @property
    def measured_arms(self) -> tuple[Arm, ...]:
        """The arms that were asked for: all but the A/A control."""
        return tuple(arm for arm in self.arms if arm.role != "aa")

    def comparison(
        self, name: str, metric: str = "latency.e2e.p50", scenario: ScenarioName = "single-stream"
    ) -> Comparison | None:
        """Return how the arm of this name compares with the baseline, or None where it was not compared."""
        return next(
            (
                found
                for found in self.comparisons
                if (found.b, found.metric, found.scenario) == (name, metric, scenario)
            ),
            None,
        )

    @property
    def exit_code(self) -> int:
        """Return 0, or 5 where the numbers may not be compared (bench.md, section 4.3)."""
        return 0 if self.status.valid and not self.status.partial else NOT_COMPARABLE_EXIT_CODE
