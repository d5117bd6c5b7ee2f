"""Kill `distill` with SIGKILL again and again, resume it, and compare the weights with those of an undisturbed run.

    python benchmarks/kill_resume.py --kills 100

Each run distils a student on a part of the digits with everything on that has a state: mixup, augmentation, running average,
accumulation, a teacher's cache, states within an epoch, features of the schedule. It is killed once, at a random moment of a
random kind, then called again with `resume`, and its checkpoint compared SHA-256 by SHA-256:

* `step`: before a random optimizer step;
* `border`: right after a random epoch;
* `write`: at a random call of fsync, rename, replace or exchange, so in the midst of writing a state, a checkpoint, the cache or the output;
* `time`: after a random time, wherever that is.

A run is a forked child of one process that has imported everything, so that a hundred take minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a child of a fork cannot use its parent's threads

import torch

from edgebert import _durable
from edgebert._files import sha256_of_file
from edgebert.data import Dataset, load_dataset
from edgebert.train import DistillOptions, TrainOptions, checkpoint, checkpoint_from_data, checkpoint_from_teacher

KINDS = ("step", "border", "write", "time")
EPOCHS, IMAGES, VAL_IMAGES = 3, 160, 40

OPTIONS = DistillOptions(
    student="nano",
    epochs=EPOCHS,
    batch_size=16,
    accumulate=2,
    learning_rate=3e-3,
    augment=("shift", "rotate", "erase"),
    mixup=0.4,
    ema=0.9,
    cache_views=2,
    save_every=4,
    workers=1,
    device="cpu",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One kill and what came of it."""

    kind: str
    at: float
    killed: bool
    equal: bool


def main() -> int:
    """Run the trials; 0 where all came out equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as folder:
        trials = run_trials(Path(folder), arguments.kills, arguments.seed)
    equal, killed = sum(trial.equal for trial in trials), sum(trial.killed for trial in trials)
    kinds = Counter(trial.kind for trial in trials if trial.killed)
    listed = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS)
    passed = equal == killed == len(trials) == arguments.kills
    print(
        f"{killed} kills ({listed}): {equal} of {len(trials)} resumed to equal weights: {'PASS' if passed else 'FAIL'}"
    )
    if arguments.json:
        result = {"kills": killed, "equal": equal, "kinds": dict(kinds), "passed": passed}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if passed else 1


def run_trials(folder: Path, kills: int, seed: int) -> list[Trial]:
    """Run until so many kills have hit; where a run ended before its moment came, another one is drawn."""
    torch.set_num_threads(1)
    _use_few_digits()
    teacher = folder / "teacher"
    options = TrainOptions(model="nano", epochs=2, learning_rate=3e-3, workers=1, device="cpu")
    _finish(_forked(lambda: checkpoint_from_data("digits", teacher, options)))
    whole = folder / "whole"
    started = time.monotonic()
    counts = folder / "counts.json"
    _finish(_forked(lambda: _distil(teacher, whole, _counting(counts))))
    seconds = time.monotonic() - started
    wanted = _weights(whole)
    limits: dict[str, float] = {**json.loads(counts.read_text()), "time": seconds}
    moments = random.Random(seed)
    trials: list[Trial] = []
    while len(trials) < kills:
        kind = KINDS[len(trials) % len(KINDS)]
        at = moments.uniform(0.05, limits[kind]) if kind == "time" else moments.randint(1, int(limits[kind]))
        output = folder / "killed"
        child = _forked(lambda: _distil(teacher, output, _killing(kind, at)))  # noqa: B023  # called in this turn
        if kind == "time":
            time.sleep(at)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            if output.exists() and not (folder / ".killed.training").exists():
                shutil.rmtree(output)  # killed after its last act: there is nothing to resume
                continue
            _finish(_forked(lambda: _distil(teacher, output, _nothing)))  # noqa: B023
            trials.append(Trial(kind=kind, at=at, killed=True, equal=_weights(output) == wanted))
            left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
            assert not left, left
        for path in (output, folder / ".killed.training"):
            shutil.rmtree(path, ignore_errors=True)
        if len(trials) % 10 == 0:
            print(f"{len(trials)} of {kills}", file=sys.stderr)
    return trials


def _distil(teacher: Path, output: Path, prepare: Callable[[], None]) -> None:
    prepare()
    options = dataclasses.replace(OPTIONS, resume=True)
    checkpoint_from_teacher("digits", str(teacher), output, options, on_epoch=HOOK[0])
    FINISH[0]()


HOOK: list[Callable[[int, float], None] | None] = [None]
FINISH: list[Callable[[], None]] = [lambda: None]


def _nothing() -> None:
    """Leave the run alone."""


def _counting(result: Path) -> Callable[[], None]:
    """Count what the other kinds of kill draw from, and write it at the end."""

    def prepare() -> None:
        counts = {"step": 0, "border": 0, "write": 0}

        def count(kind: str) -> None:
            counts[kind] += 1

        _instrument(count)
        FINISH[0] = lambda: result.write_text(json.dumps(counts)) and None

    return prepare


def _killing(kind: str, at: float) -> Callable[[], None]:
    """Kill the process at the `at`-th event of a kind."""

    def prepare() -> None:
        seen = Counter[str]()

        def count(happened: str) -> None:
            seen[happened] += 1
            if happened == kind and seen[happened] == at:
                os.kill(os.getpid(), signal.SIGKILL)

        _instrument(count)

    return prepare


def _instrument(count: Callable[[str], None]) -> None:
    """Call `count` before each optimizer step and write, and after each epoch; of this process, a child of a fork."""
    step, fsync = torch.optim.AdamW.step, os.fsync
    renames = {name: getattr(os, name) for name in ("rename", "replace")}
    exchange = _durable.exchange

    def counted_step(*arguments: object, **named: object) -> object:
        count("step")
        return step(*arguments, **named)  # type: ignore[arg-type]  # passed through

    def counted_fsync(descriptor: int) -> None:
        count("write")
        fsync(descriptor)

    def counting(rename: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: object, **named: object) -> None:
            count("write")
            rename(*arguments, **named)

        return counted

    torch.optim.AdamW.step = counted_step  # type: ignore[method-assign,assignment]
    os.fsync = counted_fsync  # type: ignore[assignment]
    for name, rename in renames.items():
        setattr(os, name, counting(rename))
    _durable.exchange = counting(exchange)
    HOOK[0] = lambda epoch, score: count("border")


def _use_few_digits() -> None:
    """Make the stages load a part of the digits, read once before the forks."""
    digits = load_dataset("digits")
    few = Dataset(
        name=digits.name,
        class_names=digits.class_names,
        task=digits.task,
        train=digits.train[:IMAGES],
        val=digits.val[:VAL_IMAGES],
        test=digits.test,
        skipped=(),
    )
    checkpoint.load_dataset = lambda data, options=None: few


def _forked(work: Callable[[], object]) -> int:
    """Run `work` in a child and return its process number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001  # told, and the child ends here whatever it was
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(code)
    return child


def _finish(child: int) -> None:
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise SystemExit(f"a run that was not killed ended with status {status}")


def _weights(folder: Path) -> tuple[str, str]:
    return sha256_of_file(folder / "model.safetensors"), sha256_of_file(folder / "last" / "model.safetensors")


if __name__ == "__main__":
    sys.exit(main())
