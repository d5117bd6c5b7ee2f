"""Where weights come from, and what is refused before anything is loaded: pickles, remote code, adapters.

A source is a local folder or a hub id such as `google/vit-base-patch16-224`. Of a hub's files only JSON and safetensors are
ever fetched.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from edgebert._files import read_input
from edgebert._json import JsonObject, JsonValue, parse_json_object
from edgebert.errors import BadDataError, InputNotFoundError, RefusedError, UsageError

_LOG = logging.getLogger("edgebert")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FETCHED = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
]
_SHARD = re.compile(r"[^/\\\0]+\.safetensors")
_PICKLED = re.compile(r"(pytorch_model.*\.bin|.*\.(pt|pth|pkl|ckpt))")
_OTHER_WEIGHTS = re.compile(r".*\.(h5|msgpack|onnx|gguf)")

# The HTTP library's root error, whichever library this version of the hub client uses.
_HTTP_ERRORS: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFolder:
    """A local folder with a config and safetensors, found safe to load.

    Attributes:
        path: the folder; for a hub id, the snapshot in the cache.
        config: the parsed `config.json`.
        hub_id: the id it was fetched by, or None for a local folder.
        revision: the commit on the hub, or None.
    """

    path: Path
    config: JsonObject
    hub_id: str | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """How to call it in messages and provenance: the hub id, or the folder's name."""
        return self.hub_id or self.path.resolve().name


def find_weights(source: str | Path, *, revision: str | None = None) -> WeightsFolder:
    """Find a model's folder, fetching it from the hub where `source` is no folder but a hub id, and check it.

    Args:
        source: a folder, or a hub id `OWNER/NAME`.
        revision: a branch, tag or commit on the hub; only for a hub id.

    Raises:
        InputNotFoundError: no such folder, no such model on the hub, or the hub cannot be reached.
        BadDataError: `config.json` is missing or malformed, or there are no weights.
        RefusedError: the weights are pickled only, or the model asks for code of its own.
        UsageError: a revision for a local folder.
    """
    path = Path(source).expanduser()
    if path.exists():
        if revision is not None:
            raise UsageError(f"`{source}` is a local path; `{revision}` is no revision of it", expected="a hub id")
        return _checked(path, name=str(source))
    name = str(source)
    if not _HUB_ID.fullmatch(name):
        raise InputNotFoundError(
            f"no such folder: `{name}`",
            expected="a folder with config.json and model.safetensors, or a hub id `OWNER/NAME`",
        )
    return _fetched(name, revision)


def _fetched(hub_id: str, revision: str | None) -> WeightsFolder:
    local = f"download the model elsewhere (`hf download {hub_id} --local-dir FOLDER`) and name the folder instead"
    try:
        path = Path(snapshot_download(hub_id, revision=revision, allow_patterns=_FETCHED))
    except GatedRepoError as error:
        raise InputNotFoundError(f"`{hub_id}` is gated on the hub", hint=f"`hf auth login`, or {local}") from error
    except RevisionNotFoundError as error:
        raise InputNotFoundError(f"`{hub_id}` has no revision `{revision}` on the hub") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputNotFoundError(
            f"`{hub_id}` is neither a folder nor a model on the hub",
            expected="a folder, or a hub id `OWNER/NAME`",
        ) from error
    except _HTTP_ERRORS as error:
        raise InputNotFoundError(
            f"`{hub_id}` is no folder, and the hub cannot be reached: {_first_line(error)}",
            expected="a folder with config.json and model.safetensors, or a hub that answers",
            hint=local,
        ) from error
    commit = path.name if re.fullmatch(r"[0-9a-f]{40}", path.name) else None
    _LOG.info("`%s` at revision %s of the hub", hub_id, commit or revision)
    return _checked(path, name=hub_id, hub_id=hub_id, revision=commit)


def _checked(path: Path, *, name: str, hub_id: str | None = None, revision: str | None = None) -> WeightsFolder:
    if not path.is_dir():
        raise BadDataError(f"`{name}` is a file", expected="a folder with config.json and model.safetensors")
    if not (path / "config.json").is_file():
        raise BadDataError(
            f"`{name}` has no config.json", expected="a folder in the format of Hugging Face transformers"
        )
    what = f"config.json of `{name}`"
    config = parse_json_object(read_input(path / "config.json", what="the config"), what=what)
    _check_code(config, what=what)
    names = sorted(entry.name for entry in path.iterdir())
    if not any(entry.endswith(".safetensors") for entry in names):
        raise _no_safetensors(name, names if hub_id is None else _names_on_hub(hub_id, revision) or names)
    _check_shards(path, names, name=name)
    if "adapter_config.json" in names:
        raise BadDataError(
            f"`{name}` holds an adapter (adapter_config.json)",
            expected="whole weights",
            hint="merge it with peft and save",
        )
    if "quantization_config" in config:
        raise BadDataError(f"{what} describes quantised weights", expected="float weights")
    return WeightsFolder(path=path, config=config, hub_id=hub_id, revision=revision)


def _check_code(value: JsonValue, *, what: str) -> None:
    """Refuse a config that names code of its own, at any depth."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            # A kernel of the hub, such as `owner/name`, would be fetched and run as the attention of the model.
            kernel = key.endswith("_implementation") and isinstance(entry, str) and "/" in entry
            if kernel or (key in ("auto_map", "custom_pipelines") and entry):
                raise RefusedError(
                    f"{what} asks for code of its own (`{key}`)",
                    expected="an architecture of transformers; remote code is never run",
                    hint="look for the same model without remote code",
                )
            _check_code(entry, what=what)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _check_code(entry, what=what)


def _check_shards(path: Path, names: list[str], *, name: str) -> None:
    """Refuse an index whose shards are other than safetensors files beside it: transformers would unpickle them."""
    for index in (entry for entry in names if entry.endswith(".index.json")):
        what = f"{index} of `{name}`"
        shards = parse_json_object(read_input(path / index, what="the index of the weights"), what=what).get(
            "weight_map"
        )
        if not isinstance(shards, Mapping) or not all(isinstance(shard, str) for shard in shards.values()):
            raise BadDataError(f"{what} has no `weight_map` of file names", expected="an index of safetensors files")
        foreign = sorted(str(shard) for shard in shards.values() if not _SHARD.fullmatch(str(shard)))
        if foreign:
            raise RefusedError(
                f"{what} names `{foreign[0]}`",
                expected="safetensors files in the same folder; loading another file can run any code",
            )


def _no_safetensors(name: str, names: list[str]) -> BadDataError | RefusedError:
    pickled = [entry for entry in names if _PICKLED.fullmatch(entry)]
    if pickled:
        return RefusedError(
            f"`{name}` has pickled weights only: `{pickled[0]}`",
            expected="model.safetensors; loading a pickle can run any code",
            hint="convert it where you trust the file: `from transformers import AutoModelForImageClassification as A; "
            f'A.from_pretrained("{name}").save_pretrained("FOLDER")`',
        )
    other = [entry for entry in names if _OTHER_WEIGHTS.fullmatch(entry)]
    found = f"weights in another format only: `{other[0]}`" if other else "no weights"
    return BadDataError(f"`{name}` has {found}", expected="model.safetensors")


def _names_on_hub(hub_id: str, revision: str | None) -> list[str]:
    """Return the names of all files, or none where the hub does not answer: they only make a message clearer."""
    try:
        return sorted(HfApi().list_repo_files(hub_id, revision=revision))
    except _HTTP_ERRORS:
        return []


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
