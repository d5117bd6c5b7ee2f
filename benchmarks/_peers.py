"""What the comparisons of the harness with its peers share: launches in turn, bounds, table, JSON.

A launch is a fresh process. The launches of all measurers alternate (a random order, then its mirror image), so that what this
shared computer does meanwhile hits all of them. A figure is the median over launches; its difference from the peer's is held
against a relative and an absolute bound, of which the larger counts.

>>> bound = Bound(relative=0.03, absolute_ns=30_000)
>>> shifted = Comparison(model="m", figure="infer p50", peer="app", ours=(2.2e6,), theirs=(2.0e6,), bound=bound)
>>> shifted.allowed_ns, shifted.passed
(60000.0, False)
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from _graphs import GRAPHS, subject

from edgebert.bench.schedule import order_of_blocks
from edgebert.card import ModelCard
from edgebert.errors import EdgebertError
from edgebert.extras import installed_version
from edgebert.preprocess import RgbImage
from edgebert.runtime.runner import physical_cores

TARGET = "intel-cpu"
MAX_WARMUP_NS = 8_000_000_000  # as `edgebert bench`

_BLOCK_QUERIES = 10  # at least, as the harness
_BLOCK_NS = 200_000_000  # a launch of a peer is not interrupted more often


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """How far a figure may lie from the peer's: the larger of a share of the peer's figure and a time in ns."""

    relative: float
    absolute_ns: float

    def __str__(self) -> str:
        return f"max({self.relative:.0%}, {self.absolute_ns / 1e3:.0f} µs)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One figure, measured by us and by the peer in several launches each.

    Attributes:
        model: what was timed.
        figure: which figure, such as `infer p50`.
        peer: the other tool.
        ours: the figure of each launch of ours, ns.
        theirs: the same of the peer's launches.
        bound: on the difference of the medians over launches; None for a figure that is shown and not judged.
    """

    model: str
    figure: str
    peer: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    bound: Bound | None

    @property
    def ours_ns(self) -> float:
        """Median over our launches."""
        return statistics.median(self.ours)

    @property
    def theirs_ns(self) -> float:
        """Median over the peer's launches."""
        return statistics.median(self.theirs)

    @property
    def difference_ns(self) -> float:
        """Ours less theirs."""
        return self.ours_ns - self.theirs_ns

    @property
    def allowed_ns(self) -> float:
        """The larger of the two bounds; infinite where nothing is judged."""
        if self.bound is None:
            return math.inf
        return max(self.bound.relative * self.theirs_ns, self.bound.absolute_ns)

    @property
    def used(self) -> float:
        """The share of the bound that the difference takes up; above 1 is too far."""
        return abs(self.difference_ns) / self.allowed_ns

    @property
    def passed(self) -> bool:
        """Whether the difference is within the bound."""
        return self.used <= 1

    @property
    def resolved(self) -> bool:
        """Whether the launches of either side differ among themselves by no more than the bound."""
        return all(max(side) - min(side) <= self.allowed_ns for side in (self.ours, self.theirs))

    def to_json(self) -> dict[str, object]:
        """Return the launches and what was made of them."""
        derived = ("ours_ns", "theirs_ns", "difference_ns")
        judged = () if self.bound is None else ("allowed_ns", "passed", "resolved")
        return {**asdict(self), **{name: getattr(self, name) for name in (*derived, *judged)}}


