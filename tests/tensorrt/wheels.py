"""The official Python bindings of TensorRT without TensorRT: wheels from PyPI, over libraries with nothing in them, in child processes.

Reference, section 11.1 (method A). The wheels are proprietary: they are fetched when the tests run, into a temporary folder that the
fixture of `conftest.py` removes, and neither they nor their text is ever committed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.tensorrt.api import Api, api_from_json

INTROSPECT = Path(__file__).with_name("introspect.py")
WHEEL_NEEDS = ((3, 10), (3, 12))  # CPython; of 10.3.0 and 10.7.0 there is no wheel for a newer one

_FETCH_SECONDS = 300


class WheelsMissing(Exception):
    """The wheels, or what makes use of them, cannot be had on this computer; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One version of the bindings.

    Attributes:
        version: as `__version__` says it.
        requirement: what pip is asked for.
        stands_for: which TensorRT a user has, of which this is the nearest on PyPI.
        classes: how many public classes there are, enums not counted (reference, section 11.1 step 6).
        enums: how many public enums.
    """

    version: str
    requirement: str
    stands_for: str
    classes: int
    enums: int

    @property
    def major(self) -> int:
        """The number in the names of the libraries."""
        return int(self.version.split(".")[0])


WHEELS = (
    Wheel(
        version="10.3.0",
        requirement="tensorrt-cu12-bindings==10.3.0",
        stands_for="JetPack 6.1 to 6.2.2",
        classes=124,
        enums=52,
    ),
    Wheel(
        version="10.7.0",
        requirement="tensorrt-cu12-bindings==10.7.0",
        stands_for="JetPack 6 with the archive of TensorRT 10.7",
        classes=131,
        enums=53,
    ),
    Wheel(
        version="10.13.3.9",
        requirement="tensorrt-cu12-bindings==10.13.3.9",
        stands_for="JetPack 7.0 and 7.1",
        classes=141,
        enums=58,
    ),
    Wheel(
        version="10.16.1.11",
        requirement="tensorrt-cu12-bindings==10.16.1.11",
        stands_for="JetPack 7.2",
        classes=149,
        enums=63,
    ),
    Wheel(
        version="11.4.0.106",
        requirement="tensorrt-cu13-bindings==11.4.0.106",
        stands_for="TensorRT 11.4.1",
        classes=137,
        enums=64,
    ),
)

# The complete list of what the bindings link against, found by their own messages; none of it is called at import.
_LIBRARIES = {
    "libnvinfer": """
void *createInferBuilder_INTERNAL(void *logger, int version) { return 0; }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return 0; }
void *createInferRuntime_INTERNAL(void *logger, int version) { return 0; }
void *getBuilderPluginRegistry(int capability) { return 0; }
void *getPluginRegistry(void) { return 0; }
""",
    "libnvinfer_plugin": "int initLibNvInferPlugins(void *logger, const char *space) { return 1; }\n",
    "libnvonnxparser": """
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
""",
}


@dataclass(frozen=True, kw_only=True)
class Bindings:
    """One version, installed: where it lies, and its API."""

    wheel: Wheel
    site: Path
    stubs: Path
    api: Api

    def run(self, code: str, *, also: tuple[Path, ...] = ()) -> str:
        """Run Python in a process where `import tensorrt` gives this version, and return what it printed.

        Args:
            code: the program; `tensorrt` is imported by its own name, as on a device.
            also: further folders for PYTHONPATH.

        Raises:
            AssertionError: it ended with another status than 0; the message holds what it said.
        """
        alias = "import sys, tensorrt_bindings; sys.modules['tensorrt'] = tensorrt_bindings\n"
        return _run(["-c", alias + code], self.site, self.stubs, also)


def require_host() -> None:
    """Say why this computer cannot load the wheels.

    Raises:
        WheelsMissing: not Linux on x86-64 with glibc, a Python without a wheel, or no C compiler.
    """
    system, machine, libc = platform.system(), platform.machine(), platform.libc_ver()[0]
    if (system, machine, libc) != ("Linux", "x86_64", "glibc"):
        raise WheelsMissing(f"the wheels are for Linux on x86-64 with glibc, this is {system} on {machine}")
    oldest, newest = WHEEL_NEEDS
    if not oldest <= sys.version_info[:2] <= newest:
        raise WheelsMissing(f"TensorRT 10.3 has wheels up to Python 3.12, this is {platform.python_version()}")
    if shutil.which("gcc") is None:
        raise WheelsMissing("no C compiler (gcc) to build the stub libraries")


def installed(wheel: Wheel, folder: Path) -> Path:
    """Install a wheel, and nothing with it, into `folder`/VERSION.

    Raises:
        WheelsMissing, AssertionError: as `fetched`.
    """
    return fetched((wheel.requirement,), folder / wheel.version)


def fetched(requirements: tuple[str, ...], target: Path) -> Path:
    """Install wheels, and nothing with them, into a folder, and return it.

    Raises:
        WheelsMissing: pip reaches no index that has them, or one that is too slow.
        AssertionError: pip reaches one, and fails.
    """
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary", ":all:", "--no-compile"]
    command += ["--disable-pip-version-check", "--retries", "1", "--target", str(target), *requirements]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_FETCH_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise WheelsMissing(f"pip fetched {' '.join(requirements)} for {_FETCH_SECONDS} s and was not done") from error
    if ran.returncode and ("from versions: none" in ran.stderr or "onnection" in ran.stderr):
        raise WheelsMissing(f"pip cannot fetch {' '.join(requirements)}: {ran.stderr.strip().splitlines()[-1]}")
    assert ran.returncode == 0, ran.stderr
    return target


def stub_libraries(major: int, folder: Path) -> Path:
    """Compile the three libraries that the bindings of a major version link against into `folder`/stubs-MAJOR."""
    target = folder / f"stubs-{major}"
    target.mkdir()
    for name, source in _LIBRARIES.items():
        file = target / f"{name}.so.{major}"
        code = target / f"{name}.c"
        code.write_text(source, encoding="ascii")
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{file.name}", "-o", str(file), str(code)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert ran.returncode == 0, ran.stderr
    return target


def read_api(site: Path, stubs: Path) -> Api:
    """Read the API of the version in `site`, in a child process."""
    return api_from_json(json.loads(_run([str(INTROSPECT)], site, stubs)))


def all_bindings(folder: Path) -> dict[str, Bindings]:
    """Install every version into a folder and read it: version -> what was installed.

    Raises:
        WheelsMissing: as `require_host` and `installed`.
    """
    require_host()
    stubs = {major: stub_libraries(major, folder) for major in sorted({wheel.major for wheel in WHEELS})}
    found = {}
    for wheel in WHEELS:
        site = installed(wheel, folder)
        api = read_api(site, stubs[wheel.major])
        found[wheel.version] = Bindings(wheel=wheel, site=site, stubs=stubs[wheel.major], api=api)
    return found


def _run(arguments: list[str], site: Path, stubs: Path, also: tuple[Path, ...] = ()) -> str:
    # The loader reads LD_LIBRARY_PATH only when a process starts; the site folder comes first, so that no other TensorRT is met.
    environment = {**os.environ, "LD_LIBRARY_PATH": str(stubs)}
    environment["PYTHONPATH"] = os.pathsep.join([str(site), *map(str, also), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-B", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
