"""One command on a device over SSH, with the host key checked and everything that comes back bounded.

Stricter than the library's defaults (reliability.md, M11 and faults 28 to 30):

- the device's key must stand in a known-hosts file, for the name that was asked for; nothing is ever added there, and the user's SSH
  configuration may name other files but not none. An address that is known does not make a name known;
- jump hosts are opened here, by the same rule;
- no agent, X11 or environment is forwarded, and no password is asked for: a key or the agent answers;
- a link that says nothing for `silence_seconds` is lost, and what the device sends has a limit in bytes.

From the user's SSH configuration come host names, ports, users, keys, jump hosts and proxy commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import re
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from edgebert._console import printable
from edgebert.errors import LinkLostError, RefusedError, UnavailableError, UsageError
from edgebert.extras import require

if TYPE_CHECKING:
    import asyncssh

_T = TypeVar("_T")

USER_FILES = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
GLOBAL_FILES = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_SSH_PORT = 22
_MAX_JUMPS = 8
_CHUNK = 64 << 10

# What a host and a user may be called: nothing that a shell, a terminal or an option parser could take for something else.
_DESTINATION = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]{0,63})@)?"
    r"(?:\[(?P<literal>[0-9A-Fa-f:.%a-z]{2,64})\]|(?P<host>[A-Za-z0-9_][A-Za-z0-9._-]{0,254}))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SshOptions:
    """How a device is reached.

    Attributes:
        config: OpenSSH client configuration files; those that are missing count as empty.
        connect_seconds: for reaching one host and agreeing on keys, logging in included.
        silence_seconds: a link is lost when the other side answers nothing for so long, questions included.
        patience_seconds: for a command to start, to say its first line, and to take each piece of what it is sent. The device's SSH
            server answers our questions whatever its command does, so that `silence_seconds` says nothing of it.
        keepalive: ask whether the other side is there; a session does so itself, and never while something is timed.
        max_answer_bytes: of what the command may say on stdout.
        max_log_bytes: of what it may say on stderr.
    """

    config: tuple[Path, ...] = (Path("~/.ssh/config"), Path("/etc/ssh/ssh_config"))
    connect_seconds: float = 30.0
    silence_seconds: float = 20.0
    patience_seconds: float = 120.0
    max_answer_bytes: int = 1 << 20
    max_log_bytes: int = 64 << 20
    keepalive: bool = True

    def __post_init__(self) -> None:
        for name in ("connect_seconds", "silence_seconds", "patience_seconds"):
            value: float = getattr(self, name)
            if not 0 < value <= 3600:
                raise UsageError(f"{name} is `{value}`", expected="more than 0, at most 3600")


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """What the user called a device: `[USER@]HOST[:PORT]`, where HOST may be an alias of the SSH configuration."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")

    def ssh_arguments(self) -> str:
        """Return it as arguments of `ssh`."""
        port = f"-p {self.port} " if self.port else ""
        return port + (f"{self.user}@" if self.user else "") + self.host


