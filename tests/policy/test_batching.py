import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luffy.policy import pack_rows, pad_rows, padding_fraction, split_packed, split_padded


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 2000))
def test_padded_micro_batches_partition_the_rows_within_the_budget(lengths, budget):
    batches = split_padded(lengths, budget)
    assert sorted(index for batch in batches for index in batch.rows) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch.rows)
        assert batch.computed == len(batch.rows) * longest
        assert batch.padding == sum(longest - lengths[index] for index in batch.rows)
        assert batch.computed <= budget or len(batch.rows) == 1
    longest = [max(lengths[index] for index in batch.rows) for batch in batches]
    assert longest == sorted(longest, reverse=True)  # what needs most memory comes first


def test_a_long_trace_does_not_pad_short_rollouts():
    batches = split_padded([60] * 7 + [600], 10_000)
    assert [batch.rows for batch in batches] == [[7], [0, 1, 2, 3, 4, 5, 6]]
    assert padding_fraction(batches) == 0


def test_the_padding_that_a_budget_leaves_is_measured():
    batches = split_padded([60, 90, 100], 10_000)
    assert padding_fraction(batches) == pytest.approx(1 - (60 + 90 + 100) / (3 * 100))
    assert padding_fraction([]) == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 300)), max_size=40), st.integers(1, 2000))
def test_packed_micro_batches_partition_the_rows_within_the_budget(rows, budget):
    prompts = [[kind] * (5 + kind) for kind, _ in rows]
    completions = [[0] * length for _, length in rows]
    batches = split_packed(prompts, completions, budget)
    assert sorted(index for batch in batches for index in batch.rows) == list(range(len(rows)))
    for batch in batches:
        packed = pack_rows([prompts[i] for i in batch.rows], [completions[i] for i in batch.rows], torch.device("cpu"))
        assert batch.computed == packed.input_ids.numel()
        assert batch.computed <= budget or len(batch.rows) == 1


def test_rows_of_a_prompt_come_together():
    batches = split_packed([[1], [2], [1], [2]], [[0] * 10] * 4, 20)
    assert [batch.rows for batch in batches] == [[0, 2], [1, 3]]  # a prompt of 1 and twice 9 tokens


def test_padded_rows_by_hand():
    rows = pad_rows([[1, 2], [3]], [[4], [5, 6, 7]], 0, torch.device("cpu"))
    assert rows.input_ids.tolist() == [[1, 2, 4, 0], [3, 5, 6, 7]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert rows.completion_mask.tolist() == [[False, True, False], [True, True, True]]
