"""Which CPUs add int8 products exactly: from flags and limits alone, without the computer at hand."""

from __future__ import annotations

import pytest

from edgebert.runtime import instructions
from edgebert.runtime.instructions import Int8Instructions, cpu_flags, int8_instructions, saturates

ZEN4 = ("avx2", "avx512f", "avx512_vnni")
ALDER_LAKE = ("avx2", "avx_vnni")
SAPPHIRE_RAPIDS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
SKYLAKE_X = ("avx2", "avx512f")
HASWELL = ("avx2",)


def _on(flags: tuple[str, ...], limit: str = "", backend: str = "openvino") -> Int8Instructions:
    return int8_instructions(backend, architecture="x86_64", flags=flags, limit=limit)


@pytest.mark.parametrize(
    ("flags", "name", "exact"),
    [
        (ZEN4, "avx512_vnni", True),
        (ALDER_LAKE, "avx_vnni", True),
        (SAPPHIRE_RAPIDS, "amx_int8", True),
        (SKYLAKE_X, "avx512f", False),
        (HASWELL, "avx2", False),
        (("sse4_2",), "sse", False),
    ],
)
def test_int8_instructions_are_the_best_of_the_flags(flags: tuple[str, ...], name: str, exact: bool) -> None:
    assert _on(flags) == Int8Instructions(name=name, exact=exact)


@pytest.mark.parametrize(
    ("flags", "limit", "exact"),
    [
        (ZEN4, "AVX2", False),
        (ZEN4, "avx2", False),
        (ZEN4, "AVX512_CORE", False),
        (ZEN4, "AVX512_CORE_VNNI", True),
        (ZEN4, "AVX2_VNNI", False),  # this CPU has the 512-bit form only
        (ALDER_LAKE, "AVX2_VNNI", True),
        (ALDER_LAKE, "AVX512_CORE_VNNI", False),  # whose mask lacks the bit of AVX2_VNNI
        (SAPPHIRE_RAPIDS, "AVX512_CORE_BF16", True),
        (SAPPHIRE_RAPIDS, "DEFAULT", True),
        (SAPPHIRE_RAPIDS, "AVX512_CORE_AMX", True),
        (SAPPHIRE_RAPIDS, "no such value", True),  # oneDNN ignores it, too
        (HASWELL, "AVX512_CORE_VNNI", False),
    ],
)
def test_int8_instructions_follow_onednn_s_limit(flags: tuple[str, ...], limit: str, exact: bool) -> None:
    assert _on(flags, limit).exact is exact


def test_int8_instructions_of_onnxruntime_know_no_limit_of_onednn() -> None:
    assert _on(ZEN4, "AVX2", backend="onnxruntime") == Int8Instructions(name="avx512_vnni", exact=True)


def test_int8_instructions_say_which_limit_took_them_away() -> None:
    assert (
        _on(ZEN4, "avx512_core").to_text() == "avx512f (ONEDNN_MAX_CPU_ISA=AVX512_CORE): sums of int8 products saturate"
    )


def test_int8_instructions_do_not_blame_a_limit_that_took_nothing() -> None:
    assert _on(HASWELL, "AVX2").limit == ""


def test_int8_instructions_read_the_limit_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert int8_instructions("openvino", architecture="x86_64", flags=ZEN4).exact is False


@pytest.mark.parametrize("architecture", ["aarch64", "arm64"])
def test_int8_instructions_of_arm_never_saturate(architecture: str) -> None:
    assert int8_instructions("onnxruntime", architecture=architecture, flags=()).exact is True


def test_int8_instructions_are_unknown_where_no_flags_are_published() -> None:
    found = int8_instructions("onnxruntime", architecture="AMD64", flags=())
    assert (found.exact, found.to_text()[:9]) == (None, "not known")


def test_int8_instructions_of_another_processor_are_unknown() -> None:
    assert int8_instructions("onnxruntime", architecture="riscv64", flags=("rv64",)).exact is None


@pytest.mark.parametrize(
    ("bits", "device", "expected"), [(8, "CPU", True), (7, "CPU", False), (None, "CPU", False), (8, "GPU", False)]
)
def test_saturates_only_with_eight_bits_on_a_cpu(
    bits: int | None, device: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instructions, "int8_instructions", lambda _: Int8Instructions(name="avx2", exact=False))
    assert saturates(bits, "openvino", device) is expected


def test_saturates_is_not_claimed_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "int8_instructions", lambda _: Int8Instructions(name="", exact=None))
    assert not saturates(8, "openvino", "CPU")


def test_cpu_flags_are_a_set_of_words() -> None:
    assert all(flag and " " not in flag for flag in cpu_flags())
