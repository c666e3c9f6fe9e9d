"""The benchmark of the pixel ensemble runs, and finds that both ways compute the same; at a small size."""

import re

import pytest

from experiments.benchmarks import pixel_ensemble as benchmark


@pytest.fixture(autouse=True)
def small(monkeypatch):
    maps = [(24, 4), (16, 4), (8, 8)]
    for name, value in {"SIZE": 32, "CLASSES": 5, "MEMBERS": 3, "IMAGES": 2, "MAPS": maps}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark.RandomMaps, "channels", tuple(channels for channels, _ in maps))


def test_both_ways_are_timed(capsys, monkeypatch):
    benchmark.main(["--parts", "predict", "train", "--repeats", "1", "--threads", "1"])
    out = capsys.readouterr().out
    assert float(re.search(r"([\d.]+)% of the labels equal", out)[1]) > 99.99
    assert float(re.search(r"losses agree to (\S+);", out)[1]) < 1e-5
    assert len(re.findall(r"^  (?:ours|published) +[\d.]+ ms$", out, flags=re.MULTILINE)) == 4
    asked = []

    class Small(benchmark.RandomMaps):  # in place of the UNet of 550 million weights
        def forward(self, images):
            asked.append(len(images))
            return super().forward(images)

    monkeypatch.setattr(benchmark, "DDPMBackbone", lambda checkpoint: Small())
    benchmark.train_on_many()
    assert "to train on 2 images" in capsys.readouterr().out
    assert asked == [1]  # the last image


def test_ways_that_differ_are_told(monkeypatch):
    separate = benchmark.separate

    def other(ensemble):
        members = separate(ensemble)
        for member in members:
            member[0].weight.data += 0.5
        return members

    monkeypatch.setattr(benchmark, "separate", other)
    with pytest.raises(SystemExit, match="these are not two ways to compute the same"):
        benchmark.main(["--parts", "train", "--repeats", "1", "--threads", "1"])
