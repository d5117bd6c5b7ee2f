"""The writing phases that the fault sweeps run: what `compile` and `quantize` write, prepared before.

Nothing here opens a backend: the forms and answers are bytes that were made up, and where `compile` would open its bundle as a user
would, the bundle is read back and hashed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from _faults import Scenario

from edgebert._files import claimed
from edgebert.bundle import read_bundle, write_bundle
from edgebert.calibration import quantize, sensitivity_chart
from edgebert.calibration.quantize_options import QuantizeOptions
from edgebert.card import ModelCard, Provenance
from edgebert.errors import CannotWriteError
from edgebert.export import compile as compile_stage
from edgebert.export.compile_options import CompileOptions
from edgebert.export.verdict import Verdict
from edgebert.manifest import BundleForm, Canary, Manifest
from edgebert.preprocess import Preprocessing

MADE_FROM = "ab" * 32
BUNDLE, REPORT = "widgets.edgebert", "why.html"
GRAPH, TABLE = "widgets.int8.onnx", "layers.json"
NO_EXCHANGE = (
    "inject=?renameat2:error=EINVAL"  # NFS, CIFS and some FUSE file systems; Linux before 3.15 has no such call
)


def compile_scenarios() -> list[Scenario]:
    """Return the ways in which `compile` writes."""
    _answer_without_backends()
    new = CompileOptions(targets=("cpu",))
    forced = replace(new, force=True)
    added = CompileOptions(targets=("intel-cpu",))
    report = Path(REPORT)
    return [
        _compile("new", new, _nothing),
        _compile("new in new folders", new, _nothing, inside="runs/today"),
        _compile("into an empty folder", new, lambda place: (place / BUNDLE).mkdir()),
        _compile("replaced", forced, _old_bundle),
        _compile("form added", added, _old_bundle),
        _compile("new with report", replace(new, report=report), _nothing),
        _compile("replaced with report", replace(forced, report=report), _old_bundle_and_report),
        _compile("replaced after a killed call", forced, _killed_compile),
        _compile("replaced without exchange", forced, _old_bundle, always=(NO_EXCHANGE,)),
        _compile("form added without exchange", added, _old_bundle, always=(NO_EXCHANGE,)),
    ]


def quantize_scenarios() -> list[Scenario]:
    """Return the ways in which `quantize` writes."""
    new = QuantizeOptions()
    forced = replace(new, force=True)
    table = {"sensitivity": TABLE}
    return [
        _quantize("new", new, _nothing),
        _quantize("new in new folders", new, _nothing, inside="runs/today"),
        _quantize("replaced", forced, _old_graph),
        _quantize("new with sensitivity", replace(new, **table), _nothing),
        _quantize("replaced with sensitivity", replace(forced, **table), _old_graph),
        _quantize("replaced after a killed call", replace(forced, **table), _killed_quantize),
        _quantize("replaced without exchange", replace(forced, **table), _old_graph, always=(NO_EXCHANGE,)),
    ]


def file_mutants() -> list[Scenario]:
    """Return writers with a fault that each sweep must find."""
    return [
        Scenario(name="mutant: bundle in place", lay=_old_bundle, write=_write_in_place, finals=(BUNDLE,)),
        Scenario(name="mutant: removed, then renamed", lay=_old_bundle, write=_write_removing, finals=(BUNDLE,)),
        Scenario(name="mutant: graph in place", lay=_old_graph, write=_write_graph_in_place, finals=(GRAPH,)),
        Scenario(name="mutant: never cleans up", lay=_old_graph, write=_write_leaving, finals=(GRAPH,)),
    ]


# What is written


def bundle_parts(name: str, targets: tuple[str, ...] = ("cpu",)) -> tuple[Manifest, dict[str, bytes]]:
    """Return a manifest and files that make a bundle; another name gives other bytes in every file."""
    rng = np.random.default_rng(list(name.encode()))
    card = ModelCard(
        class_names=("bolt", "gear", "nut"),
        preprocessing=Preprocessing(height=8, width=8),
        provenance=Provenance(stage="export", options={"name": name}),
    )
    canaries = tuple(f"canary/{number}.png" for number in range(3))
    forms = tuple(_form(target) for target in targets)
    names = ("model.onnx", *canaries, *(name for form in forms for name in form.files if name != "model.onnx"))
    files = {each: rng.bytes(int(rng.integers(1_000, 60_000))) for each in names}
    manifest = Manifest(
        name="widgets",
        card=card,
        precision="fp32",
        made_from=MADE_FROM,
        forms=forms,
        canaries=tuple(_canary(each) for each in canaries),
        preprocessing_sha256=card.preprocessing.sha256(),
        sizes={each: len(content) for each, content in files.items()},
    )
    return manifest, files


def _form(target: str) -> BundleForm:
    if target == "cpu":
        return BundleForm(target="cpu", backend="onnxruntime", device="CPU", files=("model.onnx",))
    files = tuple(f"forms/{target}/model.{end}" for end in ("bin", "xml"))
    return BundleForm(target=target, backend="openvino", device="CPU", files=files, machine="x86_64")


def _canary(file: str) -> Canary:
    engines = ("onnxruntime", "openvino")
    return Canary(
        file=file,
        labels=("bolt",),
        input_sha256="cd" * 32,
        logits=dict.fromkeys(engines, (3.0, 1.0, 0.0)),
        tolerance=dict.fromkeys(engines, 0.01),
    )


def _graph_bytes(name: str) -> bytes:
    return np.random.default_rng(list(name.encode())).bytes(150_000)


# compile


def _compile(
    name: str,
    options: CompileOptions,
    lay: Callable[[Path], object],
    *,
    inside: str = "",
    always: tuple[str, ...] = (),
) -> Scenario:
    new = bundle_parts("new")
    added = bundle_parts("old", ("cpu", "intel-cpu"))
    page = b"<p>why this precision</p>" * 500

    def write(place: Path) -> None:
        output = place / inside / BUNDLE
        given = options if options.report is None else replace(options, report=place / inside / options.report)
        with claimed(output, *([] if given.report is None else [given.report])):
            existing = compile_stage._existing_bundle(output, [MADE_FROM], given)
            manifest, files = new if existing is None else added
            verdict = None if given.report is None else cast("Verdict", _Page(page))
            compile_stage._written(output, manifest, files, existing, given, verdict)

    finals = (BUNDLE,) if options.report is None else (BUNDLE, REPORT)
    return Scenario(
        name=f"compile, {name}",
        lay=lambda place: _done(lay(place)),
        write=write,
        finals=tuple((Path(inside) / each).as_posix() for each in finals),
        always=always,
        may_be_missing=NO_EXCHANGE in always,
    )


class _Page:
    """Stands for a verdict: the sentence and the page are there already."""

    sentence = "fp32 ships"

    def __init__(self, page: bytes) -> None:
        self.page = page


def _answer_without_backends() -> None:
    def answers(folder: Path, target: str) -> bool:
        return read_bundle(folder).manifest.form(target) is not None

    compile_stage.HERE.opens = answers
    compile_stage.page_of_verdict = lambda verdict, name: cast("_Page", verdict).page


def _done(_: object) -> None:
    """Say that what a function returned does not matter."""


def _nothing(place: Path) -> None:
    """Lay nothing."""


def _old_bundle(place: Path) -> None:
    (place / BUNDLE).mkdir()
    write_bundle(place / BUNDLE, *bundle_parts("old"))


def _old_bundle_and_report(place: Path) -> None:
    _old_bundle(place)
    (place / REPORT).write_bytes(b"<p>an older reason</p>")


def _killed_compile(place: Path) -> None:
    """Lay an old bundle beside what a killed call left."""
    _old_bundle(place)
    staging = place / f".{BUNDLE}.staging-0123abcd"
    staging.mkdir()
    write_bundle(staging, *bundle_parts("killed"))


# quantize


def _quantize(
    name: str,
    options: QuantizeOptions,
    lay: Callable[[Path], None],
    *,
    inside: str = "",
    always: tuple[str, ...] = (),
) -> Scenario:
    content = _graph_bytes("new")
    quantize.require = lambda name: None  # asked for before the writing phase
    sensitivity_chart.sensitivity_svg = lambda layers: "<svg>new</svg>" * 1000

    def write(place: Path) -> None:
        output = place / inside / GRAPH
        given = options if options.sensitivity is None else replace(options, sensitivity=str(place / inside / TABLE))
        with claimed(output, *quantize._beside(output, given)):
            quantize._check_outputs(output, given)
            quantize._write(output, content, (), given)

    finals = (GRAPH,) if options.sensitivity is None else (GRAPH, TABLE, TABLE.replace(".json", ".svg"))
    return Scenario(
        name=f"quantize, {name}",
        lay=lay,
        write=write,
        finals=tuple((Path(inside) / each).as_posix() for each in finals),
        always=always,
    )


def _old_graph(place: Path) -> None:
    (place / GRAPH).write_bytes(_graph_bytes("old"))
    (place / TABLE).write_text("{}")
    (place / TABLE).with_suffix(".svg").write_text("<svg/>")


def _killed_quantize(place: Path) -> None:
    _old_graph(place)
    (place / f".{GRAPH}.staging-1234.onnx").write_bytes(b"half")


# mutants


def _write_in_place(place: Path) -> None:
    try:
        write_bundle(place / BUNDLE, *bundle_parts("new"))
    except OSError as error:
        raise CannotWriteError(f"cannot write `{BUNDLE}`") from error


def _write_removing(place: Path) -> None:
    staging = place / ".next"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        write_bundle(staging, *bundle_parts("new"))
        if (place / BUNDLE).exists():
            shutil.rmtree(place / BUNDLE)
        staging.rename(place / BUNDLE)
    except OSError as error:
        raise CannotWriteError(f"cannot write `{BUNDLE}`") from error


def _write_graph_in_place(place: Path) -> None:
    try:
        (place / GRAPH).write_bytes(_graph_bytes("new"))
    except OSError as error:
        raise CannotWriteError(f"cannot write `{GRAPH}`") from error


def _write_leaving(place: Path) -> None:
    staging = place / f".{GRAPH}.{os.getpid()}"
    try:
        staging.write_bytes(_graph_bytes("new"))
        staging.replace(place / GRAPH)
    except OSError as error:
        raise CannotWriteError(f"cannot write `{GRAPH}`") from error
