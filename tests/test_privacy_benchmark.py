"""The benchmark of privacy's distances runs, checks them, and refuses to time wrong ones."""

import re

import pytest

from experiments.benchmarks import privacy as benchmark


@pytest.mark.parametrize("part", benchmark.PARTS)
def test_time_and_peak_are_printed(part, capsys):
    benchmark.measure(part, 300)
    assert re.search(rf"^{part} +300 x 300 rows, .*: [\d.]+ s, [\d.]+ GB at most", capsys.readouterr().out)


def test_distances_that_are_off_are_not_timed(monkeypatch):
    exact = benchmark.distances_to_closest_record
    monkeypatch.setattr(benchmark, "distances_to_closest_record", lambda *given, **named: 1.01 * exact(*given, **named))
    with pytest.raises(SystemExit, match="distances are off by"):
        benchmark.measure("mixed", 50)


@pytest.mark.slow
def test_each_part_has_a_process_of_its_own(capsys):
    benchmark.main(["--parts", "mixed", "wide", "--rows", "200"])
    assert capsys.readouterr().out.count("GB at most") == 2
