"""Where the files of a gateway are: as squid/ documents them, or under `--root DIR`."""

from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final, Self, get_type_hints

from squidkeeper.base.errors import NotInstalled
from squidkeeper.base.places import (
    BODIES_FOLDER,
    POLICY,
    PREFIX,
    RUN,
    STATE,
    TRANSPARENT_FOLDER,
    placed,
    publisher_folder,
    sessions_folder,
)

# What runs beside Squid, in the order of its start.
# two processes on one port: while one starts, the other answers
BODIES: Final = (
    "bodies-1",
    "bodies-2",
)
SERVICES: Final = (
    "publisher",
    "maintenance",
    "secrets",
    *BODIES,
    "sessions",
    "tls",
    "transparent",
    "dns",
    "exporter",
    "archive",
    "export",
    "pull",
    "render",
)
# The accounts of the services that have one of their own, with systemd. Their order
# counts without it.
ACCOUNTS: Final = {
    **{
        name: f"squidkeeper-{name}" for name in ("secrets", "archive", "export", "pull")
    },
    **dict.fromkeys(
        BODIES, "squidkeeper-bodies"
    ),  # one user for both: else they could not share a port
    **{
        name: f"squidkeeper-{name}"
        for name in ("transparent", "dns", "publisher", "sessions")
    },
}
# built into Squid; with systemd its unit makes the folder
SOCKETS_OF_WORKERS: Final = Path("/run/squid")
# systemd keeps these for DynamicUser=, so that no account has one
_DYNAMIC_USERS: Final = (
    61184,
    65519,
)


def uses_systemd(root: Path | None) -> bool:
    """Whether systemd runs the gateway; never one under a root."""
    return root is None and Path("/run/systemd/system").is_dir()


