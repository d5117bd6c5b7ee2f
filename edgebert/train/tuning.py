"""Searches the options of a recipe: trials of one stage, judged by the validation split alone.

`optuna` proposes values (tree-structured Parzen estimator), and stops a trial whose validation score after an epoch is below
the median of the earlier trials at that epoch. The study lies in a storage that any number of workers share: each is this same
command, on this computer or another, and together they bring the study to the wanted number of trials. Seeds are fixed: two
trials with the same values are the same training, so what differs between trials is their values and not their luck.

Stages before the tuned one are run once by the recipe's own cache and shared by all trials, unless they are searched as well.
What a trial trained is removed when it ends; the recipe with the best values makes it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from edgebert._files import check_file_is_free
from edgebert._json import JsonObject, JsonValue, dump_json
from edgebert.errors import CannotWriteError, EdgebertError, LockedError, UnavailableError, UsageError
from edgebert.extras import require
from edgebert.recipe import Recipe, options_of, run_recipe
from edgebert.stages import STAGES
from edgebert.train.options import check_range
from edgebert.train.tuning_space import Choices, Space, space_of, with_values

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

_log = logging.getLogger("edgebert")

JOURNAL = "journal:///"
"""Begins the address of a study in a journal file, such as `journal:////shared/study.journal`: for folders on NFS."""

State = Literal["complete", "pruned", "failed", "running"]

_RECIPE_KEY, _WORKER_KEY, _ERROR_KEY = "edgebert.recipe", "edgebert.worker", "edgebert.error"
# A trial is compared with others once five have run, and after its second epoch: before that, warm-up decides.
_STARTUP_TRIALS, _FIRST_PRUNED_EPOCH = 5, 3
_HEARTBEAT_S, _GRACE_S = 30, 120
_OPEN_ATTEMPTS, _OPEN_PAUSE_S = 5, 0.4
_WAIT_S = 2.0  # between two looks at whether another worker has finished the shared stages
_MAX_FAILURES = 3  # of this worker's first trials: then it is not the values that are wrong
_LEAST_FOR_IMPORTANCE = 8  # completed trials; fewer rank parameters by chance

OnEpoch = Callable[[int, float], None]


class StageFunction(Protocol):
    """Runs the tuned stage of a recipe; `inputs` are the outputs of the stages it needs."""

    def __call__(self, recipe: Recipe, inputs: Mapping[str, Path], output: Path, on_epoch: OnEpoch) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """How to search.

    Attributes:
        trials: how many the study shall hold in all, over all workers and earlier calls; those stopped early count.
        storage: an address of `optuna`: `sqlite:///FILE`, `postgresql://…`, `mysql://…`; or `journal:///FILE`.
        study: its name in the storage; empty for the recipe's.
        force: replace an existing report.
    """

    trials: int
    storage: str
    study: str = ""
    force: bool = False

    def __post_init__(self) -> None:
        check_range("trials", self.trials, 1, 1_000_000)
        if "://" not in self.storage:
            raise UsageError(
                f"storage `{self.storage}`",
                expected="an address such as `sqlite:///study.db` or `journal:///study.journal`",
                hint=f"--storage sqlite:///{self.storage or 'study.db'}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One trial.

    Attributes:
        number: in the study, from 0.
        state: `pruned` was stopped early; `failed` met an error, or its worker died.
        score: the best validation score of its epochs; None where there was none.
        epochs: how many it ran.
        values: `stage.option` -> value.
        error: why it failed.
    """

    number: int
    state: State
    score: float | None
    epochs: int
    values: dict[str, JsonValue]
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneReport:
    """What the study holds when this worker ended.

    Attributes:
        study: its name.
        recipe: the recipe's name.
        stage: whose validation score was maximised.
        trials: all of them, by number.
        best: number of the best completed trial; None where none completed.
        importance: `stage.option` -> share of the scores' variation it explains; empty where too few trials completed.
        ran: trials of this worker.
        seconds: of this call.
        path: of the page; None for none.
    """

    study: str
    recipe: str
    stage: str
    trials: tuple[TrialRow, ...]
    best: int | None
    importance: dict[str, float]
    ran: int
    seconds: float
    path: Path | None

    @property
    def best_trial(self) -> TrialRow | None:
        """The best completed trial."""
        return next((trial for trial in self.trials if trial.number == self.best), None)

    def count(self, state: State) -> int:
        """Return how many trials are in this state."""
        return sum(trial.state == state for trial in self.trials)

    @property
    def importance_note(self) -> str:
        """What to know of `importance`, or why there is none."""
        if self.importance:
            return f"from {self.count('complete')} completed trials; those stopped early are not counted"
        return f"not estimated: {self.count('complete')} trials completed, it takes {_LEAST_FOR_IMPORTANCE} that differ"

    def flags(self) -> str:
        """Return the best values as `--set` flags; empty where there are none."""
        best = self.best_trial
        return (
            ""
            if best is None
            else " ".join(f"--set '{name}={json.dumps(value)}'" for name, value in best.values.items())
        )

    def table(self) -> str:
        """Return the best values as tables of a recipe; empty where there are none."""
        best = self.best_trial
        if best is None:
            return ""
        lines: list[str] = []
        for stage in sorted({name.partition(".")[0] for name in best.values}, key=list(STAGES).index):
            lines += ["", f"[{stage}]"]
            lines += [
                f"{name.partition('.')[2]} = {json.dumps(value)}"
                for name, value in best.values.items()
                if name.partition(".")[0] == stage
            ]
        return "\n".join(lines[1:])

    def to_text(self) -> str:
        """Return the result for a terminal."""
        states: tuple[tuple[State, str], ...] = (
            ("complete", "completed"),
            ("pruned", "stopped early"),
            ("failed", "failed"),
            ("running", "running"),
        )
        counts = ", ".join(f"{self.count(state)} {name}" for state, name in states if self.count(state))
        head = f"study `{self.study}`: {counts or 'no trials'}; {self.ran} by this worker in {self.seconds:.0f} s"
        best = self.best_trial
        if best is None or best.score is None:
            return f"{head}\nno trial was completed"
        lines = [head, f"best: trial {best.number}, validation score of `{self.stage}` {100 * best.score:.2f} %"]
        lines += (
            [f"importance ({self.importance_note}):"] if self.importance else [f"importance {self.importance_note}"]
        )
        lines += [f"  {name}: {share:.0%}" for name, share in self.importance.items()]
        return "\n".join([*lines, "", self.flags(), "", self.table()])


