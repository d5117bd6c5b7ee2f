"""Installs the tests' audit hook (`../hook.py`) in a Python process that a test has started, before its first line.

The folder is put on PYTHONPATH by the parent's hook and holds nothing else. A `sitecustomize` that it hides is run afterwards.
"""

# See hook.py:
# ruff: noqa: PTH100, PTH118, PTH120

from __future__ import annotations

import os
import sys


def _watch() -> None:
    log, folders = os.environ.get("EDGEBERT_TEST_AUDIT_LOG"), os.environ.get("EDGEBERT_TEST_AUDIT_FOLDERS")
    if not log or not folders:
        return
    import atexit
    from importlib.machinery import SourceFileLoader  # `site` has loaded what is behind it
    from types import ModuleType

    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    loaded = {}
    for name in ("exceptions", "hook"):
        path = os.path.join(here, f"{name}.py")
        loaded[name] = ModuleType(f"edgebert_test_audit_{name}")
        loaded[name].__file__ = path
        code = SourceFileLoader(loaded[name].__name__, path).get_code(loaded[name].__name__)
        assert code is not None
        exec(code, loaded[name].__dict__)  # noqa: S102  (as an import does)
    test = os.environ.get("EDGEBERT_TEST_AUDIT_TEST") or os.environ.get("PYTEST_CURRENT_TEST", "")
    os.environ["EDGEBERT_TEST_AUDIT_TEST"] = test
    audit = loaded["hook"].install(log, folders.split(os.pathsep), loaded["exceptions"].EXEMPTIONS, test)
    atexit.register(audit.finish)


def _run_the_hidden_one() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    mine = sys.modules.pop("sitecustomize", None)
    paths, sys.path[:] = sys.path[:], [path for path in sys.path if path != here]
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401  (the next one on the path)
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        sys.path[:] = [path for path in paths if path != here]
        if "sitecustomize" not in sys.modules and mine is not None:
            sys.modules["sitecustomize"] = mine


_watch()
_run_the_hidden_one()
