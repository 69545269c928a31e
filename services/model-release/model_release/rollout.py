"""Which releases of a model serve: one pointer for all modes, the moves it makes, and a canary's sides. No I/O.

RolloutError
├── MoveRefused       a move that makes no sense from where the pointer stands
├── NotLoaded         processes that must know the release do not; each is named with its reason
└── PointerMoved      somebody else moved it meanwhile
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from xxhash import xxh3_64_intdigest


class RolloutError(Exception):
    """The pointer stays as it is."""


class MoveRefused(RolloutError):
    """The message says why, and what would be right."""


class NotLoaded(RolloutError):
    """`reasons`: one sentence a process."""

    def __init__(self, release: str, reasons: list[str]) -> None:
        super().__init__(f"{release} cannot serve yet: " + "; ".join(reasons))
        self.reasons = reasons


class PointerMoved(RolloutError):
    """Look where it stands now, and decide again."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A release that decides for a `share` (0 to 1] of the entities; `salt` says for which."""

    release: str
    share: float
    salt: str


@dataclass(frozen=True, slots=True)
class Pointer:
    """What of a model serves. `previous`: what `rolled_back` returns to; `generation`: grows with every move.

    Empty texts stand for none.
    """

    model: str
    current: str
    generation: int = 1
    previous: str = ""
    canary: Canary | None = None
    shadow: str = ""
    moved_us: int = 0
    who: str = ""

    @property
    def releases(self) -> tuple[str, ...]:
        """All that score, the current one first."""
        others = (self.canary.release if self.canary is not None else "", self.shadow)
        return (self.current, *(release for release in others if release))

    def role(self, release: str) -> str:
        """current, canary, shadow, previous or an empty text."""
        if release == self.current:
            return "current"
        if self.canary is not None and release == self.canary.release:
            return "canary"
        return "shadow" if release == self.shadow else "previous" if release == self.previous else ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Pointer:
        """The pointer that `to_json` described; fields that a newer version added are passed over.

        Raises ValueError, KeyError or TypeError for anything else.
        """
        found: dict[str, Any] = json.loads(text)  # Any: JSON
        known = {name: value for name, value in found.items() if name in cls.__dataclass_fields__}
        canary = known.get("canary")
        if canary is not None:
            known["canary"] = Canary(str(canary["release"]), float(canary["share"]), str(canary["salt"]))
        return cls(**known)


# Moves. Each gives the pointer as it should be; the very same object where nothing is to be done.


def promoted(pointer: Pointer, release: str) -> Pointer:
    """`release` decides for everyone; a canary ends."""
    shadow = "" if pointer.shadow == release else pointer.shadow
    if release == pointer.current:
        return pointer if pointer.canary is None else replace(pointer, canary=None, shadow=shadow)
    return replace(pointer, current=release, previous=pointer.current, canary=None, shadow=shadow)


def with_canary(pointer: Pointer, release: str, share: float, salt: str) -> Pointer:
    """`release` decides for a share. A canary that runs keeps its salt, so that more share only adds entities.

    Raises MoveRefused.
    """
    if not 0.0 < share <= 1.0:
        raise MoveRefused(f"a canary's share must be above 0% and at most 100%, found {share:.6g}")
    if release == pointer.current:
        raise MoveRefused(f"{release} is current: it decides for everyone already")
    running = pointer.canary
    if running is not None and running.release != release:
        raise MoveRefused(f"a canary of {running.release} runs; promote it or roll it back first")
    canary = Canary(release, share, salt if running is None else running.salt)
    if canary == running:
        return pointer
    return replace(pointer, canary=canary, shadow="" if pointer.shadow == release else pointer.shadow)


def with_shadow(pointer: Pointer, release: str) -> Pointer:
    """`release` scores what others decide, unseen. Raises MoveRefused."""
    if (role := pointer.role(release)) in ("current", "canary"):
        raise MoveRefused(f"{release} is {role}: it answers, so that it cannot be a shadow")
    return pointer if pointer.shadow == release else replace(pointer, shadow=release)


def without_shadow(pointer: Pointer) -> Pointer:
    return replace(pointer, shadow="") if pointer.shadow else pointer


def rolled_back(pointer: Pointer) -> Pointer:
    """A canary ends; without one the release before is current again, and there is nothing before it.

    So who rolls back twice does not bring back what was taken off. Raises MoveRefused.
    """
    if pointer.canary is not None:
        return replace(pointer, canary=None)
    if not pointer.previous:
        raise MoveRefused(f"{pointer.current} followed no release, or was rolled back to; promote one by its name")
    shadow = "" if pointer.shadow == pointer.previous else pointer.shadow
    return replace(pointer, current=pointer.previous, previous="", shadow=shadow)


class Sides:
    """Who is on a canary's side: a hash of salt and key below the share. The same in every process, for ever."""

    __slots__ = ("_limit", "_seed")

    def __init__(self, canary: Canary) -> None:
        self._seed = xxh3_64_intdigest(canary.salt.encode())
        self._limit = int(canary.share * (1 << 64))

    def __contains__(self, key: bytes) -> bool:
        return xxh3_64_intdigest(key, self._seed) < self._limit
