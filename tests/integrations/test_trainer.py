"""Target.from_trainer: measures what the trainer would train, and leaves the trainer as it was."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from debugkit import Target, UsageError, run

transformers = pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

CHECKS = ["logits-vs-probs"]


def rows(count=48, length=8, seed=0):
    """Learnable token sequences: the label says whether the first token is from the upper half."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        ids = torch.randint(4, 30, (length,), generator=generator)
        ids[0] = 5 if index % 2 else 25
        found.append(
            {"input_ids": ids, "attention_mask": torch.ones(length, dtype=torch.long), "labels": index % 2}
        )
    return found


def bert(**changes):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=2,
        **changes,
    )
    return BertForSequenceClassification(config).eval()


def arguments(tmp_path, cls=TrainingArguments, **changes):
    settings = {
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return cls(**{**settings, **changes})


def trainer_of(tmp_path, cls=Trainer, model=None, options=None, **changes):
    return cls(
        model=model if model is not None else bert(),
        args=arguments(tmp_path, **(options or {})),
        train_dataset=rows(),
        **changes,
    )


def books(trainer):
    """Everything that from_trainer and a run could leave a trace in."""
    accelerator, handler = trainer.accelerator, trainer.callback_handler
    return {
        "optimizer": trainer.optimizer,
        "lr_scheduler": trainer.lr_scheduler,
        "attributes": sorted(vars(trainer)),
        "loaders": list(accelerator._dataloaders),
        "optimizers": list(accelerator._optimizers),
        "schedulers": list(accelerator._schedulers),
        "models": list(accelerator._models),
        "handler": dict(vars(handler)),
        "callbacks": list(handler.callbacks),
        "state": copy.deepcopy(trainer.state),
        "references": list(accelerator.gradient_state.dataloader_references),
        "sync": accelerator.gradient_state.sync_gradients,
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "modes": [module.training for module in trainer.model.modules()],
        "config": trainer.model.config.to_dict(),
        "hooks": [len(module._forward_hooks) for module in trainer.model.modules()],
        "forward": "forward" in vars(trainer.model),
    }


def trained(trainer):
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}, history


def assert_trains_the_same(make, select=CHECKS):
    """A run before ``train()`` changes neither the final weights nor the logged losses."""
    weights, history = trained(make())
    trainer = make()
    before = books(trainer)
    report = run(Target.from_trainer(trainer), select=select, config={})
    after = books(trainer)
    assert after == before
    again, losses = trained(trainer)
    assert losses == history
    differing = [name for name in weights if not torch.equal(weights[name], again[name])]
    if differing:  # some processors round otherwise from run to run, whatever ran in between
        repeated, _ = trained(make())
        assert any(not torch.equal(weights[name], repeated[name]) for name in weights), differing
        torch.testing.assert_close(again, weights, rtol=1e-5, atol=1e-6)
    return report


