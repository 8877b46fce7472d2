"""What mkdocs does beside rendering: the page of config keys is made from the configs."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from config_reference import page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    root = Path(__file__).resolve().parent.parent
    files.append(File.generated(config, "config.md", content=page(root / "conf")))
    return files
