"""Gives the package the addresses of the repository that releases it, before it is built.

    python tools/addresses.py https://github.com/OWNER/verified-losses v0.1.0

PyPI shows a README without the files beside it. It gets PYPI.md, whose links lead to the repository,
at the tag.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = 'readme = "README.md"\n'
NEXT = "[project.scripts]\n"


def readme(text: str, url: str, tag: str) -> str:
    """Return the README with the address of each file that it links to, and of each picture."""
    text = re.sub(r"(!\[[^]]*\]\()(?!https?:)", rf"\g<1>{url}/raw/{tag}/", text)
    return re.sub(r"(\]\()(?!https?:)", rf"\g<1>{url}/blob/{tag}/", text)


def project(text: str, url: str, tag: str) -> str:
    """Return pyproject.toml with the addresses, and with that README.

    Raises:
        ValueError: it has addresses, another README or no scripts.
    """
    if "[project.urls]" in text or README not in text or NEXT not in text:
        raise ValueError(f"pyproject.toml: expected {README.strip()}, {NEXT.strip()} and no [project.urls]")
    urls = {
        "Source": url,
        "Documentation": f"{url}/blob/{tag}/docs/index.md",
        "Changelog": f"{url}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{url}/issues",
    }
    lines = "".join(f'{name} = "{address}"\n' for name, address in urls.items())
    return text.replace(README, README.replace("README", "PYPI")).replace(
        NEXT, f"[project.urls]\n{lines}\n{NEXT}"
    )


def main(root: Path, url: str, tag: str) -> None:
    """Write both into a checkout."""
    settings = root / "pyproject.toml"
    settings.write_text(project(settings.read_text(), url, tag))
    (root / "PYPI.md").write_text(readme((root / "README.md").read_text(), url, tag))


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[1].startswith("https://"):
        sys.exit(f"expected the https:// address of the repository and a tag, got {sys.argv[1:]}")
    main(ROOT, *sys.argv[1:])
