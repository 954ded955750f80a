"""One run of an installation: prepare and check beside what is installed, plan, and
apply.

Everything is tried before anything is replaced: the program as Squid's account, the
policy by `squidkeeper check`, the configuration by `squid -k parse`. A run that fails
after that puts back what it replaced.
"""

import os
import re
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec
import psutil

from squidkeeper.base.errors import InvalidArchiveKey, PullFailed, SetupFailed
from squidkeeper.base.gateway_commands import command
from squidkeeper.base.layout import (
    ACCOUNTS,
    BODIES,
    SERVICES,
    SOCKETS_OF_WORKERS,
    Layout,
)
from squidkeeper.base.own_processes import is_own
from squidkeeper.base.squid_account import account_of, call_as
from squidkeeper.base.squid_version import squid_version
from squidkeeper.configuration.rendering import Values, render
from squidkeeper.configuration.squid_conf import Macros, read_squid_conf
from squidkeeper.operate.setup import checks, entries, generations, rendering
from squidkeeper.operate.setup.body_services import with_quota_store
from squidkeeper.operate.setup.ca_files import ca_files
from squidkeeper.operate.setup.configuration import (
    NO_RESOLVER,
    Configuration,
    has_own_login,
    is_ours,
    listen_of,
    names,
    unique_name,
    usual_exporter,
    usual_gateway_name,
    usual_health,
)
from squidkeeper.operate.setup.gateway_settings import GatewaySettings
from squidkeeper.operate.setup.machine import (
    HAPROXY,
    UNBOUND,
    additions_of,
    apparmor_confines,
    check,
    install_haproxy,
    install_unbound,
    lines_at,
    quietly,
    read_machine,
    revision_of,
    with_lines,
)
from squidkeeper.operate.setup.options import (
    DOCUMENTED,
    NO_EXPORTER,
    SQUID,
    SetupOptions,
    SetupStage,
    port_of,
    reachable,
    say,
    show,
)
from squidkeeper.operate.setup.plan import Present, SetupStep, StepKind, Wanted, plan
from squidkeeper.operate.setup.processes import (
    InstalledService,
    InstalledSquid,
    starts_services,
)
from squidkeeper.operate.setup.settings_file import (
    changed_text,
    differences,
    read_settings,
    settings_in_force,
)
from squidkeeper.operate.setup.transaction import Transaction
from squidkeeper.policy.language.upstreams import DEFAULT
from squidkeeper.record.chain.keys import ArchiveKey
from squidkeeper.record.usage_ledger import ledger_file
from squidkeeper.services.maintenance.own_addresses import (
    own_addresses,
    prepare_own_addresses,
    reached_at,
)
from squidkeeper.services.maintenance.tls import CERTIFICATE, ServerCertificate
from squidkeeper.services.pulling.settings import CURRENT, read_pull_settings
from squidkeeper.services.sessions.orchestrators import check_orchestrators
from squidkeeper.serving.parts import Part

# machine-id(5); text_at reads nothing where it is missing
_MACHINE_ID: Final = Path("/etc/machine-id")
# the path of a socket has 107 characters, of which HAProxy needs some for itself
_LONGEST_TLS_FOLDER: Final = 80
_PARENT_ADVICE: Final = (
    "store it in that file: one line of printable ASCII, which "
    "Squid's account can read (mode 0640, its group)"
)
_OPEN_ADVICE: Final = (
    "--listen ADDRESS:PORT with the address that the VMs reach, such as 192.168.137.1:3129; or clients in those rules"
    " (--policy DIR); or --open where a firewall keeps others out"
)


