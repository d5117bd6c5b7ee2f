"""The benchmark's data: what is written is what the idx files hold, and other files are refused."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from edgebert.data import load_dataset
from edgebert.errors import BadDataError, InputNotFoundError, UsageError

_BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "_fashion.py"


@pytest.fixture
def fashion() -> ModuleType:
    specification = importlib.util.spec_from_file_location("_fashion", _BENCHMARK)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def pixels() -> dict[str, NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    return {prefix: generator.integers(0, 256, (90, 28, 28), dtype=np.uint8) for prefix in ("train", "t10k")}


@pytest.fixture
def source(
    pixels: dict[str, NDArray[np.uint8]], fashion: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Ninety random images, nine of each class, in both parts, which pass for the published ones."""
    for prefix, images in pixels.items():
        labels = (np.arange(90) % 10).astype(np.uint8)
        for name, magic, array in (("images-idx3", 2051, images), ("labels-idx1", 2049, labels)):
            header = np.array([magic, *array.shape], ">u4").tobytes()
            content = header + array.tobytes()
            (tmp_path / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            monkeypatch.setitem(fashion._MD5, f"{prefix}-{name}-ubyte", digest)
    return tmp_path


def test_fashion_data_is_read_with_its_splits_names_and_pixels(
    fashion: ModuleType, source: Path, pixels: dict[str, NDArray[np.uint8]], tmp_path: Path
) -> None:
    dataset = load_dataset(fashion.fashion_data(source, tmp_path / "data"))
    assert dataset.class_names == tuple(sorted(fashion.CLASS_NAMES))
    assert len(dataset.train) + len(dataset.val) == 90
    assert len(dataset.test) == 90
    for example in dataset.test:
        row = int(example.id.rpartition("#")[2])
        assert dataset.class_names[example.label] == fashion.CLASS_NAMES[row % 10]
        np.testing.assert_array_equal(example.load(), np.repeat(pixels["t10k"][row][:, :, None], 3, axis=2))


def test_fashion_data_writes_the_same_bytes_again(fashion: ModuleType, source: Path, tmp_path: Path) -> None:
    written = [(fashion.fashion_data(source, tmp_path / "data", 60) / "train-0.parquet").read_bytes() for _ in range(2)]
    assert written[0] == written[1]


def test_fashion_data_takes_as_many_of_each_class_when_images_is_given(
    fashion: ModuleType, source: Path, tmp_path: Path
) -> None:
    dataset = load_dataset(fashion.fashion_data(source, tmp_path / "data", 60))
    for examples, each in ((dataset.train + dataset.val, 6), (dataset.test, 1)):
        assert np.bincount([example.label for example in examples]).tolist() == [each] * 10


def test_fashion_data_refuses_files_that_are_not_the_published_ones(
    fashion: ModuleType, source: Path, tmp_path: Path
) -> None:
    (source / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other labels"))
    with pytest.raises(BadDataError, match="not the published file"):
        fashion.fashion_data(source, tmp_path / "data")
    (source / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(BadDataError, match="cannot be unpacked"):
        fashion.fashion_data(source, tmp_path / "data")
    (source / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputNotFoundError, match="t10k-labels"):
        fashion.fashion_data(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("images", [0, 59, 60_001])
def test_fashion_data_refuses_a_count_that_leaves_a_class_empty(
    fashion: ModuleType, source: Path, tmp_path: Path, images: int
) -> None:
    with pytest.raises(UsageError, match=f"images `{images}`"):
        fashion.fashion_data(source, tmp_path / "data", images)
