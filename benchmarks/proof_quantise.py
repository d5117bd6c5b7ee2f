"""The list that quantisation stands by: one line for each item with its figure, and docs/proofs/quantise.md.

    make proof-quantise DATA=FOLDER        FOLDER holds fashion_mnist/ and bccd_cells/
    python benchmarks/proof_quantise.py FOLDER --only memory

Long: two hours on two cores, the students' trainings included, which are kept under runs/proof-quantise/graphs and
reused. `--keep` takes what earlier calls found (`_proof.py`). Returns 1 where an item fails.
"""

from __future__ import annotations

import sys

from _proof import Item, Proof

GRAPHS = ("--output", "{folder}/graphs")

ITEMS = (
    Item(
        "peers",
        "on the same FP32 graphs (digits, Fashion-MNIST, blood cells at 224 px; a ViT-S/16-224 shape for latency) edgebert is at least as good as NNCF's defaults and ONNX Runtime's static quantiser in KL and agreement on test images, within the paired interval, and not slower than NNCF in OpenVINO by more than 3 % where NNCF agrees as well",
        ("benchmarks/quantisation.py", "{data}", *GRAPHS),
    ),
    Item(
        "drop",
        "the Fashion-MNIST student on 10,000 test images: at most 0.10 points lost and at least 99.5 % decided alike as quantised, nothing lost (within the interval) after quantisation-aware distillation",
        ("benchmarks/int8_drop.py", "{data}", *GRAPHS, "--json", "{json}"),
    ),
    Item(
        "outliers",
        "with LayerNorm gammas times 50 in four channels and the next weights divided (FP32 answers unchanged) the defaults lose at most 0.5 points; plain min-max is shown beside",
        ("benchmarks/outliers.py", "{data}", *GRAPHS, "--json", "{json}"),
    ),
    Item(
        "memory",
        "10,000 calibration images need at most 10 % more memory than 500",
        ("benchmarks/calibration_memory.py", "{data}", *GRAPHS, "--json", "{json}"),
    ),
    Item(
        "refusals",
        "constant images, all-black images, noise, one class only, ten images and NaN activations each get their own clear refusal",
        ("benchmarks/refused_calibrations.py", "--json", "{json}"),
    ),
    Item(
        "audit",
        "the audit finds planted duplicates, a planted class hole and a planted brightness shift",
        ("-m", "pytest", "-v", "--no-header", "tests/calibration/test_audit.py", "-k", "finds"),
    ),
    Item(
        "guard",
        "the guard puts layers back into float until the promise holds; where it cannot hold, exit 1 and the best graph kept aside",
        ("-m", "pytest", "-v", "--no-header", "tests/calibration", "-k", "guard"),
    ),
    Item(
        "instructions",
        "without VNNI or AMX (emulated) 8-bit weights saturate and 7-bit ones do not; the runtime warns",
        (
            "-m",
            "pytest",
            "-v",
            "--no-header",
            "tests/export/test_seven_bit.py",
            "tests/runtime/test_instructions.py",
            "tests/runtime/test_classifier.py",
            "-k",
            "seven or bits or saturat",
        ),
    ),
)

PROOF = Proof(
    name="quantise",
    title="quantisation",
    items=ITEMS,
    packages=("onnx", "onnxruntime", "openvino", "nncf", "torch"),
)

if __name__ == "__main__":
    sys.exit(PROOF.run(__doc__))
