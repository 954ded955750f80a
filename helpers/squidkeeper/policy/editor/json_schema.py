"""The JSON Schema of a policy file: made from the models of
`policy/language/schema.py`.

The models give keys, types and words. A field that they parse from a text is text here,
unless `_WRITTEN` says otherwise. `check` finds more: what a text means, and whether the
names of other sections are there.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel

from squidkeeper.policy.language import schema
from squidkeeper.policy.presets import preset_names

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_Schema = dict[str, Any]
_TEXT: Final[_Schema] = {"type": "string"}
_DEFS: Final = "#/$defs/"
_PORT: Final[_Schema] = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": 65535},
        {"type": "string", "pattern": "^[0-9]{1,5}-[0-9]{1,5}$"},
    ]
}
_NOTHING: Final[_Schema] = {"type": "array", "maxItems": 0}
_DIGEST: Final[_Schema] = {"type": "string", "pattern": "^[0-9A-Fa-f]{64}$"}
_TOKEN: Final[_Schema] = {"anyOf": [_DIGEST, {"$ref": f"{_DEFS}TokenEntry"}]}
_NUMBER_OR_TEXT: Final[_Schema] = {"type": ["integer", "string"]}
_TIME: Final[_Schema] = {
    "type": "string",
    "pattern": r"^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}",
}
_DAYS: Final[_Schema] = {"type": "string", "pattern": "^[A-Za-z]{3}(-[A-Za-z]{3})?$"}
_HOURS: Final[_Schema] = {
    "type": "string",
    "pattern": "^[0-9]{2}:[0-9]{2}-[0-9]{2}:[0-9]{2}$",
}
_SCALAR: Final[_Schema] = {"type": ["string", "number", "boolean", "null"]}
_VALUES: Final[_Schema] = {"type": "array", "minItems": 1, "items": _SCALAR}
_PLACES: Final[_Schema] = {
    "type": "object",
    "minProperties": 1,
    "propertyNames": {"pattern": "^/"},
    "additionalProperties": {
        "anyOf": [_SCALAR, _VALUES, {"$ref": f"{_DEFS}PlaceEntry"}]
    },
}
_REF: Final[_Schema] = {"type": "string", "pattern": "^refs/"}
_AMOUNT: Final[_Schema] = {"type": "integer", "minimum": 1}
_PRICE: Final[_Schema] = {"type": "number", "minimum": 0}
_TEXTS: Final[_Schema] = {"type": "array", "minItems": 1, "items": _TEXT}
_SIZE: Final[_Schema] = {
    "anyOf": [_AMOUNT, {"type": "string", "pattern": "^[0-9]+[KMGT]B$"}]
}
# How a field is written, where it is not what its model says: by its model and name.
# `[]` is one entry of its list.
_WRITTEN: Final[Mapping[str, _Schema]] = {
    "PolicyFile.version": {"const": 1},
    "PolicyFile.end": {"type": "boolean"},
    "Defaults.action": {"enum": ["allow", "deny"]},
    "ReloadGateEntry.denials": {"type": "integer", "minimum": 1},
    "ClientEntry.token_sha256": {
        "anyOf": [_DIGEST, {"type": "array", "items": _TOKEN}]
    },
    "TokenEntry.sha256": _DIGEST,
    "TokenEntry.expires": _TIME,
    "TunnelFields.ports[]": _PORT,
    "WhenEntry.days": {
        "anyOf": [_DAYS, {"type": "array", "minItems": 1, "items": _DAYS}]
    },
    "WhenEntry.hours": {
        "anyOf": [_HOURS, {"type": "array", "minItems": 1, "items": _HOURS}]
    },
    "GrantEntry.ports[]": _PORT,
    "GrantEntry.uses": {"type": "integer", "minimum": 1},
    "GrantEntry.expires": _TIME,
    "GrantEntry.made": _TIME,
    "MatchFields.methods[]": {"type": "string", "pattern": "^[A-Z][A-Z0-9_-]*$"},
    "MatchFields.paths[]": {"type": "string", "pattern": r"^(/|\*\*|regex:)"},
    "RoleEntry.ttl": {"type": "string", "pattern": "^[0-9]{1,6}[mhd]$"},
    "VariableEntry.many": _AMOUNT,
    "SecretEntry.session": {"const": True},
    "TestedSessionEntry.variables": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"anyOf": [_TEXT, _TEXTS]},
    },
    "QuotaEntry.per": {
        "anyOf": [
            {"enum": ["client", "rule", "all", "session"]},
            {"type": "string", "pattern": "^label:"},
        ]
    },
    "QuotaEntry.requests": _AMOUNT,
    "QuotaEntry.tunnels": _AMOUNT,
    "QuotaEntry.tickets": _AMOUNT,
    "QuotaEntry.bytes_out": _SIZE,
    "QuotaEntry.bytes_in": _SIZE,
    "QuotaEntry.tokens_in": _AMOUNT,
    "QuotaEntry.tokens_out": _AMOUNT,
    "QuotaEntry.tokens": _AMOUNT,
    "QuotaEntry.cost": {"type": "number", "exclusiveMinimum": 0},
    "PriceEntry.tokens_in": _PRICE,
    "PriceEntry.tokens_out": _PRICE,
    "PriceEntry.cached_in": _PRICE,
    "PriceEntry.cache_write": _PRICE,
    "RuleEntry.reserve": _AMOUNT,
    "BodyEntry.in_json": _PLACES,
    "BodyEntry.only[]": {"type": "string", "pattern": "^/"},
    "BodyEntry.max": _SIZE,
    "PlaceEntry.values": _VALUES,
    "PlaceEntry.min": {"type": "number"},
    "PlaceEntry.max": {"type": "number"},
    "GitEntry.push[]": {"type": "string", "pattern": r"^(refs/|\*\*)"},
    "McpEntry.arguments": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": _PLACES,
    },
    "RuleEntry.expires": _TIME,
    "RewriteEntry.to": {"type": "string", "pattern": "^https?://"},
    "GitHubAppEntry.app_id": _NUMBER_OR_TEXT,
    "GitHubAppEntry.installation_id": _NUMBER_OR_TEXT,
    "TestEntry.request": {"type": "string", "pattern": "^[A-Z0-9_-]+ [A-Za-z]+://"},
    "TestEntry.at": _TIME,
    "TestEntry.body": {"anyOf": [_TEXT, {"type": "object"}, {"type": "array"}]},
    "PushEntry.update[]": _REF,
    "PushEntry.create[]": _REF,
    "PushEntry.delete[]": _REF,
    "TestEntry.rewrite": {"anyOf": [_TEXT, _NOTHING]},
    "TestEntry.observed": {"anyOf": [_TEXT, _NOTHING]},
}
_ABOUT: Final = "about"
_PERIODS: Final = (("h", 3600), ("m", 60), ("s", 1))
_MAY_BE_EMPTY: Final = frozenset({"TestEntry.credentials", "GitEntry.options"})


def json_schema() -> _Schema:
    """Make the schema."""
    made = schema.PolicyFile.model_json_schema()
    models = {name: getattr(schema, name, None) for name in made["$defs"]} | {
        "PolicyFile": schema.PolicyFile
    }
    entries = {**made["$defs"], "PolicyFile": made}
    defined = {
        name: _entry(name, entries[name], models[name]) for name in sorted(entries)
    }
    defined["PresetEntry"]["properties"]["preset"]["enum"] = names = sorted(
        preset_names()
    )
    whole = defined.pop("PolicyFile")
    whole["properties"]["presets"]["items"] = {
        "anyOf": [{"enum": names}, {"$ref": f"{_DEFS}PresetEntry"}]
    }
    return {
        "$schema": DIALECT,
        "title": "A policy file of squidkeeper",
        **whole,
        "$defs": defined,
    }


@cache
def descriptions() -> Mapping[str, str]:
    """Read what each model is, by its name, and each field, by `MODEL.FIELD`."""
    read = yaml.safe_load(
        Path(__file__).with_name("descriptions.yaml").read_text("utf-8")
    )
    named = (
        (model, name, text)
        for model, fields in read.items()
        for name, text in fields.items()
    )
    return {
        model if name == _ABOUT else f"{model}.{name}": text
        for model, name, text in named
    }


def field_keys(model: type[BaseModel], name: str) -> list[str]:
    """List the keys under which a field may be described: its model's, and those of the
    models that it extends.
    """
    return [
        f"{base.__name__}.{name}"
        for base in model.__mro__
        if name in getattr(base, "model_fields", {})
    ]


def _entry(name: str, made: _Schema, model: type[BaseModel] | None) -> _Schema:
    if model is None or "properties" not in made:  # an enumeration
        return {"enum": made["enum"]}
    fields = {
        found.alias or field: field for field, found in model.model_fields.items()
    }
    written = {
        key: _field(model, fields[key], value)
        for key, value in made["properties"].items()
    }
    required = {"required": made["required"]} if "required" in made else {}
    return {
        "description": descriptions()[name],
        "type": "object",
        "additionalProperties": False,
        **required,
        "properties": written,
    }


def _field(model: type[BaseModel], name: str, made: _Schema) -> _Schema:
    keys, told = field_keys(model, name), descriptions()
    description = next(told[key] for key in keys if key in told)
    own = next((_WRITTEN[key] for key in keys if key in _WRITTEN), None) or _type_of(
        keys, made
    )
    return {"description": description, **own, **_default(own, made)}


def _default(own: _Schema, made: _Schema) -> _Schema:
    """Write what a field is if it is left out; a number of seconds or bytes as the text
    that a policy has.
    """
    default = made.get("default")
    if isinstance(default, int) and own.get("type") == "string":
        unit, size = next((unit, n) for unit, n in _PERIODS if default % n == 0)
        default = f"{default // size}{unit}"
    if own is _SIZE and default is not None:
        default = f"{default // 10**6}MB"
    return {} if default is None else {"default": default}


def _type_of(keys: list[str], made: _Schema) -> _Schema:
    """Write a type without what only the program has: titles, defaults, null for what
    is left out.
    """
    if "anyOf" in made:
        [made] = [choice for choice in made["anyOf"] if choice != {"type": "null"}]
    kind: _Schema = {
        key: made[key] for key in ("type", "enum", "const", "$ref") if key in made
    }
    if kind.get("type") == "array":
        entry = next(
            (_WRITTEN[f"{key}[]"] for key in keys if f"{key}[]" in _WRITTEN), None
        )
        shortest = {} if _MAY_BE_EMPTY.intersection(keys) else {"minItems": 1}
        return {**kind, **shortest, "items": entry or _type_of([], made["items"])}
    if kind.get("type") == "object":
        values = made["additionalProperties"]
        return {
            **kind,
            "minProperties": 1,
            "additionalProperties": _TEXT if values is True else _type_of([], values),
        }
    return kind or _TEXT
