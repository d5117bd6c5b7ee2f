"""The schema `edgebert.bench/1`: what a result holds, as dataclasses that `edgebert.bench.codec` turns into JSON.

Times are integers in nanoseconds, sizes in bytes, shares in [0, 1]; every number is finite. What was not measured is
null, and `not_measured` says why, by the path of the field. It is one long module because it is one document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgebert.card import Task

SCHEMA = "edgebert.bench/1"
NOT_COMPARABLE_EXIT_CODE = 5  # bench.md, section 4.3

Interval = tuple[float, float]
ArtefactKind = Literal["bundle", "graph", "checkpoint"]
Precision = Literal["fp32", "int8"]


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
        valid: False after a failed query, a timed decision that differs from the accuracy pass, or remembered answers.
        converged: every warm-up became steady before its cap.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where it was measured."""

    arch: str
    model: str | None
    cpu: Cpu
    memory_bytes: int | None
    transport: Literal["local", "ssh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """The limits of the control group; None where there is none."""

    cpu_max: str | None
    cpuset: str | None
    memory_max_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingSystem:
    """Kernel, distribution, and what it runs inside of."""

    system: str
    kernel: str
    distro: str | None
    container: str | None
    hypervisor: str | None
    cgroup: Cgroup


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerState:
    """What decides the clock; None where it cannot be read."""

    driver: str | None
    governor: tuple[str, ...]
    turbo: bool | None
    epp: str | None
    smt: bool | None
    ac: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interference:
    """What else ran: load averages before and after, and shares of all processors' time while timing.

    Attributes:
        load_before: over 1, 5 and 15 minutes, when the first block began.
        load_after: when the last ended.
        steal_ratio: given to other guests by the hypervisor.
        other_busy_ratio: used by other programs of this computer.
        swap_used_bytes: at the end.
    """

    load_before: tuple[float, ...]
    load_after: tuple[float, ...]
    steal_ratio: float | None
    other_busy_ratio: float | None
    swap_used_bytes: int | None


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
    """

    top1: Share
    macro_f1: float
    agreement: Agreement | None
    delta_top1: float | None
    confusion: tuple[tuple[int, ...], ...]
    per_class: tuple[ClassAccuracy, ...]
    multi_label: MultiLabelAccuracy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """Whether what was timed is what was judged.

    Attributes:
        timed_checked: timed queries whose decision was compared with the accuracy pass.
        mismatch: those that differ.
        errors: queries that failed, in either pass.
        first_error: the message of the first.
        input_sensitivity: time of a repeated input over that of a new one; far below 1 means remembered answers;
            None where queries failed.
    """

    timed_checked: int
    mismatch: int
    errors: int
    first_error: str | None
    input_sensitivity: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Startup:
    """Of this one launch: importing the backend; loading and compiling the model, with the inference that checks it."""

    import_ns: int
    load_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident bytes of the worker: before and after loading the model, and the peak when timing ended.

    `images_bytes` of the peak are the timed images themselves.
    """

    rss_before_load: int | None
    rss_after_load: int | None
    peak: int | None
    images_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupRecord:
    """How the warm-up ended."""

    converged: bool
    queries: int
    ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantile:
    """A percentile by nearest rank.

    Attributes:
        value: None where there are fewer than `needs` queries.
        ci95: bootstrap over the blocks of this launch.
        upper95: the percentile is at most this with 95 % confidence, for independent queries.
        needs: the fewest queries from which it is stated.
    """

    value: int | None
    ci95: tuple[int, int] | None
    upper95: int | None
    needs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Times of one stage over all queries but the first of each block."""

    p50: Quantile
    p90: Quantile
    p95: Quantile
    p99: Quantile
    min: int
    max: int
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """End to end and by stage; the stages of a query add up to its end-to-end time."""

    e2e: Distribution
    pre: Distribution
    infer: Distribution
    post: Distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Outliers:
    """Slow queries by Tukey's fences; counted, never removed."""

    mild: int
    severe: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioParams:
    """What defines the scenario; results with other parameters are not comparable."""

    batch: int
    inflight: int
    start: Literal["memory"]
    region: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One way of asking, and what came of it.

    Attributes:
        throughput: queries per second of block time, one in flight.
        cpu_seconds_per_query: processor time over all threads, of whole blocks.
        gap_ratio: share of block time that belongs to no query.
        timer_overhead_ns: between two stamps with nothing in between, median.
        involuntary_switches: how often the system took the processor away during blocks.
    """

    name: Literal["single-stream"]
    params: ScenarioParams
    warmup: WarmupRecord
    launches: int
    blocks: int
    queries: int
    latency: Latency
    throughput: float
    cpu_seconds_per_query: float
    outliers: Outliers
    gap_ratio: float
    timer_overhead_ns: int
    involuntary_switches: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One artefact on one backend."""

    id: str
    role: Literal["baseline", "candidate"]
    target: str
    backend: str
    options: Mapping[str, str]
    effective: Mapping[str, str]
    artifact: Artifact
    pipeline: PipelineRecord
    accuracy: Accuracy
    consistency: Consistency
    startup: Startup
    memory: Memory
    scenarios: tuple[Scenario, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyTwin:
    """The change of accuracy that goes with a change of speed: b minus a, and McNemar's exact p."""

    delta_top1: float
    only_a_right: int
    only_b_right: int
    mcnemar_p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Arm `b` against the baseline `a`, from their interleaved blocks.

    Attributes:
        ratio: time of b over time of a; below 1 means that b is faster.
        speedup: 1 / ratio.
        ci95: of the ratio; None with fewer than five rounds of blocks.
        scope: what the interval covers. One launch cannot show how launches differ.
    """

    a: str
    b: str
    metric: str
    scenario: str
    paired: bool
    ratio: float
    speedup: float
    ci95: Interval | None
    scope: Literal["within-run only"]
    method: str
    launches: int
    rounds: int
    accuracy: AccuracyTwin


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """A file beside the result."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that one call of `bench` measured; the fields are those of `edgebert.bench/1`."""

    schema: str
    run_id: str
    created: str
    edgebert: str
    command: tuple[str, ...]
    rigor: Literal["within-run"]
    seeds: Seeds
    status: Status
    device: Device
    os: OperatingSystem
    power_state: PowerState
    interference: Interference
    software: Mapping[str, str]
    env: Mapping[str, str]
    dataset: DatasetRecord
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    files: Mapping[str, FileRecord]
    not_measured: Mapping[str, str]

    def arm(self, name: str) -> Arm:
        """Return the arm of this name."""
        return next(arm for arm in self.arms if arm.id == name)

    @property
    def exit_code(self) -> int:
        """Return 0, or 5 where the numbers may not be compared (bench.md, section 4.3)."""
        return 0 if self.status.valid else NOT_COMPARABLE_EXIT_CODE
