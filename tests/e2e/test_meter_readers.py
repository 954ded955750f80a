"""What a metered request used, as operators read it: commands, metrics, a condition and
the status page.
"""

from __future__ import annotations

import json

import pytest

from squidkeeper.record.usage_ledger import latest, ledger_files, read_entries
from tests.ports import free_port
from tests.waiting import wait_for

from .curl import curl
from .gateway import Gateway
from .models import CHAT, Call, answer
from .observer import Exporter, fetch
from .origin import Origins

POLICY = """
version: 1
clients: {agents: {networks: [127.0.0.0/8]}}
quotas: [{name: budget, rules: [models], tokens: 1000, per: client, every: day}]
prices: [{model: "gpt-*", in: 2.5, out: 10}]
rules: [{name: models, action: allow, hosts: [llm.example], meter: tokens, reserve: 70}]
"""
CALL = Call(CHAT, "whole", (400, 410), limit=50)


@pytest.fixture
def request_id(gateway: Gateway, origins: Origins) -> str:
    origins.fallback = answer
    assert (
        curl(
            gateway,
            f"https://llm.example{CHAT}",
            "-d",
            CALL.body.decode(),
            client="127.0.0.31",
        ).status
        == 200
    )

    def settled() -> list[str]:
        found = latest(read_entries(ledger_files(gateway.root / "state"))).items()
        return [
            number
            for number, entry in found
            if entry.settled and entry.client == "127.0.0.31"
        ]

    return str(wait_for(settled, "the line of the request")[0])


def test_what_a_request_used_is_told_everywhere(
    gateway: Gateway, request_id: str
) -> None:
    log, state = gateway.root / "log/access.log", gateway.root / "state"
    wait_for(lambda: request_id in log.read_text(), "its line in the access log")
    row = json.loads(
        gateway.command("log", "--by", "model", "--json", "--state", state, log).stdout
    )
    assert (row["model"], row["tokens_in"], row["tokens_out"], row["reserved"]) == (
        CALL.model,
        *CALL.spent,
        0,
    )
    assert row["cost"] == 400 * 2.5 + 410 * 10
    why = gateway.command(
        "why",
        request_id,
        "--state",
        state,
        "--policy",
        gateway.root / "etc/policy",
        log,
    ).stdout
    assert (
        f"{request_id} used 400 tokens in and 410 out of {CALL.model}, at a cost of 0.0051"
        in why
    )
    quota = gateway.command(
        "quota", "--state", state, "--policy", gateway.root / "etc/policy"
    ).stdout
    assert "   81 %  127.0.0.31  810 tokens, resets in " in quota
    with Exporter(gateway, port := free_port()):
        metrics = fetch(port, "/metrics").text.splitlines()
        page = fetch(port, "/").text
    labels = f'client="agents",model="{CALL.model}",rule="models",state="metered"'
    for line in (
        f'squidkeeper_tokens_total{{client="agents",direction="out",{labels.partition(",")[2]}}} 410.0',
        f"squidkeeper_metered_requests_total{{{labels}}} 1.0",
        f"squidkeeper_cost_total{{{labels}}} 0.0051",
        'squidkeeper_quota_used_ratio{quota="budget"} 0.81',
        'squidkeeper_condition{code="quota-nearly-used",severity="warning"} 1.0',
    ):
        assert line in metrics
    assert "127.0.0.31 has used 810 tokens, which is 81%" in page
