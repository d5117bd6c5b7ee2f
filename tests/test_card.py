"""What an artefact says of itself survives JSON, byte for byte, and refuses what cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgebert._json import JsonValue, dump_json, parse_json_object
from edgebert.card import ImageSet, ModelCard, Provenance, Task, check_class_names, hash_of_hashes
from edgebert.confidence import Confidence
from edgebert.errors import BadDataError
from edgebert.preprocess import Preprocessing

HASHES = [f"{number:064x}"[::-1] for number in range(100)]

TEACHER = Provenance(stage="train", made_from={"data": "ab" * 32}, parameters=1_000_000, metrics={"val_top1": 0.99})
CARD = ModelCard(
    class_names=("cat", "dog", "Käuzchen"),
    preprocessing=Preprocessing(height=32, width=48, resize="crop", shortest_edge=50),
    provenance=Provenance(
        stage="distill",
        made_from={"data": "cd" * 32, "teacher": "ef" * 32},
        options={"seed": 1, "augment": ["flip"], "rates": {"learning": 0.001}},
        versions={"torch": "2.13.0"},
        source=TEACHER,
    ),
    seen=ImageSet.from_hashes(HASHES),
)


CONFIDENCE = Confidence(
    temperature=1.5,
    ece_before=0.125,
    ece_after=0.0625,
    images=2000,
    abstain_below=0.75,
    wanted_precision=0.99,
    precision=0.9875,
    precision_low=0.975,
    coverage=0.5,
)


def changed(path: str, value: JsonValue) -> JsonValue:
    """Return the card's JSON with one field set, `...` for removed."""
    whole = parse_json_object(dump_json(CARD.to_json()), what="card")
    here = whole
    *above, last = path.split(".")
    for key in above:
        inner = here[key]
        assert isinstance(inner, dict)
        here = inner
    here[last] = value
    return whole


def test_model_card_survives_json() -> None:
    text = dump_json(CARD.to_json())
    again = ModelCard.from_json(parse_json_object(text, what="card"), what="card")
    assert again == CARD
    assert dump_json(again.to_json()) == text


def test_model_card_leaves_unknown_fields_alone() -> None:
    assert ModelCard.from_json(changed("note", "from a later version"), what="card") == CARD


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", "edgebert.card/2", "newer"),
        ("schema", None, "`schema`"),
        ("task", "segmentation", "single-label or multi-label"),
        ("task", "multi-label", "`thresholds`"),
        ("class_names", ["cat"], "at least two"),
        ("class_names", ["cat", "cat"], "more than once"),
        ("class_names", ["cat", " "], "empty"),
        ("class_names", ["cat", 1], "a list of strings"),
        ("preprocessing.height", 0, "height"),
        ("preprocessing", None, "preprocessing"),
        ("provenance.stage", 1, "stage"),
        ("provenance.made_from", {"data": 1}, "data"),
        ("provenance.metrics", {"top1": "high"}, "top1"),
        ("provenance.parameters", 1.5, "parameters"),
        ("provenance.source", [], "provenance"),
        ("seen", "not base64!", "base64"),
        ("seen", "AAAA", "multiple of 6"),
        ("seen", "Käuzchen", "base64"),
        ("seen", None, "`seen`"),
    ],
)
def test_model_card_from_json_refuses(path: str, value: JsonValue, message: str) -> None:
    with pytest.raises(BadDataError) as caught:
        ModelCard.from_json(changed(path, value), what="card")
    assert message in str(caught.value)


def test_model_card_of_several_labels_survives_json_with_its_thresholds() -> None:
    card = replace(CARD, task="multi-label", thresholds=(0.5, 0.25, 0.875))
    assert ModelCard.from_json(parse_json_object(dump_json(card.to_json()), what="card"), what="card") == card
    assert "thresholds" not in CARD.to_json()  # as cards were written before there was anything but one label


