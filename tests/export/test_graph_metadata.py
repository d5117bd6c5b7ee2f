"""Cards and examples inside a graph: read back as written, and refused where they cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from edgebert._json import dump_json
from edgebert.errors import BadDataError, InputNotFoundError
from edgebert.export.metadata import (
    bytes_of_model,
    parse_graph,
    read_graph_card,
    read_graph_examples,
    with_metadata,
    without_examples,
)


def _with_entry(graph: bytes, key: str, value: str | None) -> bytes:
    """Return the graph with one metadata entry replaced, or dropped."""
    model = onnx.load_from_string(graph)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    entries.pop(key, None)
    if value is not None:
        entries[key] = value
    onnx.helper.set_model_props(model, entries)
    return bytes_of_model(model)


def test_with_metadata_is_read_back_from_bytes_and_file(fp32_graph: bytes, tmp_path: Path) -> None:
    card, examples = read_graph_card(fp32_graph), read_graph_examples(fp32_graph)
    renamed = replace(card, class_names=tuple(f"Ziffer {name}" for name in card.class_names))
    path = tmp_path / "graph.onnx"
    path.write_bytes(bytes_of_model(with_metadata(parse_graph(fp32_graph), renamed, examples[:3])))
    assert read_graph_card(path) == renamed
    assert read_graph_examples(path) == examples[:3]


def test_without_examples_drops_the_images_and_nothing_else(fp32_graph: bytes) -> None:
    bare = without_examples(fp32_graph)
    assert len(read_graph_examples(fp32_graph)) == 4
    assert read_graph_examples(bare) == ()
    assert read_graph_card(bare) == read_graph_card(fp32_graph)
    assert parse_graph(bare).graph == parse_graph(fp32_graph).graph
    assert without_examples(bare) == bare


@pytest.mark.parametrize(
    "content", [b"", b"not a graph", b"\x08\x07", bytes(range(256))], ids=["empty", "text", "header", "noise"]
)
def test_parse_graph_refuses_what_is_no_onnx_file(content: bytes) -> None:
    with pytest.raises(BadDataError, match="not an ONNX file") as caught:
        parse_graph(content)
    assert "edgebert export" in (caught.value.hint or "")


def test_parse_graph_refuses_every_truncation_or_finds_it_later(fp32_graph: bytes) -> None:
    for length in range(0, len(fp32_graph), len(fp32_graph) // 40):
        with pytest.raises(BadDataError):
            read_graph_card(fp32_graph[:length])


def test_parse_graph_refuses_weights_in_another_file(fp32_graph: bytes) -> None:
    model = onnx.load_from_string(fp32_graph)
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(BadDataError, match="in another file"):
        parse_graph(bytes_of_model(model))


def test_read_graph_card_names_the_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"missing\.onnx"):
        read_graph_card(tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("edgebert.schema", None, "no metadata of edgebert's"),
        ("edgebert.schema", "edgebert.graph/9", "schema `edgebert.graph/9`"),
        ("edgebert.card", None, "schema `edgebert.graph/1`"),
        ("edgebert.card", "{", "not valid JSON"),
        ("edgebert.card", "{}", "`schema`"),
        ("edgebert.card", '{"schema": "edgebert.card/1", "schema": "edgebert.card/1"}', "duplicate key"),
    ],
)
def test_read_graph_card_refuses_metadata(fp32_graph: bytes, key: str, value: str | None, message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        read_graph_card(_with_entry(fp32_graph, key, value))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{}", "a list"),
        ('{"examples": [{"label": "7"}]}', "png"),
        ('{"examples": [{"label": "7", "png": "!"}]}', "base64"),
    ],
)
def test_read_graph_examples_refuses_malformed_ones(fp32_graph: bytes, value: str, message: str) -> None:
    with pytest.raises(BadDataError) as caught:
        read_graph_examples(_with_entry(fp32_graph, "edgebert.examples", value))
    assert message in str(caught.value)


def test_read_graph_card_refuses_another_number_of_classes(fp32_graph: bytes) -> None:
    card = read_graph_card(fp32_graph)
    fewer = dump_json(replace(card, class_names=card.class_names[:9]).to_json())
    with pytest.raises(BadDataError, match=r"gives `logits`: FLOAT \(batch, 10\)") as caught:
        read_graph_card(_with_entry(fp32_graph, "edgebert.card", fewer))
    assert "(batch, 9)" in (caught.value.expected or "")


def test_read_graph_card_refuses_another_input_size(fp32_graph: bytes) -> None:
    card = read_graph_card(fp32_graph)
    wider = dump_json(replace(card, preprocessing=replace(card.preprocessing, width=9)).to_json())
    with pytest.raises(BadDataError, match=r"takes `image`: UINT8 \(batch, 8, 8, 3\)"):
        read_graph_card(_with_entry(fp32_graph, "edgebert.card", wider))


def test_read_graph_card_refuses_a_fixed_batch(fp32_graph: bytes) -> None:
    model = onnx.load_from_string(fp32_graph)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(BadDataError, match="takes"):
        read_graph_card(bytes_of_model(model))


def test_read_graph_card_refuses_metadata_given_twice(fp32_graph: bytes) -> None:
    model = onnx.load_from_string(fp32_graph)
    model.metadata_props.add(key="edgebert.card", value="{}")
    with pytest.raises(BadDataError, match="twice"):
        read_graph_card(bytes_of_model(model))
