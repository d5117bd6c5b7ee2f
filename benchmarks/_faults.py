"""Faults at chosen system calls of a writer: death, a full disk, an I/O error, and what must hold afterwards.

A writer is a function that writes into a folder, with everything that it writes prepared before. Each trial forks a child of the
process that prepared it, attaches strace to the child, and only then lets it go: so strace counts the calls of the writing phase
alone, and `when=K` is the K-th of them. One undisturbed trial lists the calls; then each is one point of the sweep. A child killed
on entry of a call has not done it, so that the calls of the list are all the moments at which it can have died.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edgebert.errors import EdgebertError

# Every call that can change what lies on a disk; `?` lets strace pass over those that an architecture lacks. An openat that only
# reads and its close are among them: more points than needed, and the errors of opening are wanted.
CALLS = [
    "open",
    "creat",
    "openat",
    "openat2",
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "copy_file_range",
    "sendfile",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "syncfs",
    "rename",
    "renameat",
    "renameat2",
    "symlink",
    "symlinkat",
    "link",
    "linkat",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "unlink",
    "unlinkat",
    "rmdir",
    "close",
    "chmod",
    "fchmod",
    "fchmodat",
    "chown",
    "fchown",
    "fchownat",
    "lchown",
    "truncate",
    "ftruncate",
    "fallocate",
    "utimensat",
    "flock",
    "msync",
    "setxattr",
    "fsetxattr",
]
_TRACE = "trace=" + ",".join(f"?{call}" for call in CALLS)
_LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)$")
_PR_SET_PTRACER = 0x59616D61  # linux/prctl.h: lets strace attach where only descendants may be traced

Work = Callable[[], object]


def why_not_here() -> str | None:
    """Return why no fault can be injected on this computer, or None."""
    if platform.system() != "Linux":
        return "strace is Linux's"
    if shutil.which("strace") is None:
        return "strace is not installed"
    with tempfile.TemporaryDirectory() as folder:
        try:
            traced(lambda: Path(folder, "x").write_bytes(b"x"), log=Path(folder, "log"))
        except TracingError as error:
            return f"strace cannot attach: {error}"
    return None


class TracingError(Exception):
    """Strace could not do its part; nothing is known of the writer."""


@dataclass(frozen=True, slots=True)
class Point:
    """One system call of a writing phase.

    Attributes:
        call: its name.
        number: it is the number-th of that name, from 1.
        said: its arguments, as strace prints them.
    """

    call: str
    number: int
    said: str = ""

    def with_fault(self, fault: str) -> str:
        """Return what `strace -e` takes, such as `inject=fsync:signal=SIGKILL:when=3`."""
        return f"inject={self.call}:{fault}:when={self.number}"

    def __str__(self) -> str:
        return f"{self.call} {self.number} ({self.said:.100})"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: its exit code, or minus the signal that killed it, and what it said last."""

    code: int
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A writer with what lies there before it.

    Attributes:
        name: for the report.
        lay: makes the old state in an empty folder.
        write: the command from its first check to its end, in that folder; raises `EdgebertError`.
        finals: the names below the folder whose contents are promised.
        content_of: what a final name holds, comparable between runs; None where there is nothing.
        always: injections that stand for the computer, such as a file system without the exchange of names.
    """

    name: str
    lay: Callable[[Path], None]
    write: Callable[[Path], object]
    finals: tuple[str, ...]
    content_of: Callable[[Path], object] = field(default_factory=lambda: content_of)
    always: tuple[str, ...] = ()
    again: Callable[[Path], object] | None = None  # the next call, where the same command would undo itself
    may_be_missing: bool = (
        False  # between two renames, where the file system cannot exchange names; the next call mends it
    )


@dataclass(slots=True)
class Tally:
    """What the points of a sweep came to."""

    points: int = 0
    hit: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    torn: list[str] = field(default_factory=list)
    wrong_exit: list[str] = field(default_factory=list)
    failed_next: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """All that must not be."""
        return [*self.torn, *self.wrong_exit, *self.failed_next]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Tally:
        """Read what `to_json` wrote."""
        return cls(**{**value, "ended": Counter(value["ended"])})

    def add(self, other: Tally) -> None:
        """Add another sweep's."""
        self.points += other.points
        self.hit += other.hit
        self.ended.update(other.ended)
        self.missing += other.missing
        self.torn += other.torn
        self.wrong_exit += other.wrong_exit
        self.failed_next += other.failed_next


def scratch(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """Return a scratch folder in memory where there is one, with the locks of its writers inside."""
    memory = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(prefix=prefix, dir=memory if os.access(memory, os.W_OK) else None)
    tempfile.tempdir = folder.name
    return folder


def in_child(work: Work, *, kill_after: float | None = None) -> Ended:
    """Run `work` in a forked child as the command line would run it, and return how it ended.

    Args:
        work: the writer.
        kill_after: seconds after which it is killed.
    """
    with started(work) as child:
        child.go()
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child.pid, signal.SIGKILL)
        return child.wait()


