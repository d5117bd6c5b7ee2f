"""A TOML file runs the stages one after another: cached by content, resumable after any interruption.

A recipe has `name`, `data`, `output`, `seed` and `max_skipped` at the top and one table per stage, whose keys are the fields
of that stage's options:

    name = "widgets"
    data = "photos/widgets"

    [train]
    model = "bert-nano"

    [distill]
    student = "nano"

A table `[tune]` says what `edgebert tune` searches (`edgebert.train.tuning`); `run` passes over it.

Every stage that has a table is run, in the order of `STAGES`. What a stage made is kept under the recipe's output folder and made again
only when its options, the data, an input or the version of edgebert changed, or when the file itself is gone or altered.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from edgebert import __version__
from edgebert._files import locked, sha256_of_path, staged_file
from edgebert._json import Fields, JsonValue, dump_json, parse_json_object
from edgebert.errors import BadDataError, CannotWriteError, InputNotFoundError, UsageError
from edgebert.extras import require
from edgebert.stages import STAGES, Stage, StageCall

_log = logging.getLogger("edgebert")

# The demo's recipe: the built-in digits, start to end.
DEMO = Path(__file__).parent / "recipes" / "demo.toml"

_STATES = (
    "stages"  # the folder of state files; a non-empty output folder without its recipe.json is not ours to write into
)
_RUN_SCHEMA = "edgebert.run/1"
_STATE_SCHEMA = "edgebert.stage/2"
_TOP_KEYS = ("name", "data", "output", "seed", "max_skipped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A parsed recipe.

    Attributes:
        name: names the graphs, the bundle and the report.
        data: DATA as every command takes it.
        output: the folder that holds everything the recipe makes.
        seed: passed to every stage that has one.
        max_skipped: largest share of unreadable images; passed to every stage that reads the data.
        tables: stage -> its options as written.
        tune: the table of that name as written; empty where there is none.
    """

    name: str
    data: str
    output: Path
    seed: int
    max_skipped: float
    tables: Mapping[str, Mapping[str, JsonValue]]
    tune: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What happened to one stage."""

    name: str
    output: Path
    done: Literal["made", "kept"]
    seconds: float


def read_recipe(path: Path, changes: Sequence[str] = (), *, output: Path | None = None) -> Recipe:
    """Read a recipe and apply `key=value` changes.

    Args:
        path: the TOML file.
        changes: such as `data=photos` or `train.epochs=3`; a value is read as TOML, and as text where it is none.
        output: replaces the recipe's output folder.

    Raises:
        InputNotFoundError: the file cannot be read.
        BadDataError: not TOML.
        UsageError: an unknown table or key, or a value of the wrong type; nearest names are suggested.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputNotFoundError(f"cannot read the recipe `{path}`: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadDataError(f"the recipe `{path}` is not UTF-8 text") from error
    tree = _parse_toml(text, what=f"the recipe `{path}`")
    for change in changes:
        _apply_change(tree, change)
    tables = {key: value for key, value in tree.items() if isinstance(value, Mapping)}
    tables.pop("tune", None)
    plain = {key: value for key, value in tree.items() if key not in tables and key != "tune"}
    _check_names("key", plain, _TOP_KEYS, where=str(path))
    _check_names("stage", tables, tuple(STAGES), where=str(path))
    if "data" not in plain:
        raise UsageError(f"the recipe `{path}` names no data", hint=f"edgebert run {path} --set data=FOLDER")
    fields = Fields(plain, what=f"the recipe `{path}`")
    if not tables:
        raise UsageError(
            f"the recipe `{path}` has no stage", expected="tables " + ", ".join(f"[{key}]" for key in STAGES)
        )
    name = fields.text("name") if "name" in plain else path.stem
    if not name.isprintable() or Path(name).name != name or name.startswith("."):
        raise UsageError(f"the recipe's name is `{name}`", expected="a plain file name")
    chosen = output or Path(fields.text("output") if "output" in plain else f"runs/{name}")
    return Recipe(
        name=name,
        data=fields.text("data"),
        output=chosen,
        seed=fields.integer("seed") if "seed" in plain else 0,
        max_skipped=fields.number("max_skipped") if "max_skipped" in plain else 0.01,
        tables={stage: tables[stage] for stage in STAGES if stage in tables},
        tune=_checked_tune(tree.get("tune", {}), where=str(path)),
    )


def options_of(recipe: Recipe, stage: str) -> object:
    """Return the options of one stage of a recipe, as `run_recipe` makes them.

    Raises:
        UsageError: an option is unknown, of another type, or outside its range.
    """
    return _stage_options(STAGES[stage], recipe.tables[stage], recipe)


def run_recipe(recipe: Recipe) -> list[StageResult]:
    """Run the stages of a recipe that are not made already.

    Every option of every stage is checked before the first one runs. A stage that was interrupted leaves nothing under its final name;
    calling again goes on from there.

    Returns:
        one entry per stage, in order.

    Raises:
        UsageError: an option is unknown, of another type, or outside its range.
        CannotWriteError: the output folder holds something else.
        LockedError: another process runs into the same folder.
    """
    options = {name: _stage_options(STAGES[name], table, recipe) for name, table in recipe.tables.items()}
    for name in recipe.tables:
        missing = [need for need in STAGES[name].needs if need not in recipe.tables]
        if missing:
            raise UsageError(f"stage `{name}` needs stage `{missing[0]}`", hint=f"add a table [{missing[0]}]")
    _claim_folder(recipe.output)
    with locked(recipe.output):
        data_sha256 = _data_sha256(recipe) if any(STAGES[name].uses_data for name in options) else ""
        outputs: dict[str, Path] = {}
        results = []
        for name, stage_options in options.items():
            results.append(_run_stage(STAGES[name], stage_options, recipe, data_sha256, outputs))
            outputs[name] = results[-1].output
    return results


def text_of_run(results: Sequence[StageResult]) -> str:
    """Return what a run made, for a terminal: its stages, the table of its bench, and where everything lies."""
    made = [result.name for result in results if result.done == "made"]
    kept = [result.name for result in results if result.done == "kept"]
    seconds = sum(result.seconds for result in results)
    parts = [f"made {', '.join(made) or 'nothing'} in {seconds:.0f} s" + (f"; kept {', '.join(kept)}" if kept else "")]
    outputs = {result.name: result.output for result in results}
    if "bench" in outputs:
        from edgebert.bench import read_result, text_table

        parts.append(text_table(read_result(outputs["bench"])))
    parts.append("\n".join(f"{name}: {path}" for name, path in outputs.items() if name in ("compile", "report")))
    return "\n\n".join(part for part in parts if part)


def _run_stage(
    stage: Stage, options: object, recipe: Recipe, data_sha256: str, outputs: Mapping[str, Path]
) -> StageResult:
    output = recipe.output / stage.makes.format(name=recipe.name)
    state = recipe.output / _STATES / f"{stage.name}.json"
    inputs = {need: outputs[need] for need in stage.needs}
    fingerprint = _fingerprint(stage, options, inputs, data_sha256 if stage.uses_data else "")
    files = [output, *([recipe.output / stage.beside.format(name=recipe.name)] if stage.beside else [])]
    if _is_made(state, files, fingerprint):
        _log.info("%s: kept, `%s`", stage.name, output)
        return StageResult(name=stage.name, output=output, done="kept", seconds=0.0)
    if output.exists() and not state.exists():
        raise CannotWriteError(
            f"`{output}` was not made by this recipe", hint="move it away, or choose another folder with `-o`"
        )
    _log.info("%s: making `%s`", stage.name, output)
    interrupted = _was_begun(state, fingerprint)
    _write_state(state, fingerprint, [])  # from here on, what lies at these names is the recipe's
    started = time.monotonic()
    call = StageCall(data=recipe.data, inputs=inputs, output=output, options=options, interrupted=interrupted)
    stage.run(call)
    _write_state(state, fingerprint, files)
    return StageResult(name=stage.name, output=output, done="made", seconds=time.monotonic() - started)


def _write_state(state: Path, fingerprint: str, files: Sequence[Path]) -> None:
    """Note what a stage was made from and the hashes of what it made; no hashes while it is being made."""
    content: dict[str, JsonValue] = {
        "schema": _STATE_SCHEMA,
        "fingerprint": fingerprint,
        "made": {file.name: sha256_of_path(file) for file in files},
    }
    with staged_file(state, force=True) as staging:
        staging.write_text(dump_json(content), encoding="utf-8")


def _was_begun(state: Path, fingerprint: str) -> bool:
    try:
        fields = Fields(parse_json_object(state.read_bytes(), what=f"`{state}`"), what=f"`{state}`")
        return fields.text("fingerprint") == fingerprint and not fields.fields("made").value
    except (OSError, BadDataError):
        return False


def _is_made(state: Path, files: Sequence[Path], fingerprint: str) -> bool:
    if not state.is_file() or not all(file.exists() for file in files):
        return False
    try:
        fields = Fields(parse_json_object(state.read_bytes(), what=f"`{state}`"), what=f"`{state}`")
        made = fields.fields("made").value
        same = bool(made) and fields.text("fingerprint") == fingerprint
    except BadDataError:
        return False
    altered = [file for file in files if same and made.get(file.name) != sha256_of_path(file)]
    if altered:
        _log.warning("`%s` is not what this recipe wrote; it is made again", altered[0])
    return same and not altered


def _fingerprint(stage: Stage, options: object, inputs: Mapping[str, Path], data_sha256: str) -> str:
    content: dict[str, JsonValue] = {
        "stage": stage.name,
        "options": _plain_options(options),
        "named": _named_content(options),
        "inputs": {need: sha256_of_path(path) for need, path in inputs.items()},
        "data": data_sha256,
        "edgebert": __version__,
    }
    return hashlib.sha256(dump_json(content).encode()).hexdigest()


def _plain_options(options: object) -> dict[str, JsonValue]:
    """Return the options that decide the result: `force` and `resume` say how to write it, not what."""
    assert dataclasses.is_dataclass(options)
    assert not isinstance(options, type)
    values = {key: value for key, value in dataclasses.asdict(options).items() if key not in ("force", "resume")}
    return cast("dict[str, JsonValue]", json.loads(json.dumps(values, default=str)))


def _named_content(options: object) -> dict[str, JsonValue]:
    """Return the hashes of what options name on disk: a model's folder, further teachers, a folder of canaries.

    Not of the data, which are hashed by their pixels, nor of a cache, which the stage itself fills.
    """
    paths: dict[str, Path] = {}
    for key, value in _plain_options(options).items():
        if key not in ("data", "cache"):
            named = value if isinstance(value, (list, tuple)) else [value]
            # An empty text names nothing, where `Path("")` would be the current folder and all that lies in it.
            paths.update({f"{key} {text}": Path(text) for text in named if isinstance(text, str) and text})
    return {key: sha256_of_path(path) for key, path in paths.items() if path.exists()}


def _data_sha256(recipe: Recipe) -> str:
    from edgebert.data import DataOptions, load_dataset

    dataset = load_dataset(recipe.data, DataOptions(max_skipped=recipe.max_skipped))
    _log.info("%s", dataset.summary())
    return dataset.sha256()


def _claim_folder(output: Path) -> None:
    """Make the output folder, or refuse one that holds something else."""
    if output.exists() and not output.is_dir():
        raise CannotWriteError(f"`{output}` is not a folder", hint="choose another with `-o`")
    marker = output / _STATES / "recipe.json"
    if output.is_dir() and any(output.iterdir()) and not marker.is_file():
        raise CannotWriteError(
            f"`{output}` holds files that no recipe made", hint="choose a new folder with `-o`, or empty this one"
        )
    if not marker.is_file():
        with staged_file(marker, force=False) as staging:
            staging.write_text(dump_json({"schema": _RUN_SCHEMA}), encoding="utf-8")


def _stage_options(stage: Stage, table: Mapping[str, JsonValue], recipe: Recipe) -> object:
    """Make the options object of a stage from its table, checked key by key and by type."""
    pydantic = require("pydantic")
    module_name, _, class_name = stage.options.partition(":")
    options_class = getattr(importlib.import_module(module_name), class_name)
    fields = [field.name for field in dataclasses.fields(options_class)]
    _check_names("option", table, tuple(name for name in fields if name not in _SET_BY_RECIPE), where=f"[{stage.name}]")
    values: dict[str, JsonValue] = dict(table)
    set_by_recipe: dict[str, JsonValue] = {
        "seed": recipe.seed,
        "max_skipped": recipe.max_skipped,
        "force": True,
        "data": recipe.data,
    }
    values.update({key: value for key, value in set_by_recipe.items() if key in fields and key not in table})
    try:
        return pydantic.TypeAdapter(options_class).validate_json(json.dumps(values, default=str), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"stage `{stage.name}` has {where} = {first['input']!r}",
            expected=str(first["msg"]).removeprefix("Input should be "),
        ) from error


def _checked_tune(table: JsonValue, *, where: str) -> Mapping[str, JsonValue]:
    """Return the table `[tune]`, whose keys are `stage` and quoted `stage.option`s.

    Raises:
        UsageError: it is no table, or a key names no stage.
    """
    if not isinstance(table, Mapping):
        raise UsageError(f"{where} has tune = {table!r:.80}", expected="a table [tune]")
    for key in table:
        stage, dot, option = key.partition(".")
        if key != "stage" and not (dot and option):
            raise UsageError(
                f"{where}: [tune] has the key `{key}`",
                expected='`stage`, or a quoted option such as "distill.learning_rate"',
                hint="in TOML, a key with a dot that is not quoted is a table",
            )
        if key != "stage":
            _check_names("stage", {stage: None}, tuple(STAGES), where=f"{where}: [tune]")
    return table


_SET_BY_RECIPE = ("data", "force", "resume")


def _apply_change(tree: dict[str, JsonValue], change: str) -> None:
    key, equals, text = change.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path) or len(path) > 2:
        raise UsageError(f"`--set {change}` cannot be read", expected="`--set key=value` or `--set stage.key=value`")
    try:
        value = _parse_toml(f"value = {text}", what=change)["value"]
    except BadDataError:
        value = text
    if len(path) == 1:
        tree[path[0]] = text if path[0] in ("data", "name", "output") else value
        return
    table = tree.setdefault(path[0], {})
    if not isinstance(table, dict):
        raise UsageError(f"`--set {change}`: `{path[0]}` is no stage", expected=", ".join(STAGES))
    table[path[1]] = value


def _check_names(kind: str, given: Mapping[str, JsonValue], known: tuple[str, ...], *, where: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f"{where} has no {kind} `{name}`",
                expected=", ".join(known),
                hint=f"did you mean `{near[0]}`?" if near else None,
            )


def _parse_toml(text: str, *, what: str) -> dict[str, JsonValue]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        tomllib = require("tomli")
    try:
        return cast("dict[str, JsonValue]", tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise BadDataError(f"{what} is not TOML: {error}") from error
