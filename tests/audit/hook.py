"""The audit hook of the test suite: what a Python process runs, unpickles, connects to and writes, and whether it may.

Installed in pytest's process by `tests/conftest.py`, and in every Python process that a test starts by
`children/sitecustomize.py`: the parent's hook puts that folder, the log and the declared folders into the child's environment.
Standard library only, Python 3.10 and newer, and nothing is imported that start-up has not imported already, so that a child is
watched from before its first line and is none the slower for it.

The rules, by event (https://docs.python.org/3/library/audit_events.html):

* `exec` (which `eval` and imports raise too) and `function.__new__`: the code's file lies below a root of code: the standard
  library, site-packages, the checkout. Code without a file (`<string>`) is for modules of the table only.
* `marshal.loads`, where code objects come from: the import system, and pytest's cache of rewritten tests.
* `pickle.find_class`: modules of the table only; each talks with processes that it started itself.
* `cpython.run_file`, extension modules (`import` with a file), `ctypes.dlopen` and programs that are started: below a root of code
  or of the system.
* `socket.*`: the loopback and Unix sockets only, names that resolve to others included.
* `open` for writing, `os.rename`, `os.remove`, `os.mkdir` and their kin: below a declared folder.
* a Python process is started so that it carries this hook on; `os.system` never.

What breaks a rule and is on no line of `exceptions.py` is a violation. The hook stops nothing: it writes the violation into the log,
and the plugin fails the test. What native code does below Python (its own sockets, its own `dlopen`) raises no event;
`benchmarks/phones_home.py` watches the system calls for that.
"""

# pathlib takes longer to import than a whole child takes to start:
# ruff: noqa: PTH100, PTH110, PTH112, PTH115, PTH117, PTH118, PTH119, PTH120

from __future__ import annotations

import _thread
import os
import sys

TYPE_CHECKING = False  # `typing` is not imported at start-up either; type checkers take this name for theirs
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import CodeType, FrameType
    from typing import Any

    from tests.audit.exceptions import Exemption

LOG_VARIABLE = "EDGEBERT_TEST_AUDIT_LOG"
FOLDERS_VARIABLE = "EDGEBERT_TEST_AUDIT_FOLDERS"
CODE_VARIABLE = "EDGEBERT_TEST_AUDIT_CODE"
TEST_VARIABLE = "EDGEBERT_TEST_AUDIT_TEST"

HERE = os.path.dirname(os.path.abspath(__file__))
CHECKOUT = os.path.dirname(os.path.dirname(HERE))
CHILDREN = os.path.join(HERE, "children")

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64")  # programs and libraries that the computer came with
_DEVICES = ("/dev/null", "/dev/tty", "/dev/full", "/dev/shm", "/dev/pts", "/proc/self")


