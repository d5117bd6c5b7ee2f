"""The state of a run in progress: a hidden folder beside the output, gone when the run is.

    .NAME.training/
        state-RUN-EPOCH-BATCH/  where the run was: complete epochs, and batches of the one begun
            state.safetensors   weights, running average and moments, with the position and the fingerprint as metadata
            SHA256SUMS          of the state and of every file of the best checkpoint that goes with it
        best-RUN-EPOCH/         the best checkpoint so far, complete and usable
        pixels-DATA.bin         decoded images, where they are many

A state is written beside, synced and renamed; the one before it is removed only then, so that a full disk or a kill leaves
it. One counts only when its list of hashes is complete and every hash is right. Random draws follow from the seed and the
position, so no generator's state is kept. Nothing here is a pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgebert._files import FolderKind, locked, sha256_of_file, staged_folder
from edgebert._json import Fields, JsonObject, JsonValue, dump_json, flat, parse_json_object
from edgebert.card_io import CHECKPOINT_FOLDER
from edgebert.errors import BadDataError, UsageError
from edgebert.train.curve import EpochRecord, Tally

_log = logging.getLogger("edgebert")

_SCHEMA = "edgebert.training/2"
_STATE, _SUMS = "state.safetensors", "SHA256SUMS"
_STATE_FOLDER = FolderKind(marker=_SUMS, schema="", holds=(_STATE, _SUMS))
_STATE_NAME = re.compile(r"state-([0-9a-f]{8})-(\d+)-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a run has come.

    Attributes:
        epochs: complete ones.
        batches: done of the epoch after them.
        best_epoch: the one whose checkpoint is kept, counted from 1; 0 before there is one.
        best: its validation score and loss; None before there is one.
        scaler: of the gradient scaler of fp16; empty without one.
        tally: sums over the epoch that was begun.
        curve: of the complete epochs.
    """

    epochs: int
    batches: int
    best_epoch: int
    best: tuple[float, float] | None
    scaler: Mapping[str, float]
    tally: Tally
    curve: tuple[EpochRecord, ...]


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

        Without `resume` a state that is there is left until this run's first one replaces it, and that is said.

        Raises:
            UsageError: with `resume`, where the state is that of a run with other options, data or teacher.
            BadDataError: with `resume`, where no state that is there is whole.
        """
        states = self._states()
        if not states:
            if resume:
                _log.info("there is no interrupted run to resume: starting from the beginning")
            return None
        if not resume:
            _log.info(
                "an interrupted run is in `%s`: --resume continues it, the first state of this one replaces it",
                self.path,
            )
            return None
        for folder in states:
            wrong = self._damage(folder)
            if wrong is None:
                return self._read(folder)
            _log.warning("the state in `%s` does not count: %s", folder, wrong)
        raise BadDataError(f"no state in `{self.path}` is whole", hint="start again without --resume")

    def save(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        """Write the state, then remove those before it and the checkpoints of earlier bests.

        Raises:
            CannotWriteError: no room, or no permission; the state before it stays.
        """
        state: dict[str, JsonValue] = {
            "schema": _SCHEMA,
            "fingerprint": self._fingerprint,
            "epochs": position.epochs,
            "batches": position.batches,
            "best_epoch": position.best_epoch,
            "best_folder": self.best(position.best_epoch).name,
            "best": None if position.best is None else list(position.best),
            "scaler": position.scaler,
            "tally": [position.tally.images, position.tally.loss, position.tally.right],
            "curve": [[record.loss, record.right, record.val_score, record.val_loss] for record in position.curve],
        }
        kept = self.path / f"state-{self._run}-{position.epochs}-{position.batches}"
        with staged_folder(kept, force=True, kind=_STATE_FOLDER) as staging:
            # Copies: two names of one tensor, or a view into another, are no safetensors file.
            copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
            save_file(copies, staging / _STATE, {"state": dump_json(state)})
            (staging / _SUMS).write_text(self._sums(staging, self.best(position.best_epoch)), encoding="utf-8")
        for entry in (*self._states(), *self.path.glob("best-*")):
            if entry not in (kept, self.best(position.best_epoch)):
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

    def _states(self) -> list[Path]:
        """Return the folders of states: those of this run before those of another one, the furthest first."""
        found = []
        for entry in self.path.glob("state-*"):
            if match := _STATE_NAME.fullmatch(entry.name):
                found.append(((match[1] == self._run, int(match[2]), int(match[3])), entry))
        return [entry for _, entry in sorted(found, reverse=True)]

    def _sums(self, folder: Path, best: Path) -> str:
        """Return the list of hashes: the state's own file, and those of the best checkpoint below `best/`."""
        files = {_STATE: folder / _STATE}
        files.update({f"best/{path.relative_to(best).as_posix()}": path for path in best.rglob("*") if path.is_file()})
        return "".join(f"{sha256_of_file(files[name])}  {name}\n" for name in sorted(files))

    def _damage(self, folder: Path) -> str | None:
        """Return what is wrong with a state, or None."""
        try:
            listed = (folder / _SUMS).read_text(encoding="utf-8")
            with safe_open(folder / _STATE, framework="pt") as stream:
                state = parse_json_object(stream.metadata()["state"], what=_STATE)
            found = self._sums(folder, self.path / Path(Fields(state, what=_STATE).text("best_folder")).name)
        except (BadDataError, SafetensorError, OSError, KeyError, TypeError, UnicodeDecodeError) as error:
            return f"{type(error).__name__}: {error}"
        if listed == found:
            return None
        different = sorted(set(listed.splitlines()) ^ set(found.splitlines()))
        return f"`{different[0][66:] if different else _SUMS}` is not what `{_SUMS}` lists"

    def _read(self, folder: Path) -> SavedRun:
        what = f"`{folder / _STATE}`"
        with safe_open(folder / _STATE, framework="pt") as stream:
            state = Fields(parse_json_object(stream.metadata()["state"], what=what), what=what)
            self._check_same_run(state)
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  # no mapping
        best = None if state.value["best"] is None else state.numbers("best")
        tally = state.numbers("tally")
        position = Position(
            epochs=state.integer("epochs"),
            batches=state.integer("batches"),
            best_epoch=state.integer("best_epoch"),
            best=None if best is None else (best[0], best[1]),
            scaler=_scaler(state.fields("scaler")),
            tally=Tally(images=tally[0], loss=tally[1], right=tally[2]),
            curve=tuple(
                EpochRecord(loss=loss, right=right, val_score=val_score, val_loss=val_loss)
                for loss, right, val_score, val_loss in state.rows_of_numbers("curve")
            ),
        )
        begun = f" and {position.batches} batches" if position.batches else ""
        _log.info("resuming after epoch %d%s", position.epochs, begun)
        return SavedRun(position=position, tensors=tensors)

    def _check_same_run(self, state: Fields) -> None:
        if state.text("schema") != _SCHEMA:
            raise UsageError(
                f"the interrupted run has schema `{state.text('schema')}`",
                expected=f"`{_SCHEMA}`",
                hint="start again without --resume",
            )
        there, here = flat(state.fields("fingerprint").value), flat(self._fingerprint)
        changed = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        if changed:
            listed = "; ".join(f"{name} `{there.get(name)}` then, `{here.get(name)}` now" for name in changed[:3])
            raise UsageError(
                f"the interrupted run in `{self.path}` is another one: {listed}",
                expected="the same options, data and teacher",
                hint="give the options it had, or start again without --resume",
            )


def _scaler(fields: Fields) -> dict[str, float]:
    """Return the gradient scaler's state; its counts must stay whole numbers."""
    counts = {"growth_interval", "_growth_tracker"}
    return {name: fields.integer(name) if name in counts else fields.number(name) for name in fields.value}
