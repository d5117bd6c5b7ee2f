"""How a library that cannot allocate is told from one that was given something wrong: by its words.

ONNX Runtime and OpenVINO raise errors of the same classes for both, and so does PyTorch.

>>> says_out_of_memory("terminate called after throwing an instance of 'std::bad_alloc'")
True
>>> says_out_of_memory("MatMul: shapes do not fit")
False
"""

from __future__ import annotations

# Python; C++; PyTorch's CPU allocator; ONNX Runtime's arena; CUDA and OpenCL.
_WORDS = (
    "memoryerror",
    "bad_alloc",
    "bad alloc",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "unable to allocate",
    "out of memory",
    "out_of_memory",
)


def says_out_of_memory(text: str) -> bool:
    """Say whether an error's text, or what a process wrote on stderr, tells that memory ran out."""
    lowered = text.lower()
    return any(word in lowered for word in _WORDS)
