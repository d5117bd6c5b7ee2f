"""Runs a command of the agent on a device: sends the device wheel where it is missing, then what the command reads, and checks its answer.

One SSH session and one command: `edgebert/remote/bootstrap.py` is its text, so that nothing needs to be on the device but Python and a
backend. The wheel is kept there as `~/.cache/edgebert/<sha256>/`, and sent again only where it changed. Where numpy or Pillow are missing
or too old, a session before the command brings them (`edgebert.remote.packages`), and they stay as the device wheel does.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

from edgebert import errors
from edgebert._console import printable
from edgebert._json import Fields, JsonObject, JsonValue, dump_json, parse_json_object
from edgebert._progress import Progress
from edgebert.errors import (
    BadDataError,
    EdgebertError,
    LinkLostError,
    MemoryExhaustedError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from edgebert.extras import DISTRIBUTIONS, FLOORS, below_floor
from edgebert.remote.bootstrap import GIVEN_UP
from edgebert.remote.device_wheel import device_wheel
from edgebert.remote.ssh import Destination, Ended, RemoteCommand, SshOptions, converse
from edgebert.remote.transport import Ssh
from edgebert.remote.wheel_pins import IMPORTED, lacking
from edgebert.runtime.tensorrt_api import TWO_WAYS

_log = logging.getLogger("edgebert")

_OLDEST_PYTHON = (3, 10)
BACKENDS = ("onnxruntime", "openvino", "tensorrt")
_HELLO_BYTES = 4 << 10
_SILENCE_SECONDS = 60.0  # the device gives up where the host sends nothing for so long
# The folder in which the command starts leaves the path before anything but `sys`, which is built in, is imported.
RUN_IT = "import sys;sys.path[:]=filter(None,sys.path);import base64;exec(base64.b64decode(sys.argv[1]))"
_MOST_FILE_BYTES = 64 << 10  # they are part of the command, of which Linux takes 128 KiB a word
_PARTS = ("what", "expected", "hint")  # of an error
_NO_SUCH_COMMAND = 127  # of a shell


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a device said of itself.

    Attributes:
        name: as the user called it.
        python: version of its Python.
        executable: that Python.
        machine: its processor architecture, such as `aarch64`.
        modules: module -> version of those edgebert uses that it has.
        suffix: of the compiled modules that its Python loads, such as `.cpython-310-aarch64-linux-gnu.so`.
        libc: its C library, such as `glibc 2.35`; "" for another one.
    """

    name: str
    python: tuple[int, ...]
    executable: str
    machine: str
    modules: Mapping[str, str]
    suffix: str = ""
    libc: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAnswer:
    """What an agent answered.

    Attributes:
        device: which one.
        answer: its JSON object.
        sent_bytes: over the link.
    """

    device: Device
    answer: Mapping[str, JsonValue]
    sent_bytes: int


