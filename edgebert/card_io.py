"""The files of a checkpoint folder that need no torch: its card, its example images, its hash.

config.json, model.safetensors      Hugging Face's own
tokenizer.json                      of a fusion model, whose texts it reads
preprocessing.json                  the card (class names, preprocessing, provenance, seen images) and the list of examples
examples/0.png, 1.png, ...          example images, see `edgebert.examples`
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from edgebert._files import FolderKind, read_input, sha256_of_file
from edgebert._json import Fields, JsonValue, dump_json, parse_json_object
from edgebert.card import ModelCard, hash_of_hashes
from edgebert.errors import BadDataError, InputNotFoundError
from edgebert.examples import MAX_EXAMPLES, ExampleImage, checked_example, labels_from_json, labels_to_json

CARD_FILE = "preprocessing.json"

# What `--force` may replace. A read-me or notes beside the weights are the user's.
CHECKPOINT_FOLDER = FolderKind(
    marker=CARD_FILE,
    schema="edgebert.card/",
    holds=("config.json", "*.safetensors", "*.safetensors.index.json", CARD_FILE, "tokenizer.json", "examples", "last"),
)

# What a checkpoint is: everything that decides its answers. Read-me files and the like may change.
_HASHED = (
    "config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    CARD_FILE,
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
)
_EXAMPLE_FILE = re.compile(r"examples/\d{1,3}\.png")


def read_checkpoint_card(folder: Path) -> ModelCard:
    """Read the card of a checkpoint that edgebert wrote.

    Raises:
        InputNotFoundError: there is no such folder, or it holds no card.
        BadDataError: the card is malformed.
    """
    return ModelCard.from_json(_card_json(folder), what=_what(folder))


def read_checkpoint_examples(folder: Path) -> tuple[ExampleImage, ...]:
    """Read the example images of a checkpoint that edgebert wrote.

    Raises:
        InputNotFoundError: there is no such folder, it holds no card, or a listed image is missing.
        BadDataError: the list is malformed, or an image is no PNG.
    """
    what = _what(folder)
    fields = Fields(_card_json(folder), what=what)
    if "examples" not in fields.value:
        return ()
    entries = fields.list_of_fields("examples")
    if len(entries) > MAX_EXAMPLES:
        raise BadDataError(f"{what} lists {len(entries)} example images", expected=f"at most {MAX_EXAMPLES}")
    examples = []
    for entry in entries:
        file = entry.text("file")
        if not _EXAMPLE_FILE.fullmatch(file):
            raise BadDataError(f"{what} lists the example image `{file}`", expected="`examples/NUMBER.png`")
        png = read_input(folder / file, what="an example image")
        examples.append(checked_example(labels_from_json(entry), png, what=f"`{folder}`"))
    return tuple(examples)


def write_checkpoint_card(folder: Path, card: ModelCard, examples: Sequence[ExampleImage]) -> None:
    """Write the card and the example images into an existing folder: equal inputs give equal bytes."""
    listed: list[JsonValue] = []
    for index, example in enumerate(examples):
        file = folder / f"examples/{index}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(example.png)
        listed.append({"file": f"examples/{index}.png", **labels_to_json(example.labels)})
    (folder / CARD_FILE).write_text(dump_json({**card.to_json(), "examples": listed}), encoding="utf-8")


def checkpoint_sha256(folder: Path) -> str:
    """Return one SHA-256 over config, weights and preprocessing of a checkpoint, 64 hexadecimal digits."""
    files = sorted({path for pattern in _HASHED for path in folder.glob(pattern)})
    return hash_of_hashes(f"{sha256_of_file(path)}  {path.name}" for path in files)


def _card_json(folder: Path) -> dict[str, JsonValue]:
    if not folder.is_dir():
        raise InputNotFoundError(f"no such folder: `{folder}`", expected="a checkpoint that `train` or `distill` made")
    return parse_json_object(read_input(folder / CARD_FILE, what="the card"), what=_what(folder))


def _what(folder: Path) -> str:
    return f"{CARD_FILE} of `{folder}`"
