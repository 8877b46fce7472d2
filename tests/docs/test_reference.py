"""The API reference: it has what the examples import, and docstrings become links, examples and types."""

from __future__ import annotations

import importlib
import re
import sys

import griffe
import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
from docstrings import Roles

PAGES = [ROOT / "README.md", ROOT / "examples" / "quickstart.py", ROOT / "examples" / "serve.py"]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def listed() -> list[str]:
    """Objects of the reference, by the module that defines them."""
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    return [name for page in pages for name in re.findall(r"^::: (.+)$", page.read_text(), re.MULTILINE)]


def found(name: str) -> object:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last, None) or importlib.import_module(name)


def test_every_object_is_listed_once_and_is_there() -> None:
    names = listed()
    assert len(names) == len(set(names)) > 100
    for name in names:
        assert getattr(found(name), "__module__", None) == name.rpartition(".")[0] or name == "dlen.metrics.functional"


@pytest.mark.parametrize("module", ["dlen.models", "dlen.models.backbones", "dlen.metrics"])
def test_everything_that_a_package_exports_is_listed(module: str) -> None:
    package = importlib.import_module(module)
    exported = {getattr(package, name) for name in package.__all__ if isinstance(getattr(package, name), type)}
    assert exported <= {found(name) for name in listed()}


def test_everything_that_the_documentation_imports_is_listed() -> None:
    objects = [found(name) for name in listed()]
    imports = {
        line for page in PAGES for line in re.findall(r"^from dlen.* import .+$", page.read_text(), re.MULTILINE)
    }
    assert len(imports) > 10
    for line in imports:
        module, _, names = line.removeprefix("from ").partition(" import ")
        for name in names.split(", "):
            one = getattr(importlib.import_module(module), name)
            assert not callable(one) or one in objects, line


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> griffe.Module:
    folder = tmp_path_factory.mktemp("package")
    (folder / "demo").mkdir()
    (folder / "demo" / "__init__.py").write_text("")
    (folder / "demo" / "other.py").write_text('class There:\n    """One."""\n')
    (folder / "demo" / "one.py").write_text(
        'from enum import StrEnum\n\n\nclass Form(StrEnum):\n    """A form."""\n\n    SUM = "sum"  # adds\n\n\n'
        'class Here:\n    """See :meth:`go`, :class:`There`, :meth:`There.stay`, :class:`~dlen.schema.Schema`, '
        ':mod:`glob`; ``a b``.\n\n    Example:\n        >>> 1\n        1\n    """\n\n'
        '    def go(self) -> None:\n        """Go."""\n'
    )
    loaded = griffe.load(
        "demo", search_paths=[folder], extensions=griffe.load_extensions(Roles()), allow_inspection=False
    )
    assert isinstance(loaded, griffe.Module)
    return loaded


def test_roles_become_links_and_examples_become_code(package: griffe.Module) -> None:
    docstring = package["one.Here"].docstring
    links = re.findall(r'<autoref identifier="(.+?)" optional><code>(.+?)</code></autoref>', docstring.value)
    assert links == [
        ("demo.one.Here.go", "go"),
        ("demo.other.There", "There"),
        ("demo.other.There.stay", "There.stay"),
        ("dlen.schema.Schema", "Schema"),
        ("glob", "glob"),
    ]
    assert "`a b`" in docstring.value
    assert [section.kind.value for section in docstring.parse("google")] == ["text", "examples"]


def test_comments_of_an_enum_are_its_docstrings(package: griffe.Module) -> None:
    assert package["one.Form.SUM"].docstring.value == "adds"


def test_no_result_is_taken_for_a_type() -> None:
    """What stands before a colon under Returns is read as the type of the result."""
    typed = re.compile(r"^ +Returns:\n +[^:\n]*: ", re.MULTILINE)
    modules = {name if name.endswith("functional") else name.rpartition(".")[0] for name in listed()}
    for module in modules:
        assert not typed.search((ROOT / "src" / f"{module.replace('.', '/')}.py").read_text()), module