def run_agent(
    destination: Destination,
    words: Sequence[str],
    pieces: Iterable[bytes],
    size: int,
    *,
    files: Mapping[str, bytes] | None = None,
    answer_seconds: float = 600.0,
    python: str = "python3",
    wheels: Path | None = None,
    options: SshOptions | None = None,
) -> AgentAnswer:
    """Run a command of the agent on a device.

    Args:
        destination: the device.
        words: the agent's arguments, such as `["install", "-", "--to", "/opt/widgets", "--json"]`.
        pieces: what it reads from its stdin.
        size: bytes of `pieces` together, for the progress.
        files: small files that the command reads: name -> content; the word `--NAME={NAME}` gets its path there, and it is
            removed at the end.
        answer_seconds: how long the command may take once everything was sent.
        python: the device's Python: a command, or a path; `~/` is the home folder there.
        wheels: a folder here with numpy and Pillow for a device that lacks them; None to fetch them.
        options: how the device is reached.

    Raises:
        EdgebertError: what the agent itself refused, of the class that its exit code stands for.
        UsageError: `files` are too large to be sent with the command.
        RefusedError: a host key, a login or an answer that cannot be trusted.
        LinkLostError: the device cannot be reached, or the link broke.
        UnavailableError: the device lacks Python 3.10 or a backend; the message holds the command that adds it. Or it lacks numpy or
            Pillow, and there are none for it, or they cannot be had here.
    """
    attached = dict(files or {})
    if sum(map(len, attached.values())) > _MOST_FILE_BYTES:
        raise UsageError(
            f"{', '.join(f'`{name}`' for name in attached)}: {sum(map(len, attached.values())):,} bytes",
            expected=f"at most {_MOST_FILE_BYTES:,} together",
        )
    options = options or SshOptions()
    try:
        call = _Call(destination, words, pieces, size, attached, answer_seconds, python, options)
        return asyncio.run(call.run())
    except _PackagesWanted:  # nothing was sent yet
        packages = _bring(Ssh(destination=destination, python=python, wheels=wheels), options)
        call = _Call(destination, words, pieces, size, attached, answer_seconds, python, options, packages)
        return asyncio.run(call.run())


class _PackagesWanted(Exception):
    """A device has no numpy or Pillow that is good enough."""


def _bring(transport: Ssh, options: SshOptions) -> JsonObject:
    """Leave numpy and Pillow on a device for the call that follows, in a session of its own; return what that call says of them."""
    from edgebert.remote.packages import packages_message
    from edgebert.remote.session import DeviceSession

    with DeviceSession(transport, ssh=options, keep=True) as session:
        return packages_message(session.brought)


