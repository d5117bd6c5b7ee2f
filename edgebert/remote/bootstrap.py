"""Runs on a device, sent as text with the command: what of edgebert starts there before edgebert is there.

It says what this Python has, keeps the device wheel, and hands over to the agent in it. The Python may be older than edgebert
takes, so that this is plain Python 3.6, and only its text is used on the host.

    stdout  one line, the hello: the nonce, this Python, the modules it has, whether the wheel is kept here already
    stdin   the wheel where it is not, then what the agent reads from its stdin, to the end
    stdout  one line, the end: the nonce, the agent's exit code and its answer

A session (`edgebert.remote.device_session`) takes stdin and stdout over after the wheel, for as long as the host is there. A wheel that
came for a session alone goes with it.
"""

import base64
import contextlib
import hashlib
import importlib.util
import io
import json
import os
import platform
import select
import shutil
import sys
import tempfile
import time
from pathlib import Path

MODULES = ("numpy", "PIL", "onnxruntime", "openvino", "tensorrt")
GIVEN_UP = 75  # the exit code of a link that broke
UNUSED_SECONDS = 30 * 86400.0  # after that a wheel of another version is removed
KILLED_SECONDS = 86400.0  # after that a half-written one is
TEMPORARY = "for-a-session"  # beside a wheel that goes with the session it came for


class PatientStdin(io.RawIOBase):
    """The standard input, given up where nothing comes for so long: a host that vanished must not leave a process here."""

    def __init__(self, silence_seconds: float) -> None:
        self._silence_seconds = silence_seconds

    def readable(self) -> bool:
        """Say so."""
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]  # older than collections.abc.Buffer
        """Read what is there, waiting for it."""
        if not select.select([0], [], [], self._silence_seconds)[0]:
            raise TimeoutError(f"nothing came from the host for {self._silence_seconds:g} seconds")
        content = os.read(0, len(buffer))
        buffer[: len(content)] = content
        return len(content)


def versions() -> "dict[str, str]":
    """Return module -> version of those that are here, "" where that is not known; none is imported."""
    found = {}
    for name in MODULES:
        if importlib.util.find_spec(name) is not None:
            try:
                from importlib.metadata import PackageNotFoundError, version
            except ImportError:  # Python 3.7 and older
                found[name] = ""
                continue
            try:
                found[name] = version("Pillow" if name == "PIL" else name)
            except PackageNotFoundError:  # a system package without metadata
                found[name] = ""
    return found


def is_kept(path: Path, sha256: str) -> bool:
    """Say whether the file is here with this content."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False


def received(sha256: str, size: int, stream: "io.BufferedIOBase") -> bytes:
    """Read the wheel."""
    content = stream.read(size)
    if len(content) != size:
        os._exit(GIVEN_UP)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise OSError("it arrived damaged")
    return content


def keep(path: Path, content: bytes) -> None:
    """Put the wheel where it belongs: whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".staging-", dir=str(path.parent))
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def tidy(place: Path, used: Path) -> None:
    """Remove wheels that nobody used for a month, and what a killed transfer left; what cannot be removed stays."""
    now = time.time()
    try:
        os.utime(str(used), None)
        for folder in filter(Path.is_dir, place.iterdir()):
            if (
                folder != used.parent
                and now - max(path.stat().st_mtime for path in [folder, *folder.iterdir()]) > UNUSED_SECONDS
            ):
                shutil.rmtree(str(folder), ignore_errors=True)
        for path in used.parent.glob(".staging-*"):
            if now - path.stat().st_mtime > KILLED_SECONDS:
                path.unlink()
    except OSError:
        return


def say(**fields: object) -> None:
    """Write one line of JSON."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def run_agent(words: "list[str]") -> "tuple[int, object]":
    """Return the agent's exit code, and its answer, or None where that is no JSON."""
    from edgebert.agent import main

    stdout, sys.stdout = sys.stdout, io.StringIO()
    try:
        code = main(words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    said, sys.stdout = sys.stdout.getvalue(), stdout
    try:
        return code or 0, json.loads(said)
    except ValueError:
        return code or 0, None


def run_session(nonce: str, stdin: "io.BufferedReader[PatientStdin]", path: Path, keep_wheel: bool) -> int:
    """Serve a session and return the exit code; a wheel that no installation has asked for goes, unless it is to stay."""
    from edgebert.remote.device_session import serve

    code = serve(nonce, stdin)
    temporary = path.parent / TEMPORARY
    if temporary.exists() and code != GIVEN_UP:
        temporary.unlink()
        if not keep_wheel:
            path.unlink()
            for folder in (path.parent, path.parent.parent):
                try:
                    folder.rmdir()
                except OSError:
                    break
    return code


def bootstrap(
    nonce: str,
    wheel: str,
    sha256: str,
    size: int,
    silence_seconds: float,
    words: "list[str]",
    files: "dict[str, str]",
    session: bool = False,
    keep_wheel: bool = True,
) -> None:
    """Say hello, keep the wheel, run the agent, say the end.

    Args:
        nonce: said in every answer.
        wheel: file name of the device wheel.
        sha256: of its content.
        size: of its content, in bytes.
        silence_seconds: how long nothing may come from the host.
        words: arguments of the agent; `~/` and `--to=~/` are in the home folder, and `--NAME={NAME}` stands for one of the files.
        files: name -> content in base64, for the agent to read.
        session: serve a session instead of running the agent.
        keep_wheel: leave a wheel that came for a session.
    """
    place = Path.home() / ".cache" / "edgebert"
    path = place / sha256 / wheel
    kept = is_kept(path, sha256)
    say(
        nonce=nonce,
        python=list(sys.version_info[:3]),
        executable=sys.executable or "python3",
        machine=platform.machine(),
        modules=versions(),
        wheel=kept,
    )
    stdin = io.BufferedReader(PatientStdin(silence_seconds))
    with contextlib.ExitStack() as stack:
        try:
            if not kept:
                content = received(sha256, size, stdin)
                try:
                    keep(path, content)
                except (
                    OSError
                ):  # a home folder that is read-only, full or not there: for this call the wheel lies elsewhere
                    path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgebert-"))) / wheel
                    keep(path, content)
            if files:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgebert-"))
                for name, text in files.items():
                    (Path(folder) / name).write_bytes(base64.b64decode(text))
                    words = [f"--{name}={folder}/{name}" if word == f"--{name}={{{name}}}" else word for word in words]
        except OSError as error:
            refused = {
                "exit_code": 74,
                "what": f"the agent finds no folder to write to: {error.strerror or error}",
                "expected": f"a few MiB in `{place}`, or in a folder for temporary files",
                "hint": "df -h ~ /tmp",
            }
            say(nonce=nonce, exit_code=74, answer={"error": refused})
            return
        sys.path.insert(0, str(path))
        os.environ["PYTHONPATH"] = str(path)  # for what the agent starts
        if session:
            if not kept:
                (path.parent / TEMPORARY).touch()
            code = run_session(nonce, stdin, path, keep_wheel)
            stack.close()
            os._exit(code)  # a thread still waits for the host
        with contextlib.suppress(OSError):  # it came for a session that runs, or was cut off: now somebody else uses it
            (path.parent / TEMPORARY).unlink()
        sys.stdin = io.TextIOWrapper(stdin)
        home = str(Path.home())
        code, answer = run_agent(
            [word.replace("~", home, 1) if word.startswith(("~/", "--to=~/")) else word for word in words]
        )
        tidy(place, path)
    say(nonce=nonce, exit_code=code, answer=answer)


if __name__ == "__main__":
    bootstrap(**json.loads(sys.argv[-1]))
