"""Measures several artefacts side by side: accuracy and latency of each from one session of one process.

a worker per arm -> test images, less those an arm has seen -> accuracy, chunk by chunk -> warm-up of each arm
-> blocks of single queries, interleaved between the arms -> statistics -> result
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from edgebert._files import check_file_is_free, check_not_input, sha256_of_path
from edgebert.bench.arms import arms_from_paths, find_arm
from edgebert.bench.loading import DEFAULT_GRAPH_TARGET
from edgebert.bench.options import BenchOptions
from edgebert.bench.record import Measured, result_from_session
from edgebert.bench.result import samples_path, write_result
from edgebert.bench.schema import Result
from edgebert.bench.selection import common_task, select_images
from edgebert.bench.session import open_arms, run_session
from edgebert.bench.worker_process import WORKER_COMMAND, WorkerProcess
from edgebert.data import DataOptions, load_dataset
from edgebert.errors import RefusedError
from edgebert.runtime.runner import physical_cores


def result_from_arms(
    paths: Sequence[str | Path],
    output: Path,
    options: BenchOptions,
    *,
    worker_command: Sequence[str] = WORKER_COMMAND,
) -> Result:
    """Measure artefacts on the test split and write the result and its raw samples.

    Args:
        paths: bundles, graphs, checkpoints, each as a path or `NAME=PATH`; none for the bundles of the current folder.
        output: the result, a `.json` file; the samples go beside it.
        options: how to measure.
        worker_command: what runs an arm; tests give their own.

    Returns:
        what was written; `status` and `exit_code` say whether the numbers may be compared.

    Raises:
        UnavailableError: a target cannot run here; found out before anything is measured.
        BadDataError: the data do not fit the artefacts, or an artefact has seen the test images.
        EdgebertError: a worker failed.
    """
    check_file_is_free(output, force=options.force)
    check_file_is_free(samples_path(output), force=options.force)
    arms = arms_from_paths(paths, options.targets)
    check_not_input(output, *(arm.path for arm in arms))
    names = [arm.name for arm in arms]
    baseline = find_arm(names, options.baseline, flag="baseline") if options.baseline else 0
    reference = find_arm(names, options.reference, flag="reference") if options.reference else None
    hashes = [sha256_of_path(arm.path) for arm in arms]
    threads = options.threads or physical_cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgebert-bench-")))
        workers = [stack.enter_context(WorkerProcess(arm.name, threads, worker_command)) for arm in arms]
        opened = open_arms(workers, arms, threads=threads, default_target=DEFAULT_GRAPH_TARGET)
        cards = [arm.card for arm in opened]
        reading = DataOptions(
            class_map=options.class_map, max_skipped=options.max_skipped, task=common_task(names, cards)
        )
        selection = select_images(load_dataset(options.data, reading), names, cards)
        session = run_session(opened, selection, folder, options)
    for arm, before in zip(arms, hashes, strict=True):
        if sha256_of_path(arm.path) != before:
            raise RefusedError(f"`{arm.path}` changed while it was measured", hint="measure again")
    measured = Measured(
        arms=tuple(arms),
        hashes=tuple(hashes),
        selection=selection,
        session=session,
        options=options,
        threads=threads,
        baseline=baseline,
        reference=reference,
    )
    result = result_from_session(measured)
    return write_result(output, result, session.samples, force=options.force)
