"""Who may import whom: read from the sources, without importing them."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lightning_modules", "datamodules", "callbacks", "experiments")
# Building blocks of methods: plain torch and numpy, and each other.
BLOCKS = tuple(f"lightning_modules.{name}" for name in ("networks", "distributions", "processes"))
FORBIDDEN = {
    "lightning_modules": ("datamodules", "callbacks", "experiments", "wandb", "omegaconf"),
    "datamodules": ("lightning_modules", "callbacks", "experiments", "wandb", "omegaconf"),
    "callbacks": ("lightning_modules", "datamodules", "experiments", "wandb", "omegaconf"),
    "experiments": ("tests",),
}


def imported(source, module):
    """Dotted names that a source imports, at any depth; `module` is its own name, for relative imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def violations(source, module):
    names = imported(source, module)
    found = {name for name in names if within(name, FORBIDDEN[module.split(".")[0]])}
    if within(module, BLOCKS):
        allowed = ("torch", "numpy", *BLOCKS, *sys.stdlib_module_names)
        found |= {name for name in names if not within(name, allowed)}
    return found


def modules(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        yield path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."), path.read_text()


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_keep_to_their_layer(package):
    found = {name: violations(source, name) for name, source in modules(package)}
    assert len(found) > 3
    assert not {name: names for name, names in found.items() if names}


def test_torch_is_not_imported_with_the_command_line():
    for module in ("experiments.run", "experiments.config"):
        top = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text()).body
        statements = [node for node in top if isinstance(node, ast.Import | ast.ImportFrom)]
        names = imported("\n".join(ast.unparse(node) for node in statements), module)
        assert not {name for name in names if within(name, ("torch", "lightning", "wandb", "numpy", *PACKAGES[:3]))}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lightning_modules.networks.mlp", "import lightning as L"),
        ("lightning_modules.networks.mlp", "from ..imputation.vae import VAE"),
        ("lightning_modules.distributions.kernels", "def f():\n    import scipy.linalg"),
        ("lightning_modules.imputation.vae", "from datamodules.imputation.batch import SeriesBatch"),
        ("lightning_modules.imputation.vae", "import wandb"),
        ("datamodules.base", "from callbacks import rng"),
        ("callbacks.results", "import lightning_modules.imputation.vae"),
        ("callbacks.results", "from experiments.config import compose"),
    ],
)
def test_a_breach_is_seen(module, source):
    assert violations(source, module)


def test_what_is_allowed_passes():
    source = (
        "import math\nimport torch.nn as nn\nfrom numpy import pi\nfrom . import conv\nfrom ..distributions import x"
    )
    assert not violations(source, "lightning_modules.networks.mlp")
    source = "import lightning as L\nfrom lightning_modules.networks.mlp import mlp"
    assert not violations(source, "lightning_modules.imputation.vae")
