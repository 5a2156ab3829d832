"""Recipes: ready study files for kinds of training scripts, which come with the package."""

from pathlib import Path

from hpo.errors import CallerError
from hpo.settings import guess


def recipes_folder() -> Path:
    """The folder of the recipes: in the package, or next to it in a checkout."""
    package = Path(__file__).parents[1]
    for parent in (package, package.parent):
        folder = parent / "search_spaces"
        if folder.is_dir():
            return folder / "recipes"
    return package / "recipes"


def recipe_names() -> list[str]:
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def recipe_text(name: str) -> str:
    """The study file of a recipe. Raises CallerError for an unknown name."""
    names = recipe_names()
    if name not in names:
        raise CallerError(
            f"there is no recipe {name!r}.{guess(name, names)} Valid: {', '.join(names)}"
        )
    return (recipes_folder() / f"{name}.yaml").read_text(encoding="utf-8")
