"""The quota that the runtime keeps to, of a computer's files and of what a container shows of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgebert._cpu_quota import GROUPS, _Here, granted_cpus


class Tree(_Here):
    """Files of this computer, below another root."""

    def __init__(self, root: Path, files: dict[str, str]) -> None:
        self.root = root
        for name, text in files.items():
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def text(self, path: str) -> str | None:
        return super().text(f"{self.root}{path}")

    def exists(self, path: str) -> bool:
        return super().exists(f"{self.root}{path}")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({f"{GROUPS}/cpu.max": "150000 100000\n"}, 1.5),
        ({f"{GROUPS}/cpu.max": "max 100000\n"}, None),
        ({f"{GROUPS}/cpu/cpu.cfs_quota_us": "50000\n", f"{GROUPS}/cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({f"{GROUPS}/cpu/cpu.cfs_quota_us": "-1\n", f"{GROUPS}/cpu/cpu.cfs_period_us": "100000\n"}, None),
        (
            {
                "/proc/self/cgroup": "0::/app.slice/one\n",
                f"{GROUPS}/app.slice/one/cpu.max": "400000 100000\n",
                f"{GROUPS}/app.slice/cpu.max": "200000 100000\n",
            },
            2.0,
        ),
        ({"/proc/self/cgroup": "0::/of/the/host\n", f"{GROUPS}/cpu.max": "100000 100000\n"}, 1.0),
    ],
)
def test_granted_cpus_are_those_of_the_tightest_group(
    files: dict[str, str], expected: float | None, tmp_path: Path
) -> None:
    assert granted_cpus(Tree(tmp_path, files)) == expected


def test_granted_cpus_of_this_computer_are_none_or_more_than_nothing() -> None:
    granted = granted_cpus()
    assert granted is None or granted > 0
