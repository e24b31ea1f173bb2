"""What the reference shows is documented: every public name on its pages, with its arguments."""

import re

import griffe
import pytest

from cases.readme import ROOT

PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
SHOWN = sorted({name for page in PAGES for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)})


@pytest.fixture(scope="module")
def package():
    return griffe.load("sam_jax", search_paths=[ROOT], resolve_aliases=True)


def public(thing):
    """Yields a module's, class's or function's public functions, classes and methods, itself among them."""
    yield thing
    if thing.is_function or thing.is_attribute:
        return
    for member in thing.members.values():
        imported = member.is_alias and (thing.is_class or not member.is_exported)
        if not member.name.startswith("_") and not imported and not member.is_module and not member.is_attribute:
            yield from public(member)


@pytest.mark.parametrize("name", SHOWN)
def test_every_public_name_of_the_reference_is_documented(package, name):
    parts = name.removeprefix("sam_jax").strip(".")
    found = list(public(package[parts] if parts else package))
    assert found
    missing = [thing.path for thing in found if not thing.has_docstring]
    assert not missing, f"no docstring: {missing}"


def test_a_name_without_docstring_is_found(tmp_path):
    (tmp_path / "bare.py").write_text('"""A module."""\n\ndef told():\n    """Says."""\n\ndef bare():\n    pass\n')
    module = griffe.load("bare", search_paths=[tmp_path])
    assert [thing.path for thing in public(module) if not thing.has_docstring] == ["bare.bare"]
