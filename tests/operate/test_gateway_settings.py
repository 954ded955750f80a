"""gateway.yaml: its faults, all at once, and what options of install.sh change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given as generated
from hypothesis import strategies as st

from squidkeeper.base.errors import SetupFailed
from squidkeeper.base.layout import Layout
from squidkeeper.cli import main
from squidkeeper.operate.setup.gateway_settings import (
    GatewaySettings,
    check_settings,
    settings_schema,
)
from squidkeeper.operate.setup.settings_file import (
    changed_text,
    differences,
    option_fault,
    read_settings,
    settings_in_force,
)

FILE = Path("gateway.yaml")
EVERYTHING = """\
version: 1
gateway: egress-1.example
listen: "[2001:db8::1]:3129"
workers: 4
behind:
  addresses: [10.0.0.5, "fd00::5"]
  health_listen: 9130
transparent: [192.168.137.1, "fd37::1"]
upstream: http://proxy.example:3128
bump: documented
certificates: squid
ca: intermediate
intermediate_days: 90
exporter: {listen: 10.0.0.11:9129, status_from: [10.0.0.0/24]}
log: {bytes: 20G}
archive: {days: 30, bytes: 100G}
"""


def faults_of(text: str) -> list[str]:
    checked = check_settings(FILE, text.encode())
    assert (checked.settings is None) is bool(checked.faults)
    return [str(fault) for fault in checked.faults]


def settings_of(text: str) -> GatewaySettings:
    return read_settings(FILE, text.encode())


def test_a_version_alone_is_the_default_gateway() -> None:
    settings = settings_of("version: 1\n")
    assert (settings.listen, settings.workers, settings.tls) == ("3129", 1, None)
    assert (settings.bump, settings.certificates) == ("shared", "squidkeeper")
    assert (settings.exporter.listen, settings.behind, settings.ca) == (None,) * 3


def test_every_setting_is_read() -> None:
    settings = settings_of(EVERYTHING)
    assert settings.behind is not None
    assert settings.behind.addresses == ("10.0.0.5", "fd00::5")
    assert settings.behind.health_listen == "9130"
    assert settings.exporter.status_from == ("10.0.0.0/24",)
    assert (settings.archive.days, settings.log.bytes) == (30, "20G")
    left = [key for key, value in settings.model_dump().items() if value is None]
    assert left == ["tls"], "which excludes behind"
    exporter = settings_of("version: 1\nexporter: {listen: 9129}\n").exporter
    assert exporter.listen == "127.0.0.1:9129"
    named = settings_of("version: 1\ntls: {names: [gateway.example, 10.0.0.1]}\n")
    assert named.tls
    assert named.tls.names == ("gateway.example", "10.0.0.1")


def test_all_faults_are_told_at_once_each_with_its_place_and_what_was_expected() -> (
    None
):
    wrong = """\
