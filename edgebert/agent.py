"""The commands of a device: `python -m edgebert.agent`, for computers that have numpy, Pillow and one backend and nothing else.

    python3 -m edgebert.agent install widgets.edgebert --to /var/lib/widgets
    python3 -m edgebert.agent status /var/lib/widgets --json

The same functions, answers and exit codes as `edgebert` itself, without typer; it runs from a wheel on PYTHONPATH as well. Its
answers are data on stdout and all else goes to stderr; `--json` makes them one JSON object.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edgebert import __version__
from edgebert._console import AGENT, columns, plain, run_command, show
from edgebert.errors import UsageError

_Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    command: _Command = given.command
    debug = bool(given.debug or os.environ.get("EDGEBERT_DEBUG"))
    return run_command(lambda: command(given), debug=debug, as_json=given.as_json, program=AGENT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgebert.agent", description="Install, open and check bundles on a device."
    )
    parser.add_argument("--version", action="version", version=f"edgebert {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    install = _command(commands, "install", _install, "put a bundle in place after its self-test, in one step")
    install.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="NAME.edgebert, packed or not; - for a packed one on stdin"
    )
    install.add_argument("--to", type=Path, required=True, metavar="DIR", help="the installation's folder")
    install.add_argument(
        "--allow-downgrade",
        action="store_true",
        help="accept an older release, or one that was replaced here; its release is the highest from then on",
    )
    install.add_argument("--allow-bad", action="store_true", help="accept a bundle that is marked bad here")
    install.add_argument(
        "--require-signature", action="store_true", help="from now on every bundle here must be signed"
    )
    install.add_argument("--weaken-policy", action="store_true", help="let these options replace a stricter policy")
    _signers(install)
    _self_test(install)

    rollback = _command(commands, "rollback", _rollback, "go back to the previous bundle")
    rollback.add_argument("path", type=Path, metavar="DIR", help="the installation's folder")
    _self_test(rollback)

    status = _command(commands, "status", _status, "say what is installed, what went bad and whose signatures count")
    status.add_argument("path", type=Path, metavar="DIR", help="the installation's folder")

    verify = _command(commands, "verify", _verify, "check a bundle: signature, hashes, and the canaries of every form")
    verify.add_argument("artefact", type=Path, metavar="BUNDLE", help="NAME.edgebert, or an installation")
    _signers(verify)

    predict = _command(commands, "predict", _predict, "classify image files")
    predict.add_argument("bundle", type=Path, metavar="BUNDLE", help="NAME.edgebert, or an installation")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    predict.add_argument("--target", help="the form to run; the first that fits if left out")
    predict.add_argument("--threads", type=int, default=0, help="of the backend; 0 for the physical cores")

    doctor = _command(commands, "doctor", _doctor, "say what works on this computer")
    doctor.add_argument("--jetson", action="store_true", help="check this Jetson rung by rung, and write one file")
    doctor.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="of --jetson; named by board and day if left out"
    )
    doctor.add_argument("--force", action="store_true", help="let --jetson replace that file")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, command: _Command, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--json", dest="as_json", action="store_true", help="answer in JSON on stdout")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    parser.set_defaults(command=command)
    return parser


def _signers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--signers", type=Path, metavar="FILE", help="allowed signers, one of whom must have signed the bundle"
    )
    parser.add_argument("--identity", metavar="ID", help="the one of them who must have signed")
    parser.add_argument("--revoked", type=Path, metavar="FILE", help="keys that are not believed any more")


def _self_test(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--self-test", choices=("now", "later"), default="now", help="later: at the first opening, on the device"
    )
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="of the self-test; 120 if left out"
    )
    parser.add_argument("--target", help="the form that the self-test opens; the first that fits if left out")


def _install(given: argparse.Namespace) -> int:
    from edgebert.install import InstallOptions, install

    names = InstallOptions.__dataclass_fields__
    options = InstallOptions(**{name: getattr(given, name) for name in names})
    report = install(given.bundle, given.to, options)
    show(report.to_json(), report.to_text(), as_json=given.as_json)
    return 0


def _rollback(given: argparse.Namespace) -> int:
    from edgebert.install import rollback

    report = rollback(given.path, self_test=given.self_test, timeout=given.timeout, target=given.target)
    show(report.to_json(), report.to_text(), as_json=given.as_json)
    return 0


def _status(given: argparse.Namespace) -> int:
    from edgebert.install import status

    report = status(given.path)
    show(report.to_json(), report.to_text(), as_json=given.as_json)
    return 0


def _verify(given: argparse.Namespace) -> int:
    from edgebert.artefact import verify
    from edgebert.signing import policy_from

    held = verify(given.artefact, policy_from(given.signers, given.identity, given.revoked))
    show({"artefact": str(given.artefact), "held": held}, "\n".join(held), as_json=given.as_json)
    return 0


def _predict(given: argparse.Namespace) -> int:
    from edgebert.artefact import predict_files, text_of_answers

    answers = predict_files(given.bundle, given.images, target=given.target, threads=given.threads)
    show({"predictions": [plain(answer) for answer in answers]}, text_of_answers(answers), as_json=given.as_json)
    return max(answer.exit_code for answer in answers)


def _doctor(given: argparse.Namespace) -> int:
    if given.jetson:
        return _check_jetson(given)
    if given.output is not None or given.force:
        raise UsageError("`--output` and `--force` belong to `--jetson`", hint="--jetson")
    from edgebert.doctor import computer, target_states

    facts, states = computer(), target_states()
    rows = [(state.name, "yes" if state.here else f"no: {state.reason}") for state in states]
    text = columns(("", ""), list(facts.items())).lstrip("\n") + "\n\n" + columns(("target", "runs here"), rows)
    show({"computer": facts, "targets": [plain(state) for state in states]}, text, as_json=given.as_json)
    return 0


def _check_jetson(given: argparse.Namespace) -> int:
    from edgebert.jetson_check.ladder import check_jetson
    from edgebert.jetson_check.output import CheckFile, check_into_file

    file = CheckFile(given.output, force=given.force)
    return check_into_file(lambda told: check_jetson(told=told), file, as_json=given.as_json)


if __name__ == "__main__":
    sys.exit(main())
