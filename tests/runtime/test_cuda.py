"""The CUDA layer: over a stand-in with the same functions, and over NVIDIA's own libcudart 12 and 13 where they can be had."""

from __future__ import annotations

import ctypes
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgebert.errors import EdgebertError, MemoryExhaustedError, UnavailableError
from edgebert.runtime import cuda as cuda_module
from edgebert.runtime.cuda import FUNCTIONS, CudaRuntime, describe_version, load_cuda
from tests.tensorrt.cudart import CudartDouble, compiled

WHEELS = {"12": "nvidia-cuda-runtime-cu12==12.6.77", "13": "nvidia-cuda-runtime==13.0.96"}
VERSIONS = {"12": 12060, "13": 13000}


@pytest.fixture
def double(tmp_path: Path) -> Iterator[CudartDouble]:
    made = CudartDouble(compiled(tmp_path))
    yield made
    assert made.live() == {}


@pytest.fixture
def runtime(double: CudartDouble) -> CudaRuntime:
    return double.runtime


def test_every_function_has_its_types(runtime: CudaRuntime) -> None:
    for name in FUNCTIONS:
        bound = getattr(runtime._library, name)
        assert bound.restype is ctypes.c_int
        assert len(bound.argtypes) == len(FUNCTIONS[name])


def test_versions_and_attributes(runtime: CudaRuntime, double: CudartDouble) -> None:
    assert (runtime.runtime_version(), runtime.driver_version(), runtime.device_count()) == (12060, 12060, 1)
    assert (runtime.compute_capability(), runtime.multiprocessors()) == ("8.7", 8)
    assert runtime.memory() == (3 << 30, 7 << 30)
    assert not runtime.shares_host_memory()
    double.set("integrated", 1)
    assert runtime.shares_host_memory()


def test_addresses_keep_their_64_bits(runtime: CudaRuntime) -> None:
    address = runtime.allocate(64)
    assert address >> 56 == 1  # the stand-in's mark of GPU memory
    runtime.free(address)


def _there_and_back(runtime: CudaRuntime) -> None:
    """Send bytes to the GPU and back on a stream of our own."""
    size, stream = 4096, runtime.create_stream()
    host, other, device = runtime.allocate_host(size), runtime.allocate_host(size), runtime.allocate(size)
    try:
        here, there = (
            np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), np.uint8)
            for address in (host, other)
        )
        here[:] = np.arange(size) % 251
        there[:] = 0
        runtime.copy_to_device(device, host, size, stream)
        runtime.copy_to_host(other, device, size, stream)
        runtime.synchronize(stream)
        assert np.array_equal(here, there)
        _captured(runtime, stream, here, there, (host, device, other))
        _timed(runtime, stream)
    finally:
        runtime.free(device)
        runtime.free_host(host)
        runtime.free_host(other)
        runtime.destroy_stream(stream)


def _captured(
    runtime: CudaRuntime,
    stream: int,
    here: np.ndarray,
    there: np.ndarray,
    addresses: tuple[int, int, int],
) -> None:
    """Do the same as a graph, launched twice."""
    host, device, other = addresses
    runtime.begin_capture(stream)
    runtime.copy_to_device(device, host, len(here), stream)
    runtime.copy_to_host(other, device, len(here), stream)
    graph = runtime.end_capture(stream)
    executable = runtime.instantiate(graph)
    try:
        for seed in range(2):
            here[:] = np.random.default_rng(seed).integers(0, 256, len(here), np.uint8)
            runtime.launch(executable, stream)
            runtime.synchronize(stream)
            assert np.array_equal(here, there)
    finally:
        runtime.destroy_executable(executable)
        runtime.destroy_graph(graph)


def _timed(runtime: CudaRuntime, stream: int) -> None:
    start, end = runtime.create_event(), runtime.create_event()
    try:
        runtime.record(start, stream)
        runtime.record(end, stream)
        elapsed = runtime.elapsed_ms(start, end)
        assert math.isfinite(elapsed)
        assert elapsed >= 0
    finally:
        runtime.destroy_event(start)
        runtime.destroy_event(end)


def test_bytes_go_there_and_back(runtime: CudaRuntime) -> None:
    _there_and_back(runtime)


def test_nothing_is_done_before_somebody_waits(runtime: CudaRuntime, double: CudartDouble) -> None:
    # What makes a forgotten wait show in the tests of the runner.
    stream, done = runtime.create_stream(), []
    double.launch(stream, lambda: done.append(1))
    assert done == []
    runtime.synchronize(stream)
    assert done == [1]
    runtime.destroy_stream(stream)


