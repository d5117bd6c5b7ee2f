"""Which form of a bundle is taken: by its fingerprint alone, before anything of it is deserialised."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgebert.runtime.choice as choice_module
import edgebert.runtime.runner as runner_module
from edgebert import Classifier, fingerprint
from edgebert._json import dump_json
from edgebert.artefact import describe, verify
from edgebert.bench.loading import LoadRequest, load_arm
from edgebert.bundle import read_bundle
from edgebert.errors import BadDataError, MalformedBundleError, UnavailableError
from edgebert.extras import installed_version
from edgebert.fingerprint import ComputerFacts, Fingerprint, GpuFacts
from edgebert.manifest import BundleForm
from edgebert.runtime.choice import choices_for, misfits_of, open_first
from edgebert.runtime.runner import RUNNERS, ModelSource, RunnerOptions
from edgebert.testing import FakeRunner

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

ENGINE = "jetson-orin-nano"
JETSON = ComputerFacts(
    os="linux",
    machine="aarch64",
    backend="tensorrt",
    backend_version="10.3.0",
    cpu_flags=("asimd", "asimddp"),
    gpu=GpuFacts(name="Orin", compute_capability="8.7", multiprocessors=8, driver="540.4.0", cuda="12.6", l4t="36.4.3"),
)
FITTING: dict[str, Any] = {
    "os": "linux",
    "machine": "aarch64",
    "backend_version": "== 10.3.0",
    "cpu_flags": ["asimd"],
    "gpu": "Orin",
    "compute_capability": "8.7",
    "multiprocessors": 8,
    "driver": ">= 540.3",
    "cuda": ">= 12.6",
    "l4t": "== 36.4.3",
}


class RecordingRunner(FakeRunner):
    """An engine's runner that notes every call of `open` and answers as the toy does."""

    opened: list[ModelSource] = []  # noqa: RUF012  # one list for the class is what a test looks at

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        return ("GPU",)

    @classmethod
    def open(cls, source: ModelSource, options: RunnerOptions) -> Any:
        cls.opened.append(source)
        return cls(source.spec, logits=cls.answers)

    answers: Any = None


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch, toy: Any) -> Callable[[ComputerFacts], None]:
    """Give this computer the facts of a Jetson, and a runner of engines that records what it is asked to open."""
    monkeypatch.setitem(RUNNERS, "tensorrt", "recording:RecordingRunner")
    monkeypatch.setattr(RecordingRunner, "opened", [])
    monkeypatch.setattr(RecordingRunner, "answers", staticmethod(toy.logits))
    resolve = runner_module._runner_class

    def runner_class(backend: str) -> Any:
        return RecordingRunner if backend == "tensorrt" else resolve(backend)

    monkeypatch.setattr(runner_module, "_runner_class", runner_class)

    def given(facts: ComputerFacts) -> None:
        def computer_facts(backend: str, *, with_gpu: bool = False) -> ComputerFacts:
            # The other backends are here as well, in a version that fits.
            return facts if backend == "tensorrt" else replace(facts, backend=backend, backend_version="9999.0")

        monkeypatch.setattr(choice_module, "computer_facts", computer_facts)

    given(JETSON)
    return given


@pytest.fixture
def bundle(make_toy_bundle: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A bundle whose first form is an engine for the Jetson; the others are the toy's."""
    folder = make_toy_bundle(tmp_path / "toy.edgebert")
    _with_engine(folder, FITTING)
    return folder


def _with_engine(folder: Path, fingerprint: dict[str, Any], target: str = ENGINE, place: int = 0) -> None:
    engine = b"an engine: native code"
    (folder / "forms" / target).mkdir(parents=True)
    (folder / "forms" / target / "model.engine").write_bytes(engine)
    form = {
        "target": target,
        "backend": "tensorrt",
        "device": "GPU",
        "files": [f"forms/{target}/model.engine"],
        "machine": fingerprint.get("machine"),
        "disabled_optimizers": [],
        "versions": {"tensorrt": "10.3.0"},
        "notes": [],
        "fingerprint": fingerprint,
    }

    def change(manifest: Any) -> None:
        manifest["forms"].insert(place, form)
        manifest["sizes"][f"forms/{target}/model.engine"] = len(engine)
        for canary in manifest["canaries"]:
            canary["logits"]["tensorrt:GPU"] = canary["logits"]["onnxruntime"]
            canary["tolerance"]["tensorrt:GPU"] = 1e-3

    _edit(folder, change)


def _edit(folder: Path, change: Callable[[Any], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    (folder / "manifest.json").write_text(dump_json(manifest), encoding="utf-8")
    names = sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "SHA256SUMS"
    )
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines), newline="\n")


