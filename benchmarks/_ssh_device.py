"""A device on the loopback: an SSH server that really runs what it is told, in a home folder of its own, and a proxy that cuts.

    with SshDevice(home=tmp / "device", host_home=tmp / "host") as device:
        device.trust(tmp / "host/.ssh/known_hosts")
        ...  # with HOME=tmp/host: connect to 127.0.0.1, port device.port

The tests use it as well. The server is asyncssh's, in a thread; the commands run in a shell as a device's sshd would run them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import asyncssh

_T = TypeVar("_T")
_CHUNK = 1 << 16


class _Server(asyncssh.SSHServer):
    """Lets whoever has the key in, and on to other hosts."""

    def begin_auth(self, username: str) -> bool:
        return True

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Any:
        self._thread.start()
        self.run(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        raise NotImplementedError

    async def _stop(self) -> None:
        raise NotImplementedError

    async def _cancel_rest(self) -> None:
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.wait(rest, timeout=5) if rest else None


class SshDevice(_Loop):
    """An SSH server at a free port of 127.0.0.1.

    Args:
        home: home folder of the device's user; made here.
        host_home: home folder of the user who connects: gets a key that this server accepts.
        python: what `python3` is on the device; None for none.
        shell: what runs the commands.
        instead: a program that runs in place of every command, which it gets as its last argument.
        authority: signs a certificate of the host key, which is then shown to whoever asks for one; None for no certificate.
        principals: the names that the certificate is for.
    """

    def __init__(
        self,
        *,
        home: Path,
        host_home: Path,
        python: Path | None = Path(sys.executable),
        shell: Sequence[str] = ("/bin/sh", "-c"),
        instead: Sequence[str] = (),
        authority: asyncssh.SSHKey | None = None,
        principals: Sequence[str] = ("127.0.0.1",),
    ) -> None:
        super().__init__()
        self.home, self.port = home, 0
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self._certificates = (
            []
            if authority is None
            else [authority.generate_host_certificate(self.host_key, "device", principals=list(principals))]
        )
        self.commands: list[str] = []
        self.agents_offered = 0
        self._shell, self._instead = tuple(shell), tuple(instead)
        self._children: list[asyncio.subprocess.Process] = []
        tools = home / "bin"
        tools.mkdir(parents=True, exist_ok=True)
        if python is not None:
            (tools / "python3").write_text(f'#!/bin/sh\nexec {python} "$@"\n', encoding="utf-8")
            (tools / "python3").chmod(0o755)
        for name in ("sh", "sleep", "kill"):
            with contextlib.suppress(FileExistsError):
                (tools / name).symlink_to(f"/bin/{name}")
        temporary = home / "tmp"  # of its own: its locks are not those of this computer
        temporary.mkdir(exist_ok=True)
        self._environment = {"HOME": str(home), "PATH": str(tools), "LANG": "C.UTF-8", "TMPDIR": str(temporary)}
        self._client_key = _client_key(host_home)

    def trust(self, known_hosts: Path, *, key: asyncssh.SSHKey | None = None, marker: str = "", port: int = 0) -> None:
        """Add a line for this server to a known-hosts file."""
        public = (key or self.host_key).export_public_key("openssh").decode().strip()
        known_hosts.parent.mkdir(parents=True, exist_ok=True)
        with known_hosts.open("a", encoding="utf-8") as stream:
            stream.write(f"{marker}[127.0.0.1]:{port or self.port} {public}\n")

    def running(self) -> int:
        """Return how many commands have not ended."""
        return sum(child.returncode is None for child in self._children)

    async def _start(self) -> None:
        self._acceptor = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=_Server,
            server_host_keys=[self.host_key],
            server_host_certs=self._certificates,
            authorized_client_keys=asyncssh.import_authorized_keys(self._client_key),
            process_factory=self._serve,
            encoding=None,
        )
        self.port = self._acceptor.get_port()

    async def _stop(self) -> None:
        self._acceptor.close()
        for child in self._children:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                await asyncio.wait_for(child.wait(), 10)
        await asyncio.wait_for(self._acceptor.wait_closed(), 10)
        await self._cancel_rest()

    async def _serve(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        command = process.command or ""
        self.commands.append(command)
        self.agents_offered += process.channel.get_agent_path() is not None
        words = [*self._instead, command] if self._instead else [*self._shell, command]
        child = await asyncio.create_subprocess_exec(
            *words,
            cwd=self.home,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._children.append(child)
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        feeding = asyncio.ensure_future(_feed(process.stdin, child.stdin))
        await asyncio.gather(_pump(child, 1, process.stdout), _pump(child, 2, process.stderr))
        code = await child.wait()
        feeding.cancel()
        with contextlib.suppress(OSError, asyncssh.Error):
            if code < 0:
                process.exit_with_signal("KILL" if code == -9 else "TERM")
            else:
                process.exit(code)


async def _feed(source: asyncssh.SSHReader[bytes], target: asyncio.StreamWriter) -> None:
    """Hand the client's bytes on; its end, and its loss, are the end of the command's stdin."""
    try:
        while piece := await source.read(_CHUNK):
            target.write(piece)
            await target.drain()
    except (OSError, asyncssh.Error):
        pass
    finally:
        target.close()


async def _pump(child: asyncio.subprocess.Process, descriptor: int, target: asyncssh.SSHWriter[bytes]) -> None:
    """Hand what a command says on; where nobody hears it any more, it gets a broken pipe, as from sshd."""
    source = child.stdout if descriptor == 1 else child.stderr
    assert source is not None
    while piece := await source.read(_CHUNK):
        try:
            target.write(piece)
            await target.drain()
        except (OSError, asyncssh.Error):
            transport: Any = child._transport  # type: ignore[attr-defined]  # there is no public way to it
            transport.get_pipe_transport(descriptor).close()
            return


class CuttingProxy(_Loop):
    """Hands a TCP connection on to a port, and resets both sides after so many bytes of both directions together.

    Args:
        port: of 127.0.0.1, where it goes.
        cut_after: bytes; None never cuts.
        hang: instead of a reset, silently hand nothing on any more.
    """

    def __init__(self, port: int, cut_after: int | None, *, hang: bool = False) -> None:
        super().__init__()
        self.port, self.passed = 0, 0
        self._target, self._cut_after, self._hang = port, cut_after, hang
        self._sockets: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        """Cut now: a reset, or silence where this proxy hangs."""
        self._cut_after = 0
        if not self._hang:
            self._loop.call_soon_threadsafe(self._cut)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        self._cut()
        await self._cancel_rest()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._sockets += [writer, other_writer]
        with contextlib.suppress(asyncio.CancelledError):  # of `_stop`; Python's own callback would print it
            await asyncio.gather(self._copy(reader, other_writer), self._copy(other_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_CHUNK):
                left = len(piece) if self._cut_after is None else max(0, self._cut_after - self.passed)
                self.passed += min(left, len(piece))
                writer.write(piece[:left])
                await writer.drain()
                if left < len(piece) or left == 0:
                    if self._hang:
                        await asyncio.sleep(3600)
                    self._cut()
                    return
            writer.close()

    def _cut(self) -> None:
        for writer in self._sockets:
            raw = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                if raw is not None and raw.fileno() >= 0:
                    # A reset, not a polite end: what a pulled cable or a crashed router leaves behind.
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


def _client_key(host_home: Path) -> str:
    """Return the public key of a user, made where there is none."""
    path = host_home / ".ssh/id_ed25519"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = asyncssh.generate_private_key("ssh-ed25519")
        path.write_bytes(key.export_private_key("openssh"))
        path.chmod(0o600)
        path.with_suffix(".pub").write_bytes(key.export_public_key("openssh"))
    return path.with_suffix(".pub").read_text(encoding="ascii")


def processes_of(home: Path) -> list[int]:
    """Return the numbers of all processes, of whatever session, whose home folder is a device's (Linux)."""
    wanted = f"HOME={home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def as_host(host_home: Path) -> None:
    """Make this process's user the one of `host_home`, without an SSH agent."""
    os.environ["HOME"] = str(host_home)
    os.environ.pop("SSH_AUTH_SOCK", None)
