"""How git is called: no hook, filter, attribute or configuration of a machine or a
repository counts.

Git finds no program of its own but itself and the one for https. So it has no
`http-fetch`, by which it would fetch packs from any URI that a server names
(`packfile-uris`), with the token.
"""

import base64
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from squidkeeper.base.errors import PullFailed
from squidkeeper.base.formatting import printable
from squidkeeper.services.pulling.programs import Ended, run_bounded
from squidkeeper.services.pulling.settings import GitSource, read_token

# Whatever a system, an account or a repository has set. A URL of another protocol is
# refused, also in a redirect.
_CONFIGURATION: Final = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.bigFileThreshold": "1m",
    "core.attributesFile": "/dev/null",
    "fetch.fsckObjects": "true",
    "fetch.unpackLimit": "1",
    "fetch.recurseSubmodules": "false",
    "fetch.writeCommitGraph": "false",
    "pack.threads": "1",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "protocol.allow": "never",
    "protocol.https.allow": "always",
    "protocol.ssh.allow": "always",
    "http.followRedirects": "false",
    "http.lowSpeedLimit": "100",
    "http.lowSpeedTime": "30",
    "credential.helper": "",
    "core.askPass": "",
}
_ENVIRONMENT: Final = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "https:ssh",
    "GIT_PROTOCOL_FROM_USER": "0",
    "GIT_ASKPASS": "true",
    "SSH_ASKPASS": "true",
}
_PROGRAMS: Final = (
    "programs"  # the folder of the programs that git finds, in the repository
)
_FOR_HTTPS: Final = "git-remote-https"
_TOLD: Final = 2
_MEANINGS: Final = {
    "dumb http transport": "the server gives files alone, expected one that speaks git's smart protocol",
    "'http-fetch'": "the server names a URI for a part of the pack, expected the whole pack from itself",
}
_TELLS_NOTHING: Final = re.compile(
    r"\s*(?:hint: .*|To .*|error: failed to push some refs to .*|fatal: Could not read from remote repository\."
    r"|Please make sure you have the correct access rights|and the repository exists\."
    r"|fatal: the remote end hung up unexpectedly)?\s*"
)


def what_git_told(messages: str) -> str:
    """Return the last lines of what git and ssh have written that say what is wrong, as
    one.
    """
    if meaning := next(
        (meaning for part, meaning in _MEANINGS.items() if part in messages), ""
    ):
        return meaning
    lines = [line.strip() for line in messages.splitlines()]
    telling = [line for line in lines if not _TELLS_NOTHING.fullmatch(line)]
    return "; ".join((telling or lines)[-_TOLD:])


class GitCommand:
    """Runs git in the bare repository `folder`, with the access to its source."""

    def __init__(self, source: GitSource, folder: Path) -> None:
        self._source = source
        self._folder = folder

    @property
    def is_ready(self) -> bool:
        """Whether there is a repository that git can be run in."""
        return all(
            (self._folder / name).exists()
            for name in ("HEAD", f"{_PROGRAMS}/{_FOR_HTTPS}")
        )

    def init(self) -> None:
        """Make the repository."""
        path = run_bounded(("git", "--exec-path"), _ENVIRONMENT).output.decode().strip()
        self.output("init", "--quiet", "--bare", "--template=")
        (self._folder / _PROGRAMS).mkdir()
        (self._folder / _PROGRAMS / _FOR_HTTPS).symlink_to(Path(path, _FOR_HTTPS))

    def output(self, *arguments: str, given: bytes = b"") -> bytes:
        """Return what git prints; `PullFailed` if it fails."""
        ended = self.run(*arguments, given=given)
        if ended.status != 0:
            told = printable(what_git_told(ended.messages))
            raise PullFailed(
                f"git {arguments[0]} failed: {told or f'status {ended.status}'}"
            )
        return ended.output

    def run(self, *arguments: str, given: bytes = b"") -> Ended:
        """Run git to its end; `PullFailed` if it cannot be started, or takes
        too long.
        """
        return run_bounded(
            ("git", "--git-dir", str(self._folder), *arguments),
            self._environment(),
            given=given,
        )

    def _environment(self) -> dict[str, str]:
        settings = {**_CONFIGURATION, **self._access()}
        numbered = {
            f"GIT_CONFIG_KEY_{number}": key for number, key in enumerate(settings)
        }
        numbered |= {
            f"GIT_CONFIG_VALUE_{number}": value
            for number, value in enumerate(settings.values())
        }
        programs = {
            "GIT_EXEC_PATH": str(self._folder / _PROGRAMS),
            "GIT_SSH_COMMAND": self._ssh(),
        }
        return {
            **_ENVIRONMENT,
            **programs,
            "GIT_CONFIG_COUNT": str(len(settings)),
            **numbered,
        }

    def _access(self) -> Mapping[str, str]:
        """Return what https needs; a token stands in no command line."""
        source, access = self._source, {}
        if source.ca:
            access["http.sslCAInfo"] = str(source.ca)
        if source.token_file:
            access["http.extraHeader"] = (
                f"Authorization: Basic {_basic(source.token_file)}"
            )
        return access

    def _ssh(self) -> str:
        options = [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "ForwardAgent=no",
            "ConnectTimeout=20",
        ]
        options += [
            f"UserKnownHostsFile={self._source.known_hosts or '/dev/null'}",
            "GlobalKnownHostsFile=/dev/null",
        ]
        options += ["IdentitiesOnly=yes", "PermitLocalCommand=no", "ProxyCommand=none"]
        words = [
            "ssh",
            "-F",
            "/dev/null",
            *(word for option in options for word in ("-o", option)),
        ]
        words += ["-i", str(self._source.key)] if self._source.key else []
        return shlex.join(words)


def _basic(file: Path) -> str:
    return base64.b64encode(f"x-access-token:{read_token(file)}".encode()).decode()