def _fingerprint(folder: Path, place: int, **conditions: Any) -> None:
    def change(manifest: Any) -> None:
        form = manifest["forms"][place]
        form["fingerprint"] = {**form.get("fingerprint", {}), **conditions}
        form["machine"] = form["fingerprint"].get("machine")

    _edit(folder, change)


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


MISFITS = [
    ({"os": "windows"}, "made for windows, here is linux"),
    ({"machine": "x86_64"}, "made for x86_64, here is aarch64"),
    ({"backend_version": "== 10.7.0"}, "made with TensorRT 10.7.0, here is 10.3.0"),
    ({"backend_version": ">= 10.4"}, "needs TensorRT 10.4 or newer, here is 10.3.0"),
    ({"backend_version": "^10"}, "asks for TensorRT `^10`, a rule that this version of edgebert cannot read"),
    ({"cpu_flags": ["sve"]}, "needs sve of the CPU, here is asimd, asimddp"),
    ({"gpu": "Thor"}, "made for the GPU Thor, here is Orin"),
    ({"compute_capability": "11.0"}, "made for compute capability 11.0, here is 8.7"),
    ({"multiprocessors": 16}, "made for a GPU with this many multiprocessors: 16, here is 8"),
    ({"driver": ">= 550"}, "needs NVIDIA's driver 550 or newer, here is 540.4.0"),
    ({"cuda": ">= 13.0"}, "needs CUDA 13.0 or newer, here is 12.6"),
    ({"l4t": "== 36.4.7"}, "made with L4T 36.4.7, here is 36.4.3"),
    ({"of_a_newer_version": True}, "asks for `of_a_newer_version` True, which this version of edgebert does not know"),
]


@pytest.mark.usefixtures("jetson")
def test_a_form_that_fits_is_opened(bundle: Path) -> None:
    with Classifier(bundle) as classifier:
        assert (classifier.target, classifier.backend) == (ENGINE, "tensorrt")
    (opened,) = RecordingRunner.opened
    assert opened.files == {"model.engine": b"an engine: native code"}


