"""A session on a device: one host, one command after the other, until the host says `bye` or is gone.

    push  blobs: objects                    -> answer {damaged}; see `edgebert.remote.device_store`
    there {objects}                         -> answer {bytes}
    facts {}                                -> answer {…}; what `edgebert devices check` shows
    bench {arms, options, selection, …}     -> launch {…} after each launch; answer {} with the result and its samples
    launch {arms, options, selection, …}    -> answer {…} with the columns of one launch, for `edgebert size`
    jetson-check {}                         -> rung {…} as each begins and ends; answer {report}
    images {selection}                      -> answer {otherwise}: which of the images this device decodes otherwise
    form, answers, open                     -> see `edgebert.remote.device_compile`
    engine, compare                         -> see `edgebert.remote.device_engine`
    bye   {keep}                            -> answer {}, and the end

What a command refuses is an `error` with the parts of an `EdgebertError`. The bootstrap (`edgebert.remote.bootstrap`) starts it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from edgebert._json import JsonObject
from edgebert.bench.device_lock import LOCK_VARIABLE, device_lock_path
from edgebert.errors import EdgebertError, MemoryExhaustedError
from edgebert.extras import switch_off_telemetry
from edgebert.remote.device_bench import bench, changed_images, one_launch
from edgebert.remote.device_compile import answers, form, opens
from edgebert.remote.device_engine import compare, engine
from edgebert.remote.device_facts import device_facts
from edgebert.remote.device_jetson_check import jetson_check
from edgebert.remote.device_link import GIVEN_UP, ByteReader, Link, LinkClosed
from edgebert.remote.device_store import Store, default_root
from edgebert.remote.frames import BYE, READY, Frame

_Answer = tuple[JsonObject, Mapping[str, bytes]]
_MAX_NOTES = 200


def _there(_link: Link, store: Store, request: Frame) -> _Answer:
    listed = request.fields.list_of_fields("objects")
    return {"bytes": store.there([(entry.text("sha256"), entry.integer("size")) for entry in listed])}, {}


COMMANDS: Mapping[str, Callable[[Link, Store, Frame], _Answer]] = {
    "answers": answers,
    "bench": bench,
    "compare": compare,
    "engine": engine,
    "facts": device_facts,
    "form": form,
    "images": changed_images,
    "jetson-check": jetson_check,
    "launch": one_launch,
    "open": opens,
    "there": _there,
}


def serve(nonce: str, stdin: ByteReader) -> int:
    """Serve a host on stdin and stdout, and return the exit code of the process.

    Args:
        nonce: of the session.
        stdin: what the host says from now on.
    """
    switch_off_telemetry()
    sink = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no frame
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a host that interrupts closes the link
    store = Store(default_root())
    link = Link(nonce, stdin, sink, store)
    code = 0
    try:
        link.start()
        code = _serve(link, store)
    except LinkClosed:
        code = GIVEN_UP
    return code


def _serve(link: Link, store: Store) -> int:
    first = link.next_request()
    keep, only_looks = (first.fields.value.get(name) is True for name in ("keep", "only_looks"))
    try:
        with store.held() as folder:
            # Everything temporary of this session lies there, and goes with it, or with the next one where this one is killed.
            os.environ.setdefault(LOCK_VARIABLE, str(device_lock_path()))
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
            os.chdir(folder)  # what is started is looked for there first by Python 3.10, and not in the login folder
            with _silent(folder):
                link.say(READY, first)
                link.answer(first)
                bye = _commands(link, store)
            if only_looks:
                store.leave()
            elif not keep:
                store.forget()
    except EdgebertError as error:
        link.refuse(first, error)
        return error.exit_code
    link.answer(bye)
    return 0


def _commands(link: Link, store: Store) -> Frame:
    """Run one command after the other, and return the `bye`."""
    while True:
        request = link.next_request()
        if request.kind == BYE:
            return request
        notes = _Notes()
        logging.getLogger("edgebert").addHandler(notes)
        try:
            command = COMMANDS.get(request.kind)
            if command is None:
                raise EdgebertError(f"no such command: `{request.kind:.80}`", expected=", ".join(COMMANDS))
            content, blobs = command(link, store, request)
            link.answer(request, {**content, "notes": list(notes.texts)}, blobs)
        except EdgebertError as error:
            link.refuse(request, error)
        except MemoryError:
            link.refuse(request, MemoryExhaustedError("memory ran out on the device", hint="give it less to do"))
        except Exception as error:  # noqa: BLE001  # a fault of ours must be told as one, and not end as a lost link
            link.refuse(request, EdgebertError(f"internal error: {type(error).__name__}: {error}"))
        finally:
            logging.getLogger("edgebert").removeHandler(notes)


class _Notes(logging.Handler):
    """Keeps what is noted and warned of, for the host: on the link it would be said while something is timed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.texts) < _MAX_NOTES:
            self.texts.append(record.getMessage()[:1000])


@contextlib.contextmanager
def _silent(folder: Path) -> Iterator[None]:
    """Send what is written to stderr, progress above all, into a file: the link must be silent while something is timed."""
    sys.stderr.flush()
    kept = os.dup(2)
    with (folder / "stderr").open("wb") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
