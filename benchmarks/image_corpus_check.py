"""Takes the image corpus through training, calibration, bench and runtime, and compares with what is documented.

    python benchmarks/image_corpus_check.py

Half a minute. Every file of tests/image_corpus.py is decoded from its bytes and from its file, held against the pixels that
docs/images.md promises or against its refusal, and then read by the loaders of all four rooms, whose tensors must be equal bit by bit.
The last line is the summary; returns 1 where one file came out otherwise.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from PIL import Image

from edgebert.errors import ImageError
from edgebert.preprocess import Preprocessing, decode_image
from tests.four_rooms import look
from tests.image_corpus import CORPUS, Case, Exactly, Nearly, Refused, Unseen, write_corpus

RULES = (
    Preprocessing(height=32, width=24),
    Preprocessing(height=24, width=24, resize="crop", shortest_edge=30, interpolation="bicubic"),
    Preprocessing(height=24, width=32, resize="stretch-crop", shortest_edge=40, interpolation="lanczos"),
)


def main() -> int:
    """Print one line for each fault and a summary; return 0 where there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result there as well")
    given = parser.parse_args()
    warnings.simplefilter("error")
    logging.disable()
    faults = [fault for case in CORPUS if (fault := _fault(case))]
    with tempfile.TemporaryDirectory(prefix="image-corpus-") as name:
        differences = _differences(Path(name))
    for line in (*faults, *differences):
        print(line)
    counts = Counter(type(case.expected()) for case in CORPUS)
    result = {
        "files": len(CORPUS),
        "exact": counts[Exactly],
        "within_tolerance": counts[Nearly],
        "refused": counts[Refused],
        "unseen_damage": counts[Unseen],
        "faults": faults,
        "differences": differences,
    }
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        f"{len(CORPUS)} files: {counts[Exactly]} exact, {counts[Nearly]} within tolerance, {counts[Refused]} refused, "
        f"{counts[Unseen]} with damage that no checksum shows; {len(faults)} otherwise than documented; "
        f"{len(differences)} differ between training, calibration, bench, runtime"
    )
    return 1 if faults or differences else 0


def _fault(case: Case) -> str:
    """Return how a file came out otherwise than documented, "" where it did not."""
    expected = case.expected()
    try:
        decoded = decode_image(case.make())
    except ImageError as error:
        if not isinstance(expected, Refused):
            return f"{case.name} is refused: {error}"
        return "" if expected.words in str(error) else f"{case.name} is refused in other words: {error}"
    if isinstance(expected, Refused):
        return f"{case.name} is decoded, and must be refused"
    if isinstance(expected, Unseen):
        return "" if decoded.shape[:2] == (expected.height, expected.width) else f"{case.name} has another size"
    if decoded.shape != expected.pixels.shape:
        return f"{case.name} has shape {decoded.shape}, not {expected.pixels.shape}"
    apart = int(np.abs(decoded.astype(int) - expected.pixels).max())
    most = expected.most if isinstance(expected, Nearly) else 0
    return "" if apart <= most else f"{case.name} is {apart} apart, not {most}"


def _differences(folder: Path) -> list[str]:
    data = folder / "data"
    write_corpus(data)
    for number in range(20):  # each split needs an image of each class
        Image.new("RGB", (9, 9), (number, 0, 0)).save(data / f"others/usable-{number}.png")
    found = []
    for number, rule in enumerate(RULES):
        scratch = folder / f"scratch-{number}"
        scratch.mkdir()
        found += [f"{rule.resize}: {difference}" for difference in look(data, rule, scratch).differences]
    return found


if __name__ == "__main__":
    sys.exit(main())
