"""The files of the image, compose.yaml and squid/kubernetes/, with nothing built:
tests/containers builds them.
"""

from __future__ import annotations

import copy
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from squidkeeper.base.places import ROOT_VARIABLE
from squidkeeper.cli import main

REPOSITORY = Path(__file__).parents[2]
KUBERNETES = REPOSITORY / "squid/kubernetes"
LOCKS = REPOSITORY / "squid/container"
FLEET = (REPOSITORY / "squid/FLEET.md").read_text()
CONTAINERFILES = (REPOSITORY / "Containerfile", LOCKS / "agent.Containerfile")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
PIN = re.compile(
    r"^([a-z0-9.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n", re.MULTILINE
)
SQUIDKEEPER = Path(sys.executable).with_name("squidkeeper")
AGENT = {"squidkeeper/role": "agent"}
GATEWAY = {"squidkeeper/role": "gateway"}
KINDS = [
    "ConfigMap",
    "Deployment",
    "HorizontalPodAutoscaler",
    *["NetworkPolicy"] * 2,
    "PodDisruptionBudget",
    "Service",
]


# The locks


def pins(name: str) -> dict[str, str]:
    """The version of each package in a lock; every line of it belongs to a pin with
    hashes.
    """
    text = (LOCKS / name).read_text()
    assert PIN.sub("", text) == ""
    return {canonicalize_name(found[1]): found[2] for found in PIN.finditer(text)}


def unpinned(requirements: list[str], lock: str) -> list[str]:
    """The requirements that a lock does not meet."""
    pinned = pins(lock)
    wanted = [Requirement(requirement) for requirement in requirements]
    return [
        str(need)
        for need in wanted
        if pinned.get(canonicalize_name(need.name), "0.dev0") not in need.specifier
    ]


def image_extras() -> list[str]:
    [listed] = re.findall(
        r"^ARG EXTRAS=(\S+)$", CONTAINERFILES[0].read_text(), re.MULTILINE
    )
    return str(listed).split(",")


def test_the_image_has_every_extra_that_an_installation_can_have() -> None:
    assert sorted(image_extras()) == sorted(set(EXTRAS) - {"dev"})