def test_a_run_before_training_changes_nothing(tmp_path):
    report = assert_trains_the_same(lambda: trainer_of(tmp_path, eval_dataset=rows(seed=1)), select=None)
    assert report.exit_code("fail") == 0
    assert report["eval-mode"].status == report["overfit-samples"].status == "pass"


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 3},
        {"label_smoothing_factor": 0.1},
        {"bf16": True},
        {"activation_checkpointing": True},
        {"max_steps": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_train_the_same_too(tmp_path, options):
    report = assert_trains_the_same(lambda: trainer_of(tmp_path, options=options))
    assert report["logits-vs-probs"].status in ("pass", "skip")


def test_model_in_eval_mode_is_seen_to_be_switched_by_the_step(tmp_path):
    trainer = trainer_of(tmp_path)
    assert not trainer.model.training
    assert run(Target.from_trainer(trainer), select="eval-mode", config={}).status == "pass"
    assert not trainer.model.training


def test_activation_checkpointing_is_on_in_every_check(tmp_path):
    trainer = trainer_of(tmp_path, options={"activation_checkpointing": True})
    report = run(Target.from_trainer(trainer), config={})
    assert report["overfit-samples"].status == "pass"
    assert report.exit_code("fail") == 0


def test_fields_follow_the_arguments(tmp_path):
    trainer = trainer_of(
        tmp_path,
        options={"gradient_accumulation_steps": 2, "bf16": True, "run_name": "mine"},
        eval_dataset=rows(seed=1),
        compute_metrics=lambda prediction: {"accuracy": 1.0},
    )
    target = Target.from_trainer(trainer)
    assert target.model is trainer.model
    assert target.training_steps == 6  # 2 epochs of 6 batches, 2 batches a step
    assert target.accumulation_steps == 2
    assert target.precision == "bf16"
    assert target.name == "mine"
    assert target.metric is trainer.compute_metrics
    assert len(next(iter(target.eval_loader))["labels"]) == 8
    assert [group["weight_decay"] for group in target.optimizer.param_groups] == [0.0, 0.0]
    assert target.scheduler.base_lrs == [1e-2, 1e-2]
    assert trainer.optimizer is None
    assert trainer.lr_scheduler is None


def test_loader_order_is_that_of_training(tmp_path):
    seen = []

    class Recording(Trainer):
        def compute_loss(self, model, inputs, **kwargs):
            seen.append(inputs["input_ids"].tolist())
            return super().compute_loss(model, inputs, **kwargs)

    trainer = trainer_of(tmp_path, cls=Recording)
    batches = [batch["input_ids"].tolist() for batch in Target.from_trainer(trainer).train_loader]
    trainer.train()
    assert seen[: len(batches)] == batches


def test_step_gives_the_loss_of_training(tmp_path):
    model = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    trainer = trainer_of(tmp_path, model=model, options={"max_steps": 1, "warmup_steps": 0})
    target = Target.from_trainer(trainer)
    loss = target.training_step(target.model, next(iter(target.train_loader)))
    assert model.training
    _, history = trained(trainer)
    assert float(loss.detach()) == pytest.approx(history[0], abs=1e-4)


def test_overridden_compute_loss_is_measured(tmp_path):
    class Softmaxed(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = F.cross_entropy(outputs.logits.softmax(dim=-1), labels)
            return (loss, outputs) if return_outputs else loss

    result = assert_trains_the_same(lambda: trainer_of(tmp_path, cls=Softmaxed))["logits-vs-probs"]
    assert result.status == "fail"
    assert "test_trainer.py" in result.findings[0].location


def test_compute_loss_func_gets_the_item_count(tmp_path):
    counts = []

    def loss_of(outputs, labels, num_items_in_batch=None):
        counts.append(int(num_items_in_batch))
        return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    trainer = trainer_of(tmp_path, compute_loss_func=loss_of, options={"gradient_accumulation_steps": 2})
    target = Target.from_trainer(trainer)
    target.training_step(target.model, next(iter(target.train_loader)))
    assert counts == [8]


def test_bookkeeping_of_an_overridden_loss_is_put_back(tmp_path):
    class Logging(Trainer):
        calls = 0

        def compute_loss(self, model, inputs, **kwargs):
            self.calls = self.calls + 1
            self.metrics = getattr(self, "metrics", {"train": {"loss": []}})
            loss = super().compute_loss(model, inputs, **kwargs)
            self.metrics["train"]["loss"].append(float(loss))
            self.state.num_input_tokens_seen += 7
            return loss

    trainer = trainer_of(tmp_path, cls=Logging)
    trainer.metrics = {"train": {"loss": []}}
    run(Target.from_trainer(trainer), select=CHECKS, config={})
    assert trainer.calls == 0
    assert trainer.metrics == {"train": {"loss": []}}
    assert trainer.state.num_input_tokens_seen == 0


def test_given_optimizer_keeps_its_state(tmp_path):
    def make():
        model = bert()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return trainer_of(tmp_path, model=model, optimizers=(optimizer, None))

    trainer = make()
    before = [dict(group) for group in trainer.optimizer.param_groups]
    attributes = dict(vars(trainer.optimizer))
    target = Target.from_trainer(trainer)
    assert target.optimizer is trainer.optimizer
    assert target.scheduler is not None
    assert [dict(group) for group in trainer.optimizer.param_groups] == before
    assert dict(vars(trainer.optimizer)) == attributes
    assert_trains_the_same(make)


def test_given_pair_is_used(tmp_path):
    model = bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    target = Target.from_trainer(trainer_of(tmp_path, model=model, optimizers=(optimizer, scheduler)))
    assert target.optimizer is optimizer
    assert target.scheduler is scheduler


def test_overridden_create_optimizer_is_used(tmp_path):
    class Custom(Trainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.Adagrad(self.model.parameters(), lr=0.3)
            return self.optimizer

    target = Target.from_trainer(trainer_of(tmp_path, cls=Custom))
    assert isinstance(target.optimizer, torch.optim.Adagrad)
    assert target.scheduler.optimizer is target.optimizer


def test_callbacks_hear_nothing(tmp_path):
    heard = []

    class Listening(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            heard.append("step")

        def on_train_begin(self, args, state, control, **kwargs):
            heard.append("train")

        def on_evaluate(self, args, state, control, **kwargs):
            heard.append("evaluate")

        def on_prediction_step(self, args, state, control, **kwargs):
            heard.append("prediction")

    trainer = trainer_of(tmp_path, callbacks=[Listening()], eval_dataset=rows(seed=1))
    run(Target.from_trainer(trainer), select=CHECKS, config={})
    assert heard == []


def test_after_training_a_fresh_schedule_is_made(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    before = trainer.lr_scheduler
    target = Target.from_trainer(trainer)
    assert target.scheduler is not before
    assert trainer.lr_scheduler is before


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
@pytest.mark.parametrize("checkpointing", [False, True])
def test_peft_model(tmp_path, checkpointing):
    peft = pytest.importorskip("peft")

    def make():
        config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
        model = bert()
        torch.manual_seed(1)
        options = {"activation_checkpointing": checkpointing}
        return trainer_of(tmp_path, model=peft.get_peft_model(model, config), options=options)

    assert assert_trains_the_same(make)["logits-vs-probs"].status == "pass"
    target = Target.from_trainer(make())
    held = {id(p) for group in target.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in target.model.parameters() if p.requires_grad}


def test_seq2seq_trainer(tmp_path):
    config = T5Config(
        vocab_size=32, d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )

    def make():
        torch.manual_seed(0)
        data = [
            {"input_ids": row["input_ids"].tolist(), "labels": row["input_ids"].tolist()} for row in rows()
        ]
        return Seq2SeqTrainer(
            model=T5ForConditionalGeneration(config),
            args=arguments(tmp_path, cls=Seq2SeqTrainingArguments, max_steps=2, predict_with_generate=True),
            train_dataset=data,
            data_collator=transformers.default_data_collator,
            compute_metrics=lambda prediction: {"rouge": 1.0},
        )

    assert_trains_the_same(make)
    assert Target.from_trainer(make()).metric is None


def test_causal_language_model_with_accumulation(tmp_path):
    def make():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16))
        data = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows()]
        args = arguments(tmp_path, gradient_accumulation_steps=2, max_steps=2)
        return Trainer(model=model, args=args, train_dataset=data)

    assert assert_trains_the_same(make)["logits-vs-probs"].status == "pass"


def test_pad_token_is_aligned_as_train_does(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="[PAD]", unk_token="[UNK]"
    )

    def make():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16, pad_token_id=None)
        return trainer_of(tmp_path, model=GPT2ForSequenceClassification(config), processing_class=tokenizer)

    assert assert_trains_the_same(make)["logits-vs-probs"].status == "pass"
    assert Target.from_trainer(make()).tokenizer is tokenizer


def test_several_eval_sets_and_iterable_data(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows())

    trainer = Trainer(
        model=bert(),
        args=arguments(tmp_path, max_steps=2),
        train_dataset=Stream(),
        eval_dataset={"first": rows(8), "second": rows(16)},
    )
    target = Target.from_trainer(trainer)
    assert target.training_steps == 2
    assert sum(len(batch["labels"]) for batch in target.eval_loader) == 8
    assert run(target, select=CHECKS, config={}).status == "pass"


def test_no_training_data_is_one_sentence(tmp_path):
    trainer = Trainer(model=bert(), args=arguments(tmp_path))
    with pytest.raises(UsageError, match="no training data"):
        Target.from_trainer(trainer)


def test_no_trainer_is_one_sentence():
    with pytest.raises(UsageError, match=r"expected a `transformers.Trainer`, not a `dict`"):
        Target.from_trainer({})


def test_missing_transformers_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UsageError, match=r"debugkit\[transformers\]"):
        Target.from_trainer(object())
