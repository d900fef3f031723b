"""What a package index gets that the repository does not need: a README whose links lead somewhere, and project URLs.

An index shows the README alone, so that relative images would be broken and relative links lead nowhere. The address of
the repository stands in one place, `tool.hatch.metadata.hooks.custom.repository` of pyproject.toml. As long as that is
empty, images are left out and such links are plain text.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

IMAGE = re.compile(r"^!\[([^\]]*)\]\((?!https?:)([^)]+)\)\n\n?", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)]+)\)")
CODE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
PAGES = {"Documentation": "docs/index.md", "Changelog": "CHANGELOG.md"}
"""Project URLs beside the repository's own, and the files that they show."""


def for_index(readme: str, repository: str, version: str) -> str:
    """Return the README with absolute images and links; without an address, with none that is relative."""
    page, image = (f"{repository}/{kind}/v{version}" for kind in ("blob", "raw"))

    def shown(text: str) -> str:
        if not repository:
            return LINK.sub(r"\1", IMAGE.sub("", text))
        text = IMAGE.sub(lambda m: f"![{m[1]}]({image}/{m[2]})\n\n", text)
        return LINK.sub(lambda m: f"[{m[1]}]({page}/{m[2]})", text)

    parts = CODE.split(readme)  # every second one is a block of code, which stays as it is
    return "".join(part if number % 2 else shown(part) for number, part in enumerate(parts))


def urls_of(repository: str, version: str) -> dict[str, str]:
    """Return the project URLs; none without an address."""
    if not repository:
        return {}
    pages = {name: f"{repository}/blob/v{version}/{path}" for name, path in PAGES.items()}
    return {"Repository": repository, "Issues": f"{repository}/issues", **pages}


class IndexMetadata(MetadataHookInterface):
    """The fields of the project that depend on the repository's address."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in ``readme`` and ``urls``."""
        repository, version = str(self.config.get("repository", "")).rstrip("/"), metadata["version"]
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_index(readme, repository, version)}
        metadata["urls"] = urls_of(repository, version)
