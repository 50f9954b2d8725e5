"""Tables of class names: the model's own, and the data set's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from debugkit import Finding, Target, fail, note

_DEEPEST = 5
_SHOWN = 3


def disagreements(target: Target, path: str) -> Iterator[Finding]:
    """Where the names that the model gives its classes contradict each other or the data set's.

    Args:
        target: model and loaders.
        path: the key of the labels.
    """
    config = getattr(target.model, "config", None)
    given = _names(getattr(config, "id2label", None))
    if given:
        yield from _inverse(given, getattr(config, "label2id", None))
        yield from _data_set(given, target, path)


def _inverse(given: Mapping[int, str], label2id: Any) -> Iterator[Finding]:
    table = label2id if isinstance(label2id, Mapping) else {}
    wrong = [
        (index, name) for index, name in given.items() if name in table and _number(table[name]) != index
    ]
    repeated = len(set(given.values())) < len(given)
    if wrong and not repeated:
        index, name = wrong[0]
        yield fail(
            f"`config.label2id` is not the inverse of `config.id2label` for {len(wrong)} of {len(given)} classes: "
            f"`{_quoted(name)}` is the name of class {index}, and stands for {table[name]} in `label2id`",
            where="config.label2id",
            hint="make one from the other: `label2id={name: i for i, name in id2label.items()}`",
            classes=len(wrong),
        )


def _data_set(given: Mapping[int, str], target: Target, path: str) -> Iterator[Finding]:
    names = data_set_names(target.train_loader, path) or data_set_names(target.eval_loader, path)
    if not names:
        return
    own = {_plain(name): index for index, name in given.items()}
    theirs = {_plain(name): index for index, name in enumerate(names)}
    if len(own) < len(given) or len(theirs) < len(names):
        return
    moved = [name for name in theirs if name in own and own[name] != theirs[name]]
    if moved:
        first = ", ".join(
            f"class {theirs[name]} is `{_quoted(names[theirs[name]])}` in the data set and "
            f"`{_quoted(given.get(theirs[name], '-'))}` in the model"
            for name in moved[:_SHOWN]
        )
        yield fail(
            f"{len(moved)} of {len(names)} classes have another number in the data set than in `config.id2label`: {first}",
            where="config.id2label",
            hint="take the order from the data set: `id2label=dict(enumerate(dataset.features['label'].names))`; for a "
            "model that was trained on its own order, renumber the labels (`dataset.align_labels_with_mapping`)",
            classes=len(moved),
        )
    elif own.keys() == theirs.keys():
        yield note(f"`config.id2label` names its {len(names)} classes as the data set does")


def data_set_names(loader: Any, path: str) -> list[str]:
    """The class names of the data set behind a loader, in the order of their numbers; empty where it has none."""
    for owner in _behind(loader):
        features = getattr(owner, "features", None)
        if isinstance(features, Mapping):
            keys = [key for key in (path, "label", "labels", *features) if key in features]
            for key in dict.fromkeys(keys):
                feature = features[key]
                if found := _texts(getattr(feature, "names", None)):
                    return found
                if found := _texts(getattr(getattr(feature, "feature", None), "names", None)):
                    return found
        table = _names({number: name for name, number in _items(getattr(owner, "class_to_idx", None))})
        if table and sorted(table) == list(range(len(table))):
            return [table[number] for number in range(len(table))]
    return []


def _behind(loader: Any) -> Iterator[Any]:
    """The loader, its data set, and what that wraps."""
    seen: list[Any] = []
    level = [loader]
    for _ in range(_DEEPEST):
        below = []
        for owner in level:
            if owner is None or any(owner is other for other in seen):
                continue
            seen.append(owner)
            yield owner
            below += [getattr(owner, name, None) for name in ("dataset", "base_dataloader", "ds", "data")]
            parts = getattr(owner, "datasets", None)
            below += list(parts)[:8] if isinstance(parts, (list, tuple)) else []
        level = below


def _names(table: Any) -> dict[int, str]:
    """Names by number, without placeholders such as `LABEL_0`; empty where there is a gap or no name at all."""
    found = {}
    for key, name in _items(table):
        number = _number(key)
        if number is None or not isinstance(name, str) or name == f"LABEL_{number}":
            return {}
        found[number] = name
    return found


def _items(table: Any) -> list[tuple[Any, Any]]:
    return list(table.items()) if isinstance(table, Mapping) else []


def _number(key: Any) -> int | None:
    if isinstance(key, int) and not isinstance(key, bool):
        return key
    return int(key) if isinstance(key, str) and key.isdigit() else None


def _texts(names: Any) -> list[str]:
    fine = isinstance(names, (list, tuple)) and bool(names) and all(isinstance(name, str) for name in names)
    return list(names) if fine else []


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _quoted(name: str) -> str:
    return " ".join(name.split())[:40].replace("`", "'")