def parse_destination(text: str) -> Destination:
    """Read `[USER@]HOST[:PORT]`; an IPv6 address stands in brackets.

    >>> parse_destination("pi@camera-3:2222")
    Destination(host='camera-3', user='pi', port=2222)

    Raises:
        UsageError: it is nothing of the kind.
    """
    found = _DESTINATION.fullmatch(text)
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (port is not None and not 1 <= port <= 65535):
        raise UsageError(f"`{printable(text):.100}` names no device", expected="USER@HOST, or USER@HOST:PORT")
    return Destination(host=found["literal"] or found["host"], user=found["user"], port=port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command on a device ended.

    Attributes:
        exit_code: None where a signal ended it, or where the device did not say.
        signal: its name without `SIG`, such as `KILL`.
        answer: stdout.
        log: the end of stderr, as text without control characters.
    """

    exit_code: int | None
    signal: str | None
    answer: bytes
    log: str


class ByteSource(Protocol):
    """Where the bytes of a command come from."""

    async def read(self, n: int = -1) -> bytes: ...


class ByteSink(Protocol):
    """Where the bytes for a command go to."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def write_eof(self) -> None: ...


class Abortable(Protocol):
    """What can be given up at once."""

    def abort(self) -> None: ...


class RemoteProcess(Protocol):
    """A command that runs, over SSH or over a pipe of this computer: what of asyncssh's process is used."""

    @property
    def stdin(self) -> ByteSink: ...
    @property
    def stdout(self) -> ByteSource: ...
    @property
    def stderr(self) -> ByteSource: ...
    @property
    def channel(self) -> Abortable: ...
    @property
    def exit_status(self) -> int | None: ...
    @property
    def exit_signal(self) -> tuple[str, bool, str, str] | None: ...
    async def wait_closed(self) -> None: ...


@dataclass(slots=True)
class RemoteCommand:
    """A command that runs on a device. Its stdin is written and its stdout read through this; stderr is kept aside."""

    device: str
    options: SshOptions
    process: RemoteProcess
    _received: int = 0
    _log: bytearray = field(default_factory=bytearray)

    async def read_line(self, limit: int) -> bytes:
        """Return stdout up to the next newline, without it; what follows stays for the next call.

        Raises:
            RefusedError: the line is longer than `limit`.
            LinkLostError: it does not come in time.
        """
        line = await self.patiently(self._line(limit), "said nothing")
        self._received += len(line)
        return line.removesuffix(b"\n")

    async def send(self, content: bytes, sent: Callable[[int], None]) -> bool:
        """Write to its stdin; `sent` is told the bytes of every piece. False where the command closed its stdin.

        Raises:
            LinkLostError: it takes nothing more, and does not end either.
        """
        view = memoryview(content)
        for start in range(0, len(view), _CHUNK):
            piece = bytes(view[start : start + _CHUNK])
            try:
                self.process.stdin.write(piece)
                await self.patiently(self.process.stdin.drain(), "taken nothing of what was sent")
            except BrokenPipeError:  # it ended, or closed its stdin: its answer says why
                return False
            sent(len(piece))
        return True

    async def finish(self) -> Ended:
        """Close stdin, read all that is still said, and wait for the end.

        Raises:
            RefusedError: more was said than the options allow.
        """
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write_eof()
        answer = bytearray()
        while chunk := await self.process.stdout.read(_CHUNK):
            self._received += len(chunk)
            if self._received > self.options.max_answer_bytes:
                raise RefusedError(
                    f"`{self.device}` answers with more than {self.options.max_answer_bytes:,} bytes",
                    expected="the answer of edgebert's agent",
                )
            answer += chunk
        await self.process.wait_closed()
        signal = self.process.exit_signal
        return Ended(
            exit_code=self.process.exit_status if signal is None else None,
            signal=None if signal is None else printable(signal[0]),
            answer=bytes(answer),
            log=self.last_words(),
        )

    async def patiently(self, awaited: Awaitable[_T], failing: str) -> _T:
        """Wait for the command, and not for ever."""
        try:
            return await asyncio.wait_for(awaited, self.options.patience_seconds)
        except asyncio.TimeoutError as error:
            raise LinkLostError(
                f"the command on `{self.device}` has {failing} for {self.options.patience_seconds:g} seconds",
                expected="an agent that answers: the device may be out of memory, or its disk may hang",
                hint="run the same command again",
            ) from error

    async def _line(self, limit: int) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            byte = await self.process.stdout.read(1)
            if not byte:
                break
            line += byte
            if len(line) > limit:
                raise RefusedError(f"`{self.device}` answers with a line of more than {limit:,} bytes")
        return bytes(line)

    async def drain_log(self) -> None:
        """Read stderr to its end, so that the command never waits for a reader; its last 16 KiB are kept."""
        received = 0
        while chunk := await self.process.stderr.read(_CHUNK):
            received += len(chunk)
            if received > self.options.max_log_bytes:
                raise RefusedError(f"`{self.device}` writes more than {self.options.max_log_bytes:,} bytes of log")
            self._log += chunk
            del self._log[: -(16 << 10)]

    def last_words(self) -> str:
        """Return the end of stderr as text without control characters."""
        return printable(self._log.decode("utf-8", "replace")).strip()


async def converse(
    destination: Destination,
    command: Sequence[str],
    talk: Callable[[RemoteCommand], Awaitable[Ended]],
    options: SshOptions,
) -> Ended:
    """Run one command on a device and talk with it.

    Args:
        destination: the device.
        command: its words; quoted here for the device's shell.
        talk: writes, reads and returns `RemoteCommand.finish()`.
        options: how it is reached, and the limits.

    Raises:
        RefusedError: a host key is unknown, changed or revoked; logging in failed; the device says too much.
        LinkLostError: it cannot be reached, or the link broke.
        UnavailableError: its name is not known, or asyncssh is not installed.
    """
    async with running(destination, command, options) as remote:
        return await talked(remote, talk)


@contextlib.asynccontextmanager
async def running(
    destination: Destination, command: Sequence[str], options: SshOptions
) -> AsyncIterator[RemoteCommand]:
    """Run one command on a device; see `converse`."""
    ssh = require("asyncssh")
    device = str(destination)
    async with _connected(destination, options) as connection:
        try:
            process = await _started(connection, destination, command, options)
            remote = RemoteCommand(device=device, options=options, process=process)
            try:
                yield remote
            except BaseException:
                process.channel.abort()  # no more of it is wanted: the device's process gets the end of its stdin
                if not options.keepalive:
                    connection.abort()  # nobody else would notice a link that fell silent, and all would wait for it
                raise
            finally:
                process.close()
                await process.wait_closed()
        except (ssh.Error, OSError) as error:
            raise LinkLostError(
                f"the link to `{device}` broke: {printable(str(error) or type(error).__name__):.200}",
                hint="run the same command again: what was complete is kept, and nothing half-done is",
            ) from error


async def _started(
    connection: asyncssh.SSHClientConnection, destination: Destination, command: Sequence[str], options: SshOptions
) -> asyncssh.SSHClientProcess[bytes]:
    starting = connection.create_process(quoted(command), encoding=None, request_pty=False)
    try:
        return await asyncio.wait_for(starting, options.patience_seconds)
    except asyncio.TimeoutError as error:
        raise LinkLostError(
            f"`{destination}` has started nothing for {options.patience_seconds:g} seconds",
            hint=f"ssh {destination.ssh_arguments()} true",
        ) from error


async def talked(remote: RemoteCommand, talk: Callable[[RemoteCommand], Awaitable[Ended]]) -> Ended:
    """Talk with a command while what it writes to stderr is read."""
    tasks = [asyncio.ensure_future(talk(remote)), asyncio.ensure_future(remote.drain_log())]
    try:
        ended, _ = await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
    assert isinstance(ended, Ended)
    return ended


def quoted(words: Sequence[str]) -> str:
    """Return words as one line for the shell of a device; `~/` at the start of one stays the home folder there.

    >>> print(quoted(["~/my env/bin/python", "-m", "edgebert.agent"]))
    ~/'my env/bin/python' -m edgebert.agent
    """
    return " ".join(f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word) for word in words)