class Installation:
    """The installation of one gateway."""

    def __init__(
        self, options: SetupOptions, layout: Layout, stage: SetupStage
    ) -> None:
        self._options = options
        self._layout = layout
        self._stage = stage
        self._work = options.work
        stage.name, stage.advices = "directories", _advices(options, layout)
        self._machine = read_machine(layout.root)
        if not options.dry_run:
            generations.detach_conf(layout)
        self._conf = entries.text_at(layout.conf.resolve())
        self._yours = not is_ours(self._conf) and names(self._conf, layout.fragment)
        self._files: dict[Path, entries.Entry] = {}
        # what was rendered, by its path in the generation
        self._generation: dict[str, entries.Entry] = {}
        stage.name = "settings"
        self._settings = self._read_settings()
        self._configuration = self._configure()
        self._squid = InstalledSquid(layout, self._machine.systemd)
        store = self._work / "store/ssl_db"
        certificate = self._work / "tls" / CERTIFICATE
        self._transaction = Transaction(
            layout, self._machine, self._squid, store, say, certificate
        )
        self._fetches = False  # the policy has secrets that are fetched
        self._inspects = False  # the policy has rules with `body`
        self._values = Values()  # of the policy, in Squid's configuration
        self._gone: tuple[
            Path, ...
        ] = ()  # files of Squid's configuration that the policy does not need
        self._exports = b""  # the files of the exports
        self._pulls = layout.pull_settings.exists()  # the policy comes from elsewhere
        self._makes_sessions = layout.sessions_settings.exists()
        self._confined = False  # AppArmor keeps Squid from what is prepared

    def roll_back(self) -> list[str]:
        """Put back what was replaced; list what could not be."""
        return self._transaction.roll_back()

    def run(self) -> None:
        """Install; `SetupFailed`, or an OSError, where a stage fails."""
        self._stage.name = "directories"
        checks.check_way_to(self._machine, self._layout.prefix)
        self._stage.name = "program"
        checks.check_readable(self._machine, Path(sys.prefix))
        self._prepare_ca()
        new_store = self._prepare_store()
        self._prepare_policy()
        self._try_program()
        self._open_apparmor("squid")
        self._prepare_configuration()
        self._prepare_resolver()
        self._prepare_tls()
        self._prepare_transparent()
        self._prepare_exports()
        self._prepare_pull()
        self._prepare_sessions()
        self._prepare_files()
        self._check_listen()
        self._former = self._layout.program.resolve().parent.parent
        self._apply(new_store=new_store)

    def finish(self) -> None:
        """Remove what was kept for a rollback, and explain how to try the gateway."""
        if self._options.dry_run:
            say("dry run", "nothing was changed")
            return
        self._transaction.commit()
        _remove_old_venvs(self._layout.prefix, {self._options.venv, self._former})
        self._explain_how_to_try()

    # The CA, the policy and the program

    def _prepare_ca(self) -> None:
        self._stage.name = "CA"
        layout = self._layout
        if self._yours and names(self._conf, layout.ca_key):
            what = f"{layout.conf} names {layout.ca_key}, which is no longer for Squid"
            raise SetupFailed(
                what, f"name {layout.signing_cert} and {layout.signing_key} there"
            )
        self._ca = ca_files(
            self._options.ca_dir,
            self._settings,
            layout,
            self._machine.owner,
            datetime.now(UTC),
        )
        self._files.update(self._ca.read_by_squid)
        for label, text in self._ca.said:
            say(label, text)
        self._say_whose_certificates()

    def _prepare_store(self) -> bool:
        if not self._keeps_store:
            return False
        # A leaf is signed by what signed then, whose certificate lies in the store:
        # another one may have been put in place by hand.
        in_store, signs = (
            entries.read_entry(self._layout.ssl_db / "ca.crt"),
            self._ca.signing.certificate,
        )
        if isinstance(in_store, entries.File) and in_store.content == signs:
            return False
        store = self._own_folder("store") / "ssl_db"
        check(
            self._machine.run_as_squid(
                self._machine.certgen, "-c", "-s", store, "-M", "4MB"
            )
        )
        call_as(self._machine.account, lambda: (store / "ca.crt").write_bytes(signs))
        return True

    @property
    def _keeps_store(self) -> bool:
        if self._yours:
            return names(self._conf, self._layout.ssl_db)
        return self._configuration.certificates == SQUID

    @property
    def _drops_store(self) -> bool:
        """Whether the store can be deleted.

        It holds the CA's key, and a squid.conf of yours may still use it.
        """
        confs = (
            entries.text_at(self._layout.former_conf),
            "" if is_ours(self._conf) else self._conf,
        )
        return not self._keeps_store and not any(
            names(conf, self._layout.ssl_db) for conf in confs
        )

    def _own_folder(self, name: str) -> Path:
        entries.write_entry(
            self._work / name, entries.Folder({}, 0o755, self._machine.owner)
        )
        return self._work / name

    def _prepare_policy(self) -> None:
        self._stage.name = "policy"
        layout, given, source = self._layout, self._options.policy, self._policy_source
        if layout.policy.exists():
            say("policy", f"kept: {layout.policy}")
            if given and _contents(given) != _contents(layout.policy):
                say(
                    "",
                    f"it differs from {given}, and one in place is never overwritten: move it away, or edit it",
                )
            self._policy = layout.policy
        else:
            say("policy", f"from {source}: {layout.policy}")
            self._files[layout.policy] = self._policy_of(source)
            self._policy = self._work / "policy"
            entries.write_entry(self._policy, self._files[layout.policy])
        # check stores compiled lists there
        in_place = layout.state.is_dir() and not self._options.dry_run
        state = layout.state if in_place else self._own_folder("compiled")
        self._compiled = state / "lists"
        good, told = checks.check_policy(self._machine, self._policy, state)
        if not good:
            what = f"the policy does not load, as Squid's account {self._machine.account.name} reads it"
            raise SetupFailed(what, details=self._as_given(told))
        for line in self._as_given(told).splitlines():
            say("", line)

    def _policy_of(self, source: Path) -> entries.Folder:
        """Read the policy to install: the example without its documents, which an
        upgrade would leave as they are.

        A file that is copied into the folder gets its group, so that Squid's account
        can read it.
        """
        owner = (0, self._machine.account.group)
        paths = (
            path
            for path in source.iterdir()
            if self._options.policy or path.suffix != ".md"
        )
        return entries.Folder(
            {path.name: entries.read_source(path, 0o750, owner) for path in paths},
            0o2750,
            owner,
        )

    @property
    def _has_example(self) -> bool:
        return _contents(self._layout.policy) == _contents(
            self._options.source / "policy"
        )

    @property
    def _policy_source(self) -> Path:
        return self._options.policy or self._options.source / "policy"

    def _as_given(self, text: str) -> str:
        return text.replace(str(self._work / "policy"), str(self._policy_source))

    def _try_program(self) -> None:
        self._stage.name = "program"
        answered = Path(sys.prefix) / "answered"
        if not answered.exists():
            checks.check_answer(self._machine, self._policy, self._own_folder("try"))
            if not self._options.dry_run and os.access(sys.prefix, os.W_OK):
                answered.touch()

    def _open_apparmor(self, program: str) -> None:
        if not apparmor_confines(program):
            return
        path = additions_of(program)
        entry = with_lines(
            lines_at(path), self._layout.prefix, self._configuration.apparmor(program)
        )
        if entries.read_entry(path) == entry:
            return
        self._do(SetupStep(StepKind.OPEN_APPARMOR, path, entry))
        self._confined = self._options.dry_run
        if not self._confined:
            say("AppArmor", f"lets {program} use {self._layout.prefix} ({path})")

    # The configuration

    def _read_settings(self) -> GatewaySettings:
        """Read gateway.yaml with what options change in it, and say what differs from
        the settings in force.

        A gateway in place whose file is missing is refused: its other settings would
        get lost.
        """
        layout, given = self._layout, self._options.settings
        file, is_there = layout.settings, layout.settings.exists()
        if not is_there and layout.service("exporter").applied.exists():
            raise SetupFailed(
                f"there is no {file}, which holds the settings of this gateway",
                "write it as squid/INSTALL.md says; `version: 1` alone is the default gateway",
            )
        before = file.read_bytes() if is_there else b""
        if is_there:
            read_settings(file, before)
        text = changed_text(file, before, given).encode()
        settings = read_settings(file, text)
        if text != before:
            here = entries.read_entry(file)
            self._files[file] = (
                replace(here, content=text)
                if isinstance(here, entries.File)
                else entries.File(text)
            )
        self._generation[generations.SETTINGS] = entries.File(text)
        for key, values in differences(settings_in_force(layout), settings):
            say("settings", f"{key}: {values}")
        return settings

    def _configure(self) -> Configuration:
        layout, settings = self._layout, self._settings
        listen, behind = settings.listen, settings.behind
        self._check_tls_folder()
        self._check_yours()
        return Configuration(
            source=self._options.source,
            layout=layout,
            machine=self._machine,
            listen=listen,
            squid=listen_of(self._conf) if self._yours else listen,
            exporter=settings.exporter.listen or usual_exporter(layout, listen),
            certificates=settings.certificates,
            unique_name=unique_name(
                layout.root, f"{socket.gethostname()} {entries.text_at(_MACHINE_ID)}"
            ),
            gateway=settings.gateway or usual_gateway_name(socket.gethostname()),
            workers=settings.workers,
            log_bytes=settings.log.bytes or "",
            archive_days=str(settings.archive.days or ""),
            archive_bytes=settings.archive.bytes or "",
            archive_is_copied=layout.archive_store.exists(),
            tls=settings.tls is not None,
            behind=behind.addresses if behind else (),
            transparent=settings.transparent,
            status_from=settings.exporter.status_from,
            health=(behind and behind.health_listen) or usual_health(layout, listen),
            tls_names=settings.tls.names if settings.tls else (),
        )

    def _check_tls_folder(self) -> None:
        """Refuse a folder too deep for the path of HAProxy's socket."""
        excess = len(str(self._layout.tls)) - _LONGEST_TLS_FOLDER
        if self._settings.tls and excess > 0:
            raise SetupFailed(
                f"{self._layout.tls} is too long for the path of a socket",
                f"with --tls, choose a --root that is shorter by {excess}",
            )

    def _check_yours(self) -> None:
        """Refuse what changes the http_port lines of a squid.conf of yours."""
        settings, conf = self._settings, self._layout.conf
        refused = (
            (
                settings.tls,
                f"--tls replaces the http_port of {conf}",
                "--no-tls; squid/INSTALL.md says which lines of yours put HAProxy in front",
            ),
            (
                settings.behind,
                f"--behind replaces the http_port of {conf}",
                "--behind none; squid/FLEET.md says which lines of yours take clients from a load balancer",
            ),
            (
                settings.transparent,
                f"--transparent adds http_port lines to {conf}",
                "--transparent none; squid/squid.conf has the lines that it would add",
            ),
        )
        for given, what, advice in refused if self._yours else ():
            if given:
                raise SetupFailed(f"{what}, which is yours", advice)

    def _prepare_configuration(self) -> None:
        self._stage.name = "configuration"
        layout, ours, files = self._layout, self._configuration, self._files
        self._generation[generations.ERRORS] = entries.Folder(
            {name: _file(text) for name, text in ours.pages().items()}
        )
        with_logformat = self._yours and not names(self._conf, layout.logformat)
        self._values = self._policy_values()
        if not layout.local.exists():
            files[layout.local] = _file(ours.local_conf())
        if self._confined:
            parsed = ""
            say("configuration", "not checked: AppArmor does not let Squid read it yet")
        else:
            parsed = self._parse()
            whose = "the fragment in our squid.conf" if self._yours else "squid.conf"
            unchecked = "; yours was not checked" if self._yours else ""
            say(
                "configuration",
                f"squid -k parse accepts {whose}, listening on {ours.listen}{unchecked}",
            )
        self._say_workers()
        for warning in re.findall(r"\| (WARNING: .*)", parsed):
            say("", warning)
        if unnamed := checks.unnamed_tests(parsed):
            raise SetupFailed(
                f"no line names the ACL {unnamed[0]}: a line of yours about it does nothing"
            )
        for directive in checks.unsafe_directives(parsed):
            say(
                "WARNING",
                f"{directive} takes requests past what closes private addresses: see squid/INSTALL.md",
            )
        if (version := squid_version()) and version.remark:
            say("WARNING" if version.problem else "", version.remark)
        self._leave_to_operator(parsed)
        self._prepare_parts(with_logformat=with_logformat)

    def _prepare_parts(self, *, with_logformat: bool) -> None:
        """Render Squid's configuration, and keep the templates: an edit of the policy
        can need other parts.
        """
        layout, ours = self._layout, self._configuration
        templates = ours.templates(with_logformat=with_logformat)
        if ours.own_login:
            self._values = msgspec.structs.replace(
                self._values, keys=self._values.keys | {Part.LOGIN}
            )
        units = {layout.service(name).unit.name: ours.unit(name) for name in BODIES}
        self._generation[generations.TEMPLATES] = rendering.template_folder(
            templates | units
        )
        self._inspects = self._values.inspects_bodies
        local = self._local_conf()
        self._generation[generations.LOCAL] = local
        self._prepare_generation(templates, local.content.decode(errors="replace"))

    def _local_conf(self) -> entries.File:
        """Return the operator's lines, as they are put in force."""
        path = self._layout.local
        made = self._files.get(path)
        if isinstance(made, entries.File):
            return made
        about = path.stat()
        mode, owner = stat.S_IMODE(about.st_mode), (about.st_uid, about.st_gid)
        return entries.File(path.read_bytes(), mode, owner)

    def _prepare_generation(self, templates: Mapping[str, str], own: str) -> None:
        """Prepare the next generation, or the one in force where nothing differs."""
        layout, before = self._layout, generations.number_in_force(self._layout)
        number = generations.next_number(layout)
        if before is not None:
            former = generations.folder_of(layout, before)
            same = self._generation_in(former, templates, own)
            if entries.as_owned_here(same) == entries.read_entry(former):
                number = before
        folder = generations.folder_of(layout, number)
        self._files |= {
            folder: self._generation_in(folder, templates, own),
            layout.generation: entries.Link(str(number)),
        }
        links = generations.public_links(layout)
        self._files |= {
            path: link
            for path, link in links.items()
            if path != layout.conf or not self._yours
        }
        self._gone = (
            layout.generation_held,
            *generations.outdated(layout, number),
            *(path for path in _former_places(layout) if os.path.lexists(path)),
        )

    def _generation_in(
        self, folder: Path, templates: Mapping[str, str], own: str
    ) -> entries.Folder:
        layout, account = self._layout, self._machine.account
        conf = generations.placed(self._configuration.squid_conf(), layout, folder)
        files = rendering.rendered_files(
            layout, templates, self._values, account, own, folder
        )
        return generations.with_files(
            entries.Folder({}),
            {
                **self._generation,
                **files,
                generations.CONF: _file(conf),
                generations.VERSION: _file(self._version()),
            },
        )

    def _version(self) -> str:
        """Name the program and the sources: helpers and templates fit each other."""
        source = self._options.source / "squid"
        paths = sorted([*source.glob("*.conf"), *source.glob("parts/*.conf")])
        content = sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
        return f"{self._options.venv.name} {content}\n"

    def _say_workers(self) -> None:
        workers = self._configuration.workers
        if workers > 1:
            yours = (
                "; add `worker-queues` to your http_port lines, and restart Squid"
                if self._yours
                else ""
            )
            say("workers", f"{workers} processes of Squid serve{yours}")

    def _leave_to_operator(self, parsed: str) -> None:
        """Do without our resolver and our logins where the operator's own configuration
        has them, or what it includes.

        Squid has read local.conf. It has not read a squid.conf of yours, which may not
        include local.conf.
        """
        layout, resolver = self._layout, self._layout.resolver
        reads_local = not self._yours or names(self._conf, layout.local)
        if reads_local and "| Processing: dns_nameservers " in parsed:
            resolver = NO_RESOLVER
            say("resolver", f"as {layout.local} says, by dns_nameservers")
        yours = (
            read_squid_conf(layout.conf, Macros(layout.squid_service)).directives
            if self._yours
            else ()
        )
        read = [
            *([parsed, entries.text_at(layout.local)] if reads_local else []),
            *(line.text for line in yours),
        ]
        own_login = any(map(has_own_login, read))
        if own_login:
            say(
                "login",
                "by your own auth_param basic program: no client can log in by a token of the policy",
            )
        self._configuration = replace(
            self._configuration, resolver=resolver, own_login=own_login
        )

    def _policy_values(self) -> Values:
        named = rendering.named_values(
            self._machine.account, self._layout, self._policy, self._compiled
        )
        if named.problems:
            raise SetupFailed(
                f"the password of a parent proxy is unavailable: {named.problems[0]}",
                _PARENT_ADVICE,
            )
        self._fetches = named.fetches
        values = msgspec.structs.replace(
            named.values.with_default(self._settings.upstream or ""),
            documented=self._settings.bump == DOCUMENTED,
        )
        self._check_parents(values)
        return values

    def _check_parents(self, values: Values) -> None:
        """Name each parent, and warn about one that does not answer: it may start
        later.
        """
        ours = self._configuration
        listens = set(filter(None, {ours.listen, ours.squid, ours.squid_listen}))
        for peer in (*values.peers, *filter(None, [values.default])):
            whose = (
                "by --upstream"
                if peer.name == DEFAULT
                else f"upstream {peer.name} of the policy"
            )
            say("upstream", f"http://{peer.host}:{peer.port} ({whose})")
            if problem := checks.check_parent(
                peer.name, peer.host, peer.port, *listens
            ):
                say(
                    "WARNING",
                    f"http://{peer.host}:{peer.port}: {problem}; requests that need it fail until it answers",
                )

    def _parse(self) -> str:
        layout, folder, own = (
            self._layout,
            self._work / "parse",
            self._own_folder("state") / "own-addresses",
        )
        call_as(self._machine.account, lambda: prepare_own_addresses(own.parent))
        pages = {layout.errors: self._generation[generations.ERRORS]}
        files = pages | {
            path: entry for path, entry in self._files.items() if path != layout.policy
        }
        entries.write_entry(
            folder, entries.Folder({path.name: entry for path, entry in files.items()})
        )
        (folder / layout.parts.name).mkdir()
        places = (*files, layout.conf, layout.fragment, layout.logformat, layout.parts)
        prepared = {path: folder / path.name for path in places} | {
            layout.program: checks.PROGRAM
        }
        moved = {
            name: str(prepared.get(Path(place), place))
            for name, place in layout.replacements().items()
        }
        moved["/var/lib/squidkeeper/own-addresses"] = str(own)
        texts = render(
            self._configuration.templates(moved),
            self._values,
            entries.text_at(layout.local),
        )
        texts["squid.conf"] = self._configuration.render("squid.conf", moved)
        for name, text in texts.items():
            (folder / name).write_text(text)
        return checks.check_prepared(layout.squid_service, folder / "squid.conf")

    def _prepare_resolver(self) -> None:
        self._stage.name = "resolver"
        ours = self._configuration
        if (ours.resolver != NO_RESOLVER or ours.transparent) and not UNBOUND.exists():
            self._install_package("unbound", install_unbound)
        self._open_apparmor("unbound")

    def _install_package(self, name: str, install: Callable[[Path], None]) -> bool:
        if self._options.dry_run:
            say("would", f"install the package {name}, its own service disabled")
        else:
            install(self._options.source / "install.sh")
            say(
                self._stage.name,
                f"the package {name} is installed, its own service disabled",
            )
        return not self._options.dry_run

    def _prepare_tls(self) -> None:
        self._stage.name = "TLS"
        layout, ours = self._layout, self._configuration
        if not ours.tls:
            return
        self._files[layout.haproxy] = _file(ours.haproxy())
        self._files[layout.service("tls").unit] = _file(ours.unit("tls"))
        folder = self._own_folder("tls")
        for path in (layout.signing_cert, layout.signing_key):
            entries.write_entry(folder / path.name, self._files[path])
        call_as(self._machine.account, self._server_certificate_at(folder).issue)
        say(
            "TLS",
            f"HAProxy on {ours.listen}, with a certificate for {', '.join(ours.server_names)}",
        )
        if HAPROXY.exists() or self._install_package("haproxy", install_haproxy):
            (folder / "haproxy.cfg").write_text(
                ours.haproxy({"/var/lib/squidkeeper/tls": str(folder)})
            )
            quietly(HAPROXY, "-c", "-f", folder / "haproxy.cfg")

    def _prepare_transparent(self) -> None:
        self._stage.name = "transparent"
        layout, ours = self._layout, self._configuration
        if not ours.transparent:
            if entries.text_at(layout.dns):
                say(
                    "transparent",
                    "taken back: no ports 53, 80 and 443 for clients without proxy settings any more",
                )
            return
        self._files[layout.dns] = _file(ours.dns())
        say(
            "transparent",
            f"ports 53, 80 and 443 of {', '.join(ours.transparent)}, for clients without proxy settings",
        )
        if UNBOUND.exists():
            prepared = self._work / layout.dns.name
            prepared.write_text(ours.dns())
            quietly(f"{UNBOUND}-checkconf", prepared)

    def _needs_server_certificate(self) -> bool:
        # The one in place is in a folder of Squid's account, which could put a pipe
        # there.
        in_place = entries.text_at(self._layout.tls / CERTIFICATE)
        return self._server_certificate_at(self._layout.tls).replaces(in_place.encode())

    def _server_certificate_at(self, folder: Path) -> ServerCertificate:
        prepared, layout, names = (
            self._work / "tls",
            self._layout,
            self._configuration.server_names,
        )
        ca, key = (
            prepared / path.name for path in (layout.signing_cert, layout.signing_key)
        )
        return ServerCertificate(folder / CERTIFICATE, ca, key, lambda: names)

    def _prepare_exports(self) -> None:
        self._stage.name = "export"
        folder = self._layout.exports
        self._exports = b"".join(
            file.read_bytes() for file in sorted(folder.glob("*.yaml"))
        )
        good, told = checks.check_exports(folder) if self._exports else (True, "")
        if not good:
            raise SetupFailed("an export cannot be started", details=told)
        for line in told.splitlines():
            say("export", line)

    def _prepare_pull(self) -> None:
        self._stage.name = "pull"
        layout = self._layout
        if not self._pulls:
            return
        try:
            settings = read_pull_settings(layout.pull_settings)
        except PullFailed as error:
            raise SetupFailed(
                "the policy cannot be pulled", details=str(error)
            ) from None
        say("pull", f"from {settings.source}")
        if settings.ceiling is None:
            say(
                "WARNING",
                f"{layout.pull_settings} names no ceiling: whoever signs may open everything",
            )
        if os.path.realpath(layout.policy) != os.path.realpath(layout.pulled / CURRENT):
            say(
                "",
                f"{layout.policy} is no link to {layout.pulled / CURRENT} yet: policy/PULL.md says how to make it",
            )

    def _prepare_sessions(self) -> None:
        self._stage.name = "sessions"
        file = self._layout.sessions_settings
        if not self._makes_sessions:
            return
        found, faults = check_orchestrators(file, file.read_bytes())
        if found is None:
            raise SetupFailed(
                "no program can make sessions", details="\n".join(map(str, faults))
            )
        names = ", ".join(one.name for one in found.all)
        say("sessions", f"made by {names}, at {self._layout.sessions_socket}")

    def _unit(self, name: str) -> str:
        unit = self._configuration.unit(name)
        return (
            with_quota_store(unit, self._layout, self._values)
            if name in BODIES
            else unit
        )

    def _prepare_files(self) -> None:
        layout, ours = self._layout, self._configuration
        files = self._files = {**self._ca.first, **self._files, **self._ca.last}
        source = self._options.source / "squid"
        program = self._options.venv / "bin/squidkeeper"
        files[layout.program] = entries.Link(
            os.path.relpath(program, layout.program.parent)
        )
        if not self._machine.systemd:
            files[layout.supervise] = entries.File(
                (source / "supervise").read_bytes(), 0o755
            )
        elif layout.squid_dropin:
            files[layout.squid_dropin] = _file(ours.render("squid.service.conf"))
        needed = (
            "maintenance",
            "render",
            *(name for name in self._needed if name != "archive"),
        )
        files |= {layout.service(name).unit: _file(self._unit(name)) for name in needed}
        self._prepare_archive()
        self._prepare_revision()
        if self._machine.systemd:
            lines = (
                f'u {name} - "{name.replace("-", " ")}"\n' for name in self._accounts
            )
            files[layout.account] = _file("".join(lines))
        if ours.exporter != NO_EXPORTER:
            observe = {
                "alerts.yaml": ours.alerts(),
                "prometheus.yaml": ours.prometheus(),
            }
            observe |= {
                name: (source / "observe" / name).read_text()
                for name in ("recording.yaml", "dashboard.json")
            }
            files[layout.service("exporter").unit] = _file(ours.unit("exporter"))
            files[layout.observe] = entries.Folder(
                {name: _file(text) for name, text in observe.items()}
            )
        if layout.command and entries.read_entry(layout.command) in (
            None,
            entries.Link(str(layout.program)),
        ):
            files[layout.command] = entries.Link(str(layout.program))
        elif layout.command:
            say(
                "command",
                f"{layout.command} is not squidkeeper's and stays: the program is {layout.program}",
            )
            return
        files |= {path: _file(text) for path, text in self._options.shell_files.items()}

    def _prepare_revision(self) -> None:
        if revision := revision_of(self._options.source):
            self._files[self._layout.revision] = _file(f"{revision}\n")
        else:
            self._gone += (self._layout.revision,)

    def _prepare_archive(self) -> None:
        layout, ours = self._layout, self._configuration
        owner = (
            entries.ROOT
            if self._machine.systemd
            else (layout.user_without_systemd("archive"), 0)
        )
        keys = archive_keys(layout, owner)
        self._files.update(keys)
        told = keys[layout.archive_pub].content.decode().rstrip("\n")
        if told != entries.text_at(layout.archive_pub) and not self._options.dry_run:
            say(
                "archive",
                f"sealed by a new key. Keep a copy of {layout.archive_pub} elsewhere, to verify it:",
            )
            show(told)
        self._files[layout.service("archive").unit] = _file(ours.unit("archive"))
        if self._machine.systemd:
            self._files[layout.render_path] = _file(
                ours.render("squidkeeper-render.path")
            )
            self._files[layout.archive_timer] = _file(
                ours.render("squidkeeper-archive.timer")
            )
        if layout.logrotate and layout.logrotate.parent.is_dir():
            if checks.leaves_duplicates():
                self._files[layout.logrotate] = _file(ours.render("logrotate"))
            else:
                say(
                    "WARNING",
                    "logrotate is older than 3.21: its rule for Squid deletes logs, archived or not",
                )

    @property
    def _needed(self) -> list[str]:
        """The services with an account of their own."""
        needed = {
            "publisher": starts_services(),
            "secrets": self._fetches,
            "archive": True,
            "export": bool(self._exports),
            "pull": self._pulls,
            "sessions": self._makes_sessions,
        }
        needed |= dict.fromkeys(
            ("transparent", "dns"), bool(self._configuration.transparent)
        )
        needed |= dict.fromkeys(BODIES, self._inspects)
        return [name for name, is_needed in needed.items() if is_needed]

    @property
    def _accounts(self) -> tuple[str, ...]:
        """The accounts of services.

        What inspects bodies always has one: an edit starts it, and makes no account.
        """
        names = (ACCOUNTS[name] for name in (*self._needed, *BODIES))
        return tuple(dict.fromkeys(names))

    # Where things listen

    @property
    def _starts_squid(self) -> bool:
        return not self._options.no_start and not self._yours

    def _check_listen(self) -> None:
        self._stage.name = "listen"
        ours, services, starts = (
            self._configuration,
            self._services(),
            not self._options.no_start,
        )
        self._transaction.services = services
        for is_checked, listen, option, processes in self._listens():
            if is_checked:
                checks.check_listener(
                    listen, option, *(process.pid() for process in processes)
                )
        if starts and ours.resolver != NO_RESOLVER:
            checks.check_resolver(
                ours.resolver, services["maintenance"].pid(), self._layout.local
            )
        if starts:
            self._check_transparent_ports()
        for listen in (*([] if ours.behind else [ours.squid]), *ours.transparent_ports):
            if reached := reached_at(listen):
                self._check_open(listen, ", ".join(map(str, reached)))

    def _listens(
        self,
    ) -> Iterator[tuple[bool, str, str, list[InstalledSquid | InstalledService]]]:
        """List where processes listen: whether to check it, the option that names it,
        and whose it may be already.
        """
        ours, services, layout, squid = (
            self._configuration,
            self._transaction.services,
            self._layout,
            self._squid,
        )
        starts, exporter = not self._options.no_start, services["exporter"]
        without = "--root, or install without"
        yield self._starts_squid, ours.listen, "--listen", [squid, services["tls"]]
        yield (
            self._starts_squid and ours.tls,
            ours.squid_listen,
            f"{without} --tls",
            [squid],
        )
        yield (
            starts and ours.exporter != NO_EXPORTER,
            ours.exporter,
            "--exporter-listen",
            [exporter],
        )
        yield (
            starts and self._inspects,
            layout.bodies,
            "--root",
            [services[name] for name in BODIES],
        )
        yield starts and bool(ours.behind), ours.health, "--health-listen", [exporter]
        for listen in (layout.transparent_tls, layout.transparent_http):
            yield (
                starts and bool(ours.transparent),
                listen,
                f"{without} --transparent",
                [squid],
            )

    def _check_transparent_ports(self) -> None:
        shim, dns = (
            self._transaction.services[name].pid() for name in ("transparent", "dns")
        )
        for address in self._configuration.transparent:
            if not checks.check_ports(address, {443: shim, 80: shim, 53: dns}):
                say(
                    "WARNING",
                    f"{address} is not an address of this machine yet: nobody is answered until it is",
                )

    def _check_open(self, listen: str, public: str) -> None:
        """Refuse a new open proxy, unless it was asked for; one in place goes on with a
        warning.
        """
        found = checks.open_rules(self._machine, self._policy, self._layout.state)
        rules = [self._as_given(rule) for rule in found]
        if not rules:
            return
        reached = (
            f"the gateway listens on {listen}, which the internet reaches at {public}"
        )
        what = f"an open proxy: {reached}, and the policy allows any client"
        asked_for = self._options.open or ":" in self._settings.listen
        if not asked_for and not self._layout.fragment.exists() and not self._yours:
            raise SetupFailed(
                f"{what} (see the lines above)", _OPEN_ADVICE, "\n".join([*rules, ""])
            )
        say("WARNING", what)
        for rule in rules:
            say("", rule)

    # Plan and transaction

    def _services(self) -> dict[str, InstalledService]:
        ours, systemd, owner = (
            self._configuration,
            self._machine.systemd,
            self._machine.owner,
        )
        ports = {
            "maintenance": None if ours.resolver == NO_RESOLVER else 53,
            "tls": port_of(ours.listen),
            "exporter": None
            if ours.exporter == NO_EXPORTER
            else port_of(ours.exporter),
        }
        found = {
            name: InstalledService(name, self._layout, systemd, owner, port)
            for name, port in ports.items()
        }
        others = {name: self._user_of(name) for name in ACCOUNTS}
        others["render"] = entries.ROOT
        listening = dict.fromkeys(BODIES, port_of(self._layout.bodies)) | {
            "transparent": 443,
            "dns": 53,
        }
        return found | {
            name: InstalledService(
                name, self._layout, systemd, who, listening.get(name)
            )
            for name, who in others.items()
        }

    def _user_of(self, service: str) -> entries.Owner:
        """Return the owner of a service without systemd: Squid's account must not
        change what runs there.
        """
        return self._layout.user_without_systemd(service), self._machine.account.group

    def _do(self, step: SetupStep) -> None:
        self._stage.name = step.stage
        if self._options.dry_run:
            say("would", str(step))
        else:
            self._transaction.apply(step)

    def _folders_of_sessions(self) -> dict[Path, entries.Folder]:
        """Make them without systemd, where programs may make sessions."""
        layout, user = self._layout, self._user_of("sessions")
        modes = {
            layout.sessions: 0o2750,
            layout.sessions_run: 0o755,
            layout.sessions_audit.parent: 0o750,
        }
        return {
            path: entries.Folder({}, mode, user)
            for path, mode in modes.items()
            if self._makes_sessions
        }

    def _apply(self, *, new_store: bool) -> None:
        self._stage.name = "put in place"
        layout, owner, ours = self._layout, self._machine.owner, self._configuration
        folders = {
            path: entries.Folder({}, 0o750, owner)
            for path in (layout.access_log.parent, layout.state)
        }
        by_root = (layout.commands, layout.exports, layout.generations)
        folders |= dict.fromkeys(by_root, entries.Folder({}))
        folders |= self._folder_of_publisher()
        run = entries.Folder({}, 0o755)
        if not self._machine.systemd:
            run = folders[layout.run] = entries.Folder({}, 0o1775, (0, owner[1]))
            folders[layout.archive] = entries.Folder(
                {}, 0o750, self._user_of("archive")
            )
            if ours.workers > 1:
                folders[SOCKETS_OF_WORKERS] = entries.Folder({}, 0o755, owner)
            if self._pulls:
                folders[layout.pulled] = entries.Folder(
                    {}, 0o750, self._user_of("pull")
                )
            folders |= self._folders_of_sessions()
            if self._fetches:
                folders[layout.secrets] = entries.Folder(
                    {}, 0o2750, self._user_of("secrets")
                )
        wanted = Wanted(
            files={
                path: entries.as_owned_here(entry)
                for path, entry in self._files.items()
            },
            gone=(*self._ca.gone, *self._gone),
            folders={
                path: replace(folder, owner=entries.owner_here(folder.owner))
                for path, folder in folders.items()
            },
            run=replace(run, owner=entries.owner_here(run.owner)),
            listen=ours.squid_listen,
            exporter=ours.exporter,
            workers=ours.workers,
            fetches=self._fetches,
            bodies=self._inspects,
            exports=self._exports,
            pulls=self._pulls,
            sessions=self._makes_sessions,
            tls=ours.tls,
            transparent=bool(ours.transparent),
            certificate=ours.tls and self._needs_server_certificate(),
            own_addresses=own_addresses().encode(),
            store=new_store,
            drop_store=self._drops_store,
            start_squid=self._starts_squid,
            start_services=not self._options.no_start,
            selinux=self._machine.selinux,
        )
        planned = plan(layout, wanted, self._present(wanted))
        for label, text in planned.notes:
            say(label, text)
        if not self._options.dry_run:
            self._transaction.remove_leftovers(
                layout.signing_key, layout.ca_key, layout.ssl_db
            )
        for step in planned.steps:
            self._do(step)

    def _folder_of_publisher(self) -> dict[Path, entries.Folder]:
        """Make it where the service starts: where it is, no helper publishes.

        systemd gives it to the account, which may not exist yet.
        """
        if "publisher" not in self._needed or self._options.no_start:
            return {}
        user, group = self._user_of("publisher")
        owner = (0 if self._machine.systemd else user, group)
        return {self._layout.published: entries.Folder({}, 0o750, owner)}

    def _present(self, wanted: Wanted) -> Present:
        layout, services = self._layout, self._transaction.services
        units = (layout.service(name).unit for name in SERVICES)
        paths = {
            *wanted.files,
            *wanted.gone,
            layout.conf,
            layout.former_conf,
            layout.observe,
            layout.supervise,
        }
        number = generations.number_in_force(layout)
        if number is not None:
            paths |= {layout.generation, generations.folder_of(layout, number)}
        paths |= {
            layout.local,
            *units,
            layout.haproxy,
            layout.dns,
            *(layout.service(name).applied for name in ("tls", "render", *ACCOUNTS)),
        }
        files = {
            path: entries.read_entry(path) for path in (*paths, layout.own_addresses)
        }
        ours = {
            layout.run,
            layout.counts,
            layout.secrets,
            layout.export_state,
            layout.tls,
            layout.ssl_db,
        }
        ours |= {layout.bodies_state, layout.transparent_state}
        for folder in {*wanted.folders, *ours}:
            if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
                raise SetupFailed(f"{folder} is not a folder", "move it away")
            files[folder] = _without_entries(folder) if folder.exists() else None
        told = {
            name: entries.text_at(layout.service(name).applied) for name in SERVICES
        }
        return Present(
            files={path: entry for path, entry in files.items() if entry},
            yours=self._yours,
            squid_runs=self._squid.runs() and self._squid.is_supervised(),
            squid_told=entries.text_at(layout.applied),
            changed_since_told=self._changed_since_told(),
            services_work=frozenset(
                name for name, service in services.items() if service.works()
            ),
            service_told=told,
            was_metered=ledger_file(layout.state).exists(),
            lacks_accounts=layout.account in wanted.files
            and not all(map(account_of, self._accounts)),
            closed=self._closed(
                layout.state,
                *(() if wanted.exporter == NO_EXPORTER else (layout.counts,)),
            ),
        )

    def _closed(self, *folders: Path) -> tuple[Path, ...]:
        here = [folder for folder in folders if folder.is_dir()]
        closed = call_as(
            self._machine.account,
            lambda: [str(one) for one in here if not os.access(one, entries.RWX)],
        )
        return tuple(
            folder
            for folder in here
            if str(folder) in closed or entries.root_owns_below(folder)
        )

    def _changed_since_told(self) -> bool:
        """Whether a file was written since Squid was told, which may have been told
        what it held in between.
        """
        layout = self._layout
        told = layout.applied.stat().st_mtime if layout.applied.exists() else 0.0
        paths = (*layout.read_by_squid, *layout.generation.resolve().rglob("*"))
        return any(path.lstat().st_ctime > told for path in paths if path.exists())

    def _say_whose_certificates(self) -> None:
        whose = f"Squid's own program, which stores them in {self._layout.ssl_db}"
        made = f"made by {whose if self._keeps_store else 'squidkeeper'}"
        say(
            "certificates",
            f"made as {self._layout.conf} says, by sslcrtd_program"
            if self._yours
            else made,
        )

    def _explain_how_to_try(self) -> None:
        layout, ours = self._layout, self._configuration
        sudo = "sudo " if "SUDO_USER" in os.environ else ""
        code = r"-sS -o /dev/null -w '%{http_code}\n'"
        proxy = (
            f"LOAD-BALANCER:{port_of(ours.listen)}"
            if ours.behind
            else reachable(ours.squid)
        )
        curl = f"curl --proxy http://{proxy} --cacert {layout.ca_cert} {code}"
        on_path = layout.command in self._files and shutil.which("squidkeeper") == str(
            layout.command
        )
        program = "squidkeeper" if on_path else str(layout.program)
        explain, log = (command(name, layout, program) for name in ("explain", "log"))
        example = " (200 and 403 with the example policy)"
        expected = (
            example
            if self._has_example
            else ", with hosts that the policy allows and denies in place of these"
        )
        show(
            f"\nTry it{expected}:\n"
            f"  {curl} https://example.com/\n"
            f"  {curl} https://en.wikipedia.org/\n"
            "Which rule decided, and why:\n"
            f"  {sudo}{log}\n"
            f"  {sudo}{explain} GET https://en.wikipedia.org/\n"
            f"{self._for_vms_without_proxy(program)}"
            f"{self._where_to_edit()} Lines of your own for Squid: {layout.local}"
        )
        if ours.exporter != NO_EXPORTER:
            status = f"http://{reachable(ours.exporter)}/"
            show(
                f"Status: {status}  metrics: /metrics there  alerts, dashboard: {layout.observe}"
            )

    def _for_vms_without_proxy(self, program: str) -> str:
        addresses = " and ".join(self._configuration.transparent)
        needs = f"the name server {addresses}, and what `{command('env', self._layout, program)} --transparent` prints"
        return f"A VM without proxy settings needs {needs}.\n" * bool(addresses)

    def _where_to_edit(self) -> str:
        layout = self._layout
        if self._pulls:
            return f"Edit the policy where it is pulled from: an edit of {layout.policy} is put back."
        return f"Edit {layout.policy}: an edit is in force within 3 seconds."


