"""Tuning: what a table [tune] may say, and a study that is shared, pruned, interrupted and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgebert.cli import main
from edgebert.data import Dataset
from edgebert.errors import CannotWriteError, EdgebertError, UnavailableError, UsageError
from edgebert.recipe import Recipe, options_of, read_recipe
from edgebert.train import tuning
from edgebert.train.options import DistillOptions
from edgebert.train.tuning import OnEpoch, TuneOptions, TuneReport, tune_recipe
from edgebert.train.tuning_space import Choices, Range, space_of

optuna = pytest.importorskip("optuna")
pytest.importorskip("pydantic")

TEXT = """
name = "letters"
data = "digits"
seed = 3
[train]
model = "nano"
epochs = 1
[distill]
student = "nano"
epochs = 2
[tune]
"distill.learning_rate" = { low = 1e-4, high = 1e-1, log = true }
"distill.temperature" = { choices = [1, 2, 4] }
"distill.batch_size" = { low = 32, high = 128, step = 32 }
"""


def read(tmp_path: Path, text: str = TEXT, *changes: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return read_recipe(path, changes, output=tmp_path / "out")


class FakeStage:
    """A stage whose score is the nearer to 1, the nearer the learning rate is to 1e-2; keeps what it was called with."""

    def __init__(self, epochs: int = 6) -> None:
        self.epochs = epochs
        self.seen: list[DistillOptions] = []
        self.outputs: list[Path] = []

    def __call__(self, recipe: Recipe, inputs: Mapping[str, Path], output: Path, on_epoch: OnEpoch) -> None:
        options = options_of(recipe, "distill")
        assert isinstance(options, DistillOptions)
        assert options.learning_rate is not None
        self.seen.append(options)
        self.outputs.append(output)
        output.mkdir()
        final = 1 / (1 + abs(options.learning_rate - 1e-2) * 50)
        for epoch in range(1, self.epochs + 1):
            on_epoch(epoch, final * epoch / self.epochs)


@pytest.fixture
def no_shared_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stages before the tuned one count as made."""
    monkeypatch.setattr(tuning, "_shared_inputs", lambda recipe, space: {"train": Path("teacher")})


def tuned(recipe: Recipe, trials: int, stage: tuning.StageFunction, output: Path | None = None) -> TuneReport:
    options = TuneOptions(trials=trials, storage=f"sqlite:///{recipe.output.parent / 'study.db'}")
    return tune_recipe(recipe, options, output, stages={"distill": stage})


