"""What breaks a rule of `hook.py` and may: each with a sentence. `benchmarks/audited_suite.py` fails where a whole run does not use a line."""

# See hook.py:
# ruff: noqa: PTH100, PTH120

from __future__ import annotations

import os

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


DEVICE = "tests/export/test_device_environment.py"
WHEEL = "tests/remote/test_device_wheel.py"
BARE = "tests/remote/test_bare_device.py"
CUDART = "tests/runtime/test_cuda.py"
HOST = os.uname().nodename


class Exemption:
    """One line of the table. No dataclass: a child process would import half the standard library for it.

    Attributes:
        event: as the hook calls it: exec, marshal.loads, pickle.find_class, import, ctypes.dlopen, cpython.run_file, socket,
            write, program, uncovered, os.system.
        what: the file, the class, the address or the program; `*` at its ends stands for anything.
        by: the module whose code did it; likewise.
        test: beginning of the ids of the tests in which it may happen; "" for anywhere.
        why: the sentence.
        unused: why a run may do without it; "" where a whole run that does not use it fails.
    """

    __slots__ = ("by", "event", "test", "unused", "what", "why")

    def __init__(self, event: str, what: str, *, by: str = "*", test: str = "", why: str, unused: str = "") -> None:
        self.event, self.what, self.by, self.test, self.why, self.unused = event, what, by, test, why, unused

    def covers(self, event: str, what: str, by: str, test: str) -> bool:
        """Whether this line lets an event pass."""
        return (
            self.event in (event, "*") and test.startswith(self.test) and _fits(self.what, what) and _fits(self.by, by)
        )

    def __repr__(self) -> str:
        inside = f" in {self.test}" if self.test else ""
        return f"{self.event} of {self.what} by {self.by}{inside}: {self.why}"


def _fits(pattern: str, text: str) -> bool:
    """Compare with a pattern that holds at most two stars, at its ends, or one inside."""
    if "*" in pattern[1:-1]:
        head, _, tail = pattern.partition("*")
        return text.startswith(head) and text.endswith(tail) and len(text) >= len(head) + len(tail)
    if pattern.startswith("*"):
        return pattern[1:-1] in text if len(pattern) > 1 and pattern.endswith("*") else text.endswith(pattern[1:])
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


def _of_devices(test: str) -> tuple[Exemption, ...]:
    """Return what may happen where the environment of a device is made: by pip, once, in the one test that leaves the loopback."""
    return (
        Exemption(
            "exec",
            "<string>",
            by="pip._vendor.*",
            test=test,
            why="pip's copy of six writes `raise ... from` at import",
            unused="no Python 3.10 on this computer",
        ),
        Exemption(
            "exec",
            "*/pip-*",
            test=test,
            why="ensurepip runs pip from the wheel that Python brings, which it unpacks beside itself",
            unused="the environment is in pytest's cache already",
        ),
        Exemption(
            "program",
            "*/rustc",
            by="pip._internal.network.session",
            test=test,
            why="pip says in its user agent which Rust is here",
            unused="no Rust on this computer",
        ),
        Exemption(
            "program",
            "*/bin/python*",
            by="tests.*",
            test=test,
            why="the Python 3.10 of the device, as pyenv has it",
            unused="no Python 3.10 on this computer",
        ),
        Exemption(
            "uncovered",
            "*-m ensurepip*",
            by="venv",
            test=test,
            why="the environment is made once; ensurepip takes pip from Python itself",
            unused="the environment is in pytest's cache already",
        ),
        Exemption(
            "socket",
            "*",
            test=test,
            why="pip fetches the device's backend, once; the one test that leaves the loopback",
            unused="the environment is in pytest's cache already",
        ),
        Exemption(
            "write",
            "*/pip/*",
            test=test,
            why="pip keeps what it fetched in its own cache",
            unused="it is there already",
        ),
    )


