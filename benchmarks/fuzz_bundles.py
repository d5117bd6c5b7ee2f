"""Fuzzing of everything that reads a bundle: whatever bytes it is given, it answers or raises `BundleError`.

    python benchmarks/fuzz_bundles.py                           a minute with every engine that is installed
    python benchmarks/fuzz_bundles.py --seconds 3600            an hour
    python benchmarks/fuzz_bundles.py --engine atheris --runs 10000000
    python benchmarks/fuzz_bundles.py --replay FILE             one input that was found

Engines: `atheris` (guided by coverage; `pip install atheris`), `hypothesis` (structured manifests and folders) and `mutator` (ours, a
fixed seed; needs nothing). `every` takes those that are installed, one after the other, and says which; time is shared. The first
byte of an input says what the rest is:

    0  a manifest, rightly hashed        1  SHA256SUMS        2  an archive        3  what is done to a folder's files
    4  edits of a parsed manifest, rightly hashed

What must hold of each input: `read_bundle` returns or raises `BundleError`; an archive that is accepted is byte for byte what
`edgebert pack` writes; a manifest that is accepted is written and read again as the same; it takes at most `--limit` seconds of
processor time; and the process never has more than `--mib` of memory. An input that breaks one is kept in `--findings`.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import hashlib
import importlib.util
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ENGINES = ("atheris", "hypothesis", "mutator")
KINDS = 5
_SCRATCH = (
    Path("/dev/shm") if Path("/dev/shm").is_dir() else None
)  # memory, where there is such a place: only the reader counts

sys.path.insert(0, str(ROOT / "tests"))

# Numbers, texts and trees that break readers.
_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**53, 2**63, 10**39, 1e308, -0.0, 0.5, "", "x", "\0", "\x1b[2J", "\ud800", "é" * 50, "../x", "/etc/passwd",
    "model.onnx", [], [[]], {}, {"": 0}, ["x"] * 100, "9" * 50, "openvino", "cpu", "edgebert.bundle/2", "multi-label", "crop",
)  # fmt: skip
_TOKENS = (
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\u0000", b"\\ud800", b"NaN", b"1e999", b"-", b"null", b"true", b"\xff", b"\xef\xbb\xbf",
    b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"../", b"\n", b"  ", b"0" * 64, b"[" * 200, b'{"a":' * 40, b"9" * 45,
)  # fmt: skip


@dataclass
class Fuzzer:
    """One check for all engines, and what it has seen.

    Attributes:
        limit: seconds of processor time that an input may take.
        findings: the folder that inputs go to which break what must hold.
        scratch: a folder to write bundles to.
    """

    limit: float
    findings: Path
    scratch: Path
    runs: int = 0
    accepted: int = 0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        from hostile_bundles import seed_files

        self._files = seed_files()
        self._manifest = json.loads(self._files["manifest.json"])

    def check(self, data: bytes) -> None:
        """Read what an input means, and keep it where something does not hold."""
        from edgebert.errors import BundleError

        path = self._written(data)
        if path is None:
            return
        self.runs += 1
        started = time.process_time()
        fault = ""
        try:
            self._read(path)
            self.accepted += 1
        except BundleError:
            pass
        except Exception as error:  # noqa: BLE001  # whatever else comes out is what this looks for
            fault = f"{type(error).__name__}: {error}"[:300]
        seconds = time.process_time() - started
        self.slowest = max(self.slowest, seconds)
        if seconds > self.limit:
            fault = f"took {seconds:.2f} s"
        if fault:
            self._keep(data, fault)

    def _keep(self, data: bytes, fault: str) -> None:
        self.findings.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(data).hexdigest()[:16]
        (self.findings / name).write_bytes(data)
        self.faults.append(f"{name}: {fault}")

    def _read(self, path: Path) -> None:
        """Read a bundle; what is accepted must be canonical."""
        from edgebert._json import dump_json, parse_json_object
        from edgebert.archive import archive_pieces
        from edgebert.bundle import read_bundle
        from edgebert.manifest import Manifest

        bundle = read_bundle(path)
        if path.suffix == ".zip":
            assert b"".join(archive_pieces(bundle.all_files())) == path.read_bytes(), "an archive that is not canonical"
        again = Manifest.from_json(parse_json_object(dump_json(bundle.manifest.to_json()), what="it"), what="it")
        assert again == bundle.manifest, "a manifest that is read differently when written again"

    def _written(self, data: bytes) -> Path | None:
        """Write what an input means; None for one that means nothing."""
        from hostile_bundles import rehashed

        from edgebert.archive import archive_pieces

        if not data:
            return None
        kind, rest = data[0] % KINDS, data[1:]
        if kind == 3:
            return self._folder(rest)
        if kind == 2:
            content = rest
        elif kind == 1:
            content = b"".join(archive_pieces({**self._files, "SHA256SUMS": rest}))
        else:
            manifest = rest if kind == 0 else self._edited(rest)
            content = b"".join(archive_pieces(rehashed({**self._files, "manifest.json": manifest})))
        path = self.scratch / "fuzzed.zip"
        path.write_bytes(content)
        return path

    def _edited(self, choices: bytes) -> bytes:
        """Return the manifest with some of its values replaced, removed or added, as the bytes choose."""
        manifest = json.loads(json.dumps(self._manifest))
        for start in range(0, min(len(choices), 24) - 2, 3):
            where, what, deep = choices[start : start + 3]
            self._edit_one(manifest, where, what, deep)
        return json.dumps(manifest).encode()

    def _edit_one(self, at: Any, where: int, what: int, deep: int) -> None:
        for level in range(deep % 7):
            inside = list(at.values()) if isinstance(at, dict) else at
            inner = [value for value in inside if isinstance(value, (dict, list)) and value]
            if not inner:
                break
            at = inner[(where >> level) % len(inner)]
        keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = keys[where % len(keys)]
        if what >= 250:
            del at[key]
        elif what >= 240 and isinstance(at, dict):
            at[f"new{what}"] = copy.deepcopy(_ODD[where % len(_ODD)])
        else:
            at[key] = copy.deepcopy(_ODD[what % len(_ODD)])

    def _folder(self, choices: bytes) -> Path:
        """Write the good folder and spoil it as the bytes choose."""
        from hostile_bundles import write_folder

        folder = self.scratch / "fuzzed.edgebert"
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(self._files, folder)
        for start in range(0, min(len(choices), 18) - 2, 3):
            self._spoil(folder, *choices[start : start + 3])
        return folder

    def _spoil(self, folder: Path, action: int, which: int, value: int) -> None:
        # No pipes, which an earlier action may have made: whoever opens one waits for ever.
        entries = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_dir())
        if not entries:
            return
        path = entries[which % len(entries)]
        actions: tuple[Callable[[], object], ...] = (
            lambda: path.unlink(),
            lambda: os.truncate(path, value * value),
            lambda: path.write_bytes(path.read_bytes() + bytes([value])),
            lambda: path.rename(path.with_name(f"{path.name}{chr(value)}")),
            lambda: (path.unlink(), path.symlink_to(entries[value % len(entries)].name)),
            lambda: (path.unlink(), os.mkfifo(path)),
            lambda: (path.parent / f"new{value}").mkdir(),
            lambda: (path.parent / os.fsdecode(bytes([value or 1]).replace(b"/", b"_"))).touch(),
            lambda: path.chmod(value),
            lambda: (path.unlink(), path.mkdir()),
            lambda: (path.unlink(), path.hardlink_to(entries[value % len(entries)])),
            lambda: path.write_bytes(b"signed") if value % 2 else _sign(folder, b"s" * value),
        )
        try:
            actions[action % len(actions)]()
        except (OSError, ValueError):  # not every action is possible everywhere
            return

    def seeds(self) -> list[bytes]:
        """Return good inputs of each kind."""
        from edgebert.archive import archive_pieces

        archive = b"".join(archive_pieces(self._files))
        contents = (self._files["manifest.json"], self._files["SHA256SUMS"], archive, b"\x0b\0\0", b"\0\xf1\0")
        return [bytes([kind]) + content for kind, content in enumerate(contents)]


def _sign(folder: Path, signature: bytes) -> None:
    path = folder / "SHA256SUMS.sig"
    path.unlink(missing_ok=True)
    path.write_bytes(signature)


_MOST_KEPT = 256  # mutated inputs to mutate further; 64 KiB each at most, since memory is looked at


def run_mutator(fuzzer: Fuzzer, seconds: float, runs: int, seed: int) -> None:
    """Mutate the seeds, and what was made of them, at random."""
    rng = random.Random(seed)
    pool = fuzzer.seeds()
    until = time.monotonic() + seconds
    for _ in range(runs):
        if time.monotonic() > until:
            return
        data = bytearray(rng.choice(pool))
        for _ in range(rng.randint(1, 6)):
            _mutate(data, pool, rng)
        fuzzer.check(bytes(data))
        if data and rng.random() < 0.02:
            made = bytes(data[: 1 << 16])
            if len(pool) < _MOST_KEPT:
                pool.append(made)
            else:
                pool[rng.randrange(len(fuzzer.seeds()), _MOST_KEPT)] = made


def _mutate(data: bytearray, pool: Sequence[bytes], rng: random.Random) -> None:
    place = rng.randrange(len(data) + 1)
    draw = rng.randrange(8)
    if draw == 0 and data:
        data[place % len(data)] ^= 1 << rng.randrange(8)
    elif draw == 1 and data:
        data[place % len(data)] = rng.randrange(256)
    elif draw == 2:
        del data[place : place + rng.randint(1, 40)]
    elif draw == 3:
        data[place:place] = rng.choice(_TOKENS)
    elif draw == 4:
        other = rng.choice(pool)
        start = rng.randrange(len(other))
        data[place:place] = other[start : start + rng.randint(1, 200)]
    elif draw == 5:
        data[place:place] = data[place : place + rng.randint(1, 200)]
    elif draw == 6:
        data[place:place] = json.dumps(rng.choice(_ODD)).encode()
    else:
        data[place:place] = rng.randbytes(rng.randint(1, 8))


def run_hypothesis(fuzzer: Fuzzer, seconds: float, runs: int, seed: int) -> None:
    """Draw manifests as trees, folders as lists of actions, and edits of the good manifest."""
    import hypothesis
    from hypothesis import strategies as st

    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(_ODD),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
        max_leaves=20,
    )
    fields = sorted(fuzzer._manifest)
    trees = st.builds(
        lambda changes: {**fuzzer._manifest, **changes}, st.dictionaries(st.sampled_from(fields), values, max_size=4)
    )
    inputs = st.one_of(
        trees.map(lambda tree: b"\0" + json.dumps(tree).encode()),
        st.binary(max_size=24).map(lambda data: b"\x03" + data),
        st.binary(max_size=24).map(lambda data: b"\x04" + data),
        st.binary(max_size=2_000).map(lambda data: b"\x02" + data),
        st.text(max_size=500).map(lambda text: b"\x01" + text.encode("utf-8", "replace")),
    )
    until = time.monotonic() + seconds
    done = 0
    while done < runs and time.monotonic() < until:
        examples = min(200, runs - done)

        @hypothesis.seed(seed + done)
        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )
        @hypothesis.given(inputs)
        def check(data: bytes) -> None:
            fuzzer.check(data)

        check()
        done += examples


def run_atheris(fuzzer: Fuzzer, seconds: float, runs: int, seed: int) -> None:
    """Let libFuzzer choose inputs by what code they reach; it ends the process, so it runs in one of its own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        corpus, said = Path(folder) / "corpus", Path(folder) / "said.json"
        corpus.mkdir()
        for number, data in enumerate(fuzzer.seeds()):
            (corpus / str(number)).write_bytes(data)
        words = Path(folder) / "words.txt"
        words.write_text("".join(f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in token)}"\n' for token in _TOKENS))
        command = [
            sys.executable, __file__, "--child", str(said), "--limit", str(fuzzer.limit), "--findings", str(fuzzer.findings),
            "--", str(corpus), f"-max_total_time={max(1, int(seconds))}", f"-runs={runs}", f"-seed={seed}", f"-dict={words}",
            "-max_len=40000", "-rss_limit_mb=1024", "-timeout=20", f"-artifact_prefix={fuzzer.findings}/crash-",
        ]  # fmt: skip
        fuzzer.findings.mkdir(parents=True, exist_ok=True)
        ran = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=seconds + 600
        )
        if ran.returncode != 0 or not said.exists():
            fuzzer.faults.append(f"atheris ended with {ran.returncode}: {ran.stderr[-500:]}")
            return
        told = json.loads(said.read_text())
        fuzzer.runs += told["runs"]
        fuzzer.accepted += told["accepted"]
        fuzzer.slowest = max(fuzzer.slowest, told["slowest"])
        fuzzer.faults += told["faults"]


