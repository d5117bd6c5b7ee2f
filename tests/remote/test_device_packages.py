"""Numpy and Pillow come to a device that lacks them, for the agent's own process: unpacked safely, gone afterwards, nothing else touched.

The devices are bare environments of this Python, over a pipe or SSH, and the wheels are tiny ones that the tests write; the real
ones come to a real device in `test_bare_device.py`.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import stat
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgebert._files import sha256_of_folder
from edgebert.errors import (
    BadDataError,
    CannotWriteError,
    EdgebertError,
    InputNotFoundError,
    LinkLostError,
    RefusedError,
    UnavailableError,
)
from edgebert.remote import device_packages, wheel_files, wheel_pins
from edgebert.remote.device_packages import Package, put_on_path, unpack
from edgebert.remote.device_store import Store
from edgebert.remote.session import DeviceSession
from edgebert.remote.transport import LocalPipe, transport_of
from edgebert.remote.wheel_pins import PinnedWheel

pytest.importorskip("asyncssh")

PYTHON = "{}.{}".format(*sys.version_info[:2])
# A package that leaves word in the home folder of where it was imported from.
TELLS = "from pathlib import Path\nwith (Path.home() / 'imported').open('a') as file: file.write(__file__ + '\\n')\n"


def zip_of(entries: Sequence[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, content in entries:
            archive.writestr(name, content)
    return stream.getvalue()


def distribution(name: str, version: str) -> tuple[str, bytes]:
    return f"{name}-{version}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()


def numpy_wheel(version: str = "1.26.4", ballast: bytes = b"", code: str = TELLS) -> bytes:
    return zip_of([("numpy/__init__.py", code.encode()), ("numpy/ballast", ballast), distribution("numpy", version)])


def pillow_wheel(version: str = "12.3.0") -> bytes:
    return zip_of([("PIL/__init__.py", b""), ("PIL/Image.py", TELLS.encode()), distribution("pillow", version)])


@dataclass(frozen=True)
class Bare:
    """A device: a bare Python with a home folder, and a folder of wheels on the host."""

    python: Path
    home: Path
    wheels: Path

    @property
    def packages(self) -> Path:
        return next((self.python.parents[1] / "lib").glob("python*")) / "site-packages"

    @property
    def pipe(self) -> LocalPipe:
        (self.home / "tmp").mkdir(parents=True, exist_ok=True)
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"], "TMPDIR": str(self.home / "tmp")}
        return LocalPipe(python=str(self.python), environment=environment, wheels=self.wheels)

    def has(self, name: str, module: str, version: str) -> None:
        """Install a package that must never be imported."""
        for path, content in (distribution(name, version), (f"{module}/__init__.py", b"raise SystemExit('imported')")):
            (self.packages / path).parent.mkdir(exist_ok=True)
            (self.packages / path).write_bytes(content)

    def imported(self) -> list[str]:
        """Return where the packages of a session were imported from, below the home folder."""
        path = self.home / "imported"
        return (
            [str(Path(line).relative_to(self.home)) for line in path.read_text().splitlines()] if path.exists() else []
        )

    def left(self) -> list[str]:
        names = [str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.is_file()]
        return sorted(name for name in names if name != "imported")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bare:
    """A device with a backend, and with nothing else."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True, capture_output=True
    )
    (tmp_path / "wheels").mkdir()
    device = Bare(python=tmp_path / "venv/bin/python", home=tmp_path / "home", wheels=tmp_path / "wheels")
    device.has("onnxruntime", "onnxruntime", "1.31.0")
    pin(device, monkeypatch)
    return device


def pin(device: Bare, monkeypatch: pytest.MonkeyPatch, numpy: bytes = b"", pillow: bytes = b"") -> None:
    """Have the table name tiny wheels of this Python, and put them into the folder."""
    architecture = os.uname().machine
    lines = []
    for module, name, version, content in (
        ("numpy", "numpy", "1.26.4", numpy or numpy_wheel()),
        ("PIL", "Pillow", "12.3.0", pillow or pillow_wheel()),
    ):
        tag = "cp" + PYTHON.replace(".", "")
        file = f"{name.lower()}-{version}-{tag}-{tag}-manylinux_2_17_{architecture}.whl"
        (device.wheels / file).write_bytes(content)
        lines.append(
            PinnedWheel(
                module=module,
                name=name,
                version=version,
                python=PYTHON,
                architecture=architecture,
                file=file,
                size=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
            )
        )
    monkeypatch.setattr(wheel_pins, "pinned_wheels", lambda: tuple(lines))


