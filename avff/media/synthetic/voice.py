"""Generated speech: a plan of syllables that drives the mouth and the voice alike.

A plan is sampled at `CONTROL_HZ`. What opens the mouth also raises energy and first formant, and what spreads
the lips raises the second formant, so picture and sound tell the same story at lag zero. Syllables, stress and
pauses are irregular: the same speech shifted by 0.3 s, or other speech, disagrees.
"""

from dataclasses import dataclass

import numpy as np

from avff.media.synthetic.drawing import bell

SAMPLE_RATE_HZ = 16000
CONTROL_HZ = 200
_FFT = 512
_HOP = 128


@dataclass(frozen=True)
class Voice:
    """How one person sounds and speaks."""

    pitch_hz: float
    pitch_swing: float
    """Size of the melody as a share of the pitch."""
    formant_scale: float
    """1 is an average vocal tract; children are above, large men below."""
    breath: float
    """Amplitude of breath noise inside voiced sound."""
    tilt_db_per_octave: float
    syllables_per_second: float
    pause_probability: float
    """Chance of a pause after a syllable."""
    dispersion_seconds: float
    """Length over which each glottal pulse is spread."""


@dataclass(frozen=True)
class Speech:
    """A spoken plan; every array has one float32 entry per 1 / CONTROL_HZ seconds."""

    opening: np.ndarray
    """Gap between the lips, 0 closed to 1 wide open."""
    spread: np.ndarray
    """Lips from -1 rounded over 0 neutral to 1 spread."""
    energy: np.ndarray
    """Amplitude of the voiced part."""
    hiss: np.ndarray
    """Amplitude of fricatives."""
    formants_hz: np.ndarray
    """(time, 3): first to third formant of an average vocal tract."""

    def mouth_at(self, times_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns opening and spread at the given seconds."""
        index = times_T * CONTROL_HZ
        grid = np.arange(len(self.opening))
        return np.interp(index, grid, self.opening), np.interp(index, grid, self.spread)


# opening, spread, formants in Hz of: a e i o u
_VOWELS = (
    (1.00, 0.1, (800.0, 1300.0, 2600.0)),
    (0.80, 0.7, (560.0, 1900.0, 2650.0)),
    (0.60, 1.0, (330.0, 2350.0, 3100.0)),
    (0.85, -0.7, (560.0, 900.0, 2500.0)),
    (0.60, -1.0, (340.0, 720.0, 2400.0)),
)
_REST_FORMANTS = np.array([500.0, 1500.0, 2500.0], np.float32)


def draw_voice(rng: np.random.Generator) -> Voice:
    """Draws a person's voice."""
    return Voice(
        pitch_hz=float(np.exp(rng.uniform(np.log(90), np.log(260)))),
        pitch_swing=rng.uniform(0.05, 0.2),
        formant_scale=rng.uniform(0.88, 1.18),
        breath=rng.uniform(0.03, 0.2),
        tilt_db_per_octave=rng.uniform(-9.0, -4.0),
        syllables_per_second=rng.uniform(2.0, 2.9),
        pause_probability=rng.uniform(0.25, 0.4),
        dispersion_seconds=rng.uniform(0.002, 0.006),
    )


def speak(rng: np.random.Generator, voice: Voice, duration_seconds: float) -> Speech:
    """Plans irregular speech of the given length."""
    count = round(duration_seconds * CONTROL_HZ)
    opening, spread, energy, hiss = np.zeros((4, count), np.float32)
    weighted_hz, weight = np.zeros((count, 3), np.float32), np.full(count, 1e-3, np.float32)
    seconds_T = np.arange(count, dtype=np.float32) / CONTROL_HZ
    onset = rng.uniform(-0.4, 0.2)
    while onset < duration_seconds:
        length = rng.uniform(0.65, 1.45) / voice.syllables_per_second
        vowel_opening, vowel_spread, vowel_formants = _VOWELS[rng.integers(len(_VOWELS))]
        stress = rng.uniform(0.6, 1.0)
        gesture = _gesture(seconds_T, onset, length)
        opening += gesture * vowel_opening * stress
        spread += gesture * vowel_spread
        energy += gesture**1.5 * stress * (0.35 + 0.65 * vowel_opening)
        weighted_hz += gesture[:, None] * np.array(vowel_formants, np.float32)
        weight += gesture
        if rng.random() < 0.4:  # a fricative: noise while the lips are nearly closed
            hiss += rng.uniform(0.1, 0.25) * bell(seconds_T - onset, 0.025)
        onset += length
        if rng.random() < voice.pause_probability:
            onset += rng.uniform(0.25, 0.8)
    formants_hz = (weighted_hz + 1e-3 * _REST_FORMANTS) / weight[:, None]
    return Speech(np.minimum(opening, 1.0), np.clip(spread, -1, 1), energy, hiss, formants_hz)


def _gesture(seconds_T: np.ndarray, onset: float, length: float) -> np.ndarray:
    """Returns a bump from 0 to 1 to 0 over [onset, onset + length)."""
    phase = np.clip((seconds_T - onset) / length, 0.0, 1.0)
    return np.maximum(np.sin(np.pi * phase), 0.0).astype(np.float32) ** 1.3


def synthesize(rng: np.random.Generator, speech: Speech, voice: Voice) -> np.ndarray:
    """Returns the sound of a plan, float32 at SAMPLE_RATE_HZ with RMS 1: pulses and noise through formants."""
    num_samples = len(speech.opening) * SAMPLE_RATE_HZ // CONTROL_HZ
    control = np.arange(num_samples, dtype=np.float32) * (CONTROL_HZ / SAMPLE_RATE_HZ)
    grid = np.arange(len(speech.opening))
    energy, hiss = np.interp(control, grid, speech.energy), np.interp(control, grid, speech.hiss)
    noise = rng.standard_normal(num_samples, dtype=np.float32)
    source = (_pulses(rng, voice, num_samples) + voice.breath * noise) * energy
    spectrum = stft(source) * _vocal_tract(speech, voice, num_samples)
    frequency_hz = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE_HZ)
    spectrum += 0.5 * stft(noise * hiss) * bell(frequency_hz - 5200.0, 1300.0)
    waveform = istft(spectrum, num_samples)
    return waveform / np.sqrt(np.mean(waveform**2))


