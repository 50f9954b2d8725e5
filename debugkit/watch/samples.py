"""Sample predictions: what a model made of a few samples, from outputs that the program computed itself."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from debugkit.data.batch import tensors
from debugkit.watch.recorder import Recorder
from debugkit.watch.tensors import is_plain

COLUMNS = ("input", "predicted", "target")
_WINDOW = 24
_SHOWN = 200


class Samples:
    """Takes down the first samples of the next batch that is trained on.

    Args:
        recorder: what is watched.
        count: samples at a time.

    Attributes:
        broken: whether an output could not be read; none is from then on.
    """

    def __init__(self, recorder: Recorder, count: int) -> None:
        self._recorder = recorder
        self._count = count
        self.broken = False
        self._rows: list[tuple[str, str, str]] = []
        self._tokenizers: list[weakref.ref[Any]] | None = None

    def begin(self) -> None:
        """Look at the next output."""
        self._rows = []
        self._recorder.on_output = self._look

    def end(self) -> list[tuple[str, str, str]]:
        """Look no more; what was seen, under :data:`COLUMNS`."""
        self._recorder.on_output = None
        return self._rows

    def _look(self, model: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._rows or self.broken:
            return
        try:
            self._rows = list(self._read(args, kwargs, output))
        except Exception:
            self.broken = True

    def _read(self, args: Any, kwargs: Any, output: Any) -> Iterator[tuple[str, str, str]]:
        logits = _logits(output)
        if logits is None:
            return
        given = _integers((args, kwargs))
        batch = _integers(self._batch_of(args, kwargs))
        with torch.no_grad():
            show = self._classes if logits.dim() == 2 else self._tokens
            yield from show(logits, given, {**batch, **given})

    def _classes(
        self, logits: torch.Tensor, given: Mapping[str, torch.Tensor], known: Mapping[str, torch.Tensor]
    ) -> Iterator[tuple[str, str, str]]:
        count, width = logits.shape
        labels = next(
            (one for one in known.values() if one.shape in ((count,), (count, 1)) and _within(one, width)),
            None,
        )
        ids = next((one for one in given.values() if one.dim() == 2 and one.shape[0] == count), None)
        chances = logits[: self._count].detach().float().softmax(-1)
        for row, chance in enumerate(chances):
            best = int(chance.argmax())
            shown = self._text(ids[row], None) if ids is not None else f"sample {row}"
            target = str(int(labels[row])) if labels is not None else ""
            yield shown[:_SHOWN], f"{best} ({float(chance[best]):.0%})", target

    def _tokens(
        self, logits: torch.Tensor, given: Mapping[str, torch.Tensor], known: Mapping[str, torch.Tensor]
    ) -> Iterator[tuple[str, str, str]]:
        shape, width = logits.shape[:2], logits.shape[2]
        ids = next((one for one in given.values() if one.shape == shape and _within(one, width)), None)
        if ids is None:
            return
        targets, ahead = _targets(ids, known, width)
        length = int(shape[1]) - ahead
        for row in range(min(self._count, int(shape[0]))):
            places = [place for place in range(length) if int(targets[row, place + ahead]) >= 0][-_WINDOW:]
            if not places:
                continue
            predicted = logits[row, places].detach().argmax(-1)
            wanted = targets[row, [place + ahead for place in places]]
            before = ids[row, : places[0] + 1][-_WINDOW:]
            yield self._text(before, width), self._text(predicted, width), self._text(wanted, width)

    def _text(self, ids: torch.Tensor, width: int | None) -> str:
        """Token ids as text; as numbers where no tokenizer is seen."""
        numbers = ids.tolist()
        for ref in self._known_tokenizers():
            tokenizer = ref()
            if tokenizer is not None and min(numbers) >= 0 and max(numbers) < len(tokenizer):
                pad = tokenizer.pad_token_id
                return str(tokenizer.decode([number for number in numbers if number != pad]))
        return " ".join(map(str, numbers[:_WINDOW]))

    def _known_tokenizers(self) -> list[weakref.ref[Any]]:
        """The tokenizers that exist; looked for once there is an output to decode."""
        if not self._tokenizers:
            module = sys.modules.get("transformers.tokenization_utils_base")
            base = getattr(module, "PreTrainedTokenizerBase", None)
            found = [] if base is None else [one for one in gc.get_objects() if issubclass(type(one), base)]
            self._tokenizers = [weakref.ref(one) for one in found]
        return self._tokenizers

    def _batch_of(self, args: Any, kwargs: Any) -> Any:
        """The batch that the model was given part of: some loaders read one ahead."""
        inputs = [tensor for _, tensor in tensors((args, kwargs))]
        for batch in reversed(self._recorder.recent or ()):
            for _, tensor in tensors(batch):
                if any(tensor is one or _equal(tensor, one) for one in inputs):
                    return batch
        return ()


def _logits(output: Any) -> torch.Tensor | None:
    """Class scores ``[batch, classes]`` or ``[batch, length, vocabulary]`` in what a model returned."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif not isinstance(output, torch.Tensor):
        output = getattr(output, "logits", output[0] if isinstance(output, tuple) and output else None)
    good = isinstance(output, torch.Tensor) and is_plain(output) and output.is_floating_point()
    return output if good and output.dim() in (2, 3) and output.shape[-1] > 1 and output.numel() else None


def _integers(value: Any) -> dict[str, torch.Tensor]:
    return {
        path: tensor
        for path, tensor in tensors(value)
        if type(tensor) is torch.Tensor and not tensor.is_floating_point() and tensor.dtype != torch.bool
    }


def _within(tensor: torch.Tensor, width: int) -> bool:
    return tensor.numel() > 0 and int(tensor.min()) >= 0 and int(tensor.max()) < width


def _targets(ids: torch.Tensor, known: Mapping[str, torch.Tensor], width: int) -> tuple[torch.Tensor, int]:
    """The target of each place, and how far ahead of the logits it is: labels that equal the ids are shifted."""
    for one in known.values():
        if one.shape != ids.shape or one is ids or int(one.max()) >= width or one.device != ids.device:
            continue
        there = one >= 0
        if bool(there.any()) and int(one.max()) > 1:
            return one, int(bool((one == ids)[there].float().mean() > 0.5))
    return ids, 1


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other.to(one.device))