def _atheris_child(fuzzer: Fuzzer, said: Path, arguments: Sequence[str]) -> None:
    """Run libFuzzer; what was seen is written every hundred runs, since it never returns."""
    import atheris

    with atheris.instrument_imports(include=["edgebert"]):
        import edgebert.archive
        import edgebert.bundle
        import edgebert.manifest  # noqa: F401  # instrumented by being imported here

    def one_input(data: bytes) -> None:
        before = len(fuzzer.faults)
        fuzzer.check(data)
        if fuzzer.runs % 100 == 0 or len(fuzzer.faults) > before:
            _tell(fuzzer, said)

    atexit.register(_tell, fuzzer, said)
    atheris.Setup([sys.argv[0], *arguments], one_input)
    atheris.Fuzz()


def _tell(fuzzer: Fuzzer, said: Path) -> None:
    told = {"runs": fuzzer.runs, "accepted": fuzzer.accepted, "slowest": fuzzer.slowest, "faults": fuzzer.faults}
    said.with_suffix(".new").write_text(json.dumps(told))
    said.with_suffix(".new").replace(said)


_RUNS: dict[str, Callable[[Fuzzer, float, int, int], None]] = {
    "atheris": run_atheris,
    "hypothesis": run_hypothesis,
    "mutator": run_mutator,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all engines together")
    parser.add_argument("--runs", type=int, default=1 << 31, help="of each engine, at most")
    parser.add_argument("--engine", choices=("every", *ENGINES), default="every")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--limit", type=float, default=1.0, help="seconds of processor time for an input")
    parser.add_argument("--mib", type=float, default=256.0, help="of memory, for a process; the engines keep about 100")
    parser.add_argument("--findings", type=Path, default=ROOT / "runs" / "fuzz-findings")
    parser.add_argument("--replay", type=Path, help="one input, and nothing else")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_SCRATCH) as scratch:
        fuzzer = Fuzzer(limit=given.limit, findings=given.findings, scratch=Path(scratch))
        if given.child is not None:
            _atheris_child(fuzzer, given.child, given.rest)
        if given.replay is not None:
            fuzzer.check(given.replay.read_bytes())
            print("\n".join(fuzzer.faults) or "no fault")
            return 1 if fuzzer.faults else 0
        here = [name for name in ENGINES if name == "mutator" or importlib.util.find_spec(name) is not None]
        chosen = here if given.engine == "every" else [given.engine]
        told = []
        for name in chosen:
            before = fuzzer.runs
            _RUNS[name](fuzzer, given.seconds / len(chosen), given.runs, given.seed)
            told.append(f"{name} {fuzzer.runs - before:,}")
    usage = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    if usage > given.mib:
        fuzzer.faults.append(f"{usage:.0f} MiB of memory")
    print("\n".join(fuzzer.faults[:40]) or "no fault")
    absent = [name for name in ENGINES if name not in here]
    print(
        f"{fuzzer.runs:,} inputs ({', '.join(told)}{'; not installed: ' + ', '.join(absent) if absent else ''}): "
        f"{fuzzer.accepted:,} accepted, {len(fuzzer.faults)} broke something; the slowest took {fuzzer.slowest:.2f} s, memory {usage:.0f} MiB"
    )
    return 1 if fuzzer.faults or not fuzzer.runs else 0


if __name__ == "__main__":
    sys.exit(main())
