"""Recipes: what is read, what is refused, what is kept, and what an interruption leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgebert import recipe as recipe_module
from edgebert.errors import BadDataError, CannotWriteError, InputNotFoundError, LockedError, UsageError
from edgebert.recipe import DEMO, Recipe, read_recipe, run_recipe
from edgebert.stages import STAGES, Stage, StageCall

pytest.importorskip("pydantic")

TEXT = 'name = "letters"\ndata = "digits"\n\n[first]\nword = "a"\ntimes = 2\n\n[second]\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstOptions:
    word: str
    times: int = 1
    seed: int = 0
    names: tuple[str, ...] = ()
    cache: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.times < 0:
            raise UsageError(f"times `{self.times}`", expected="0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondOptions:
    force: bool = False


class _Calls(list[str]):
    """The stages that really ran, in order."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Calls]:
    """Two small stages in place of the real ones; the second reads what the first wrote."""
    ran = _Calls()

    def first(call: StageCall) -> None:
        ran.append("first")
        assert isinstance(call.options, FirstOptions)
        call.output.write_text(call.options.word * call.options.times + str(call.options.seed))

    def second(call: StageCall) -> None:
        ran.append("second")
        call.output.mkdir(exist_ok=True)
        (call.output / "copy.txt").write_text(call.inputs["first"].read_text())

    here = __name__
    monkeypatch.setitem(sys.modules, here, sys.modules[__name__])
    stages = {
        "first": Stage(
            name="first",
            makes="{name}.txt",
            needs=(),
            options=f"{here}:FirstOptions",
            run=first,
            uses_data=True,
        ),
        "second": Stage(
            name="second",
            makes="copy",
            needs=("first",),
            options=f"{here}:SecondOptions",
            run=second,
            uses_data=False,
        ),
    }
    monkeypatch.setattr(recipe_module, "_data_sha256", lambda recipe: f"hash of {recipe.data}")
    real = dict(STAGES)
    STAGES.clear()
    STAGES.update(stages)
    yield ran
    STAGES.clear()
    STAGES.update(real)


