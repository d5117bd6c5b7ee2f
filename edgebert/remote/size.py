"""`edgebert size ... --host USER@HOST`: candidates are built here and measured on a device, whose latency it is that counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgebert._console import printable
from edgebert.bench.arms import ArmRequest
from edgebert.bench.codec import from_json, to_json
from edgebert.bench.environment.computer import Environment
from edgebert.bench.options import BenchOptions
from edgebert.bench.samples import Samples
from edgebert.bench.selection import Selection
from edgebert.bench.session import ArmSession, LaunchRecord, Session
from edgebert.bundle import read_bundle
from edgebert.errors import BadDataError, RefusedError
from edgebert.remote.agent import plain_text
from edgebert.remote.bench import push_images
from edgebert.remote.compile import DevicePlace
from edgebert.remote.objects import arms_to_json, sent_arms
from edgebert.remote.session import DeviceSession
from edgebert.remote.ssh import SshOptions
from edgebert.remote.transport import Transport
from edgebert.remote.wire import columns_from_bytes
from edgebert.train.sizing import SizeOptions, SizePlace, SizeReport, sizes_from_data
from edgebert.train.sizing_measure import Latency, latencies_of_session

_ROUND_SECONDS = 3600.0
_MAX_CORES = 1024


def sizes_on(
    transport: Transport,
    data: str,
    options: SizeOptions,
    output: Path | None = None,
    *,
    keep: bool = False,
    ssh: SshOptions | None = None,
) -> SizeReport:
    """Measure untrained students on a device; see `edgebert.train.sizing.sizes_from_data`.

    Args:
        transport: how the device is reached.
        data: on this computer.
        options: how; `threads` 0 means the physical cores of the device.
        output: a `.json` file for the table; None for none.
        keep: leave what is pushed on the device.
        ssh: how it is reached, over SSH.

    Raises:
        LinkLostError: the device cannot be reached, or the link broke; nothing was written.
        RefusedError: a host key, a login or an answer cannot be trusted.
        EdgebertError: what `sizes_from_data` raises, here or there.
    """
    with DeviceSession(transport, ssh=ssh, keep=keep) as session:
        environment, cores = _computer(session)
        found = SizePlace(
            place=DevicePlace(session, keep=keep),
            measure_arms=_DeviceArms(session),
            environment=replace(environment, device=replace(environment.device, transport=transport.way)),
            cores=cores,
        )
        return sizes_from_data(data, options, output, found)


class _DeviceArms:
    """Measures bundles on a device, one interleaved launch for all of them."""

    def __init__(self, session: DeviceSession) -> None:
        self._session = session

    def __call__(
        self, requests: Sequence[ArmRequest], selection: Selection, options: BenchOptions
    ) -> tuple[dict[str, Latency], float | None]:
        arms, objects = sent_arms(requests)
        self._session.push(objects)
        images = push_images(self._session, selection)
        reply = self._session.ask(
            "launch",
            {"arms": arms_to_json(arms), "options": to_json(options), "selection": images},
            timeout_s=_ROUND_SECONDS,
        )
        name = f"the answer of `{self._session.name}`"
        try:
            record = from_json(LaunchRecord, reply.fields.fields("launch").value, what=name)
            columns = columns_from_bytes(reply.blobs.get("columns", b""), what=name)
            if len(record.arms) != len(requests):
                raise BadDataError(f"{name} has {len(record.arms)} arms", expected=str(len(requests)))
            session = Session(
                arms=tuple(
                    ArmSession(card=read_bundle(request.path).manifest.card, launches=(facts,))
                    for request, facts in zip(requests, record.arms, strict=True)
                ),
                samples=Samples(columns),
                timed=len(record.timed),
                activities=(record.activity,),
                own_cpu_s=record.own_cpu_s,
                looks=record.looks,
            )
            return latencies_of_session(session, [request.name for request in requests])
        except (BadDataError, IndexError, KeyError, ValueError) as error:
            said = error.what if isinstance(error, BadDataError) else f"{name} does not fit together: {error}"
            raise RefusedError(printable(said)[:1500]) from error


def _computer(session: DeviceSession) -> tuple[Environment, int]:
    """Return what a device says of itself, and its physical cores."""
    fields = session.ask("facts", {}, timeout_s=120.0).fields
    try:
        environment = from_json(Environment, fields.fields("environment").value, what=f"what `{session.name}` says")
        cores = fields.integer("cores")
    except BadDataError as error:
        raise RefusedError(printable(error.what), expected=plain_text(error.expected)) from error
    if not 1 <= cores <= _MAX_CORES:
        raise RefusedError(f"`{session.name}` has {cores} cores", expected=f"1 to {_MAX_CORES}")
    return environment, cores
