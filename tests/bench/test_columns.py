"""Arrays that come from a file or a device: what is damaged or lies is refused, in no more memory than came."""

from __future__ import annotations

import io
import random
import zipfile

import numpy as np
import pytest

from edgebert.bench.columns import read_npy, read_npz
from edgebert.errors import BadDataError, RefusedError
from edgebert.remote.engine import array_of
from edgebert.remote.wire import columns_from_bytes, columns_to_bytes

MAX = 1 << 20


def npy(header: str, content: bytes = bytes(80)) -> bytes:
    line = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + content


def archive_of(*entries: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return stream.getvalue()


LIES = [
    "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999999999999999,), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (-5,), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (True,), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (9,), }",
    "{'descr': '|V2000000000', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "(" * 3000,
    "{[]: 1}",
    "'\\",
]


@pytest.mark.parametrize("header", LIES)
def test_columns_from_bytes_refuses_a_header_that_lies(header: str) -> None:
    with pytest.raises(BadDataError, match="is no archive of columns"):
        columns_from_bytes(archive_of(("a.npy", npy(header))), what="x")


@pytest.mark.parametrize("header", LIES)
def test_array_of_refuses_a_header_that_lies(header: str) -> None:
    with pytest.raises(RefusedError, match="answers with no array"):
        array_of("device", npy(header), (2, 3))


@pytest.mark.parametrize(("shape", "order"), [((0,), "C"), ((7,), "C"), ((2, 3), "C"), ((2, 3), "F"), ((), "C")])
def test_read_npy_reads_what_numpy_wrote(shape: tuple[int, ...], order: str) -> None:
    array = np.array(np.random.default_rng(0).standard_normal(shape), np.float32, order="F" if order == "F" else "C")
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    found = read_npy(io.BytesIO(stream.getvalue()), len(stream.getvalue()), np.float32)
    assert found.dtype == np.float32
    assert np.array_equal(found, array)


def test_read_npz_refuses_two_columns_of_one_name() -> None:
    column = npy("{'descr': '<i8', 'fortran_order': False, 'shape': (10,), }")
    assert read_npz(io.BytesIO(archive_of(("a.npy", column))), max_bytes=MAX)["a"].tolist() == [0] * 10
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = archive_of(("a.npy", column), ("a.npy", column))
    with pytest.raises(BadDataError, match="no column"):
        read_npz(io.BytesIO(twice), max_bytes=MAX)


def test_read_npz_refuses_what_unpacks_to_too_much() -> None:
    content = columns_to_bytes({"a": np.zeros(1000, np.int64)})
    with pytest.raises(BadDataError, match="8,128 bytes"):
        read_npz(io.BytesIO(content), max_bytes=8000)


def test_columns_from_bytes_reads_or_refuses_whatever_was_damaged() -> None:
    """Errors of zlib, of unknown kinds of compression and of encrypted entries are refusals like all others."""
    whole = columns_to_bytes({"a": np.arange(50), "b": np.arange(5)})
    draw = random.Random(1)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 3))):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            columns_from_bytes(bytes(damaged), what="x")
        except BadDataError:
            refused += 1
    assert refused > 1000
