"""What a worker does when it is asked for one window or one run of arrivals: `probe`.

>>> request = ProbeRequest(scenario="offline", point=3, block=0, seed=0, batch=4, seconds=0.25)
>>> request.group
4
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgebert._json import Fields, JsonObject
from edgebert.bench.codec import from_json, to_json
from edgebert.bench.recorder import FLAG_DROPPED, FLAG_ERROR, FLAG_REWARM, ROW_COLUMNS, BlockMeter
from edgebert.bench.samples import SCENARIOS, IntArray
from edgebert.bench.scenarios.closed_loop import Window, run_window, takes_batch
from edgebert.bench.scenarios.open_loop import Arrivals, paced_schedule, poisson_schedule, run_arrivals
from edgebert.bench.scenarios.query import Asker
from edgebert.bench.schema import ScenarioName
from edgebert.bench.statistics.formulas import percentile
from edgebert.preprocess import RgbImage
from edgebert.runtime.pipeline import Pipeline

SINGLY = 1  # what is added to the point's number where the images of a query are asked about one after the other
_PATIENCE_SHARE = (
    0.25  # of a server probe: with so much of its length waiting, far too many queries are late to keep any bound
)
_PATIENCE_BOUNDS = 5  # and never before this many bounds

_COLUMN = {name: place for place, name in enumerate(ROW_COLUMNS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """One window or one run of arrivals.

    Attributes:
        scenario: which one.
        point: of the sweep; see `edgebert.bench.samples`.
        block: number of the block in the launch.
        seed: of Poisson arrivals and of the first image.
        batch: images of one call of the model (offline).
        inflight: threads that ask (offline), or servers.
        samples: images of one query (multi-stream).
        seconds: a window is not over before (closed loops).
        queries: arrivals (open loops), or the most that are kept of a window (soak; 0 for all).
        rate: arrivals per second (open loops).
        policy: what becomes of arrivals that find every server busy (open loops).
        late_allowed: more late queries than this end the run (server).
        bound_ns: deadline (paced) or bound (server), for `within` and the backlog.
    """

    scenario: ScenarioName
    point: int
    block: int
    seed: int
    batch: int = 1
    inflight: int = 1
    samples: int = 1
    seconds: float = 0.0
    queries: int = 0
    rate: float | None = None
    policy: Literal["drop", "queue"] | None = None
    bound_ns: int | None = None
    late_allowed: int | None = None

    @property
    def group(self) -> int:
        """Images of one question."""
        return self.samples if self.scenario == "multi-stream" else self.batch

    @property
    def longest_s(self) -> float:
        """About how long the answer takes where the model keeps up, or is given up on."""
        return self.seconds if self.rate is None else 2 * self.queries / self.rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What came of it; the rows say it in full.

    Attributes:
        queries: answered, those before the window not among them.
        images: of these.
        dropped: arrivals that nobody looked at.
        failed: queries that raised.
        wall_ns: from the first issue to the last answer.
        p50: end to end, from when a query was due; None without answers.
        p99: the same.
        within: queries answered within the bound; all of them where there is none.
        backlog: whether the run was given up while queries waited.
        batch: images that a call of the model really took; 0 where it refuses as many as were asked for, and nothing was timed.
        point: that the rows belong to; see `SINGLY`.
        first_error: of the queries that raised.
    """

    queries: int
    images: int
    dropped: int
    failed: int
    wall_ns: int
    p50: int | None
    p99: int | None
    within: int
    backlog: bool
    batch: int
    point: int
    first_error: str | None


