"""Which int8 dot products this computer has, and whether sums of them are exact.

An x86 CPU with VNNI or AMX adds four products of uint8 and int8 into 32 bits. Without them a kernel adds pairs in 16 bits with
saturation (`vpmaddubsw`): two products of 255 and 127 are 64,770, and 32,767 remain. Weights in [-63, 63] cannot get there
(2 * 255 * 63 = 32,130). Arm's kernels do not saturate.

>>> int8_instructions("onnxruntime", architecture="x86_64", flags=("avx2", "avx512_vnni")).exact
True
>>> int8_instructions("openvino", architecture="x86_64", flags=("avx2", "avx512_vnni"), limit="AVX2").to_text()
'avx2 (ONEDNN_MAX_CPU_ISA=AVX2): sums of int8 products saturate'
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

# oneDNN, and so OpenVINO's CPU plugin, runs as if the CPU had no newer instructions than this variable says.
LIMIT_VARIABLE = "ONEDNN_MAX_CPU_ISA"

_X86 = ("amd64", "i386", "i686", "x64", "x86", "x86_64")
_ARM = ("aarch64", "arm64")
_EXACT = ("amx_int8", "avx512_vnni", "avx_vnni")  # as Linux names them
_SATURATING = ("avx512f", "avx2")  # the widest vectors that the 16-bit sums are made with
_EXACT_ON_ARM = ("i8mm", "asimddp")
# What each value leaves of `_EXACT`; every other value, such as DEFAULT, leaves all. From the bit masks of `dnnl_cpu_isa_t`:
# AVX512_CORE_VNNI and AVX512_CORE_BF16 do not hold the bit of AVX2_VNNI, the later ones do.
_LIMITS: dict[str, tuple[str, ...]] = {
    "SSE41": (),
    "AVX": (),
    "AVX2": (),
    "AVX2_VNNI": ("avx_vnni",),
    "AVX2_VNNI_2": ("avx_vnni",),
    "AVX512_CORE": (),
    "AVX512_CORE_VNNI": ("avx512_vnni",),
    "AVX512_CORE_BF16": ("avx512_vnni",),
    "AVX512_CORE_FP16": ("avx512_vnni", "avx_vnni"),
    "AVX10_1_512": ("avx512_vnni", "avx_vnni"),
}
_WITHOUT_AVX512 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Instructions:
    """What a backend multiplies int8 with on this CPU.

    Attributes:
        name: the instruction set, as Linux names it; empty where it is not known.
        exact: False where sums of products saturate, None where nobody says.
        limit: the value of `ONEDNN_MAX_CPU_ISA` where it takes instructions away, else empty.
    """

    name: str
    exact: bool | None
    limit: str = ""

    def to_text(self) -> str:
        """Return one line without a full stop."""
        name = self.name + (f" ({LIMIT_VARIABLE}={self.limit})" if self.limit else "")
        if self.exact is None:
            return "not known: this system does not publish its CPU's instructions"
        return f"{name}: sums of int8 products {'are exact' if self.exact else 'saturate'}"


def int8_instructions(
    backend: str,
    *,
    architecture: str | None = None,
    flags: Collection[str] | None = None,
    limit: str | None = None,
) -> Int8Instructions:
    """Return what `backend` multiplies int8 with on this computer's CPU.

    Args:
        backend: `ONEDNN_MAX_CPU_ISA` in the environment counts for `openvino` alone.
        architecture: as `platform.machine` names it; this computer's where None.
        flags: of the CPU, as /proc/cpuinfo names them; this computer's where None, and empty where none are published.
        limit: a value of `ONEDNN_MAX_CPU_ISA`; the environment's where None.
    """
    flags = cpu_flags() if flags is None else flags
    kind = (architecture or platform.machine()).lower()
    if kind in _ARM:
        return Int8Instructions(name=next((flag for flag in _EXACT_ON_ARM if flag in flags), "asimd"), exact=True)
    if kind not in _X86 or not flags:
        return Int8Instructions(name="", exact=None)
    given = os.environ.get(LIMIT_VARIABLE, "") if limit is None else limit
    value = given.upper() if backend == "openvino" else ""
    there = [flag for flag in _EXACT if flag in flags]
    left = [flag for flag in there if flag in _LIMITS.get(value, _EXACT)]
    if left:
        return Int8Instructions(name=left[0], exact=True, limit=value if left[0] != there[0] else "")
    wide = [flag for flag in _SATURATING if flag in flags and not (flag == "avx512f" and value in _WITHOUT_AVX512)]
    return Int8Instructions(name=wide[0] if wide else "sse", exact=False, limit=value if there else "")


def saturates(weight_bits: int | None, backend: str, device: str) -> bool:
    """Say whether a model's int8 products saturate here; False where that is not known.

    Args:
        weight_bits: 8 or 7 of an INT8 model, None of a float one.
        backend: that runs it.
        device: the backend's own name; GPUs and NPUs sum in 32 bits.
    """
    return weight_bits == 8 and device == "CPU" and int8_instructions(backend).exact is False


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the CPU's feature flags as Linux names them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
