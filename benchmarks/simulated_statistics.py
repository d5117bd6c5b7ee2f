"""The statistics of the bench on sources whose truth is known: how often they see what is not there, and miss what is.

    python benchmarks/simulated_statistics.py                 2,000 trials, two minutes on one core
    python benchmarks/simulated_statistics.py --trials 300    a look

A trial is one run: arms A, B and A' (the A/A control) in launches of rounds of blocks of queries, in the order the bench runs
them, with noise of bench.md, section 4.1. Everything after the block medians is the bench's own code. The tables say
where a bound is missed; a line that ends in FAIL is a bound of bench.md, section 15, that is not kept, and the exit code is 1.

What it does not mean: the noise is a model. A machine whose launches differ in another way has other rates.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.statistics.blocks import hierarchical_bootstrap
from edgebert.bench.statistics.decision import DEFAULT_MARGIN, verdict_of
from edgebert.bench.statistics.launches import LaunchContrast, launch_contrast, unpaired_contrast
from edgebert.bench.statistics.stopping import StoppingRule

FloatArray = NDArray[np.float64]

ARMS = 3  # A, B, and A once more
ROUNDS, QUERIES = 8, 20  # of a launch, of a block
_SPIKE = math.log(2)
_MODE, _STEP = 0.06, 0.15
_CHUNK = 100  # trials held at a time
_STANDARD = StoppingRule(min_launches=5, max_launches=14, half_width=0.01)  # ten looks, the most that are allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Noise of the logarithm of a query's time (bench.md, section 4.1).

    Attributes:
        name: for the table.
        noise: standard deviation of independent noise of a query.
        drift: of the step of a random walk from block to block that all arms share.
        process: of what a process got at its start, for all of its queries.
        spikes: share of queries that take twice as long.
        bimodal: share of processes that are 6 % slow throughout.
        throttle: share of launches in which everything takes 15 % longer from some block on.
    """

    name: str
    noise: float = 0.02
    drift: float = 0.0
    process: float = 0.0
    spikes: float = 0.0
    bimodal: float = 0.0
    throttle: float = 0.0


_TYPICAL = Source(name="drift, process, spikes", drift=0.003, process=0.01, spikes=0.01)

