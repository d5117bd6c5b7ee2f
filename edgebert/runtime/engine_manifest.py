"""What stands beside every TensorRT engine: `engine.json`, schema `edgebert.engine/1`, checked before the engine is touched.

An engine is native code: to deserialise one is to run it. So its hash, and whether it was built on a computer like this one, are
decided from this file alone (tensorrt_jetson.md, section 10).

>>> EngineManifest.from_bytes(b"{}")
Traceback (most recent call last):
edgebert.errors.BadDataError: `engine.json` holds nothing as `schema`
expected: a string
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgebert._json import Fields, JsonObject, dump_json, parse_json_object
from edgebert.errors import BadDataError, RefusedError, UnavailableError
from edgebert.fingerprint import ComputerFacts, Fingerprint, GpuFacts, misfits
from edgebert.runtime.tensorrt_api import Typing
from edgebert.runtime.tensorrt_errors import REBUILD

ENGINE_SCHEMA = "edgebert.engine/1"
PLAN_FILE = "engine.plan"
ENGINE_FILE = "engine.json"

EnginePrecision = Literal["fp32", "fp16", "int8"]

_TYPINGS: dict[str, Typing] = {"strong": "strong", "weak": "weak"}
_PRECISIONS: dict[str, EnginePrecision] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}
_MAX_BYTES = 64 << 10
# Without these a fingerprint would let an engine pass on a device that it was not built on.
_NEEDED = ("backend_version", "compute_capability", "multiprocessors", "gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineManifest:
    """What is known of one engine.

    Attributes:
        plan_sha256: of the engine's file.
        plan_bytes: its size.
        graph_sha256: of the ONNX file it was built from.
        typing: `strong` or `weak`.
        precision: of the fastest kernels it may use: the graph's own where `typing` is strong.
        flags: names of the builder's flags that edgebert set or cleared (`-TF32`), and its settings, such as `workspace=1073741824`.
        min_batch: smallest batch it takes.
        max_batch: largest batch it takes; the same for a static one.
        fingerprint: of the computer that it was built on.
        versions: package -> version of what made it.
    """

    plan_sha256: str
    plan_bytes: int
    graph_sha256: str
    typing: Typing
    precision: EnginePrecision
    flags: tuple[str, ...]
    min_batch: int
    max_batch: int
    fingerprint: Fingerprint
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What a report calls it: `strong-int8`, or `weak-int8-fp16` where TensorRT may choose for each layer."""
        mixed = "-fp16" if self.typing == "weak" and self.precision == "int8" else ""
        return f"{self.typing}-{self.precision}{mixed}"

    def to_bytes(self) -> bytes:
        """Return the file."""
        return dump_json(self.to_json()).encode()

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return {
            "schema": ENGINE_SCHEMA,
            "plan_sha256": self.plan_sha256,
            "plan_bytes": self.plan_bytes,
            "graph_sha256": self.graph_sha256,
            "typing": self.typing,
            "precision": self.precision,
            "flags": list(self.flags),
            "min_batch": self.min_batch,
            "max_batch": self.max_batch,
            "fingerprint": self.fingerprint.to_json(),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_bytes(cls, content: bytes) -> EngineManifest:
        """Read the file.

        Raises:
            BadDataError: it is malformed, of another schema, or its fingerprint does not say which GPU and which TensorRT.
        """
        what = f"`{ENGINE_FILE}`"
        fields = Fields(parse_json_object(content, what=what, max_bytes=_MAX_BYTES, only_plain_texts=True), what=what)
        if fields.text("schema") != ENGINE_SCHEMA:
            raise BadDataError(f"{what} has schema `{fields.text('schema'):.80}`", expected=ENGINE_SCHEMA)
        fingerprint = Fingerprint.from_fields(fields.fields("fingerprint"))
        open_conditions = [name for name in _NEEDED if getattr(fingerprint, name) is None]
        if open_conditions:
            raise BadDataError(
                f"{what} has a fingerprint without `{open_conditions[0]}`", expected=f"one with {', '.join(_NEEDED)}"
            )
        typing, precision = fields.text("typing"), fields.text("precision")
        if typing not in _TYPINGS or precision not in _PRECISIONS:
            raise BadDataError(
                f"{what} has typing `{typing:.80}` and precision `{precision:.80}`",
                expected=f"{' or '.join(_TYPINGS)}; {', '.join(_PRECISIONS)}",
            )
        versions = fields.fields("versions")
        return cls(
            plan_sha256=fields.text("plan_sha256"),
            plan_bytes=fields.integer("plan_bytes"),
            graph_sha256=fields.text("graph_sha256"),
            typing=_TYPINGS[typing],
            precision=_PRECISIONS[precision],
            flags=fields.texts("flags"),
            min_batch=fields.integer("min_batch"),
            max_batch=fields.integer("max_batch"),
            fingerprint=fingerprint,
            versions={name: versions.text(name) for name in versions.value},
        )


def engine_fingerprint(gpu: GpuFacts, *, tensorrt: str, machine: str) -> Fingerprint:
    """Return what an engine built on this computer asks of one that loads it.

    Args:
        gpu: of the GPU that it was built on.
        tensorrt: version of the library.
        machine: processor architecture.

    Raises:
        UnavailableError: the driver does not say which GPU this is, so that an engine would fit nowhere or everywhere.
    """
    if gpu.name is None or gpu.compute_capability is None or gpu.multiprocessors is None:
        raise UnavailableError(
            f"NVIDIA's driver does not say which GPU this is ({gpu.to_text() or 'it says nothing'})",
            expected="its name, compute capability and number of multiprocessors, through libcuda",
            hint="edgebert doctor",
        )
    return Fingerprint(
        os="linux",
        machine=machine,
        backend_version=f"== {tensorrt}",
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        multiprocessors=gpu.multiprocessors,
        module=gpu.module,
        cuda=None if gpu.cuda is None else f"== {gpu.cuda}",
        l4t=None if gpu.l4t is None else f"== {gpu.l4t}",
    )


def check_engine(manifest: EngineManifest, plan: bytes, facts: ComputerFacts) -> None:
    """Return only if an engine is the one that its manifest describes, and was built on a computer like this one.

    Raises:
        RefusedError: its file was changed.
        UnavailableError: it was built with or for something else; every difference is named.
    """
    found = hashlib.sha256(plan).hexdigest()
    if (found, len(plan)) != (manifest.plan_sha256, manifest.plan_bytes):
        raise RefusedError(
            f"`{PLAN_FILE}` has SHA-256 `{found}`",
            expected=f"{manifest.plan_sha256:.64}, as `{ENGINE_FILE}` says",
            hint=REBUILD,
        )
    reasons = misfits(manifest.fingerprint, facts)
    if reasons:
        raise UnavailableError(
            f"the engine does not fit this computer: {'; '.join(reasons)}",
            expected=f"a computer with {manifest.fingerprint.to_text()}",
            hint=REBUILD,
        )


def differences(manifest: EngineManifest, *, graph_sha256: str, flags: tuple[str, ...]) -> tuple[str, ...]:
    """Return why an engine is not the one that a build would make of this graph with these flags; empty where it is."""
    found = []
    if manifest.graph_sha256 != graph_sha256:
        found.append(f"built from graph {manifest.graph_sha256:.12}, this is {graph_sha256:.12}")
    if manifest.flags != flags:
        found.append(f"built with {' '.join(manifest.flags) or 'no flags'}, asked for {' '.join(flags) or 'none'}")
    return tuple(found)
