"""`squidkeeper quota`: what is used of each quota, and by whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from squidkeeper.base.errors import CountsUnavailable, PolicyError
from squidkeeper.base.formatting import duration, printable, quantity
from squidkeeper.cli.helper_options import policy_option, state_option
from squidkeeper.cli.options import json_option
from squidkeeper.cli.output import show_json

if TYPE_CHECKING:
    from squidkeeper.policy.language.model import Policy
    from squidkeeper.policy.language.quotas import Quota
    from squidkeeper.serving.quotas.counts import QuotaCount
    from squidkeeper.serving.quotas.local_counts import LocalCounts
    from squidkeeper.serving.quotas.valkey_counts import ValkeyCounts

Row = dict[str, Any]
_SHOWN: Final = 10
_NAMED: Final = (
    "The sums of all gateways, of the holders that this one can name. --holder HOLDER asks for another one, such as an"
    " address. --store FILE with the operator's user lists all: squid/FLEET.md"
)
_ONLY_OPERATOR: Final = (
    "{file}: all gateways share the counts, and this one may not reset them: add --store FILE, with the settings of"
    " the operator's user (squid/FLEET.md)"
)


class Reset(NamedTuple):
    """Whose count of which quota begins again at zero.

    Without a holder: everybody's.
    """

    quota: str
    holder: str | None

    def holds_for(self, count: QuotaCount) -> bool:
        """Whether it is for a count."""
        return self.quota == count.quota and self.holder in (None, count.holder)


@click.command()
@click.option(
    "--top",
    metavar="N",
    type=click.IntRange(1),
    default=_SHOWN,
    show_default=True,
    help="Users to show of each quota.",
)
@click.option(
    "--reset",
    metavar="NAME",
    help="Set this quota's counts to zero: for everybody, or for --holder.",
)
@click.option(
    "--holder",
    metavar="HOLDER",
    help="Show or reset the counts of this holder alone, named as the table shows it.",
)
@json_option
@policy_option
@state_option()
@click.option(
    "--store",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The store of all gateways, as quota-store.yaml but with the operator's user.",
)
def quota(
    top: int,
    reset: str | None,
    holder: str | None,
    as_json: bool,
    directory: Path,
    state: Path,
    store: Path | None,
) -> None:
    """Show what is used of each quota, and by whom; the largest user comes first.

    A number can be some units too high, because helpers reserve a few in advance. The
    announced size of a request, or the tokens that it may use, count from its start.
    What it did not use is given back at its end.

    A gateway that shares its counts with others shows the sums of all, of the holders
    that it can name: from the policy, from what it reserves, or --holder. The
    operator's settings, --store, list every holder, and reset.

    decisions.jsonl beside the policy directory keeps who reset a count. If that cannot
    be kept, nothing is reset.

    \b
    Example:
      sudo squidkeeper quota --reset uploads --holder user:agent
    """
    policy = _policy(directory)
    quotas = policy.quotas
    asked = _asked(reset, holder, quotas)
    shared = _shared(directory) if store is None else None
    if asked:
        _keep(directory, shared, asked)
    if shared:
        rows = _as_this_gateway(shared, state, policy, holder)
    elif store:
        rows = _of_all_gateways(store, asked)
    else:
        rows = _of_this_gateway(state, asked)
    left = [row for row in rows if not row["was_reset"]]
    if asked:
        was = [row for row in rows if row["was_reset"]]
        _say_reset(asked, [(quota, _of(quota, was)) for quota in quotas], top)
    elif holder is not None:
        left = [row for row in left if row["holder"] == holder]
    shown = [(quota, _of(quota, left)) for quota in quotas]
    if as_json:
        show_json([_as_object(count, used, top) for count, used in shown])
    else:
        _show(shown, top)


def _show(shown: Sequence[tuple[Quota, Sequence[Row]]], top: int) -> None:
    for counted, used in shown:
        click.echo("\n".join(_lines(counted, used, top)))
    if not shown:
        click.echo("The policy has no quotas.")


def _asked(
    reset: str | None, holder: str | None, quotas: Sequence[Quota]
) -> Reset | None:
    if reset is None:
        return None
    if reset not in {quota.name for quota in quotas}:
        raise click.BadParameter(
            f"the policy has no quota {reset!r}", param_hint="--reset"
        )
    return Reset(reset, holder)


def _shared(directory: Path) -> Path | None:
    from squidkeeper.serving.quotas.store_settings import quota_store_file

    file = quota_store_file(directory)
    return file if file.exists() else None


def _keep(directory: Path, shared: Path | None, asked: Reset) -> None:
    from squidkeeper.change.approvals.decisions import keep_reset

    if shared:
        raise click.ClickException(_ONLY_OPERATOR.format(file=shared))
    keep_reset(directory, asked.quota, asked.holder)


def _say_reset(
    asked: Reset, was: Sequence[tuple[Quota, Sequence[Row]]], top: int
) -> None:
    """Say what a reset did, apart from the table: on standard error."""
    from squidkeeper.policy.language.quotas import shown_amount

    if not any(used for _, used in was):
        who = (
            "anybody"
            if asked.holder is None
            else f"{asked.holder} (a holder is named as the table shows it)"
        )
        click.echo(
            f"Nothing to reset: quota {printable(asked.quota)} is not used by {printable(who)}.",
            err=True,
        )
    for quota, used in was:
        for row in used[:top]:
            amount = shown_amount(quota.unit, row["used"])
            click.echo(
                f"Reset {printable(quota.name)} of {printable(row['holder'])}: {amount} to zero.",
                err=True,
            )
        if len(used) > top:
            click.echo(
                f"Reset {printable(quota.name)} of {quantity(len(used) - top, 'more', 'more')}.",
                err=True,
            )


def _policy(directory: Path) -> Policy:
    from squidkeeper.policy.policy_store.loading import build_sources
    from squidkeeper.policy.policy_store.sources import read_sources

    try:
        return build_sources(read_sources(directory)).policy
    except PolicyError as error:
        remedy = "fix it, or name another policy by --policy DIR"
        raise click.ClickException(
            f"the policy does not load: {printable(str(error.faults[0]))}: {remedy}"
        ) from error


def _of_all_gateways(store: Path, reset: Reset | None) -> list[Row]:
    from squidkeeper.serving.quotas.store_settings import read_quota_store
    from squidkeeper.serving.quotas.valkey_counts import ValkeyCounts

    try:
        settings = read_quota_store(store)
        return [] if settings is None else _rows(ValkeyCounts(settings), reset)
    except CountsUnavailable as error:
        raise click.ClickException(
            f"the counts cannot be read: {printable(str(error))}"
        ) from error


def _as_this_gateway(
    file: Path, state: Path, policy: Policy, holder: str | None
) -> list[Row]:
    """Ask the store of all gateways as this one, whose user cannot list holders."""
    from squidkeeper.serving.quotas.counts import QuotaCount
    from squidkeeper.serving.quotas.named_holders import named_holders
    from squidkeeper.serving.quotas.store_settings import read_quota_store
    from squidkeeper.serving.quotas.valkey_counts import ValkeyCounts

    click.echo(_NAMED, err=True)
    here = _of_this_gateway(state, None)
    rows: list[Row] = []
    try:
        settings = read_quota_store(file)
        if settings is None:
            return here
        with closing(ValkeyCounts(settings)) as counts:
            for quota in policy.quotas:
                own = {row["holder"]: row["used"] for row in _of(quota, here)}
                for name in {*own, *named_holders(quota, policy), holder} - {None}:
                    count = QuotaCount.of(quota, name)
                    taken = counts.take(count, quota.limit, 0)
                    # the store does not see what is reserved here
                    reserved = own.get(name, 0) if quota.unit.is_tokens else 0
                    rows.append(_row(count, max(taken.used, reserved), taken.ends_in))
    except CountsUnavailable as error:
        raise click.ClickException(
            f"the counts cannot be read: {printable(str(error))}"
        ) from error
    return [row for row in rows if row["used"]]


def _of_this_gateway(state: Path, reset: Reset | None) -> list[Row]:
    from squidkeeper.base.places import BODIES_FOLDER
    from squidkeeper.base.squid_account import call_as_owner
    from squidkeeper.serving.quotas.local_counts import FOLDER

    bodies = state / BODIES_FOLDER
    try:
        rows: list[Row] = call_as_owner(state, lambda: _local_rows(state, reset))
        if (
            of_tokens := bodies / FOLDER
        ).exists():  # tokens and cost are counted there, by another account
            rows += call_as_owner(of_tokens, lambda: _local_rows(bodies, reset))
    except OSError as error:
        remedy = "name the state folder by --state DIR, or run this as root"
        raise click.ClickException(
            f"the counts cannot be read: {printable(str(error))}: {remedy}"
        ) from error
    return rows


def _local_rows(state: Path, reset: Reset | None) -> list[Row]:
    from squidkeeper.serving.quotas.local_counts import LocalCounts

    try:
        return _rows(LocalCounts(state), reset)
    except CountsUnavailable as error:
        raise OSError(str(error)) from error


def _rows(counts: LocalCounts | ValkeyCounts, reset: Reset | None) -> list[Row]:
    with closing(counts):
        uses = counts.uses()
        if reset is not None:
            counts.forget(reset.quota, reset.holder)
        return [
            _row(use.count, use.used, use.ends_in, was_reset=reset.holds_for(use.count))
            if reset
            else _row(use.count, use.used, use.ends_in)
            for use in uses
        ]


def _row(
    count: QuotaCount, used: int, ends_in: float, *, was_reset: bool = False
) -> Row:
    return {
        "quota": count.quota,
        "unit": str(count.unit),
        "every": str(count.window),
        "holder": count.holder,
        "used": used,
        "resets_in_seconds": max(0, round(ends_in)),
        "was_reset": was_reset,
    }


def _of(quota: Quota, rows: Sequence[Row]) -> list[Row]:
    asked = (quota.name, str(quota.unit), str(quota.window))
    found = [row for row in rows if (row["quota"], row["unit"], row["every"]) == asked]
    return sorted(found, key=lambda row: (-row["used"], row["holder"]))


def _as_object(quota: Quota, used: Sequence[Row], top: int) -> Row:
    keys = ("holder", "used", "resets_in_seconds")
    return {
        "quota": quota.name,
        "unit": str(quota.unit),
        "limit": quota.limit,
        "every": str(quota.window),
        "per": str(quota.per),
        "used": [{key: row[key] for key in keys} for row in used[:top]],
        "holders": len(used),
    }


def _lines(quota: Quota, used: Sequence[Row], top: int) -> Iterator[str]:
    from squidkeeper.policy.language.quotas import shown_amount

    yield f"{printable(quota.name)}: {quota.text}"
    for row in used[:top]:
        share = 100 * row["used"] // quota.limit
        resets = duration(row["resets_in_seconds"])
        yield f"  {share:>3} %  {printable(row['holder'])}  {shown_amount(quota.unit, row['used'])}, resets in {resets}"
    if len(used) > top:
        yield f"         and {quantity(len(used) - top, 'more', 'more')}"
    if not used:
        yield "         nothing is used"
