"""Which Jetson this is: module, chip, L4T and JetPack, TensorRT and CUDA (tensorrt_jetson.md, sections 1 and 8.5).

>>> jetpack_of_l4t("36.4.3"), jetpack_of_l4t("39.2.0"), jetpack_of_l4t("41.0.0")
('6.2', '7.2', None)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from edgebert.bench.environment.jetson.packages import version_of
from edgebert.bench.environment.jetson.rails import INPUTS, find_rails
from edgebert.bench.environment.schema import JetsonFacts, PowerRail
from edgebert.bench.environment.system_files import SystemFiles
from edgebert.fingerprint import l4t_of_release

COMPATIBLE = "/proc/device-tree/compatible"
RELEASE = "/etc/nv_tegra_release"

# Chip -> family (section 8.5); what stands nowhere here is named by its number.
SOCS = {"tegra234": "Orin", "tegra264": "Thor", "tegra194": "Xavier", "tegra186": "TX2", "tegra210": "Nano"}

# Module -> what is sold under that number (section 8.5). The model of the device tree names the carrier board, which may be another.
MODULES = {
    "p3767-0000": "Orin NX 16GB",
    "p3767-0001": "Orin NX 8GB",
    "p3767-0003": "Orin Nano 8GB",
    "p3767-0004": "Orin Nano 4GB",
    "p3767-0005": "Orin Nano developer kit",
    "p3701-0000": "AGX Orin",
    "p3701-0002": "IGX Orin",
    "p3701-0004": "AGX Orin 32GB",
    "p3701-0005": "AGX Orin 64GB",
    "p3834-0008": "AGX Thor",
}

# L4T -> JetPack (section 1.1, and 1.2 for what is refused).
_JETPACKS = {
    (36, 0, 0): "6.0 DP",
    (36, 2, 0): "6.0 DP",
    (36, 3, 0): "6.0",
    (36, 4, 0): "6.1",
    (36, 4, 2): "6.1",
    (36, 4, 3): "6.2",
    (36, 4, 4): "6.2.1",
    (36, 4, 7): "6.2.1",
    (36, 5, 0): "6.2.2",
    (38, 2, 0): "7.0",
    (38, 2, 1): "7.0",
    (38, 2, 2): "7.0",
    (38, 4, 0): "7.1",
    (39, 0, 0): "7.2 EA",
    (39, 2, 0): "7.2",
    (39, 2, 1): "7.2.1",
}
_OLD_MAJORS = {32: "4", 34: "5", 35: "5"}


def is_jetson(files: SystemFiles) -> bool:
    """Say whether this is a Jetson: a Tegra in the device tree, or the release file of L4T."""
    return "nvidia,tegra" in (files.text(COMPATIBLE) or "") or files.exists(RELEASE)


def read_identity(files: SystemFiles) -> JetsonFacts | None:
    """Return which Jetson this is, None where it is none; reasons go below `device.jetson`."""
    if not is_jetson(files):
        files.missing("device.jetson", "not a Jetson")
        return None
    names = re.split(r"[\x00\s]+", files.text(COMPATIBLE) or "")
    module = _module(names)
    soc = next((found[1] for name in names if (found := re.fullmatch(r"nvidia,(tegra\d+)", name))), None)
    l4t, rails = read_l4t(files), find_rails(files)
    facts = JetsonFacts(
        module=module,
        module_name=MODULES.get(module or ""),
        soc=soc,
        family=SOCS.get(soc or ""),
        l4t=l4t,
        jetpack=jetpack_of_l4t(l4t) or version_of(files, "nvidia-jetpack"),
        tensorrt=version_of(files, "libnvinfer-bin", r"libnvinfer\d+", "python3-libnvinfer"),
        cuda=_cuda(files),
        rails=tuple(
            PowerRail(
                label=rail.label,
                column=rail.column,
                chip=rail.chip,
                is_input=rail.label in INPUTS,
            )
            for rail in rails
        ),
        update_interval_ms={
            rail.chip: rail.update_interval_ms for rail in rails if rail.update_interval_ms is not None
        },
    )
    for name, reason in (
        ("module", f"no module number in {COMPATIBLE}"),
        ("module_name", "this version does not know the module"),
        ("soc", f"no Tegra in {COMPATIBLE}"),
        ("family", "this version does not know the chip"),
        ("l4t", f"neither {RELEASE} nor the package nvidia-l4t-core: a container often has neither"),
        ("jetpack", "this version does not know the L4T, and the package nvidia-jetpack is not installed"),
        ("tensorrt", "no package libnvinfer"),
        ("cuda", "no package cuda-cudart and no /usr/local/cuda/version.json"),
    ):
        if getattr(facts, name) is None:
            files.missing(f"device.jetson.{name}", reason)
    return facts


def read_l4t(files: SystemFiles) -> str | None:
    """Return the version of L4T, such as `36.4.3`, from its release file or, in containers without it, from dpkg."""
    return l4t_of_release(files.text(RELEASE) or "") or version_of(files, "nvidia-l4t-core")


def jetpack_of_l4t(l4t: str | None) -> str | None:
    """Return the JetPack that a version of L4T belongs to, None for one that this version does not know."""
    numbers = _numbers(l4t)
    return None if numbers is None else _JETPACKS.get(numbers) or _OLD_MAJORS.get(numbers[0])


def _module(names: Sequence[str]) -> str | None:
    """Return the module's number; a name such as `nvidia,p3768-0000+p3767-0005-super` has that of the carrier board first."""
    found = [number for name in names for number in re.findall(r"p\d{4}-\d{4}", name)]
    return next((number for number in found if number in MODULES), found[-1] if found else None)


def _numbers(l4t: str | None) -> tuple[int, int, int] | None:
    found = re.fullmatch(r"(\d{1,4})(?:\.(\d{1,4}))?(?:\.(\d{1,4}))?", l4t or "")
    return (int(found[1]), int(found[2] or 0), int(found[3] or 0)) if found else None


def _cuda(files: SystemFiles) -> str | None:
    version = version_of(files, r"cuda-cudart-\d+-\d+")
    if version is not None:
        return version
    try:
        said = json.loads(files.text("/usr/local/cuda/version.json") or "{}")
        named = said["cuda"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return named if isinstance(named, str) and re.fullmatch(r"[\d.]{1,30}", named) else None
