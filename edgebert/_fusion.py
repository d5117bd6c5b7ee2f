"""What cannot be done with a fusion model, said without loading it: it sees a text with each image, and a device has none."""

from __future__ import annotations

from pathlib import Path

from edgebert._files import read_input
from edgebert._json import parse_json_object
from edgebert.errors import UsageError

FUSION_MODEL_TYPE = "edgebert-fusion"
"""The `model_type` in a fusion model's config.json; see `edgebert.models.fusion`."""


def fusion_refused(name: str) -> UsageError:
    """Return the error of what takes images alone: export, quantisation, bench, the runtime.

    Args:
        name: how to call the model, in backticks where it is a value.
    """
    return UsageError(
        f"{name} is a fusion model: it sees a text with each image",
        expected="a model that sees the image only: distil it into a student",
        hint="edgebert distill DATA --teacher CHECKPOINT --student tiny -o student/",
    )


def refuse_fusion_folder(folder: Path) -> None:
    """Refuse a checkpoint folder of a fusion model, by its config.json.

    Raises:
        UsageError: it is one.
    """
    path = folder / "config.json"
    if not path.is_file():
        return  # whoever loads it says what is missing
    config = parse_json_object(read_input(path, what="the config"), what=f"config.json of `{folder}`")
    if config.get("model_type") == FUSION_MODEL_TYPE:
        raise fusion_refused(f"`{folder}`")