@contextlib.asynccontextmanager
async def _connected(destination: Destination, options: SshOptions) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """Open the way to a device through its jump hosts, each with its key checked."""
    async with contextlib.AsyncExitStack() as stack:
        yield await _open(destination, options, stack, None, 0)


async def _open(
    destination: Destination,
    options: SshOptions,
    stack: contextlib.AsyncExitStack,
    tunnel: asyncssh.SSHClientConnection | None,
    depth: int,
) -> asyncssh.SSHClientConnection:
    if depth > _MAX_JUMPS:
        raise UsageError(f"`{destination}` lies behind more than {_MAX_JUMPS} jump hosts", hint="check ProxyJump")
    settings = await _settings(destination, options)
    if tunnel is None:  # the first of a chain; the others are reached through the one before, as in OpenSSH
        jumps = settings.config.get("ProxyJump")
        for jump in str(jumps).split(",") if jumps else ():
            tunnel = await _open(_jump(jump), options, stack, tunnel, depth + 1)
    attempt = _Attempt(destination, settings, tunnel, KnownHosts.of(settings.config))
    connection = await attempt.connect(options)
    stack.push_async_callback(_closed, connection)
    return connection


def _jump(text: str) -> Destination:
    """Read one host of ProxyJump, which may be written as a URI."""
    return parse_destination(text.strip().removeprefix("ssh://").removesuffix("/"))


async def _closed(connection: asyncssh.SSHClientConnection) -> None:
    """Close a connection; one whose other side is gone is not waited for."""
    connection.close()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(connection.wait_closed(), 2)