def _of_bindings() -> tuple[Exemption, ...]:
    """Return what may happen where TensorRT's binding wheels are fetched, once in a run, and imported by processes of their own."""
    test, missing = "tests/tensorrt/", "the wheels cannot be had here, and the tests say so"
    return (
        Exemption("exec", "<string>", by="pip._vendor.*", test=test, why="as for devices", unused=missing),
        Exemption(
            "program",
            "*/rustc",
            by="pip._internal.network.session",
            test=test,
            why="pip says in its user agent which Rust is here",
            unused="no Rust on this computer",
        ),
        Exemption(
            "socket",
            "*",
            test=test,
            why="pip fetches the official bindings, which may not be kept or passed on: the other test that leaves the loopback",
            unused=missing,
        ),
        Exemption(
            "write",
            "*/pip/*",
            test=test,
            why="pip keeps what it fetched in its own cache",
            unused="it is there already, or pip keeps none",
        ),
        *(
            Exemption(
                event,
                f"*/{package}/*",
                test=test,
                why="a child process imports the bindings from the temporary folder that they were installed into",
                unused=missing,
            )
            for event in ("exec", "import")
            for package in ("tensorrt_bindings", "tensorrt_rtx_bindings", "tensorrt_rtx_libs")
        ),
        Exemption(
            "ctypes.dlopen",
            "*/tensorrt_rtx_libs/*",
            test=test,
            why="the wheel of TensorRT for RTX loads its own libraries",
            unused=missing,
        ),
    )


def _of_brought_packages() -> tuple[Exemption, ...]:
    """Return what may happen where a host brings numpy and Pillow to a device that has none."""
    files, made, missing = (
        "tests/remote/test_wheel_files.py",
        "tests/remote/test_device_packages.py",
        "the wheels cannot be had here",
    )
    return (
        *(
            exemption
            for test in (files, BARE)
            for exemption in (
                Exemption(
                    "exec",
                    "<string>",
                    by="pip._vendor.*",
                    test=test,
                    why="pip's copy of six writes `raise ... from` at import",
                    unused="this pip has no such copy",
                ),
                Exemption(
                    "program",
                    "*/rustc",
                    by="pip._internal.network.session",
                    test=test,
                    why="pip says in its user agent which Rust is here",
                    unused="no Rust on this computer",
                ),
            )
        ),
        Exemption(
            "program",
            "*/venv/bin/python",
            by="asyncio.unix_events",
            test=BARE,
            why="a bare device: an environment of Python 3.10 without pip, which the test has made",
            unused=missing,
        ),
        Exemption(
            "exec",
            "<string>",
            by="importlib._bootstrap",
            test=BARE,
            why="numpy 1.26's `numpy.random` is compiled by Cython, which registers its generators in a line of Python at import",
            unused=missing,
        ),
        *(
            Exemption(
                event,
                "*/packages-*",
                test=BARE,
                why="a device imports the numpy and Pillow that its host has sent, from the session's own folder",
                unused=missing,
            )
            for event in ("exec", "import", "ctypes.dlopen")
        ),
        Exemption(
            "exec",
            "*/packages-*",
            by="importlib._bootstrap",
            test=made,
            why="tiny packages that the test has written, and sent to a device as wheels",
        ),
    )


