"""From an observing gateway to a policy that allows what was used: `squidkeeper learn`,
on a live Squid.
"""

from functools import partial

from click.testing import CliRunner

from squidkeeper.cli import main
from tests.waiting import wait_for

from .curl import curl
from .expect import allowed, denied
from .gateway import Gateway, NewGateway
from .origin import Origins

OBSERVING = """
version: 1
defaults: {observe: true}
clients:
  builders: {networks: [127.0.0.2]}
rules:
  - {name: closed, action: deny, hosts: [closed.example]}
"""


def has_another_rule(gateway: Gateway, url: str, client: str, rule: str) -> bool:
    before = len(gateway.log())
    curl(gateway, url, client=client)
    return bool(gateway.logged(url, before)["rule"] != rule)


def test_what_clients_asked_for_while_observing_becomes_the_policy(
    new_gateway: NewGateway, origins: Origins
) -> None:
    gateway = new_gateway(OBSERVING).start()
    for number in (17, 18):
        allowed(
            gateway, origins, f"https://api.example/v1/items/{number}?page=1", "default"
        )
    allowed(gateway, origins, "https://api.example/v1/jobs", "default", "--data", "job")
    allowed(gateway, origins, "http://build.example/x", "default", client="127.0.0.2")
    denied(gateway, origins, "https://closed.example/", "closed")
    assert gateway.logged("https://api.example/v1/jobs")["observed"] == "deny:default"

    log = gateway.root / "log/access.log"
    draft = CliRunner().invoke(
        main,
        [
            "learn",
            str(log),
            "--min-clients",
            "1",
            "--policy",
            str(gateway.policy_folder),
        ],
    )
    assert draft.exit_code == 0, draft.output
    gateway.write("policy.yaml", draft.stdout)
    wait_for(
        lambda: curl(gateway, "https://other.example/").status == 403,
        "the draft in force",
    )
    for url, client, rule in (
        ("https://api.example/v1/items/17", "127.0.0.1", "default"),
        ("http://build.example/x", "127.0.0.2", "default"),
        ("https://closed.example/", "127.0.0.1", "closed"),
    ):
        wait_for(
            partial(has_another_rule, gateway, url, client, rule),
            "the draft in force for a host that Squid has an answer for",
        )

    allowed(gateway, origins, "https://api.example/v1/items/19", "api.example-read")
    allowed(
        gateway,
        origins,
        "https://api.example/v1/jobs",
        "api.example-post",
        "--data",
        "job",
    )
    allowed(
        gateway,
        origins,
        "http://build.example/x",
        "build.example-read",
        client="127.0.0.2",
    )
    for url, client in (
        ("https://closed.example/", "127.0.0.1"),
        ("http://build.example/x", "127.0.0.1"),
        ("https://api.example/v1/items/17", "127.0.0.2"),
    ):
        denied(gateway, origins, url, "default", client=client)
