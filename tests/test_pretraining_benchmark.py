"""The benchmark of pre-training runs, also without the library that it compares with."""

import sys

from experiments.benchmarks import pretraining_step


def test_it_runs_without_diffusers(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    pretraining_step.main(["--repeats", "1", "--batch", "1"])
    out = capsys.readouterr().out
    assert out.count("pip install -e '.[bench]'") == 2
    assert out.count("genpred  ") == 2
    assert "to decoder block 12:   605.68 G, 54.1%" in out