@pytest.mark.usefixtures("jetson")
@pytest.mark.parametrize(("conditions", "reason"), MISFITS)
def test_a_form_that_does_not_fit_is_never_deserialised(bundle: Path, conditions: dict[str, Any], reason: str) -> None:
    _fingerprint(bundle, 0, **conditions)
    with Classifier(bundle) as classifier:
        assert classifier.target == "cpu"
    with pytest.raises(UnavailableError) as caught:
        Classifier(bundle, target=ENGINE)
    assert caught.value.exit_code == 69
    assert reason in caught.value.what
    with pytest.raises(UnavailableError):
        load_arm(LoadRequest(path=str(bundle), kind="bundle", target=ENGINE, threads=1), lambda: None)
    assert reason in describe(bundle).to_text()
    assert any(reason in line for line in verify(bundle))
    assert RecordingRunner.opened == []


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_backend_s_version_is_compared_before_it_opens_anything(
    backend: str, bundle: Path, jetson: Callable[[ComputerFacts], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"onnxruntime": 1, "openvino": 2}[backend]
    target = {"onnxruntime": "cpu", "openvino": "intel-cpu"}[backend]
    _fingerprint(bundle, place, backend_version=">= 10000.0")
    opened: list[str] = []
    monkeypatch.setattr(choice_module, "open_runner", lambda backend, *rest: opened.append(backend))
    with pytest.raises(UnavailableError, match=r"needs .* 10000\.0 or newer, here is 9999\.0"):
        Classifier(bundle, target=target)
    assert opened == []


def test_a_missing_backend_is_named_with_the_command_that_adds_it(
    bundle: Path, jetson: Callable[[ComputerFacts], None]
) -> None:
    jetson(replace(JETSON, backend_version=None))
    with pytest.raises(UnavailableError, match=r"made with TensorRT 10\.3\.0, none is installed here") as caught:
        Classifier(bundle, target=ENGINE)
    assert "python3-libnvinfer" in str(caught.value.hint)


# What is said


@pytest.mark.usefixtures("jetson")
def test_a_stale_form_is_said_once_for_each_bundle_and_process(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    _fingerprint(bundle, 0, backend_version="== 10.7.0", l4t="== 36.4.7")
    with caplog.at_level(logging.WARNING, "edgebert"):
        for _ in range(3):
            Classifier(bundle).close()
    reasons = "made with TensorRT 10.7.0, here is 10.3.0; made with L4T 36.4.7, here is 36.4.3"
    assert _said(caplog) == [f"`{bundle}` runs its form for `cpu`, not the first one (`{ENGINE}`: {reasons})"]


@pytest.mark.usefixtures("jetson")
def test_the_portable_graph_is_said_once_with_every_reason(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    _fingerprint(bundle, 0, backend_version="== 10.7.0")
    _fingerprint(bundle, 1, machine="x86_64")
    _fingerprint(bundle, 2, os="windows", machine="x86_64")
    with caplog.at_level(logging.WARNING, "edgebert"):
        for _ in range(2):
            with Classifier(bundle) as classifier:
                assert (classifier.target, classifier.backend) == ("portable", "onnxruntime")
    (said,) = _said(caplog)
    assert f"(`{ENGINE}`: made with TensorRT 10.7.0, here is 10.3.0; `cpu`: made for x86_64, here is aarch64; " in said
    assert said.endswith("`intel-cpu`: made for windows, here is linux; made for x86_64, here is aarch64)")
    assert RecordingRunner.opened == []


def test_the_portable_graph_of_a_bundle_of_unknown_targets_is_said(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def rename(manifest: Any) -> None:
        for place, form in enumerate(manifest["forms"]):
            form["target"] = f"future-{place}"

    _edit(bundle, rename)
    with Classifier(bundle) as classifier:
        assert classifier.target == "portable"
    (said,) = _said(caplog)
    assert "portable graph" in said
    assert "`future-0`: a target that this version of edgebert does not know; `future-1`: " in said


@pytest.fixture
def not_of_pip(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hide the versions of all backends from whoever does not import them, and return what is imported to ask."""
    asked: list[str] = []

    def found_version(backend: str) -> str | None:
        asked.append(backend)
        return installed_version(backend)

    def computer_facts(backend: str, *, with_gpu: bool = False) -> ComputerFacts:
        return replace(fingerprint.computer_facts(backend, with_gpu=with_gpu), backend_version=None)

    monkeypatch.setattr(choice_module, "computer_facts", computer_facts)
    monkeypatch.setattr(choice_module, "found_version", found_version)
    return asked


def test_a_form_whose_backend_no_package_manager_brought_is_taken(
    make_toy_bundle: Callable[[Path], Path], tmp_path: Path, not_of_pip: list[str]
) -> None:
    folder = make_toy_bundle(tmp_path / "toy.edgebert")
    _fingerprint(folder, 0, backend_version=">= 1.1")
    form = read_bundle(folder).manifest.forms[0]
    assert misfits_of(form) == ()
    assert not_of_pip == [form.backend]
    with Classifier(folder) as classifier:
        assert classifier.target == form.target


def test_a_backend_is_not_imported_for_a_form_that_does_not_fit_in_any_case(
    make_toy_bundle: Callable[[Path], Path], tmp_path: Path, not_of_pip: list[str]
) -> None:
    folder = make_toy_bundle(tmp_path / "toy.edgebert")
    _fingerprint(folder, 0, backend_version=">= 1.1", os="plan9")
    assert any("plan9" in reason for reason in misfits_of(read_bundle(folder).manifest.forms[0]))
    assert not_of_pip == []


@pytest.mark.usefixtures("jetson")
def test_each_bundle_is_said(
    bundle: Path, make_toy_bundle: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_toy_bundle(tmp_path / "other.edgebert")
    _with_engine(other, FITTING)
    with caplog.at_level(logging.WARNING, "edgebert"):
        for folder in (bundle, other):
            _fingerprint(folder, 0, cuda=">= 13.0")
            Classifier(folder).close()
    assert [str(bundle) in said for said in _said(caplog)] == [True, False]


@pytest.mark.parametrize("conditions", [{"machine": "x86_64"}, {"os": "windows"}, {"machine": "x86_64", "gpu": "H100"}])
@pytest.mark.usefixtures("jetson")
def test_a_form_for_another_kind_of_computer_is_not_worth_a_warning(
    bundle: Path, caplog: pytest.LogCaptureFixture, conditions: dict[str, Any]
) -> None:
    _fingerprint(bundle, 0, **conditions)
    with caplog.at_level(logging.WARNING, "edgebert"):
        Classifier(bundle).close()
    assert _said(caplog) == []


# Several forms, and forms that break


@pytest.mark.usefixtures("jetson")
@pytest.mark.parametrize(
    ("first", "second", "taken"),
    [
        ("== 10.3.0", "== 10.7.0", ENGINE),
        ("== 10.7.0", "== 10.3.0", "jetson-orin-nx"),
        ("== 10.7.0", "== 10.7.0", "cpu"),
    ],
)
def test_of_several_forms_of_one_backend_the_fitting_one_is_taken(
    bundle: Path, first: str, second: str, taken: str
) -> None:
    _with_engine(bundle, {**FITTING, "backend_version": second}, target="jetson-orin-nx", place=1)
    _fingerprint(bundle, 0, backend_version=first)
    with Classifier(bundle) as classifier:
        assert classifier.target == taken
    assert len(RecordingRunner.opened) == (0 if taken == "cpu" else 1)


@pytest.mark.usefixtures("jetson")
def test_a_fitting_form_that_cannot_be_loaded_is_refused_and_not_replaced(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(source: ModelSource, options: RunnerOptions) -> Any:
        raise BadDataError("TensorRT cannot load the engine: serialization assertion failed")

    monkeypatch.setattr(RecordingRunner, "open", broken)
    with pytest.raises(BadDataError, match="cannot load the engine"):
        Classifier(bundle)


@pytest.mark.usefixtures("jetson")
def test_a_bundle_of_which_nothing_fits_says_why_for_each_form(bundle: Path) -> None:
    _edit(bundle, lambda manifest: [manifest["forms"].pop(), manifest["forms"].pop()])
    (bundle / "forms" / "intel-cpu" / "model.onnx").unlink()
    (bundle / "forms" / "intel-cpu").rmdir()

    def engines_only(manifest: Any) -> None:
        del manifest["sizes"]["forms/intel-cpu/model.onnx"]
        manifest["forms"][0]["fingerprint"]["gpu"] = "Thor"
        for canary in manifest["canaries"]:
            for engine in ("onnxruntime", "openvino"):
                del canary["logits"][engine], canary["tolerance"][engine]

    _edit(bundle, engines_only)
    with pytest.raises(UnavailableError) as caught:
        Classifier(bundle)
    assert str(caught.value.expected) == f"`{ENGINE}`: made for the GPU Thor, here is Orin"


def test_a_bundle_of_version_0_1_0_asks_for_the_machine_alone(
    make_toy_bundle: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = make_toy_bundle(tmp_path / "old.edgebert")
    _edit(folder, lambda manifest: manifest["forms"][0].update(versions={"onnxruntime": "99.0"}))
    bundle = read_bundle(folder)
    assert [form.fingerprint for form in bundle.manifest.forms] == [None, None]
    assert "fingerprint" not in bundle.manifest.forms[0].to_json()
    choice, runner = open_first(bundle, choices_for(bundle, None, 1))
    runner.close()
    assert choice.target == "cpu"


def test_a_fingerprint_is_kept_with_what_this_version_does_not_know(bundle: Path) -> None:
    _fingerprint(bundle, 0, newer={"deep": [1, "two"]})
    form = read_bundle(bundle).manifest.forms[0]
    assert form.to_json()["fingerprint"] == {**FITTING, "newer": {"deep": [1, "two"]}}


@pytest.mark.parametrize(
    ("machine", "fingerprint"),
    [("x86_64", {"machine": "aarch64"}), (None, {"machine": "aarch64"}), ("aarch64", {}), ("aarch64", {"machine": 5})],
)
def test_a_machine_that_contradicts_the_fingerprint_is_refused(
    bundle: Path, machine: str | None, fingerprint: dict[str, Any]
) -> None:
    _edit(bundle, lambda manifest: manifest["forms"][0].update(machine=machine, fingerprint=fingerprint))
    with pytest.raises(MalformedBundleError):
        read_bundle(bundle)


@pytest.mark.parametrize("value", [None, 5, [], "linux", {"os": ["linux"]}, {"multiprocessors": 8.0}])
def test_a_malformed_fingerprint_is_refused_when_the_bundle_is_read(bundle: Path, value: object) -> None:
    _edit(bundle, lambda manifest: manifest["forms"][0].update(machine=None, fingerprint=value))
    with pytest.raises(MalformedBundleError):
        read_bundle(bundle)


def test_a_form_without_a_fingerprint_and_one_that_asks_for_nothing_are_two_things() -> None:
    form = BundleForm(target="cpu", backend="onnxruntime", device="CPU", files=("model.onnx",))
    assert "fingerprint" not in form.to_json()
    assert replace(form, fingerprint=Fingerprint()).to_json()["fingerprint"] == {}
