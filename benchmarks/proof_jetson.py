"""Hold the Jetson part against its list, one line and one verdict for each item, and write docs/proofs/jetson.md.

    make proof-jetson                      # two and a half hours on two busy cores; gcc, OpenSSH's client and server (Debian: openssh-server), pip's index
    python benchmarks/proof_jetson.py --only bindings
    python benchmarks/proof_jetson.py --keep           # go on where an earlier call was interrupted

No GPU and no Jetson, and of TensorRT its sibling for desktop cards alone: what is held is what can be held so. An item whose tests were
skipped, or whose program is not here, fails. Expected: PASS for each. What it does not say: that an engine is built, runs, is right or
is fast on any board.

`SHORT` names for each item the tests in which the suite holds its short form.
"""

from __future__ import annotations

import sys

from _proof import Item, Proof

_TESTS = "benchmarks/held_by_tests.py"

ITEMS = (
    Item(
        "bindings",
        "every TensorRT name, enum, method and argument of our code against the official bindings of 10.3, 10.7, 10.13, 10.16 and 11.4; one that is misspelt, removed or too many is found; mypy over stubs made of each version",
        ("benchmarks/tensorrt_bindings.py",),
    ),
    Item(
        "double",
        "build, cache, fallback, mismatch, OOM, None-returning failures, profile and teardown over a recording double of TensorRT: call order, arguments and messages; its error texts mapped to ours",
        (
            _TESTS,
            "--counted",
            "tests over the recording double",
            "tests/export/test_engine.py",
            "tests/export/test_engine_build.py",
            "tests/export/test_engine_cache.py",
            "tests/runtime/test_tensorrt_api.py",
            "tests/runtime/test_tensorrt_errors.py",
            "tests/runtime/test_tensorrt_runner.py",
            "tests/runtime/test_engine_manifest.py",
            "tests/runtime/test_cuda.py",
        ),
    ),
    Item(
        "graphs",
        "each preset student, both CNNs, the BERT classifier, ViT-S/16, DeiT-Ti/16, Swin-T and ResNet-18 in strongly typed form break no rule of the parser and answer as their sources in ONNX Runtime",
        ("benchmarks/tensorrt_graphs.py", "--images", "8", "--json", "{json}"),
    ),
    Item(
        "builder",
        "the same forms, parsed and built by NVIDIA's own parser and builder: TensorRT for RTX, which needs no GPU to build",
        ("benchmarks/tensorrt_rtx.py", "--json", "{json}"),
    ),
    Item(
        "violations",
        "planted violations of each of the parser's rules are found with rule, node and remedy, and so are faults of our own rewriting",
        (
            _TESTS,
            "--counted",
            "tests of rules and rewriting",
            "tests/export/test_tensorrt_rules.py",
            "tests/export/test_tensorrt_graph.py",
            "tests/export/test_tensorrt_rewrites.py",
            "tests/export/test_half_overflow.py",
            "tests/export/test_half_parity.py",
            "tests/export/test_half_precision.py",
            "tests/tensorrt/test_rtx.py",
        ),
    ),
    Item(
        "compile",
        "compile builds both typings, here and over --host, survives the failure of either, keeps the faster that holds accuracy, and measures FP16 against INT8; a device that lies is refused",
        (
            _TESTS,
            "--counted",
            "tests of engine forms",
            "tests/export/test_engine_forms.py",
            "tests/export/test_engine_precision.py",
            "tests/remote/test_remote_engine.py",
        ),
    ),
    Item(
        "self-check",
        "doctor --jetson over the doubles, here and over --host: each rung holds, fails, crashes and hangs; its file names nobody",
        (
            _TESTS,
            "--counted",
            "tests of the self-check",
            "tests/jetson_check",
            "tests/remote/test_remote_jetson_check.py",
        ),
    ),
    Item(
        "loopback",
        "compile, bench, size and install over asyncssh's server on a device that has numpy, Pillow and ONNX Runtime alone; nothing is left there",
        ("benchmarks/remote_loopback.py",),
    ),
    Item(
        "sshd",
        "the same over OpenSSH's sshd, with cuts",
        ("benchmarks/remote_sshd.py", "--cuts", "12"),
    ),
    Item(
        "cuts",
        "the link of bench cut at 200 positions: always a correct verdict, no orphan after 10 s, no partial result marked complete, and --resume goes on",
        ("benchmarks/remote_cuts.py", "--kept", "{folder}/cuts.jsonl"),
    ),
    Item(
        "cuts-compile",
        "the same of compile: nothing is there, or a bundle that opens, and the same command again succeeds",
        ("benchmarks/remote_cuts.py", "--command", "compile", "--kept", "{folder}/cuts-compile.jsonl"),
    ),
    Item(
        "cuts-size",
        "the same of size, at 40 positions: no table, or a whole one",
        (
            *("benchmarks/remote_cuts.py", "--command", "size", "--positions", "40", "--silent", "8"),
            *("--kept", "{folder}/cuts-size.jsonl"),
        ),
    ),
    Item(
        "host-keys",
        "an unknown, changed or revoked key, one of another authority, one under a hashed name, of another port or of another kind: compile, bench and size are refused before anything is run, sent or written",
        (
            _TESTS,
            "--counted",
            "tests of host keys",
            "tests/remote/test_remote_host_keys.py",
            "tests/remote/test_ssh.py",
        ),
    ),
    Item(
        "hostile",
        "a device that answers too much, malformed, twice, with escape codes or with names such as .. is contained",
        (
            _TESTS,
            "--counted",
            "tests of hostile devices",
            "tests/remote/test_remote_hostile.py",
            "tests/remote/test_remote_install.py",
        ),
    ),
    Item(
        "not-here",
        "bench --target jetson without --host on this computer: exit code 69, what is missing, and the two ways on",
        ("benchmarks/jetson_not_here.py",),
    ),
    Item(
        "docs",
        "the ten commands of docs/jetson.md parse with the real options, and its troubleshooting has every text that the code knows",
        (_TESTS, "--counted", "tests of docs/jetson.md", "tests/test_jetson_docs.py"),
    ),
)

