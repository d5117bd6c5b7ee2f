"""What the portable graph answers: the reference of every form, asked where the forms are to run, or here where that has no backend for it.

A Jetson with nothing but JetPack has TensorRT alone, which takes no graph as it is.
"""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import UnavailableError
from edgebert.export.place import HERE, Place, Rows
from edgebert.manifest import GRAPH_FILE, Precision
from edgebert.runtime.choice import PORTABLE_BACKENDS
from edgebert.runtime.runner import InputSpec

_log = logging.getLogger("edgebert")


class PortableGraph(Protocol):
    """What is asked of a graph here; see `edgebert.export.precision.SourceGraph`."""

    @property
    def portable(self) -> bytes:
        """The ONNX file as a bundle holds it."""
        ...

    @property
    def precision(self) -> Precision:
        """Of its weights."""
        ...

    @property
    def spec(self) -> InputSpec:
        """What it takes and gives."""
        ...

    def for_bits(self, bits: int | None) -> bytes:
        """Return it with weights of 7 or 8 bits."""
        ...


def reference_place(place: Place) -> Place:
    """Return where the portable graph is answered: `place`, or this computer where no backend that runs it is there.

    Raises:
        UnavailableError: no backend that runs it is here either.
    """
    try:
        portable_backends(place)
    except UnavailableError as error:
        if place is HERE:
            raise
        portable_backends(HERE)
        _log.info("the portable graph is answered on this computer: %s", error.what)
        return HERE
    return place


def portable_backends(place: Place) -> list[str]:
    """Return the backends that run a graph as it is on a computer.

    Raises:
        UnavailableError: there is none.
    """
    here = []
    reasons = []
    for backend in PORTABLE_BACKENDS:
        try:
            place.has(backend)
            here.append(backend)
        except UnavailableError as error:
            reasons.append(error)
    if not here:
        raise reasons[0]
    return here


def portable_answers(
    graph: PortableGraph, tensors: NDArray[np.uint8], place: Place, *, most: int | None = None
) -> dict[str, Rows]:
    """Return what a graph answers as it is, by each backend that is on a computer.

    Where int8 products saturate there, the answers are those of its 7-bit form: they are nearer to what it answers elsewhere.

    Args:
        graph: FP32 or INT8.
        tensors: uint8 (images, height, width, 3).
        place: as `reference_place` gives it.
        most: ask so many backends, the first ones; None for all.

    Returns:
        by backend: float32 (images, classes).
    """
    answers = {}
    for backend in portable_backends(place)[:most]:
        saturates = graph.precision == "int8" and place.int8(backend).exact is False
        portable = graph.for_bits(7) if saturates else graph.portable
        answers[backend] = place.answers(backend, "CPU", {GRAPH_FILE: portable}, (), graph.spec, tensors)
    return answers
