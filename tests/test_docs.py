"""The documentation's own code: pages that are written from the code, and what pages name."""

import collections
import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml

from verified_losses.properties import names, options
from verified_losses.properties.ask import annotate, signature  # noqa: F401  # which add their commands
from verified_losses.properties.ask.fuzz_cli import app
from verified_losses.properties.verify.known import Entry

from . import helpers

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
CHINESE = sorted((DOCS / "zh").rglob("*.md"))
SETTINGS = (ROOT / "mkdocs.yml").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


tool = helpers.tool("docs")


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"^ +- ([\w/-]+\.md)$", yaml.dump(yaml.safe_load(SETTINGS)["nav"]), re.MULTILINE))
    named |= {one for one in yaml.safe_load(SETTINGS)["nav"] if isinstance(one, str)}
    assert {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} == named


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_name_commands_and_files_that_there_are(page: Path) -> None:
    text = page.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for file in re.findall(
        r"(?:`|^    )((?:\.github|examples|benchmarks|peers|tests|properties)/[\w./-]+)", text
    ):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_links_of_a_page_lead_somewhere_in_the_tree(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("tutorial.md", ["first.py", "third.py"]),
        ("zh/tutorial.md", ["first.py", "third.py"]),
        ("step.md", ["my_train.py", "my_train_repaired.py"]),
    ],
)
def test_a_page_shows_the_code_that_tests_run(page: str, names: list[str]) -> None:
    shown = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    for name in names:
        assert (DOCS / "snippets" / name).read_text() in shown, name


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


def test_the_docs_are_built_without_warnings_at_every_change() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "docs.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make docs"]
    assert workflow[True].keys() >= {"pull_request", "push"}  # YAML reads `on` as true
    assert workflow["env"]["TORCH"].partition("+")[0] in (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(r"^docs:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "mkdocs build --strict" in recipe
    asked = {"absolute_links", "anchors", "omitted_files", "unrecognized_links"}
    assert yaml.safe_load(SETTINGS)["validation"] == dict.fromkeys(asked, "warn")


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_run_what_the_makefile_has_and_end(file: Path) -> None:
    text, makefile = file.read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z.][\w./-]*)", re.sub("^ *#.*", "", text, flags=re.MULTILINE)):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}, "a job that writes says so itself"
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] > 0


def test_workflows_use_one_version_of_an_action_by_its_commit() -> None:
    files = [*WORKFLOWS, ROOT / "action.yml"]
    used = {one for file in files for one in re.findall(r"uses: (.+)", file.read_text())}
    assert len(used) == len({one.partition("@")[0] for one in used}), sorted(used)
    for one in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one), "a tag can be moved"


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.stem)
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


def test_the_keys_of_a_finding_that_is_accepted_are_in_the_documentation() -> None:
    text = (DOCS / "how-to" / "ci.md").read_text()
    assert {f"`{one.name}`" for one in msgspec.structs.fields(Entry)} <= set(re.findall("`[a-z]+`", text))


WRITTEN = [*READMES, ROOT / "CONTRIBUTING.md", *PAGES]


def _prose(file: Path) -> str:
    return re.sub(r"^```.*?^```", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)


def _anchor(heading: str) -> str:
    """Return where GitHub puts a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("file", READMES, ids=lambda file: file.name)
def test_every_link_and_target_of_a_readme_is_there(file: Path) -> None:
    text = _prose(file)
    anchors = {_anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 20
    for link in links:
        place, _, anchor = link.partition("#")
        assert (ROOT / place).exists(), link
        assert place or anchor in anchors, link
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("file", READMES, ids=lambda file: file.name)
def test_the_first_command_of_a_readme_runs_in_a_checkout(file: Path) -> None:
    first = re.findall(r"^    verified-losses certify (\S+):\w+ ", file.read_text(), re.MULTILINE)[0]
    assert (ROOT / first).is_file()


def test_both_readmes_have_the_same_links_names_and_commands() -> None:
    english, chinese = (_prose(file) for file in READMES)
    for pattern in (r"`([^`]+)`", r"^    (\S.*?)(?: +#.*)?$"):
        found, theirs = (
            collections.Counter(" ".join(one.split()) for one in re.findall(pattern, text, re.MULTILINE))
            for text in (english, chinese)
        )
        assert found == theirs
    ours, theirs = (re.findall(r"\]\(([^)#]*)", text) for text in (english, chinese))
    pairs = {f"docs/{page.relative_to(DOCS / 'zh')}": str(page.relative_to(ROOT)) for page in CHINESE}
    pairs["README.zh-CN.md"] = "README.md"
    assert collections.Counter(pairs.get(one, one) for one in ours) == collections.Counter(theirs)


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_command_line_takes_what_is_written(file: Path) -> None:
    text = _prose(file).replace("\\\n", " ")
    commands = re.findall(r"(?:^    |`)(?:\.venv/bin/)?verified-losses ([^`\n]+)", text, re.MULTILINE)
    commands += re.findall(r"-m verified_losses\.properties ([^`\n]+)", text)
    for line in commands:
        arguments = shlex.split(line.replace("...", ""), comments=True)
        command, _, _ = app.parse_args(arguments, exit_on_error=False, print_error=True)
        assert callable(command)
    if file in READMES:
        assert len(commands) > 8


def test_extras_are_installed_with_the_command_itself() -> None:
    for file in WRITTEN:
        for extras in re.findall(r"pip install '[\w.-]+\[([\w,]+)\]'", file.read_text()):
            assert "verify" in extras.split(","), f"{file.name}: the command needs [verify] too"
