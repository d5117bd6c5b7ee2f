"""Every single-bit flip of a manifest, and sampled flips of whole bundles, are refused before any parser meets them.

    python benchmarks/bundle_flips.py                                  all bits of the manifest, 100,000 flips of folder and archive
    python benchmarks/bundle_flips.py --manifest 500 --flips 1000      a sample

Some five minutes on two cores. The bundle is tests/bundles/0.1.0/single.edgebert with a model of `--mib` MiB of random bytes: no model
parser may see it, so it need not be a model. Half of the sampled flips are of the folder's files, SHA256SUMS included, in
proportion to their sizes with a tenth each for SHA256SUMS and the small files; half are of the archive. Each is opened as an
application does, with spies on the runners, on Pillow and on the JSON parser.

A flip of the manifest must reach no parser at all. After any other flip the manifest is intact, its hash is right, and it is
parsed for the sizes that limit what is read of the other files; so there the JSON parser may see these bytes and no other ones, and
the parsers of models and images none.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from edgebert import Classifier
from edgebert.archive import archive_pieces
from edgebert.bundle import parse_json_object, read_bundle
from edgebert.errors import BundleError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from hostile_bundles import rehashed, seed_files, write_folder  # a table that tests share


class Spies:
    """What parsers were called with while a flipped bundle was opened."""

    def __init__(self, manifest: bytes) -> None:
        self.manifest = manifest
        self.intact_manifests = 0
        self.others: list[str] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Replace the parsers."""
        with (
            mock.patch("edgebert.bundle.parse_json_object", self._json),
            mock.patch("edgebert.runtime.choice.open_runner", self._called("a model parser")),
            mock.patch("edgebert.runtime.choice.check_device", self._called("a backend")),
            mock.patch("PIL.Image.open", self._called("the image decoder")),
        ):
            yield

    def _json(self, content: bytes, **limits: object) -> object:
        if content == self.manifest:
            self.intact_manifests += 1
        else:
            self.others.append("the JSON parser, with damaged bytes")
        return parse_json_object(content, **limits)  # type: ignore[arg-type]  # passed on

    def _called(self, who: str) -> Callable[..., None]:
        return lambda *_, **__: self.others.append(who)


def main(arguments: Sequence[str] | None = None) -> int:
    """Flip, open, flip back; print what was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=int, default=0, help="flips of the manifest, evenly spread; 0 is every bit")
    parser.add_argument("--flips", type=int, default=100_000, help="sampled flips of folder and archive")
    parser.add_argument("--mib", type=float, default=0.25, help="size of the model")
    parser.add_argument("--seed", type=int, default=6)
    given = parser.parse_args(arguments)
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="flips-") as scratch:
        files = _files(given.mib, rng)
        folder = write_folder(files, Path(scratch) / "good.edgebert")
        archive = Path(scratch) / "good.zip"
        archive.write_bytes(b"".join(archive_pieces(files)))
        assert read_bundle(folder).files == read_bundle(archive).files
        spies = Spies(files["manifest.json"])
        with spies.watching():
            bits = range(8 * len(files["manifest.json"]))
            chosen = bits if not given.manifest else bits[:: max(1, len(bits) // given.manifest)]
            kept = [_open_flipped(folder, folder / "manifest.json", bit) for bit in chosen]
            parsed = spies.intact_manifests + len(spies.others)
            places = _places(folder, archive, files, given.flips, rng)
            kept += [_open_flipped(path, file, bit) for path, file, bit in places]
    faults = [fault for fault in kept if fault] + [f"reached: {who}" for who in spies.others]
    if parsed:
        faults.append(f"a flipped manifest reached the JSON parser {parsed} times")
    print("\n".join(faults[:40]) or "no fault")
    refused = sum(not fault for fault in kept[: len(chosen)]), sum(not fault for fault in kept[len(chosen) :])
    print(
        f"{refused[0]:,} of {len(chosen):,} single-bit flips of a manifest ({len(bits):,} bits) refused before the JSON parser, "
        f"{refused[1]:,} of {given.flips:,} sampled flips of a bundle of {sum(map(len, files.values())):,} bytes (folder and "
        f"archive) before any parser; {len(spies.others)} calls of a parser with bytes that were not verified"
    )
    return 1 if faults else 0


def _files(mib: float, rng: random.Random) -> dict[str, bytes]:
    """Return the seed's files with a larger model."""
    files = seed_files()
    files["model.onnx"] = rng.randbytes(int(mib * (1 << 20)))
    manifest = json.loads(files["manifest.json"])
    manifest["sizes"]["model.onnx"] = len(files["model.onnx"])
    manifest["made_from"] = hashlib.sha256(files["model.onnx"]).hexdigest()
    files["manifest.json"] = json.dumps(manifest, indent=1, sort_keys=True).encode()
    return rehashed(files)


def _places(
    folder: Path, archive: Path, files: dict[str, bytes], count: int, rng: random.Random
) -> Iterator[tuple[Path, Path, int]]:
    """Yield what to open, which file to flip a bit of, and which."""
    names = sorted(files)
    size = archive.stat().st_size
    heads = size - 2_000  # the directory of the archive
    for number in range(count):
        if number % 2:
            byte = rng.randrange(heads, size) if rng.random() < 0.2 else rng.randrange(size)
            yield archive, archive, 8 * byte + rng.randrange(8)
            continue
        draw = rng.random()
        if draw < 0.1:
            name = "SHA256SUMS"
        elif draw < 0.2:
            name = rng.choice(names)
        else:
            name = rng.choices(names, [len(files[name]) for name in names])[0]
        yield folder, folder / name, rng.randrange(8 * len(files[name]))


def _open_flipped(bundle: Path, file: Path, bit: int) -> str:
    """Return what was wrong with opening a bundle with one bit flipped; empty where it was refused as it must be."""
    place = f"bit {bit} of {file.name}"
    with file.open("r+b", buffering=0) as stream:
        stream.seek(bit // 8)
        (byte,) = stream.read(1)
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ 1 << bit % 8]))
        try:
            Classifier(bundle).close()
        except BundleError:
            return ""
        except Exception as error:  # noqa: BLE001  # whatever else comes out is what this looks for
            return f"{place}: {type(error).__name__}: {error}"[:300]
        finally:
            stream.seek(bit // 8)
            stream.write(bytes([byte]))
    return f"{place}: accepted"


if __name__ == "__main__":
    sys.exit(main())
