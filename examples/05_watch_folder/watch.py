"""Classify each image that arrives in a folder, once, and write one line of JSON for it.

    python watch.py /var/lib/widgets --inbox /srv/inbox --log /srv/answers.jsonl

The first argument is a bundle or an installation, the folder of `edgebert install --to`; of an installation a new bundle is taken up
while the program runs, without a lost image. An image counts as arrived when its name does not begin with a dot and neither its size
nor its time changed between two looks: whoever copies under a dotted name and renames is never read half-way. Answered images go to
INBOX/done, those that are no images to INBOX/refused; nothing is deleted: of two with one name the later one gets a number. After a crash the images that still lie in INBOX are
answered: twice where the crash came between the line and the move.

SIGTERM and Ctrl-C finish the image at hand. `edgebert-watch.service` runs it under systemd.

>>> arrived({"a.png": (5, 1), "b.png": (7, 2)}, {"a.png": (5, 1), "b.png": (9, 2), "c.png": (1, 3)})
['a.png']
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

from edgebert import Classifier, EdgebertError
from edgebert.errors import BadDataError, InputNotFoundError, NotFiniteError

Seen = dict[str, tuple[int, int]]  # name -> size in bytes, time of the last change in nanoseconds

DONE, REFUSED = "done", "refused"


def look(inbox: Path) -> Seen:
    """Return the files that lie in the inbox now."""
    seen: Seen = {}
    with os.scandir(inbox) as entries:
        for entry in entries:
            try:
                if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    seen[entry.name] = (status.st_size, status.st_mtime_ns)
            except OSError:  # renamed between the listing and the look
                continue
    return seen


def arrived(before: Seen, now: Seen) -> list[str]:
    """Return the names that did not change between two looks."""
    return sorted(name for name, state in now.items() if before.get(name) == state)


def move(path: Path, folder: Path) -> None:
    """Move a file into a folder under a name that is free there; one that somebody took away meanwhile is passed over."""
    names = (path.name, *(f"{path.stem}.{number}{path.suffix}" for number in range(2, 1_000_000)))
    free = next(folder / name for name in names if not (folder / name).exists())
    with suppress(FileNotFoundError):
        path.rename(free)


def answer(classifier: Classifier, path: Path, log: TextIO) -> str:
    """Write the line of one image, on disk before it is moved; return the folder that it goes to.

    Raises:
        EdgebertError: nothing is wrong with the image: memory ran out, say. It stays where it is, for the next start.
    """
    line: dict[str, object] = {"file": path.name}
    try:
        prediction = classifier.predict(path)
        line.update(
            label=prediction.label,
            labels=prediction.labels,
            score=round(prediction.score, 6),
            abstained=prediction.abstained,
            bundle=prediction.digest,
        )
        folder = DONE
    except (BadDataError, InputNotFoundError, NotFiniteError) as error:
        line["error"] = error.what
        folder = REFUSED
    log.write(json.dumps(line, ensure_ascii=True) + "\n")
    log.flush()
    os.fsync(log.fileno())
    return folder


class Watch:
    """The loop: look, answer what arrived, take up a new bundle, wait."""

    def __init__(self, source: Path, inbox: Path, log: TextIO, *, seconds: float) -> None:
        self._source, self._inbox, self._log, self._seconds = source, inbox, log, seconds
        self._installed = source / "current"
        self._taken = self._current()
        self.stop = threading.Event()

    def run(self) -> None:
        """Answer until `stop` is set."""
        for name in (DONE, REFUSED):
            (self._inbox / name).mkdir(exist_ok=True)
        before: Seen = {}
        with Classifier(self._source) as classifier:
            while not self.stop.is_set():
                self._take_up(classifier)
                now = look(self._inbox)
                for name in arrived(before, now):
                    if self.stop.is_set():
                        return
                    path = self._inbox / name
                    move(path, self._inbox / answer(classifier, path, self._log))
                before = now
                self.stop.wait(self._seconds)

    def _current(self) -> str:
        try:
            return str(self._installed.readlink())
        except OSError:  # a bundle, not an installation
            return ""

    def _take_up(self, classifier: Classifier) -> None:
        current = self._current()
        if current == self._taken:
            return
        self._taken = current  # a bundle that fails is tried once, and the old one goes on answering
        try:
            classifier.swap(self._source)
            print(f"now answering with {classifier.digest}", file=sys.stderr)
        except EdgebertError as error:
            print(f"{error}\n`{current}` was not taken up; {classifier.digest} goes on", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Parse and watch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a bundle, or the folder of `edgebert install --to`")
    parser.add_argument("--inbox", type=Path, required=True, help="the folder that images arrive in")
    parser.add_argument("--log", type=Path, required=True, help="one line of JSON for each image is appended to it")
    parser.add_argument("--seconds", type=float, default=0.5, help="between two looks")
    given = parser.parse_args(arguments)
    with given.log.open("a", encoding="utf-8") as log:
        watch = Watch(given.source, given.inbox, log, seconds=given.seconds)

        def end(number: int, frame: FrameType | None) -> None:
            watch.stop.set()

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        watch.run()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgebertError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
