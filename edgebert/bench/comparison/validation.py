"""Whether a result says what its raw samples say: `edgebert validate` (bench.md, section 11.1).

The schema, the hashes of the files beside it, the arms that its command names, and every statistic made again from the samples.
What no sample can say stands in the result as it was declared: the computer, its software, the sizes of files, what sensors
and workers reported.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgebert._json import JsonObject, JsonValue
from edgebert.bench.codec import to_json
from edgebert.bench.recorder import FLAG_WARMUP
from edgebert.bench.result import read_result, read_result_samples
from edgebert.bench.samples import SCENARIOS, Samples
from edgebert.bench.schema import Arm, Result, Spread, Startup
from edgebert.errors import BadDataError, EdgebertError

RELATIVE_TOLERANCE = 1e-9  # of floats: another numpy or processor may add up in another order
ABSOLUTE_TOLERANCE = 1e-12  # where terms cancel, a value near 0 keeps no relative precision
_MAX_TOLD = 5
_NAMES = ("id", "name", "b")  # what an entry of a list is called by in a path


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A value that the samples do not give.

    Attributes:
        path: of the field, such as `arms.student.scenarios.single-stream.queries`.
        stored: as JSON, in the result.
        recomputed: as JSON, from the samples.
    """

    path: str
    stored: str
    recomputed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What became of one result.

    Attributes:
        file: its name.
        held: what holds, one line each.
        refused: why it is refused; empty where it is not.
        expected: what was expected instead; empty where nothing is said.
        exit_code: 0, or that of the error.
    """

    file: str
    held: tuple[str, ...]
    refused: str
    expected: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReport:
    """What became of each result, in the order they were named."""

    results: tuple[Checked, ...]

    @property
    def exit_code(self) -> int:
        """Return 0 where all hold, else the code of the first that does not."""
        return next((entry.exit_code for entry in self.results if entry.exit_code), 0)

    def to_text(self) -> str:
        """Return a paragraph for each result."""
        return "\n".join(line for entry in self.results for line in _lines(entry))

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return {**to_json(self), "exit_code": self.exit_code}


def validate_results(paths: Sequence[Path]) -> ValidationReport:
    """Check results, one after the other; one that is refused does not keep the others from being looked at."""
    found = []
    for path in paths:
        try:
            held = check_result(path)
        except EdgebertError as error:
            found.append(
                Checked(
                    file=path.name,
                    held=(),
                    refused=error.what,
                    expected=error.expected or "",
                    exit_code=error.exit_code,
                )
            )
        else:
            found.append(Checked(file=path.name, held=held, refused="", expected="", exit_code=0))
    return ValidationReport(results=tuple(found))


def check_result(path: Path) -> tuple[str, ...]:
    """Return what holds of a result, one line each.

    Raises:
        InputNotFoundError: the result or a file beside it is not there.
        RefusedError: a file beside it is not the one it was made with.
        BadDataError: another schema, or a number that the samples do not give; the message names the first that differ.
    """
    what = f"`{path.name}`"
    result = read_result(path)
    held = [f"schema {result.schema}: every field is there and of its type"]
    held += [f"{record.name}: SHA-256 {record.sha256[:12]}… as recorded" for record in result.files.values()]
    check_command(result, what)
    check_not_measured(result, what)
    held.append(f"the command names the {len(result.measured_arms)} arms, and what was not measured is null")
    if not result.arms:
        return (*held, "nothing was measured: there are no statistics to make again")
    samples = read_result_samples(path, result)
    again = rebuilt_result(result, samples, what=what)
    found = mismatches(result, again)
    if found:
        told = "; ".join(
            f"{entry.path}: {entry.stored}, from the samples {entry.recomputed}" for entry in found[:_MAX_TOLD]
        )
        more = f"; and {len(found) - _MAX_TOLD} more" if len(found) > _MAX_TOLD else ""
        raise BadDataError(
            f"{what} does not follow from its samples: {told}{more}",
            expected="the values that the samples give",
            hint="measure again; a result is never edited by hand",
        )
    check_status(again, what)
    leaves = sum(1 for _ in _leaves(to_json(result)))
    queries = len(samples["arm"])
    return (*held, f"all statistics follow from {queries:,} queries: {leaves:,} values are as the samples give them")


def rebuilt_result(result: Result, samples: Samples, *, what: str) -> Result:
    """Return the result with every statistic made again from the samples; a partial one without arms is returned as it is.

    Raises:
        BadDataError: the samples do not hold what the result speaks of.
    """
    from edgebert.bench.rebuild import recomputed

    if not result.arms:
        return result
    with fitting_samples(what):
        return with_counts(recomputed(result, samples), samples)


def with_counts(result: Result, samples: Samples) -> Result:
    """Return the result with what can be counted in the samples beside its statistics.

    The test images, their classes and how many of them were timed; the queries of the warm-ups; the medians of the times that
    every launch has once.
    """
    assert result.dataset is not None
    single = samples["scenario"] == SCENARIOS.index("single-stream")
    arms = []
    for index, arm in enumerate(result.arms):
        warm = single & (samples["arm"] == index) & ((samples["flags"] & FLAG_WARMUP) != 0)
        first = arm.scenarios[0]
        warmup = replace(first.warmup, queries=int(np.count_nonzero(warm)))
        arms.append(
            replace(
                arm, startup=_with_medians(arm.startup), scenarios=(replace(first, warmup=warmup), *arm.scenarios[1:])
            )
        )
    labels, _ = samples.accuracy_of(0)
    several = result.dataset.task == "multi-label"
    classes = np.bincount(samples["truth_class"] if several else labels, minlength=len(result.dataset.class_names))
    dataset = replace(
        result.dataset,
        n=len(labels),
        timed=len(np.unique(samples["sample_index"][single])),
        per_class=tuple(classes.tolist()),
    )
    return replace(result, arms=tuple(arms), dataset=dataset)


def _with_medians(startup: Startup) -> Startup:
    """Return the times with the lower median of their values."""

    def spread(values: Spread) -> Spread:
        ordered = sorted(values.values)
        return replace(values, median=ordered[(len(ordered) - 1) // 2])

    cold = startup.cold
    return replace(
        startup,
        import_ns=spread(startup.import_ns),
        load_ns=spread(startup.load_ns),
        first_query_ns=spread(startup.first_query_ns),
        time_to_steady_ns=spread(startup.time_to_steady_ns),
        cold=None
        if cold is None
        else replace(
            cold,
            process=spread(cold.process),
            import_backend=spread(cold.import_backend),
            load=spread(cold.load),
            first_infer=spread(cold.first_infer),
            total=spread(cold.total),
        ),
    )


def mismatches(stored: Result, again: Result) -> list[Mismatch]:
    """Return every value in which two results differ, integers and text exactly, floats to 1e-9 relative."""
    return json_mismatches(to_json(stored), to_json(again))


def json_mismatches(stored: JsonObject, again: JsonObject) -> list[Mismatch]:
    """Return the same of two results as JSON."""
    return list(_differences(stored, again, ""))


def check_status(result: Result, what: str) -> None:
    """Check that a result calls itself valid and converged only where its arms are.

    Args:
        result: with statistics made again from the samples.
        what: the result, for the message.

    Raises:
        BadDataError: it says otherwise.
    """
    from edgebert.bench.comparisons import wide_comparisons
    from edgebert.bench.options import BUDGETS

    reasons = _reasons(result.arms)
    wide = wide_comparisons(result.comparisons, BUDGETS[result.rigor].half_width)
    steady = all(arm.scenarios[0].warmup.converged for arm in result.arms)
    for name, said, is_so in (
        ("valid", result.status.valid, not reasons),
        ("converged", result.status.converged, steady and not wide),
    ):
        if said != is_so:
            raise BadDataError(
                f"{what} says `status.{name}` is {str(said).lower()}, and from the samples it is {str(is_so).lower()}"
                + (f": {reasons[0]}" if name == "valid" and reasons else ""),
                hint="measure again; a result is never edited by hand",
            )


def invalid_reasons(result: Result, samples: Samples, *, what: str) -> list[str]:
    """Return why the numbers of a result may not be used, by what its samples say; none where they may.

    Raises:
        BadDataError: the samples do not hold what the result speaks of.
    """
    from edgebert.bench.audit.honesty import consistency_from_samples

    with fitting_samples(what):
        return _reasons(
            [
                replace(
                    arm,
                    consistency=consistency_from_samples(
                        samples,
                        index,
                        first_error=arm.consistency.first_error,
                        input_sensitivity=arm.consistency.input_sensitivity,
                    ),
                )
                for index, arm in enumerate(result.arms)
            ]
        )


def _reasons(arms: Sequence[Arm]) -> list[str]:
    from edgebert.bench.audit.honesty import reasons_of

    return [reason for arm in arms for reason in reasons_of(arm)]


@contextlib.contextmanager
def fitting_samples(what: str) -> Iterator[None]:
    """Turn whatever statistics stumble over in columns that do not fit the result, or each other, into a fault of the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # numpy warns, and goes on, where a mean is of nothing
            yield
    except EdgebertError:
        raise
    except (AssertionError, ArithmeticError, IndexError, KeyError, RuntimeWarning, ValueError) as error:
        raise BadDataError(
            f"no statistics can be made of the samples of {what}: {type(error).__name__}: {error}",
            expected="the samples of a run with these arms",
            hint="fetch both files of the same run",
        ) from error


