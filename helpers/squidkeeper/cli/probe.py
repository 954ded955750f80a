"""`squidkeeper probe`: one file that runs in the VM of a client, and tells what works
there.
"""

from pathlib import Path

import click

from squidkeeper.cli.client_options import (
    ClientOfGateway,
    client_options,
    read_root,
    read_settings,
    setting_options,
)
from squidkeeper.cli.role_options import role_options


@click.command()
@client_options
@role_options
@setting_options
@click.option(
    "--format",
    "form",
    type=click.Choice(["python", "sh"]),
    default="python",
    show_default=True,
    help="python: 3.8 or newer. sh: a POSIX shell.",
)
@click.option(
    "--allowed",
    multiple=True,
    metavar="URL",
    help="A URL that the policy allows. [default: from its rules]",
)
@click.option(
    "--denied",
    multiple=True,
    metavar="URL",
    help="A URL that the policy denies. [default: from its rules]",
)
def probe(
    found: ClientOfGateway,
    role: str | None,
    variables: tuple[str, ...],
    proxy: str | None,
    no_proxy: tuple[str, ...],
    ca: Path | None,
    form: str,
    allowed: tuple[str, ...],
    denied: tuple[str, ...],
    **paths: str,
) -> None:
    """Print a file that checks a client's programs from inside its VM.

    The file tries curl, wget, Python, requests, Node, git, pip, npm, uv, Go, Java and
    apt. Each program requests a URL that the policy allows and one that it denies. The
    file also tests name resolution and direct connections, and says what to fix.

    \b
    Example:
      squidkeeper probe --client agents > probe.py
    In the VM:
      python3 probe.py
    """
    from squidkeeper.operate.client_kit.client import (
        allowed_url,
        denied_url,
        parse_probed_url,
    )
    from squidkeeper.operate.client_kit.probe import ClientProbe, ProbeForm, write_probe

    found = found.as_session(role, variables)
    settings = read_settings(found, proxy, no_proxy, **paths)
    given = tuple(map(parse_probed_url, allowed)), tuple(map(parse_probed_url, denied))
    of_policy = [
        choose(found.policy, found.client, found.now)
        for choose in (allowed_url, denied_url)
    ]
    tried = [
        urls or ((url,) if url else ())
        for urls, url in zip(given, of_policy, strict=True)
    ]
    pem = read_root(ca or found.layout.ca_cert)
    click.echo(
        write_probe(
            ClientProbe(found.client.name, settings, pem, *tried), ProbeForm(form)
        ),
        nl=False,
    )
