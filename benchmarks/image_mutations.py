"""Decodes mutated images in a child with limited memory: pixels or a typed refusal, and the parent never dies.

    python benchmarks/image_mutations.py                      1,000,000 decodes, about 10 minutes on two cores
    python benchmarks/image_mutations.py --decodes 3000       the tests' short form

Each decode takes a file of the corpus (tests/image_corpus.py), changes bits, bytes, lengths or the order of its parts, mends the PNG
checksums half of the time so that the change reaches the decoder behind them, and gives it to `edgebert.preprocess.decode_image`.
`ImageError` and pixels of uint8 (height, width, 3) are right; any other exception, a warning, a decode of more than ten seconds or
the death of the child is wrong. A child has 1 GiB of address space and one seed, is replaced where it dies, and names the decode it
died of: seed and number give the same bytes again (`--replay SEED:NUMBER FILE` writes them).

The last line is the summary; returns 1 where one decode went wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
MEMORY = 1 << 30
LARGEST = 16 << 10  # bytes of a file that is mutated; what is interesting about larger ones is their size
SLOW_SECONDS = 10.0
CHUNK = 50_000  # decodes of one child


def main(arguments: list[str] | None = None) -> int:
    """Run the children, print what they found, and return 0 where nothing went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decodes", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--children", type=int, default=len(os.sched_getaffinity(0)), help="at a time")
    parser.add_argument("--json", type=Path, help="write the result there as well")
    parser.add_argument("--plant", choices=["untyped", "death"], help="a fault that must be found")
    parser.add_argument("--replay", nargs=2, metavar=("SEED:NUMBER", "FILE"), help="write one mutated file")
    parser.add_argument("--child", nargs=2, type=int, metavar=("SEED", "DECODES"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        return _child(*given.child, plant=given.plant)
    if given.replay:
        seed, number = map(int, given.replay[0].split(":"))
        Path(given.replay[1]).write_bytes(mutated(_originals(), seed, number))
        return 0
    return _parent(given)


def _parent(given: argparse.Namespace) -> int:
    started = time.monotonic()
    total: Counter[str] = Counter()
    faults: list[str] = []
    waiting = [
        (given.seed * 1000 + number, min(CHUNK, given.decodes - at))
        for number, at in enumerate(range(0, given.decodes, CHUNK))
    ]
    running: dict[subprocess.Popen[str], tuple[int, int]] = {}
    while waiting or running:
        while waiting and len(running) < given.children:
            seed, decodes = waiting.pop(0)
            running[_start(seed, decodes, given.plant)] = (seed, decodes)
        process = next(iter(running))
        said, _ = process.communicate()
        seed, decodes = running.pop(process)
        _count(total, faults, said, process.returncode, seed)
        print(
            f"seed {seed}: {total['decodes']:,} decodes, {total['refused']:,} refused, {len(faults)} faults", flush=True
        )
    for fault in faults[:50]:
        print(fault)
    seconds = time.monotonic() - started
    result = {name: total[name] for name in ("decodes", "decoded", "refused", "untyped", "warned", "slow", "deaths")}
    if given.json:
        given.json.write_text(
            json.dumps({**result, "faults": faults, "seconds": seconds}, indent=1) + "\n", encoding="utf-8"
        )
    wrong = result["untyped"] + result["warned"] + result["slow"] + result["deaths"]
    print(
        f"{result['decodes']:,} mutated decodes in {seconds:.0f} s: {result['decoded']:,} gave pixels, {result['refused']:,} a typed "
        f"refusal, {result['untyped']} another error, {result['warned']} a warning, {result['slow']} took over {SLOW_SECONDS:.0f} s, "
        f"{result['deaths']} killed a child of {MEMORY >> 20} MiB"
    )
    return 1 if wrong or result["decodes"] < given.decodes else 0


def _start(seed: int, decodes: int, plant: str | None) -> subprocess.Popen[str]:
    planted = ["--plant", plant] if plant else []
    command = [sys.executable, str(Path(__file__)), "--child", str(seed), str(decodes), *planted]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _count(total: Counter[str], faults: list[str], said: str, code: int, seed: int) -> None:
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    for line in lines:
        total.update(line["counts"])
        faults += line["faults"]
    if code:
        total["deaths"] += 1
        last = lines[-1]["at"] if lines else 0
        faults.append(f"seed {seed}: the child ended with {code} after decode {last}")


def _child(seed: int, decodes: int, *, plant: str | None) -> int:
    """Decode, and say what came out: one line of JSON for every thousand, so that little is lost with a death."""
    sys.path.insert(0, str(ROOT))
    from edgebert.errors import ImageError
    from edgebert.preprocess import decode_image

    originals = _originals()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("error")
    counts: Counter[str] = Counter()
    faults: list[str] = []
    for number in range(decodes):
        content = mutated(originals, seed, number)
        began = time.monotonic()
        counts["decodes"] += 1
        try:
            if plant and number % 100 == 99:
                _fault(plant)
            image = decode_image(content)
            counts["decoded" if image.ndim == 3 and image.dtype == "uint8" else "untyped"] += 1
        except ImageError:
            counts["refused"] += 1
        except Warning as warning:
            counts["warned"] += 1
            faults.append(f"{seed}:{number} warned: {warning!r:.200}")
        except BaseException as error:  # noqa: BLE001  (any other is what is looked for)
            counts["untyped"] += 1
            faults.append(f"{seed}:{number} raised {error!r:.200}")
        if time.monotonic() - began > SLOW_SECONDS:
            counts["slow"] += 1
            faults.append(f"{seed}:{number} took {time.monotonic() - began:.0f} s")
        if number % 1000 == 999 or number == decodes - 1:
            print(json.dumps({"at": number, "counts": counts, "faults": faults}), flush=True)
            counts.clear()
            faults.clear()
    return 0


def _fault(plant: str) -> None:
    if plant == "death":
        os.kill(os.getpid(), 9)
    raise RuntimeError("planted")


def _originals() -> list[bytes]:
    """Return the files that are mutated: those that are accepted four times over, since most mutations break a file."""
    sys.path.insert(0, str(ROOT))
    from tests.image_corpus import CORPUS, Refused

    files = [(case.make(), 1 if isinstance(case.expected(), Refused) else 4) for case in CORPUS]
    return [content for content, times in files for _ in range(times) if 0 < len(content) <= LARGEST]


def mutated(originals: list[bytes], seed: int, number: int) -> bytes:
    """Return the bytes of one decode; the same for the same arguments."""
    generator = random.Random(seed * 1_000_003 + number)
    content = bytearray(generator.choice(originals))
    for _ in range(generator.choice((1, 1, 1, 2, 4, 16))):
        _mutate(content, generator)
    if content.startswith(b"\x89PNG\r\n\x1a\n") and generator.random() < 0.5:
        return _with_right_checksums(bytes(content))
    return bytes(content)


def _mutate(content: bytearray, generator: random.Random) -> None:
    if not content:
        return
    # Headers are short and decide most, so half of the changes hit the first 64 bytes.
    at = generator.randrange(min(len(content), 64) if generator.random() < 0.5 else len(content))
    kind = generator.randrange(8)
    if kind == 0:
        content[at] ^= 1 << generator.randrange(8)
    elif kind == 1:
        content[at] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
    elif kind == 2:
        value = generator.choice((0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, generator.randrange(2**32)))
        content[at : at + 4] = struct.pack(generator.choice((">I", "<I")), value)
    elif kind == 3:
        del content[at : at + generator.choice((1, 2, 4, 16, 256))]
    elif kind == 4:
        content[at:at] = generator.randbytes(generator.choice((1, 2, 4, 64)))
    elif kind == 5:
        del content[at:]
    elif kind == 6:
        other = generator.randrange(len(content))
        content[at:at] = content[other : other + generator.choice((4, 12, 64))]
    else:
        content[at : at + 16] = generator.randbytes(len(content[at : at + 16]))


def _with_right_checksums(content: bytes) -> bytes:
    parts, at = [content[:8]], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        body = content[at + 4 : at + 8 + length]
        if at + 12 + length > len(content):
            break
        parts.append(content[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + length
    return b"".join((*parts, content[at:]))


if __name__ == "__main__":
    sys.exit(main())
