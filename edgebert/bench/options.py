"""What a measurement is asked to do.

>>> BenchOptions(data="digits").queries
330
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgebert.errors import UsageError

MAX_SEED = 2**32 - 1
MAX_THREADS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How to measure.

    Attributes:
        data: where the test images come from, as in every command.
        targets: which form of a bundle, and which backend for a graph; empty means what the runtime would pick.
        queries: timed queries per arm, at least; 299 are what a 95 % bound on p99 takes (bench.md, section 4.2).
        seconds: timed seconds per arm, at least.
        max_seconds: timed seconds per arm, at most; wins over `queries` and `seconds`.
        max_warmup_seconds: warm-up ends here, steady or not; what was not steady is said.
        images: how many distinct test images are timed; accuracy always takes the whole test split.
        threads: intra-op threads of every arm; 0 means the physical cores this process may use.
        seed: of the order of images, the order of blocks and the bootstrap.
        baseline: name of the arm that speed-ups refer to; the first arm if not given.
        reference: name of the arm that agreement refers to; if not given, the FP32 arm made from the same checkpoint.
        class_map: class name in the data -> class name in the artefacts.
        max_skipped: largest share of unreadable images before the run stops.
        force: replace an existing result.
    """

    data: str
    targets: tuple[str, ...] = ()
    queries: int = 330
    seconds: float = 4.0
    max_seconds: float = 30.0
    max_warmup_seconds: float = 8.0
    images: int = 256
    threads: int = 0
    seed: int = 0
    baseline: str | None = None
    reference: str | None = None
    class_map: Mapping[str, str] = field(default_factory=dict)
    max_skipped: float = 0.01
    force: bool = False

    def __post_init__(self) -> None:
        for flag, value, low, high in (
            ("queries", self.queries, 1, 10_000_000),
            ("seconds", self.seconds, 0.0, 86_400.0),
            ("max-seconds", self.max_seconds, 0.1, 86_400.0),
            ("max-warmup-seconds", self.max_warmup_seconds, 0.0, 3_600.0),
            ("images", self.images, 1, 100_000),
            ("threads", self.threads, 0, MAX_THREADS),
            ("seed", self.seed, 0, MAX_SEED),
        ):
            if not math.isfinite(value) or not low <= value <= high:
                raise UsageError(f"`--{flag} {value}` is out of range", expected=f"{low:g} to {high:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """How to make a report.

    Attributes:
        force: replace an existing report.
    """

    force: bool = False
