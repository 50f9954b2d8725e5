"""label-range beyond its own examples."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import debugkit
from debugkit import Target
from debugkit.report import Result

CE = nn.CrossEntropyLoss()


def judge(target: Target, **config: Any) -> Result:
    return debugkit.run(target, select="label-range", config=config)["label-range"]


def loader(y: torch.Tensor, features: int = 4, size: int = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(len(y), features), y), batch_size=size, shuffle=True)


def cycle(samples: int, classes: int) -> torch.Tensor:
    return torch.arange(samples) % classes


def said(result: Result) -> str:
    return " ".join(finding.message for finding in result.findings)


def test_a_late_label_is_named() -> None:
    y = cycle(400, 3)
    y[317] = 7
    result = judge(Target(nn.Linear(4, 3), loader(y), CE))
    assert result.findings[0].where == "train[317][1]"
    assert "label 7" in said(result)


def test_evaluation_labels_count_too() -> None:
    target = Target(nn.Linear(4, 3), loader(cycle(64, 3)), CE, eval_loader=loader(cycle(64, 4)))
    result = judge(target)
    assert result.status == "fail"
    assert str(result.findings[0].where).startswith("eval[")


def test_a_step_that_shifts_labels_itself_is_followed() -> None:
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1] - 1)

    assert judge(Target(nn.Linear(4, 3), loader(cycle(64, 3) + 1), training_step=step)).status == "pass"


def test_an_unused_output_needs_a_complete_scan() -> None:
    target = Target(nn.Linear(4, 10), loader(cycle(200, 3)), CE)
    assert judge(target).status == "warn"
    assert judge(target, evidence={"samples": {"max-samples": 32}}).status == "pass"


def test_outputs_used_in_evaluation_are_used() -> None:
    target = Target(nn.Linear(4, 4), loader(cycle(200, 3)), CE, eval_loader=loader(cycle(40, 4)))
    assert judge(target).status == "pass"


@pytest.mark.parametrize(
    ("y", "outputs"),
    [
        (torch.tensor([0, 1, 4, 5, 2, 2, 0, 1] * 2), 6),
        (cycle(60, 2) * 1500, 2000),
        (torch.cat([cycle(60, 3), torch.tensor([4])]), 5),
    ],
)
def test_rare_classes_and_vocabularies_are_left_alone(y: torch.Tensor, outputs: int) -> None:
    assert judge(Target(nn.Linear(4, outputs), loader(y, size=60), CE)).status == "pass"


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_types_that_the_loss_refuses(dtype: torch.dtype) -> None:
    result = judge(Target(nn.Linear(4, 3), loader(cycle(64, 3).to(dtype)), CE))
    assert result.status == "fail"
    assert "int64" in said(result)


def test_a_model_that_does_not_run_is_no_matter_of_labels() -> None:
    result = judge(Target(nn.Linear(5, 3), loader(cycle(64, 3)), CE))
    assert result.status == "skip"


@pytest.mark.parametrize(("low", "status"), [(0, "pass"), (1, "fail"), (-1, "fail")])
def test_binary_targets_lie_between_0_and_1(low: int, status: str) -> None:
    y = (cycle(64, 2) + low).float()[:, None]
    assert judge(Target(nn.Linear(4, 1), loader(y), nn.BCEWithLogitsLoss())).status == status


def test_a_reconstruction_is_left_to_target_scale() -> None:
    x = torch.rand(64, 4) * 255
    data = DataLoader(TensorDataset(x, x), batch_size=16)
    assert judge(Target(nn.Linear(4, 4), data, nn.BCEWithLogitsLoss())).status == "pass"


class Named(nn.Linear):
    """A classifier with a config, as transformers' models have one."""

    def __init__(self, **config: Any) -> None:
        super().__init__(4, 3)
        self.config = SimpleNamespace(**config)


class Data(TensorDataset):
    """A data set that knows the names of its classes."""

    def __init__(self, *tensors: torch.Tensor, **facts: Any) -> None:
        super().__init__(*tensors)
        vars(self).update(facts)


NAMES = {0: "cat", 1: "dog", 2: "fish"}


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ({"features": {"label": SimpleNamespace(names=["cat", "dog", "fish"])}}, "pass"),
        ({"features": {"label": SimpleNamespace(names=["Cat", "DOG", "fish"])}}, "pass"),
        ({"features": {"label": SimpleNamespace(names=["dog", "cat", "fish"])}}, "fail"),
        (
            {"features": {"tags": SimpleNamespace(feature=SimpleNamespace(names=["fish", "dog", "cat"]))}},
            "fail",
        ),
        ({"class_to_idx": {"dog": 0, "cat": 1, "fish": 2}}, "fail"),
        ({"features": {"label": SimpleNamespace(names=["red", "green", "blue"])}}, "pass"),
        ({"features": {"label": SimpleNamespace(dtype="int64")}, "class_to_idx": {}}, "pass"),
    ],
)
def test_names_are_held_against_the_data_set(facts: dict[str, Any], status: str) -> None:
    data = Data(torch.randn(60, 4), cycle(60, 3), **facts)
    wrapped = torch.utils.data.Subset(data, range(48))
    result = judge(Target(Named(id2label=NAMES), DataLoader(wrapped, batch_size=16, shuffle=True), CE))
    assert result.status == status


@pytest.mark.parametrize(
    ("label2id", "status"),
    [
        ({name: number for number, name in NAMES.items()}, "pass"),
        ({"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}, "pass"),
        ({"cat": 2, "dog": 1, "fish": 0}, "fail"),
        (None, "pass"),
    ],
)
def test_the_two_tables_of_a_config_agree(label2id: Any, status: str) -> None:
    model = Named(id2label=NAMES, label2id=label2id)
    assert judge(Target(model, loader(cycle(60, 3)), CE)).status == status


def bert(labels: torch.Tensor, **options: Any) -> Target:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        **options,
    )
    rows = [{"input_ids": torch.randint(5, 40, (6,)), "labels": y} for y in labels]
    return Target(
        transformers.BertForSequenceClassification(config).train(),
        DataLoader(rows, batch_size=8),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("labels", "options", "status"),
    [
        (cycle(32, 2), {"num_labels": 1}, "fail"),
        (cycle(32, 2).float(), {"num_labels": 1}, "fail"),
        (cycle(32, 2).float(), {"num_labels": 1, "problem_type": "regression"}, "pass"),
        (cycle(32, 5).float() + 1, {"num_labels": 1}, "pass"),
        (torch.rand(32), {"num_labels": 1}, "pass"),
        (torch.eye(4).repeat(8, 1), {"num_labels": 4}, "fail"),
        (torch.eye(4).repeat(8, 1), {"num_labels": 4, "problem_type": "multi_label_classification"}, "pass"),
        ((torch.arange(16)[:, None] // torch.tensor([1, 2, 4, 8]) % 2).float(), {"num_labels": 4}, "pass"),
        (cycle(32, 2).float(), {"num_labels": 2}, "fail"),
        (cycle(32, 4), {"num_labels": 4}, "pass"),
    ],
)
def test_what_a_model_chose_by_itself(labels: torch.Tensor, options: dict[str, Any], status: str) -> None:
    assert judge(bert(labels, **options)).status == status
