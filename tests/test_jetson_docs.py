"""docs/jetson.md says what is so: its commands parse, its options exist, and its troubleshooting knows the texts that the code knows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

typer = pytest.importorskip("typer")
from edgebert.cli import app
from edgebert.runtime.tensorrt_errors import KNOWN, explained

PAGE = (Path(__file__).parents[1] / "docs/jetson.md").read_text(encoding="utf-8")
WAY = "From a fresh JetPack to a benched engine"
OF_TENSORRT = ("When an engine is loaded", "When an engine is built", "When a graph is read")


def section(title: str) -> str:
    """Return what stands below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}$(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def commands(text: str) -> list[str]:
    """Return the indented lines."""
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def parse(command: str) -> dict[str, Any]:
    """Return what the command line makes of a command, which is not run."""
    _, *words = shlex.split(command)
    found: Any = typer.main.get_command(app)
    name = "edgebert"
    while hasattr(found, "commands"):
        name, *words = words
        found = found.commands[name]
    parameters: dict[str, Any] = found.make_context(name, words).params
    return parameters


def texts(*titles: str) -> list[str]:
    """Return the texts in the first column of the tables of sections."""
    rows = [row for title in titles for row in re.findall(r"^\| (`.*?) \|", section(title), re.MULTILINE)]
    return [text for row in rows for text in re.findall(r"`([^`]+)`", row)]


def test_the_way_to_a_benched_engine_is_ten_commands() -> None:
    assert len(commands(section(WAY))) == 10


@pytest.mark.parametrize("command", [line for line in commands(PAGE) if line.startswith("edgebert ")])
def test_command_parses(command: str) -> None:
    assert parse(command)


def test_way_ends_with_an_engine_that_is_benched_on_the_board() -> None:
    made, benched = (parse(command) for command in commands(section(WAY))[-2:])
    assert (made["target"], benched["target"]) == (["jetson"], ["jetson"])
    assert [made["host"]] == benched["host"] == ["orin"]
    assert benched["artefacts"] == [str(made["output"])]


@pytest.mark.parametrize(
    "command", ["edgebert compile a.onnx -o b.edgebert --hosts orin", "edgebert bench a.edgebert --rigor none"]
)
def test_parse_refuses_what_is_no_command(command: str) -> None:
    with pytest.raises(typer.BadParameter.__base__):
        parse(command)


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"(--[a-z]+[a-z-]*)", section("What can be chosen")))))
def test_option_of_compile_exists(flag: str) -> None:
    compile_ = typer.main.get_command(app).commands["compile"]
    assert flag in {name for parameter in compile_.params for name in parameter.opts}


def test_troubleshooting_has_every_text_that_the_code_knows() -> None:
    found = {id(explained(text)) for text in texts(*OF_TENSORRT, "When nothing starts")}
    missing = [known.means for known in KNOWN if id(known) not in found]
    assert missing == []


@pytest.mark.parametrize("text", texts(*OF_TENSORRT))
def test_text_of_troubleshooting_is_known_to_the_code(text: str) -> None:
    assert explained(text) is not None


def test_page_says_what_was_not_run() -> None:
    said = " ".join(PAGE.replace("*", "").split())
    assert (
        "API use is checked against the official Python bindings of TensorRT 10.3, 10.7, 10.13, 10.16 and 11.4; not run on a "
        "Jetson by the project"
    ) in said
