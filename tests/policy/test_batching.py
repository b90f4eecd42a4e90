import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luffy.policy import pad_rows, padding_fraction, split_by_budget


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 2000))
def test_micro_batches_partition_the_rows_within_the_budget(lengths, budget):
    batches = split_by_budget(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= budget or len(batch) == 1
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)  # what needs most memory comes first


def test_a_long_trace_does_not_pad_short_rollouts():
    lengths = [60] * 7 + [600]
    assert split_by_budget(lengths, 10_000) == [[7], [0, 1, 2, 3, 4, 5, 6]]
    assert padding_fraction(lengths, [[7], list(range(7))]) == 0
    assert padding_fraction(lengths, [list(range(8))]) == pytest.approx(1 - (7 * 60 + 600) / (8 * 600))


def test_padded_rows_by_hand():
    rows = pad_rows([[1, 2], [3]], [[4], [5, 6, 7]], 0, torch.device("cpu"))
    assert rows.input_ids.tolist() == [[1, 2, 4, 0], [3, 5, 6, 7]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert rows.completion_mask.tolist() == [[False, True, False], [True, True, True]]
