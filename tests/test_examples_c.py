"""The C program among the examples: both C APIs, the same tensors and logits as Python, and every refusal with its exit code."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgebert import Classifier
from edgebert._json import dump_json
from edgebert.preprocess import Preprocessing, load_image
from edgebert.runtime.pipeline import tensor_sha256

PROGRAM = Path(__file__).parents[1] / "examples" / "07_c_program"
LIBRARIES = ("libpng", "libcjson", "libcrypto")
SANITIZED = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that compiles the program with the given variables of its Makefile."""
    missing = [tool for tool in ("make", "cc", "pkg-config") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} on this computer")
    if subprocess.run(["pkg-config", "--exists", *LIBRARIES], check=False).returncode:
        pytest.skip("apt-get install libpng-dev libcjson-dev libssl-dev")

    def compiled(**variables: str) -> Path:
        output = tmp_path_factory.mktemp("program") / "classify"
        command = ["make", "-C", str(PROGRAM), f"PYTHON={sys.executable}", f"OUTPUT={output}"]
        command += [f"{name}={value}" for name, value in variables.items()]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        assert "warning" not in made.stderr
        return output

    return compiled


@pytest.fixture(scope="module")
def run(build: Callable[..., Path]) -> Run:
    """Run the program with both backends."""
    for backend in ("onnxruntime", "openvino"):
        if importlib.util.find_spec(backend) is None:
            pytest.skip(f"no {backend} in this Python")
    return _runner(build())


@pytest.fixture(scope="module")
def run_sanitized(build: Callable[..., Path]) -> Run:
    """Run the program with ONNX Runtime, compiled to stop at the first wrong access to memory."""
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("no onnxruntime in this Python")
    # What a program that ends holds is the system's to free.
    return _runner(build(BACKENDS="onnxruntime", CFLAGS=SANITIZED), {"ASAN_OPTIONS": "detect_leaks=0"})


def _runner(program: Path, environment: Mapping[str, str] | None = None) -> Run:
    def run(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
        command = [str(program), *(str(word) for word in words)]
        variables = {**os.environ, **(environment or {}), **more}
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=variables)

    return run


