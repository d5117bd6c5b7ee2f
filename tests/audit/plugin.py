"""The pytest plugin of the audit hook: a violation fails the test during which it happened, in whichever process.

`tests/conftest.py` registers it, so it is always on. Violations of children that come in after their test fail the session. Lines of
the table that a whole run did not use are told; they fail a run with `--audit-json FILE`, which is how `benchmarks/audited_suite.py`
gets the counts.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from types import ModuleType

import pytest

_WHERE = "tests/audit/exceptions.py"


class AuditPlugin:
    """Installs the hook and reads its log.

    Args:
        hook: the module `hook.py`.
        exceptions: the module `exceptions.py`.
        config: of the session.
    """

    def __init__(self, hook: ModuleType, exceptions: ModuleType, config: pytest.Config) -> None:
        self._hook, self._config = hook, config
        self._exemptions = exceptions.EXEMPTIONS
        descriptor, name = tempfile.mkstemp(prefix="edgebert-test-audit-", suffix=".log")
        os.close(descriptor)
        self._log = Path(name)
        self._read = 0
        self._partial = b""
        self.counts: Counter[str] = Counter()
        self.used: set[int] = set()
        self.violations: list[str] = []
        self._late: list[str] = []
        self.processes: set[str] = set()
        self._missed: list[str] = []
        self._deselected = False
        folders = [tempfile.gettempdir(), str(config.rootpath / ".pytest_cache")]
        base = config.getoption("basetemp", None)
        if base:
            folders.append(str(Path(base).absolute()))
        os.environ.update(hook.child_environment(str(self._log), folders))
        os.environ.pop(hook.TEST_VARIABLE, None)  # of a run around this one
        os.environ["PYTHONPATH"] = hook.with_children_folder(os.environ.get("PYTHONPATH", ""))
        self._audit = hook.install(str(self._log), folders, self._exemptions)

    def _new_violations(self) -> list[str]:
        """Read what has been added to the log since the last look, and return the violations in it."""
        if self._log.stat().st_size == self._read:
            return []
        with self._log.open("rb") as stream:
            stream.seek(self._read)
            content = stream.read()
        self._read += len(content)
        *lines, self._partial = (self._partial + content).split(b"\n")
        found = []
        for line in lines:
            kind, process, *fields = line.decode("ascii").split("\t")
            self.processes.add(process)
            if kind == "used":
                self.used.add(int(fields[0]))
            elif kind == "counts":
                pairs = (part.partition("=") for part in fields[0].split())
                # A child whose files may not grow leaves half a number.
                self.counts.update({event: int(count) for event, _, count in pairs if count.isdigit()})
            else:
                event, what, by, test = fields
                found.append(f"{event} of `{what}` by `{by}` in process {process}, started in {test or 'no test'}")
        self.violations += found
        return found

    def _check(self, phase: str) -> None:
        found = self._new_violations()
        if found:
            listed = "\n  ".join(dict.fromkeys(found))
            pytest.fail(f"the audit hook saw in {phase}:\n  {listed}\nallowed is what {_WHERE} names", pytrace=False)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Fail a set-up that broke a rule."""
        result = yield
        self._check("the set-up")
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Fail a test that broke a rule."""
        result = yield
        self._check("the test")
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Fail a tear-down that broke a rule."""
        result = yield
        self._check("the tear-down")
        return result

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """Remember whether other than slow tests were left out."""
        self._deselected = self._deselected or any(item.get_closest_marker("slow") is None for item in items)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the session for what came in after its test, and one that is counted for lines of the table that nothing used."""
        self._late = self._new_violations()
        self.counts.update(self._audit.counts)
        self._missed = [repr(self._exemptions[index]) for index in self._unused(session)]
        path = self._config.getoption("audit_json", None)
        # What a computer lacks makes lines needless there, so that a plain run only tells them.
        failed = self._late or (self._missed and path)
        if failed and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if path:
            Path(path).write_text(json.dumps(self.summary(), indent=1) + "\n", encoding="utf-8")
        self._log.unlink(missing_ok=True)

    def _unused(self, session: pytest.Session) -> list[int]:
        """Return the lines that nothing used, of a whole run only: all of tests/, no test left out, none failed."""
        whole = not self._deselected and session.config.args_source is not pytest.Config.ArgsSource.ARGS
        slow = "slow" in str(session.config.getoption("markexpr", ""))
        if not whole or session.testsfailed or session.config.getoption("keyword", ""):
            return []
        return [
            index
            for index, exemption in enumerate(self._exemptions)
            if index not in self.used and not (exemption.unused and (slow or exemption.unused != "slow"))
        ]

    def summary(self) -> dict[str, object]:
        """Return the counts by event, the processes seen, the lines used, and the violations."""
        return {
            "counts": dict(sorted(self.counts.items())),
            "processes": len(self.processes) + 1,
            "exemptions": len(self._exemptions),
            "used": sorted(self.used),
            "violations": self.violations,
        }

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what failed the session, and one line of counts."""
        for line in self._late:
            terminalreporter.write_line(f"audit: after its test, {line}", red=True)
        for line in self._missed:
            terminalreporter.write_line(f"audit: nothing used this line of {_WHERE}: {line}", red=True)
        terminalreporter.write_line(
            f"audit: {self.counts.total():,} events judged in {len(self.processes) + 1} processes, "
            f"{len(self.used)} exceptions used, {len(self.violations)} violations"
        )
