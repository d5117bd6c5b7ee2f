"""The state of a run in progress: a hidden folder beside the output, complete after every epoch, gone when the run is.

    .NAME.training/
        state.safetensors     weights, running average and moments, with the position and the fingerprint as metadata
        best-RUN-EPOCH/       the best checkpoint so far, complete and usable

Random draws follow from the seed and the position, so no generator's state is kept. Nothing here is a pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgebert._files import locked, staged_file, staged_folder
from edgebert._json import Fields, JsonObject, JsonValue, dump_json, parse_json_object
from edgebert.card_io import CHECKPOINT_FOLDER
from edgebert.errors import BadDataError, UsageError

_log = logging.getLogger("edgebert")

_SCHEMA = "edgebert.training/1"
_STATE = "state.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a run has come.

    Attributes:
        epochs: complete ones.
        best_epoch: the one whose checkpoint is kept, counted from 1.
        best: its validation top-1 and loss.
        scaler: of the gradient scaler of fp16; empty without one.
    """

    epochs: int
    best_epoch: int
    best: tuple[float, float]
    scaler: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRun:
    """An interrupted run: where it was, and its tensors by name."""

    position: Position
    tensors: Mapping[str, Tensor]


class RunFolder:
    """Keeps and finds the state of a run.

    Args:
        output: the final name of the checkpoint.
        fingerprint: all that decides the run's outcome; a state with another one is never continued.
    """

    def __init__(self, output: Path, fingerprint: JsonObject) -> None:
        self.path = output.absolute().parent / f".{output.name}.training"
        self._fingerprint = fingerprint
        self._run = hashlib.sha256(dump_json(fingerprint).encode()).hexdigest()[:8]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training the same output.

        Raises:
            LockedError: one does already.
        """
        with locked(self.path):
            yield

    def interrupted_run(self, *, resume: bool) -> SavedRun | None:
        """Return the run to go on with; None to start from the beginning.

        Without `resume` a state that is there is left until this run's first epoch replaces it, and that is said.

        Raises:
            UsageError: with `resume`, where the state is that of a run with other options, data or teacher.
            BadDataError: with `resume`, where the state cannot be read.
        """
        file = self.path / _STATE
        if not file.exists():
            if resume:
                _log.info("there is no interrupted run to resume: starting from the beginning")
            return None
        if not resume:
            _log.info(
                "an interrupted run is in `%s`: --resume continues it, the first epoch of this one replaces it",
                self.path,
            )
            return None
        try:
            with safe_open(file, framework="pt") as stream:
                state = Fields(parse_json_object(stream.metadata()["state"], what=f"`{file}`"), what=f"`{file}`")
                self._check_same_run(state)
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # no mapping
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise BadDataError(f"cannot read `{file}`: {error}", hint="start again without --resume") from error
        position = Position(
            epochs=state.integer("epochs"),
            best_epoch=state.integer("best_epoch"),
            best=(state.number("best_top1"), state.number("best_loss")),
            scaler={name: state.fields("scaler").number(name) for name in state.fields("scaler").value},
        )
        _log.info("resuming after epoch %d", position.epochs)
        return SavedRun(position=position, tensors=tensors)

    def save(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        """Replace the state, in one step; the checkpoints of earlier bests are removed."""
        state: dict[str, JsonValue] = {
            "schema": _SCHEMA,
            "fingerprint": self._fingerprint,
            "epochs": position.epochs,
            "best_epoch": position.best_epoch,
            "best_top1": position.best[0],
            "best_loss": position.best[1],
            "scaler": position.scaler,
        }
        with staged_file(self.path / _STATE, force=True) as staging:
            # Copies: two names of one tensor, or a view into another, are no safetensors file.
            save_file(
                {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()},
                staging,
                {"state": dump_json(state)},
            )
        for entry in self.path.glob("best-*"):
            if entry != self.best(position.best_epoch):
                shutil.rmtree(entry)

    def save_best(self, epoch: int, write: Callable[[Path], None]) -> None:
        """Keep the checkpoint that `write` fills a folder with."""
        with staged_folder(self.best(epoch), force=True, kind=CHECKPOINT_FOLDER) as staging:
            write(staging)

    def best(self, epoch: int) -> Path:
        """Return the folder of the best checkpoint when it was made in `epoch`, counted from 1."""
        return self.path / f"best-{self._run}-{epoch}"

    def remove(self) -> None:
        """Remove the state of a run whose output is complete."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _check_same_run(self, state: Fields) -> None:
        if state.text("schema") != _SCHEMA:
            raise UsageError(
                f"the interrupted run has schema `{state.text('schema')}`",
                expected=f"`{_SCHEMA}`",
                hint="start again without --resume",
            )
        there, here = _flat(state.fields("fingerprint").value), _flat(self._fingerprint)
        changed = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        if changed:
            listed = "; ".join(f"{name} `{there.get(name)}` then, `{here.get(name)}` now" for name in changed[:3])
            raise UsageError(
                f"the interrupted run in `{self.path}` is another one: {listed}",
                expected="the same options, data and teacher",
                hint="give the options it had, or start again without --resume",
            )


def _flat(value: JsonObject, prefix: str = "") -> dict[str, JsonValue]:
    """Return nested objects as one, `{"a": {"b": 1}}` -> `{"a.b": 1}`, lists as tuples."""
    found: dict[str, JsonValue] = {}
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            found.update(_flat(entry, f"{prefix}{name}."))
        else:
            found[prefix + name] = tuple(entry) if isinstance(entry, (list, tuple)) else entry
    return found
