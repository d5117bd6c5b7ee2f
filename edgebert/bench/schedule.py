"""How many blocks of how many queries each arm gets, and in which order they run.

A round is a random order of the arms followed by its mirror image: ABBA or BAAB for two arms. Every arm has two blocks
per round, and a drift that is linear over a round hits all arms alike (bench.md, section 4.2).

>>> order_of_blocks(arms=2, rounds=2, seed=0).tolist()
[[0, 1, 1, 0], [1, 0, 0, 1]]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.options import Budget

# bench.md, section 4.2, has blocks of 200 ms. What disturbs a shared computer comes and goes within seconds, and arms that
# alternate more often share it better: the standard deviation over launches of an A/A contrast was 6.8 % with blocks of 200 ms and
# 0.5 % with blocks of 10 ms (docs/bench-statistics.md). A block is never shorter than two turns between workers.
BLOCK_NS = 10_000_000
SETTLE_NS = 5_000_000  # after a worker's turn
SETTLE_BUSY_NS = 30_000_000  # the same where it has threads that busy-wait (bench.md, section 3)
_BLOCK_QUERIES = 10
_MAX_BLOCK_QUERIES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was decided from the warm-up, before anything is timed: there is no looking at results and going on.

    Attributes:
        rounds: of blocks.
        queries: per block of each arm.
        expected_ns: duration of one block of each arm.
    """

    rounds: int
    queries: tuple[int, ...]
    expected_ns: tuple[int, ...]


def settle_ns(threads: int) -> int:
    """Return how long a worker is left to become quiet before another one's turn."""
    return SETTLE_NS if threads == 1 else SETTLE_BUSY_NS


def plan_from_times(medians_ns: Sequence[int], means_ns: Sequence[int], budget: Budget, *, threads: int) -> Plan:
    """Return the plan of one launch: over `budget.launches` of them every arm gets the queries and seconds asked for.

    `max_seconds` is of all launches that may come, so each launch gets its part of it.

    Args:
        medians_ns: end-to-end time of each arm at the end of its warm-up; sizes the blocks.
        means_ns: the same, mean; says how long a block will take where some queries are very slow.
        budget: of the run.
        threads: of every arm.
    """
    block_ns = max(BLOCK_NS, 2 * settle_ns(threads))
    queries = [
        min(_MAX_BLOCK_QUERIES, max(_BLOCK_QUERIES, math.ceil(block_ns / max(1, median)))) for median in medians_ns
    ]
    expected = [max(1, count * mean) for count, mean in zip(queries, means_ns, strict=True)]
    useful = [count - rewarm_queries(count) for count in queries]
    needed = max(
        max(
            math.ceil(budget.queries / budget.launches / kept),
            math.ceil(budget.seconds / budget.launches * 1e9 / duration),
        )
        for kept, duration in zip(useful, expected, strict=True)
    )
    allowed = min(math.floor(budget.max_seconds / budget.max_launches * 1e9 / duration) for duration in expected)
    rounds = max(1, min(math.ceil(needed / 2), allowed // 2))
    return Plan(rounds=rounds, queries=tuple(queries), expected_ns=tuple(expected))


def rewarm_queries(queries: int) -> int:
    """Return how many queries at the start of a block are kept but not counted: max(2, 10 %)."""
    return max(2, -(-queries // 10))


def order_of_blocks(*, arms: int, rounds: int, seed: int, launch: int = 0) -> NDArray[np.int64]:
    """Return int64 (rounds, 2 * arms): the arm of each block of a launch, in the order they run."""
    generator = np.random.default_rng([seed, 2, launch])
    halves = [generator.permutation(arms) for _ in range(rounds)]
    return np.array([np.concatenate([half, half[::-1]]) for half in halves], np.int64)