def _advices(options: SetupOptions, layout: Layout) -> Mapping[str, str]:
    return {
        "directories": "make the directory, or choose another --root",
        "settings": f"fix {layout.settings}, as squid/INSTALL.md describes it",
        "program": f"see the lines above; with {options.venv} moved away, it is built again",
        "CA": "give the folder of slicer's ca.crt and ca.key by --ca-dir, or an empty folder for a new CA",
        "policy": "fix it where the lines above name it, and run this again"
        f" (of one in place, {command('check', layout, str(layout.program))} shows every fault)",
        "AppArmor": "see the lines above; squid/apparmor holds what is added",
        "configuration": f"fix the line, most likely in {layout.local}, and run this again",
        "resolver": f"install the package unbound by hand, or name other name servers in {layout.local}",
        "TLS": "see the lines above; --no-tls does without it",
        "transparent": "see the lines above; --transparent none does without it",
        "listen": "end what listens there, or choose another --listen",
        "publisher": f"see the lines above; it writes to {layout.published} alone",
        "bodies": f"see the lines above; what inspects bodies listens on {layout.bodies}",
        "secrets": "see the lines above; policy/REFERENCE.md explains the sources of secrets",
        "exporter": "see the lines above; --no-exporter does without it",
        "pull": f"fix {layout.pull_settings}, as policy/PULL.md describes it; without it nothing is pulled",
        "sessions": f"fix {layout.sessions_settings}, as squid/SESSIONS.md describes it; without it there are none",
        "export": f"see the lines above, and EXPORT.md; without {layout.exports}/*.yaml none is started",
    }