# -- what a device is brought


def test_session_brings_both_to_a_device_that_has_neither(bare: Bare, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "edgebert")
    with DeviceSession(bare.pipe) as session:
        assert [wheel.name for wheel in session.brought] == ["numpy", "Pillow"]
        assert [place.split("/")[-2:] for place in bare.imported()] == [["numpy", "__init__.py"], ["PIL", "Image.py"]]
        assert all(place.startswith(".cache/edgebert/session-") for place in bare.imported())
    (said,) = [record.getMessage() for record in caplog.records if "brings" in record.getMessage()]
    assert said.startswith(
        f"`{session.name}` has no numpy and no Pillow; edgebert brings numpy 1.26.4 and Pillow 12.3.0 "
    )
    assert said.endswith("for its own process, and installs nothing there")


def test_session_leaves_nothing_and_touches_no_package_of_the_device(bare: Bare) -> None:
    bare.has("numpy", "numpy", "1.21.5")
    before = sha256_of_folder(bare.python.parents[1])
    with DeviceSession(bare.pipe):
        assert len(bare.imported()) == 2
    assert sha256_of_folder(bare.python.parents[1]) == before
    assert bare.left() == []


def test_session_brings_numpy_where_the_devices_own_is_too_old(bare: Bare) -> None:
    bare.has("numpy", "numpy", "1.21.5")
    bare.has("pillow", "PIL", "12.3.0")
    with DeviceSession(bare.pipe) as session:
        assert [wheel.name for wheel in session.brought] == ["numpy"]
    assert [place.split("/")[-2] for place in bare.imported()] == ["numpy"]


def test_session_brings_pillow_alone_where_numpy_is_good_enough(bare: Bare) -> None:
    bare.has("numpy", "numpy", "1.24.0")
    with DeviceSession(bare.pipe) as session:
        assert [wheel.name for wheel in session.brought] == ["Pillow"]
    assert [place.split("/")[-2] for place in bare.imported()] == ["PIL"]


def test_session_brings_nothing_to_a_device_that_has_enough(bare: Bare) -> None:
    bare.has("numpy", "numpy", "2.4.0")
    bare.has("pillow", "PIL", "13.0.0")
    for file in bare.wheels.iterdir():
        file.unlink()
    with DeviceSession(bare.pipe) as session:
        assert session.brought == ()
    assert bare.imported() == []


