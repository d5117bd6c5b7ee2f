"""From folders and tables to labelled splits: layouts, skips, splits, leaks, alignment, refusals."""

from __future__ import annotations

import io
import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgebert.data import DataOptions, Dataset, Example, SplitName, align_classes, load_dataset
from edgebert.errors import (
    BadDataError,
    EdgebertError,
    InputNotFoundError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from edgebert.preprocess import pixel_sha256

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"

Maker = Callable[..., Path]


def pixels(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(seed)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """Return a function that writes different images: `make({"train/cat": 10})`."""

    def make_folder(counts: dict[str, int], name: str = "pets") -> Path:
        seed = 0
        for folder, count in counts.items():
            (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                write(tmp_path / name / folder / f"{index}.png", png(seed))
                seed += 1
        return tmp_path / name

    return make_folder


def counts(dataset: Dataset, split: SplitName) -> dict[str, int]:
    return dict(Counter(dataset.class_names[example.label] for example in dataset.split(split)))


def hashes(dataset: Dataset) -> dict[str, set[str]]:
    return {split: {example.pixel_sha256 for example in dataset.split(split)} for split in SPLITS}


# Layouts


def test_load_dataset_reads_class_folders_at_any_depth(make: Maker) -> None:
    folder = make({"cat": 20, "dog/day": 15, "dog/night/late": 5})
    dataset = load_dataset(folder)
    assert dataset.name == "pets"
    assert dataset.class_names == ("cat", "dog")
    assert counts(dataset, "test") == {"cat": 4, "dog": 4}
    assert counts(dataset, "val") == {"cat": 2, "dog": 2}
    assert counts(dataset, "train") == {"cat": 14, "dog": 14}
    assert dataset.summary() == "pets: 28 train, 4 val, 8 test images, 2 classes, 0 of 40 files skipped"


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_load_dataset_keeps_the_splits_that_are_there(make: Maker, val: str) -> None:
    folder = make({"train/cat": 6, "train/dog": 5, f"{val}/cat": 2, f"{val}/dog": 1, "test/cat": 1, "test/dog": 3})
    dataset = load_dataset(str(folder))
    assert counts(dataset, "train") == {"cat": 6, "dog": 5}
    assert counts(dataset, "val") == {"cat": 2, "dog": 1}
    assert counts(dataset, "test") == {"cat": 1, "dog": 3}
    assert {example.id.split("/")[0] for example in dataset.val} == {val}


def test_load_dataset_takes_only_the_missing_split_from_train(make: Maker) -> None:
    without_val = load_dataset(make({"train/cat": 20, "train/dog": 10, "test/cat": 3, "test/dog": 3}, "a"))
    assert counts(without_val, "train") == {"cat": 18, "dog": 9}
    assert counts(without_val, "val") == {"cat": 2, "dog": 1}
    without_test = load_dataset(make({"train/cat": 20, "train/dog": 10, "val/cat": 5, "val/dog": 5}, "b"))
    assert counts(without_test, "val") == {"cat": 5, "dog": 5}
    assert counts(without_test, "test") == {"cat": 5, "dog": 3}  # 20 % of all 25 and 15


def test_load_dataset_takes_a_class_called_train_for_a_class(make: Maker) -> None:
    assert load_dataset(make({"bus": 5, "train": 5})).class_names == ("bus", "train")


def test_load_dataset_ignores_what_file_managers_leave(make: Maker) -> None:
    folder = make({"cat": 5, "dog": 5, "__MACOSX/cat": 1, ".hidden": 1})
    for name in ("cat/Thumbs.db", "cat/.DS_Store", "dog/._1.png", "dog/desktop.ini", ".labels"):
        write(folder / name, b"x")
    dataset = load_dataset(folder)
    assert dataset.skipped == ()
    assert sum(len(dataset.split(split)) for split in SPLITS) == 10


def test_load_dataset_says_which_files_and_folders_it_does_not_use(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgebert")
    folder = make({"train/cat": 4, "train/dog": 4, "extra/cat": 1})
    write(folder / "train" / "LICENSE.txt", b"x")
    load_dataset(folder)
    messages = {record.levelname: record.getMessage() for record in caplog.records}
    assert "`extra`" in messages["WARNING"]
    assert "`LICENSE.txt`" in messages["INFO"]


def test_load_dataset_writes_nothing_beside_the_data(make: Maker) -> None:
    folder = make({"cat": 5, "dog": 5})
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    load_dataset(folder)
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "is empty"),
        ({".": 3}, "no class folders"),
        ({"cat": 9}, "at least two classes"),
        ({"train": 3, "test": 3}, "no class folders"),
        ({"train/cat": 5, "train/dog": 5, "test": 3}, "no class folders"),
        ({"train/cat": 5, "train/dog": 5, "val": 0}, "no class folders"),
        ({"test/cat": 5, "test/dog": 5}, "no `train`"),
        ({"train/cat": 5, "train/dog": 5, "val/cat": 1, "valid/dog": 1}, "one folder for val"),
        ({"cat": 5, "dog": 0}, "class `dog` has 0 different"),
        ({"cat": 5, "dog": 2}, "at least 3: one each for train and test and val"),
        ({"train/cat": 5, "train/dog": 1, "test/cat": 1, "test/dog": 1}, "class `dog` has 1 different"),
        ({"train/cat": 5, "train/dog": 5, "test/cat": 1}, "no usable image in test for class `dog`"),
        ({"train/cat": 5, "train/dog": 5, "test/cat": 1, "test/dog": 1, "test/cow": 1}, "class `cow` has 0"),
        ({"A/train/cat": 3, "A/train/dog": 3, "B/train/cat": 3}, "a data set of its own"),
    ],
    ids=str,
)
def test_load_dataset_refuses_a_layout_that_cannot_be_meant(make: Maker, layout: dict[str, int], message: str) -> None:
    folder = make(layout)
    folder.mkdir(exist_ok=True)
    with pytest.raises(BadDataError) as caught:
        load_dataset(folder)
    assert message in str(caught.value)


# Names


def test_load_dataset_escapes_names_that_do_not_print(make: Maker) -> None:
    folder = make({"cat": 4, "dog": 4})
    write(folder / "cat" / "line\nbreak \u202e.png", png(100))
    write(Path(os.fsdecode(os.fsencode(folder / "dog") + b"/caf\xe9.png")), png(101))
    write(folder / "dog" / "\U0001f436.png", png(102))
    dataset = load_dataset(folder)
    identities = {example.id for split in SPLITS for example in dataset.split(split)}
    assert {"cat/line\\nbreak \\u202e.png", "dog/caf\\xe9.png", "dog/\U0001f436.png"} <= identities
    assert all(identity.isprintable() for identity in identities)
    for example in dataset.train:
        assert pixel_sha256(example.load()) == example.pixel_sha256


def test_load_dataset_reads_names_of_255_bytes(make: Maker) -> None:
    folder = make({"cat": 4, "dog": 4})
    write(folder / "dog" / ("x" * 251 + ".png"), png(100))
    assert load_dataset(folder).skipped == ()


def test_load_dataset_composes_class_names_and_refuses_twins(make: Maker) -> None:
    decomposed, composed = "cafe\u0301", "caf\u00e9"
    folder = make({decomposed: 4, "dog": 4})
    assert load_dataset(folder).class_names == (composed, "dog")
    make({composed: 4})
    with pytest.raises(BadDataError, match="different bytes"):
        load_dataset(folder)


def test_load_dataset_sorts_class_names_by_character(make: Maker) -> None:
    assert load_dataset(make({"10": 3, "2": 3, "b": 3, "B": 3})).class_names == ("10", "2", "B", "b")


# Unusable files


def test_load_dataset_skips_names_and_counts_what_is_no_image(make: Maker, caplog: pytest.LogCaptureFixture) -> None:
    folder = make({"cat": 40, "dog": 40})
    write(folder / "cat" / "empty.png", b"")
    write(folder / "cat" / "text.jpg", b"no image")
    write(folder / "dog" / "cut.png", png(200)[:60])
    dataset = load_dataset(folder, DataOptions(max_skipped=0.1))
    assert {file.id for file in dataset.skipped} == {"cat/empty.png", "cat/text.jpg", "dog/cut.png"}
    assert all(file.reason for file in dataset.skipped)
    assert dataset.summary().endswith("3 of 83 files skipped")
    assert "skipped 3 of 83 files:" in caplog.text
    assert "cat/empty.png: the image is empty (0 bytes)" in caplog.text


def test_load_dataset_lists_twenty_skipped_files_and_counts_the_rest(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make({"cat": 5, "dog": 5})
    for index in range(25):
        write(folder / "cat" / f"bad{index:02d}.png", b"x")
    load_dataset(folder, DataOptions(max_skipped=0.9))
    assert "bad19.png" in caplog.text
    assert "bad20.png" not in caplog.text
    assert "... and 5 more" in caplog.text


def test_load_dataset_stops_above_one_percent(make: Maker) -> None:
    folder = make({"cat": 59, "dog": 40})
    write(folder / "cat" / "bad.png", b"")
    assert len(load_dataset(folder).skipped) == 1  # 1 of 100 is not above 1 %
    write(folder / "dog" / "bad.png", b"")
    with pytest.raises(BadDataError) as caught:
        load_dataset(folder)
    assert "2 of 101" in str(caught.value)
    assert "--max-skipped 0.02" in str(caught.value)
    assert len(load_dataset(folder, DataOptions(max_skipped=0.02)).skipped) == 2


def test_load_dataset_stops_when_all_of_a_supplied_split_is_unusable(make: Maker) -> None:
    folder = make({"train/cat": 30, "train/dog": 30})
    for name in ("cat", "dog"):
        write(folder / "val" / name / "bad.png", b"")
    with pytest.raises(BadDataError, match="no usable image in val for class `cat`, `dog`"):
        load_dataset(folder, DataOptions(max_skipped=0.5))


def test_load_dataset_never_waits_for_what_is_no_file(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make({"cat": 5, "dog": 5})
    os.mkfifo(folder / "cat" / "fifo.png")
    (folder / "cat" / "self.png").symlink_to(folder / "cat" / "self.png")
    (folder / "cat" / "gone.png").symlink_to(folder / "nothing.png")
    (folder / "cat" / "up").symlink_to("..")
    (folder / "dog" / "root").symlink_to("/")
    (folder / "dog" / "null.png").symlink_to("/dev/zero")
    monkeypatch.chdir(folder / "dog")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        dataset = load_dataset(folder, DataOptions(max_skipped=0.9))
    skipped = {file.id for file in dataset.skipped}
    assert skipped == {
        "cat/fifo.png", "cat/gone.png", "cat/self.png", "cat/up", "dog/null.png", "dog/root", "dog/socket.png",
    }  # fmt: skip


def test_load_dataset_follows_links_that_make_no_loop(make: Maker, tmp_path: Path) -> None:
    folder = make({"cat": 5, "dog": 5})
    elsewhere = make({"far": 3}, "elsewhere")
    for index in range(3):
        write(elsewhere / "far" / f"{index}.png", png(50 + index))
    (folder / "dog" / "linked").symlink_to(elsewhere / "far")
    assert sum(len(load_dataset(folder).split(split)) for split in SPLITS) == 13


def test_load_dataset_raises_66_when_a_folder_cannot_be_read(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make({"cat": 5, "dog": 5})
    real = os.scandir

    def scandir(path: Path) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr("edgebert._sources.os.scandir", scandir)  # tests may run as root, whom no mode stops
    with pytest.raises(InputNotFoundError, match=r"dog`: Permission denied"):
        load_dataset(folder)


# Splits


def test_load_dataset_splits_alike_when_files_are_renamed_moved_and_converted(make: Maker, tmp_path: Path) -> None:
    folder = make({"cat": 30, "dog": 20})
    first = load_dataset(folder)
    for number, path in enumerate(sorted(folder.rglob("*.png"), reverse=True)):
        with Image.open(path) as image:
            image.save(path.parent / f"renamed{number}.bmp")
        path.unlink()
    folder = folder.rename(tmp_path / "other")
    second = load_dataset(folder)
    assert hashes(second) == hashes(first)
    assert second.sha256() == first.sha256()
    assert [example.pixel_sha256 for example in second.train] == [example.pixel_sha256 for example in first.train]


def test_load_dataset_splits_the_digits_as_on_every_machine() -> None:
    pytest.importorskip("sklearn")
    digits = load_dataset("digits")
    assert digits.class_names == tuple("0123456789")
    assert [len(digits.split(split)) for split in SPLITS] == [1293, 145, 359]
    # Pinned: another value means that every split, and with it every number ever measured, has changed.
    assert digits.sha256().startswith("f026dfea2d86")
    for split, share in (("test", 0.2), ("val", 0.08), ("train", 0.72)):
        for name, count in counts(digits, split).items():  # type: ignore[arg-type]  # the three names
            total = sum(counts(digits, other)[name] for other in SPLITS)
            assert abs(count - share * total) <= 1
    image = digits.train[0].load()
    assert image.shape == (8, 8, 3)
    assert image.max() == 255


def test_load_dataset_puts_the_same_pixels_into_one_split(make: Maker) -> None:
    folder = make({"cat": 10, "dog": 10})
    for index in range(10):
        write(folder / "cat" / f"copy{index}.png", png(index))
    dataset = load_dataset(folder)
    seen = hashes(dataset)
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"]
    assert not seen["val"] & seen["test"]
    assert counts(dataset, "test")["cat"] == 4  # 20 % of ten different images, each there twice


def test_load_dataset_puts_pixels_of_two_classes_into_one_split_and_warns(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make({"cat": 20, "dog": 20})
    for index in range(20):
        write(folder / "dog" / f"cat{index}.png", png(index))
    seen = hashes(load_dataset(folder))
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"]
    assert "20 pair(s) of files have the same pixels under different labels:" in caplog.text
    assert "cat/0.png (cat) = dog/cat0.png (dog)" in caplog.text


def test_load_dataset_warns_of_the_same_pixels_in_train_and_test(make: Maker, caplog: pytest.LogCaptureFixture) -> None:
    folder = make({"train/cat": 5, "train/dog": 5, "test/cat": 2, "test/dog": 2})
    write(folder / "test" / "cat" / "copy.png", png(0))
    dataset = load_dataset(folder)
    assert counts(dataset, "test") == {"cat": 3, "dog": 2}
    assert "1 pair(s) of files have the same pixels in train and test" in caplog.text
    assert "train/cat/0.png = test/cat/copy.png" in caplog.text


def test_dataset_sha256_changes_with_a_label_a_split_or_a_pixel(make: Maker) -> None:
    dataset = load_dataset(make({"cat": 10, "dog": 10}))
    swapped = align_classes(dataset, ("dog", "cat"))
    assert swapped.sha256() != dataset.sha256()
    moved = Dataset(
        name=dataset.name,
        class_names=dataset.class_names,
        train=dataset.train[1:],
        val=(*dataset.val, dataset.train[0]),
        test=dataset.test,
        skipped=(),
    )
    assert moved.sha256() != dataset.sha256()


def test_example_load_refuses_a_file_that_changed(make: Maker) -> None:
    folder = make({"cat": 5, "dog": 5})
    example = load_dataset(folder).train[0]
    assert np.array_equal(example.load(), example.load())
    write(folder / example.id, png(999))
    with pytest.raises(BadDataError) as caught:
        example.load()
    assert example.id in str(caught.value)
    (folder / example.id).unlink()
    with pytest.raises(InputNotFoundError):
        example.load()


def test_example_load_never_hands_out_its_own_array() -> None:
    pytest.importorskip("sklearn")
    example = load_dataset("digits").val[0]
    example.load()[:] = 0
    assert example.load().any()


# Classes


def toy(*names: str) -> Dataset:
    def example(label: int) -> Example:
        return Example(id=f"{label}.png", labels=(label,), pixel_sha256=f"{label:02d}" * 32, source=b"")

    examples = tuple(example(label) for label in range(len(names)))
    return Dataset(name="toy", class_names=names, train=examples, val=examples, test=examples[:1], skipped=())


def test_align_classes_permutes_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgebert")
    aligned = align_classes(toy("a", "b", "c"), ("c", "a", "b"))
    assert aligned.class_names == ("c", "a", "b")
    assert [example.label for example in aligned.train] == [1, 2, 0]
    assert [example.label for example in aligned.test] == [1]
    assert "model's order: `c`, `a`, `b`" in caplog.text


def test_align_classes_returns_the_same_data_when_nothing_differs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgebert")
    dataset = toy("a", "b")
    assert align_classes(dataset, ("a", "b")) == dataset
    assert caplog.text == ""


def test_align_classes_takes_the_models_names_when_a_map_keeps_their_order() -> None:
    aligned = align_classes(toy("a", "b"), ("A", "B"), class_map={"a": "A", "b": "B"})
    assert aligned.class_names == ("A", "B")
    assert [example.label for example in aligned.train] == [0, 1]


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c", "d"), ("a", "b", "x")])
def test_align_classes_refuses_other_names_with_the_difference(names: tuple[str, ...]) -> None:
    with pytest.raises(BadDataError) as caught:
        align_classes(toy("a", "b", "c"), names)
    for name in set(names) ^ {"a", "b", "c"}:
        assert f"`{name}`" in str(caught.value)
    assert "--class-map" in str(caught.value)


def test_align_classes_maps_many_to_one() -> None:
    aligned = align_classes(
        toy("car", "cat", "lorry"), ("vehicle", "cat"), class_map={"car": "vehicle", "lorry": "vehicle"}
    )
    assert [example.label for example in aligned.train] == [0, 1, 0]


def test_align_classes_refuses_a_map_of_names_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="`bat`"):
        align_classes(toy("a", "b"), ("a", "c"), class_map={"bat": "c"})


def test_load_dataset_applies_the_class_map_before_it_splits(make: Maker) -> None:
    folder = make({"car": 1, "cat": 10, "lorry": 9})
    dataset = load_dataset(folder, DataOptions(class_map={"car": "vehicle", "lorry": "vehicle"}))
    assert dataset.class_names == ("cat", "vehicle")
    assert counts(dataset, "test") == {"cat": 2, "vehicle": 2}
    with pytest.raises(BadDataError, match="at least two classes"):
        load_dataset(folder, DataOptions(class_map={"car": "x", "lorry": "x", "cat": "x"}))


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_data_options_refuse_shares_outside_the_range(share: float) -> None:
    with pytest.raises(UsageError, match="max_skipped"):
        DataOptions(max_skipped=share)


# labels.csv


def csv_folder(folder: Path, lines: list[str], encoding: str = "utf-8") -> Path:
    for seed in range(12):
        write(folder / "images" / f"{seed}.png", png(seed))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding=encoding)
    return folder


ROWS = [f"images/{seed}.png,{'cat' if seed % 2 else 'dog'}" for seed in range(12)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("header", ["file,labels", "file,label"])
def test_load_dataset_reads_labels_csv(tmp_path: Path, header: str, encoding: str) -> None:
    dataset = load_dataset(csv_folder(tmp_path / "set", [header, *ROWS], encoding))
    assert dataset.class_names == ("cat", "dog")
    assert [len(dataset.split(split)) for split in SPLITS] == [8, 2, 2]
    assert all(example.id.startswith("images/") for example in dataset.train)


def test_load_dataset_reads_text_and_split_of_labels_csv(tmp_path: Path) -> None:
    names = ["train"] * 6 + ["valid"] * 3 + ["test"] * 3
    rows = [f'{row},"said, and ""quoted""",{split}' for row, split in zip(ROWS, names, strict=True)]
    dataset = load_dataset(csv_folder(tmp_path, ["file,labels,text,split", *rows]))
    assert [len(dataset.split(split)) for split in SPLITS] == [6, 3, 3]
    assert {example.text for split in SPLITS for example in dataset.split(split)} == {'said, and "quoted"'}
    assert dataset.task == "single-label"


def test_load_dataset_skips_files_that_labels_csv_names_and_that_are_not_there(tmp_path: Path) -> None:
    folder = csv_folder(tmp_path, ["file,labels", *ROWS, "images/none.png,cat"])
    dataset = load_dataset(folder, DataOptions(max_skipped=0.1))
    assert [file.id for file in dataset.skipped] == ["images/none.png"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,labels", *ROWS, "images/0.png,cat|dog"], "images/0.png"),
        (["file,label", *ROWS[1:], "images/0.png,cat|dog"], "call the column `labels`"),
        (["file,label", "images/0.png, "], "line 2, has no label"),
        (["file,labels", "images/0.png,cat||dog"], "has an empty label: `cat||dog`"),
        (["file,labels", "images/0.png,cat|dog|cat"], "names the label `cat` twice"),
        (["file,labels", "images/0.png"], "another number of fields"),
        (["file,labels", "images/0.png,a,b"], "another number of fields"),
        (["file,labels", "../out.png,cat"], "a path inside"),
        (["file,labels", "/etc/passwd,cat"], "a path inside"),
        (["file,labels", ",cat"], "a path inside"),
        (["file,class", *ROWS], "`label` or `labels`"),
        (["name,labels", *ROWS], "expected: file, labels"),
        (["file,labels,split", *(f"{row},eval" for row in ROWS)], "split `eval`"),
        (["file,labels,split", *(f"{row},train" for row in ROWS[:-1]), ROWS[-1] + ","], "split ``"),
        (["file,labels", 'images/0.png,"cat'], "CSV"),
        (["file,labels"], "at least two classes"),
        ([""], "`label` or `labels`"),
    ],
)
def test_load_dataset_refuses_a_bad_labels_csv(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(BadDataError) as caught:
        load_dataset(csv_folder(tmp_path, lines))
    assert message in str(caught.value)


def test_load_dataset_refuses_a_labels_csv_that_is_no_utf8(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="UTF-8"):
        load_dataset(csv_folder(tmp_path, ["file,labels", "images/0.png,café"], encoding="latin-1"))


# Parquet


def write_parquet(path: Path, columns: Mapping[str, Sequence[object]], metadata: dict[str, str] | None = None) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table(columns)
    parquet.write_table(table.replace_schema_metadata(metadata) if metadata else table, path, row_group_size=7)
    return path


def columns_of(labels: list[object], **more: list[object]) -> dict[str, list[object]]:
    return {"image": [png(seed) for seed in range(len(labels))], "label": labels, **more}


def test_load_dataset_reads_parquet_with_bytes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "pets.parquet", columns_of(["dog", "cat"] * 10, text=["x", None] * 10))
    dataset = load_dataset(tmp_path / "pets.parquet")
    assert dataset.class_names == ("cat", "dog")
    assert [len(dataset.split(split)) for split in SPLITS] == [14, 2, 4]
    for example in dataset.test:
        row = int(example.id.removeprefix("pets.parquet#"))
        assert np.array_equal(example.load(), pixels(row))
        assert example.label == 1 - row % 2
        assert example.text == ("" if row % 2 else "x")


def test_load_dataset_reads_parquet_with_structs_numbers_and_splits(tmp_path: Path) -> None:
    write(tmp_path / "images" / "0.png", png(0))
    images = [{"bytes": None, "path": "images/0.png"}, *({"bytes": png(seed), "path": "x"} for seed in range(1, 6))]
    columns: Mapping[str, Sequence[object]] = {
        "image": images,
        "label": [3, 10] * 3,
        "split": ["train", "train", "val", "val", "test", "test"],
    }
    write_parquet(tmp_path / "numbers.parquet", columns)
    dataset = load_dataset(tmp_path / "numbers.parquet")
    assert dataset.class_names == ("10", "3")
    assert [len(dataset.split(split)) for split in SPLITS] == [2, 2, 2]


def test_load_dataset_reads_class_names_from_the_metadata_of_parquet(tmp_path: Path) -> None:
    metadata = '{"info": {"features": {"label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}}}'
    write_parquet(tmp_path / "pets.parquet", columns_of([0, 1] * 5), {"huggingface": metadata})
    assert load_dataset(tmp_path / "pets.parquet").class_names == ("cat", "dog")


def test_load_dataset_reads_a_folder_of_parquet_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", columns_of(["cat", "dog"] * 5))
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", columns_of(["cat", "dog"]))
    write_parquet(tmp_path / "test.parquet", columns_of(["cat", "dog"]))
    assert [len(load_dataset(tmp_path).split(split)) for split in SPLITS] == [10, 2, 2]
    write_parquet(tmp_path / "more.parquet", columns_of(["cat", "dog"]))
    with pytest.raises(BadDataError, match=r"more\.parquet"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b"x"], "labelled": ["a"]}, "`label` or `labels`"),
        ({"picture": [b"x"], "label": ["a"]}, "expected: image, label"),
        ({"image": [b"x"], "label": [["a", "a"]]}, "names the label `a` twice"),
        ({"image": [b"x"], "label": [[True]]}, "label `True`"),
        ({"image": [b"x"], "label": ["a"], "text": [7]}, "text `7`"),
        ({"image": [b"x"], "label": [1.5]}, "label `1.5`"),
        ({"image": [b"x"], "label": [None]}, "label `None`"),
        ({"image": [b"x"], "label": [""]}, "label `''`"),
    ],
)
def test_load_dataset_refuses_a_parquet_file_without_its_columns(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    write_parquet(tmp_path / "bad.parquet", columns)
    with pytest.raises(BadDataError) as caught:
        load_dataset(tmp_path / "bad.parquet")
    assert message in str(caught.value)


def test_load_dataset_skips_rows_without_an_image(tmp_path: Path) -> None:
    images = [None, b"", b"no image", 7 * b"x", *(png(seed) for seed in range(20))]
    write_parquet(tmp_path / "some.parquet", {"image": images, "label": ["cat", "dog"] * 12})
    dataset = load_dataset(tmp_path / "some.parquet", DataOptions(max_skipped=0.2))
    assert [file.id for file in dataset.skipped] == [f"some.parquet#{row}" for row in range(4)]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"PAR1 cut short"])
