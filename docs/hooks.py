"""What mkdocs does beside rendering: pages made from the configs and from the quickstart."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from config_reference import page as config_page

_NOTE = "This page is `examples/quickstart.py`; `examples/quickstart.ipynb` is the same with its outputs."


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files."""
    root = Path(__file__).resolve().parent.parent
    files.append(File.generated(config, "config.md", content=config_page(root / "conf")))
    notebook = jupytext.read(root / "examples" / "quickstart.py")
    notebook.metadata = {}
    files.append(File.generated(config, "python.md", content=f"{jupytext.writes(notebook, 'md')}\n{_NOTE}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Keep the text of links that leave ``docs``: the site has no source files."""
    up = r"\.\./" * (page.file.src_uri.count("/") + 1)
    return re.sub(rf"\[([^\]]+)\]\({up}[^)]+\)", r"\1", markdown)
