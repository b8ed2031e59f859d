"""Pages of the documentation that are made of the code: the laws, the planted defects, the findings.

A hook of mkdocs: `make docs` writes the site to build/docs/.
"""

import re
import shutil
import sys
from inspect import getdoc
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
WORLDS = {
    "any": "any",
    "one": "one process",
    "two": "two processes",
    "two or one": "two processes, or one",
    "several": "several ranks",
    "four or more": "four ranks or more",
}


def laws() -> str:
    """Return the page of the laws."""
    from verified_losses.properties.contracts import contracts
    from verified_losses.properties.laws import laws as every_law

    lines = [
        "# The laws", "",
        "Each holds for every loss of the contracts named, in every world of the kind named, and is checked "
        "over [drawn cases](how-it-works.md). Numbers are compared with the oracle's within a [bound derived "
        "for the case](bounds.md), which ties [several ranks to one process](mean-over-ranks.md) too; the "
        "others compare bits, types or what a call leaves behind. Written from `properties/laws/`.",
        "", "| law | what it says | worlds | contracts |", "|---|---|---|---|",
    ]  # fmt: skip
    every = contracts()
    for law in every_law():
        said = " ".join((getdoc(law.check) or "").split("\n\n")[0].split())
        held = [name for name, contract in every.items() if law.applies(contract)]
        names = "all" if len(held) == len(every) else ", ".join(held)
        where = WORLDS[law.worlds] + (f", on {law.needs}" if law.needs else "")
        where += ", simulated" * law.drawn_alone + ", [of losses that state it](inputs.md)" * law.stated
        lines.append(f"| {law.name} | {_cell(said)} | {where} | {names} |")
    return "\n".join(lines) + "\n"


def defects() -> str:
    """Return the page of the planted defects and the right variants."""
    from tests.defects.index import CUDA, DEFECTS, RIGHT

    planted = [*DEFECTS, *CUDA]
    lines = [
        "# The planted defects", "",
        f"Each of {len(planted)} wrong losses is caught by the laws named, and none of {len(RIGHT)} right "
        "variants is accused: `make defects`. Those with a source were seen in a package or a repository. "
        "Written from `tests/defects/index.py`.",
        "", "| contract | what is wrong | caught by | seen in |", "|---|---|---|---|",
    ]  # fmt: skip
    for one in planted:
        links = [_source(part, number) for number, part in enumerate(filter(None, one.source.split("; ")), 1)]
        laws = ", ".join(one.caught_by)
        lines.append(f"| {one.contract} | {_cell(one.wrong)} | {laws} | {' '.join(links)} |")
    return "\n".join(lines) + "\n"


def _source(text: str, number: int) -> str:
    if text.startswith("https://"):
        return f"[{number}]({text})"
    return "[findings](findings.md)" if text.startswith("peers/") else _cell(text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("[", "\\[")


def findings() -> str:
    """Return the page of what was found in released packages."""
    text = (ROOT / "peers" / "FINDINGS.md").read_text()
    text = re.sub(r"\[([^]]+)\]\(counterexamples/[^)]+\)", r"`peers/counterexamples/\1`", text)
    return text.replace("# Released losses, certified", "# What was found in released packages", 1)


def on_files(files: Any, config: Any) -> Any:
    """Put the pages in the place of those that say where the tree has the same, as mkdocs asks."""
    from mkdocs.structure.files import File

    for name, content in (("laws", laws()), ("defects", defects()), ("findings", findings())):
        files.remove(files.get_file_from_path(f"{name}.md"))
        files.append(File.generated(config, f"{name}.md", content=content))
    return files


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Show one colon where a docstring has two before a block, as mkdocs asks."""
    return html.replace("::</p>", ":</p>")


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Say of Chinese pages that they are, as mkdocs asks: browsers choose fonts by it."""
    is_chinese = page.file.src_uri.startswith("zh/")
    return output.replace('<html lang="en"', '<html lang="zh"', 1) if is_chinese else output


def on_post_build(config: Any) -> None:
    """Write the list of pages beside the Chinese ones too: the theme looks for it there, as mkdocs asks."""
    site = Path(config.site_dir)
    shutil.copyfile(site / "sitemap.xml", site / "zh" / "sitemap.xml")