class _Call:
    """One command of the agent, from the hello to the end."""

    def __init__(
        self,
        destination: Destination,
        words: Sequence[str],
        pieces: Iterable[bytes],
        size: int,
        attached: Mapping[str, bytes],
        answer_seconds: float,
        python: str,
        options: SshOptions,
        packages: JsonObject | None = None,
    ) -> None:
        self._destination, self._name, self._answer_seconds = destination, str(destination), answer_seconds
        self._pieces, self._size, self._python, self._options = pieces, size, python, options
        self._wheel = device_wheel()
        self._nonce = secrets.token_hex(16)
        self._arguments: dict[str, JsonValue] = {
            "nonce": self._nonce,
            "wheel": self._wheel.name,
            "sha256": self._wheel.sha256,
            "size": len(self._wheel.content),
            "silence_seconds": _SILENCE_SECONDS,
            "words": list(words),
            "files": {name: base64.b64encode(content).decode("ascii") for name, content in attached.items()},
            "packages": dump_json(packages) if packages else "",
        }
        self._packages = packages
        self._device: Device | None = None
        self._sent = 0

    async def run(self) -> AgentAnswer:
        text = files("edgebert.remote").joinpath("bootstrap.py").read_bytes()
        # Base64 has nothing that any shell would read otherwise, the newlines of the text have; the rest is quoted.
        arguments = dump_json(self._arguments).replace("\n", "")
        command = [self._python, "-c", RUN_IT, base64.b64encode(text).decode("ascii"), arguments]
        ended = await converse(self._destination, command, self._talk, self._options)
        return self._answer(ended)

    async def _talk(self, remote: RemoteCommand) -> Ended:
        hello = await remote.read_line(_HELLO_BYTES)
        if not hello:  # no Python, or one that cannot read the text
            return await remote.patiently(remote.finish(), "neither answered nor ended")
        fields = self._checked(hello)
        self._device = self._usable(fields)
        wheel = b"" if fields.value.get("wheel") is True else self._wheel.content
        with Progress(f"send to {self._name}, KiB", (len(wheel) + self._size) >> 10) as progress:

            def count(sent: int) -> None:
                progress.advance((self._sent + sent >> 10) - (self._sent >> 10))
                self._sent += sent

            for piece in (wheel, *self._pieces):
                if not await remote.send(piece, count):
                    break
        try:
            return await asyncio.wait_for(remote.finish(), self._answer_seconds)
        except asyncio.TimeoutError as error:
            raise LinkLostError(
                f"`{self._name}` has not answered {self._answer_seconds:g} seconds after everything was sent",
                hint=f"ssh {self._destination.ssh_arguments()} 'ps x | grep base64'",
            ) from error

    def _checked(self, line: bytes) -> Fields:
        """Read an answer, which must be one to this very call."""
        return checked_answer(line, name=self._name, nonce=self._nonce, max_bytes=self._options.max_answer_bytes)

    def _usable(self, hello: Fields) -> Device:
        """Return what the device is, if it has what the agent needs."""
        device = device_of_hello(hello, name=self._name)
        check_device_is_usable(device, python=self._python, ssh_arguments=self._destination.ssh_arguments())
        if self._packages is None and lacking(device.modules):
            raise _PackagesWanted
        return device

    def _answer(self, ended: Ended) -> AgentAnswer:
        """Return what the agent answered, or raise what it refused."""
        for line in ended.log.splitlines():
            _log.info("%s: %s", self._name, line)
        if not ended.answer.strip():
            self._refuse_silence(ended)
        fields = self._checked(ended.answer)
        answer = fields.value.get("answer")
        code = fields.value.get("exit_code")
        if not isinstance(answer, Mapping) or not isinstance(code, int):
            raise RefusedError(f"the agent on `{self._name}` answers with no JSON object", expected=f"exit code {code}")
        said = answer.get("error")
        if code != 0 or said is not None:
            raise error_of(self._name, code, said)
        assert self._device is not None  # whoever answers has said hello
        return AgentAnswer(device=self._device, answer=answer, sent_bytes=self._sent)

    def _refuse_silence(self, ended: Ended) -> NoReturn:
        if ended.exit_code == _NO_SUCH_COMMAND and self._device is None:
            raise UnavailableError(
                f"`{self._name}` has no `{self._python}`",
                expected="Python 3.10 or newer",
                hint=f"ssh {self._destination.ssh_arguments()} 'sudo apt-get install python3-venv', or name one with `--python`",
            )
        if ended.signal == "KILL" or ended.exit_code == 137:
            raise MemoryExhaustedError(
                f"the agent on `{self._name}` was killed (signal 9): the device ran out of memory",
                expected="what was installed before is still there",
                hint=f"ssh {self._destination.ssh_arguments()} free -m",
            )
        how = f"signal {ended.signal}" if ended.signal else f"exit code {ended.exit_code}"
        if ended.exit_code == GIVEN_UP or (ended.exit_code is None and ended.signal is None):
            raise LinkLostError(f"the link to `{self._name}` broke", hint="run the same command again")
        raise EdgebertError(
            f"the agent on `{self._name}` ended without an answer ({how})",
            expected=ended.log.splitlines()[-1] if ended.log else "one",
            hint=f"ssh {self._destination.ssh_arguments()} {self._python} --version",
        )


def checked_answer(line: bytes, *, name: str, nonce: str, max_bytes: int) -> Fields:
    """Read a line of a device.

    Raises:
        RefusedError: no JSON object, or one to another call.
    """
    what = f"the answer of `{name}`"
    try:
        fields = Fields(parse_json_object(line, what=what, max_bytes=max_bytes), what=what)
        said = fields.text("nonce")
    except BadDataError as error:
        raise RefusedError(printable(error.what), expected=plain_text(error.expected)) from error
    if not secrets.compare_digest(said.encode(), nonce.encode()):
        raise RefusedError(f"{what} is one to another call", expected="the number that this call was given")
    return fields


