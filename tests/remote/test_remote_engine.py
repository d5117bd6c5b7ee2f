"""`compile --host` for a Jetson: both graphs are made here, the engines are built and measured there, and a device that lies is contained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("asyncssh")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgebert.bundle import read_bundle
from edgebert.errors import EdgebertError, MemoryExhaustedError, RefusedError
from edgebert.export.compile import CompileOptions
from edgebert.export.engine import TypingChoice
from edgebert.export.engine_choice import noise_trial
from edgebert.export.engine_form import EngineAsked
from edgebert.export.forms import form_from_graph
from edgebert.export.metadata import bytes_of_model, parse_graph, with_metadata
from edgebert.remote.compile import bundle_on
from edgebert.remote.engine import compared_on, engine_on
from edgebert.remote.session import DeviceSession
from edgebert.remote.transport import LocalPipe
from edgebert.runtime.engine_manifest import ENGINE_FILE, EngineManifest
from edgebert.runtime.tensorrt_api import Typing
from edgebert.target import resolve_target
from tests.export.test_engine import _DRIVER
from tests.remote.test_remote_hostile import DEVICE
from tests.tensorrt.cudart import compiled

if TYPE_CHECKING:
    from tests.conftest import Toy

ROOT = Path(__file__).parents[2]
Board = Callable[..., LocalPipe]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver that knows one GPU, and the double of CUDA under the name that is looked for."""
    folder = tmp_path_factory.mktemp("libraries")
    os.link(compiled(folder), folder / "libcudart.so.12")  # one library under two names
    (folder / "driver.c").write_text(_DRIVER)
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler is not None, "the double of CUDA was compiled just now"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(folder / "driver.c")], check=True
    )
    return folder


