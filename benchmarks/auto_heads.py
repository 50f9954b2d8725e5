"""What a head of transformers needs: its models, the samples it learns from, and how its loss is taken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import auto_media
import auto_sound
import auto_text
import auto_vision_text
import torch
from auto_sizes import FIRST, LENGTH
from auto_text import Sample
from torch.nn.functional import interpolate, l1_loss

Candidates = Iterator[list[Sample]]


@dataclass(frozen=True)
class Head:
    """A head that many architectures have.

    Attributes:
        mapping: the name of transformers' mapping from configurations to models, without its ending.
        samples: candidates of learnable samples for a model, of which the first that it takes is used.
        media: whether the configuration has images, sound or series to shrink.
        collate: what makes a batch of samples.
        step: ``(model, batch) -> loss``; ``None`` when the model returns its own loss.
        wrap: what makes a model of the mapping's, such as a classifier of an encoder.
        loss_fn: ``(outputs, labels) -> loss`` of a wrapped model.
    """

    mapping: str
    samples: Callable[[torch.nn.Module], Candidates]
    media: bool = True
    collate: Callable[[list[Any]], Any] = torch.utils.data.default_collate
    step: Callable[[torch.nn.Module, Any], torch.Tensor] | None = None
    wrap: Callable[[torch.nn.Module], torch.nn.Module] | None = None
    loss_fn: Callable[..., torch.Tensor] | None = None


def _width(model: Any, inputs: torch.Tensor) -> int:
    """The width of what an encoder gives."""
    with torch.no_grad():
        outputs = copy.deepcopy(model).eval()(inputs)
    maps = outputs.get("feature_maps")
    return int(maps[-1].shape[1] if maps is not None else outputs.last_hidden_state.shape[-1])


def _shape(config: Any) -> tuple[int, int, int]:
    channels, side = auto_media.geometry(config)
    return channels, side, side


class Pooled(torch.nn.Module):
    """Two classes from the mean of an encoder's states at the attended places."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config
        self.score = torch.nn.Linear(_width(encoder, torch.full((1, LENGTH), FIRST)), 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return self.score((states * weights).sum(1) / weights.sum(1))  # type: ignore[no-any-return]


class Probed(torch.nn.Module):
    """Three classes from the mean of a backbone's last feature map."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = backbone.config
        self.score = torch.nn.Linear(_width(backbone, torch.zeros(2, *_shape(backbone.config))), 3)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.score(self.backbone(pixel_values).feature_maps[-1].mean((2, 3)))  # type: ignore[no-any-return]


def _of_config(samples: Callable[[Any], Candidates], model: torch.nn.Module) -> Candidates:
    return samples(model.config)


TEXT_HEADS = {
    "sequence": "MODEL_FOR_SEQUENCE_CLASSIFICATION",
    "causal": "MODEL_FOR_CAUSAL_LM",
    "masked": "MODEL_FOR_MASKED_LM",
    "token": "MODEL_FOR_TOKEN_CLASSIFICATION",
    "question": "MODEL_FOR_QUESTION_ANSWERING",
    "choice": "MODEL_FOR_MULTIPLE_CHOICE",
    "next-sentence": "MODEL_FOR_NEXT_SENTENCE_PREDICTION",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM",
    "document": "MODEL_FOR_DOCUMENT_QUESTION_ANSWERING",
}


def _text(head: str) -> Head:
    return Head(TEXT_HEADS[head], lambda model: auto_text.candidates(head), media=False)


def _with_lists(samples: list[Sample]) -> Any:
    """A batch whose labels stay a list of mappings."""
    batch = torch.utils.data.default_collate([{"pixel_values": s["pixel_values"]} for s in samples])
    return {**batch, "labels": [sample["labels"] for sample in samples]}


def _with_loss(samples: list[Sample]) -> Any:
    """A batch that asks for the contrastive loss."""
    return {**torch.utils.data.default_collate(samples), "return_loss": True}


def _as_pair(samples: list[Sample]) -> Any:
    """A batch of images and labels without names."""
    batch = torch.utils.data.default_collate(samples)
    return batch["pixel_values"], batch["labels"]


def _depth_step(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    found = model(pixel_values=batch["pixel_values"]).predicted_depth
    found = interpolate(found.unsqueeze(1), size=batch["labels"].shape[1:], mode="bilinear").squeeze(1)
    return l1_loss(found, batch["labels"])


def _media(mapping: str, samples: Callable[[Any], Candidates], **more: Any) -> Head:
    return Head(f"MODEL_FOR_{mapping}", partial(_of_config, samples), **more)


HEADS: dict[str, Head] = {
    **{head: _text(head) for head in TEXT_HEADS},
    "encoder": Head(
        "MODEL_FOR_TEXT_ENCODING",
        lambda model: auto_text.candidates("encoder"),
        media=False,
        wrap=Pooled,
        loss_fn=torch.nn.CrossEntropyLoss(),
    ),
    "image": _media("IMAGE_CLASSIFICATION", auto_media.images),
    "backbone": _media(
        "BACKBONE", auto_media.images, collate=_as_pair, wrap=Probed, loss_fn=torch.nn.CrossEntropyLoss()
    ),
    "segmentation": _media("SEMANTIC_SEGMENTATION", auto_media.regions),
    "masks": _media("UNIVERSAL_SEGMENTATION", auto_media.masks),
    "masked-image": _media("MASKED_IMAGE_MODELING", auto_media.hidden_patches),
    "detection": _media("OBJECT_DETECTION", auto_media.objects, collate=_with_lists),
    "depth": _media("DEPTH_ESTIMATION", auto_media.depths, step=_depth_step),
    "video": _media("VIDEO_CLASSIFICATION", auto_media.films),
    "contrast": _media("ZERO_SHOT_IMAGE_CLASSIFICATION", auto_media.captions, collate=_with_loss),
    "image-text": Head(
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT", auto_vision_text.prompts, collate=auto_vision_text.joined
    ),
    "audio": _media("AUDIO_CLASSIFICATION", auto_sound.sounds),
    "audio-frame": _media("AUDIO_FRAME_CLASSIFICATION", auto_sound.frames),
    "speaker": _media("AUDIO_XVECTOR", auto_sound.sounds),
    "ctc": _media("CTC", auto_sound.spellings),
    "speech": _media("SPEECH_SEQ_2_SEQ", auto_sound.transcripts),
    "series-class": _media("TIME_SERIES_CLASSIFICATION", auto_sound.series_classes),
    "series-number": _media("TIME_SERIES_REGRESSION", auto_sound.series_numbers),
    "forecast": _media("TIME_SERIES_PREDICTION", auto_sound.futures),
}
FORECASTERS = {
    "informer": "InformerForPrediction",
    "autoformer": "AutoformerForPrediction",
    "time_series_transformer": "TimeSeriesTransformerForPrediction",
    "patchtst": "PatchTSTForPrediction",
    "patchtsmixer": "PatchTSMixerForPrediction",
}


def models(head: str) -> dict[str, Any]:
    """The name of each architecture of a head, with the name of its model."""
    from transformers.models.auto import modeling_auto

    named = dict(getattr(modeling_auto, f"{HEADS[head].mapping}_MAPPING_NAMES"))
    return {**named, **FORECASTERS} if head == "forecast" else named


def model_class(architecture: str, head: str, config: Any) -> Any:
    """The class of a head's model for a configuration."""
    import transformers
    from transformers.models.auto import modeling_auto

    if head == "forecast" and architecture in FORECASTERS:
        return getattr(transformers, FORECASTERS[architecture])
    kind = getattr(modeling_auto, f"{HEADS[head].mapping}_MAPPING")[type(config)]
    return kind[0] if isinstance(kind, tuple) else kind
