"""The tour: the steps of the demonstration, each with a command and its expected
output.
"""

import os
import secrets
import shlex
import subprocess
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from squidkeeper.base.errors import DemoFailed
from squidkeeper.operate.demo.gateway import DemoGateway
from squidkeeper.operate.demo.network import VirtualMachine
from squidkeeper.operate.demo.servers import ORIGIN_ADDRESS, Origin

POLICY = resources.files(__package__).joinpath("policy.yaml").read_text("utf-8")
NAMES = ("example.com", "git.example", "api.example", "en.wikipedia.org")
_DENIED = "https://git.example/other/app"
_INJECTED = "https://api.example/v1/me"
_DIRECT = (
    "--noproxy",
    "*",
    "--connect-timeout",
    "1",
    "--resolve",
    f"example.com:443:{ORIGIN_ADDRESS}",
)


def write_policy(folder: Path) -> str:
    """Write the policy of the tour and return the new token that it injects."""
    token = f"demo-{secrets.token_hex(12)}"
    (folder / "secrets").mkdir(parents=True)
    (folder / "secrets/token").write_text(token)
    (folder / "policy.yaml").write_text(POLICY)
    return token


class Tour:
    """Runs the steps and prints them; a step whose output is not as expected raises
    `DemoFailed`.
    """

    def __init__(
        self,
        vm: VirtualMachine,
        gateway: DemoGateway,
        origin: Origin,
        token: str,
        say: Callable[[str], None],
    ) -> None:
        self._vm = vm
        self._gateway = gateway
        self._origin = origin
        self._token = token
        self._say = say
        self._number = 0
        self._environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "https_proxy": f"http://{gateway.address}",
            "HOME": "/",
        }

    def run(self) -> None:
        """Print the policy and run all steps."""
        self._say(f"\nThe policy ({self._gateway.policy}):")
        self._output(POLICY)
        self._allowed()
        self._denied()
        self._path()
        self._injected()
        self._direct()
        self._logged()
        self._explained()
        self._drift()

    def _allowed(self) -> None:
        self._title("The policy allows this request.")
        self._say(f"  vm$ export https_proxy=http://{self._gateway.address}")
        self._in_vm("https://example.com/", "Hello from example.com")

    def _denied(self) -> None:
        self._title(
            "The policy denies this one. The agent gets a page that names the rule and the reason."
        )
        self._in_vm(
            "https://en.wikipedia.org/wiki/Squid",
            "Rule: no-wikipedia",
            "Reason: Wikipedia is closed",
        )

    def _path(self) -> None:
        self._title(
            "A rule can be for paths: of git.example, the VM may read /acme/ and nothing else."
        )
        self._in_vm("https://git.example/acme/app", "Hello from git.example")
        self._in_vm(_DENIED, "Rule: default")

    def _injected(self) -> None:
        self._title(
            "The gateway injects a credential. The origin receives it; the VM does not."
        )
        response = self._in_vm(_INJECTED, "Hello from api.example")
        expected = f"Authorization: Bearer {self._token}"
        headers = self._origin.received[_INJECTED]
        self._say("  The origin received:")
        self._output("\n".join(headers))
        if expected not in headers or self._token in response:
            raise DemoFailed(
                "the credential did not reach the origin, or it reached the VM"
            )

    def _direct(self) -> None:
        self._title("Past the gateway, the VM reaches nothing.")
        self._in_vm("https://example.com/", "curl: (28)", options=_DIRECT, status=28)

    def _logged(self) -> None:
        self._title(
            "The access log has a record of each request, with the rule that decided."
        )
        self._gateway.wait_for_record(_INJECTED)
        self._on_host(
            "log",
            self._gateway.access_log,
            expected=("no-wikipedia", "our-repositories", _DENIED),
        )

    def _explained(self) -> None:
        self._title("Why was that request denied?")
        options = ("--client", self._vm.address, "--policy", self._gateway.policy)
        self._on_host(
            "explain", *options, "GET", _DENIED, expected=("DENY", "default"), status=1
        )

    def _drift(self) -> None:
        self._title(
            "Was a request served although the policy in force denied it? No output: none was."
        )
        folders = ("--policy", self._gateway.policy, "--state", self._gateway.state)
        if self._on_host("log", "--drift", *folders, self._gateway.access_log):
            raise DemoFailed("there is drift")

    def _title(self, title: str) -> None:
        self._number += 1
        self._say(f"\n{self._number}. {title}")

    def _in_vm(
        self, url: str, *expected: str, options: tuple[str, ...] = (), status: int = 0
    ) -> str:
        command: tuple[str | Path, ...] = ("curl", "-sS", *options, url)
        return self._command(
            "vm$", command, self._vm.command(*command), expected, status
        )

    def _on_host(
        self, *arguments: str | Path, expected: tuple[str, ...] = (), status: int = 0
    ) -> str:
        command = (self._gateway.program, *arguments)
        return self._command("host#", command, list(command), expected, status)

    def _command(
        self,
        prompt: str,
        shown: tuple[str | Path, ...],
        command: list[str | Path],
        expected: tuple[str, ...],
        status: int,
    ) -> str:
        self._say(f"  {prompt} {shlex.join(map(str, shown))}")
        done = subprocess.run(  # noqa: S603 - our own commands
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            env=self._environment,
        )
        self._output(done.stdout.rstrip("\n"))
        missing = [text for text in expected if text not in done.stdout]
        if done.returncode != status or missing:
            found = f"exit status {done.returncode}, expected {status}; missing in the output: {missing}"
            raise DemoFailed(f"step {self._number}: {found}")
        return done.stdout

    def _output(self, text: str) -> None:
        for line in text.splitlines():
            self._say(f"    {line}".rstrip())