listen: 22:22
workers: 0
tls: true
behind: {addresses: [10.0.0.5, x]}
worker: 2
exporter: {listen: none, status_from: [10.0.0.1/8]}
ca: direct
intermediate_days: 4
log: {bytes: 3M}
transparent: [10.0.0.1, 10.0.0.2]
gateway: -a
archive: {days: "9", byte: 1G}
"""
    assert faults_of(wrong) == [
        "gateway.yaml:1:1: key 'version' is missing, expected 'version: 1' [missing-key]",
        "gateway.yaml:1:9: 'listen' is 22:22, expected PORT, ADDRESS:PORT or [ADDRESS]:PORT (quote the brackets)"
        " [wrong-type]",
        "gateway.yaml:2:10: 'workers' is the number 0, expected a number from 1 to 16; beyond it, add a gateway"
        " [wrong-type]",
        "gateway.yaml:3:6: 'tls' is true, expected a mapping (key: value) [wrong-type]",
        "gateway.yaml:4:1: 'behind' and 'tls' exclude each other: the load balancer takes the clients, with TLS or"
        " without; remove one (squid/FLEET.md says how the load balancer gets its certificate) [key-choice]",
        "gateway.yaml:4:32: 'x' is no address, expected one such as 10.0.0.5 [invalid-network]",
        "gateway.yaml:5:1: unknown key 'worker', did you mean 'workers'? [unknown-key]",
        "gateway.yaml:6:12: 'behind' needs the exporter, which tells the load balancer that the gateway is healthy,"
        " expected a port such as 9129 [key-choice]",
        "gateway.yaml:6:26: 'status_from' shows the status page to other machines, and the exporter serves this one"
        " alone, expected 'listen' with an address that they reach, such as 10.0.0.11:9129 [key-choice]",
        "gateway.yaml:6:40: network '10.0.0.1/8' has host bits set, expected 10.0.0.0/8 [invalid-network]",
        "gateway.yaml:8:1: 'intermediate_days' is for an intermediate, and the CA signs directly: remove it, or"
        " 'ca: direct' [key-choice]",
        "gateway.yaml:9:14: '3M' is no size, expected one such as 512M or 20G, 64M at least [invalid-text]",
        "gateway.yaml:10:14: a name has one address of each kind, expected one of IPv4, one of IPv6, or both"
        " [invalid-network]",
        "gateway.yaml:11:10: '-a' is no name of a gateway, expected at most 64 letters, digits and . _ -, a letter or"
        " digit at both ends, such as egress-1.example [invalid-name]",
        "gateway.yaml:12:17: 'days' is '9', expected a number from 1 to 36500 [wrong-type]",
        "gateway.yaml:12:22: unknown key 'byte', did you mean 'bytes'? [unknown-key]",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "1:1: the file is empty, expected 'version: 1'"),
        ("- 1\n", "1:1: the file holds no mapping"),
        ("version: 2\n", "1:10: 'version' is the number 2, expected the number 1"),
        ("version: true\n", "1:10: 'version' is true, expected the number 1"),
        ("version: 1\nlisten:\n", "2:1: 'listen' has no value"),
        ("version: 1\nversion: 1\n", "2:1: key 'version' is given twice"),
        ("version: 1\ntls: {names: []}\n", "2:14: 'names' is an empty list"),
        ("version: 1\nbehind: [10.0.0.5]\n", "2:9: 'behind' is a list, expected a map"),
        (
            "version: 1\ntransparent: 10.0.0.1\n",
            "2:14: 'transparent' is '10.0.0.1', ex",
        ),
        ("version: 1\ntransparent: [0.0.0.0]\n", "2:15: '0.0.0.0' is for no machine"),
        ("version: 1\nlisten: 70000\n", "2:9: 'listen' is the number 70000"),
        ("version: 1\nlisten: 300.0.0.1:3129\n", "2:9: 'listen' is '300.0.0.1:3129'"),
        ("version: 1\nupstream: socks://a:1\n", "2:11: a parent cannot have the sche"),
        ("version: 1\nbump: pooled\n", "2:7: 'bump' is 'pooled', expected one of sha"),
        ("version: 1\ngateway: 7\n", "2:10: 'gateway' is the number 7, expected text"),
        ("version: 1\nbehind: {health_listen: 9}\n", "2:9: key 'addresses' is missing"),
        (
            "version: 1\nexporter: {status_from: [10.0.0.0/24]}\n",
            "2:12: 'status_from' shows the status page to other machines",
        ),
        (
            'version: 1\nexporter: {listen: "[::1]:9", status_from: [10.0.0.0/24]}\n',
            "2:31: 'status_from' shows the status page to other machines",
        ),
    ],
)
def test_a_fault_says_where_what_and_what_was_expected(text: str, fault: str) -> None:
    [found] = faults_of(text)
    assert found.startswith(f"gateway.yaml:{fault}")


def test_the_schema_takes_what_is_read_and_describes_every_setting() -> None:
    schema = settings_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for text in ("version: 1\n", EVERYTHING, "version: 1\ntls: {names: auto}\n"):
        jsonschema.validate(yaml.safe_load(text), schema)
    for wrong in ({}, {"version": 1, "worker": 2}, {"version": 1, "workers": 17}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    models = [schema, *schema["$defs"].values()]
    for model in models:
        for about in model["properties"].values():
            assert "description" in about or "$ref" in about


def test_the_schema_that_is_shipped_is_the_one_that_is_printed() -> None:
    shipped = Path(__file__).parents[2] / "squid/gateway.schema.json"
    printed = CliRunner().invoke(main, ["schema", "--gateway"]).output
    assert shipped.read_text() == printed, (
        "squidkeeper schema --gateway > squid/gateway.schema.json"
    )


MINE = """\
# mine
version: 1

# where
listen: 192.168.137.1:3129
tls:
  names:
    - gateway.example  # one
    - 10.0.0.1

