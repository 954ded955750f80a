"""What `env`, `probe` and `brief` share: the gateway, its policy, one client of it, and
the proxy's URL.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import wraps
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from squidkeeper.base.errors import InvalidSetting, PolicyError
from squidkeeper.base.layout import Layout
from squidkeeper.cli.helper_options import path_option, shown_option
from squidkeeper.cli.options import combined, root_option
from squidkeeper.cli.role_options import assumed_session
from squidkeeper.cli.stored_session import StoredSession, stored_session

if TYPE_CHECKING:
    from squidkeeper.operate.client_kit.client import KitClient
    from squidkeeper.operate.client_kit.environment import ClientSettings, Proxy
    from squidkeeper.policy.engine import CompiledPolicy
    from squidkeeper.policy.language.hosts import Network


def client_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose a gateway and a client of it, which the command gets
    as `found`.
    """

    @wraps(command)
    def with_client(
        client: str | None,
        user: str | None,
        root: Path | None,
        directory: Path | None,
        transparent: bool,
        **options: Any,
    ) -> Any:
        return command(
            found=_read_client(client, user, root, directory, transparent=transparent),
            **options,
        )

    return combined(
        click.option(
            "--client",
            metavar="NAME",
            help="A client of the policy. [default: none of them]",
        ),
        click.option(
            "--user", metavar="NAME", help="The proxy user, if the client has several."
        ),
        root_option,
        path_option("--policy", "directory", help="Another policy."),
        click.option(
            "--transparent", is_flag=True, help="For a client without proxy settings."
        ),
    )(with_client)


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that the variables of a client are made from."""
    from squidkeeper.operate.client_kit import environment

    return combined(
        click.option(
            "--proxy",
            metavar="URL",
            help="The proxy's URL. [default: where Squid listens]",
        ),
        shown_option(
            "--ca-path",
            default=environment.CA_PATH,
            help="The gateway's root in the VM.",
        ),
        shown_option(
            "--bundle-path",
            default=environment.BUNDLE_PATH,
            help="All roots, in the VM.",
        ),
        shown_option(
            "--java-store-path",
            default=environment.JAVA_STORE_PATH,
            help="Java's trust store in the VM.",
        ),
        path_option("--ca", metavar="FILE", help="Another root, on this machine."),
        click.option(
            "--no-proxy",
            multiple=True,
            metavar="HOST",
            help="A host that the client reaches directly.",
        ),
    )(command)


@dataclass(frozen=True, slots=True)
class ClientOfGateway:
    """A client, with the gateway and the policy it belongs to."""

    layout: Layout
    policy: CompiledPolicy
    client: KitClient
    now: datetime
    transparent: bool  # the client has no proxy settings
    stored: StoredSession | None = None

    @property
    def networks(self) -> tuple[Network, ...]:
        """Where the client comes from, if that is known."""
        if self.stored:
            address = self.stored.address and ip_address(self.stored.address)
            networks = self.policy.source.session_networks
            return tuple(one for one in networks if address and address in one)
        return (self.client.client and self.client.client.networks) or ()

    def as_stored(self, given: str) -> ClientOfGateway:
        """Return the same for a session of the store; `InvalidSetting` for one that has
        ended.
        """
        if self.client.client or self.client.user:
            raise InvalidSetting("--session goes without --client and --user")
        found = stored_session(self.layout.state, given)
        if not found.is_active:
            raise InvalidSetting(
                f"session {found.row.number}, {given}, is not active: {found.state}"
            )
        if self.transparent and found.user:
            raise InvalidSetting(
                f"{given} logs in, and a client without proxy settings is known by its address alone"
            )
        client = replace(self.client, user=found.user, session=found.session)
        return replace(self, client=client, stored=found)

    def as_session(
        self, role: str | None, variables: tuple[str, ...]
    ) -> ClientOfGateway:
        """Return the same with the session that options assume."""
        session = assumed_session(self.policy.source, role, variables)
        return replace(self, client=replace(self.client, session=session))


def _read_client(
    client: str | None,
    user: str | None,
    root: Path | None,
    directory: Path | None,
    *,
    transparent: bool,
) -> ClientOfGateway:
    """Load the policy and find the client; `InvalidSetting` where that is not
    possible.
    """
    from squidkeeper.operate.client_kit.client import client_of
    from squidkeeper.policy.policy_store.loading import load

    layout, now = Layout.of(root), datetime.now(UTC)
    folder = directory or layout.policy
    try:
        policy = load(folder, now).compiled
        found = client_of(policy.source, client, user)
    except PolicyError as error:
        raise click.ClickException(
            f"{error}\n{folder} does not load: fix it first (squidkeeper check)"
        ) from error
    if transparent and found.user is not None:
        raise InvalidSetting(
            f"{found.name} logs in, and a client without proxy settings is known by `networks` alone"
        )
    return ClientOfGateway(layout, policy, found, now, transparent)


def read_settings(
    found: ClientOfGateway,
    proxy: str | None,
    no_proxy: tuple[str, ...],
    token: str | None = None,
    **paths: str,
) -> ClientSettings:
    """Check what the variables are made from; `InvalidSetting` says what was
    expected.
    """
    from squidkeeper.operate.client_kit.environment import ClientSettings, parse_proxy

    if found.transparent and (proxy or no_proxy):
        raise InvalidSetting(
            "--transparent is for clients without a proxy: leave --proxy and --no-proxy out"
        )
    url = (
        None if found.transparent else parse_proxy(proxy) if proxy else _proxy_of(found)
    )
    return ClientSettings(
        proxy=url, user=found.client.user, token=token, direct=no_proxy, **paths
    )


def read_token(found: ClientOfGateway, file: Path | None) -> str | None:
    """Read a token of the client from a file, `-` for standard input; `InvalidSetting`
    where it is none.
    """
    from squidkeeper.operate.client_kit.client import parse_token

    if file is None:
        return None
    try:
        text = sys.stdin.readline() if str(file) == "-" else file.read_text()
        if found.stored:
            return _token_of_session(found.stored, text.strip())
        return parse_token(found.client.client, text.strip(), found.now)
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(
            f"{file} cannot be read as a token: {type(error).__name__}"
        ) from error


def _token_of_session(stored: StoredSession, text: str) -> str:
    if sha256(text.encode()).hexdigest() != stored.row.token_sha256:
        raise InvalidSetting(f"this is no token of the session {stored.row.name}")
    return text


def read_root(file: Path) -> str:
    """Read the gateway's root: the last certificate of its file, where an intermediate
    comes before it.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        return (
            x509.load_pem_x509_certificates(file.read_bytes())[-1]
            .public_bytes(Encoding.PEM)
            .decode()
        )
    except OSError as error:
        raise click.ClickException(
            f"{file} cannot be read ({error.strerror}): give the root by --ca FILE"
        ) from error
    except ValueError as error:
        raise click.ClickException(
            f"{file} holds no certificate in PEM form: give the root by --ca FILE"
        ) from error


