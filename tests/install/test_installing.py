"""Installing: the layout, what stays when it fails, the order of releases, and folders that are not ours."""

from __future__ import annotations

import errno
import io
import itertools
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgebert.archive import write_archive
from edgebert.bundle import read_bundle
from edgebert.errors import (
    BadDataError,
    BundleError,
    CannotWriteError,
    EdgebertError,
    LockedError,
    NoSuchBundleError,
    RefusedBundleError,
    RefusedError,
    UnavailableError,
    UnreadableBundleError,
    UnreadableError,
    UsageError,
)
from edgebert.install import (
    InstallOptions,
    InstallReport,
    attempts,
    install,
    installing,
    is_installation,
    open_installed,
    rollback,
    status,
    write_phase,
)
from edgebert.install.folder import Folder, open_folder
from edgebert.install.lock import locked_folder
from edgebert.install.state import MOST_REMEMBERED, Bad, Installed, State, Switch, read_state, write_state

MakeBundle = Callable[..., Path]
LATER = InstallOptions(self_test="later")


def _snapshot(path: Path) -> Mapping[str, tuple[object, int]]:
    """Everything below a folder but the lock: contents, link targets, and when each was last written."""
    return {
        str(entry.relative_to(path)): (
            str(entry.readlink()) if entry.is_symlink() else entry.read_bytes() if entry.is_file() else "",
            entry.lstat().st_mtime_ns,
        )
        for entry in path.rglob("*")
        if entry.name != ".lock"
    }


def _contents(path: Path) -> Mapping[str, object]:
    return {name: entry[0] for name, entry in _snapshot(path).items()}


def _current(path: Path) -> str:
    return (path / "current").readlink().name


def _digest(bundle: Path) -> str:
    return read_bundle(bundle).digest


def _leftovers(path: Path) -> list[str]:
    return [entry.name for folder in (path, path / "bundles") for entry in folder.iterdir() if "staging" in entry.name]


