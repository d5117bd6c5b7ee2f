"""The list that the distillation stands by: one line for each item with its figure, and docs/proofs/distil.md.

    make proof-distil DATA=FOLDER          FOLDER holds fashion_mnist/ and bccd_cells/
    python benchmarks/proof_distil.py FOLDER --only memory

Long: an hour and more on two cores. `--keep` takes what earlier calls found (`_proof.py`). Returns 1 where an item fails.
"""

from __future__ import annotations

import sys

from _proof import Item, Proof

ITEMS = (
    Item(
        "fashion",
        "Fashion-MNIST, three seeds, at most 15 epochs on two CPU cores: a student of at most 0.11 M parameters has >= 92.0 % (predicted 91.8), and >= 0.3 points more than on labels only (predicted 0.5; both bars moved once, after the first three seeds)",
        ("benchmarks/fashion_mnist.py", "{data}/fashion_mnist", "--json", "{json}"),
    ),
    Item(
        "kills",
        "100 SIGKILLs at steps, epoch borders, inside writes and at random times: all resume to bit-equal weights",
        ("benchmarks/kill_resume.py", "--kills", "100", "--json", "{json}"),
    ),
    Item(
        "size",
        "`edgebert size` at 224 px, intel-cpu, 3 ms ends in minutes (aim 5), and the proposed student, trained, is within 10 % of its untrained twin",
        ("benchmarks/size_twin.py", "{data}/bccd_cells", "--images", "300", "--json", "{json}"),
    ),
    Item(
        "memory",
        "peak memory of `distill` on 60,000 images within 15 % of that on 6,000",
        ("benchmarks/distil_memory.py", "{data}/fashion_mnist", "--json", "{json}"),
    ),
    Item(
        "refusals",
        "a teacher with other or missing class names, or one that answers NaN, is refused with the difference or the images",
        ("benchmarks/refused_teachers.py", "--json", "{json}"),
    ),
    Item(
        "options",
        "every key of a recipe is in the docs with what it is for, its default and its source",
        ("docs/options.py", "--check"),
    ),
    Item(
        "cache",
        "a step with the cache costs at most 1.1 times one with labels only",
        ("benchmarks/cached_step.py", "{data}/fashion_mnist", "--json", "{json}"),
    ),
    Item(
        "processes",
        "two processes give the loss curve of one with the same global batch",
        ("-m", "pytest", "-q", "tests/train/test_train_loop.py", "-k", "two_processes"),
    ),
)


PROOF = Proof(
    name="distil",
    title="distillation",
    items=ITEMS,
    packages=("torch", "transformers", "kornia", "accelerate", "openvino"),
)

if __name__ == "__main__":
    sys.exit(PROOF.run(__doc__))