def test_space_reads_ranges_and_choices(tmp_path: Path) -> None:
    space = space_of(read(tmp_path))
    assert space.stage == "distill"
    assert space.parameters == {
        "distill.learning_rate": Range(low=1e-4, high=1e-1, log=True),
        "distill.temperature": Choices(values=(1, 2, 4)),
        "distill.batch_size": Range(low=32, high=128, step=32),
    }
    assert [name for name, value in space.parameters.items() if isinstance(value, Range) and value.whole] == [
        "distill.batch_size"
    ]
    assert space.shared == ("train",)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "says nothing to search"),
        ('stage = "export"', "train or distill"),
        ('"distill.learning_rate" = 3', "low, high"),
        ('"distill.learning_rate" = { low = 1 }', "low, high"),
        ('"distill.learning_rate" = { low = 2e-1, high = 1e-1 }', "low < high"),
        ('"distill.learning_rate" = { low = 0.0, high = 1e-1, log = true }', "above 0"),
        ('"distill.learning_rate" = { low = "a", high = 1 }', "a number"),
        ('"distill.learning_rate" = { lo = 1e-3, high = 1 }', "the key `lo`"),
        ('"distill.batch_size" = { low = 8, high = 64, step = 0 }', "above 0"),
        ('"distill.temperature" = { choices = [1] }', "two or more"),
        ('"distill.temperature" = { choices = [1, 1] }', "twice"),
        ('"distill.learning_rate" = { low = 1e-4, high = 1e3 }', "learning_rate `1000.0`"),
        ('"distill.learning_rat" = { low = 1e-4, high = 1 }', "did you mean `learning_rate`"),
        ('"distill.augment" = { choices = [["shift"], ["turn"]] }', "turn"),
        ('"export.opset" = { choices = [19, 20] }', "options of train or distill"),
        ('stage = "train"\n"distill.temperature" = { choices = [1, 2] }', "options of train"),
        ('"distil.temperature" = { choices = [1, 2] }', "did you mean `distill`"),
        ("distill.temperature = { choices = [1, 2] }", "not quoted"),
    ],
)
def test_space_refuses(tmp_path: Path, lines: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        space_of(read(tmp_path, TEXT[: TEXT.index("[tune]")] + "[tune]\n" + lines + "\n"))
    assert said in str(refused.value)


def test_run_passes_over_the_table(tmp_path: Path) -> None:
    assert read(tmp_path).tables.keys() == {"train", "distill"}
    with pytest.raises(UsageError, match="a table"):
        read(tmp_path, 'data = "digits"\ntune = 3\n[train]\nmodel = "nano"\n')


def test_space_shares_no_stage_after_one_that_is_searched(tmp_path: Path) -> None:
    text = TEXT + '"train.learning_rate" = { low = 1e-4, high = 1e-2 }\n'
    assert space_of(read(tmp_path, text)).shared == ()


@pytest.mark.usefixtures("no_shared_stage")
def test_tune_finds_the_best_trial_and_says_how_to_use_it(tmp_path: Path) -> None:
    recipe, stage = read(tmp_path), FakeStage()
    report = tuned(recipe, 14, stage, tmp_path / "tune.html")
    assert (report.ran, len(report.trials)) == (14, 14)
    best = report.best_trial
    assert best is not None
    assert best.score == max(trial.score for trial in report.trials if trial.state == "complete" and trial.score)
    options = stage.seen[best.number]
    assert best.values["distill.learning_rate"] == options.learning_rate
    assert {seen.seed for seen in stage.seen} == {3}
    assert {seen.batch_size for seen in stage.seen} <= {32, 64, 96, 128}
    assert not any(path.exists() for path in stage.outputs)
    changed = read(tmp_path, TEXT, *(flag.strip("' ") for flag in report.flags().split("--set") if flag.strip()))
    assert options_of(changed, "distill") == options
    replaced = read(tmp_path, TEXT[: TEXT.index("[distill]")] + report.table() + '\nstudent = "nano"\nepochs = 2\n')
    assert options_of(replaced, "distill") == options
    page = (tmp_path / "tune.html").read_text()
    assert page.count("<svg") == 2 - (not report.importance)
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert "best so far" in page
    assert report.table() in page.replace("&#34;", '"')


@pytest.mark.usefixtures("no_shared_stage")
def test_tune_stops_trials_below_the_median(tmp_path: Path) -> None:
    report = tuned(read(tmp_path), 16, FakeStage())
    pruned = [trial for trial in report.trials if trial.state == "pruned"]
    assert pruned
    assert all(3 <= trial.epochs < 6 for trial in pruned)
    assert all(trial.number >= 5 for trial in pruned)
    assert report.best not in [trial.number for trial in pruned]
    assert report.count("complete") + len(pruned) == 16


@pytest.mark.usefixtures("no_shared_stage")
def test_tune_draws_the_same_values_in_another_study(tmp_path: Path) -> None:
    reports = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        reports.append(tuned(read(tmp_path / name), 4, FakeStage()))
    first, second = ([trial.values for trial in report.trials] for report in reports)
    assert first == second
    assert len({str(values) for values in first}) == 4


@pytest.mark.usefixtures("no_shared_stage")
def test_tune_ranks_parameters_once_enough_trials_completed(tmp_path: Path) -> None:
    few = tuned(read(tmp_path), 3, FakeStage())
    assert few.importance == {}
    assert "not estimated: 3 trials completed" in few.to_text()
    many = tuned(read(tmp_path), 30, FakeStage())
    assert many.ran == 27
    assert many.count("complete") >= 8
    assert sum(many.importance.values()) == pytest.approx(1)
    assert max(many.importance, key=lambda name: many.importance[name]) == "distill.learning_rate"
    assert "distill.learning_rate: " in many.to_text()


@pytest.mark.usefixtures("no_shared_stage")
def test_tune_goes_on_after_an_interruption(tmp_path: Path) -> None:
    whole = FakeStage()

    def interrupted(recipe: Recipe, inputs: Mapping[str, Path], output: Path, on_epoch: OnEpoch) -> None:
        if len(whole.seen) == 2:
            raise KeyboardInterrupt
        whole(recipe, inputs, output, on_epoch)

    with pytest.raises(KeyboardInterrupt):
        tuned(read(tmp_path), 5, interrupted)
    report = tuned(read(tmp_path), 5, whole)
    assert report.ran == 3
    assert [trial.state for trial in report.trials] == ["complete", "complete", "failed", *["complete"] * 3]
    assert list((tmp_path / "out" / "tune").iterdir()) == []


@pytest.mark.usefixtures("no_shared_stage")
def test_tune_keeps_a_failed_trial_and_its_reason(tmp_path: Path) -> None:
    good = FakeStage()

    def fails_once(recipe: Recipe, inputs: Mapping[str, Path], output: Path, on_epoch: OnEpoch) -> None:
        if len(good.seen) == 1 and not failed:
            failed.append(1)
            raise EdgebertError("the loss became NaN")
        good(recipe, inputs, output, on_epoch)

    failed: list[int] = []
    report = tuned(read(tmp_path), 4, fails_once, tmp_path / "tune.html")
    assert [trial.error for trial in report.trials] == [None, "the loss became NaN", None, None]
    assert "the loss became NaN" in (tmp_path / "tune.html").read_text()


@pytest.mark.usefixtures("no_shared_stage")
def test_tune_gives_up_when_the_first_trials_all_fail(tmp_path: Path) -> None:
    calls = []

    def fails(recipe: Recipe, inputs: Mapping[str, Path], output: Path, on_epoch: OnEpoch) -> None:
        calls.append(1)
        raise EdgebertError("no such data")

    with pytest.raises(EdgebertError, match="no such data"):
        tuned(read(tmp_path), 50, fails)
    assert len(calls) == 3


@pytest.mark.usefixtures("no_shared_stage")
@pytest.mark.parametrize("change", ["seed=4", "distill.epochs=3", "tune.stage=distill"])
def test_tune_refuses_a_study_of_another_search(tmp_path: Path, change: str) -> None:
    tuned(read(tmp_path), 1, FakeStage())
    with pytest.raises(UsageError, match="another recipe, search or seed"):
        tuned(read(tmp_path, TEXT, change), 2, FakeStage())


@pytest.mark.usefixtures("no_shared_stage")
def test_tune_takes_a_journal_file(tmp_path: Path) -> None:
    options = TuneOptions(trials=2, storage=f"journal:///{tmp_path / 'study.journal'}", study="mine")
    report = tune_recipe(read(tmp_path), options, stages={"distill": FakeStage()})
    assert (report.study, len(report.trials)) == ("mine", 2)
    again = tune_recipe(read(tmp_path), replace(options, trials=3), stages={"distill": FakeStage()})
    assert again.ran == 1


@pytest.mark.parametrize(
    ("storage", "error", "said"),
    [
        ("study.db", UsageError, "--storage sqlite:///study.db"),
        ("nonsense://x", UsageError, "is no address"),
        ("sqlite:////no/such/folder/study.db", CannotWriteError, "cannot be used"),
        ("postgresql+nodriver://user:secret@host/x", UsageError, "postgresql+nodriver://…@host/x"),
    ],
)
@pytest.mark.usefixtures("no_shared_stage")
def test_tune_refuses_a_storage(tmp_path: Path, storage: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as refused:
        tune_recipe(read(tmp_path), TuneOptions(trials=1, storage=storage), stages={"distill": FakeStage()})
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_tune_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UnavailableError, match=r"edgebert\[tune\]"):
        tune_recipe(read(tmp_path), TuneOptions(trials=1, storage="sqlite:///x.db"))


WORKER = """
import sys, time
from pathlib import Path
from edgebert.recipe import read_recipe
from edgebert.train import tuning

def stage(recipe, inputs, output, on_epoch):
    for epoch in range(1, 4):
        on_epoch(epoch, tuning.options_of(recipe, "distill").learning_rate)
        print("epoch", flush=True)
        time.sleep({pause})

tuning._shared_inputs = lambda recipe, space: {{"train": Path("teacher")}}
folder = Path({folder!r})
recipe = read_recipe(folder / "recipe.toml", output=folder / {output!r})
options = tuning.TuneOptions(trials={trials}, storage=f"sqlite:///{{folder / 'study.db'}}")
report = tuning.tune_recipe(recipe, options, stages={{"distill": stage}})
print(f"ran {{report.ran}}", flush=True)
"""


def worker(tmp_path: Path, **words: object) -> subprocess.Popen[str]:
    (tmp_path / "recipe.toml").write_text(TEXT)
    script = WORKER.format(folder=str(tmp_path), **words)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_workers_share_a_study(tmp_path: Path) -> None:
    workers = [worker(tmp_path, output=f"out-{name}", trials=8, pause=0.1) for name in "ab"]
    said = [process.communicate(timeout=120) for process in workers]
    assert [process.returncode for process in workers] == [0, 0], said
    ran = [int(out.split()[-1]) for out, _ in said]
    assert min(ran) >= 1
    report = _looked_at(tmp_path)
    assert len(report.trials) == sum(ran)
    assert 8 <= sum(ran) <= 9  # both may have begun the last one at once
    assert len({str(trial.values) for trial in report.trials}) == len(report.trials)


def test_a_trial_of_a_killed_worker_fails_and_is_made_up_for(tmp_path: Path) -> None:
    with worker(tmp_path, output="out", trials=2, pause=60) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        os.kill(killed.pid, signal.SIGKILL)
    report = _looked_at(tmp_path, trials=2)
    assert [trial.state for trial in report.trials] == ["failed", "complete", "complete"]
    assert report.ran == 2


def _looked_at(tmp_path: Path, trials: int = 1) -> TuneReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "_shared_inputs", lambda recipe, space: {"train": Path("teacher")})
        return tuned(read(tmp_path), trials, FakeStage())