class Audit:
    """What one process did, judged as it happens.

    Attributes:
        counts: event -> how often it was seen, of the events that have a rule.
        started: Python processes that this one started.
    """

    def __init__(self, log: str, folders: Sequence[str], exemptions: Sequence[Exemption], test: str = "") -> None:
        self.log = log
        self._test = test  # of a child, from its start on
        self.exemptions = exemptions
        self.counts: dict[str, int] = {}
        self._folders = tuple(os.path.realpath(folder) for folder in folders)
        inherited = os.environ.get(CODE_VARIABLE, "").split(os.pathsep)  # another Python may be given our packages
        roots = {os.path.realpath(root) for root in (sys.prefix, sys.base_prefix, CHECKOUT, *inherited) if root}
        self._code = tuple(sorted(roots))
        self._busy: set[int] = set()  # threads inside the hook: what it does itself raises events too
        self._used: set[int] = set()
        self._told: set[tuple[str, ...]] = set()
        self._known_code: set[tuple[str, str]] = set()
        self._pid = os.getpid()
        self.folders_of_open: dict[int, int] = {}  # thread -> the `dir_fd` of the `os.open` that it is in
        self._rules: dict[str, Callable[[Any, FrameType | None], None]] = {
            "exec": self._on_code,
            "function.__new__": self._on_code,
            "marshal.loads": self._on_marshal,
            "pickle.find_class": self._on_pickle,
            "import": self._on_import,
            "ctypes.dlopen": self._on_library,
            "cpython.run_file": self._on_script,
            "cpython.run_startup": self._on_script,
            "socket.connect": self._on_address,
            "socket.bind": self._on_address,
            "socket.sendto": self._on_address,
            "socket.sendmsg": self._on_address,
            "socket.getaddrinfo": self._on_name,
            "socket.gethostbyname": self._on_name,
            "socket.gethostbyaddr": self._on_name,
            "open": self._on_open,
            "sqlite3.connect": self._on_database,
            "os.rename": self._on_two_paths,
            "os.link": self._on_two_paths,
            "os.symlink": self._on_symlink,
            **dict.fromkeys(("os.remove", "os.rmdir", "os.chmod", "os.chown", "os.utime"), self._on_path),
            **dict.fromkeys(("os.removexattr", "os.setxattr", "os.truncate"), self._on_plain_path),
            "os.mkdir": self._on_mkdir,
            "subprocess.Popen": self._on_popen,
            "os.posix_spawn": self._on_spawn,
            "os.exec": self._on_spawn,
            "os.system": self._on_shell,
        }

    def hook(self, event: str, arguments: Any) -> None:
        """Judge one event; what `sys.addaudithook` takes."""
        rule = self._rules.get(event)
        if rule is None:
            return
        thread = _thread.get_ident()
        if thread in self._busy:
            return
        self._busy.add(thread)
        try:
            self.counts[event] = self.counts.get(event, 0) + 1
            rule(arguments, sys._getframe().f_back)  # None before a child's first line
        finally:
            self._busy.discard(thread)

    # Code.

    def _on_code(self, arguments: Any, frame: FrameType | None) -> None:
        if (
            frame is None
        ):  # the program that a child was started with, its `-c` among them; `cpython.run_file` judges files
            return
        code: CodeType = arguments[0]
        file, by = code.co_filename, _module(frame)
        known = (file, by)
        if known in self._known_code:
            return
        # A relative name is one that somebody made up: the import system gives whole paths.
        if file.startswith("<frozen ") or (os.path.isabs(file) and self._is_code(file)):
            self._known_code.add(known)
            return
        allowed = self._judge("exec", file, by)
        if allowed is not None and not allowed.test:
            self._known_code.add(known)

    def _on_marshal(self, _: Any, frame: FrameType | None) -> None:
        if frame is not None and not frame.f_code.co_filename.startswith("<frozen "):
            self._judge("marshal.loads", "bytes", _module(frame))

    def _on_pickle(self, arguments: Any, frame: FrameType | None) -> None:
        module, name = arguments
        caller: FrameType | None = frame
        while caller is not None and _module(caller) in ("pickle", "_pickle", "_compat_pickle"):
            caller = caller.f_back
        self._judge("pickle.find_class", f"{module}.{name}", _module(caller))

    def _on_import(self, arguments: Any, frame: FrameType | None) -> None:
        file = arguments[1]
        if file is not None and not self._is_code(file):
            self._judge("import", _text(file), _importer(frame))

    def _on_library(self, arguments: Any, frame: FrameType | None) -> None:
        name = arguments[0]
        if name is not None and "/" in _text(name) and not self._is_program(_text(name)):
            self._judge("ctypes.dlopen", _text(name), _module(frame))

    def _on_script(self, arguments: Any, _: FrameType | None) -> None:
        if not self._is_code(_text(arguments[0])):
            self._judge("cpython.run_file", _text(arguments[0]), "")

    def _is_code(self, file: str) -> bool:
        return _below(os.path.realpath(file), self._code)

    def _is_program(self, file: str) -> bool:
        real = os.path.realpath(file)
        return _below(real, self._code) or _below(real, _SYSTEM)

    # Connections.

    def _on_address(self, arguments: Any, frame: FrameType | None) -> None:
        address = arguments[1]
        if isinstance(address, tuple) and not _is_loopback(address[0]):
            self._judge("socket", f"{address[0]}:{address[1]}", _module(frame))

    def _on_name(self, arguments: Any, frame: FrameType | None) -> None:
        host = arguments[0]
        if host and not _is_loopback(host):
            self._judge("socket", _text(host), _module(frame))

    # Writes.

    def _on_open(self, arguments: Any, frame: FrameType | None) -> None:
        path, _, flags = arguments
        if isinstance(path, (str, bytes)) and flags & _WRITES:
            base = _folder_of(self.folders_of_open.get(_thread.get_ident(), -1))
            self._write("open", os.path.realpath(os.path.join(base, _text(path))), frame)

    def _on_database(self, arguments: Any, frame: FrameType | None) -> None:
        if _text(arguments[0]) != ":memory:":
            self._write("open", os.path.realpath(_text(arguments[0])), frame)

    def _on_path(self, arguments: Any, frame: FrameType | None) -> None:
        self._change(arguments[0], arguments[-1], frame)

    def _on_plain_path(self, arguments: Any, frame: FrameType | None) -> None:
        self._change(arguments[0], -1, frame)

    def _on_mkdir(self, arguments: Any, frame: FrameType | None) -> None:
        path, _, folder = arguments
        if folder != -1 or not os.path.isdir(path):  # of one that is there, `exist_ok` expects the refusal
            self._change(path, folder, frame)

    def _on_symlink(self, arguments: Any, frame: FrameType | None) -> None:
        self._change(arguments[1], arguments[2], frame)

    def _on_two_paths(self, arguments: Any, frame: FrameType | None) -> None:
        source, target, source_folder, target_folder = arguments
        self._change(source, source_folder, frame)
        self._change(target, target_folder, frame)

    def _change(self, path: Any, folder: Any, frame: FrameType | None) -> None:
        """Judge a change of a name: links in front of it are followed, it itself is not."""
        if isinstance(path, int) or not path:  # an open file was judged when it was opened; an empty name is refused
            return
        head, tail = os.path.split(os.path.join(_folder_of(folder), _text(path)).rstrip("/") or "/")
        self._write("change", os.path.join(os.path.realpath(head or "."), tail), frame)

    def _write(self, event: str, real: str, frame: FrameType | None) -> None:
        if _below(real, self._folders) or _below(real, _DEVICES) or real.startswith(f"/proc/{os.getpid()}/"):
            return
        if "__pycache__" in real.split("/") and _below(real, self._code):  # compiled modules of those roots
            return
        self._judge("write", real, _module(frame, skip=_FILE_MODULES), detail=event)

    # Processes.

    def _on_popen(self, arguments: Any, frame: FrameType | None) -> None:
        executable, command, _, environment = arguments
        words = [command] if isinstance(command, (str, bytes, os.PathLike)) else list(command)
        target = os.environ if environment is None else environment
        self._start(executable or words[0], words, target, frame, carried=_carry_on(target, self))

    def _on_spawn(self, arguments: Any, frame: FrameType | None) -> None:
        path, command, environment = arguments  # the environment was copied before the event, so it must carry already
        if environment is None:  # of `os.execv`, and of Python 3.13's `posix_spawn`: the caller's own
            environment = os.environ
        carried = LOG_VARIABLE in environment and CHILDREN in _text(environment.get("PYTHONPATH", ""))
        self._start(path, list(command), environment, frame, carried=carried)

    def _on_shell(self, arguments: Any, frame: FrameType | None) -> None:
        self._judge("os.system", _text(arguments[0]), _module(frame))

    def _start(
        self, program: Any, command: Sequence[Any], environment: Any, frame: FrameType | None, *, carried: bool
    ) -> None:
        """Judge the start of a program: where it lies, and whether it carries the hook on if it is Python."""
        by = _module(frame, skip=_START_MODULES)
        name = _text(program)
        words = [_text(word) for word in command]
        place = _found(name, environment)
        if place and not self._is_program(place):
            self._judge("program", place, by)
        if os.path.basename(name).startswith("python") and (not carried or _ignores_environment(words[1:])):
            self._judge("uncovered", " ".join(words), by)

    # Verdicts.

    @property
    def test(self) -> str:
        """The test that runs now, or that started this child."""
        return self._test or os.environ.get("PYTEST_CURRENT_TEST", "")

    def _judge(self, event: str, what: str, by: str, detail: str = "") -> Exemption | None:
        """Write down what breaks a rule, unless the table has it; return the line that lets it pass."""
        test = self.test
        for index, exemption in enumerate(self.exemptions):
            if exemption.covers(event, what, by, test):
                if index not in self._used:
                    self._used.add(index)
                    self._note("used", str(index))
                return exemption
        line = (event + (f" ({detail})" if detail else ""), what, by, test)
        if line not in self._told:
            self._told.add(line)
            self.write("violation", *line)
        return None

    def write(self, kind: str, *fields: str) -> None:
        """Append one line to the log: the kind, the process, and the fields, separated by tabs."""
        line = "\t".join(ascii(field)[1:-1] for field in (kind, str(os.getpid()), *fields)) + "\n"
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def _note(self, kind: str, *fields: str) -> None:
        """Append a line whose loss is no harm: a process may have limited itself to files of no size."""
        try:
            self.write(kind, *fields)
        except OSError:
            return

    def finish(self) -> None:
        """Write the counts down; a process that is killed has none."""
        thread = _thread.get_ident()
        self._busy.add(thread)
        try:
            if os.getpid() == self._pid:
                self._note("counts", " ".join(f"{event}={count}" for event, count in sorted(self.counts.items())))
        finally:
            self._busy.discard(thread)


