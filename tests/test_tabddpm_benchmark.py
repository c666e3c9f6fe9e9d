"""The benchmark of TabDDPM runs, and says what it measures."""

import re

import pytest

from experiments.benchmarks import tabddpm_step

SMALL = ["--repeats", "1", "--batch-size", "64", "--rows", "3000", "--parts"]


def test_it_runs(capsys):
    tabddpm_step.main([*SMALL, "steps", "bf16", "million"])
    out = capsys.readouterr().out
    for name, case in tabddpm_step.CASES.items():
        (line,) = [each for each in out.splitlines() if each.startswith(name) and "plain" not in each]
        *times, target, ops, _, _, _, reverse_ops = map(float, line[len(name) :].split())
        assert len(times) == 3
        assert target == case.target
        assert 50 < ops <= 250
        assert 20 < reverse_ops <= 100
    assert out.count("plain / bf16: ") == len(tabddpm_step.CASES)
    pattern = r"3,000 rows of 25 numbers .* encoded by quantiles, .* 1 training steps of 64 rows without the Trainer, "
    pattern += r".* 3,000 rows drawn with 20 network calls and decoded in .* GB \(target: below 8\)"
    assert re.search(pattern, out)


@pytest.mark.slow
def test_the_compiled_step_runs(capsys):
    tabddpm_step.main([*SMALL, "compile"])
    assert capsys.readouterr().out.count("plain / compiled: ") == len(tabddpm_step.CASES)
