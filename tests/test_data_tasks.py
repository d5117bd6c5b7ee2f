"""Images with several labels, with none, with a text; and images whose labels are not read."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgebert._splits import LabelledHash, choose_multi_label_splits, choose_val
from edgebert.data import DataOptions, Dataset, Example, SplitName, align_classes, load_dataset, load_unlabelled
from edgebert.errors import BadDataError, UsageError

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")

# What each image of the made-up data set shows: a fifth nothing, the rest one to three things, `moss` seldom.
SHOWN = tuple(
    "|".join(name for name, every in (("rust", 2), ("crack", 3), ("moss", 7)) if seed % every == 0) if seed % 5 else ""
    for seed in range(60)
)


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def csv_folder(folder: Path, labels: Sequence[str], header: str = "file,labels", more: str = "") -> Path:
    for seed in range(len(labels)):
        write(folder / "images" / f"{seed}.png", png(seed))
    rows = [f"images/{seed}.png,{shown}{more}" for seed, shown in enumerate(labels)]
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder


def named(dataset: Dataset, example: Example) -> tuple[str, ...]:
    return tuple(dataset.class_names[label] for label in example.labels)


def everything(dataset: Dataset) -> list[Example]:
    return [example for split in SPLITS for example in dataset.split(split)]


# Several labels


def test_load_dataset_reads_several_labels_and_none_of_labels_csv(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgebert")
    dataset = load_dataset(csv_folder(tmp_path / "walls", SHOWN))
    assert (dataset.task, dataset.class_names) == ("multi-label", ("crack", "moss", "rust"))
    shown = {f"images/{seed}.png": set(filter(None, text.split("|"))) for seed, text in enumerate(SHOWN)}
    assert {example.id: set(named(dataset, example)) for example in everything(dataset)} == shown
    assert all(list(example.labels) == sorted(example.labels) for example in everything(dataset))
    assert "read as multi-label data" in caplog.text
    assert "3 classes (multi-label)" in dataset.summary()


def test_load_dataset_takes_blanks_beside_a_bar_for_typing(tmp_path: Path) -> None:
    dataset = load_dataset(csv_folder(tmp_path, ["cat | dog", "cat", "dog"] * 10))
    assert dataset.class_names == ("cat", "dog")


def test_load_dataset_refuses_several_labels_when_one_is_asked_for(tmp_path: Path) -> None:
    folder = csv_folder(tmp_path, ["cat", "dog"] * 10 + ["cat|dog"])
    with pytest.raises(BadDataError, match=r"line 22, has several labels: `cat\|dog`"):
        load_dataset(folder, DataOptions(task="single-label"))
    with pytest.raises(UsageError, match="task is `both`"):
        DataOptions(task="both")  # type: ignore[arg-type]  # what a caller without a type checker may write


def test_load_dataset_reads_single_labels_as_several_when_asked_for(tmp_path: Path) -> None:
    folder = csv_folder(tmp_path, ["cat", "dog"] * 10, header="file,label")
    assert load_dataset(folder).task == "single-label"
    several = load_dataset(folder, DataOptions(task="multi-label"))
    assert several.task == "multi-label"
    assert {named(several, example) for example in everything(several)} == {("cat",), ("dog",)}
    assert several.sha256() != load_dataset(folder).sha256()


def test_load_dataset_maps_each_label_and_joins_those_that_become_one(tmp_path: Path) -> None:
    folder = csv_folder(tmp_path, ["car|lorry", "lorry|cat", "cat", ""] * 8)
    dataset = load_dataset(folder, DataOptions(class_map={"car": "vehicle", "lorry": "vehicle"}))
    assert dataset.class_names == ("cat", "vehicle")
    assert {named(dataset, example) for example in everything(dataset)} == {
        ("vehicle",),
        ("cat", "vehicle"),
        ("cat",),
        (),
    }


def test_align_classes_maps_and_sorts_every_label() -> None:
    examples = tuple(
        Example(id=f"{index}.png", labels=labels, pixel_sha256=f"{index:02d}" * 32, source=b"")
        for index, labels in enumerate([(0, 2), (1,), ()])
    )
    dataset = Dataset(
        name="toy",
        class_names=("a", "b", "c"),
        train=examples,
        val=(),
        test=examples,
        skipped=(),
        task="multi-label",
    )
    aligned = align_classes(dataset, ("c", "b", "a"))
    assert [example.labels for example in aligned.train] == [(0, 2), (1,), ()]
    merged = align_classes(dataset, ("x", "b"), class_map={"a": "x", "c": "x"})
    assert [example.labels for example in merged.test] == [(0,), (1,), ()]
    assert aligned.task == "multi-label"


@pytest.mark.parametrize("kind", ["list of names", "list of numbers"])
def test_load_dataset_reads_lists_of_labels_and_texts_of_parquet(tmp_path: Path, kind: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    lists: list[list[str]] = [["cat", "dog"], ["dog"], ["cat"], []] * 5
    labels: object = lists
    metadata = None
    if kind == "list of numbers":
        labels = [[("dog", "cat").index(name) for name in names] for names in lists]
        feature = '{"feature": {"names": ["dog", "cat"], "_type": "ClassLabel"}, "_type": "List"}'
        metadata = {"huggingface": '{"info": {"features": {"labels": ' + feature + "}}}"}
    columns = {"image": [png(seed) for seed in range(20)], "labels": labels, "text": [f"no. {at}" for at in range(20)]}
    table = arrow.table(columns)
    parquet.write_table(table.replace_schema_metadata(metadata) if metadata else table, tmp_path / "pets.parquet")
    dataset = load_dataset(tmp_path / "pets.parquet")
    assert (dataset.task, dataset.class_names) == ("multi-label", ("cat", "dog"))
    for example in everything(dataset):
        row = int(example.id.removeprefix("pets.parquet#"))
        assert (named(dataset, example), example.text) == (tuple(lists[row]), f"no. {row}")


def test_load_dataset_reads_lists_of_labels_of_a_saved_data_set(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets")
    features = library.Features(
        {"image": library.Image(), "labels": library.List(library.ClassLabel(names=["dog", "cat"]))}
    )
    columns = {
        "image": [{"bytes": png(seed), "path": None} for seed in range(20)],
        "labels": [[0, 1], [0], [1], []] * 5,
    }
    library.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "saved"))
    dataset = load_dataset(tmp_path / "saved")
    assert dataset.task == "multi-label"
    for example in everything(dataset):
        wanted: tuple[str, ...] = (("cat", "dog"), ("dog",), ("cat",), ())[int(example.id.removeprefix("data#")) % 4]
        assert named(dataset, example) == wanted


# Splits of several labels


def test_load_dataset_spreads_every_label_over_the_splits(tmp_path: Path) -> None:
    dataset = load_dataset(csv_folder(tmp_path, SHOWN))
    assert [len(dataset.split(split)) for split in SPLITS] == [43, 5, 12]
    for split in SPLITS:
        assert {label for example in dataset.split(split) for label in example.labels} >= {0, 2}


def test_load_dataset_splits_several_labels_alike_when_rows_and_files_are_renamed(tmp_path: Path) -> None:
    first = load_dataset(csv_folder(tmp_path / "one", SHOWN))
    other = tmp_path / "other"
    for seed in range(len(SHOWN)):
        write(other / f"{99 - seed}.png", png(seed))
    rows = [f"{99 - seed}.png,{'|'.join(reversed(SHOWN[seed].split('|')))}" for seed in reversed(range(len(SHOWN)))]
    (other / "labels.csv").write_text("\n".join(["file,labels", *rows]) + "\n", encoding="utf-8")
    second = load_dataset(other)
    assert [{example.pixel_sha256 for example in second.split(split)} for split in SPLITS] == [
        {example.pixel_sha256 for example in first.split(split)} for split in SPLITS
    ]
    assert second.sha256() == first.sha256()


def hashed(*labels: str, start: int = 0) -> list[LabelledHash]:
    return [
        LabelledHash(
            tuple(filter(None, text.split("|"))), hashlib.sha256(f"{start + index}".encode()).hexdigest(), None
        )
        for index, text in enumerate(labels)
    ]


def test_choose_multi_label_splits_places_an_image_with_its_rarest_label() -> None:
    images = hashed(*["common|rare"] * 10, *["common"] * 30, *[""] * 10)
    chosen = choose_multi_label_splits(images, ("common", "rare"), missing=("test", "val"))
    for group, sizes in ((images[:10], (2, 1)), (images[10:40], (6, 2)), (images[40:], (2, 1))):
        found = [chosen[image.sha256] for image in group]
        assert (found.count("test"), found.count("val")) == sizes


def test_choose_multi_label_splits_keeps_a_label_of_few_images_in_train() -> None:
    images = hashed(*["common"] * 20, "rare", "rare|common")
    chosen = choose_multi_label_splits(images, ("common", "rare"), missing=("test", "val"))
    assert [chosen[image.sha256] for image in images[20:]] == ["train", "train"]


def test_choose_multi_label_splits_gives_train_an_image_of_every_label() -> None:
    # `thin` occurs only beside labels as rare, once in each of three groups, of which two of three images leave train: in
    # about 30 % of these data sets all three of its images.
    groups = [[f"rare{number}|thin", *[f"rare{number}"] * 2] for number in range(3)]
    for start in range(30):
        images = [
            image for number, group in enumerate(groups) for image in hashed(*group, start=1000 * start + 10 * number)
        ]
        chosen = choose_multi_label_splits(images, ("rare0", "rare1", "rare2", "thin"), missing=("test", "val"))
        assert any(chosen[image.sha256] == "train" for image in images if "thin" in image.class_names)


def test_choose_multi_label_splits_joins_the_labels_of_equal_pixels() -> None:
    one, *others = hashed("a", *["b"] * 9)
    chosen = choose_multi_label_splits([one, one._replace(class_names=("b",)), *others], ("a", "b"), missing=("test",))
    assert chosen[one.sha256] == "train"  # `a` has one image, so it stays
    assert list(chosen.values()).count("test") == 2


def test_load_dataset_warns_of_a_label_that_a_small_split_lacks_and_refuses_one_that_train_lacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(8):
        write(tmp_path / f"{seed}.png", png(seed))

    def load(*rows: str) -> Dataset:
        lines = [f"{seed}.png,{row}" for seed, row in enumerate(rows)]
        (tmp_path / "labels.csv").write_text("\n".join(["file,labels,split", *lines]) + "\n", encoding="utf-8")
        return load_dataset(tmp_path)

    load("a|b,train", "c,train", "b,train", "a|c,val", "b,val", "a,test", "b|c,test")
    assert "val has the label" not in caplog.text
    load("a|b,train", "c,train", "b,train", "a|c,val", "a,val", "a,test", "b|c,test")
    assert "no image in val has the label `b`" in caplog.text
    with pytest.raises(BadDataError, match="no usable image in train for class `c`"):
        load("a|b,train", "a,train", "b,train", "a|c,val", "b,val", "a,test", "b|c,test")


# What a data set is


def test_dataset_sha256_of_single_labels_is_what_it_was_before_there_were_several() -> None:
    pytest.importorskip("sklearn")
    assert load_dataset("digits").sha256() == DIGITS_SHA256


DIGITS_SHA256 = "f026dfea2d868d21b57add140d1f028f5c2553a9afad90299b0e7787cb4c7b8b"


def test_dataset_sha256_changes_with_a_text_a_label_and_the_task(tmp_path: Path) -> None:
    dataset = load_dataset(csv_folder(tmp_path, SHOWN))
    first, *others = dataset.train
    told = replace(dataset, train=(replace(first, text="a scratch"), *others))
    other = replace(dataset, train=(replace(first, labels=() if first.labels else (0,)), *others))
    unlabelled = replace(dataset, task="unlabelled")
    assert len({each.sha256() for each in (dataset, told, other, unlabelled)}) == 4


def test_example_label_is_the_one_label() -> None:
    assert Example(id="a.png", labels=(3,), pixel_sha256="ab" * 32, source=b"").label == 3


# Without labels


def test_load_unlabelled_reads_images_at_any_depth(tmp_path: Path) -> None:
    for seed in range(20):
        write(tmp_path / ("" if seed < 4 else f"day {seed % 3}/camera/{seed % 2}") / f"{seed}.png", png(seed))
    dataset = load_unlabelled(tmp_path)
    assert (dataset.task, dataset.class_names, dataset.test) == ("unlabelled", (), ())
    assert (len(dataset.train), len(dataset.val)) == (18, 2)
    assert all(example.labels == () for example in everything(dataset))
    assert "no labels, 0 of 20 files skipped" in dataset.summary()
    hashes = [example.pixel_sha256 for example in dataset.train]
    assert hashes == sorted(hashes)


def test_load_unlabelled_keeps_val_and_leaves_test_out(tmp_path: Path) -> None:
    for seed in range(30):
        write(tmp_path / ("train", "Validation", "test")[seed % 3] / "cat" / f"{seed}.png", png(seed))
    dataset = load_unlabelled(tmp_path)
    assert (len(dataset.train), len(dataset.val)) == (10, 10)
    assert {example.id.partition("/")[0] for example in dataset.val} == {"Validation"}
    assert not any(example.id.startswith("test") for example in everything(dataset))


def test_load_unlabelled_takes_the_same_pixels_once_and_in_val(tmp_path: Path) -> None:
    for name in ("train/a.png", "train/b.png", "val/c.png"):
        write(tmp_path / name, png(1))
    for seed in range(2, 6):
        write(tmp_path / "train" / f"{seed}.png", png(seed))
    dataset = load_unlabelled(tmp_path)
    assert [example.id for example in dataset.val] == ["val/c.png"]
    assert len(dataset.train) == 4


def test_load_unlabelled_skips_and_counts_what_is_no_image(tmp_path: Path) -> None:
    for seed in range(19):
        write(tmp_path / f"{seed}.png", png(seed))
    write(tmp_path / "notes.txt", b"not an image")
    with pytest.raises(BadDataError, match="1 of 20 files cannot be used"):
        load_unlabelled(tmp_path)
    dataset = load_unlabelled(tmp_path, DataOptions(max_skipped=0.1))
    assert [file.id for file in dataset.skipped] == ["notes.txt"]


def test_load_unlabelled_ignores_the_labels_of_labelled_data(tmp_path: Path) -> None:
    folder = csv_folder(tmp_path, ["cat||dog"] * 10, more=",a note", header="file,labels,text")
    dataset = load_unlabelled(folder)
    assert len(everything(dataset)) == 10
    assert {example.text for example in everything(dataset)} == {"a note"}
    pytest.importorskip("sklearn")
    assert len(everything(load_unlabelled("digits"))) == 1797


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_load_unlabelled_reads_tables_without_a_column_of_labels(tmp_path: Path, kind: str) -> None:
    columns: Mapping[str, Sequence[object]] = {"image": [png(seed) for seed in range(20)]}
    writers: Mapping[str, Callable[[], object]] = {
        "parquet": lambda: pytest.importorskip("pyarrow.parquet").write_table(
            pytest.importorskip("pyarrow").table(columns), tmp_path / "parquet"
        ),
        "saved": lambda: (
            pytest.importorskip("datasets")
            .Dataset.from_dict({"image": [{"bytes": image, "path": None} for image in columns["image"]]})
            .save_to_disk(str(tmp_path / "saved"))
        ),
    }
    writers[kind]()
    dataset = load_unlabelled(tmp_path / kind)
    assert (len(dataset.train), len(dataset.val)) == (18, 2)


def test_load_unlabelled_refuses_what_cannot_be_meant(tmp_path: Path) -> None:
    write(tmp_path / "one" / "0.png", png(0))
    with pytest.raises(BadDataError, match=r"1 different image\(s\) for train and 0 for val"):
        load_unlabelled(tmp_path / "one")
    (tmp_path / "none").mkdir()
    with pytest.raises(BadDataError, match="holds no files"):
        load_unlabelled(tmp_path / "none")
    for options in (DataOptions(class_map={"a": "b"}), DataOptions(task="multi-label")):
        with pytest.raises(UsageError, match="labels are not read"):
            load_unlabelled(tmp_path / "one", options)


def test_choose_val_depends_on_nothing_but_the_hashes() -> None:
    hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(100)]
    assert choose_val(hashes) == choose_val([*reversed(hashes), hashes[0]])
    assert len(choose_val(hashes)) == 10
    assert choose_val(hashes[:1]) == set()
