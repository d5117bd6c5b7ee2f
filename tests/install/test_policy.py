"""Whose signatures an installation demands: when it is said, when it changes, and when bundles are opened."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgebert.bundle import read_bundle
from edgebert.errors import (
    CannotWriteError,
    MalformedBundleError,
    RefusedBundleError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from edgebert.install import (
    InstallOptions,
    install,
    installing,
    open_installed,
    rollback,
    status,
    switch,
    verify_installation,
)
from edgebert.install.folder import Folder, open_folder
from edgebert.install.policy import Policy, is_weaker, read_policy, write_policy
from edgebert.install.state import State, Switch, read_state, write_state
from edgebert.signing import MAX_SIGNERS_BYTES, OutsideItsTimeError, SignaturePolicy, Signers, sign_bundle

MakeBundle = Callable[..., Path]

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three keys and allowed-signers files of the first two: `alice`, `bob`, `both`, and `mallory`'s key."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("alice", "bob", "mallory"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
        subprocess.run(command, check=True)
    lines = {name: f"{name}@example.com {_public(folder / f'{name}.pub')}\n" for name in ("alice", "bob")}
    for name, line in lines.items():
        (folder / f"{name}.signers").write_text(line, encoding="ascii")
    (folder / "both.signers").write_text("# the team\n" + "".join(lines.values()), encoding="ascii")
    return folder


def _public(path: Path) -> str:
    return " ".join(path.read_text(encoding="ascii").split()[:2])


@pytest.fixture
def signed(make_bundle: MakeBundle, keys: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies a bundle and signs the copy."""

    def make(name: str, by: str = "alice") -> Path:
        copy = tmp_path / f"{name}-{by}.edgebert"
        if not copy.exists():
            shutil.copytree(make_bundle(name), copy)
            sign_bundle(copy, keys / by)
        return copy

    return make


@pytest.fixture
def options(keys: Path) -> Callable[..., InstallOptions]:
    """Return a function that makes the options of a call with the allowed signers of that name."""

    def make(signers: str | None = "alice", **named: bool | str) -> InstallOptions:
        path = None if signers is None else keys / f"{signers}.signers"
        return InstallOptions(self_test="later", signers=path, **named)  # type: ignore[arg-type]  # the fields by name

    return make


@pytest.fixture
def dev(signed: Callable[..., Path], options: Callable[..., InstallOptions], tmp_path: Path) -> Path:
    """An installation that demands alice's signature, and holds `a`."""
    install(signed("a"), tmp_path / "dev", options(require_signature=True))
    return tmp_path / "dev"


Options = Callable[..., InstallOptions]
Signed = Callable[..., Path]


def test_install_says_who_signed(signed: Signed, options: Options, tmp_path: Path) -> None:
    report = install(signed("a"), tmp_path / "dev", options())
    assert report.bundle.signed_by == "alice@example.com"
    assert "signed by alice@example.com" in report.to_text()


def test_install_with_signers_refuses_an_unsigned_bundle(
    make_bundle: MakeBundle, options: Options, tmp_path: Path
) -> None:
    with pytest.raises(RefusedBundleError, match="not signed"):
        install(make_bundle("a"), tmp_path / "dev", options())
    assert not (tmp_path / "dev").exists()


def test_install_with_signers_alone_demands_nothing_later(
    signed: Signed, make_bundle: MakeBundle, options: Options, tmp_path: Path
) -> None:
    install(signed("a"), tmp_path / "dev", options())
    assert install(make_bundle("b"), tmp_path / "dev", options(None)).outcome == "installed"


def test_required_signatures_are_demanded_of_every_later_bundle(
    dev: Path, make_bundle: MakeBundle, signed: Signed, options: Options
) -> None:
    with pytest.raises(RefusedBundleError, match="not signed"):
        install(make_bundle("b"), dev, options(None))
    with pytest.raises(RefusedBundleError, match="not among the allowed signers"):
        install(signed("b", "mallory"), dev, options(None))
    assert install(signed("b"), dev, options(None)).bundle.signed_by == "alice@example.com"