def _read(tmp_path: Path, text: str = TEXT, *changes: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return read_recipe(path, changes, output=tmp_path / "out")


def test_run_recipe_makes_every_stage_in_order(calls: _Calls, tmp_path: Path) -> None:
    results = run_recipe(_read(tmp_path))
    assert calls == ["first", "second"]
    assert [(result.name, result.done) for result in results] == [("first", "made"), ("second", "made")]
    assert (tmp_path / "out" / "copy" / "copy.txt").read_text() == "aa0"


def test_run_recipe_executes_nothing_when_called_again(calls: _Calls, tmp_path: Path) -> None:
    run_recipe(_read(tmp_path))
    calls.clear()
    assert {result.done for result in run_recipe(_read(tmp_path))} == {"kept"}
    assert calls == []


@pytest.mark.parametrize("change", ["first.word=b", "seed=3", "data=elsewhere"])
def test_run_recipe_makes_again_what_a_change_touches(calls: _Calls, tmp_path: Path, change: str) -> None:
    run_recipe(_read(tmp_path))
    calls.clear()
    run_recipe(_read(tmp_path, TEXT, change))
    assert calls[0] == "first"


def test_run_recipe_keeps_later_stages_when_an_input_comes_out_equal(calls: _Calls, tmp_path: Path) -> None:
    run_recipe(_read(tmp_path))
    calls.clear()
    # Other data, and yet the first stage writes the same bytes: there is nothing new for the second.
    run_recipe(_read(tmp_path, TEXT, "data=elsewhere"))
    assert calls == ["first"]


def test_run_recipe_makes_again_what_somebody_altered(
    calls: _Calls, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_recipe(_read(tmp_path))
    calls.clear()
    (tmp_path / "out" / "letters.txt").write_text("changed by hand")
    run_recipe(_read(tmp_path))
    assert calls == ["first"]
    assert "letters.txt" in caplog.text


def test_run_recipe_makes_again_what_an_option_names(calls: _Calls, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_text("old")
    change = f"first.word='{model}'"
    run_recipe(_read(tmp_path, TEXT, change))
    model.write_text("new")
    calls.clear()
    run_recipe(_read(tmp_path, TEXT, change))
    assert calls == ["first"]


def test_run_recipe_makes_again_what_a_list_names_and_not_for_its_own_cache(calls: _Calls, tmp_path: Path) -> None:
    model, cache = tmp_path / "model", tmp_path / "cache"
    for folder in (model, cache):
        folder.mkdir()
        (folder / "content").write_text("one")
    text = TEXT.replace("times = 2", f'times = 2\nnames = ["{model}"]\ncache = "{cache}"')
    run_recipe(_read(tmp_path, text))
    (cache / "content").write_text("two")
    run_recipe(_read(tmp_path, text))
    assert calls == ["first", "second"]
    (model / "content").write_text("two")
    run_recipe(_read(tmp_path, text))
    assert calls == ["first", "second", "first"]  # it came out equal


def test_run_recipe_keeps_a_stage_with_an_empty_option_when_the_current_folder_changes(
    calls: _Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    run_recipe(_read(tmp_path, TEXT, "first.word=''"))
    (here / "new").write_text("a file that nothing names")
    run_recipe(_read(tmp_path, TEXT, "first.word=''"))
    assert calls == ["first", "second"]


def test_run_recipe_tells_a_stage_that_it_was_interrupted(calls: _Calls, tmp_path: Path) -> None:
    seen = []

    def dies(call: StageCall) -> None:
        seen.append(call.interrupted)
        if len(seen) < 3:
            raise KeyboardInterrupt
        call.output.write_text("done")

    whole = STAGES["first"]
    STAGES["first"] = replace(whole, run=dies)
    for change in ("first.word=a", "first.word=b"):  # other options: not the run that was interrupted
        with pytest.raises(KeyboardInterrupt):
            run_recipe(_read(tmp_path, TEXT, change))
    run_recipe(_read(tmp_path, TEXT, "first.word=b"))
    assert seen == [False, False, True]


def test_run_recipe_replaces_nothing_that_it_did_not_make(calls: _Calls, tmp_path: Path) -> None:
    run_recipe(_read(tmp_path, 'data = "d"\nname = "letters"\n[first]\nword = "a"\n'))
    (tmp_path / "out" / "copy").mkdir()
    (tmp_path / "out" / "copy" / "thesis.tex").write_text("years")
    with pytest.raises(CannotWriteError, match="not made by this recipe"):
        run_recipe(_read(tmp_path))
    assert (tmp_path / "out" / "copy" / "thesis.tex").read_text() == "years"


def test_run_recipe_makes_again_when_the_second_file_is_gone(calls: _Calls, tmp_path: Path) -> None:
    whole = STAGES["first"]

    def both(call: StageCall) -> None:
        whole.run(call)
        call.output.with_name("letters.samples").write_text("beside")

    STAGES["first"] = replace(whole, run=both, beside="{name}.samples")
    run_recipe(_read(tmp_path))
    (tmp_path / "out" / "letters.samples").unlink()
    calls.clear()
    run_recipe(_read(tmp_path))
    assert calls == ["first"]


def test_run_recipe_goes_on_after_a_failed_stage(
    calls: _Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(call: StageCall) -> None:
        raise UsageError("broken")

    whole = STAGES["second"]
    broken = Stage(
        name="second", makes=whole.makes, needs=whole.needs, options=whole.options, run=fails, uses_data=False
    )
    with monkeypatch.context() as patch:
        patch.setitem(STAGES, "second", broken)
        with pytest.raises(UsageError, match="broken"):
            run_recipe(_read(tmp_path))
    calls.clear()
    run_recipe(_read(tmp_path))
    assert calls == ["second"]


def test_run_recipe_checks_every_option_before_the_first_stage(calls: _Calls, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="second"):
        run_recipe(_read(tmp_path, TEXT + "nonsense = 1\n"))
    assert calls == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("first.wrod=b", "did you mean `word`"),
        ("first.times='many'", "integer"),
        ("first.times=-1", "0 or more"),
        ("first.names=[1]", "string"),
    ],
)
def test_run_recipe_refuses_options(calls: _Calls, tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        run_recipe(_read(tmp_path, TEXT, change))
    assert said in str(refused.value)
    assert calls == []


def test_run_recipe_refuses_a_stage_whose_input_is_not_made(calls: _Calls, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs stage `first`"):
        run_recipe(_read(tmp_path, 'data = "digits"\n[second]\n'))


def test_run_recipe_leaves_a_folder_of_the_users_alone(calls: _Calls, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(CannotWriteError, match="no recipe made"):
        run_recipe(_read(tmp_path))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["holiday.jpg"]


def test_run_recipe_refuses_a_second_run_into_the_same_folder(calls: _Calls, tmp_path: Path) -> None:
    recipe = _read(tmp_path)
    run_recipe(recipe)
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom edgebert._files import locked\n"
        f"with locked(Path({str(recipe.output)!r})):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(LockedError, match=str(holder.pid)):
            run_recipe(recipe)
        os.kill(holder.pid, signal.SIGKILL)
    run_recipe(recipe)  # a lock dies with its process


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("name = ", BadDataError, "not TOML"),
        ('[first]\nword = "a"\n', UsageError, "names no data"),
        ('data = "d"\n', UsageError, "no stage"),
        ('data = "d"\n[thrid]\n', UsageError, "no stage `thrid`"),
        ('data = "d"\nspeed = 3\n[first]\n', UsageError, "no key `speed`"),
        ('data = "d"\nname = "../up"\n[first]\n', UsageError, "plain file name"),
        ("data = 3\n[first]\n", BadDataError, "expected: a string"),
    ],
)
def test_read_recipe_refuses(calls: _Calls, tmp_path: Path, text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as refused:
        _read(tmp_path, text)
    assert said in str(refused.value)


def test_read_recipe_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"none\.toml"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize("change", ["word", "=x", "first.word.more=1", "name.word=1"])
def test_read_recipe_refuses_a_change_it_cannot_read(calls: _Calls, tmp_path: Path, change: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        _read(tmp_path, TEXT, change)


def test_read_recipe_takes_a_change_as_text_where_it_is_no_toml(calls: _Calls, tmp_path: Path) -> None:
    recipe = _read(tmp_path, TEXT, "data=/my photos/2024", "first.word=hello")
    assert recipe.data == "/my photos/2024"
    assert recipe.tables["first"]["word"] == "hello"


def test_demo_recipe_holds_every_stage_with_valid_options() -> None:
    recipe = read_recipe(DEMO)
    assert list(recipe.tables) == list(STAGES)
    for name, table in recipe.tables.items():
        recipe_module._stage_options(STAGES[name], table, recipe)