@pytest.mark.parametrize(
    ("task", "thresholds", "message"),
    [
        ("multi-label", (0.5, 0.5), "2 thresholds"),
        ("single-label", (0.5, 0.5, 0.5), "3 thresholds"),
        ("multi-label", (0.5, 0.0, 0.5), "a threshold is `0.0`"),
        ("multi-label", (0.5, 0.5, float("nan")), "a threshold is `nan`"),
        ("segmentation", (), "task `segmentation`"),
    ],
)
def test_model_card_refuses_thresholds_that_do_not_fit(task: Task, thresholds: tuple[float, ...], message: str) -> None:
    with pytest.raises(BadDataError, match=message):
        replace(CARD, task=task, thresholds=thresholds)


def test_model_card_survives_json_with_its_confidence() -> None:
    for confidence in (CONFIDENCE, Confidence(temperature=0.5, ece_before=0.0, ece_after=1.0, images=1)):
        card = replace(CARD, confidence=confidence)
        assert ModelCard.from_json(parse_json_object(dump_json(card.to_json()), what="card"), what="card") == card


def test_model_card_without_confidence_is_written_as_before_there_was_one() -> None:
    assert "confidence" not in CARD.to_json()
    assert ModelCard.from_json(changed("confidence", None), what="card") == CARD


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0),
        ("temperature", -1.5),
        ("temperature", 1e-300),
        ("temperature", 1e300),
        ("temperature", True),
        ("temperature", "1.5"),
        ("temperature", None),
        ("images", 0),
        ("images", 1.5),
        ("ece_before", -0.1),
        ("ece_after", 1.1),
        ("ece_after", None),
        ("abstain_below", -0.1),
        ("abstain_below", 1.1),
        ("abstain_below", [0.5]),
        ("abstain_below", None),
        ("wanted_precision", 0.5),
        ("wanted_precision", 1),
        ("precision", 1.5),
        ("precision_low", None),
        ("coverage", -1),
    ],
)
def test_model_card_refuses_a_confidence_that_cannot_be(field: str, value: JsonValue) -> None:
    hostile = changed("confidence", {**CONFIDENCE.to_json(), field: value})
    with pytest.raises(BadDataError, match=field):
        ModelCard.from_json(hostile, what="card")


def test_model_card_refuses_a_confidence_that_is_no_object() -> None:
    with pytest.raises(BadDataError, match="`confidence`"):
        ModelCard.from_json(changed("confidence", 1.5), what="card")


def test_model_card_of_several_labels_does_not_abstain() -> None:
    card = replace(CARD, task="multi-label", thresholds=(0.5, 0.25, 0.875))
    assert replace(card, confidence=Confidence(temperature=2, ece_before=0, ece_after=0, images=100)).confidence
    with pytest.raises(BadDataError, match=r"abstains below `0\.75`"):
        replace(card, confidence=CONFIDENCE)


def test_provenance_chain_leads_back_to_the_first() -> None:
    assert [step.stage for step in CARD.provenance.chain()] == ["distill", "train"]


def test_image_set_knows_what_it_was_made_of() -> None:
    seen = ImageSet.from_hashes(HASHES)
    assert all(sha256 in seen for sha256 in HASHES)
    assert "12" * 32 not in seen
    assert len(seen) == 100
    assert ImageSet.from_text(seen.to_text()) == seen
    assert ImageSet.from_hashes(reversed(HASHES)).to_text() == seen.to_text()
    assert len(seen | ImageSet.from_hashes(["12" * 32, HASHES[0]])) == 101
    assert ImageSet().to_text() == ""


def test_check_class_names_refuses_a_hundred_thousand_and_one() -> None:
    names = tuple(map(str, range(100_000)))
    check_class_names(names)
    with pytest.raises(BadDataError, match="100,001"):
        check_class_names((*names, "x"))
    with pytest.raises(BadDataError, match="`5`"):
        check_class_names((*names[:-1], "5"))


def test_hash_of_hashes_depends_on_the_order() -> None:
    assert hash_of_hashes(["a", "b"]) != hash_of_hashes(["b", "a"])
    assert len(hash_of_hashes([])) == 64
