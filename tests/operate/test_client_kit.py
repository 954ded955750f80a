"""What a client needs: each form of its environment is valid for its consumer, the
probe reads every outcome, the brief shows what is this client's and nothing else.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from squidkeeper.base.errors import InvalidSetting
from squidkeeper.base.layout import Layout
from squidkeeper.cli import main
from squidkeeper.operate.client_kit import probe_script
from squidkeeper.operate.client_kit.brief import write_brief
from squidkeeper.operate.client_kit.client import (
    KitClient,
    allowed_url,
    client_of,
    denied_url,
)
from squidkeeper.operate.client_kit.environment import (
    VARIABLES,
    ClientSettings,
    parse_proxy,
    variables,
)
from squidkeeper.operate.client_kit.formats import (
    ClientEnvironment,
    EnvironmentForm,
    write_environment,
)
from squidkeeper.operate.client_kit.probe import ClientProbe, ProbeForm, write_probe
from squidkeeper.operate.client_kit.probe_table import (
    PROGRAMS,
    PROXY_VARIABLES,
    ProbedProgram,
)
from squidkeeper.policy.language.model import Token
from squidkeeper.serving.certificates.authority import make_ca

from ..conftest import compiled_of, write_policy

NOW = datetime(2026, 11, 26, tzinfo=UTC)
ROOT = make_ca(datetime.now(UTC)).certificate.decode()
HOSTILE = """it's "a" $(touch /x) `b` \\ # {} ${PATH}"""
PROXY = "http://192.168.137.1:3129"


def settings(proxy: str | None = PROXY, **given: Any) -> ClientSettings:
    return ClientSettings(proxy=parse_proxy(proxy) if proxy else None, **given)


def written(
    form: EnvironmentForm, client: str = "agents", **given: Any
) -> tuple[str, dict[str, str]]:
    """An environment in a form, and the variables that it has to hold."""
    wanted = settings(**given)
    return write_environment(ClientEnvironment(client, wanted, ROOT), form), variables(
        wanted
    )


# --- the environment ------------------------------------------------------------------


def test_both_cases_of_the_proxy_are_set_and_the_proxy_itself_is_reached_directly() -> (
    None
):
    found = variables(settings(direct=("registry.internal",)))
    assert {
        found[name]
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    } == {PROXY}
    assert (
        found["no_proxy"]
        == found["NO_PROXY"]
        == "localhost,127.0.0.1,::1,192.168.137.1,registry.internal"
    )


def test_a_proxy_with_tls_is_for_https_alone() -> None:
    found = variables(settings("https://192.168.137.1:3129", user="ann"))
    with_tls = {
        name
        for name, value in found.items()
        if value == "https://ann:PASSWORD@192.168.137.1:3129"
    }
    without = {
        name
        for name, value in found.items()
        if value == "http://ann:PASSWORD@192.168.137.1:3129"
    }
    assert with_tls == {"https_proxy", "HTTPS_PROXY", "npm_config_https_proxy"}
    assert without == {"http_proxy", "HTTP_PROXY", "npm_config_proxy"}
    config = yaml.safe_load(
        written(EnvironmentForm.CLOUD_INIT, proxy="https://192.168.137.1:3129")[0]
    )
    assert config["apt"] == {
        "http_proxy": PROXY,
        "https_proxy": "https://192.168.137.1:3129",
    }


@pytest.mark.parametrize(
    ("bundle", "command"),
    [
        ("/etc/ssl/certs/ca-certificates.crt", "update-ca-certificates"),
        ("/etc/pki/tls/certs/ca-bundle.crt", "update-ca-trust"),
    ],
)
def test_the_comment_names_the_command_that_makes_the_bundle(
    bundle: str, command: str
) -> None:
    text, _ = written(EnvironmentForm.SH, bundle_path=bundle)
    assert (
        f"# {bundle}: the public roots and the gateway's ({command} makes it)."
        in text.splitlines()
    )


def test_a_variable_that_replaces_the_roots_names_the_bundle_and_one_that_adds_names_the_root() -> (
    None
):
    found = variables(
        settings(ca_path="/certificates/ca.crt", bundle_path="/certificates/bundle.crt")
    )
    assert {
        name for name, value in found.items() if value == "/certificates/ca.crt"
    } == {
        "NODE_EXTRA_CA_CERTS",
        "DENO_CERT",
    }
    replacing = {
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "PIP_CERT",
    }
    assert replacing < {
        name for name, value in found.items() if value == "/certificates/bundle.crt"
    }


def test_java_gets_the_proxy_and_its_trust_store() -> None:
    options = variables(settings("http://[fd00::1]:3129"))["JAVA_TOOL_OPTIONS"].split()
    assert {
        "-Dhttps.proxyHost=fd00::1",
        "-Dhttps.proxyPort=3129",
        "-Dhttp.proxyHost=fd00::1",
    } < set(options)
    assert "-Djavax.net.ssl.trustStore=/etc/ssl/certs/java/cacerts" in options
    assert "-Dhttp.nonProxyHosts=localhost|127.0.0.1|[::1]|[fd00::1]" in options


def test_without_a_proxy_the_variables_of_the_roots_alone_are_left_in_every_form() -> (
    None
):
    found, explicit = variables(settings(None)), variables(settings())
    assert set(found) == {
        *(
            "SSL_CERT_FILE",
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "GIT_SSL_CAINFO",
            "PIP_CERT",
            "UV_SYSTEM_CERTS",
        ),
        *(
            "NODE_EXTRA_CA_CERTS",
            "npm_config_cafile",
            "DENO_CERT",
            "CARGO_HTTP_CAINFO",
            "AWS_CA_BUNDLE",
        ),
        "JAVA_TOOL_OPTIONS",
    }
    assert {name for name, value in found.items() if value != explicit[name]} == {
        "JAVA_TOOL_OPTIONS"
    }
    assert explicit["JAVA_TOOL_OPTIONS"].endswith(found["JAVA_TOOL_OPTIONS"])
    for form in EnvironmentForm:
        text, _ = written(form, proxy=None)
        assert "proxy" not in text.lower()


def test_a_proxy_user_gets_a_placeholder_whatever_the_name_holds() -> None:
    found = variables(settings(user="ci bot@x:/"))
    assert (
        found["HTTPS_PROXY"] == "http://ci%20bot%40x%3A%2F:PASSWORD@192.168.137.1:3129"
    )


def test_a_token_stands_in_the_proxys_url_and_nowhere_else() -> None:
    token = "sqk_of-this-test"
    text, found = written(EnvironmentForm.SH, user="ci", token=token)
    assert (
        found["HTTPS_PROXY"]
        == found["http_proxy"]
        == f"http://ci:{token}@192.168.137.1:3129"
    )
    assert found["GIT_HTTP_PROXY_AUTHMETHOD"] == "basic"
    assert "Replace" not in text
    assert token not in repr(settings(user="ci", token=token))
    assert "GIT_HTTP_PROXY_AUTHMETHOD" not in variables(settings())


