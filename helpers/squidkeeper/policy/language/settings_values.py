"""A file of settings: how its values are read, what is wrong with it as faults, and its
JSON Schema.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic_core import (
    CoreSchema,
    ErrorDetails,
    PydanticCustomError,
    core_schema,
)

from squidkeeper.base.errors import InvalidUrl, PatternError
from squidkeeper.base.faults import Fault, FaultCode
from squidkeeper.policy.language.document import Document
from squidkeeper.policy.language.schema import one_of, suggestion
from squidkeeper.policy.language.unquoted import Unquoted, describe, quote_it

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
TEXT: Final = {"type": "string"}
_OF_PROGRAM: Final = ("title", "default", "anyOf")


class SettingsModel(BaseModel):
    """A mapping of a file of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


M = TypeVar("M", bound=SettingsModel)


@dataclass(frozen=True, slots=True)
class SettingValue:
    """How a value is read, and how the JSON Schema shows it."""

    read: Callable[[object], object]
    shown: dict[str, Any]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Read the value, whatever its type is."""
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(
        self, made: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Show it as it is written."""
        return self.shown


def wrong(code: FaultCode, message: str) -> PydanticCustomError:
    """Refuse a value by a code and a message."""
    return PydanticCustomError("fault", "{message}", {"code": code, "message": message})


def unexpected(expected: str) -> PydanticCustomError:
    """Refuse a value of another type."""
    return PydanticCustomError("unexpected", "{expected}", {"expected": expected})


def text(value: object) -> str:
    """Read a text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise unexpected("text")
    return value


def _version(value: object) -> int:  # pydantic's Literal[1] takes true
    if value != 1 or not isinstance(value, int) or isinstance(value, bool):
        raise unexpected("the number 1, which is the version of these settings")
    return value


Version = Annotated[int, SettingValue(_version, {"const": 1})]


def number(most: int, beyond: str = "", least: int = 1) -> SettingValue:
    """Read a number within bounds; `beyond` says what to do about a larger one."""

    def read(value: object) -> int:
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or not least <= value <= most
        ):
            raise unexpected(f"a number from {least} to {most}{beyond}")
        return value

    return SettingValue(read, {"type": "integer", "minimum": least, "maximum": most})


def word(words: tuple[str, ...]) -> SettingValue:
    """Read one of several words."""

    def read(value: object) -> str:
        if value not in words:
            raise unexpected(one_of(words))
        return str(value)

    return SettingValue(read, {"enum": [*words]})


def parsed(parse: Callable[[str], str], code: FaultCode) -> SettingValue:
    """Read a text that `parse` takes."""

    def read(value: object) -> str:
        try:
            return parse(text(value))
        except (PatternError, InvalidUrl) as error:
            raise wrong(code, str(error)) from None

    return SettingValue(read, TEXT)


def read_model(
    model: type[M], document: Document, required: Mapping[str, str]
) -> tuple[M | None, list[Fault]]:
    """Read the settings of a document, or find all faults of its values.

    `required` says what is expected of the keys that must be there.
    """
    try:
        return model.model_validate(document.data), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    found = (_fault_of(model, document, detail, required) for detail in details)
    return None, [*filter(None, found)]


def model_schema(model: type[SettingsModel], title: str) -> dict[str, Any]:
    """Make the JSON Schema of a file, for editors."""
    made = model.model_json_schema()
    return {"$schema": DIALECT, "title": title, **_as_written(made)}


def _as_written(made: dict[str, Any]) -> dict[str, Any]:
    """Leave out what only the program has: titles, and null for what is left out."""
    [*choices] = (one for one in made.get("anyOf", ()) if one != {"type": "null"})
    left = {key: made[key] for key in made if key not in _OF_PROGRAM}
    left |= choices[0] if choices else {}
    for group in ("properties", "$defs"):
        if group in left:
            left[group] = {
                name: _as_written(inner) for name, inner in left[group].items()
            }
    return left


def _fault_of(
    model: type[SettingsModel],
    document: Document,
    detail: ErrorDetails,
    required: Mapping[str, str],
) -> Fault | None:
    steps, value = [*detail["loc"]], detail["input"]
    unknown = detail["type"] == "extra_forbidden"
    if isinstance(value, Unquoted) and value.null and not unknown:
        return None  # the document has reported it
    code, message = _code_and_message(model, detail, required)
    return Fault(document.locate(steps, key=unknown), code, message)


def _code_and_message(
    model: type[SettingsModel], detail: ErrorDetails, required: Mapping[str, str]
) -> tuple[FaultCode, str]:
    steps, value = [*detail["loc"]], detail["input"]
    context, key = detail.get("ctx", {}), steps[-1] if steps else ""
    match detail["type"]:
        case "fault":
            return context["code"], context["message"]
        case "extra_forbidden":
            known = frozenset(_model_at(model, steps[:-1]).model_fields)
            expected = (
                suggestion(str(key), known) or f", expected {one_of((*sorted(known),))}"
            )
            return FaultCode.UNKNOWN_KEY, f"unknown key {key!r}{expected}"
        case "missing":
            return (
                FaultCode.MISSING_KEY,
                f"key {key!r} is missing, expected {required[str(key)]}",
            )
    expected = context.get("expected") or _EXPECTED[detail["type"]]
    what = f"an entry of {steps[-2]!r}" if isinstance(key, int) else f"{key!r}"
    hint = quote_it(value) if expected == "text" else ""
    return (
        FaultCode.WRONG_TYPE,
        f"{what} is {describe(value)}, expected {expected}{hint}",
    )


def _model_at(
    model: type[SettingsModel], steps: list[int | str]
) -> type[SettingsModel]:
    """Find the model of the mapping that `steps` lead to."""
    for step in steps:
        field = model.model_fields.get(str(step))
        if field is not None:
            model = next(_models_in(field.annotation), model)
    return model


def _models_in(annotation: object) -> Iterator[type[SettingsModel]]:
    if isinstance(annotation, type) and issubclass(annotation, SettingsModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


_EXPECTED: Final = {
    "tuple_type": "a list, such as [one, two]",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
}
