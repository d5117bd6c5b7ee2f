"""Watches the system calls of the whole way, without pytest: nothing leaves this computer.

    python benchmarks/phones_home.py                    four minutes on two cores; strace must be installed
    python benchmarks/phones_home.py --only doctor      one command

Every command runs under `strace -f` with the calls of the network and those that start processes traced: all of its processes and
threads, native code included, in a home folder of its own and with the variables removed by which libraries notice a CI machine (a
home folder that exists, on a computer that is no CI machine, is what telemetry waits for). `edgebert run` trains, distils, exports,
quantises and compiles the built-in digits in a few epochs, as `edgebert demo` does in more; `bench`, `report` and the smaller
commands follow. Allowed are Unix sockets, netlink and the loopback; printed is every kind of call with an address that there was.
Then the same commands run in a network name space without any interface (`unshare --net`, where this computer lets us), where they
must work as well. In the end the home folder holds nothing but
matplotlib's list of fonts.

The last line is the summary; returns 1 where a call left the computer, a command failed, or a file was left in the home folder.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHORT = ("--set", "train.epochs=2", "--set", "distill.epochs=2", "--set", "quantize.images=32")
QUICK = ("--launches", "1", "--queries", "20", "--seconds", "0", "--max-warmup-seconds", "0.2")
# On a busy computer so short a measurement may be inconclusive (4) or not valid (5); here it has only to happen.
ENDINGS = {"bench": (0, 4, 5)}
# matplotlib lists the fonts of the computer the first time that a report is drawn.
KEPT = (".cache/matplotlib/fontlist-",)
_TRACED = "trace=network,clone,clone3,fork,vfork,execve"
_CALLS = ("connect", "sendto", "sendmsg", "sendmmsg", "bind")
_STARTS = re.compile(r"^\d+ +(clone3?|v?fork)\(")
_LINE = re.compile(r"^(?:\[pid +)?(\d+)\]? +(\w+)\((.*)")
_FAMILY = re.compile(r"sa_family=(AF_\w+)")
_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_CI = re.compile(
    r"^(CI|NNCF_CI|ORT_DISABLE_TELEMETRY|DO_NOT_TRACK|HF_HUB_.*|.*_TELEMETRY.*|GITHUB_.*|EDGEBERT_TEST_.*|PYTEST_.*)$"
)


@dataclass(frozen=True, slots=True)
class Call:
    """One system call with an address."""

    name: str
    family: str
    address: str  # without the port; "" where the family has none
    port: str

    @property
    def leaves(self) -> bool:
        """Whether it reaches beyond this computer; a `bind` only listens."""
        if self.name == "bind" or self.family not in ("AF_INET", "AF_INET6"):
            return False
        return not self.address or not _is_loopback(self.address)


def _is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback or address.is_unspecified  # connecting to 0.0.0.0 is connecting to oneself


def calls_of(trace: Iterable[str]) -> list[Call]:
    """Return the calls with an address of the output of `strace -f -e trace=network`."""
    found = []
    for line in trace:
        matched = _LINE.match(line)
        if matched is None or matched[2] not in _CALLS:
            continue
        family = _FAMILY.search(matched[3])
        if family is None:
            continue  # a send through a connected socket
        address, port = _ADDRESS.search(matched[3]), _PORT.search(matched[3])
        found.append(
            Call(
                matched[2], family[1], (address[1] or address[2]) if address else "", port[1] if port else "",
            )
        )  # fmt: skip
    return found


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the command lines by name, in their order."""
    edgebert = [sys.executable, "-m", "edgebert"]
    demo, bundle, result = folder / "demo", folder / "demo/digits.edgebert", folder / "demo/measured.json"
    recipe = folder / "recipe.toml"
    whole = (ROOT / "edgebert/recipes/demo.toml").read_text(encoding="utf-8")
    recipe.write_text(whole[: whole.index("[bench]")], encoding="utf-8")  # which is called by itself, below
    arms = [str(demo / "student"), str(demo / "digits.int8.onnx"), str(bundle)]
    return {
        "run": [*edgebert, "run", str(recipe), "-o", str(demo), *SHORT],
        "bench": [*edgebert, "bench", *arms, "--data", "digits", *QUICK, "-o", str(result)],
        "report": [*edgebert, "report", str(result), "-o", str(folder / "demo/report.html")],
        "verify": [*edgebert, "verify", str(bundle)],
        "inspect": [*edgebert, "inspect", str(bundle)],
        "predict": [*edgebert, "predict", str(bundle), str(bundle / "canary/0.png")],
        "doctor": [*edgebert, "doctor"],
        "targets": [*edgebert, "targets"],
        "nncf": [sys.executable, "-c", _NNCF],
    }


