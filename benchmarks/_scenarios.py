"""Every scenario of the fault sweeps, by command."""

from __future__ import annotations

from collections.abc import Callable

from _faults import Scenario
from _install_writers import install_mutants, install_scenarios
from _writers import compile_scenarios, file_mutants, quantize_scenarios

_SCENARIOS: dict[str, Callable[[], list[Scenario]]] = {
    "compile": compile_scenarios,
    "quantize": quantize_scenarios,
    "install": install_scenarios,
}
COMMANDS = tuple(_SCENARIOS)


def scenarios_of(command: str) -> list[Scenario]:
    """Return the ways in which `compile`, `quantize` or `install` writes."""
    return _SCENARIOS[command]()


def mutants() -> list[Scenario]:
    """Return the writers with a fault that each sweep must find."""
    return [*file_mutants(), *install_mutants()]
