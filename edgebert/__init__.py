"""From a large image classifier to one verified folder a device can load, and the runtime that loads it.

    from edgebert import Classifier

    with Classifier("widgets.edgebert") as classifier:
        prediction = classifier.predict(frame)
        print(prediction.label, prediction.score)

The stages are plain functions in their rooms: `edgebert.train`, `edgebert.export`, `edgebert.calibration`, `edgebert.bench`.
Importing this package loads none of them, nor any third-party package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgebert.data import Dataset as Dataset
    from edgebert.data import load_dataset as load_dataset
    from edgebert.errors import BadDataError as BadDataError
    from edgebert.errors import EdgebertError as EdgebertError
    from edgebert.errors import RefusedError as RefusedError
    from edgebert.errors import UnavailableError as UnavailableError
    from edgebert.preprocess import Preprocessing as Preprocessing
    from edgebert.preprocess import load_image as load_image
    from edgebert.runtime.aio import AsyncClassifier as AsyncClassifier
    from edgebert.runtime.classifier import Classifier as Classifier
    from edgebert.runtime.classifier import Prediction as Prediction
    from edgebert.runtime.counters import Counters as Counters
    from edgebert.runtime.counters import prometheus_text as prometheus_text

__version__ = "0.1.0"

__all__ = [
    "AsyncClassifier",
    "BadDataError",
    "Classifier",
    "Counters",
    "Dataset",
    "EdgebertError",
    "Prediction",
    "Preprocessing",
    "RefusedError",
    "UnavailableError",
    "load_dataset",
    "load_image",
    "prometheus_text",
]

_HOME = {
    "AsyncClassifier": "edgebert.runtime.aio",
    "BadDataError": "edgebert.errors",
    "Classifier": "edgebert.runtime.classifier",
    "Counters": "edgebert.runtime.counters",
    "Dataset": "edgebert.data",
    "EdgebertError": "edgebert.errors",
    "Prediction": "edgebert.runtime.classifier",
    "Preprocessing": "edgebert.preprocess",
    "RefusedError": "edgebert.errors",
    "UnavailableError": "edgebert.errors",
    "load_dataset": "edgebert.data",
    "load_image": "edgebert.preprocess",
    "prometheus_text": "edgebert.runtime.counters",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module `edgebert` has no attribute `{name}`")
    value: object = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
