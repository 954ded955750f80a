"""The CA's part of an installation: what signs the leaves, which files hold it, and
what has to go.

Clients trust the root (`Layout.ca_cert`). Squid signs with another pair of files
(`Layout.signing_cert`): an intermediate and its key, or the root itself (`--ca
direct`). The root's key is read where it is. It is written where a root is made, and
where only Squid's pair had it: beside the root, readable by root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.layout import Layout
from squidkeeper.operate.setup.entries import Entry, File, Owner, read_entry, text_at
from squidkeeper.operate.setup.gateway_settings import GatewaySettings
from squidkeeper.serving.certificates.authority import (
    CertificateAuthority,
    certificate_of,
    check_ca,
    check_direct,
    is_due,
    is_intermediate,
    is_issued_by,
    is_key_of,
    issuer_of,
    make_ca,
    make_intermediate,
    may_sign_intermediates,
    renewed_from,
    strict_faults,
)

_DIRECT: Final = "direct"
_INTERMEDIATE: Final = "intermediate"
_AUTO: Final = "auto"
_NOT_CHOSEN: Final = "-"
_GIVE_THE_KEY: Final = (
    "run this with --ca-dir DIR, the folder of the CA's ca.crt and ca.key"
)
_NEW_CA: Final = "--ca-dir with an empty folder makes a new CA"
_HELP: Final = "./install.sh --help explains the options"
_ALERTED_DAYS: Final = 30  # SquidkeeperCaEndsSoon


@dataclass(frozen=True, slots=True, kw_only=True)
class CaFiles:
    """What a run makes of the CA."""

    signing: CertificateAuthority
    # written before `read_by_squid`. It can hold the root's key: it is prepared nowhere
    first: Mapping[Path, Entry]
    read_by_squid: Mapping[Path, Entry]
    last: Mapping[Path, Entry]
    gone: tuple[Path, ...]  # keys that must not stay
    said: tuple[tuple[str, str], ...]


def ca_files(
    given: Path | None,
    settings: GatewaySettings,
    layout: Layout,
    owner: Owner,
    now: datetime,
) -> CaFiles:
    """Choose what signs, and make what is missing; `SetupFailed` where that is
    impossible. `given` is a folder of a CA.
    """
    return _Chooser(given, settings, layout, owner, now).choose()


@dataclass(frozen=True, slots=True)
class _Choices:
    """The values of two settings; empty where they have none."""

    ca: str = ""
    days: str = ""

    @classmethod
    def parse(cls, text: str) -> _Choices:
        """Parse what a run before has noted."""
        return cls(*("" if word == _NOT_CHOSEN else word for word in text.split()[:2]))

    def __str__(self) -> str:
        return f"{self.ca or _NOT_CHOSEN} {self.days or _NOT_CHOSEN}"

    @property
    def lifetime(self) -> int | None:
        """Return the days of an intermediate; None: as long as its CA."""
        return None if self.days in ("", _AUTO) else int(self.days)


@dataclass(frozen=True, slots=True)
class _Root:
    """The CA, and the folder that it is from, or made for.

    Where its key is not here: the intermediate that stays.
    """

    ca: CertificateAuthority
    folder: Path
    origin: str
    made: bool = False
    stays: CertificateAuthority | None = None


class _Chooser:
    def __init__(
        self,
        given: Path | None,
        settings: GatewaySettings,
        layout: Layout,
        owner: Owner,
        now: datetime,
    ) -> None:
        self._layout = layout
        self._owner = owner
        self._now = now
        self._given = given
        self._choices = _Choices(
            settings.ca or "", str(settings.intermediate_days or "")
        )
        self._told = _Choices.parse(text_at(layout.ca_choices))
        self._placed = self._in_place()
        self._said: list[tuple[str, str]] = []

    def choose(self) -> CaFiles:
        """Choose by what there is: the CA with its key, or what signs."""
        root = self._root()
        return self._keep(root.ca, root.stays) if root.stays else self._sign_by(root)

    def _say(self, label: str, text: str) -> None:
        self._said.append((label, text))

    # What is there

    def _in_place(self) -> CertificateAuthority | None:
        paths = (self._layout.signing_cert, self._layout.signing_key)
        return _read_ca(*paths) if all(path.exists() for path in paths) else None

    def _root(self) -> _Root:
        layout, given, placed = self._layout, self._given, self._placed
        folder = given or layout.ca_cert.parent
        if any(folder.iterdir()) if given else layout.ca_key.exists():
            origin = f"from {given}" if given else "in place"
            return _Root(_read_ca(folder / "ca.crt", folder / "ca.key"), folder, origin)
        if placed and not given:
            if is_intermediate(placed.certificate):
                ca = CertificateAuthority(issuer_of(placed.certificate), b"")
                return _Root(ca, folder, "in place", stays=placed)
            return _Root(placed, folder, "in place")
        for path in (
            ()
            if given
            else (
                layout.ca_cert,
                layout.ca_key,
                layout.signing_cert,
                layout.signing_key,
            )
        ):
            if os.path.lexists(path):
                raise SetupFailed(
                    f"{path} is there, but its other half is missing",
                    f"{_GIVE_THE_KEY}; {_NEW_CA}",
                )
        return _Root(make_ca(self._now), folder, "made, for ten years", made=True)

    # What signs

    def _keep(self, ca: CertificateAuthority, placed: CertificateAuthority) -> CaFiles:
        self._check_end(ca, placed)
        check_ca(placed, self._now)
        if self._choices.ca == _DIRECT or self._days_change:
            raise SetupFailed("the CA's key is not here", _GIVE_THE_KEY)
        self._say_root(ca, "in place")
        self._say_intermediate(placed, " with --ca-dir DIR")
        if is_due(placed.certificate, self._now):
            self._say("WARNING", f"the intermediate is to be renewed: {_GIVE_THE_KEY}")
        return self._files(ca, placed, {})

    def _check_end(
        self, ca: CertificateAuthority, placed: CertificateAuthority
    ) -> None:
        ends = certificate_of(placed.certificate).not_valid_after_utc
        if ends > self._now:
            return
        if certificate_of(ca.certificate).not_valid_after_utc <= self._now:
            raise SetupFailed("the CA in place has expired", _NEW_CA)
        raise SetupFailed(
            f"the intermediate has expired, at {ends:%Y-%m-%d %H:%M} UTC", _GIVE_THE_KEY
        )

    def _sign_by(self, root: _Root) -> CaFiles:
        check_ca(root.ca, self._now)
        self._say_root(root.ca, root.origin)
        if not self._is_by_intermediate(root.ca):
            self._check_no_days()
            check_direct(root.ca)
            self._say(
                "",
                f"no intermediate: Squid signs with the CA's own key, in {self._layout.signing_key}",
            )
            return self._files(
                root.ca,
                root.ca,
                self._files_of(root) if root.made and self._given else {},
            )
        signing = self._intermediate(root.ca)
        in_place = root.folder == self._layout.ca_cert.parent
        self._say_intermediate(
            signing, "" if in_place else f" with --ca-dir {root.folder}"
        )
        return self._files(root.ca, signing, self._files_of(root))

    def _say_root(self, root: CertificateAuthority, origin: str) -> None:
        self._say("CA", f"{origin}: {self._layout.ca_cert}")
        for label, text in _replaces(
            dict(self._previous(root.certificate)), root, self._layout.ca_cert
        ):
            self._say(label, text)
        faults = list(strict_faults(root.certificate))
        for fault in faults:
            self._say(
                "WARNING",
                f"clients that check strictly, such as Python 3.13, refuse this CA: {fault}",
            )
        if faults:
            self._say(
                "",
                f"to fix: {_NEW_CA} that they accept; then every VM must trust the new ca.crt",
            )

    def _say_intermediate(self, signing: CertificateAuthority, how: str) -> None:
        begins, ends = (
            renewed_from(signing.certificate),
            certificate_of(signing.certificate).not_valid_after_utc,
        )
        self._say("", f"an intermediate signs, until {ends:%Y-%m-%d}")
        if begins:
            self._say(
                "",
                f"to renew it, run install.sh{how} after {begins:%Y-%m-%d %H:%M} UTC: nothing else does",
            )
        days = self._choices.lifetime
        if days and days <= _ALERTED_DAYS:
            self._say(
                "WARNING",
                f"--intermediate-days {days} is little: choose 60 or more. The alerts fire ahead of the",
            )
            self._say(
                "",
                f"end: SquidkeeperCaEndsSoon {_ALERTED_DAYS} days, SquidkeeperCaEndsNow (critical) 7 days",
            )

    def _check_no_days(self) -> None:
        if self._choices.days:
            advice = (
                f"leave it out, or use the CA by an intermediate (--ca {_INTERMEDIATE})"
            )
            raise SetupFailed(
                "--intermediate-days is for an intermediate, and the CA signs directly",
                advice,
            )

    def _is_by_intermediate(self, ca: CertificateAuthority) -> bool:
        if self._choices.ca == _DIRECT:
            return False
        if not may_sign_intermediates(ca):
            if self._choices.ca == _INTERMEDIATE:
                raise SetupFailed(
                    "the path length of the CA, 0, allows no intermediate",
                    "use it by --ca direct",
                )
            self._say("", "its path length, 0, allows no intermediate")
            return False
        return True

    def _intermediate(self, ca: CertificateAuthority) -> CertificateAuthority:
        placed = self._placed
        if placed and not self._days_change and self._is_good(placed, ca):
            return placed
        return make_intermediate(ca, self._now, self._choices.lifetime)

    def _is_good(self, placed: CertificateAuthority, ca: CertificateAuthority) -> bool:
        certificate = placed.certificate
        return (
            is_intermediate(certificate)
            and certificate.endswith(ca.certificate)
            and is_issued_by(certificate, ca)
            and is_key_of(placed.key, certificate)
            and not is_due(certificate, self._now)
        )

    @property
    def _days_change(self) -> bool:
        return (self._choices.days or _AUTO) != (self._told.days or _AUTO)

    # The files

    def _files_of(self, root: _Root) -> dict[Path, Entry]:
        """List the files of a root whose key stays on this machine: for renewals,
        readable by root alone.
        """
        certificate, key = File(root.ca.certificate), File(root.ca.key, 0o600)
        if root.folder == self._layout.ca_cert.parent:
            self._say(
                "", f"the CA's key is in {self._layout.ca_key}, which root alone reads"
            )
            self._say(
                "",
                "to keep it elsewhere: copy it and ca.crt into DIR, and run this with --ca-dir DIR, which",
            )
            self._say("", "removes it here")
            return {self._layout.ca_key: key}
        if not root.made:
            return {}
        self._say(
            "",
            f"the CA's key is in {root.folder}/ca.key: keep this folder, on another machine if you like",
        )
        return {root.folder / "ca.crt": certificate, root.folder / "ca.key": key}

    def _files(
        self,
        root: CertificateAuthority,
        signing: CertificateAuthority,
        roots: Mapping[Path, Entry],
    ) -> CaFiles:
        layout, chosen, previous = (
            self._layout,
            str(self._choices),
            dict(self._previous(root.certificate)),
        )
        gone = tuple(
            path for path in self._gone(root, signing, previous) if path not in roots
        )
        if layout.ca_key in gone and is_key_of(
            layout.ca_key.read_bytes(), root.certificate
        ):
            self._say(
                "", f"{layout.ca_key} is removed: the CA's key is in {self._given}"
            )
        noted = layout.ca_choices.exists() or chosen != str(_Choices())
        return CaFiles(
            signing=signing,
            first={**previous, **roots, layout.ca_cert: File(root.certificate)},
            read_by_squid={
                layout.signing_cert: File(signing.certificate, 0o644, self._owner),
                layout.signing_key: File(signing.key, 0o600, self._owner),
            },
            last={layout.ca_choices: File(f"{chosen}\n".encode())} if noted else {},
            gone=gone,
            said=tuple(self._said),
        )

    def _previous(self, root: bytes) -> Iterator[tuple[Path, Entry]]:
        for certificate, key in _pairs(self._layout):
            former, its_key = read_entry(certificate), read_entry(key)
            if (
                isinstance(former, File)
                and former.content != root
                and not is_intermediate(former.content)
            ):
                yield _beside(certificate), File(former.content)
                if isinstance(its_key, File):
                    yield _beside(key), File(its_key.content, 0o600)

    def _gone(
        self,
        root: CertificateAuthority,
        signing: CertificateAuthority,
        previous: Mapping[Path, Entry],
    ) -> Iterator[Path]:
        key = self._layout.ca_key
        if key.exists() and self._is_kept_elsewhere(key, root, previous):
            yield key
        for path in (
            _beside(key) for _, key in _pairs(self._layout) if signing.key != root.key
        ):
            if path.is_file() and is_key_of(path.read_bytes(), root.certificate):
                yield path

    def _is_kept_elsewhere(
        self, key: Path, root: CertificateAuthority, previous: Mapping[Path, Entry]
    ) -> bool:
        """Whether a key in the root's place is in the folder given, or beside it: it is
        that of another CA.
        """
        given = self._given / "ca.key" if self._given else key
        if given.exists() and given.samefile(key):
            return False
        content, kept = (
            key.read_bytes(),
            previous.get(_beside(key)) or read_entry(_beside(key)),
        )
        return is_key_of(content, root.certificate) or (
            isinstance(kept, File) and kept.content == content
        )


def _pairs(layout: Layout) -> tuple[tuple[Path, Path], ...]:
    return (layout.ca_cert, layout.ca_key), (layout.signing_cert, layout.signing_key)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")


def _read_ca(certificate: Path, key: Path) -> CertificateAuthority:
    return CertificateAuthority(certificate.read_bytes(), key.read_bytes())


def _replaces(
    previous: Mapping[Path, Entry], root: CertificateAuthority, certificate: Path
) -> Iterator[tuple[str, str]]:
    pems = [
        entry.content
        for path, entry in previous.items()
        if ".crt" in path.name and isinstance(entry, File)
    ]
    formers, key = (
        [certificate_of(pem) for pem in pems],
        certificate_of(root.certificate).public_key(),
    )
    if not formers:
        return
    if all(former.public_key() == key for former in formers):
        ends = min(former.not_valid_after_utc for former in formers)
        yield (
            "",
            f"it was issued again for the same key: clients need the new {certificate} by {ends:%Y-%m-%d}",
        )
    else:
        yield (
            "WARNING",
            f"it replaces another CA: every client must trust the new {certificate}",
        )
    yield "", f"the former one is kept: {' '.join(map(str, previous))}"