def test_env_takes_a_token_of_the_client_from_a_file_or_standard_input(
    tmp_path: Path,
) -> None:
    old = "{sha256: " + Token.of("old").sha256 + ", expires: 2020-01-01T00:00:00Z}"
    text = f"clients: {{ci: {{token_sha256: [{Token.of('good').sha256}, {old}]}}}}"
    folder, file = write_policy(tmp_path / "policy", text), tmp_path / "token"
    command = ["env", "--client", "ci", "--policy", str(folder), "--proxy", PROXY]
    for given, problem in (
        ("good", ""),
        ("old", "has expired"),
        ("other", "is no token of the client ci"),
    ):
        file.write_text(f"{given}\n")
        by_file = CliRunner().invoke(main, [*command, "--token-file", str(file)])
        by_input = CliRunner().invoke(
            main, [*command, "--token-file", "-"], input=f"{given}\n"
        )
        assert by_file.output == by_input.output
        assert problem in by_file.output
        assert ("http://ci:good@" in by_file.output) == (not problem)
    assert "http://ci:PASSWORD@" in CliRunner().invoke(main, command).output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"proxy": "192.168.137.1:3129"}, "expected http://HOST:PORT"),
        ({"proxy": "http://192.168.137.1"}, "expected http://HOST:PORT"),
        ({"proxy": "socks5://192.168.137.1:3129"}, "expected http://HOST:PORT"),
        ({"proxy": "http://u:hidden@192.168.137.1:3129"}, "without a user"),
        ({"proxy": "http://a$(x):3129"}, "expected http://HOST:PORT"),
        ({"ca_path": "/etc/my root.crt"}, "expected an absolute path"),
        ({"ca_path": "ca.crt"}, "expected an absolute path"),
        ({"bundle_path": "/a'b"}, "expected an absolute path"),
        ({"java_store_path": "/a\n"}, "expected an absolute path"),
        ({"direct": ("a b",)}, "expected a name"),
        ({"direct": ("a,$b",)}, "expected a name"),
    ],
)
def test_what_a_form_could_read_differently_is_refused(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidSetting, match=message) as raised:
        settings(**given)
    assert "hidden" not in str(raised.value)


# --- its forms ------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("user", [None, HOSTILE])
def test_a_shell_that_sources_the_sh_form_has_the_variables(
    shell: str, user: str | None, tmp_path: Path
) -> None:
    text, wanted = written(EnvironmentForm.SH, client=HOSTILE, user=user)
    (tmp_path / "env.sh").write_text(text)
    command = [shell, "-euc", '. "$0"; exec /usr/bin/env -0', str(tmp_path / "env.sh")]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found = dict(pair.split("=", 1) for pair in done.stdout.split("\0") if pair)
    assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("user", [None, HOSTILE])
def test_the_dotenv_form_holds_the_variables_by_the_rules_of_docker_and_of_compose(
    user: str | None,
) -> None:
    text, wanted = written(EnvironmentForm.DOTENV, client=HOSTILE, user=user)
    lines = [
        line for line in text.splitlines() if line.strip() and not line.startswith("#")
    ]
    # docker: all after the first =, as it is
    assert dict(line.split("=", 1) for line in lines) == wanted
    for value in wanted.values():  # compose and systemd expand and unquote these
        assert not re.search(r"[$'\"\\`]|\s#|^\s|\s$", value)


def test_the_json_form_is_one_object() -> None:
    text, wanted = written(EnvironmentForm.JSON, client=HOSTILE, user=HOSTILE)
    assert json.loads(text) == wanted


def test_the_cloud_init_form_puts_root_and_variables_into_the_vm(
    tmp_path: Path,
) -> None:
    text, wanted = written(EnvironmentForm.CLOUD_INIT, client=HOSTILE, user=HOSTILE)
    assert text.startswith("#cloud-config\n")
    config = yaml.safe_load(text)
    files = {file["path"]: file for file in config["write_files"]}
    assert files["/etc/squidkeeper/ca.crt"]["content"] == ROOT
    assert config["ca_certs"] == {"trusted": [ROOT]}
    assert config["apt"] == {
        "http_proxy": wanted["http_proxy"],
        "https_proxy": wanted["https_proxy"],
    }
    assert (
        files["/etc/profile.d/squidkeeper.sh"]["content"]
        == written(EnvironmentForm.SH, HOSTILE, user=HOSTILE)[0]
    )
    assert files["/etc/environment"]["append"] is True
    assert (
        dict(
            line.split("=", 1)
            for line in files["/etc/environment"]["content"].splitlines()
        )
        == wanted
    )
    for file in files.values():  # the schema of cloud-init's module Write Files
        assert set(file) <= {
            "path",
            "content",
            "permissions",
            "append",
            "encoding",
            "owner",
            "source",
            "defer",
        }
        assert isinstance(file.get("permissions", ""), str)


