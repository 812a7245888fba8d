"""Talking heads, true and forged in the four categories of FakeAVCeleb, with the metadata that shards are built from.

Everything about a clip but its forgery is drawn from (seed, clip name), and the name does not know the category: so
size, length, codec, loudness, noise and motion have one distribution, and no clip is encoded more often than another.
People come in pairs of one split; a borrowed voice is the pair partner's, so a clip never joins more than two people.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from avff.errors import ConfigError
from avff.media.synthetic.faces import Face, draw_face
from avff.media.synthetic.forgery import MAX_SHIFT_SECONDS, draw_shift, vocode
from avff.media.synthetic.heads import Take, draw_take, frame_times, render
from avff.media.synthetic.mouth import MouthCurve
from avff.media.synthetic.voice import SAMPLE_RATE_HZ, Speech, Voice, draw_voice, speak, synthesize
from avff.media.synthetic.writing import Clip, GenerationSummary, generate, master
from avff.seeding import derive_seed, generator

CATEGORIES = ("RVRA", "RVFA", "FVRA", "FVFA")
_FRAMES_PER_SECOND = 25
_NUM_FRAMES = (96, 108)
"""Range of clip lengths."""
_MARGIN_SECONDS = MAX_SHIFT_SECONDS + 0.1
"""Speech before and after the clip, so that a shifted sound has no seam."""


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """How many people a split has, and how many clips each of them gets per category."""

    num_people: int
    clips_per_person: Mapping[str, int]


DEMO_PLAN: dict[str, SplitPlan] = {
    "train": SplitPlan(num_people=32, clips_per_person={"RVRA": 3, "RVFA": 2, "FVRA": 2, "FVFA": 2}),
    "val": SplitPlan(num_people=8, clips_per_person=dict.fromkeys(CATEGORIES, 1)),
    "test": SplitPlan(num_people=22, clips_per_person=dict.fromkeys(CATEGORIES, 1)),
}
"""About 400 clips, 22 people that training never meets."""


@dataclass(frozen=True)
class HeadRecipe:
    """One talking head; `make` draws it."""

    seed: int
    """Of the whole data set."""
    person: str
    partner: str
    """Lends the voice where it is borrowed."""
    index: int
    """Counts the person's clips."""
    category: str
    split: str

    @property
    def video_name(self) -> str:
        return f"videos/{self.person}_{self.index:02d}.mp4"

    @property
    def clip_seed(self) -> int:
        return derive_seed(self.seed, "clip", self.person, self.index)

    @property
    def sound_method(self) -> str:
        """Returns `` for true sound, else `voice_swap` or `time_shift`, by turns."""
        return ("voice_swap", "time_shift")[self._coin("sound")] if self.category.endswith("FA") else ""

    @property
    def mouth_method(self) -> str:
        """Returns `` for a true mouth, else whose speech drives the forged one.

        Where the sound is shifted the mouth follows other speech: two shifts could cancel.
        """
        if not self.category.startswith("FV"):
            return ""
        other = self.sound_method == "time_shift" or self._coin("mouth")
        return "mouth_other_speech" if other else "mouth_time_shift"

    def _coin(self, purpose: str) -> int:
        return derive_seed(self.clip_seed, "method", purpose) % 2

    def metadata_row(self) -> dict[str, str | int]:
        groups = [self.person, self.partner] if self.sound_method == "voice_swap" else [self.person]
        return {
            "video_name": self.video_name,
            "target": int(self.category != "RVRA"),
            "video_is_fake": int(self.category.startswith("FV")),
            "audio_is_fake": int(self.category.endswith("FA")),
            "category": self.category,
            "methods": ";".join(method for method in (self.sound_method, self.mouth_method) if method),
            "group_ids": ";".join(groups),
            "split": self.split,
            "dataset": "synthetic_heads",
        }

    def make(self) -> Clip:
        face, take = self.face(), self.take()
        forged_curve = self.forged_curve() if self.mouth_method else None
        frames_THWC = render(take, face, self.true_curve(), forged_curve)
        return Clip(frames_THWC, self.waveform(), _FRAMES_PER_SECOND, self.clip_seed)

    def face(self) -> Face:
        return draw_face(generator(self.seed, "face", self.person))

    def take(self) -> Take:
        num_frames = int(generator(self.clip_seed, "length").integers(*_NUM_FRAMES))
        return draw_take(self.clip_seed, num_frames, _FRAMES_PER_SECOND)

    def true_curve(self) -> MouthCurve:
        """Returns what the speaker's mouth did."""
        return self._mouth(self._speech("own", self.person))

    def forged_curve(self) -> MouthCurve:
        """Returns what the forger makes the mouth do: speech that is neither the true nor the forged sound."""
        if self.mouth_method == "mouth_time_shift":
            shift_seconds = draw_shift(generator(self.clip_seed, "mouth_shift"))
            return self._mouth(self._speech("own", self.person), shift_seconds)
        return self._mouth(self._speech("driver", self.person))

    def waveform(self) -> np.ndarray:
        """Returns the sound as heard: true, shifted or borrowed; forged sound has passed a vocoder."""
        owner, purpose = (self.partner, "borrowed") if self.sound_method == "voice_swap" else (self.person, "own")
        speech = self._speech(purpose, owner)
        voice = synthesize(generator(self.clip_seed, "sound"), speech, _voice(self.seed, owner))
        start_seconds = _MARGIN_SECONDS
        if self.sound_method == "time_shift":
            start_seconds += draw_shift(generator(self.clip_seed, "sound_shift"))
        if self.sound_method:
            voice = vocode(generator(self.clip_seed, "vocoder"), voice)
        start = round(start_seconds * SAMPLE_RATE_HZ)
        cut = voice[start : start + round(self._duration_seconds() * SAMPLE_RATE_HZ)]
        return master(cut / np.sqrt(np.mean(cut**2)), self.clip_seed)

    def _duration_seconds(self) -> float:
        return self.take().num_frames / _FRAMES_PER_SECOND

    def _speech(self, purpose: str, person: str) -> Speech:
        duration_seconds = self._duration_seconds() + 2 * _MARGIN_SECONDS
        return speak(generator(self.clip_seed, "speech", purpose), _voice(self.seed, person), duration_seconds)

    def _mouth(self, speech: Speech, shift_seconds: float = 0.0) -> MouthCurve:
        return MouthCurve(*speech.mouth_at(frame_times(self.take()) + _MARGIN_SECONDS + shift_seconds))