def _proxy_of(found: ClientOfGateway) -> Proxy:
    """Read where the gateway listens: its own address in the client's networks where it
    listens on every address.
    """
    from squidkeeper.operate.client_kit.environment import parse_proxy
    from squidkeeper.operate.setup.configuration import listen_of
    from squidkeeper.operate.setup.entries import text_at
    from squidkeeper.operate.setup.settings_file import settings_in_force
    from squidkeeper.services.maintenance.own_addresses import interface_addresses

    layout = found.layout
    settings = settings_in_force(layout)
    listen = (
        settings.listen if settings.tls else listen_of(text_at(layout.conf.resolve()))
    )
    if not listen:
        raise InvalidSetting(
            f"{layout.conf} cannot be read, or has no http_port: give --proxy URL"
        )
    host, _, port = listen.rpartition(":")
    if (
        host not in ("", "0.0.0.0", "[::]")  # noqa: S104 - compared
        and not ip_address(host.strip("[]")).is_loopback
    ):
        return parse_proxy(f"http://{listen}")
    networks = found.networks
    own = [
        address
        for address in interface_addresses()
        if any(address in network for network in networks)
    ]
    if len(own) != 1 or host:
        where = f"on {listen}" if host else f"on port {port} of every address"
        raise InvalidSetting(
            f"Squid listens {where}: give the address that the client uses, as in --proxy http://192.168.137.1:{port}"
        )
    return parse_proxy(
        f"http://{own[0]}:{port}"
        if own[0].version == 4
        else f"http://[{own[0]}]:{port}"
    )
