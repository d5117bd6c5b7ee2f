"""The one table of scales that every placement of a model is emitted from.

>>> table = ScaleTable(activations={"layer_norm": 0.02}, weights={"node_MatMul_33": np.ones(4, np.float32)})
>>> ScaleTable.from_json(table.to_json(), what="table").activations
{'layer_norm': 0.02}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgebert._json import Fields, JsonObject, JsonValue
from edgebert.errors import BadDataError


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleTable:
    """Symmetric int8 scales: a value x is stored as clip(round(x / scale), -127, 127), zero point 0.

    Attributes:
        activations: name of a value of the FP32 graph -> its scale, above 0. Operators that read the same value share it.
        weights: name of a Conv, Gemm or MatMul node -> float32 (output channels,), above 0.
    """

    activations: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """Return the table as a JSON object; every float32 is written so that it is read back bit by bit."""
        return {
            "activations": dict(sorted(self.activations.items())),
            "weights": {name: [float(value) for value in row] for name, row in sorted(self.weights.items())},
        }

    @classmethod
    def from_json(cls, value: JsonValue, *, what: str) -> ScaleTable:
        """Read what `to_json` wrote.

        Raises:
            BadDataError: a field is missing or of another type, or a scale is not above 0.
        """
        fields = Fields(value, what=what)
        activations, weights = fields.fields("activations"), fields.fields("weights")
        table = cls(
            activations={name: activations.number(name) for name in activations.value},
            weights={name: _float32(weights.numbers(name)) for name in weights.value},
        )
        odd = [name for name, scale in table.activations.items() if not 0 < scale < np.inf]
        odd += [name for name, row in table.weights.items() if not row.size or not ((row > 0) & (row < np.inf)).all()]
        if odd:
            raise BadDataError(f"{what} has a scale of `{odd[0]:.80}` that is not above 0", expected="positive scales")
        return table


def _float32(values: Sequence[float]) -> NDArray[np.float32]:
    """Return the nearest float32; infinity for what is too large, 0 for what is too small."""
    with np.errstate(over="ignore", under="ignore"):
        return np.array(values, np.float32)
