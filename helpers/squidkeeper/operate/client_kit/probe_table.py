"""What the probe runs for each program, and how it reads what they print: one table for
both of its forms.

A command is POSIX shell. `$URL` is the URL, `$TMP` an empty folder. It prints
`status=NNN` and the beginning of the body where the program shows them. Patterns are
regular expressions for Python's `re` and `grep -E` alike, in any case.
"""

from dataclasses import dataclass

from squidkeeper.record.why.causes import SPEAKS_TLS

PROXY_VARIABLES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
PROXY_IS_SET = "look for a proxy or no_proxy in its own configuration: its variables are right already"
_ROOTS_ARE_SET = (
    "put the gateway's root into the files that its variables name: they are right already. If the gateway has another "
    "CA now, print this probe again"
)


@dataclass(frozen=True, slots=True)
class ProbedProgram:
    """A program that the probe runs, the variables it takes its roots and its proxy
    from, and what else may be wrong.

    The remedies hold {ca_path} and {java_store_path}: paths in the VM.
    """

    name: str
    program: str  # skipped unless this is on the PATH
    command: str
    roots: tuple[str, ...]
    proxy: tuple[str, ...] = PROXY_VARIABLES
    if_roots_are_set: str = _ROOTS_ARE_SET
    if_proxy_is_set: str = PROXY_IS_SET
    # what it asks for below the URL: the policy may decide that differently
    asks_below: str = ""


@dataclass(frozen=True, slots=True)
class Symptom:
    """What a program prints when something is wrong, what that is, and how to
    fix it.
    """

    pattern: str
    meaning: str
    # {proxy}: the proxy's URL; {export_proxy}: a line that sets it; {set_proxy},
    # {set_roots}: of the program
    fix: str
    of_gateway: bool = (
        False  # the fix is the same for every program, so it is printed once
    )


_BODY = 'head -c 4000 "$TMP/body" 2>/dev/null'
_URLLIB = """\
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=20)
except urllib.error.HTTPError as error:
    answer = error
print("status=%d" % answer.getcode())
print(answer.read(4000).decode("utf-8", "replace"))
"""
_REQUESTS = """\
import sys, requests
answer = requests.get(sys.argv[1], timeout=20)
print("status=%d" % answer.status_code)
print(answer.text[:4000])
"""
_FETCH = """\
fetch(process.argv[1], {signal: AbortSignal.timeout(20000)}).then(async answer => {
    console.log("status=" + answer.status);
    console.log((await answer.text()).slice(0, 4000));
}).catch(error => {
    console.log(String(error), error.cause ? error.cause.code + " " + error.cause.message : "");
    process.exit(1);
});
"""
_JAVA = """\
import java.net.URI;
import java.net.http.*;
public class Probe {
    public static void main(String[] arguments) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0])).build();
        HttpResponse<String> answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println("status=" + answer.statusCode());
        System.out.println(answer.body().substring(0, Math.min(4000, answer.body().length())));
    }
}
"""
_APT = """\
mkdir -p "$TMP/lists/partial" "$TMP/cache/archives/partial" "$TMP/etc"; : > "$TMP/status"
printf 'deb [trusted=yes] %s ./\\n' "$URL" > "$TMP/etc/sources.list"
apt-get update -o Dir::Etc::sourcelist="$TMP/etc/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State="$TMP" \
    -o Dir::State::status="$TMP/status" -o Dir::Cache="$TMP/cache" -o Acquire::Retries=0 \
    -o APT::Update::Error-Mode=any -o APT::Sandbox::User= \
    -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o Acquire::AllowInsecureRepositories=true 2>&1
"""

