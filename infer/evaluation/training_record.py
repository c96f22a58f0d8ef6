"""What weights themselves tell of the clips that they have learnt from, so that an evaluation can say so.

An export of Audio2Mesh or Audio2Pose holds the speakers of its training; the RUN that an export lies in names its data
sets. Which samples a run has really seen tells `python -m train seen`; weights without a record tell nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from talkinghead.files.foreign import read_json
from talkinghead.motion.speakers import FILE as SPEAKERS_FILE
from talkinghead.motion.speakers import Speakers

_RUN_FILE = "config.json"
_MOST_NAMED = 3


def training_notes(folders: Mapping[str, Path], *, data: str, split: str, speakers: Mapping[str, str]) -> list[str]:
    """Sentences on what each of some weights has learnt from, as far as it is recorded next to them.

    Args:
        folders: Name of the weights → folder.
        data: Data set that is evaluated on.
        split: Its split.
        speakers: Clip that is evaluated → its speaker.

    Raises:
        ValueError: A record is damaged.
    """
    notes = []
    for name, folder in folders.items():
        if (folder / SPEAKERS_FILE).is_file():
            known = Speakers.load(folder)
            met = [key for key, speaker in speakers.items() if speaker in known]
            notes.append(
                f"{name} has learnt from {_some(met)} of these clips' speakers: on them it is not held out."
                if met
                else f"{name} has learnt from none of these clips' speakers, by its own record."
            )
            continue
        trained = data_of_run(folder)
        if trained is None:
            notes.append(f"{name} does not record which clips it has learnt from.")
        elif _place(data) in map(_place, trained) and split == "train":
            notes.append(f"{name} was trained on this very split of this data set: these clips are not held out.")
        elif _place(data) in map(_place, trained):
            notes.append(f"{name} was trained on the split train of this data set, by its run's record.")
        else:
            notes.append(
                f"{name} was trained on data in another place, by its run's record: whether these clips were among them"
                " is not known."
            )
    return notes


def data_of_run(folder: Path) -> list[str] | None:
    """Data sets of the run that an export lies in; None where the folder lies in no run."""
    for above in (folder.parent, folder.parent.parent):
        try:
            known = read_json(above / _RUN_FILE)
        except (OSError, ValueError):
            continue
        if isinstance(known, dict) and isinstance(known.get("data"), str) and "task" in known:
            more = known.get("more_data")
            return [
                known["data"],
                *(text for text in (more if isinstance(more, list) else []) if isinstance(text, str)),
            ]
    return None


def _place(data: str) -> str:
    return data.rstrip("/") if "://" in data else str(Path(data).resolve())


def _some(names: Sequence[str]) -> str:
    """Number of names and the first of them."""
    shown = ", ".join(names[:_MOST_NAMED])
    return f"{len(names)} ({shown}{', …' if len(names) > _MOST_NAMED else ''})"
