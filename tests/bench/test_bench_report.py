from __future__ import annotations

import base64
import io
import re
import runpy
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgebert.bench.report.accuracy import checked_thumbnail
from edgebert.bench.report.environment import difference_tables
from edgebert.bench.report.figures import thinned
from edgebert.bench.report.figures_comparison import dominates, ratios_of
from edgebert.bench.report.figures_latency import stage_means
from edgebert.bench.report.figures_timeline import STRIPS, bars_of, clock_of, read_strips, readings_of, strips_of
from edgebert.bench.report.page import report_from_results
from edgebert.bench.report.quantities import (
    count_text,
    duration_range,
    duration_text,
    factor_text,
    milliseconds,
    percent,
    points,
    size_text,
)
from edgebert.bench.report.sections import section_of
from edgebert.bench.report.summary import best_arm, summary_table
from edgebert.bench.report.table import MAX_WIDTH, markdown_table, notes_of, text_table
from edgebert.bench.report.words import headline, noise_sentence, sentences, verdict_sentence
from edgebert.bench.result import write_result
from edgebert.bench.samples import Samples
from edgebert.bench.schema import Comparison, Result
from edgebert.errors import BadDataError, CannotWriteError, UsageError

RichResult = Callable[..., tuple[Result, Samples]]
Written = Callable[..., Path]

