"""The resolver for Squid: unbound on a loopback address, which forwards to the host's
name servers.

Squid sends all DNS queries from one UDP port, so a forged answer only has to match 16
bits. unbound sends each query from another port, with random upper and lower case.
"""

import ctypes
import logging
import re
import signal
import socket
import subprocess
import time
from contextlib import suppress
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from squidkeeper.base.atomic_write import replace
from squidkeeper.base.errors import ResolverFailed

PROGRAM: Final = "/usr/sbin/unbound"
_LIBC: Final = ctypes.CDLL(None)
# a zone can be any text; unbound.conf gives a meaning to ", # and @
_PLAIN: Final = re.compile(r"[\w.:%-]+", re.ASCII)
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_RETRY_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 5.0
_SILENCE_SECONDS: Final = 5.0  # without an answer for so long, the resolver has failed
_HANGS_SECONDS: Final = 10.0  # and after this it is ended
_ANSWER_BYTES: Final = 512
_ANSWER_SECONDS: Final = 1.0  # and so often: one can be lost
_QUESTIONS: Final = 3
_ANSWERS_AT: Final = slice(6, 8)  # RFC 1035: the number of answers
# RFC 1035: a header with one question and RD set, then localhost, type A, class IN.
# unbound knows the answer.
_QUESTION: Final = (
    bytes.fromhex("5351 0100 0001 0000 0000 0000") + b"\x09localhost\0\0\x01\0\x01"
)
_log = logging.getLogger(__name__)

# Names and values of unbound.conf(5). Squid's account starts it, so it changes neither
# its user nor its root directory.
_SERVER: Final = (
    ("verbosity", "0"),
    ("use-syslog", "no"),
    ("logfile", '""'),
    ("pidfile", '""'),
    ("username", '""'),
    ("chroot", '""'),
    ("directory", '""'),
    ("do-daemonize", "no"),
    ("num-threads", "1"),
    ("port", "53"),
    ("access-control", "0.0.0.0/0 refuse"),
    ("access-control", "127.0.0.0/8 allow"),
    ("do-not-query-localhost", "no"),  # systemd-resolved and dnsmasq are on loopback
    ("use-caps-for-id", "yes"),
    ("qname-minimisation", "no"),  # forward the whole name
    (
        "module-config",
        '"iterator"',
    ),  # no DNSSEC: with Debian's trust anchor a plain forwarder's answers are SERVFAIL
    ("msg-cache-size", "8m"),
    ("rrset-cache-size", "16m"),
    ("cache-max-ttl", "3600"),
    # A client can ask for many names whose servers are silent. By default unbound then
    # considers the forwarder dead and fails all names; infra-host-ttl 0 prevents this.
    # The other two are the minimum time to wait for an answer: after fast answers
    # unbound waits 50 ms, tries a few times, and fails each name that takes a second.
    ("infra-host-ttl", "0"),
    ("infra-cache-min-rtt", "600"),
    ("unknown-server-time-limit", "600"),
    # Internal names are looked up like all others. sk_ask_private in squidkeeper.conf
    # closes private addresses.
    ("unblock-lan-zones", "yes"),
    *(
        ("local-zone", f'"{zone}." nodefault')
        for zone in (
            "test",
            "invalid",
            "home.arpa",
            "onion",
            "resolver.arpa",
            "service.arpa",
        )
    ),
)
# By default unbound drops slow answers. Squid waits up to five seconds. Older releases
# do not have the option.
_SERVER_IF_KNOWN: Final = (("discard-timeout", "0"),)


