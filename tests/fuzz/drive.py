"""Run one target under atheris: `python -m tests.fuzz.drive TARGET CORPUS [options of
libFuzzer]`.
"""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore] # tests/fuzz/run installs it, into a place of its own

from .target import Target

_WHOLLY_RANDOM = (
    3  # of four mutations, those by libFuzzer itself where a target has its own
)


def main() -> None:
    name, corpus, *options = sys.argv[1:]
    target = _load(name)
    folder = Path(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (folder / f"seed-{number:03}").write_bytes(seed)
    words = folder.with_name(f"{folder.name}.words")
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    arguments = [
        sys.argv[0],
        corpus,
        f"-dict={words}",
        f"-max_len={target.longest_bytes}",
        "-timeout=10",
        *options,
    ]
    atheris.Setup(arguments, target.check, **_mutator(target))
    atheris.Fuzz()


def _load(name: str) -> Target:
    with atheris.instrument_imports(include=["squidkeeper"]):
        target = importlib.import_module(f"tests.fuzz.{name}").TARGET
    assert isinstance(target, Target)
    return target


def _mutator(target: Target) -> dict[str, object]:
    mutate = target.mutate
    if mutate is None:
        return {}

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        if random.Random(seed).randrange(4) < _WHOLLY_RANDOM:
            return bytes(atheris.Mutate(data, most))
        return mutate(data, seed)[:most]

    return {"custom_mutator": mutated}


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
