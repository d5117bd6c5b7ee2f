from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgebert.bench.statistics.blocks import effective_queries, hierarchical_bootstrap, weighted_percentiles
from edgebert.bench.statistics.formulas import percentile

IntArray = NDArray[np.int64]


def _blocks(
    count: int, queries: int, *, correlation: float = 0.0, spread: float = 0.0, seed: int = 0
) -> list[IntArray]:
    """Return blocks of 1 ms queries whose levels follow a first-order autoregression."""
    generator = np.random.default_rng(seed)
    level, blocks = 0.0, []
    for _ in range(count):
        level = correlation * level + generator.normal(0, spread * np.sqrt(1 - correlation**2))
        blocks.append((1e6 * (1 + level + generator.normal(0, 0.02, queries))).astype(np.int64))
    return blocks


@pytest.mark.parametrize("most", [3, 10**9])  # with many ties, and with none
def test_weighted_percentiles_are_those_of_the_pool_that_holds_the_blocks(most: int) -> None:
    generator = np.random.default_rng(0)
    blocks = [generator.integers(0, most, size).astype(np.int64) for size in (1, 7, 30, 30, 2)]
    draws = generator.integers(0, 4, (50, len(blocks)))
    draws[:, 2] += 1
    shares = [0.01, 0.5, 0.9, 0.99]
    found = weighted_percentiles(blocks, draws.astype(np.float64), shares)
    for row, times in zip(found, draws, strict=True):
        pool = np.concatenate([np.tile(block, count) for block, count in zip(blocks, times, strict=True)])
        assert row.tolist() == [percentile(pool, share) for share in shares]


def test_hierarchical_bootstrap_repeats_with_the_same_seed_only() -> None:
    launches = [_blocks(4, 30, seed=seed) for seed in range(5)]
    assert hierarchical_bootstrap(launches, [0.5, 0.9], seed=1) == hierarchical_bootstrap(launches, [0.5, 0.9], seed=1)
    assert hierarchical_bootstrap(launches, [0.5, 0.9], seed=1) != hierarchical_bootstrap(launches, [0.5, 0.9], seed=2)


def test_hierarchical_bootstrap_is_wide_when_launches_differ_and_blocks_do_not() -> None:
    levels = np.random.default_rng(1).normal(1, 0.05, 8)
    launches = [
        [(level * block).astype(np.int64) for block in _blocks(10, 30, seed=i)] for i, level in enumerate(levels)
    ]
    ((low, high),) = (found for found in hierarchical_bootstrap(launches, [0.5], seed=0) if found)
    ((flat_low, flat_high),) = (
        found for found in hierarchical_bootstrap([[b for launch in launches for b in launch]], [0.5], seed=0) if found
    )
    assert high - low > 2 * (flat_high - flat_low)


def test_hierarchical_bootstrap_weighs_launches_of_unequal_blocks_by_what_they_hold() -> None:
    launches = [_blocks(2, 20), _blocks(9, 20, seed=1), _blocks(1, 300, seed=2)]
    (found,) = hierarchical_bootstrap(launches, [0.5], seed=0)
    assert found is not None
    assert 0.99e6 < found[0] < found[1] < 1.01e6


def test_hierarchical_bootstrap_gives_none_when_there_are_four_blocks() -> None:
    assert hierarchical_bootstrap([_blocks(2, 20), _blocks(2, 20)], [0.5, 0.9], seed=0) == (None, None)


def test_effective_queries_is_all_of_them_when_they_are_independent() -> None:
    found = [effective_queries(_blocks(40, 25, seed=seed)) for seed in range(30)]
    assert np.median(found) > 0.75 * 1_000
    assert max(found) <= 1_000


def test_effective_queries_is_the_number_of_blocks_when_a_block_is_one_number() -> None:
    generator = np.random.default_rng(3)
    blocks = [np.full(50, value) for value in generator.permutation(200)]
    assert effective_queries(blocks) == pytest.approx(200, rel=0.15)


def test_effective_queries_is_smaller_when_neighbouring_blocks_are_alike() -> None:
    apart = np.median([effective_queries(_blocks(1_000, 10, spread=0.1, seed=seed)) for seed in range(10)])
    alike = np.median(
        [effective_queries(_blocks(1_000, 10, spread=0.1, correlation=0.8, seed=seed)) for seed in range(10)]
    )
    # Above or below the median is a sign: its autocorrelation is 2 / pi asin(0.8^k) (Van Vleck and Middleton 1966).
    expected = 1 + 2 * sum(2 / np.pi * np.arcsin(0.8**lag) for lag in range(1, 200))
    assert apart / alike == pytest.approx(expected, rel=0.35)


def test_effective_queries_does_not_hang_on_outliers() -> None:
    blocks = _blocks(40, 25)
    spiked = [block.copy() for block in blocks]
    for block in spiked[::4]:
        block[block.argmax()] *= 100
    assert effective_queries(spiked) == effective_queries(blocks)


@pytest.mark.parametrize("blocks", [[np.arange(9)], [np.full(5, 3), np.full(5, 3)], [np.arange(9), np.arange(9)]])
def test_effective_queries_is_all_of_them_when_blocks_show_no_difference(blocks: list[IntArray]) -> None:
    assert effective_queries(blocks) == sum(block.size for block in blocks)


def test_hierarchical_bootstrap_covers_the_true_percentile_with_five_launches() -> None:
    generator = np.random.default_rng(4)
    covered = 0
    for trial in range(200):
        levels = 1e6 * np.exp(generator.normal(0, 0.01, (5, 1, 1)))
        launches = (levels * np.exp(generator.normal(0, 0.02, (5, 8, 20)))).astype(np.int64)
        (found,) = hierarchical_bootstrap([list(launch) for launch in launches], [0.5], seed=trial)
        covered += found is not None and found[0] <= 1e6 <= found[1]
    assert 0.89 * 200 <= covered <= 0.99 * 200  # plain percentiles of the resamples: 84 %