EXEMPTIONS: tuple[Exemption, ...] = (
    # Code without a file, written by the module itself.
    Exemption("exec", "<string>", by="dataclasses", why="writes `__init__` and its kin of a dataclass"),
    Exemption("exec", "<string>", by="collections", why="writes `__new__` of a named tuple"),
    Exemption("exec", "<string>", by="inspect", why="evaluates the annotations of our own functions for typer"),
    Exemption("exec", "<string>", by="typing", why="evaluates forward references in annotations"),
    Exemption("exec", "<pytest match expression>", by="_pytest.mark.expression", why="`-m`", unused="no -m was given"),
    Exemption("exec", "<doctest edgebert.*", by="doctest", why="runs the examples in our own docstrings"),
    Exemption(
        "exec", "<ast>", by="onnxscript._internal.converter", why="evaluates constants in its own operators' source"
    ),
    Exemption(
        "exec", "<eval_with_key>*", by="torch.fx.graph_module", why="runs the Python it wrote of a graph it traced"
    ),
    Exemption(
        "exec", "<sqlalchemy generated *", by="sqlalchemy.*", why="writes wrappers of its own classes for optuna"
    ),
    Exemption("exec", "<attrs generated *", by="attr._make", why="writes methods of its own classes"),
    Exemption(
        "exec", "<string>", by="setuptools.build_meta", why="runs a setup.py; ours is missing, so setuptools' own line"
    ),
    Exemption(
        "exec", "<string>", by="hypothesis.internal.reflection", why="writes the signature of a test that it calls"
    ),
    Exemption(
        "exec",
        "/usr/lib/python3*/sitecustomize.py",
        by="importlib._bootstrap",
        why="the system's Python runs what its distributor put there",
        unused="no test started the system's Python",
    ),
    Exemption(
        "exec",
        "<class 'networkx.*",
        by="networkx.utils.decorators",
        why="writes wrappers of its own functions, for NNCF",
    ),
    Exemption("exec", "<string>", by="sqlalchemy.*", why="writes wrappers of its own functions for optuna"),
    Exemption("exec", "<string>", by="alembic.*", why="writes wrappers of its own functions for optuna"),
    Exemption("exec", "<string>", by="typing_inspection.typing_objects", why="pydantic's: writes predicates at import"),
    Exemption("exec", "<string>", by="torch.fx.*", why="writes wrappers of our model's forward when it traces it"),
    Exemption("exec", "<string>", by="torch.export._unlift", why="writes the signature of the graph it exports"),
    Exemption("exec", "<string>", by="torch._inductor.ops_handler", why="writes its own table of operators at import"),
    Exemption("exec", "<string>", by="sklearn.*", why="writes wrappers of its own functions at import"),
    Exemption("exec", "<string>", by="mpmath.*", why="writes wrappers of its own functions when sympy is imported"),
    Exemption("exec", "<string>", by="sympy*", why="reads its debug switch and version texts at import"),
    Exemption("exec", "<string>", by="scipy.*", why="writes wrappers of its own functions at import"),
    Exemption("exec", "<string>", by="numpy.f2py.auxfuncs", why="writes predicates of its own at import"),
    Exemption(
        "exec",
        "<_remote_module_non_scriptable>.py",
        by="torch.distributed.nn.jit.instantiator",
        why="fills torch's own template of a remote module at import; no peer is asked",
    ),
    Exemption(
        "*", "*", test="tests/audit/test_audit_hook.py", why="plants a violation of every rule, and reads its own log"
    ),
    # Unpickling between processes that started one another.
    Exemption(
        "pickle.find_class",
        "*",
        by="multiprocessing.*",
        test="tests/runtime/test_classifier.py",
        why="a pool that the test forks sends its own function to its workers",
    ),
    Exemption(
        "pickle.find_class",
        "*",
        by="multiprocessing.*",
        test="tests/runtime/test_processes.py",
        why="a pool that the test spawns sends its own function and locks to its workers",
    ),
    Exemption(
        "exec",
        "*/program.py",
        by="runpy",
        test="tests/runtime/test_processes.py",
        why="a spawned worker runs the program that started it, which the test has written",
    ),
    Exemption(
        "pickle.find_class",
        "*",
        by="torch.distributed.distributed_c10d",
        test="tests/train/test_train_loop.py",
        why="the two ranks of one `torchrun` on this computer send each other reports of our own classes",
    ),
    Exemption(
        "pickle.find_class",
        "*",
        by="torch.distributed.elastic.rendezvous.dynamic_rendezvous",
        test="tests/train/test_train_loop.py",
        why="`torchrun --standalone` keeps its own state in a store that it serves to itself on the loopback",
    ),
    # Programs that a test writes or builds itself, and starts on purpose.
    Exemption(
        "cpython.run_file",
        "*",
        test="tests/runtime/test_processes.py",
        why="the program whose workers are started anew",
    ),
    Exemption(
        "exec",
        "*",
        by="importlib._bootstrap",
        test="tests/test_agent.py::test_agent_runs_from_an_archive",
        why="the device's wheel, run unpacked from nothing but itself",
    ),
    Exemption(
        "program",
        "*",
        by="*test_examples_c",
        test="tests/test_examples_c.py",
        why="the C program, as the test has compiled it",
        unused="no compiler on this computer",
    ),
    *_of_devices(DEVICE),
    *_of_devices(WHEEL),
    *_of_bindings(),
    *_of_devices(BARE),
    *_of_brought_packages(),
    Exemption(
        "exec",
        "*+device-py3-none-any.whl/*",
        by="importlib._bootstrap",
        test="tests/remote/",
        why="a device runs the device wheel, which its host has made of this very code and sent",
    ),
    Exemption(
        "exec",
        "*+device-py3-none-any.whl/*",
        by="runpy",
        test="tests/remote/",
        why="the workers and the sampler of a device that is benched run from the same wheel",
    ),
    Exemption(
        "exec",
        "<string>",
        by="__main__",
        test="tests/remote/",
        why="a device runs the few lines that its host sends with the command, before edgebert is there",
    ),
    Exemption(
        "cpython.run_file",
        "*/python-with-a-difference",
        test="tests/remote/",
        why="a device whose Python is too old, or has no numpy: written by the test",
    ),
    Exemption(
        "program",
        "*/python-with-a-difference",
        by="asyncio.unix_events",
        test="tests/remote/",
        why="a device that lies: a program that the test has written, over a pipe",
    ),
    Exemption(
        "uncovered",
        "*-S -E -s -c import sys*",
        by="*test_device_wheel",
        test=WHEEL,
        why="the wheel is imported by a Python that has no package at all",
    ),
    # Processes that take nothing from the environment, on purpose.
    Exemption(
        "uncovered",
        "*from edgebert.install.selftest import main*",
        by="edgebert.install.selftest",
        why="the self-test of an installation is isolated, so that no variable decides what it imports",
    ),
    Exemption(
        "uncovered",
        "*-I -c *",
        by="edgebert.install.selftest",
        test="tests/install/test_selftest.py",
        why="self-tests that crash, hang or say something else, in place of the real one",
    ),
    Exemption(
        "ctypes.dlopen",
        "*/libcuda*",
        by="ctypes",
        test="tests/test_fingerprint.py",
        why="a stand-in for NVIDIA's driver, which the test has just compiled",
        unused="no C compiler",
    ),
    Exemption(
        "ctypes.dlopen",
        "*/libcudart.so.*",
        by="ctypes",
        test=CUDART,
        why="NVIDIA's own CUDA runtime, as the test has just installed it",
        unused="it cannot be fetched",
    ),
    Exemption(
        "socket",
        "*",
        test=CUDART,
        why="pip fetches NVIDIA's CUDA runtime into a folder of the test's own",
        unused="no index can be reached",
    ),
    Exemption(
        "exec",
        "<string>",
        by="pip._vendor.*",
        test=CUDART,
        why="pip's copy of six writes `raise ... from` at import",
        unused="this pip has no such copy",
    ),
    Exemption(
        "program",
        "*/rustc",
        by="pip._internal.network.session",
        test=CUDART,
        why="pip says in its user agent which Rust is here",
        unused="no Rust on this computer",
    ),
    Exemption(
        "write", "*/pip/*", test=CUDART, why="pip keeps what it fetched in its own cache", unused="it is there already"
    ),
    Exemption(
        "ctypes.dlopen",
        "*/libcudart_double.so",
        by="ctypes",
        why="a stand-in for NVIDIA's CUDA runtime, which the test has just compiled",
        unused="no C compiler",
    ),
    # Stand-ins for programs, written by the test itself.
    Exemption(
        "program",
        "*/ssh-keygen",
        by="edgebert.signing",
        test="tests/test_signing.py",
        why="an ssh-keygen that is too old, hangs or cannot be run",
    ),
    Exemption(
        "program",
        "*/classify",
        by="*test_examples_c",
        test="tests/test_examples_c.py",
        why="the C program of the examples, which the test has just compiled",
        unused="no C compiler, or a library is missing",
    ),
    *(
        Exemption(
            event,
            "*/site-packages/*",
            test="tests/test_examples_runtime.py::test_06",
            why="GStreamer comes with the system's Python, which is given the packages of this one",
            unused="GStreamer for Python is not installed",
        )
        for event in ("exec", "import", "ctypes.dlopen")
    ),
    Exemption(
        "write",
        "*/matplotlib/*",
        by="matplotlib.*",
        why="keeps its list of the computer's fonts in its own cache, once",
        unused="it is there already",
    ),
    # Connections.
    Exemption(
        "socket",
        HOST,
        test="tests/train/test_train_loop.py",
        why="`torchrun` looks up the name of this computer itself",
    ),
    Exemption(
        "socket",
        HOST,
        by="socket",
        test="tests/remote/",
        why="asyncssh looks up the name of this computer itself, whose server the tests are",
    ),
    Exemption(
        "socket",
        "no-such-device.invalid",
        test="tests/remote/test_ssh.py",
        why="a name that nobody has, by its standard (RFC 6761), must be said to be one",
    ),
    Exemption(
        "socket",
        "192.0.2.1:9",
        test="tests/test_phones_home.py",
        why="the planted call that the watch must find; no packet is sent",
        unused="strace is not installed",
    ),
    # Writes.
    Exemption(
        "write",
        "/proc/*",
        why="where tests want to be told that nothing can be written; the kernel makes no file there",
    ),
    Exemption(
        "write",
        "/no/such/folder/study.db",
        test="tests/train/test_tuning.py",
        why="a storage in a folder that is not there must be refused, and nothing is written",
    ),
    Exemption(
        "write",
        f"{CHECKOUT}/pytest-cache-files-*",
        by="_pytest.cacheprovider",
        why="pytest makes its cache folder beside the final name, once",
        unused="the cache is there already",
    ),
)