def check_command(result: Result, what: str) -> None:
    """Check that the command of a result names its arms.

    Raises:
        BadDataError: an arm that the command does not name, or a name without an arm.
    """
    if tuple(result.command[:2]) != ("edgebert", "bench"):
        raise BadDataError(f"{what} was made by `{' '.join(result.command)[:80]}`", expected="`edgebert bench …`")
    flag = next((at for at, word in enumerate(result.command) if word.startswith("--")), len(result.command))
    named = {word.partition("=")[0] for word in result.command[2:flag]}
    # An artefact stands in the command once, and may be several arms: NAME@TARGET, or under several names.
    arms = {arm.id: arm.artifact.sha256 for arm in result.measured_arms}
    known = {sha256 for name, sha256 in arms.items() if not named.isdisjoint((name, name.partition("@")[0]))}
    extra = named - set(arms) - {name.partition("@")[0] for name in arms}
    unnamed = [name for name, sha256 in arms.items() if sha256 not in known]
    if arms and (extra or unnamed):
        raise BadDataError(
            f"{what} has the arms {', '.join(arms)}, and its command names {', '.join(sorted(named)) or 'none'}",
            expected="the same ones",
        )


def check_not_measured(result: Result, what: str) -> None:
    """Check that whatever is said not to have been measured is null, empty or absent.

    Raises:
        BadDataError: it holds a value.
    """
    content = to_json(result)
    for path in result.not_measured:
        for value in values_at(content, path):
            if value not in (None, [], {}):
                raise BadDataError(
                    f"{what} says that `{path}` was not measured, and it holds `{value!r:.80}`", expected="null"
                )