def launch_order(measurers: int, launches: int, *, seed: int) -> list[int]:
    """Return which measurer runs at each of the `measurers * launches` places: ABBA or BAAB, and so on.

    >>> sorted(launch_order(2, 3, seed=0))
    [0, 0, 0, 1, 1, 1]
    """
    order = order_of_blocks(arms=measurers, rounds=-(-launches // 2), seed=seed).reshape(-1, measurers)
    return [int(index) for index in order[:launches].reshape(-1)]  # (launches, measurers) -> (launches * measurers,)


def blocks_of(median_ns: int, seconds: float) -> tuple[int, int]:
    """Return how many blocks of how many queries take `seconds`, a block as long as the harness's own: (blocks, queries).

    >>> blocks_of(1_000_000, 3), blocks_of(140_000_000, 5)
    ((15, 200), (4, 10))
    """
    queries = max(_BLOCK_QUERIES, _BLOCK_NS // max(1, median_ns))
    return max(1, round(seconds * 1e9 / (queries * max(1, median_ns)))), queries


def bundle_of(path: Path, folder: Path) -> Path:
    """Return a bundle for `intel-cpu`: the one given, or one compiled from a graph into `folder`."""
    if path.suffix != ".onnx":
        return path
    from edgebert.export.compile import bundle_from_graph
    from edgebert.export.compile_options import CompileOptions

    bundle = folder / f"{path.stem}.edgebert"
    bundle_from_graph(path, bundle, CompileOptions(targets=(TARGET,), canary="synthetic"))
    return bundle


def model_paths(arguments: argparse.Namespace) -> list[Path]:
    """Return the artefacts of the command line; a student that is named (`_graphs.GRAPHS`) is trained where it is not there."""
    return [
        subject(model, arguments.source, arguments.output).graph
        if arguments.source is not None and model in GRAPHS
        else Path(model)
        for model in arguments.models
    ]


def images_of(card: ModelCard, data: str | None, count: int, *, seed: int) -> list[RgbImage]:
    """Return the images to time: of DATA's test split, or random pixels of the model's size where there is none.

    Args:
        card: of the model.
        data: as `edgebert bench --data`.
        count: images, at most what the test split has.
        seed: of the choice and the pixels.
    """
    generator = np.random.default_rng(seed)
    if data is None:
        shape = (count, card.preprocessing.height, card.preprocessing.width, 3)
        return list(generator.integers(0, 256, shape, dtype=np.uint8))
    from edgebert.data import load_dataset

    examples = load_dataset(data).test
    return [examples[index].load() for index in generator.permutation(len(examples))[:count]]


def peer_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options that every comparison has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="bundles for intel-cpu, .onnx graphs, or with --source `digits` and so on",
    )
    parser.add_argument(
        "--source", type=Path, help="holds fashion_mnist/ and bccd_cells/: a MODEL may be a student's name"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/graphs"), help="where the students are kept")
    parser.add_argument("--launches", type=_positive, default=5, help="fresh processes of each measurer (5)")
    parser.add_argument("--seconds", type=_positive, default=3, help="timed in each launch, after its warm-up (3)")
    parser.add_argument("--threads", type=_positive, default=physical_cores(), help="of inference (physical cores)")
    parser.add_argument("--images", type=_positive, default=256, help="distinct images (256)")
    parser.add_argument("--data", help="take the images from this data set's test split (random pixels)")
    parser.add_argument("--seed", type=int, default=0, help="of images and orders (0)")
    parser.add_argument("--json", type=Path, help="write every launch's figures there as well")
    return parser


def run_comparison(
    main: Callable[[argparse.Namespace], Sequence[Comparison]],
    arguments: argparse.Namespace,
    packages: Sequence[str],
) -> int:
    """Measure, print the table and the verdict, write the JSON; return the exit code.

    0: all figures within their bounds; 1: one is not; an error of edgebert's has its own code, such as 69 for a peer that
    is not installed.

    Args:
        main: measures and returns the comparisons.
        arguments: of the command line.
        packages: modules whose versions belong beside the numbers.
    """
    conditions = _conditions(packages)
    try:
        comparisons = main(arguments)
    except EdgebertError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    conditions["load_after"] = os.getloadavg()[0]
    print("\n".join([f"{name}: {value}" for name, value in conditions.items()]))
    print(table_of(comparisons))
    if arguments.json:
        content = {"conditions": conditions, "comparisons": [each.to_json() for each in comparisons]}
        arguments.json.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for each in comparisons:
        if not each.resolved:
            print(f"note: {each.model}, {each.figure}: launches differ among themselves by more than the bound")
    print(verdict_of(comparisons))
    return 0 if all(each.passed for each in comparisons) else 1


def table_of(comparisons: Sequence[Comparison]) -> str:
    """Return a Markdown table: medians over launches with the lowest and highest launch, the difference and its bound."""
    lines = [
        "| model | figure | edgebert, µs | peer, µs | difference | allowed | |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for each in comparisons:
        cells = (
            each.model,
            f"{each.figure}, {each.peer}",
            _median_and_spread(each.ours),
            _median_and_spread(each.theirs),
            f"{each.difference_ns / 1e3:+.1f} µs ({each.difference_ns / each.theirs_ns:+.1%})",
            "not judged" if each.bound is None else f"{each.allowed_ns / 1e3:.1f} µs",
            "" if each.bound is None else "PASS" if each.passed else "FAIL",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict_of(comparisons: Sequence[Comparison]) -> str:
    """Return `PASS …` or `FAIL …` with the figure that takes up most of its bound."""
    judged = [each for each in comparisons if each.bound is not None]
    worst = max(judged, key=lambda each: each.used)
    said = (
        f"{worst.model}, {worst.figure}: {worst.difference_ns / 1e3:+.1f} µs ({worst.difference_ns / worst.theirs_ns:+.1%}) "
        f"from {worst.peer}, allowed {worst.allowed_ns / 1e3:.1f} µs = {worst.bound}"
    )
    return f"{'PASS' if worst.passed else 'FAIL'} worst of {len(judged)}: {said}"


def _median_and_spread(figures: Sequence[float]) -> str:
    return f"{statistics.median(figures) / 1e3:.1f} ({min(figures) / 1e3:.1f}–{max(figures) / 1e3:.1f})"


def _conditions(packages: Sequence[str]) -> dict[str, object]:
    """Return what has to stand beside a number; the load is that of the last minute."""
    versions: Mapping[str, str | None] = {name: installed_version(name) for name in packages}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{_cpu_name()}, {os.cpu_count()} logical CPUs",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {versions[name]}" for name in versions)]
        ),
        "load_before": os.getloadavg()[0],
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
