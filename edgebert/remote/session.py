"""A session with a device: the host's end. What is sent is sent once, what is asked is answered once, and what comes back is bounded.

    with DeviceSession(transport_of("pi@camera-3")) as session:
        session.push(objects)
        reply = session.ask("facts", {}, timeout_s=60)

The link is read and written in a thread, so that a device that asks whether this computer is still there is answered whatever the
caller does meanwhile. A session that ends with an error closes the link, and the device ends everything it has started.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import queue
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, TypeVar

from edgebert._console import printable
from edgebert._json import Fields, JsonObject, JsonValue, dump_json
from edgebert._progress import Progress
from edgebert.errors import (
    BadDataError,
    EdgebertError,
    LinkLostError,
    MemoryExhaustedError,
    RefusedError,
    UnavailableError,
)
from edgebert.remote.agent import (
    BACKENDS,
    RUN_IT,
    Device,
    check_device_is_usable,
    checked_answer,
    device_of_hello,
    error_of,
    on_device,
    plain_text,
)
from edgebert.remote.bootstrap import GIVEN_UP
from edgebert.remote.device_wheel import device_wheel
from edgebert.remote.frames import (
    ANSWER,
    BYE,
    ERROR,
    MAX_LINE_BYTES,
    PING,
    PONG,
    PUSH,
    READY,
    Frame,
    encode_frame,
    frame_of_line,
)
from edgebert.remote.ssh import RemoteCommand, SshOptions
from edgebert.remote.transport import Transport

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgebert.remote.wheel_pins import PinnedWheel

_T = TypeVar("_T")
_log = logging.getLogger("edgebert")

MAX_ANSWER_BYTES = 1 << 30  # of a session, arrays included
MAX_FRAME_BYTES = 256 << 20  # of one frame with what follows it
LEAST_SILENCE_SECONDS = 8.0  # a device says something every four seconds, timed blocks included

_HELLO_BYTES = 4 << 10
_DEVICE_SILENCE_SECONDS = (
    8.0  # of this computer, after which the device gives up: less than ten, with what it clears away
)
_STUCK_SECONDS = 20.0  # that a piece of what is sent may take
_HELLO_SECONDS = 60.0  # for a Python to start on a slow card
_CHUNK = 64 << 10
_MAX_WAITING = 256  # frames that were not asked for yet: a device that floods is refused
_START_SECONDS = 180.0
_LEAVE_SECONDS = 60.0
_LEAVE_AFTER_ERROR_SECONDS = 10.0  # to clear away, where the user waits to read an error
_THERE_AT_ONCE = 4_000
_PUSH_BYTES = 64 << 20  # of one `push`, unless one object alone is larger


@dataclass(frozen=True, slots=True, kw_only=True)
class SentObject:
    """Something that a device is to have.

    Attributes:
        sha256: of the content.
        size: in bytes.
        read: gives the content; called only where it is to be sent.
    """

    sha256: str
    size: int
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a device answered: fields, and the bytes that came with them."""

    fields: Fields
    blobs: Mapping[str, bytes]