def dockerfile(text: str) -> dict[str, str]:
    """The instructions of a Dockerfile, lines that continue joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return dict(
        line.split(" ", 1) for line in lines.replace("\\\n", " ").splitlines() if line
    )


def test_the_dockerfile_form_sets_the_variables() -> None:
    text, wanted = written(EnvironmentForm.DOCKERFILE, client=HOSTILE, user=HOSTILE)
    # a directive of the builder
    assert not re.match(r"#\s*(syntax|escape|check)\s*=", text)
    pairs = dict(pair.split("=", 1) for pair in shlex.split(dockerfile(text)["ENV"]))
    assert pairs == wanted
    assert "$" not in dockerfile(text)["ENV"]


@pytest.mark.system
@pytest.mark.parametrize("has_package", [True, False])
def test_the_dockerfile_form_writes_the_root_with_and_without_ca_certificates(
    has_package: bool, tmp_path: Path
) -> None:
    ca, bundle = tmp_path / "kit/ca.crt", tmp_path / "certs/bundle.crt"
    text, _ = written(
        EnvironmentForm.DOCKERFILE, ca_path=str(ca), bundle_path=str(bundle)
    )
    command = (
        dockerfile(text)["RUN"]
        .replace("/usr/local/share", f"{tmp_path}/share")
        .replace("/etc/pki", f"{tmp_path}/pki")
    )
    (tmp_path / "share").mkdir()
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("mkdir", "cp", "cat"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    if has_package:
        update = tools / "update-ca-certificates"
        update.write_text(
            f"#!/bin/sh\n{{ echo public; cat {tmp_path}/share/ca-certificates/*.crt; }} > {bundle}\n"
        )
        update.chmod(0o755)
    subprocess.run(["/bin/sh", "-ec", command], env={"PATH": str(tools)}, check=True)
    assert (
        ca.read_text()
        == (tmp_path / "share/ca-certificates/squidkeeper.crt").read_text()
        == ROOT
    )
    assert bundle.read_text() == (f"public\n{ROOT}" if has_package else ROOT)


# --- the probe ------------------------------------------------------------------------


def probe(
    form: ProbeForm,
    folder: Path,
    allowed: str = "https://ok.example/",
    denied: str = "https://no.example/",
    proxy: str | None = PROXY,
) -> Path:
    """A probe of an environment whose files are in the folder."""
    ca, bundle = folder / "ca.crt", folder / "bundle.crt"
    wanted = settings(proxy, ca_path=str(ca), bundle_path=str(bundle))
    file = folder / f"probe.{form}"
    file.write_text(
        write_probe(ClientProbe(HOSTILE, wanted, ROOT, (allowed,), (denied,)), form)
    )
    return file


def runner(form: ProbeForm) -> str:
    return sys.executable if form is ProbeForm.PYTHON else "/bin/sh"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with what the probe in shell needs, and no program that it tries."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in (
        "sh",
        "grep",
        "sed",
        "head",
        "tail",
        "cut",
        "mktemp",
        "mkdir",
        "rm",
        "tee",
        "cat",
        "timeout",
    ):
        (folder / name).symlink_to(shutil.which(name) or "/nowhere")
    return folder


def run_probe(
    form: ProbeForm,
    folder: Path,
    tools: Path,
    proxy: str | None = PROXY,
    **environment: str,
) -> tuple[int, str]:
    options = (
        ["--direct", "127.0.0.1:9", "--resolver", "127.0.0.1"]
        if form is ProbeForm.PYTHON
        else []
    )
    done = subprocess.run(
        [runner(form), str(probe(form, folder, proxy=proxy)), *options],
        env={"PATH": str(tools), "DIRECT": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_the_python_form_is_python_3_8(tmp_path: Path) -> None:
    ast.parse(probe(ProbeForm.PYTHON, tmp_path).read_text(), feature_version=(3, 8))


@pytest.mark.system
def test_the_shell_form_passes_shellcheck(tmp_path: Path) -> None:
    command = [
        "shellcheck",
        "--shell=sh",
        "--severity=warning",
        str(probe(ProbeForm.SH, tmp_path)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


PAGE = "<pre>\nDENIED by the policy of this gateway.\n\nRule: no-push\nReason: Read-only.\n</pre>"
PROBLEM = '{"type":"about:blank","status":403,"rule":"no-push","retryable":false}'
TEXT = "Denied by policy\nRule: no-push\nReason: Read-only.\n"
GONE = "<html><h1>Not found</h1> see rule: 7</html>"
# what a program printed and its exit status → the result, and a part of its line or of
# what to fix
OUTCOMES = [
    ("curl", 0, "status=200\nhello", "allowed", "(status 200)"),
    ("curl", 0, f"status=404\n{GONE}", "allowed", "(status 404)"),
    ("curl", 0, f"status=403\n{PAGE}", "denied", "Rule: no-push)"),
    ("curl", 0, f"status=403\n{PROBLEM}", "denied", "no-push"),
    ("curl", 0, f"status=403\n{TEXT}", "denied", "Rule: no-push)"),
    (
        "curl",
        0,
        "status=403\n<pre>\nRule: <xmp>no-push</xmp>\n</pre>",
        "denied",
        "Rule: no-push)",
    ),
    ("curl", 0, "status=403\nforbidden", "denied", "does not show the page"),
    ("curl", 0, "status=503\n<html>", "failed", "after the policy"),
    (
        "curl",
        0,
        "status=502\nFAILED\n\nReason: The name has no address.\nRetry: no",
        "failed",
        "has no address.)",
    ),
    ("curl", 0, "status=407\n<pre>", "broken", "put USER:PASSWORD@"),
    (
        "curl",
        56,
        "curl: (56) CONNECT tunnel failed, response 407",
        "broken",
        "put USER:PASSWORD@",
    ),
    (
        "curl",
        56,
        "status=000\ncurl: (56) CONNECT tunnel failed, response 403",
        "denied",
        "does not show the page",
    ),
    (
        "curl",
        60,
        "curl: (60) SSL certificate problem: unable to get local issuer",
        "broken",
        "export CURL_CA_BUNDLE=",
    ),
    (
        "curl",
        35,
        "curl: (35) TLS connect error: wrong version number",
        "broken",
        f"http_proxy={PROXY}",
    ),
    (
        "curl",
        6,
        "status=000\ncurl: (6) Could not resolve host: ok.example",
        "broken",
        f"http_proxy={PROXY}",
    ),
    (
        "curl",
        7,
        "curl: (7) Failed to connect: Connection refused",
        "broken",
        f"check that {PROXY}",
    ),
    (
        "curl",
        28,
        "curl: (28) Connection timed out after 4000 ms",
        "broken",
        "no answer in time",
    ),
    (
        "curl",
        7,
        "curl: (7) Failed to connect to 192.168.137.1: Could not connect to server",
        "broken",
        "check that",
    ),
    ("curl", 99, "\nsomething else\n\n", "broken", "something else"),
    (
        "python3",
        1,
        "SSLError: Missing Authority Key Identifier",
        "broken",
        "--certificates squidkeeper",
    ),
    (
        "python3",
        1,
        "<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] CA cert does not include key usage extension (_ssl.c:1029)>",
        "broken",
        "sudo ./install.sh --ca-dir ca makes a new CA",
    ),
    ("python3", 1, "ModuleNotFoundError: No module named 'requests'", "", ""),
    (
        "node",
        1,
        "TypeError: fetch failed EAI_AGAIN getaddrinfo EAI_AGAIN ok.example",
        "broken",
        "HTTPS_PROXY=",
    ),
    (
        "node",
        1,
        "TypeError: fetch failed SELF_SIGNED_CERT_IN_CHAIN",
        "broken",
        "export NODE_EXTRA_CA_CERTS=",
    ),
    (
        "git",
        128,
        "fatal: unable to access 'x': The requested URL returned error: 403",
        "denied",
        "does not show",
    ),
    (
        "git",
        128,
        "remote: Rule: no-push\nfatal: The requested URL returned error: 403",
        "denied",
        "Rule: no-push)",
    ),
    ("git", 128, "fatal: repository 'https://ok.example/' not found", "allowed", ""),
    (
        "pip3",
        1,
        'https://x:443 "GET /p/ HTTP/1.1" 403 476\nERROR: No matching distribution found',
        "denied",
        "",
    ),
    (
        "pip3",
        1,
        "ERROR: No matching distribution found for squidkeeper-probe",
        "allowed",
        "",
    ),
    (
        "pip3",
        1,
        "NewConnectionError: Connection refused\n  File pip/_internal/resolution/resolvelib/resolver.py",
        "broken",
        f"check that {PROXY}",
    ),
    ("npm", 1, "npm error code E403\nnpm error 403 403 Forbidden", "denied", ""),
    (
        "npm",
        1,
        "npm error code E404\nnpm error 404 Not Found",
        "allowed",
        "(status 404)",
    ),
    ("uv", 1, "hint: An index (x) returned a 403 Forbidden error.", "denied", ""),
    (
        "uv",
        2,
        "cause: invalid peer certificate: UnknownIssuer",
        "broken",
        "export SSL_CERT_FILE=",
    ),
    ("go", 1, "go: reading https://x/@v/v1.info: 403 Forbidden", "denied", ""),
    (
        "go",
        1,
        "go: reading https://x/@v/v1.info: 404 Not Found",
        "allowed",
        "(status 404)",
    ),
    (
        "go",
        1,
        'go: Get "x": dial tcp: lookup ok.example: no such host',
        "broken",
        "HTTPS_PROXY=",
    ),
    (
        "go",
        1,
        "go: tls: failed to verify: x509: certificate signed by unknown authority",
        "broken",
        "SSL_CERT",
    ),
    (
        "java",
        1,
        "SSLHandshakeException: PKIX path building failed",
        "broken",
        "export JAVA_TOOL_OPTIONS=",
    ),
    (
        "apt-get",
        100,
        "Err:3 x Packages\n  403  Forbidden [IP: 192.168.137.1 3129]",
        "denied",
        "",
    ),
    (
        "apt-get",
        100,
        "Err:3 x Packages\n  404  Not Found [IP: 192.168.137.1 443]",
        "allowed",
        "(status 404)",
    ),
    (
        "wget",
        5,
        "ERROR: The certificate of 'x' is not trusted.",
        "broken",
        "trust store of the system",
    ),
    ("wget", 8, f"  HTTP/1.1 403 Forbidden\n{PAGE}", "denied", "Rule: no-push)"),
]


def fake_program(tools: Path, program: str, status: int, output: str) -> None:
    """Put a program into a folder that prints an output, whatever it is asked."""
    fake = tools / program
    fake.write_text(f"#!{tools}/sh\ncat <<'END'\n{output}\nEND\nexit {status}\n")
    fake.chmod(0o755)


def rounds() -> list[list[tuple[str, int, str, str, str]]]:
    """The outcomes, one of each program in a round."""
    by_program = {
        outcome[0]: [other for other in OUTCOMES if other[0] == outcome[0]]
        for outcome in OUTCOMES
    }
    return [[word for word in row if word] for row in zip_longest(*by_program.values())]


@pytest.mark.system
@pytest.mark.parametrize("form", ProbeForm)
def test_the_probe_reads_what_programs_print(
    form: ProbeForm, tmp_path: Path, tools: Path
) -> None:
    for outcomes in rounds():
        for program, status, output, _, _ in outcomes:
            fake_program(tools, program, status, output)
        _, shown = run_probe(form, tmp_path, tools)
        for program, _, output, result, part in outcomes:
            name = next(other.name for other in PROGRAMS if other.program == program)
            tried = re.findall(
                rf"^{name} +(\w+) +https://ok\.example/", shown, re.MULTILINE
            )
            assert (program, output, tried) == (
                program,
                output,
                [result] if result else [],
            )
            assert part in "\n".join(
                line
                for line in shown.splitlines()
                if line.startswith(
                    (
                        f"{name} ",
                        f"  - {name}:",
                        f"  - check that {PROXY}",
                        "  - on the gateway: ",
                    )
                )
            )
            (tools / program).unlink()


@pytest.mark.system
@pytest.mark.parametrize("form", ProbeForm)
def test_the_probe_names_the_url_that_a_program_asks_for(
    form: ProbeForm, tmp_path: Path, tools: Path
) -> None:
    fake_program(tools, "npm", 1, "npm error code E403")
    fake_program(tools, "curl", 0, "status=200")
    _, shown = run_probe(form, tmp_path, tools)
    assert re.search(
        r"^npm +denied +https://ok\.example/\S*squidkeeper-probe  \(",
        shown,
        re.MULTILINE,
    )
    assert re.search(
        r"^curl +allowed +https://ok\.example/\S*  \(", shown, re.MULTILINE
    )
    assert "squidkeeper-probe  (status 200)" not in shown
    assert "npm: " not in shown


@pytest.mark.system
@pytest.mark.parametrize(
    "program",
    [program for program in PROGRAMS if program.asks_below],
    ids=lambda program: program.name,
)
def test_a_program_asks_for_what_the_table_says(
    program: ProbedProgram, tmp_path: Path
) -> None:
    if shutil.which(program.program) is None:
        pytest.skip(f"{program.program} is not installed")
    asked: list[str] = []

    class Origin(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Origin) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        subprocess.run(
            ["sh", "-c", program.command],
            env={
                **dict.fromkeys(PROXY_VARIABLES, ""),
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "URL": f"http://127.0.0.1:{server.server_port}/one/two",
                "TMP": str(tmp_path),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        server.shutdown()
    assert f"/one/two{program.asks_below}" in asked


# what a program printed, though its variables are right → what to fix
WITH_VARIABLES = [
    (
        "node",
        "TypeError: fetch failed ENOTFOUND getaddrinfo ENOTFOUND ok.example",
        "needs Node 22.21, 24.5 or newer",
    ),
    (
        "git",
        "fatal: unable to access: Could not resolve host: ok.example",
        "its variables are right already",
    ),
    (
        "uv",
        "cause: invalid peer certificate: UnknownIssuer",
        "put the gateway's root into the files",
    ),
    (
        "java",
        "javax.net.ssl.SSLHandshakeException: PKIX path building failed",
        "keytool -importcert -noprompt",
    ),
    ("go", "status=407", "put USER:PASSWORD@ before the host: export http_proxy="),
]


@pytest.mark.system
@pytest.mark.parametrize("form", ProbeForm)
def test_the_probe_does_not_ask_for_variables_that_are_set(
    form: ProbeForm, tmp_path: Path, tools: Path
) -> None:
    for program, output, _ in WITH_VARIABLES:
        fake_program(tools, program, 1, output)
    wanted = variables(
        settings(ca_path=f"{tmp_path}/ca.crt", bundle_path=f"{tmp_path}/bundle.crt")
    )
    _, shown = run_probe(form, tmp_path, tools, **wanted)
    fixes = {
        program: re.findall(rf"^  - {program}: (.*)", shown, re.MULTILINE)
        for program, _, _ in WITH_VARIABLES
    }
    for program, _, part in WITH_VARIABLES:
        [fix] = fixes[program]
        assert part in fix
        assert ("export" in fix) == (program == "go")
    _, shown = run_probe(
        form,
        tmp_path,
        tools,
        **{**wanted, "NODE_USE_ENV_PROXY": "", "JAVA_TOOL_OPTIONS": ""},
    )
    assert "  - node: export http_proxy=" in shown
    assert "  - java: export JAVA_TOOL_OPTIONS=" in shown


WITHOUT_PROXY = [  # what a program printed, though it has no proxy → what to fix
    (
        "curl",
        "curl: (6) Could not resolve host: ok.example",
        "let the gateway resolve names: its address alone",
    ),
    (
        "git",
        "fatal: unable to access: Network is unreachable",
        "git: let it resolve names as the system does",
    ),
    (
        "go",
        "status=407",
        "go: put USER:PASSWORD@ before the host: export http_proxy='' https_proxy=''",
    ),
    ("node", "wrong version number", "node: look for a proxy or no_proxy"),
    (
        "npm",
        "connect ECONNREFUSED",
        "check that the address that names have here is the gateway's address and that squidkeeper-transparent runs",
    ),
]


@pytest.mark.system
@pytest.mark.parametrize("form", ProbeForm)
def test_the_probe_knows_what_goes_wrong_without_a_proxy(
    form: ProbeForm, tmp_path: Path, tools: Path
) -> None:
    for program, output, _ in WITHOUT_PROXY:
        fake_program(tools, program, 1, output)
    _, shown = run_probe(form, tmp_path, tools, proxy=None)
    assert shown.startswith(f"Probe of {HOSTILE}, without a proxy\n")
    for _, _, part in WITHOUT_PROXY:
        assert f"\n  - {part}" in shown
    _, shown = run_probe(form, tmp_path, tools, proxy=None, HTTPS_PROXY=PROXY)
    assert re.search(
        "^variables  missing or different: .*HTTPS_PROXY", shown, re.MULTILINE
    )


SQUID_IS_GONE = {  # what programs print of the alert that a client then gets
    "curl": "curl: (35) TLS connect error: error:0A000438:SSL routines::tlsv1 alert internal error",
    "python3": "ssl.SSLError: [SSL: TLSV1_ALERT_INTERNAL_ERROR] tlsv1 alert internal error (_ssl.c:1029)",
    "git": "fatal: unable to access 'https://ok.example/': GnuTLS, handshake failed: Internal error",
    "wget": "GnuTLS: received alert [80]: Internal error",
    "go": "go: remote error: tls: internal error",
    "uv": "  cause: received fatal alert: InternalError",
    "java": "javax.net.ssl.SSLHandshakeException: (internal_error) Received fatal alert: internal_error",
}


@pytest.mark.system
@pytest.mark.parametrize("form", ProbeForm)
def test_the_probe_says_once_that_squid_does_not_answer_the_transparent_ports(
    form: ProbeForm, tmp_path: Path, tools: Path
) -> None:
    for program, output in SQUID_IS_GONE.items():
        fake_program(tools, program, 1, output)
    _, shown = run_probe(form, tmp_path, tools, proxy=None)
    # python3 is tried twice
    assert len(re.findall("but Squid does not", shown)) == 2 * (len(SQUID_IS_GONE) + 1)
    assert (
        len(
            re.findall(
                "^  - on the gateway: sudo squidkeeper doctor", shown, re.MULTILINE
            )
        )
        == 1
    )


# the addresses of example.com, and of a name that only the gateway's resolver knows →
# the line
NAMES = [
    ("192.0.2.1", "192.0.2.1", "DNS        of the gateway: every name is 192.0.2.1"),
    ("203.0.113.7", "", "DNS        not of the gateway: example.com is 203.0.113.7"),
    (
        "203.0.113.7",
        "192.0.2.1",
        "DNS        not of the gateway: example.com is 203.0.113.7",
    ),
    ("", "", "DNS        not of the gateway: example.com is unknown"),
]


@pytest.mark.parametrize(("known", "unknown", "line"), NAMES)
def test_without_a_proxy_each_name_has_to_have_the_same_address(
    known: str, unknown: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(probe_script.KIT, "transparent", True)
    monkeypatch.setattr(
        probe_script, "addresses_of", lambda name: [known] if known else []
    )
    shown, fix = probe_script.check_name([unknown] if unknown else [])
    assert (shown, bool(fix)) == (line, "not of" in line)


@pytest.mark.system
@pytest.mark.parametrize(("known", "unknown", "line"), NAMES)
def test_the_probe_in_shell_compares_the_same_names(
    known: str, unknown: str, line: str, tmp_path: Path, tools: Path
) -> None:
    fake = tools / "getent"
    fake.write_text(
        f'#!{tools}/sh\n[ "$2" = example.com ] && set -- {known} || set -- {unknown}\n[ "$1" ] && echo "$1  name"\n'
    )
    fake.chmod(0o755)
    _, shown = run_probe(ProbeForm.SH, tmp_path, tools, proxy=None)
    assert line in shown.splitlines()
    assert ("  - let the gateway resolve names: " in shown) == ("not of" in line)


@pytest.mark.system
@pytest.mark.parametrize("form", ProbeForm)
def test_the_probe_says_once_that_the_gateway_does_not_answer(
    form: ProbeForm, tmp_path: Path, tools: Path
) -> None:
    for program in ("curl", "git", "npm"):
        fake_program(tools, program, 1, "connect ECONNREFUSED: Connection refused")
    _, shown = run_probe(form, tmp_path, tools)
    assert len(re.findall(r"nothing answers at the address", shown)) == 6
    assert re.findall(r"^  - (.*Squid runs.*)", shown, re.MULTILINE) == [
        f"check that {PROXY} is the gateway's address and that Squid runs"
    ]


@pytest.mark.system
def test_both_forms_of_the_probe_print_the_same(tmp_path: Path, tools: Path) -> None:
    fake_program(tools, "curl", 0, "status=200")
    fake_program(tools, "npm", 99, "something else")
    fake_program(
        tools, "node", 1, "fetch failed ENOTFOUND getaddrinfo ENOTFOUND ok.example"
    )
    lines = [
        run_probe(form, tmp_path, tools, HTTPS_PROXY=PROXY)[1].splitlines()
        for form in ProbeForm
    ]
    # The ways around the gateway need more than a shell has.
    python, sh = (
        [line for line in of if not line.startswith(("direct ", "DNS ", "  - names "))]
        for of in lines
    )
    assert python == sh


@pytest.mark.system
def test_the_ways_around_the_gateway_are_shown_in_one_order(
    tmp_path: Path, tools: Path
) -> None:
    _, shown = run_probe(ProbeForm.PYTHON, tmp_path, tools)
    assert re.findall(r"^(direct|DNS) +\w+: (.*)", shown, re.MULTILINE)[0] == (
        "direct",
        "127.0.0.1:9",
    )
    assert (
        "closed: the name server 127.0.0.1 does not answer"
        in shown.splitlines()[shown.splitlines().index("") - 1]
    )


@pytest.mark.system
@pytest.mark.parametrize("form", ProbeForm)
def test_the_probe_says_what_is_missing_and_how_to_set_it(
    form: ProbeForm, tmp_path: Path, tools: Path
) -> None:
    status, shown = run_probe(form, tmp_path, tools)
    assert status == 1
    assert "variables  missing or different: http_proxy, https_proxy" in shown.replace(
        ": http_proxy https", ": http_proxy, https"
    )
    set_all = next(
        line
        for line in shown.splitlines()
        if line.startswith("  - set the variables: export ")
    )
    exported = dict(
        pair.split("=", 1) for pair in shlex.split(set_all.partition("export ")[2])
    )
    assert exported == variables(
        settings(ca_path=f"{tmp_path}/ca.crt", bundle_path=f"{tmp_path}/bundle.crt")
    )
    assert ROOT.strip() in shown
    assert "update-ca-certificates" in shown


@pytest.mark.system
@pytest.mark.parametrize("form", ProbeForm)
def test_the_probe_finds_nothing_to_fix_where_all_is_as_it_has_to_be(
    form: ProbeForm, tmp_path: Path, tools: Path
) -> None:
    for name in ("ca.crt", "bundle.crt"):
        (tmp_path / name).write_text(f"# another\n{ROOT}")
    fake = tools / "curl"
    fake.write_text(
        f'#!{tools}/sh\ncase "$*" in *no.example*) echo status=403; echo Rule: x;; *) echo status=200;; esac\n'
    )
    fake.chmod(0o755)
    wanted = variables(
        settings(ca_path=f"{tmp_path}/ca.crt", bundle_path=f"{tmp_path}/bundle.crt")
    )
    with_user = {
        name: value.replace("//192", "//user:word@192")
        for name, value in wanted.items()
    }
    status, shown = run_probe(form, tmp_path, tools, **with_user)
    # as they do on a machine with internet
    assert "Nothing to fix." in shown or "names resolve here" in shown
    assert "variables  as they have to be" in shown
    assert "curl      denied   https://no.example/  (Rule: x)" in shown
    assert status == (0 if "Nothing to fix." in shown else 1)


@pytest.mark.system
@pytest.mark.parametrize("form", ProbeForm)
def test_what_a_policy_says_is_no_part_of_the_probe(
    form: ProbeForm, tmp_path: Path, tools: Path
) -> None:
    """Each value holds the names of others, and what a shell takes for a command, for a
    word or for a file's name.
    """
    names = re.findall(
        "@[A-Z_]+@",
        Path(
            str(
                resources.files("squidkeeper.operate.client_kit") / "templates/probe.sh"
            )
        ).read_text(),
    )
    ends = f"{{proxy}}{{export_proxy}}{{set_roots}}{{set_proxy}}{{ca_path}}{''.join(dict.fromkeys(names))}"
    paths = [
        f"/ -o;{ends}",
        f"/$(touch${{IFS}}{tmp_path}/run);touch {tmp_path}/run;'`touch {tmp_path}/run`\\n{ends}",
    ]
    rules = [
        {"name": f"r{number}", "hosts": ["a.example"], "paths": [path]}
        for number, path in enumerate(paths)
    ]
    rules[0]["action"], rules[1]["action"] = "allow", "deny"
    compiled = compiled_of(tmp_path / "policy", f"rules: {json.dumps(rules)}")
    allowed, denied = (
        allowed_url(compiled, KitClient(), NOW),
        denied_url(compiled, KitClient(), NOW),
    )
    assert "@DENIED@" in str(allowed)
    assert "$(touch$" in str(denied)
    fake = tools / "curl"
    fake.write_text(
        f'#!{tools}/sh\nfor last; do :; done; printf "%s\\n" "$last" >> {tmp_path}/asked\necho status=200\n'
    )
    fake.chmod(0o755)
    done = subprocess.run(
        [runner(form), str(probe(form, tmp_path, str(allowed), str(denied)))],
        env={"PATH": str(tools), "DIRECT": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert sorted((tmp_path / "asked").read_text().splitlines()) == sorted(
        [str(allowed), str(denied)]
    )
    assert re.search(
        rf"^curl +allowed +{re.escape(str(allowed))}  \(status 200\)$",
        done.stdout,
        re.MULTILINE,
    )
    assert f"  - {denied} is allowed, expected denied" in done.stdout
    assert done.stdout.startswith(f"Probe of {HOSTILE}, proxy {PROXY}\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.system
def test_each_command_is_a_shell_command() -> None:
    for program in PROGRAMS:
        subprocess.run(["/bin/sh", "-n", "-c", program.command], check=True)
        assert set(program.roots) <= set(VARIABLES)


# --- clients of a policy --------------------------------------------------------------

MANY = ", ".join(f"h{number}.many.example" for number in range(40))
POLICY = f"""
defaults: {{reason: "Ask *the* [platform] team.", contact: "platform_team@example.com"}}
clients:
  agents: {{networks: [192.168.137.0/24]}}
  ci: {{users: [ci-bot]}}
  people: {{users: [ann, bob]}}
