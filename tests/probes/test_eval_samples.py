"""The evaluation split is scanned like the training split."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from debugkit import Target
from debugkit.errors import Unavailable
from debugkit.probes.eval_samples import EvalSamples
from debugkit.probes.samples import Samples
from debugkit.probes.stream import EvalStream, TrainStream
from debugkit.sandbox import Sandbox
from debugkit.testing import blobs, mlp


def test_both_splits_have_rows() -> None:
    data = TensorDataset(torch.arange(24.0).view(12, 2), torch.arange(12) % 2)
    loader = DataLoader(data, batch_size=5, shuffle=True)
    target = Target(mlp(2), loader, eval_loader=DataLoader(data, batch_size=4))
    with Sandbox(target) as sandbox:
        train = Samples.collect(target, TrainStream.collect(target, sandbox)).rows
        evaluation = EvalSamples.collect(target, EvalStream.collect(target, sandbox)).rows
    assert train.complete
    assert [*train.batch_sizes] == [5, 5, 2]
    assert train.indices is not None
    drawn = train.columns["[0]"].stacked()
    assert drawn is not None
    assert torch.equal(drawn, data.tensors[0][[*train.indices]])
    assert evaluation.count == 12
    assert evaluation.name(3) == "eval[3]"
    assert set(train.digests) == set(evaluation.digests)


def test_no_evaluation_data_says_so() -> None:
    target = Target(mlp(), blobs())
    with Sandbox(target) as sandbox, pytest.raises(Unavailable, match="eval_loader"):
        EvalStream.collect(target, sandbox)


def test_one_iterator_for_both_is_left_alone() -> None:
    batches = iter([batch for batch in blobs()])  # noqa: C416
    target = Target(mlp(), batches, eval_loader=batches)
    with Sandbox(target) as sandbox, pytest.raises(Unavailable, match="same iterator"):
        EvalStream.collect(target, sandbox)
