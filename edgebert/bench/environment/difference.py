"""In what two results differ, apart from what was measured: computer, system, settings, versions, options.

Field by field through `codec.to_json`, so a field that a later version adds is compared without a change here.

>>> weight_of("power_state.governor", backends=frozenset())[0]
'decides'
>>> weight_of("os.distro", backends=frozenset())[0]
'informs'
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgebert._json import JsonValue, flat
from edgebert.bench.codec import to_json
from edgebert.bench.schema import Result

Weight = Literal["decides", "informs"]

NOT_RECORDED = "not recorded"  # of a field that only one of the results has


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field that differs.

    Attributes:
        path: of the field; one of an arm is `arms.NAME.…`.
        a: in the first result, as text.
        b: in the second.
        weight: `decides` where times may not be compared across it, `informs` where it is only told.
        why: why it decides; empty where it informs.
    """

    path: str
    a: str
    b: str
    weight: Weight
    why: str = ""


# What describes the surroundings of a measurement, rather than what was measured.
_SECTIONS = ("device", "os", "power_state", "software", "env", "process")
_ARM_SECTIONS = ("target", "backend", "options", "effective")

# What changes by itself from minute to minute; it is in the result to explain it, not to compare it.
_VOLATILE = re.compile(r"^(power_state\.battery|device\.transport|os\.cgroup\.usage)(\.|$)")

_PROCESSOR = "another processor runs at other speeds, or chooses other kernels"
_COUNT = "threads in parallel decide the time"
_POWER = "it decides the clock"
_THREADS = "it decides how many threads run, and where"
_BACKEND = "another version of what runs the model is another program"

# The first pattern that matches the whole path decides. What stands nowhere here informs: kernels of one major version,
# distributions, libraries beside the backend, memory and microcode change times by less than what is measured against,
# and a list that decided by them would let hardly any two results be compared.
_DECIDING: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), why)
    for pattern, why in (
        (r"device\.(arch|soc|gpu|npu)(\..*)?", _PROCESSOR),
        (r"device\.jetson\.(module|soc)", _PROCESSOR),
        (r"device\.jetson\.l4t", "another L4T has another GPU driver, and other clocks for its power modes"),
        (r"device\.cpu\.(model|flags)", _PROCESSOR),
        (r"device\.cpu\.topology\.core_types", _PROCESSOR),
        (r"device\.cpu\.(sockets|cores|usable_threads)", _COUNT),
        (r"os\.hypervisor", "a virtual machine shares its processors"),
        (r"os\.system", "another system schedules and allocates in another way"),
        (r"os\.cgroup\.cpu_max", "the quota stops threads in the middle of a query"),
        (r"power_state\.(driver|governor|turbo|epp|smt|ac|fan|jetson_clocks|nvpmodel|gpu_clock)(\..*)?", _POWER),
        (r"power_state\.clock\.(min_khz|max_khz)", _POWER),
        (r"env\.(OMP|MKL|KMP|OPENBLAS|GOMP|TBB|NUMEXPR|VECLIB|BLIS)_\w+", _THREADS),
        (r"process\.affinity", _THREADS),
        (r"arms\..+\.(target|backend)", "another backend or device runs the model"),
        (
            r"arms\..+\.(options|effective)\.(?!os_threads|thread_).*(threads|streams|affinity|pinning|precision|performance_hint).*",
            _THREADS,
        ),
    )
)


def differences(a: Result, b: Result) -> tuple[Difference, ...]:
    """Return what differs in the surroundings of two results, what decides first.

    Arms are compared where both results have one of that name. A field that one of the results does not have, because
    an earlier version wrote it or because it could not be read there, informs: nothing is known of it.
    """
    left, right = surroundings(a), surroundings(b)
    shared = {arm.id for arm in a.arms} & {arm.id for arm in b.arms}
    backends = frozenset(arm.backend for result in (a, b) for arm in result.arms)
    found = []
    for path in dict.fromkeys((*left, *right)):
        before, after = left.get(path), right.get(path)
        if before == after or _VOLATILE.match(path) or not _of_both(path, shared):
            continue
        weight, why = _weight(path, before, after, backends)
        found.append(Difference(path=path, a=text_of(before), b=text_of(after), weight=weight, why=why))
    return tuple(sorted(found, key=lambda difference: (difference.weight != "decides", difference.path)))


def surroundings(result: Result) -> Mapping[str, JsonValue]:
    """Return path -> value of every field that describes the surroundings of a result."""
    content = to_json(result)
    chosen: dict[str, JsonValue] = {name: content[name] for name in _SECTIONS if content.get(name) is not None}
    found = flat(chosen)
    for arm in result.arms:
        record = to_json(arm)
        found.update(flat({name: record[name] for name in _ARM_SECTIONS}, f"arms.{arm.id}."))
    return found


def weight_of(path: str, *, backends: frozenset[str]) -> tuple[Weight, str]:
    """Return whether a difference of this field decides, and why.

    Args:
        path: of the field.
        backends: that the arms run on; the version of another one informs only.
    """
    section, _, name = path.partition(".")
    if (section == "software" or path == "device.jetson.tensorrt") and name.rpartition(".")[2] in backends:
        return "decides", _BACKEND
    for pattern, why in _DECIDING:
        if pattern.fullmatch(path):
            return "decides", why
    return "informs", ""


def text_of(value: JsonValue) -> str:
    """Return a value as one line of text."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={text_of(entry)}" for name, entry in value.items() if entry is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text_of, value)) or "none"
    return str(value)


def _weight(path: str, before: JsonValue, after: JsonValue, backends: frozenset[str]) -> tuple[Weight, str]:
    if path == "os.kernel":
        majors = {str(value).partition(".")[0] for value in (before, after)}
        return ("decides", "another major version schedules differently") if len(majors) > 1 else ("informs", "")
    one_sided = before in (None, ()) or after in (None, ())
    if one_sided and not path.startswith(("env.", "os.hypervisor")):  # unset, or bare metal, is a value there
        return "informs", ""
    return weight_of(path, backends=backends)


def _of_both(path: str, shared: set[str]) -> bool:
    return not path.startswith("arms.") or any(path.startswith(f"arms.{name}.") for name in shared)