async def _settings(destination: Destination, options: SshOptions) -> asyncssh.SSHClientConnectionOptions:
    """Read the user's SSH configuration for a host, with everything that must not come from it fixed."""
    ssh = require("asyncssh")
    config = [path for path in (path.expanduser() for path in options.config) if path.is_file()]
    try:
        settings: asyncssh.SSHClientConnectionOptions = await ssh.SSHClientConnectionOptions.construct(
            host=destination.host,
            port=destination.port if destination.port is not None else (),
            username=destination.user if destination.user is not None else (),
            client_keys=_keys_that_exist(destination, config),
            ignore_encrypted=True,  # nobody is asked for a passphrase: the SSH agent holds such keys
            config=config or None,
            known_hosts=_trust_nobody,  # until the rule for this host is known
            tunnel=None,  # jump hosts are opened by us
            x509_trusted_certs=None,
            gss_kex=False,  # it replaces the check of the host key
            gss_delegate_creds=False,
            agent_forwarding=False,
            x11_forwarding=False,
            send_env=(),
            env={},
            command=None,
            request_pty=False,
            disable_trivial_auth=True,
            password_auth=False,
            kbdint_auth=False,
            connect_timeout=options.connect_seconds,
            login_timeout=options.connect_seconds,
            keepalive_interval=options.silence_seconds / 4 if options.keepalive else 0,
            keepalive_count_max=3,
        )
        return settings
    except (ssh.Error, ValueError, OSError) as error:
        raise UsageError(
            f"the SSH configuration for `{destination}` cannot be used: {printable(str(error)):.200}",
            hint=f"ssh -G {destination.ssh_arguments()}",
        ) from error


def _keys_that_exist(destination: Destination, config: Sequence[Path]) -> list[str]:
    """Return the key files that the configuration names and that are there; of none the usual names are looked for.

    OpenSSH passes over those that are missing, and a configuration for many computers often names some; asyncssh refuses it.
    """
    ssh = require("asyncssh")
    user, port = destination.user or (), destination.port or ()
    read = ssh.config.SSHClientConfig.load(
        None, list(config), False, False, False, getpass.getuser(), user, destination.host, port
    )
    named = read.get("IdentityFile") or ()
    assert isinstance(named, (list, tuple))
    return [str(path) for path in (Path(name).expanduser() for name in named) if path.is_file()]


def _trust_nobody(_host: str, _address: str, _port: int | None) -> tuple[list[str], list[str], list[str]]:
    return [], [], []


class KnownHosts:
    """The keys of known-hosts files.

    Args:
        files: read in this order; what is missing or unreadable counts as empty, and so does a line that cannot be read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        ssh = require("asyncssh")
        self.files = tuple(files)
        lines: list[str] = []
        for path in self.files:
            with contextlib.suppress(OSError):
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                    with contextlib.suppress(ValueError):
                        ssh.import_known_hosts(line)
                        lines.append(line)
        self._known = ssh.import_known_hosts("\n".join(lines))

    @classmethod
    def of(cls, config: asyncssh.config.SSHConfig) -> KnownHosts:
        """Return those of the files that a configuration names, or OpenSSH's own where it names none, or says `none`."""
        named = config.get("UserKnownHostsFile") or USER_FILES
        everyones = config.get("GlobalKnownHostsFile") or GLOBAL_FILES
        assert isinstance(named, (list, tuple))
        assert isinstance(everyones, (list, tuple))
        return cls([Path(name).expanduser() for name in (*named, *everyones)])

    def match(
        self, host: str, port: int | None
    ) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
        """Return the trusted keys, the trusted authorities and the revoked keys of a host.

        A key that stands under the host's name without a port counts for other ports where none stands under it, as in
        OpenSSH; a revoked key is revoked on every port.
        """
        # Without the address: whoever answers for the name must have the name's key (asyncssh would take the address's too).
        with_port = self._known.match(host, "", port)
        without = self._known.match(host, "", None)
        revoked = [*with_port[2], *without[2]]
        trusted = [key for key in with_port[0] if key not in revoked]
        return trusted, [key for key in with_port[1] if key not in revoked], revoked


