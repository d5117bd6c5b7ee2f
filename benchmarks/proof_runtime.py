"""Hold the runtime and the bundle against their list, one line and one verdict for each item, and write docs/proofs/runtime.md.

    make proof-runtime                     # three hours on two quiet cores; strace, root for the power cuts
    python benchmarks/proof_runtime.py --only overhead
    python benchmarks/proof_runtime.py --keep          # go on where an earlier call was interrupted

Expected: PASS for each. What it does not say: anything of a GPU, an NPU or a Jetson, and nothing of a power cut on a disk whose own
cache lies.
"""

from __future__ import annotations

import sys

from _proof import Item, Proof

ITEMS = (
    Item(
        "threads",
        "8 threads x 60 s x each backend, through predict, predict_batch and submit: 0 wrong answers, 0 arrays changed",
        ("benchmarks/runtime_soak.py", "threads"),
    ),
    Item(
        "swaps",
        "1,000 swaps under load for each backend: 0 failed, 0 mixed answers, memory flat (at most 2 % of the resident set, one thread a model, after 500 more to warm up)",
        ("benchmarks/runtime_soak.py", "swaps"),
    ),
    Item(
        "leaks",
        "10^6 inferences of a small model for each backend: at most 1 MB growth after warm-up; 10^5 failing calls: none",
        ("benchmarks/runtime_soak.py", "leaks"),
    ),
    Item(
        "overhead",
        "predict(array) over the bare backend call with the same input, interleaved: at most 3 % or 40 microseconds p50, bundles of 1 ms and more",
        ("benchmarks/runtime_overhead.py", "--json", "{json}"),
    ),
    Item(
        "submit",
        "submit under 8 clients: at least 95 % of the best offline throughput that the harness finds, bundles of 5 ms and more",
        ("benchmarks/submit_throughput.py", "--json", "{json}"),
    ),
    Item(
        "start",
        "process start to first prediction of an OpenVINO bundle: at most 2 times import, read and compile of the same IR",
        ("benchmarks/start_time.py", "--json", "{json}"),
    ),
    Item(
        "kills-compile",
        "SIGKILL and SIGINT at every state-changing system call of the writing phase of compile: 0 torn or mixed, the next call needs no manual step",
        ("benchmarks/kill_sweep.py", "--command", "compile", "--keep", "{json}"),
    ),
    Item(
        "kills-quantize",
        "SIGKILL and SIGINT at every state-changing system call of the writing phase of quantize: 0 torn or mixed, the next call needs no manual step",
        ("benchmarks/kill_sweep.py", "--command", "quantize", "--keep", "{json}"),
    ),
    Item(
        "kills-install",
        "SIGKILL and SIGINT at every state-changing system call of the writing phase of install: 0 torn or mixed, the next call needs no manual step",
        ("benchmarks/kill_sweep.py", "--command", "install", "--keep", "{json}"),
    ),
    Item(
        "fault-mutants",
        "the same sweeps find writers that were given a fault",
        ("benchmarks/kill_sweep.py", "--mutants"),
    ),
    Item(
        "install-kills",
        "install killed 1,000 times at random moments: 0 torn; 100 double starts: one winner each",
        ("benchmarks/install_kills.py", "tests/bundles/0.1.0/single.edgebert"),
    ),
    Item(
        "locks",
        "compile and quantize started twice at once, 100 times: one winner each, a killed holder blocks nobody",
        ("benchmarks/lock_races.py",),
    ),
    Item(
        "power-cuts",
        "the power cut 300 times while install replaces a bundle (loop-mounted ext4): 0 torn",
        ("benchmarks/power_cuts.py", "--cuts", "300"),
    ),
    Item(
        "power-mutant",
        "the same cuts find an installer without fsync",
        ("benchmarks/power_cuts.py", "--cuts", "40", "--longest", "3", "--mutant"),
    ),
    Item(
        "disk-full-compile",
        "every write of compile fails (ENOSPC, EDQUOT, EIO, EROFS, file size, small disk): exit 74, the old artefact bit-equal",
        ("benchmarks/disk_full.py", "--command", "compile"),
    ),
    Item(
        "disk-full-quantize",
        "every write of quantize fails (ENOSPC, EDQUOT, EIO, EROFS, file size, small disk): exit 74, the old artefact bit-equal",
        ("benchmarks/disk_full.py", "--command", "quantize"),
    ),
    Item(
        "disk-full-install",
        "every write of install fails (ENOSPC, EDQUOT, EIO, EROFS, file size, small disk): exit 74, the old artefact bit-equal",
        ("benchmarks/disk_full.py", "--command", "install"),
    ),
    Item(
        "flips",
        "every single-bit flip of a manifest and 100,000 sampled flips of a bundle: refused before any parser",
        ("benchmarks/bundle_flips.py",),
    ),
    Item(
        "hostile",
        "a corpus of at least 80 hostile bundles: 0 accepted, 0 file accesses outside",
        ("benchmarks/hostile_bundles.py",),
    ),
    Item(
        "fuzzing",
        "fuzzing (hypothesis, atheris where installed, our mutator) only ever raises BundleError",
        ("benchmarks/fuzz_bundles.py", "--seconds", "150"),
    ),
    Item(
        "images",
        "a corpus of at least 150 image files: the documented pixels or a typed refusal, the same in training, calibration, bench and runtime",
        ("benchmarks/image_corpus_check.py",),
    ),
    Item(
        "image-fuzzing",
        "1,000,000 mutated images: pixels or a typed refusal, the parent never dies",
        ("benchmarks/image_mutations.py",),
    ),
    Item(
        "audit",
        "the whole test suite, slow tests too, under an audit hook: nothing unpickled or executed from a file or a peer, no connection beyond the loopback, no write outside declared folders",
        ("benchmarks/audited_suite.py",),
    ),
    Item(
        "phones-home",
        "the whole way without pytest, under strace and without a network: no call leaves this computer",
        ("benchmarks/phones_home.py",),
    ),
)

PROOF = Proof(
    name="runtime",
    title="the runtime and the bundle",
    items=ITEMS,
    packages=("numpy", "Pillow", "onnxruntime", "openvino"),
)

if __name__ == "__main__":
    sys.exit(PROOF.run(__doc__))
