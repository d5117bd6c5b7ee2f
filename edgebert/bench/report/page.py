"""One self-contained page from results: what came out in words, the table, figures, and how it was measured.

No script, no address of anything outside the page, and the same bytes for the same results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from edgebert._files import check_file_is_free, check_not_input, staged_file
from edgebert.bench.report.environment import difference_tables, marked
from edgebert.bench.report.parts import Table
from edgebert.bench.report.sections import Section, section_of
from edgebert.bench.result import read_result, read_result_samples
from edgebert.bench.samples import Samples
from edgebert.bench.schema import Result
from edgebert.errors import BadDataError, UsageError
from edgebert.extras import require

MAX_REPORT_BYTES = 2 << 20  # a page that cannot be mailed is no report

_TEMPLATE = "report.html.j2"


def report_from_results(results: Sequence[Path], output: Path, *, force: bool = False) -> Path:
    """Write one page that shows results, one after the other.

    Args:
        results: `*.json` files of `bench`, their samples beside them.
        output: the page, an `.html` file.
        force: replace an existing one.

    Returns:
        `output`.

    Raises:
        UsageError: no result is named.
        InputNotFoundError, BadDataError, RefusedError: as `read_result`.
        UnavailableError: the extra `report` is not installed.
        CannotWriteError: `output` exists without `force`, or cannot be written.
    """
    if not results:
        raise UsageError("no result is named", expected="one or more results of `edgebert bench`")
    check_not_input(output, *results)
    check_file_is_free(output, force=force)
    found = [(path, read_result(path)) for path in results]
    sections = [
        section_of(path.name, result, _samples_of(path, result), part=f"r{number}-")
        for number, (path, result) in enumerate(found, 1)
    ]
    sections = [
        dataclasses.replace(section, environment=marked(section.environment, sections[0].environment))
        for section in sections
    ]
    differences = difference_tables([(path.name, result) for path, result in found])
    page = page_of(sections, differences).encode("utf-8")
    if len(page) > MAX_REPORT_BYTES:
        raise BadDataError(
            f"the report would have {len(page):,} bytes",
            expected=f"at most {MAX_REPORT_BYTES:,}",
            hint="name fewer results",
        )
    with staged_file(output, force=force) as staging:
        staging.write_bytes(page)
    return output


def page_of(sections: Sequence[Section], differences: Sequence[Table] = ()) -> str:
    """Return the page as HTML.

    Args:
        sections: one for each result.
        differences: of the environments of the results, a table for each but the first.
    """
    require("jinja2")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("edgebert.bench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(sections=sections, differences=differences) + "\n"


def _samples_of(path: Path, result: Result) -> Samples:
    """Return the samples of a result; none of one that was cut short before there were any."""
    return read_result_samples(path, result) if result.arms else Samples({})
