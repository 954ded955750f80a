"""What an installation makes of files: the CA, lines for AppArmor, and the files of
squid/ for one gateway.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.formatting import substitute
from squidkeeper.base.layout import Layout
from squidkeeper.base.squid_account import Account
from squidkeeper.configuration.rendering import FRAGMENT, part_file
from squidkeeper.operate.setup import machine as machines
from squidkeeper.operate.setup.configuration import (
    MARK,
    Configuration,
    has_own_login,
    is_gateway_name,
    is_ours,
    listen_of,
    names,
    unique_name,
    usual_exporter,
    usual_gateway_name,
    usual_health,
    without_login,
)
from squidkeeper.operate.setup.entries import File
from squidkeeper.operate.setup.installation import archive_keys
from squidkeeper.operate.setup.machine import Machine
from squidkeeper.operate.setup.options import MOST_WORKERS, reachable
from squidkeeper.record.chain.keys import read_archive_key, read_public_keys
from squidkeeper.serving.certificates.authority import (
    CertificateAuthority,
    check_ca,
    issue_server_certificate,
    make_ca,
)
from squidkeeper.serving.parts import Part

REPOSITORY = Path(__file__).parents[2]
NOW = datetime.now(UTC)

# --- the CA ---------------------------------------------------------------------------


def pem(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(
        serialization.Encoding.PEM, form, serialization.NoEncryption()
    )


def leaf() -> CertificateAuthority:
    """A server certificate with its key, given as a CA."""
    ca = make_ca(NOW)
    both = issue_server_certificate(ca, ["gateway.example"], NOW)
    return CertificateAuthority(both, both)


def locked(key: bytes) -> bytes:
    form, cipher = (
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    private = serialization.load_pem_private_key(key, None)
    return private.private_bytes(serialization.Encoding.PEM, form, cipher)


def test_a_made_ca_is_a_good_one_and_its_key_is_never_shown() -> None:
    made = make_ca(NOW)
    check_ca(made, NOW)
    assert "PRIVATE KEY" not in repr(made)


@pytest.mark.parametrize(
    ("ca", "message"),
    [
        (make_ca(NOW - timedelta(days=3651)), "ca.crt has expired"),
        (leaf(), "ca.crt is not the certificate of a CA"),
        (
            CertificateAuthority(make_ca(NOW).certificate, locked(make_ca(NOW).key)),
            "without a passphrase",
        ),
        (
            CertificateAuthority(b"text\n", make_ca(NOW).key),
            "ca.crt is not a certificate in PEM form",
        ),
        (
            CertificateAuthority(make_ca(NOW).certificate, b"text\n"),
            "ca.key is not a private key in PEM form",
        ),
        (
            CertificateAuthority(make_ca(NOW).certificate, make_ca(NOW).key),
            "ca.key is not the key of ca.crt",
        ),
        (
            CertificateAuthority(
                make_ca(NOW).certificate, pem(ed25519.Ed25519PrivateKey.generate())
            ),
            "ca.key is not the key of ca.crt",
        ),
    ],
    ids=[
        "expired",
        "no CA",
        "a passphrase",
        "no certificate",
        "no key",
        "another key",
        "another kind of key",
    ],
)
def test_a_ca_that_squid_cannot_use_is_refused(
    ca: CertificateAuthority, message: str
) -> None:
    with pytest.raises(SetupFailed, match=message):
        check_ca(ca, NOW)


# --- AppArmor -------------------------------------------------------------------------


def test_lines_for_apparmor_stand_between_marks_of_their_gateway_and_go_without_the_others() -> (
    None
):
    one, other = Path("/srv/one"), Path("/srv/one-more")
    theirs = "/their/own r,\n"
    both = machines.with_lines(
        machines.with_lines(theirs, one, "/a r,\n").content.decode(), other, "/b r,\n"
    ).content.decode()
    assert both == (
        f"{theirs}# squidkeeper {one} begin\n/a r,\n# squidkeeper {one} end\n"
        f"# squidkeeper {other} begin\n/b r,\n# squidkeeper {other} end\n"
    )
    assert machines.with_lines(both, other, "/b r,\n").content.decode() == both
    assert machines.without_lines(machines.without_lines(both, one), other) == theirs


def test_uninstall_takes_its_lines_from_apparmor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "_PROFILES", tmp_path)
    additions = machines.additions_of("squid")
    assert machines.is_additions(additions)
    assert not machines.is_additions(tmp_path / "squid.conf")
    additions.parent.mkdir()
    additions.write_bytes(
        machines.with_lines("/their/own r,\n", Path("/srv/one"), "/a r,\n").content
    )
    machines.close_apparmor("squid", Path("/srv/one"))
    assert additions.read_text() == "/their/own r,\n"
    machines.close_apparmor("unbound", Path("/srv/one"))


# --- the files of squid/ --------------------------------------------------------------


def configuration(root: Path | None, **given: Any) -> Configuration:
    machine = Machine(
        Account("nobody", 65534, 65534), Path("/usr/lib64/certgen"), False, False
    )
    usual: dict[str, Any] = {
        "listen": "3129",
        "squid": "3129",
        "exporter": "127.0.0.1:9129",
        "log_bytes": "",
    }
    usual |= {"resolver": "127.1.2.3", "unique_name": "0123abcd"}
    return Configuration(
        source=REPOSITORY, layout=Layout.of(root), machine=machine, **(usual | given)
    )


def test_no_replacement_is_replaced_again_and_the_longest_text_counts() -> None:
    assert (
        substitute("/a /a/b c", {"/a": "/a/b/x", "/a/b": "c", "c": "/a"})
        == "/a/b/x c /a"
    )


def files_of(root: str, account: str, certgen: str, **given: Any) -> list[str]:
    """Every file that is made from squid/ for one gateway."""
    machine = Machine(Account(account, 65534, 65534), Path(certgen), False, False)
    fronts: list[dict[str, Any]] = [
        {"tls": True, "transparent": ("192.0.2.2",)},
        {"behind": ("192.0.2.1", "2001:db8::3129"), "health": "9130"},
    ]
    whole = ("squid_conf", "dns", "haproxy", "local_conf", "prometheus", "alerts")
    parts = ("squidkeeper-archive.timer", "logrotate")
    units = (
        "archive",
        "maintenance",
        "secrets",
        "bodies-1",
        "tls",
        "exporter",
        "export",
        "pull",
        "render",
    )
    added = ("transparent", "dns")
    made = []
    for front in fronts:
        one = replace(
            configuration(Path(root)), machine=machine, workers=2, **front, **given
        )
        made += [
            *(getattr(one, name)() for name in whole),
            *map(one.render, parts),
            *map(one.unit, (*units, *added)),
        ]
        made += [
            *one.templates(with_logformat=True).values(),
            one.apparmor("squid"),
            *one.pages().values(),
        ]
    return made


HOSTILE_VALUES = {  # each beside a value that occurs nowhere else
    "root": (
        "/srv/127.53.53.53/etc/squid/squid.conf/var/lib/squidkeeper",
        "/plain.root",
    ),
    "account": (r"DOM\1\g<0>User", "plain.account"),
    "certgen": ("/opt/squidkeeper/bin/squidkeeper", "/plain.certgen"),
    "gateway": ("127.53.53.53", "plain.gateway"),
    "unique_name": ("squidkeeper", "plain.unique"),
    "resolver": ("127.0.0.1", "127.98.98.98"),
    "exporter": ("127.0.0.1:3129", "127.0.0.7:7777"),
    "squid": ("127.0.0.1:9129", "127.0.0.8:8888"),
}


def test_no_value_of_a_gateway_is_taken_for_a_part_of_its_files() -> None:
    """Each value is what a file documents for another one.

    It stands wherever a plain value stands, and as it is.
    """
    hostile, plain = (
        {name: pair[place] for name, pair in HOSTILE_VALUES.items()} for place in (0, 1)
    )
    layouts = [Layout.of(Path(given["root"])) for given in (hostile, plain)]
    own = [
        [getattr(layout, name) for layout in layouts]
        for name in ("squid_service", "resolver")
    ]
    values = {plain: hostile for hostile, plain in (*HOSTILE_VALUES.values(), *own)}
    for text, expected in zip(files_of(**hostile), files_of(**plain), strict=True):
        assert text == substitute(expected, values)


def test_the_login_helper_is_left_out_where_another_program_checks_logins() -> None:
    login = part_file(Part.LOGIN)
    part = configuration(None).templates()[login]
    assert not has_own_login(part)
    assert not has_own_login(
        "2026/11/26 12:00:00| Processing: auth_param basic program /x login --concurrency 100"
    )
    assert not has_own_login(
        "#auth_param basic program /usr/lib/squid/basic_ncsa_auth /etc/squid/users"
    )
    for own in ("", "2026/11/26 12:00:00| Processing: "):
        assert has_own_login(
            f"{own}auth_param basic  program /usr/lib/squid/basic_ncsa_auth /etc/squid/users"
        )
    left = configuration(None, own_login=True).templates()[login]
    assert left == without_login(part)
    assert re.findall(r"^(?:auth_param|authenticate_).*", left, re.MULTILINE) == []
    assert "acl sk_ask_login proxy_auth REQUIRED" in left


def test_without_a_root_squid_conf_is_the_documented_one_with_its_mark_port_and_resolver() -> (
    None
):
    documented = (REPOSITORY / "squid/squid.conf").read_text()
    changed = documented.replace(
        "#dns_nameservers 127.53.53.53\n", "dns_nameservers 127.1.2.3\n"
    )
    changed = changed.replace(
        "unique_hostname squidkeeper\n", "unique_hostname squidkeeper-0123abcd\n"
    )
    changed = changed.replace(
        "/usr/lib/squid/security_file_certgen", "/usr/lib64/certgen"
    )
    assert configuration(None).squid_conf() == f"{MARK}\n{changed}"
    elsewhere = configuration(None, listen="[::1]:3130").squid_conf()
    assert (listen_of(elsewhere), is_ours(elsewhere), is_ours(documented)) == (
        "[::1]:3130",
        True,
        False,
    )


def throttle_of(fragment: str) -> tuple[float, int]:
    [found] = re.findall(
        r"throttle --scope client[\s\\]+--rate (\S+) --burst (\S+)", fragment
    )
    return float(found[0]), int(found[1])


def test_all_workers_together_deny_one_client_no_more_often_than_one_does() -> None:
    rate, burst = throttle_of(configuration(None).templates()[FRAGMENT])
    for workers in range(1, MOST_WORKERS + 1):
        all_of_them = configuration(None, workers=workers).templates()[FRAGMENT]
        share, part = throttle_of(all_of_them)
        assert rate / workers == pytest.approx(share, rel=1e-5)
        assert burst <= workers * part < burst + workers


def test_one_worker_has_no_line_and_several_have_queues_of_their_own() -> None:
    assert (
        re.search("^workers ", configuration(None).templates()[FRAGMENT], re.MULTILINE)
        is None
    )
    assert "worker-queues" not in configuration(None).squid_conf()
    several = configuration(None, workers=3, listen="127.0.0.1:3130").squid_conf()
    assert "http_port 127.0.0.1:3130 \\\n    worker-queues \\\n    ssl-bump" in several
    assert listen_of(several) == "127.0.0.1:3130"
    behind = configuration(None, workers=3, tls=True).squid_conf()
    assert (
        ":13129 \\\n    require-proxy-header \\\n    worker-queues \\\n    ssl-bump"
        in behind
    )
    assert "--workers" not in configuration(None).unit("exporter")
    assert " --workers 3\n" in configuration(None, workers=3).unit("exporter")


@pytest.mark.parametrize(
    ("listen", "binds"),
    [
        ("192.168.137.1:3129", ["192.168.137.1:3129"]),
        ("[2001:db8::1]:3130", ["[2001:db8::1]:3130"]),
        ("0.0.0.0:3129", ["0.0.0.0:3129"]),
        ("3130", ["0.0.0.0:3130", "[::]:3130 v6only"]),
        ("[::]:3130", ["0.0.0.0:3130", "[::]:3130 v6only"]),
    ],
)
def test_with_tls_haproxy_listens_where_squid_would_and_squid_behind_it(
    listen: str, binds: list[str]
) -> None:
    made = configuration(Path("/srv/gateway"), listen=listen, tls=True)
    cfg, behind = made.haproxy(), made.layout.behind_haproxy
    assert re.findall("^    bind (?!unix)(.*)", cfg, re.MULTILINE) == binds
    assert f"    server squid {behind} send-proxy-v2\n" in cfg
    assert (
        f"http_port {behind} \\\n    require-proxy-header \\\n    ssl-bump \\\n"
        in made.squid_conf()
    )
    assert "\nproxy_protocol_access allow localhost\n" in made.squid_conf()
    assert "127.53.53.53" not in cfg + made.squid_conf()
    assert f" --tls {listen} --ca /srv/gateway/etc/ca/signing.crt " in made.unit(
        "maintenance"
    )


@pytest.mark.parametrize(
    ("hard", "most"), [(20_000, 1_250), (4_096, 256), (1 << 20, 2_048), (-1, 2_048)]
)
def test_a_client_of_haproxy_has_a_share_of_its_descriptors(
    monkeypatch: pytest.MonkeyPatch, hard: int, most: int
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, hard))
    assert (
        f" sc0_conn_cur gt {most} }}"
        in configuration(Path("/srv/gateway"), tls=True).haproxy()
    )


def test_gateways_have_different_names_so_that_one_can_be_the_parent_of_another() -> (
    None
):
    gateways = [
        (None, "one"),
        (None, "two"),
        (Path("/srv/one"), "one"),
        (Path("/srv/two"), "one"),
    ]
    assert len({unique_name(*gateway) for gateway in gateways}) == len(gateways)
    assert (
        "\nunique_hostname squidkeeper-0123abcd\n" in configuration(None).squid_conf()
    )


def test_without_tls_nothing_speaks_the_proxy_protocol() -> None:
    plain = configuration(None).squid_conf()
    assert (
        re.findall(
            "^(?!#).*(?:proxy_protocol|require-proxy-header)", plain, re.MULTILINE
        )
        == []
    )
    assert "--tls" not in configuration(None).unit("maintenance")


def in_force(conf: str) -> set[str]:
    return set(re.sub(r"\\\n", "", conf).splitlines()) - set(
        re.findall(r"^(?:#.*)?$", conf, re.MULTILINE)
    )


def test_transparent_ports_add_lines_to_squid_conf_and_nothing_without() -> None:
    root = Path("/srv/gateway")
    plain = configuration(root)
    given = configuration(root, transparent=("192.168.137.1", "fd00::1"), workers=2)
    own, login = plain.layout.resolver, part_file(Part.LOGIN)
    added = in_force(given.squid_conf()) - in_force(
        configuration(root, workers=2).squid_conf()
    )
    assert sorted(line.split(" ssl-bump ")[0] for line in added) == [
        "acl sk_is_transparent myportname sk_transparent_tls sk_transparent_http",
        "acl sk_note_no_login annotate_client token_=none",
        "http_access deny sk_is_transparent sk_note_no_login !all",
        f"http_port {own}:13080 worker-queues name=sk_transparent_http require-proxy-header accel vhost allow-direct",
        f"http_port {own}:13443 worker-queues name=sk_transparent_tls require-proxy-header",
        "proxy_protocol_access allow localhost",
        "request_header_access Surrogate-Capability deny sk_is_transparent",
    ]
    assert listen_of(given.squid_conf()) == listen_of(plain.squid_conf())
    assert (
        "\nhttp_access deny !sk_is_transparent sk_is_with_login !sk_is_over_tls !sk_ask_login\n"
        in given.templates()[login]
    )
    assert [
        name for name, text in plain.templates().items() if "sk_is_transparent" in text
    ] == []
    listens = "--listen 192.168.137.1 --listen fd00::1"
    assert f"{listens} --tls-to {own}:13443 --http-to {own}:13080\n" in given.unit(
        "transparent"
    )
    assert "--transparent 192.168.137.1 --transparent fd00::1" in given.unit(
        "maintenance"
    )
    assert "--transparent" not in plain.unit("maintenance")
    assert f"{plain.layout.dns} r,\n" in given.apparmor("unbound")
    assert str(plain.layout.dns) not in plain.apparmor("unbound")


@pytest.mark.parametrize(
    "addresses", [("192.0.2.7",), ("2001:db8::7",), ("192.0.2.7", "2001:db8::7")]
)
def test_the_resolver_for_clients_has_the_addresses_that_were_given(
    addresses: tuple[str, ...],
) -> None:
    made = configuration(None, transparent=addresses).dns()
    assert re.findall(r"^    interface: (\S+)$", made, re.MULTILINE) == [*addresses]
    kinds = ("AAAA" if ":" in address else "A" for address in addresses)
    expected = [
        f". 60 IN {kind} {address}"
        for kind, address in zip(kinds, addresses, strict=True)
    ]
    assert re.findall(r'^    local-data: "(.*)"$', made, re.MULTILINE) == expected


def test_behind_load_balancers_squid_takes_clients_from_these_alone_and_the_exporter_tells_them() -> (
    None
):
    made = configuration(None, behind=("10.0.0.5", "fd00::5"), health="9130")
    conf = made.squid_conf()
    assert "http_port 3129 \\\n    require-proxy-header \\\n    ssl-bump \\\n" in conf
    lines = re.findall(
        "^(?:acl sk_is_balancer|proxy_protocol_access) .*", conf, re.MULTILINE
    )
    assert lines == [
        "proxy_protocol_access allow localhost",
        "acl sk_is_balancer src 10.0.0.5 fd00::5",
        "proxy_protocol_access allow sk_is_balancer",
    ]
    options = re.findall(" --(?:proxy|health).*", made.unit("exporter"))
    assert options == [
        " --proxy-header --health-listen [::]:9130 --health-from 10.0.0.5 --health-from fd00::5"
    ]
    assert re.search(
        "^ExecStart=.* --proxy-header$", made.unit("maintenance"), re.MULTILINE
    )


@pytest.mark.parametrize(
    ("networks", "options"),
    [
        ((), ""),
        (
            ("10.0.0.0/24", "fd00::/64"),
            " --status-from 127.0.0.0/8 --status-from ::1/128 --status-from 10.0.0.0/24 --status-from fd00::/64",
        ),
    ],
)
def test_the_exporter_is_told_who_may_see_the_status_page(
    networks: tuple[str, ...], options: str
) -> None:
    unit = configuration(None, exporter="10.0.0.11:9129", status_from=networks).unit(
        "exporter"
    )
    assert "".join(re.findall(" --status-from [^ \n]+", unit)) == options


@pytest.mark.parametrize(
    ("root", "listen", "health"),
    [
        (None, "3129", "9130"),
        (None, "[2001:db8::1]:3129", "[2001:db8::1]:9130"),
        (Path("/srv/one"), "10.0.0.11:3130", "10.0.0.11:10130"),
        (Path("/srv/one"), "63129", "58129"),
    ],
)
def test_load_balancers_are_answered_on_the_address_of_the_proxy(
    root: Path | None, listen: str, health: str
) -> None:
    assert usual_health(Layout.of(root), listen) == health


def test_the_names_of_the_tls_port_are_those_that_were_given() -> None:
    given = configuration(None, tls=True, tls_names=("gateway.example", "192.0.2.1"))
    assert given.server_names == ("gateway.example", "192.0.2.1")
    assert " --tls-name gateway.example,192.0.2.1 " in given.unit("maintenance")
    assert (
        configuration(None, tls=True, listen="192.0.2.1:3129").server_names[0]
        == "192.0.2.1"
    )


def test_squid_conf_names_one_program_for_certificates() -> None:
    for whose, program in (
        ("squidkeeper", "/opt/squidkeeper/bin/squidkeeper certificate "),
        ("squid", "/usr/lib64/certgen "),
    ):
        conf = configuration(None, certificates=whose).squid_conf()
        lines = re.findall(r"^(#?)sslcrtd_program (\S+ \S+ )?", conf, re.MULTILINE)
        assert len(lines) == 2
        assert [command.startswith(program) for mark, command in lines if not mark] == [
            True
        ]


def test_a_squid_conf_with_name_servers_of_the_operators_has_none_of_ours() -> None:
    ours = configuration(None, resolver="none")
    assert "\ndns_nameservers " not in ours.squid_conf()
    assert "127.53.53.53" not in ours.unit("maintenance")
    assert (
        "# Left out: /etc/squid/local.conf has a dns_nameservers line.\n"
        in ours.squid_conf()
    )
    assert "--resolver" not in ours.unit("maintenance")
    assert " --resolver 127.1.2.3 " in configuration(None).unit("maintenance")


def test_a_unit_runs_as_squids_account_with_the_addresses_and_the_limit_of_the_gateway() -> (
    None
):
    ours = configuration(
        Path("/srv/gateway"),
        exporter="127.0.0.1:3129",
        squid="0.0.0.0:9129",
        log_bytes="20G",
    )
    assert "\nUser=nobody\n" in ours.unit("exporter")
    assert " --listen 127.0.0.1:3129 " in ours.unit("exporter")
    assert ours.unit("exporter").count(" --squid 127.0.0.1:9129\n") == 1, (
        "neither address is replaced twice"
    )
    assert ours.unit("maintenance").count(" --log-bytes 20G\n") == 1
    assert "--log-bytes" not in configuration(None, log_bytes="auto").unit(
        "maintenance"
    )
    for copied, private in (
        (False, "yes"),
        (True, "no"),
    ):  # the archive has a network where a store has a copy
        unit = configuration(None, archive_is_copied=copied).unit("archive")
        assert re.findall("^PrivateNetwork=(.*)$", unit, re.MULTILINE) == [private]


def test_a_key_of_the_archive_that_is_replaced_stays_in_the_public_file(
    tmp_path: Path,
) -> None:
    layout, owner = Layout.of(tmp_path), (os.geteuid(), os.getegid())
    layout.archive_key.parent.mkdir()
    made = []
    for _ in range(2):
        for path, entry in archive_keys(layout, owner).items():
            assert isinstance(entry, File)
            path.write_bytes(entry.content)
        assert archive_keys(layout, owner)[layout.archive_pub] == File(
            layout.archive_pub.read_bytes()
        ), "as it is"
        made.append(read_archive_key(layout.archive_key).public)
        layout.archive_key.unlink()
    assert read_public_keys(layout.archive_pub) == (*made,)
    layout.archive_key.write_text("no key")
    with pytest.raises(SetupFailed, match="not an Ed25519 private key"):
        archive_keys(layout, owner)


def test_both_formats_of_the_access_log_name_the_gateway_and_count_as_rendered() -> (
    None
):
    for name, found in (("egress-1.example", "egress-1.example"), ("-", "")):
        ours = configuration(None, gateway=name)
        formats = ours.templates()["squidkeeper-logformat.conf"]
        assert formats.count(f'"gateway":"{name}"') == 2
        assert formats.count(f'"request_id":"{found or "gateway"}.%tS.') == 2
        assert (
            f" why {found or 'gateway'}.@Squid{{%tS}}."
            in ours.pages()["ERR_SQUIDKEEPER_TEXT"]
        )


@pytest.mark.parametrize(
    ("name", "good"),
    [
        *[(name, True) for name in ("a", "egress-1", "A.b_c-9", "x" * 64)],
        *[
            (name, False)
            for name in (
                "",
                "-",
                "a-",
                ".a",
                "a b",
                'a"',
                "%ts",
                "a\n",
                "ä",
                "${x}",
                "x" * 65,
            )
        ],
    ],
)
def test_a_gateway_has_a_name_that_can_stand_in_a_format(name: str, good: bool) -> None:
    assert is_gateway_name(name) is good
    assert is_gateway_name(usual_gateway_name(name))


@pytest.mark.parametrize("root", [None, Path("/srv/gateway")])
def test_apparmor_lets_squid_run_the_program_where_it_is(root: Path | None) -> None:
    prefix = root or Path("/opt/squidkeeper")
    lines = configuration(root).apparmor("squid").splitlines()
    assert {
        f"{prefix}/bin/squidkeeper Ux,",
        f"{prefix}/venv-*/bin/squidkeeper Ux,",
    } <= {*lines}
    assert (f"{root}/etc/** r," in lines) is bool(root)


@pytest.mark.parametrize(
    ("conf", "named"),
    [
        ("include /etc/squid/squidkeeper.conf\n", True),
        ("http_port 1\n  include\t/etc/squid/squidkeeper.conf # ours\n", True),
        ("# include /etc/squid/squidkeeper.conf\n", False),
        ("include /etc/squid/squidkeeperXconf\n", False),
        ("", False),
    ],
)
def test_a_path_counts_where_it_is_no_comment(conf: str, named: bool) -> None:
    assert names(conf, Path("/etc/squid/squidkeeper.conf")) is named


def test_the_exporter_has_a_port_of_its_own_beside_other_gateways() -> None:
    rooted = Layout.of(Path("/srv/gateway"))
    assert usual_exporter(Layout.of(None), "3129") == "127.0.0.1:9129"
    assert usual_exporter(rooted, "192.0.2.1:3129") == "127.0.0.1:9129"
    assert usual_exporter(rooted, "60000") == "127.0.0.1:54000"
    assert [
        reachable(listen)
        for listen in ("1", "0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::1]:1")
    ] == [
        *["127.0.0.1:1"] * 3,
        *("192.0.2.1:1", "[::1]:1"),
    ]