_START_MODULES = ("subprocess", "os")
_FILE_MODULES = (
    "pathlib",
    "pathlib._local",
    "pathlib._abc",
    "os",
    "shutil",
    "tempfile",
    "io",
    "_io",
    "codecs",
    "zipfile",
    __name__,
)


def install(log: str, folders: Sequence[str], exemptions: Sequence[Exemption], test: str = "") -> Audit:
    """Watch this process from now on; there is no way back."""
    audit = Audit(log, folders, exemptions, test)
    sys.addaudithook(audit.hook)
    _note_folders_of_open(audit)
    return audit


def _note_folders_of_open(audit: Audit) -> None:
    """Let `os.open` say which folder its path is relative to: the event that it raises leaves `dir_fd` out."""
    plain = os.open

    def noting_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is None:
            return plain(path, flags, mode)
        thread = _thread.get_ident()
        audit.folders_of_open[thread] = dir_fd
        try:
            return plain(path, flags, mode, dir_fd=dir_fd)
        finally:
            del audit.folders_of_open[thread]

    os.open = noting_open
    os.supports_dir_fd.add(noting_open)  # shutil and others look it up


def child_environment(log: str, folders: Sequence[str]) -> dict[str, str]:
    """Return the variables, PYTHONPATH apart, by which a child finds the log, the declared folders and our roots of code."""
    code = os.environ.get(CODE_VARIABLE) or os.pathsep.join((sys.prefix, sys.base_prefix))
    return {LOG_VARIABLE: log, FOLDERS_VARIABLE: os.pathsep.join(folders), CODE_VARIABLE: code}