PROGRAMS = (
    ProbedProgram(
        "curl",
        "curl",
        f'curl -sS -m 20 -o "$TMP/body" -w "status=%{{http_code}}\\n" "$URL"; got=$?; {_BODY}; exit $got',
        ("CURL_CA_BUNDLE", "SSL_CERT_FILE"),
    ),
    ProbedProgram(
        "wget",
        "wget",
        f'wget -S -T 20 -t 1 --content-on-error -O "$TMP/body" "$URL"; got=$?; {_BODY}; exit $got',
        (),
    ),
    ProbedProgram(
        "python", "python3", f"python3 -c '{_URLLIB}' \"$URL\"", ("SSL_CERT_FILE",)
    ),
    ProbedProgram(
        "requests",
        "python3",
        f"python3 -c '{_REQUESTS}' \"$URL\"",
        ("REQUESTS_CA_BUNDLE",),
    ),
    ProbedProgram(
        "node",
        "node",
        f"node -e '{_FETCH}' \"$URL\"",
        ("NODE_EXTRA_CA_CERTS",),
        proxy=(*PROXY_VARIABLES, "NODE_USE_ENV_PROXY"),
        if_proxy_is_set="update Node, or give fetch a ProxyAgent of undici: NODE_USE_ENV_PROXY needs Node 22.21, 24.5 "
        "or newer",
    ),
    ProbedProgram(
        "git",
        "git",
        'GIT_TERMINAL_PROMPT=0 git ls-remote "$URL"',
        ("GIT_SSL_CAINFO",),
        asks_below="/info/refs?service=git-upload-pack",
    ),
    ProbedProgram(
        "pip",
        "pip3",
        "pip3 -vv download --no-deps --no-cache-dir --disable-pip-version-check --retries 0 --timeout 20 "
        '--dest "$TMP" --index-url "$URL" squidkeeper-probe',
        ("PIP_CERT", "REQUESTS_CA_BUNDLE"),
        asks_below="/squidkeeper-probe/",
    ),
    ProbedProgram(
        "npm",
        "npm",
        'npm view squidkeeper-probe --registry "$URL" --fetch-retries=0 --fetch-timeout=20000 --cache "$TMP"',
        ("NODE_EXTRA_CA_CERTS", "npm_config_cafile"),
        asks_below="/squidkeeper-probe",
    ),
    ProbedProgram(
        "uv",
        "uv",
        'echo squidkeeper-probe > "$TMP/in"; UV_HTTP_TIMEOUT=20 UV_HTTP_RETRIES=0 '
        "uv pip compile --no-cache --no-config "
        '--default-index "$URL" "$TMP/in"',
        ("SSL_CERT_FILE", "UV_SYSTEM_CERTS"),
        asks_below="/squidkeeper-probe/",
    ),
    ProbedProgram(
        "go",
        "go",
        'cd "$TMP" && GO111MODULE=on GOTOOLCHAIN=local GOFLAGS=-modcacherw GONOSUMDB=* GOPATH="$TMP/go" GOPROXY="$URL" '
        "go mod download example.com/squidkeeper-probe@v1.0.0",
        ("SSL_CERT_FILE",),
        asks_below="/example.com/squidkeeper-probe/@v/v1.0.0.info",
    ),
    ProbedProgram(
        "java",
        "java",
        f'cat > "$TMP/Probe.java" <<\'END\'\n{_JAVA}END\njava "$TMP/Probe.java" "$URL"',
        ("JAVA_TOOL_OPTIONS",),
        proxy=("JAVA_TOOL_OPTIONS",),
        if_roots_are_set="add the root to the store that JAVA_TOOL_OPTIONS names: keytool -importcert "
        "-noprompt -keystore {java_store_path} -storepass changeit -alias squidkeeper -file {ca_path}",
        if_proxy_is_set="look for a proxy or nonProxyHosts in the program: JAVA_TOOL_OPTIONS is right already",
    ),
    ProbedProgram("apt", "apt-get", _APT, (), asks_below="/./InRelease"),
)

