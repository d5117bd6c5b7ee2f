"""What an installation remembers: `state.json`, schema `edgebert.installation/1`.

Everything is ordered by counting, never by a clock: a device without one starts in 1970.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from edgebert._json import Fields, JsonObject, dump_json, parse_json_object
from edgebert.errors import BadDataError, UnreadableError
from edgebert.install.folder import NOT_A_FILE, STATE, Folder

STATE_SCHEMA = "edgebert.installation/1"
MOST_REMEMBERED = 256

BadKind = Literal["self-test", "crashed", "damaged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """One bundle that was current here.

    Attributes:
        digest: its identity.
        name: of its manifest.
        release: of its manifest, 0 where it was not numbered.
        signed_by: the principal whose signature was checked when it was installed, or None.
        checked_at: when that was, in seconds since 1970 by this computer's clock, or None.
    """

    digest: str
    name: str
    release: int = 0
    signed_by: str | None = None
    checked_at: int | None = None

    def to_json(self) -> JsonObject:
        return {
            "digest": self.digest,
            "name": self.name,
            "release": self.release,
            "signed_by": self.signed_by,
            "checked_at": self.checked_at,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Installed:
        return cls(
            digest=digest_of(fields, "digest"),
            name=fields.text("name"),
            release=fields.integer("release"),
            signed_by=fields.optional_text("signed_by"),
            checked_at=None if fields.value.get("checked_at") is None else fields.integer("checked_at"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A bundle that is not picked again by itself.

    Attributes:
        digest: its identity.
        kind: it failed its self-test, its process died while it was opened, or its files here are damaged.
        reason: for people.
    """

    digest: str
    kind: BadKind
    reason: str

    def to_json(self) -> JsonObject:
        return {"digest": self.digest, "kind": self.kind, "reason": self.reason}

    @classmethod
    def from_fields(cls, fields: Fields) -> Bad:
        kind = fields.text("kind")
        if kind not in get_args(BadKind):
            raise BadDataError(f"{fields.what} has kind `{kind:.40}`", expected=", ".join(get_args(BadKind)))
        return cls(digest=digest_of(fields, "digest"), kind=kind, reason=fields.text("reason"))  # type: ignore[arg-type]  # just checked


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A switch of `current` that is written down before it is done, so that whoever comes after a kill completes it.

    Attributes:
        to: the digest that becomes current.
        replaces: the digest that becomes previous, or None.
        installed: what joins the history then; None of a roll-back.
        resets: whether that sets the marks back (`State.with_marks_of`).
    """

    to: str
    replaces: str | None
    installed: Installed | None = None
    resets: bool = False

    def to_json(self) -> JsonObject:
        return {
            "to": self.to,
            "replaces": self.replaces,
            "installed": None if self.installed is None else self.installed.to_json(),
            "resets": self.resets,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Switch:
        return cls(
            to=digest_of(fields, "to"),
            replaces=None if fields.value.get("replaces") is None else digest_of(fields, "replaces"),
            installed=None
            if fields.value.get("installed") is None
            else Installed.from_fields(fields.fields("installed")),
            resets=fields.value.get("resets") is True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What an installation remembers.

    Attributes:
        installs: how often anything was installed.
        highest_release: of all that was ever installed, since it was last set back.
        history: the newest 256, the newest last; a digest stands once, at its newest place.
        bad: what is not picked again by itself, the newest last.
        pending: a switch that is under way, or was when the process died.
    """

    installs: int = 0
    highest_release: int = 0
    history: tuple[Installed, ...] = ()
    bad: tuple[Bad, ...] = ()
    pending: Switch | None = None

    def installed(self, digest: str) -> Installed | None:
        """Return what is remembered of a digest."""
        return next((entry for entry in self.history if entry.digest == digest), None)

    def why_bad(self, digest: str) -> Bad | None:
        """Return why a digest is not picked, or None."""
        return next((entry for entry in self.bad if entry.digest == digest), None)

    def was_replaced(self, digest: str) -> bool:
        """Say whether a bundle was installed here and something else after it."""
        return digest in {entry.digest for entry in self.history[:-1]}

    def with_installed(self, entry: Installed) -> State:
        """Return the state after `entry` became current by an installation; it is not bad any more."""
        history = (*(old for old in self.history if old.digest != entry.digest), entry)
        return replace(
            self.without_bad(entry.digest),
            installs=self.installs + 1,
            highest_release=max(self.highest_release, entry.release),
            history=history[-MOST_REMEMBERED:],
        )

    @property
    def latest_check(self) -> int:
        """When a signature was last checked at an installation here, by the clock of then; 0 where none was."""
        return max((entry.checked_at or 0 for entry in self.history), default=0)

    def with_marks_of(self, entry: Installed) -> State:
        """Return the state in which this installation is the latest there was: its release the highest, its time the last."""
        until = entry.checked_at
        history = self.history
        if until is not None:
            history = tuple(
                replace(old, checked_at=min(old.checked_at, until)) if old.checked_at is not None else old
                for old in history
            )
        return replace(self, highest_release=entry.release, history=history)

    def with_bad(self, entry: Bad) -> State:
        """Return the state with one more bundle that is not picked."""
        return replace(self, bad=(*self.without_bad(entry.digest).bad, entry)[-MOST_REMEMBERED:])

    def without_bad(self, digest: str) -> State:
        """Return the state in which this bundle may be picked."""
        return replace(self, bad=tuple(entry for entry in self.bad if entry.digest != digest))

    def settled(self, current: str | None) -> State:
        """Return the state without a pending switch: done where `current` says that it happened, dropped where not."""
        if self.pending is None:
            return self
        state, entry = self, self.pending.installed
        if self.pending.to == current and entry is not None:
            state = self.with_installed(entry)
            if self.pending.resets:
                state = state.with_marks_of(entry)
        return replace(state, pending=None)

    def to_json(self) -> JsonObject:
        return {
            "schema": STATE_SCHEMA,
            "installs": self.installs,
            "highest_release": self.highest_release,
            "history": [entry.to_json() for entry in self.history],
            "bad": [entry.to_json() for entry in self.bad],
            "pending": None if self.pending is None else self.pending.to_json(),
        }

    @classmethod
    def from_json(cls, content: bytes, *, what: str) -> State:
        """Read what `to_json` wrote.

        Raises:
            BadDataError: it is malformed, or of another version.
        """
        fields = Fields(parse_json_object(content, what=what), what=what)
        if fields.text("schema") != STATE_SCHEMA:
            raise BadDataError(f"{what} has schema `{fields.text('schema'):.80}`", expected=f"`{STATE_SCHEMA}`")
        return cls(
            installs=fields.integer("installs"),
            highest_release=fields.integer("highest_release"),
            history=tuple(Installed.from_fields(entry) for entry in fields.list_of_fields("history")),
            bad=tuple(Bad.from_fields(entry) for entry in fields.list_of_fields("bad")),
            pending=None if fields.value.get("pending") is None else Switch.from_fields(fields.fields("pending")),
        )