def tune_recipe(
    recipe: Recipe,
    options: TuneOptions,
    output: Path | None = None,
    *,
    stages: Mapping[str, StageFunction] | None = None,
) -> TuneReport:
    """Run trials until the study holds as many as asked for, and report what it holds.

    Ctrl-C, or the death of a worker, costs the trial that was running and nothing else: the same command goes on. Trials left
    `running` by a dead worker of this computer are marked as failed at once; those of another computer after two minutes
    without a heartbeat, where the storage is a database (a journal file has no heartbeats).

    Args:
        recipe: with a table `[tune]`; see `edgebert.train.tuning_space`.
        options: how.
        output: the page, an `.html` file; None for none.
        stages: what runs a tuned stage; tests give their own.

    Raises:
        UsageError: the table, the storage's address, or a study of another recipe.
        UnavailableError: `optuna`, or the storage's driver, is not installed.
        CannotWriteError: the storage or the page cannot be written.
        EdgebertError: the first trials of this worker all failed; the error is that of the last.
    """
    started = time.monotonic()
    if output is not None:
        check_file_is_free(output, force=options.force)
    space = space_of(recipe)
    runner = (stages or STAGE_FUNCTIONS)[space.stage]
    study = _opened_study(recipe, space, options)
    worker = _Worker(recipe=recipe, space=space, runner=runner, study=study, shared=_shared_inputs(recipe, space))
    with _quiet_optuna(), _lost_storage(options.storage):
        ran = worker.run(options.trials)
        report = _report(recipe, space, study, ran, time.monotonic() - started, output)
    if output is not None:
        from edgebert.train.tuning_report import write_page

        write_page(report, output, force=options.force)
    return report


def _train(recipe: Recipe, inputs: Mapping[str, Path], output: Path, on_epoch: OnEpoch) -> None:
    from edgebert.train import TrainOptions, checkpoint_from_data

    options = options_of(recipe, "train")
    assert isinstance(options, TrainOptions)
    checkpoint_from_data(recipe.data, output, options, on_epoch=on_epoch)


def _distill(recipe: Recipe, inputs: Mapping[str, Path], output: Path, on_epoch: OnEpoch) -> None:
    from edgebert.train import DistillOptions, checkpoint_from_teacher

    options = options_of(recipe, "distill")
    assert isinstance(options, DistillOptions)
    checkpoint_from_teacher(recipe.data, str(inputs["train"]), output, options, on_epoch=on_epoch)


STAGE_FUNCTIONS: Mapping[str, StageFunction] = {"train": _train, "distill": _distill}


