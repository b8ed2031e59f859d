"""The documentation's own code: pages that are written from the code, and what pages name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from verified_losses.properties import names, options

from . import helpers

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SETTINGS = (ROOT / "mkdocs.yml").read_text()
GENERATED = {"laws.md", "defects.md", "findings.md"}


tool = helpers.tool("docs")


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"^ +- ([\w/-]+\.md)$", yaml.dump(yaml.safe_load(SETTINGS)["nav"]), re.MULTILINE))
    named |= {one for one in yaml.safe_load(SETTINGS)["nav"] if isinstance(one, str)}
    assert {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} == named - GENERATED
    assert named >= GENERATED


def test_the_page_of_laws_has_every_law() -> None:
    rows = [line for line in tool.laws().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0][2:] for row in rows[1:]] == [*names.LAWS]
    assert all(cell for row in rows for cell in row.strip("| ").split(" | ")), "a law says what it says"


def test_the_page_of_defects_has_every_defect() -> None:
    from tests.defects.index import CUDA, DEFECTS

    rows = [line for line in tool.defects().splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(DEFECTS) + len(CUDA)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


def test_a_docstring_s_colons_are_one_on_a_page() -> None:
    assert tool.on_page_content("<p>logits z::</p>", None, None, None) == "<p>logits z:</p>"


def test_the_page_of_findings_links_to_no_file() -> None:
    assert "](counterexamples/" not in tool.findings()


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_pages_name_commands_and_files_that_there_are(page: Path) -> None:
    text = page.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for file in re.findall(
        r"(?:`|^    )((?:\.github|examples|benchmarks|peers|tests|properties)/[\w./-]+)", text
    ):
        assert (ROOT / file).exists(), file
    for file in re.findall(r'^--8<-- "(.+)"$', text, re.MULTILINE):
        assert (DOCS / "snippets" / file).is_file(), file
    assert text.count("--8") == len(re.findall(r'^--8<-- "', text, re.MULTILINE)), "a snippet is shown"


def test_the_command_of_sigstore_has_the_options_that_are_named() -> None:
    pytest.importorskip("sigstore", reason="Sigstore's verification is not tried: pip install sigstore")
    text = (DOCS / "certificate.md").read_text()
    (command,) = re.findall(
        r"^    python -m (sigstore verify identity .*?whl)$", text, re.MULTILINE | re.DOTALL
    )
    asked = [sys.executable, "-m", "sigstore", "verify", "identity", "--help"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
    given = re.findall(r"--[a-z-]+", command)
    assert given == ["--offline", "--bundle", "--cert-identity", "--cert-oidc-issuer"]
    assert all(option in said for option in given)


@pytest.mark.parametrize("page", sorted((DOCS / "zh").rglob("*.md")), ids=lambda page: page.stem)
def test_a_chinese_page_and_its_english_one_link_to_each_other(page: Path) -> None:
    english = DOCS / page.relative_to(DOCS / "zh")
    for one, other, name in ((page, english, "English"), (english, page, "中文")):
        (link,) = re.findall(rf"^\[{name}\]\((.+)\)$", one.read_text(), re.MULTILINE)
        assert (one.parent / link).resolve() == other


def test_the_keys_of_a_project_are_in_the_documentation() -> None:
    text = (DOCS / "how-to" / "project.md").read_text()
    named = set(re.findall(r"`([a-z-]+)`", text))
    every = options.names(options.CertifyOptions).keys() | options.names(options.FuzzOptions).keys()
    assert every - {"loss", "shard", "resume"} <= named
