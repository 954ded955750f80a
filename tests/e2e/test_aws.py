"""AWS signatures on a live Squid: what reaches the origin is signed as it arrives,
whatever the client sends.
"""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tests import aws

from .curl import clean, curl
from .gateway import Gateway
from .origin import Answer, Origins, Seen
from .raw import tunnel

POLICY = """
version: 1
rules:
  - {name: buckets, action: allow, hosts: [bucket.s3.example, s3.example, part.s3.example, front.example]}
  - {name: tables, action: allow, hosts: [tables.example, other.example]}
  - {name: stripped, action: allow, hosts: [stripped.example], strip: [X-Debug]}
rewrites:
  - {name: front, hosts: [front.example], to: "https://bucket.s3.example{path}{query}"}
secrets:
  id: {file: secrets/id}
  key: {file: secrets/key}
  session: {file: secrets/session}
credentials:
  - name: s3
    hosts: [bucket.s3.example, s3.example]
    aws_sigv4: {access_key_id: id, secret_access_key: key, region: eu-central-1}
  - name: part
    hosts: [part.s3.example]
    paths: [/mine/**]
    aws_sigv4: {access_key_id: id, secret_access_key: key, session_token: session, region: eu-central-1, service: s3}
  - name: tables
    hosts: [tables.example]
    aws_sigv4: {access_key_id: id, secret_access_key: key, region: eu-central-1, service: dynamodb}
"""
KEY_ID, KEY, SESSION = (
    "AKIAE2ETESTKEY",
    "e2e/aws+secret/access/key",
    "e2e-aws-session-token==",
)
STREAMED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"

SECRETS = {"id": KEY_ID, "key": KEY, "session": SESSION}


def headers_of(seen: Seen) -> dict[str, str]:
    names = [name.lower() for name, _ in seen.headers]
    assert len(names) == len(set(names)), f"a header twice: {names}"
    return {name.lower(): value for name, value in seen.headers}


def problem(seen: Seen) -> str | None:
    """What AWS would refuse about the request that arrived."""
    return aws.problem(KEY, seen.method, seen.target, headers_of(seen), seen.body)


PATHS = [
    "/",
    "/a/b.txt",
    "/a%20b/%C3%A9",
    "/a+b/c=d@e:f",
    "/a//b/../c/.",
    "/key%2Fwith%2Fslashes",
    "/(par)'en\"s!*",
    "/x?list-type=2&prefix=a%2Fb&delimiter=/",
    "/x?acl",
    "/x?b=2&a=1&a=0&empty=",
    "/x?k=%20%2B~-_.",
    "/caf\u00e9",
]


@pytest.mark.parametrize("target", PATHS)
def test_the_bytes_that_arrive_are_those_that_are_signed(
    gateway: Gateway, origins: Origins, target: str
) -> None:
    reply = curl(gateway, f"https://bucket.s3.example{target}")
    assert reply.status == 200, reply.text
    assert problem(origins.seen[0]) is None, origins.seen[0].head


def test_an_upload_keeps_the_hash_that_its_client_declares(
    gateway: Gateway, origins: Origins
) -> None:
    digest = sha256(b"a body").hexdigest()
    own = [
        "-H",
        f"X-Amz-Content-Sha256: {digest}",
        "-H",
        "X-Amz-Date: 20000101T000000Z",
        "-H",
        "Content-Type: text/x",
    ]
    own += [
        "-H",
        "Authorization: AWS4-HMAC-SHA256 of-the-client",
        "-H",
        "X-Amz-Security-Token: of-the-client",
    ]
    curl(
        gateway,
        "https://bucket.s3.example/x",
        "-X",
        "PUT",
        "--data-raw",
        "a body",
        *own,
    )
    seen = origins.seen[0]
    assert seen.values("X-Amz-Content-Sha256") == [digest]
    assert b"of-the-client" not in seen.head
    assert "content-type;host;" in seen.values("Authorization")[0]
    assert problem(seen) is None


def test_a_session_has_its_token_and_a_part_of_a_host_no_other_signature(
    gateway: Gateway, origins: Origins
) -> None:
    curl(gateway, "https://part.s3.example/mine/x")
    curl(gateway, "https://part.s3.example/other/x")
    assert origins.seen[0].values("X-Amz-Security-Token") == [SESSION]
    assert problem(origins.seen[0]) is None
    assert origins.seen[1].values("Authorization") == []


def test_the_rewritten_request_is_the_one_that_is_signed(
    gateway: Gateway, origins: Origins
) -> None:
    curl(gateway, "https://front.example/x?y=1")
    assert origins.urls() == ["https://bucket.s3.example/x?y=1"]
    assert problem(origins.seen[0]) is None