class Resolver:
    """unbound on one loopback address.

    It follows resolv.conf, and is started again when it ends. One that does not answer
    is ended.
    """

    name = "resolver"

    def __init__(self, address: str, resolv_conf: Path, folder: Path) -> None:
        self._address = address
        self._resolv_conf = resolv_conf
        self._file = folder / "unbound.conf"
        self._process: subprocess.Popen[bytes] | None = None
        self._started = -_RETRY_SECONDS
        self._probe = Probe(address)

    def check(self) -> None:
        """Follow changes of resolv.conf, and start unbound if it does not run; an error
        if it does not answer.
        """
        try:
            self._update_configuration()
        finally:
            if self._file.exists():
                self._keep_running()
                self._check_answer()

    def stop(self) -> None:
        """End unbound."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)

    def _check_answer(self) -> None:
        try:
            self._probe.check()
        except ResolverFailed as error:
            process = self._process
            if process is None or process.poll() is not None:
                raise
            if self._probe.silent_seconds > _HANGS_SECONDS:
                process.kill()  # one that is stopped (SIGSTOP) ends only so
                _log.error("unbound, process %d, hangs: killed it", process.pid)
            raise ResolverFailed(
                f"unbound, process {process.pid}, does not answer on {self._address} port 53"
            ) from error

    def _update_configuration(self) -> None:
        # Only addresses matter: a comment in another encoding is harmless.
        servers = name_servers(
            self._resolv_conf.read_text(errors="replace"), self._address
        )
        if not servers:
            raise ResolverFailed(
                f"{self._resolv_conf} has no name server except the gateway's own: add a nameserver line. "
                "Until then the previous ones are used, if any"
            )
        text = configuration(
            self._address,
            servers,
            tuple(row for row in _SERVER_IF_KNOWN if _is_known(row[0])),
        )
        if self._file.exists() and text == self._file.read_text(errors="replace"):
            return
        self._write(text)
        _log.info(
            "the resolver on %s forwards to %s", self._address, ", ".join(servers)
        )
        if self._process and self._process.poll() is None:
            # it keeps its socket, and clears its cache
            self._process.send_signal(signal.SIGHUP)

    def _write(self, text: str) -> None:
        self._file.parent.mkdir(mode=0o750, exist_ok=True)
        replace(self._file, text.encode())

    def _keep_running(self) -> None:
        ended = self._process.poll() if self._process else None
        if self._process and ended is None:
            return
        if time.monotonic() - self._started < _RETRY_SECONDS:
            return
        if ended is not None:
            _log.warning("unbound ended with status %d: starting it again", ended)
        self._started = time.monotonic()
        self._probe.begin()
        command = [PROGRAM, "-d", "-c", str(self._file)]
        self._process = subprocess.Popen(  # noqa: S603 - no shell, nothing of a client's
            command, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent
        )


class Probe:
    """Sends unbound a query at each check, for `localhost` by default, and reads the
    answer at a later one.
    """

    def __init__(self, address: str, question: bytes = _QUESTION) -> None:
        self._address = address
        self._question = question
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.connect((address, 53))
        self.begin()

    def begin(self) -> None:
        """Give a process that starts the time to answer."""
        self._answered = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        """How long there was no answer."""
        return time.monotonic() - self._answered

    def check(self) -> None:
        """Send a query; `ResolverFailed` after some seconds without an answer."""
        with suppress(OSError):  # no answer yet, or nothing listens
            while answer := self._socket.recv(_ANSWER_BYTES):
                if any(answer[_ANSWERS_AT]):
                    self._answered = time.monotonic()
        with suppress(OSError):
            self._socket.send(self._question)
        if self.silent_seconds > _SILENCE_SECONDS:
            raise ResolverFailed(
                f"unbound does not answer on {self._address} port 53 (its process: ss -lunp src {self._address})"
            )

    def close(self) -> None:
        """Ask no more."""
        self._socket.close()


def answers(address: str) -> bool:
    """Ask the resolver there for `localhost`, three times at most; return whether it
    answers.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.settimeout(_ANSWER_SECONDS)
        asked.connect((address, 53))
        for _ in range(_QUESTIONS):
            with suppress(OSError):
                asked.send(_QUESTION)
                if any(asked.recv(_ANSWER_BYTES)[_ANSWERS_AT]):
                    return True
    return False


def _end_with_parent() -> None:
    """End the child with this process, so that it frees the port. setpriv(1) needs
    capset(2) for this.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def name_servers(resolv_conf: str, own: str) -> tuple[str, ...]:
    """Read the addresses of the `nameserver` lines, see resolv.conf(5), without `own`,
    the resolver itself.
    """
    words = (line.split() for line in resolv_conf.splitlines())
    named = (line[1] for line in words if len(line) > 1 and line[0] == "nameserver")
    return tuple(
        dict.fromkeys(
            address for address in named if address != own and _is_address(address)
        )
    )


def _is_address(text: str) -> bool:
    """Whether this is an address, with or without a zone (RFC 4007), that needs no
    quoting in unbound.conf.
    """
    try:
        ip_address(text)
    except ValueError:
        return False
    return _PLAIN.fullmatch(text) is not None


@cache
def _is_known(option: str) -> bool:
    command = [f"{PROGRAM}-checkconf", "-o", option, "/dev/null"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - as above
    except FileNotFoundError as error:
        raise ResolverFailed(
            f"{error.filename} is missing: install the package unbound"
        ) from error
    return done.returncode == 0


def configuration(
    address: str, servers: tuple[str, ...], known: tuple[tuple[str, str], ...]
) -> str:
    """Format unbound.conf, which forwards every name to `servers`."""
    server = (("interface", address), *_SERVER, *known)
    sections = (
        ("server", server),
        ("remote-control", (("control-enable", "no"),)),
        (
            "forward-zone",
            (("name", '"."'), *(("forward-addr", address) for address in servers)),
        ),
    )
    lines = (
        f"{name}:\n" + "".join(f"    {key}: {value}\n" for key, value in rows)
        for name, rows in sections
    )
    return "# Written by squidkeeper maintain, which replaces it.\n" + "".join(lines)
