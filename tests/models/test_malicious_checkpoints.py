"""Checkpoints that want code run, files read or hosts asked: each is refused or what is hostile in it stays unread.

The audit hook of the suite (tests/audit/hook.py) fails a test in which one is unpickled, executed or connected for. What
`test_checkpoint.py` has of single refusals and their words is not repeated here.
"""

from __future__ import annotations

import json
import pickle  # noqa: TID251  (to make what must be refused)
import shutil
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from edgebert.errors import BadDataError, EdgebertError, RefusedError
from edgebert.models.checkpoint import load_checkpoint

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class Payload:
    """Writes a marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._marker,)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole, tiny checkpoint of transformers."""
    folder = tmp_path_factory.mktemp("honest")
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8,
        id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 2,
        "rescale_factor": 1 / 255,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def _config(**changes: object) -> Callable[[Path, Path], None]:
    def change(folder: Path, marker: Path) -> None:
        whole = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**whole, **changes}))
        code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
        for name in ("modeling.py", "mine.py", "configuration.py", "__init__.py", "setup.py", "conftest.py"):
            (folder / name).write_text(code)

    return change


def _pickled_as(name: str, *, keep: bool = False) -> Callable[[Path, Path], None]:
    def change(folder: Path, marker: Path) -> None:
        if not keep:
            (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(pickle.dumps({"weight": Payload(marker)}))

    return change


def _torch_archive_as(name: str) -> Callable[[Path, Path], None]:
    """As `torch.save` writes it: a zip file with a pickle in it."""

    def change(folder: Path, marker: Path) -> None:
        (folder / WEIGHTS).unlink()
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"weight": Payload(marker)}))
            archive.writestr("archive/version", "3\n")

    return change


