"""What metered requests used, as metrics and conditions: each request counts once, in a
bounded number of series.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squidkeeper.base.errors import CountsUnavailable
from squidkeeper.base.helper_metrics import NONE, OTHER
from squidkeeper.base.places import BODIES_FOLDER
from squidkeeper.policy.engine import CompiledPolicy
from squidkeeper.policy.language.quotas import QuotaUnit, Window
from squidkeeper.record import usage_ledger
from squidkeeper.record.log.drift import DriftChecker
from squidkeeper.record.usage_ledger import (
    Amounts,
    MeteredRequest,
    UsageState,
    append_entry,
    ledger_file,
    usage_entry,
)
from squidkeeper.services.exporter import usage_counts as counting
from squidkeeper.services.exporter.checkpoint import Checkpoint, CheckpointStore
from squidkeeper.services.exporter.collector import GatewayCollector
from squidkeeper.services.exporter.conditions import active_conditions
from squidkeeper.services.exporter.log_counter import LogCounter
from squidkeeper.services.exporter.snapshot import Snapshot
from squidkeeper.services.exporter.status_page import page
from squidkeeper.services.exporter.usage_counts import UsageCounter, UsageCounts
from squidkeeper.serving.quotas.counts import QuotaCount, Taken
from squidkeeper.serving.quotas.local_counts import LocalCounts
from squidkeeper.serving.quotas.token_uses import token_uses

from ..conftest import compiled_of
from ..markup import Page
from ..snapshots import changed
from .test_status import NOW, WELL

POLICY = """
clients: {lab: {networks: [192.0.2.0/24]}}
prices:
  - {model: "gpt-4o*", in: 2.5, out: 10}
rules:
  - {name: models, action: allow, hosts: [llm.example], meter: tokens}
quotas:
  - {name: budget, per: client, cost: 20, every: month}
  - {name: tokens, per: all, tokens: 1000, every: week}
  - {name: calls, per: all, requests: 10, every: day}
