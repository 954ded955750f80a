"""A draft: what is proposed, and what is only listed."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from squidkeeper.change.learning.askers import Asker
from squidkeeper.change.learning.evidence import Evidence
from squidkeeper.policy.language.model import Client


class Unproposed(StrEnum):
    """Why something is listed and not proposed."""

    NEW = "new"
    ADDRESS = "address"
    PRIVATE = "private"
    UPLOADS = "uploads"
    DENIED = "observed-deny"
    TUNNEL = "tunnel"
    UNUSUAL = "unusual"
    MANY_PATHS = "many-paths"
    MANY_HOSTS = "many-hosts"
    FEW_CLIENTS = "few-clients"
    FEW_DAYS = "few-days"


@dataclass(frozen=True, slots=True)
class LearnedRule:
    """A rule of a draft, with what speaks for it. `port` is None where the schemes' own were used."""

    name: str
    clients: tuple[str, ...]
    hosts: tuple[str, ...]
    schemes: tuple[str, ...]
    port: int | None
    methods: tuple[str, ...]
    websocket: bool
    paths: tuple[str, ...]
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class LearnedPreset:
    """A preset that allows what these clients used."""

    name: str
    clients: tuple[str, ...]
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Listed:
    """What is not proposed: a host, or something of it, and why."""

    reason: Unproposed
    host: str
    detail: str
    clients: tuple[str, ...]
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft. `placed` counts the requests that it allows of `used`: those used, or asked for while observing.

    `defined` has the clients that its rules name.
    """

    defined: Mapping[str, Asker | Client]
    presets: tuple[LearnedPreset, ...]
    rules: tuple[LearnedRule, ...]
    listed: tuple[Listed, ...]
    placed: int
    used: Evidence | None
