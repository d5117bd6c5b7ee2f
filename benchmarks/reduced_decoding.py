"""What `decoding="reduced"` gains and changes: time, pixels and decisions on large JPEG files.

    python benchmarks/reduced_decoding.py ../shared/data --graph cells.onnx --json reduced.json

DATA holds `bccd_cells/`. The files are made of its test images: `cell` is one image enlarged to EDGE x EDGE pixels, as a microscope
with more pixels would give it (decisions mean something); `mosaic` is EDGE x EDGE pixels of images side by side at their own
size, which has the finest structures that real images have (the worst case for pixels; its decisions mean nothing, and are the hardest to
keep). JPEG quality 92. For each kind and each `spare` (the least that is left, in multiples of what the image is scaled to) the
processor time of `load_image` by both decodings, in turns; the difference of the pixels; how many decisions of the graph differ.

Must hold for spare 2, which ships: `cell` decisions agree in at least 99 %, and reduced decoding is faster. About five minutes.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import edgebert.preprocess
from edgebert.bench.graph_card import graph_card
from edgebert.preprocess import Preprocessing, load_image
from edgebert.runtime.runner import InputSpec, ModelSource, Runner, open_runner

SPARES = (1, 2, 3)
SHIPPED = edgebert.preprocess._SPARE
_LEAST_AGREEMENT = 0.99
_QUALITY = 92


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """What was found for one kind of files and one `spare`.

    Attributes:
        kind: `cell` or `mosaic`.
        spare: of `edgebert.preprocess`.
        files: how many.
        exact_ms: median time of the exact decoding and resizing.
        reduced_ms: of the reduced one.
        mean: mean absolute difference of the pixels, of 255.
        p99: 99th percentile of it.
        most: largest.
        agreement: share of the files that the graph decides alike.
    """

    kind: str
    spare: int
    files: int
    exact_ms: float
    reduced_ms: float
    mean: float
    p99: float
    most: int
    agreement: float

    def to_text(self) -> str:
        """Return one line of a table."""
        return (
            f"| {self.kind} | {self.spare} | {self.exact_ms:.1f} | {self.reduced_ms:.1f} | "
            f"{self.exact_ms / self.reduced_ms:.1f} | {self.mean:.2f} | {self.p99:.0f} | {self.most} | "
            f"{100 * self.agreement:.1f} % of {self.files} |"
        )


def main(arguments: list[str] | None = None) -> int:
    """Measure both kinds of files at every spare, print the table and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--graph", type=Path, required=True, help="an .onnx graph of the cells")
    parser.add_argument("--edge", type=int, default=1920, help="of the files, in pixels")
    parser.add_argument("--files", type=int, default=200, help="of each kind")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    graph = given.graph.read_bytes()
    card = graph_card(graph, what=f"`{given.graph}`")
    rule = card.preprocessing
    spec = InputSpec(height=rule.height, width=rule.width, classes=len(card.class_names))
    sources = sorted((given.data / "bccd_cells" / "test").glob("*/*.jpg"))
    picked = np.random.default_rng(0).permutation(len(sources))
    found: list[Reduced] = []
    print(
        "| files | spare | exact ms | reduced ms | times faster | mean difference | p99 | largest | decisions alike |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    with open_runner("onnxruntime", ModelSource(spec=spec, files={"model.onnx": graph})) as runner:
        for kind in ("cell", "mosaic"):
            files = [_file(kind, sources, picked, number, given.edge) for number in range(given.files)]
            for spare in SPARES:
                found.append(compared(kind, spare, files, rule, runner))
                print(found[-1].to_text(), flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    shipped = next(one for one in found if (one.kind, one.spare) == ("cell", SHIPPED))
    passed = shipped.agreement >= _LEAST_AGREEMENT and shipped.reduced_ms < shipped.exact_ms
    print(
        f"{'PASS' if passed else 'FAIL'} reduced decoding is {shipped.exact_ms / shipped.reduced_ms:.1f} times as fast for "
        f"{given.edge} x {given.edge} pixels, and {100 * shipped.agreement:.1f} % of {shipped.files} decisions stay"
    )
    return 0 if passed else 1


def compared(kind: str, spare: int, files: Sequence[bytes], rule: Preprocessing, runner: Runner) -> Reduced:
    """Decode every file both ways, in an order that alternates."""
    edgebert.preprocess._SPARE = spare
    times: dict[str, list[float]] = {"exact": [], "reduced": []}
    differences, alike = [], 0
    try:
        for number, content in enumerate(files):
            tensors = {}
            for decoding in ("exact", "reduced") if number % 2 else ("reduced", "exact"):
                started = time.thread_time()
                # (1, height, width, 3)
                tensors[decoding] = load_image(content, rule, decoding)[np.newaxis]  # type: ignore[arg-type]  # both are decodings
                times[decoding].append(1e3 * (time.thread_time() - started))
            differences.append(np.abs(tensors["exact"].astype(np.int16) - tensors["reduced"]))
            alike += int(runner.infer(tensors["exact"]).argmax() == runner.infer(tensors["reduced"]).argmax())
    finally:
        edgebert.preprocess._SPARE = SHIPPED
    every = np.concatenate(differences)
    return Reduced(
        kind=kind,
        spare=spare,
        files=len(files),
        exact_ms=float(np.median(times["exact"])),
        reduced_ms=float(np.median(times["reduced"])),
        mean=float(every.mean()),
        p99=float(np.percentile(every, 99)),
        most=int(every.max()),
        agreement=alike / len(files),
    )


def _file(kind: str, sources: Sequence[Path], picked: np.ndarray, number: int, edge: int) -> bytes:
    if kind == "cell":
        with Image.open(sources[picked[number % len(picked)]]) as image:
            picture = image.convert("RGB").resize((edge, edge), Image.Resampling.BICUBIC)
    else:
        picture = _mosaic(sources, picked, number, edge)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _mosaic(sources: Sequence[Path], picked: np.ndarray, number: int, edge: int) -> Image.Image:
    """Return images side by side, each at its own size, the next row below the highest of a row."""
    picture = Image.new("RGB", (edge, edge))
    left = top = height = 0
    at = number * 97
    while top < edge:
        with Image.open(sources[picked[at % len(picked)]]) as image:
            picture.paste(image.convert("RGB"), (left, top))
            left, height, at = left + image.width, max(height, image.height), at + 1
        if left >= edge:
            left, top, height = 0, top + height, 0
    return picture


if __name__ == "__main__":
    sys.exit(main())