def test_a_spoilt_capture_is_an_error(runtime: CudaRuntime) -> None:
    stream = runtime.create_stream()
    runtime.begin_capture(stream)
    with pytest.raises(EdgebertError, match="error 900"):
        runtime.synchronize(stream)
    with pytest.raises(EdgebertError, match="error 901"):
        runtime.end_capture(stream)
    runtime.destroy_stream(stream)


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (2, MemoryExhaustedError, "cudaErrorMemoryAllocation: out of memory"),
        (35, UnavailableError, "cudaErrorInsufficientDriver"),
        (100, UnavailableError, "cudaErrorNoDevice"),
        (700, EdgebertError, "error 700"),
    ],
)
def test_an_error_says_which_function_and_what(
    runtime: CudaRuntime, double: CudartDouble, code: int, kind: type[EdgebertError], said: str
) -> None:
    double.fail("cudaMalloc", code)
    with pytest.raises(EdgebertError, match=rf"`cudaMalloc` failed with error {code}, ") as caught:
        runtime.allocate(1)
    assert type(caught.value) is kind
    assert said in caught.value.what


def test_a_library_that_is_something_else_is_refused() -> None:
    with pytest.raises(UnavailableError, match=r"`libc\.so\.6` is no CUDA runtime"):
        load_cuda(("libc.so.6",))


def test_a_missing_library_names_all_places_that_were_tried() -> None:
    with pytest.raises(UnavailableError, match="cannot be loaded") as caught:
        load_cuda(("libno-such.so.1", "/no/such/libcudart.so.9"))
    assert caught.value.expected == "one of libno-such.so.1, /no/such/libcudart.so.9"
    assert "nvidia-jetpack" in str(caught.value.hint)


def test_the_first_library_that_loads_is_taken(double: CudartDouble) -> None:
    assert load_cuda(("libno-such.so.1", str(double.path))).name == str(double.path)


def test_the_layer_keeps_away_from_what_differs_between_12_and_13() -> None:
    assert "cudaGetDeviceProperties" not in FUNCTIONS
    source = Path(cuda_module.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'"(cuda[A-Z]\w+)"', source)) == {*FUNCTIONS, "cudaGetErrorName", "cudaGetErrorString"}


@pytest.mark.parametrize(("version", "text"), [(12060, "12.6"), (13020, "13.2"), (0, "0.0")])
def test_describe_version(version: int, text: str) -> None:
    assert describe_version(version) == text


# NVIDIA's own libraries: installed for the test into a folder that it removes, never committed.


@pytest.fixture(scope="module")
def system() -> CudaRuntime:
    """The CUDA runtime of a computer that has one, as a program finds it: of a Jetson, or of a computer with a GPU."""
    try:
        return load_cuda()
    except UnavailableError as error:
        pytest.skip(error.what)


def test_the_systems_library_works_or_says_why_not(system: CudaRuntime) -> None:
    assert system.runtime_version() >= 12000
    _works_or_says_why_not(system)


@pytest.fixture(scope="module", params=["12", "13"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, CudaRuntime]:
    major: str = request.param
    if sys.platform != "linux":
        pytest.skip("the wheels are for Linux")
    folder = tmp_path_factory.mktemp(f"cudart-{major}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--no-compile"]
    command += ["--disable-pip-version-check", "--retries", "1", "--target", str(folder), WHEELS[major]]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ})
    if ran.returncode:
        pytest.skip(f"pip cannot fetch {WHEELS[major]}: {ran.stderr.strip().splitlines()[-1]}")
    library = next(folder.rglob(f"libcudart.so.{major}"))
    return major, load_cuda((str(library),))


def test_the_real_library_has_every_function(real: tuple[str, CudaRuntime]) -> None:
    major, runtime = real
    assert runtime.runtime_version() == VERSIONS[major]


def test_the_real_library_works_or_says_why_not(real: tuple[str, CudaRuntime]) -> None:
    _works_or_says_why_not(real[1])


def _works_or_says_why_not(runtime: CudaRuntime) -> None:
    if not _has_gpu(runtime):
        with pytest.raises(EdgebertError, match=r"error (35|100)"):
            runtime.allocate(64)
        with pytest.raises(EdgebertError, match=r"error (35|100)"):
            runtime.create_stream()
        return
    assert re.fullmatch(r"\d+\.\d", runtime.compute_capability())
    assert runtime.multiprocessors() > 0
    assert 0 < runtime.memory()[0] <= runtime.memory()[1]
    _there_and_back(runtime)
    stream = (
        runtime.create_stream()
    )  # a capture that was spoilt leaves the stream as it was, which the runner relies on
    runtime.begin_capture(stream)
    with pytest.raises(EdgebertError, match="error 900"):
        runtime.synchronize(stream)
    with pytest.raises(EdgebertError):
        runtime.end_capture(stream)
    runtime.synchronize(stream)
    runtime.destroy_stream(stream)


def _has_gpu(runtime: CudaRuntime) -> bool:
    try:
        return runtime.device_count() > 0
    except UnavailableError:
        return False