lists: {{drops: {{file: drops.txt}}}}
rules:
  - name: no-push
    action: deny
    hosts: [github.com]
    paths: ["/**/git-receive-pack"]
    reason: "Read `only` | <b>here</b>."
  - {{name: no-drops, action: deny, lists: [drops]}}
  - {{name: old, action: allow, hosts: [old.example], expires: 2026-01-01T00:00:00Z}}
  - name: hotfix
    action: allow
    clients: [agents]
    hosts: [deploy.example]
    methods: [POST]
    expires: 2036-12-01T18:00:00Z
  - {{name: for-ci, action: allow, clients: [ci], hosts: [ci-alone.example], reason: ci}}
  - {{name: api, action: allow, clients: [agents], hosts: [api.example], paths: ["/v1/**", 'regex:/a`b|c/.*']}}
  - {{name: github, action: allow, hosts: [github.com], methods: [GET, HEAD]}}
  - {{name: pinned, action: allow, hosts: [pinned.example], tls: passthrough, private: true}}
  - name: chat
    action: allow
    hosts: [chat.example]
    paths: ["/live/**"]
    websocket: true
    strip: [X-Trace]
  - {{name: many, action: allow, hosts: [{MANY}]}}
rewrites:
  - name: mirror
    hosts: [github.com]
    paths: ["/m/**"]
    to: "https://mirror.internal/secret-path{{path}}?key=in-the-query"
    private: true