@dataclass(frozen=True, slots=True)
class ServicePaths:
    """The files of one service beside Squid."""

    unit: Path
    pid_file: Path
    log: Path
    applied: Path  # what it was started with


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one gateway: each as documented, or below its root."""

    root: Path | None
    conf: Annotated[Path, "/etc/squid/squid.conf", "etc/squid.conf"]
    fragment: Annotated[Path, "/etc/squid/squidkeeper.conf", "etc/squidkeeper.conf"]
    # those that the policy uses
    parts: Annotated[Path, "/etc/squid/squidkeeper.d", "etc/squidkeeper.d"]
    logformat: Annotated[
        Path, "/etc/squid/squidkeeper-logformat.conf", "etc/squidkeeper-logformat.conf"
    ]
    local: Annotated[Path, "/etc/squid/local.conf", "etc/local.conf"]
    errors: Annotated[Path, "/etc/squid/errors/squidkeeper", "etc/errors"]
    # all that was rendered, a folder each time; the last ones are kept
    generations: Annotated[Path, "/etc/squid/generations", "etc/generations"]
    # Squid sends it with each leaf
    signing_cert: Annotated[Path, "/etc/squid/slicer-ca.crt", "etc/ca/signing.crt"]
    signing_key: Annotated[Path, "/etc/squid/slicer-ca.key", "etc/ca/signing.key"]
    # the root, which clients trust
    ca_cert: Annotated[Path, "/etc/squidkeeper/ca/ca.crt", "etc/ca/ca.crt"]
    # root's alone, where it is here at all
    ca_key: Annotated[Path, "/etc/squidkeeper/ca/ca.key", "etc/ca/ca.key"]
    # the operator's, and changed by options of install.sh
    settings: Annotated[Path, "/etc/squidkeeper/gateway.yaml", "etc/gateway.yaml"]
    policy: Annotated[Path, *POLICY]
    # root's programs that print secrets
    commands: Annotated[Path, "/etc/squidkeeper/commands", "etc/commands"]
    # a file for each export
    exports: Annotated[Path, "/etc/squidkeeper/export", "etc/export"]
    observe: Annotated[Path, "/etc/squidkeeper/observe", "etc/observe"]
    haproxy: Annotated[Path, "/etc/squidkeeper/haproxy.cfg", "etc/haproxy.cfg"]
    # of unbound, with --transparent
    dns: Annotated[Path, "/etc/squidkeeper/dns.conf", "etc/dns.conf"]
    program: Annotated[Path, "/opt/squidkeeper/bin/squidkeeper", "bin/squidkeeper"]
    supervise: Annotated[Path, "/opt/squidkeeper/bin/supervise", "bin/supervise"]
    ssl_db: Annotated[Path, "/var/spool/squid/ssl_db", "state/ssl_db"]
    access_log: Annotated[Path, "/var/log/squid/access.log", "log/access.log"]
    cache_log: Annotated[Path, "/var/log/squid/cache.log", "log/cache.log"]
    state: Annotated[Path, *STATE]
    archive: Annotated[Path, "/var/lib/squidkeeper-archive", "archive"]
    # signs it; root's, or its writer's
    archive_key: Annotated[Path, "/etc/squidkeeper/archive.key", "etc/archive.key"]
    # verifies it
    archive_pub: Annotated[Path, "/etc/squidkeeper/archive.pub", "etc/archive.pub"]
    # versions of the policy; of an account of its own
    pulled: Annotated[Path, "/var/lib/squidkeeper-pull", "pulled"]
    # the operator's
    pull_settings: Annotated[Path, "/etc/squidkeeper/pull.yaml", "etc/pull.yaml"]
    # findings; the operator's
    accepted: Annotated[Path, "/etc/squidkeeper/accepted.yaml", "etc/accepted.yaml"]
    # the operator's
    webhook: Annotated[Path, "/etc/squidkeeper/webhook.yaml", "etc/webhook.yaml"]
    # what people answered
    decisions: Annotated[
        Path, "/etc/squidkeeper/decisions.jsonl", "etc/decisions.jsonl"
    ]
    # the operator's
    archive_store: Annotated[
        Path, "/etc/squidkeeper/archive-store.yaml", "etc/archive-store.yaml"
    ]
    # who may make which sessions; the operator's
    sessions_settings: Annotated[
        Path, "/etc/squidkeeper/sessions.yaml", "etc/sessions.yaml"
    ]
    sessions_audit: Annotated[
        Path,
        "/var/log/squidkeeper-sessions/sessions-audit.log",
        "log-sessions/sessions-audit.log",
    ]
    run: Annotated[Path, *RUN]
    pid_file: Annotated[Path, "/run/squid.pid", "run/squid.pid"]

    @classmethod
    def of(cls, root: Path | None) -> Self:
        """Lay out the gateway of the system, or the one below a root."""
        return cls(
            root,
            **{name: placed(place, root) for name, place in _paths().items()},
        )

    @classmethod
    def around(cls, policy: Path, state: Path, **others: Path) -> Self:
        """Lay out the gateway that has this policy and state: below a root where both
        are, else the usual `others`.
        """
        root = state.parent
        if (policy, state) == (root / "etc/policy", root / "state"):
            return cls.of(root)
        return replace(cls.of(None), policy=policy, state=state, **others)

    def check_installed(self) -> None:
        """Refuse a place without a gateway, by `NotInstalled`."""
        if not self.fragment.exists() and not self.program.exists():
            missing = f"there is neither {self.fragment} nor {self.program}"
            raise NotInstalled(
                f"squidkeeper is not installed: {missing}: name the gateway by --root DIR"
            )

    def replacements(self) -> dict[str, str]:
        """Map each documented path to the path in this gateway."""
        return {
            usual: str(getattr(self, name)) for name, (usual, _) in _paths().items()
        }

    def service(self, name: str) -> ServicePaths:
        """List the files of a service."""
        units = self.root / "etc" if self.root else Path("/etc/systemd/system")
        # Where its account can write.
        owned = {
            "publisher": self.published,
            "secrets": self.secrets,
            "export": self.export_state,
            "pull": self.pulled,
            "sessions": self.sessions_run,
        }
        own = (owned | dict.fromkeys(BODIES, self.bodies_state)).get(name)
        run = own or self.run
        in_run = own or name in ("archive", "transparent", "dns")
        log = (
            run / f"{name}.log" if in_run else self.access_log.with_name(f"{name}.log")
        )
        unit, applied = (
            units / f"squidkeeper-{name}.service",
            self.prefix / f"applied-{name}",
        )
        return ServicePaths(unit, run / f"{name}.pid", log, applied)

    @property
    def prefix(self) -> Path:
        """The folder of the program and of what was applied."""
        return self.root or PREFIX

    @property
    def applied(self) -> Path:
        """What Squid was last told: where it listens, and hashes of what it read."""
        return self.prefix / "applied"

    @property
    def generation(self) -> Path:
        """The link to the generation in force."""
        return self.generations / "current"

    @property
    def generation_told(self) -> Path:
        """The number of the generation that Squid was last told to read."""
        return self.generations / "told"

    @property
    def generation_telling(self) -> Path:
        """The number of the generation that Squid is being told to read."""
        return self.generations / "telling"

    @property
    def generation_held(self) -> Path:
        """What the policy needed at a rollback: it holds until that changes."""
        return self.generations / "held"

    @property
    def settings_in_force(self) -> Path:
        """The settings as the last run of install.sh applied them."""
        return self.generation / "gateway.yaml"

    @property
    def revision(self) -> Path:
        """The revision of the sources that were installed, where it is known."""
        return self.prefix / "revision"

    @property
    def read_by_squid(self) -> tuple[Path, ...]:
        """What Squid reads when it is reconfigured or started."""
        return (self.generation, self.signing_cert, self.signing_key, self.program)

    @property
    def templates(self) -> Path:
        """The folder of the templates of Squid's configuration, with this gateway's own
        values.
        """
        return self.generation / "templates"

    @property
    def rendered(self) -> Path:
        """The values of the policy that Squid's configuration was rendered with.

        It holds passwords of parents.
        """
        return self.parts / "values.json"

    @property
    def render_request(self) -> Path:
        """What asks root to render Squid's configuration again: it is there.

        Nothing in it counts.
        """
        return self.state / "render"

    @property
    def deep_result(self) -> Path:
        """What the last `squidkeeper doctor --deep` found."""
        return self.state / "doctor.json"

    @property
    def former_conf(self) -> Path:
        """The operator's squid.conf that ours replaced."""
        return self.conf.with_name(f"{self.conf.name}.before-squidkeeper")

    @property
    def counts(self) -> Path:
        """The folder of the exporter's counts."""
        return self.state / "exporter"

    @property
    def tls(self) -> Path:
        """The folder of the TLS port: its certificate, and HAProxy's sockets."""
        return self.state / "tls"

    @property
    def published(self) -> Path:
        """The folder of the publisher: what is in force, and was."""
        return publisher_folder(self.state)

    @property
    def sessions(self) -> Path:
        """The folder of the sessions that programs make."""
        return sessions_folder(self.state)

    @property
    def sessions_run(self) -> Path:
        """The folder of the socket that they are made by, and of their secrets."""
        return self.run.with_name(f"{self.run.name}-sessions")

    @property
    def sessions_socket(self) -> Path:
        """Where `squidkeeper session` finds the service."""
        return self.sessions_run / "api.sock"

    @property
    def secrets(self) -> Path:
        """The folder of the secrets that are fetched; with systemd, systemd
        makes it.
        """
        return self.run / "secrets"

    @property
    def export_state(self) -> Path:
        """The folder of the positions of exports: Squid's account makes it, and its
        group writes into it.
        """
        return self.state / "export"

    @property
    def bodies_state(self) -> Path:
        """The folder of the counters of what inspects bodies, made as
        `export_state`.
        """
        return self.state / BODIES_FOLDER

    @property
    def account(self) -> Path:
        """The accounts of services with systemd, as systemd-sysusers makes them."""
        return Path("/etc/sysusers.d/squidkeeper.conf")

    def user_without_systemd(self, service: str) -> int:
        """Return the user ID that a service of `ACCOUNTS` has without systemd: no
        account has it.
        """
        first, last = _DYNAMIC_USERS
        number = [*dict.fromkeys(ACCOUNTS.values())].index(ACCOUNTS[service])
        return first + (int.from_bytes(self._hash[:4]) + number) % (last - first + 1)

    @property
    def squid_dropin(self) -> Path | None:
        """What is added to systemd's unit of Squid; None: under a root there
        is none.
        """
        return (
            None
            if self.root
            else Path("/etc/systemd/system/squid.service.d/squidkeeper.conf")
        )

    @property
    def squid_supervisor(self) -> Path:
        """The file with the process ID of what supervises Squid without systemd:
        root's, in a folder of root's.
        """
        return self.prefix / "squid-supervisor.pid"

    @property
    def archive_timer(self) -> Path:
        """The unit that starts the archive's service."""
        return self.service("archive").unit.with_suffix(".timer")

    @property
    def render_path(self) -> Path:
        """The unit that starts the service which renders Squid's configuration."""
        return self.service("render").unit.with_suffix(".path")

    @property
    def logrotate(self) -> Path | None:
        """The rule for logrotate, which comes ahead of the one of Squid's package;
        None: under a root there is none.
        """
        return None if self.root else Path("/etc/logrotate.d/00-squidkeeper")

    @property
    def own_addresses(self) -> Path:
        """The file of the gateway's own addresses."""
        return self.state / "own-addresses"

    @property
    def ca_choices(self) -> Path:
        """How the CA was asked to be used: what later runs do without being told."""
        return self.prefix / "applied-ca"

    @property
    def command(self) -> Path | None:
        """The program's name on everybody's PATH."""
        return None if self.root else Path("/usr/local/bin/squidkeeper")

    @property
    def share(self) -> Path:
        """What shells and `man` read; both also look beside the program on PATH."""
        return (self.root or Path("/usr/local")) / "share"

    @property
    def completions(self) -> dict[str, Path]:
        """What completes commands, by shell."""
        return {
            "bash": self.share / "bash-completion/completions/squidkeeper",
            "zsh": self.share / "zsh/site-functions/_squidkeeper",
            "fish": self.share / "fish/vendor_completions.d/squidkeeper.fish",
        }

    @property
    def manual(self) -> Path:
        """The folder of manual pages: `squidkeeper.1`, `squidkeeper-COMMAND.1`."""
        return self.share / "man/man1"

    @property
    def squid_service(self) -> str:
        """The service name of this Squid: gateways beside each other need their own,
        the same in each run.
        """
        return f"sk{self._hash.hex()[:16]}" if self.root else "squid"

    @property
    def squid_command(self) -> str:
        """The command that speaks to this gateway's Squid by hand."""
        return f"squid -n {self.squid_service} -f {self.conf}" if self.root else "squid"

    @property
    def install_command(self) -> str:
        """The command that installs this gateway again."""
        return f"./install.sh --root {self.root}" if self.root else "./install.sh"

    @property
    def resolver(self) -> str:
        """The loopback address of this gateway's own resolver."""
        one, two, three = self._hash[:3]
        return (
            f"127.{64 + one % 128}.{two}.{1 + three % 254}"
            if self.root
            else "127.53.53.53"
        )

    @property
    def behind_haproxy(self) -> str:
        """Where Squid listens behind HAProxy: gateways beside each other have addresses
        of their own.
        """
        return f"{self.resolver}:13129"

    @property
    def transparent_tls(self) -> str:
        """Where Squid takes the tunnels of clients without proxy settings."""
        return f"{self.resolver}:13443"

    @property
    def transparent_http(self) -> str:
        """Where Squid takes the plain requests of clients without proxy settings."""
        return f"{self.resolver}:13080"

    @property
    def transparent_state(self) -> Path:
        """The folder of the counters of the ports for clients without proxy settings,
        made as `export_state`.
        """
        return self.state / TRANSPARENT_FOLDER

    @property
    def bodies(self) -> str:
        """Where `squidkeeper bodies` answers Squid.

        Its port is below 1024, so no other account can listen there.
        """
        return f"{self.resolver}:344"

    @property
    def _hash(self) -> bytes:
        return sha256(str(self.root).encode()).digest()


@cache
def _paths() -> dict[str, tuple[str, str]]:
    hints = get_type_hints(Layout, include_extras=True)
    return {
        name: hint.__metadata__
        for name, hint in hints.items()
        if hasattr(hint, "__metadata__")
    }
