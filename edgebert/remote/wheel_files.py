"""Has the wheels of `edgebert.remote.wheel_pins` on this computer: from a folder that the user names, or through pip.

pip fetches them from the index that it is configured with, by name, version and SHA-256 of the table, into
`~/.cache/edgebert/device-wheels` (in `$XDG_CACHE_HOME`, where that is set). Nothing is installed here. Whatever a file comes from, its
SHA-256 is computed again each time before it is sent.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from edgebert._console import printable
from edgebert._files import read_input
from edgebert._progress import Progress
from edgebert.errors import CannotWriteError, InputNotFoundError, RefusedError, UnavailableError
from edgebert.remote.wheel_pins import PinnedWheel

_PIP_SECONDS = 900.0  # of one wheel, at most 18 MB
_fetching = threading.Lock()  # a fleet wants the same wheels at the same moment


def default_cache() -> Path:
    """Return where fetched wheels lie."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache") / "edgebert" / "device-wheels"


def wheel_files(wheels: Sequence[PinnedWheel], folder: Path | None, *, cache: Path | None = None) -> list[Path]:
    """Return the file of each wheel, which is what the table names.

    Args:
        wheels: lines of the table.
        folder: that has them; None to fetch those that the cache does not have.
        cache: of fetched wheels; `default_cache()` if None.

    Raises:
        InputNotFoundError: one is not in `folder`.
        RefusedError: one in `folder` is another than the table's.
        UnavailableError: pip cannot fetch one.
        CannotWriteError: the cache cannot be written.
    """
    if folder is not None:
        return [_given(wheel, folder, wheels) for wheel in wheels]
    cache = cache or default_cache()
    with _fetching:
        missing = [wheel for wheel in wheels if not _is(cache / wheel.file, wheel)]
        if missing:
            with Progress("fetch wheels", len(missing)) as progress:
                for wheel in missing:
                    _fetch(wheel, cache, missing)
                    progress.advance(1, wheel.name)
    return [cache / wheel.file for wheel in wheels]


def _given(wheel: PinnedWheel, folder: Path, wheels: Sequence[PinnedWheel]) -> Path:
    path = folder / wheel.file
    if not path.is_file():
        raise InputNotFoundError(
            f"`{folder}` has no `{wheel.file}`",
            expected=", ".join(f"`{each.file}`" for each in wheels),
            hint=_by_hand(wheels, str(folder)),
        )
    content = read_input(path, what="the wheel")
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != wheel.sha256:
        raise RefusedError(
            f"`{path}` has SHA-256 {sha256}",
            expected=f"{wheel.sha256}, {wheel.size:,} bytes",
            hint=_by_hand([wheel], str(folder)),
        )
    return path


def _fetch(wheel: PinnedWheel, cache: Path, wheels: Sequence[PinnedWheel]) -> None:
    """Fetch one wheel; it gets its name in the cache only after its hash was computed here as well."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".staging-", dir=cache) as name:
            staging = Path(name)
            (staging / "wanted.txt").write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
            said = _pip(wheel, staging)
            if not _is(staging / wheel.file, wheel):
                raise UnavailableError(
                    f"pip cannot fetch `{wheel.file}`: {said}",
                    expected="an index that has it, or the file in a folder: --device-wheels FOLDER",
                    hint=f"where there is internet: {_by_hand(wheels, 'wheels')}, then add --device-wheels wheels",
                )
            (staging / wheel.file).replace(cache / wheel.file)
    except OSError as error:
        raise CannotWriteError(
            f"cannot write `{cache}`: {error.strerror or error}", expected=f"room for {wheel.size:,} bytes"
        ) from error


def _pip(wheel: PinnedWheel, staging: Path) -> str:
    """Run pip, and return what it said last; whether the file has come is for the caller to see."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-cache-dir", "--retries=2", "--timeout=20", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--implementation=cp", f"--python-version={wheel.python}", f"--abi=cp{wheel.python.replace('.', '')}"]
    command += [f"--platform={platform}" for platform in wheel.platforms]
    command += ["--dest", str(staging), "--requirement", str(staging / "wanted.txt")]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=_PIP_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {_PIP_SECONDS:g} seconds"
    lines = [line for line in ran.stderr.splitlines() if line.strip() and not line.startswith("WARNING: Retrying")]
    return printable(lines[-1])[:300] if lines else f"it ended with exit code {ran.returncode}"


def _is(path: Path, wheel: PinnedWheel) -> bool:
    """Say whether a file is what the table names."""
    try:
        return path.stat().st_size == wheel.size and hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256
    except OSError:
        return False


def _by_hand(wheels: Sequence[PinnedWheel], folder: str) -> str:
    return " && ".join(wheel.download_command(folder) for wheel in wheels)
