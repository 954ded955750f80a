"""The services of the presets, as far as their clients ask: made packages, under the
providers' names.
"""

import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .network import run
from .origin import Answer, Seen

Service = Mapping[str, Answer | Callable[[Seen], Answer]]  # by URL without query
NOT_FOUND = Answer(404, b"not found")


@dataclass(frozen=True, slots=True)
class Registries:
    """Answers for what the services hold, as the fallback of the origins."""

    service: Service

    def __call__(self, seen: Seen) -> Answer:
        plan = self.service.get(seen.url.partition("?")[0], NOT_FOUND)
        return plan if isinstance(plan, Answer) else plan(seen)


def of_json(value: object, kind: str = "application/json") -> Answer:
    return Answer(body=json.dumps(value).encode(), headers={"Content-Type": kind})


def of_model(
    value: object, events: Sequence[Mapping[str, object]]
) -> Callable[[Seen], Answer]:
    """A model's answer: at once, or as events where the request wants a stream."""
    named = (
        (f"event: {event['type']}\n" if "type" in event else "", event)
        for event in events
    )
    lines = (f"{name}data: {json.dumps(event)}\n\n" for name, event in named)
    stream = Answer(
        body="".join(lines).encode(), headers={"Content-Type": "text/event-stream"}
    )
    return lambda seen: (
        stream
        if b'"stream":true' in seen.body or "alt=sse" in seen.target
        else of_json(value)
    )