def values_at(value: JsonValue, path: str) -> Iterator[JsonValue]:
    """Yield what stands at a dotted path; in a list, the entry of that name, or else every entry.

    >>> content = {"arms": [{"id": "a.b", "n": 1}, {"id": "c", "n": None}]}
    >>> list(values_at(content, "arms.a.b.n")), list(values_at(content, "arms.n")), list(values_at(content, "x.y"))
    ([1], [1, None], [])
    """
    if not path:
        yield value
    elif isinstance(value, Mapping):
        for name, entry in value.items():  # a name may hold dots: try each that the path begins with
            if path == name or path.startswith(f"{name}."):
                yield from values_at(entry, path[len(name) + 1 :])
    elif isinstance(value, (list, tuple)):
        own = [entry for entry in value if path == _name(entry) or path.startswith(f"{_name(entry)}.")]
        for entry in own or value:
            yield from values_at(entry, path[len(_name(entry)) + 1 :] if own else path)


def _differences(stored: JsonValue, again: JsonValue, path: str) -> Iterator[Mismatch]:
    if isinstance(stored, Mapping) and isinstance(again, Mapping):
        for name in (*stored, *(name for name in again if name not in stored)):
            yield from _differences(stored.get(name), again.get(name), f"{path}.{name}" if path else name)
    elif isinstance(stored, (list, tuple)) and isinstance(again, (list, tuple)) and len(stored) == len(again):
        for at, (left, right) in enumerate(zip(stored, again, strict=True)):
            name = _name(left)
            yield from _differences(left, right, f"{path}.{name}" if name else f"{path}[{at}]")
    elif not _equal(stored, again):
        yield Mismatch(path=path, stored=f"{stored!r:.60}", recomputed=f"{again!r:.60}")


def _equal(stored: JsonValue, again: JsonValue) -> bool:
    if isinstance(stored, float) and isinstance(again, float):
        return math.isclose(stored, again, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
    return type(stored) is type(again) and stored == again


def _leaves(value: JsonValue) -> Iterator[JsonValue]:
    if isinstance(value, Mapping):
        for entry in value.values():
            yield from _leaves(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value


def _name(entry: JsonValue) -> str:
    """Return what an entry of a list is called, or nothing."""
    if isinstance(entry, Mapping):
        for key in _NAMES:
            if isinstance(name := entry.get(key), str):
                return name
    return ""


def _lines(entry: Checked) -> Iterator[str]:
    yield f"{entry.file}: {'REFUSED' if entry.refused else 'holds'}"
    yield from (f"  {line}" for line in entry.held)
    if entry.refused:
        yield f"  {entry.refused}"
    if entry.expected:
        yield f"  expected: {entry.expected}"
