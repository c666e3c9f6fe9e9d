"""What GPUs are given that CPUs are not is chosen by what is there; the machine is told to have one."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from experiments.build import build_data, build_module, mixed_precision
from experiments.config import compose
from lightning_modules import compiled
from lightning_modules.imputation.brits import BRITS
from lightning_modules.imputation.csdi import CSDI
from lightning_modules.segmentation.diffusion import DiffusionPretraining
from lightning_modules.synthesis.tabddpm import TabDDPM


def machine(monkeypatch, gpus=1, bf16=True, capability=(9, 0), compilers=("gcc",), triton=True, headers=True, cc=None):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name if name in compilers else None)
    monkeypatch.setattr(compiled.importlib.util, "find_spec", lambda name: triton or None)
    monkeypatch.setattr(compiled.Path, "exists", lambda path: headers)
    monkeypatch.setenv("CC", cc) if cc else monkeypatch.delenv("CC", raising=False)


@pytest.mark.parametrize(
    ("there", "trainer", "precision"),
    [
        ({}, {"accelerator": "auto"}, "bf16-mixed"),
        ({}, {"accelerator": "gpu"}, "bf16-mixed"),
        ({}, {}, "bf16-mixed"),
        ({}, {"accelerator": "cpu"}, None),
        ({}, {"accelerator": "auto", "precision": "32-true"}, None),
        ({"bf16": False}, {"accelerator": "auto"}, None),
        ({"gpus": 0}, {"accelerator": "auto"}, None),
    ],
)
def test_the_precision_of_a_method_for_gpus(there, trainer, precision, monkeypatch):
    machine(monkeypatch, **there)
    assert mixed_precision(CSDI(3), trainer) == ({"precision": precision} if precision else {})
    assert mixed_precision(BRITS(3), trainer) == {}


@pytest.mark.parametrize(
    ("there", "capabilities", "trainer", "precision"),
    [
        ({"gpus": 0}, {"avx512_bf16": True}, {"accelerator": "auto"}, "bf16-mixed"),
        ({"gpus": 0}, {"avx512_bf16": False, "amx_bf16": True}, {"accelerator": "cpu"}, "bf16-mixed"),
        ({"gpus": 0}, {"neon": True, "sve_bf16": True}, {}, "bf16-mixed"),
        ({"gpus": 0}, {"avx512_f": True, "avx512_bf16": False}, {"accelerator": "auto"}, None),
        ({"gpus": 0}, {"avx512_bf16": True}, {"accelerator": "auto", "precision": "32-true"}, None),
        ({"gpus": 0}, {"avx512_bf16": True}, {"accelerator": "mps"}, None),
        ({}, {}, {"accelerator": "auto"}, "bf16-mixed"),
        ({}, {}, {"accelerator": "cpu"}, None),
        ({"bf16": False}, {"avx512_bf16": True}, {"accelerator": "auto"}, None),
        ({"bf16": False}, {"avx512_bf16": True}, {"accelerator": "cpu"}, "bf16-mixed"),
    ],
)
def test_the_precision_of_a_method_for_cpus_as_well(there, capabilities, trainer, precision, monkeypatch):
    machine(monkeypatch, **there)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    pretraining = DiffusionPretraining(8, 64, channel_multipliers=[1])
    assert mixed_precision(pretraining, trainer) == ({"precision": precision} if precision else {})
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # of a kind that is no CUDA
    if there.get("gpus") == 0 and trainer.get("accelerator") != "cpu":
        assert mixed_precision(pretraining, trainer) == {}


@pytest.mark.parametrize(
    ("there", "device", "choice"),
    [
        ({}, "cuda", True),
        ({}, "cpu", False),
        ({"compilers": ("clang",)}, "cuda", True),
        ({"compilers": ()}, "cuda", False),
        ({"triton": False}, "cuda", False),
        ({"headers": False}, "cuda", False),
        ({"cc": "gone"}, "cuda", False),
        ({"cc": "icx", "compilers": ("icx",)}, "cuda", True),
        ({"capability": (6, 1)}, "cuda", False),
    ],
)
def test_losses_are_compiled_where_they_can_be(there, device, choice, monkeypatch):
    machine(monkeypatch, **there)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: ("compiled", function))
    losses, device = TabDDPM().losses, torch.device(device)
    assert (compiled.compiled(losses, device, None) == ("compiled", losses)) == choice
    assert compiled.compiled(losses, device, True) == ("compiled", losses)
    assert compiled.compiled(losses, device, False) == losses


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # in Lightning
@pytest.mark.parametrize("method", ["gp", "vae", "hivae", "gpvae", "brits", "gruigan", "csdi"])
def test_optimisers_are_fused(method):
    module = build_module(compose(f"{method}_digits"))
    module.trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False)
    module.trainer.strategy.connect(module)
    module.trainer.fit_loop._data_source.instance = DataLoader([0])
    found = module.configure_optimizers()
    optimizers = [found["optimizer"]] if isinstance(found, dict) else found if isinstance(found, list) else [found]
    assert all(group["fused"] for optimizer in optimizers for group in optimizer.param_groups)


def test_loaders_pin_memory_for_a_gpu(monkeypatch):
    data = build_data(compose("mean_digits"))
    data.prepare_data()
    data.setup("fit")
    for gpus in (0, 1):
        machine(monkeypatch, gpus=gpus)
        assert data.train_dataloader().pin_memory == bool(gpus)


def test_the_choice_is_nobodys_to_make_in_a_configuration():
    """What a run's identity holds is the same with and without a GPU, so that it continues on either."""
    assert compose("tabddpm_abalone").config["model"]["compile"] is None
    assert "precision" not in compose("csdi_physionet").config["trainer"]
    assert "precision" not in compose("unet_faces").config["trainer"]
