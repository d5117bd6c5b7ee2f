"""Everything that edgebert uses of TensorRT, against the official Python bindings of each supported version.

What these tests prove and what they do not: reference, section 11, methods A and C. A name, an argument or an enum member that a
version lacks is found here; whether an engine is built or runs, and how fast, only a device tells.
"""

from __future__ import annotations

from tests.tensorrt.wheels import Bindings


def test_bindings_are_the_version_that_was_asked_for(binding: Bindings) -> None:
    assert binding.api.version == binding.wheel.version


def test_bindings_have_as_many_classes_and_enums_as_the_reference_counts(binding: Bindings) -> None:
    top = [cls for name, cls in binding.api.classes.items() if "." not in name]
    enums = sum(cls.members is not None for cls in top)
    assert (len(top) - enums, enums) == (binding.wheel.classes, binding.wheel.enums)
