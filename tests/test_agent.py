"""The device's commands: the same answers and exit codes as `edgebert`, without typer, also from a wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edgebert import __version__, agent, cli
from edgebert.archive import write_archive
from edgebert.bundle import read_bundle, write_bundle

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bundle(make_toy_bundle: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_bundle(tmp_path_factory.mktemp("agent") / "toy.edgebert")


def _agent(
    *arguments: str | Path, stdin: bytes = b"", before: str = "", path: Path = ROOT
) -> subprocess.CompletedProcess[bytes]:
    """Run the agent in a process of its own, whose modules come from `path`."""
    code = f"{before}\nimport sys; from edgebert.agent import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(path)},
        cwd="/",
    )


def test_agent_installs_opens_and_goes_back(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dev = str(tmp_path / "dev")
    assert agent.main(["install", str(bundle), "--to", dev]) == 0
    assert agent.main(["status", dev]) == 0
    assert agent.main(["verify", dev]) == 0
    said = capsys.readouterr().out
    assert "installed: `toy`" in said
    assert "current is " in said
    assert "`cpu` answers all 4 canaries" in said
    assert agent.main(["rollback", dev]) == 66


def test_agent_verifies_a_link_of_an_installation_as_the_installation(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = tmp_path / "dev"
    for name in ("one", "two"):
        assert agent.main(["install", str(_renamed(bundle, tmp_path / name)), "--to", str(dev)]) == 0
    for name in ("current", "previous"):
        capsys.readouterr()
        assert agent.main(["verify", str(dev / name)]) == 0
        assert f"{name} is {(dev / name).readlink().name}\nthe installation demands" in capsys.readouterr().out


def test_agent_predicts(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(bundle / "canary" / "0.png")
    assert agent.main(["predict", str(bundle), image, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"][0]["file"] == image


def test_agent_tells_of_the_computer(capsys: pytest.CaptureFixture[str]) -> None:
    assert agent.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["computer"]["edgebert"] == __version__


def test_agent_takes_a_packed_bundle_on_stdin(bundle: Path, tmp_path: Path) -> None:
    write_archive(read_bundle(bundle), tmp_path / "toy.zip")
    ran = _agent("install", "-", "--to", tmp_path / "dev", "--json", stdin=(tmp_path / "toy.zip").read_bytes())
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["digest"] == read_bundle(bundle).digest


def test_agent_tells_errors_as_an_object_with_their_exit_code(tmp_path: Path) -> None:
    ran = _agent("install", "nowhere.edgebert", "--to", tmp_path / "dev", "--json")
    assert ran.returncode == json.loads(ran.stdout)["error"]["exit_code"] == 66
    assert b"Traceback" not in ran.stderr


def test_agent_names_its_own_commands_in_what_it_tells_people(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = str(tmp_path / "dev")
    assert agent.main(["rollback", dev]) == 66
    assert "hint: python3 -m edgebert.agent install BUNDLE --to DIR" in capsys.readouterr().err
    assert agent.main(["rollback", dev, "--json"]) == 66  # a host reads it, whose command is `edgebert`
    assert json.loads(capsys.readouterr().out)["error"]["hint"] == "edgebert install BUNDLE --to DIR"
    for name in ("one", "two"):
        assert agent.main(["install", str(_renamed(bundle, tmp_path / name)), "--to", dev]) == 0
    assert f"python3 -m edgebert.agent rollback {dev} goes back to it" in capsys.readouterr().out


def _renamed(bundle: Path, copy: Path) -> Path:
    """Return a copy under another name, which is another bundle."""
    read = read_bundle(bundle)
    copy.mkdir()
    write_bundle(copy, replace(read.manifest, name=copy.name, recorded_with={}), _without_manifest(read.files))
    return copy


def _without_manifest(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name != "manifest.json"}


def test_agent_refuses_nonsense_with_code_2() -> None:
    assert _agent("nonsense").returncode == 2


def test_agent_needs_neither_typer_nor_the_workbench(bundle: Path, tmp_path: Path) -> None:
    missing = ("typer", "click", "torch", "onnx", "transformers", "pydantic", "matplotlib", "asyncssh", "model_signing")
    before = f"import sys\nfor name in {missing}: sys.modules[name] = None"
    for arguments in (("install", bundle, "--to", tmp_path / "dev"), ("status", tmp_path / "dev"), ("verify", bundle)):
        ran = _agent(*arguments, before=before)
        assert ran.returncode == 0, ran.stderr


def test_agent_runs_from_an_archive_on_the_path(bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "edgebert.zip"
    with zipfile.ZipFile(archive, "w") as written:
        for path in sorted((ROOT / "edgebert").rglob("*.py")):
            written.write(path, path.relative_to(ROOT))
    where = "import edgebert, sys\nassert '.zip' in edgebert.__file__, edgebert.__file__"
    ran = _agent("install", bundle, "--to", tmp_path / "dev", path=archive, before=where)
    assert ran.returncode == 0, ran.stderr
    assert b"answers all 4 canaries" in ran.stdout


def test_agent_and_edgebert_have_the_same_options() -> None:
    import typer

    main = typer.main.get_command(cli.app)
    commands: dict[str, set[str]] = {}
    for name in ("install", "rollback", "status"):
        command = main.commands[name]  # type: ignore[attr-defined]  # a group
        flags = {flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")}
        # All but the first lead to a device, where the agent runs.
        commands[name] = flags - {"--help", "--host", "--python", "--device-wheels"}
    for action in agent._parser()._subparsers._group_actions:  # type: ignore[union-attr]  # there are commands
        for name, parser in action.choices.items():  # type: ignore[union-attr]  # of the commands
            if name in commands:
                assert set(parser._option_string_actions) - {"-h", "--help", "--debug"} == commands[name], name


def test_command_line_installs_and_goes_back(bundle: Path, tmp_path: Path) -> None:
    dev = str(tmp_path / "dev")
    command = [sys.executable, "-m", "edgebert"]
    for arguments, code in ((["install", str(bundle), "--to", dev], 0), (["status", dev], 0), (["rollback", dev], 66)):
        ran = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert ran.returncode == code, ran.stderr
