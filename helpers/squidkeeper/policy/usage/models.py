"""The models that the path of a request names, such as `/deployments/NAME/…`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final
from urllib.parse import unquote

from squidkeeper.base.errors import InvalidUrl
from squidkeeper.policy.url import readings, sent

# what is ahead of a model, a deployment of one, or an endpoint with one: Azure, OpenAI,
# Gemini, Vertex, Bedrock, SageMaker, Databricks, Cloudflare
_AHEAD: Final = frozenset(
    {
        "deployment",
        "deployments",
        "endpoints",
        "engines",
        "model",
        "models",
        "run",
        "serving-endpoints",
    }
)
_BODY_DECIDES: Final = "openapi"  # Vertex: the endpoint of all models
_VERB: Final = re.compile(r":[A-Za-z]+\Z")  # `:generateContent`


def models_in(target: str) -> tuple[str, ...]:
    """Return the models that a target may name, in any reading of its path.

    One without a name stands for what cannot be read.
    """
    try:
        paths = [reading.path for reading in readings(sent(target.partition("?")[0]))]
    except InvalidUrl:
        return ("",)
    return tuple(dict.fromkeys(name for path in paths for name in _names(path)))


def _names(path: str) -> Iterator[str]:
    for before, segment in pairwise(path.split("/")):
        name = _VERB.sub("", unquote(segment))
        if before.lower() in _AHEAD and name != _BODY_DECIDES:
            yield name
