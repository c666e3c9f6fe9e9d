"""What all tests share: nothing of a user's own reaches them, and nothing they write reaches a user."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory):
    """A cache of derived data for the session, unless one is named, and a W&B that knows no account."""
    with pytest.MonkeyPatch.context() as patch:
        if "GENPRED_DATA" not in os.environ:
            patch.setenv("GENPRED_DATA", str(tmp_path_factory.mktemp("genpred-data")))
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        private = tmp_path_factory.mktemp("wandb")
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for kind in ("CONFIG", "CACHE", "DATA"):
            patch.setenv(f"WANDB_{kind}_DIR", str(private / kind.lower()))
        yield
