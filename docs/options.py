"""Writes docs/options.md: every key of a recipe with what it is for, its default and where the default comes from.

    python docs/options.py            write the page
    python docs/options.py --check    fail where the page is not what would be written

What a key is for is read from the docstring of the options; where its default comes from stands below. A key without a source is an
error, and so is a source without a key.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from pathlib import Path

from edgebert.stages import STAGES

PAGE = Path(__file__).parent / "options.md"

_TOP = {
    "name": ("names the graphs, the bundle and the report", "required", "-"),
    "data": ("DATA, as every command takes it", "required", "-"),
    "output": ("the folder that holds everything", "`runs/NAME`", "convention"),
    "seed": ("passed to every stage that has one", "0", "convention"),
    "max_skipped": (
        "largest share of unreadable images; passed to every stage that reads the data",
        "0.01",
        "ours: a few broken files are normal, one in a hundred is a fault of the copy",
    ),
}

_NEEDED = "-"
_SAFE = "off: nothing is changed that was not asked for"

# Where the defaults of `train` and `distill` come from; numbers in brackets are sections of the papers named.
_LOOP = {
    "image_size": "the model's own; from scratch, the largest usual size that the median image still fills",
    "resize": "the model's own; `stretch` loses nothing of the image",
    "epochs": "ours: 100 from scratch on small data; 10 to fine-tune, where ViT's authors take 500 steps to 20 epochs",
    "batch_size": "ours: two cores keep busy with 64; CCT takes 128, DeiT 1,024",
    "accumulate": _SAFE,
    "learning_rate": "1e-3 for 256 images a batch and small widths is usual for AdamW (DeiT: 5e-4 for 512); 5e-5 to fine-tune a ViT",
    "weight_decay": "DeiT (Touvron et al. 2021, table 9)",
    "warmup": "DeiT: 5 of 300 epochs; ours is a share, so that short runs warm up as well",
    "clip_norm": 'Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent"',
    "mixed_precision": "bf16 needs no loss scaling; the CPU stays exact",
    "device": "the quicker one that is there",
    "augment": "no class changes its meaning by a small shift or turn; flips and colours can",
    "shift": "ours: 4 of 32 pixels, the pad-4 crop usual on CIFAR",
    "rotation": "usual for handwritten digits",
    "crop_scale": "between Inception's 0.08, made for ImageNet, and CCT's 0.8 for small images",
    "jitter": "DeiT III (Touvron et al. 2022, table 1): 0.3",
    "erase": "DeiT and CCT: 0.25; areas and aspects of Zhong et al. 2020",
    "mask": "ours: half of what SimMIM hides, as here a class must still be told",
    "mixup": _SAFE + "; DeiT takes 0.8",
    "cutmix": _SAFE + "; DeiT takes 1.0",
    "sampling": _SAFE,
    "class_weights": _SAFE + "; `effective` is Cui et al. 2019, beta 0.999",
    "smoothing": _SAFE + "; DeiT takes 0.1 without, and distillation wants none",
    "ema": _SAFE + "; 0.99 below 2,000 steps, 0.999 above is usual",
    "freeze": _SAFE,
    "freeze_batch_norm": _SAFE,
    "layer_decay": _SAFE + "; BEiT fine-tunes with 0.65 to 0.75",
    "gradient_checkpointing": "off: it costs a third more time (Chen et al. 2016)",
    "patience": "off: the learning rate ends low only when all epochs are run",
    "save_every": "off: an epoch is the most that a kill costs",
    "seed": "convention",
    "view_seed": "the seed",
    "task": "what the labels say; `distill` reads them as its teacher's task",
    "examples": "ours: at least three canaries, and one spare",
    "workers": "a thread for each physical core: decoding is bound by the processor",
    "class_map": _SAFE,
    "max_skipped": "the recipe's",
    "revision": "the hub's main branch",
    "resume": "set by the recipe itself after an interruption",
    "force": _SAFE,
}

SOURCES: dict[str, dict[str, str]] = {
    "train": {
        **_LOOP,
        "model": _NEEDED,
        "text_weights": _SAFE,
        "text_model": _SAFE,
        "pretrain": "off: on small, fully labelled data a supervised recipe gives as much",
        "pretrain_epochs": "ours; SimMIM's share of hidden patches, 0.6, and their size, a sixth of the side, are fixed (Xie et al. 2022, table 1)",
        "pretrain_data": "the images that are there",
    },
    "distill": {
        **_LOOP,
        "student": _NEEDED,
        "teachers": _SAFE,
        "unlabelled": _SAFE,
        "init": "weight selection (Xu et al. 2024): +9.0 points on CIFAR-100, +1.7 on ImageNet, at no cost",
        "temperature": "Beyer et al. 2022: short schedules want 5 to 10, long ones 1 to 2; take 2 from 100 epochs on",
        "kl_weight": "Hinton et al. 2015 (section 2): a considerably lower weight on the labels",
        "label_weight": "as kl_weight",
        "hard_weight": "off; DeiT distils with hard labels alone",
        "early_weight": "off, as the cache holds no features; 0.5 is a good value: ViTKD (Yang et al. 2022) imitates the first two layers",
        "early_layers": "ViTKD: the first two",
        "pooled_weight": "off, as early_weight; 0.5",
        "relation_weight": "off; Tung and Mori 2019 take 3,000 with their normalisation by batch size squared",
        "feature_until": "ours: what a narrow student cannot hold is not asked of it to the end",
        "cache": "off: the views of each epoch are new",
        "cache_views": "with `cache`, 16: one view overfits (Beyer et al. 2022, figure 3), and the files grow with the number",
    },
    "export": {
        "opset": "20 has Gelu as one operator; 19 is the least for FP16 scales in TensorRT",
        "data": "the example images that travel with the checkpoint are enough for a first comparison",
        "class_map": _SAFE,
        "max_skipped": "the recipe's",
        "revision": "the hub's main branch",
        "max_logit_difference": "ours: FP32 in another order of sums stays well below",
        "max_flips": "FP32 and FP32 must decide alike",
        "force": _SAFE,
    },
    "quantize": {
        "images": "PTQ4ViT: 128 images instead of 32 change at most 0.08 points; 512 leave room",
        "effort": "ours: `fast` leaves ranges and placements untried, `best` takes several times as long for what is seldom noticed",
        "max_drop": "off: what may be lost is known to the application alone",
        "min_agreement": "off: as max_drop",
        "min_int8_share": "ours: with three quarters of the work in float again, little of INT8's gain is left",
        "sensitivity": "off: it compares the graph once more for every layer",
        "abstain_precision": "off: what an unsure answer costs is known to the application alone",
        "finetune": _SAFE,
        "teacher": "the FP32 graph is nearest to what is shipped otherwise",
        "finetune_epochs": "measured on Fashion-MNIST: most is gained in the first (docs/finetune.md)",
        "finetune_scales": "measured on Fashion-MNIST (docs/finetune.md)",
        "finetune_learning_rate": "measured on Fashion-MNIST: 1e-4 leaves a student further from FP32 than 1e-5 (docs/finetune.md)",
        "class_map": _SAFE,
        "max_skipped": "the recipe's",
        "force": _SAFE,
    },
    "compile": {
        "targets": "runs everywhere",
        "canary": "the example images of the graph",
        "precision": _SAFE,
        "float_graph": "the recipe's",
        "data": "the recipe's",
        "max_drop": "half a point is what published INT8 transformers lose where nothing is wrong (0.1 to 0.3), and some noise",
        "min_agreement": "ours: `quantize` warns below it, too",
        "max_seconds": "12 interleaved rounds of 0.4 s are the usual, and slow models get five",
        "keep_both": _SAFE + "; an engine more makes the bundle larger",
        "typing": "`auto`: on TensorRT 10 nobody knows beforehand which is faster; TensorRT 11 builds `strong` alone",
        "workspace_mb": "a quarter of the free memory, at most 1 GiB up to 8 GB and 4 GiB above: a Jetson's GPU shares it (tensorrt_jetson.md, section 9)",
        "optimization_level": "3, TensorRT's own",
        "dla_core": "the GPU: an Orin Nano and a Thor have no DLA",
        "max_batch": "1: a camera brings one image at a time, and work of one shape is launched as one CUDA graph",
        "timeout_s": "7,200: the longest build that was heard of takes minutes",
        "report": _SAFE,
        "release": "not numbered: only who ships updates needs it",
        "weights": "8 bits are more exact, 7 are right where 8 saturate (edgebert.runtime.instructions)",
        "class_map": _SAFE,
        "max_skipped": "the recipe's",
        "force": _SAFE,
    },
    "bench": {
        "data": "the recipe's",
        "targets": "the first form that this computer can run",
        "rigor": "about 15 s an arm: what one waits for while working; `publish` is for numbers that others read",
        "scenarios": "single-stream is what a camera or a request sees; the others are for those who have them",
        "launches": "of `quick` 3, of `standard` 5, of `publish` 10: from 5 on the interval is over launches (docs/bench-statistics.md)",
        "max_launches": "of `quick` 3, of `standard` 14, of `publish` 20: ten looks at the intervals at most",
        "queries": "of `quick` 330: a bound on p99 takes 299; of `publish` 3,400: one on p99.9 takes 2,995",
        "seconds": "of `quick` 4, of `standard` 10, of `publish` 60: long enough that one disturbance is not the tail",
        "max_seconds": "of `quick` 30, of `standard` 120, of `publish` 900: so that a slow teacher does not take all day",
        "max_warmup_seconds": "of `quick` 4, of `standard` 8, of `publish` 30: so that an unsteady computer does not wait for ever; it is said then",
        "margin": "less than 1 % is seldom worth a change, and seldom told from noise",
        "fps": "a camera's usual rate",
        "deadline_ms": "the time to the next frame: later than that, two are waiting",
        "policy": "a camera shows what is now; what nobody looked at in time is old",
        "streams": "MLPerf's multi-stream asks for 8",
        "bound_ms": "five times the arm's own p50, so that every arm has one; give the one that you have promised",
        "bound_share": "MLPerf's server scenario bounds p99",
        "soak_minutes": "heat takes minutes to build up",
        "flipped": "a row or two of thumbnails in the report",
        "cpus": _SAFE,
        "images": "distinct images fill no cache by repetition",
        "threads": "a thread for each physical core",
        "seed": "convention",
        "baseline": "the first arm",
        "reference": "the first FP32 arm of the student",
        "class_map": _SAFE,
        "max_skipped": "the recipe's",
        "force": _SAFE,
    },
    "report": {"force": _SAFE},
}


def page() -> str:
    """Return the whole page."""
    lines = [
        "# Every key of a recipe",
        "",
        "Written by `python docs/options.py` from the code. A command has the same options as flags: `batch_size` is `--batch-size`.",
        "`edgebert tune` adds the table `[tune]`: see [tune.md](tune.md). *Off* means that the default leaves the feature out.",
        "",
        "## At the top",
        "",
        *_table([(name, *entry) for name, entry in _TOP.items()]),
    ]
    for stage in STAGES.values():
        module, _, name = stage.options.partition(":")
        kind = getattr(importlib.import_module(module), name)
        purposes, sources = _purposes(kind), SOURCES[stage.name]
        fields = {entry.name: _default(entry) for entry in dataclasses.fields(kind)}
        missing = fields.keys() ^ sources.keys()
        if missing:
            raise SystemExit(
                f"[{stage.name}] has keys without a source, or sources without a key: {', '.join(sorted(missing))}"
            )
        rows = [(key, purposes[key], default, sources[key]) for key, default in fields.items()]
        lines += ["", f"## [{stage.name}]", "", *_table(rows)]
    return "\n".join(lines) + "\n"


def _table(rows: list[tuple[str, str, str, str]]) -> list[str]:
    head = ["| key | what it is for | default | where the default comes from |", "|---|---|---|---|"]
    return head + [
        "| " + " | ".join([f"`{row[0]}`", *(cell.replace("|", "\\|") for cell in row[1:])]) + " |" for row in rows
    ]


def _default(entry: dataclasses.Field[object]) -> str:
    if entry.default_factory is not dataclasses.MISSING:
        return "none"
    if entry.default is dataclasses.MISSING:
        return "required"
    value = entry.default
    if value is None:
        return "see left"
    if isinstance(value, tuple):
        return ", ".join(f"`{part}`" for part in value) or "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _purposes(kind: type) -> dict[str, str]:
    """Return what each attribute is for, from the docstrings of the class and those it inherits from."""
    found: dict[str, str] = {}
    for level in reversed(kind.__mro__):
        _, _, attributes = (level.__doc__ or "").partition("Attributes:\n")
        for match in re.finditer(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", attributes, re.MULTILINE):
            found[match[1]] = " ".join(match[2].split())
    return found


def main() -> int:
    """Write the page, or compare it."""
    made = page()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text(encoding="utf-8") != made:
            print(f"{PAGE.name} is not what the code says: run `python docs/options.py`", file=sys.stderr)
            return 1
        print(f"{made.count(chr(10) + '| `')} keys, each with its purpose, default and source")
        return 0
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