# Which tests of the suite hold a short form of an item. Those of the bindings, the double, the graphs and the docs are the tests themselves,
# slow ones left out.
SHORT: dict[str, tuple[str, ...]] = {
    "bindings": ("tests/tensorrt/test_real_bindings.py::test_usage_has_nothing_that_a_version_does_not_know",),
    "double": ("tests/export/test_engine_build.py::test_build_goes_the_documented_way",),
    "graphs": (
        "tests/export/test_tensorrt_graph.py::test_strong_graph_computes_in_fp16_behind_the_normalisation_of_pixels",
    ),
    "builder": ("tests/tensorrt/test_rtx.py::test_build_plan_builds_a_classifier_for_several_batches",),
    "compile": ("tests/export/test_engine_forms.py::test_compile_ships_the_faster_typing_and_says_why",),
    "self-check": ("tests/jetson_check/test_ladder_processes.py::test_every_rung_holds_on_a_board_that_is_in_order",),
    "violations": ("tests/export/test_tensorrt_rules.py::test_every_rule_has_a_planted_violation",),
    "loopback": (
        "tests/remote/test_remote_bench.py::test_bench_on_over_ssh_says_how_the_device_was_reached",
        "tests/remote/test_remote_compile.py::test_bundle_on_records_what_the_device_answers",
        "tests/remote/test_remote_compile.py::test_sizes_on_measures_on_the_device",
    ),
    "sshd": (),  # of the make target alone: it needs a program that is not Python's
    "cuts": (
        "tests/test_jetson_proof.py::test_swept_goes_on_where_an_earlier_call_ended",
        "tests/remote/test_remote_bench.py::test_bench_on_keeps_complete_launches_where_the_link_breaks_and_resume_goes_on_from_them",
    ),
    "cuts-compile": ("tests/remote/test_remote_cuts.py::test_links_cut_at_a_few_positions_end_in_a_correct_verdict",),
    "cuts-size": ("tests/remote/test_remote_cuts.py::test_links_cut_at_a_few_positions_end_in_a_correct_verdict",),
    "host-keys": (
        "tests/remote/test_remote_host_keys.py::test_session_is_refused_before_anything_is_run_sent_or_written",
    ),
    "hostile": ("tests/remote/test_remote_hostile.py::test_session_refuses_what_cannot_be_trusted",),
    "not-here": (
        "tests/remote/test_remote_devices.py::test_bench_for_a_target_that_is_not_here_ends_with_69_and_names_the_two_ways_on",
    ),
    "docs": ("tests/test_jetson_docs.py::test_command_parses",),
}

PROOF = Proof(
    name="jetson",
    title="Jetson, without one",
    items=ITEMS,
    packages=("numpy", "Pillow", "onnx", "onnxruntime", "asyncssh", "torch", "transformers"),
)

if __name__ == "__main__":
    sys.exit(PROOF.run(__doc__))
