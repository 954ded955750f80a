"""The optional parts: which are installed, and how the rest is."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from squidkeeper.base.errors import ExtraMissing, InvalidExport, SealedTokenRefused
from squidkeeper.base.faults import FaultCode
from squidkeeper.policy import extras
from squidkeeper.policy.extras import EXTRAS, extra_problem, missing_extras, require
from squidkeeper.record.export.targets import make_target
from squidkeeper.serving.credentials import SecretStore
from squidkeeper.serving.credentials.sealed_tokens import SealedTokens
from squidkeeper.serving.credentials.sealing import SealingPrivateKey

from ..conftest import compiled_of

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let modules be missing."""

    def make(*missing: str) -> None:
        def find(module: str) -> ModuleSpec | None:
            return None if module in missing else ModuleSpec(module, None)

        monkeypatch.setattr(extras, "find_spec", find)

    return make


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_that_is_installed_is_no_problem(extra: str) -> None:
    assert extra_problem(extra) is None
    require(extra)


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    without: Callable[..., None],
) -> None:
    without("botocore", "httpx", "nacl", "opentelemetry", "s3fs", "valkey")
    with pytest.raises(ExtraMissing) as caught:
        require("oauth2")
    assert (
        str(caught.value)
        == "the extra 'oauth2' is not installed: run ./install.sh --extras oauth2"
    )


def test_the_command_keeps_the_extras_that_are_installed(
    without: Callable[..., None],
) -> None:
    without("httpx")
    problem = "the extra 'oauth2' is not installed: run ./install.sh --extras aws,oauth2,otlp,s3,sealed,valkey"
    assert extra_problem("oauth2") == problem


def test_an_entry_that_needs_a_missing_extra_is_a_warning(
    tmp_path: Path, without: Callable[..., None]
) -> None:
    policy = compiled_of(
        tmp_path,
        """
rules: [{name: api, action: allow, hosts: [api.example]}]
secrets:
  client: {file: client}
  token:
    oauth2: {token_url: "https://login.example/token", grant: client_credentials, client_id: a, client_secret: client}
  sealing: {file: sealing}
sealed_tokens: {keys: [sealing]}
""",
    ).source
    assert [*missing_extras(policy)] == []
    without("authlib", "nacl")
    faults = [*missing_extras(policy)]
    assert {fault.code for fault in faults} == {FaultCode.EXTRA_MISSING}
    # one for all of them
    command = (
        "is not installed: run ./install.sh --extras aws,oauth2,otlp,s3,sealed,valkey"
    )
    assert [fault.message for fault in faults] == [
        f"secret 'token': the extra 'oauth2' {command}",
        f"secret 'sealing', a key of sealed tokens: the extra 'sealed' {command}",
    ]


def test_no_token_is_blamed_where_the_extra_is_missing(
    tmp_path: Path, without: Callable[..., None]
) -> None:
    (tmp_path / "sealing").write_text(SealingPrivateKey.new().reveal())
    (tmp_path / "sealing").chmod(0o600)
    without("nacl")
    policy = compiled_of(
        tmp_path,
        "secrets: {sealing: {file: sealing}}\nsealed_tokens: {keys: [sealing]}\n",
    )
    tokens = SealedTokens(
        SecretStore(policy.source.secrets, {}), policy.source.sealing_keys
    )
    with pytest.raises(
        SealedTokenRefused,
        match="this gateway opens none, as the extra 'sealed' is not installed: run",
    ):
        tokens.open("sealed")


def test_the_extras_of_the_program_of_pip_and_of_the_installer_are_the_same() -> None:
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    [offered] = re.findall(
        r"local name='\((\S+)\)'", (REPOSITORY / "install.sh").read_text()
    )
    assert [*EXTRAS] == sorted(declared.keys() - {"dev"}) == offered.split("|")


def test_an_export_needs_the_extra_of_its_format(without: Callable[..., None]) -> None:
    without("opentelemetry")
    with pytest.raises(
        InvalidExport,
        match=r"^format otlp: the extra 'otlp' is not installed: run \./install",
    ):
        make_target(
            format_name="otlp",
            to="https://logs.example/",
            full_urls=False,
            ca=None,
            headers=None,
        )
