"""Which threads a process really has, and where they may run; asked in a worker after its warm-up.

What libraries say of their own pools is not enough: OpenMP's tools see neither TBB's threads nor ONNX Runtime's
(bench.md, section 9), so the threads of the process are counted.

>>> int(thread_facts()["os_threads"]) > 0
True
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from edgebert.bench.environment.system_files import SystemFiles, affinity, text_of_cpus

# Shared libraries that bring threads of their own; two of OpenMP in one process disturb each other.
_LIBRARIES = re.compile(
    r"/(lib(?:gomp|iomp5|omp|tbb|openblas\w*|mkl_rt|mkl_\w+_thread)[^/]*?\.(?:so|dylib)[^/\s]*)$", re.MULTILINE
)
_VARIABLES = re.compile(r"^(OMP|MKL|KMP|OPENBLAS|GOMP|TBB)_|^ORT_NUM_THREADS$")


def affinity_text() -> str:
    """Return where this process may run, such as `0-3`; to be asked before a backend is imported, which may change it."""
    return text_of_cpus(affinity())


def thread_facts(affinity_before_import: str | None = None, root: Path = Path("/")) -> Mapping[str, str]:
    """Return what is known of the threads of this process.

    Args:
        affinity_before_import: of `affinity_text`, before the backend was imported.
        root: where `proc` lies; another folder serves recorded trees.

    Returns:
        `os_threads`: how many the system counts. `affinity`: of the process's first thread. `affinity_before_import`,
        where it was given. `thread_affinity`: processors x number of threads, for all threads. `thread_libraries`: loaded
        libraries that start threads. And each variable that decides about threads. What cannot be read is left out.
    """
    files = SystemFiles(root)
    tasks = files.paths("/proc/self/task/[0-9]*")
    facts = {"os_threads": str(len(tasks) or threading.active_count()), "affinity": affinity_text()}
    if affinity_before_import is not None:
        facts["affinity_before_import"] = affinity_before_import
    places = Counter(filter(None, (_allowed(files.text(f"{task}/status")) for task in tasks)))
    if places:
        facts["thread_affinity"] = ", ".join(f"{cpus} x {count}" for cpus, count in sorted(places.items()))
    libraries = sorted(set(_LIBRARIES.findall(files.text("/proc/self/maps") or "")))
    if libraries:
        facts["thread_libraries"] = ", ".join(libraries)
    return {**facts, **{name: value for name, value in sorted(os.environ.items()) if _VARIABLES.match(name)}}


def _allowed(status: str | None) -> str | None:
    found = re.search(r"^Cpus_allowed_list:\s*(\S+)$", status or "", re.MULTILINE)
    return found[1] if found else None