def test_install_makes_the_layout(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle("a")
    install(bundle, tmp_path / "deep" / "dev", LATER)
    dev = tmp_path / "deep" / "dev"
    assert (dev / "current").readlink() == Path("bundles") / _digest(bundle)
    assert {entry.name for entry in dev.iterdir()} == {".lock", "attempts", "bundles", "current", "state.json"}
    assert read_bundle(dev / "current").files == read_bundle(bundle).files


def test_install_runs_the_self_test_and_says_what_answered(make_bundle: MakeBundle, tmp_path: Path) -> None:
    report = install(make_bundle("a"), tmp_path)
    assert report.self_test == "`cpu` answers all 4 canaries in onnxruntime"
    assert "self-test: `cpu` answers" in report.to_text()


def test_install_tests_the_form_that_was_named(make_bundle: MakeBundle, tmp_path: Path) -> None:
    report = install(make_bundle("a"), tmp_path, InstallOptions(target="intel-cpu"))
    assert report.self_test == "`intel-cpu` answers all 4 canaries in openvino"


def test_install_keeps_the_previous_bundle_and_removes_the_one_before(make_bundle: MakeBundle, tmp_path: Path) -> None:
    digests = [_digest(make_bundle(name)) for name in ("a", "b", "c")]
    reports = [install(make_bundle(name), tmp_path, LATER) for name in ("a", "b", "c")]
    assert [report.previous for report in reports] == [None, digests[0], digests[1]]
    assert reports[2].removed == (digests[0],)
    assert {entry.name for entry in (tmp_path / "bundles").iterdir()} == {digests[1], digests[2]}


def _crash(path: Path, times: int = attempts.MOST_CRASHES) -> None:
    """Leave what as many openings of the current bundle leave whose process died, one after the other."""
    for number in range(times):
        (path / "attempts" / f"{_current(path)}.{number + 1}.7-{number:08x}").touch()


def _fails(digest: str) -> Callable[[Path], str]:
    """Return what opens any bundle but this one, and returns its name."""

    def open_one(path: Path) -> str:
        bundle = read_bundle(path)
        if bundle.digest == digest:
            raise RefusedBundleError("it answers a canary otherwise")
        return bundle.manifest.name

    return open_one


def test_install_keeps_the_last_good_bundle_when_the_current_one_crashes(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    crashing = _current(tmp_path)
    _crash(tmp_path)
    report = install(make_bundle("c"), tmp_path, LATER)
    assert (report.previous, report.removed) == (_digest(make_bundle("a")), (crashing,))
    assert [(entry.digest, entry.kind) for entry in status(tmp_path).bad] == [(crashing, "crashed")]
    assert open_installed(tmp_path, _fails(_digest(make_bundle("c")))) == "a"


def test_install_keeps_the_current_bundle_that_crashed_less_often(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    _crash(tmp_path, attempts.MOST_CRASHES - 1)
    assert install(make_bundle("c"), tmp_path, LATER).previous == _digest(make_bundle("b"))
    assert status(tmp_path).bad == ()


def test_install_keeps_the_last_good_bundle_when_the_copy_of_the_current_one_is_damaged(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    (tmp_path / "current" / "model.onnx").write_bytes(b"rot")
    assert install(make_bundle("c"), tmp_path, LATER).previous == _digest(make_bundle("a"))
    assert [entry.kind for entry in status(tmp_path).bad] == ["damaged"]
    assert open_installed(tmp_path, _fails(_digest(make_bundle("c")))) == "a"


def test_install_keeps_the_last_good_bundle_when_the_current_one_is_marked_bad(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    _mark_bad(tmp_path, _digest(make_bundle("b")))
    assert install(make_bundle("c"), tmp_path, LATER).previous == _digest(make_bundle("a"))


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function after which no file below a name can be read."""
    real = os.open

    def make(name: str) -> None:
        def failing(path: str | Path, *arguments: int, **named: int | None) -> int:
            if name in str(path):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(path, *arguments, **named)  # type: ignore[arg-type]  # as it was called

        monkeypatch.setattr(os, "open", failing)

    return make


def test_install_refuses_where_either_of_two_bundles_may_be_the_last_good_one(
    make_bundle: MakeBundle, tmp_path: Path, unreadable: Callable[[str], None]
) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    before = _contents(tmp_path)
    unreadable(f"{_current(tmp_path)}/model.onnx")
    with pytest.raises(UnreadableBundleError, match="Input/output error") as caught:
        install(make_bundle("c"), tmp_path, LATER)
    assert _contents(tmp_path) == before
    assert caught.value.hint == f"edgebert rollback {tmp_path} first, where its disk has lost it"
    rollback(tmp_path, self_test="later")
    assert install(make_bundle("c"), tmp_path, LATER).previous == _digest(make_bundle("a"))


def test_install_keeps_a_bundle_that_cannot_be_read_where_the_other_one_crashed(
    make_bundle: MakeBundle, tmp_path: Path, unreadable: Callable[[str], None]
) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    _crash(tmp_path)
    unreadable(f"{_digest(make_bundle('a'))}/model.onnx")
    assert install(make_bundle("c"), tmp_path, LATER).previous == _digest(make_bundle("a"))


def test_install_changes_nothing_when_crashes_cannot_be_counted(
    make_bundle: MakeBundle, tmp_path: Path, unreadable: Callable[[str], None]
) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    _crash(tmp_path)
    before = _contents(tmp_path)
    unreadable(".2.7-")
    with pytest.raises(CannotWriteError, match="Input/output error"):
        install(make_bundle("c"), tmp_path, LATER)
    assert _contents(tmp_path) == before


def test_install_keeps_the_current_bundle_when_there_is_no_good_one(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    _crash(tmp_path)
    assert install(make_bundle("b"), tmp_path, LATER).previous == _digest(make_bundle("a"))


def test_install_of_the_previous_bundle_keeps_the_current_one(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    _crash(tmp_path)
    report = install(make_bundle("a"), tmp_path, InstallOptions(self_test="later", allow_downgrade=True))
    assert report.previous == _digest(make_bundle("b"))


def test_install_keeps_the_last_good_bundle_when_the_run_is_cut_short(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    _crash(tmp_path)

    def cut(folder: Folder, name: str, digest: str) -> None:
        real(folder, name, digest)  # type: ignore[arg-type]  # the name of a link
        raise KeyboardInterrupt  # and nothing is cleaned up, as by a kill

    real = Folder.set_link
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "set_link", cut)
        patch.setattr(installing, "_undo", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            install(make_bundle("c"), tmp_path, LATER)
    assert open_installed(tmp_path, _fails(_digest(make_bundle("c")))) == "a"


def test_install_of_the_current_bundle_changes_nothing(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    before = _snapshot(tmp_path)
    report = install(make_bundle("a"), tmp_path)
    assert (report.outcome, _snapshot(tmp_path)) == ("already current", before)


def test_install_of_the_current_bundle_repairs_a_damaged_copy(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    (tmp_path / "current" / "model.onnx").write_bytes(b"rot")
    assert install(make_bundle("a"), tmp_path, LATER).outcome == "repaired"
    assert read_bundle(tmp_path / "current").digest == _digest(make_bundle("a"))


def test_install_replaces_a_damaged_copy_of_another_bundle(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    rollback(tmp_path, self_test="later")
    (tmp_path / "previous" / "model.onnx").write_bytes(b"rot")
    install(make_bundle("b"), tmp_path, LATER)
    assert read_bundle(tmp_path / "current").digest == _digest(make_bundle("b"))


def test_install_leaves_everything_as_it_was_when_the_self_test_fails(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    before = _contents(tmp_path)
    with pytest.raises(EdgebertError):
        install(make_bundle("b", broken=True), tmp_path)
    assert _contents(tmp_path) == before


def test_install_leaves_no_folder_when_the_first_one_fails(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with pytest.raises(NoSuchBundleError):
        install(tmp_path / "nowhere.edgebert", tmp_path / "deep" / "dev")
    assert list(tmp_path.iterdir()) == []


def test_install_refuses_a_damaged_bundle(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path / "dev", LATER)
    hostile = tmp_path / "hostile.edgebert"
    subprocess.run(["cp", "-r", str(make_bundle("b")), str(hostile)], check=True)
    (hostile / "model.onnx").write_bytes(b"other")
    with pytest.raises(RefusedBundleError):
        install(hostile, tmp_path / "dev", LATER)
    assert _current(tmp_path / "dev") == _digest(make_bundle("a"))


def test_install_writes_files_that_others_can_read(make_bundle: MakeBundle, tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        install(make_bundle("a"), tmp_path, LATER)
    finally:
        os.umask(mask)
    modes = {stat.S_IMODE(entry.stat().st_mode) for entry in (tmp_path / "bundles").rglob("*")}
    assert modes == {0o755, 0o644}


def test_install_takes_a_packed_bundle(make_bundle: MakeBundle, tmp_path: Path) -> None:
    packed = tmp_path / "a.zip"
    write_archive(read_bundle(make_bundle("a")), packed)
    assert install(packed, tmp_path / "dev", LATER).bundle.digest == _digest(make_bundle("a"))


def test_install_takes_a_packed_bundle_from_stdin(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "a.zip"
    write_archive(read_bundle(make_bundle("a")), packed)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(packed.read_bytes())))
    install(installing.STDIN, tmp_path / "dev", LATER)
    assert _current(tmp_path / "dev") == _digest(make_bundle("a"))
    assert _leftovers(tmp_path / "dev") == []


def test_install_ends_reading_stdin_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(bytes(3 << 20))))
    monkeypatch.setattr(installing, "_MOST_PACKED_BYTES", 2 << 20)
    with pytest.raises(RefusedBundleError, match="more than 2,097,152 bytes came on stdin"):
        install(installing.STDIN, tmp_path / "dev", LATER)
    assert not (tmp_path / "dev").exists()


def test_install_names_stdin_when_what_came_is_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"nonsense" * 100)))
    with pytest.raises(BundleError, match=r"^`stdin` is no archive"):
        install(installing.STDIN, tmp_path / "dev", LATER)


# What is older, what was replaced, what went bad.


def test_install_refuses_a_lower_release(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a", release=5), tmp_path, LATER)
    with pytest.raises(RefusedBundleError, match="is release 4, and release 5 was installed"):
        install(make_bundle("b", release=4), tmp_path, LATER)


def test_install_refuses_an_unnumbered_bundle_after_a_numbered_one(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a", release=5), tmp_path, LATER)
    with pytest.raises(RefusedBundleError, match="has no release number"):
        install(make_bundle("b"), tmp_path, LATER)


def test_install_takes_an_equal_release(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a", release=5), tmp_path, LATER)
    assert install(make_bundle("b", release=5), tmp_path, LATER).outcome == "installed"


def test_install_refuses_a_lower_release_also_after_a_rollback(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a", release=1), tmp_path, LATER)
    install(make_bundle("b", release=5), tmp_path, LATER)
    rollback(tmp_path, self_test="later")
    with pytest.raises(RefusedBundleError, match="release 5 was installed"):
        install(make_bundle("c", release=3), tmp_path, LATER)


def test_install_refuses_a_bundle_that_was_replaced(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    with pytest.raises(RefusedBundleError, match="installed here before, and then replaced"):
        install(make_bundle("a"), tmp_path, LATER)


def test_install_takes_the_newest_again_after_a_rollback(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    rollback(tmp_path, self_test="later")
    assert install(make_bundle("b"), tmp_path, LATER).outcome == "installed"


@pytest.mark.parametrize(("name", "release"), [("a", 5), ("c", 2)])
def test_install_takes_what_is_older_when_that_is_asked_for(
    name: str, release: int, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    install(make_bundle("a", release=5), tmp_path, LATER)
    install(make_bundle("b", release=6), tmp_path, LATER)
    bundle = make_bundle(name, release=release)
    install(bundle, tmp_path, InstallOptions(self_test="later", allow_downgrade=True))
    assert _current(tmp_path) == _digest(bundle)


def test_install_sets_the_highest_release_back_when_that_is_asked_for(make_bundle: MakeBundle, tmp_path: Path) -> None:
    downgrade = InstallOptions(self_test="later", allow_downgrade=True)
    install(make_bundle("a", release=20261), tmp_path, LATER)  # a slip of the keyboard
    install(make_bundle("b", release=2026), tmp_path, downgrade)
    assert status(tmp_path).highest_release == 2026
    assert install(make_bundle("c", release=2027), tmp_path, LATER).outcome == "installed"
    with pytest.raises(RefusedBundleError, match="release 2027 was installed"):
        install(make_bundle("d", release=2026), tmp_path, LATER)


def test_install_of_the_current_bundle_sets_the_highest_release_back_when_that_is_asked_for(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    install(make_bundle("b", release=2026), tmp_path, LATER)
    install(make_bundle("a", release=20261), tmp_path, LATER)
    rollback(tmp_path, self_test="later")
    install(make_bundle("b", release=2026), tmp_path, InstallOptions(self_test="later", allow_downgrade=True))
    assert status(tmp_path).highest_release == 2026


def test_failed_downgrade_leaves_the_highest_release(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a", release=5), tmp_path, LATER)
    with pytest.raises(EdgebertError):
        install(make_bundle("z", release=1, broken=True), tmp_path, InstallOptions(allow_downgrade=True))
    assert status(tmp_path).highest_release == 5


def _mark_bad(path: Path, digest: str, kind: str = "self-test") -> None:
    with open_folder(path) as folder:
        write_state(folder, read_state(folder).with_bad(Bad(digest=digest, kind=kind, reason="it fell over")))  # type: ignore[arg-type]  # a BadKind


def test_install_refuses_what_went_bad_here(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    _mark_bad(tmp_path, _digest(make_bundle("b")))
    with pytest.raises(RefusedBundleError, match="marked bad here: it fell over"):
        install(make_bundle("b"), tmp_path, LATER)


def test_install_takes_what_went_bad_when_that_is_asked_for(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    _mark_bad(tmp_path, _digest(make_bundle("b")))
    install(make_bundle("b"), tmp_path, InstallOptions(self_test="later", allow_bad=True))
    assert status(tmp_path).bad == ()


def test_install_takes_a_bundle_whose_copy_here_was_damaged(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    _mark_bad(tmp_path, _digest(make_bundle("b")), "damaged")
    assert install(make_bundle("b"), tmp_path, LATER).outcome == "installed"


def test_history_is_bounded(make_bundle: MakeBundle, tmp_path: Path) -> None:
    state = State()
    for number in range(MOST_REMEMBERED + 10):
        state = state.with_installed(Installed(digest=f"{number:064x}", name="x", release=number))
    assert len(state.history) == MOST_REMEMBERED
    assert (state.installs, state.highest_release) == (MOST_REMEMBERED + 10, MOST_REMEMBERED + 9)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"schema": "edgebert.installation/2"}', b"\xff", None])
def test_install_refuses_a_damaged_state(content: bytes | None, make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    if content is None:
        (tmp_path / "state.json").unlink()
    else:
        (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(BadDataError, match=r"state\.json"):
        install(make_bundle("b"), tmp_path, LATER)


def test_install_begins_a_new_state_when_a_downgrade_is_allowed(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    (tmp_path / "state.json").write_bytes(b"{}")
    install(make_bundle("b"), tmp_path, InstallOptions(self_test="later", allow_downgrade=True))
    assert status(tmp_path).installs == 1


def test_install_leaves_a_damaged_state_as_it_is_when_a_downgrade_fails(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    install(make_bundle("a", release=5), tmp_path / "dev", LATER)
    (tmp_path / "dev" / "state.json").write_bytes(b"{}")
    downgrade = InstallOptions(self_test="later", allow_downgrade=True)
    with pytest.raises(NoSuchBundleError):
        install(tmp_path / "nowhere.edgebert", tmp_path / "dev", downgrade)
    assert (tmp_path / "dev" / "state.json").read_bytes() == b"{}"
    with pytest.raises(BadDataError, match=r"state\.json"):
        install(make_bundle("b", release=4), tmp_path / "dev", LATER)


def test_install_begins_a_new_state_with_what_lies_here(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name, release in (("a", 5), ("b", 7)):
        install(make_bundle(name, release=release), tmp_path, LATER)
    (tmp_path / "state.json").write_bytes(b"{}")
    install(make_bundle("c", release=7), tmp_path, InstallOptions(self_test="later", allow_downgrade=True))
    assert status(tmp_path).highest_release == 7
    with pytest.raises(RefusedBundleError, match="installed here before, and then replaced"):
        install(make_bundle("b", release=7), tmp_path, LATER)


def test_install_of_the_current_bundle_mends_a_damaged_state_when_a_downgrade_is_allowed(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    for name, release in (("a", 5), ("b", 7)):
        install(make_bundle(name, release=release), tmp_path, LATER)
    (tmp_path / "state.json").write_bytes(b"{}")
    install(make_bundle("b", release=7), tmp_path, InstallOptions(self_test="later", allow_downgrade=True))
    found = status(tmp_path)
    assert (found.highest_release, found.notes) == (7, ())


def test_install_says_that_a_state_cannot_be_read(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    real = os.open

    def failing(path: str | Path, *arguments: int, **named: int | None) -> int:
        if path == "state.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *arguments, **named)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(UnreadableError, match=r"cannot read .*state\.json") as caught:
        install(make_bundle("b"), tmp_path, LATER)
    assert caught.value.exit_code == 74


# Roll-back.


def test_rollback_swaps_current_and_previous(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    report = rollback(tmp_path)
    assert (report.bundle.name, _current(tmp_path)) == ("a", _digest(make_bundle("a")))
    assert rollback(tmp_path, self_test="later").bundle.name == "b"


def test_rollback_without_a_previous_bundle_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    with pytest.raises(NoSuchBundleError, match="no previous bundle"):
        rollback(tmp_path)


def test_rollback_to_a_bad_bundle_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    _mark_bad(tmp_path, _digest(make_bundle("a")))
    with pytest.raises(RefusedBundleError, match="marked bad"):
        rollback(tmp_path)


def test_rollback_to_a_damaged_bundle_changes_nothing(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    (tmp_path / "previous" / "model.onnx").write_bytes(b"rot")
    before = _contents(tmp_path)
    with pytest.raises(RefusedBundleError):
        rollback(tmp_path)
    assert _contents(tmp_path) == before


def test_rollback_where_nothing_is_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoSuchBundleError):
        rollback(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("timeout", [-1.0, 0.0, 1e12, float("nan")])
def test_rollback_refuses_an_impossible_timeout(timeout: float, make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    with pytest.raises(UsageError, match="timeout"):
        rollback(tmp_path, timeout=timeout)
    assert _current(tmp_path) == _digest(make_bundle("b"))


def test_rollback_of_an_empty_folder_leaves_it_empty(tmp_path: Path) -> None:
    with pytest.raises(NoSuchBundleError, match="no installation"):
        rollback(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_install_leaves_an_empty_folder_empty_when_it_fails(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for bundle in (tmp_path / "nowhere.edgebert", make_bundle("z", broken=True)):
        with pytest.raises(EdgebertError):
            install(bundle, tmp_path / "dev")
        assert list((tmp_path / "dev").iterdir()) == []


# Interruptions.


def _fail_at(monkeypatch: pytest.MonkeyPatch, name: str, number: int, code: int) -> list[int]:
    """Let the number-th call of one of `os`'s functions fail, counted from 0; return where the calls are counted."""
    real, calls = getattr(os, name), [0]

    def failing(*arguments: object, **named: object) -> object:
        calls[0] += 1
        if calls[0] == number + 1:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **named)

    monkeypatch.setattr(os, name, failing)
    return calls


@pytest.mark.parametrize("call", ["fsync", "replace", "rename", "mkdir", "symlink"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_install_leaves_the_old_bundle_whichever_call_fails(
    call: str, code: int, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = [read_bundle(make_bundle(name)) for name in ("a", "b", "c")]
    failed = 0
    for number in itertools.count():
        path = tmp_path / str(number)
        write_phase(bundles[0], path)
        write_phase(bundles[1], path)
        before = _contents(path)
        with monkeypatch.context() as patch:
            calls = _fail_at(patch, call, number, code)
            try:
                write_phase(bundles[2], path)
            except CannotWriteError:
                failed += 1
                after = {name: content for name, content in _contents(path).items() if name != "state.json"}
                assert after == {name: content for name, content in before.items() if name != "state.json"}, number
            else:
                assert _current(path) == bundles[2].digest
        assert write_phase(bundles[2], path).bundle.digest == _current(path) == bundles[2].digest
        assert status(path).previous is not None
        assert _leftovers(path) == []
        if calls[0] <= number:  # every call had its turn
            break
    assert failed


def test_install_removes_what_it_wrote_when_a_file_cannot_grow(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    before = _contents(tmp_path)
    limit = 200  # bytes of a file: less than the manifest has, more than the state
    script = (
        "import resource, sys; from edgebert.agent import main; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY)); sys.exit(main(sys.argv[1:]))"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    command = [sys.executable, "-c", script, "install", str(make_bundle("b")), "--to", str(tmp_path)]
    ran = subprocess.run([*command, "--self-test", "later"], capture_output=True, text=True, check=False)
    assert ran.returncode == 74, ran.stderr
    assert _contents(tmp_path) == before


def test_install_refuses_where_there_is_no_room(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    before = _contents(tmp_path)
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_frsize=4096, f_bavail=100))
    with pytest.raises(CannotWriteError, match=r"has 0\.4 MiB free, and the bundle takes 1\.0"):
        install(make_bundle("b"), tmp_path, LATER)
    assert _contents(tmp_path) == before


def test_install_removes_what_killed_runs_left(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    for name in (".staging-state.json-1", "bundles/.staging-x-1/deep/file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".staging-current-1").symlink_to("bundles/x")
    (tmp_path / "bundles" / ("0" * 64)).mkdir()
    install(make_bundle("b"), tmp_path, LATER)
    assert _leftovers(tmp_path) == []
    assert not (tmp_path / "bundles" / ("0" * 64)).exists()


def test_install_leaves_names_alone_that_it_did_not_make(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    (tmp_path / "bundles" / "notes").mkdir()
    install(make_bundle("b"), tmp_path, LATER)
    assert (tmp_path / "bundles" / "notes").is_dir()


def test_install_completes_a_switch_that_was_cut_short(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "b"):
        install(make_bundle(name), tmp_path, LATER)
    third = read_bundle(make_bundle("c"))
    entry = Installed(digest=third.digest, name="c", release=7)
    with open_folder(tmp_path) as folder:  # killed right after `current` was replaced
        subprocess.run(["cp", "-r", str(make_bundle("c")), str(folder.bundle_path(third.digest))], check=True)
        step = Switch(to=third.digest, replaces=folder.link("current"), installed=entry)
        write_state(folder, replace(read_state(folder), pending=step))
        folder.set_link("current", third.digest)
    assert status(tmp_path).previous is not None
    assert install(make_bundle("c"), tmp_path, LATER).previous == _digest(make_bundle("b"))
    found = status(tmp_path)
    assert (found.highest_release, found.installs) == (7, 3)


def test_install_drops_a_switch_that_never_happened(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    entry = Installed(digest="1" * 64, name="never", release=9)
    with open_folder(tmp_path) as folder:
        step = Switch(to=entry.digest, replaces=folder.link("current"), installed=entry)
        write_state(folder, replace(read_state(folder), pending=step))
    install(make_bundle("b"), tmp_path, LATER)
    assert status(tmp_path).highest_release == 0


def _hold_lock(path: Path) -> subprocess.Popen[str]:
    script = (
        "import sys, time; from pathlib import Path; from edgebert.install.installing import changing\n"
        "with changing(Path(sys.argv[1]), create=True):\n    print('held', flush=True); time.sleep(60)"
    )
    return subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)


def test_install_names_the_process_that_holds_the_lock(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with _hold_lock(tmp_path) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(LockedError, match=rf"pid {holder.pid} on ") as caught:
                install(make_bundle("a"), tmp_path, LATER)
        finally:
            holder.kill()
    assert caught.value.exit_code == 75


def test_install_is_not_blocked_by_a_killed_holder(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with _hold_lock(tmp_path) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    assert install(make_bundle("a"), tmp_path, LATER).outcome == "installed"


def test_kills_and_races_leave_nothing_torn_and_one_winner(make_bundle: MakeBundle, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "install_kills.py"
    command = [sys.executable, str(script), str(make_bundle("a")), "--kills", "40", "--races", "20"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith("0 torn of 40 kills")


def test_kills_find_an_installation_that_writes_in_place(make_bundle: MakeBundle) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "install_kills.py"
    command = [sys.executable, str(script), str(make_bundle("a")), "--kills", "60", "--races", "0", "--mutant"]
    assert subprocess.run(command, capture_output=True, check=False, timeout=300).returncode == 1


# Leftovers that nobody may remove, and folders of other users.


def _fail_to_remove(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let nothing of this name be removed, as of what root left in the folder of another user."""
    real = os.unlink

    def failing(path: str | Path, *, dir_fd: int | None = None) -> None:
        if path == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", failing)


def test_install_and_rollback_go_on_when_a_leftover_cannot_be_removed(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    left = tmp_path / "bundles" / ("0" * 64)
    left.mkdir()
    (left / "of-root").touch()
    _fail_to_remove(monkeypatch, "of-root")
    for name in ("b", "c"):
        assert install(make_bundle(name), tmp_path, LATER).outcome == "installed"
    assert rollback(tmp_path, self_test="later").bundle.name == "b"
    assert "is left over and cannot be removed (Permission denied); whoever may: rm -r " in caplog.text


def test_install_ends_its_switch_when_old_crashes_cannot_be_forgotten(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    _crash(tmp_path, 1)
    (note,) = [entry.name for entry in (tmp_path / "attempts").iterdir()]
    install(make_bundle("b"), tmp_path, LATER)
    _fail_to_remove(monkeypatch, note)
    report = install(make_bundle("c"), tmp_path, LATER)
    assert report.removed == (_digest(make_bundle("a")),)
    with open_folder(tmp_path) as folder:
        assert read_state(folder).pending is None


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder to another user needs root")
def test_install_and_rollback_refuse_root_in_the_folder_of_another_user(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    dev = tmp_path / "dev"
    for name in ("a", "b"):
        install(make_bundle(name), dev, LATER)
    before = _contents(dev)
    os.chown(dev, 12345, -1)
    with pytest.raises(CannotWriteError, match="belongs to `#12345`, and root is about to change it") as caught:
        install(make_bundle("c"), dev, LATER)
    with pytest.raises(CannotWriteError, match="belongs to"):
        rollback(dev, self_test="later")
    assert _contents(dev) == before
    assert "sudo -u '#12345'" in (caught.value.hint or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder to another user needs root")
def test_install_takes_a_folder_of_root_whose_attempts_are_the_services(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    os.chown(tmp_path / "attempts", 12345, -1)
    assert install(make_bundle("b"), tmp_path, LATER).outcome == "installed"


# Links that were lost.


@pytest.mark.parametrize("name", ["current", "previous"])
def test_install_refuses_a_folder_in_the_place_of_a_link_and_its_hint_mends_that(
    name: str, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    for bundle in ("a", "b"):
        install(make_bundle(bundle), tmp_path, LATER)
    target = (tmp_path / name).resolve()
    (tmp_path / name).unlink()
    subprocess.run(["cp", "-r", str(target), str(tmp_path / name)], check=True)
    with pytest.raises(BundleError, match=rf"/{name}` is a folder and no link") as caught:
        install(make_bundle("c"), tmp_path, LATER)
    assert len(list((tmp_path / "bundles").iterdir())) == 2
    assert caught.value.hint is not None
    subprocess.run(caught.value.hint, shell=True, check=True)
    assert install(make_bundle("c"), tmp_path, LATER).previous == _digest(make_bundle("b"))


def test_install_keeps_what_was_installed_last_when_current_is_lost(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for bundle in ("a", "b"):
        install(make_bundle(bundle), tmp_path, LATER)
    for name in ("current", "previous"):
        (tmp_path / name).unlink()
    report = install(make_bundle("c"), tmp_path, LATER)
    assert report.previous == _digest(make_bundle("b"))
    assert report.removed == (_digest(make_bundle("a")),)


# Folders and links that are not ours.


def test_install_refuses_a_folder_that_holds_something_else(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(CannotWriteError, match=r"holds `thesis\.tex`"):
        install(make_bundle("a"), tmp_path, LATER)
    assert {entry.name for entry in tmp_path.iterdir()} == {"thesis.tex"}


def test_install_takes_an_empty_file_system(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    assert install(make_bundle("a"), tmp_path, LATER).outcome == "installed"


def test_install_refuses_a_file(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CannotWriteError):
        install(make_bundle("a"), tmp_path / "file", LATER)


def test_install_follows_a_link_to_the_folder(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    install(make_bundle("a"), tmp_path / "link", LATER)
    assert is_installation(tmp_path / "real")


@pytest.mark.parametrize("name", ["bundles", "attempts", ".lock"])
def test_install_refuses_a_link_in_the_place_of_its_own(name: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    dev = tmp_path / "dev"
    dev.mkdir()
    (dev / name).symlink_to(outside if name != ".lock" else outside / "victim")
    with pytest.raises(RefusedError):
        install(make_bundle("a"), dev, LATER)
    assert list(outside.iterdir()) == []


def test_install_replaces_a_link_in_the_place_of_the_state_and_follows_it_nowhere(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    dev = tmp_path / "dev"
    install(make_bundle("a"), dev, LATER)
    (dev / "state.json").unlink()
    (dev / "state.json").symlink_to(victim)
    with pytest.raises(BadDataError):
        install(make_bundle("b"), dev, LATER)
    install(make_bundle("b"), dev, InstallOptions(self_test="later", allow_downgrade=True))
    assert victim.read_bytes() == b"untouched"


def test_install_refuses_a_file_system_without_links(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # what vfat says

    monkeypatch.setattr(os, "symlink", no_links)
    with pytest.raises(CannotWriteError, match="has no symbolic links"):
        install(make_bundle("a"), tmp_path / "dev", LATER)
    assert not (tmp_path / "dev").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_install_says_that_a_file_system_is_read_only(make_bundle: MakeBundle, tmp_path: Path) -> None:
    dev = tmp_path / "dev"
    dev.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(dev)], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        install(make_bundle("a"), dev, LATER)
        subprocess.run(["mount", "-o", "remount,ro", str(dev)], check=True)
        with pytest.raises(CannotWriteError, match="Read-only file system"):
            install(make_bundle("b"), dev, LATER)
        assert open_installed(dev, read_bundle).digest == _digest(make_bundle("a"))
    finally:
        subprocess.run(["umount", str(dev)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_install_leaves_the_old_bundle_on_a_file_system_of_any_size(make_bundle: MakeBundle, tmp_path: Path) -> None:
    dev = tmp_path / "dev"
    dev.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(dev)], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        install(make_bundle("a"), dev, LATER)
        filler = dev / "lost+found"
        filler.write_bytes(bytes(7 << 20))
        before = _contents(dev)
        with pytest.raises(CannotWriteError):
            install(make_bundle("b"), dev, LATER)
        assert _contents(dev) == before
        filler.unlink()
        assert install(make_bundle("b"), dev, LATER).outcome == "installed"
    finally:
        subprocess.run(["umount", str(dev)], check=True)


def test_lock_of_a_removed_folder_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgebert.install import lock

    real = lock._open

    def removed_meanwhile(folder: Folder) -> int:
        descriptor = real(folder)
        (tmp_path / ".lock").unlink()
        return descriptor

    monkeypatch.setattr(lock, "_open", removed_meanwhile)
    with open_folder(tmp_path) as folder, pytest.raises(LockedError, match="being removed"), locked_folder(folder):
        pass


def test_options_refuse_an_identity_without_signers() -> None:
    with pytest.raises(UsageError, match="need `--signers`"):
        InstallOptions(identity="me")


@pytest.mark.parametrize("timeout", [0.0, -1.0, 1e9])
def test_options_refuse_an_impossible_timeout(timeout: float) -> None:
    with pytest.raises(UsageError, match="timeout"):
        InstallOptions(timeout=timeout)


def test_reports_have_the_same_in_text_and_json(make_bundle: MakeBundle, tmp_path: Path) -> None:
    report = install(make_bundle("a", release=3), tmp_path, LATER)
    assert isinstance(report, InstallReport)
    assert report.to_json()["release"] == 3
    assert "release 3" in report.to_text()
    assert "left to the first opening" in report.to_text()


def test_status_of_no_installation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoSuchBundleError, match="no installation"):
        status(tmp_path)


def test_status_says_what_is_out_of_order(make_bundle: MakeBundle, tmp_path: Path) -> None:
    install(make_bundle("a"), tmp_path, LATER)
    (tmp_path / "state.json").write_bytes(b"{}")
    (tmp_path / "policy.json").write_bytes(b"{}")
    found = status(tmp_path)
    assert len(found.notes) == 2
    assert "note" in found.to_text()


def test_unavailable_is_told_as_such(make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise UnavailableError("no backend")

    monkeypatch.setattr(installing, "run_self_test", missing)
    with pytest.raises(UnavailableError):
        install(make_bundle("a"), tmp_path / "dev")
    assert not (tmp_path / "dev").exists()
