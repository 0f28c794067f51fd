"""What would make a run worthless, before it runs: everything is tried, nothing believed.

Of this machine, of a model's folder, or of a recipe. A check is a function that says things, in the
file of its subject; its name is that of its findings. Nothing is changed, and nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck import progress
from limbeck import recipe as recipes
from limbeck.doctor.finding import Finding, examined, refused
from limbeck.errors import UserError, UserErrors
from limbeck.verifiers.sandbox.checks import check

__all__ = ["Finding", "examine"]

RECIPES = (".yaml", ".yml", ".py")


def examine(
    subject: str = "",
    overrides: dict[str, Any] | None = None,
    *,
    run: str | Path | None = None,
    size: str = "",
) -> list[Finding]:
    """What was found: of a recipe's file, of a model's or a stage's folder, of a Hub name, or of
    this machine. UserError for a path where nothing is.

    `overrides`, `run` and `size` are those of a recipe, as in `limbeck plan`.
    """
    if _is_path(subject) and not Path(subject).exists():
        raise UserError(subject, "there is no such file or folder", "check the path")
    progress.say(f"looking at {subject or 'this machine'}, which may take a minute")
    try:
        if not subject:
            from limbeck.doctor.versions import installed_versions

            return check() + examined(installed_versions)
        if subject.endswith(RECIPES) or Path(subject).is_file():
            return _of_recipe(subject, overrides, run, size)
        from limbeck.doctor import of_model

        return list(of_model.examine(subject))
    except ModuleNotFoundError as error:
        told = f"{error.name} is not installed, and without it little can be looked at"
        return [Finding("packages", False, told, "pip install 'limbeck[local]'")]


def _is_path(subject: str) -> bool:
    """Whether it cannot be a name on the hub."""
    looks = subject.startswith(("/", ".", "~")) or subject.partition("@")[0].count("/") > 1
    return looks or subject.endswith(RECIPES)


def _of_recipe(
    path: str, overrides: dict[str, Any] | None, run: str | Path | None, size: str
) -> list[Finding]:
    from limbeck.doctor import of_recipe
    from limbeck.doctor.setup import Setup

    try:
        recipe = recipes.load(path, overrides, size)
    except (UserError, UserErrors) as error:
        return list(refused("recipe", error))
    folder = Path("runs") / (f"{recipe.name}-{size}" if size else recipe.name)
    return list(of_recipe.examine(Setup(recipe, Path(run) if run else folder)))