@pytest.fixture(scope="module")
def bundle(make_toy_bundle: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_bundle(tmp_path_factory.mktemp("c") / "toy.edgebert")


@pytest.fixture
def own_bundle(make_toy_bundle: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A bundle that the test may change."""
    return make_toy_bundle(tmp_path / "toy.edgebert")


def _edit(folder: Path, change: Callable[[Any], object]) -> None:
    """Change the manifest, and sum it up again."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    _write_manifest(folder, dump_json(manifest).encode())


def _write_manifest(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    line = f"{hashlib.sha256(content).hexdigest()}  manifest.json\n"
    text = "".join(line if old.endswith("  manifest.json\n") else old for old in lines)
    (folder / "SHA256SUMS").write_text(text, newline="\n")


def _fields(ran: subprocess.CompletedProcess[str]) -> list[list[str]]:
    assert ran.returncode == 0, ran.stderr
    return [line.split("\t") for line in ran.stdout.splitlines()]


# What it answers


@pytest.mark.parametrize(("target", "said"), [("cpu", "ONNX Runtime"), ("intel-cpu", "OpenVINO")])
def test_every_canary_gets_the_logits_of_the_manifest(run: Run, bundle: Path, target: str, said: str) -> None:
    ran = run("--target", target, bundle)
    canaries = json.loads((bundle / "manifest.json").read_bytes())["canaries"]
    for canary, (file, label, difference, tolerance) in zip(canaries, _fields(ran), strict=True):
        assert (file, label) == (canary["file"], canary["label"])
        assert float(difference) <= float(tolerance)
    assert f"form `{target}` in {said} " in ran.stderr
    assert "all 4 canaries answered" in ran.stderr


def test_images_get_the_answers_of_python(run: Run, bundle: Path, tmp_path: Path) -> None:
    photos = [_photo(tmp_path / f"{seed}.png", (30, 41, 3), seed) for seed in range(6)]
    for target in ("cpu", "intel-cpu"):
        answers = _fields(run("--target", target, bundle, *photos))
        with Classifier(bundle, target=target) as classifier:
            expected = [classifier.predict(photo) for photo in photos]
        assert [(answer[0], answer[1]) for answer in answers] == [
            (str(photo), prediction.label) for photo, prediction in zip(photos, expected, strict=True)
        ]
        for answer, prediction in zip(answers, expected, strict=True):
            assert float(answer[2]) == pytest.approx(prediction.score, abs=2e-4)


def test_confidence_scales_the_score_and_abstains(run: Run, own_bundle: Path, tmp_path: Path) -> None:
    confidence = {"temperature": 2.5, "ece_before": 0.2, "ece_after": 0.1, "images": 200, "abstain_below": 0.45}
    confidence |= {"wanted_precision": 0.9, "precision": 0.91, "precision_low": 0.87, "coverage": 0.8}
    _edit(own_bundle, lambda manifest: manifest["card"].update(confidence=confidence))
    photos = [_photo(tmp_path / f"{seed}.png", (9, 9, 3), seed) for seed in range(12)]
    answers = _fields(run("--target", "cpu", own_bundle, *photos))
    with Classifier(own_bundle, target="cpu") as classifier:
        expected = [classifier.predict(photo) for photo in photos]
    assert [answer[-1] == "abstained" for answer in answers] == [prediction.abstained for prediction in expected]
    assert {prediction.abstained for prediction in expected} == {True, False}
    for answer, prediction in zip(answers, expected, strict=True):
        assert float(answer[2]) == pytest.approx(prediction.score, abs=2e-4)


def test_a_multi_label_bundle_says_what_python_says(run: Run, own_bundle: Path, tmp_path: Path) -> None:
    thresholds = [0.2, 0.6, 0.5, 0.9]

    def change(manifest: Any) -> None:
        manifest["card"].update(task="multi-label", thresholds=thresholds)
        for canary in manifest["canaries"]:
            logits = list(canary["logits"]["onnxruntime"].items())
            del canary["label"]
            canary["labels"] = [
                name
                for (name, logit), limit in zip(logits, thresholds, strict=True)
                if 1 / (1 + math.exp(-logit)) >= limit
            ]

    order = json.loads((own_bundle / "manifest.json").read_bytes())["card"]["class_names"]
    assert order == sorted(order)  # so that the sorted keys of the logits are in the order of the classes
    _edit(own_bundle, change)
    photos = [_photo(tmp_path / f"{seed}.png", (9, 9, 3), seed) for seed in range(12)]
    answers = _fields(run("--target", "cpu", own_bundle, *photos))
    with Classifier(own_bundle, target="cpu") as classifier:
        expected = [classifier.predict(photo) for photo in photos]
    assert [answer[1] for answer in answers] == ["|".join(prediction.labels) or "-" for prediction in expected]
    assert len({len(prediction.labels) for prediction in expected}) > 2
    for answer, prediction in zip(answers, expected, strict=True):
        assert float(answer[2]) == pytest.approx(prediction.score, abs=2e-4)


FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
SIZES = ((15, 21), (6, 8), (6, 40), (40, 8), (3, 5), (200, 301), (1, 1), (64, 9))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("resize", "edge"), [("stretch", None), ("crop", 9), ("stretch-crop", 11)])
def test_every_rule_gives_the_tensor_of_python(
    run_sanitized: Run, own_bundle: Path, tmp_path: Path, interpolation: str, resize: Any, edge: int | None
) -> None:
    rule = Preprocessing(height=6, width=8, resize=resize, shortest_edge=edge, interpolation=interpolation)  # type: ignore[arg-type]  # one of FILTERS
    _edit(own_bundle, lambda manifest: manifest["card"].update(preprocessing=rule.to_json()))
    photos = [_photo(tmp_path / f"{rows}x{columns}.png", (rows, columns, 3), rows) for rows, columns in SIZES]
    photos.append(_photo(tmp_path / "grey.png", (17, 13), 1))
    found = dict(_fields(run_sanitized("--tensor", own_bundle, *photos)))
    assert found == {str(photo): tensor_sha256(load_image(photo, rule)) for photo in photos}


# Which form


def test_the_first_form_that_fits_is_taken(run: Run, bundle: Path) -> None:
    assert "form `cpu` in ONNX Runtime" in run(bundle).stderr


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ({"machine": "riscv64"}, "made for riscv64, here is "),
        ({"os": "windows"}, "made for windows, here is linux"),
        ({"backend_version": "== 1.2.3"}, "asks for ONNX Runtime == 1.2.3, here is "),
        ({"backend_version": ">= 999.1"}, "asks for ONNX Runtime >= 999.1, here is "),
        ({"backend_version": "~= 1.20"}, "asks for ONNX Runtime ~= 1.20, here is "),
        ({"backend_version": ">"}, "asks for ONNX Runtime >, here is "),
        ({"gpu": "Orin"}, "asks for `gpu`, which this program does not know"),
    ],
)
def test_a_form_that_does_not_fit_is_passed_over_and_refused_by_name(
    run: Run, own_bundle: Path, conditions: dict[str, Any], reason: str
) -> None:
    machine = conditions.get("machine")
    _edit(own_bundle, lambda manifest: manifest["forms"][0].update(fingerprint=conditions, machine=machine))
    ran = run(own_bundle)
    assert (ran.returncode, "form `intel-cpu` in OpenVINO" in ran.stderr, reason in ran.stderr) == (0, True, True)
    named = run("--target", "cpu", own_bundle)
    assert (named.returncode, reason in named.stderr) == (69, True)


