"""The check of a double of TensorRT, on small doubles: one that knows less passes, one that knows more or otherwise does not."""

from __future__ import annotations

import enum
from types import ModuleType
from typing import Any

import pytest

from tests.tensorrt.doubles import double_findings
from tests.tensorrt.small_api import small_apis
from tests.tensorrt.usage import usage_of

API = small_apis()["11.0.0"]


class _Members(enum.Enum):
    def __int__(self) -> int:
        return int(self.value)


def _members(members: dict[str, int]) -> Any:
    make: Any = _Members
    return make("Flag", members)


def small_double() -> Any:
    """Return a right double of the small version 11."""
    double: Any = ModuleType("tensorrt")
    double.__version__ = "11.0.0"
    double.Flag = _members({"TF32": 6})

    class Network:
        def __init__(self, anything: object) -> None:
            del anything

        def get_input(self, index: int) -> None: ...

    class Builder:
        __slots__ = ("max_threads",)

        def __init__(self, logger: object) -> None:
            del logger

        @property
        def num_cores(self) -> int:
            return 0

        def create_network(self, flags: int = 0) -> Network:
            return Network(flags)

        def build_plan(self, network: Network) -> None: ...

        def build_to(self, writer: object) -> None: ...

    double.Builder, double.Network = Builder, Network
    return double


def test_double_findings_lets_a_double_know_less() -> None:
    assert double_findings(small_double(), API) == []


def _define(double: Any, name: str, item: object) -> None:
    setattr(double.Builder, name, item)


@pytest.mark.parametrize(
    ("name", "item", "text"),
    [
        ("creat_network", lambda self: None, "`Builder.creat_network` does not exist"),
        ("create_network", lambda self, flag=0: None, "`Builder.create_network` takes (flags), not (flag)"),
        ("create_network", lambda self, flags, more: None, "`Builder.create_network` takes (flags), not (flags, more)"),
        ("build_plan", lambda self: None, "`Builder.build_plan` takes (network) or (network, text), not ()"),
        (
            "build_plan",
            lambda self, network=None: None,
            "`Builder.build_plan` takes (network) or (network, text), not (network)",
        ),
        ("num_cores", lambda self: None, "`Builder.num_cores` is no method"),
        ("build_to", property(lambda self: 1), "`Builder.build_to` is no property"),
        ("num_cores", property(lambda self: 1, lambda self, value: None), "`Builder.num_cores` cannot be set"),
    ],
)
def test_double_findings_finds_what_is_otherwise(name: str, item: object, text: str) -> None:
    double = small_double()
    _define(double, name, item)
    assert double_findings(double, API) == [text]


def test_double_findings_finds_a_member_that_the_version_lacks() -> None:
    double = small_double()
    double.Flag = _members({"FP16": 0})
    assert double_findings(double, API) == ["`Flag.FP16` does not exist"]


def test_double_findings_finds_another_integer() -> None:
    double = small_double()
    double.Flag = _members({"TF32": 1})
    assert double_findings(double, API) == ["`Flag.TF32` is 6"]


def test_double_findings_finds_a_class_that_the_version_lacks() -> None:
    double = small_double()
    double.Bulider = double.Builder
    assert double_findings(double, API) == ["`Bulider` does not exist"]


def test_double_findings_finds_what_our_code_asks_for_in_vain() -> None:
    source = "def used(trt, network: 'trt.Network'):\n    return network.get_inputs()\n"
    uses = usage_of({"edgebert/sample.py": source}, {API.version: API}).uses[API.version]
    assert double_findings(small_double(), API, uses) == [
        "our code asks for `trt.Network.get_inputs` (edgebert/sample.py:2), which the double lacks"
    ]
