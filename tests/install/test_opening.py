"""Opening what is installed: roll-backs by itself, loops of crashes, and computers where nothing can be written."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebert.bundle import read_bundle
from edgebert.errors import (
    BundleError,
    MemoryExhaustedError,
    NoSuchBundleError,
    RefusedBundleError,
    RefusedError,
    UnavailableError,
)
from edgebert.install import InstallOptions, attempts, install, open_installed, rollback, status
from edgebert.install.folder import open_folder
from edgebert.install.lock import locked_folder
from edgebert.runtime.classifier import Classifier

MakeBundle = Callable[..., Path]
LATER = InstallOptions(self_test="later")

# Opens an installation the way an application does, and dies while it loads every bundle whose name begins with `crash`.
_CRASHING = """
import os, sys
from pathlib import Path
from edgebert.bundle import read_bundle
from edgebert.install import open_installed

def open_one(path):
    bundle = read_bundle(path)
    if bundle.manifest.name.startswith("crash"):
        os._exit(99)
    return bundle.manifest.name

print(open_installed(Path(sys.argv[1]), open_one))
"""


def _start(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _CRASHING, str(path)], capture_output=True, text=True, check=False)


def _name(path: Path) -> str:
    return read_bundle(path).manifest.name


def _refuses(name: str) -> Callable[[Path], str]:
    """Return an `open_one` that refuses one bundle, as a failed self-test does."""

    def open_one(path: Path) -> str:
        if _name(path) == name:
            raise RefusedBundleError(f"`{name}` answers a canary otherwise")
        return _name(path)

    return open_one


@pytest.fixture
def dev(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    """An installation whose current bundle is `b` and whose previous one is `a`."""
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path / "dev", LATER)
    return tmp_path / "dev"


def _states(path: Path) -> tuple[str | None, str | None, list[tuple[str, str]]]:
    """Names of current and previous, and what is bad and how."""
    found = status(path)
    names = {entry.digest: entry.name for entry in (found.current, found.previous) if entry}
    return (
        found.current.name if found.current else None,
        found.previous.name if found.previous else None,
        [(names.get(entry.digest, "?"), entry.kind) for entry in found.bad],
    )


def test_open_installed_opens_the_current_bundle(dev: Path) -> None:
    with open_installed(dev, Classifier) as classifier:
        assert classifier.digest == (dev / "current").readlink().name


def test_open_installed_forgets_an_opening_that_ended_well(dev: Path) -> None:
    open_installed(dev, _name)
    assert list((dev / "attempts").iterdir()) == []


def test_open_installed_rolls_back_when_the_self_test_fails(dev: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert open_installed(dev, _refuses("b")) == "a"
    assert _states(dev) == ("a", "b", [("b", "self-test")])
    assert "rolled back to" in caplog.text
    assert "answers a canary otherwise" in caplog.text


def test_open_installed_does_not_pick_a_bad_bundle_again(dev: Path) -> None:
    open_installed(dev, _refuses("b"))
    assert open_installed(dev, _name) == "a"
    with pytest.raises(RefusedBundleError, match="marked bad"):
        rollback(dev)


def test_open_installed_rolls_back_from_a_damaged_copy_and_lets_it_be_installed_again(
    dev: Path, make_bundle: MakeBundle
) -> None:
    (dev / "current" / "model.onnx").write_bytes(b"rot")
    assert open_installed(dev, _name) == "a"
    assert _states(dev) == ("a", "b", [("b", "damaged")])
    install(make_bundle("b"), dev, LATER)
    assert _states(dev) == ("b", "a", [])


def test_open_installed_opens_the_previous_bundle_when_the_current_is_missing(dev: Path) -> None:
    subprocess.run(["rm", "-r", str((dev / "current").resolve())], check=True)
    assert open_installed(dev, _name) == "a"
    assert _states(dev)[0] == "a"


def test_open_installed_raises_what_the_last_one_raised_when_both_fail(dev: Path) -> None:
    def open_one(path: Path) -> str:
        raise RefusedBundleError(f"`{_name(path)}` is refused")

    with pytest.raises(RefusedBundleError, match="`a` is refused"):
        open_installed(dev, open_one)


def test_open_installed_tries_a_bad_bundle_when_there_is_no_other(
    make_bundle: MakeBundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(make_bundle("crash"), tmp_path, LATER)
    assert [_start(tmp_path).returncode for _ in range(4)] == [99] * 4
    assert open_installed(tmp_path, _name) == "crash"
    assert "there is no other one" in caplog.text
    assert status(tmp_path).crashes == 0


@pytest.mark.parametrize(
    "error", [UnavailableError("no backend"), MemoryExhaustedError("no memory"), KeyboardInterrupt(), OSError(5, "EIO")]
)
def test_open_installed_does_not_count_what_is_not_the_bundles_fault(error: BaseException, dev: Path) -> None:
    def open_one(_: Path) -> str:
        raise error

    for _ in range(attempts.MOST_CRASHES + 1):
        with pytest.raises(type(error)):
            open_installed(dev, open_one)
    assert _states(dev) == ("b", "a", [])
    assert status(dev).crashes == 0


def test_open_installed_rolls_back_after_three_crashes(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "crash"):
        install(make_bundle(name), tmp_path, LATER)
    ran = [_start(tmp_path) for _ in range(4)]
    assert [one.returncode for one in ran] == [99, 99, 99, 0]
    assert ran[3].stdout == "a\n"
    assert _states(tmp_path) == ("a", "crash", [("crash", "crashed")])


def test_open_installed_counts_crashes_in_a_row_only(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "crash"):
        install(make_bundle(name), tmp_path, LATER)
    for _ in range(2):
        _start(tmp_path)
        _start(tmp_path)
        assert status(tmp_path).crashes == 2
        assert open_installed(tmp_path, _name) == "crash"
    assert status(tmp_path).crashes == 0


def test_open_installed_does_not_take_openings_beside_it_for_crashes(dev: Path) -> None:
    opened: list[str] = []
    together = threading.Barrier(8, timeout=60)

    def open_one(path: Path) -> str:
        together.wait()
        return _name(path)

    threads = [threading.Thread(target=lambda: opened.append(open_installed(dev, open_one))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == ["b"] * 8
    assert list((dev / "attempts").iterdir()) == []


def test_open_installed_of_many_processes_rolls_back_once(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "crash"):
        install(make_bundle(name), tmp_path, LATER)
    for _ in range(3):
        _start(tmp_path)
    command = [sys.executable, "-c", _CRASHING, str(tmp_path)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(6)
    ]
    assert [process.communicate()[0] for process in started] == ["a\n"] * 6
    assert _states(tmp_path) == ("a", "crash", [("crash", "crashed")])


def test_open_installed_works_while_an_installation_is_under_way(
    make_bundle: MakeBundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "crash"):
        install(make_bundle(name), tmp_path, LATER)
    for _ in range(3):
        _start(tmp_path)
    with open_folder(tmp_path) as folder, locked_folder(folder):
        assert open_installed(tmp_path, _name) == "a"
    assert _states(tmp_path) == ("crash", "a", [])
    assert "for this process only" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_open_installed_works_for_a_user_who_may_not_write(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "crash"):
        install(make_bundle(name), tmp_path / "dev", LATER)
    dev = tmp_path / "dev"
    for _ in range(3):
        _start(dev)
    for parent in dev.parents:
        if parent.stat().st_mode & 0o077 == 0:  # pytest's own folders
            parent.chmod(0o755)
    # Another user may not read this computer's Python: everything is imported before.
    script = _CRASHING.replace("def open_one", "os.setuid(65534)\n\ndef open_one")
    ran = subprocess.run([sys.executable, "-c", script, str(dev)], capture_output=True, text=True, check=False)
    assert ran.stdout == "a\n", ran.stderr
    assert _states(dev) == ("crash", "a", [])


def test_open_installed_completes_what_a_killed_run_left(dev: Path) -> None:
    (dev / "bundles" / ".staging-x").mkdir()
    (dev / ".staging-current-7").symlink_to("bundles/x")
    assert open_installed(dev, _name) == "b"
    assert not (dev / "bundles" / ".staging-x").exists()
    assert not (dev / ".staging-current-7").is_symlink()


def test_open_installed_goes_on_when_the_bundle_is_replaced_meanwhile(dev: Path, make_bundle: MakeBundle) -> None:
    def open_one(path: Path) -> str:
        if _name(path) == "b":  # two installations while this one reads: `b` is removed
            for name in ("c", "d"):
                install(make_bundle(name), dev, LATER)
        return _name(path)

    assert open_installed(dev, open_one) == "d"
    assert status(dev).bad == ()


def test_open_installed_opens_with_a_damaged_state_and_says_so(dev: Path, caplog: pytest.LogCaptureFixture) -> None:
    (dev / "state.json").write_bytes(b"\0")
    assert open_installed(dev, _name) == "b"
    assert "state.json" in caplog.text


def test_open_installed_opens_the_previous_bundle_in_memory_with_a_damaged_state(dev: Path) -> None:
    (dev / "state.json").write_bytes(b"\0")
    assert open_installed(dev, _refuses("b")) == "a"


def test_open_installed_refuses_a_damaged_policy(dev: Path) -> None:
    (dev / "policy.json").write_bytes(b"{}")
    with pytest.raises(RefusedError, match="nobody knows whose bundles"):
        open_installed(dev, _name)


def test_open_installed_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoSuchBundleError):
        open_installed(tmp_path / "nowhere", _name)
    with pytest.raises(NoSuchBundleError, match="nothing is installed"):
        open_installed(tmp_path, _name)


def test_open_installed_does_without_the_folder_of_attempts(dev: Path) -> None:
    (dev / "attempts").rmdir()
    assert open_installed(dev, _name) == "b"


def test_attempts_of_removed_bundles_are_forgotten(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "crash"):
        install(make_bundle(name), tmp_path, LATER)
    _start(tmp_path)
    for name in ("c", "d"):
        install(make_bundle(name), tmp_path, LATER)
    assert list((tmp_path / "attempts").iterdir()) == []


def test_attempts_that_decide_nothing_more_are_forgotten(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("crash"), tmp_path, LATER)
    for _ in range(attempts.MOST_CRASHES + 2):
        _start(tmp_path)
    assert len(list((tmp_path / "attempts").iterdir())) <= attempts.MOST_CRASHES + 1


def test_clock_does_not_matter(dev: Path, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 0.0)
    for entry in dev.rglob("*"):
        os.utime(entry, (2e9, 2e9), follow_symlinks=False)
    install(make_bundle("c"), dev, LATER)
    assert open_installed(dev, _refuses("c")) == "b"


def test_first_opening_runs_the_self_test_of_a_bundle_that_was_installed_without(
    dev: Path, make_bundle: MakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    install(make_bundle("z", broken=True), dev, LATER)
    caplog.set_level(logging.WARNING)
    with open_installed(dev, Classifier) as classifier:
        assert classifier.digest == read_bundle(make_bundle("b")).digest


def test_errors_are_bundle_errors() -> None:
    assert issubclass(NoSuchBundleError, BundleError)