secrets: {{token: {{file: token-file}}}}
credentials:
  - {{name: api-key-name, clients: [agents], hosts: [api.example], header: X-Api-Key, value: "{{token}}"}}
  - {{name: ci-key, clients: [ci], hosts: [ci-alone.example], bearer: token}}
  - {{name: in-query, clients: [ci], hosts: [ci-alone.example], parameters: {{key: "{{token}}"}}}}
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    directory = write_policy(tmp_path / "policy", POLICY)
    (directory / "drops.txt").write_text("paste.example\ndrop.example\n")
    (directory / "token-file").write_text("hidden-value")
    (directory / "token-file").chmod(0o600)
    return directory


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner(catch_exceptions=False).invoke(
        main, [*map(str, arguments)], prog_name="squidkeeper"
    )
    return result.exit_code, result.output


def test_the_brief_names_the_placeholder_that_a_client_sends(policy: Path) -> None:
    write_policy(
        policy,
        POLICY.replace(
            "header: X-Api-Key,", "header: X-Api-Key, placeholder: sk-`placeholder`,"
        ),
    )
    status, text = run("brief", "--policy", policy, "--client", "agents")
    assert status == 0
    assert "takes the placeholder that is named here. The gateway replaces it." in text
    assert "1. `X-Api-Key`: `api.example`; placeholder `` sk-`placeholder` ``\n" in text
    others = run("brief", "--policy", policy, "--client", "ci")[1]
    assert "placeholder" not in others


