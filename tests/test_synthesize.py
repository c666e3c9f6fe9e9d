"""A table of one's own, from the file to synthetic rows."""

import numpy as np
import pandas as pd
import pytest
from people import people

from callbacks.synthetic_table import write_table
from experiments.run import main as run
from experiments.synthesize import main as synthesize

FAST = ["max_steps=200", "hidden=[32]", "num_diffusion_steps=20", "sampling_steps=null", "logger=none",
        "evaluation_seeds=1", "data.mlp=null"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    people().to_csv(folder / "people.csv", index=False)
    arguments = [f"data.path={folder / 'people.csv'}", "data.target=income", f"run_root={folder / 'runs'}", *FAST]
    assert run(["tabddpm_csv", *arguments]) == 0
    return next((folder / "runs" / "tabddpm_csv").glob("*/seed0"))


def check(frame):
    real = people()
    assert list(frame.columns) == list(real.columns)
    assert pd.api.types.is_integer_dtype(frame["age"])
    assert frame["age"].between(real["age"].min(), real["age"].max()).all()
    assert frame["height"].dropna().between(real["height"].min(), real["height"].max()).all()
    assert frame["hired"].str.fullmatch(r"\d{4}-\d{2}-\d{2}").all()
    assert frame["hired"].between(real["hired"].min(), real["hired"].max()).all()
    assert set(frame["city"].dropna()) <= set(real["city"].dropna())
    assert set(frame["children"]) <= {0, 1, 2, 3}
    assert frame["member"].dtype == bool
    assert (frame["score"].dropna() % 1 == 0).all()
    assert set(frame["income"]) == {">50K", "<=50K"}
    for name in ("height", "city", "score"):
        assert 0 < frame[name].isna().mean() < 0.6
    assert not frame[["age", "hired", "children", "member", "income"]].isna().any().any()


def test_a_run_leaves_a_synthetic_table_and_figures(trained):
    check(pd.read_csv(trained / "synthetic.csv"))
    scores = pd.read_csv(trained / "synthetic.csv", dtype=str)["score"].dropna()
    assert len(scores)
    assert scores.str.fullmatch("1[0-9]{2}").all()  # integers beside gaps are written as integers
    assert (trained / "figures" / "distributions.png").stat().st_size > 1000
    assert (trained / "figures" / "associations.png").stat().st_size > 1000


def test_rows_are_drawn_from_a_checkpoint_without_the_table(trained, tmp_path, capsys):
    (trained.parents[3] / "people.csv").rename(trained.parents[3] / "moved.csv")
    try:
        output = tmp_path / "synthetic.csv"
        arguments = ["--checkpoint", str(trained), "--rows", "150", "--output", str(output)]
        assert synthesize(arguments) == 0
        assert "150 rows of 8 columns" in capsys.readouterr().out
        frame = pd.read_csv(output)
        assert len(frame) == 150
        check(frame)
        assert synthesize([*arguments, "--where", "income=>50K", "--where", "hired=2020-02-29"]) == 0
        frame = pd.read_csv(output)
        assert (frame["income"] == ">50K").all()
        assert (frame["hired"] == "2020-02-29").all()
        assert synthesize([*arguments[:-1], str(tmp_path / "a.parquet")]) == 0
        assert len(pd.read_parquet(tmp_path / "a.parquet")) == 150
    finally:
        (trained.parents[3] / "moved.csv").rename(trained.parents[3] / "people.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "0", "--output", "a.csv"], "--rows 0: ask for at least one"),
        (["--rows", "5", "--output", "a.csv", "--seed", "9" * 20], "--seed 99999999999999999999: give a number of at"),
        (
            ["--rows", "5", "--output", "a.csv", "--where", "height=1.75", "--where", "height (missing)=yes"],
            "height (missing)='yes' contradicts another condition",
        ),
        (
            ["--rows", "5", "--output", "a.csv", "--where", "height (missing)=yes", "--where", "height=1.75"],
            "height='1.75' contradicts another condition",
        ),
        (["--rows", "5", "--output", "a.txt"], "--output a.txt: it must end in .csv or .parquet"),
        (["--rows", "5", "--output", "a.csv", "--where", "income"], "--where 'income': write column=value"),
        (
            ["--rows", "5", "--output", "a.csv", "--where", "income=rich"],
            "income='rich' is no category of",
        ),
        (["--rows", "5", "--output", "a.csv", "--where", "wage=1"], "the table has no column 'wage'"),
        (["--rows", "5", "--output", "a.csv", "--where", "age=old"], "age='old'"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(trained, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert synthesize(["--checkpoint", str(trained), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_training_table_is_not_replaced(trained, capsys):
    table = trained.parents[3] / "people.csv"
    before = table.read_bytes()
    assert synthesize(["--checkpoint", str(trained), "--rows", "5", "--output", str(table)]) == 2
    assert "is the table that the run has learnt from: give another name" in capsys.readouterr().err
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda frame: frame, ["data.target=wage"], "there is no column 'wage'"),
        (lambda frame: frame.assign(key=[f"k{i}" for i in range(len(frame))]), [], "column key has 400 categories"),
        (lambda frame: frame.assign(empty=np.nan), [], "column empty has no value at all"),
        (
            lambda frame: frame.assign(height=np.where(frame.index == 3, np.inf, 1.5)),
            [],
            "column height, row 3: inf is infinite",
        ),
        (lambda frame: frame, ["data.columns.city=number"], "column city, row 1: "),
        (lambda frame: frame, ["data.columns.city=nmber"], "data.columns"),
        (lambda frame: frame.head(5), [], "has 5 rows, too few"),
        (lambda frame: frame, ["data.separator=;"], "its header is one column"),
        (lambda frame: frame.assign(income="rich"), [], "the target 'income' is the same in every row: name another"),
        (lambda frame: frame[["income"]], [], "has no column beside the target 'income'"),
        (lambda frame: frame, ["data.catboost={deep: 3}"], "data.catboost.deep is not known; there are learning_rate,"),
        (lambda frame: frame, ["data.table_task=regression"], "does not suit"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(change, arguments, message, tmp_path, capsys):
    change(people()).to_csv(tmp_path / "people.csv", index=False)
    status = run(
        ["real_csv", f"data.path={tmp_path / 'people.csv'}", "data.target=income", f"run_root={tmp_path}",
         "logger=none", "evaluation_seeds=1", "data.mlp=null",  *arguments]
    )  # fmt: skip
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.count("\n") == 1


def test_texts_with_carriage_returns_are_written_whole(tmp_path):
    frame = pd.DataFrame({"a": ["x\ry", 'q"', "z,\n"], "b": [1.5, 2.5, np.nan]})
    with (tmp_path / "t.csv").open("wb") as file:
        write_table(frame, file, ".csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), frame)


def test_a_given_number_is_given_in_every_row_where_the_column_has_gaps(trained, tmp_path):
    output = tmp_path / "synthetic.csv"
    arguments = ["--checkpoint", str(trained), "--rows", "60", "--output", str(output)]
    assert synthesize([*arguments, "--where", "height=1.75", "--where", "score=150"]) == 0
    frame = pd.read_csv(output)
    assert (frame["height"] == 1.75).all()
    assert (frame["score"] == 150).all()


def test_cells_come_back_as_they_were_written(tmp_path):
    frame = people().assign(zip=np.resize(["02139", "2139", "10115"], 400), grade=np.resize(["1.0", "NA", "2"], 400))
    frame["member"] = frame["member"].map({True: "TRUE", False: "FALSE"})
    frame.to_csv(tmp_path / "people.csv", index=False)
    arguments = [f"data.path={tmp_path / 'people.csv'}", "data.target=income", "data.columns.grade=category"]
    assert run(["tabddpm_csv", *arguments, f"run_root={tmp_path / 'runs'}", *FAST, "max_steps=20"]) == 0
    trained = next((tmp_path / "runs" / "tabddpm_csv").glob("*/seed0"))
    (tmp_path / "people.csv").unlink()
    output = tmp_path / "drawn.csv"
    given = ["--where", "member=TRUE", "--where", "zip=02139"]
    assert synthesize(["--checkpoint", str(trained), "--rows", "60", "--output", str(output), *given]) == 0
    for path in (trained / "synthetic.csv", output):
        drawn = pd.read_csv(path, dtype=str, keep_default_na=False)
        assert set(drawn["member"]) <= {"TRUE", "FALSE"}
        assert set(drawn["zip"]) <= {"02139", "2139", "10115"}
        assert set(drawn["grade"]) <= {"1.0", "NA", "2"}
    assert set(drawn["member"]) == {"TRUE"}
    assert set(drawn["zip"]) == {"02139"}


def test_a_rare_class_stops_before_the_training(tmp_path, capsys):
    frame = people(300).assign(income=["rich"] * 3 + ["poor"] * 297)
    frame.to_csv(tmp_path / "people.csv", index=False)
    arguments = [f"data.path={tmp_path / 'people.csv'}", "data.target=income", f"run_root={tmp_path / 'runs'}", *FAST]
    assert run(["tabddpm_csv", *arguments]) == 2
    assert "the validation part has 0 row(s) of class 'rich' of the target 'income'" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("real_csv", ["data.num_samples=100000"], "num_rows=100000: the training part has 256 rows"),
        ("smote_csv", ["data.columns.age=drop", "data.columns.height=drop", "data.columns.score=drop",
                       "data.columns.hired=drop"], "SMOTE interpolates numbers, and the table has none"),
        ("tabddpm_csv", ["data.num_samples=2", *FAST[:4]], "too few to be judged"),
    ],
)  # fmt: skip
def test_what_a_method_or_metric_refuses_is_one_line_and_its_traceback_in_the_log(
    name, arguments, message, tmp_path, capsys
):
    people().to_csv(tmp_path / "people.csv", index=False)
    own = [f"data.path={tmp_path / 'people.csv'}", "data.target=income", "data.mlp=null", "evaluation_seeds=1"]
    assert run([name, *own, f"run_root={tmp_path}", "logger=none", *arguments]) == 2
    error = capsys.readouterr().err
    (line,) = [each for each in error.splitlines() if each.startswith("error: ")]
    assert message in line
    assert "Traceback" not in error
    (log,) = tmp_path.glob("*_csv/*/seed0/log.txt")
    assert "Traceback" in log.read_text()