def traced(work: Work, *, inject: Sequence[str] = (), log: Path | None = None) -> Ended:
    """Run `work` in a forked child under strace.

    Args:
        work: the writer.
        inject: what `strace -e` takes.
        log: where strace writes each call; None for nowhere.

    Raises:
        TracingError: strace did not attach.
    """
    with started(work) as child:
        options = [word for each in (_TRACE, *inject) for word in ("-e", each)]
        command = ["strace", "-f", "-p", str(child.pid), "-s", "0", "-o", str(log or os.devnull), *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr is not None
            line = tracer.stderr.readline()
            if "attached" not in line:
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
                raise TracingError(line.strip() + tracer.stderr.read().strip())
            child.go()
            ended = child.wait()
            tracer.stderr.read()
        return ended


def points_of(scenario: Scenario, folder: Path) -> list[Point]:
    """Return every call of a scenario's writing phase."""
    log = folder / "calls"
    with laid(scenario, folder) as place:
        ended = traced(lambda: scenario.write(place), inject=scenario.always, log=log)
    if ended.code != 0:
        raise AssertionError(f"{scenario.name}, undisturbed, ended with {ended.code}: {ended.said}")
    counts: Counter[str] = Counter()
    points = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if match := _LINE.match(line):
            counts[match[1]] += 1
            points.append(Point(match[1], counts[match[1]], match[2].replace(str(folder), "")))
    return points


@contextlib.contextmanager
def laid(scenario: Scenario, folder: Path, *, inside: Path | None = None) -> Iterator[Path]:
    """Yield a fresh folder with a scenario's old state, `inside` or one in `folder`; it is gone afterwards."""
    template, place = folder / "template" / scenario.name.replace(" ", "-"), inside or folder / "place"
    if not template.exists():
        template.mkdir(parents=True)
        scenario.lay(template)
    shutil.copytree(template, place, symlinks=True)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def content_of(path: Path) -> object:
    """Return what a name holds: a hash of a file, a folder's names and their contents, a link's target; None for nothing."""
    if path.is_symlink():
        return ("link", path.readlink().as_posix())
    if path.is_dir():
        return {entry.name: content_of(entry) for entry in sorted(path.iterdir())}
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


class Sweep:
    """The points of one scenario: put a fault at each, and see what is left and what the next call makes of it."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self._folder = folder
        with laid(scenario, folder) as place:
            self._old = self._contents(place)
        with laid(scenario, folder) as place:
            ended = in_child(lambda: scenario.write(place))
            assert ended.code == 0, f"{scenario.name}: {ended}"
            self._new = self._contents(place)
            self._names = _names(place)
        changed = [self._old[name] != self._new[name] for name in scenario.finals]
        assert all(changed), f"{scenario.name}: the new content is the old one, which would show nothing"
        self.points = points_of(scenario, folder)

    def kills(self, points: Sequence[Point], *, signal_name: str = "SIGKILL", twice: bool = False) -> Tally:
        """Kill the writer at each point; with `twice` the next call is killed as well, at some point of its own."""
        tally = Tally()
        for place_in_list, point in enumerate(points):
            second = self.points[(place_in_list * 7919 + 13) % len(self.points)] if twice else None
            inject = point.with_fault(f"signal={signal_name}")
            self._trial(tally, str(point), inject, None if second is None else second.with_fault("signal=SIGKILL"))
        return tally

    def errors(self, points: Sequence[Point], error: str) -> Tally:
        """Let the call of each point fail with an error such as ENOSPC."""
        tally = Tally()
        for point in points:
            self._trial(tally, f"{error} at {point}", point.with_fault(f"error={error}"), None)
        return tally

    def limits(self, sizes: Sequence[int]) -> Tally:
        """Let no file grow beyond each of some sizes (RLIMIT_FSIZE)."""
        tally = Tally()
        for size in sizes:

            def limited(place: Path, size: int = size) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
                self.scenario.write(place)

            with laid(self.scenario, self._folder) as place:
                self.judge(tally, f"no file above {size} bytes", in_child(lambda: limited(place)), place)
        return tally

    def _trial(self, tally: Tally, what: str, inject: str, inject_next: str | None) -> None:
        with laid(self.scenario, self._folder) as place:
            always = [each for each in self.scenario.always if each.split(":")[0] != inject.split(":")[0]]
            ended = traced(lambda: self.scenario.write(place), inject=[*always, inject])
            if inject_next is not None:
                if self._states(place)[1] and not self.scenario.may_be_missing:
                    tally.torn.append(f"{self.scenario.name}, {what}")
                again = self.scenario.again or self.scenario.write
                ended = traced(lambda: again(place), inject=[*self.scenario.always, inject_next])
            self.judge(tally, what, ended, place)

    def judge(self, tally: Tally, what: str, ended: Ended, place: Path) -> None:
        """Count one trial: what the final names hold, how that fits the exit code, and what the next call does."""
        what = f"{self.scenario.name}, {what}"
        tally.points += 1
        tally.hit += ended.code != 0
        tally.ended[str(ended.code)] += 1
        states, torn = self._states(place)
        if torn and self.scenario.may_be_missing and not any((place / name).exists() for name in torn):
            tally.missing += 1
        elif torn:
            tally.torn.append(f"{what}: {torn} neither old nor new")
        problem = self._wrong_exit(ended, states)
        if problem:
            tally.wrong_exit.append(f"{what}: {problem}")
        problem = self._next_call(place)
        if problem:
            tally.failed_next.append(f"{what}: {problem}")

    def _wrong_exit(self, ended: Ended, states: set[str]) -> str | None:
        """Return what is wrong with an exit code: 0 only with everything new, 74 only with everything old."""
        if ended.code < 0:
            return None if ended.code == -signal.SIGKILL else f"died of signal {-ended.code}"
        if ended.code == 0:
            return None if states <= {"new"} else f"exit 0, but {sorted(states)}"
        if ended.code == 130:
            return None
        if ended.code != 74:
            return f"exit {ended.code}: {ended.said[-600:]}"
        if not any(Path(name).name in ended.said for name in self.scenario.finals):
            return f"the message names no output: {ended.said[-300:]}"
        if "--force" in ended.said:  # of a second call after a complete first one
            return None
        return None if states <= {"old"} else f"exit 74, but {sorted(states)}: {ended.said[-300:]}"

    def _next_call(self, place: Path) -> str | None:
        """Return what is wrong after the same command was called again, undisturbed."""
        again = self.scenario.again or self.scenario.write
        ended = traced(lambda: again(place), inject=self.scenario.always) if self.scenario.always else None
        ended = ended or in_child(lambda: again(place))
        states, torn = self._states(place)
        # Without --force an output that is complete is refused, which is what a second call always gets.
        done = ended.code == 0 or (ended.code == 74 and "--force" in ended.said)
        if not done or torn or states != {"new"}:
            return f"the next call ended with {ended.code}, {sorted(states)}, torn {torn}: {ended.said[-300:]}"
        left = sorted(set(_names(place)) - set(self._names))
        return f"the next call left {left}" if left else None

    def _contents(self, place: Path) -> dict[str, object]:
        return {name: self.scenario.content_of(place / name) for name in self.scenario.finals}

    def _states(self, place: Path) -> tuple[set[str], list[str]]:
        """Return the states of the final names, old or new, and those names that hold neither."""
        states, torn = set(), []
        for name, content in self._contents(place).items():
            if content == self._new[name]:
                states.add("new")
            elif content == self._old[name]:
                states.add("old")
            else:
                torn.append(name)
        return states, torn


def _names(place: Path) -> list[str]:
    """Return every name below a folder but those of its complete sub-folders, which are compared by content."""
    return sorted(entry.relative_to(place).as_posix() for entry in place.rglob("*"))


@dataclass(slots=True)
class Child:
    """A forked child that waits until it is let go."""

    pid: int
    _go: int
    _output: int
    _ended: Ended | None = None

    def go(self) -> None:
        """Let it begin."""
        os.write(self._go, b"g")  # closing is not enough: another child may have inherited it
        os.close(self._go)

    def poll(self) -> Ended | None:
        """Return how it ended, or None while it runs."""
        if self._ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._end(status)
        return self._ended

    def wait(self) -> Ended:
        """Return how it ended, once it has."""
        if self._ended is None:
            self._end(os.waitpid(self.pid, 0)[1])
        assert self._ended is not None
        return self._ended

    def _end(self, status: int) -> None:
        said = b""
        while part := os.read(self._output, 1 << 16):
            said += part
        self._ended = Ended(os.waitstatus_to_exitcode(status), said.decode(errors="replace"))


@contextlib.contextmanager
def started(work: Work) -> Iterator[Child]:
    """Yield a forked child that will run `work`; it must have ended at the end."""
    sys.stdout.flush()
    sys.stderr.flush()
    wait, go = os.pipe()
    output, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go)
            os.close(output)
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1 & 0xFFFFFFFFFFFFFFFF), 0, 0, 0)
            os.write(said, b"r")  # ready: strace, which counts from its attachment, may come
            os.read(wait, 1)
            _run(work, said)
        finally:  # an interruption after the work: a child never goes on in its parent's code
            os._exit(130)
    os.close(wait)
    os.close(said)
    os.read(output, 1)
    try:
        yield Child(pid, go, output)
    finally:
        os.close(output)


def _run(work: Work, said: int) -> None:
    """Do what the command line does with errors, and end the process."""
    code, message = 0, ""
    try:
        work()
    except EdgebertError as error:
        code, message = error.exit_code, str(error)
    except KeyboardInterrupt:
        code = 130
    except BaseException:  # noqa: BLE001  # a fault of ours, which the sweep counts
        code, message = 1, traceback.format_exc()
    if message:
        os.write(said, message.encode()[-4000:])
    os._exit(code)