def test_the_brief_shows_what_is_this_clients_and_nothing_else_in_the_order_in_which_rules_decide(
    policy: Path,
) -> None:
    status, text = run("brief", "--policy", policy, "--client", "agents")
    assert status == 0
    assert (
        "adds these headers. Send none of your own: it is removed.\n\n1. `X-Api-Key`: `api.example`"
        in text
    )
    assert "placeholder" not in text
    assert (
        "**Allowed** (rule `hotfix`), until 2036-12-01 18:00 UTC: `deploy.example`; methods `POST`"
        in text
    )
    assert "`github.com`; paths `/m/**`: fetched from `https://mirror.internal`" in text
    assert "2 hosts of a list" in text
    assert "so that somebody\n  can ask platform\\_team@example.com." in text
    assert (
        "`pinned.example`; schemes `https`; also at private addresses; not decrypted: the origin's own"
        in text
    )
    assert (
        "paths `/live/**`; WebSockets too; without the headers `X-Trace`, which the gateway removes"
        in text
    )
    for absent in (
        "ci-alone",
        "ci-key",
        "ci-bot",
        "hidden-value",
        "token",
        "secret-path",
        "in-the-query",
        "paste",
    ):
        assert absent not in text
    assert "old.example" not in text
    assert "Node's `fetch` reaches `https://` URLs only" in text
    assert re.findall(r"^\d+\. \*\*\w+\*\* \(rule `(.+?)`", text, re.MULTILINE) == [
        "no-push", "no-drops", "hotfix", "api", "github", "pinned", "chat", "many",
    ]  # fmt: skip
    assert text.index("rule `many`") < text.index("Everything else is **denied**")
    assert r"Read \`only\` | \<b\>here\</b\>." in text, (
        "what Markdown and HTML would read is escaped"
    )
    assert r"Ask \*the\* \[platform\] team." in text
    assert "`` regex:/a`b|c/.* ``" in text
    of_ci = run("brief", "--policy", policy, "--client", "ci")[1]
    assert "ci-alone.example" in of_ci
    assert (
        "these headers, and parameters such as `?name=` to the query. Send none"
        in of_ci
    )
    assert "2. `?key=`: `ci-alone.example`" in of_ci
    assert "deploy.example" not in run("brief", "--policy", policy)[1]


