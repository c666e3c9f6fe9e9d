"""What all tests share: nothing of a user's own reaches them, and nothing they write reaches a user."""

import os

import pytest

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if WORKERS > 1:  # before torch is imported; processes that tests start inherit it
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // WORKERS)))


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory):
    """A cache of derived data for the session, unless one is named, and a W&B that knows no account."""
    with pytest.MonkeyPatch.context() as patch:
        if "GENPRED_DATA" not in os.environ:
            base = tmp_path_factory.getbasetemp()  # of a worker, beside those of the others
            folder = (base.parent if WORKERS > 1 else base) / "genpred-data"
            folder.mkdir(exist_ok=True)
            patch.setenv("GENPRED_DATA", str(folder))
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        private = tmp_path_factory.mktemp("wandb")
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for kind in ("CONFIG", "CACHE", "DATA"):
            patch.setenv(f"WANDB_{kind}_DIR", str(private / kind.lower()))
        yield