@dataclass(slots=True)
class _Attempt:
    """What came of one trial of this worker."""

    number: int = 0
    error: EdgebertError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    """Runs trials of one study, one after the other."""

    recipe: Recipe
    space: Space
    runner: StageFunction
    study: Study
    shared: Mapping[str, Path]

    def run(self, trials: int) -> int:
        """Run trials until the study holds `trials`; return how many this worker ran."""
        ran = failures = 0
        while True:
            _fail_orphans(self.study)
            if _counted(self.study) >= trials:
                return ran
            attempt = _Attempt()
            try:
                self.study.optimize(partial(self._score, attempt), n_trials=1, catch=(EdgebertError,))
            except KeyboardInterrupt:
                _log.warning("interrupted; the study `%s` is kept, the same command goes on", self.study.study_name)
                raise
            ran += 1
            failures += attempt.error is not None
            self._say(attempt)
            if attempt.error is not None and failures == ran == _MAX_FAILURES:
                raise attempt.error

    def _score(self, attempt: _Attempt, trial: Trial) -> float:
        """Train once with the trial's values; return the best validation score of its epochs."""
        optuna = require("optuna")
        attempt.number = trial.number
        # Seeded by trial, not by worker: no two workers draw the same values, and one worker draws the same again.
        self.study.sampler = optuna.samplers.TPESampler(seed=_seed(self.recipe.seed, trial.number))
        trial.set_user_attr(_WORKER_KEY, f"{socket.gethostname()}:{os.getpid()}")
        values = self.space.draw(trial)
        _log.info("trial %d: %s", trial.number, ", ".join(f"{name} = {value}" for name, value in values.items()))
        scores: list[float] = []

        def on_epoch(epoch: int, score: float) -> None:
            scores.append(score)
            trial.report(score, epoch)
            if epoch >= _FIRST_PRUNED_EPOCH and trial.should_prune():
                raise optuna.TrialPruned

        with _trial_folder(self.recipe, self.study.study_name, trial.number) as folder:
            try:
                self._train(with_values(self.recipe, values), folder, on_epoch)
            except EdgebertError as error:
                trial.set_user_attr(_ERROR_KEY, error.what)
                attempt.error = error
                raise
        assert scores, "a stage reports each epoch"
        return max(scores)

    def _train(self, recipe: Recipe, folder: Path, on_epoch: OnEpoch) -> None:
        inputs = dict(self.shared)
        own = [stage for stage in self.space.stages[:-1] if stage not in inputs]
        if own:
            tables = {stage: recipe.tables[stage] for stage in self.space.stages[:-1]}
            made = run_recipe(replace(recipe, output=folder / "before", tables=tables))
            inputs = {result.name: result.output for result in made}
        self.runner(recipe, inputs, folder / self.space.stage, on_epoch)

    def _say(self, attempt: _Attempt) -> None:
        row = _row(self.study.get_trials(deepcopy=False)[attempt.number], self.space)
        if attempt.error is not None:
            _log.warning("trial %d failed: %s", row.number, attempt.error.what)
        else:
            score = "no score" if row.score is None else f"{100 * row.score:.2f} %"
            _log.info("trial %d: %s, %s, %d epochs", row.number, row.state, score, row.epochs)


def _shared_inputs(recipe: Recipe, space: Space) -> dict[str, Path]:
    """Run the stages that every trial shares, or wait until another worker has."""
    if not space.shared:
        return {}
    before = replace(recipe, tables={stage: recipe.tables[stage] for stage in space.shared})
    told = False
    while True:
        try:
            return {result.name: result.output for result in run_recipe(before)}
        except LockedError as error:
            if not told:
                _log.info("%s; waiting for it to make %s", error.what, ", ".join(space.shared))
            told = True
            time.sleep(_WAIT_S)


@contextlib.contextmanager
def _trial_folder(recipe: Recipe, study: str, number: int) -> Iterator[Path]:
    """Yield an empty folder below the recipe's output; it is removed whatever happens."""
    name = re.sub(r"[^\w.-]", "_", study)
    folder = recipe.output / "tune" / f"{name}-{number}"
    shutil.rmtree(folder, ignore_errors=True)  # of a trial of a study that was deleted
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _opened_study(recipe: Recipe, space: Space, options: TuneOptions) -> Study:
    """Open or make the study, and refuse one that was made for another search."""
    name = options.study or recipe.name
    asked = _fingerprint(recipe, space)
    with _quiet_optuna(), _storage_errors(options.storage):
        study = _created_study(name, options.storage)
        known = study.user_attrs.get(_RECIPE_KEY)
        if known is None:
            study.set_user_attr(_RECIPE_KEY, asked)
    if known not in (None, asked):
        raise UsageError(
            f"the study `{name}` was made for another recipe, search or seed",
            expected="the recipe it was begun with: scores of different searches do not compare",
            hint=f"--study {name}-2",
        )
    return study


def _created_study(name: str, address: str) -> Study:
    """Open the study, or make it and its tables. Of workers that start at once one makes them, the others try again."""
    optuna = require("optuna")
    import sqlalchemy.exc  # comes with optuna

    for attempts_left in range(_OPEN_ATTEMPTS - 1, -1, -1):
        try:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS)
            study: Study = optuna.create_study(
                study_name=name, storage=_storage(address), direction="maximize", load_if_exists=True, pruner=pruner
            )
            return study
        except (sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError):
            if not attempts_left:
                raise
            time.sleep(_OPEN_PAUSE_S)
    raise AssertionError  # the last attempt returns or raises