def test_the_brief_of_a_client_without_a_proxy_names_none(policy: Path) -> None:
    status, text = run(
        "brief", "--policy", policy, "--client", "agents", "--transparent"
    )
    assert status == 0
    assert (
        "Programs need no proxy settings:\nevery name has the gateway's address here."
        in text
    )
    assert "on ports 80 and 443 alone" in text
    assert "proxy" not in text.replace("no proxy settings", "")
    assert "fetch`" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--client", "ci"],
            "ci logs in, and a client without proxy settings is known by `networks` alone",
        ),
        (["--client", "people", "--user", "ann"], "people logs in, and a client"),
        (["--proxy", PROXY], "leave --proxy and --no-proxy out"),
        (
            ["--client", "agents", "--no-proxy", "a.example"],
            "leave --proxy and --no-proxy out",
        ),
    ],
)
def test_what_needs_a_proxy_is_refused_without_one(
    arguments: list[str], message: str, policy: Path
) -> None:
    status, text = run("env", "--policy", policy, "--transparent", *arguments)
    assert (status, message in " ".join(text.split())) == (2, True)


def test_env_and_probe_need_no_gateways_address_without_a_proxy(
    policy: Path, tmp_path: Path
) -> None:
    (tmp_path / "ca.crt").write_text(ROOT)
    arguments = ("--policy", policy, "--client", "agents", "--transparent")
    assert run("env", *arguments)[1] == written(EnvironmentForm.SH, proxy=None)[0]
    assert (
        "Probe of agents, without a proxy"
        in run("probe", *arguments, "--ca", tmp_path / "ca.crt")[1]
    )


def test_the_brief_bounds_what_it_lists(policy: Path) -> None:
    text = run("brief", "--policy", policy)[1]
    assert "`h19.many.example` and 20 more" in text
    assert "h20.many.example" not in text
    rules = "rules:\n" + "".join(
        f"  - {{name: r{at}, action: allow, hosts: [r{at}.example]}}\n"
        for at in range(200)
    )
    compiled = compiled_of(policy.parent / "long", rules)
    assert "50 rules more, not shown here." in write_brief(
        compiled.source, KitClient(), NOW
    )


def test_a_brief_names_what_decides_and_leaves_out_what_observes(
    tmp_path: Path,
) -> None:
    rules = """
      - {name: no-push, action: deny, observe: true, hosts: [git.example]}
      - {name: git, action: allow, hosts: [git.example], when: {days: [mon-fri], hours: 08:00-18:00, timezone: UTC}}
    """
    text = write_brief(
        compiled_of(tmp_path / "one", f"rules:{rules}").source, KitClient(), NOW
    )
    assert "no-push" not in text
    assert "**Allowed** (rule `git`), mon-fri 08:00-18:00 UTC: " in text
    text = write_brief(
        compiled_of(tmp_path / "two", "defaults: {observe: true}").source,
        KitClient(),
        NOW,
    )
    assert (
        "Everything is **allowed** for now, and recorded: it will be denied later."
        in text
    )


def test_the_brief_tells_how_bodies_are_denied_where_a_rule_of_the_client_reads_them(
    tmp_path: Path,
) -> None:
    rule = "{name: r, action: allow, hosts: [mcp.example]%s}"
    said = (
        "a denied push gets git's own report",
        "status 200 or\n  400",
        "- A status of 500, 502,",
        "body (500)",
    )
    for number, (body, tells) in enumerate(
        [("", False), (", body: {mcp: {tools: [search]}}", True)]
    ):
        policy = compiled_of(tmp_path / str(number), f"rules: [{rule % body}]").source
        text = write_brief(policy, KitClient(), NOW)
        assert [one in text for one in said] == [tells] * len(said)


def test_the_brief_names_the_budgets_of_the_client(tmp_path: Path) -> None:
    text = """\
clients: {agents: {networks: [192.0.2.0/24]}, ci: {networks: [198.51.100.0/24]}}
rules:
  - {name: chat, action: allow, clients: [agents], hosts: [llm.example], meter: tokens}
  - {name: open, action: allow, hosts: [open.example]}
quotas:
  - {name: day, per: client, cost: 25, every: day}
  - {name: chats, per: all, rules: [chat, open], tokens: 2000000, every: month}
  - {name: of-ci, per: client, clients: [ci], tokens: 3000000, every: day}
  - {name: of-open, per: client, rules: [open], requests: 5, every: day}
prices: [{model: "*", in: 1, out: 1}]
"""
    policy = compiled_of(tmp_path / "policy", text).source
    of_agents, of_ci, of_others = (
        write_brief(policy, client_of(policy, name), NOW)
        for name in ("agents", "ci", None)
    )
    assert "1. 25.00 of cost a day for each client (quota `day`)\n" in of_agents
    assert (
        "2. 2,000,000 tokens a month for all together, of `chat` (quota `chats`)\n\n"
        in of_agents
    )
    assert all(name not in of_agents for name in ("of-ci", "of-open"))
    assert "changes the policy, or a budget begins again." in of_agents
    assert all("udget" not in brief for brief in (of_ci, of_others)), (
        "nothing that they reach is counted"
    )


def test_the_brief_of_a_client_that_reaches_nothing_has_no_rewrites_and_no_credentials(
    tmp_path: Path,
) -> None:
    text = """
clients: {agents: {networks: [192.168.137.0/24]}}
rules: [{name: open, action: allow, clients: [agents], hosts: [pypi.org]}]
rewrites: [{name: mirror, hosts: [pypi.org], to: "https://mirror.internal{path}"}]
"""
    policy = compiled_of(tmp_path, text).source
    of_agents, of_others = (
        write_brief(policy, client_of(policy, name), NOW) for name in ("agents", None)
    )
    assert "fetched from `https://mirror.internal`" in of_agents
    assert "mirror" not in of_others
    assert (
        "No rule of the policy is for this client.\n\nEverything is **denied**"
        in of_others
    )
    assert "The first rule that matches" not in of_others


def test_the_brief_shows_what_is_granted_and_what_a_person_may_allow_and_no_reason_of_a_grant(
    tmp_path: Path,
) -> None:
    text = """
clients: {agents: {networks: [192.168.137.0/24]}}
defaults: {ask: true}
rules: [{name: asks, action: ask, hosts: [a.example]}]
grants:
  - {name: once, clients: [agents], urls: ["https://b.example/x?y"], uses: 1,
     expires: 2026-11-27T00:00:00Z, reason: for ops}
  - {name: past, clients: [agents], hosts: [c.example], expires: 2026-11-25T00:00:00Z, reason: for ops}
"""
    policy = compiled_of(tmp_path, text).source
    of_agents, of_others = (
        write_brief(policy, client_of(policy, name), NOW) for name in ("agents", None)
    )
    assert "**Denied until a person allows it** (rule `asks`): `a.example`" in of_agents
    assert (
        "Everything else is **denied until a person allows it** (rule `default`)."
        in of_agents
    )
    until = "until 2026-11-27 00:00 UTC, 1 request at most"
    assert (
        f"1. `b.example`; schemes `https`; ports `443`; URL `https://b.example/x?y` (grant `once`), {until}"
        in of_agents
    )
    assert "for ops" not in of_agents
    assert "past" not in of_agents
    assert "Granted" not in of_others