@pytest.fixture
def board(libraries: Path, tmp_path: Path) -> Board:
    """Return a function that makes a device with the doubles of TensorRT and CUDA, and what goes wrong there.

    Its Python finds them as that of a Jetson finds TensorRT: among its packages, whatever PYTHONPATH says.
    """
    home, python = tmp_path / "device", tmp_path / "python"
    (home / "tmp").mkdir(parents=True)
    packages = python / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (python / "bin").mkdir()
    (python / "bin/python").symlink_to(Path(sys.executable).resolve())
    (python / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    places = (ROOT / "tests/tensorrt/site", Path(np.__file__).parents[1], ROOT)
    (packages / "board.pth").write_text("".join(f"{place}\n" for place in places))

    def make(**script: Any) -> LocalPipe:
        return LocalPipe(
            python=str(python / "bin/python"),
            environment={
                "HOME": str(home),
                "PATH": os.environ["PATH"],
                "TMPDIR": str(home / "tmp"),
                "LD_LIBRARY_PATH": str(libraries),
                "EDGEBERT_TEST_CUDART": str(libraries / "libcudart_double.so"),
                "EDGEBERT_TEST_TENSORRT": json.dumps(script),
            },
        )

    return make


@pytest.fixture
def graph(toy: Toy, tmp_path: Path) -> Path:
    path = tmp_path / "toy.onnx"
    path.write_bytes(bytes_of_model(with_metadata(parse_graph(toy.graph()), toy.card, ())))
    return path


def made_on(device: LocalPipe, graph: Path, tmp_path: Path, *, keep: bool = False, **changes: Any) -> Any:
    options = CompileOptions(**{"targets": ("jetson",), "canary": "synthetic", "max_seconds": 0.1, **changes})
    return bundle_on(device, graph, tmp_path / "toy.edgebert", options, keep=keep)


def test_bundle_on_builds_an_engine_on_the_device_and_shows_how_far_it_is(
    board: Board, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgebert._progress._PLAIN_SECONDS", 0.0)
    made = made_on(board(), graph, tmp_path)
    assert made.verified == ("jetson",)
    bundle = read_bundle(made.path)
    manifest = EngineManifest.from_bytes(bundle.files[f"forms/jetson/{ENGINE_FILE}"])
    (form,) = bundle.manifest.forms
    assert form.fingerprint == manifest.fingerprint
    assert form.notes[0].startswith(f"{manifest.label}: {manifest.typing} is ")
    assert set(bundle.manifest.canaries[0].logits) >= {"onnxruntime", "tensorrt:GPU"}
    shown = capsys.readouterr().err
    assert "build weak on local:" in shown
    assert "build strong on local:" in shown
    assert [path for path in (tmp_path / "device/.cache").rglob("*") if path.is_file()] == []


def test_bundle_on_keeps_the_times_of_kernels_where_it_is_asked_to(board: Board, graph: Path, tmp_path: Path) -> None:
    made_on(board(), graph, tmp_path, keep=True, typing="strong")
    kept = tmp_path / "device/.cache/edgebert/tensorrt"
    assert [path.name.partition("-")[0] for path in kept.iterdir()] == ["timing"]


def test_bundle_on_builds_for_several_images_where_it_is_asked_to(board: Board, graph: Path, tmp_path: Path) -> None:
    made = made_on(board(), graph, tmp_path, typing="strong", max_batch=4)
    manifest = EngineManifest.from_bytes(read_bundle(made.path).files[f"forms/jetson/{ENGINE_FILE}"])
    assert (manifest.min_batch, manifest.max_batch) == (1, 4)


def test_bundle_on_survives_a_typing_that_the_device_cannot_build(board: Board, graph: Path, tmp_path: Path) -> None:
    made = made_on(board(build_errors={"weak": ["a fault of the weak one"]}), graph, tmp_path)
    notes = made.forms[0].notes
    assert any(note.startswith("weak failed: ") and "a fault of the weak one" in note for note in notes)


def test_bundle_on_says_why_no_engine_was_built(board: Board, graph: Path, tmp_path: Path) -> None:
    device = board(build_errors={"weak": ["one fault"], "strong": ["another fault"]})
    with pytest.raises(
        EdgebertError, match=r"on `local:\S*`: no engine could be built and run: weak: .*one fault.*another fault"
    ):
        made_on(device, graph, tmp_path)
    assert not (tmp_path / "toy.edgebert").exists()


def test_bundle_on_explains_a_build_that_the_device_ended(board: Board, graph: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgebertError, match="the build was killed") as caught:
        made_on(board(dies="SIGKILL"), graph, tmp_path, typing="strong")
    assert caught.value.exit_code == 75
    assert not (tmp_path / "toy.edgebert").exists()


def test_bundle_on_survives_an_engine_that_crashes_where_it_is_first_run(
    board: Board, graph: Path, tmp_path: Path
) -> None:
    made = made_on(board(dies="SIGSEGV", dies_in="run", dies_of="weak"), graph, tmp_path)
    notes = made.forms[0].notes
    assert notes[0].startswith("strong-fp16: strong is the only one that holds accuracy")
    crash = "weak failed: the engine was built, and crashes where it is first run (signal 11)"
    assert any(note.startswith(crash) for note in notes)


def test_bundle_on_says_why_every_engine_failed(board: Board, graph: Path, tmp_path: Path) -> None:
    device = board(
        dies="SIGSEGV", dies_in="run", dies_of="weak", build_errors={"strong": ["a fault of the strong one"]}
    )
    with pytest.raises(EdgebertError, match=r"weak: .* crashes where .*; strong: .*a fault of the strong one"):
        made_on(device, graph, tmp_path)


def test_bundle_on_ends_as_the_first_typing_did_where_every_engine_failed(
    board: Board, graph: Path, tmp_path: Path
) -> None:
    said = ["Error Code 2: OutOfMemory (Requested amount of GPU memory (272573440 bytes) could not be allocated.)"]
    device = board(dies="SIGSEGV", dies_in="run", dies_of="strong", build_errors={"weak": said})
    with pytest.raises(MemoryExhaustedError, match=r"weak: .*; strong: .* crashes where"):
        made_on(device, graph, tmp_path)


def test_bundle_on_builds_where_no_times_can_be_kept(board: Board, graph: Path, tmp_path: Path) -> None:
    given = board()
    inside = str(tmp_path / "device/in-the-way/cache")
    device = replace(given, environment={**(given.environment or {}), "XDG_CACHE_HOME": inside})
    (tmp_path / "device/in-the-way").write_bytes(b"")
    made = made_on(device, graph, tmp_path, keep=True, typing="strong")
    assert any("timing cache off: its folder cannot be made (Not a directory)" in note for note in made.forms[0].notes)


def test_memory_that_runs_out_on_a_device_is_told_from_a_lock(board: Board, graph: Path, tmp_path: Path) -> None:
    with pytest.raises(MemoryExhaustedError, match=r"on `local:\S*`: the build was killed"):
        made_on(board(dies="SIGKILL"), graph, tmp_path, typing="strong")


def test_bundle_on_measures_both_precisions_on_the_device_and_keeps_both(board: Board, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from edgebert.calibration.quantize import QuantizeOptions, int8_graph_from_graph
    from edgebert.export.graph import graph_from_checkpoint
    from edgebert.train import TrainOptions, checkpoint_from_data

    checkpoint, fp32, int8 = (tmp_path / name for name in ("student", "fp32.onnx", "int8.onnx"))
    checkpoint_from_data("digits", checkpoint, TrainOptions(model="nano", epochs=2))
    graph_from_checkpoint(checkpoint, fp32)
    int8_graph_from_graph(fp32, "digits", int8, QuantizeOptions(images=64, effort="fast"))
    made = made_on(
        board(),
        int8,
        tmp_path,
        canary=None,
        precision="auto",
        float_graph=fp32,
        data="digits",
        keep_both=True,
        max_drop=100.0,
        min_agreement=0.0,
    )
    ships, beside = {"int8": ("jetson", "jetson-fp16"), "fp32": ("jetson", "jetson-int8")}[made.precision]
    assert [form.target for form in made.forms] == [ships, beside]
    assert "INT8" in made.verdict
    assert "FP16" in made.verdict
    assert read_bundle(made.path).manifest.measured["precision_choice"]


@pytest.mark.slow
def test_sizes_on_builds_and_measures_engines_on_the_device(board: Board) -> None:
    pytest.importorskip("torch")
    from edgebert.remote.size import sizes_on
    from edgebert.train.sizing import SizeOptions

    options = SizeOptions(
        image_size=8, target="jetson", budget_ms=1000.0, shapes=("d32-l2-h2-r2",), threads=1, timed_images=4
    )
    report = sizes_on(board(), "digits", options)
    assert report.proposed == "d32-l2-h2-r2"
    assert all(latency.queries >= 100 for latency in report.rows[0].latencies.values())


def test_forms_are_compared_on_the_device(board: Board, graph: Path, toy: Toy) -> None:
    form = form_from_graph(graph.read_bytes(), resolve_target("cpu"))
    images = toy.images(5)
    with DeviceSession(board()) as session:
        found = compared_on(session, [form, form], toy.spec, images, max_seconds=0.1)
    assert len(found.rows) == len(found.times) == 2
    np.testing.assert_allclose(found.rows[1], toy.logits(images), atol=1e-4)
    assert all(block.size and (block > 0).all() for round_ in found.times[0] for block in round_)


# A device that lies


@pytest.fixture
def lying(tmp_path: Path) -> Callable[[str], LocalPipe]:
    """Return a function that makes a device of a program."""

    def make(code: str) -> LocalPipe:
        path = tmp_path / "python-with-a-difference"
        path.write_text(f"#!{sys.executable}\n{DEVICE}\n{code}\n")
        path.chmod(0o755)
        return LocalPipe(python=str(path), environment={"HOME": str(tmp_path), "PATH": os.environ["PATH"]})

    return make


TRIED = (
    "{'typing': 'strong', 'failure': '', 'accuracy': 1.0, 'latency_ms': 1.0, 'queries': 9, 'seconds': 1.0, 'resident_mib': 1, "
    "'least_available_mib': 1, 'timing_cache': 'new', 'builder_flags': [], 'notes': []}"
)
ACCOUNT = "{'typing': 'strong', 'reason': 'because', 'tried': [tried]}"
ENGINE = f"well(); r = until('engine'); tried = {TRIED}; account = {ACCOUNT}; n = r['number']\n"
LEAVE = "\nr = until('bye'); frame('answer', r['number'])"
PROGRESS = "what='build strong', done=50, total=100, note='x'"


def ask_engine(device: LocalPipe, toy: Toy, typing: TypingChoice = "strong") -> Any:
    settings = EngineAsked().settings(typing, "fp16")
    graphs: dict[Typing, bytes] = {"strong": toy.graph()}
    if typing == "auto":
        graphs["weak"] = toy.graph()
    with DeviceSession(device) as session:
        return engine_on(session, graphs, settings, noise_trial(toy.spec), keep=False)


def test_the_honest_engine_that_the_lies_vary_is_taken(lying: Callable[[str], LocalPipe], toy: Toy) -> None:
    code = f"frame('progress', n, {PROGRESS}); frame('answer', n, [('engine.plan', b'x')], account=account)"
    chosen = ask_engine(lying(ENGINE + code + LEAVE), toy)
    assert (dict(chosen.files), chosen.account.reason) == ({"engine.plan": b"x"}, "because")


@pytest.mark.parametrize(
    "code",
    [
        "frame('answer', n)",
        "frame('answer', n, account=[])",
        "frame('answer', n, account={**account, 'typing': 'weak'})",
        "frame('answer', n, account={**account, 'typing': 'loose'})",
        "frame('answer', n, account={**account, 'tried': []})",
        "frame('answer', n, account={**account, 'tried': [tried] * 50})",
        "frame('answer', n, account={**account, 'tried': [{**tried, 'failure': 'it failed'}]})",
        "frame('answer', n, account={**account, 'tried': [{**tried, 'accuracy': None}]})",
        "frame('answer', n, account={**account, 'tried': [{**tried, 'accuracy': 1.5}]})",
        "frame('answer', n, account={**account, 'tried': [{**tried, 'latency_ms': -1.0}]})",
        "frame('answer', n, account={**account, 'tried': [{**tried, 'seconds': -1.0}]})",
        "frame('answer', n, account={**account, 'tried': [{**tried, 'notes': ['x'] * 1000}]})",
        "frame('answer', n, account={**account, 'tried': [{**tried, 'latency_ms': 'fast'}]})",
        "frame('progress', n, what='x', done=-1, total=100, note='')",
        "frame('progress', n, what='x', done=2, total=1, note='')",
        "frame('progress', n, what=1, done=1, total=1, note='')",
        "frame('progress', n, what='x', done=1, total=1 << 60, note='')",
        "frame('owned', n)",
        "line(nonce=nonce, number=number + 1, type='answer', re=n, blobs=[['engine.plan', 1 << 40]])",
    ],
)
def test_engine_on_refuses_what_cannot_be_trusted(lying: Callable[[str], LocalPipe], toy: Toy, code: str) -> None:
    with pytest.raises(RefusedError) as caught:
        ask_engine(lying(f"{ENGINE}{code}; until('x')"), toy)
    assert str(caught.value).replace("\n", "").isprintable()


def test_engine_on_refuses_a_device_that_says_nothing_of_a_typing(lying: Callable[[str], LocalPipe], toy: Toy) -> None:
    code = "frame('answer', n, [('engine.plan', b'x')], account=account)"
    with pytest.raises(RefusedError, match="weak"):
        ask_engine(lying(f"{ENGINE}{code}; until('x')"), toy, "auto")


def test_no_control_character_of_an_engine_is_kept_or_shown(
    lying: Callable[[str], LocalPipe],
    toy: Toy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("edgebert._progress._PLAIN_SECONDS", 0.0)
    code = (
        r"frame('progress', n, what='\x1b[2Jwhat', done=1, total=2, note='\x9bnote'); "
        r"tried.update(notes=['\x1b'], timing_cache='\x1b', builder_flags=['\x1b']); "
        r"failed = {**tried, 'typing': 'weak', 'failure': 'a\x1bb\nc'}; "
        r"frame('answer', n, account={**account, 'reason': '\x1b[2J', 'tried': [failed, tried]})"
    )
    account = ask_engine(lying(ENGINE + code + LEAVE), toy, "auto").account
    assert account.reason.isprintable()
    for tried in account.tried:
        for text in (tried.failure, tried.timing_cache, *tried.notes, *tried.builder_flags):
            assert text.isprintable()
    assert capsys.readouterr().err.replace("\n", "").isprintable()


COMPARE = """
well(); r = until('compare'); n = r['number']
import io, zipfile, numpy as np
def npy(array):
    stream = io.BytesIO(); np.lib.format.write_array(stream, array, allow_pickle=True); return stream.getvalue()
def npz(columns):
    stream = io.BytesIO(); np.savez(stream, **columns); return stream.getvalue()
rows = npy(np.zeros((2, 3, 4), np.float32))
columns = {f"{form}-0-{block}": np.ones(3, np.int64) for form in range(2) for block in range(2)}
"""


@pytest.mark.parametrize(
    "code",
    [
        "frame('answer', n, hardware='x', threads='1', rounds=1)",
        "frame('answer', n, [('rows', npy(np.zeros((2, 4, 4), np.float32))), ('times', npz(columns))], hardware='x', threads='1', rounds=1)",
        "frame('answer', n, [('rows', npy(np.array([None]))), ('times', npz(columns))], hardware='x', threads='1', rounds=1)",
        "frame('answer', n, [('rows', rows), ('times', b'PK')], hardware='x', threads='1', rounds=1)",
        "frame('answer', n, [('rows', rows), ('times', npz(columns))], hardware='x', threads='1', rounds=2)",
        "frame('answer', n, [('rows', rows), ('times', npz(columns))], hardware='x', threads='1', rounds=1 << 40)",
        "frame('answer', n, [('rows', rows), ('times', npz({**columns, '0-0-0': -np.ones(3, np.int64)}))], hardware='x', threads='1', rounds=1)",
        "frame('answer', n, [('rows', rows), ('times', npz({**columns, '0-0-0': np.ones(0, np.int64)}))], hardware='x', threads='1', rounds=1)",
        "frame('answer', n, [('rows', rows), ('times', npz({**columns, '../x': np.ones(3, np.int64)}))], hardware='x', threads='1', rounds=1)",
        "frame('answer', n, [('rows', rows), ('times', npz(columns))], hardware=3, threads='1', rounds=1)",
    ],
)
def test_compared_on_refuses_what_cannot_be_trusted(
    lying: Callable[[str], LocalPipe], graph: Path, toy: Toy, code: str
) -> None:
    form = form_from_graph(graph.read_bytes(), resolve_target("cpu"))
    with pytest.raises(RefusedError) as caught, DeviceSession(lying(f"{COMPARE}{code}; until('x')")) as session:
        compared_on(session, [form, form], toy.spec, toy.images(3), max_seconds=0.1)
    assert str(caught.value).replace("\n", "").isprintable()