@pytest.mark.parametrize(
    ("url", "options", "reason"),
    [
        (
            "https://bucket.s3.example/x",
            ("-T", "/dev/null", "-H", f"X-Amz-Content-Sha256: {STREAMED}"),
            "each chunk",
        ),
        (
            "https://bucket.s3.example/x",
            ("-H", "X-Amz-Content-Sha256: x"),
            "not a SHA-256",
        ),
        (
            "https://part.s3.example/mine/x",
            ("-X", "PUT", "-H", "X-Amz-Copy-Source: /b/k"),
            "X-Amz-Copy-Source",
        ),
        ("https://tables.example/", ("--data-raw", "{}"), "signs the body"),
        (
            "https://bucket.s3.example/x?X-Amz-Algorithm=AWS4-HMAC-SHA256",
            (),
            "the query has a parameter X-Amz-",
        ),
        (
            "https://part.s3.example/mine/x?a&x%2damz_copy-source=/b/k",
            ("-X", "PUT"),
            "the query has a parameter X-Amz-",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "://" not in value else "",
)
def test_what_cannot_be_signed_is_denied_with_its_reason(
    gateway: Gateway, origins: Origins, url: str, options: tuple[str, ...], reason: str
) -> None:
    reply = curl(gateway, url, *options)
    assert (reply.status, reply.rule) == (403, "credential-unavailable"), reply.text
    assert reason in (reply.reason or "")
    assert origins.seen == []


def test_a_service_without_a_declared_hash_is_signed_where_there_is_no_body(
    gateway: Gateway, origins: Origins
) -> None:
    curl(gateway, "https://tables.example/a%20b?x=%2F")
    assert problem(origins.seen[0]) is None


def test_nothing_is_signed_over_http_nor_for_another_host(
    gateway: Gateway, origins: Origins
) -> None:
    curl(gateway, "http://bucket.s3.example/x")
    curl(gateway, "https://other.example/x", "-H", "X-Amz-Date: mine")
    assert [seen.values("Authorization") for seen in origins.seen] == [[], []]
    assert origins.seen[1].values("X-Amz-Date") == ["mine"]


def test_no_header_of_the_signature_can_be_taken_out_or_doubled(
    gateway: Gateway, origins: Origins
) -> None:
    with tunnel(gateway, "bucket.s3.example:443") as client:
        client.get(
            "/x",
            "bucket.s3.example",
            "Connection: x-amz-date, authorization, x-amz-content-sha256",
            "X-Amz-Date: 1",
            "x-amz-date: 2",
            "X_Amz_Date: 3",
        )
    seen = origins.seen[0]
    assert problem(seen) is None
    assert len(seen.values("X-Amz-Date") + seen.values("X_Amz_Date")) == 1


UNREAD = (
    "X_Amz_Copy_Source",
    "X-Amz_Copy-Source",
    "X.Amz.Copy.Source",
    "X_Amz_Acl",
    "X-Amz-Acl",
    "X-Own",
    "X_Debug",
)


def test_beside_a_signature_no_header_passes_that_the_gateway_does_not_read(
    gateway: Gateway, origins: Origins
) -> None:
    own = [f"{name}: /other/secret" for name in UNREAD]
    for host, path in (
        ("part.s3.example", "/mine/x"),
        ("part.s3.example", "/other/x"),
        ("other.example", "/x"),
    ):
        with tunnel(gateway, f"{host}:443") as client:
            client.get(
                path,
                host,
                *own,
                "X-Request-Id: 1",
                "Amz-Sdk-Request: attempt=1",
                "Range: bytes=0-9",
            )
    assert problem(origins.seen[0]) is None
    arrived = [[name for name in UNREAD if seen.values(name)] for seen in origins.seen]
    assert arrived == [[], [*UNREAD], [*UNREAD]]
    for seen in origins.seen:
        assert seen.values("X-Request-Id") + seen.values("Amz-Sdk-Request") == [
            "1",
            "attempt=1",
        ]
        assert seen.values("Range") == ["bytes=0-9"]


CLIENT = """
import sys
from botocore.config import Config
from botocore.session import Session
proxy, ca = sys.argv[1:]
config = Config(proxies={"https": proxy}, region_name="us-east-1", retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"})
client = Session().create_client("s3", aws_access_key_id="DUMMY", aws_secret_access_key="DUMMY", verify=ca,
                                 endpoint_url="https://s3.example", config=config)
# the origin of these tests sends no 100
client.meta.events.register("before-sign.s3", lambda request, **_: request.headers.__delitem__("Expect"))
client.put_object(Bucket="bucket", Key="a key/with (odd) chars+é", Body=b"hello " * 1000, ContentType="text/plain")
print(client.get_object(Bucket="bucket", Key="a key/with (odd) chars+é")["Body"].read().decode())
client.delete_object(Bucket="bucket", Key="x")
list(client.list_objects_v2(Bucket="bucket", Prefix="a/b c", Delimiter="/"))
"""


@pytest.mark.long
def test_a_client_of_aws_with_dummy_keys_works(
    gateway: Gateway, origins: Origins, tmp_path: Path
) -> None:
    def answer(seen: Seen) -> Answer:
        found = problem(seen)
        if found is not None:
            return Answer(
                403,
                body=f"<Error><Code>SignatureDoesNotMatch</Code><Message>{found}</Message></Error>".encode(),
            )
        listing = b"<?xml version='1.0'?><ListBucketResult><Name>bucket</Name></ListBucketResult>"
        stored = listing if "list-type" in seen.target else b"an object"
        return Answer(200, body=stored if seen.method == "GET" else b"")

    origins.fallback = answer
    environment = {
        **clean(),
        "HOME": str(tmp_path),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [
        sys.executable,
        "-c",
        CLIENT,
        f"http://{gateway.authority}",
        os.fspath(gateway.ca),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "an object\n"
    assert [seen.method for seen in origins.seen] == ["PUT", "GET", "DELETE", "GET"]
    assert not any(b"DUMMY" in seen.head for seen in origins.seen)
