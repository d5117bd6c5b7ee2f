"""The raw samples of a run: one int64 array per column, from which every statistic of the result can be rebuilt.

Columns of timed and warm-up queries, in the order each arm ran them: `arm` (index in the result), `launch`, `block`
(-1: warm-up), `flags` (1 warm-up, 2 first queries of a block, 4 failed), `sample_index` (of the test images used),
`t_issue`, `t_pre_end`, `t_inf_end`, `t_done` (monotonic ns of one clock), `pred` (class in the data's order, -1: failed).
Columns of blocks: `block_arm`, `block_index`, `block_wall_ns`, `block_cpu_ns`, `block_involuntary` (-1: not counted).
Columns of the accuracy pass: `accuracy_arm`, `accuracy_sample`, `accuracy_label`, `accuracy_pred` (-1: failed).
Where images have any number of labels, a class is a number of the set said, and more columns come (`edgebert.bench.several`).
`schedule` is the order of the arms' blocks: one arm index per block, in the order they were run.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import BadDataError

IntArray = NDArray[np.int64]

QUERY_COLUMNS = (
    "arm",
    "launch",
    "block",
    "flags",
    "sample_index",
    "t_issue",
    "t_pre_end",
    "t_inf_end",
    "t_done",
    "pred",
)
BLOCK_COLUMNS = ("block_arm", "block_index", "block_wall_ns", "block_cpu_ns", "block_involuntary")
ACCURACY_COLUMNS = ("accuracy_arm", "accuracy_sample", "accuracy_label", "accuracy_pred")
SCHEDULE = "schedule"
SEVERAL_COLUMNS = (("truth_sample", "truth_class"), ("said_arm", "said_sample", "said_class"), ("score",))

_NO_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a ZIP archive can hold
MAX_SAMPLES_BYTES = 2 << 30  # unpacked; 26 million queries, far more than any run has


@dataclass(frozen=True, slots=True)
class Samples:
    """Columns by name, as the module's docstring lists them; columns of one group have one length."""

    columns: Mapping[str, IntArray]

    def __getitem__(self, name: str) -> IntArray:
        return self.columns[name]

    def queries_of(self, arm: int) -> Mapping[str, IntArray]:
        """Return the query columns of one arm."""
        chosen = self["arm"] == arm
        return {name: self[name][chosen] for name in QUERY_COLUMNS}

    def blocks_of(self, arm: int) -> Mapping[str, IntArray]:
        """Return the block columns of one arm."""
        chosen = self["block_arm"] == arm
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
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_SAMPLES_BYTES:
            raise BadDataError(f"{what} unpacks to {unpacked:,} bytes", expected=f"at most {MAX_SAMPLES_BYTES:,}")
        with np.load(path, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise BadDataError(f"{what} is no archive of samples: {error}") from error
    several = SEVERAL_COLUMNS if SEVERAL_COLUMNS[-1][0] in columns else ()
    for group in (QUERY_COLUMNS, BLOCK_COLUMNS, ACCURACY_COLUMNS, (SCHEDULE,), *several):
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
