"""The device wheel on aarch64, emulated: imports, verifies, predicts, installs, and answers as on x86-64.

    make check-aarch64
    python benchmarks/aarch64_check.py --backend onnxruntime --images 100

Takes Python 3.11 and its libraries for arm64 and qemu's user emulation from Debian's packages, and numpy, Pillow and the backends for
aarch64 from the package index; everything is kept under runs/aarch64, no package is installed, and apt's own state is not
touched. Then, on an x86-64 Debian or Ubuntu computer:

1. trains a `nano` on the digits for a few seconds, and compiles it as FP32 and as INT8 for `cpu` and `intel-cpu`;
2. starts each backend under emulation with the device wheel file on PYTHONPATH and nothing else of edgebert: every module of the
   wheel is imported, the bundle is opened (its hashes and canaries are checked), and test images are answered; a form for
   x86-64 is not for this machine, so that the portable graph must run and say so;
3. installs the bundle with the device's agent, and opens the installation;
4. compares every answer with that of this computer.

About five minutes on two cores the first time, two after that. Prints one line for each backend and bundle and one summary line, and
returns 1 where something differs. It says that the code and the libraries' aarch64 builds agree; it says nothing about speed, and
nothing about a real board's CPU features, which the emulator has in its own selection.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgebert import Classifier
from edgebert.calibration.quantize import QuantizeOptions, int8_graph_from_graph
from edgebert.data import load_dataset
from edgebert.export.compile import CompileOptions, bundle_from_graph
from edgebert.export.graph import graph_from_checkpoint
from edgebert.remote.device_wheel import device_wheel, write_device_wheel
from edgebert.train import TrainOptions, checkpoint_from_data

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "runs/aarch64"
BACKENDS = {"onnxruntime": "cpu", "openvino": "intel-cpu"}  # backend -> the target whose form it runs on x86-64

# python3.11-minimal brings the interpreter, -stdlib what numpy imports besides; libstdc++6 is for the wheels.
DEBIAN = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6")
GLIBC = (36, 35, 34, 31, 28, 27, 26, 17)  # Debian 12 has 2.36; pip wants each that a wheel may name
PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in GLIBC), "manylinux2014_aarch64")
# A Cortex-A76, as in a Raspberry Pi 5, and close to a Jetson Orin's A78AE: with the dot product that INT8 kernels use.
CPU, CPU_PART, CPU_FEATURES = (
    "cortex-a76",
    "0xd0b",
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
)

# Largest difference of a score between the machines. FP32: the order of additions. INT8: a rounding step of one
# activation here and there, since the portable graph has int8 where the x86-64 form has uint8.
TOLERANCE = {"fp32": 1e-4, "int8": 0.05}

CHECK = """
import contextlib, importlib, io, json, logging, platform, sys
from pathlib import Path
said = []
class Keep(logging.Handler):
    def emit(self, record): said.append(record.getMessage())
logging.getLogger("edgebert").addHandler(Keep())
modules, bundle, images, to = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
sys.executable = sys.argv[5]  # this computer cannot start an aarch64 program by itself, as the self-test wants to
failed = {}
for name in modules:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
import edgebert
from edgebert import Classifier
with Classifier(bundle) as classifier:
    answers = classifier.predict_batch(images)
    found = {"target": classifier.target, "backend": classifier.backend, "properties": dict(classifier.properties())}
from edgebert.agent import main
answer = io.StringIO()
with contextlib.redirect_stdout(answer):
    code = main(["install", bundle, "--to", to, "--json"])
with Classifier(Path(to) / "current") as classifier:
    again = classifier.predict_batch(images)
