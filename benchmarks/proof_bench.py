"""The list that the harness stands by: one line for each item with its figure, and docs/proofs/bench.md.

    make proof-bench DATA=FOLDER        FOLDER holds fashion_mnist/ and bccd_cells/
    python benchmarks/proof_bench.py FOLDER --only honesty

About two hours on two cores, the students' trainings included; `slowdown`, `benchmark_app` and `loadgen` want the computer for
themselves. `--keep` takes what earlier calls found (`_proof.py`), and a comparison of `control` or `slowdown` that was measured is
not measured again, so that an interrupted proof goes on. `loadgen` needs `pip install "edgebert[loadgen]"`. Returns 1 where an
item fails.
"""

from __future__ import annotations

import sys

from _proof import Item, Proof

GRAPHS = ("--output", "{folder}/graphs")
PEERS = ("--threads", "1", "--launches", "5", "--seconds", "2")

ITEMS = (
    Item(
        "control",
        "a graph against itself under background load: at most 2 of 40 comparisons claim a difference",
        ("benchmarks/aa_comparisons.py", "{data}", "--part", "control", *GRAPHS, "--json", "{json}"),
    ),
    Item(
        "slowdown",
        "without load, a planted slowdown (spinning for 5 % of the median) is found in at least 36 of 40 comparisons",
        ("benchmarks/aa_comparisons.py", "{data}", "--part", "slowdown", *GRAPHS, "--json", "{json}"),
    ),
    Item(
        "benchmark_app",
        "our infer p50 and the median latency of OpenVINO's benchmark_app (same IR, threads and settings, interleaved) differ by at most 3 % or 30 microseconds, whichever is larger",
        (
            "benchmarks/against_benchmark_app.py",
            "digits",
            "fashion",
            "--source",
            "{data}",
            *GRAPHS,
            *PEERS,
            "--json",
            "{json}",
        ),
    ),
    Item(
        "loadgen",
        "our single-stream p50 and p90 and those of MLPerf LoadGen differ by at most 2 % or 20 microseconds, whichever is larger",
        (
            "benchmarks/against_loadgen.py",
            "digits",
            "fashion",
            "--source",
            "{data}",
            *GRAPHS,
            *PEERS,
            "--json",
            "{json}",
        ),
    ),
    Item(
        "cost",
        "the recorder's own cost a query (aim 1 microsecond) and the lateness of an open loop (aim p99 1 ms) are measured and stored in every result",
        ("benchmarks/harness_cost.py", "--json", "{json}"),
    ),
    Item(
        "honesty",
        "backends that cache by input, skip every tenth query, sleep, answer garbage once in 1,000 or leak memory are each caught and named",
        ("-m", "pytest", "-v", "--no-header", "tests/bench/test_honesty.py", "tests/bench/test_audit_bench.py"),
    ),
    Item(
        "failures",
        "a hung backend, a crashed worker, an out-of-memory kill and a full disk give their own message and exit code; SIGINT leaves a partial result marked partial",
        (
            "-m",
            "pytest",
            "-v",
            "--no-header",
            "tests/bench/test_bench_failures.py",
            "tests/bench/test_bench_interrupt.py",
        ),
    ),
    Item(
        "simulation",
        "on noise whose truth is known, intervals cover 93 to 97 % and identical arms are told apart in at most 7 %, the stopping rule on and off",
        ("benchmarks/simulated_statistics.py",),
    ),
    Item(
        "mapping",
        "the docs map the figures of benchmark_app and trtexec to ours in one table",
        ("benchmarks/peer_figures.py",),
    ),
)

PROOF = Proof(
    name="bench",
    title="the harness",
    items=ITEMS,
    packages=("numpy", "onnxruntime", "openvino", "matplotlib"),
)

if __name__ == "__main__":
    sys.exit(PROOF.run(__doc__))
