"""The documents: every link leads to a heading, every policy in them loads, front page
and glossary are short.
"""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from squidkeeper.cli import main
from squidkeeper.operate.setup.gateway_settings import settings_schema
from squidkeeper.policy.language.model import VERDICT_NAMES

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = sorted(
    REPOSITORY / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
)
FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
POLICY = re.compile(r"^```yaml\n(version: 1\n.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@cache
def anchors_of(path: Path) -> set[str]:
    """The anchors of a document, as GitHub derives them from its headings."""
    text = FENCE.sub("", path.read_text())
    slugs = [
        slug_of(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    ]
    assert len(set(slugs)) == len(slugs), (
        f"{name_of(path)} has two headings with one anchor"
    )
    return {*slugs, *re.findall(r'<a id="([^"]+)">', text)}


def slug_of(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).replace(
        " ", "-"
    )


def is_broken(document: Path, link: str) -> bool:
    file, _, anchor = link.partition("#")
    target = (document.parent / file).resolve() if file else document
    return not target.exists() or (bool(anchor) and anchor not in anchors_of(target))


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    links = {
        document: LINK.findall(FENCE.sub("", document.read_text()))
        for document in DOCUMENTS
    }
    broken = [
        f"{name_of(document)}: {link}"
        for document, found in links.items()
        for link in found
        if "://" not in link and is_broken(document, link)
    ]
    assert broken == []


EXAMPLES = [
    (document, text)
    for document in DOCUMENTS
    for text in POLICY.findall(document.read_text())
]


@pytest.mark.system
@pytest.mark.parametrize(
    ("document", "text"),
    EXAMPLES,
    ids=[f"{name_of(document)}-{at}" for at, (document, _) in enumerate(EXAMPLES)],
)
def test_every_policy_in_a_document_loads_and_passes_its_tests(
    document: Path, text: str, tmp_path: Path
) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    for name in re.findall(r"\{file: (\S+?)\}", text):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("listed.example\n")
        (tmp_path / name).chmod(0o640)
    result = CliRunner().invoke(main, ["check", "--policy", str(tmp_path)])
    assert result.exit_code == 0, result.output


@pytest.mark.system
def test_the_front_page_shows_what_explain_prints(tmp_path: Path) -> None:
    """Its policy, and the command below it."""
    page = (REPOSITORY / "README.md").read_text()
    [policy] = POLICY.findall(page)
    shown = re.search(
        r"^\$ sudo squidkeeper (explain .*)\n([^`]*)```", page, re.MULTILINE
    )
    assert shown
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/github-token").write_text("not-a-real-token\n")
    (tmp_path / "secrets/github-token").chmod(0o640)
    (tmp_path / "policy.yaml").write_text(policy)
    told = CliRunner().invoke(main, [*shown[1].split(), "--policy", str(tmp_path)])
    lines = shown[2].replace("/etc/squidkeeper/policy", str(tmp_path)).splitlines()
    assert [line for line in lines if line not in told.output.splitlines()] == []


def test_the_front_page_has_130_lines_and_begins_with_a_command() -> None:
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    assert len(lines) <= 130
    assert "sudo ./install.sh" in lines[:25]


def test_the_installer_without_python_has_250_lines_at_most() -> None:
    assert len((REPOSITORY / "install.sh").read_text().splitlines()) <= 250


def test_the_glossary_has_30_rows_at_most_and_no_term_twice() -> None:
    section = (
        (REPOSITORY / "helpers/README.md")
        .read_text()
        .split("## Glossary\n")[1]
        .split("\n## ")[0]
    )
    rows = [
        line.split("|")[1] for line in section.splitlines() if line.startswith("| **")
    ]
    terms = [term for row in rows for term in re.findall(r"\*\*(.+?)\*\*", row)]
    assert 20 < len(rows) <= 30
    assert len(set(terms)) == len(terms)


def test_each_option_and_setting_of_the_installer_has_its_row() -> None:
    usage = (REPOSITORY / "helpers/squidkeeper/operate/setup/usage.txt").read_text()
    options = re.findall(r"^  (--[a-z-]+)", usage, re.MULTILINE)
    rows = re.findall(
        r"^\| `([^`]+)` \| ([^|]*)",
        (REPOSITORY / "squid/INSTALL.md").read_text(),
        re.MULTILINE,
    )
    first = [name for name, _ in rows if name.startswith("--")]
    second = [option for _, cell in rows for option in re.findall("`(--[a-z-]+)", cell)]
    found = {option.split(" ")[0] for option in (*first, *second)}
    assert found == set(options) - {"--help"}
    schema = settings_schema()
    keys = {"tls"}
    for key, about in schema["properties"].items():
        section = schema["$defs"].get(about.get("$ref", "").rpartition("/")[2], {})
        inner = section.get("properties")
        keys |= {f"{key}.{name}" for name in inner} if inner else {key}
    named = [name for name, cell in rows if cell.startswith("`--")]
    assert sorted(named) == sorted(keys - {"version"})


@pytest.mark.parametrize(
    ("document", "title"),
    [
        ("squid/TROUBLESHOOTING.md", "What the client sees"),
        ("policy/REFERENCE.md", "Built-in rules"),
    ],
)
def test_each_built_in_rule_is_explained(document: str, title: str) -> None:
    section = (
        (REPOSITORY / document).read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    )
    rows = re.findall(r"^(?:\| |- )([^|]+)", section, re.MULTILINE)
    assert {
        name for row in rows for name in re.findall(r"`([a-z-]+)", row)
    } >= VERDICT_NAMES


def test_the_rows_of_a_table_have_the_cells_of_its_head_and_no_line_between_them() -> (
    None
):
    wrong = []
    for document in DOCUMENTS:
        text = FENCE.sub("", document.read_text())
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
            has_head = len(lines) > 1 and all(cell.startswith("-") for cell in lines[1])
            if not has_head or {len(cells) for cells in lines} != {len(lines[0])}:
                wrong.append(f"{name_of(document)}: {table.splitlines()[0]}")
    assert wrong == []


# --- the map of the program -----------------------------------------------------------

PACKAGE = REPOSITORY / "helpers/squidkeeper"
HOUSE = REPOSITORY / "helpers/README.md"


def section_of(title: str) -> str:
    return HOUSE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_files_of_each_task_exist() -> None:
    named = re.findall(r"`((?:\w+/)*\w+\.(?:py|html|css))`", section_of("I want to …"))
    assert [name for name in named if not (PACKAGE / name).exists()] == []


def test_the_way_of_a_line_names_what_is_there() -> None:
    rows = re.findall(
        r"^1\. `([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)",
        section_of("The way of one line"),
        re.MULTILINE,
    )
    named = [
        (file, name)
        for file, names in rows
        for dotted in re.findall("`(.*?)`", names)
        for name in dotted.split(".")
    ]
    assert len(named) > 16
    texts = {file: (PACKAGE / file).read_text() for file, _ in named}
    assert [
        row for row in named if not re.search(rf"(def|class) {row[1]}\b", texts[row[0]])
    ] == []


def test_no_file_holds_the_marks_of_a_merge() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True
    ).stdout
    marks = re.compile(rb"^(<<<<<<<|>>>>>>>) ", re.MULTILINE)
    assert [
        name
        for name in listed.split(b"\0")[:-1]
        if marks.search((REPOSITORY / os.fsdecode(name)).read_bytes())
    ] == []


def test_the_core_is_explained_by_its_own_lines() -> None:
    core = (REPOSITORY / "squid/squidkeeper.conf").read_text()
    text = (REPOSITORY / "squid/README.md").read_text()
    quoted = re.findall(r"^```squid\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(quoted) > 1
    assert [lines for lines in quoted if lines not in core] == []


def test_the_documents_have_84_000_words_at_most() -> None:
    """Whoever adds a paragraph shortens another."""
    assert sum(len(path.read_text().split()) for path in DOCUMENTS) <= 84_000
