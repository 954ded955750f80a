"""`squidkeeper doctor` reads the configuration as Squid does, and each check finds the
fault that is planted for it.
"""

from __future__ import annotations

import concurrent.futures
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from click.testing import CliRunner

from squidkeeper.base.gateway_commands import with_commands
from squidkeeper.base.layout import ACCOUNTS, BODIES, Layout
from squidkeeper.base.squid_account import Account, squid_account
from squidkeeper.base.squid_version import SquidVersion
from squidkeeper.cli import main
from squidkeeper.configuration.rendering import Values
from squidkeeper.configuration.squid_conf import (
    Macros,
    Problem,
    SquidConf,
    read_squid_conf,
)
from squidkeeper.operate.doctor import bodies, machine, rendering
from squidkeeper.operate.doctor import transparent as doctor_transparent
from squidkeeper.operate.doctor.examination import ALL_CHECKS, as_json, as_text, examine
from squidkeeper.operate.doctor.inspection import CHECKS, Found, Inspection, inspect
from squidkeeper.operate.setup.configuration import Configuration
from squidkeeper.operate.setup.entries import (
    Entry,
    File,
    Folder,
    read_entry,
    write_entry,
)
from squidkeeper.operate.setup.generations import (
    folder_of,
    moved,
    placed,
    public_links,
    put_in_force,
    with_files,
    write_generation,
)
from squidkeeper.operate.setup.machine import Machine
from squidkeeper.operate.setup.processes import InstalledService, InstalledSquid
from squidkeeper.operate.setup.rendering import template_folder
from squidkeeper.policy.policy_store.loading import build_sources, load_sources
from squidkeeper.policy.policy_store.reload_gate import (
    GateVerdict,
    force,
    write_verdict,
)
from squidkeeper.policy.policy_store.revisions import publish_again, store_revision
from squidkeeper.policy.policy_store.sources import read_sources
from squidkeeper.policy.published.places import mark_in_force, state_file
from squidkeeper.policy.published.policy_state import PolicyState
from squidkeeper.policy.published.publication import write_publication
from squidkeeper.policy.published.state_file import StateWriter
from squidkeeper.services.exporter.conditions import CONDITIONS, Severity
from squidkeeper.services.exporter.stopped_watchdog import StoppedWatchdog
from squidkeeper.services.maintenance.process import MaintenanceStatus
from squidkeeper.serving.certificates.authority import CertificateAuthority, make_ca
from squidkeeper.serving.credentials.fetch_status import (
    FetchReport,
    FetchStatus,
    SecretStatus,
    fetch_status_file,
)
from squidkeeper.serving.drained import drain
from squidkeeper.serving.parts import Part, needed_keys
from squidkeeper.serving.squid_crashes import note_crash
from tests.documents.code_tables import render
from tests.generations import add_local_lines, put_rendered
from tests.ports import free_port
from tests.records import record_line
from tests.valkey_server import GATEWAYS, ValkeyServer
from tests.waiting import wait_for

from ..snapshots import changed

pytestmark = pytest.mark.system

REPOSITORY = Path(__file__).parents[2]
ACCOUNT = Account("nobody", 65534, 65534)
CA = make_ca(datetime.now(UTC))
# nobody answers there: a gateway of this machine may have 3129
LISTEN = f"127.0.0.1:{free_port()}"
POLICY = """\
version: 1
clients: {vm: {networks: [192.0.2.2]}}
secrets: {token: {file: secret}}
rules:
  - {name: api, action: allow, clients: [vm], hosts: [api.example]}
credentials:
  - {name: api, hosts: [api.example], header: Authorization, value: "Bearer {token}", clients: [vm]}
"""
DEEP = {check.code for check in ALL_CHECKS if check.deep}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def install(root: Path, ca: CertificateAuthority = CA, **options: Any) -> Layout:
    """Lay out a gateway as install.sh does, without its program and processes."""
    layout = Layout.of(root)
    host = Machine(
        ACCOUNT,
        Path("/usr/lib/squid/security_file_certgen"),
        systemd=False,
        selinux=False,
    )
    ours = Configuration(
        REPOSITORY, layout, host, LISTEN, LISTEN, "none", "", **options
    )
    for folder in (
        layout.conf.parent / "ca",
        layout.policy,
        layout.state,
        layout.run,
        layout.program.parent,
    ):
        folder.mkdir(parents=True)
    layout.local.write_text(ours.local_conf())
    settings = "version: 1\n"
    if ours.transparent:
        layout.dns.write_text(ours.dns())
        settings += f"transparent: {json.dumps(ours.transparent)}\n"
    layout.settings.write_text(settings)
    (layout.policy / "policy.yaml").write_text(POLICY)
    (layout.policy / "secret").write_text("s3cr3t-of-this-test\n")
    (layout.policy / "secret").chmod(0o600)
    layout.webhook.write_text("url: https://hooks.example/secret\nformat: slack\n")
    layout.webhook.chmod(0o640)
    units = {layout.service(name).unit.name: ours.unit(name) for name in BODIES}
    folder = folder_of(layout, 1)
    texts = {
        "squid.conf": placed(ours.squid_conf(), layout, folder),
        "local.conf": ours.local_conf(),
        "gateway.yaml": settings,
    }
    files: dict[str, Entry] = {
        name: File(text.encode()) for name, text in texts.items()
    }
    files["templates"] = template_folder(ours.templates() | units)
    files |= {"errors": Folder({}), "squidkeeper.d": Folder({})}
    write_generation(layout, 1, with_files(Folder({}), files))
    put_in_force(layout, 1)
    for path, link in public_links(layout).items():
        write_entry(path, link)
    keys = frozenset(Part) | needed_keys(
        build_sources(read_sources(layout.policy)).policy
    )
    put_rendered(layout, ACCOUNT, Values(keys=keys))
    layout.own_addresses.write_text("")
    layout.signing_cert.write_bytes(ca.certificate)
    layout.signing_key.touch(0o600)
    layout.signing_key.write_bytes(ca.key)
    layout.secrets.mkdir()
    (layout.secrets / "k.value").touch(0o640)
    # of the fetching process
    shutil.chown(
        layout.secrets / "k.value", 61184 if os.geteuid() == 0 else os.geteuid()
    )
    layout.program.symlink_to(Path(sys.prefix) / "bin/squidkeeper")
    layout.access_log.parent.mkdir()
    layout.access_log.touch()
    return layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return install(tmp_path)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return install(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def restored(installed: Layout) -> Iterator[Layout]:
    """One gateway for many tests, whose configuration is as before after each
    of them.
    """
    before = {path: path.read_bytes() for path in etc_files(installed)}
    yield installed
    for path in etc_files(installed) - before.keys():
        path.unlink()
    for path, content in before.items():
        path.write_bytes(content)


def etc_files(layout: Layout) -> set[Path]:
    return {path for path in layout.conf.parent.rglob("*") if path.is_file()}


def add(layout: Layout, text: str) -> None:
    """Add lines to local.conf, in force."""
    add_local_lines(layout, text)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def readable(layout: Layout) -> Inspection:
    """As where Squid's account can read the files: pytest's folder is closed to other
    accounts.
    """
    return replace(inspect(layout), account=squid_account() if os.geteuid() else None)


def found(code: str, seen: Inspection) -> list[Found]:
    [check] = [check for check in ALL_CHECKS if check.code == code]
    return list(check.find(seen))


# --- Squid's configuration ------------------------------------------------------------

ODD = {
    "squid.conf": """\
# a comment
acl a src 192.0.2.1 \\
# a comment within
   192.0.2.2 \\

   192.0.2.3
  http_port 13999
if ${process_number} = 0
visible_hostname zero-${process_name}-${service_name}
if false
forwarded_for delete
endif
forwarded_for off
else
visible_hostname other
endif
if false
if true
via off
endif
endif
include FOLDER/parts/*.conf "FOLDER/more.conf"
configuration_includes_quoted_values on
acl spaced src "192.0.2.7" # a comment
configuration_includes_quoted_values off
http_access deny all # a comment
acl lost src 192.0.2.9 \\
""",
    "parts/2.conf": "acl second src 192.0.2.1\n",
    "parts/10.conf": "acl first src 192.0.2.1\nacl lost src 192.0.2.8 \\",
    "more.conf": "acl cut src 192.0.2.1\rhttp_access deny all\r\nacl cut src 192.0.2.4 \0 192.0.2.5\n"
    "acl returns src 192.0.2.1\r\nacl joined src \\\r\n 192.0.2.2\r\n",
}


def write_odd(folder: Path) -> Path:
    for name, text in ODD.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.replace("FOLDER", str(folder)).encode())
    return folder / "squid.conf"


def test_a_configuration_is_read_with_its_files_and_lines(tmp_path: Path) -> None:
    conf = read_squid_conf(write_odd(tmp_path), Macros("sk", "squid", 0))
    assert [
        (str(one.file.relative_to(tmp_path)), one.line, one.name, one.words)
        for one in conf.directives
    ] == [
        ("squid.conf", 2, "acl", ("a", "src", "192.0.2.1", "192.0.2.2", "192.0.2.3")),
        ("squid.conf", 7, "http_port", ("13999",)),
        ("squid.conf", 9, "visible_hostname", ("zero-squid-sk",)),
        ("squid.conf", 13, "forwarded_for", ("off",)),
        (
            "squid.conf",
            19,
            "via",
            ("off",),
        ),  # of nested conditions the innermost alone counts
        ("parts/10.conf", 1, "acl", ("first", "src", "192.0.2.1")),
        ("parts/2.conf", 1, "acl", ("second", "src", "192.0.2.1")),
        ("more.conf", 1, "acl", ("cut", "src", "192.0.2.1")),
        ("more.conf", 2, "acl", ("cut", "src", "192.0.2.4")),
        ("more.conf", 3, "acl", ("returns", "src", "192.0.2.1")),
        ("more.conf", 4, "acl", ("joined", "src", "192.0.2.2")),
        ("squid.conf", 23, "configuration_includes_quoted_values", ("on",)),
        ("squid.conf", 24, "acl", ("spaced", "src", "192.0.2.7")),
        ("squid.conf", 25, "configuration_includes_quoted_values", ("off",)),
        ("squid.conf", 26, "http_access", ("deny", "all")),
    ]
    assert conf.problems == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "include /nowhere/*.conf\n",
            "includes /nowhere/*.conf, and there is no such file",
        ),
        ("if true\n", "an 'if' has no 'endif'"),
        ("endif\n", "'endif' without an 'if'"),
        ("else\n", "'else' without an 'if'"),
        ("if maybe\nendif\n", "'maybe' is not true, false or NUMBER = NUMBER"),
    ],
)
def test_what_squid_refuses_to_read_is_a_problem(
    tmp_path: Path, text: str, problem: str
) -> None:
    (tmp_path / "squid.conf").write_text(text)
    [one] = read_squid_conf(tmp_path / "squid.conf", Macros()).problems
    assert one.text == problem


