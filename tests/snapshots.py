"""Snapshots of a gateway for tests, by the names of their parts' fields."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Final

from squidkeeper.services.exporter.snapshot import (
    CertificateView,
    GatewayPlace,
    HelperView,
    LogView,
    PolicyView,
    RecordView,
    ServiceView,
    Snapshot,
    SquidView,
)

_PARTS: Final[dict[str, Any]] = {
    "place": GatewayPlace,
    "log": LogView,
    "policies": PolicyView,
    "processes": HelperView,
    "proxy": SquidView,
    "certificates": CertificateView,
    "records": RecordView,
    "services": ServiceView,
}
_PART_OF: Final = {
    field.name: part for part, kind in _PARTS.items() for field in fields(kind)
}


def snapshot_of(now: float, **values: Any) -> Snapshot:
    """Make a snapshot; each value goes to the part that has its field."""
    return Snapshot(
        now, **{name: _PARTS[name](**of) for name, of in _by_part(values).items()}
    )


def changed(view: Snapshot, **values: Any) -> Snapshot:
    """Change fields of a snapshot, in whatever part they are."""
    own = {"now": values.pop("now")} if "now" in values else {}
    parts = {
        name: replace(getattr(view, name), **of)
        for name, of in _by_part(values).items()
        if of
    }
    return replace(view, **own, **parts)


def _by_part(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {} for name in _PARTS}
    for name, value in values.items():
        found[_PART_OF[name]][name] = value
    return found
