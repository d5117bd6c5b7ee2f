"""The target table: one name decides backend, device and the form of the compiled model.

>>> resolve_target("intel-cpu").backend
'openvino'
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Literal

from edgebert.errors import UnavailableError, UsageError

Backend = Literal["openvino", "onnxruntime", "tensorrt", "torch"]
Form = Literal["ir", "ort", "engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A kind of device to compile for.

    Attributes:
        name: what `--target` takes.
        backend: the runner that executes the compiled form.
        device: the backend's own name of the device.
        form: what `compile` makes: OpenVINO IR, an ONNX Runtime graph, or a TensorRT engine.
        opset: newest ONNX opset the target's parser is known to read.
        summary: one line for `edgebert targets`.
        beside: `fp16` or `int8` of what a bundle may hold beside the form of another target, for `edgebert bench`; else empty.
        modules: numbers of the Jetson modules that are meant, as the device tree has them; empty for whatever is there.
    """

    name: str
    backend: Backend
    device: str
    form: Form
    opset: int
    summary: str
    beside: Literal["", "fp16", "int8"] = ""
    modules: tuple[str, ...] = ()


# Opsets: compression.md's table by target; TensorRT 10.3 (JetPack 6.1) reads up to 20, see tensorrt_jetson.md.
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(name="cpu", backend="onnxruntime", device="CPU", form="ort", opset=20, summary="any CPU, ONNX Runtime"),
        Target(name="intel-cpu", backend="openvino", device="CPU", form="ir", opset=20, summary="Intel CPU, OpenVINO"),
        Target(name="intel-gpu", backend="openvino", device="GPU", form="ir", opset=20, summary="Intel GPU, OpenVINO"),
        Target(name="intel-npu", backend="openvino", device="NPU", form="ir", opset=20, summary="Intel NPU, OpenVINO"),
        *(
            Target(
                name=name,
                backend="tensorrt",
                device="GPU",
                form="engine",
                opset=20,
                summary=f"{board}, TensorRT",
                modules=modules,
            )
            for name, board, modules in (  # numbers: tensorrt_jetson.md, section 8.5
                ("jetson", "the Jetson at hand", ()),
                ("jetson-orin-nano", "Jetson Orin Nano", ("p3767-0003", "p3767-0004", "p3767-0005")),
                ("jetson-orin-nx", "Jetson Orin NX", ("p3767-0000", "p3767-0001")),
                ("jetson-agx-orin", "Jetson AGX Orin", ("p3701-0000", "p3701-0004", "p3701-0005")),
                ("jetson-agx-thor", "Jetson AGX Thor", ("p3834-0008",)),
            )
        ),
    )
}

_BESIDE: tuple[Literal["fp16", "int8"], ...] = ("fp16", "int8")

# What `compile --keep-both` keeps of an engine that does not ship: `jetson-fp16` beside `jetson`, with a name of its own, so that a
# version that does not know it leaves it alone. Nothing is compiled for these alone.
FORM_TARGETS: dict[str, Target] = {
    **TARGETS,
    **{
        f"{target.name}-{beside}": replace(
            target,
            name=f"{target.name}-{beside}",
            summary=f"{target.summary}, {beside.upper()} beside what ships",
            beside=beside,
        )
        for target in TARGETS.values()
        if target.form == "engine"
        for beside in _BESIDE
    },
}


def beside_of(target: Target) -> tuple[Target, ...]:
    """Return the targets of what a bundle may hold beside the form of `target`; empty where nothing is kept so.

    >>> [other.name for other in beside_of(TARGETS["jetson"])]
    ['jetson-fp16', 'jetson-int8']
    """
    return tuple(
        FORM_TARGETS[f"{target.name}-{beside}"] for beside in _BESIDE if f"{target.name}-{beside}" in FORM_TARGETS
    )


def check_module(target: Target, module: str | None, where: str) -> None:
    """Return only if an engine that is built on this Jetson is one for `target`; a module of no target's is taken for any.

    Args:
        target: that is compiled for.
        module: number of the module, as `edgebert.fingerprint.GpuFacts` has it; None where it is not known.
        where: name of the device, for the message.

    Raises:
        UnavailableError: it is a module of another target's.
    """
    there = next((other for other in TARGETS.values() if module in other.modules), None)
    if there is None or not target.modules or module in target.modules:
        return
    raise UnavailableError(
        f"`--target {target.name}`, and `{where}` is a module of `{there.name}` ({module})",
        expected="the board that the engine is for: engines are built on it",
        hint=f"--target {there.name}, or --target jetson for whatever is there",
    )


def resolve_target(name: str) -> Target:
    """Return the target of this name, of what a bundle may hold beside another included.

    Raises:
        UsageError: there is none; the nearest name is suggested, never taken.
    """
    if name in FORM_TARGETS:
        return FORM_TARGETS[name]
    near = difflib.get_close_matches(name, TARGETS, n=1)
    hint = f"did you mean `--target {near[0]}`?" if near else "edgebert targets"
    raise UsageError(f"no such target: `{name}`", expected=", ".join(TARGETS), hint=hint)