def test_an_include_of_itself_ends(tmp_path: Path) -> None:
    conf = tmp_path / "squid.conf"
    conf.write_text(f"include {conf}\n")
    [problem] = read_squid_conf(conf, Macros()).problems
    assert "more than 16 levels deep" in problem.text


def parse(conf: Path) -> str:
    done = subprocess.run(
        ["squid", "-n", "sk", "-k", "parse", "-f", conf],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr


def test_squid_processes_the_same_lines(tmp_path: Path) -> None:
    """A fault of the configuration ends Squid's output, so there is none."""
    for conf in (write_odd(tmp_path), install(tmp_path / "gateway").conf):
        processed = re.findall(r"\| Processing: (.*)", parse(conf))
        ours = [
            line.text for line in read_squid_conf(conf, Macros("sk", "squid", 0)).lines
        ]
        assert len(processed) > 10
        assert ours == processed


# --- The checks -----------------------------------------------------------------------

# Lines for local.conf, and the detail of what is found at the last one: the line itself
# where none is given.
PLANTED = {
    "allowed-ahead-of-policy": (
        "http_access allow localhost \\\n  !manager\n",
        "http_access allow localhost !manager",
    ),
    "private-addresses-open": (
        "cache_peer 192.0.2.9 parent 3128 0 login=u:pw\n",
        "cache_peer 192.0.2.9",
    ),
    "certificate-errors-allowed": (
        "sslproxy_cert_error allow all\n",
        "sslproxy_cert_error allow all",
    ),
    "verification-off": (
        "tls_outgoing_options flags=DONT_VERIFY_PEER\n",
        "tls_outgoing_options … DONT_VERIFY_PEER",
    ),
    "tunnel-not-bumped": ("ssl_bump splice localhost\n", "ssl_bump splice localhost"),
    "header-unguarded": (
        'acl ruled note rule_\nrequest_header_add X-Rule "%{rule_}note" ruled\n',
        'X-Rule: write "%\'{KEY}note", in double quotes',
    ),
    "client-header-kept": (
        "request_header_access Api_Key allow all\n",
        "request_header_access Api_Key allow all",
    ),
    "token-not-encoded": (
        "external_acl_type mine %>a %ssl::>sni %#>rd /bin/true\n",
        "external_acl_type mine: %ssl::>sni",
    ),
    "annotations-printed": (
        "logformat mine %>a %note\n",
        "logformat mine: %note prints every annotation",
    ),
    "debugging-prints-headers": ("debug_options ALL,1 11,2\n", "debug_options 11,2"),
    "requests-in-warnings": (
        "debug_options ALL,1 55,0\n",
        "debug_options lacks 11,0 23,0 29,0 33,0",
    ),
    "workers-overridden": ("workers 3\n", "workers 3"),
    "forwarded-for-believed": (
        "follow_x_forwarded_for allow all\n",
        "follow_x_forwarded_for allow all",
    ),
    "proxy-protocol-open": (
        "proxy_protocol_access allow all\n",
        "proxy_protocol_access allow all",
    ),
    "proxy-header-from-nobody": ("http_port 127.0.0.1:3140 require-proxy-header\n", ""),
    "override-header-kept": ("request_header_access X-Rewrite_URL allow all\n", ""),
    "answers-kept-too-long": (
        "external_acl_type mine %#>a /opt/squidkeeper/bin/squidkeeper throttle\n",
        "external_acl_type mine keeps answers for 3600 s",
    ),
    "half-closed-clients": ("half_closed_clients on\n", ""),
    "answers-kept-in-memory": (
        "http_reply_access allow all\n",
        "http_reply_access allow all",
    ),
}
# The same by another line: code, line, detail.
VARIANTS = [
    (
        "allowed-ahead-of-policy",
        "http_access2 allow all\n",
        "adapted_http_access allow all",
    ),
    (
        "counter-unlike-lines",
        "stats_collection deny localhost\n",
        "stats_collection deny localhost",
    ),
    ("credentials-cached", "store_miss allow all\n", "store_miss allow all"),
    ("credentials-cached", "send_hit allow localhost\n", "send_hit allow localhost"),
    (
        "client-header-kept",
        "request_header_access Other allow all\n",
        "request_header_access Other allow all",
    ),
    ("override-header-kept", "request_header_access Forwarded allow all\n", ""),
    ("tunnel-not-bumped", "ssl_bump peek all\n", "ssl_bump peek all"),
    (
        "tunnel-not-bumped",
        "on_unsupported_protocol tunnel all\n",
        "on_unsupported_protocol tunnel all",
    ),
    ("debugging-prints-headers", "debug_options 9,1 all,5\n", "debug_options ALL,5"),
    (
        "requests-in-warnings",
        "debug_options 11,0 29,0 55,0 ALL,1\n",
        "debug_options lacks 11,0 23,0 29,0 33,0 55,0",
    ),
    (
        "half-closed-clients",
        "half_closed_clients enable\n",
        "half_closed_clients enable",
    ),
    (
        "header-unguarded",
        'request_header_add X-Rule "%\'{rule_}note" localhost\n',
        "X-Rule has no ACL `note rule_`",
    ),
    (
        "annotations-printed",
        "logformat mine %{authorization_}note\n",
        "logformat mine: authorization_",
    ),
    ("annotations-printed", "note x %note{authorization_}\n", "note x: authorization_"),
    ("debugging-prints-headers", "debug_options ALL,5\n", "debug_options ALL,5"),
    (
        "tunnel-not-bumped",
        "http_port 127.0.0.1:3130\n",
        "http_port 127.0.0.1:3130 has no ssl-bump",
    ),
    (
        "verification-off",
        "sslproxy_flags DONT_VERIFY_PEER\n",
        "sslproxy_flags … DONT_VERIFY_PEER",
    ),
    (
        "proxy-protocol-open",
        "acl lb src 192.0.2.1 ::/0\nproxy_protocol_access allow lb\n",
        "proxy_protocol_access allow lb",
    ),
    ("private-addresses-open", "always_direct allow all\n", "always_direct allow"),
    (
        "token-not-encoded",
        'auth_param basic key_extras "%>a %{Proxy-Authorization}>h"\n',
        "auth_param basic: %{Proxy-Authorization}>h",
    ),
    (
        "answers-kept-too-long",
        "external_acl_type mine ttl=1 negative_ttl=60 %#>a /opt/squidkeeper/bin/squidkeeper throttle\n",
        "external_acl_type mine keeps answers for 60 s",
    ),
]


@pytest.mark.parametrize(
    ("code", "line", "detail"),
    [*((code, *pair) for code, pair in PLANTED.items()), *VARIANTS],
    ids=lambda value: value[:24],
)
def test_a_faulty_line_is_found_with_its_place(
    restored: Layout, code: str, line: str, detail: str
) -> None:
    layout = restored
    assert found(code, inspect(layout)) == []
    at = (
        layout.local.read_text().count("\n")
        + line.rstrip("\n").replace("\\\n", "").count("\n")
        + 1
    )
    add(layout, line)
    assert found(code, inspect(layout)) == [
        Found(detail or line.rstrip(), f"{layout.local}:{at}")
    ]


def test_squid_accepts_the_faulty_lines(layout: Layout) -> None:
    for line in (
        *(line for line, _ in PLANTED.values()),
        *(line for _, line, _ in VARIANTS),
    ):
        add(layout, line)
    assert re.findall(r"FATAL.*|Bungled.*|unrecognized.*", parse(layout.conf)) == []


def without(
    path: Callable[[Layout], Path], old: str, new: str = ""
) -> Callable[[Layout], None]:
    """Replace a text of one of the installed files."""
    return lambda layout: edit(path(layout), old, new)


def watch(layout: Layout) -> None:
    """Let the policy watch for its secrets."""
    edit(
        layout.policy / "policy.yaml",
        "version: 1\n",
        "version: 1\ndefaults: {watch_secrets: true}\n",
    )


def watch_with(layout: Layout, line: str) -> None:
    watch(layout)
    add(layout, line)


def watch_without_ours(layout: Layout) -> None:
    watch(layout)
    edit(layout.conf, "access_log stdio:", "#access_log stdio:")
    add(layout, "access_log stdio:/dev/null squidkeeper_withheld\n")


def write(path: Path, text: str) -> None:
    path.write_text(text)


def edited_settings(layout: Layout) -> None:
    layout.settings_in_force.write_text("version: 1\n")
    layout.settings.write_text("version: 1\nworkers: 2\n")


def other_errors(layout: Layout) -> None:
    edit(
        layout.fragment,
        f"error_directory {layout.generation.resolve()}/errors",
        f"error_directory {layout.state}",
    )


def include_not(layout: Layout) -> None:
    fragment = layout.generation.resolve() / "squidkeeper.conf"
    edit(layout.conf, f"\ninclude {fragment}\n", "\n")


def fragment(layout: Layout) -> Path:
    return layout.fragment


def conf(layout: Layout) -> Path:
    return layout.conf


# Code, how the installed files are changed, and a part of what is found.
CHANGED: list[tuple[str, Callable[[Layout], None], str]] = [
    ("policy-not-included", include_not, "squidkeeper.conf is missing"),
    (
        "credentials-cached",
        without(fragment, "\nstore_miss deny "),
        "store_miss deny !sk_is_final sk_is_https sk_is_injected is missing",
    ),
    (
        "credentials-cached",
        without(fragment, "\ncache deny all"),
        "cache deny all is missing",
    ),
    (
        "rewriter-bypassed",
        without(fragment, "url_rewrite_bypass off", "url_rewrite_bypass on"),
        "url_rewrite_bypass on",
    ),
    (
        "error-pages-show-headers",
        without(fragment, "email_err_data off"),
        "email_err_data off is missing",
    ),
    (
        "error-pages-show-headers",
        without(fragment, "email_err_data off", "email_err_data on"),
        "email_err_data on",
    ),
    ("error-pages-not-ours", other_errors, "expected error_directory /"),
    (
        "no-access-log",
        without(conf, "\naccess_log ", "\n#access_log "),
        "squidkeeper is missing",
    ),
    ("settings-not-applied", edited_settings, "edited, and not applied"),
    ("worker-port-shared", lambda layout: add(layout, "workers 2\n"), "http_port "),
    (
        "few-descriptors",
        without(conf, "max_filedescriptors 16384", "max_filedescriptors 1024"),
        "descriptors 1024",
    ),
    (
        "few-descriptors",
        without(conf, "max_filedescriptors 16384"),
        "max_filedescriptors is missing",
    ),
    (
        "counter-unlike-lines",
        without(conf, "stats_collection deny", "#stats_collection deny"),
        "deny sk_is_scrape is missing",
    ),
    (
        "counter-unlike-lines",
        without(
            conf, "stats_collection ", "stats_collection allow all\nstats_collection "
        ),
        "allow",
    ),
    (
        "rendered-lines-outdated",
        without(fragment, "10.0.0.0/8 "),
        "it differs from what the templates and the policy give",
    ),
    (
        "rendered-lines-outdated",
        lambda layout: layout.logformat.resolve().unlink(),
        "it is missing",
    ),
    (
        "answers-kept-too-long",
        without(fragment, "ttl=1 negative_ttl=1", ""),
        "sk_host keeps answers for 3600 s",
    ),
    ("token-not-encoded", without(fragment, "%#ssl::>sni", "%ssl::>sni"), "%ssl::>sni"),
    (
        "squid-conf-incomplete",
        lambda layout: layout.logformat.resolve().unlink(),
        "there is no such file",
    ),
    (
        "annotations-printed",
        lambda value: write(value.errors / "ERR_X", "<p>@Squid{%note}"),
        "an error page: *",
    ),
    (
        "wrong-passwords-pass",
        without(fragment, "auth_param basic key_extras", "#"),
        "squidkeeper has no key_extras",
    ),
    (
        "watched-requests-logged",
        lambda value: watch_with(
            value, "access_log udp://192.0.2.9:9 logformat=squidkeeper\n"
        ),
        "udp",
    ),
    (
        "watched-requests-logged",
        lambda value: watch_with(
            value,
            "access_log udp://192.0.2.9:9 logformat=squidkeeper !sk_is_with_request\n",
        ),
        "udp",
    ),
    (
        "watched-requests-logged",
        watch_without_ours,
        "squidkeeper's access_log line with ",
    ),
    (
        "two-resolvers",
        lambda layout: add(
            layout, "dns_nameservers 192.0.2.1\ndns_nameservers 192.0.2.2\n"
        ),
        "beside",
    ),
]


@pytest.mark.parametrize(
    ("code", "change", "part"),
    CHANGED,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_changed_file_is_found(
    restored: Layout, code: str, change: Callable[[Layout], None], part: str
) -> None:
    assert found(code, inspect(restored)) == []
    change(restored)
    details = found(code, inspect(restored))
    assert details
    assert all(part in detail.detail for detail in details)


@pytest.mark.long
@pytest.mark.parametrize(
    ("code", "change", "_"),
    CHANGED,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_squid_accepts_the_changed_files(
    restored: Layout, code: str, change: Callable[[Layout], None], _: str
) -> None:
    change(restored)
    refused = re.findall(r"FATAL.*|Bungled.*|unrecognized.*", parse(restored.conf))
    assert bool(refused) == (
        code == "squid-conf-incomplete" or not restored.logformat.exists()
    )


def test_a_log_without_urls_may_show_what_is_watched_for(layout: Layout) -> None:
    watch_with(
        layout,
        "access_log udp://192.0.2.9:9 logformat=squidkeeper_withheld\naccess_log none\n",
    )
    add(layout, "access_log udp://192.0.2.9:9 logformat=squidkeeper !sk_is_withheld\n")
    # the lines for a collector, as documented
    edit(layout.generation / "local.conf", "#access_log ", "access_log ")
    assert found("watched-requests-logged", inspect(layout)) == []
    assert re.findall(r"FATAL.*|Bungled.*", parse(layout.conf)) == []


def test_the_exporters_own_request_and_lines_that_never_match_are_no_findings(
    layout: Layout,
) -> None:
    add(
        layout,
        "http_access allow localhost !all\nproxy_protocol_access allow localhost\n",
    )
    add(
        layout,
        "store_miss allow !sk_is_injected\ndebug_options 11,5 ALL,1 11,0 23,0 29,0 33,0 55,0\nssl_bump stare all\n",
    )
    inspection = inspect(layout)
    for code in (
        *(
            "allowed-ahead-of-policy",
            "proxy-protocol-open",
            "certificate-errors-allowed",
            "tunnel-not-bumped",
        ),
        *("credentials-cached", "debugging-prints-headers", "requests-in-warnings"),
    ):
        assert found(code, inspection) == []


def test_a_configuration_that_squid_rejects_is_found_and_its_values_are_not_shown(
    layout: Layout,
) -> None:
    assert found("squid-conf-rejected", inspect(layout)) == []
    add(layout, "cache_peer h3re.example parent s3cr3t\n")
    details = " ".join(
        finding.detail for finding in found("squid-conf-rejected", inspect(layout))
    )
    assert "cache_peer" in details
    assert "s3cr3t" not in details


# --- The machine ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "mode", "detail"),
    [
        (
            "etc/ca/signing.key",
            0o644,
            "the CA's key: every account can read or write it (mode 0644)",
        ),
        (
            "etc/ca/signing.key",
            0o660,
            "the CA's key: group 0 can read or write it (mode 0660)",
        ),
        (
            "etc/policy/secret",
            0o604,
            "a secret of the policy: every account can read or write it (mode 0604)",
        ),
        (
            "run/secrets/k.value",
            0o644,
            "a secret that was fetched: every account can read or write it (mode 0644)",
        ),
        (
            "etc/webhook.yaml",
            0o644,
            "the URL of the webhook: every account can read or write it (mode 0644)",
        ),
        (
            "etc/policy",
            0o775,
            "above a secret of the policy: group 0 can replace files in it (mode 0775)",
        ),
        (
            "etc/policy",
            0o777,
            "above a secret of the policy: every account can replace files in it (mode 0777)",
        ),
    ],
)
@as_root
def test_a_secret_that_other_accounts_can_read_or_replace_is_found(
    layout: Layout, path: str, mode: int, detail: str
) -> None:
    assert found("secret-file-open", inspect(layout)) == []
    (layout.conf.parents[1] / path).chmod(mode)
    assert found("secret-file-open", inspect(layout)) == [
        Found(detail, str(layout.conf.parents[1] / path))
    ]


@as_root
def test_a_secret_of_another_account_is_found(layout: Layout) -> None:
    shutil.chown(layout.signing_key, 12345)
    [finding] = found("secret-file-open", inspect(layout))
    assert (
        finding.detail
        == "the CA's key: it belongs to user 12345, neither root nor Squid's account"
    )


@as_root
def test_what_is_fetched_alone_may_belong_to_another_account(layout: Layout) -> None:
    (layout.policy / "secret").rename(layout.policy / "token.value")
    edit(layout.policy / "policy.yaml", "file: secret", "file: token.value")
    shutil.chown(layout.policy / "token.value", 12345)
    shutil.chown(layout.policy, 12346)
    shutil.chown(layout.secrets, 61184)
    assert [
        finding.detail for finding in found("secret-file-open", inspect(layout))
    ] == [
        "a secret of the policy: it belongs to user 12345, neither root nor Squid's account",
        "above a secret of the policy: user 12346 can replace files in it (mode 0755)",
    ]


WEBHOOKS = {
    "a typing slip": ("urll: https://hooks.example/secret\n", "unknown field"),
    "no https": (
        "url: http://hooks.example/secret\nformat: slack\n",
        "url is not one of https://HOST/PATH",
    ),
    "no key": ("url: https://hooks.example/secret\n", "key_file is missing"),
    "no authority": (
        "url: https://hooks.example/secret\nformat: slack\nca_file: /none.pem\n",
        "name a PEM file",
    ),
}


@pytest.mark.parametrize(("text", "told"), WEBHOOKS.values(), ids=WEBHOOKS)
def test_a_fault_of_the_webhook_is_found_before_a_question_waits(
    layout: Layout, text: str, told: str
) -> None:
    one = readable(layout)
    assert found("webhook-failing", one) == []
    layout.webhook.write_text(text)
    [finding] = found("webhook-failing", one)
    assert told in finding.detail
    assert finding.place == str(layout.webhook)
    assert "hooks.example" not in finding.detail
    layout.webhook.unlink()
    assert found("webhook-failing", one) == []


def test_what_the_webhook_meets_is_found_where_the_maintenance_process_runs(
    layout: Layout,
) -> None:
    failed = MaintenanceStatus(runs=True, failures={"webhook": "status 500"})
    inspection = replace(inspect(layout), account=None)
    [finding] = found(
        "webhook-failing",
        replace(inspection, view=changed(inspection.view, maintenance=failed)),
    )
    assert finding.detail == "status 500"


@as_root
def test_settings_are_read_as_squids_account_reads_them(layout: Layout) -> None:
    (layout.policy.parent / "quota-store.yaml").write_text("{}")
    inspection = inspect(layout)  # pytest's folder is closed to it
    for code in ("webhook-failing", "quota-store-unusable"):
        [finding] = found(code, inspection)
        assert finding.detail.endswith(
            "Permission denied: Squid's account has to read it"
        )


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("quota-store.yaml", "quota-store-unusable"),
        ("pull.yaml", "pull-settings-unusable"),
    ],
)
def test_a_fault_of_settings_beside_the_policy_is_found(
    layout: Layout, name: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # this machine may have one that pulls
    monkeypatch.setattr(machine, "account_of", lambda _: None)
    one, file = readable(layout), layout.policy.parent / name
    assert found(code, one) == []
    file.write_text("adress: 127.0.0.1:6379\n")
    [finding] = found(code, one)
    assert "adress" in finding.detail
    assert finding.place == str(file)


def test_a_policy_that_is_pulled_without_a_ceiling_is_found(layout: Layout) -> None:
    inspection, file = inspect(layout), layout.pull_settings
    assert found("pull-without-ceiling", inspection) == []
    settings = (
        "source: {git: 'https://git.example/p', branch: main}\nallowed_signers: /a\n"
    )
    file.write_text(settings)
    assert found("pull-without-ceiling", inspection) == [
        Found("it names no ceiling", str(file))
    ]
    file.write_text(f"{settings}ceiling: /c\n")
    assert found("pull-without-ceiling", inspection) == []
    file.write_text("")
    assert found("pull-without-ceiling", inspection) == []


def test_a_service_of_sessions_that_does_not_answer_is_found(layout: Layout) -> None:
    settings, place = layout.sessions_settings, layout.sessions_socket
    assert found("sessions-unavailable", inspect(layout)) == []
    (layout.policy / "roles.yaml").write_text("version: 1\nroles: {ci: {ttl: 1h}}\n")
    assert found("sessions-unavailable", inspect(layout)) == [
        Found("the policy has roles, and no program may make sessions")
    ]
    settings.write_text("version: 1\norchestrators: {local: {roles: [ci]}}\n")
    silent = Found("nothing answers", str(place))
    assert found("sessions-unavailable", inspect(layout)) == [silent]
    place.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
        listening.listen()

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.0 404 Not Found\r\n\r\n")

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(answer)
            assert found("sessions-unavailable", inspect(layout)) == []
    settings.write_text("version: 1\norchestrators: {local: {role: [ci]}}\n")
    details = [one.detail for one in found("sessions-unavailable", inspect(layout))]
    assert len(details) == 3
    assert "unknown key 'role', did you mean 'roles'? [unknown-key]" in details


def test_the_store_of_quotas_is_asked_for_a_count(
    layout: Layout, tmp_path: Path
) -> None:
    one, server = readable(layout), ValkeyServer(tmp_path / "valkey")
    assert found("quota-store-unavailable", one) == []
    file = server.start().write_settings(layout.policy.parent, "local", 2, GATEWAYS[0])
    try:
        assert found("quota-store-unavailable", one) == []
        server.command("FUNCTION", "FLUSH")
        [without_function] = found("quota-store-unavailable", one)
    finally:
        server.kill()
    [away] = found("quota-store-unavailable", one)
    assert "load squid/quotas.lua as squid/FLEET.md shows" in without_function.detail
    assert "refused" in away.detail
    assert [without_function.place, away.place] == [str(file)] * 2
    file.write_text("{}")
    # quota-store-unusable tells that
    assert found("quota-store-unavailable", one) == []


@as_root
def test_what_squids_account_cannot_read_is_found(layout: Layout) -> None:
    places = [
        Path(finding.place) for finding in found("squid-cannot-read", inspect(layout))
    ]
    # it is root's alone here, as is pytest's folder
    assert layout.signing_key in places


def test_secrets_that_nothing_fetches_are_found_where_it_is_meant_to_run(
    layout: Layout,
) -> None:
    source = "token: {command: {run: [give-token]}}, gone: {file: gone}"
    edit(layout.policy / "policy.yaml", "token: {file: secret}", source)
    codes = ("secrets-not-fetched", "secret-unavailable")
    for running, expected in ((False, codes[1:]), (True, codes)):
        diagnosis = examine(inspect(layout), running=running)
        made = {check.code: cases for check, cases in diagnosis.found}
        assert tuple(code for code in codes if code in made) == expected
        alone = [pair for pair in diagnosis.found if pair[0].code == codes[1]]
        assert replace(diagnosis, found=tuple(alone)).failed()
        assert [
            case.detail.count("give-token") for case in made["secret-unavailable"]
        ] == [0]
    fetch_status_file(layout.secrets).write(
        FetchReport({"token": SecretStatus("command")})
    )
    # it runs, and has not fetched it
    assert len(found("secret-unavailable", inspect(layout))) == 2


@pytest.mark.parametrize(
    ("status", "tried"),
    [
        (FetchStatus(runs=True), False),  # it has not read the policy
        (
            FetchStatus(
                runs=True,
                secrets={
                    "a": SecretStatus("x", last_success=1.0),
                    "b": SecretStatus("x"),
                },
            ),
            False,
        ),
        (
            FetchStatus(
                runs=True,
                secrets={
                    "a": SecretStatus("x", 1.0),
                    "b": SecretStatus("x", failures=1),
                },
            ),
            True,
        ),
        (FetchStatus(runs=False, secrets={"a": SecretStatus("x", 1.0)}), False),
        (FetchStatus(runs=True, problem="the folder is gone"), True),
    ],
)
def test_an_installation_examines_once_each_secret_was_tried(
    status: FetchStatus, tried: bool
) -> None:
    assert status.has_tried is tried


def test_a_clock_that_is_behind_is_found(tmp_path: Path) -> None:
    layout = install(tmp_path / "now")
    assert found("clock-off", inspect(layout)) == []
    os.utime(layout.access_log, (time.time() + 3600,) * 2)
    assert [place.place for place in found("clock-off", inspect(layout))] == [
        str(layout.access_log)
    ]
    tomorrow = install(
        tmp_path / "tomorrow", make_ca(datetime.now(UTC) + timedelta(days=3))
    )
    [finding] = found("clock-off", inspect(tomorrow))
    assert finding.detail.startswith("the CA begins at ")


@pytest.mark.parametrize(
    ("rule", "code", "part"),
    [
        (
            "daily\n rotate 14\n copytruncate\n",
            "logrotate-loses-records",
            "copytruncate",
        ),
        (
            "daily\n rotate 14\n",
            "logrotate-loses-records",
            "does not run `squid -k rotate`",
        ),
        (
            "rotate 0\n postrotate\n squid -k rotate\n endscript\n",
            "logrotate-loses-records",
            "rotate 0",
        ),
        (
            "daily\n postrotate\n squid -k rotate\n endscript\n",
            "logrotate-keeps-few-days",
            "4 days of records",
        ),
        (
            "postrotate\n squid -k rotate\n endscript\n",
            "",
            "",
        ),  # as logrotate.conf says
        (
            "daily\n rotate 2\n postrotate\n squid -k rotate\n",
            "logrotate-keeps-few-days",
            "2 days of records",
        ),
        ("daily\n rotate 30\n postrotate\n squid -k rotate\n", "", ""),
        ("weekly\n rotate -1\n postrotate\n squid -k rotate\n", "", ""),
    ],
)
def test_a_rule_of_logrotate_that_loses_the_audit_is_found(
    layout: Layout, tmp_path: Path, rule: str, code: str, part: str
) -> None:
    rules = tmp_path / "logrotate.d"
    rules.mkdir()
    (tmp_path / "logrotate.conf").write_text(
        "monthly\nweekly\nrotate 4\ninclude /etc/logrotate.d\nrotate 1\n"
    )
    (rules / "squid").write_text(
        f"# squid\n\n{layout.access_log.parent}/*.log {{\n {rule}}}\n/other {{\n rotate 0\n}}\n"
    )
    inspection = replace(inspect(layout), logrotate=rules)
    both = {
        code: found(code, inspection)
        for code in ("logrotate-loses-records", "logrotate-keeps-few-days")
    }
    assert [name for name, cases in both.items() if cases] == ([code] if code else [])
    for case in both.get(code, []):
        assert part in case.detail
        assert case.place == f"{rules}/squid:3"


def test_a_rule_that_logrotate_ignores_loses_nothing(
    layout: Layout, tmp_path: Path
) -> None:
    rules = tmp_path / "logrotate.d"
    rules.mkdir()
    ours = (Path(__file__).parents[2] / "squid/logrotate").read_text()
    ours = ours.replace("/var/log/squid", str(layout.access_log.parent))
    (rules / "00-squidkeeper").write_text(ours)
    (rules / "squid").write_text(
        f"{layout.access_log.parent}/*.log {{\n rotate 0\n copytruncate\n}}\n"
    )
    inspection = replace(inspect(layout), logrotate=rules)
    codes = ("logrotate-loses-records", "logrotate-keeps-few-days")
    assert [found(code, inspection) for code in codes] == [[], []]
    (rules / "00-squidkeeper").write_text(ours.replace("ignoreduplicates", ""))
    assert [len(found(code, inspection)) for code in codes] == [2, 0]


def test_an_open_proxy_is_found(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        machine,
        "reached_at",
        lambda listen: ["198.51.100.7"] if listen == LISTEN else [],
    )
    assert found("open-proxy", inspect(layout)) == []
    edit(layout.policy / "policy.yaml", "action: allow, clients: [vm]", "action: allow")
    [one] = found("open-proxy", inspect(layout))
    assert one.detail.startswith(
        f"it listens on {LISTEN}, reached at 198.51.100.7; rule 'api' allows any client"
    )


def test_ports_for_clients_without_proxy_settings_can_be_an_open_proxy(
    transparent: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        machine,
        "reached_at",
        lambda listen: ["198.51.100.7"] if listen == "127.0.0.9:443" else [],
    )
    assert found("open-proxy", inspect(transparent)) == []
    edit(
        transparent.policy / "policy.yaml",
        "action: allow, clients: [vm]",
        "action: allow",
    )
    [one] = found("open-proxy", inspect(transparent))
    assert one.detail.startswith(
        "it listens on 127.0.0.9:443, reached at 198.51.100.7; rule 'api' allows any"
    )


def test_a_port_for_load_balancers_alone_is_no_open_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--behind` without `--listen`, as squid/FLEET.md installs it, listens on every
    address.
    """
    monkeypatch.setattr(machine, "reached_at", lambda _: ["198.51.100.7"])
    layout = install(tmp_path, behind=("192.0.2.1",))
    edit(layout.policy / "policy.yaml", "action: allow, clients: [vm]", "action: allow")
    assert found("open-proxy", inspect(layout)) == []
    edit(layout.conf, " require-proxy-header", "")
    assert len(found("open-proxy", inspect(layout))) == 1


def test_each_helper_answers_and_one_that_does_not_is_found(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = readable(layout)
    assert found("helper-silent", one) == []
    assert [*layout.state.iterdir()] == [layout.own_addresses]  # it has counted nothing
    silent = tmp_path / "silent/squidkeeper"
    silent.parent.mkdir()
    # what it is told would be its answer
    silent.write_text("#!/bin/sh\necho $OF_ROOT\nexit 3\n")
    monkeypatch.setenv("OF_ROOT", "s3cr3t")
    silent.chmod(0o755)
    edit(
        layout.fragment,
        f"{layout.program} credential --concurrency",
        f"{silent} credential --concurrency",
    )
    edit(
        layout.fragment,
        f"{layout.program} rewrite",
        "/nowhere/squidkeeper rewrite",
    )
    changed = inspect(layout)
    lines = [
        line
        for line in changed.conf.lines
        if "silent/" in line.text or "nowhere/" in line.text
    ]
    one = replace(changed, conf=SquidConf(lines), account=one.account)
    details = [case.detail for case in found("helper-silent", one)]
    assert details == [
        "squidkeeper credential --concurrency 4: it ends without an answer, with status 3",
        "squidkeeper rewrite --concurrency 0: it cannot be started (No such file or directory)",
    ]


def test_a_helper_that_hangs_is_found(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_IDLE_SECONDS", 0.2)
    hanging = tmp_path / "squidkeeper"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    for path in (layout.conf, layout.fragment):
        edit(path, f"{layout.program}", f"{hanging}")
    inspection = replace(inspect(layout), account=None)
    assert {
        case.detail.rpartition(": ")[2] for case in found("helper-silent", inspection)
    } == {"it neither answers nor works for 0 s"}


def test_what_a_helper_has_started_ends_with_it_and_leaves_nothing(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the publisher, which would write on while its folder is removed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    writing = tmp_path / "squidkeeper"
    writing.write_text(
        f"""#!{sys.executable}
import os, sys
from pathlib import Path
if "--state" in sys.argv and os.fork() == 0:
    os.close(1)
    folder = Path(sys.argv[sys.argv.index("--state") + 1], "revisions")
    for number in range(10**6):
        Path(folder, str(number % 100)).mkdir(parents=True, exist_ok=True)
print("OK")
"""
    )
    writing.chmod(0o755)
    for path in (layout.conf, layout.fragment):
        edit(path, f"{layout.program}", f"{writing}")
    inspection = replace(inspect(layout), account=None)
    assert found("helper-silent", inspection) == []
    assert not [*tmp_path.glob("squidkeeper-doctor-*")]


def test_a_helper_that_works_for_long_before_it_answers_is_not_found(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one with a large policy on a busy machine: it works for longer than a helper
    may be idle.
    """
    monkeypatch.setattr(machine, "_IDLE_SECONDS", 1.0)
    monkeypatch.setattr(machine, "_WORK_SECONDS", 0.01)
    busy = tmp_path / "squidkeeper"
    busy.write_text(
        f"#!{sys.executable}\nimport time\n"
        "while time.process_time() < 2.5: pass\nprint('OK')\n"
    )
    busy.chmod(0o755)
    edit(layout.conf, f"{layout.program}", f"{busy}")
    inspection = replace(inspect(layout), account=None)
    [asked, *_] = [*machine._helpers(inspection)]
    assert machine._problem(asked, str(tmp_path), None) == ""


@pytest.mark.parametrize("ends", [True, False])
def test_doctor_stops_a_helper_and_sees_whether_the_exporter_ends_it(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    inspection = replace(inspect(layout), account=None)
    assert found("stopped-helper-stays", inspection) == []  # no exporter is installed
    monkeypatch.setattr(InstalledService, "works", lambda _: True)
    monkeypatch.setattr(machine, "_STOPPED_SECONDS", 20 if ends else 0.2)
    watchdog = StoppedWatchdog(layout.state, every_seconds=0.05)
    if ends:
        watchdog.start()
    cases = [
        case.detail.rpartition(": ")[2]
        for case in found("stopped-helper-stays", inspection)
    ]
    assert cases == (
        [] if ends else ["nothing ended a process that was stopped for 0 s"]
    )
    assert [*layout.state.iterdir()] == [layout.own_addresses]  # it has counted nothing


@as_root
def test_a_resolver_that_hangs_is_found_with_its_process(layout: Layout) -> None:
    """Before the maintenance process has waited long enough to report it."""
    add(layout, f"dns_nameservers {layout.resolver}\n")
    seen = inspect(layout)
    assert found("resolver-failing", seen) == []  # it does not run

    running = changed(seen.view, maintenance=MaintenanceStatus(runs=True))
    seen = replace(seen, view=running)
    [alone] = found("resolver-failing", seen)
    assert alone.detail.endswith("port 53: nothing listens there")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((layout.resolver, 53))
        [hanging] = found("resolver-failing", seen)
    assert f"process {os.getpid()} (" in hanging.detail

    fails = MaintenanceStatus(runs=True, failures={"resolver": "it hangs"})
    [reported] = found(
        "resolver-failing", replace(seen, view=changed(running, maintenance=fails))
    )
    assert reported == Found("it hangs")


@as_root
def test_what_tells_whether_squid_runs_works_when_it_is_down(layout: Layout) -> None:
    """The advice of `squid-down`, on a machine without systemd."""
    told = with_commands("systemctl status squid", layout)
    assert (
        subprocess.run(told.split(), capture_output=True, text=True, check=False).stdout
        == ""
    )
    with subprocess.Popen(
        ["sh", "-c", "read x", str(layout.conf)], stdin=subprocess.PIPE
    ):
        done = subprocess.run(told.split(), capture_output=True, text=True, check=True)
    assert str(layout.conf) in done.stdout
    remedy = next(one.remedy for one in ALL_CHECKS if one.code == "squid-down")
    assert layout.install_command in with_commands(remedy, layout)


def test_helpers_are_tried_where_it_is_asked_for_and_the_result_is_shown_later(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(
        layout.fragment,
        f"{layout.program} rewrite",
        "/nowhere/squidkeeper rewrite",
    )
    seen = replace(inspect(layout), account=None)
    before = examine(seen)
    assert not {check.code for check, _ in before.found} & DEEP
    assert "Helpers were not tried" in as_text(before)

    deep = examine(seen, deep=True)
    assert "Helpers were" not in as_text(deep)
    later = examine(replace(inspect(layout), account=None))
    for diagnosis, is_past in ((deep, False), (later, True)):
        [(check, [case])] = [
            (check, cases) for check, cases in diagnosis.found if check.code in DEEP
        ]
        assert (check.code, diagnosis.failed()) == ("helper-silent", True)
        assert case.detail.startswith("squidkeeper rewrite --concurrency 0: it cannot")
        assert ("(tried " in case.detail) is is_past
    assert "Helpers were tried" in as_text(later)
    assert json.loads(as_json(later))["deep_at"] is not None
    assert not any(
        check.code in DEEP for check, _ in examine(seen, running=False).found
    )

    layout.deep_result.write_text('{"at": "yesterday"}')
    assert examine(seen).last_deep is None


@as_root
def test_squids_account_tries_the_helpers_alone(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As which the maintenance process runs: what only root can see is not checked."""
    seen = inspect(layout)
    assert all(map(seen.can_make, ALL_CHECKS))
    assert seen.account is not None
    user = seen.account.user
    monkeypatch.setattr(os, "geteuid", lambda: user)
    made = {check.code for check in ALL_CHECKS if seen.can_make(check)}
    assert made > DEEP
    assert "secret-file-open" not in made


@as_root
def test_a_squid_with_too_few_descriptors_is_found(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of the name stands in for Squid's master; its child has the limit of
    256.
    """
    program = layout.run / "squid"
    shutil.copy("/bin/sh", program)
    kid = f'ulimit -n 256; exec {program} -c "read x"'
    with subprocess.Popen(
        [program, "-c", f"({kid}); read y"], stdin=subprocess.PIPE, cwd="/"
    ) as master:
        try:
            monkeypatch.setattr(InstalledSquid, "pid", lambda _: master.pid)
            wait_for(
                lambda: found("few-descriptors-granted", inspect(layout)), "the child"
            )
            [finding] = found("few-descriptors-granted", inspect(layout))
        finally:
            master.kill()
    assert finding.detail.endswith("has 256 of 16384")


@as_root
def test_a_client_that_can_have_nearly_all_connections_is_found(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found("client-fills-descriptors", inspect(layout)) == []
    add(layout, "client_ip_max_connections 8000\n")
    [squid] = found("client-fills-descriptors", inspect(layout))
    assert (
        squid.detail
        == "client_ip_max_connections is 8000, and a worker has 16384 descriptors"
    )
    add(layout, "client_ip_max_connections 2048\n")
    layout.haproxy.write_text(
        "tcp-request connection reject if { sc0_conn_cur gt 2048 }\n"
    )
    with subprocess.Popen(["sh", "-c", "ulimit -n 20000; exec sleep 60"]) as haproxy:
        try:
            monkeypatch.setattr(InstalledService, "pid", lambda _: haproxy.pid)
            wait_for(
                lambda: found("client-fills-descriptors", inspect(layout)), "the limit"
            )
            [few] = found("client-fills-descriptors", inspect(layout))
        finally:
            haproxy.kill()
    assert (
        few.detail
        == "HAProxy lets a client have 2048 connections, and has 20000 descriptors"
    )


def test_what_an_edit_needs_first_is_found_missing(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, seen = "edit-not-renderable", inspect(layout)
    assert found(code, seen) == []
    with_systemd = replace(seen, squid=replace(seen.squid, systemd=True))
    monkeypatch.setattr(rendering, "_opened", lambda: (layout.root,))
    monkeypatch.setattr(rendering, "written_folders", lambda _: (layout.state,))
    missing = f"there is no account {ACCOUNTS['bodies-1']}"
    assert found(code, with_systemd) == [Found(missing, str(layout.account))]
    monkeypatch.setattr(rendering, "account_of", lambda _: ACCOUNT)
    assert found(code, with_systemd) == []
    monkeypatch.setattr(rendering, "_opened", lambda: (layout.run,))
    unnamed = "ReadWritePaths of squidkeeper-render does not name it"
    assert found(code, with_systemd) == [Found(unnamed, str(layout.state))]
    (layout.templates / "squidkeeper-bodies-2.service").unlink()
    layout.state.rename(layout.state.with_name("moved"))
    assert [one.detail for one in found(code, seen)] == [
        "it is missing",
        "it cannot be written, or is not there",
    ]


def test_a_squid_of_another_distribution_is_told(layout: Layout) -> None:
    seen, version = inspect(layout), SquidVersion("squid-openssl 6.14-1ubuntu1", None)
    told = replace(seen, view=changed(seen.view, squid_version=version))
    assert found("squid-version-unclear", told) == [Found(version.remark)]
    fixed = changed(seen.view, squid_version=replace(version, fixed=True))
    assert found("squid-version-unclear", replace(seen, view=fixed)) == []


def test_a_service_that_does_not_run_is_found(layout: Layout) -> None:
    assert found("service-not-running", inspect(layout)) == []  # none is installed
    unit = layout.service("exporter").unit
    unit.write_text("[Service]\n")
    layout.service("exporter").applied.write_text("127.0.0.1:9129 0123456789abcdef\n")
    log = layout.access_log.with_name("exporter.log")
    detail = f"squidkeeper-exporter does not answer on 127.0.0.1:9129; its log: {log}"
    assert found("service-not-running", inspect(layout)) == [Found(detail, str(unit))]
    for code in ("squid-down", "maintenance-not-running"):  # conditions of the exporter
        assert found(code, inspect(layout))


def second_generation(layout: Layout, lines: str) -> None:
    """Have another generation in force than Squid has read."""
    layout.generation_told.write_text("1\n")
    former, folder = (folder_of(layout, number) for number in (1, 2))
    entry = read_entry(former)
    assert isinstance(entry, Folder)
    write_generation(layout, 2, moved(entry, former, folder))
    with (folder / "squid.conf").open("a") as file:
        file.write(lines)
    put_in_force(layout, 2)


@pytest.mark.parametrize(
    ("lines", "details"),
    [("via off\n", ["it runs with 1, and 2 is in force"]), ("", [])],
    ids=["another", "Squid reads the same"],
)
def test_a_squid_with_an_older_generation_is_found(
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
    lines: str,
    details: list[str],
) -> None:
    code = "generation-not-read"
    second_generation(layout, lines)
    assert found(code, inspect(layout)) == [], "none runs"
    monkeypatch.setattr(InstalledSquid, "pid", lambda _: os.getpid())
    assert [one.detail for one in found(code, inspect(layout))] == details
    os.utime(layout.generation, (0, 0), follow_symlinks=False)
    assert found(code, inspect(layout)) == [], "it has started since"


def test_a_rollback_that_holds_is_told(layout: Layout) -> None:
    code = "generation-rolled-back"
    second_generation(layout, "")
    put_in_force(layout, 1)
    assert found(code, inspect(layout)) == []
    layout.generation_held.touch()
    detail = "1 is in force, and 2 is the newest"
    assert found(code, inspect(layout)) == [Found(detail)]
    text = doctor("--root", layout.conf.parents[1])[1]
    assert "Generation in force: 1. Kept: 1, 2." in text


@pytest.mark.system
def test_a_service_with_other_options_than_its_unit_is_found(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = layout.service("exporter").unit
    waits = ["bash", "-c", "read", "--listen", "1"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE) as process:
        monkeypatch.setattr(InstalledService, "pid", lambda _: process.pid)
        unit.write_text("[Service]\nExecStart=/x --listen 1\n")
        assert found("service-outdated", inspect(layout)) == []
        unit.write_text("[Service]\nExecStart=/x --listen 2\n")
        [one] = found("service-outdated", inspect(layout))
        process.kill()
    assert one == Found("squidkeeper-exporter", str(unit))


@as_root
def test_a_service_that_is_stopped_does_not_work(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = layout.service("tls").unit
    unit.write_text("[Service]\n")
    with subprocess.Popen(["sleep", "60"]) as process:
        monkeypatch.setattr(InstalledService, "pid", lambda _: process.pid)
        assert found("service-not-running", inspect(layout)) == []
        process.send_signal(signal.SIGSTOP)
        wait_for(
            lambda: found("service-not-running", inspect(layout)), "it to be found"
        )
        process.kill()


@as_root
def test_a_stopped_publisher_is_not_its_parent(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout.service("tls").unit.write_text("[Service]\n")
    child = ["bash", "-c", "kill -STOP $$", "squidkeeper", "publish"]
    with subprocess.Popen(["bash", "-c", '"$@" & wait', "parent", *child]) as process:
        monkeypatch.setattr(InstalledService, "pid", lambda _: process.pid)
        parent = psutil.Process(process.pid)
        wait_for(
            lambda: (
                [each.status() == psutil.STATUS_STOPPED for each in parent.children()]
                == [True]
            ),
            "the child to be stopped",
        )
        faults = found("service-not-running", inspect(layout))
        layout.service("tls").unit.rename(layout.service("publisher").unit)
        monkeypatch.setattr(InstalledService, "_has_published", lambda _: True)
        of_its_own = found("service-not-running", inspect(layout))
        for each in (*parent.children(), parent):
            each.kill()
    assert faults == []
    unit = layout.service("publisher").unit
    assert [fault.place for fault in of_its_own] == [str(unit)]


def test_a_publisher_that_hangs_is_found_where_it_is_a_service(layout: Layout) -> None:
    layout.published.mkdir()
    writer, file = StateWriter(layout.published), state_file(layout.published)
    writer.write(PolicyState(ok=True))
    assert found("policy-not-published", inspect(layout)) == []
    os.utime(file, (1, 1))
    assert [fault.detail for fault in found("policy-not-published", inspect(layout))]
    layout.published.rename(layout.published.with_name("none"))
    assert found("policy-not-published", inspect(layout)) == []


def test_an_exporter_that_does_not_answer_load_balancers_is_found(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = layout.service("exporter").unit
    unit.write_text(
        "[Service]\nExecStart=/x exporter --health-listen [::]:9130 --health-from 192.0.2.1\n"
    )
    layout.service("exporter").applied.write_text("127.0.0.1:9129 0123456789abcdef\n")
    monkeypatch.setattr(InstalledService, "works", lambda _: True)
    detail = "squidkeeper-exporter does not answer load balancers on [::]:9130"
    assert found("service-not-running", inspect(layout)) == [Found(detail, str(unit))]
    monkeypatch.setattr(machine, "process_listens", lambda _, port: port == 9130)
    assert found("service-not-running", inspect(layout)) == []


@pytest.mark.parametrize("options", [{"behind": ("192.0.2.1",)}, {"tls": True}])
def test_clients_that_come_from_a_load_balancer_or_haproxy_are_no_fault(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    layout = install(tmp_path, **options)
    if "tls" in options:
        layout.haproxy.write_text("global\n")
        layout.settings_in_force.write_text("version: 1\ntls: {names: auto}\n")
    inspection = inspect(layout)
    for code in ("proxy-header-from-nobody", "proxy-protocol-open"):
        assert found(code, inspection) == []


def test_processes_that_do_not_inspect_bodies_are_found_where_squid_asks_them(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (layout.service(name).unit for name in BODIES)
    missing = "squidkeeper-bodies-1 is not installed"
    assert found("bodies-down", inspect(layout))[0] == Found(missing, str(first))
    first.touch()
    second.touch()
    silent = [
        f"squidkeeper-bodies-{number} does not listen on {layout.bodies}"
        for number in (1, 2)
    ]
    assert [one.detail for one in found("bodies-down", inspect(layout))] == silent
    assert found("bodies-unanswered", inspect(layout)) == []
    monkeypatch.setattr(
        InstalledService, "works", lambda service: service.name == "bodies-2"
    )
    assert found("bodies-down", inspect(layout)) == []
    assert found("service-not-running", inspect(layout)) == []
    edit(layout.fragment, "core,ask,bodies,", "core,ask,")
    assert [found(code, inspect(layout)) for code in BODY_CODES] == [[]] * len(
        BODY_CODES
    )


@pytest.mark.parametrize(
    ("pid", "works", "why"),
    [
        (1, "bodies-2", ["squidkeeper-bodies-1 does not answer"]),
        (
            None,
            "",
            [
                f"squidkeeper-bodies-{number} does not run, or nothing starts it again"
                for number in (1, 2)
            ],
        ),
    ],
)
def test_one_process_that_inspects_bodies_and_does_not_work_is_a_warning_while_the_other_answers(
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
    pid: int | None,
    works: str,
    why: list[str],
) -> None:
    answers = cycle(["does not answer", ""])
    monkeypatch.setattr(bodies, "options_problem", lambda _: next(answers))
    monkeypatch.setattr(InstalledService, "pid", lambda _: pid)
    monkeypatch.setattr(
        InstalledService, "works", lambda service: service.name == works
    )
    inspection = inspect(layout)
    assert [one.detail for one in found("bodies-half-down", inspection)] == why
    assert [
        found(code, inspection) for code in ("bodies-down", "bodies-unanswered")
    ] == [[], []]
    monkeypatch.setattr(bodies, "options_problem", lambda _: "does not answer")
    assert found("bodies-half-down", inspection) == []
    assert found("bodies-unanswered" if works else "bodies-down", inspection)


BODY_CODES = ("bodies-down", "bodies-half-down", "bodies-unanswered", "bodies-foreign")
OPTIONS = b"ICAP/1.0 200 OK\r\nPreview: 65535\r\nTransfer-Preview: *\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (OPTIONS, ""),
        (
            OPTIONS.replace(b"65535", b"65536"),
            "does not answer as `squidkeeper bodies` does",
        ),
        (
            OPTIONS.replace(b"Transfer-Preview: *\r\n", b""),
            "does not answer as `squidkeeper bodies` does",
        ),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "does not answer as `squidkeeper bodies` does",
        ),
        (b"", "does not answer as `squidkeeper bodies` does"),
    ],
)
def test_what_answers_squid_as_it_should_not_is_found(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, answer: bytes, problem: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        monkeypatch.setattr(Layout, "bodies", address)
        monkeypatch.setattr(InstalledService, "works", lambda _: True)
        with answering(server, answer):
            details = [
                one.detail for one in found("bodies-unanswered", inspect(layout))
            ]
        assert [problem in detail for detail in details] == ([True] if problem else [])
        [foreign] = found("bodies-foreign", inspect(layout))
        assert foreign.detail.startswith(f"process {os.getpid()} (")
        monkeypatch.setattr(InstalledService, "pid", lambda _: os.getpid())
        assert found("bodies-foreign", inspect(layout)) == []


@contextmanager
def answering(server: socket.socket, answer: bytes) -> Iterator[None]:
    """Answer each question of one check."""

    def serve() -> None:
        for _ in range(bodies.ASKED):
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    thread.join()


# --- Clients without proxy settings ---------------------------------------------------


@pytest.fixture
def transparent(tmp_path: Path) -> Layout:
    return install(tmp_path, transparent=("127.0.0.9", "2001:db8::9"))


def test_ports_for_clients_without_proxy_settings_are_as_installed(
    transparent: Layout,
) -> None:
    seen = inspect(transparent)
    assert seen.listens == (LISTEN,)
    codes = (
        "tunnel-not-bumped",
        "proxy-protocol-open",
        "proxy-header-from-nobody",
        *TRANSPARENT_CODES,
    )
    assert [found(code, seen) for code in codes] == [[]] * len(codes)


TRANSPARENT_CODES = (
    "transparent-port-taken",
    "transparent-lines-missing",
    "transparent-asks-others",
)


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        (
            " accel vhost allow-direct",
            "",
            "http_port 127.{}:13080 require-proxy-header accel vhost allow-direct",
        ),
        (
            "name=sk_transparent_tls require-proxy-header",
            "name=sk_transparent_tls",
            "http_port 127.{}:13443 require-proxy-header ssl-bump",
        ),
        (
            "http_access deny sk_is_transparent sk_note_no_login !all",
            "",
            "http_access deny sk_is_transparent sk_note_no_login !all",
        ),
    ],
)
def test_lines_for_clients_without_proxy_settings_that_were_edited_are_found(
    transparent: Layout, old: str, new: str, missing: str
) -> None:
    edit(transparent.conf, old, new)
    [one] = found("transparent-lines-missing", inspect(transparent))
    assert one == Found(
        missing.format(transparent.resolver.removeprefix("127.")), str(transparent.conf)
    )


@pytest.mark.parametrize(
    "line",
    [
        "forward-zone:",
        "  stub-zone:",
        "auth-zone:",
        'include: "/etc/unbound/x.conf"',
        "rpz:",
    ],
)
def test_a_resolver_of_clients_that_can_ask_others_is_found(
    transparent: Layout, line: str
) -> None:
    with transparent.dns.open("a") as file:
        file.write(f"{line}\n")
    number = len(transparent.dns.read_text().splitlines())
    found_there = Found(line.strip(), f"{transparent.dns}:{number}")
    assert found("transparent-asks-others", inspect(transparent)) == [found_there]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_another_program_on_a_port_of_clients_without_proxy_settings_is_found(
    transparent: Layout, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    with socket.socket(
        type=socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    ) as server:
        server.bind(("127.0.0.9", 0))
        if protocol == "tcp":
            server.listen()
        port = server.getsockname()[1]
        monkeypatch.setattr(doctor_transparent, "_PORTS", ((port, protocol, "dns"),))
        [one] = found("transparent-port-taken", inspect(transparent))
        assert one.detail.startswith(f"process {os.getpid()} (")
        assert one.detail.endswith(f") listens on 127.0.0.9:{port} ({protocol})")
        monkeypatch.setattr(InstalledService, "pid", lambda _: os.getpid())
        assert found("transparent-port-taken", inspect(transparent)) == []


# --- The whole ------------------------------------------------------------------------


def test_each_check_has_a_planted_fault() -> None:
    text = Path(__file__).read_text()
    assert [check.code for check in CHECKS if f'"{check.code}"' not in text] == []


def test_each_code_is_there_once_and_each_remedy_can_be_written(layout: Layout) -> None:
    codes = [check.code for check in ALL_CHECKS]
    assert len(set(codes)) == len(codes)
    diagnosis = replace(
        examine(inspect(layout), running=False),
        found=tuple((check, ()) for check in ALL_CHECKS),
    )
    assert "{" not in as_text(diagnosis).replace("%'{KEY}note", "").replace(
        "%#{Proxy", ""
    )


def test_the_conditions_of_the_exporter_are_checks_too() -> None:
    found = {condition.code for condition in CONDITIONS if condition.find}
    assert found - {check.code for check in ALL_CHECKS} == {
        "access-log-behind",
        "model-without-price",
        "quota-nearly-used",
        "state-not-writable",
    }


def test_requests_that_fail_are_found_in_the_last_of_the_access_log(
    layout: Layout,
) -> None:
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    good, failed = (
        record_line(time=at, verdict="allow", status=status) + b"\n"
        for status in (200, 503)
    )
    layout.access_log.write_bytes(failed * 4_000 + good * 4_000)
    assert found("requests-failing", inspect(layout)) == []
    with layout.access_log.open("ab") as log:
        log.write(b"torn" + failed * 150)
    detail = "149 of the last 200 that were allowed"
    assert found("requests-failing", inspect(layout)) == [Found(detail)]
    layout.access_log.unlink()
    os.mkfifo(layout.access_log)
    assert found("requests-failing", inspect(layout)) == []


def test_a_crash_that_is_over_does_not_keep_a_gateway_drained(layout: Layout) -> None:
    note_crash(layout.state, time.time() - 3600, "it was killed", 1)
    diagnosis = examine(inspect(layout), running=False)
    [(check, cases)] = [
        (check, cases)
        for check, cases in diagnosis.found
        if check.code == "squid-crashed"
    ]
    assert cases
    assert check.severity is Severity.WARNING


def test_the_document_has_every_check() -> None:
    page = (REPOSITORY / "squid/DOCTOR.md").read_text()
    assert "<!-- rendered: findings -->" in page
    assert page == render(page), "python -m tests.documents.code_tables squid/DOCTOR.md"


def doctor(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["doctor", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_worst_is_first_and_no_secret_is_shown(layout: Layout) -> None:
    add(
        layout,
        "half_closed_clients on\ncache_peer 192.0.2.9 parent 3128 0 login=u:s3cr3t-of-this-test\n",
    )
    status, text = doctor("--root", layout.conf.parents[1])
    assert status == 1
    assert text.index("(private-addresses-open)") < text.index("(half-closed-clients)")
    assert "s3cr3t" not in text
    status, text = doctor("--root", layout.conf.parents[1], "--json")
    findings = {finding["code"]: finding for finding in json.loads(text)["findings"]}
    assert status == 1
    assert findings["half-closed-clients"] == {
        "code": "half-closed-clients",
        "severity": Severity.WARNING,
        "summary": "Squid 6 ends itself under server-sent events (Squid's bug 4156)",
        "place": f"{layout.local}:{layout.local.read_text().count(chr(10)) - 1}",
        "detail": "half_closed_clients on",
        "remedy": "Set `half_closed_clients off`.",
        "accepted": None,
    }
    assert "s3cr3t" not in text


def test_an_installed_gateway_has_few_directives_and_doctor_counts_them(
    layout: Layout,
) -> None:
    whole = json.loads(doctor("--root", layout.conf.parents[1], "--json")[1])[
        "directives"
    ]
    policy = build_sources(
        read_sources(REPOSITORY / "policy")
    ).policy  # which a new gateway has
    values = Values(keys=needed_keys(policy))
    put_rendered(layout, ACCOUNT, values)
    counts = json.loads(doctor("--root", layout.conf.parents[1], "--json")[1])[
        "directives"
    ]
    assert sum(counts.values()) <= 350
    assert counts["squidkeeper.conf"] < whole["squidkeeper.conf"]
    numbers = f"{sum(counts.values())} directives: " + ", ".join(
        f"{count} in {file}" for file, count in counts.items()
    )
    assert f"({numbers})" in doctor("--root", layout.conf.parents[1])[1]


def test_what_to_do_is_written_for_the_gateway_that_was_examined(
    layout: Layout,
) -> None:
    assert drain(layout.run)
    text = doctor("--root", layout.conf.parents[1])[1]
    assert (
        f"    fix: `{layout.program} drain --cancel` lets clients come again.\n" in text
    )


@pytest.mark.parametrize(
    ("severity", "outcome"),
    [
        (Severity.INFO, (False, False)),
        (Severity.WARNING, (False, True)),
        (Severity.CRITICAL, (True, True)),
    ],
)
def test_a_warning_fails_in_strict_mode_alone_and_no_remark_and_nothing_that_is_accepted_does(
    restored: Layout, severity: Severity, outcome: tuple[bool, bool]
) -> None:
    found = tuple(
        (check, (Found("x"),)) for check in CHECKS if check.severity is severity
    )
    one = replace(examine(inspect(restored), running=False), found=found)
    assert found
    assert (one.failed(), one.failed(strict=True)) == outcome
    accepted = dict.fromkeys((check.code for check, _ in found), "as agreed")
    assert not replace(one, accepted=accepted).failed(strict=True)


def test_an_accepted_finding_is_shown_last_with_its_reason(layout: Layout) -> None:
    add(layout, "half_closed_clients on\nstore_miss allow all\n")
    layout.accepted.write_text("credentials-cached: this gateway has no cache\n")
    text = doctor("--root", layout.conf.parents[1])[1]
    assert text.index("(half-closed-clients)") < text.index("(credentials-cached)")
    assert f"    {layout.local}:" in text
    assert "    accepted: this gateway has no cache\n" in text
    assert ", 1 accepted: " in text
    findings = {
        finding["code"]: finding["accepted"]
        for finding in json.loads(
            doctor("--root", layout.conf.parents[1], "--json")[1]
        )["findings"]
    }
    assert findings["credentials-cached"] == "this gateway has no cache"
    assert findings["half-closed-clients"] is None


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("half-closed-client: why\n", "half-closed-client is no code of a finding"),
        ("half-closed-clients:\n", "expected lines of CODE: REASON"),
        (
            "half-closed-clients: ' '\n",
            "half-closed-clients has no reason: write why it is accepted",
        ),
        ("- half-closed-clients\n", "expected lines of CODE: REASON"),
        ("{", "expected lines of CODE: REASON"),
        ("# none\n", ""),
    ],
)
def test_a_file_of_accepted_findings_with_a_fault_accepts_nothing(
    restored: Layout, text: str, detail: str
) -> None:
    add(restored, "half_closed_clients on\n")
    restored.accepted.write_text(text)
    assert [
        case.detail.endswith(detail)
        for case in found("accepted-unusable", inspect(restored))
    ] == [True] * bool(detail)
    assert "    accepted: " not in as_text(examine(inspect(restored), running=False))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other accounts can enter; pytest's is closed to them."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@as_root
def test_pull_yaml_is_read_with_the_groups_of_the_unit(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit has Squid's group, and the account's own; `mail` stands in for the
    account.
    """
    monkeypatch.setattr(machine, "ACCOUNTS", {"pull": "mail"})
    layout, squid = install(open_folder / "gateway"), squid_account()
    assert squid is not None
    inspection, file = replace(inspect(layout), account=squid), layout.pull_settings
    file.write_text(
        "source: {git: 'https://git.example/p', branch: main}\nallowed_signers: /a\n"
    )
    file.chmod(0o640)
    assert found("pull-settings-unusable", inspection) == [
        Found(f"{file}: Permission denied", str(file))
    ]
    for group in (squid.group, "mail"):
        shutil.chown(file, 0, group)
        assert found("pull-settings-unusable", inspection) == []


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (PermissionError("refused"), "refused"),
        (KeyError("s3cr3t"), "KeyError, a fault of squidkeeper's"),
    ],
)
def test_a_check_that_fails_is_a_finding_and_an_unforeseen_fault_shows_its_kind_alone(
    restored: Layout, monkeypatch: pytest.MonkeyPatch, fault: Exception, told: str
) -> None:
    monkeypatch.setattr(machine, "_rotation_rules", Mock(side_effect=fault))
    text = as_text(examine(inspect(restored), running=False))
    assert f"(logrotate-loses-records)\n    this cannot be checked: {told}\n" in text
    assert "s3cr3t" not in text


def test_no_line_ends_the_examination(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Squid splits at ASCII's spaces alone: a line of U+00A0 has a name, which Squid
    does not know.
    """
    add(
        layout,
        "acl\nacl x\nacl x note\nmax_filedescriptors \u00b2\n\u00a0\nhttp_port none\nrequest_header_access\n",
    )
    monkeypatch.setattr(InstalledSquid, "pid", lambda _: os.getpid())
    diagnosis = examine(inspect(layout))
    assert "few-descriptors" in {check.code for check, _ in diagnosis.found}
    assert "cannot be checked" not in as_text(diagnosis)
    assert "\u00a0" in [line.name for line in inspect(layout).conf.directives]


def test_behind_haproxy_squid_is_asked_at_haproxys_port(layout: Layout) -> None:
    layout.settings_in_force.write_text(
        "version: 1\nlisten: 127.0.0.9:3129\ntls: {names: auto}\n"
    )
    inspection = inspect(layout)
    assert (inspection.view.place.squid_address, inspection.listens) == (
        "127.0.0.9:3129",
        ("127.0.0.9:3129",),
    )


def test_without_a_gateway_the_status_is_2(layout: Layout, tmp_path: Path) -> None:
    advice = "name the gateway by --root DIR\n"  # these tests run as root
    other = Layout.of(tmp_path / "other")
    neither = f"squidkeeper is not installed: there is neither {other.fragment} nor {other.program}"
    assert doctor("--root", tmp_path / "other") == (
        2,
        f"squidkeeper doctor: {neither}: {advice}",
    )
    layout.conf.unlink()
    missing = f"{layout.conf} cannot be read (No such file or directory)"
    assert doctor("--root", tmp_path) == (2, f"squidkeeper doctor: {missing}: {advice}")


def test_the_file_that_cannot_be_read_is_named(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(
        "squidkeeper.operate.doctor.inspection.read_sources", unreadable
    )
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said = f"{layout.policy} cannot be read (Permission denied): name the gateway by --root DIR, or run this as root\n"
    assert doctor("--root", layout.conf.parents[1]) == (
        2,
        f"squidkeeper doctor: {said}",
    )


def test_what_only_root_can_check_is_named(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    seen = inspect(layout)
    seen.conf.problems.append(
        Problem(
            "squid.conf:1", "includes x, which cannot be read (Permission denied)", True
        )
    )
    assert found("squid-conf-incomplete", seen) == []
    text = as_text(examine(seen, running=False))
    assert (
        "Not read: squid.conf:1 includes x, which cannot be read (Permission denied).\n"
        in text
    )
    [line] = [
        line
        for line in text.splitlines()
        if line.startswith("Not checked, as only root can: disk-full, ")
    ]
    assert all(
        code in line
        for code in ("squid-conf-rejected", "secret-file-open", "squid-cannot-read")
    )


def test_a_policy_is_loaded_again_only_where_it_is_not_as_published(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, sources = inspect(layout), read_sources(layout.policy)
    loaded = load_sources(sources, datetime.now(UTC))
    policy, folder = loaded.compiled.source, layout.state / "revisions"
    store_revision(sources, policy.revision, folder)
    publication = write_publication(loaded.compiled, needed_keys(policy), layout.policy)
    publish_again(folder, policy.revision, publication)
    told = PolicyState(policy.revision, 1.0, ok=True, warnings=loaded.warnings)
    StateWriter(folder).write(told)
    with monkeypatch.context() as patched:
        reading = "squidkeeper.operate.doctor.inspection.read_sources"
        patched.setattr(reading, lambda _: pytest.fail("it was read again"))
        after = inspect(layout)
    assert after.policy
    assert after.policy.rules == policy.rules
    assert after.injected == before.injected
    assert after.secret_files == before.secret_files == (layout.policy / "secret",)
    assert after.list_files == before.list_files
    assert after.view.policies.policy_state == before.view.policies.policy_state
    for change in ("rules: [", "version: 2\n"):
        with (layout.policy / "policy.yaml").open("a") as file:
            file.write(change)
        assert found("policy-not-loaded", inspect(layout))
    (layout.policy / "policy.yaml").write_text(POLICY)
    assert found("policy-not-loaded", inspect(layout)) == []
    (layout.policy / "more.yaml").write_text("version: 2\n")
    assert found("policy-not-loaded", inspect(layout))


def test_an_edit_that_the_reload_gate_refuses_is_found(layout: Layout) -> None:
    file = layout.policy / "policy.yaml"
    edit(
        file,
        "version: 1\n",
        "version: 1\ndefaults: {reload_gate: {since: 1d, denials: 1}}\n",
    )
    revisions, before = layout.state / "revisions", read_sources(layout.policy)
    store_revision(before, before.revision, revisions)
    mark_in_force(revisions, before.revision)
    edit(
        file,
        "hosts: [api.example]}\ncredentials",
        "hosts: [other.example]}\ncredentials",
    )
    after = read_sources(layout.policy).revision
    assert found("reload-gated", inspect(layout)) == []
    write_verdict(revisions, GateVerdict(before.revision, after, 0.0, 2, 2, 1))
    told = [finding.detail for finding in found("reload-gated", inspect(layout))]
    assert found("policy-not-loaded", inspect(layout)) == []
    assert (
        f"the reload gate refuses revision {after}: it would deny 2 combinations"
        in told[0]
    )
    force(layout.policy, after)
    assert found("reload-gated", inspect(layout)) == []
