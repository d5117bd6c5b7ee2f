"""What a recipe's table `[tune]` asks for: which options of which stages are searched, and where.

[tune]
stage = "distill"                                                   # whose validation score is maximised
"distill.learning_rate" = { low = 1e-4, high = 1e-2, log = true }
"distill.temperature" = { choices = [1, 2, 4] }
"distill.batch_size" = { low = 32, high = 128, step = 32 }           # whole numbers, since both ends are
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgebert._json import JsonValue
from edgebert.errors import UsageError
from edgebert.recipe import Recipe, options_of

if TYPE_CHECKING:
    import optuna

TUNED_STAGES = ("train", "distill")
"""The stages that have a validation score after each epoch, in the order of the pipeline."""

_KEYS = ("low", "high", "step", "log", "choices")
_EXPECTED = "{ low, high } with `log = true` or `step` where wanted, or { choices = [...] }"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included: whole ones where both ends (and the step) are.

    Attributes:
        low: the least.
        high: the largest.
        step: between two values; None for every number (whole ones: 1).
        log: draw the logarithm evenly.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Say whether only whole numbers are meant."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step) if value is not None)

    @property
    def ends(self) -> tuple[JsonValue, ...]:
        """The values that are tried before the search begins, to find what no trial could take."""
        return self.low, self.high

    def draw(self, trial: optuna.Trial, name: str) -> JsonValue:
        """Return a value for this trial."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """One of a few values of any kind; lists too, such as sets of augmentations."""

    values: tuple[JsonValue, ...]

    @property
    def ends(self) -> tuple[JsonValue, ...]:
        """All of them."""
        return self.values

    def draw(self, trial: optuna.Trial, name: str) -> JsonValue:
        """Return a value for this trial. Stored as JSON text, since a study cannot hold lists."""
        chosen = trial.suggest_categorical(name, [json.dumps(value) for value in self.values])
        value: JsonValue = json.loads(chosen)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What is searched.

    Attributes:
        stage: whose validation score is maximised.
        parameters: `stage.option` -> where it may lie, in the order of their names.
    """

    stage: str
    parameters: Mapping[str, Range | Choices]

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that a trial needs, the tuned one last."""
        return TUNED_STAGES[: TUNED_STAGES.index(self.stage) + 1]

    @property
    def shared(self) -> tuple[str, ...]:
        """The stages before the tuned one that come out alike in every trial: neither they nor an earlier one is searched."""
        searched = {name.partition(".")[0] for name in self.parameters}
        found = []
        for stage in self.stages[:-1]:
            if stage in searched:
                break
            found.append(stage)
        return tuple(found)

    def draw(self, trial: optuna.Trial) -> dict[str, JsonValue]:
        """Return `stage.option` -> value for a trial."""
        return {name: parameter.draw(trial, name) for name, parameter in self.parameters.items()}


def space_of(recipe: Recipe) -> Space:
    """Read and check the table `[tune]` of a recipe: every end of every range is tried as an option.

    Raises:
        UsageError: no such table, nothing to search, a range that is none, or a value that the option does not take.
    """
    stage = recipe.tune.get("stage", "distill")
    if not isinstance(stage, str) or stage not in TUNED_STAGES:
        raise UsageError(f"[tune] has stage = {stage!r:.80}", expected=" or ".join(TUNED_STAGES))
    names = sorted(name for name in recipe.tune if name != "stage")
    if not names:
        raise UsageError(
            f"the recipe `{recipe.name}` says nothing to search",
            expected="a table [tune] with options",
            hint='"distill.learning_rate" = { low = 1e-4, high = 1e-2, log = true }',
        )
    space = Space(stage=stage, parameters={name: _parameter(name, recipe.tune[name]) for name in names})
    for needed in space.stages:
        if needed not in recipe.tables:
            raise UsageError(f"to tune `{stage}`, the recipe needs a table [{needed}]")
    for name, parameter in space.parameters.items():
        where = name.partition(".")[0]
        if where not in space.stages:
            raise UsageError(f'[tune] searches "{name}"', expected=f"options of {' or '.join(space.stages)}")
        for value in parameter.ends:
            options_of(with_values(recipe, {name: value}), where)
    return space


def with_values(recipe: Recipe, values: Mapping[str, JsonValue]) -> Recipe:
    """Return the recipe with `stage.option` values in its tables."""
    tables = {stage: dict(table) for stage, table in recipe.tables.items()}
    for name, value in values.items():
        stage, _, option = name.partition(".")
        tables[stage][option] = value
    return replace(recipe, tables=tables)


def _parameter(name: str, written: JsonValue) -> Range | Choices:
    what = f'[tune], "{name}"'
    if not isinstance(written, Mapping) or not written:
        raise UsageError(f"{what} is {written!r:.80}", expected=_EXPECTED)
    unknown = [key for key in written if key not in _KEYS]
    if unknown:
        raise UsageError(f"{what} has the key `{unknown[0]}`", expected=_EXPECTED)
    if "choices" in written:
        return _choices(what, written)
    return _range(what, written)


def _choices(what: str, written: Mapping[str, JsonValue]) -> Choices:
    values = written["choices"]
    if len(written) > 1 or not isinstance(values, list) or len(values) < 2:
        raise UsageError(f"{what} is {dict(written)!r:.80}", expected="{ choices = [...] } with two or more values")
    if len({json.dumps(value) for value in values}) < len(values):
        raise UsageError(f"{what} has a choice twice: {values!r:.80}")
    return Choices(values=tuple(values))


def _range(what: str, written: Mapping[str, JsonValue]) -> Range:
    numbers = {key: written[key] for key in ("low", "high", "step") if key in written}
    log = written.get("log", False)
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UsageError(f"{what} has {key} = {value!r:.40}", expected="a number")
    if "low" not in numbers or "high" not in numbers or not isinstance(log, bool):
        raise UsageError(f"{what} is {dict(written)!r:.80}", expected=_EXPECTED)
    found = Range(low=numbers["low"], high=numbers["high"], step=numbers.get("step"), log=log)  # type: ignore[arg-type]  # just checked
    if not found.low < found.high:
        raise UsageError(f"{what} goes from {found.low} to {found.high}", expected="low < high")
    if found.step is not None and (found.step <= 0 or log):
        raise UsageError(f"{what} has step = {found.step}", expected="above 0, and no `log` beside it")
    if log and found.low <= 0:
        raise UsageError(f"{what} has low = {found.low}", expected="above 0 for `log = true`")
    return found