def _voice(seed: int, person: str) -> Voice:
    return draw_voice(generator(seed, "voice", person))


def plan_recipes(plan: Mapping[str, SplitPlan], seed: int) -> list[HeadRecipe]:
    """Lists the clips of a plan; people are numbered through the splits.

    Raises:
        ConfigError: an odd number of people, an unknown category or split.
    """
    recipes: list[HeadRecipe] = []
    first = 0
    for split, part in plan.items():
        _check(split, part)
        for number in range(first, first + part.num_people):
            person, partner = f"person_{number:04d}", f"person_{number ^ 1:04d}"
            categories = [name for name in CATEGORIES for _ in range(part.clips_per_person.get(name, 0))]
            recipes += [
                HeadRecipe(seed, person, partner, index, category, split) for index, category in enumerate(categories)
            ]
        first += part.num_people
    return recipes


def _check(split: str, part: SplitPlan) -> None:
    if split not in ("train", "val", "test"):
        raise ConfigError(f"plan: split {split!r} is unknown; choose train, val or test")
    if part.num_people % 2:
        raise ConfigError(
            f"plan: {split} has {part.num_people} people, who come in pairs; use {part.num_people + 1} or {part.num_people - 1}"
        )
    if unknown := sorted(set(part.clips_per_person) - set(CATEGORIES)):
        raise ConfigError(f"plan: {split} names category {', '.join(unknown)}; choose from {', '.join(CATEGORIES)}")


def generate_talking_heads(
    output: Path,
    *,
    plan: Mapping[str, SplitPlan] = DEMO_PLAN,
    seed: int = 0,
    num_workers: int = 2,
    progress: bool = True,
) -> GenerationSummary:
    """Draws talking heads into `output/videos` and describes them in `output/metadata.csv`.

    Clips that are there already are kept, so a call that was killed goes on where it stopped.

    Args:
        plan: people and clips per split; people of different splits never meet.
        num_workers: processes; 0 and 1 draw in this one. No effect on the clips.

    Raises:
        ConfigError: the plan is impossible, or the folder holds clips of another plan or seed.
    """
    recipes = plan_recipes(plan, seed)
    settings = {"kind": "talking_heads", "seed": seed, "plan": {name: asdict(part) for name, part in plan.items()}}
    return generate(Path(output), recipes, settings, num_workers=num_workers, progress=progress)
