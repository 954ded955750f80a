"""`squidkeeper env`: the environment of a client."""

from pathlib import Path

import click

from squidkeeper.cli.client_options import (
    ClientOfGateway,
    client_options,
    read_root,
    read_settings,
    read_token,
    setting_options,
)
from squidkeeper.cli.helper_options import path_option
from squidkeeper.operate.client_kit.formats import (
    ClientEnvironment,
    EnvironmentForm,
    write_environment,
)

_HOLD_THE_ROOT = (EnvironmentForm.CLOUD_INIT, EnvironmentForm.DOCKERFILE)


@click.command()
@client_options
@setting_options
@click.option(
    "--session",
    metavar="NAME",
    help="A session that is active, in place of a client.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice([form.value for form in EnvironmentForm]),
    default=EnvironmentForm.SH.value,
    show_default=True,
    help="sh: lines to source. dotenv: for docker --env-file.",
)
@path_option(
    "--token-file",
    metavar="FILE",
    help="A file with the client's token; - for standard input.",
)
def env(
    found: ClientOfGateway,
    proxy: str | None,
    no_proxy: tuple[str, ...],
    session: str | None,
    form: str,
    ca: Path | None,
    token_file: Path | None,
    **paths: str,
) -> None:
    """Print the variables that send a client's programs through the gateway.

    The variables name files in the VM: the gateway's root, all roots, and Java's trust
    store. cloud-init and dockerfile write the first two. For other forms, put the root
    into the VM's trust store.

    --token-file puts the client's token into the proxy's URL. Otherwise the URL of a
    client that logs in has the word PASSWORD.

    \b
    Examples:
      squidkeeper env --client agents --token-file token
      squidkeeper env --client agents --format cloud-init > user-data
      squidkeeper env --session vm-7 --proxy http://10.20.0.1:3129
    """
    if session is not None:
        found = found.as_stored(session)
    settings = read_settings(
        found, proxy, no_proxy, read_token(found, token_file), **paths
    )
    wanted = EnvironmentForm(form)
    pem = read_root(ca or found.layout.ca_cert) if wanted in _HOLD_THE_ROOT else ""
    click.echo(
        write_environment(ClientEnvironment(found.client.name, settings, pem), wanted),
        nl=False,
    )
