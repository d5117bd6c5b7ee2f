"""The change of accuracy between two sets of decisions on the same images.

>>> labels, first, second = np.zeros(100, np.int64), np.zeros(100, np.int64), np.repeat([1, 0], [4, 96])
>>> twin = accuracy_twin(labels, first, second)
>>> twin.delta_top1, twin.only_a_right, twin.mcnemar_p, [round(bound, 3) for bound in twin.delta_ci95]
(-0.04, 4, 0.125, [-0.082, 0.003])
"""

from __future__ import annotations

import numpy as np

from edgebert.bench.samples import IntArray, Samples
from edgebert.bench.schema import AccuracyTwin
from edgebert.bench.statistics.formulas import mcnemar_exact, paired_difference_interval


def accuracy_twin(labels: IntArray, first: IntArray, second: IntArray) -> AccuracyTwin:
    """Return the change of top-1 from the first to the second, with its interval and McNemar's exact p.

    Args:
        labels: true classes, int64 (images,); of several labels, the number of the set.
        first: decisions of the first on the same images, -1 where it failed.
        second: the same of the second.
    """
    only_first = int(np.count_nonzero((first == labels) & (second != labels)))
    only_second = int(np.count_nonzero((first != labels) & (second == labels)))
    return AccuracyTwin(
        delta_top1=(only_second - only_first) / len(labels),
        delta_ci95=paired_difference_interval(only_second, only_first, len(labels)),
        only_a_right=only_first,
        only_b_right=only_second,
        mcnemar_p=mcnemar_exact(only_first, only_second),
    )


def twin_from_samples(first: Samples, a: int, second: Samples, b: int) -> AccuracyTwin | None:
    """Return the change from arm `a` of one run to arm `b` of another; None where their images or labels are not the same.

    Args:
        first: samples of the one run.
        a: index of the arm in it.
        second: samples of the other run, or of the same.
        b: index of the arm in it.
    """
    labels, decisions_a = first.accuracy_of(a)
    other_labels, decisions_b = second.accuracy_of(b)
    if not len(labels) or not np.array_equal(labels, other_labels):
        return None
    return accuracy_twin(labels, decisions_a, decisions_b)
