"""A DNS server of our own: any name is the public origin unless a test says otherwise;
every query is recorded.
"""

import threading
from collections.abc import Sequence
from ipaddress import ip_address

from dnslib import AAAA, QTYPE, RCODE, RR, A, DNSError, DNSRecord
from dnslib.server import DNSHandler, DNSLogger, DNSServer

PUBLIC = "203.0.113.10"
# For Squid: keep a name for two to three seconds. A name that is kept for one second
# can expire between a CONNECT and its ClientHello. Such a tunnel fails.
SHORT_MEMORY = "negative_dns_ttl 3 seconds"


class Names:
    """Name → addresses; where several lists are given, each query of that type gets the
    next (the last stays).
    """

    def __init__(self, address: str, silent_below: str = "") -> None:
        self.address = address
        self.queries: list[str] = []
        self.seen: list[
            tuple[str, int]
            # the name of each query as it was written, and the port that it came from
        ] = []
        self.answering = threading.Event()  # while it is not set, answers wait
        self.answering.set()
        self._silent_below = silent_below
        self._answers: dict[str, dict[str, list[list[str]]]] = {}
        self._server = DNSServer(
            self,
            address=address,
            port=53,
            logger=DNSLogger("-request,-reply,-truncated,-error"),
        )
        self._server.start_thread()

    def set(self, name: str, *answers: Sequence[str]) -> None:
        """Answer `name` with these addresses: one list for good, or one list for each
        query in turn. [] is NXDOMAIN.
        """
        self._answers[name] = {
            kind: [
                [a for a in answer if ip_address(a).version == version]
                for answer in answers
            ]
            for kind, version in (("A", 4), ("AAAA", 6))
        }

    def asked(self, name: str) -> list[str]:
        """The queries for a name, by type, in order."""
        return [query.split()[1] for query in self.queries if query.split()[0] == name]

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        self.seen.append((str(request.q.qname).rstrip("."), handler.client_address[1]))
        self.answering.wait(120)
        if self._silent_below and str(request.q.qname).rstrip(".").lower().endswith(
            self._silent_below
        ):
            raise DNSError("no answer to this one")
        name, kind = str(request.q.qname).rstrip(".").lower(), QTYPE[request.q.qtype]
        self.queries.append(f"{name} {kind}")
        reply = request.reply()
        if name not in self._answers:
            addresses = [PUBLIC] if kind == "A" else []
        else:
            turns = self._answers[name].get(kind, [[]])
            addresses = turns.pop(0) if len(turns) > 1 else turns[0]
            if not any(any(lists) for lists in self._answers[name].values()):
                reply.header.rcode = RCODE.NXDOMAIN
        for address in addresses:
            packed = tuple(ip_address(address).packed)
            data = A(packed) if kind == "A" else AAAA(packed)
            reply.add_answer(RR(request.q.qname, request.q.qtype, rdata=data, ttl=0))
        return reply

    def stop(self) -> None:
        self.answering.set()
        self._server.stop()
        self._server.server.server_close()
