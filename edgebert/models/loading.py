"""Loading weights through transformers, with every doubt turned into an error.

transformers only warns where weights are missing, of another shape or unused, and says nothing of weights that are not finite.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from edgebert.errors import BadDataError, UnavailableError
from edgebert.models.source import WeightsFolder

_LOG = logging.getLogger("edgebert")

MODEL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BadDataError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What transformers, torch and safetensors raise on configs and weights that are not what they say."""


def load_weights(from_pretrained: Callable[..., Any], folder: WeightsFolder) -> PreTrainedModel:
    """Load a model: float32, eager attention, evaluation mode; safetensors only, no code of its own, nothing from the network.

    Args:
        from_pretrained: the method of a class of transformers.
        folder: where the weights are.

    Raises:
        BadDataError: config or weights are damaged, do not fit each other, or are not finite.
        UnavailableError: the architecture needs a package that is not installed.
    """
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)
            config._attn_implementation = "eager"  # here, because a file that names another would win over an argument
            model, report = from_pretrained(
                folder.path,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except ImportError as error:
        raise UnavailableError(f"`{folder.name}` cannot be loaded: {first_line(error)}") from error
    except MODEL_ERRORS as error:
        raise BadDataError(f"`{folder.name}` cannot be loaded: {first_line(error)}") from error
    assert isinstance(model, PreTrainedModel)
    missing, mismatched = sorted(report["missing_keys"]), sorted(map(str, report["mismatched_keys"]))
    if missing or mismatched:
        raise BadDataError(
            f"the weights of `{folder.name}` do not fit its config: `{(missing + mismatched)[0]}`"
            f" is {'missing' if missing else 'of another shape'}",
            expected="model.safetensors of the model that config.json describes",
        )
    if unused := sorted(report["unexpected_keys"]):
        _LOG.info("`%s` holds weights that this model does not use: %s", folder.name, listed(unused))
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise BadDataError(
                f"`{folder.name}` holds weights that are not finite: `{name}`", expected="finite weights"
            )
    return evaluating(model)


def evaluating(model: PreTrainedModel) -> PreTrainedModel:
    """Put a model into evaluation mode and return it."""
    model.eval()  # type: ignore[no-untyped-call]  # transformers has no types here
    return model


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first names of a list, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """Return an error's kind and the first line of its text: others' errors run over pages."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own bars and notes off stderr: what matters of them is said by us, as an error or a note."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