SOURCES = (
    Source(name="independent"),
    Source(name="drift", drift=0.003),
    Source(name="drift, small process", drift=0.003, process=0.006),
    Source(name="drift, process", drift=0.003, process=0.01),
    _TYPICAL,
    Source(name="drift, process, bimodal", drift=0.003, process=0.01, bimodal=0.3),
    Source(name="drift, process, throttle", drift=0.003, process=0.01, throttle=0.5),
    Source(name="everything", drift=0.003, process=0.01, spikes=0.01, bimodal=0.3, throttle=0.5),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run and what the bench made of it.

    Attributes:
        contrast: B against A.
        floor: A' against A.
        verdict: with the A/A floor.
        unguarded: without it.
        converged: the rule said `enough`.
    """

    contrast: LaunchContrast
    floor: LaunchContrast
    verdict: str
    unguarded: str
    converged: bool


def block_medians(
    source: Source, generator: np.random.Generator, *, trials: int, launches: int, slowdown: float = 1.0
) -> FloatArray:
    """Return float64 (trials, launches, arms, rounds, 2): median times of blocks; arm 1 takes `slowdown` times as long."""
    outer = (trials, launches)
    half = generator.random((*outer, ROUNDS, ARMS)).argsort(axis=-1)  # place of each arm; its second block mirrors it
    places = np.stack([half, 2 * ARMS - 1 - half], axis=-1)  # (trials, launches, rounds, arms, 2)
    places = places + 2 * ARMS * np.arange(ROUNDS)[:, None, None]
    blocks = 2 * ARMS * ROUNDS
    machine = source.drift * generator.standard_normal((*outer, blocks)).cumsum(axis=-1)
    throttled = generator.random(outer) < source.throttle
    begins = generator.integers(blocks, size=outer)
    machine += _STEP * (throttled[..., None] & (np.arange(blocks) >= begins[..., None]))
    level = np.take_along_axis(machine, places.reshape(*outer, -1), axis=-1).reshape(places.shape)
    process = source.process * generator.standard_normal((*outer, ARMS))
    process += _MODE * (generator.random((*outer, ARMS)) < source.bimodal)
    process[..., 1] += math.log(slowdown)
    level += process[:, :, None, :, None]
    queries = generator.standard_normal((*level.shape, QUERIES), dtype=np.float32) * np.float32(source.noise)
    if source.spikes:
        queries += np.float32(_SPIKE) * (generator.random(queries.shape, dtype=np.float32) < source.spikes)
    medians: FloatArray = np.exp(level + np.median(queries, axis=-1)).swapaxes(2, 3)
    return medians


def outcomes(
    source: Source, *, trials: int, rule: StoppingRule, slowdown: float = 1.0, seed: int = 0
) -> Iterator[Outcome]:
    """Yield `trials` runs; a rule whose `min_launches` are its `max_launches` is no rule."""
    generator = np.random.default_rng([seed, 11])
    for start in range(0, trials, _CHUNK):
        medians = block_medians(
            source,
            generator,
            trials=min(_CHUNK, trials - start),
            launches=rule.max_launches,
            slowdown=slowdown,
        )
        for trial, run in enumerate(medians, start):
            yield _outcome(run, rule, seed=trial)


def _outcome(run: FloatArray, rule: StoppingRule, *, seed: int) -> Outcome:
    """Look after every launch from the first allowed on, as the bench does."""
    launches, looks = rule.min_launches, 1
    while True:
        a, b, again = (list(run[:launches, arm]) for arm in range(ARMS))
        contrast, floor = launch_contrast(a, b, seed=seed), launch_contrast(a, again, seed=seed)
        decision = rule.decide([contrast, floor], launches, looks)
        if decision != "go on":
            break
        launches, looks = launches + 1, looks + 1
    return Outcome(
        contrast=contrast,
        floor=floor,
        verdict=verdict_of(contrast.ci95, margin=DEFAULT_MARGIN, noise_floor=floor.ci95)[0],
        unguarded=verdict_of(contrast.ci95, margin=DEFAULT_MARGIN, noise_floor=None)[0],
        converged=decision == "enough",
    )


def fixed(launches: int) -> StoppingRule:
    """Return a rule that takes so many launches, whatever they say."""
    return StoppingRule(min_launches=launches, max_launches=launches, half_width=_STANDARD.half_width)


def claims(found: Sequence[Outcome]) -> float:
    """Return the share of runs whose verdict is a difference."""
    return share(outcome.verdict in ("faster", "slower") for outcome in found)


def coverage(found: Sequence[Outcome], truth: float = 1.0) -> float:
    """Return the share of intervals that hold the true ratio."""
    intervals = [outcome.contrast.ci95 for outcome in found]
    return share(interval is not None and interval[0] <= truth <= interval[1] for interval in intervals)


def share(hits: Iterator[bool]) -> float:
    """Return the mean of what is true."""
    return float(np.mean(list(hits)))


def half_width(found: Sequence[Outcome]) -> float:
    """Return the median relative half-width, in percent."""
    widths = [(o.contrast.ci95[1] - o.contrast.ci95[0]) / 2 / o.contrast.ratio for o in found if o.contrast.ci95]
    return 100 * float(np.median(widths))


def identical_arms(trials: int) -> list[str]:
    """Print runs of identical code; return the bounds that were missed."""
    print("\nIdentical arms: share of runs in percent\n")
    print("| source | launches | CI covers 1 | verdict claims a difference | without A/A | +- % | converged |")
    print("|---|---|--:|--:|--:|--:|--:|")
    missed = []
    for source in SOURCES:
        for rule in (fixed(5), fixed(10), _STANDARD):
            found = list(outcomes(source, trials=trials, rule=rule))
            launches = float(np.mean([outcome.contrast.launches for outcome in found]))
            named = f"{rule.min_launches}" if rule.min_launches == rule.max_launches else f"rule, mean {launches:.1f}"
            covered, claimed = coverage(found), claims(found)
            unguarded = share(outcome.unguarded in ("faster", "slower") for outcome in found)
            print(
                f"| {source.name} | {named} | {100 * covered:.1f} | {100 * claimed:.1f} | {100 * unguarded:.1f} "
                f"| {half_width(found):.2f} | {100 * share(outcome.converged for outcome in found):.0f} |"
            )
            what = f"{source.name}, {named}"
            missed += _check(f"{what}: verdict claims a difference in at most 7 %", claimed, claimed <= 0.07)
            missed += _check(f"{what}: coverage 93 to 97 %", covered, 0.93 <= covered <= 0.97)
    return missed


def true_differences(trials: int) -> list[str]:
    """Print runs with a known difference; return the bounds that were missed."""
    print("\nA true difference, drift, process effect and spikes: verdicts in percent of runs\n")
    print(
        "| slower by | sd of a launch | launches | slower | inconclusive | equivalent | faster | CI excludes 1 | CI covers |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    missed, power = [], {}
    for percent, sd, launches in [(5, 1, 5), (5, 1, 8), (5, 2, 5), (5, 2, 8), (2, 1, 8), (2, 1, 16)]:
        source = replace(_TYPICAL, process=sd / 100)
        ratio = 1 + percent / 100
        found = list(outcomes(source, trials=trials, rule=fixed(launches), slowdown=ratio, seed=1))
        counted = {
            name: share(outcome.verdict == name for outcome in found)
            for name in ("slower", "inconclusive", "equivalent", "faster")
        }
        excludes = share(o.contrast.ci95 is not None and o.contrast.ci95[0] > 1 for o in found)
        power[percent, sd, launches] = counted["slower"], excludes
        columns = " | ".join(f"{100 * value:.1f}" for value in (*counted.values(), excludes, coverage(found, ratio)))
        print(f"| {percent} % | {sd} % | {launches} | {columns} |")
        missed += _check(f"{percent} % slower is never called faster", counted["faster"], counted["faster"] == 0)
    seen, excluded = power[5, 1, 8][0], power[2, 1, 8][1]
    missed += _check("verdict sees 5 % with 8 launches of sd 1 % in at least 90 %", seen, seen >= 0.9)
    # Section 4.1 has 91 % with half-width 1.2 %; an interval that covers as promised cannot do much better.
    missed += _check("CI excludes 1 for 2 % with 8 launches of sd 1 % in at least 80 %", excluded, excluded >= 0.8)
    return missed


def few_launches(trials: int) -> None:
    """Print what the intervals of quick runs and of single arms are worth; nothing is promised for them."""
    print(
        "\nWithin-run intervals (bootstrap) of identical arms, drift, process effect and spikes: share of runs in percent\n"
    )
    print("| launches | CI covers 1 | verdict claims a difference | without A/A | +- % |")
    print("|--:|--:|--:|--:|--:|")
    for launches in (1, 2, 3, 4):
        found = list(outcomes(_TYPICAL, trials=trials, rule=fixed(launches), seed=2))
        unguarded = share(outcome.unguarded in ("faster", "slower") for outcome in found)
        print(
            f"| {launches} | {100 * coverage(found):.1f} | {100 * claims(found):.1f} | {100 * unguarded:.1f} "
            f"| {half_width(found):.2f} |"
        )
    print(
        "\nTwo runs that share no launch, identical code; p50 of one arm by hierarchical bootstrap: coverage in percent\n"
    )
    print("| launches | unpaired ratio | p50 of one arm |")
    print("|--:|--:|--:|")
    for launches in (2, 3, 5, 10):
        pairs, singles = _unpaired_and_single(launches, trials)
        print(f"| {launches} | {100 * pairs:.1f} | {100 * singles:.1f} |")


def _unpaired_and_single(launches: int, trials: int) -> tuple[float, float]:
    generator = np.random.default_rng([launches, 12])
    source = replace(_TYPICAL, spikes=0.0)  # so that the true median is 1
    medians = block_medians(source, generator, trials=trials, launches=2 * launches)
    pairs, singles = [], []
    for trial, run in enumerate(medians):
        blocks = run[:, 0].reshape(2 * launches, -1)  # (launches of both runs, blocks of arm A)
        pair = unpaired_contrast(blocks[:launches], blocks[launches:], seed=trial).ci95
        pairs.append(pair is not None and pair[0] <= 1 <= pair[1])
        noise = source.noise * generator.standard_normal((launches, blocks.shape[1], QUERIES))
        times = (1e6 * blocks[:launches, :, None] * np.exp(noise)).astype(np.int64)
        (single,) = hierarchical_bootstrap([list(launch) for launch in times], [0.5], seed=trial)
        singles.append(single is not None and single[0] <= 1e6 <= single[1])
    return float(np.mean(pairs)), float(np.mean(singles))


def summaries_of_launches(trials: int) -> None:
    """Print the spread of d over launches where d is the median over rounds, as in the bench, and where it is the mean."""
    print("\nd of a launch as median or as mean over rounds: standard deviation over launches in percent\n")
    print("| source | median | mean |")
    print("|---|--:|--:|")
    for source in SOURCES:
        medians = np.log(block_medians(source, np.random.default_rng(13), trials=trials, launches=5))
        differences = (medians[:, :, 1] - medians[:, :, 0]).mean(axis=-1)  # (trials, launches, rounds)
        median, mean = (100 * float(over(differences, axis=-1).std()) for over in (np.median, np.mean))
        print(f"| {source.name} | {median:.2f} | {mean:.2f} |")


def _check(what: str, value: float, passed: bool) -> list[str]:
    return [] if passed else [f"{what}: {100 * value:.1f} %"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print all tables; return 1 where a bound was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=2_000)
    trials = parser.parse_args(arguments).trials
    started = time.perf_counter()
    missed = identical_arms(trials) + true_differences(trials)
    few_launches(max(1, trials // 4))
    summaries_of_launches(max(1, trials // 10))
    print(f"\n{trials} trials, standard error of 5 %: {100 * math.sqrt(0.05 * 0.95 / trials):.1f} points; ", end="")
    print(f"{time.process_time():.0f} s of CPU, {time.perf_counter() - started:.0f} s\n")
    for line in missed:
        print(f"FAIL {line}")
    print("FAIL" if missed else "PASS every bound is kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