"""
RESERVE = Amounts(1000, 4096, 41_200)
USED = Amounts(800, 120, 3_200)


@pytest.fixture
def policy(tmp_path: Path) -> CompiledPolicy:
    return compiled_of(tmp_path / "policy", POLICY)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = ledger_file(tmp_path / "state")
    file.parent.mkdir(parents=True)
    return file


def write(
    file: Path,
    number: int,
    *more: Any,
    model: str = "gpt-4o",
    client: str = "192.0.2.7",
) -> None:
    about = MeteredRequest(
        f"1.2.3.{number}", client, "-", "models", "0123456789ab", "llm.example"
    )
    append_entry(file, usage_entry(about, NOW, model, *more))


def counted(
    file: Path, policy: CompiledPolicy, before: UsageCounts | None = None
) -> UsageCounts:
    counter = UsageCounter(file, before or UsageCounts(), lambda: policy)
    while counter.count_batch():
        pass
    counter.close()
    return counter.counts()


# --- counting -------------------------------------------------------------------------


def test_a_request_counts_once_when_it_has_ended(
    file: Path, policy: CompiledPolicy
) -> None:
    write(file, 1, RESERVE)
    write(file, 2, RESERVE)
    write(file, 1, USED, RESERVE, UsageState.METERED)
    write(
        file,
        3,
        RESERVE,
        RESERVE,
        UsageState.UNMETERED,
        model="made up by a client",
        client="198.51.100.1",
    )
    counts = counted(file, policy)
    assert dict(counts.used) == {
        ("lab", "models", "gpt-4o", "metered"): (1, 800, 120, 3_200),
        (NONE, "models", NONE, "unmetered"): (1, 1000, 4096, 41_200),
    }
    assert counts.models == {"gpt-4o": "2026-11-24T12:00:00.000Z"}


def test_the_name_of_a_model_is_printable(file: Path, policy: CompiledPolicy) -> None:
    write(file, 1, USED, RESERVE, UsageState.METERED, model="gpt\n\x1b\u202e\u2066é")
    (((_, _, model, _), _),) = counted(file, policy).used
    assert model == "gpt%0A%1B%E2%80%AE%E2%81%A6é"


def test_counting_goes_on_over_restarts_and_rotations(
    file: Path, policy: CompiledPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_ledger, "FILE_BYTES", 1500)
    counts = UsageCounts()
    for number in range(20):
        write(file, number, USED, RESERVE, UsageState.METERED)
        if number % 3 == 0:
            counts = counted(file, policy, counts)
    counts = counted(file, policy, counts)
    assert dict(counts.used) == {
        ("lab", "models", "gpt-4o", "metered"): (20, 16_000, 2_400, 64_000)
    }


def test_no_number_of_models_makes_more_series(
    file: Path, policy: CompiledPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(counting.MODELS_LIMIT + 10):
        write(file, number, USED, RESERVE, UsageState.METERED, model=f"m{number}")
    counts = counted(file, policy)
    assert len(counts.used) == counting.MODELS_LIMIT + 1
    assert dict(counts.used)["lab", "models", OTHER, "metered"][0] == 10
    monkeypatch.setattr(counting, "CELLS_LIMIT", 3)
    assert len(counted(file, policy).used) == 4
    assert (
        dict(counted(file, policy).used)[OTHER, OTHER, OTHER, "metered"][0]
        == counting.MODELS_LIMIT + 10 - 3
    )


def test_the_checkpoint_of_the_exporter_has_the_counts(
    tmp_path: Path, file: Path, policy: CompiledPolicy
) -> None:
    def counter() -> LogCounter:
        store = CheckpointStore(tmp_path / "exporter")
        return LogCounter(
            tmp_path / "access.log",
            store,
            DriftChecker(lambda _: policy),
            usage=lambda counts: UsageCounter(file, counts, lambda: policy),
        )

    for number in (1, 2):
        write(file, number, USED, RESERVE, UsageState.METERED)
        first = counter()
        first._count_batch()
        first.stop()
        assert [amounts[0] for _, amounts in first.save().usage.used] == [number]


# --- quotas that are nearly used ------------------------------------------------------


class Local:
    are_local = True


class Shared:
    """The counts of all gateways, of which the others have used more."""

    are_local = False

    def take(self, count: QuotaCount, limit: int, asked: int) -> Taken:
        assert asked == 0
        return Taken(0, 990, limit - 990, 60)


class Away(Shared):
    def take(self, count: QuotaCount, limit: int, asked: int) -> Taken:
        raise CountsUnavailable("away")


@pytest.fixture
def used(tmp_path: Path) -> Path:
    (tmp_path / "state" / BODIES_FOLDER).mkdir(parents=True)
    with closing(LocalCounts(tmp_path / "state" / BODIES_FOLDER)) as counts:
        counts.add(
            QuotaCount("budget", QuotaUnit.COST, Window.MONTH, "192.0.2.7"), 15_999_999
        )
        counts.add(
            QuotaCount("budget", QuotaUnit.COST, Window.MONTH, "192.0.2.8"), 16_000_000
        )
        counts.add(QuotaCount("tokens", QuotaUnit.TOKENS, Window.WEEK, "all"), 250)
        counts.add(QuotaCount("gone", QuotaUnit.TOKENS, Window.WEEK, "all"), 250)
    return tmp_path / "state"


def uses(
    state: Path, policy: CompiledPolicy, counts: Any
) -> dict[tuple[str, str], int]:
    return {
        (use.quota.name, use.holder): use.used
        for use in token_uses(policy.source.quotas, state, counts)
    }


def test_what_is_used_of_each_quota_of_tokens_is_listed(
    used: Path, policy: CompiledPolicy
) -> None:
    assert uses(used, policy, Local()) == {
        ("budget", "192.0.2.7"): 15_999_999,
        ("budget", "192.0.2.8"): 16_000_000,
        ("tokens", "all"): 250,
    }
    assert uses(used, policy, Shared())["tokens", "all"] == 990
    assert uses(used, policy, Away()) == {}
    assert uses(used / "nowhere", policy, Local()) == {}


def view_of(
    used: Path, policy: CompiledPolicy, counts: UsageCounts | None = None
) -> Snapshot:
    found = tuple(token_uses(policy.source.quotas, used, Local()))  # type: ignore[arg-type] # only what it asks for
    checkpoint = Checkpoint(
        since="2026-11-20T12:00:00.000+00:00", usage=counts or UsageCounts()
    )
    return changed(WELL, policy=policy.source, token_uses=found, checkpoint=checkpoint)


def details(view: Snapshot) -> dict[str, tuple[str, ...]]:
    codes = ("quota-nearly-used", "model-without-price")
    return {
        a.condition.code: a.details
        for a in active_conditions(view)
        if a.condition.code in codes
    }


def test_four_fifths_of_a_quota_are_a_condition(
    used: Path, policy: CompiledPolicy
) -> None:
    ((told,),) = details(view_of(used, policy)).values()
    assert told.startswith(
        "budget (20.00 of cost a month for each client): 192.0.2.8 has used 16.00 of cost, which is 80%;"
    )


def test_a_model_without_a_price_is_a_condition_for_a_day(
    used: Path, policy: CompiledPolicy
) -> None:
    recent, old = ("2026-11-24T11:00:00.000Z", "2026-11-22T11:00:00.000Z")
    models = {"gpt-4o-mini": recent, "other-1": recent, "other-2": old}
    view = changed(view_of(used, policy, UsageCounts(models=models)), token_uses=())
    assert details(view) == {"model-without-price": ("other-1",)}
    assert (
        details(
            changed(
                view, policy=replace(policy.source, prices=type(policy.source.prices)())
            )
        )
        == {}
    )


# --- metrics and the status page ------------------------------------------------------

COUNTS = UsageCounts(
    used=[
        (("lab", "models", "gpt-4o", "metered"), (3, 800, 120, 3_200)),
        (("lab", "models", "<b>", "metered"), (1, 5, 6, 9_000_000)),
        (("lab", "models", NONE, "reserved"), (1, 1000, 4096, 41_200)),
    ]
)


def test_metrics_have_tokens_and_cost(used: Path, policy: CompiledPolicy) -> None:
    families = {
        family.name: family
        for family in GatewayCollector(lambda: view_of(used, policy, COUNTS)).collect()
    }

    def samples(name: str) -> dict[tuple[str, ...], float]:
        return {
            tuple(one.labels.values()): one.value
            for one in families[name].samples
            if not one.name.endswith("created")
        }

    assert (
        samples("squidkeeper_tokens")["lab", "models", "gpt-4o", "metered", "in"] == 800
    )
    assert (
        samples("squidkeeper_tokens")["lab", "models", "gpt-4o", "metered", "out"]
        == 120
    )
    assert samples("squidkeeper_cost")["lab", "models", "<b>", "metered"] == 9.0
    assert (
        samples("squidkeeper_metered_requests")["lab", "models", NONE, "reserved"] == 1
    )
    assert samples("squidkeeper_quota_used_ratio") == {
        ("budget",): 0.8,
        ("tokens",): 0.25,
    }


def test_the_status_page_shows_tokens_where_there_are_some(
    used: Path, policy: CompiledPolicy
) -> None:
    nothing = page(WELL, "squidkeeper")
    assert not any(f'id="{part}"' in nothing for part in ("usage", "budgets"))
    html = page(view_of(used, policy, COUNTS), "squidkeeper")
    assert 'id="usage"' in html
    shown = Page(html)
    rows = "<b> 1 5 6 9.00 reserves, where no answer said what it used 1 1,000 4,096 0.0412 gpt-4o 3 800 120 0.0032"
    assert rows.replace(" ", "") in re.sub(r"\s", "", shown.text)
    assert "Spent 9.0444" in " ".join(shown.text.split())


def test_the_status_page_shows_budgets_above_the_denials(
    used: Path, policy: CompiledPolicy
) -> None:
    html = page(view_of(used, policy), "squidkeeper")
    assert html.index('id="budgets"') < html.index('id="denials"')
    assert 'id="usage"' not in html
    text = " ".join(Page(html).text.split())
    assert "Budgets 3" in text
    fullest = (
        "budget 192.0.2.8 80 % 80% used 16.00 of 20.00 of cost a month for each client"
    )
    assert text.index(fullest) < text.index("budget 192.0.2.7 80 %")
    assert text.index("budget 192.0.2.7") < text.index("tokens all 25 %")
    assert html.count('<rect class="deny"') == 1
    many = changed(
        view_of(used, policy), token_uses=view_of(used, policy).policies.token_uses * 8
    )
    assert "4 more: squidkeeper quota shows all." in " ".join(
        Page(page(many, "squidkeeper")).text.split()
    )