_BUILDER = runpy.run_path(str(Path(__file__).with_name("report_results.py")))
rich_result: RichResult = _BUILDER["rich_result"]
partial_result: Callable[[], Result] = _BUILDER["partial_result"]
thumbnail: Callable[..., str] = _BUILDER["thumbnail"]

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}$x_1$"
TARGET_BYTES = 500_000  # bench.md, section 13


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Return a function that writes a result made by hand and its samples."""

    def write(name: str = "r.json", **changes: object) -> Path:
        return write_it(tmp_path / name, *rich_result(**changes))

    return write


def write_it(path: Path, result: Result, samples: Samples) -> Path:
    write_result(path, result, samples, force=True)
    return path


def plain_result(**changes: object) -> Result:
    """Return a result without the other scenarios, which is quicker to make."""
    return rich_result(everything=False, **changes)[0]


def verdict_of(result: Result, **changes: object) -> Comparison:
    """Return the comparison of the second arm with other values."""
    return replace(result.comparisons[0], **changes)  # type: ignore[arg-type]  # fields of one dataclass


def pixels_of(encoded: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))


class Page(HTMLParser):
    """Collects what a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.images: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)
        self.handle_attributes(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handle_attributes(tag, attrs)

    def handle_attributes(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if tag == "img" and name == "src":
                self.images.append(value or "")
            elif name in ("href", "src", "srcset", "xlink:href", "action", "data"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on"), name

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_report_from_results_is_one_page_that_loads_nothing(written: Written, tmp_path: Path) -> None:
    text = report_from_results([written()], tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert page.images
    assert all(source.startswith("data:image/png;base64,") for source in page.images)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert re.findall(r"@import|javascript:", text) == []
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text


def test_report_from_results_keeps_to_half_a_megabyte_however_many_queries(written: Written, tmp_path: Path) -> None:
    path = written(block=1_500)
    page = report_from_results([path], tmp_path / "r.html")
    assert page.stat().st_size < TARGET_BYTES


def test_report_from_results_has_ids_that_are_unique_and_links_that_lead_somewhere(
    written: Written, tmp_path: Path
) -> None:
    paths = [written(everything=False), written("s.json", everything=False)]
    text = report_from_results(paths, tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    used = {link[1:] for link in page.links} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert used <= set(page.ids)


def test_report_from_results_holds_every_part_of_a_rich_result(written: Written, tmp_path: Path) -> None:
    text = report_from_results([written()], tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    for title in (
        "student int8 is 5.9 times as fast as teacher",
        "is faster than teacher by",
        "A/A control",
        "valid",
        "converged",
        "throttling not readable",
        "virtual machine",
        "rigor: standard",
        "Ratios of times to the baseline",
        "Every comparison with teacher",
        "Latency by percentile",
        "How often each latency occurs",
        "Where the time goes",
        "Times of every stage, ms",
        "Accuracy against latency",
        "Every query in time order",
        "clock, GHz",
        "stolen, CPUs",
        "Never moved: stops by the quota",
        "power of the package (no powercap: virtualised)",
        "Slow queries, and what their block met",
        "Offline: images per second",
        "What throughput costs in latency",
        "Paced: frames of a camera",
        "Server: share of queries inside the bound",
        "Multi-stream: several images to a query",
        "Soak: does it become slower?",
        "Cold start: fresh processes",
        "Accuracy and calibration",
        "Where each arm goes wrong",
        "Images decided otherwise",
        "By class",
        "How it was measured",
        "edgebert bench teacher=",
        "Checks of the answers",
        "What the harness itself costs",
        "SHA-256",
        "Environment",
        "sudo swapoff -a",
        "What was not measured, and why",
    ):
        assert title in page.text, title
    assert page.tags.count("svg") == 11


def test_report_from_results_gives_the_same_bytes_for_the_same_result(written: Written, tmp_path: Path) -> None:
    path = written()
    first = report_from_results([path], tmp_path / "a.html").read_bytes()
    assert report_from_results([path], tmp_path / "b.html").read_bytes() == first


def test_report_from_results_ignores_the_style_of_the_user(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    path = written(everything=False)
    first = report_from_results([path], tmp_path / "a.html").read_bytes()
    with matplotlib.rc_context({"lines.linewidth": 9.0, "font.size": 30.0}):
        assert report_from_results([path], tmp_path / "b.html").read_bytes() == first
        assert matplotlib.rcParams["lines.linewidth"] == 9.0


def test_report_from_results_escapes_hostile_texts_wherever_they_stand(tmp_path: Path) -> None:
    bad = "x\x1b[2J\u202e\u2066" + HOSTILE
    result, samples = rich_result(
        (f"a{bad}", f"b{bad}"), times_ms=(2.0, 1.0), class_names=(f"ant{bad}", "bee\x07", "cat")
    )
    status = replace(result.status, reasons=(bad,), warnings=(bad,))
    result = replace(
        result,
        status=status,
        command=("edgebert", "bench", bad),
        env={"OMP_NUM_THREADS": bad, bad: "1"},
        software={"onnxruntime": bad},
        not_measured={bad: bad, "telemetry.energy_package_uj": bad},
        preflight=tuple(replace(check, found=bad, fix=bad) for check in result.preflight),
    )
    path = write_it(tmp_path / "r.json", result, samples)
    text = report_from_results([path], tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert not any(character in text for character in "\x1b\x07\u202e\u2066")
    assert any(HOSTILE in words for words in page.words)
    assert "49" not in {word.strip() for word in page.words}


def test_report_from_results_lists_confusions_when_there_are_many_classes(written: Written, tmp_path: Path) -> None:
    names = tuple(f"class {index}" for index in range(25))
    path = written(class_names=names, everything=False)
    text = report_from_results([path], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "true class" in Page(text).text
    assert 'class="matrix"' not in text


def test_report_from_results_shows_an_invalid_run_as_such(written: Written, tmp_path: Path) -> None:
    path = written(mismatch=3, everything=False)
    words = Page(report_from_results([path], tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "These numbers are not valid" in words
    assert "not valid" in words
    assert "times as fast as teacher" not in words


def test_report_from_results_says_that_a_partial_run_measured_nothing(tmp_path: Path) -> None:
    path = write_it(tmp_path / "r.json", partial_result(), Samples({}))
    words = Page(report_from_results([path], tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "The run was cut short before anything was measured" in words
    assert "interrupted in launch 1 of 5" in words
    assert "Some Processor 7B12" in words
    assert "edgebert bench teacher=" in words


def test_report_from_results_takes_an_arm_of_which_every_query_failed(tmp_path: Path) -> None:
    result, samples = rich_result(everything=False)
    columns = dict(samples.columns)
    columns["flags"] = np.where(columns["arm"] == 1, 4, columns["flags"])
    path = write_it(tmp_path / "r.json", result, Samples(columns))
    assert Page(report_from_results([path], tmp_path / "r.html").read_text(encoding="utf-8")).open == []


@pytest.mark.parametrize(("arms", "aa"), [(1, False), (8, True)])
def test_report_from_results_takes_one_arm_and_many(written: Written, tmp_path: Path, arms: int, aa: bool) -> None:
    names = tuple(f"arm {index}" for index in range(arms))
    times = tuple(1.0 + index for index in range(arms))
    path = written(names=names, times_ms=times, wrong=1, aa=aa, everything=False)
    page = report_from_results([path], tmp_path / "r.html")
    assert page.stat().st_size < 1_000_000
    assert Page(page.read_text(encoding="utf-8")).open == []


def test_report_from_results_marks_what_differs_between_two_results(tmp_path: Path) -> None:
    result, samples = rich_result(everything=False)
    first = write_it(tmp_path / "a.json", result, samples)
    other = replace(result, env={"OMP_NUM_THREADS": "1"}, software={**result.software, "numpy": "2.0.0"})
    second = write_it(tmp_path / "b.json", other, samples)
    text = report_from_results([first, second], tmp_path / "r.html").read_text(encoding="utf-8")
    assert text.count('class="tone-changed"') == 2
    words = Page(text).text
    assert "first result: 2.4.6" in words
    assert "Environment: b.json against a.json" in words
    assert "env.OMP_NUM_THREADS 2 1 decides" in words


def test_difference_tables_say_where_nothing_differs() -> None:
    result = plain_result()
    (table,) = difference_tables([("a.json", result), ("b.json", result)])
    assert table.rows == ()
    assert table.caption == "Nothing differs."


def test_report_from_results_refuses_what_cannot_be_written(written: Written, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no result"):
        report_from_results([], tmp_path / "r.html")
    (tmp_path / "r.html").write_text("mine")
    with pytest.raises(CannotWriteError):
        report_from_results([written(everything=False)], tmp_path / "r.html")
    with pytest.raises(BadDataError):
        report_from_results([tmp_path / "r.html"], tmp_path / "s.html")


def test_checked_thumbnail_lets_only_the_pixels_of_a_small_png_through() -> None:
    good, small = thumbnail(1), thumbnail(1, side=16)
    assert pixels_of(checked_thumbnail(small)).tolist() == pixels_of(small).tolist()
    clean = checked_thumbnail(good)
    assert len(clean) < len(good) / 2
    assert np.abs(pixels_of(clean).astype(int) - pixels_of(good).astype(int)).mean() < 16
    assert checked_thumbnail(None) == ""
    assert checked_thumbnail("not base64 !") == ""
    assert checked_thumbnail(base64.b64encode(b"<svg onload='alert(1)'/>").decode()) == ""
    assert checked_thumbnail(thumbnail(1, side=65)) == ""
    assert checked_thumbnail("A" * 100_000) == ""
    truncated = base64.b64encode(base64.b64decode(good)[:60]).decode()
    assert checked_thumbnail(truncated) == ""


def test_checked_thumbnail_drops_text_hidden_in_a_png() -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", "hidden words")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(buffer, "PNG", pnginfo=info)
    assert b"hidden words" in buffer.getvalue()
    clean = base64.b64decode(checked_thumbnail(base64.b64encode(buffer.getvalue()).decode()))
    assert b"hidden words" not in clean


def test_summary_table_sets_bold_only_what_is_told_apart() -> None:
    result = plain_result()
    strong = {
        (row[0].text, header)
        for row in summary_table(result).rows
        for header, cell in zip(summary_table(result).headers, row, strict=True)
        if cell.strong
    }
    assert ("student int8", "p50, ms") in strong
    assert ("student", "p50, ms") not in strong
    same = replace(
        result,
        comparisons=tuple(replace(comparison, verdict="inconclusive") for comparison in result.comparisons),
    )
    assert not any(cell.strong for row in summary_table(same).rows for cell in row[4:])


def test_best_arm_is_none_where_two_candidates_overlap() -> None:
    result = plain_result()
    p50 = [comparison for comparison in result.comparisons if comparison.metric == "latency.e2e.p50"]
    close = tuple(
        replace(comparison, ratio=0.5 + 0.001 * at, ci95=(0.49, 0.51), verdict="faster")
        for at, comparison in enumerate(p50[:2])
    )
    table = summary_table(replace(result, comparisons=close))
    column = table.headers.index("p50, ms")
    assert not any(row[column].strong for row in table.rows)
    assert best_arm(replace(result, arms=result.arms[:1]), lambda *_: True) is None


def test_summary_table_says_how_many_queries_a_percentile_needs() -> None:
    result = plain_result(launches=2, blocks=2, block=20)
    table = summary_table(result)
    cell = table.rows[0][table.headers.index("p99.9, ms")]
    assert (cell.text, cell.remark) == ("–", "not estimable: needs 2,995, has 72")


def test_thinned_keeps_the_extremes() -> None:
    times = np.random.default_rng(0).integers(100, 200, 50_000).astype(np.int64)
    times[12_345], times[40_000] = 10_000, 1
    chosen = thinned(times)
    assert chosen.size <= 600
    assert {12_345, 40_000} <= set(chosen.tolist())
    assert (np.diff(chosen) > 0).all()


def test_bars_of_keep_the_extremes() -> None:
    times = np.random.default_rng(0).uniform(1.0, 2.0, 50_000)
    times[777], times[49_999] = 90.0, 0.1
    x, y = bars_of(np.arange(50_000.0), times, stretches=300)
    assert x.size == y.size == 900
    assert (np.nanmin(y), np.nanmax(y)) == (0.1, 90.0)
    assert np.isnan(y[2::3]).all()


def test_clock_of_cuts_out_the_time_between_launches() -> None:
    _, samples = rich_result(everything=False, launches=3)
    clock = clock_of(samples)
    lengths = [(end - start) / 1e9 for start, end in zip(clock.starts, clock.ends, strict=True)]
    assert clock.launches == (0, 1, 2)
    assert clock.places[1] == pytest.approx(lengths[0] + 0.012 * sum(lengths))
    stamps = np.array([clock.starts[0], clock.ends[0] + 10**9, clock.starts[1], clock.ends[2]], np.int64)
    seconds = clock.at(stamps)
    assert np.isnan(seconds).tolist() == [False, True, False, False]
    assert seconds[3] == pytest.approx(clock.places[2] + lengths[2])


def test_clock_of_leaves_out_launches_that_only_warmed_up() -> None:
    _, samples = rich_result(everything=False, launches=3)
    flags = np.where(samples["launch"] == 2, 1, samples["flags"])
    assert clock_of(Samples({**samples.columns, "flags": flags})).launches == (0, 1)


def test_readings_of_a_counter_are_its_increase_per_second() -> None:
    second = 10**9
    samples = Samples(
        {
            "telemetry_t_ns": np.array([0, second, 2 * second, 3 * second, 5 * second], np.int64),
            "telemetry_steal_ticks": np.array([0, 100, -1, 150, 50], np.int64),
            "telemetry_clock_khz": np.array([2_000_000, -1, 2_500_000, -1, -1], np.int64),
        }
    )
    steal = next(strip for strip in STRIPS if strip.column == "steal_ticks")
    stamps, values = readings_of(samples, steal)
    assert stamps.tolist() == [second, 3 * second]  # it went back in the end: another counter
    assert values.tolist() == [1.0, 0.25]
    clock = next(strip for strip in STRIPS if strip.column == "clock_khz")
    assert readings_of(samples, clock)[1].tolist() == [2.0, 2.5]


def test_strips_of_leave_out_absent_sensors_and_counters_that_never_moved() -> None:
    _, samples = rich_result()
    assert [strip.column for strip in strips_of(samples)] == ["clock_khz", "temperature_mc", "steal_ticks"]
    assert "quota_us" in {strip.column for strip in read_strips(samples)}
    assert strips_of(Samples({})) == []


def test_stage_means_add_up_to_the_block_time() -> None:
    scenario = plain_result().arms[0].scenarios[0]
    means = stage_means(scenario)
    assert sum(means.values()) * (1 - 0.004) == pytest.approx(scenario.latency.e2e.mean)
    assert means["gap"] / sum(means.values()) == pytest.approx(0.004)


def test_ratios_of_have_the_control_last() -> None:
    result = rich_result()[0]
    rows = ratios_of(result)
    assert [short for short, comparison in rows if comparison.b == "student"] == ["p50", "p90", "p99", "offline"]
    assert {comparison.b for _, comparison in rows[-3:]} == {"teacher (A/A)"}


def test_dominates_takes_both_speed_and_accuracy() -> None:
    teacher, student, _, _ = plain_result(wrong=0).arms
    assert dominates(student, teacher)
    assert not dominates(teacher, student)
    assert not dominates(teacher, teacher)
    slower_but_right, faster_but_wrong, _, _ = plain_result(wrong=9).arms
    assert not dominates(faster_but_wrong, slower_but_right)


def test_section_of_a_partial_result_has_no_figures() -> None:
    section = section_of("r.json", partial_result(), Samples({}), part="r1-")
    assert section.summary is None
    assert (section.figures, section.comparison, section.latency, section.method) == ((), (), (), ())


def test_text_table_is_at_most_100_columns_wide() -> None:
    for names in (("teacher", "student"), ("a" * 80, "long name with spaces " * 3), ("x\x1b[31m", "b\u202e")):
        result = plain_result(names=names, times_ms=(1234.5, 0.1))
        lines = text_table(result).splitlines()
        assert max(map(len, lines)) <= MAX_WIDTH
        assert all(line.isprintable() for line in lines)
        assert len({len(line) for line in (lines[0], lines[2], lines[3])}) == 1


def test_text_table_of_a_known_result() -> None:
    lines = text_table(plain_result()).splitlines()
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
    assert lines[3].split()[:7] == ["teacher", "5.57", "M", "22.3", "MB", "100.00", "ref."]
    assert lines[4].split() == ["98.4–100.0", "4.06–4.07", "≤", "10.8"]
    assert lines[5].split()[-2:] == ["2.77", "x"]
    assert len(lines[3]) == len(lines[5]) == len(lines[6])
    assert "teacher (A/A)" not in text_table(plain_result()).partition("\n\n")[0]


def test_notes_tell_verdict_noise_rigor_and_what_is_missing() -> None:
    result = plain_result(launches=2, blocks=2, block=20, rigor="quick")
    result = replace(result, status=replace(result.status, converged=False))
    notes = "\n".join(notes_of(result))
    assert "A/A control: the baseline against itself" in notes
    assert "Rigor quick: 2 launches" in notes
    assert "NOT CONVERGED" in notes
    assert "p99 of teacher is not estimable (needs 299 queries, has 72)" in notes
    assert "within this run only" in notes
    assert "1 test image was left out: an arm had seen it." in notes


def test_text_table_warns_first_when_the_run_is_not_valid() -> None:
    text = text_table(plain_result(mismatch=3))
    notes = text.partition("\n\n")[2]
    assert notes.startswith("NOT VALID")
    assert "is faster than" not in text


def test_tables_of_a_partial_result_say_so() -> None:
    assert text_table(partial_result()).startswith("PARTIAL: the run was cut short")
    assert "interrupted in launch 1" in markdown_table(partial_result())


def test_markdown_table_escapes_names_and_has_a_cell_for_every_header() -> None:
    lines = markdown_table(plain_result(names=("a|b", "c`<i>"), times_ms=(2.0, 1.0))).splitlines()
    cells = [re.split(r"(?<!\\)\|", line) for line in lines[:4]]
    assert {len(row) for row in cells} == {12}
    assert "a\\|b" in lines[2]
    assert "\\<i\\>" in lines[3]


def test_headline_says_accuracy_with_speed() -> None:
    assert (
        headline(plain_result()) == "student int8 is 5.9 times as fast as teacher, with top-1 95.83 % against 100.00 %"
    )
    alone = plain_result(names=("one",), times_ms=(2.0,), aa=False)
    assert headline(alone).startswith("one answers in 2.0")
    assert headline(partial_result()) == "The run was cut short before anything was measured"


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("slower", "student takes 1.2 times as long as teacher, "),
        ("equivalent", "student and teacher differ in time by no more than 1 %, "),
        ("inconclusive", "Whether student is faster or slower than teacher is open; top-1 "),
        ("not comparable", "student and teacher cannot be compared from this run; top-1 "),
    ],
)
def test_headline_claims_only_what_the_verdict_does(verdict: str, words: str) -> None:
    result = plain_result(names=("teacher", "student"), times_ms=(1.0, 1.2))
    changed = verdict_of(result, verdict=verdict, ratio=1.2, delta=0.01)
    text = headline(replace(result, comparisons=(changed,)))
    assert text.startswith(words)
    assert "times as fast" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"verdict": "faster", "ratio": 0.5, "speedup": 2.0, "ci95": (0.48, 0.52), "delta": 0.01},
            (
                "student is faster than teacher by 50.0 % [48.0, 52.0] of its time, 2 times as fast (p50 end to end, paired, 5 "
                "launches); that is beyond the margin of 1 %."
            ),
        ),
        (
            {"verdict": "slower", "ratio": 1.2, "ci95": (1.1, 1.3), "delta": 0.034},
            (
                "student is slower than teacher by 20.0 % [10.0, 30.0] (p50 end to end, paired, 5 launches); that is beyond 3.4 "
                "%, by which the baseline differs from itself."
            ),
        ),
        (
            {"verdict": "equivalent", "ratio": 1.001, "ci95": (0.998, 1.004), "delta": 0.01},
            (
                "student and teacher do not differ by more than 1 %: ratio of times 1.001 [0.998, 1.004] (p50 end to end, "
                "paired, 5 launches)."
            ),
        ),
        (
            {"verdict": "inconclusive", "ratio": 0.99, "ci95": (0.97, 1.01), "delta": 0.01, "launches_needed": 19},
            (
                "Inconclusive: whether student is faster or slower than teacher by more than 1 % is open, ratio of times 0.990 "
                "[0.970, 1.010] (p50 end to end, paired, 5 launches); about 14 more launches would resolve it."
            ),
        ),
        (
            {"verdict": "not comparable", "launches": 1, "scope": "within-run only"},
            (
                "student and teacher are not comparable (p50 end to end, paired, 1 launch, within this run only): the CPU was "
                "throttled."
            ),
        ),
    ],
)
def test_verdict_sentence_of_each_verdict(changes: dict[str, object], words: str) -> None:
    result = plain_result(names=("teacher", "student"), times_ms=(1.0, 1.0))
    result = replace(result, status=replace(result.status, reasons=("the CPU was throttled",)))
    assert verdict_sentence(result, verdict_of(result, **changes)) == words


def test_sentences_call_better_only_what_is_faster_and_right_more_often() -> None:
    result = plain_result(names=("teacher", "student"), times_ms=(2.0, 1.0))
    assert "better" not in " ".join(sentences(result))
    first = result.comparisons[0]
    twin = replace(first.accuracy, delta_top1=0.02, delta_ci95=(0.01, 0.03), only_b_right=5, only_a_right=0)
    text = " ".join(sentences(replace(result, comparisons=(replace(first, accuracy=twin),))))
    assert "In both it is better than teacher." in text


def test_sentences_do_not_claim_a_change_of_accuracy_that_chance_would_make() -> None:
    text = " ".join(sentences(plain_result(wrong=2)))
    assert "no more than chance would do" in text


def test_noise_sentence_says_what_was_not_measured() -> None:
    assert noise_sentence(plain_result(aa=False)).startswith("No A/A control was measured")


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
    assert [duration_text(value) for value in (52, 999.6, 1_500, 12_345_678, 3 * 10**9)] == [
        "52 ns", "1.00 µs", "1.50 µs", "12.3 ms", "3.00 s",
    ]  # fmt: skip
    assert duration_range(289e6, 313e6) == "289 – 313 ms"
    assert duration_range(890e6, 1.2e9) == "890 ms – 1.20 s"
    assert [points(share) for share in (-0.0042, 0.01, 0.00001, -0.00001)] == ["−0.42", "+1.00", "0.00", "0.00"]
