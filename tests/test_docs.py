"""The documentation's own code: pages that are written from the code, and what pages name."""

import re
from pathlib import Path

import pytest
import yaml

from verified_losses.properties import names

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