def test_the_locks_meet_what_squidkeeper_its_extras_and_the_build_of_the_image_need() -> (
    None
):
    needed = [
        *PROJECT["project"]["dependencies"],
        *itertools.chain(*(EXTRAS[name] for name in image_extras())),
    ]
    assert unpinned(needed, "requirements.lock") == [], "run squid/container/lock"
    lines = [
        line
        for line in (LOCKS / "build.in").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert (
        unpinned([*lines, *PROJECT["build-system"]["requires"]], "build.lock") == []
    ), "run squid/container/lock"


def test_a_lock_that_is_behind_is_seen() -> None:
    assert unpinned(["click>=1000", "not-there>=1"], "requirements.lock") == [
        "click>=1000",
        "not-there>=1",
    ]


# The image


def test_pip_installs_by_hash_and_from_wheels_alone() -> None:
    lines = [
        line
        for line in CONTAINERFILES[0].read_text().splitlines()
        if "pip install" in line
    ]
    by_hash = [line for line in lines if "--require-hashes --only-binary :all:" in line]
    assert len(by_hash) == 2
    assert all("--no-index --no-deps" in line for line in lines if line not in by_hash)


@pytest.mark.parametrize(
    "path",
    [*CONTAINERFILES, REPOSITORY / "compose.yaml", KUBERNETES / "kustomization.yaml"],
    ids=str,
)
def test_no_registry_is_named(path: Path) -> None:
    images = re.findall(
        r"^(?:FROM|\s*image:|ARG DEBIAN=|\s*newName:)\s*(\S+)",
        path.read_text(),
        re.MULTILINE,
    )
    assert images
    assert [
        image for image in images if "/" in image and not image.startswith("localhost/")
    ] == []


def test_the_image_is_not_root_and_has_a_health_check() -> None:
    text = CONTAINERFILES[0].read_text()
    last = text.rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (\S+)$", last, re.MULTILINE) == ["proxy:proxy"]
    assert re.search(
        r'^HEALTHCHECK .*CMD \["gateway", "healthy"\]$', last, re.MULTILINE
    )
    assert 'ENTRYPOINT ["gateway"]' in last


@pytest.mark.system
def test_a_variable_names_the_gateway_that_commands_are_about(tmp_path: Path) -> None:
    """As in the image; its commands are tried in tests/containers."""
    assert f"\nENV {ROOT_VARIABLE}=/gateway\n" in CONTAINERFILES[0].read_text()
    environment = {**os.environ, ROOT_VARIABLE: str(tmp_path), "COLUMNS": "500"}
    shown = subprocess.run(
        [SQUIDKEEPER, "ask", "--help"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    help_text = "".join(shown.stdout.split())
    for default in ("etc/policy", "state", "log/access.log"):
        assert f"[default:{tmp_path}/{default}]" in help_text
    for command in (["doctor"], ["drain", "--cancel"]):
        done = subprocess.run(
            [SQUIDKEEPER, *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (
            done.returncode,
            f"there is neither {tmp_path}/etc/squidkeeper.conf" in done.stderr,
        ) == (2, True)


# compose.yaml


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    compose = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
    return {**compose["services"], "networks": compose["networks"]}


def test_the_agent_has_no_way_out_no_names_and_no_key(
    services: Mapping[str, Any],
) -> None:
    agent = services["agent"]
    assert agent["networks"] == ["agents"]
    assert services["networks"]["agents"]["internal"] is True
    assert agent["dns"] == "127.0.0.1"
    assert not {"cap_add", "privileged", "network_mode"} & set(agent)
    assert agent["volumes"] == ["trust:/etc/squidkeeper:ro"]
    assert [
        volume
        for volume in services["gateway"]["volumes"]
        if volume.startswith("trust:")
    ] == ["trust:/trust"]


def test_the_gateway_listens_for_the_agents_alone_without_rights(
    services: Mapping[str, Any],
) -> None:
    gateway = services["gateway"]
    address = gateway["networks"]["agents"]["ipv4_address"]
    assert gateway["command"][:2] == ["--listen", f"{address}:3129"]
    assert "ports" not in gateway
    assert gateway["read_only"] is True
    assert gateway["cap_drop"] == ["ALL"]
    assert gateway["security_opt"] == ["no-new-privileges"]
    assert "user" not in gateway  # as the image says


def test_the_agent_has_the_variables_that_squidkeeper_env_prints(
    services: Mapping[str, Any], tmp_path: Path
) -> None:
    """Those of programs that an agent's image may not have, such as npm's and Java's,
    are left out.
    """
    given, printed = services["agent"]["environment"], printed_environment(tmp_path)
    assert {name: printed.get(name) for name in given} == given


def printed_environment(folder: Path) -> dict[str, str]:
    """What `squidkeeper env` prints for an agent in a container."""
    (folder / "policy.yaml").write_text("version: 1\n")
    (folder / "ca.crt").write_text("a root")
    paths = [
        "--ca-path",
        "/etc/squidkeeper/ca.crt",
        "--bundle-path",
        "/etc/squidkeeper/bundle.crt",
    ]
    proxy = [
        "--proxy",
        "http://192.168.137.1:3129",
        "--policy",
        str(folder),
        "--ca",
        str(folder / "ca.crt"),
    ]
    told = CliRunner().invoke(main, ["env", "--format", "dotenv", *paths, *proxy])
    assert told.exit_code == 0, told.output
    return dict(
        line.split("=", 1)
        for line in told.stdout.splitlines()
        if line and not line.startswith("#")
    )


# squid/kubernetes/


def validated(document: Mapping[str, Any]) -> Mapping[str, Any]:
    kubernetes_validate.validate(
        document, kubernetes_validate.latest_version(), strict=True
    )
    return document


@pytest.fixture(scope="module")
def built() -> list[Mapping[str, Any]]:
    """What Kustomize makes of the folder, each document valid in strict mode."""
    done = subprocess.run(
        ["kustomize", "build", KUBERNETES], capture_output=True, text=True, check=True
    )
    return [validated(document) for document in yaml.safe_load_all(done.stdout)]


def of_kind(built: list[Mapping[str, Any]], kind: str) -> Iterator[Mapping[str, Any]]:
    return (document for document in built if document["kind"] == kind)


@pytest.mark.system
def test_kubernetes_accepts_what_kustomize_makes(
    built: list[Mapping[str, Any]],
) -> None:
    assert sorted(document["kind"] for document in built) == KINDS


def test_kubernetes_accepts_the_example_agent_and_no_unknown_key() -> None:
    agent = yaml.safe_load((KUBERNETES / "agent.yaml").read_text())
    assert validated(agent)["metadata"]["labels"] == AGENT
    agent["spec"]["dnsPolocy"] = "None"
    with pytest.raises(kubernetes_validate.ValidationError, match="dnsPolocy"):
        validated(agent)


def test_the_example_agent_has_the_variables_of_the_agent_of_compose(
    services: Mapping[str, Any],
) -> None:
    [agent] = yaml.safe_load((KUBERNETES / "agent.yaml").read_text())["spec"][
        "containers"
    ]
    given = {
        one["name"]: one["value"].replace(
            "$(SQUIDKEEPER_SERVICE_HOST)", "192.168.137.1"
        )
        for one in agent["env"]
    }
    assert given == services["agent"]["environment"]


@pytest.mark.system
def test_log_and_archive_fit_their_volume(built: list[Mapping[str, Any]]) -> None:
    [deployment] = of_kind(built, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    [setup] = pod["initContainers"]
    limits = dict(zip(setup["args"][1::2], setup["args"][2::2], strict=True))
    assert limits.keys() == {"--log-bytes", "--archive-bytes"}
    [volume] = [
        volume["emptyDir"]["sizeLimit"]
        for volume in pod["volumes"]
        if volume["name"] == "gateway"
    ]
    assert (
        sum(int(size.removesuffix("G")) for size in limits.values()) * 10**9
        <= int(volume.removesuffix("Gi")) << 29
    )


@pytest.mark.system
def test_a_projected_volume_has_lists_and_secrets_where_the_policy_names_them(
    built: list[Mapping[str, Any]], tmp_path: Path
) -> None:
    [text] = re.findall(
        r"^```yaml\n(- name: policy\n.*?)^```$", FLEET, re.MULTILINE | re.DOTALL
    )
    [volume] = yaml.safe_load(text)
    [deployment] = copy.deepcopy([*of_kind(built, "Deployment")])
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    volumes[:] = [volume, *(other for other in volumes if other["name"] != "policy")]
    validated(deployment)
    contents = {
        "policy.yaml": "version: 1\nlists: {drops: {file: lists/drops.txt}}\n"
        "secrets: {x: {file: secrets/github-token}}\nrules: [{name: drops, action: deny, lists: [drops]}]\n"
        "credentials: [{name: x, hosts: [api.example], value: 'Bearer {x}'}]\n",
        "lists/drops.txt": "drop.example\n",
        "secrets/github-token": "a-token-of-some-length\n",
    }
    sources = [
        content
        for source in volume["projected"]["sources"]
        for content in source.values()
    ]
    assert {
        item["path"] for source in sources for item in source["items"]
    } == contents.keys()
    for name, content in contents.items():  # as the kubelet writes them
        file = tmp_path / "..data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(volume["projected"]["defaultMode"])
        top = name.partition("/")[0]
        (tmp_path / top).symlink_to(f"..data/{top}")
    checked = CliRunner().invoke(
        main, ["check", "--policy", str(tmp_path), "--state", str(tmp_path / "state")]
    )
    assert (checked.exit_code, "list drops: 1 host" in checked.output) == (0, True), (
        checked.output
    )
    assert not re.search("secret-|unavailable", checked.output), checked.output


@pytest.mark.system
def test_agents_reach_the_port_of_gateways_and_nothing_else(
    built: list[Mapping[str, Any]],
) -> None:
    policies = {
        document["metadata"]["name"]: document["spec"]
        for document in of_kind(built, "NetworkPolicy")
    }
    ports = [{"protocol": "TCP", "port": 3129}]
    assert policies["squidkeeper-agents"] == {
        "podSelector": {"matchLabels": AGENT},
        "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": GATEWAY}}], "ports": ports}],
    }
    gateways = policies["squidkeeper-gateways"]
    assert gateways["ingress"] == [
        {"from": [{"podSelector": {"matchLabels": AGENT}}], "ports": ports}
    ]


@pytest.mark.system
def test_gateways_reach_dns_servers_and_public_addresses(
    built: list[Mapping[str, Any]],
) -> None:
    [policy] = [
        one["spec"]
        for one in of_kind(built, "NetworkPolicy")
        if "gateways" in one["metadata"]["name"]
    ]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    names, public = policy["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    blocks = [peer["ipBlock"] for peer in public["to"]]
    assert (public.keys(), [block["cidr"] for block in blocks]) == (
        {"to"},
        ["0.0.0.0/0", "::/0"],
    )
    closed = [ip_network(network) for block in blocks for network in block["except"]]
    private = (
        "10.96.0.10",
        "172.16.0.1",
        "192.168.137.1",
        "100.64.0.1",
        "169.254.169.254",
        "fd00::1",
        "fe80::1",
    )
    for address in map(ip_address, private):
        assert any(address in network for network in closed)
    assert not any(
        ip_address(address) in network
        for address in ("8.8.8.8", "2606:4700::1111")
        for network in closed
    )


@pytest.mark.system
def test_an_image_is_named_by_a_digest_that_nothing_has(
    built: list[Mapping[str, Any]],
) -> None:
    [deployment] = of_kind(built, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    images = {
        container["image"] for container in (*pod["initContainers"], *pod["containers"])
    }
    assert images == {f"squidkeeper@sha256:{'0' * 64}"}


@pytest.mark.system
def test_nodes_have_equal_shares_of_each_version_and_the_number_is_the_autoscalers(
    built: list[Mapping[str, Any]],
) -> None:
    [deployment], [scaler] = (
        of_kind(built, "Deployment"),
        of_kind(built, "HorizontalPodAutoscaler"),
    )
    [spread] = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert (spread["maxSkew"], spread["whenUnsatisfiable"]) == (1, "DoNotSchedule")
    # else an upgrade's pods, which surge, find no place
    assert spread["matchLabelKeys"] == ["pod-template-hash"]
    # each `kubectl apply` would undo what the autoscaler has done
    assert "replicas" not in deployment["spec"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaler["spec"]["minReplicas"] == 2


def with_component(name: str, folder: Path) -> list[Mapping[str, Any]]:
    """What Kustomize makes with a component, as the comment in
    kustomization.yaml says.
    """
    text = (KUBERNETES / "kustomization.yaml").read_text()
    assert f"\n#   - {name}" in text
    return built_of(
        text.replace("\n# components:", "\ncomponents:").replace(
            f"\n#   - {name}", f"\n  - {name}"
        ),
        folder,
    )


def built_of(kustomization: str, folder: Path) -> list[Mapping[str, Any]]:
    """What Kustomize makes of an edited kustomization.yaml, in a new folder."""
    shutil.copytree(KUBERNETES, folder)
    (folder / "kustomization.yaml").write_text(kustomization)
    done = subprocess.run(
        ["kustomize", "build", folder], capture_output=True, text=True, check=True
    )
    found = [*yaml.safe_load_all(done.stdout)]
    # no schema of the Operator's
    return [one if one["kind"] == "ServiceMonitor" else validated(one) for one in found]


@pytest.mark.system
def test_prometheus_finds_each_gateway_by_its_name(tmp_path: Path) -> None:
    built = with_component("prometheus", tmp_path / "with")
    [deployment], [monitor] = (
        of_kind(built, "Deployment"),
        of_kind(built, "ServiceMonitor"),
    )
    [service] = [
        one
        for one in of_kind(built, "Service")
        if one["metadata"]["name"] == "squidkeeper-metrics"
    ]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["args"][-2:] == [
        "--exporter-listen",
        "0.0.0.0:9129",
    ]
    [port] = [
        port for port in pod["containers"][0]["ports"] if port["name"] == "metrics"
    ]
    [served], [scraped] = service["spec"]["ports"], monitor["spec"]["endpoints"]
    assert (port["containerPort"], served["targetPort"], scraped["port"]) == (
        9129,
        "metrics",
        served["name"],
    )
    assert (
        monitor["spec"]["selector"]["matchLabels"].items()
        <= service["metadata"]["labels"].items()
    )
    assert service["spec"]["selector"] == GATEWAY
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "squidkeeper"
    assert scraped["relabelings"][0]["targetLabel"] == "gateway"
    agents, prometheus = ingress(built)
    assert (agents["from"], [port["port"] for port in prometheus["ports"]]) == (
        [{"podSelector": {"matchLabels": AGENT}}],
        [9129],
    )


@pytest.mark.system
def test_a_load_balancer_names_vms_and_nobody_else_reaches_gateways(
    tmp_path: Path,
) -> None:
    built = with_component("load-balancer", tmp_path / "with")
    [deployment], [service] = of_kind(built, "Deployment"), of_kind(built, "Service")
    [setup] = deployment["spec"]["template"]["spec"]["initContainers"]
    option, addresses = setup["args"][-2:]
    assert option == "--behind"
    [clients] = ingress(built)
    assert [peer["ipBlock"]["cidr"] for peer in clients["from"]] == [
        f"{word}/32" for word in addresses.split(",")
    ]
    wanted = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "sessionAffinity": "None",
    }
    assert service["spec"] | wanted == service["spec"]
    assert service["spec"]["loadBalancerSourceRanges"]


@pytest.mark.system
def test_agents_without_proxy_settings_reach_the_name_server_and_the_ports_of_gateways(
    tmp_path: Path,
) -> None:
    text = (KUBERNETES / "kustomization.yaml").read_text()
    block = re.search(r"^# patches:\n(?:#  .*\n)+", text, re.MULTILINE)
    assert block
    built = built_of(
        text.replace(block[0], block[0].replace("# ", "", 1).replace("\n# ", "\n")),
        tmp_path / "with",
    )
    [deployment], [service] = of_kind(built, "Deployment"), of_kind(built, "Service")
    [setup] = deployment["spec"]["template"]["spec"]["initContainers"]
    [variable] = setup["env"]
    assert setup["args"][-2:] == ["--transparent", f"$({variable['name']})"]
    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    names = [
        (port["port"], port.get("protocol", "TCP"))
        for port in service["spec"]["ports"]
        if "dns" in port["name"]
    ]
    assert sorted(names) == [(53, "TCP"), (53, "UDP")]
    opened = {
        ("TCP", 3129),
        ("UDP", 53),
        ("TCP", 53),
        ("TCP", 80),
        ("TCP", 443),
        ("UDP", 443),
    }
    policies = {
        one["metadata"]["name"]: one["spec"] for one in of_kind(built, "NetworkPolicy")
    }
    for rule in (
        policies["squidkeeper-agents"]["egress"][0],
        policies["squidkeeper-gateways"]["ingress"][0],
    ):
        assert {(port["protocol"], port["port"]) for port in rule["ports"]} == opened
    agent = yaml.safe_load(
        (KUBERNETES / "agent.yaml").read_text().replace("# dnsConfig:", "dnsConfig:")
    )
    assert validated(agent)["spec"]["dnsConfig"] == {
        "nameservers": [service["spec"]["clusterIP"]]
    }


def ingress(built: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    [policy] = [
        one
        for one in of_kind(built, "NetworkPolicy")
        if one["metadata"]["name"] == "squidkeeper-gateways"
    ]
    rules: list[Mapping[str, Any]] = policy["spec"]["ingress"]
    return rules


@pytest.mark.system
def test_every_selector_finds_the_gateways(built: list[Mapping[str, Any]]) -> None:
    [deployment] = of_kind(built, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    [service], [budget] = (
        of_kind(built, "Service"),
        of_kind(built, "PodDisruptionBudget"),
    )
    selectors = [
        service["spec"]["selector"],
        *(one["spec"]["selector"]["matchLabels"] for one in (deployment, budget)),
    ]
    assert all(
        GATEWAY.items() <= labels and selector.items() <= labels
        for selector in selectors
    )


@pytest.mark.system
def test_the_pod_has_no_rights_and_what_runs_in_it_no_key_of_the_ca(
    built: list[Mapping[str, Any]],
) -> None:
    [deployment] = of_kind(built, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    [setup], [gateway] = pod["initContainers"], pod["containers"]
    assert (setup["args"][0], gateway["args"]) == ("setup", ["run"])
    assert [
        mount["name"] for mount in setup["volumeMounts"] if mount["name"] == "ca"
    ] == ["ca"]
    assert [mount["name"] for mount in gateway["volumeMounts"]] == [
        "gateway",
        "policy",
        "tmp",
    ]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in (setup, gateway):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.system
def test_the_policy_is_a_config_map_under_one_name_that_loads(
    built: list[Mapping[str, Any]], tmp_path: Path
) -> None:
    [policy] = of_kind(built, "ConfigMap")
    assert policy["metadata"]["name"] == "squidkeeper-policy"
    for name, text in policy["data"].items():
        (tmp_path / name).write_text(text)
    checked = CliRunner().invoke(
        main, ["check", "--policy", str(tmp_path), "--state", str(tmp_path / "state")]
    )
    assert checked.exit_code == 0, checked.output


@pytest.mark.system
def test_the_time_to_drain_ends_before_kubernetes_kills(
    built: list[Mapping[str, Any]],
) -> None:
    [deployment] = of_kind(built, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    [given] = pod["containers"][0]["env"]
    assert given["name"] == "DRAIN_FOR"
    assert (
        int(given["value"].removesuffix("s")) + 20
        <= pod["terminationGracePeriodSeconds"]
    )
