"""The command line: flags are fields of the options, errors have their exit codes, data and talk go to their streams."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebert import __version__, _console, cli
from edgebert._console import printable, run_command
from edgebert._flags import class_map_from, names_from
from edgebert.errors import EdgebertError, UnavailableError, UsageError

DEVICE = {"host", "python", "keep_on_device", "device_wheels"}  # where it runs, and not what is done
# Command -> its options, and the flags that are no field of them.
OPTIONS = {
    "train": ("edgebert.train.options:TrainOptions", {"data", "output"}),
    "distill": ("edgebert.train.options:DistillOptions", {"data", "output"}),
    "export": ("edgebert.export.graph:ExportOptions", {"checkpoint", "output"}),
    "quantize": ("edgebert.calibration.quantize:QuantizeOptions", {"source", "calibration", "output", "audit"}),
    "compile_": ("edgebert.export.compile:CompileOptions", {"graph", "output", *DEVICE}),
    "bench": ("edgebert.bench.options:BenchOptions", {"artefacts", "output", "audit", "resume", *DEVICE}),
    "compare": ("edgebert.bench.comparison.compare:CompareOptions", {"results", "output", "force"}),
}
# Flag -> field, where the flag is singular because it is repeatable; what is text on the command line is a tuple inside.
SINGULAR = {"target": "targets", "teacher": "teachers", "metric": "metrics", "scenario": "scenarios"}
PARSED = {"augment", "class_map", "targets", "metrics", "scenarios"}
ASKED_FOR_LATER = {"data"}  # `bench` says first whether it can measure here at all


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edgebert", *arguments], capture_output=True, text=True, check=False)


def _commands() -> dict[str, Callable[..., None]]:
    return {command.callback.__name__: command.callback for command in cli.app.registered_commands if command.callback}


@pytest.mark.parametrize("name", OPTIONS)
def test_flags_are_the_fields_of_the_options_with_their_defaults(name: str) -> None:
    place, others = OPTIONS[name]
    module, _, class_name = place.partition(":")
    fields = {field.name: field for field in dataclasses.fields(getattr(importlib.import_module(module), class_name))}
    parameters = inspect.signature(_commands()[name]).parameters
    flags = {
        flag
        if flag in fields
        else SINGULAR.get(flag, flag): value.default  # `quantize` has one teacher, `distill` several
        for flag, value in parameters.items()
        if flag != "as_json"
    }
    assert set(flags) - others == set(fields)
    for flag, default in flags.items():
        if flag in fields and flag not in PARSED | ASKED_FOR_LATER and default is not inspect.Parameter.empty:
            assert default == fields[flag].default, flag


def test_augment_default_is_that_of_the_options() -> None:
    from edgebert.train.options import TrainOptions

    default = inspect.signature(_commands()["train"]).parameters["augment"].default
    assert names_from(default) == TrainOptions(model="nano").augment


@pytest.mark.parametrize(
    "name", [command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback]
)
def test_every_command_has_help(name: str) -> None:
    ran = _run(name, "--help")
    assert ran.returncode == 0
    assert "Usage: edgebert " + name in ran.stdout
    assert ran.stderr == ""


def test_version_is_printed() -> None:
    assert _run("--version").stdout == f"edgebert {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("nonsense",), 2),
        (("compile", "x.onnx", "--target", "intel-cpus", "-o", "x.edgebert"), 2),
        (("verify", "nowhere.edgebert"), 66),
        (("predict", "nowhere.edgebert", "x.png"), 66),
        (("run", "nowhere.toml"), 66),
        (("inspect", "."), 65),
        (("train", "./nowhere", "--model", "nano", "-o", "out"), 66),
        (("train", "digits", "--model", "nano", "-o", "/proc/out"), 74),
        (("bench", "--data", "digits", "-o", "out.json"), 66),
    ],
)
def test_errors_have_their_exit_code_and_no_traceback(arguments: tuple[str, ...], code: int, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "edgebert", *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ran.returncode == code, ran.stderr
    assert ran.stdout == ""
    assert "rror" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback_wherever_it_stands() -> None:
    assert "Traceback" in _run("verify", "nowhere", "--debug").stderr


def test_json_answers_an_error_as_an_object() -> None:
    ran = _run("verify", "nowhere", "--json")
    error = json.loads(ran.stdout)["error"]
    assert error["exit_code"] == ran.returncode == 66
    assert "nowhere" in error["what"]


def test_targets_json_lists_every_target() -> None:
    from edgebert.target import TARGETS

    listed = json.loads(_run("targets", "--json").stdout)["targets"]
    assert [entry["name"] for entry in listed] == list(TARGETS)


def test_doctor_names_every_extra_and_the_command_that_adds_it() -> None:
    from edgebert.extras import EXTRAS

    packages = json.loads(_run("doctor", "--json").stdout)["packages"]
    assert {entry["extra"] for entry in packages} == {"required", *EXTRAS}
    assert all(entry["command"] for entry in packages if entry["state"] != "ok")
    assert all(not entry["command"] for entry in packages if entry["state"] == "ok")


def test_doctor_says_what_int8_is_multiplied_with_in_each_backend() -> None:
    facts = json.loads(_run("doctor", "--json").stdout)["computer"]
    for backend in ("onnxruntime", "openvino"):
        assert any(word in facts[f"int8 in {backend}"] for word in ("exact", "saturate", "not known"))


def test_doctor_says_what_a_fingerprint_is_compared_with() -> None:
    from edgebert.fingerprint import machine

    facts = json.loads(_run("doctor", "--json").stdout)["computer"]
    assert f"machine {machine()}, onnxruntime " in facts["forms that fit"]


def test_compile_has_a_flag_for_every_option() -> None:
    import inspect
    from dataclasses import fields

    from edgebert import cli
    from edgebert.export.compile import CompileOptions

    names = {entry.name for entry in fields(CompileOptions)} - {"targets"} | {"target"}
    assert names <= set(inspect.signature(cli.compile_).parameters)


def test_doctor_reports_what_is_below_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgebert import doctor

    monkeypatch.setattr(doctor, "found_version", lambda module: "0.1")
    assert {row.state for row in doctor.diagnose()} == {"below the floor"}
    assert all(not state.here for state in doctor.target_states())


@pytest.mark.parametrize("error", [UsageError, UnavailableError, EdgebertError])
def test_run_command_returns_the_code_of_the_error(
    error: type[EdgebertError], capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise error("what", expected="that", hint="do this")

    assert run_command(command, debug=False, as_json=False) == error.exit_code
    captured = capsys.readouterr()
    assert captured.err == "error: what\n  expected: that\n  hint: do this\n"
    assert captured.out == ""


def test_run_command_returns_75_when_memory_runs_out(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise MemoryError

    assert run_command(command, debug=False, as_json=False) == 75
    assert "memory ran out" in capsys.readouterr().err


def test_run_command_counts_warnings_in_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        _console._log.warning("one")
        _console._log.warning("two")
        return 0

    assert run_command(command, debug=False, as_json=False) == 0
    assert capsys.readouterr().err == "warning: one\nwarning: two\ndone, with 2 warnings\n"


def test_run_command_returns_130_when_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise KeyboardInterrupt

    assert run_command(command, debug=False, as_json=False) == 130
    assert "interrupted" in capsys.readouterr().err


def test_printable_escapes_what_steers_a_terminal() -> None:
    assert printable("a\x1b[2Jb\tc\n") == "a\\x1b[2Jb\tc\n"


def test_class_map_from_reads_pairs() -> None:
    assert class_map_from(["a=b", " c = d "]) == {"a": "b", "c": "d"}


@pytest.mark.parametrize("pair", ["a", "=b", "a="])
def test_class_map_from_refuses(pair: str) -> None:
    with pytest.raises(UsageError, match="class-map"):
        class_map_from([pair])


def test_class_map_from_refuses_a_name_twice() -> None:
    with pytest.raises(UsageError, match="twice"):
        class_map_from(["a=b", "a=c"])
