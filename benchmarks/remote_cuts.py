"""Links cut at every position of `bench`, `compile` or `size` with `--host`: a correct verdict, no orphan, and nothing partial that calls
itself complete.

    python benchmarks/remote_cuts.py
    python benchmarks/remote_cuts.py --command compile
    python benchmarks/remote_cuts.py --positions 12 --silent 2
    python benchmarks/remote_cuts.py --kept FILE.jsonl     # go on where an earlier call was ended; a line that is removed is cut again

A device on the loopback (an SSH server that runs the commands in a home folder of its own, or sshd with `benchmarks/remote_sshd.py`) is
benched through a proxy that resets the connection after so many bytes of both directions together: from the first byte of the
handshake to the last of the answer. Half of the positions lie in a run for which everything has to be sent, a quarter of them in the
handshake; the other half in a run whose wheel, bundle and images are on the device already, so that they fall into the measuring. At
`--silent` of the positions nothing is handed on any more instead, as a pulled cable does.

After each cut it is checked that the call said so (LinkLostError, exit code 75) or had succeeded; that a result is there only where it
had, whole and following from its samples; that what is kept of the run is complete launches; that no process of the device, of
whatever session, is left after ten seconds, those left out in which it waited for a processor that others had; and that the run goes on
with `--resume` to a result that holds: at every `--resume-every`-th position, and wherever launches were kept. `compile` and `size` leave
nothing at all where the link was lost, and the same command again succeeds.

Twenty seconds a position on two busy cores. Prints one summary line, and returns 1 where anything of it did not hold.
"""

from __future__ import annotations

import argparse
import getpass
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from _proof import commit_of_checkout
from _ssh_device import CuttingProxy, SshDevice, as_host, processes_of
from _tiny_bundles import linear
from PIL import Image

from edgebert import Classifier
from edgebert._json import Fields, parse_json_object
from edgebert.bench.comparison.validation import check_result
from edgebert.bench.options import BenchOptions
from edgebert.bench.result import read_result
from edgebert.bundle import read_bundle
from edgebert.errors import BadDataError, EdgebertError, LinkLostError
from edgebert.export.compile import CompileOptions
from edgebert.export.metadata import bytes_of_model, with_metadata
from edgebert.remote.bench import bench_on
from edgebert.remote.compile import bundle_on
from edgebert.remote.run_folder import RunFolder
from edgebert.remote.ssh import SshOptions
from edgebert.remote.transport import transport_of

