"""Settings that are the same in every row are said once."""

import pandas as pd

from rapa_lib.experiments.markdown import set_aside


def test_what_every_row_shares_is_said_below():
    table = pd.DataFrame({"tiling": ["a", "b"], "dataset": ["x_1", "x_1"], "seeds": [3, 3]})
    shown, line = set_aside(table, ("tiling", "dataset"))
    assert list(shown) == ["tiling", "seeds"]  # a number is no setting
    assert line == r"All: dataset x\_1."


def test_a_single_row_and_rows_that_share_nothing_stay_whole():
    table = pd.DataFrame({"tiling": ["a", "b"], "dataset": ["x", "y"]})
    for rows in (table, table[:1]):
        shown, line = set_aside(rows, table.columns)
        pd.testing.assert_frame_equal(shown, rows)
        assert line == ""
