"""docs/recipe.md is made from the settings."""

from pathlib import Path

from pipeline.recipe.reference import reference

PAGE = Path(__file__).parents[3] / "docs" / "recipe.md"


def test_the_page_is_what_the_settings_say() -> None:
    """Mend it by `python -m pipeline.recipe.reference > docs/recipe.md`."""
    assert PAGE.read_text() == reference()
