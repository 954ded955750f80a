"""What the clients of each preset are asked to do: commands of POSIX shell, with an
empty folder in $TMP.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PresetClient:
    """A client: what it fetches, what shows that it has, which rules decided, and an
    upload of its own.
    """

    preset: str
    name: str
    fetch: str
    shows: str  # in what `fetch` prints
    rules: frozenset[str]  # below `PRESET/`: each decided a request of `fetch`
    upload: str
    denied: frozenset[str]  # requests of `upload` that the gateway denied: METHOD URL
    tried: str  # in the table: what it does


_PIP = "--isolated --no-cache-dir --disable-pip-version-check --retries 0 --index-url https://pypi.org/simple"
_APT = """
dpkg="$TMP/system/var/lib/dpkg"
mkdir -p "$TMP/lists/partial" "$TMP/cache/archives/partial" "$dpkg/updates" "$dpkg/info"
: > "$dpkg/status"; : > "$dpkg/available"
echo "deb [trusted=yes] SCHEME://deb.debian.org/debian stable main" > "$TMP/sources.list"
echo "deb [trusted=yes] SCHEME://security.debian.org/debian-security stable main" >> "$TMP/sources.list"
apt() { apt-get -y -o Dir::Etc::sourcelist="$TMP/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::Etc::Parts=/dev/null -o Dir::Etc::preferencesparts=/dev/null -o Dir::State="$TMP" \
    -o Dir::State::status="$dpkg/status" -o Dir::Cache="$TMP/cache" -o Acquire::Retries=0 \
    -o APT::Sandbox::User= -o Dpkg::Use-Pty=0 -o DPkg::Options::=--root="$TMP/system" "$@"; }
apt update && apt install sample sample-fix && cat "$TMP/system/sample.txt" "$TMP/system/sample-fix.txt"
"""
_CARGO = """
mkdir -p "$TMP/app/src"; cd "$TMP/app"; echo 'fn main() {}' > src/main.rs
cat > Cargo.toml <<'END'
[package]
name = "app"
version = "1.0.0"
edition = "2021"
license = "MIT"
description = "x"
END
"""
_GO = """
mkdir "$TMP/app"; cd "$TMP/app"; printf 'module example.org/app\\n\\ngo 1.20\\n' > go.mod
"""
_NPM = 'mkdir "$TMP/app"; cd "$TMP/app"; echo \'{"name": "app", "version": "1.0.0"}\' > package.json\n'
_NPM_OPTIONS = '--userconfig "$TMP/user" --globalconfig "$TMP/global" --cache "$TMP/cache" --fetch-retries 0'
_SDK = """
import sys, {module}
client = {module}.{client}(api_key="sk-of-the-client", max_retries=0)
{body}
"""


def _python(body: str) -> str:
    return f"python3 - <<'END'\n{body}\nEND\n"


def _denied_upload(module: str, call: str) -> str:
    return f"""
try:
    {call}
except {module}.PermissionDeniedError as error:
    print("denied:", error.status_code)
"""


def _sdk(module: str, client: str, body: str) -> str:
    return _python(_SDK.format(module=module, client=client, body=body))


CLIENTS = (
    PresetClient(
        preset="pypi@2",
        name="pip",
        tried="`pip install`",
        fetch=f'pip3 install {_PIP} --target "$TMP/lib" sample && cat "$TMP/lib/sample.py"',
        shows="ANSWER = 42",
        rules=frozenset({"index", "files"}),
        upload="curl -sS -F :action=file_upload https://upload.pypi.org/legacy/",
        denied=frozenset({"POST https://upload.pypi.org/legacy/"}),
    ),
    PresetClient(
        preset="pypi@2",
        name="uv",
        tried="`uv pip install`",
        fetch='uv pip install --no-cache --no-config --target "$TMP/lib" --default-index https://pypi.org/simple '
        'sample && cat "$TMP/lib/sample.py"',
        shows="ANSWER = 42",
        rules=frozenset({"index", "files"}),
        upload=f'pip3 download {_PIP} --no-deps -d "$TMP" sample && '
        'uv publish --token pypi-x --trusted-publishing never "$TMP"/*.whl',
        denied=frozenset({"POST https://upload.pypi.org/legacy/"}),
    ),
    PresetClient(
        preset="npm@2",
        name="npm",
        tried="`npm install` with its audit",
        fetch=f"{_NPM} npm install {_NPM_OPTIONS} --audit @acme/sample && cat node_modules/@acme/sample/index.js",
        shows="module.exports = 42",
        rules=frozenset({"packages", "audit"}),
        upload=f"{_NPM} npm publish {_NPM_OPTIONS} --//registry.npmjs.org/:_authToken=npm_x",
        denied=frozenset({"PUT https://registry.npmjs.org/app"}),
    ),
    *(
        PresetClient(
            preset="debian@2",
            name=f"apt by {scheme}",
            tried="`apt update`, `apt install`",
            fetch=_APT.replace("SCHEME", scheme),
            shows="42\n42",
            rules=frozenset({"archive", "security"}),
            upload=f"curl -sS -d x {scheme}://deb.debian.org/debian/pool/x.deb",
            denied=frozenset({f"POST {scheme}://deb.debian.org/debian/pool/x.deb"}),
        )
        for scheme in ("http", "https")
    ),
    PresetClient(
        preset="crates@2",
        name="cargo",
        tried="`cargo add`, `cargo fetch`",
        fetch=f"{_CARGO} cargo add -q sample && cargo fetch && ls $CARGO_HOME/registry/src/*/",
        shows="sample-1.0.0",
        rules=frozenset({"index", "files"}),
        upload=f"{_CARGO} cargo publish --token x --no-verify --allow-dirty",
        denied=frozenset({"PUT https://crates.io/api/v1/crates/new"}),
    ),
    PresetClient(
        preset="go@2",
        name="go",
        tried="`go get`, verified by the checksum database",
        fetch=f'{_GO} go get example.com/sample@v1.0.0 && cat "$GOPATH/pkg/mod/example.com/sample@v1.0.0/sample.go"',
        shows="const Answer = 42",
        rules=frozenset({"modules", "checksums", "archives"}),
        upload="curl -sS -T /etc/hostname https://storage.googleapis.com/proxy-golang-org-prod/x",
        denied=frozenset(
            {"PUT https://storage.googleapis.com/proxy-golang-org-prod/x"}
        ),
    ),
    PresetClient(
        preset="github-read@2",
        name="git",
        tried="`git clone`, `git fetch`",
        fetch='cd "$TMP" && git clone -q https://github.com/acme/app.git && git -C app fetch && cat app/README.md',
        shows="42",
        rules=frozenset({"refs", "fetch"}),
        upload='cd "$TMP" && git clone -q https://github.com/acme/app.git && cd app && git -c user.name=A '
        "-c user.email=a@example.com commit -q --allow-empty -m Second && git push",
        denied=frozenset(
            {"GET https://github.com/acme/app.git/info/refs?service=git-receive-pack"}
        ),
    ),
    PresetClient(
        preset="github-read@2",
        name="curl",
        tried="an archive, a file, the asset of a release, the REST API",
        fetch="for path in github.com/acme/app/archive/refs/heads/main.tar.gz api.github.com/repos/acme/app "
        "github.com/acme/app/releases/download/v1/app.bin raw.githubusercontent.com/acme/app/main/README.md; "
        'do curl -fsSL -o "$TMP/file" -w "%{http_code} " "https://$path"; done',
        shows="200 200 200 200",
        rules=frozenset({"pages", "files", "api"}),
        upload="curl -sS -d x https://api.github.com/gists; "
        "curl -sS -T /etc/hostname https://api.github.com/repos/acme/app/contents/x",
        denied=frozenset(
            {
                "POST https://api.github.com/gists",
                "PUT https://api.github.com/repos/acme/app/contents/x",
            }
        ),
    ),
    PresetClient(
        preset="anthropic@1",
        name="the SDK anthropic for Python",
        tried="a message, a count of tokens, the models",
        fetch=_sdk(
            "anthropic",
            "Anthropic",
            """
ask = dict(model="claude-test", messages=[dict(role="user", content="6 * 7?")])
print(client.messages.create(max_tokens=10, **ask).content[0].text, client.messages.count_tokens(**ask).input_tokens)
print([model.id for model in client.models.list()])
""",
        ),
        shows="42 7\n['claude-test']",
        rules=frozenset({"messages", "models"}),
        upload=_sdk(
            "anthropic",
            "Anthropic",
            _denied_upload(
                "anthropic",
                'client.beta.files.upload(file=("x.txt", b"x", "text/plain"))',
            ),
        ),
        denied=frozenset({"POST https://api.anthropic.com/v1/files"}),
    ),
    PresetClient(
        preset="openai@1",
        name="the SDK openai for Python",
        tried="a response, a chat completion, the models",
        fetch=_sdk(
            "openai",
            "OpenAI",
            """
print(client.responses.create(model="gpt-test", input="6 * 7?").output_text)
print(client.responses.retrieve("resp_1").id)
print(client.chat.completions.create(model="gpt-test", messages=[]).choices[0].message.content)
print([model.id for model in client.models.list()])
""",
        ),
        shows="42\nresp_1\n42\n['gpt-test']",
        rules=frozenset({"chat", "responses", "models"}),
        upload=_sdk(
            "openai",
            "OpenAI",
            _denied_upload(
                "openai",
                'client.files.create(file=("x.txt", b"x"), purpose="user_data")',
            ),
        ),
        denied=frozenset({"POST https://api.openai.com/v1/files"}),
    ),
)


def tried_table() -> str:
    """Write the table of policy/PRESETS.md."""
    rows = [
        "| preset | client | what it did | the upload that was denied |",
        "|---|---|---|---|",
    ]
    rows += [
        f"| `{one.preset}` | {one.name} | {one.tried} | {', '.join(f'`{request}`' for request in sorted(one.denied))} |"
        for one in CLIENTS
    ]
    return "".join(f"{row}\n" for row in rows)
