"""The raw samples of a run: one int64 array per column, from which every statistic of the result can be rebuilt.

Queries, in the order each arm ran them: `arm` (index in the result), `launch`, `scenario` (index in `SCENARIOS`), `point` (of a
sweep: the probe or window's number; else 0), `block` (-1: warm-up), `flags` (1 warm-up, 2 first queries of a block, 4 failed,
8 dropped unseen), `sample_index` (of the test images used), `t_sched` (when it was due), `t_issue`, `t_pre_end`, `t_inf_end`,
`t_done` (monotonic ns of one clock), `pred` (class in the data's order, -1: failed), `confidence` (probability of the decided
class in 1e-9, -1: failed). One row for each image: images of one batch or query have the same stamps.
Blocks: `block_arm`, `block_launch`, `block_scenario`, `block_point`, `block_index` (in the order of the launch), `block_start_ns`,
`block_wall_ns`, `block_cpu_ns`, `block_involuntary`, `block_major_faults`, `block_rss` (bytes at its end); -1: not known.
`point_scenario`, `point_number`, `point_batch`, `point_inflight`, `point_rate_mhz` (arrivals per 1,000 s): what a point stands for.
The accuracy pass of the first launch: `accuracy_arm`, `accuracy_sample`, `accuracy_label`, `accuracy_pred` (-1: failed),
`accuracy_confidence`, `accuracy_rank` (of the true class among the logits, 0 the highest; -1: failed or several labels).
`logit`: the bits of each float32 logit, (arms, images, classes) in the data's order, where they were kept; see `MAX_LOGITS`.
The shorter passes of later launches: `recheck_arm`, `recheck_launch`, `recheck_sample`, `recheck_pred`, `recheck_confidence`.
Where images have any number of labels, a class is a number of the set said, and more columns come (`edgebert.bench.several`).
`schedule_launch`, `schedule`: the arm of each single-stream block of a launch, in the order they were run.
`idle_start_ns`, `idle_end_ns`: when nothing ran, for idle power (`edgebert.bench.energy`).
`telemetry_…`: what the sampler saw (`edgebert.bench.environment.sampler`); `telemetry_t_ns` on the clock of the stamps.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.columns import read_npz
from edgebert.bench.schema import ScenarioName
from edgebert.errors import BadDataError

IntArray = NDArray[np.int64]

SCENARIOS: tuple[ScenarioName, ...] = ("single-stream", "multi-stream", "offline", "paced", "server", "soak", "energy")

QUERY_COLUMNS = (
    "arm",
    "launch",
    "scenario",
    "point",
    "block",
    "flags",
    "sample_index",
    "t_sched",
    "t_issue",
    "t_pre_end",
    "t_inf_end",
    "t_done",
    "pred",
    "confidence",
)
BLOCK_COLUMNS = (
    "block_arm",
    "block_launch",
    "block_scenario",
    "block_point",
    "block_index",
    "block_start_ns",
    "block_wall_ns",
    "block_cpu_ns",
    "block_involuntary",
    "block_major_faults",
    "block_rss",
)
POINT_COLUMNS = ("point_scenario", "point_number", "point_batch", "point_inflight", "point_rate_mhz")
ACCURACY_COLUMNS = (
    "accuracy_arm",
    "accuracy_sample",
    "accuracy_label",
    "accuracy_pred",
    "accuracy_confidence",
    "accuracy_rank",
)
RECHECK_COLUMNS = ("recheck_arm", "recheck_launch", "recheck_sample", "recheck_pred", "recheck_confidence")
SCHEDULE_COLUMNS = ("schedule_launch", "schedule")
LOGITS = "logit"
TELEMETRY = "telemetry_"
SEVERAL_COLUMNS = (("truth_sample", "truth_class"), ("said_arm", "said_sample", "said_class"), ("score",))

MAX_LOGITS = 8_000_000  # of all arms together; more would make the samples larger than what they explain
CONFIDENCE_UNIT = 1e-9  # what `confidence` counts in
GROUPS = (QUERY_COLUMNS, BLOCK_COLUMNS, POINT_COLUMNS, ACCURACY_COLUMNS, RECHECK_COLUMNS, SCHEDULE_COLUMNS)

_NO_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a ZIP archive can hold
MAX_SAMPLES_BYTES = 2 << 30  # unpacked; 26 million queries, far more than any run has


@dataclass(frozen=True, slots=True)
class Samples:
    """Columns by name, as the module's docstring lists them; columns of one group have one length."""

    columns: Mapping[str, IntArray]

    def __getitem__(self, name: str) -> IntArray:
        return self.columns[name]

    def queries_of(self, arm: int, scenario: ScenarioName | None = "single-stream") -> Mapping[str, IntArray]:
        """Return the query columns of one arm in one scenario; None for all of them."""
        chosen = self["arm"] == arm
        if scenario is not None:
            chosen &= self["scenario"] == SCENARIOS.index(scenario)
        return {name: self[name][chosen] for name in QUERY_COLUMNS}

    def blocks_of(self, arm: int, scenario: ScenarioName | None = "single-stream") -> Mapping[str, IntArray]:
        """Return the block columns of one arm in one scenario; None for all of them."""
        chosen = self["block_arm"] == arm
        if scenario is not None:
            chosen &= self["block_scenario"] == SCENARIOS.index(scenario)
        return {name: self[name][chosen] for name in BLOCK_COLUMNS}

    def accuracy_of(self, arm: int) -> tuple[IntArray, IntArray]:
        """Return labels and predictions of one arm over the test images used, in their order."""
        chosen = self["accuracy_arm"] == arm
        return self["accuracy_label"][chosen], self["accuracy_pred"][chosen]


def write_columns(path: Path, columns: Mapping[str, IntArray]) -> None:
    """Write arrays as a compressed `.npz`; equal arrays give equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(columns):
            entry = zipfile.ZipInfo(f"{name}.npy", _NO_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, columns[name], allow_pickle=False)


def read_samples(path: Path) -> Samples:
    """Read what `write_columns` wrote; nothing is unpickled, and nothing huge is unpacked.

    Raises:
        BadDataError: not an archive of int64 columns, a column is missing, or lengths differ within a group.
    """
    what = f"`{path.name}`"
    try:
        columns = read_npz(path, max_bytes=MAX_SAMPLES_BYTES)
    except BadDataError as error:
        raise BadDataError(f"{what} is no archive of samples: {error.what}", expected=error.expected) from error
    several = SEVERAL_COLUMNS if SEVERAL_COLUMNS[-1][0] in columns else ()
    for group in (*GROUPS, *several):
        _check_group(columns, group, what)
    return Samples(columns)


def _check_group(columns: Mapping[str, NDArray[np.generic]], group: tuple[str, ...], what: str) -> None:
    for name in group:
        if name not in columns:
            raise BadDataError(f"{what} has no column `{name}`", expected=", ".join(group))
        if columns[name].dtype != np.int64 or columns[name].ndim != 1:
            raise BadDataError(f"{what}, `{name}`: {columns[name].dtype} {columns[name].shape}", expected="int64 (n,)")
    lengths = {name: len(columns[name]) for name in group}
    if len(set(lengths.values())) > 1:
        raise BadDataError(f"{what} has columns of different lengths: {lengths}")
