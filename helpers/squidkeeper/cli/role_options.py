"""The session that `explain`, `brief` and `probe` assume: its role, and the values of
its variables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from squidkeeper.base.errors import PatternError
from squidkeeper.cli.options import combined

if TYPE_CHECKING:
    from squidkeeper.policy.language.model import Policy
    from squidkeeper.policy.language.roles import Session


def role_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that assume a session."""
    return combined(
        click.option(
            "--role",
            metavar="NAME",
            help="As a session of this role of the policy.",
        ),
        click.option(
            "--variable",
            "variables",
            metavar="NAME=VALUE",
            multiple=True,
            help="A value of a variable of the role. Give an option for each value.",
        ),
    )(command)


def assumed_session(
    policy: Policy, role: str | None, variables: tuple[str, ...]
) -> Session | None:
    """Make the session of these options; None where they are not given."""
    from squidkeeper.policy.language.roles import Session

    if role is None:
        if variables:
            raise click.UsageError("--variable is for --role")
        return None
    known = {one.name: one for one in policy.roles}
    if role not in known:
        has = ", ".join(known) or "none"
        raise click.BadParameter(
            f"{role!r} is not a role of the policy, which has {has}",
            param_hint="--role",
        )
    values: dict[str, list[str]] = {}
    for text in variables:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(
                f"{text!r} is not NAME=VALUE, expected one such as repo=acme/app",
                param_hint="--variable",
            )
        values.setdefault(name, []).append(value)
    try:
        return Session.assumed(role, known[role].check(values))
    except PatternError as error:
        raise click.BadParameter(str(error), param_hint="--variable") from error
