"""Classify image files with a bundle: all an application needs.

    python examples/02_embed/classify.py widgets.edgebert photo.jpg ...

>>> callable(main)
True
"""

from __future__ import annotations

import sys

from edgebert import Classifier


def main(bundle: str, *images: str) -> None:
    """Print one line per image: file, class, score."""
    with Classifier(bundle) as classifier:  # verifies the bundle, picks the form that fits this computer
        for image in images:
            prediction = classifier.predict(image)
            print(f"{image}\t{prediction.label}\t{prediction.score:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