# The status that a program printed: the first three digits of the first match. curl
# prints 000 where there is none.
STATUS = (
    r"status=[1-9][0-9]{2}|(tunnel failed, response|HTTP code) [0-9]{3}|HTTP/1\.[01]\"? [0-9]{3}"
    r"|returned error: [0-9]{3}|code E[0-9]{3}|404 +Not Found"
    r"|[45][0-9]{2} +(Forbidden|Client Error|Server Error|Service Unavailable|Bad Gateway|Gateway Time|Proxy Auth)"
)
# The lines of a page of the gateway, in any of its forms: of a denial, and of a failure
# after the policy.
RULE = r"\"?rule\"?: *\"?(<[a-z]+>)?[^\"<]+"
REASON = r"\"?reason\"?: *\"?(<[a-z]+>)?[^\"<]+"
# Without a status: the origin has answered, with something that the program cannot use.
REACHED = (
    "Skipping page|No matching distribution|Unsupported .Content-Type|not found in the package registry"
    "|proxy returned info|invalid character|not found: module|Signed file|does not have a Release file"
    "|repository .* not found|not valid: is this a git repository|does not appear to be a git"
)

_NO_NAME = (
    "could not resolve|unable to resolve|failure resolving|name resolution|getaddrinfo|Name or service not known"
    "|EAI_AGAIN|ENOTFOUND|no such host|dns error|UnresolvedAddress|UnknownHost|dial tcp: lookup"
)
_NO_ROUTE = "Network is unreachable|No route to host|ENETUNREACH|EHOSTUNREACH"

# The first that matches counts.
SYMPTOMS = (
    Symptom(
        "No module named|Could not find or load main class|module not found: jdk.compiler",
        "not installed",
        "",
    ),
    Symptom(
        "status=407|407 Proxy|Proxy Authentication Required|tunnel.* 407|HTTP code 407",
        "the gateway asks for a proxy user",
        "put USER:PASSWORD@ before the host: {export_proxy}",
    ),
    Symptom(
        "Missing Authority Key Identifier",
        "strict verification refuses the certificate of the page",
        "on the gateway: sudo ./install.sh --certificates squidkeeper",
        of_gateway=True,
    ),
    Symptom(
        "does not include key usage|Missing Subject Key Identifier|Basic Constraints of CA cert not marked critical",
        "strict verification refuses the gateway's CA",
        "on the gateway: mkdir ca && sudo ./install.sh --ca-dir ca makes a new CA; then every VM has to trust that one",
        of_gateway=True,
    ),
    Symptom(
        "wrong version number|record layer failure|packet length|not a TLS"
        "|gave HTTP response to HTTPS|unrecognized SSL message",
        SPEAKS_TLS,
        "{set_proxy}; or on the gateway: sudo ./install.sh --tls",
    ),
    Symptom(
        "certificate|CERT_|x509|PKIX|self.signed|UnknownIssuer|unable to get local issuer|SSLError",
        "does not trust the certificate",
        "{set_roots}",
    ),
    Symptom(
        _NO_NAME,
        "does not use the proxy: it looks the name up itself",
        "{set_proxy}",
    ),
    Symptom(
        _NO_ROUTE,
        "does not use the proxy: it connects directly",
        "{set_proxy}",
    ),
    Symptom(
        "refused|ConnectException|could(n't| not) connect to server",
        "nothing answers at the address that it connects to",
        "check that {proxy} is the gateway's address and that {listener} runs",
        of_gateway=True,
    ),
    Symptom(
        "timed? ?out|ETIMEDOUT|deadline exceeded|TimeoutError",
        "no answer in time",
        "check that {proxy} is the gateway's address and can be reached from here",
        of_gateway=True,
    ),
)
SYMPTOMS_WITHOUT_PROXY = (
    Symptom(
        _NO_NAME,
        "the name does not resolve",
        "let the gateway resolve names: its address alone in dns_servers of the host group of the VM",
        of_gateway=True,
    ),
    Symptom(
        _NO_ROUTE,
        "connects to another address than the gateway's",
        "let it resolve names as the system does: a name server of its own, or an address in a URL, does not work here",
    ),
    Symptom(
        "(alert|tls|failed)[^a-z]*internal.?error",
        "the gateway takes the connection, but Squid does not",
        "on the gateway: sudo squidkeeper doctor tells why Squid does not answer",
        of_gateway=True,
    ),
    *SYMPTOMS,
)
