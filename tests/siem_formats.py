"""What receivers of an export require: a schema or a parser for each format,
independent of what writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from squidkeeper.record.export import ocsf

VERSION = "1.2.3"  # of squidkeeper, as the tests have it
ECS = yaml.safe_load((Path(__file__).parent / "data/ecs_fields.yaml").read_text())
# The keys of ArcSight's dictionary (Common Event Format, version 25) that are used
# here, with the kind of their value.
DICTIONARY: dict[str, Callable[[str], object]] = {
    **dict.fromkeys(
        (
            "rt",
            "start",
            "end",
            "in",
            "out",
            "spt",
            "dpt",
            "cn1",
            "cn2",
            "cn3",
            "deviceDirection",
        ),
        int,
    ),
    **dict.fromkeys(
        (
            "act",
            "outcome",
            "reason",
            "externalId",
            "dvchost",
            "suser",
            "dhost",
            "app",
            "msg",
        ),
        str,
    ),
    **dict.fromkeys(
        ("requestMethod", "request", "requestClientApplication", "requestContext"), str
    ),
    **dict.fromkeys(("src", "dst", "c6a2", "c6a3"), ip_address),
    **dict.fromkeys(
        ("cs1", "cs2", "cs3", "cs4", "cs5", "cs6", "flexString1", "flexString2"), str
    ),
}


@cache
def validator(class_name: str, *profiles: str) -> Draft202012Validator:
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=ocsf.SCHEMA_VERSION))
    return Draft202012Validator(
        schema.get_class_schema(class_name=class_name, profiles=[*profiles])
    )


def valid_activity(message: bytes) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(message)
    validator("http_activity", *ocsf.PROFILES).validate(event)
    for where in ("src_endpoint", "dst_endpoint"):
        if "ip" in event.get(where, {}):
            ip_address(event[where]["ip"])
    assert event["type_uid"] == 4002 * 100 + event["activity_id"]
    return event


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def is_of_type(kind: str, value: Any) -> bool:
    if kind == "long":
        return isinstance(value, int) and -(2**63) <= value < 2**63
    if kind == "ip":
        return bool(ip_address(value))
    if kind == "date":
        return datetime.fromisoformat(value).tzinfo is not None
    return isinstance(value, str) and value != ""


def check_ecs(message: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(message)
    flat = {
        name: value
        for name, value in leaves(document)
        if not name.startswith("squidkeeper.")
    }
    for name, value in flat.items():
        assert isinstance(value, list) is (name in ECS["lists"]), name
        for item in value if isinstance(value, list) else [value]:
            assert is_of_type(ECS["types"][name], item), (name, item)
            assert item in ECS["allowed"].get(name, [item]), (name, item)
    categories = flat.get("event.category", [])
    allowed = {kind for category in categories for kind in ECS["event_types"][category]}
    assert {*flat.get("event.type", [])} <= allowed
    return document


def parse_cef(message: bytes) -> tuple[list[str], dict[str, str]]:
    """Parse as a receiver does: the head ends at the seventh bare `|`, a value at the
    next ` key=`.
    """
    text = message.decode()
    *head, extension = re.split(r"(?<!\\)(?:\\\\)*\|", text, maxsplit=7)
    assert len(head) == 7
    pairs = re.findall(r"(\w+)=((?:[^=\\]|\\.)*)(?= \w+=|$)", extension)
    assert " ".join(f"{key}={value}" for key, value in pairs) == extension
    values = {key: re.sub(r"\\(.)", r"\1", value) for key, value in pairs}
    assert len(values) == len(pairs)
    return head, values


def check_cef(message: bytes) -> dict[str, str]:
    head, values = parse_cef(message)
    assert head[:4] == ["CEF:0", "squidkeeper", "squidkeeper", VERSION]
    assert 0 <= int(head[6]) <= 10
    for key, value in values.items():
        assert value, key
        if not key.endswith("Label"):
            DICTIONARY[key](value)
        else:
            assert key.removesuffix("Label") in values
    assert {
        key
        for key in values
        if re.match(r"c[ns6]|flex", key) and f"{key}Label" not in values
    } == {key for key in values if key.endswith("Label")}
    return values


def value_of(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return (
        [value_of(item) for item in value.array_value.values]
        if kind == "array_value"
        else getattr(value, str(kind))
    )


def attributes_of(message: bytes) -> dict[str, Any]:
    log = LogRecord.FromString(message)
    attributes = {
        attribute.key: value_of(attribute.value) for attribute in log.attributes
    }
    assert len(attributes) == len(log.attributes)
    return attributes


CHECKS: dict[str, Callable[[bytes], object]] = {
    "ocsf": valid_activity,
    "ecs": check_ecs,
    "cef": check_cef,
    "otlp": attributes_of,
    "json": json.loads,
}
