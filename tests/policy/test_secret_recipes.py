"""The recipes of policy/SECRETS.md: its policies load, and its programs give the value
by what the real programs print.

The programs of the services are stand-ins. Each knows the only arguments and
environment that it accepts.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from squidkeeper.policy.language.model import Policy
from squidkeeper.policy.language.secret_sources import CommandSource, FileSource
from squidkeeper.services.fetching import command
from squidkeeper.services.fetching.command import run_command

from ..conftest import compiled_of

SECRETS = Path(__file__).parents[2] / "policy/SECRETS.md"
ETC = "/etc/squidkeeper/"
VALUE = "ghs_value-of-the-secret"


@dataclass(frozen=True, slots=True)
class StandIn:
    """A program that accepts one list of arguments, needs variables (as patterns of
    `case`), and prints something.
    """

    arguments: str
    prints: str
    needs: dict[str, str] = field(default_factory=dict)

    @property
    def script(self) -> str:
        words, text = shlex.quote(self.arguments), shlex.quote(self.prints)
        checks = [
            f'case "${{{name}-}}" in {value}) ;; *) exit 9 ;; esac'
            for name, value in self.needs.items()
        ]
        return "\n".join(
            [
                f'if [ "$*" = {words} ]; then',
                *checks,
                f"printf %s {text}",
                "exit",
                "fi",
                "",
            ]
        )


VAULT = (
    StandIn(
        f"write -field=token auth/approle/login role_id=squidkeeper secret_id=@{ETC}vault-secret-id",
        "hvs.token",
        {"VAULT_ADDR": "https://vault.example:8200"},
    ),
    StandIn(
        "kv get -mount=secret -field=token agents/github",
        VALUE,
        {"VAULT_ADDR": "https://vault.example:8200", "VAULT_TOKEN": "hvs.token"},
    ),
)
STAND_INS: dict[str, tuple[str, tuple[StandIn, ...]]] = {
    "Vault or OpenBao": ("vault", VAULT),
    "AWS Secrets Manager": (
        "aws",
        (
            StandIn(
                "secretsmanager get-secret-value --secret-id agents/github --query SecretString --output text",
                f"{VALUE}\n",
                {"AWS_REGION": "eu-central-1"},
            ),
        ),
    ),
    "Google Cloud Secret Manager": (
        "gcloud",
        (
            StandIn(
                "secrets versions access latest --secret=github-token",
                VALUE,
                {"CLOUDSDK_CORE_PROJECT": "my-project", "CLOUDSDK_CONFIG": "/tmp/*"},
            ),
        ),
    ),
    "Azure Key Vault": (
        "az",
        (
            StandIn(
                "login --identity --output none", "", {"AZURE_CONFIG_DIR": "/tmp/*"}
            ),
            StandIn(
                "keyvault secret show --vault-name agents-vault --name github-token --query value --output tsv",
                f"{VALUE}\n",
                {"AZURE_CONFIG_DIR": "/tmp/*"},
            ),
        ),
    ),
    "1Password": (
        "op",
        (
            StandIn(
                "read --cache=false op://agents/github/token",
                f"{VALUE}\n",
                {"OP_SERVICE_ACCOUNT_TOKEN": "ops_first", "HOME": "/tmp/*"},
            ),
        ),
    ),
    "SOPS": (
        "sops",
        (
            StandIn(
                f'decrypt --extract ["github"]["token"] {ETC}secrets.enc.yaml',
                VALUE,
                {"SOPS_AGE_KEY_FILE": f"{ETC}age.key"},
            ),
        ),
    ),
}


def section(title: str) -> str:
    [text] = re.findall(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)",
        SECRETS.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    return str(text)


def policy_of(folder: Path, title: str) -> Policy:
    [text] = re.findall(
        r"^```yaml\n(version: 1\n.*?)^```", section(title), re.MULTILINE | re.DOTALL
    )
    return compiled_of(folder, text.removeprefix("version: 1\n")).source


def program_of(folder: Path, title: str, replaced: dict[str, str]) -> Path:
    """Put the program of a recipe into a folder of commands, with its files in the
    test's folder.
    """
    pattern = rf"^`{ETC}commands/([\w-]+)`:\n\n```sh\n(#!/bin/sh\n.*?)^```"
    [(name, text)] = re.findall(pattern, section(title), re.MULTILINE | re.DOTALL)
    for old, new in replaced.items():
        text = text.replace(old, new)
    program = folder / f"commands/{name}"
    program.parent.mkdir(exist_ok=True)
    program.write_text(text)
    program.chmod(0o755)
    return program


def fetched(policy: Policy, folder: Path) -> str:
    """Run the command of the one secret as `squidkeeper secrets` does."""
    [secret] = policy.secrets.values()
    assert isinstance(secret.source, CommandSource)
    return asyncio.run(run_command(secret.source, folder / "commands", 0)).value


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins, first on the PATH of commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(command, "_PATH", f"{folder}:/usr/bin:/bin")
    return folder


def put_stand_in(
    path: Path, name: str, cases: tuple[StandIn, ...], replaced: dict[str, str]
) -> None:
    text = "#!/bin/sh\n" + "".join(case.script for case in cases) + "exit 8\n"
    for old, new in replaced.items():
        text = text.replace(old, new)
    (path / name).write_text(text)
    (path / name).chmod(0o755)


@pytest.mark.system
@pytest.mark.parametrize("title", STAND_INS)
def test_a_command_of_a_recipe_gives_the_value(
    title: str, path: Path, tmp_path: Path
) -> None:
    etc = {ETC: f"{tmp_path}/"}
    (tmp_path / "op-token").write_text("ops_first\n")
    name, cases = STAND_INS[title]
    put_stand_in(path, name, cases, etc)
    program_of(tmp_path, title, etc)
    assert fetched(policy_of(tmp_path, title), tmp_path) == VALUE


@pytest.mark.system
def test_openbao_is_vault_by_other_names(path: Path, tmp_path: Path) -> None:
    names = {
        ETC: f"{tmp_path}/",
        "vault kv": "bao kv",
        "vault write": "bao write",
        "VAULT_": "BAO_",
    }
    put_stand_in(path, "bao", VAULT, names)
    program_of(tmp_path, "Vault or OpenBao", names)
    assert fetched(policy_of(tmp_path, "Vault or OpenBao"), tmp_path) == VALUE


@pytest.mark.system
def test_a_credential_of_systemd_is_read_from_the_folder_of_the_service(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is as systemd makes it: for the service alone."""
    folder = tmp_path / "credentials"
    folder.mkdir(0o700)
    (folder / "github-token").write_text(VALUE)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    program_of(tmp_path, "systemd credentials", {})
    assert fetched(policy_of(tmp_path, "systemd credentials"), tmp_path) == VALUE


def test_a_kubernetes_volume_is_a_file(tmp_path: Path) -> None:
    """tests/e2e/test_secret_rotation.py swaps the links under a running gateway."""
    [secret] = policy_of(tmp_path, "Kubernetes secret volumes").secrets.values()
    assert secret.source == FileSource(Path("/etc/agent-secrets/github-token"))


def test_every_recipe_is_tried() -> None:
    headings = re.findall(r"^## (.*)$", SECRETS.read_text(), re.MULTILINE)
    assert {*headings} == {
        *STAND_INS,
        "Kubernetes secret volumes",
        "systemd credentials",
        "How a command is used",
    }