same = [a.scores for a in again] == [a.scores for a in answers]
installed = {"code": code, "same": same, **json.loads(answer.getvalue())}
print(json.dumps({**found, "installed": installed, "machine": platform.machine(), "file": edgebert.__file__, "failed": failed, "said": said,
    "typer": importlib.util.find_spec("typer") is not None,
    "labels": [a.label for a in answers], "scores": [a.scores for a in answers]}))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check and return 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=[*BACKENDS], action="append", help="repeatable; both by default")
    parser.add_argument("--images", type=int, default=200, help="test images that are answered on both machines")
    parser.add_argument("--json", type=Path, help="write what was found")
    given = parser.parse_args(arguments)
    for name in ("apt-get", "dpkg-deb"):
        if shutil.which(name) is None:
            sys.exit(f"`{name}` is not here: the check takes arm64 packages from Debian or Ubuntu")
    FOLDER.mkdir(parents=True, exist_ok=True)
    python = emulated_python()
    wheel = write_device_wheel(FOLDER, force=True)
    bundles, images = made_on_this_computer(given.images)
    found = [
        checked(python, wheel, backend, precision, bundle, images)
        for backend in given.backend or BACKENDS
        for precision, bundle in bundles.items()
    ]
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    passed = sum(not row["wrong"] for row in found)
    worst = max((row["difference"] for row in found), default=0.0)
    print(
        f"aarch64 under emulation: {passed} of {len(found)} pass ({', '.join(dict.fromkeys(row['versions'] for row in found))}); "
        f"{given.images} images each, largest difference of a score {worst:.2g}"
    )
    return 0 if passed == len(found) else 1


def emulated_python() -> list[str]:
    """Return the command that starts Python 3.11 for aarch64; its packages are fetched once."""
    complete = FOLDER / "python.complete"
    root, emulator = FOLDER / "root", FOLDER / "qemu"
    if not complete.exists():
        debs = fetched_packages("arm64", DEBIAN)
        for deb in debs:
            subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
        host = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout
        for deb in fetched_packages(host.strip(), ("qemu-user-static",)):
            subprocess.run(["dpkg-deb", "-x", deb, emulator], check=True)
        _write_cpuinfo(root)
        complete.touch()
    # `-L`: where the emulated program opens /usr/lib/… or its loader, the emulator looks there first.
    start = FOLDER / "python-aarch64"
    emulated = f"{emulator}/usr/bin/qemu-aarch64-static -cpu {CPU} -L {root} {root}/usr/bin/python3.11"
    start.write_text(f'#!/bin/sh\nexec {emulated} "$@"\n', encoding="utf-8")
    start.chmod(0o755)
    return [str(start)]


def _write_cpuinfo(root: Path) -> None:
    """Write the /proc/cpuinfo of the emulated CPU: the emulator passes this computer's on, in which ONNX Runtime finds no
    ARM core, and dies."""
    lines = f"BogoMIPS\t: 50.00\nFeatures\t: {CPU_FEATURES}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    lines += f"CPU variant\t: 0x1\nCPU part\t: {CPU_PART}\nCPU revision\t: 0\n\n"
    path = root / "proc/cpuinfo"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"processor\t: {core}\n{lines}" for core in range(os.cpu_count() or 1)))


def fetched_packages(architecture: str, names: Sequence[str]) -> list[Path]:
    """Download packages and all they depend on with an apt whose state is its own, and return the files."""
    folder = FOLDER / f"apt-{architecture}"
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()  # nothing is installed there, so that every dependency is fetched
    configuration = folder / "apt.conf"
    configuration.write_text(
        f'Dir::State "{folder}/state";\nDir::State::status "{folder}/status";\nDir::Cache "{folder}/cache";\n'
        f'APT::Architecture "{architecture}";\nAPT::Architectures {{ "{architecture}"; }};\n'
        'APT::Install-Recommends "false";\nAcquire::Languages "none";\nAPT::Sandbox::User "";\n',
        encoding="utf-8",
    )
    environment = {**os.environ, "APT_CONFIG": str(configuration), "DEBIAN_FRONTEND": "noninteractive"}
    for command in (("update",), ("--yes", "--download-only", "install", *names)):
        subprocess.run(["apt-get", "--quiet=2", *command], check=True, env=environment, stdout=subprocess.DEVNULL)
    return sorted((folder / "cache/archives").glob("*.deb"))


def site_packages(backend: str) -> Path:
    """Return a folder with numpy, Pillow and one backend for aarch64, fetched once."""
    folder = FOLDER / f"site-{backend}"
    complete = FOLDER / f"site-{backend}.complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        wanted = ["--python-version", "3.11", "--implementation", "cp", "--only-binary", ":all:", "--no-compile"]
        wanted += [f"--platform={platform}" for platform in PLATFORMS]
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--target",
            str(folder),
        ]
        names = ["--constraint", str(ROOT / "constraints.txt"), "numpy", "Pillow", backend]
        subprocess.run([*pip, *wanted, *names], check=True)
        complete.touch()
    return folder