SSH = SshOptions(connect_seconds=15, silence_seconds=2)
ORPHAN_SECONDS = 10.0
_LONGEST_END_SECONDS = 120.0  # whatever it waited for
HANDSHAKE_BYTES = 8 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One cut and what was seen.

    Attributes:
        number: of the position, from 0 on.
        after_bytes: where.
        kept: whether wheel, bundle and images were on the device already.
        silent: nothing was handed on any more, instead of a reset.
        said: `lost`, or `done` where the answer had come through.
        seconds: until the call ended.
        ended_seconds: until no process of the device was left.
        launches: complete, and kept for `--resume`.
        resumed: how often the run was taken up again: 0, 1, or 2 where the link was lost once more, without a cut of ours.
        wrong: what did not hold.
        commit: of the checkout that was cut.
    """

    number: int
    after_bytes: int
    kept: bool
    silent: bool
    said: str
    seconds: float
    ended_seconds: float
    launches: int
    resumed: int
    wrong: tuple[str, ...]
    commit: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep and return 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", choices=("bench", "compile", "size"), default="bench")
    parser.add_argument("--positions", type=int, default=200)
    parser.add_argument("--silent", type=int, default=20, help="of the positions, those where the link falls silent")
    parser.add_argument("--resume-every", type=int, default=10)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="the device's Python")
    parser.add_argument(
        "--kept", type=Path, help="keep each cut there, one a line, and make those alone that are not there yet"
    )
    given = parser.parse_args(arguments)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it notes every write to a link that was cut
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        as_host(work / "host")
        with SshDevice(home=work / "device", host_home=work / "host", python=given.python) as device:
            cuts = swept(
                work, device, given.positions, given.silent, given.resume_every, command=given.command, kept=given.kept
            )
    wrong = [cut for cut in cuts if cut.wrong]
    for cut in wrong:
        print(f"cut after {cut.after_bytes:,} bytes: {'; '.join(cut.wrong)}")
    done, resumed = sum(cut.said == "done" for cut in cuts), sum(cut.resumed > 0 for cut in cuts)
    again, late = sum(cut.resumed > 1 for cut in cuts), sum(cut.ended_seconds > ORPHAN_SECONDS for cut in cuts)
    print(
        f"{len(cuts)} cuts of {given.command} ({sum(cut.silent for cut in cuts)} of them silent): {len(wrong)} wrong; {done} had come through, "
        f"{sum(cut.launches > 0 for cut in cuts)} kept launches, {resumed} were taken up again to the end, {again} of them by a second call; "
        f"told after {max(cut.seconds for cut in cuts):.1f} s at most, nothing ran {max(cut.ended_seconds for cut in cuts):.1f} s "
        f"later at most ({late} later than {ORPHAN_SECONDS:g} s, for want of a processor); "
        f"at commit {', '.join(dict.fromkeys(cut.commit for cut in cuts))}"
    )
    return 1 if wrong else 0


def some_images(folder: Path, class_names: Sequence[str]) -> Path:
    """Make a folder of noise for each class, and return it."""
    generator = np.random.default_rng(0)
    for name in class_names:
        (folder / name).mkdir(parents=True)
        for index in range(6):
            pixels = generator.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def swept(
    work: Path,
    device: Device,
    positions: int,
    silent: int,
    resume_every: int,
    *,
    command: str = "bench",
    home: Path | None = None,
    kept: Path | None = None,
) -> list[Cut]:
    """Cut at so many positions, half of them with everything to be sent; with `kept`, those that are not in that file yet."""
    work.mkdir(exist_ok=True)
    sweep = {"bench": Sweep, "compile": CompileSweep, "size": SizeSweep}[command](work, device, home or work / "host")
    every = max(1, positions // silent) if silent else positions + 1
    asked = [command, positions, silent, resume_every]
    places, cuts = _already_cut(kept, asked)
    if not places:
        places = [(after, False) for after in _positions(sweep.whole(keep=False), positions - positions // 2)]
        places += [(after, True) for after in _positions(sweep.whole(keep=True), positions // 2)]
        _keep(kept, {"asked": asked, "places": places})
    filled = False
    for number, (after, keep) in enumerate(places):
        if number in cuts:
            continue
        if keep and not filled:  # the cuts before this one left nothing on the device, or half of it
            sweep.whole(keep=True)
            filled = True
        silently, resume = number % every == every - 1, number % resume_every == resume_every - 1
        cuts[number] = sweep.cut(number, after, keep=keep, silent=silently, resume=resume)
        _keep(kept, asdict(cuts[number]))
    return [cuts[number] for number in sorted(cuts)]


def _keep(kept: Path | None, entry: dict[str, object]) -> None:
    if kept is not None:
        with kept.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


def _already_cut(kept: Path | None, asked: list[str | int]) -> tuple[list[tuple[int, bool]], dict[int, Cut]]:
    """Return the places of an earlier call that was asked the same, and its cuts by number; nothing where there was none."""
    if kept is None or not kept.exists():
        return [], {}
    head, *rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    if head["asked"] != asked:
        sys.exit(
            f"`{kept}` holds cuts of {head['asked']}, and not of {asked} (command, positions, silent, resume every): remove it"
        )
    cuts = {row["number"]: Cut(**{**row, "wrong": tuple(row["wrong"])}) for row in rows}
    return [(after, keep) for after, keep in head["places"]], cuts


def _positions(whole: int, count: int) -> list[int]:
    """Return where to cut: a quarter of the positions in the handshake, the others over all bytes, the last one included."""
    first = count // 4
    rest = count - first
    handshake = [1 + HANDSHAKE_BYTES * number // max(1, first) for number in range(first)]
    return sorted(handshake + [max(1, whole * (number + 1) // rest - 1) for number in range(rest)])


class Device(Protocol):
    """What is benched: an SSH server with a home folder, of `_ssh_device` or of `remote_sshd`."""

    home: Path
    port: int

    def trust(self, known_hosts: Path, *, port: int = 0) -> None: ...


class Sweep:
    """Benches one device again and again."""

    def __init__(self, work: Path, device: Device, home: Path) -> None:
        self._work, self._device, self._commit = work, device, commit_of_checkout()
        self._known = home / ".ssh/known_hosts"
        self._bundle = linear(1).write(work / "a.edgebert")
        card = read_bundle(self._bundle).manifest.card
        images = some_images(work / "images", card.class_names)
        self._options = BenchOptions(
            data=str(images),
            targets=("cpu",),
            launches=2,
            queries=40,
            seconds=0.2,
            max_warmup_seconds=0.0,
            threads=1,
            force=True,
        )
        self._output = work / "result.json"
        self._run = RunFolder.beside(self._output)

    def whole(self, *, keep: bool) -> int:
        """Return how many bytes a run passes in all."""
        self._forget(keep=keep)
        if keep:
            self._bench(self._device.port, keep=True)
        with CuttingProxy(self._device.port, None) as proxy:
            self._bench(proxy.port, keep=keep)
            return proxy.passed

    def cut(self, number: int, after_bytes: int, *, keep: bool, silent: bool, resume: bool) -> Cut:
        """Cut one run, look, and take it up again where launches were kept or `resume` asks for it."""
        wrong: list[str] = []
        self._forget(keep=keep)
        started = time.monotonic()
        with CuttingProxy(self._device.port, after_bytes, hang=silent) as proxy:
            try:
                self._bench(proxy.port, keep=keep)
                said = "done"
            except LinkLostError:
                said = "lost"
            except EdgebertError as error:
                said = "lost"
                wrong.append(f"{type(error).__name__}: {error.what}")
            seconds = time.monotonic() - started
            ended = self._ends()
            if ended is None:
                wrong.append(f"something still runs {ORPHAN_SECONDS:g} s later")
        wrong += self._wrong_result(said)
        launches = len(self._run.launches()) if self._run.path.exists() else 0
        resumed = 0
        if said == "lost" and self._goes_on(launches, resume=resume):
            resumed, unable = self._resumed(keep=keep)
            wrong += unable
        return Cut(
            number=number,
            after_bytes=after_bytes,
            kept=keep,
            silent=silent,
            said=said,
            seconds=seconds,
            ended_seconds=_LONGEST_END_SECONDS if ended is None else ended,
            launches=launches,
            resumed=resumed,
            wrong=tuple(wrong),
            commit=self._commit,
        )

    def _goes_on(self, launches: int, *, resume: bool) -> bool:
        return (launches > 0 or resume) and self._run.path.exists()

    def _wrong_result(self, said: str) -> list[str]:
        if said == "lost":
            return [f"a result is there: {self._output.name}"] if self._output.exists() else []
        try:
            check_result(self._output)
        except EdgebertError as error:
            return [f"done, and {error.what}"]
        return ["done, and marked partial"] if read_result(self._output).status.partial else []

    def _resumed(self, *, keep: bool) -> tuple[int, list[str]]:
        """Take the run up again, once more where the link is lost for another reason than our cut; return how often, and what did not hold."""
        for call in (1, 2):
            try:
                self._bench(self._device.port, keep=keep, resume=self._run.path)
                check_result(self._output)
            except LinkLostError as error:
                if call == 1 and self._run.path.exists() and not self._output.exists():
                    continue
                return call, [f"--resume: {error.what}"]
            except EdgebertError as error:
                return call, [f"--resume: {error.what}"]
            break
        return call, ["the run is still there after its result"] if self._run.path.exists() else []

    def _forget(self, *, keep: bool) -> None:
        self._run.remove()
        for left in self._work.glob("result*"):
            left.unlink()
        if not keep:
            shutil.rmtree(self._device.home / ".cache", ignore_errors=True)

    def _bench(self, port: int, *, keep: bool, resume: Path | None = None) -> None:
        self._reach(port)
        bench_on(transport_of("device"), [self._bundle], self._output, self._options, resume=resume, keep=keep, ssh=SSH)

    def _reach(self, port: int) -> None:
        self._known.unlink(missing_ok=True)
        self._device.trust(self._known)
        self._device.trust(self._known, port=port)
        # One name for the device, whatever proxy leads to it: `--resume` is for the same device.
        config = f"Host device\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n"
        (self._known.parent / "config").write_text(config, encoding="utf-8")

    def _ends(self) -> float | None:
        """Return after how many seconds nothing of the device ran any more; None where something could have ended and did not."""
        began = time.monotonic()
        waited_before: dict[int, float] = {}
        while found := processes_of(self._device.home):
            after = time.monotonic() - began
            able = [after - (_waited(number) - waited_before.setdefault(number, _waited(number))) for number in found]
            if max(able) > ORPHAN_SECONDS or after > _LONGEST_END_SECONDS:
                return None
            time.sleep(0.05)
        return time.monotonic() - began


class _OneAnswer(Sweep):
    """Cuts a command that writes its output at the end or not at all; what goes on is the same command again."""

    def _goes_on(self, launches: int, *, resume: bool) -> bool:
        return resume

    def _wrong_result(self, said: str) -> list[str]:
        found = sorted(path.name for path in self._output.parent.iterdir())
        if said == "lost":
            return [f"something is there: {', '.join(found)}"] if found else []
        try:
            self._check()
        except EdgebertError as error:
            return [f"done, and {error.what}"]
        return [] if found == [self._output.name] else [f"done, and beside it there is {', '.join(found)}"]

    def _resumed(self, *, keep: bool) -> tuple[int, list[str]]:
        self._bench(self._device.port, keep=keep)
        return 1, self._wrong_result("done")

    def _forget(self, *, keep: bool) -> None:
        super()._forget(keep=keep)
        shutil.rmtree(self._output.parent, ignore_errors=True)
        self._output.parent.mkdir()

    def _check(self) -> None:
        """Return only if the output is whole."""
        raise NotImplementedError


class CompileSweep(_OneAnswer):
    """Compiles for one device again and again."""

    def __init__(self, work: Path, device: Device, home: Path) -> None:
        super().__init__(work, device, home)
        self._output = work / "out" / "tiny.edgebert"
        self._graph = write_graph(work / "tiny.onnx")

    def _bench(self, port: int, *, keep: bool, resume: Path | None = None) -> None:
        self._reach(port)
        options = CompileOptions(targets=("cpu",), canary="synthetic", force=True)
        bundle_on(transport_of("device"), self._graph, self._output, options, keep=keep, ssh=SSH)

    def _check(self) -> None:
        Classifier(self._output).close()


class SizeSweep(_OneAnswer):
    """Measures one untrained student on one device again and again."""

    def __init__(self, work: Path, device: Device, home: Path) -> None:
        super().__init__(work, device, home)
        self._output = work / "out" / "sizes.json"

    def _bench(self, port: int, *, keep: bool, resume: Path | None = None) -> None:
        from edgebert.remote.size import sizes_on
        from edgebert.train.sizing import SizeOptions

        self._reach(port)
        options = SizeOptions(
            image_size=8,
            target="cpu",
            budget_ms=1000.0,
            shapes=("d32-l2-h2-r2",),
            threads=1,
            timed_images=4,
            force=True,
        )
        sizes_on(transport_of("device"), "digits", options, self._output, keep=keep, ssh=SSH)

    def _check(self) -> None:
        fields = Fields(parse_json_object(self._output.read_bytes(), what="the table"), what="the table")
        if fields.text("proposed") != "d32-l2-h2-r2":
            raise BadDataError(f"the table proposes `{fields.text('proposed')}`")


def write_graph(path: Path) -> Path:
    """Write the graph of a tiny classifier, and return its path."""
    tiny = linear(1)
    path.write_bytes(bytes_of_model(with_metadata(onnx.load_from_string(tiny.graph()), tiny.card, ())))
    return path


def _waited(number: int) -> float:
    """Return the seconds for which a process was able to run and waited for a processor."""
    try:
        return int(Path(f"/proc/{number}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError):  # ended, or a kernel that does not say: then nothing is left out
        return 0.0


if __name__ == "__main__":
    sys.exit(main())