def test_load_dataset_refuses_a_file_that_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadDataError, match=r"is no parquet file|cannot be read as parquet"):
        load_dataset(write(tmp_path / "images.zip", content))


# Hugging Face data sets


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    library = pytest.importorskip("datasets")
    features = library.Features(
        {"img": library.Image(), "label": library.ClassLabel(names=["dog", "cat"]), "text": library.Value("string")}
    )

    def rows(seeds: range) -> object:
        columns = {
            "img": [{"bytes": png(seed), "path": None} for seed in seeds],
            "label": [seed % 2 for seed in seeds],
            "text": ["x" for _ in seeds],
        }
        return library.Dataset.from_dict(columns, features=features)

    splits = {"train": rows(range(20)), "validation": rows(range(20, 24)), "unlabelled": rows(range(24, 26))}
    library.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    rows(range(10)).save_to_disk(str(tmp_path / "single"))  # type: ignore[attr-defined]  # an untyped library
    return tmp_path


def test_load_dataset_reads_a_saved_dictionary_of_splits(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = sorted(path for path in saved.rglob("*"))
    dataset = load_dataset(saved / "saved")
    assert dataset.class_names == ("cat", "dog")
    assert [len(dataset.split(split)) for split in SPLITS] == [16, 4, 4]  # test: 20 % of 12 for each class, from train
    assert "`unlabelled`" in caplog.text
    example = dataset.val[0]
    assert np.array_equal(example.load(), pixels(20 + int(example.id.removeprefix("validation#"))))
    assert sorted(path for path in saved.rglob("*")) == before


def test_load_dataset_reads_a_saved_single_table(saved: Path) -> None:
    assert [len(load_dataset(saved / "single").split(split)) for split in SPLITS] == [6, 2, 2]


def test_load_dataset_refuses_a_damaged_saved_folder(saved: Path) -> None:
    for file in (saved / "single").glob("*.arrow"):
        file.write_bytes(b"damaged")
    with pytest.raises(BadDataError, match="cannot be loaded"):
        load_dataset(saved / "single")


def test_load_dataset_says_how_to_go_on_when_the_hub_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")
    asked = []

    def unreachable(self: object, data_id: str, **options: object) -> None:
        asked.append(options)
        raise hub.errors.OfflineModeIsEnabled("no network")

    monkeypatch.setattr(hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(InputNotFoundError) as caught:
        load_dataset("somebody/images")
    assert "does not answer" in str(caught.value)
    assert "train/<class>" in str(caught.value)
    with pytest.raises(InputNotFoundError, match="at revision `v1`"):
        load_dataset("somebody/images", DataOptions(revision="v1"))
    assert len(asked) == 2
    assert not library.config.HF_HUB_OFFLINE


def test_load_dataset_uses_the_cache_and_says_so_when_the_hub_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")

    def unreachable(self: object, data_id: str, **options: object) -> None:
        raise ConnectionError("no network")

    def from_cache(data_id: str, revision: str | None) -> object:
        assert library.config.HF_HUB_OFFLINE
        return library.load_from_disk(str(saved / "single"))

    monkeypatch.setattr(hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(library, "load_dataset", from_cache)
    assert load_dataset("somebody/images").name == "somebody/images"
    assert "is the copy in the cache" in caplog.text


@pytest.mark.parametrize("kind", ["RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError"])
def test_load_dataset_raises_66_when_the_hub_has_no_such_data(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def absent(self: object, data_id: str, **options: object) -> None:
        error = getattr(hub.errors, kind)
        raise error.__new__(error)

    monkeypatch.setattr(hub.HfApi, "dataset_info", absent)
    with pytest.raises(InputNotFoundError, match="gives no data set `somebody/images`"):
        load_dataset("somebody/images")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("Dataset scripts are no longer supported, but found images.py"), RefusedError),
        (ValueError("Config name is missing. Please pick one among the available configs: ['a', 'b']"), BadDataError),
        (ConnectionError("lost"), InputNotFoundError),
    ],
)
def test_load_dataset_translates_what_the_library_raises(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[EdgebertError]
) -> None:
    library, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")

    def info(self: object, data_id: str, **options: object) -> object:
        return type("Info", (), {"sha": "c0ffee"})()

    def fail(data_id: str, revision: str | None) -> None:
        assert revision == "c0ffee"
        raise raised

    monkeypatch.setattr(hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(library, "load_dataset", fail)
    with pytest.raises(expected, match="somebody/images"):
        load_dataset("somebody/images")


# What is not there


def test_load_dataset_suggests_the_nearest_folder(make: Maker) -> None:
    folder = make({"cat": 3, "dog": 3})
    with pytest.raises(InputNotFoundError) as caught:
        load_dataset(str(folder.with_name("pest")))
    assert f"did you mean `{folder}`?" in str(caught.value)


def test_load_dataset_names_the_part_of_a_path_that_is_missing(make: Maker) -> None:
    folder = make({"cat": 3, "dog": 3})
    with pytest.raises(InputNotFoundError) as caught:
        load_dataset(folder / "trian" / "cat")
    assert f"`{folder}` holds `cat`, `dog`" in str(caught.value)


@pytest.mark.parametrize("data", ["digits", "somebody/images", "a\0b", "x" * 300])
def test_load_dataset_takes_a_path_object_for_a_path_only(data: str, tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="no such data"):
        load_dataset(tmp_path / data)


def test_load_dataset_refuses_what_is_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputNotFoundError, match="neither a folder nor a regular file"):
        load_dataset(tmp_path / "fifo")


@pytest.mark.parametrize("data", ["", "  "])
def test_load_dataset_refuses_an_empty_name_instead_of_reading_the_current_folder(data: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        load_dataset(data)


def test_load_dataset_refuses_a_revision_of_what_has_none(make: Maker) -> None:
    for data in (str(make({"cat": 3, "dog": 3})), "digits"):
        with pytest.raises(UsageError, match="`v1`"):
            load_dataset(data, DataOptions(revision="v1"))


@pytest.mark.parametrize(("module", "data"), [("sklearn", "digits"), ("datasets", "somebody/images")])
def test_load_dataset_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch, module: str, data: str) -> None:
    for name in (module, f"{module}.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnavailableError, match=r"edgebert\[train\]"):
        load_dataset(data)


# Real photographs


@pytest.mark.skipif(not (SHARED / "bccd_cells").is_dir(), reason="the shared blood-cell photographs are not here")
def test_load_dataset_reads_the_blood_cells(caplog: pytest.LogCaptureFixture) -> None:
    dataset = load_dataset(SHARED / "bccd_cells")
    assert dataset.class_names == ("platelets", "rbc", "wbc")
    assert len(dataset.train) + len(dataset.val) == 3122
    assert len(dataset.test) == 732
    assert dataset.skipped == ()
    assert caplog.text == ""  # no image is in train and test, or under two labels
