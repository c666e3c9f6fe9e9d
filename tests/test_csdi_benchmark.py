"""The benchmark of CSDI runs, and times a network that computes the same as PyPOTS'."""

import sys

import pytest
import torch

from experiments.benchmarks import csdi_step


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(csdi_step, "BATCH", 1)


def test_it_runs_without_pypots(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pypots", None)
    csdi_step.main(["--repeats", "1"])
    out = capsys.readouterr().out
    assert out.count("pip install -e '.[bench]'") == 2
    assert out.count("genpred  ") == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyPOTS brings packages that warn when they are imported
def test_pypots_predicts_the_same_noise():
    pytest.importorskip("pypots.imputation", reason="needs the extra bench")
    module = csdi_step.build().eval()
    batch = csdi_step.first_rows(csdi_step.random_series(num_steps=48, num_features=35), 3)
    other = csdi_step.pypots_model(module, num_steps=48).model.eval()
    theirs, network = other.backbone.diff_model, module.network
    torch.nn.init.normal_(theirs.output_projection2.weight)
    with torch.no_grad():
        low = (torch.arange(128) % 64 < 40).expand(50, -1)  # at high frequencies theirs lose digits in float32
        torch.testing.assert_close(
            network.step_waves[low], theirs.diffusion_embedding.embedding[low], rtol=0, atol=1e-2
        )
        network.step_waves.copy_(theirs.diffusion_embedding.embedding)
        layers = theirs.residual_layers
        copies = [
            (network.feature_embedding, [other.embed_layer]),
            (network.side_projection, [layer.cond_projection for layer in layers]),
            (network.step_layers[0], [theirs.diffusion_embedding.projection1]),
            (network.step_layers[2], [theirs.diffusion_embedding.projection2]),
            (network.step_projection, [layer.diffusion_projection for layer in layers]),
            (network.input, [theirs.input_projection]),
            (network.last_hidden, [theirs.output_projection1]),
            (network.output, [theirs.output_projection2]),
        ]
        for ours, layer in zip(network.layers, layers, strict=True):
            copies += [(ours.middle, [layer.mid_projection]), (ours.output, [layer.output_projection])]
            for mine, its in ((ours.time_layer, layer.time_layer), (ours.feature_layer, layer.feature_layer)):
                encoder = its.layers[0]
                mine.query_key_value.weight.copy_(encoder.self_attn.in_proj_weight)
                mine.query_key_value.bias.copy_(encoder.self_attn.in_proj_bias)
                copies += [
                    (mine.attention_output, [encoder.self_attn.out_proj]), (mine.hidden, [encoder.linear1]),
                    (mine.output, [encoder.linear2]), (mine.attention_norm, [encoder.norm1]),
                    (mine.norm, [encoder.norm2]),
                ]  # fmt: skip
        for target, sources in copies:
            for name, parameter in target.named_parameters():
                parameter.copy_(torch.cat([getattr(each, name) for each in sources]).view_as(parameter))
        step, noisy = torch.tensor([0, 17, 49]), torch.randn(batch.values.shape)
        mask = batch.observed_mask.mT.float()
        times = torch.arange(48.0).expand(3, 48)
        inputs = other.backbone.set_input_to_diffmodel(noisy.mT, batch.values.mT, mask)
        expected = theirs(inputs, other.get_side_info(times, mask), step).mT
        predicted = network(noisy[None], step, network.condition(batch.values, batch.observed_mask))[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-4)
