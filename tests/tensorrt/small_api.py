"""Two small versions of a module like TensorRT, written by hand in the form that `introspect.py` prints: for tests of the checkers."""

from __future__ import annotations

from typing import Any

from tests.tensorrt.api import Api, api_from_json

_P = "tensorrt_bindings.tensorrt."


def _class(name: str, **given: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"methods": {}, "properties": {}, "values": {}, "classes": {}}
    return {"type": name, "bases": [], "members": None, "overridden": [], "is_buffer": False, **empty, **given}


def _enum(name: str, **members: int) -> dict[str, Any]:
    properties = {"name": [f"name(self: {_P}{name}) -> str", False], "value": [f"(arg0: {_P}{name}) -> int", False]}
    methods = {"__init__": [f"__init__(self: {_P}{name}, value: int) -> None"]}
    return _class(name, members=members, properties=properties, methods=methods)


def _method(owner: str, *shapes: str) -> list[str]:
    """Complete `name(, arg: type) -> type` with the `self` that pybind11 writes."""
    return [shape.replace("(", f"(self: {_P}{owner}", 1) for shape in shapes]


def _raw(version: str) -> dict[str, Any]:
    severity = _enum("ILogger.Severity", ERROR=1, VERBOSE=4)
    return {
        "version": version,
        "functions": {"get_plugin_registry": [f"get_plugin_registry() -> {_P}Registry"]},
        "values": {"float32": "DataType"},
        "classes": {
            "DataType": _enum("DataType", FLOAT=0, HALF=1),
            "Flag": _enum("Flag", FP16=0, TF32=6) if version.startswith("10") else _enum("Flag", TF32=6),
            "ILogger": _class(
                "ILogger",
                classes={"Severity": "ILogger.Severity"},
                methods={
                    "__init__": _method("ILogger", "__init__() -> None"),
                    "log": _method("ILogger", f"log(, severity: {_P}ILogger.Severity, msg: str) -> None"),
                },
            ),
            "ILogger.Severity": severity,
            "Builder": _class(
                "Builder",
                methods={
                    "__init__": _method("Builder", f"__init__(, logger: {_P}ILogger) -> None"),
                    "create_network": _method("Builder", f"create_network(, flags: int = 0) -> {_P}Network"),
                    "build_plan": _method(
                        "Builder",
                        f"build_plan(, network: {_P}Network) -> {_P}Plan",
                        f"build_plan(, network: {_P}Network, text: typing.SupportsInt) -> {_P}Plan",
                    ),
                    **(
                        {}
                        if version.startswith("10")
                        else {"build_to": _method("Builder", "build_to(, arg0: int) -> bool")}
                    ),
                },
                properties={"num_cores": ["(arg0: X) -> int", False], "max_threads": ["(arg0: X) -> int", True]},
            ),
            "Network": _class(
                "Network",
                methods={
                    "__init__": ["Initialize self.  See help(type(self)) for accurate signature."],
                    "get_input": _method("Network", f"get_input(, index: int) -> {_P}Tensor"),
                    "get_inputs": _method("Network", f"get_inputs() -> List[{_P}Tensor]"),
                },
            ),
            "Tensor": _class(
                "Tensor",
                properties={"dtype": [f"(arg0: X) -> {_P}DataType", False], "some_shape": ["(arg0: X) -> int", True]},
            ),
            "Plan": _class("Plan", is_buffer=True, properties={"size_bytes": ["(arg0: X) -> int", False]}),
            "Writer": _class(
                "Writer",
                overridden=["write(self, data: bytes) -> int"],
                methods={
                    "__init__": _method("Writer", "__init__() -> None"),
                    "write": _method("Writer", "write(, data: capsule, size: int) -> int"),
                },
            ),
        },
    }


def small_apis() -> dict[str, Api]:
    """Return two versions: 10 has `Flag.FP16`, 11 has `Builder.build_to`."""
    return {version: api_from_json(_raw(version)) for version in ("10.9.0", "11.0.0")}
