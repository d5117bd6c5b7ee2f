"""Takes the test and val images out of train, where the user supplied none.

The rule. Per class, the different images (by the hash of their decoded pixels) are put in the order of
SHA-256(salt + hash). The first 20 % are test, the next 10 % of the rest val; halves round up, and each gets at least one.
So the choice does not depend on names, order or format of the files nor on the machine, and the same pixels always fall
into the same split. 20 % is of the whole class, a val split that the user supplied included, but only train images move.

Where an image may have several labels or none, its class is its rarest label: the one that the fewest different images of
the whole data set have, the first in the order of the class names where two are as rare. Images without any label are a
class of their own. A class with too few images for all splits stays in train, and a label of which no image would be left in
train takes its first one, in the order above, back.

Unlabelled images are one class, of which 10 % are val.

>>> images = [LabelledHash((name,), f"{name}{index}", None) for name in ("cat", "dog") for index in range(10)]
>>> chosen = choose_splits(images, ("cat", "dog"), missing=("test", "val"))
>>> [sum(split == wanted for split in chosen.values()) for wanted in ("train", "val", "test")]
[14, 2, 4]
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from edgebert._sources import SplitName
from edgebert.errors import BadDataError

_SALT = "edgebert split 1:"  # so that other choices made by pixel hash, such as calibration images, are independent
_TEST_PERCENT, _VAL_PERCENT = 20, 10


class LabelledHash(NamedTuple):
    """One image to place; `split` is None where the user left it to us."""

    class_names: tuple[str, ...]
    sha256: str
    split: SplitName | None


def choose_splits(
    images: Sequence[LabelledHash], class_names: Sequence[str], *, missing: Sequence[SplitName]
) -> dict[str, SplitName]:
    """Return hash -> split for the images of train and those without a split.

    An image under two labels is placed with the first class, and counts for the second.

    Args:
        images: all usable images.
        class_names: every class.
        missing: the splits to take out of train: `test`, `val`, both or none.

    Raises:
        BadDataError: a class has too few different images for train and what is missing.
    """
    movable: dict[str, set[str]] = {name: set() for name in class_names}
    whole: dict[str, set[str]] = {name: set() for name in class_names}
    for image in images:
        (name,) = image.class_names
        whole[name].add(image.sha256)
        if image.split in (None, "train"):
            movable[name].add(image.sha256)
    chosen: dict[str, SplitName] = {}
    for name in class_names:
        ordered = sorted(movable[name], key=_order)
        for split, size in _sizes(name, len(ordered), len(whole[name]), missing).items():
            free = [sha256 for sha256 in ordered if sha256 not in chosen]
            already = sum(chosen.get(sha256) == split for sha256 in ordered)
            chosen.update(dict.fromkeys(free[: max(0, size - already)], split))
        for sha256 in ordered:
            chosen.setdefault(sha256, "train")
    return chosen


def choose_multi_label_splits(
    images: Sequence[LabelledHash], class_names: Sequence[str], *, missing: Sequence[SplitName]
) -> dict[str, SplitName]:
    """Return hash -> split for the images of train and those without a split, by their rarest labels.

    Images of the same pixels count as one that has the labels of all of them.

    Args:
        images: all usable images.
        class_names: every class.
        missing: the splits to take out of train: `test`, `val`, both or none.
    """
    labels: dict[str, set[str]] = defaultdict(set)
    for image in images:
        labels[image.sha256].update(image.class_names)
    movable = sorted({image.sha256 for image in images if image.split in (None, "train")}, key=_order)
    counts = Counter(name for names in labels.values() for name in names)
    rarity = {name: (counts[name], place) for place, name in enumerate(class_names)}
    rarest = {sha256: min(names, key=rarity.__getitem__, default="") for sha256, names in labels.items()}
    sizes = Counter(rarest.values())
    groups: dict[str, list[str]] = defaultdict(list)
    for sha256 in movable:
        groups[rarest[sha256]].append(sha256)
    chosen: dict[str, SplitName] = dict.fromkeys(movable, "train")
    for name, ordered in groups.items():
        if len(ordered) <= len(missing):
            continue
        start = 0
        for split, size in _sizes(name, len(ordered), sizes[name], missing).items():
            chosen.update(dict.fromkeys(ordered[start : start + size], split))
            start += size
    for name in class_names:
        having = [sha256 for sha256 in movable if name in labels[sha256]]
        if having and all(chosen[sha256] != "train" for sha256 in having):
            chosen[having[0]] = "train"
    return chosen


def choose_val(hashes: Iterable[str]) -> set[str]:
    """Return the tenth of the different hashes that is val, at least one of them unless there are fewer than two."""
    ordered = sorted(set(hashes), key=_order)
    return set(ordered[: _percent(len(ordered), _VAL_PERCENT)]) if len(ordered) > 1 else set()


def _sizes(class_name: str, movable: int, whole: int, missing: Sequence[SplitName]) -> dict[SplitName, int]:
    """Return how many different images of a class to take out of train for test and for val."""
    if movable <= len(missing):
        raise BadDataError(
            f"class `{class_name}` has {movable} different usable image(s) to train with",
            expected=f"at least {1 + len(missing)}: one each for {' and '.join(['train', *sorted(missing)])}",
        )
    sizes: dict[SplitName, int] = {}
    if "test" in missing:
        sizes["test"] = min(_percent(whole, _TEST_PERCENT), movable - len(missing))
    if "val" in missing:
        sizes["val"] = _percent(movable - sizes.get("test", 0), _VAL_PERCENT)
    return sizes


def _percent(count: int, percent: int) -> int:
    """Return `percent` of `count`, at least 1; whole numbers throughout, so that no machine rounds otherwise."""
    return max(1, (count * percent + 50) // 100)


def _order(sha256: str) -> str:
    return hashlib.sha256((_SALT + sha256).encode()).hexdigest()