def test_what_the_agent_starts_has_the_packages_too(bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, subprocess, sys\nfrom pathlib import Path\n"
    code += "if 'EDGEBERT_CHILD' not in os.environ:\n    os.environ['EDGEBERT_CHILD'] = '1'\n"
    # The package is there for its own child only once the path is set, which is before it is imported.
    code += "    subprocess.run([sys.executable, '-c', 'import numpy'], check=True)\n"
    pin(bare, monkeypatch, numpy=numpy_wheel(code=code + TELLS))
    with DeviceSession(bare.pipe):
        pass
    assert [place.split("/")[-2] for place in bare.imported()] == ["numpy", "numpy", "PIL"]


def test_session_that_keeps_leaves_the_wheels_and_no_unpacked_file(bare: Bare) -> None:
    with DeviceSession(bare.pipe, keep=True) as session:
        pass
    kept = {name.rpartition("/")[2] for name in bare.left()}
    assert {wheel.sha256 for wheel in session.brought} < kept
    assert not any("packages-" in name or "session-" in name for name in bare.left())
    with DeviceSession(bare.pipe) as again:
        assert len(bare.imported()) == 4
    assert again.sent_bytes < 5_000
    assert not [name for name in bare.left() if "objects" in name]


def test_wheel_that_was_changed_on_the_device_is_sent_again(bare: Bare) -> None:
    with DeviceSession(bare.pipe, keep=True) as session:
        pass
    changed = bare.home / ".cache/edgebert/objects" / session.brought[0].sha256
    changed.write_bytes(bytes(len(changed.read_bytes())))
    with DeviceSession(bare.pipe) as again:
        assert again.sent_bytes > session.brought[0].size
    assert len(bare.imported()) == 4


def test_push_of_a_wheel_goes_on_where_the_link_was_cut(
    bare: Bare,
    start_device: Callable[..., Any],
    cutting_proxy: Callable[..., Any],
    host_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ballast = random.Random(0).randbytes(4 << 20)
    pin(bare, monkeypatch, numpy=numpy_wheel(ballast=ballast))
    with start_device(python=bare.python) as device:
        device.trust(host_home / ".ssh/known_hosts")
        with cutting_proxy(device.port, 3 << 20) as proxy:
            device.trust(host_home / ".ssh/known_hosts", port=proxy.port)
            cut = transport_of(f"pi@127.0.0.1:{proxy.port}", wheels=bare.wheels)
            with pytest.raises(LinkLostError), DeviceSession(cut):
                pass
        with DeviceSession(transport_of(f"pi@127.0.0.1:{device.port}", wheels=bare.wheels)) as session:
            assert len((device.home / "imported").read_text().splitlines()) == 2
            assert 1 << 20 < session.sent_bytes < len(ballast) - (1 << 20)
        assert not list(device.home.glob(".cache/edgebert/objects"))


# -- what is refused


def test_wheel_of_another_hash_in_the_folder_is_refused_and_the_device_left_as_it_was(bare: Bare) -> None:
    (file,) = bare.wheels.glob("numpy*")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(RefusedError, match="has SHA-256"), DeviceSession(bare.pipe):
        pass
    assert bare.imported() == []
    assert bare.left() == []


def test_folder_without_the_wheels_names_them_and_the_device_is_left_as_it_was(bare: Bare) -> None:
    (file,) = bare.wheels.glob("pillow*")
    file.unlink()
    with pytest.raises(InputNotFoundError, match="pillow") as caught, DeviceSession(bare.pipe):
        pass
    assert "pip download" in (caught.value.hint or "")
    assert bare.left() == []


def test_device_of_a_kind_that_has_no_wheels_is_refused_before_anything_is_fetched(
    bare: Bare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(wheel: PinnedWheel, staging: Path) -> str:
        raise AssertionError("nothing is to be fetched")

    monkeypatch.setattr(wheel_files, "_pip", pip)
    monkeypatch.setattr(wheel_pins, "PYTHONS", ("3.2",))
    device = LocalPipe(python=bare.pipe.python, environment=bare.pipe.environment)
    with pytest.raises(UnavailableError, match="edgebert brings none for Python") as caught, DeviceSession(device):
        pass
    assert "--python" in (caught.value.hint or "")
    assert bare.left() == []


def test_package_that_cannot_be_imported_is_an_error_with_its_reason(
    bare: Bare, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(bare, monkeypatch, numpy=numpy_wheel(code="raise ImportError('GLIBC_2.99 not found')"))
    with pytest.raises(UnavailableError, match=r"numpy.*cannot be imported.*GLIBC_2\.99"), DeviceSession(bare.pipe):
        pass
    assert bare.left() == []


def test_device_that_uses_another_version_than_was_sent_is_refused(bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(bare, monkeypatch, numpy=numpy_wheel(version="1.26.3"))
    with pytest.raises(RefusedError, match="something else than was sent"), DeviceSession(bare.pipe):
        pass


def test_packages_refuses_another_module_than_numpy_and_pillow(bare: Bare) -> None:
    with DeviceSession(bare.pipe) as session:
        wheel = {"name": "x", "sha256": session.brought[0].sha256, "module": "os", "version": "1"}
        with pytest.raises(RefusedError, match="`os` is nothing that a host brings"):
            session.ask("packages", {"wheels": [wheel]}, timeout_s=30)


def test_packages_refuses_a_wheel_that_was_not_pushed(bare: Bare) -> None:
    with DeviceSession(bare.pipe) as session:
        wheel = {"name": "numpy-1.whl", "sha256": "0" * 64, "module": "numpy", "version": "1"}
        with pytest.raises(BadDataError, match="is not here"):
            session.ask("packages", {"wheels": [wheel]}, timeout_s=30)


def test_agent_clears_away_where_the_host_closes_the_link_after_its_bye(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from edgebert.remote.device_link import Link\n"
        "from edgebert.remote.device_store import Store\n"
        "link = Link('00', sys.stdin.buffer, os.fdopen(os.dup(1), 'wb', buffering=0), Store(Path(sys.argv[1])))\n"
        "if sys.argv[2] == 'leaves': link.leave()\n"
        "link.start()\n"
        "time.sleep(1)\n"
        "print('cleared away')\n"
    )
    for state, said in (("leaves", "cleared away\n"), ("stays", "")):
        command = [sys.executable, "-c", code, str(tmp_path), state]
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert ran.stdout == said, ran.stderr


# -- without numpy


def test_agent_starts_with_the_standard_library_only(bare: Bare) -> None:
    """The link, the store, the bootstrap and what unpacks import nothing that a bare Python lacks."""
    code = (
        "import sys\n"
        "import edgebert.remote.device_session, edgebert.remote.device_packages, edgebert.remote.device_link\n"
        "from edgebert.remote.device_session import command_of\n"
        "command_of('there'), command_of('packages')\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))\n"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(bare.home)}
    environment.update({name: value for name, value in os.environ.items() if name.startswith("EDGEBERT_")})
    ran = subprocess.run(
        [str(bare.python), "-X", "importtime", "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    assert {"numpy", "PIL"}.isdisjoint(ran.stdout.split())
    assert "edgebert" in ran.stdout.split()


@pytest.mark.parametrize("kind", sorted(__import__("edgebert.remote.device_session", fromlist=["x"]).COMMANDS))
def test_every_command_of_a_session_is_there(kind: str) -> None:
    from edgebert.remote.device_session import command_of

    assert callable(command_of(kind))


# -- unpacking


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "x.whl"
    path.write_bytes(content)
    return path


def entry(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.filename = made.orig_filename = name  # as it is: the constructor would replace and cut
    made.create_system = 3
    made.external_attr = mode << 16
    return made


@pytest.mark.parametrize(
    "name",
    [
        "../x.py",
        "/etc/x.py",
        "numpy/../../x.py",
        "numpy//x.py",
        "./x.py",
        "numpy\\..\\x.py",
        "..",
        "numpy/\x1b[2J",
        "numpy/a\nb",
        "n" * 301,
        "//",
    ],
)
def test_unpack_refuses_a_hostile_name_and_writes_nothing(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, zip_of([("numpy/__init__.py", b""), (entry(name), b"x")]))
    (tmp_path / "to").mkdir()
    with pytest.raises(RefusedError, match="a wheel has an entry"):
        unpack(path, tmp_path / "to")
    assert sorted(found.name for found in tmp_path.rglob("*")) == ["to", "x.whl"]


def test_unpack_refuses_a_name_that_is_cut_at_a_nul(tmp_path: Path) -> None:
    content = zip_of([("numpy/__init__.pyX../../x", b"x")]).replace(b".pyX..", b".py\x00..")
    with pytest.raises(RefusedError, match=r"\\x00"):
        unpack(written(tmp_path, content), tmp_path / "to")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_unpack_refuses_what_is_no_file(kind: int, tmp_path: Path) -> None:
    path = written(tmp_path, zip_of([(entry("numpy/x", kind | 0o777), b"/etc/passwd")]))
    with pytest.raises(RefusedError, match="link or a device"):
        unpack(path, tmp_path / "to")


def test_unpack_refuses_a_name_that_is_there_twice(tmp_path: Path) -> None:
    path = written(tmp_path, zip_of([("numpy/x", b"1"), ("numpy/x", b"2")]))
    with pytest.raises(RefusedError, match="twice"):
        unpack(path, tmp_path / "to")


def test_unpack_refuses_more_than_a_wheel_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, zip_of([("numpy/x", bytes(1000)), ("numpy/y", b"")]))
    for limit, value in (("MAX_UNPACKED_BYTES", 999), ("MAX_ENTRIES", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(device_packages, limit, value)
            with pytest.raises(RefusedError, match="2 files of 1,000 bytes"):
                unpack(path, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_unpack_refuses_an_entry_that_is_larger_than_it_says(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("numpy/x", bytes(1 << 20))
    content = stream.getvalue()
    small = content.replace((1 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert small != content
    with pytest.raises(RefusedError, match="no wheel"):
        unpack(written(tmp_path, small), tmp_path / "to")
    assert sum(path.stat().st_size for path in (tmp_path / "to").rglob("*") if path.is_file()) <= 10


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all", numpy_wheel()[:-30], numpy_wheel()[30:]])
def test_unpack_refuses_what_is_no_zip_file(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no wheel"):
        unpack(written(tmp_path, content), tmp_path / "to")


def test_unpack_says_where_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(CannotWriteError, match="cannot unpack"):
        unpack(written(tmp_path, numpy_wheel()), Path("/proc/no"))


def test_put_on_path_takes_no_object_that_was_not_hashed(tmp_path: Path) -> None:
    content = numpy_wheel()
    sha256 = hashlib.sha256(content).hexdigest()
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / sha256).write_bytes(content)
    package = Package(name="numpy-1.26.4.whl", sha256=sha256, module="numpy", version="1.26.4")
    before = list(sys.path)
    with pytest.raises(EdgebertError, match="is not here"):
        put_on_path(Store(tmp_path), [package], tmp_path / "to")
    assert sys.path == before
