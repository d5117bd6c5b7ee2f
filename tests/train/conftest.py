"""A small part of the digits, whose test images cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from edgebert.data import DataOptions, Dataset, load_dataset


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only wait for one another's threads, and for minutes where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small_digits() -> Dataset:
    """150 images to train and 40 to validate with; reading a test image is an error."""
    digits = load_dataset("digits")
    unreadable = tuple(replace(example, source=b"") for example in digits.test)
    return replace(digits, train=digits.train[:150], val=digits.val[:40], test=unreadable)


@pytest.fixture
def uses_small_digits(small_digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Make the training stages load `small_digits`, whatever DATA they are given."""
    loader: Callable[[str, DataOptions], Dataset] = lambda data, options: small_digits  # typed
    monkeypatch.setattr("edgebert.train.checkpoint.load_dataset", loader)
    return small_digits