# No command of ours imports NNCF, the benchmarks do; this is how, and what it would send.
_NNCF = """
from edgebert.extras import require
require("nncf")
from nncf.telemetry import telemetry
telemetry.start_session("edgebert")
telemetry.send_event("a", "b", "c", force_send=True)
import time
time.sleep(1)
"""
_PLANTED = "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9))"


def main(arguments: list[str] | None = None) -> int:
    """Run the commands, print the table of calls, and return 0 where none left the computer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a command; repeatable")
    parser.add_argument("--without-offline", action="store_true", help="leave the second round out")
    parser.add_argument(
        "--plant", action="store_true", help="add a command that connects to 192.0.2.1; it must be found"
    )
    parser.add_argument("--json", type=Path, help="write the result there as well")
    given = parser.parse_args(arguments)
    if shutil.which("strace") is None:
        print("strace is not installed: nothing was watched")
        return 1
    with tempfile.TemporaryDirectory(prefix="phones-home-") as name:
        result = _watched(Path(name), given)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        f"{result['commands']} commands, {result['processes']} processes and threads, {result['calls']} calls with an address: "
        f"{result['left']} left this computer; {result['offline']}; {len(result['home'])} files left in the home folder; "
        f"{len(result['failed'])} commands failed"
    )
    return 1 if result["left"] or result["failed"] or result["home"] or not result["calls"] + result["commands"] else 0


def _watched(folder: Path, given: argparse.Namespace) -> dict[str, object]:
    chosen = {name: line for name, line in commands(folder).items() if not given.only or name in given.only}
    if given.plant:
        chosen["planted"] = [sys.executable, "-c", _PLANTED]
    home = folder / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not _CI.match(name)}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    environment["EDGEBERT_BENCH_LOCK"] = str(
        folder / "bench.lock"
    )  # nothing is measured, so no other measurement need be waited for
    table: Counter[Call] = Counter()
    failed, processes = [], 0
    for name, line in chosen.items():
        trace = folder / f"{name}.strace"
        watch = ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "0", "-e", _TRACED, "-o", str(trace)]
        ran = subprocess.run([*watch, *line], capture_output=True, text=True, check=False, env=environment, cwd=folder)
        if ran.returncode not in ENDINGS.get(name, (0,)):
            failed.append(name)
            print(f"{name} ended with {ran.returncode}: {ran.stderr.strip()[-2000:]}")
        lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
        calls = calls_of(lines)
        table.update(calls)
        started = 1 + sum(_STARTS.match(line) is not None for line in lines)
        processes += started
        print(f"{name}: {started} processes and threads, {len(calls)} calls with an address", flush=True)
    for call, count in sorted(table.items(), key=lambda entry: (not entry[0].leaves, str(entry))):
        place = f"{call.address}:{call.port}" if call.address else ""
        print(f"{'LEFT' if call.leaves else 'here'} {call.name} {call.family} {place} x{count}")
    offline = (
        "the offline round was left out" if given.without_offline else _offline(folder, chosen, environment, failed)
    )
    found = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    return {
        "commands": len(chosen),
        "processes": processes,
        "calls": table.total(),
        "left": sum(count for call, count in table.items() if call.leaves),
        "offline": offline,
        "home": sorted(name for name in found if not name.startswith(KEPT)),
        "failed": failed,
    }


def _offline(folder: Path, chosen: dict[str, list[str]], environment: dict[str, str], failed: list[str]) -> str:
    """Run the commands again where there is no network at all; return what to say of it."""
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        return "no name space without a network can be made here"
    shutil.rmtree(folder / "demo", ignore_errors=True)
    held = 0
    for name, line in chosen.items():
        if name == "planted":
            continue
        ran = subprocess.run([*alone, *line], capture_output=True, text=True, check=False, env=environment, cwd=folder)
        well = ran.returncode in ENDINGS.get(name, (0,))
        held += well
        if not well:
            failed.append(f"{name} offline")
            print(f"{name} without a network ended with {ran.returncode}: {ran.stderr.strip()[-2000:]}")
    return f"{held} worked without any network"


if __name__ == "__main__":
    sys.exit(main())
