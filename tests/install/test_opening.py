"""Opening what is installed: roll-backs by itself, loops of crashes, and computers where nothing can be written."""

from __future__ import annotations

import errno
import logging
import os
import shutil
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
    UnreadableBundleError,
    UnreadableError,
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


def _die(path: Path, times: int = attempts.MOST_CRASHES) -> None:
    """Let a bundle that is called `crash` take so many openings down, one after the other."""
    assert [_start(path).returncode for _ in range(times)] == [99] * times


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


def test_open_installed_changes_nothing_when_both_fail_and_raises_what_the_current_one_raised(dev: Path) -> None:
    def open_one(path: Path) -> str:
        raise RefusedBundleError(f"`{_name(path)}` is refused")

    before = (dev / "state.json").read_bytes()
    for _ in range(2):
        with pytest.raises(RefusedBundleError, match="`b` is refused"):
            open_installed(dev, open_one)
    assert _states(dev) == ("b", "a", [])
    assert (dev / "state.json").read_bytes() == before


def test_open_installed_goes_back_only_when_the_previous_bundle_was_opened(dev: Path) -> None:
    seen: list[str | None] = []

    def open_one(path: Path) -> str:
        seen.append(_states(dev)[0])
        return _refuses("b")(path)

    assert open_installed(dev, open_one) == "a"
    assert seen == ["b", "b"]
    assert _states(dev)[0] == "a"


def test_open_installed_tries_a_bad_bundle_when_there_is_no_other(
    make_bundle: MakeBundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(make_bundle("crash"), tmp_path, LATER)
    assert [_start(tmp_path).returncode for _ in range(4)] == [99] * 4
    assert open_installed(tmp_path, _name) == "crash"
    assert "although its process died 3 times in a row while it was opened: there is no other one" in caplog.text
    assert status(tmp_path).crashes == 0


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("no backend"),
        MemoryExhaustedError("no memory"),
        UnreadableBundleError("cannot be read"),
        KeyboardInterrupt(),
        OSError(5, "EIO"),
    ],
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


