"""How a device is reached: over SSH, or over a pipe to a process of this computer.

    pi@camera-3        SSH
    bench-orin         SSH, a device that `edgebert devices add` has named
    local:             this computer, in a process of its own; `local:PYTHON` with another Python

>>> str(transport_of("pi@camera-3:2222")), str(transport_of("local:"))
('pi@camera-3:2222', 'local:')
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from edgebert.errors import UnavailableError, UsageError
from edgebert.remote.ssh import (
    ByteSink,
    ByteSource,
    Destination,
    RemoteCommand,
    SshOptions,
    parse_destination,
    running,
)

LOCAL = "local:"
_LEAVE_SECONDS = 5.0  # for a process to end after its stdin closed, before it is killed


class Transport(Protocol):
    """Runs one command on a device."""

    @property
    def python(self) -> str:
        """The device's Python."""
        ...

    @property
    def way(self) -> Literal["local", "ssh"]:
        """What a result says of it."""
        ...

    @property
    def wheels(self) -> Path | None:
        """A folder of this computer with wheels for a device that lacks numpy or Pillow; they are fetched if None."""
        ...

    def ssh_arguments(self) -> str | None:
        """Return what `ssh` takes to get there, None where it takes none."""
        ...

    def running(self, command: Sequence[str], options: SshOptions) -> AbstractAsyncContextManager[RemoteCommand]:
        """Run a command; its first word is the device's Python."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssh:
    """A device over SSH.

    Attributes:
        destination: of it.
        python: its Python: a command, or a path; `~/` is the home folder there.
        wheels: a folder here with numpy and Pillow for it, where it lacks them; None to fetch them.
    """

    destination: Destination
    python: str = "python3"
    wheels: Path | None = None

    def __str__(self) -> str:
        return str(self.destination)

    @property
    def way(self) -> Literal["local", "ssh"]:
        """What a result says of it."""
        return "ssh"

    def ssh_arguments(self) -> str | None:
        """Return what `ssh` takes to get there."""
        return self.destination.ssh_arguments()

    def running(self, command: Sequence[str], options: SshOptions) -> AbstractAsyncContextManager[RemoteCommand]:
        """Run a command there."""
        return running(self.destination, command, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPipe:
    """This computer, over a pipe: the same agent, from the same device wheel, in a process of its own.

    Attributes:
        python: its Python.
        environment: of the process; this process's own if None, without what Python is told by variables.
        wheels: as of `Ssh`.
    """

    python: str = sys.executable
    environment: Mapping[str, str] | None = field(default=None)
    wheels: Path | None = None

    def __str__(self) -> str:
        return LOCAL if self.python == sys.executable else f"{LOCAL}{self.python}"

    @property
    def way(self) -> Literal["local", "ssh"]:
        """What a result says of it."""
        return "local"

    def ssh_arguments(self) -> str | None:
        """Return None: there is no other computer."""
        return None

    @contextlib.asynccontextmanager
    async def running(self, command: Sequence[str], options: SshOptions) -> AsyncIterator[RemoteCommand]:
        """Run a command."""
        environment = self.environment
        if environment is None:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        try:
            child = await asyncio.create_subprocess_exec(
                _home_read(command[0]),
                *command[1:],
                env=dict(environment),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise UnavailableError(
                f"`{command[0]}` cannot be started: {error.strerror or error}",
                expected="a Python",
                hint="--python PATH",
            ) from error
        process = _LocalProcess(child)
        try:
            yield RemoteCommand(device=str(self), options=options, process=process)
        finally:
            await process.ended()


def _home_read(python: str) -> str:
    """Return a Python whose `~/` is read, as a shell of a device reads it; a bare command stays one."""
    return str(Path(python).expanduser()) if python.startswith("~/") else python


class _LocalProcess:
    """A child process, as `RemoteProcess` has it."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        self._child = child
        self.stdin: ByteSink = child.stdin
        self.stdout: ByteSource = child.stdout
        self.stderr: ByteSource = child.stderr
        self.channel = self

    @property
    def exit_status(self) -> int | None:
        code = self._child.returncode
        return code if code is None or code >= 0 else None

    @property
    def exit_signal(self) -> tuple[str, bool, str, str] | None:
        code = self._child.returncode
        if code is None or code >= 0:
            return None
        return signal.Signals(-code).name.removeprefix("SIG"), False, "", ""

    async def wait_closed(self) -> None:
        await self._child.wait()

    def abort(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self.stdin.write_eof()

    async def ended(self) -> None:
        """Wait for the end of the process, which has the end of its stdin; it is killed where it stays."""
        self.abort()
        cancelled = False
        while self._child.returncode is None:
            try:
                await asyncio.wait_for(self._child.wait(), _LEAVE_SECONDS)
            except (
                asyncio.CancelledError
            ):  # the session is closed; what the process clears away is waited for all the same
                cancelled = True
            except asyncio.TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._child.kill()
        # There is no public way to it, and pipes that are left to the collector outlive their loop.
        self._child._transport.close()  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        if cancelled:
            raise asyncio.CancelledError


def transport_of(host: str, *, python: str | None = None, wheels: Path | None = None) -> Transport:
    """Return how a device is reached that the user named.

    Args:
        host: `[USER@]HOST[:PORT]`, `local:`, or the name of a device of `edgebert devices`.
        python: the device's Python; its own entry's, or `python3`, if None.
        wheels: a folder here with numpy and Pillow for a device that lacks them; None to fetch them.

    Raises:
        UsageError: it names nothing.
    """
    if host.startswith(LOCAL):
        return LocalPipe(python=python or host.removeprefix(LOCAL) or sys.executable, wheels=wheels)
    from edgebert.remote.devices import known_device

    known = known_device(host)
    if known is not None:
        return Ssh(destination=parse_destination(known.host), python=python or known.python, wheels=wheels)
    return Ssh(destination=parse_destination(host), python=python or "python3", wheels=wheels)


def ssh_of(host: str, *, python: str | None = None) -> Ssh:
    """Return how a device is reached that is to be another computer; see `transport_of`.

    Raises:
        UsageError: it names nothing, or this computer.
    """
    found = transport_of(host, python=python)
    if not isinstance(found, Ssh):
        raise UsageError(f"`{host}` is this computer", expected="a device", hint="leave `--host` out")
    return found
