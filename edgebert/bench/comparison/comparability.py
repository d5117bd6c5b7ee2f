"""What forbids a comparison, looked for before any number is: "not comparable" comes first (bench.md, section 4.3).

Every difference is listed, not the first one only: who repairs one must not meet the next in another run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from edgebert._json import JsonValue
from edgebert.bench.codec import to_json
from edgebert.bench.environment.difference import Difference, differences, text_of
from edgebert.bench.schema import Arm, Result, ScenarioName

DECIDES = "decides"

_PIPELINE = ("pre", "post", "input")  # `infer` is the arm's backend: what is compared, not how it is measured


def status_obstacles(result: Result, name: str) -> tuple[str, ...]:
    """Return why the numbers of one run may not be compared with anything; none where they may.

    A run that is not converged is no obstacle: its interval says how sure it is.
    """
    status = result.status
    found = []
    if not status.valid:
        found.append("is not valid")
    if status.partial:
        found.append("is partial: it was cut short")
    if status.throttled:
        found.append("was throttled while timing")
    if not result.arms or result.dataset is None:
        found.append("holds no arm that was measured")
    reasons = f" ({'; '.join(status.reasons)})" if found and status.reasons else ""
    return tuple(f"{name} {what}{reasons if at == 0 else ''}" for at, what in enumerate(found))


def surrounding_differences(
    first: Result, a: Arm, second: Result, b: Arm, *, cross_device: bool
) -> tuple[Difference, ...]:
    """Return how the computers, versions and settings of two runs differ, and the options of two of their arms.

    Args:
        first: one run.
        a: an arm of it.
        second: the other run.
        b: an arm of it, by whose name both are called.
        cross_device: two devices are compared on purpose, so none of these decides.
    """
    found = differences(replace(first, arms=(replace(a, id=b.id),)), replace(second, arms=(b,)))
    return tuple(replace(entry, weight="informs") for entry in found) if cross_device else found


def dataset_differences(first: Result, second: Result) -> tuple[Difference, ...]:
    """Return how the images of two runs differ: their hash, classes and task decide, the rest is told."""
    if first.dataset is None or second.dataset is None:
        return ()
    a, b = to_json(first.dataset), to_json(second.dataset)
    return (
        *_decided(a, b, ("task", "sha256", "split", "n", "class_names"), "dataset."),
        *_told(a, b, ("timed",), "dataset."),
        *_told(to_json(first.seeds), to_json(second.seeds), ("inputs",), "seeds."),
    )


def arm_differences(a: Arm, b: Arm, scenario: ScenarioName) -> tuple[Difference, ...]:
    """Return how two arms of different runs were measured otherwise: all of it decides."""
    found = list(_decided(to_json(a.pipeline), to_json(b.pipeline), _PIPELINE, f"arms.{b.id}.pipeline."))
    first, second = a.scenario(scenario), b.scenario(scenario)
    path = f"arms.{b.id}.scenarios.{scenario}"
    if first is None or second is None:
        found.append(
            Difference(path=path, a=_present(first is not None), b=_present(second is not None), weight="decides")
        )
    else:
        params_a, params_b = to_json(first.params), to_json(second.params)
        found += _decided(params_a, params_b, tuple(params_a), f"{path}.params.")
    return tuple(found)


def deciding(found: Sequence[Difference]) -> tuple[Difference, ...]:
    """Return those of the differences that forbid a comparison."""
    return tuple(entry for entry in found if entry.weight == DECIDES)


def _decided(
    a: Mapping[str, JsonValue], b: Mapping[str, JsonValue], names: Sequence[str], prefix: str
) -> Iterator[Difference]:
    for name in names:
        if a.get(name) != b.get(name):
            yield Difference(path=prefix + name, a=text_of(a.get(name)), b=text_of(b.get(name)), weight="decides")


def _told(
    a: Mapping[str, JsonValue], b: Mapping[str, JsonValue], names: Sequence[str], prefix: str
) -> Iterator[Difference]:
    for name in names:
        if a.get(name) != b.get(name):
            yield Difference(path=prefix + name, a=text_of(a.get(name)), b=text_of(b.get(name)), weight="informs")


def _present(there: bool) -> str:
    return "measured" if there else "not measured"