def read_state(folder: Folder) -> State:
    """Read `state.json`; nothing is remembered of a folder in which nothing was ever installed.

    Raises:
        BadDataError: it is damaged; or it is missing and something is installed, so that somebody removed it.
        UnreadableError: the system does not let it be read.
    """
    hint = "edgebert install BUNDLE --to DIR --allow-downgrade begins a new one"
    try:
        content = folder.read(STATE)
        if content is not None:
            return State.from_json(content, what=f"`{folder.path / STATE}`")
    except OSError as error:
        kind = BadDataError if error.errno in NOT_A_FILE else UnreadableError
        raise kind(f"cannot read `{folder.path / STATE}`: {error.strerror}", hint=hint) from error
    except BadDataError as error:
        raise BadDataError(error.what, expected=error.expected, hint=hint) from error
    if folder.link("current") is not None:
        raise BadDataError(f"`{folder.path / STATE}` is missing, so nobody knows what was installed before", hint=hint)
    return State()


def write_state(folder: Folder, state: State) -> None:
    """Write `state.json` in one step; durable when this returns."""
    folder.write(STATE, dump_json(state.to_json()).encode())


def listed(digests: Sequence[str]) -> str:
    """Return digests for people, shortened."""
    return ", ".join(f"{digest[:12]}" for digest in digests)


def digest_of(fields: Fields, key: str) -> str:
    value = fields.text(key)
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise BadDataError(f"{fields.what} has `{value:.80}` as `{key}`", expected="64 hexadecimal digits")
    return value
