"""Imports point right only: cli -> recipe -> stages -> joints -> parts -> ground."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "limbeck"
GROUND = {
    "errors",
    "types",
    "config",
    "plugins",
    "tables",
    "store",
    "guard",
    "ledger",
    "energy",
    "progress",
    "folder",
    "journal",
    "outside",
    "secrets",
    "chat",
    "languages",
    "models",
    "newborn",
    "processes",
    "memory",
    "windows",
    "sealed",
    "sharding",
    "packed",
}
PARTS = {
    "problems",
    "engines",
    "verifiers",
    "filters",
    "rewards",
    "train",
    "metrics",
    "report",
    "serve",
    "card",
    "pins",
    "prompting",
    "published",
    "compress",
    "export",
}
JOINTS = {"student", "scoring"}  # what several parts make together
ABOVE = {
    "recipe",
    "recipe_file",
    "planner",
    "runner",
    "runs",
    "reporting",
    "audit",
    "doctor",
    "estimates",
    "evaluation",
    "publish",
    "exporting",
    "api",
    "cli",
    "commands",
    "__init__",
    "__main__",
}


def layer(module: str) -> int:
    top = module.split(".")[1] if "." in module else "__init__"
    if top in GROUND:
        return 0
    if top in PARTS:
        return 1
    if top in JOINTS:
        return 2
    if top == "stages":
        return 3
    assert top in ABOVE, f"{module} has no layer"
    return 4 + (top in ("api", "cli", "commands", "__init__", "__main__"))


def imports() -> list[tuple[str, str]]:
    found = []
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE.parent).with_suffix("")
        module = ".".join(relative.parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(module, name) for name in names if name.startswith("limbeck.")]
    return found


def test_imports_point_right_only():
    assert len(imports()) > 50
    for module, name in imports():
        assert layer(name) <= layer(module), f"{module} imports {name}"


def test_parts_and_stages_keep_to_themselves():
    for module, name in imports():
        mine, other = module.split(".")[1:2], name.split(".")[1:2]
        if layer(module) in (1, 2, 3) and layer(name) == layer(module):
            assert mine == other, f"{module} imports {name}"
        if mine == ["stages"] and other == ["stages"]:
            raise AssertionError(f"stage {module} imports stage {name}")


def test_ground_stages_and_recipe_import_no_torch():
    code = (
        "import sys, limbeck.cli, limbeck.serve, limbeck.runner, limbeck.runs, limbeck.recipe as r;"
        "r.schema();"
        "heavy = {'torch', 'transformers', 'reasoning_gym', 'datasets', 'fastapi', 'uvicorn'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