def archive_keys(layout: Layout, owner: entries.Owner) -> dict[Path, entries.File]:
    """Return the key that seals the archive, made once and kept by every later run, and
    the public one.

    The public file keeps what is ahead: keys that were replaced, which verify what they
    have signed.
    """
    found = entries.read_entry(layout.archive_key)
    try:
        key = (
            ArchiveKey.parse(found.content)
            if isinstance(found, entries.File)
            else ArchiveKey.new()
        )
    except InvalidArchiveKey as error:
        raise SetupFailed(
            f"{layout.archive_key}: {error}", "move it away: a new key is made"
        ) from None
    before = entries.read_entry(layout.archive_pub)
    public = before.content if isinstance(before, entries.File) else b""
    if key.public.pem not in public:
        public += key.public.pem
    return {
        layout.archive_key: entries.File(key.pem, 0o600, owner),
        layout.archive_pub: entries.File(public),
    }


def _former_places(layout: Layout) -> tuple[Path, ...]:
    """List where a gateway had in single files what a generation holds."""
    return (layout.prefix / "templates", layout.prefix / "applied-gateway.yaml")


def _file(text: str) -> entries.File:
    return entries.File(text.encode())


def _without_entries(folder: Path) -> entries.Folder:
    about = folder.stat()
    return entries.Folder({}, stat.S_IMODE(about.st_mode), (about.st_uid, about.st_gid))


def _contents(folder: Path) -> dict[Path, bytes]:
    files = (
        path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md"
    )
    return {path.relative_to(folder): path.read_bytes() for path in files}


def _remove_old_venvs(prefix: Path, keep: set[Path]) -> None:
    """Remove old environments, but not the former one nor one that a process runs from.

    Squid may not have been told of the new one yet (--no-start, a squid.conf of yours),
    and its helpers load modules as they need them.
    """
    commands = [
        (process.pid, " ".join(process.info["cmdline"] or ()))
        for process in psutil.process_iter(["cmdline"])
    ]
    for venv in prefix.glob("venv-*"):
        if venv not in keep and not any(
            f"{venv}/bin/" in command and is_own(pid, venv, if_hidden=True)
            for pid, command in commands
        ):
            entries.remove(venv)
