"""Cold starts: fresh processes, one after the other, each timed from its start to its first answer.

    start ── process ── first line ── import ── open ── first answer

What lies in the system's page cache decides much of it. Before each start the pages of the artefact's own files are dropped; those of
Python and the backend's libraries are not, since other programs may use them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edgebert._progress import Progress
from edgebert.bench.arms import ArmRequest
from edgebert.bench.codec import from_json
from edgebert.bench.images import write_images
from edgebert.bench.schema import ColdStart, Spread
from edgebert.bench.worker_process import WORKER_COMMAND, StartWorker, WorkerProcess
from edgebert.preprocess import RgbImage

_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What the fresh process said: monotonic nanoseconds, but for `import_ns`, which is how long the backend's import took."""

    first_line_ns: int
    opening_ns: int
    opened_ns: int
    answered_ns: int
    import_ns: int


def cold_starts(
    arm: ArmRequest,
    image: RgbImage,
    *,
    threads: int,
    count: int,
    cpus: Sequence[int] = (),
    worker_command: Sequence[str] = WORKER_COMMAND,
    start_worker: StartWorker = WorkerProcess,
) -> ColdStart:
    """Start an arm `count` times.

    `import_backend` is everything that is imported, numpy and edgebert included; `load` is reading, verifying and compiling the
    artefact, with the inference that checks it; `first_infer` is preprocessing, inference and decision of the image. With `process`
    they add up to `total`, but for reading the image.

    Args:
        arm: with the target that it has when it is timed.
        image: uint8 (height, width, 3) RGB that is answered.
        threads: of the arm.
        count: at least 1.
        cpus: processors that the processes may use; empty for all.
        worker_command: what runs an arm; tests give their own.
        start_worker: starts it.

    Raises:
        EdgebertError: a process failed.
    """
    files = artefact_files(arm.path)
    starts: list[tuple[int, Moments]] = []
    dropped: list[bool] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgebert-cold-"))
        progress = stack.enter_context(Progress(f"cold starts of {arm.name}", count))
        request = {
            "path": str(arm.path),
            "kind": arm.kind,
            "target": arm.target,
            "threads": threads,
            "cpus": list(cpus),
            **write_images(Path(folder) / "image", [image]),
        }
        for _ in range(count):
            dropped.append(drop_pages(files))
            started = time.monotonic_ns()
            with start_worker(arm.name, threads, worker_command) as worker:
                answer = worker.ask("first", request, timeout_s=_TIMEOUT_S)
            starts.append((started, from_json(Moments, answer.value, what=answer.what)))
            progress.advance()
    return _cold_start(starts, _page_cache(len(files), dropped))


def artefact_files(path: Path) -> list[Path]:
    """Return the regular files of an artefact that can be read: the file itself, or those of its folder."""
    found = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    return [file for file in found if file.is_file() and os.access(file, os.R_OK)]


def drop_pages(files: Iterable[Path]) -> bool:
    """Ask the system to drop the files' pages from its cache; say whether none is left there.

    False where the system has no such call, or keeps pages: a file system in memory, a page that a program
    has mapped.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    gone = True
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # a page that is not written yet cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            gone = not _is_cached(descriptor) and gone
        finally:
            os.close(descriptor)
    return gone


def _is_cached(descriptor: int) -> bool:
    """Say whether a page of a file is in memory, as mincore(2) sees it; looking brings none there, as reading would.

    True also where that is not known, so that nothing is claimed.
    """
    size = os.fstat(descriptor).st_size
    if size == 0:
        return False
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    # Private and writable, for ctypes to give its address; nothing is written.
    with mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages)
        del start  # the map cannot be closed before
    return bool(failed) or any(page & 1 for page in pages)


def _page_cache(files: int, dropped: Sequence[bool]) -> str:
    libraries = "those of Python and the libraries were left"
    if all(dropped):
        return f"pages of the artefact's files ({files}) were dropped before each start; {libraries}"
    if hasattr(os, "posix_fadvise"):
        kept = len(dropped) - sum(dropped)
        return f"dropping pages of the artefact's files ({files}) was asked for; {kept} of {len(dropped)} times some stayed"
    return "this system cannot drop pages: the artefact's files may have been in memory"


def _cold_start(starts: Sequence[tuple[int, Moments]], page_cache: str) -> ColdStart:
    return ColdStart(
        process=_spread([found.first_line_ns - started for started, found in starts]),
        import_backend=_spread([found.opening_ns - found.first_line_ns + found.import_ns for _, found in starts]),
        load=_spread([found.opened_ns - found.opening_ns - found.import_ns for _, found in starts]),
        first_infer=_spread([found.answered_ns - found.opened_ns for _, found in starts]),
        total=_spread([found.answered_ns - started for started, found in starts]),
        page_cache=page_cache,
    )


def _spread(values: Sequence[int]) -> Spread:
    """Return the values and the lower of their middle ones."""
    return Spread(median=sorted(values)[(len(values) - 1) // 2], values=tuple(values))