def test_required_signatures_are_demanded_before_the_manifest_is_parsed(
    dev: Path, make_bundle: MakeBundle, options: Options, tmp_path: Path
) -> None:
    hostile = tmp_path / "hostile.edgebert"
    shutil.copytree(make_bundle("b"), hostile)
    (hostile / "manifest.json").write_bytes(b"[" * 10_000)
    with pytest.raises(RefusedBundleError, match="not signed"):
        install(hostile, dev, options(None))


def test_required_signatures_are_demanded_at_every_opening(dev: Path, make_bundle: MakeBundle) -> None:
    assert open_installed(dev, read_bundle).manifest.name == "a"
    (dev / "current" / "SHA256SUMS.sig").unlink()
    with pytest.raises(RefusedBundleError, match="not signed"):
        open_installed(dev, read_bundle)


def test_opening_rolls_back_from_a_bundle_that_is_not_signed(dev: Path, signed: Signed, options: Options) -> None:
    install(signed("b"), dev, options(None))
    (dev / "current" / "SHA256SUMS.sig").unlink()
    assert open_installed(dev, read_bundle).manifest.name == "a"


def test_opening_refuses_another_bundle_in_the_folder_of_the_current_one(dev: Path, signed: Signed) -> None:
    other = signed("b")
    current = (dev / "current").resolve()
    shutil.rmtree(current)
    shutil.copytree(other, current)
    with pytest.raises(MalformedBundleError, match="holds the bundle"):
        open_installed(dev, read_bundle)


def test_rollback_demands_signatures(dev: Path, signed: Signed, options: Options) -> None:
    install(signed("b"), dev, options(None))
    (dev / "previous" / "SHA256SUMS.sig").unlink()
    with pytest.raises(RefusedBundleError, match="not signed"):
        rollback(dev, self_test="later")