# What is not the bundle's fault.


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ENOMEM])
def test_open_installed_does_not_go_back_from_what_cannot_be_read(
    code: int, dev: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def failing(path: str | Path, *arguments: int, **named: int | None) -> int:
        if str(path).endswith("model.onnx"):
            raise OSError(code, os.strerror(code))
        return real(path, *arguments, **named)  # type: ignore[arg-type]  # as it was called

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        with pytest.raises((UnreadableBundleError, MemoryExhaustedError)):
            open_installed(dev, read_bundle)
    assert _states(dev) == ("b", "a", [])


def test_open_installed_does_not_go_back_when_memory_runs_out(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("edgebert.bundle._Folder.read", full)
        with pytest.raises(MemoryExhaustedError):
            open_installed(dev, read_bundle)
    assert _states(dev) == ("b", "a", [])


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function after which a file at the top cannot be read."""
    real = os.open

    def make(name: str) -> None:
        def failing(path: str | Path, *arguments: int, **named: int | None) -> int:
            if path == name:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(path, *arguments, **named)  # type: ignore[arg-type]  # as it was called

        monkeypatch.setattr(os, "open", failing)

    return make


def test_open_installed_opens_with_a_state_that_cannot_be_read(
    dev: Path, unreadable: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    unreadable("state.json")
    assert open_installed(dev, _name) == "b"
    assert "cannot read" in caplog.text


def test_open_installed_refuses_a_policy_that_cannot_be_read(dev: Path, unreadable: Callable[[str], None]) -> None:
    unreadable("policy.json")
    with pytest.raises(UnreadableError, match="nobody knows whose bundles") as caught:
        open_installed(dev, _name)
    assert caught.value.exit_code == 74


def test_status_notes_a_state_that_cannot_be_read(dev: Path, unreadable: Callable[[str], None]) -> None:
    unreadable("state.json")
    assert any("cannot read" in note for note in status(dev).notes)


# Rounds of openings.

# Opens as `_CRASHING` does, but says so and waits to be killed while it loads.
_HANGING = _CRASHING.replace("os._exit(99)", "print('loading', flush=True); sys.stdin.read()")


def _kill_together(path: Path, workers: int) -> None:
    """Let so many processes load side by side, and kill them all: a power cut, or the end of their container."""
    command = [sys.executable, "-c", _HANGING, str(path)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(workers)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
    for process in started:
        process.kill()
    for process in started:
        process.communicate()


def test_open_installed_counts_openings_that_died_together_as_one_crash(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    for name in ("a", "crash"):
        install(make_bundle(name), tmp_path, LATER)
    _kill_together(tmp_path, 4)
    assert status(tmp_path).crashes == 1
    assert open_installed(tmp_path, _name) == "crash"


def test_open_installed_goes_back_after_three_rounds_of_openings_that_died_together(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    for name in ("a", "crash"):
        install(make_bundle(name), tmp_path, LATER)
    for number in range(attempts.MOST_CRASHES):
        assert status(tmp_path).crashes == number
        _kill_together(tmp_path, 2)
    assert open_installed(tmp_path, _name) == "a"


def _note(path: Path, *ends: str) -> None:
    """Leave notes of openings of the current bundle that nobody holds."""
    for end in ends:
        (path / "attempts" / f"{(path / 'current').readlink().name}.{end}").touch()


def test_crashes_reads_notes_without_a_round_as_one_each(dev: Path) -> None:
    _note(dev, "12-aaaaaaaa", "13-bbbbbbbb")
    assert status(dev).crashes == 2
    _note(dev, "1.14-cccccccc", "1.15-dddddddd")
    assert status(dev).crashes == 3


def test_crashes_counts_on_when_old_rounds_were_forgotten(dev: Path) -> None:
    _note(dev, *(f"{number}.7-{number:08x}" for number in (8, 9, 10, 11)))
    with open_folder(dev) as folder:
        attempt = attempts.begin(folder, (dev / "current").readlink().name)
        assert attempt is not None
        names = sorted(entry.name.split(".")[1] for entry in (dev / "attempts").iterdir())
        attempt.end(well=False)
    assert names == ["10", "11", "12", "9"]
    assert status(dev).crashes == attempts.MOST_CRASHES


def test_begin_leaves_no_note_that_would_count_as_a_crash_when_it_cannot_be_synced(
    dev: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open_folder(dev) as folder, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        assert attempts.begin(folder, (dev / "current").readlink().name) is None
    assert list((dev / "attempts").iterdir()) == []


# Links that were lost.


def _as_copied_without_links(dev: Path) -> None:
    """Make of an installation what `scp -r` and `cp -rL` make of it."""
    for name in ("current", "previous"):
        target = (dev / name).resolve()
        (dev / name).unlink()
        shutil.copytree(target, dev / name)


def test_open_installed_refuses_a_copy_without_links_and_removes_nothing(dev: Path) -> None:
    _as_copied_without_links(dev)
    bundles = sorted((dev / "bundles").iterdir())
    with pytest.raises(BundleError, match=r"/current` is a folder and no link") as caught:
        open_installed(dev, _name)
    assert sorted((dev / "bundles").iterdir()) == bundles
    assert caught.value.hint is not None
    subprocess.run(caught.value.hint, shell=True, check=True)
    assert open_installed(dev, _name) == "b"


def test_open_installed_removes_nothing_when_the_links_are_gone_and_its_hint_mends_that(dev: Path) -> None:
    for name in ("current", "previous"):
        (dev / name).unlink()
    bundles = sorted((dev / "bundles").iterdir())
    with pytest.raises(NoSuchBundleError, match="/current` is missing, and bundles are installed") as caught:
        open_installed(dev, _name)
    assert sorted((dev / "bundles").iterdir()) == bundles
    assert caught.value.hint is not None
    subprocess.run(caught.value.hint, shell=True, check=True)
    assert open_installed(dev, _name) == "b"


def test_open_installed_refuses_a_link_that_leads_elsewhere_and_its_hint_mends_that(dev: Path) -> None:
    absolute = (dev / "current").resolve()
    (dev / "previous").unlink()
    (dev / "current").unlink()
    (dev / "current").symlink_to(absolute)
    with pytest.raises(BundleError, match="/current` is a link to `/") as caught:
        open_installed(dev, _name)
    assert caught.value.hint is not None
    subprocess.run(caught.value.hint, shell=True, check=True)
    assert open_installed(dev, _name) == "b"


def test_open_installed_opens_the_previous_bundle_when_current_is_lost_and_says_so(
    dev: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (dev / "current").unlink()
    assert open_installed(dev, _name) == "a"
    assert "/current` is missing" in caplog.text
    assert len(list((dev / "bundles").iterdir())) == 2


def test_status_says_what_is_wrong_with_the_links_and_how_to_mend_it(dev: Path) -> None:
    _as_copied_without_links(dev)
    found = status(dev)
    assert found.current is None
    assert len(found.notes) == 2
    assert all("is a folder and no link" in note and "ln -s bundles/" in note for note in found.notes)


def test_status_says_that_current_is_missing_and_how_to_mend_it(dev: Path) -> None:
    (dev / "current").unlink()
    assert any("current` is missing" in note and "ln -s bundles/" in note for note in status(dev).notes)


def test_open_installed_keeps_the_bundle_of_a_previous_that_is_no_link(dev: Path) -> None:
    target = (dev / "previous").resolve()
    (dev / "previous").unlink()
    shutil.copytree(target, dev / "previous")
    assert open_installed(dev, _name) == "b"
    assert target.is_dir()


# Names that are no text.


def test_open_installed_goes_back_in_a_folder_whose_name_is_no_text(
    make_bundle: MakeBundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dev = Path(os.fsdecode(os.fsencode(tmp_path) + b"/dev-\xff"))
    for name in ("a", "b"):
        install(make_bundle(name), dev, LATER)
    (dev / "current" / "model.onnx").write_bytes(b"rot")
    assert open_installed(dev, read_bundle).manifest.name == "a"
    assert _states(dev) == ("a", "b", [("b", "damaged")])
    assert "rolled back to" in caplog.text
