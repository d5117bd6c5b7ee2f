"""What an expression may be, as far as TensorRT goes: the values that `inference.py` computes with."""

from __future__ import annotations

from dataclasses import dataclass

from tests.tensorrt.api import Signature


class Kind:
    """What an expression may be."""


@dataclass(frozen=True)
class Plain(Kind):
    """Nothing of TensorRT's: a number, a path, an object of another library."""


@dataclass(frozen=True)
class Nothing(Kind):
    """None, for certain."""


@dataclass(frozen=True)
class Unknown(Kind):
    """Something that may be TensorRT's, and nobody says what; asking it for an attribute is a finding."""

    why: str


@dataclass(frozen=True)
class Module(Kind):
    """The module `tensorrt`."""


@dataclass(frozen=True)
class ClassObject(Kind):
    """A class of the module."""

    name: str


@dataclass(frozen=True)
class Instance(Kind):
    """An instance of a class of the module, or None where a call has failed."""

    name: str


@dataclass(frozen=True)
class Routine(Kind):
    """A function of the module, a method of an instance, or, with `unbound`, one asked of its class."""

    owner: str
    name: str
    overloads: tuple[Signature, ...]
    unbound: bool = False


@dataclass(frozen=True)
class MemberName(Kind):
    """The name of some member of an enum, as text."""

    enum: str


@dataclass(frozen=True)
class Place:
    """Where a name stands in a source: line from 1, column in bytes from 0."""

    file: str
    line: int
    column: int


@dataclass(frozen=True)
class Literal:
    """A constant, and where it is written; None where it was computed."""

    value: object
    place: Place | None


@dataclass(frozen=True)
class Known(Kind):
    """One of a few constants. `of_version`: it follows from `trt.__version__`, so that a branch on it is decided."""

    literals: frozenset[Literal]
    of_version: bool = False

    @property
    def single(self) -> object:
        """The value, where there is but one; else the type `Known` itself, which is no constant."""
        values = {literal.value for literal in self.literals}
        return next(iter(values)) if len(values) == 1 else Known


@dataclass(frozen=True)
class Items(Kind):
    """A list, a dictionary's values, an iterator: what its elements are. `keys`: the constant keys of a dictionary."""

    element: Kind
    keys: frozenset[Literal] = frozenset()


@dataclass(frozen=True)
class Fields(Kind):
    """A tuple: what each of its elements is."""

    elements: tuple[Kind, ...]


@dataclass(frozen=True)
class OwnFunction(Kind):
    """A function or method of ours; `bound`: it is asked of an instance, so that `self` is given."""

    key: str
    bound: bool = False


@dataclass(frozen=True)
class OwnClass(Kind):
    """A class of ours."""

    key: str


@dataclass(frozen=True)
class OwnInstance(Kind):
    """An instance of a class of ours; `base`: the class of TensorRT that it is derived from, "" for none."""

    key: str
    base: str = ""


PLAIN = Plain()
NOTHING = Nothing()
_MOST_LITERALS = 64  # more are no choice of names


def constant(value: object, of_version: bool) -> Known:
    """Return a constant that was computed."""
    return Known(frozenset({Literal(value, None)}), of_version)


def joined(*kinds: Kind) -> Kind:
    """Return what is one of several; what is known of TensorRT wins over what is not."""
    result: Kind | None = None
    for kind in kinds:
        result = kind if result is None else _joined_pair(result, kind)
    return PLAIN if result is None else result


def _joined_pair(one: Kind, other: Kind) -> Kind:
    if one == other:
        return one
    if isinstance(one, Known) and isinstance(other, Known):
        literals = one.literals | other.literals
        return Known(literals, one.of_version and other.of_version) if len(literals) <= _MOST_LITERALS else PLAIN
    if isinstance(one, Items) and isinstance(other, Items):
        return Items(joined(one.element, other.element), one.keys | other.keys)
    if isinstance(one, Fields) and isinstance(other, Fields) and len(one.elements) == len(other.elements):
        return Fields(tuple(map(_joined_pair, one.elements, other.elements)))
    weak, strong = sorted((one, other), key=_weight)
    if _weight(weak) < _weight(strong):
        # A constant joined with what is no constant is no longer one of a few.
        return weak if isinstance(strong, Known) and isinstance(weak, (Plain, Unknown)) else strong
    return Unknown(f"it is {described(one)} or {described(other)}")


def _weight(kind: Kind) -> int:
    for weight, classes in enumerate(((Nothing,), (Plain,), (Unknown,), (Known, MemberName))):
        if isinstance(kind, classes):
            return weight
    return 9


def described(kind: Kind) -> str:
    """Name a kind in a message."""
    name = getattr(kind, "name", "") or getattr(kind, "key", "")
    return f"`{name}`" if name else type(kind).__name__.lower()