class _Attempt:
    """Connecting to one host, and telling why it was refused."""

    def __init__(
        self,
        destination: Destination,
        settings: asyncssh.SSHClientConnectionOptions,
        tunnel: asyncssh.SSHClientConnection | None,
        known: KnownHosts,
    ) -> None:
        self._destination, self._settings, self._tunnel, self._known = destination, settings, tunnel, known
        self._offered: asyncssh.SSHKey | None = None
        # Under what known-hosts files list it.
        self._name = str(settings.host_key_alias or settings.host)
        self._port = None if settings.port == _SSH_PORT else settings.port

    async def connect(self, options: SshOptions) -> asyncssh.SSHClientConnection:
        ssh = require("asyncssh")
        name = str(self._destination)
        try:
            return await asyncio.wait_for(self._connect(), options.connect_seconds)
        except ssh.HostKeyNotVerifiable as error:
            raise await self._untrusted(options) from error
        except ssh.PermissionDenied as error:
            raise RefusedError(
                f"`{name}` does not let this user in: {printable(str(error)):.200}",
                expected="a key of ~/.ssh or of the SSH agent that the device knows; passwords are not asked for",
                hint=f"ssh-copy-id {self._destination.ssh_arguments()}",
            ) from error
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise LinkLostError(
                f"`{name}` does not answer within {options.connect_seconds:g} seconds",
                hint=f"ssh {self._destination.ssh_arguments()} true",
            ) from error
        except _gaierror() as error:
            raise UnavailableError(
                f"no host is called `{self._settings.host}`: {error.strerror}",
                expected="a name or an address that this computer knows, or a Host of ~/.ssh/config",
                hint=f"ssh -G {self._destination.ssh_arguments()}",
            ) from error
        except (ssh.Error, OSError) as error:
            if isinstance(error, ssh.DisconnectError) and await self._offers_another_kind_of_key(options):
                raise await self._untrusted(options) from error
            raise LinkLostError(
                f"`{name}` cannot be reached: {printable(str(error) or type(error).__name__):.200}",
                hint=f"ssh {self._destination.ssh_arguments()} true",
            ) from error

    async def _connect(self) -> asyncssh.SSHClientConnection:
        ssh = require("asyncssh")
        attempt = self

        class Witness(ssh.SSHClient):  # type: ignore[misc, name-defined]  # a class of a module loaded on use
            """Refuses every key that is not known, and remembers it."""

            def validate_host_public_key(self, _host: str, _address: str, _port: int, key: asyncssh.SSHKey) -> bool:
                attempt._offered = key
                return False

        connection: asyncssh.SSHClientConnection = await ssh.connect(
            self._destination.host,
            options=self._settings,
            known_hosts=self._match,
            client_factory=Witness,
            tunnel=self._tunnel,
            config=None,
        )
        return connection

    def _match(
        self, _host: str = "", _address: str = "", _port: int | None = None
    ) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
        return self._known.match(self._name, self._port)

    async def _untrusted(self, options: SshOptions) -> RefusedError:
        """Return the error for a host key that is not trusted: its fingerprint, why, and the command that would accept it."""
        listed = self._name if self._port is None else f"[{self._name}]:{self._port}"
        key = self._offered or await self._asked(options)
        shown = f" {key.get_fingerprint()} ({key.get_algorithm()})" if key is not None else ""
        trusted, _, revoked = self._match()
        files = " and ".join(f"`{path}`" for path in self._known.files if path.is_file()) or "no known-hosts file"
        accept = (
            f"ssh -o StrictHostKeyChecking=ask -o UserKnownHostsFile={self._known.files[0]} "
            f"{self._destination.ssh_arguments()} true"
        )
        compare = "compare its fingerprint with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the device, then accept it"
        if key in revoked:
            return RefusedError(
                f"the host key{shown} of `{listed}` is revoked",
                expected=f"a key that {files} does not mark `@revoked`",
                hint="give the device a new host key: sudo rm /etc/ssh/ssh_host_*; sudo ssh-keygen -A",
            )
        if trusted:
            known = ", ".join(f"{entry.get_fingerprint()} ({entry.get_algorithm()})" for entry in trusted)
            return RefusedError(
                f"the host key of `{listed}` has changed: it is{shown}; somebody may stand between, or the device was set up anew",
                expected=f"{known}, from {files}",
                hint=f"if it was set up anew, {compare}: ssh-keygen -f {self._known.files[0]} -R '{listed}' && {accept}",
            )
        return RefusedError(
            f"the host key{shown} of `{listed}` is not known",
            expected=f"a key of it in {files}",
            hint=f"{compare}: {accept}",
        )

    async def _offers_another_kind_of_key(self, options: SshOptions) -> bool:
        """Say whether the talk ended because the key that is known is of a kind that the host no longer has.

        Only the kinds of the known keys are asked for, and where there is none of them, whichever side is quicker hangs up.
        """
        trusted, authorities, _ = self._match()
        if not trusted or authorities:
            return False
        self._offered = await self._asked(options)
        return self._offered is not None and self._offered not in trusted

    async def _asked(self, options: SshOptions) -> asyncssh.SSHKey | None:
        """Ask the host for its key once more, only to name it: a revoked one is refused before it is shown to us."""
        ssh = require("asyncssh")
        asked = ssh.get_server_host_key(self._settings.host, self._settings.port, tunnel=self._tunnel, config=None)
        try:
            key: asyncssh.SSHKey | None = await asyncio.wait_for(asked, options.connect_seconds)
        except (ssh.Error, OSError, asyncio.TimeoutError):
            return None
        return key


def _gaierror() -> type[OSError]:
    import socket

    return socket.gaierror