def device_of_hello(hello: Fields, *, name: str) -> Device:
    """Return what a device said of itself.

    Raises:
        RefusedError: it said something else.
    """
    try:
        modules = hello.fields("modules")
        return Device(
            name=name,
            python=hello.integers("python"),
            executable=printable(hello.text("executable")),
            machine=printable(hello.text("machine")),
            modules={module: printable(modules.text(module)) for module in modules.value},
            suffix=printable(hello.optional_text("suffix") or ""),
            libc=printable(hello.optional_text("libc") or ""),
        )
    except BadDataError as error:
        raise RefusedError(printable(error.what), expected=plain_text(error.expected)) from error


def check_device_is_usable(
    device: Device, *, python: str, ssh_arguments: str | None, backends: Sequence[str] = BACKENDS
) -> None:
    """Check that a device has what edgebert needs and cannot bring, and warn of what is older than it should be.

    Args:
        device: what it said.
        python: its Python, as the user named it.
        ssh_arguments: what `ssh` takes to get there; None for this computer.
        backends: of which it needs one; none where what is asked of it needs none.

    Raises:
        UnavailableError: Python 3.10 or a backend is missing; the message holds the command that adds it, and numpy and Pillow with
            it where they are missing as well.
    """
    name = device.name
    if device.python[:2] < _OLDEST_PYTHON:
        raise UnavailableError(
            f"`{python}` on `{name}` is Python {'.'.join(map(str, device.python))}",
            expected="Python 3.10 or newer",
            hint="name another one with `--python`, such as `--python '~/edgebert/bin/python'`",
        )
    if backends and not any(backend in device.modules for backend in backends):
        missing = [DISTRIBUTIONS.get(module, module) for module in IMPORTED if module not in device.modules]
        missing.append("onnxruntime")
        make = f"python3 -m venv --system-site-packages ~/edgebert && ~/edgebert/bin/pip install {' '.join(missing)}"
        raise UnavailableError(
            f"`{name}` has no {' and no '.join(missing)} for {device.executable}",
            expected=f"numpy, Pillow, and one of {', '.join(BACKENDS)}",
            hint=f"{on_device(ssh_arguments, make)}, then add `--python '~/edgebert/bin/python'`",
        )
    for module, version in device.modules.items():
        if module in FLOORS and module not in IMPORTED and version and below_floor(module, version):
            _log.warning("`%s` has %s %s; %s or newer is advised", name, module, version, FLOORS[module])


def on_device(ssh_arguments: str | None, command: str) -> str:
    """Return what a user types to run a command on a device."""
    return command if ssh_arguments is None else f"ssh {ssh_arguments} '{command}'"


def error_of(device: str, code: int, said: object) -> EdgebertError:
    """Return the agent's error as one of ours, of the class that its exit code stands for."""
    kinds: dict[int, type[EdgebertError]] = {
        kind.exit_code: kind
        for kind in (
            errors.UsageError,
            errors.BadDataError,
            errors.InputNotFoundError,
            errors.UnavailableError,
            errors.CannotWriteError,
            errors.LockedError,
            errors.NotComparableError,
            errors.RefusedError,
        )
    }
    kind = kinds.get(code, EdgebertError)
    if isinstance(said, Mapping) and said.get("class") == errors.MemoryExhaustedError.__name__ and kind.exit_code == 75:
        kind = errors.MemoryExhaustedError  # which shares its exit code, and says something of the work itself
    if not isinstance(said, Mapping):
        return kind(f"the agent on `{device}` ended with exit code {code}")
    # Each part says whose words it is: a hint is a command that people copy, and this one is a stranger's.
    parts = [None if text is None else f"on `{device}`: {text}" for text in map(plain_text, map(said.get, _PARTS))]
    if TWO_WAYS in (parts[2] or ""):  # the first of them was taken
        parts[2] = f"edgebert doctor --jetson --host {device} says what is there"
    return kind(parts[0] or f"the agent on `{device}` gives no reason", expected=parts[1], hint=parts[2])


def plain_text(text: object) -> str | None:
    """Return text of a device on one line, without control characters, and not too much of it."""
    return " ".join(printable(text).split())[:2000] if isinstance(text, str) else None
