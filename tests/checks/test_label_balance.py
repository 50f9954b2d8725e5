"""label-balance beyond its own examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import debugkit
from debugkit import Target
from debugkit.report import Result


def judge(target: Target, **config: Any) -> Result:
    return debugkit.run(target, select="label-balance", config=config)["label-balance"]


def loader(y: torch.Tensor, batch_size: int = 32, **options: Any) -> DataLoader[Any]:
    options = options or {"shuffle": True}
    return DataLoader(TensorDataset(torch.randn(len(y), 4), y), batch_size=batch_size, **options)


def counted(*counts: int) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def classifier(classes: int = 2) -> torch.nn.Linear:
    return torch.nn.Linear(4, classes)


CE = torch.nn.CrossEntropyLoss()


def test_note_says_what_was_counted() -> None:
    result = judge(Target(classifier(), loader(counted(87, 13)), CE))
    assert result.status == "pass"
    assert result.findings[0].message == "2 classes, 87 % / 13 % in 100 samples"


def test_threshold_is_an_option() -> None:
    target = Target(classifier(), loader(counted(95, 5)), CE)
    assert judge(target).status == "warn"
    assert judge(target, checks={"label-balance": {"max-ratio": 20}}).status == "pass"


def test_class_names_come_from_the_config() -> None:
    model = classifier()
    model.config = type("Config", (), {"id2label": {0: "ham", 1: "spam"}})()  # type: ignore[assignment]
    result = judge(Target(model, loader(counted(990, 10)), CE))
    assert "`ham` outnumbers `spam` 99 : 1" in result.findings[0].message


def test_a_small_partial_scan_proves_nothing() -> None:
    y = counted(1200, 100)[torch.randperm(1300, generator=torch.Generator().manual_seed(0))]
    target = Target(classifier(), loader(y, batch_size=13), CE)
    assert judge(target, evidence={"samples": {"max-samples": 13}}).status == "pass"


def test_a_large_partial_scan_proves_imbalance() -> None:
    target = Target(classifier(), loader(counted(9900, 100)), CE)
    result = judge(target)
    assert result.status == "warn"
    assert "scanned" in result.findings[0].message


def test_single_class_in_a_partial_scan() -> None:
    assert judge(Target(classifier(), loader(torch.zeros(5000).long()), CE)).status == "fail"
    assert judge(Target(classifier(), loader(torch.zeros(5000).long(), shuffle=False), CE)).status == "fail"


def test_sorted_data_has_more_than_one_class() -> None:
    y = counted(4000, 4000)
    assert judge(Target(classifier(), loader(y, shuffle=False), CE)).status == "pass"


def test_labels_that_repeat_in_step_with_the_data() -> None:
    y = torch.arange(255 * 20 + 1) % 2
    assert judge(Target(classifier(), loader(y, shuffle=False), CE)).status == "pass"


def test_many_classes_with_few_samples_each_are_not_judged() -> None:
    assert judge(Target(classifier(60), loader(torch.arange(60).repeat(2)[:100]), CE)).status == "pass"


def test_a_balanced_sampler_counts() -> None:
    y = counted(950, 50)
    weights = 1 / torch.bincount(y).float()[y]
    sampler = WeightedRandomSampler(weights.tolist(), len(y), generator=torch.Generator().manual_seed(0))
    assert judge(Target(classifier(), loader(y, sampler=sampler), CE)).status == "pass"


def weighted_step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y, weight=torch.tensor([1.0, 30.0]))


def looked_up_step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    return (torch.tensor([1.0, 30.0])[y] * F.cross_entropy(model(x), y, reduction="none")).mean()


def focal_step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    loss = F.cross_entropy(model(x), y, reduction="none")
    return ((1 - torch.exp(-loss)) ** 2 * loss).mean()


@pytest.mark.parametrize("step", [weighted_step, looked_up_step, focal_step])
def test_a_loss_that_weighs_classes_is_noted(step: Any) -> None:
    result = judge(Target(classifier(), loader(counted(950, 50)), training_step=step))
    assert result.status == "pass"
    assert "compensates" in result.findings[0].message


def test_weights_of_a_loss_module_are_noted_without_a_forward() -> None:
    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 30.0]))
    target = Target(classifier(), loader(counted(950, 50)), loss)
    assert judge(target).status == "pass"
    assert judge(target, max_cost="data").status == "pass"


def plain_step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def autoencoder_step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    y = y.to(x.device).float()
    return F.mse_loss(model(x), x)


def test_single_class_in_a_training_step_that_uses_the_labels() -> None:
    target = Target(classifier(), loader(torch.ones(100).long()), training_step=plain_step)
    assert judge(target).status == "fail"
    assert judge(target, max_cost="data").status == "warn"


def test_placeholder_labels_are_noted() -> None:
    target = Target(torch.nn.Linear(4, 4), loader(torch.zeros(100).long()), training_step=autoencoder_step)
    result = judge(target)
    assert result.status == "pass"
    assert "does not depend on it" in result.findings[0].message


def test_one_half_of_a_gan_has_one_label() -> None:
    def step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        real, ones = batch
        score = F.binary_cross_entropy_with_logits
        return score(model(real), ones) + score(model(torch.randn_like(real)), torch.zeros(len(real), 1))

    data = loader(torch.ones(96, 1))
    assert judge(Target(classifier(1), data, training_step=step)).status == "pass"


def test_whole_numbers_to_regress_are_no_classes() -> None:
    def step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return F.mse_loss(model(batch[0]).squeeze(1), batch[1].float())

    ages = (torch.randn(600, generator=torch.Generator().manual_seed(0)) * 5 + 40).long()
    result = judge(Target(classifier(1), loader(ages), training_step=step))
    assert result.status == "skip"
    assert "continuous" in str(result.reason)


def test_a_broken_step_does_not_hide_the_labels() -> None:
    def step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    result = judge(Target(classifier(), loader(counted(990, 10)), training_step=step))
    assert result.status == "warn"


def test_one_hot_rows_are_classes() -> None:
    y = F.one_hot(counted(990, 10), 2).float()
    assert judge(Target(classifier(), loader(y), CE)).status == "warn"


def test_multi_label_allows_more_with_more_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(2000, 20, generator=generator) < 0.03).float()
    bce = torch.nn.BCEWithLogitsLoss()
    assert judge(Target(classifier(20), loader(y), bce)).status == "pass"
    y[:, 3] = 1
    result = judge(Target(classifier(20), loader(y), bce))
    assert result.status == "warn"
    assert "`3` is on in 2,000" in result.findings[0].message


def test_multi_label_that_never_varies() -> None:
    y = torch.tensor([[1.0, 0.0, 1.0]]).repeat(100, 1)
    assert judge(Target(classifier(3), loader(y), torch.nn.BCEWithLogitsLoss())).status == "fail"


class Tagger(torch.nn.Module):
    def __init__(self, tags: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(100, 16)
        self.head = torch.nn.Linear(16, tags)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids)).transpose(1, 2)


def tagged(tags: torch.Tensor) -> DataLoader[Any]:
    ids = torch.randint(100, tags.shape, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(ids, tags), batch_size=8)


def test_the_background_tag_is_out_of_the_ratio() -> None:
    tags = torch.zeros(64, 50).long()
    tags[:, 3], tags[:, 7], tags[:, 40:] = 1, 2, -100
    result = judge(Target(Tagger(3), tagged(tags), CE))
    assert result.status == "pass"
    assert "3 tags, 95 % / 2 % / 2 %" in result.findings[0].message


def test_a_single_tag_fails() -> None:
    tags = torch.zeros(64, 50).long()
    tags[:, 40:] = -100
    assert judge(Target(Tagger(3), tagged(tags), CE)).status == "fail"


def test_next_tokens_are_noted() -> None:
    ids = torch.randint(5, 50, (64, 20))
    result = judge(Target(Tagger(50), DataLoader(TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=8), CE))
    assert result.status == "pass"
    assert "tokens to generate" in result.findings[0].message


def test_pixels_are_noted_unless_all_are_one_class() -> None:
    model = torch.nn.Conv2d(3, 3, 1)
    x, y = torch.randn(32, 3, 8, 8), torch.zeros(32, 8, 8).long()
    assert judge(Target(model, DataLoader(TensorDataset(x, y), batch_size=8), CE)).status == "fail"
    y[:, 0, 0], y[0, 1, 1] = 1, 2
    assert judge(Target(model, DataLoader(TensorDataset(x, y), batch_size=8), CE)).status == "pass"


@pytest.mark.parametrize("batch", [torch.randn(8, 4), (torch.randn(8, 4), {"boxes": torch.zeros(8, 4)})])
def test_nothing_to_count_is_a_skip(batch: Any) -> None:
    target = Target(
        torch.nn.Linear(4, 4), [batch], training_step=lambda model, b: model(torch.randn(8, 4)).mean()
    )
    assert judge(target).status == "skip"


def test_continuous_targets_are_a_skip() -> None:
    assert judge(Target(classifier(1), loader(torch.randn(100, 1)), torch.nn.MSELoss())).status == "skip"


def columns(*tensors: torch.Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=16, shuffle=True)


def said(result: Result) -> list[tuple[str, str | None]]:
    return [(finding.level, finding.where) for finding in result.findings]


def test_the_label_is_what_the_loss_takes_as_its_classes() -> None:
    x, y, flag = torch.randn(400, 4), counted(200, 200), counted(396, 4)
    target = Target(classifier(), columns(x, y, flag), training_step=plain_step)
    assert said(judge(target)) == [("note", "batch[1]")]
    skewed = Target(classifier(), columns(x, flag, y), training_step=plain_step)
    assert said(judge(skewed)) == [("warn", "batch[1]")]
    assert judge(skewed, max_cost="data").status == "pass"


@pytest.mark.parametrize(
    "to_target",
    [
        lambda y: y + 0,
        lambda y: (y + 1).view(-1, 1).squeeze(1) - 1,
        lambda y: F.one_hot(y, 2).float() * 0.9 + 0.05,
        lambda y: y.int().to(torch.int64)[:],
    ],
)
def test_labels_are_followed_through_casts_shapes_and_shifts(to_target: Any) -> None:
    def step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), to_target(batch[1]))

    x, y = torch.randn(400, 4), counted(396, 4)
    target = Target(classifier(), columns(x, y, counted(200, 200)), training_step=step)
    assert said(judge(target)) == [("warn", "batch[1]")]


def test_labels_behind_their_own_mask() -> None:
    def step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        x, y, _ = batch
        kept = y != -100
        return F.cross_entropy(model(x)[kept], y[kept])

    y = counted(396, 8)
    y[400:] = -100
    target = Target(classifier(), columns(torch.randn(404, 4), y, counted(202, 202)), training_step=step)
    assert said(judge(target)) == [("warn", "batch[1]")]


def test_what_is_looked_up_in_the_model_is_no_label() -> None:
    class Conditional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.condition = torch.nn.Embedding(2, 4)

        def forward(self, x: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
            return x + self.condition(group)

    def step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return (model(*batch) - batch[0]).square().mean()

    target = Target(Conditional(), columns(torch.randn(400, 4), counted(396, 4)), training_step=step)
    assert judge(target).status == "pass"


def test_flags_of_a_regression_are_no_classes() -> None:
    def step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        x, reward, done = batch
        return F.smooth_l1_loss(model(x).squeeze(1), reward + 0.9 * (1 - done))

    data = columns(torch.randn(400, 4), torch.randn(400), counted(396, 4).float())
    result = judge(Target(classifier(1), data, training_step=step))
    assert result.status == "skip"
    assert "continuous" in str(result.reason)


def test_two_labels_are_judged_each() -> None:
    def step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        x, one, other = batch
        return F.cross_entropy(model(x), one) + F.cross_entropy(model(x), other)

    data = columns(torch.randn(400, 4), counted(200, 200), counted(396, 4))
    result = judge(Target(classifier(), data, training_step=step))
    assert said(result) == [("note", "batch[1]"), ("warn", "batch[2]")]


def test_labels_in_mappings_per_sample() -> None:
    rows = [(torch.randn(4), {"labels": label[None]}) for label in counted(96, 4)]
    data = DataLoader(rows, batch_size=20, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))  # type: ignore[arg-type]

    def step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        x, targets = batch
        return F.cross_entropy(model(torch.stack(x)), torch.cat([one["labels"] for one in targets]))

    result = judge(Target(classifier(), data, training_step=step))
    assert said(result) == [("warn", "batch[1][].labels")]
    assert "100 objects" in result.findings[0].message


def test_target_tokens_of_the_inputs_vocabulary_are_noted() -> None:
    shares = 1 / torch.arange(1, 31).float() ** 1.5
    ids = torch.multinomial(shares.expand(160, -1), 8, replacement=True)
    data = DataLoader(TensorDataset(ids, (ids * 7 + 3) % 30), batch_size=16)
    result = judge(Target(Tagger(30), data, CE))
    assert result.status == "pass"
    assert "tokens to generate" in result.findings[0].message


def test_texts_are_classes_where_they_recur() -> None:
    def rows(texts: list[str]) -> DataLoader[Any]:
        return DataLoader([(torch.randn(4), text) for text in texts], batch_size=16)  # type: ignore[arg-type]

    def step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        x, texts = batch
        return F.cross_entropy(model(x), torch.tensor([int(text == "spam") for text in texts]))

    result = judge(Target(classifier(), rows(["ham"] * 198 + ["spam"] * 2), training_step=step))
    assert result.status == "warn"
    assert "`ham` outnumbers `spam` 99 : 1" in result.findings[0].message
    captions = judge(Target(classifier(), rows([f"caption {i}" for i in range(64)]), training_step=step))
    assert captions.status == "skip"
