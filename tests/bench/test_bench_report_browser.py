"""The report in a browser without a network: what a reader sees, and that the browser has nothing to complain about."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgebert.bench.report.page import report_from_results
from edgebert.bench.result import write_result
from edgebert.bench.samples import Samples
from edgebert.bench.schema import Result

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

rich_result: Callable[..., tuple[Result, Samples]] = runpy.run_path(
    str(Path(__file__).with_name("report_results.py"))
)["rich_result"]  # fmt: skip

FLAGS = (
    "--headless",
    "--no-sandbox",  # a container has no user namespaces
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--proxy-server=http://127.0.0.1:9",  # nobody listens there: no network
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
)


class _Words(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self._hidden = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag in ("style", "title")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report of a rich result."""
    folder = tmp_path_factory.mktemp("report")
    result, samples = rich_result()
    write_result(folder / "r.json", result, samples, force=True)
    return report_from_results([folder / "r.json"], folder / "r.html")


def browse(page: Path, folder: Path, *flags: str) -> tuple[str, list[str]]:
    """Open a page and return what the browser prints and its console's messages."""
    assert CHROMIUM is not None
    run = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return run.stdout, [line for line in run.stderr.splitlines() if ":CONSOLE" in line]


def test_report_shows_its_text_and_leaves_the_console_empty(page: Path, tmp_path: Path) -> None:
    dom, messages = browse(page, tmp_path, "--dump-dom")
    text = " ".join(" ".join(_Words(dom).words).split())
    assert messages == []
    for words in (
        "student int8 is 5.9 times as fast as teacher",
        "Every query in time order",
        "stolen, CPUs",
        "Images decided otherwise",
        "This page holds no script and loads nothing.",
    ):
        assert words in text


def test_console_tells_of_a_page_that_would_load_something(page: Path, tmp_path: Path) -> None:
    other = tmp_path / "bad.html"
    text = page.read_text(encoding="utf-8")
    other.write_text(text.replace("<main>", "<main><img src='http://example.invalid/a.png'>", 1), encoding="utf-8")
    assert browse(other, tmp_path, "--dump-dom")[1] != []


@pytest.mark.parametrize("width", [1_200, 500])
def test_report_is_drawn_and_no_wider_than_the_window(page: Path, tmp_path: Path, width: int) -> None:
    shot = tmp_path / "shot.png"
    browse(page, tmp_path, f"--window-size={width},2400", f"--screenshot={shot}")
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"))
    paper: NDArray[np.bool_] = np.asarray(pixels.min(axis=2) >= 250, np.bool_)
    assert not paper[:1_000].all()
    assert paper[:, -10:].all()  # the margin at the right is free: nothing is cut off by the window


def test_report_prints_on_a_few_pages(page: Path, tmp_path: Path) -> None:
    printed = tmp_path / "r.pdf"
    browse(page, tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={printed}")
    content = printed.read_bytes()
    assert content.startswith(b"%PDF")
    assert 4 <= content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") <= 20