def _pulses(rng: np.random.Generator, voice: Voice, num_samples: int) -> np.ndarray:
    """Returns glottal pulses along a melody, each spread by a short random filter, RMS 1."""
    seconds = np.arange(num_samples) / SAMPLE_RATE_HZ
    phases, rates_hz = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.3, 2.0, 3)
    melody = np.sin(2 * np.pi * rates_hz * seconds[:, None] + phases).sum(1)
    cycles = np.cumsum(voice.pitch_hz * (1 + voice.pitch_swing * 0.5 * melody)) / SAMPLE_RATE_HZ
    pulses = np.diff(np.floor(cycles), prepend=0.0)
    taps = np.arange(round(4 * voice.dispersion_seconds * SAMPLE_RATE_HZ))
    spread = rng.standard_normal(len(taps)) * np.exp(-taps / (voice.dispersion_seconds * SAMPLE_RATE_HZ))
    pulses = np.convolve(pulses, spread)[:num_samples]
    return (pulses / np.sqrt(np.mean(pulses**2))).astype(np.float32)


def _vocal_tract(speech: Speech, voice: Voice, num_samples: int) -> np.ndarray:
    """Returns the gain per STFT frame and bin: resonances at the formants over the voice's tilt."""
    frequency_hz = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE_HZ).astype(np.float32)
    frame = np.arange(num_samples // _HOP + 1) * (_HOP * CONTROL_HZ / SAMPLE_RATE_HZ)
    frame = np.minimum(np.round(frame).astype(int), len(speech.opening) - 1)
    gain = np.full((len(frame), len(frequency_hz)), 0.02, np.float32)
    for index, (bandwidth_hz, level) in enumerate(((90.0, 1.0), (120.0, 0.7), (180.0, 0.4))):
        centre_hz = speech.formants_hz[frame, index, None] * voice.formant_scale
        gain += level / (1.0 + np.square((frequency_hz - centre_hz) / bandwidth_hz))
    octaves = np.log2(np.maximum(frequency_hz, 100.0) / 500.0)
    return gain * 10 ** (voice.tilt_db_per_octave * octaves / 20)


def stft(waveform: np.ndarray) -> np.ndarray:
    """Returns (frames, bins) complex64; frame k is centred on sample k * 128."""
    padded = np.pad(waveform, _FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP]
    return np.fft.rfft(frames * _window()).astype(np.complex64)


def istft(spectrum: np.ndarray, num_samples: int) -> np.ndarray:
    """Inverts `stft` by overlap-add, float32."""
    frames = np.fft.irfft(spectrum, _FFT).astype(np.float32) * _window()
    parts = frames.reshape(len(frames), _FFT // _HOP, _HOP)
    total = np.zeros((len(frames) + _FFT // _HOP - 1, _HOP), np.float32)
    for index in range(_FFT // _HOP):
        total[index : index + len(frames)] += parts[:, index]
    return total.reshape(-1)[_FFT // 2 : _FFT // 2 + num_samples] / 1.5  # four squared Hann windows sum to 1.5


def _window() -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FFT) / _FFT)).astype(np.float32)
