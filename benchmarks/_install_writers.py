"""The writing phase of `install` and `rollback` for the fault sweeps: `edgebert.install.write_phase`, without the self-test."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _faults import Scenario
from _writers import bundle_parts

from edgebert.bundle import Bundle, read_bundle, write_bundle
from edgebert.errors import CannotWriteError, EdgebertError
from edgebert.install import rollback, write_phase
from edgebert.install.attempts import MOST_CRASHES
from edgebert.install.folder import open_folder
from edgebert.install.state import read_state

DEVICE = "device"


def install_scenarios() -> list[Scenario]:
    """Return the ways in which `install` and `rollback` write; what they warn of is not shown."""
    logging.getLogger("edgebert").setLevel(logging.ERROR)
    oldest, old, new = (bundle_in_memory(name) for name in ("oldest", "old", "new"))
    return [
        _install("first", new),
        _install("first, into an empty folder", new, lay=lambda place: (place / DEVICE).mkdir()),
        _install("update", new, before=(old,)),
        _install("update that removes the oldest", new, before=(oldest, old)),
        _install("back to the previous bundle", new, before=(new, old)),
        _install("update after a killed call", new, before=(old,), lay=partial(_leave_staging, oldest)),
        _install("over a damaged copy", new, before=(new, old), lay=partial(_damage, new)),
        _install("update of one that crashes", new, before=(oldest, old), lay=partial(_let_crash, old)),
        Scenario(
            name="install, rollback",
            lay=partial(_installed, (new, old), _nothing),
            write=lambda place: rollback(place / DEVICE, self_test="later"),
            again=partial(_write, new),
            finals=(DEVICE,),
            content_of=current_of,
        ),
    ]


def install_mutants() -> list[Scenario]:
    """Return installers with a fault that the sweeps must find."""
    old, new = bundle_in_memory("old"), bundle_in_memory("new")
    lay = partial(_installed, (old,), _nothing)
    return [
        Scenario(name=f"mutant: {name}", lay=lay, write=partial(write, new), finals=(DEVICE,), content_of=current_of)
        for name, write in (("bundle without staging", _without_staging), ("link removed first", _link_removed_first))
    ]


def bundle_in_memory(name: str) -> Bundle:
    """Return a bundle as `install` has read it; another name gives other bytes in every file."""
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(Path(folder), *bundle_parts(name, ("cpu", "intel-cpu")))
        return read_bundle(Path(folder))


def current_of(device: Path) -> object:
    """Return the digest of the bundle that is current, whole; None where nothing was ever installed.

    `previous` must be whole as well where it is there, and the state readable: what is not is an answer of its own, which
    is neither old nor new.
    """
    if not os.path.lexists(device / "current"):
        return None if _readable_state(device) else "no current, and a state that cannot be read"
    try:
        digest = read_bundle(device / "current").digest
        if os.path.lexists(device / "previous"):
            read_bundle(device / "previous")
    except EdgebertError as error:
        return f"broken: {error}"
    if (device / "current").readlink().name != digest:
        return "current is another bundle than it says"
    return digest if _readable_state(device) else "a state that cannot be read"


def _readable_state(device: Path) -> bool:
    if not device.exists():
        return True
    try:
        with open_folder(device) as folder:
            read_state(folder)
    except EdgebertError:
        return False
    return True


def _install(
    name: str, bundle: Bundle, *, before: tuple[Bundle, ...] = (), lay: Callable[[Path], object] | None = None
) -> Scenario:
    return Scenario(
        name=f"install, {name}",
        lay=partial(_installed, before, lay or _nothing),
        write=partial(_write, bundle),
        finals=(DEVICE,),
        content_of=current_of,
    )


def _write(bundle: Bundle, place: Path) -> None:
    write_phase(bundle, place / DEVICE)


def _installed(bundles: tuple[Bundle, ...], lay: Callable[[Path], object], place: Path) -> None:
    for bundle in bundles:
        write_phase(bundle, place / DEVICE)
    lay(place)


def _nothing(place: Path) -> None:
    """Lay nothing more."""


def _leave_staging(bundle: Bundle, place: Path) -> None:
    """Leave what a killed call leaves: a bundle half written, and a link that was not renamed yet."""
    staging = place / DEVICE / "bundles" / f".staging-{bundle.digest}-1234"
    staging.mkdir()
    (staging / "manifest.json").write_bytes(b"half")
    (place / DEVICE / ".staging-current-1234").symlink_to(f"bundles/{bundle.digest}")


def _damage(bundle: Bundle, place: Path) -> None:
    """Damage the copy of a bundle, which is `previous`."""
    device = place / DEVICE
    (device / "bundles" / bundle.digest / "model.onnx").write_bytes(b"damaged")
    (device / "previous").unlink()


def _let_crash(bundle: Bundle, place: Path) -> None:
    """Leave what three openings of the current bundle leave whose process died."""
    for number in range(MOST_CRASHES):
        (place / DEVICE / "attempts" / f"{bundle.digest}.{number + 1}.7-{number:08x}").touch()


def _without_staging(bundle: Bundle, place: Path) -> None:
    device = place / DEVICE
    final = device / "bundles" / bundle.digest
    try:
        _link(device, bundle.digest)
        for name, content in bundle.all_files().items():
            (final / name).parent.mkdir(parents=True, exist_ok=True)
            (final / name).write_bytes(content)
    except OSError as error:
        raise CannotWriteError(f"cannot write `{device}`: {error.strerror}") from error


def _link_removed_first(bundle: Bundle, place: Path) -> None:
    device = place / DEVICE
    final = device / "bundles" / bundle.digest
    try:
        shutil.rmtree(final, ignore_errors=True)
        for name, content in bundle.all_files().items():
            (final / name).parent.mkdir(parents=True, exist_ok=True)
            (final / name).write_bytes(content)
        (device / "current").unlink(missing_ok=True)
        (device / "current").symlink_to(f"bundles/{bundle.digest}")
    except OSError as error:
        raise CannotWriteError(f"cannot write `{device}`: {error.strerror}") from error


def _link(device: Path, digest: str) -> None:
    staging = device / ".staging-link"
    staging.unlink(missing_ok=True)
    staging.symlink_to(f"bundles/{digest}")
    staging.replace(device / "current")