def tar(files: Mapping[str, str]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return content.getvalue()


def zip_(files: Mapping[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def metadata_of(module: str) -> str:
    return f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\n"


def wheel(module: str, text: str) -> bytes:
    """A wheel of one module, version 1.0."""
    told = (
        "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    info = {
        "METADATA": metadata_of(module),
        "WHEEL": told,
        "RECORD": f"{module}.py,,\n",
    }
    return zip_(
        {
            f"{module}.py": text,
            **{f"{module}-1.0.dist-info/{name}": one for name, one in info.items()},
        }
    )


def pypi() -> Service:
    """The project `sample` 1.0: its page, its wheel and the wheel's metadata."""
    metadata, content = metadata_of("sample"), wheel("sample", "ANSWER = 42\n")
    file = "https://files.pythonhosted.org/packages/aa/bb/sample-1.0-py3-none-any.whl"
    described = {
        "filename": file.rpartition("/")[2],
        "url": file,
        "hashes": {"sha256": hashlib.sha256(content).hexdigest()},
        "core-metadata": {"sha256": hashlib.sha256(metadata.encode()).hexdigest()},
    }
    page = {
        "meta": {"api-version": "1.1"},
        "name": "sample",
        "versions": ["1.0"],
        "files": [described],
    }
    return {
        "https://pypi.org/simple/sample/": of_json(
            page, "application/vnd.pypi.simple.v1+json"
        ),
        file: Answer(body=content),
        f"{file}.metadata": Answer(body=metadata.encode()),
    }


def npm() -> Service:
    """The package `@acme/sample` 1.0.0; nothing is known against it."""
    manifest = {"name": "@acme/sample", "version": "1.0.0", "main": "index.js"}
    archive = tar(
        {
            "package/package.json": json.dumps(manifest),
            "package/index.js": "module.exports = 42;\n",
        }
    )
    file = "https://registry.npmjs.org/@acme/sample/-/sample-1.0.0.tgz"
    integrity = f"sha512-{base64.b64encode(hashlib.sha512(archive).digest()).decode()}"
    version = {**manifest, "dist": {"tarball": file, "integrity": integrity}}
    page = {
        "name": "@acme/sample",
        "dist-tags": {"latest": "1.0.0"},
        "versions": {"1.0.0": version},
    }
    return {
        "https://registry.npmjs.org/@acme%2fsample": of_json(page),
        file: Answer(body=archive),
        "https://registry.npmjs.org/-/npm/v1/security/advisories/bulk": of_json({}),
    }


def debian(folder: Path) -> Service:
    """A suite of the archive and one of the security archive, each with one package, by
    http and https.
    """
    return {
        f"{scheme}://{host}/{path}": answer
        for host, archive, package in (
            ("deb.debian.org", "debian", "sample"),
            ("security.debian.org", "debian-security", "sample-fix"),
        )
        for path, answer in _repository(folder / package, archive, package).items()
        for scheme in ("http", "https")
    }


def _repository(folder: Path, archive: str, package: str) -> dict[str, Answer]:
    control = (
        f"Package: {package}\nVersion: 1.0\nArchitecture: all\nMaintainer: A "
        f"<a@example.com>\nDescription: Sample\n"
    )
    (folder / "tree/DEBIAN").mkdir(parents=True)
    (folder / "tree/DEBIAN/control").write_text(control)
    (folder / f"tree/{package}.txt").write_text("42\n")
    run(
        "dpkg-deb",
        "--build",
        "--root-owner-group",
        folder / "tree",
        folder / "built.deb",
    )
    deb = (folder / "built.deb").read_bytes()
    file = f"pool/main/s/{package}_1.0_all.deb"
    packages = f"{control}Filename: {file}\nSize: {len(deb)}\nSHA256: {hashlib.sha256(deb).hexdigest()}\n\n".encode()
    index = f"main/binary-{run('dpkg', '--print-architecture').strip()}/Packages"
    indices = {index: packages, f"{index}.gz": gzip.compress(packages)}
    digests = (
        f" {hashlib.sha256(index).hexdigest()} {len(index)} {name}\n"
        for name, index in indices.items()
    )
    release = f"Suite: stable\nDate: {formatdate(usegmt=True)}\nComponents: main\nSHA256:\n{''.join(digests)}"
    return {
        f"{archive}/dists/stable/Release": Answer(body=release.encode()),
        **{
            f"{archive}/dists/stable/{name}": Answer(body=index)
            for name, index in indices.items()
        },
        f"{archive}/{file}": Answer(body=deb),
    }


def crates() -> Service:
    """The crate `sample` 1.0.0, by the sparse protocol."""
    manifest = '[package]\nname = "sample"\nversion = "1.0.0"\nedition = "2021"\n'
    crate = tar(
        {
            "sample-1.0.0/Cargo.toml": manifest,
            "sample-1.0.0/src/lib.rs": "pub const ANSWER: u8 = 42;\n",
        }
    )
    checksum = hashlib.sha256(crate).hexdigest()
    entry = {
        "name": "sample",
        "vers": "1.0.0",
        "deps": [],
        "cksum": checksum,
        "features": {},
        "yanked": False,
    }
    return {
        "https://index.crates.io/config.json": of_json(
            {"dl": "https://static.crates.io/crates", "api": "https://crates.io"}
        ),
        "https://index.crates.io/sa/mp/sample": Answer(body=json.dumps(entry).encode()),
        "https://static.crates.io/crates/sample/1.0.0/download": Answer(body=crate),
    }


MODULE = "example.com/sample"
_SUMDB = "sum.golang.org"


@dataclass(frozen=True, slots=True)
class GoServices:
    """The module mirror, which redirects to its bucket for the archive, and a checksum
    database with a key of ours.
    """

    service: Service
    sumdb: str  # for GOSUMDB: the database's name and its key


def go() -> GoServices:
    """The module `example.com/sample` v1.0.0."""
    go_mod = f"module {MODULE}\n"
    files = {"go.mod": go_mod, "sample.go": "package sample\n\nconst Answer = 42\n"}
    archive = zip_({f"{MODULE}@v1.0.0/{name}": text for name, text in files.items()})
    sums = (
        f"{MODULE} v1.0.0 {_h1({f'{MODULE}@v1.0.0/{name}': text for name, text in files.items()})}\n"
        f"{MODULE} v1.0.0/go.mod {_h1({'go.mod': go_mod})}\n"
    )
    database, key = _checksum_database(sums)
    mirror = f"https://proxy.golang.org/{MODULE}/@v"
    bucket = "https://storage.googleapis.com/proxy-golang-org-prod/0123-example.com:sample-v1.0.0.zip"
    service: Service = {
        f"{mirror}/list": Answer(body=b"v1.0.0\n"),
        f"{mirror}/v1.0.0.info": of_json(
            {"Version": "v1.0.0", "Time": "2026-11-26T12:00:00Z"}
        ),
        f"{mirror}/v1.0.0.mod": Answer(body=go_mod.encode()),
        f"{mirror}/v1.0.0.zip": Answer(
            302, b"", {"Location": f"{bucket}?Expires=1&Signature=made"}
        ),
        bucket: Answer(body=archive),
        **database,
    }
    return GoServices(service, key)


def _h1(files: Mapping[str, str]) -> str:
    """The hash of a module's files: golang.org/x/mod/sumdb/dirhash."""
    lines = (
        f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n"
        for name, text in sorted(files.items())
    )
    return f"h1:{base64.b64encode(hashlib.sha256(''.join(lines).encode()).digest()).decode()}"


def _checksum_database(record: str) -> tuple[Service, str]:
    """A database with one record, and its key: golang.org/x/mod/sumdb, with tlog and
    note.
    """
    private = Ed25519PrivateKey.generate()
    public = b"\1" + private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    key_hash = hashlib.sha256(f"{_SUMDB}\n".encode() + public).digest()[:4]
    leaf = hashlib.sha256(b"\0" + record.encode()).digest()  # which is the whole tree
    tree = f"go.sum database tree\n1\n{base64.b64encode(leaf).decode()}\n"
    signature = base64.b64encode(key_hash + private.sign(tree.encode())).decode()
    signed = f"{tree}\n— {_SUMDB} {signature}\n"
    service: Service = {
        f"https://{_SUMDB}/lookup/{MODULE}@v1.0.0": Answer(
            body=f"0\n{record}\n{signed}".encode()
        ),
        f"https://{_SUMDB}/tile/8/0/000.p/1": Answer(body=leaf),
        f"https://{_SUMDB}/latest": Answer(body=signed.encode()),
    }
    return service, f"{_SUMDB}+{key_hash.hex()}+{base64.b64encode(public).decode()}"


def github(folder: Path) -> Service:
    """The repository acme/app with one commit, by git's own server; its archive, a
    file, an asset, and the API.
    """
    tree, bare = folder / "tree", folder / "srv/acme/app.git"
    git = ("git", "-c", "user.name=A", "-c", "user.email=a@example.com")
    run(*git, "init", "-q", "-b", "main", tree)
    (tree / "README.md").write_text("42\n")
    run(*git, "-C", tree, "add", "README.md")
    run(*git, "-C", tree, "commit", "-q", "-m", "First")
    run("git", "clone", "-q", "--bare", tree, bare)
    # the server would take a push
    run("git", "-C", bare, "config", "http.receivepack", "true")

    def serve(seen: Seen) -> Answer:
        return git_http_backend(folder / "srv", seen)

    paths = ("info/refs", "git-upload-pack", "git-receive-pack")
    asset = "https://release-assets.githubusercontent.com/github-production-release-asset/1/2"
    archive = "https://codeload.github.com/acme/app/tar.gz/refs/heads/main"
    return {
        **{f"https://github.com/acme/app.git/{path}": serve for path in paths},
        "https://github.com/acme/app/archive/refs/heads/main.tar.gz": Answer(
            302, b"", {"Location": archive}
        ),
        archive: Answer(body=tar({"app-main/README.md": "42\n"})),
        "https://github.com/acme/app/releases/download/v1/app.bin": Answer(
            302, b"", {"Location": f"{asset}?sp=r"}
        ),
        asset: Answer(body=b"42\n"),
        "https://raw.githubusercontent.com/acme/app/main/README.md": Answer(
            body=b"42\n"
        ),
        "https://api.github.com/repos/acme/app": of_json({"full_name": "acme/app"}),
    }


def git_http_backend(root: Path, seen: Seen) -> Answer:
    """Answer by git's own CGI program (RFC 3875)."""
    path, _, query = seen.target.partition("?")
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": str(root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "REQUEST_METHOD": seen.method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_TYPE": "".join(seen.values("Content-Type")),
        "CONTENT_LENGTH": str(len(seen.body)),
        "HTTP_CONTENT_ENCODING": "".join(seen.values("Content-Encoding")),
        "GIT_PROTOCOL": "".join(seen.values("Git-Protocol")),
        "REMOTE_USER": "somebody",
        "REMOTE_ADDR": "127.0.0.1",
        "GIT_CONFIG_COUNT": "1",  # the repository belongs to whoever runs the tests
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }
    git = shutil.which("git") or "git"
    done = subprocess.run(
        [git, "http-backend"],
        env=environment,
        input=seen.body,
        capture_output=True,
        check=True,
    )
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    lines = (line.partition(": ") for line in head.decode().split("\r\n"))
    headers = {name: value for name, _, value in lines}
    return Answer(int(headers.pop("Status", "200")[:3]), body, headers)


def anthropic() -> Service:
    """The Messages API, which always says the same, and the models."""
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-test",
        "content": [{"type": "text", "text": "42"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    start = {**message, "content": [], "stop_reason": None}
    events: list[dict[str, object]] = [
        {"type": "message_start", "message": start},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "42"},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 1},
        },
        {"type": "message_stop"},
    ]
    model = {
        "id": "claude-test",
        "type": "model",
        "display_name": "Test",
        "created_at": "2026-11-26T12:00:00Z",
    }
    models = {
        "data": [model],
        "has_more": False,
        "first_id": "claude-test",
        "last_id": "claude-test",
    }
    return {
        "https://api.anthropic.com/v1/messages": of_model(message, events),
        "https://api.anthropic.com/v1/messages/count_tokens": of_json(
            {"input_tokens": 7}
        ),
        "https://api.anthropic.com/v1/models": of_json(models),
    }


def openai() -> Service:
    """Responses and chat completions that always say the same, and the models."""
    text = {"type": "output_text", "text": "42", "annotations": []}
    output = {
        "type": "message",
        "id": "msg_1",
        "status": "completed",
        "role": "assistant",
        "content": [text],
    }
    response = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "gpt-test",
        "status": "completed",
        "output": [output],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "42"},
    }
    chat = {
        "id": "c_1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-test",
        "choices": [choice],
    }
    delta = {
        "type": "response.output_text.delta",
        "item_id": "msg_1",
        "output_index": 0,
        "content_index": 0,
    }
    events = [{**delta, "delta": "42", "logprobs": [], "sequence_number": 0}]
    chunk = {
        **chat,
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": "42"}}],
    }
    models = {
        "object": "list",
        "data": [{"id": "gpt-test", "object": "model", "created": 1, "owned_by": "x"}],
    }
    return {
        "https://api.openai.com/v1/responses": of_model(response, events),
        "https://api.openai.com/v1/responses/resp_1": of_json(response),
        "https://api.openai.com/v1/chat/completions": of_model(chat, [chunk]),
        "https://api.openai.com/v1/models": of_json(models),
    }


def gemini() -> Service:
    """The model `gemini-test`, which always says the same."""
    candidate = {
        "content": {"role": "model", "parts": [{"text": "42"}]},
        "finishReason": "STOP",
    }
    said = of_model({"candidates": [candidate]}, [{"candidates": [candidate]}])
    model = "https://generativelanguage.googleapis.com/v1/models/gemini-test"
    return {f"{model}:generateContent": said, f"{model}:streamGenerateContent": said}
