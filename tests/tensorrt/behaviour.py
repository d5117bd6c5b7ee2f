"""Run in a process of its own over one version's bindings and the stub libraries: what they do without TensorRT, as JSON.

Reference, section 11.1 step 8 (e). Nothing else may be called there: no builder, config or engine can exist.
"""

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any


def outcome(ask: Callable[[], object]) -> str:
    """Return what a call gives or raises, as text."""
    try:
        return repr(ask())
    except (TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def observed(trt: Any) -> dict[str, str]:
    """Return the outcome of each call."""
    logger = trt.Logger()

    def set_unknown() -> None:
        logger.no_such_attribute = 1

    def subclass(base: Any) -> str:
        def construct(self: Any) -> None:
            base.__init__(self)

        derived = type(f"Own{base.__name__}", (base,), {"__init__": construct})
        return "constructs" if isinstance(derived(), base) else "does not"

    return {
        "builder": outcome(lambda: trt.Builder(logger)),
        "runtime": outcome(lambda: trt.Runtime(logger)),
        "plugins": outcome(lambda: trt.init_libnvinfer_plugins(logger, "")),
        "registry": outcome(trt.get_plugin_registry),
        "config": outcome(trt.IBuilderConfig),
        "attribute": outcome(set_unknown),
        **{
            name: outcome(lambda name=name: subclass(getattr(trt, name)))  # type: ignore[misc]  # each its own name
            for name in ("ILogger", "IProfiler", "IProgressMonitor", "IOutputAllocator")
        },
    }


if __name__ == "__main__":
    json.dump(observed(importlib.import_module("tensorrt")), sys.stdout)