def probe(pipeline: Pipeline, images: Sequence[RgbImage], request: Fields) -> tuple[IntArray, IntArray, JsonObject]:
    """Run what a `probe` message asks for.

    Args:
        pipeline: opened and warmed up.
        images: that are timed, uint8 (height, width, 3) RGB each.
        request: a `ProbeRequest` in JSON.

    Returns:
        rows: int64 (images, ROW_COLUMNS).
        block: int64 (BLOCK_ROW_COLUMNS,).
        answer: a `Probed` in JSON.
    """
    wanted = from_json(ProbeRequest, request.value, what=request.what)
    askers = [Asker(pipeline, images) for _ in range(wanted.inflight)]
    batch = wanted.batch
    if wanted.rate is None:
        batch, used = _closed(askers, wanted)
    else:
        used = run_arrivals(askers, _arrivals(wanted, wanted.rate, len(images)))
    if batch < wanted.group:
        wanted = replace(wanted, point=wanted.point + SINGLY)
    scenario = SCENARIOS.index(wanted.scenario)
    rows = np.concatenate([asker.rows(scenario=scenario, point=wanted.point, block=wanted.block) for asker in askers])
    errors = [asker.first_error for asker in askers if asker.first_error]
    probed = _probed(rows, wanted, batch=batch, first_error=errors[0] if errors else None)
    asked = rows[(rows[:, _COLUMN["flags"]] & (FLAG_REWARM | FLAG_DROPPED)) == 0]
    start = int(asked[:, _COLUMN["t_issue"]].min()) if len(asked) else 0
    block = used.row(scenario=scenario, point=wanted.point, index=wanted.block, start_ns=start, wall_ns=probed.wall_ns)
    return rows, block, to_json(probed)


def _closed(askers: Sequence[Asker], wanted: ProbeRequest) -> tuple[int, BlockMeter]:
    """Run a window; return the images of a call (0: the model refuses so many), and what the process used."""
    first, batch = wanted.seed % len(askers[0].images), wanted.group
    if batch > 1 and not takes_batch(askers[0], batch, first):
        if wanted.scenario == "offline":
            return 0, BlockMeter.start().stop()
        batch = 1
    window = Window(
        group=wanted.group,
        ns=round(wanted.seconds * 1e9),
        least=len(askers),
        most=wanted.queries or None,
        first=first,
        singly=batch < wanted.group,
    )
    return batch, run_window(askers, window)


def _arrivals(wanted: ProbeRequest, rate: float, images: int) -> Arrivals:
    seconds = wanted.queries / rate
    if wanted.scenario == "paced":
        # A camera goes on whatever happens; only a run that would last twice as long as asked is cut.
        offsets, patience = paced_schedule(rate, wanted.queries), seconds
    else:
        offsets = poisson_schedule(rate, wanted.queries, seed=wanted.seed)
        patience = max(seconds * _PATIENCE_SHARE, _PATIENCE_BOUNDS * (wanted.bound_ns or 0) / 1e9)
    return Arrivals(
        offsets=offsets,
        policy=wanted.policy or "queue",
        patience_ns=math.ceil(patience * 1e9),
        bound_ns=wanted.bound_ns,
        late_allowed=wanted.late_allowed,
        first=wanted.seed % images,
    )


def _probed(rows: IntArray, wanted: ProbeRequest, *, batch: int, first_error: str | None) -> Probed:
    flags = rows[:, _COLUMN["flags"]]
    counted = (flags & FLAG_REWARM) == 0
    answered = rows[counted & ((flags & (FLAG_ERROR | FLAG_DROPPED)) == 0)][:: wanted.group]  # a row for each query
    asked = rows[counted & ((flags & FLAG_DROPPED) == 0)]
    issue, done = asked[:, _COLUMN["t_issue"]], asked[:, _COLUMN["t_done"]]
    times = answered[:, _COLUMN["t_done"]] - answered[:, _COLUMN["t_sched"]]
    dropped = int(np.count_nonzero(flags & FLAG_DROPPED))
    return Probed(
        queries=len(answered),
        images=len(answered) * wanted.group,
        dropped=dropped,
        failed=int(np.count_nonzero(flags[counted] & FLAG_ERROR)) // wanted.group,
        wall_ns=int(done.max() - issue.min()) if len(asked) else 0,
        p50=percentile(times, 0.5) if len(times) else None,
        p99=percentile(times, 0.99) if len(times) else None,
        within=len(times) if wanted.bound_ns is None else int(np.count_nonzero(times <= wanted.bound_ns)),
        backlog=wanted.policy != "drop" and dropped > 0,
        batch=batch,
        point=wanted.point,
        first_error=first_error,
    )