@pytest.mark.parametrize("conditions", [{}, {"os": "linux", "backend_version": ">= 1.18"}, {"gpu": None}])
def test_a_form_whose_conditions_hold_is_taken(run: Run, own_bundle: Path, conditions: dict[str, Any]) -> None:
    _edit(own_bundle, lambda manifest: manifest["forms"][0].update(fingerprint=conditions))
    assert "form `cpu` in ONNX Runtime" in run(own_bundle).stderr


def test_the_portable_graph_is_the_last_resort_and_said(run: Run, own_bundle: Path) -> None:
    _edit(own_bundle, lambda manifest: [form.update(machine="riscv64") for form in manifest["forms"]])
    ran = run(own_bundle)
    assert ran.returncode == 0
    assert "warning: no compiled form fits this computer: the portable graph runs in ONNX Runtime" in ran.stderr


def test_a_library_that_is_not_there_makes_its_forms_not_fit(run: Run, bundle: Path) -> None:
    ran = run(bundle, ONNXRUNTIME_LIBRARY="libno-such-library.so")
    assert (ran.returncode, "form `intel-cpu` in OpenVINO" in ran.stderr) == (0, True)


@pytest.mark.parametrize(("words", "code"), [((), 2), (("--threads", "0"), 2), (("--no-such",), 2), (("--target",), 2)])
def test_a_wrong_command_line_is_a_usage_error(run: Run, bundle: Path, words: tuple[str, ...], code: int) -> None:
    assert run(*words, *([bundle] if words == ("--threads", "0") else [])).returncode == code


def test_a_target_without_a_form_is_unavailable(run: Run, bundle: Path) -> None:
    assert run("--target", "jetson", bundle).returncode == 69


# What it refuses


