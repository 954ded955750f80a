"""The request headers that helpers read: which these are, and how Squid states them.

Squid tells a helper no whole request head (`%>h` and `%>ha` are always `-` in the key
of an external ACL), but single headers by name. So this list is what helpers see of a
client's headers. The parts that ask helpers about headers have a token for each, in
this order (`@READ_HEADERS@`). Where a header stands twice, Squid joins the values by `,
` if it is a list, or if Squid does not know it. Of the others (`FIRST_COPY_HEADERS`) it
states the first copy alone.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from squidkeeper.policy.protocol.lines import decode_token

# by lower-case name; a header that is absent, or `-`, is not in it
RequestHeaders = Mapping[str, str]

# By purpose. Proxy-Authorization is not among them: Squid does not send it on.
HEADER_GROUPS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "credentials": (  # each one that can be injected is among them
            *(
                "Authorization",
                "X-Api-Key",
                "Api-Key",
                "X-Goog-Api-Key",
                "Private-Token",
                "X-Auth-Token",
                "Cookie",
            ),
        ),
        "signatures of requests": (
            *(
                "X-Amz-Date",
                "X-Amz-Content-Sha256",
                "X-Amz-Security-Token",
                "X-Amz-Target",
                "X-Amz-User-Agent",
            ),
            *("Amz-Sdk-Invocation-Id", "Amz-Sdk-Request", "Content-MD5", "Date"),
            *(
                "X-Amz-Sdk-Checksum-Algorithm",
                "X-Amz-Checksum-Algorithm",
                "X-Amz-Checksum-Mode",
                "X-Amz-Checksum-Type",
            ),
            *(
                "X-Amz-Checksum-Crc32",
                "X-Amz-Checksum-Crc32c",
                "X-Amz-Checksum-Crc64nvme",
                "X-Amz-Checksum-Sha1",
            ),
            *(
                "X-Amz-Checksum-Sha256",
                "X-Amz-Trailer",
                "X-Amz-Decoded-Content-Length",
                "X-Amz-Copy-Source",
            ),
            *(
                "X-Amz-Storage-Class",
                "X-Amz-Server-Side-Encryption",
                "X-Amz-Tagging",
                "X-Amz-Request-Payer",
            ),
            *("X-Amz-Expected-Bucket-Owner", "X-Amz-Mp-Object-Size"),
        ),
        "the client": (
            *(
                "User-Agent",
                "Referer",
                "Origin",
                "From",
                "Via",
                "X-Forwarded-For",
                "X-Requested-With",
            ),
            *(
                "Sec-Fetch-Dest",
                "Sec-Fetch-Mode",
                "Sec-Fetch-Site",
                "Sec-Fetch-User",
                "Upgrade-Insecure-Requests",
            ),
            *(
                "Sec-CH-UA",
                "Sec-CH-UA-Mobile",
                "Sec-CH-UA-Platform",
                "Access-Control-Request-Headers",
            ),
            *("Access-Control-Request-Method", "Priority", "Git-Protocol"),
        ),
        "what is asked for": (
            *(
                "Accept",
                "Accept-Charset",
                "Accept-Encoding",
                "Accept-Language",
                "Cache-Control",
                "Pragma",
                "Prefer",
            ),
            *(
                "Range",
                "If-Range",
                "If-Match",
                "If-None-Match",
                "If-Modified-Since",
                "If-Unmodified-Since",
            ),
        ),
        "the body": (
            *(
                "Content-Type",
                "Content-Encoding",
                "Content-Language",
                "Content-Disposition",
                "Content-Range",
            ),
        ),
        "interfaces": (
            *(
                "Anthropic-Version",
                "Anthropic-Beta",
                "OpenAI-Organization",
                "OpenAI-Project",
                "OpenAI-Beta",
            ),
            *(
                "X-GitHub-Api-Version",
                "Idempotency-Key",
                "X-Request-Id",
                "Traceparent",
                "Tracestate",
            ),
        ),
        "WebSocket": (
            *(
                "Sec-WebSocket-Key",
                "Sec-WebSocket-Version",
                "Sec-WebSocket-Protocol",
                "Sec-WebSocket-Extensions",
            ),
            "Upgrade",
        ),
    }
)
READ_HEADERS: Final = tuple(name for names in HEADER_GROUPS.values() for name in names)
# Squid states the first copy of these alone, and forwards all. So rendered lines remove
# all and add the first one again, where helpers read headers
# (`configuration/rendering/lines.py`).
FIRST_COPY_HEADERS: Final = (
    *(
        "Authorization",
        "Cookie",
        "Content-MD5",
        "Date",
        "User-Agent",
        "Referer",
        "Origin",
        "From",
        "Range",
        "If-Range",
    ),
    *("If-Unmodified-Since", "Content-Type", "Content-Disposition", "Content-Range"),
)
_KEYS: Final = tuple(name.lower() for name in READ_HEADERS)


def parse_headers(tokens: Sequence[bytes]) -> RequestHeaders:
    """Parse one token for each of `READ_HEADERS`, as they came; more tokens are
    ignored.
    """
    present = (
        (key, token) for key, token in zip(_KEYS, tokens, strict=False) if token != b"-"
    )
    return MappingProxyType({key: decode_token(token) for key, token in present})