def with_children_folder(python_path: str) -> str:
    """Return a PYTHONPATH that holds the folder of `sitecustomize.py`, at its end so that nothing of the child's is hidden."""
    parts = [part for part in python_path.split(os.pathsep) if part]
    return os.pathsep.join(parts if CHILDREN in parts else [*parts, CHILDREN])


def _carry_on(environment: Any, audit: Audit) -> bool:
    """Put what a child needs into the very mapping that `subprocess` is about to hand over."""
    if not hasattr(environment, "update"):
        return False
    if environment is not os.environ:
        environment[TEST_VARIABLE] = audit.test
    environment.update(child_environment(audit.log, audit._folders))
    environment["PYTHONPATH"] = with_children_folder(environment.get("PYTHONPATH", ""))
    return True


def _ignores_environment(words: Sequence[str]) -> bool:
    """Whether Python's options say to ignore PYTHONPATH (`-E`, `-I`) or `site` (`-S`)."""
    for word in words:
        if not word.startswith("-") or word.startswith("--") or word == "-":
            return False
        for letter in word[1:]:
            if letter in "EIS":
                return True
            if letter in "cmWX":
                break
        if word[1:2] in ("c", "m"):
            return False
    return False


def _found(program: str, environment: Any) -> str:
    """Return the file that a name means on the PATH, "" for none: the start will fail by itself."""
    if "/" in program:
        return program if os.path.exists(program) else ""
    path = environment.get("PATH", os.defpath)
    for folder in _text(path).split(os.pathsep):
        file = os.path.join(folder or ".", program)
        if os.access(file, os.X_OK):
            return file
    return ""


def _folder_of(descriptor: Any) -> str:
    """Return the folder that a `dir_fd` stands for, "" where there is none."""
    return os.readlink(f"/proc/self/fd/{descriptor}") if isinstance(descriptor, int) and descriptor >= 0 else ""


def _below(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(root + "/") for root in roots)


def _is_loopback(host: Any) -> bool:
    name = _text(host).lower()
    return name.startswith("127.") or name in ("", "localhost", "::1", "::ffff:127.0.0.1")


def _module(frame: FrameType | None, skip: Sequence[str] = ()) -> str:
    """Return the name of the module that a frame belongs to, or of the first one outside `skip` that called it."""
    while frame is not None and frame.f_globals.get("__name__") in skip:
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals.get("__name__", "?"))


def _importer(frame: FrameType | None) -> str:
    while frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return _module(frame)


def _text(path: Any) -> str:
    return os.fsdecode(path) if isinstance(path, (bytes, os.PathLike)) else str(path)
