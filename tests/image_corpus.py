"""The image corpus: files of every kind, depth, orientation and damage, with what must become of each.

    >>> from tests.image_corpus import CORPUS
    >>> sorted({case.name.rpartition(".")[2] for case in CORPUS})[:3]
    ['bmp', 'jpeg', 'jpg']

Expected pixels are computed from the samples that were written (`images/writers.py`), by the rules at the top of
`edgebert/preprocess.py`, and never by the code under test. docs/images.md has the rules in words.
"""

from __future__ import annotations

from pathlib import Path

from tests.images import bmp, jpeg, others, png, webp
from tests.images.case import Case, Exactly, Expected, Nearly, Refused, Unseen

__all__ = ["CORPUS", "Case", "Exactly", "Expected", "Nearly", "Refused", "Unseen", "write_corpus"]

CORPUS: tuple[Case, ...] = tuple(
    Case(f"{folder}/{case.name}", case.make, case.expected)
    for folder, module in (("png", png), ("bmp", bmp), ("jpeg", jpeg), ("webp", webp), ("others", others))
    for case in module.cases()
)


def write_corpus(folder: Path) -> dict[str, Case]:
    """Write the corpus as a data set of five classes, one for each format, and return its cases by path below the folder."""
    for case in CORPUS:
        path = folder / case.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(case.make())
    return {case.name: case for case in CORPUS}