def test_no_bundle_is_code_66(run_sanitized: Run, tmp_path: Path) -> None:
    assert run_sanitized(tmp_path / "none.edgebert").returncode == 66


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "canary/0.png", "SHA256SUMS"])
def test_one_flipped_bit_is_refused(run_sanitized: Run, own_bundle: Path, name: str) -> None:
    content = bytearray((own_bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (own_bundle / name).write_bytes(content)
    assert run_sanitized("--target", "cpu", own_bundle).returncode == 77


@pytest.mark.parametrize(
    "line",
    [
        b"0" * 64 + b"  ../outside\n",
        b"0" * 64 + b"  /etc/passwd\n",
        b"0" * 64 + b"  .hidden\n",
        b"0" * 64 + b"  a//b\n",
        b"0" * 64 + b"  manifest.json\n",
        b"0" * 63 + b"  short\n",
        b"0" * 64 + b"  no end",
        b"0" * 64 + b"  zero\0byte\n",
        b"\n",
        b"".join(b"0" * 64 + b"  f%d\n" % number for number in range(70)),
    ],
)
def test_a_hostile_list_of_hashes_is_refused(run_sanitized: Run, own_bundle: Path, line: bytes) -> None:
    sums = own_bundle / "SHA256SUMS"
    sums.write_bytes(sums.read_bytes() + line)
    assert run_sanitized(own_bundle).returncode == 77


def test_a_link_in_place_of_a_file_is_refused(run_sanitized: Run, own_bundle: Path) -> None:
    model = own_bundle / "model.onnx"
    model.rename(own_bundle.parent / "model.onnx")
    model.symlink_to(own_bundle.parent / "model.onnx")
    assert run_sanitized("--target", "cpu", own_bundle).returncode == 77


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"schema": "edgebert.bundle/2"}',
        b'{"schema": 1}',
        b'{"schema": "edgebert.bundle/1", "schema": "edgebert.bundle/1"}',
        b'{"schema": "edgebert.bundle/1"} trailing',
        b'{"schema": "edgebert.bundle/1", "requires": ["new"]}',
        b'{"schema": "edgebert.bundle/1", "card": {"preprocessing": {"height": 1e999, "width": 8}}}',
        b"\xff\xfe\x00",
    ],
)
def test_a_malformed_manifest_is_code_65(run_sanitized: Run, own_bundle: Path, content: bytes) -> None:
    _write_manifest(own_bundle, content)
    assert run_sanitized(own_bundle).returncode == 65


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["canaries"].pop(0) and manifest["canaries"].pop(0),
        lambda manifest: manifest["card"].update(class_names=["a"]),
        lambda manifest: manifest["card"].update(task="multi-label", thresholds=[0.5]),
        lambda manifest: manifest["card"].update(task="multi-label", thresholds=[0.5, 0.5, 0.5, "a"]),
        lambda manifest: manifest["card"].update(task="ranking"),
        lambda manifest: manifest["card"].update(class_names=[1, 2, 3, 4]),
        lambda manifest: manifest["card"]["preprocessing"].update(height=0),
        lambda manifest: manifest["card"]["preprocessing"].update(width=6.5),
        lambda manifest: manifest["card"]["preprocessing"].update(resize="fit", shortest_edge=9),
        lambda manifest: manifest["card"]["preprocessing"].update(interpolation="x" * 500),
        lambda manifest: manifest["forms"][0].update(disabled_optimizers=["a;b"]),
        lambda manifest: manifest["forms"][0].update(files=[]),
        lambda manifest: manifest["forms"][0].update(fingerprint=[]),
        lambda manifest: manifest["canaries"][0]["logits"]["onnxruntime"].pop("nut"),
    ],
)
def test_impossible_fields_are_code_65(run_sanitized: Run, own_bundle: Path, change: Callable[[Any], object]) -> None:
    _edit(own_bundle, change)
    assert run_sanitized("--target", "cpu", own_bundle).returncode == 65


def test_another_class_order_is_refused_by_the_canaries(run_sanitized: Run, own_bundle: Path) -> None:
    _edit(own_bundle, lambda manifest: manifest["card"]["class_names"].reverse())
    assert run_sanitized("--target", "cpu", own_bundle).returncode == 77


def test_another_filter_is_refused_by_the_canaries(run_sanitized: Run, own_bundle: Path) -> None:
    _edit(own_bundle, lambda manifest: manifest["card"]["preprocessing"].update(interpolation="lanczos"))
    ran = run_sanitized("--target", "cpu", own_bundle)
    assert (ran.returncode, "into another tensor" in ran.stderr) == (77, True)


def test_images_that_it_would_mistake_are_code_65(run_sanitized: Run, bundle: Path, tmp_path: Path) -> None:
    image = Image.fromarray(np.full((9, 9, 3), 100, np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {
        "alpha": image.convert("RGBA"),
        "palette": image.convert("P"),
        "grey16": Image.fromarray(np.full((9, 9), 60_000, np.uint16)),
        "one_bit": image.convert("1"),
    }
    for name, other in made.items():
        other.save(tmp_path / f"{name}.png")
    image.save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "photo.jpg")
    whole = (tmp_path / "alpha.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(_photo(tmp_path / "good.png", (50, 50, 3), 0).read_bytes()[:2000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "signature.png").write_bytes(whole[:8])
    bad = sorted({*tmp_path.iterdir()} - {tmp_path / "good.png"})
    assert {file.name: run_sanitized("--tensor", bundle, file).returncode for file in bad} == {
        file.name: 65 for file in bad
    }
    assert run_sanitized("--tensor", bundle, tmp_path / "none.png").returncode == 66


def _photo(path: Path, shape: tuple[int, ...], seed: int) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)
    return path


def test_the_declarations_of_onnx_runtime_agree_with_its_header(build: Callable[..., Path]) -> None:
    """Runs where the variable names the maker's header, which no Python package carries."""
    header = os.environ.get("ORT_HEADER")
    if not header:
        pytest.skip("ORT_HEADER names no onnxruntime_c_api.h")
    subprocess.run(["make", "-C", str(PROGRAM), "abi", f"ORT_HEADER={header}"], check=True)
