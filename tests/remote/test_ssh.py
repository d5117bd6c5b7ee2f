"""One command over SSH: whose host key counts, who is let in, what is read, and what a lost link means."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgebert.errors import LinkLostError, RefusedError, UnavailableError, UsageError
from edgebert.remote.ssh import (
    Destination,
    Ended,
    RemoteCommand,
    SshOptions,
    converse,
    parse_destination,
    quoted,
)

asyncssh = pytest.importorskip("asyncssh")
Start = Callable[..., Any]


def ask(
    destination: Destination, command: Sequence[str], content: bytes = b"", options: SshOptions | None = None
) -> Ended:
    """Run a command, send it something, and return how it ended."""

    async def talk(remote: RemoteCommand) -> Ended:
        await remote.send(content, lambda _: None)
        return await remote.finish()

    return asyncio.run(converse(destination, command, talk, options or SshOptions(connect_seconds=20)))


@pytest.fixture
def device(start_device: Start) -> Iterator[Any]:
    with start_device() as server:
        yield server


def at(server: Any) -> Destination:
    return Destination(host="127.0.0.1", user="pi", port=server.port)


def known_hosts(host_home: Path) -> Path:
    return host_home / ".ssh/known_hosts"


# -- what runs


def test_converse_returns_what_the_command_said_and_its_exit_code(device: Any, host_home: Path) -> None:
    device.trust(known_hosts(host_home))
    ended = ask(at(device), ["sh", "-c", "read line; echo got $line; echo aside >&2; exit 3"], b"seven\n")
    assert (ended.exit_code, ended.signal, ended.answer, ended.log) == (3, None, b"got seven\n", "aside")


def test_converse_names_the_signal_that_ended_the_command(start_device: Start, host_home: Path) -> None:
    with start_device(instead=("/bin/sh", "-c", "kill -9 $$")) as device:
        device.trust(known_hosts(host_home))
        ended = ask(at(device), ["true"])
    assert (ended.exit_code, ended.signal) == (None, "KILL")


def test_converse_quotes_every_word_for_the_devices_shell(device: Any, host_home: Path) -> None:
    device.trust(known_hosts(host_home))
    words = ["a b", "$HOME", "`id`", "it's", "*", ";", "", "\\", '"', "ü"]
    ended = ask(at(device), ["sh", "-c", 'for word in "$@"; do echo "<$word>"; done', "sh", *words])
    assert ended.answer.decode().splitlines() == [f"<{word}>" for word in words]


def test_quoted_keeps_a_home_folder_for_the_device_to_fill_in(device: Any, host_home: Path) -> None:
    device.trust(known_hosts(host_home))
    tool = device.home / "my tools" / "it's"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho here\n")
    tool.chmod(0o755)
    assert quoted(["~/my tools/it's"]).startswith("~/'")
    assert ask(at(device), ["~/my tools/it's"]).answer == b"here\n"


def test_converse_goes_on_where_the_command_stops_reading(device: Any, host_home: Path) -> None:
    device.trust(known_hosts(host_home))
    ended = ask(at(device), ["sh", "-c", "exec <&-; echo enough"], b"x" * (8 << 20))
    assert ended.answer == b"enough\n"


def test_converse_escapes_control_characters_of_the_log(device: Any, host_home: Path) -> None:
    device.trust(known_hosts(host_home))
    ended = ask(at(device), ["printf", r"\033[2J\033]0;owned\007"])
    assert ended.answer.startswith(b"\x1b")  # the raw answer is for a parser, not for a terminal
    assert ask(at(device), ["sh", "-c", r"printf '\033[2J' >&2"]).log == r"\x1b[2J"


def test_converse_stops_reading_at_the_limit_of_the_answer(device: Any, host_home: Path) -> None:
    device.trust(known_hosts(host_home))
    options = SshOptions(max_answer_bytes=1 << 20)
    with pytest.raises(RefusedError, match="more than 1,048,576 bytes"):
        ask(at(device), ["sh", "-c", "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done"], b"", options)


def test_converse_stops_reading_at_the_limit_of_the_log(device: Any, host_home: Path) -> None:
    device.trust(known_hosts(host_home))
    options = SshOptions(max_log_bytes=1 << 20)
    endless = "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx >&2; done"
    with pytest.raises(RefusedError, match="bytes of log"):
        ask(at(device), ["sh", "-c", endless], b"", options)


def test_converse_forwards_no_agent_whatever_the_configuration_says(device: Any, host_home: Path) -> None:
    device.trust(known_hosts(host_home))
    (host_home / ".ssh/config").write_text("ForwardAgent yes\nForwardX11 yes\nRemoteCommand echo no\nSendEnv *\n")
    assert ask(at(device), ["sh", "-c", "echo ${SSH_AUTH_SOCK:-none}"]).answer == b"none\n"
    assert device.agents_offered == 0


# -- host keys: six refusals (reliability.md, G15)


def test_unknown_host_key_is_refused_with_its_fingerprint_and_the_command(device: Any, host_home: Path) -> None:
    known_hosts(host_home).write_text("")
    with pytest.raises(RefusedError) as caught:
        ask(at(device), ["true"])
    assert device.host_key.get_fingerprint() in caught.value.what
    assert "is not known" in caught.value.what
    assert f"-p {device.port} pi@127.0.0.1" in (caught.value.hint or "")
    assert f"UserKnownHostsFile={known_hosts(host_home)}" in (caught.value.hint or "")
    assert device.commands == []


def test_changed_host_key_is_refused_with_both_fingerprints(device: Any, host_home: Path) -> None:
    before = asyncssh.generate_private_key("ssh-ed25519")
    device.trust(known_hosts(host_home), key=before)
    with pytest.raises(RefusedError, match="has changed") as caught:
        ask(at(device), ["true"])
    assert device.host_key.get_fingerprint() in caught.value.what
    assert before.get_fingerprint() in (caught.value.expected or "")
    assert "ssh-keygen -f" in (caught.value.hint or "")
    assert device.commands == []


def test_changed_kind_of_host_key_is_refused_as_changed(device: Any, host_home: Path) -> None:
    device.trust(known_hosts(host_home), key=asyncssh.generate_private_key("ecdsa-sha2-nistp256"))
    with pytest.raises(RefusedError, match="has changed") as caught:
        ask(at(device), ["true"])
    assert device.host_key.get_fingerprint() in caught.value.what


def test_revoked_host_key_is_refused(device: Any, host_home: Path) -> None:
    device.trust(known_hosts(host_home))
    device.trust(known_hosts(host_home), marker="@revoked ")
    with pytest.raises(RefusedError, match="is revoked") as caught:
        ask(at(device), ["true"])
    assert device.host_key.get_fingerprint() in caught.value.what


def test_key_revoked_under_the_name_without_port_is_refused(device: Any, host_home: Path) -> None:
    device.trust(known_hosts(host_home))
    public = device.host_key.export_public_key("openssh").decode()
    with known_hosts(host_home).open("a") as stream:
        stream.write(f"@revoked 127.0.0.1 {public}")
    with pytest.raises(RefusedError, match="is revoked"):
        ask(at(device), ["true"])


def test_host_is_refused_where_there_is_no_known_hosts_file(device: Any, host_home: Path) -> None:
    assert not known_hosts(host_home).exists()
    with pytest.raises(RefusedError, match="is not known"):
        ask(at(device), ["true"])
    assert not known_hosts(host_home).exists()  # nothing is added on its own


@pytest.mark.parametrize(
    "setting",
    [
        "UserKnownHostsFile none",
        "UserKnownHostsFile /dev/null",
        "UserKnownHostsFile none\n  GlobalKnownHostsFile none",
        "StrictHostKeyChecking no",
        "StrictHostKeyChecking accept-new",
        "NoHostAuthenticationForLocalhost yes",
        "VerifyHostKeyDNS yes",
    ],
)
def test_no_configuration_switches_the_check_off(device: Any, host_home: Path, setting: str) -> None:
    (host_home / ".ssh/config").write_text(f"Host *\n  {setting}\n")
    with pytest.raises(RefusedError, match="is not known"):
        ask(at(device), ["true"])


@pytest.fixture
def behind(start_device: Start, device: Any, host_home: Path) -> Iterator[tuple[Any, Any]]:
    """A device, and the jump host that the configuration puts before it."""
    with start_device(name="jump") as jump:
        (host_home / ".ssh/config").write_text(
            f"Host camera\n  HostName 127.0.0.1\n  Port {device.port}\n  User pi\n  ProxyJump bastion\n"
            f"Host bastion\n  HostName 127.0.0.1\n  Port {jump.port}\n  UserKnownHostsFile none\n"
        )
        yield device, jump


def test_jump_host_with_an_unknown_key_is_refused(behind: tuple[Any, Any], host_home: Path) -> None:
    device, jump = behind
    device.trust(known_hosts(host_home))
    with pytest.raises(RefusedError, match="is not known") as caught:
        ask(Destination(host="camera"), ["true"])
    assert jump.host_key.get_fingerprint() in caught.value.what
    assert device.commands == jump.commands == []


def test_device_behind_a_known_jump_host_is_checked_as_well(behind: tuple[Any, Any], host_home: Path) -> None:
    device, jump = behind
    jump.trust(known_hosts(host_home))
    with pytest.raises(RefusedError, match="is not known") as caught:
        ask(Destination(host="camera"), ["true"])
    assert device.host_key.get_fingerprint() in caught.value.what


def test_device_behind_a_jump_host_is_reached_where_both_are_known(behind: tuple[Any, Any], host_home: Path) -> None:
    device, jump = behind
    device.trust(known_hosts(host_home))
    jump.trust(known_hosts(host_home))
    assert ask(Destination(host="camera"), ["sh", "-c", "echo here"]).answer == b"here\n"
    assert len(device.commands) == 1
    assert jump.commands == []


def test_jump_hosts_that_lead_to_each_other_are_refused(host_home: Path) -> None:
    (host_home / ".ssh/config").write_text("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    with pytest.raises(UsageError, match="jump hosts"):
        ask(Destination(host="a"), ["true"])


def test_key_of_another_known_host_does_not_make_a_name_known(device: Any, host_home: Path) -> None:
    # `camera` leads to an address whose own key is known: somebody who answers for a wrong name must not pass.
    device.trust(known_hosts(host_home))
    with pytest.raises(RefusedError, match="is not known"):
        ask(Destination(host="localhost", user="pi", port=device.port), ["true"])


def test_known_hosts_file_of_the_configuration_is_used(device: Any, host_home: Path) -> None:
    device.trust(host_home / "lab_hosts")
    (host_home / ".ssh/config").write_text("Host *\n  UserKnownHostsFile ~/lab_hosts\n")
    assert ask(at(device), ["sh", "-c", "echo here"]).answer == b"here\n"


def test_unreadable_lines_of_known_hosts_are_passed_over(device: Any, host_home: Path) -> None:
    known_hosts(host_home).write_text("nonsense\n@marker x y\n|9|a|b ssh-ed25519 AAAA\n\xff\n", encoding="latin-1")
    device.trust(known_hosts(host_home))
    assert ask(at(device), ["sh", "-c", "echo here"]).answer == b"here\n"


def test_hashed_known_host_is_found(device: Any, host_home: Path) -> None:
    import subprocess

    device.trust(known_hosts(host_home))
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", known_hosts(host_home)], check=True, capture_output=True)
    assert "127.0.0.1" not in known_hosts(host_home).read_text()
    assert ask(at(device), ["sh", "-c", "echo here"]).answer == b"here\n"


# -- logging in, and links that fail


def test_user_without_a_key_is_refused_with_the_command_that_gives_one(device: Any, host_home: Path) -> None:
    device.trust(known_hosts(host_home))
    (host_home / ".ssh/id_ed25519").unlink()
    with pytest.raises(RefusedError, match="does not let this user in") as caught:
        ask(at(device), ["true"])
    assert caught.value.hint == f"ssh-copy-id -p {device.port} pi@127.0.0.1"


def test_port_where_nobody_listens_is_a_lost_link(device: Any, host_home: Path) -> None:
    port = device.port
    device.run(_close(device))
    with pytest.raises(LinkLostError, match="cannot be reached"):
        ask(Destination(host="127.0.0.1", port=port), ["true"])


async def _close(device: Any) -> None:
    device._acceptor.close()
    await device._acceptor.wait_closed()


def test_host_that_says_nothing_is_a_lost_link(host_home: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(LinkLostError, match=r"does not answer within 0\.5 seconds"):
            ask(Destination(host="127.0.0.1", port=port), ["true"], options=SshOptions(connect_seconds=0.5))


def test_link_that_falls_silent_is_lost(device: Any, host_home: Path, cutting_proxy: Start) -> None:
    with cutting_proxy(device.port, 20_000, hang=True) as proxy:
        device.trust(known_hosts(host_home), port=proxy.port)
        options = SshOptions(connect_seconds=20, silence_seconds=1)
        with pytest.raises(LinkLostError, match="broke"):
            ask(at(proxy), ["sleep", "60"], b"x" * 100_000, options)


def test_name_that_nobody_has_is_unavailable(host_home: Path) -> None:
    with pytest.raises(UnavailableError, match=r"no host is called `no-such-device\.invalid`"):
        ask(Destination(host="no-such-device.invalid"), ["true"])


def test_broken_configuration_is_told(host_home: Path) -> None:
    (host_home / ".ssh/config").write_text("Port many\n")
    with pytest.raises(UsageError, match="SSH configuration"):
        ask(Destination(host="127.0.0.1"), ["true"])


# -- names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("camera", Destination(host="camera")),
        ("pi@camera-3.lab:2222", Destination(host="camera-3.lab", user="pi", port=2222)),
        ("pi@[fe80::1%eth0]:22", Destination(host="fe80::1%eth0", user="pi", port=22)),
        ("10.0.0.7", Destination(host="10.0.0.7")),
    ],
)
def test_parse_destination_reads(text: str, expected: Destination) -> None:
    assert parse_destination(text) == expected
    assert parse_destination(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", "-oProxyCommand=x", "pi@", "@camera", "pi@-x", "a b", "a;b", "a\n", "pi@a:0", "pi@a:65536", "\x1b[2J"]
)
def test_parse_destination_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="names no device"):
        parse_destination(text)


@pytest.mark.parametrize("seconds", [0, -1, 3601])
def test_options_refuse_a_wait_that_is_none(seconds: float) -> None:
    with pytest.raises(UsageError, match="connect_seconds"):
        SshOptions(connect_seconds=seconds)


def test_key_files_that_are_missing_are_passed_over(device: Any, host_home: Path) -> None:
    device.trust(known_hosts(host_home))
    (host_home / ".ssh/config").write_text("Host *\n  IdentityFile ~/.ssh/of_another_computer\n")
    assert ask(at(device), ["true"]).exit_code == 0


def test_jump_host_may_be_written_as_a_uri(behind: tuple[Any, Any], host_home: Path) -> None:
    device, jump = behind
    device.trust(known_hosts(host_home))
    jump.trust(known_hosts(host_home))
    config = host_home / ".ssh/config"
    config.write_text(re.sub(r"ProxyJump (\S+)", r"ProxyJump ssh://\1", config.read_text()))
    assert "ssh://" in config.read_text()
    assert ask(Destination(host="camera"), ["true"]).exit_code == 0
