"""Bundles to install: the toy, under other names and release numbers, so that their digests differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgebert.bundle import read_bundle, write_bundle

MakeBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def make_bundle(make_toy_bundle: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Return a function that writes a working bundle: equal names and releases give equal digests."""
    folder = tmp_path_factory.mktemp("bundles")
    original = read_bundle(make_toy_bundle(folder / "toy.edgebert"))

    def make(name: str, *, release: int = 0, broken: bool = False) -> Path:
        path = folder / f"{name}-{release}{'-broken' if broken else ''}.edgebert"
        if path.exists():
            return path
        manifest = replace(original.manifest, name=name, release=release, recorded_with={})
        if broken:  # a graph that no backend loads; the bundle itself is in order
            graphs = {file: b"no graph" for file in manifest.sizes if file.endswith(".onnx")}
            manifest = replace(
                manifest, sizes={**manifest.sizes, **{file: len(graph) for file, graph in graphs.items()}}
            )
        else:
            graphs = {}
        path.mkdir()
        files = {file: content for file, content in original.files.items() if file != "manifest.json"}
        write_bundle(path, manifest, {**files, **graphs})
        return path

    return make