def made_on_this_computer(count: int) -> tuple[dict[str, Path], list[Path]]:
    """Return bundles of a trained `nano` by precision, and test images as files."""
    folder = FOLDER / "made"
    complete = folder / "complete"
    fp32, int8 = folder / "student.onnx", folder / "student.int8.onnx"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        checkpoint_from_data(
            "digits", folder / "student", TrainOptions(model="nano", epochs=12, batch_size=64, learning_rate=4e-3)
        )
        graph_from_checkpoint(folder / "student", fp32)
        int8_graph_from_graph(fp32, "digits", int8, QuantizeOptions(images=64, effort="fast"))
        complete.touch()
    bundles = {"fp32": folder / "fp32.edgebert", "int8": folder / "int8.edgebert"}
    for precision, graph in (("fp32", fp32), ("int8", int8)):
        bundle_from_graph(graph, bundles[precision], CompileOptions(targets=tuple(BACKENDS.values()), force=True))
    images = folder / "images"
    images.mkdir(exist_ok=True)
    files = []
    for number, example in enumerate(load_dataset("digits").test[:count]):
        files.append(images / f"{number}.png")
        Image.fromarray(example.load()).save(files[-1])
    return bundles, files


def checked(
    python: list[str], wheel: Path, backend: str, precision: str, bundle: Path, images: list[Path]
) -> dict[str, Any]:
    """Run one backend with one bundle under emulation, print its line, and return what was found and what was wrong."""
    with Classifier(bundle, target=BACKENDS[backend]) as classifier:
        expected = classifier.predict_batch(images)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(FOLDER / "home"),
        "PYTHONPATH": f"{wheel}:{site_packages(backend)}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    modules = json.dumps(list(device_wheel().modules))
    command = [*python, "-c", CHECK, modules, str(bundle), json.dumps([str(image) for image in images])]
    to = FOLDER / "installed"
    shutil.rmtree(to, ignore_errors=True)
    ran = subprocess.run(
        [*command, str(to), *python],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=900,
        cwd=FOLDER,
    )
    row: dict[str, Any] = {"backend": backend, "precision": precision, "versions": backend, "difference": 0.0}
    if ran.returncode:
        row["wrong"] = [f"exit code {ran.returncode}: {ran.stderr.strip()[-600:]}"]
    else:
        answer = json.loads(ran.stdout)
        scores, here = np.array(answer["scores"]), np.array([prediction.scores for prediction in expected])
        row["difference"] = float(np.abs(scores - here).max())
        row["versions"] = f"{backend} {answer['properties'].get('version', '')}".strip()
        row["target"], row["said"] = answer["target"], answer["said"]
        row["wrong"] = _what_is_wrong(answer, wheel, [prediction.label for prediction in expected], row)
    print(
        f"{backend} {precision}: "
        + (
            "; ".join(row["wrong"])
            or f"ok, installed, runs `{row['target']}`, scores within {row['difference']:.2g} of x86-64's"
        )
        + (f"; said: {row['said']}" if row.get("said") else ""),
        flush=True,
    )
    return row


def _what_is_wrong(answer: dict[str, Any], wheel: Path, labels: list[str], row: dict[str, Any]) -> list[str]:
    wrong = []
    if answer["machine"] != "aarch64" or not answer["file"].startswith(str(wheel)) or answer["typer"]:
        wrong.append(f"ran on {answer['machine']} from {answer['file']}, typer there: {answer['typer']}")
    installed = answer["installed"]
    if installed["code"] or not installed.get("self_test") or not installed["same"]:
        wrong.append(f"the agent's installation: {installed}")
    if answer["failed"]:
        wrong.append(f"modules that do not import: {answer['failed']}")
    other = sum(there != here for there, here in zip(answer["labels"], labels, strict=True))
    if other:
        wrong.append(f"{other} of {len(labels)} labels differ")
    if row["difference"] > TOLERANCE[row["precision"]]:
        wrong.append(f"a score differs by {row['difference']:.3g}, more than {TOLERANCE[row['precision']]}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