def test_require_without_signers_is_a_usage_error(make_bundle: MakeBundle, options: Options, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not say whose"):
        install(make_bundle("a"), tmp_path / "dev", options(None, require_signature=True))


def test_more_signers_are_refused_unless_asked_for(dev: Path, signed: Signed, options: Options) -> None:
    with pytest.raises(RefusedError, match="could let in"):
        install(signed("b"), dev, options("both", require_signature=True))
    install(signed("b"), dev, options("both", require_signature=True, weaken_policy=True))
    assert install(signed("c", "bob"), dev, options(None)).bundle.signed_by == "bob@example.com"


def test_fewer_signers_are_taken(signed: Signed, options: Options, tmp_path: Path) -> None:
    install(signed("a"), tmp_path / "dev", options("both", require_signature=True))
    install(signed("b"), tmp_path / "dev", options(require_signature=True))
    with pytest.raises(RefusedBundleError):
        install(signed("c", "bob"), tmp_path / "dev", options(None))


def test_signatures_are_demanded_no_more_when_that_is_asked_for(
    dev: Path, make_bundle: MakeBundle, options: Options
) -> None:
    report = install(make_bundle("b"), dev, options(None, weaken_policy=True))
    assert not report.signatures_required
    assert not (dev / "policy.json").exists()


def test_policy_can_be_set_with_the_current_bundle(signed: Signed, options: Options, tmp_path: Path) -> None:
    install(signed("a"), tmp_path / "dev", options(None))
    report = install(tmp_path / "a-alice.edgebert", tmp_path / "dev", options(require_signature=True))
    assert (report.outcome, report.signatures_required) == ("already current", True)
    assert status(tmp_path / "dev").policy is not None


def test_signature_that_came_later_joins_the_installed_bundle(
    make_bundle: MakeBundle, signed: Signed, options: Options, tmp_path: Path
) -> None:
    install(make_bundle("a"), tmp_path / "dev", options(None))
    report = install(signed("a"), tmp_path / "dev", options(require_signature=True))
    assert report.outcome == "signature replaced"
    assert open_installed(tmp_path / "dev", read_bundle).signature is not None


def test_identity_is_demanded(signed: Signed, options: Options, tmp_path: Path) -> None:
    chosen = options("both", require_signature=True, identity="alice@example.com")
    with pytest.raises(RefusedBundleError, match=r"not by `alice@example\.com`"):
        install(signed("a", "bob"), tmp_path / "dev", chosen)


def test_revoked_keys_are_refused(signed: Signed, options: Options, keys: Path, tmp_path: Path) -> None:
    chosen = replace(options(), revoked=keys / "alice.pub")
    with pytest.raises(RefusedBundleError, match="was revoked"):
        install(signed("a"), tmp_path / "dev", chosen)


def test_damaged_policy_stops_installations_until_a_new_one_is_given(
    dev: Path, signed: Signed, options: Options
) -> None:
    (dev / "policy.json").write_bytes(b"{")
    with pytest.raises(RefusedError, match="nobody knows whose"):
        install(signed("b"), dev, options(None))
    install(signed("b"), dev, options(require_signature=True, weaken_policy=True))
    assert open_installed(dev, read_bundle).manifest.name == "b"


def test_key_that_expires_stays_good_for_what_is_installed(dev: Path, keys: Path) -> None:
    _limit(dev, f'alice@example.com valid-before="20260101" {_public(keys / "alice.pub")}', checked_at=1_750_000_000)
    assert open_installed(dev, read_bundle).manifest.name == "a"


def test_key_that_expired_is_refused_for_what_is_new(dev: Path, keys: Path, signed: Signed, options: Options) -> None:
    _limit(dev, f'alice@example.com valid-before="20260101" {_public(keys / "alice.pub")}', checked_at=1_750_000_000)
    with pytest.raises(OutsideItsTimeError, match="key has expired"):
        install(signed("b"), dev, options(None))


def test_clock_that_went_back_brings_no_expired_key_back(
    dev: Path, keys: Path, signed: Signed, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    _limit(dev, f'alice@example.com valid-before="20200101" {_public(keys / "alice.pub")}', checked_at=1_750_000_000)
    monkeypatch.setattr("time.time", lambda: 1_500_000_000.0)
    with pytest.raises(OutsideItsTimeError, match="key has expired"):
        install(signed("b"), dev, options(None))


def test_installation_with_a_clock_in_the_future_is_named_and_not_this_computers_clock(
    dev: Path, keys: Path, signed: Signed, options: Options
) -> None:
    _limit(dev, f'alice@example.com valid-before="20900101" {_public(keys / "alice.pub")}', checked_at=4_000_000_000)
    with pytest.raises(OutsideItsTimeError) as caught:
        install(signed("b"), dev, options(None))
    assert "2096-" in (caught.value.expected or "")
    assert "the time of the last installation here" in (caught.value.expected or "")
    assert "--allow-downgrade" in (caught.value.hint or "")


def test_clock_of_this_computer_counts_from_then_on_when_a_downgrade_is_allowed(
    dev: Path, keys: Path, signed: Signed, options: Options
) -> None:
    _limit(dev, f'alice@example.com valid-before="20900101" {_public(keys / "alice.pub")}', checked_at=4_000_000_000)
    install(signed("b"), dev, options(None, allow_downgrade=True))
    assert install(signed("c"), dev, options(None)).outcome == "installed"


def test_key_that_expired_is_refused_also_when_a_downgrade_is_allowed(
    dev: Path, keys: Path, signed: Signed, options: Options
) -> None:
    _limit(dev, f'alice@example.com valid-before="20200101" {_public(keys / "alice.pub")}', checked_at=1_750_000_000)
    with pytest.raises(OutsideItsTimeError, match="key has expired") as caught:
        install(signed("b"), dev, options(None, allow_downgrade=True))
    assert "the time of this computer's clock" in (caught.value.expected or "")


def _limit(dev: Path, line: str, *, checked_at: int) -> None:
    """Change the stored signers, and when the bundle was installed."""
    with open_folder(dev) as folder:
        write_policy(folder, Policy(signers=Signers(content=f"{line}\n".encode())))
        state = read_state(folder)
        write_state(folder, replace(state, history=(replace(state.history[-1], checked_at=checked_at),)))


def test_policy_changes_with_its_bundle_when_the_run_is_cut_short(
    dev: Path, signed: Signed, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = signed("b", "bob")
    chosen = options("bob", require_signature=True, weaken_policy=True)
    with monkeypatch.context() as patch:  # cut before `current` is replaced: all as before
        patch.setattr(installing, "switch", _out_of_power)
        with pytest.raises(CannotWriteError):
            install(bob, dev, chosen)
    assert open_installed(dev, read_bundle).manifest.name == "a"

    def switch_and_end(folder: Folder, state: State, step: Switch) -> None:
        switch.switch(folder, state, step)
        _out_of_power()

    with monkeypatch.context() as patch:  # cut after it: the new one, under the new policy
        patch.setattr(installing, "_undo", lambda *_, **__: None)
        patch.setattr(installing, "switch", switch_and_end)
        with pytest.raises(CannotWriteError):
            install(bob, dev, chosen)
    assert (dev / "current").readlink().name == read_bundle(bob).digest
    assert open_installed(dev, read_bundle).manifest.name == "b"
    with open_folder(dev) as folder:
        assert read_policy(folder).for_bundle("0" * 64) != read_policy(folder).for_bundle(read_bundle(bob).digest)


def _out_of_power(*_: object, **__: object) -> None:
    raise OSError(5, "out of power")


def test_missing_ssh_keygen_refuses_to_open_and_does_not_roll_back(
    dev: Path, signed: Signed, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(signed("b"), dev, options(None))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnavailableError, match="`ssh-keygen` is not installed"):
        open_installed(dev, read_bundle)
    assert status(dev).bad == ()


def test_verify_installation_says_who_signed(dev: Path, keys: Path) -> None:
    bundle, held = verify_installation(dev, SignaturePolicy(allowed_signers=keys / "alice.signers"))
    assert bundle.is_dir()
    assert any("signed by `alice@example.com`, as the installation demands" in line for line in held)


def test_policy_survives_being_written(dev: Path) -> None:
    binary = Signers(content=b"\xff\xfe key", identity="me", revoked=b"SSHKRL\n\0")
    tricky = Signers(content=b"base64:AAAA\r\n")
    written = Policy(signers=binary, next_signers=tricky, next_digest="a" * 64)
    with open_folder(dev) as folder:
        write_policy(folder, written)
        assert read_policy(folder) == written


def test_policy_of_the_largest_lists_can_be_read_while_it_changes(dev: Path) -> None:
    largest = Signers(content=b"\x01" * MAX_SIGNERS_BYTES, revoked=b"\xff" * MAX_SIGNERS_BYTES)
    written = Policy(signers=largest, next_signers=replace(largest, identity="me"), next_digest="a" * 64)
    with open_folder(dev) as folder:
        write_policy(folder, written)
        assert read_policy(folder) == written


def test_folder_writes_nothing_that_it_does_not_read(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgebert.install.folder._MOST_BYTES", 100)
    with open_folder(dev) as folder:
        folder.write("state.json", bytes(100))
        with pytest.raises(OSError, match="File too large"):
            folder.write("state.json", bytes(101))
        assert folder.read("state.json") == bytes(100)


_TWO = Signers(content=b"# team\na ssh-ed25519 AAAA\nb ssh-ed25519 BBBB\n", identity="a", revoked=b"x 1\n")


@pytest.mark.parametrize(
    ("new", "weaker"),
    [
        (_TWO, False),
        (None, True),
        (replace(_TWO, content=b"b ssh-ed25519 BBBB"), False),
        (replace(_TWO, content=b"a ssh-ed25519 AAAA\nc ssh-ed25519 CCCC"), True),
        (replace(_TWO, identity=None), True),
        (replace(_TWO, identity="b"), True),
        (replace(_TWO, revoked=None), True),
        (replace(_TWO, revoked=b"x 1\ny 2\n"), False),
        (replace(_TWO, revoked=b"y 2\n"), True),
        (replace(_TWO, revoked=b"SSHKRL\n\0x 1\n"), True),
    ],
)
def test_is_weaker(new: Signers | None, weaker: bool) -> None:
    assert is_weaker(new, _TWO) is weaker


def test_anything_is_stricter_than_nothing() -> None:
    assert not is_weaker(_TWO, None)
    assert not is_weaker(None, None)
