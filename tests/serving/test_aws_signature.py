"""AWS Signature Version 4: the examples of AWS's documentation, and what cannot be
signed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squidkeeper.base.errors import SigningRefused
from squidkeeper.serving.credentials.aws_signature import (
    AwsKeys,
    AwsScope,
    load_signer,
    sign,
)

from .. import aws

NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
S3_KEYS = AwsKeys("AKIAIOSFODNN7EXAMPLE", SECRET)
S3 = AwsScope("us-east-1", "s3")
S3_TIME = datetime(2013, 5, 24, tzinfo=UTC)
BUCKET = "https://examplebucket.s3.amazonaws.com"
SUITE_KEYS = AwsKeys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SUITE = AwsScope("us-east-1", "service")
SUITE_TIME = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
EMPTY = {"x-amz-content-sha256": NOTHING}


@pytest.fixture(autouse=True, scope="module")
def signer() -> None:
    load_signer()


def verified(
    keys: AwsKeys, scope: AwsScope, method: str, url: str, headers: dict[str, str]
) -> str | None:
    """What AWS would say about a request that is signed and sent."""
    added = sign(keys, scope, method, url, headers, S3_TIME)
    host, slash, rest = url.removeprefix("https://").partition("/")
    sent = {
        **headers,
        **{name.lower(): value for name, value in added.items()},
        "host": host,
    }
    return aws.problem(keys.secret_access_key, method, slash + rest, sent)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            f"{BUCKET}/?lifecycle",
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            f"{BUCKET}/?max-keys=2&prefix=J",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
)
def test_the_examples_of_s3s_documentation(url: str, expected: str) -> None:
    added = sign(S3_KEYS, S3, "GET", url, EMPTY, S3_TIME)
    assert added["Authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        f"SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={expected}"
    )
    assert added["X-Amz-Date"] == "20130524T000000Z"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "https://example.amazonaws.com/",
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        (
            "https://example.amazonaws.com/?Param2=value2&Param1=value1",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
    ],
)
def test_the_vectors_of_awss_test_suite(url: str, expected: str) -> None:
    added = sign(SUITE_KEYS, SUITE, "GET", url, {}, SUITE_TIME)
    assert added["Authorization"].endswith(
        f"SignedHeaders=host;x-amz-date, Signature={expected}"
    )
    assert "X-Amz-Content-Sha256" not in added


@given(
    path=st.text(st.sampled_from("ab/.~-_%()+ é$&'!*,:;=@")),
    query=st.lists(
        st.tuples(
            st.text(st.sampled_from("ab-%/+ é")), st.text(st.sampled_from("ab=%/ é"))
        )
    ),
)
def test_what_s3_is_sent_has_a_signature_that_is_right(
    path: str, query: list[tuple[str, str]]
) -> None:
    # escaped as little as a client may
    sent_path = quote(path, safe="/()$&'!*,:;=@+~")
    sent_query = "&".join(
        f"{quote(key, safe='/')}={quote(value, safe='/')}" for key, value in query
    )
    url = f"{BUCKET}/{sent_path}" + (f"?{sent_query}" if sent_query else "")
    assert verified(S3_KEYS, S3, "GET", url, EMPTY) is None


@pytest.mark.parametrize(
    ("headers", "payload"),
    [
        (EMPTY, NOTHING),
        ({}, "UNSIGNED-PAYLOAD"),
        ({"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}, "UNSIGNED-PAYLOAD"),
        (
            {"x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"},
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        ),
    ],
    ids=str,
)
def test_s3_gets_the_payload_that_the_client_declares(
    headers: dict[str, str], payload: str
) -> None:
    assert (
        sign(S3_KEYS, S3, "PUT", f"{BUCKET}/x", headers, S3_TIME)[
            "X-Amz-Content-Sha256"
        ]
        == payload
    )
    assert verified(S3_KEYS, S3, "PUT", f"{BUCKET}/x", headers) is None


def test_every_header_of_the_client_that_aws_wants_signed_is_signed() -> None:
    own = {
        **EMPTY,
        "x-amz-acl": "private",
        "x-amz-meta-a": " two  words ",
        "content-type": "text/plain",
    }
    own["authorization"] = (
        "AWS4-HMAC-SHA256 Credential=DUMMY/20130524/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;x-amz-acl;x-amz-content-sha256;x-amz-date, Signature=00"
    )
    added = sign(S3_KEYS, S3, "PUT", f"{BUCKET}/x", own, S3_TIME)
    assert (
        "content-type;host;x-amz-acl;x-amz-content-sha256;x-amz-date;x-amz-meta-a"
        in added["Authorization"]
    )
    assert verified(S3_KEYS, S3, "PUT", f"{BUCKET}/x", own) is None


def test_the_clients_own_date_and_token_are_replaced() -> None:
    keys = AwsKeys("AKIAIOSFODNN7EXAMPLE", SECRET, "session")
    own = {
        **EMPTY,
        "x-amz-date": "20000101T000000Z",
        "x-amz-security-token": "of the client",
        "authorization": "x",
    }
    added = sign(keys, S3, "GET", f"{BUCKET}/x", own, S3_TIME)
    assert (added["X-Amz-Date"], added["X-Amz-Security-Token"]) == (
        "20130524T000000Z",
        "session",
    )
    assert verified(keys, S3, "GET", f"{BUCKET}/x", own) is None


@pytest.mark.parametrize(
    ("scope", "method", "headers", "reason"),
    [
        (
            S3,
            "PUT",
            {"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"},
            "signs each chunk",
        ),
        (
            S3,
            "PUT",
            {"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"},
            "signs each chunk",
        ),
        (S3, "PUT", {"x-amz-content-sha256": f"{NOTHING}, {NOTHING}"}, "not a SHA-256"),
        (
            S3,
            "GET",
            {
                "authorization": "AWS4-HMAC-SHA256 C=x, SignedHeaders=host;x-amz-odd, S=0"
            },
            "x-amz-odd",
        ),
        (SUITE, "POST", {}, "signs the body"),
        (SUITE, "POST", {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}, "signs the body"),
    ],
    ids=str,
)
def test_what_cannot_be_signed_from_the_head_is_refused(
    scope: AwsScope, method: str, headers: dict[str, str], reason: str
) -> None:
    with pytest.raises(SigningRefused, match=reason):
        sign(S3_KEYS, scope, method, f"{BUCKET}/x", headers, S3_TIME)


@pytest.mark.parametrize("digit", "a0")
def test_a_service_that_is_told_the_hash_gets_a_signature_over_it(digit: str) -> None:
    own = {
        "x-amz-content-sha256": digit * 64,
        "x-amz-target": "DynamoDB_20120810.GetItem",
    }
    assert (
        verified(
            SUITE_KEYS, SUITE, "POST", "https://dynamodb.us-east-1.amazonaws.com/", own
        )
        is None
    )


def test_keys_never_print_themselves() -> None:
    assert SECRET not in repr(S3_KEYS)
