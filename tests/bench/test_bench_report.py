from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edgebert.bench.figures import thinned
from edgebert.bench.report import report_from_results
from edgebert.bench.result import write_result
from edgebert.bench.samples import Samples
from edgebert.bench.schema import Result
from edgebert.bench.table import count_text, factor_text, markdown_table, milliseconds, percent, size_text, text_table
from edgebert.bench.verdict import headline, sentences
from edgebert.errors import BadDataError, CannotWriteError, UsageError

Synthetic = Callable[..., tuple[Result, Samples]]
Written = Callable[..., Path]

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}$x_1$"


@pytest.fixture
def written(tmp_path: Path, synthetic: Synthetic) -> Written:
    """Return a function that writes a synthetic result and its samples."""

    def write(name: str = "r.json", **changes: object) -> Path:
        result, samples = synthetic(**changes)
        result = dataclasses.replace(result, run_id="run", created="2026-01-01T00:00:00+00:00")
        path = tmp_path / name
        write_result(path, result, samples, force=True)
        return path

    return write


class Page(HTMLParser):
    """Collects what a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.handle_attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handle_attributes(attrs)

    def handle_attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "xlink:href", "action", "data"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on"), name

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_report_from_results_is_one_page_that_loads_nothing(written: Written, tmp_path: Path) -> None:
    output = report_from_results([written()], tmp_path / "r.html")
    text = output.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert re.findall(r"@import|javascript:", text) == []
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "default-src 'none'" in text
    assert len(text) < 500_000


def test_report_from_results_has_ids_that_are_unique_and_links_that_lead_somewhere(
    written: Written, tmp_path: Path
) -> None:
    text = report_from_results([written(), written("s.json")], tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    used = {link[1:] for link in page.links} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert used <= set(page.ids)


def test_report_from_results_holds_verdict_table_figures_and_command(written: Written, tmp_path: Path) -> None:
    text = report_from_results([written()], tmp_path / "r.html").read_text(encoding="utf-8")
    words = " ".join(Page(text).words)
    assert "student is 3.95 times as fast as teacher" in words
    for title in (
        "Accuracy against latency",
        "Latency by percentile",
        "Where the time goes",
        "Speed-up",
        "Every query in time order",
        "Where each arm goes wrong",
        "By class",
        "How it was measured",
        "Environment",
        "edgebert bench teacher=",
    ):
        assert title in words
    assert Page(text).tags.count("svg") == 5


def test_report_from_results_gives_the_same_bytes_for_the_same_result(written: Written, tmp_path: Path) -> None:
    path = written()
    first = report_from_results([path], tmp_path / "a.html").read_bytes()
    assert report_from_results([path], tmp_path / "b.html").read_bytes() == first


def test_report_from_results_ignores_the_style_of_the_user(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    path = written()
    first = report_from_results([path], tmp_path / "a.html").read_bytes()
    with matplotlib.rc_context({"lines.linewidth": 9.0, "font.size": 30.0}):
        assert report_from_results([path], tmp_path / "b.html").read_bytes() == first
        assert matplotlib.rcParams["lines.linewidth"] == 9.0


def test_report_from_results_escapes_hostile_names(written: Written, tmp_path: Path) -> None:
    path = written(names=("a" + HOSTILE, "b\x1b[2J\u202e" + HOSTILE), class_names=("ant" + HOSTILE, "bee\x07", "cat"))
    text = report_from_results([path], tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert not any(character in text for character in "\x1b\x07\u202e")
    assert any(HOSTILE in words for words in page.words)
    assert "49" not in {word.strip() for word in page.words}


def test_report_from_results_lists_confusions_when_there_are_many_classes(written: Written, tmp_path: Path) -> None:
    names = tuple(f"class {index}" for index in range(25))
    text = report_from_results([written(class_names=names)], tmp_path / "r.html").read_text(encoding="utf-8")
    words = " ".join(Page(text).words)
    assert "true class" in words
    assert 'class="matrix"' not in text


def test_report_from_results_shows_an_invalid_run_as_such(written: Written, tmp_path: Path) -> None:
    text = report_from_results([written(mismatch=True)], tmp_path / "r.html").read_text(encoding="utf-8")
    words = " ".join(Page(text).words)
    assert "These numbers are not valid" in words
    assert "not valid" in words
    assert "times as fast as teacher," not in words


@pytest.mark.parametrize("arms", [1, 8])
def test_report_from_results_takes_one_arm_and_many(written: Written, tmp_path: Path, arms: int) -> None:
    names = tuple(f"arm {index}" for index in range(arms))
    path = written(names=names, times_ms=tuple(1.0 + index for index in range(arms)), wrong=1)
    text = report_from_results([path], tmp_path / "r.html").read_text(encoding="utf-8")
    assert len(text) < 1_500_000
    assert Page(text).open == []


def test_report_from_results_refuses_what_cannot_be_written(written: Written, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no result"):
        report_from_results([], tmp_path / "r.html")
    (tmp_path / "r.html").write_text("mine")
    with pytest.raises(CannotWriteError):
        report_from_results([written()], tmp_path / "r.html")
    with pytest.raises(BadDataError):
        report_from_results([tmp_path / "r.html"], tmp_path / "s.html")


def test_thinned_keeps_the_extremes() -> None:
    times = np.random.default_rng(0).integers(100, 200, 50_000).astype(np.int64)
    times[12_345], times[40_000] = 10_000, 1
    chosen = thinned(times)
    assert chosen.size <= 600
    assert {12_345, 40_000} <= set(chosen.tolist())
    assert (np.diff(chosen) > 0).all()


def test_text_table_is_at_most_100_columns_wide(synthetic: Synthetic) -> None:
    for names in (("teacher", "student"), ("a" * 80, "long name with spaces " * 3), ("x\x1b[31m", "b\u202e")):
        result, _ = synthetic(names, times_ms=(1234.5, 0.01234))
        lines = text_table(result).splitlines()
        assert max(map(len, lines)) <= 100
        assert all(line.isprintable() for line in lines)
        assert len({len(line) for line in lines[:1] + lines[2:5]}) == 1


def test_text_table_of_a_known_result(synthetic: Synthetic) -> None:
    result, _ = synthetic()
    lines = text_table(result).splitlines()
    assert lines[0].split() == [
        "arm",
        "parameters",
        "size",
        "top-1",
        "agree",
        "p50",
        "p90",
        "p99",
        "images",
        "speed-up",
    ]
    assert lines[3].split()[:6] == ["teacher", "23.1", "k", "123", "kB", "100.00"]
    assert lines[4].split()[5] == "90.00"
    assert lines[4].split()[-1] == "x"


def test_text_table_warns_first_when_the_run_is_not_valid(synthetic: Synthetic) -> None:
    result, _ = synthetic(mismatch=True)
    assert "NOT VALID" in text_table(result)


def test_markdown_table_escapes_names_and_has_a_cell_for_every_header(synthetic: Synthetic) -> None:
    result, _ = synthetic(("a|b", "c`<i>"))
    lines = markdown_table(result).splitlines()
    cells = [re.split(r"(?<!\\)\|", line) for line in lines[:4]]
    assert {len(row) for row in cells} == {12}
    assert "a\\|b" in lines[2]
    assert "\\<i\\>" in lines[3]


def test_headline_says_accuracy_with_speed(synthetic: Synthetic) -> None:
    result, _ = synthetic()
    assert re.fullmatch(
        r"student is [34]\.\d+ times as fast as teacher, with top-1 90\.00 % against 100\.00 %", headline(result)
    )
    alone, _ = synthetic(("one",), times_ms=(2.0,))
    assert headline(alone).startswith("one answers in 1.9")


def test_sentences_do_not_claim_a_difference_that_was_not_seen(synthetic: Synthetic) -> None:
    result, _ = synthetic(times_ms=(2.0, 2.0), wrong=1)
    comparison = dataclasses.replace(result.comparisons[0], ratio=0.999, speedup=1.001, ci95=(0.99, 1.01))
    text = " ".join(sentences(dataclasses.replace(result, comparisons=(comparison,))))
    assert "not told apart in speed from" in text
    assert "no more than chance would do" in text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (1_234, "0.001"),
        (85_400, "0.085"),
        (999_600, "1.00"),
        (1_234_567, "1.23"),
        (12_345_678, "12.3"),
        (10**9, "1000"),
    ],
)
def test_milliseconds_has_three_digits(nanoseconds: int, text: str) -> None:
    assert milliseconds(nanoseconds) == text


def test_texts_of_numbers_have_no_exponent_and_never_round_up_to_all() -> None:
    assert [size_text(count) for count in (512, 123_456, 999_600, 12_345_678, 2 * 10**9)] == [
        "0.512 kB", "123 kB", "1 MB", "12.3 MB", "2 GB",
    ]  # fmt: skip
    assert [count_text(count) for count in (None, 950, 23_130, 86_567_656)] == ["–", "950", "23.1 k", "86.6 M"]
    assert percent(0.999_99) == "99.99"
    assert percent(1.0) == "100.00"
    assert [factor_text(factor) for factor in (0.98765, 4.2, 12.34, 1017.2)] == ["0.988", "4.2", "12.3", "1017"]
