"""What other checks say about the padding of the data, before a model is judged by what it does with it."""

from __future__ import annotations

from debugkit.probes.pad_trials import PadTrials


def owned_by_padding(trials: PadTrials | None) -> str | None:
    """What `padding` reports: a mask, a side or an id that explains all that the outputs show.

    Returns:
        A few words for a note; ``None`` where it reports nothing.
    """
    if trials is None:
        return None
    said = {
        "missing": "a mask that does not reach the model",
        "wrong": "a mask of the wrong places",
        "turned": "a mask the other way round",
        "left": "padding on the left",
        "no_pad_id": "a configuration without an id of padding",
    }
    for name, words in said.items():
        effect = getattr(trials, name)
        if effect is not None and effect.matters:
            return words
    return None