def _shards(entry: str) -> Callable[[Path, Path], None]:
    """An index of shards that points somewhere else."""

    def change(folder: Path, marker: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        outside = folder.parent / "outside.bin"
        for place in (outside, folder / "pytorch_model.bin"):
            place.write_bytes(pickle.dumps({"weight": Payload(marker)}))
        index = {"metadata": {}, "weight_map": {"classifier.weight": entry.format(outside=outside)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def _numbered_shards(folder: Path, marker: Path) -> None:
    _shards("x.safetensors")(folder, marker)
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"classifier.weight": 7}}')


def _header(header: bytes, length: int | None = None) -> Callable[[Path, Path], None]:
    """A safetensors file with a header that lies."""

    def change(folder: Path, marker: Path) -> None:
        size = struct.pack("<Q", len(header) if length is None else length)
        (folder / WEIGHTS).write_bytes(size + header + bytes(64))

    return change


def _linked(folder: Path, marker: Path) -> None:
    outside = folder.parent / "outside.bin"
    outside.write_bytes(pickle.dumps({"weight": Payload(marker)}))
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(outside)


def _object_array(folder: Path, marker: Path) -> None:
    (folder / WEIGHTS).unlink()
    with (folder / WEIGHTS).open("wb") as stream:
        np.lib.format.write_array(stream, np.array([Payload(marker)], dtype=object), allow_pickle=True)


def _processor(**changes: object) -> Callable[[Path, Path], None]:
    def change(folder: Path, marker: Path) -> None:
        _config()(folder, marker)
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _deep(folder: Path, marker: Path) -> None:
    (folder / CONFIG).write_text('{"a":' * 200_000 + "1" + "}" * 200_000)


_TWICE = b'{"classifier.weight":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}'

REFUSED: dict[str, tuple[Callable[[Path, Path], None], type[EdgebertError]]] = {
    "a pickle called pytorch_model.bin": (_pickled_as("pytorch_model.bin"), RefusedError),
    "a pickle called model.pkl": (_pickled_as("model.pkl"), RefusedError),
    "a pickle called model.safetensors": (_pickled_as(WEIGHTS), BadDataError),
    "a torch archive called pytorch_model.bin": (_torch_archive_as("pytorch_model.bin"), RefusedError),
    "a torch archive called model.safetensors": (_torch_archive_as(WEIGHTS), BadDataError),
    "an object array called model.safetensors": (_object_array, BadDataError),
    "a link to a pickle called model.safetensors": (_linked, BadDataError),
    "an index of a pickled shard": (_shards("pytorch_model.bin"), RefusedError),
    "an index of a shard in another folder": (_shards("../outside.bin"), RefusedError),
    "an index of a shard by its whole path": (_shards("{outside}"), RefusedError),
    "a header of 2^60 bytes": (_header(b"{}", 1 << 60), BadDataError),
    "a header of 2^64 - 1 bytes": (_header(b"{}", (1 << 64) - 1), BadDataError),
    "a header that is no JSON": (_header(b"cos\nsystem\n(S'false'\ntR."), BadDataError),
    "tensors that overlap": (_header(_TWICE), BadDataError),
    "a config with a model class of its own": (
        _config(auto_map={"AutoModelForImageClassification": "modeling.Mine"}, trust_remote_code=True),
        RefusedError,
    ),
    "a config with a config class of its own": (
        _config(auto_map={"AutoConfig": "configuration.Mine"}, model_type="mine"),
        RefusedError,
    ),
    "a config with code of another repository": (
        _config(auto_map={"AutoConfig": "owner/name--mine.Mine"}),
        RefusedError,
    ),
    "a config with a pipeline of its own": (_config(custom_pipelines={"x": {"impl": "mine.Mine"}}), RefusedError),
    "a config with a kernel of the hub": (_config(_attn_implementation="owner/kernel"), RefusedError),
    "a config whose part has a class of its own": (
        _config(backbone_config={"auto_map": {"AutoModel": "mine.M"}}),
        RefusedError,
    ),
    "a config of an unknown model type": (_config(model_type="../modeling"), BadDataError),
    "a config that names a system call as its class": (_config(architectures=["os.system"]), BadDataError),
    "an index of a safetensors file in another folder": (_shards("../outside.safetensors"), RefusedError),
    "an index whose names are numbers": (_numbered_shards, BadDataError),
    "a config with a foreign quantiser": (_config(quantization_config={"quant_method": "mine.Mine"}), BadDataError),
    "a config 200,000 levels deep": (_deep, BadDataError),
    "a processor of its own": (_processor(auto_map={"AutoImageProcessor": "mine.Mine"}), RefusedError),
}

# Hostile parts that nobody reads: the honest model beside them loads.
UNREAD: dict[str, Callable[[Path, Path], None]] = {
    "a pickle beside the weights": _pickled_as("pytorch_model.bin", keep=True),
    "a trainer's pickles beside the weights": _pickled_as("training_args.bin", keep=True),
    "scripts beside the weights": _config(),
    "a config that trusts itself": _config(trust_remote_code=True, use_safetensors=False),
    "a config that names another repository": _config(_name_or_path="owner/other", _commit_hash="main"),
}


@pytest.fixture
def prepared(honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A copy to be made hostile, the marker its code would leave, and no way to a host."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a host was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    return Path(shutil.copytree(honest, tmp_path / "checkpoint")), tmp_path / "marker"


def test_there_are_twenty_of_them() -> None:
    assert len(REFUSED) >= 20


def test_the_payload_would_leave_its_marker(tmp_path: Path) -> None:
    function, arguments = Payload(tmp_path / "marker").__reduce__()
    function(*arguments)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", REFUSED)
def test_load_checkpoint_refuses(name: str, prepared: tuple[Path, Path]) -> None:
    folder, marker = prepared
    make_hostile, kind = REFUSED[name]
    make_hostile(folder, marker)
    with pytest.raises(kind):
        load_checkpoint(folder)
    assert not marker.exists()


@pytest.mark.parametrize("name", UNREAD)
def test_load_checkpoint_reads_nothing_of(name: str, prepared: tuple[Path, Path]) -> None:
    folder, marker = prepared
    UNREAD[name](folder, marker)
    assert load_checkpoint(folder).card.class_names == ("a", "b")
    assert not marker.exists()
