"""Ready study files for kinds of training scripts, which come with the package."""

from pathlib import Path

from hpo.errors import CallerError
from hpo.settings import guess


def recipes_folder() -> Path:
    """In a checkout beside the package, else in it."""
    package = Path(__file__).parents[1]
    places = (package / "search_spaces", package.parent / "search_spaces")
    return next((place for place in places if place.is_dir()), package) / "recipes"


def recipe_names() -> list[str]:
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def recipe_text(name: str) -> str:
    """Raises CallerError for one that is not there."""
    names = recipe_names()
    if name not in names:
        raise CallerError(
            f"there is no recipe {name!r}.{guess(name, names)} Valid: {', '.join(names)}"
        )
    return (recipes_folder() / f"{name}.yaml").read_text(encoding="utf-8")