# two
workers: 2
"""


@pytest.mark.parametrize(
    ("given", "replaced"),
    [
        ({"workers": "2"}, ("", "")),
        ({"workers": "1"}, ("workers: 2", "workers: 1")),
        ({"listen": "3130"}, ("listen: 192.168.137.1:3129", "listen: 3130")),
        ({"log_bytes": "20G"}, ("workers: 2\n", "workers: 2\nlog: {bytes: 20G}\n")),
        ({"gateway": "7"}, ("workers: 2\n", "workers: 2\ngateway: '7'\n")),
        (
            {"no_tls": "", "behind": "10.0.0.5,fd00::5", "health_listen": "9130"},
            (
                MINE[MINE.index("tls:") :],
                "\n# two\nworkers: 2\n"
                "behind: {addresses: [10.0.0.5, 'fd00::5'], health_listen: 9130}\n",
            ),
        ),
    ],
)
def test_an_option_changes_its_own_lines_and_no_others(
    given: dict[str, str], replaced: tuple[str, str]
) -> None:
    assert changed_text(FILE, MINE.encode(), given) == MINE.replace(*replaced)


def test_options_begin_end_and_replace_settings() -> None:
    first = changed_text(FILE, b"", {"tls": "", "intermediate_days": "60"})
    assert settings_of(first).tls is not None
    assert first.startswith("# The settings of this gateway")
    for given, gone in (
        ({"ca": "direct"}, "intermediate_days"),
        ({"intermediate_days": "auto"}, "intermediate_days"),
        ({"no_tls": ""}, "tls"),
    ):
        assert gone not in yaml.safe_load(changed_text(FILE, first.encode(), given))
    everything = {
        "behind": "none",
        "transparent": "none",
        "upstream": "none",
        "status_from": "none",
        "log_bytes": "auto",
        "archive_days": "auto",
        "archive_bytes": "auto",
    }
    left = yaml.safe_load(changed_text(FILE, EVERYTHING.encode(), everything))
    assert left["exporter"] == {"listen": "10.0.0.11:9129"}
    assert not {"behind", "transparent", "upstream", "log", "archive"} & {*left}
    none = changed_text(
        FILE, EVERYTHING.encode(), {"behind": "none", "no_exporter": ""}
    )
    assert yaml.safe_load(none)["exporter"] == {"listen": "none"}
    flow = changed_text(FILE, b"{version: 1, listen: 22}", {"listen": "[::]:33"})
    assert yaml.safe_load(flow) == {"version": 1, "listen": "[::]:33"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"tls_name": "gateway.example"},
            "--tls-name is for the certificate of the TL",
        ),
        ({"health_listen": "9130"}, "--health-listen is for load balancers, and there"),
        (
            {"behind": "none", "health_listen": "9130"},
            "--health-listen is for load bal",
        ),
    ],
)
def test_an_option_of_what_is_off_is_refused(
    given: dict[str, str], message: str
) -> None:
    with pytest.raises(SetupFailed, match=message) as refused:
        changed_text(FILE, b"version: 1\n", given)
    assert refused.value.advice.startswith("add --")


def test_a_faulty_file_is_refused_with_all_its_faults() -> None:
    with pytest.raises(SetupFailed, match=r"gateway\.yaml is faulty") as refused:
        settings_of("version: 1\nworkers: 0\nworker: 2\n")
    assert refused.value.details.count("gateway.yaml:") == 2


def test_an_option_is_checked_without_what_stands_beside_it() -> None:
    for name, value in (
        ("health_listen", "9130"),
        ("status_from", "10.0.0.0/24"),
        ("tls_name", "gateway.example,10.0.0.1"),
        ("behind", "none"),
        ("archive_days", "auto"),
    ):
        assert option_fault(name, value) == ""
    assert "'two', expected a number from 1 to 16" in option_fault("workers", "two")


@generated(
    st.fixed_dictionaries(
        {},
        optional={
            "listen": st.integers(1, 65535).map(str),
            "workers": st.integers(1, 16).map(str),
            "gateway": st.from_regex(
                r"[A-Za-z0-9]([A-Za-z0-9._-]{0,9}[a-z])?", fullmatch=True
            ),
            "tls": st.just(""),
            "transparent": st.sampled_from(["10.0.0.1", "10.0.0.1,fd00::1", "none"]),
            "log_bytes": st.sampled_from(["64M", "9G", "auto"]),
            "upstream": st.sampled_from(["http://a.example:3128", "none"]),
        },
    ),
    st.sampled_from(["", "version: 1\n", MINE, "{version: 1}", "version: 1 # one"]),
)
def test_what_options_write_is_read_as_they_say_and_written_once(
    given: dict[str, str], before: str
) -> None:
    text = changed_text(FILE, before.encode(), given)
    settings = settings_of(text)
    assert changed_text(FILE, text.encode(), given) == text
    for name in ("listen", "gateway"):
        assert getattr(settings, name) == given.get(name, getattr(settings, name))
    if "workers" in given:
        assert settings.workers == int(given["workers"])


def test_what_differs_from_the_settings_in_force_is_told(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    assert settings_in_force(layout) == settings_of("version: 1\n")
    layout.generation.mkdir(parents=True)
    layout.settings_in_force.write_text(EVERYTHING)
    former = settings_in_force(layout)
    assert former == settings_of(EVERYTHING)
    told: dict[str, Any] = dict(differences(former, settings_of(MINE)))
    assert told["listen"] == "[2001:db8::1]:3129 -> 192.168.137.1:3129"
    assert told["behind"] == "addresses 10.0.0.5 fd00::5, health_listen 9130 -> default"
    assert told["tls"] == "default -> names gateway.example 10.0.0.1"
    assert "version" not in told
    assert json.dumps(told)