def _storage(address: str) -> object:
    optuna = require("optuna")
    if address.startswith(JOURNAL):
        path = address.removeprefix(JOURNAL)
        # The lock by an exclusive open is the one that holds on NFS, versions 3 and 4 (optuna's documentation).
        journal = optuna.storages.journal
        return journal.JournalStorage(journal.JournalFileBackend(path, lock_obj=journal.JournalFileOpenLock(path)))
    return optuna.storages.RDBStorage(address, heartbeat_interval=_HEARTBEAT_S, grace_period=_GRACE_S)


@contextlib.contextmanager
def _storage_errors(address: str) -> Iterator[None]:
    """Turn what databases raise into errors of edgebert's; the address may hold a password and is not repeated whole."""
    optuna = require("optuna")
    import sqlalchemy.exc  # comes with optuna

    shown = re.sub(r"//[^/@]*@", "//…@", address)
    try:
        yield
    except sqlalchemy.exc.ArgumentError as error:
        raise UsageError(f"storage `{shown}` is no address", expected="such as `sqlite:///study.db`") from error
    except ImportError as error:
        raise UnavailableError(f"the driver of `{shown}` is not installed: {error}") from error
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise CannotWriteError(f"the storage `{shown}` cannot be used: {cause:.200}") from error


@contextlib.contextmanager
def _lost_storage(address: str) -> Iterator[None]:
    """As `_storage_errors` while trials run, when an OSError may be a trial's own."""
    optuna = require("optuna")
    import sqlalchemy.exc  # comes with optuna

    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        with _storage_errors(address):
            raise error from error.__cause__


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep optuna's own lines off stderr (ours say it), and its notes on what it calls experimental."""
    optuna = require("optuna")
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def _fail_orphans(study: Study) -> None:
    """Mark trials as failed that are `running` in a process of this computer that is gone."""
    optuna = require("optuna")
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        host, _, pid = str(trial.user_attrs.get(_WORKER_KEY, ":")).rpartition(":")
        if host == socket.gethostname() and not _is_alive(int(pid)):
            _log.warning("trial %d was left by a worker that is gone; it counts as failed", trial.number)
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):  # another was quicker
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _counted(study: Study) -> int:
    """Count trials towards the wanted number: all but those whose worker was interrupted or died."""
    optuna = require("optuna")
    return sum(
        trial.state != optuna.trial.TrialState.FAIL or _ERROR_KEY in trial.user_attrs
        for trial in study.get_trials(deepcopy=False)
    )


def _report(recipe: Recipe, space: Space, study: Study, ran: int, seconds: float, output: Path | None) -> TuneReport:
    rows = tuple(_row(trial, space) for trial in study.get_trials(deepcopy=False))
    complete = [row for row in rows if row.state == "complete" and row.score is not None]
    best = max(complete, key=lambda row: (row.score or 0.0, -row.number), default=None)
    return TuneReport(
        study=study.study_name,
        recipe=recipe.name,
        stage=space.stage,
        trials=rows,
        best=None if best is None else best.number,
        importance=_importance(study, complete),
        ran=ran,
        seconds=seconds,
        path=output,
    )


def _importance(study: Study, complete: Sequence[TrialRow]) -> dict[str, float]:
    if len(complete) < _LEAST_FOR_IMPORTANCE or len({row.score for row in complete}) < 2:
        return {}
    found = require("optuna").importance.get_param_importances(study)
    return {name: float(share) for name, share in found.items()}


def _row(trial: FrozenTrial, space: Space) -> TrialRow:
    states: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    values = {
        name: json.loads(value) if isinstance(space.parameters.get(name), Choices) else value
        for name, value in trial.params.items()
    }
    scores = list(trial.intermediate_values.values())
    return TrialRow(
        number=trial.number,
        state=states.get(trial.state.name, "running"),
        score=max(scores) if scores else trial.value,
        epochs=len(scores),
        values=values,
        error=trial.user_attrs.get(_ERROR_KEY),
    )


def _fingerprint(recipe: Recipe, space: Space) -> str:
    """Return what trials of one study must have in common."""
    content: JsonObject = {
        "data": Path(recipe.data).name,
        "seed": recipe.seed,
        "tables": {stage: dict(recipe.tables[stage]) for stage in space.stages},
        "tune": dict(recipe.tune),
    }
    return hashlib.sha256(dump_json(content).encode()).hexdigest()


def _seed(seed: int, number: int) -> int:
    """Return a sampler's seed for a trial: 32 bits of a hash, so that neighbouring trials have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")