class DeviceSession:
    """One device, from the hello to the end; use it as a context manager.

    Args:
        transport: how it is reached.
        ssh: how, over SSH; the limit of silence counts for every transport.
        keep: leave what is pushed, and the device wheel, on the device.
        backends: of which it must have one; none where nothing is to be run there.
        only_looks: what an earlier session has left there stays; nothing is pushed.
        stop: once it is set, waiting for the device ends as by Ctrl-C: only the main thread is ever interrupted itself.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        ssh: SshOptions | None = None,
        keep: bool = False,
        backends: Sequence[str] = BACKENDS,
        only_looks: bool = False,
        stop: threading.Event | None = None,
    ) -> None:
        self._transport, self.name, self._keep = transport, str(transport), keep
        self._only_looks, self._stop = only_looks, stop or threading.Event()
        self._backends = tuple(backends)
        self._ssh = replace(ssh or SshOptions(), keepalive=False)
        self._silence = max(self._ssh.silence_seconds, LEAST_SILENCE_SECONDS)
        self._nonce = secrets.token_hex(16)
        self._wheel = device_wheel()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._came: queue.Queue[Frame | EdgebertError] = queue.Queue()
        self._outgoing: asyncio.Queue[tuple[bytes, ...] | None] | None = None
        self._said = self._heard = self._received = 0
        self._asked = 0  # the request that is to be answered; 0 for none
        self._main: asyncio.Task[None] | None = None
        self._device: Device | None = None
        self._writing = asyncio.Lock()
        self._ended: EdgebertError | None = None
        self._leaving = self._closing = False
        self.sent_bytes = 0
        self.brought: tuple[PinnedWheel, ...] = ()  # numpy and Pillow, where the device has none that is good enough

    @property
    def device(self) -> Device:
        """What the device said of itself."""
        assert self._device is not None, "enter the session first"
        return self._device

    @property
    def has_answered(self) -> bool:
        """Whether the device said what it is, usable or not."""
        return self._device is not None

    @property
    def transport(self) -> Transport:
        """How it is reached."""
        return self._transport

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._wait(READY, _START_SECONDS + self._ssh.connect_seconds)
            self._wait(ANSWER, self._silence)
            self._bring_packages()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._leave_done()
            elif self._ended is None and not self._asked:  # the link is whole, and nothing is under way there
                with contextlib.suppress(EdgebertError):
                    self._leave(_LEAVE_AFTER_ERROR_SECONDS)
        finally:
            self._close()

    def _leave_done(self) -> None:
        """Leave where all that was asked is answered: a link that breaks now takes nothing back of what was made of the answers."""
        try:
            self._leave(_LEAVE_SECONDS)
        except LinkLostError as error:
            _log.warning(
                "all is done, but what was sent to `%s` may still lie there until the next call: %s",
                self.name,
                error.what,
            )

    def _leave(self, timeout_s: float) -> None:
        """Let the device clear away, and wait until it has."""
        self._leaving = True
        self._request(BYE, {}, ())
        self._wait(ANSWER, timeout_s, stops=False)

    def _bring_packages(self) -> None:
        """Send numpy and Pillow where the device's own are missing or too old; a device that cannot have them is left as it was."""
        from edgebert.remote.packages import bring_packages

        try:
            self.brought = bring_packages(self)
        except EdgebertError:
            with contextlib.suppress(EdgebertError):
                self._leave(self._silence)
            raise

    def ask(
        self,
        kind: str,
        content: JsonObject,
        *,
        timeout_s: float,
        said: Callable[[str, Reply], None] | None = None,
    ) -> Reply:
        """Ask something and return the answer.

        Args:
            kind: of the request.
            content: of it.
            timeout_s: how long it may take.
            said: told what the device says before it answers: kind and content.

        Raises:
            LinkLostError: the link broke, or the time is over.
            RefusedError: the device answers something else than what was asked.
            EdgebertError: what the device refused, of the class that it has there.
        """
        self._request(kind, content, ())
        reply = self._wait(ANSWER, timeout_s, said)
        for note in self._checked(lambda: reply.fields.texts("notes")) if "notes" in reply.fields.value else ():
            _log.warning("on `%s`: %s", self.name, plain_text(note))
        return reply

    def push(self, objects: Sequence[SentObject]) -> int:
        """Send what the device does not have, from where an earlier push was cut off, and return the bytes that were sent.

        Raises:
            EdgebertError: the device cannot store it, or it arrives damaged twice.
        """
        unique = list({entry.sha256: entry for entry in objects}.values())
        waiting = [(entry, there) for entry, there in zip(unique, self._there(unique), strict=True)]
        return self._send_missing([(entry, there) for entry, there in waiting if there < entry.size or not entry.size])

    def _send_missing(self, missing: Sequence[tuple[SentObject, int]]) -> int:
        sent = 0
        total = sum(entry.size - there for entry, there in missing)
        with Progress(f"send to {self.name}, KiB", total >> 10) as progress:
            for group in _groups(missing):
                damaged = self._push_group(group)
                again = [(entry, 0) for entry, _ in group if entry.sha256 in damaged]
                size = sum(entry.size - there for entry, there in group)
                if again and self._push_group(again):
                    raise EdgebertError(f"what is sent to `{self.name}` arrives damaged", hint="run the command again")
                sent += size + sum(entry.size for entry, _ in again)
                progress.advance(size >> 10)
        return sent

    def _there(self, objects: Sequence[SentObject]) -> list[int]:
        found: list[int] = []
        for start in range(0, len(objects), _THERE_AT_ONCE):
            part = objects[start : start + _THERE_AT_ONCE]
            listed: list[JsonValue] = [{"sha256": entry.sha256, "size": entry.size} for entry in part]
            said = self.ask("there", {"objects": listed}, timeout_s=600.0).fields
            bytes_there = self._checked(partial(said.integers, "bytes"))
            if len(bytes_there) != len(part) or any(
                not 0 <= there <= entry.size for there, entry in zip(bytes_there, part, strict=False)
            ):
                raise RefusedError(f"`{self.name}` says that it has other objects than were asked for")
            found += bytes_there
        return found

    def _push_group(self, group: Sequence[tuple[SentObject, int]]) -> frozenset[str]:
        """Send some objects, and return the hashes of those that arrived damaged."""
        contents = []
        for entry, there in group:
            content = entry.read()
            if len(content) != entry.size:
                raise BadDataError("a file changed while it was sent", hint="run the command again")
            contents.append(content[there:])
        described: JsonObject = {
            "sizes": [entry.size for entry, _ in group],
            "offsets": [there for _, there in group],
        }
        blobs = [(entry.sha256, content) for (entry, _), content in zip(group, contents, strict=True)]
        self._request(PUSH, described, blobs)
        reply = self._wait(ANSWER, None)
        return frozenset(self._checked(lambda: reply.fields.texts("damaged")))

    def _checked(self, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except BadDataError as error:
            raise RefusedError(printable(error.what), expected=plain_text(error.expected)) from error

    # -- what this thread does

    def _request(self, kind: str, content: JsonObject, blobs: Sequence[tuple[str, bytes]]) -> None:
        if self._ended is not None:
            raise self._ended
        asyncio.run_coroutine_threadsafe(self._put(kind, content, blobs), self._loop).result()

    async def _put(self, kind: str, content: JsonObject, blobs: Sequence[tuple[str, bytes]]) -> None:
        assert self._outgoing is not None
        self._said += 1
        self._asked = self._said
        sizes = [(name, len(blob)) for name, blob in blobs]
        line = encode_frame(kind, nonce=self._nonce, number=self._said, content=content, blobs=sizes)
        await self._outgoing.put((line, *(blob for _, blob in blobs)))

    def _wait(
        self,
        kind: str,
        timeout_s: float | None,
        said: Callable[[str, Reply], None] | None = None,
        *,
        stops: bool = True,
    ) -> Reply:
        """Return the next frame of a kind; the session's own thread notices a link that fell silent."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if stops and self._stop.is_set():
                raise KeyboardInterrupt
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise LinkLostError(
                    f"`{self.name}` has not answered within {timeout_s:g} seconds", hint="run the same command again"
                )
            try:
                came = self._came.get(timeout=min(0.5, left) if left is not None else 0.5)
            except queue.Empty:
                continue
            if isinstance(came, EdgebertError):
                raise came
            reply = Reply(fields=came.fields, blobs=came.contents)
            if came.kind == ERROR:
                raise self._error(came)
            if came.kind == kind:
                return reply
            if said is None or came.kind == ANSWER:
                raise RefusedError(f"`{self.name}` says `{printable(came.kind)[:40]}`", expected=f"`{kind}`")
            said(came.kind, reply)

    def _error(self, frame: Frame) -> EdgebertError:
        said = frame.fields.value.get("error")
        code = said.get("exit_code") if isinstance(said, Mapping) else None
        return error_of(self.name, code if isinstance(code, int) else 1, said)

    def _close(self) -> None:
        """End the link, and the thread that reads it."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel)
        self._thread.join(30)

    def _cancel(self) -> None:
        self._closing = True
        if self._main is not None and not (self._leaving and self._ended is None and self._main.done()):
            self._main.cancel()

    # -- what the thread of the link does

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._supervised())
        finally:
            self._loop.close()

    async def _supervised(self) -> None:
        self._outgoing = asyncio.Queue()
        self._main = asyncio.ensure_future(self._talk())
        if self._closing:  # before it had begun
            self._main.cancel()
        try:
            await self._main
        except asyncio.CancelledError:
            self._end(LinkLostError(f"the session with `{self.name}` was closed"))
        except EdgebertError as error:
            self._end(error)
        except (OSError, EOFError) as error:
            self._end(LinkLostError(f"the link to `{self.name}` broke: {error}", hint="run the same command again"))
        else:
            self._end(LinkLostError(f"the session with `{self.name}` has ended"))

    def _end(self, error: EdgebertError) -> None:
        if self._ended is None:
            self._ended = error
            self._came.put(error)

    async def _talk(self) -> None:
        text = files("edgebert.remote").joinpath("bootstrap.py").read_bytes()
        given: JsonObject = {
            "nonce": self._nonce,
            "wheel": self._wheel.name,
            "sha256": self._wheel.sha256,
            "size": len(self._wheel.content),
            "silence_seconds": _DEVICE_SILENCE_SECONDS,
            "words": [],
            "files": {},
            "session": True,
            "keep_wheel": self._keep,
        }
        arguments = dump_json(given).replace("\n", "")
        python = self._transport.python
        command = [python, "-c", RUN_IT, base64.b64encode(text).decode("ascii"), arguments]
        async with self._transport.running(command, self._ssh) as remote:
            log = asyncio.ensure_future(remote.drain_log())
            try:
                await self._session(remote)
                await asyncio.wait_for(remote.process.wait_closed(), 10)
            except EdgebertError as error:
                self._end(error)  # whoever asked must not wait until the other side has left
                raise
            finally:
                log.cancel()

    async def _session(self, remote: RemoteCommand) -> None:
        hello = await self._in_time(remote.read_line(_HELLO_BYTES), _HELLO_SECONDS)
        if not hello:
            await self._ended_early(remote)
        fields = checked_answer(hello, name=self.name, nonce=self._nonce, max_bytes=_HELLO_BYTES)
        device = device_of_hello(fields, name=self.name)
        self._device = device
        check_device_is_usable(
            device,
            python=self._transport.python,
            ssh_arguments=self._transport.ssh_arguments(),
            backends=self._backends,
        )
        if fields.value.get("wheel") is not True:
            await self._write(remote, (self._wheel.content,))
        await self._put(READY, {"keep": self._keep, "only_looks": self._only_looks}, ())
        writer = asyncio.ensure_future(self._write_all(remote))
        reader = asyncio.ensure_future(self._read_all(remote))
        try:
            done, _ = await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if writer in done:
                await reader
        finally:
            for task in (writer, reader):
                task.cancel()

    async def _write_all(self, remote: RemoteCommand) -> None:
        assert self._outgoing is not None
        while (parts := await self._outgoing.get()) is not None:
            await self._write(remote, parts)

    async def _write(self, remote: RemoteCommand, parts: Sequence[bytes]) -> None:
        for part in parts:
            view = memoryview(part)
            for start in range(0, len(view), _CHUNK):
                piece = bytes(view[start : start + _CHUNK])
                try:
                    remote.process.stdin.write(piece)
                    await self._in_time(remote.process.stdin.drain(), _STUCK_SECONDS)
                except BrokenPipeError:  # it has ended; what it says, or does not say any more, tells why
                    await asyncio.sleep(self._silence)
                    return
                self.sent_bytes += len(piece)

    async def _in_time(self, work: Awaitable[_T], seconds: float) -> _T:
        try:
            return await asyncio.wait_for(work, seconds)
        except asyncio.TimeoutError as error:
            raise LinkLostError(
                f"`{self.name}` has said nothing for {seconds:g} seconds", hint="run the same command again"
            ) from error

    async def _read_all(self, remote: RemoteCommand) -> None:
        reading = _Reading(remote, self._silence, self.name)
        while True:
            line = await reading.line()
            if line is None:
                if self._leaving:
                    return
                await self._ended_early(remote)
            frame = await self._frame(reading, line)
            if frame.kind == PING:
                assert self._outgoing is not None
                self._said += 1
                await self._outgoing.put((encode_frame(PONG, nonce=self._nonce, number=self._said),))
                continue
            if not self._asked or frame.re != self._asked:
                raise RefusedError(f"`{self.name}` says something that was not asked for")
            if self._came.qsize() > _MAX_WAITING:
                raise RefusedError(f"`{self.name}` says more than can be taken")
            if frame.kind in (ANSWER, ERROR):
                self._asked = 0
            self._came.put(frame)

    async def _frame(self, reading: _Reading, line: bytes) -> Frame:
        self._heard += 1
        what = f"the answer of `{self.name}`"
        try:
            frame = frame_of_line(line, nonce=self._nonce, number=self._heard, what=what)
        except BadDataError as error:
            raise RefusedError(printable(error.what), expected=plain_text(error.expected)) from error
        size = sum(length for _, length in frame.blobs)
        self._received += len(line) + size
        if size > MAX_FRAME_BYTES or self._received > MAX_ANSWER_BYTES:
            raise RefusedError(f"`{self.name}` answers with more than {MAX_FRAME_BYTES:,} bytes")
        contents = {name: await reading.exactly(length) for name, length in frame.blobs}
        return replace(frame, contents=contents)

    async def _ended_early(self, remote: RemoteCommand) -> NoReturn:
        """Raise what the end of the device's process means."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(remote.process.wait_closed(), 5)
        ended = remote.process.exit_signal
        code = remote.process.exit_status if ended is None else None
        if code == 127 and self._device is None:
            raise UnavailableError(
                f"`{self.name}` has no `{self._transport.python}`",
                expected="Python 3.10 or newer",
                hint=on_device(self._transport.ssh_arguments(), "sudo apt-get install python3-venv")
                + ", or name one with `--python`",
            )
        if (ended is not None and ended[0] == "KILL") or code == 137:
            raise MemoryExhaustedError(
                f"the agent on `{self.name}` was killed (signal 9): the device ran out of memory",
                hint=on_device(self._transport.ssh_arguments(), "free -m"),
            )
        if code in (GIVEN_UP, None):
            raise LinkLostError(f"the link to `{self.name}` broke", hint="run the same command again")
        last = remote.last_words().splitlines()
        raise EdgebertError(
            f"the agent on `{self.name}` ended without an answer (exit code {code})",
            expected=last[-1][:500] if last else "one",
        )


class _Reading:
    """What a command says, line by line and in blobs; nothing is buffered beyond what is asked for and one chunk."""

    def __init__(self, remote: RemoteCommand, silence_seconds: float, name: str) -> None:
        self._remote, self._silence, self._name = remote, silence_seconds, name
        self._buffer = bytearray()

    async def line(self) -> bytes | None:
        """Return the next line, or None where the command has ended.

        Raises:
            RefusedError: it is too long.
            LinkLostError: nothing came for too long.
        """
        start = 0
        while (end := self._buffer.find(b"\n", start)) < 0:
            start = len(self._buffer)
            if start > MAX_LINE_BYTES:
                raise RefusedError(f"`{self._name}` answers with a line of more than {MAX_LINE_BYTES:,} bytes")
            if not await self._more():
                return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def exactly(self, length: int) -> bytes:
        """Return so many bytes.

        Raises:
            LinkLostError: the command ended before, or nothing came for too long.
        """
        while len(self._buffer) < length:
            if not await self._more():
                raise LinkLostError(f"the link to `{self._name}` broke", hint="run the same command again")
        content = bytes(self._buffer[:length])
        del self._buffer[:length]
        return content

    async def _more(self) -> bool:
        try:
            chunk = await asyncio.wait_for(self._remote.process.stdout.read(_CHUNK), self._silence)
        except asyncio.TimeoutError as error:
            raise LinkLostError(
                f"`{self._name}` has said nothing for {self._silence:g} seconds", hint="run the same command again"
            ) from error
        self._buffer += chunk
        return bool(chunk)


def _groups(missing: Sequence[tuple[SentObject, int]]) -> Iterator[list[tuple[SentObject, int]]]:
    """Yield objects in groups of at most `_PUSH_BYTES`, or of one."""
    group: list[tuple[SentObject, int]] = []
    size = 0
    for entry, there in missing:
        if group and (size + entry.size - there > _PUSH_BYTES or len(group) == _THERE_AT_ONCE):
            yield group
            group, size = [], 0
        group.append((entry, there))
        size += entry.size - there
    if group:
        yield group
