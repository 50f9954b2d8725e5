"""Errors that no model can avoid."""

from __future__ import annotations

import torch

from debugkit.data.ambiguity import blind_errors, unavoidable_errors


def test_equal_inputs_with_different_labels_count() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]])
    assert unavoidable_errors((x, torch.tensor([0, 1, 1]))) == 1


def test_different_inputs_do_not_count() -> None:
    assert unavoidable_errors((torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))) == 0


def test_sparse_rows_are_compared_by_value() -> None:
    x = torch.tensor([[0.0, 2.0], [0.0, 2.0], [3.0, 0.0]]).to_sparse()
    assert unavoidable_errors((x, torch.tensor([0, 1, 1]))) == 1


def test_equal_prefixes_with_different_next_tokens_count() -> None:
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]])
    assert unavoidable_errors({"input_ids": ids, "labels": ids}) == 1


def test_a_model_that_sees_one_token_shows_itself() -> None:
    ids = torch.tensor([[1, 2, 1, 2]])
    seen = torch.eye(4)[ids.reshape(-1)]
    assert blind_errors({"input_ids": ids}, seen, torch.tensor([2, 3, 3, 3])) == 1
    assert blind_errors({"input_ids": ids}, torch.randn(4, 4), torch.tensor([2, 3, 3, 3])) == 0