def test_the_brief_tells_what_to_do_with_a_ticket_where_one_can_be_given(
    tmp_path: Path,
) -> None:
    rules = (
        "rules: [{name: one, action: ACTION, hosts: [a.example], clients: [agents]}]"
    )
    clients = "clients: {agents: {networks: [192.168.137.0/24]}}\n"
    asking = compiled_of(
        tmp_path / "asking", clients + rules.replace("ACTION", "ask")
    ).source
    denying = compiled_of(
        tmp_path / "denying", clients + rules.replace("ACTION", "deny")
    ).source
    told = [
        write_brief(policy, client_of(policy, name), NOW)
        for policy in (asking, denying)
        for name in ("agents", None)
    ]
    assert [
        "Read `http://squidkeeper.internal/tickets/TICKET` at most every 10 s" in text
        for text in told
    ] == [
        *(True, False),
        *(False, False),
    ]
    assert "Stop repeating it" in told[0]


def test_the_urls_of_a_probe_are_what_the_policy_says_of_this_client(
    policy: Path,
) -> None:
    compiled = compiled_of(policy, POLICY)
    agents, ci, anybody = (
        client_of(compiled.source, name) for name in ("agents", "ci", None)
    )
    # no credential is sent for a test
    assert allowed_url(compiled, ci, NOW) == "https://github.com/"
    assert denied_url(compiled, agents, NOW) == "https://github.com/git-receive-pack"
    assert allowed_url(compiled, anybody, NOW) == "https://github.com/"
    only = compiled_of(
        policy.parent / "only",
        "rules: [{name: a, action: allow, hosts: [.a.example], ports: [8443]}]",
    )
    assert allowed_url(only, KitClient(), NOW) == "https://a.example:8443/"
    assert denied_url(only, KitClient(), NOW) == "https://unlisted.example/"
    passed = "rules: [{name: a, action: allow, hosts: [a.example], tls: passthrough}]"
    assert (
        allowed_url(compiled_of(policy.parent / "passed", passed), KitClient(), NOW)
        is None
    )


@pytest.mark.parametrize("command", ["env", "probe", "brief"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--client", "nobody"],
            "'nobody' is not a client of the policy, which has agents, ci, people",
        ),
        (["--client", "people"], "the client people has 2 users, name one: ann, bob"),
        (
            ["--client", "people", "--user", "eve"],
            "'eve' is not a user of the client people, which has ann, bob",
        ),
    ],
)
def test_a_client_that_the_policy_does_not_have_is_refused(
    command: str, arguments: list[str], message: str, policy: Path
) -> None:
    status, text = run(command, "--policy", policy, *arguments)
    assert (status, message in " ".join(text.split())) == (2, True)


def test_a_policy_that_does_not_load_is_reported(policy: Path) -> None:
    (policy / "policy.yaml").write_text("version: 1\nrules: [{name: a}]\n")
    status, text = run("env", "--policy", policy, "--proxy", PROXY)
    assert (status, "missing-key" in text, "does not load: fix it first" in text) == (
        1,
        True,
        True,
    )


@pytest.mark.parametrize(
    ("listen", "client", "proxy"),
    [
        ("192.0.2.1:3129", "agents", "http://192.0.2.1:3129"),
        ("[2001:db8::1]:3129", "agents", "http://[2001:db8::1]:3129"),
        ("3129", "here", "http://127.0.0.1:3129"),
        ("3129", "agents", None),
        ("0.0.0.0:3129", "agents", None),
        ("127.0.0.1:3129", "here", None),
    ],
)
def test_the_proxy_is_where_squid_listens_for_the_client(
    listen: str, client: str, proxy: str | None, tmp_path: Path
) -> None:
    clients = "clients: {agents: {networks: [192.168.137.0/24]}, here: {networks: [127.0.0.1]}}\n"
    write_policy(tmp_path / "etc/policy", clients)
    (tmp_path / "etc/squid.conf").write_text(f"http_port {listen} \\\n    ssl-bump\n")
    status, text = run("env", "--root", tmp_path, "--client", client)
    if proxy is None:
        assert (
            status,
            "give the address that the client uses, as in --proxy http://" in text,
        ) == (2, True)
    else:
        assert (status, f"export HTTPS_PROXY={shlex.quote(proxy)}\n" in text) == (
            0,
            True,
        )


def test_the_proxy_is_haproxy_where_it_takes_the_clients_and_has_to_be_given_without_a_gateway(
    tmp_path: Path,
) -> None:
    write_policy(tmp_path / "etc/policy", "defaults: {action: deny}\n")
    status, text = run("env", "--root", tmp_path)
    assert (status, "give --proxy URL" in " ".join(text.split())) == (2, True)
    (tmp_path / "etc/squid.conf").write_text(
        "http_port 127.80.0.1:3129 require-proxy-header\n"
    )
    layout = Layout.of(tmp_path)
    layout.generation.mkdir(parents=True)
    layout.settings_in_force.write_text(
        "version: 1\nlisten: 192.0.2.1:3129\ntls: {names: auto}\n"
    )
    assert (
        "export HTTPS_PROXY=http://192.0.2.1:3129\n"
        in run("env", "--root", tmp_path)[1]
    )


def test_the_root_is_the_last_certificate_of_the_file_and_no_key_is_printed(
    policy: Path, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    first, last = make_ca(now), make_ca(now)
    (tmp_path / "chain.crt").write_bytes(
        first.certificate + first.key + last.certificate
    )
    for command, form in (
        ("env", "cloud-init"),
        ("env", "dockerfile"),
        ("probe", "python"),
        ("probe", "sh"),
    ):
        status, text = run(
            command,
            "--policy",
            policy,
            "--proxy",
            PROXY,
            "--ca",
            tmp_path / "chain.crt",
            "--format",
            form,
        )
        assert status == 0
        assert "PRIVATE" not in text
        assert [
            gateway.certificate.decode().splitlines()[1] in text
            for gateway in (first, last)
        ] == [False, True]


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_root_that_cannot_be_read_is_reported(
    text: str | None, policy: Path, tmp_path: Path
) -> None:
    file = tmp_path / "ca.crt"
    if text is not None:
        file.write_text(text)
    status, shown = run("probe", "--policy", policy, "--proxy", PROXY, "--ca", file)
    assert (status, "give the root by --ca FILE" in " ".join(shown.split())) == (
        1,
        True,
    )


@pytest.mark.parametrize(
    "url", ["example.com", "https://", "https://a b/", "https://a/'$(x)"]
)
def test_a_url_to_try_is_one_word_of_a_shell(
    url: str, policy: Path, tmp_path: Path
) -> None:
    (tmp_path / "ca.crt").write_text(ROOT)
    arguments = (
        "--policy",
        policy,
        "--proxy",
        PROXY,
        "--ca",
        tmp_path / "ca.crt",
        "--allowed",
        url,
        "--format",
        "sh",
    )
    status, shown = run("probe", *arguments)
    if status == 0:
        [tried] = re.findall(r"^ALLOWED=(.*)$", shown, re.MULTILINE)
        [word] = shlex.split(tried)
        assert " " not in word
        assert os.path.basename(word) == "'$(x)"
    else:
        assert (status, "is not a URL to try" in " ".join(shown.split())) == (2, True)
