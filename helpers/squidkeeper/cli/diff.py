"""`squidkeeper diff`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from squidkeeper.cli.arguments import policy_in_force, policy_named
from squidkeeper.cli.helper_options import state_option
from squidkeeper.cli.options import json_option
from squidkeeper.cli.output import progress, show_text

if TYPE_CHECKING:
    from squidkeeper.change.difference.groups import RequestDifference
    from squidkeeper.policy.engine import CompiledPolicy

_DIFFERS = 1


@click.command()
@click.option(
    "--within",
    "ceiling",
    metavar="CEILING",
    help="Report only what NEW does, or may do, beyond CEILING.",
)
@json_option
@click.option(
    "--markdown", "as_markdown", is_flag=True, help="Print Markdown for a pull request."
)
@state_option()
@click.argument("policies", metavar="[OLD] NEW", nargs=-1, required=True)
def diff(
    ceiling: str | None,
    as_json: bool,
    as_markdown: bool,
    state: Path,
    policies: tuple[str, ...],
) -> None:
    """Compare what two policies mean: which requests are opened, closed or changed.

    OLD and NEW are folders or stored revisions. Without OLD: the policy in force. Each
    difference comes with a request that shows it, as arguments of `squidkeeper
    explain`. What cannot be decided is unproven. Names, order, files, reasons, tests
    and owners of rules make no difference.

    The policies are compared as of now, and for each later combination of rules, grants
    and tokens (`expires`, `when`). A NEW without grants beside its folder gets those of
    OLD, but not with --within.

    \b
    Examples:
      squidkeeper diff /etc/squidkeeper/policy ./draft
      squidkeeper diff --within ./ceiling ./draft

    \b
    Exit status:
      0  The policies mean the same, or NEW is within the ceiling.
      1  They differ, or something is unproven.
      2  A policy does not load.
    """
    from squidkeeper.change.difference import report
    from squidkeeper.cli import diff_output

    if as_json and as_markdown:
        raise click.UsageError("--json and --markdown are two forms: give one of them")
    of_old, of_new = _pair(ceiling, policies)
    old = policy_named(of_old, state) if of_old else policy_in_force(state)
    new = policy_named(of_new, state, lender=old if ceiling is None else None)
    compiled, now = (old.compiled, new.compiled), datetime.now(UTC)
    with progress("comparing the policies"):
        found = report.report(
            compiled, (old.name, new.name), now, is_ceiling=ceiling is not None
        )
        confirm(compiled, found.differences)
    if as_json or as_markdown:
        click.echo(
            diff_output.as_json(found) if as_json else diff_output.as_markdown(found)
        )
    else:
        show_text(diff_output.as_text(found))
    raise SystemExit(0 if found.same else _DIFFERS)


def _pair(ceiling: str | None, policies: tuple[str, ...]) -> tuple[str | None, str]:
    if len(policies) == 1:
        return ceiling, policies[0]
    if ceiling is None and len(policies) == 2:
        return policies[0], policies[1]
    raise click.UsageError("expected [OLD] NEW, or --within CEILING NEW")


def confirm(
    policies: tuple[CompiledPolicy, CompiledPolicy],
    differences: tuple[RequestDifference, ...],
) -> None:
    """Check each example before it is printed: `explain` shows what the difference
    claims.
    """
    from squidkeeper.policy.engine.explain import explain
    from squidkeeper.policy.protocol.request import request_to

    for difference in differences:
        if difference.example is None:
            continue
        request = request_to(
            difference.example.method,
            difference.example.target,
            difference.example.client,
            difference.example.user,
        )
        for policy, consequence in zip(
            policies, (difference.before, difference.after), strict=True
        ):
            decision = explain(policy, request, difference.example.at).decision
            if (decision.rule, decision.allowed and not decision.asks) != (
                consequence.rule,
                consequence.allowed,
            ):
                raise AssertionError(
                    f"explain does not confirm {difference.example}: please report it"
                )