def test_shared_stages_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgebert._files import locked

    recipe = read(tmp_path)
    monkeypatch.setattr(tuning, "_WAIT_S", 0.01)
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom edgebert._files import locked\n"
        f"with locked(Path({str(recipe.output)!r})):\n    print('held', flush=True)\n    time.sleep(1.0)\n"
    )
    seen: list[Sequence[str]] = []

    def run(before: Recipe) -> list[object]:
        with locked(before.output):
            seen.append(list(before.tables))
        return []

    monkeypatch.setattr(tuning, "run_recipe", run)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        started = time.monotonic()
        tuning._shared_inputs(recipe, space_of(recipe))
        assert time.monotonic() - started > 0.3
    assert seen == [["train"]]


@pytest.mark.usefixtures("no_shared_stage")
def test_command_prints_the_best_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = FakeStage()
    monkeypatch.setattr(tuning, "STAGE_FUNCTIONS", {"distill": stage})
    (tmp_path / "recipe.toml").write_text(TEXT)
    words = ["tune", str(tmp_path / "recipe.toml"), "--trials", "2", "--storage", f"sqlite:///{tmp_path / 'study.db'}"]
    words += ["--set", f"output={tmp_path / 'out'}", "--set", "distill.epochs=9", "--study", "other"]
    with pytest.raises(SystemExit) as left:
        main([*words, "-o", str(tmp_path / "tune.html")])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "study `other`: 2 completed; 2 by this worker" in said
    assert "--set 'distill.learning_rate=" in said
    assert "[distill]\n" in said
    assert {options.epochs for options in stage.seen} == {9}
    with pytest.raises(SystemExit) as left:
        main([*words, "-o", str(tmp_path / "tune.html")])
    assert left.value.code == CannotWriteError.exit_code


def test_tune_trains_real_students(uses_small_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgebert.recipe._data_sha256", lambda recipe: uses_small_digits.sha256())
    recipe = read(tmp_path)
    options = TuneOptions(trials=2, storage=f"sqlite:///{tmp_path / 'study.db'}")
    report = tune_recipe(recipe, options)
    assert [trial.state for trial in report.trials] == ["complete", "complete"]
    assert [trial.epochs for trial in report.trials] == [2, 2]
    teacher = (recipe.output / "teacher" / "model.safetensors").stat()
    text = TEXT + '"train.learning_rate" = { low = 1e-4, high = 1e-2 }\n'
    both = tune_recipe(read(tmp_path, text), replace(options, trials=1, study="both"))
    assert both.count("complete") == 1
    assert set(both.trials[0].values) >= {"train.learning_rate", "distill.learning_rate"}
    assert (recipe.output / "teacher" / "model.safetensors").stat() == teacher
