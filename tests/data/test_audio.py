"""Spectrograms against explicit sums; silence; audio files."""

import cmath
import math

import numpy as np
import pytest

from meta_opt.data.preprocessing.audio import log_mel, mel_filters, trim_silence
from meta_opt.data.preprocessing.audio_files import read_clip

soundfile = pytest.importorskip("soundfile")


def tone(frequency, seconds=1.5, rate=8000, amplitude=8000):
    time = np.arange(round(seconds * rate)) / rate
    return np.round(amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.int16)


def mel(frequency):
    return 1127 * math.log(1 + frequency / 700)


def nearest_band(frequency, mels, rate):
    """The band whose middle is nearest in mel, from the definition."""
    middles = [(k + 1) * mel(rate / 2) / (mels + 1) for k in range(mels)]
    return min(range(mels), key=lambda k: abs(middles[k] - mel(frequency)))


@pytest.mark.parametrize("frequency", [200, 440, 1000, 1730, 2900, 3600])
@pytest.mark.parametrize(("rate", "mels"), [(8000, 24), (16000, 40)])
def test_a_tone_peaks_in_its_band(frequency, rate, mels):
    spectrogram = log_mel(tone(frequency, rate=rate), rate, mels=mels)
    assert spectrogram.shape == (32, mels)
    expected = nearest_band(frequency, mels, rate)
    np.testing.assert_array_equal(spectrogram.argmax(axis=1), expected)


@pytest.mark.parametrize("seconds", [0.1, 0.7, 1.3])
def test_a_burst_peaks_in_its_frame(seconds):
    pcm = np.zeros(12000, np.int16)
    at = round(seconds * 8000)
    pcm[at - 40 : at + 40] = tone(1000, 0.01)
    frame = log_mel(pcm).sum(axis=1).argmax()
    assert frame == math.floor(seconds / 1.5 * 32)


def test_a_spectrogram_is_the_sum_written_out():
    """Frame 5, with a slow Fourier transform and each filter from its corners."""
    rate, window, hop, mels = 8000, 512, 375, 24
    pcm = np.random.default_rng(0).integers(-3000, 3000, 12000).astype(np.int16)
    start = round(5.5 * hop) - window // 2
    samples = pcm[start : start + window] - pcm.mean()
    weights = [math.sin(math.pi * (n + 0.5) / window) ** 2 for n in range(window)]
    powers = [
        abs(
            sum(
                weights[n] * samples[n] * cmath.exp(-2j * math.pi * k * n / window)
                for n in range(window)
            )
        )
        ** 2
        for k in range(window // 2 + 1)
    ]
    step = mel(rate / 2) / (mels + 1)
    expected = []
    for band in range(mels):
        low, middle, high = (
            700 * (math.exp((band + i) * step / 1127) - 1) for i in range(3)
        )
        total = 0.0
        for k, power in enumerate(powers):
            f = k * rate / window
            if low < f <= middle:
                total += power * (f - low) / (middle - low)
            elif middle < f < high:
                total += power * (high - f) / (high - middle)
        expected.append(10 * math.log10(total))
    found = log_mel(pcm)[5].astype(np.float64)
    # Standardising is affine: one scale and one shift for all bands. The mel scale is
    # written here with 1127 for 2595 / ln 10 = 1126.99.
    slope, shift = np.polyfit(expected, found, 1)
    assert slope > 0
    np.testing.assert_allclose(found, slope * np.array(expected) + shift, atol=2e-3)


def test_spectrograms_are_standardised_and_know_no_level():
    pcm = tone(700, 0.6) + tone(2100, 0.6, amplitude=3000)
    spectrogram = log_mel(pcm)
    assert spectrogram.dtype == np.float32
    assert abs(spectrogram.mean()) < 1e-5 and abs(spectrogram.std() - 1) < 1e-5
    np.testing.assert_allclose(log_mel(pcm / 7.0), spectrogram, atol=1e-5)
    np.testing.assert_allclose(log_mel(pcm + 500), spectrogram, atol=1e-5)
    # The clip ends after 0.6 of 1.5 s: what follows is at the floor.
    assert spectrogram[14:].max() == spectrogram.min()


def test_long_clips_are_cut_and_silent_ones_are_zero():
    long = tone(500, 3.0)
    np.testing.assert_array_equal(log_mel(long), log_mel(long[:12000]))
    for silent in (np.zeros(0, np.int16), np.full(4000, 9, np.int16)):
        np.testing.assert_array_equal(log_mel(silent), np.zeros((32, 24)))
    with pytest.raises(ValueError, match=r"shape \[T\], not \[2, 5\]"):
        log_mel(np.zeros((2, 5), np.int16))


def test_every_band_has_a_frequency():
    filters = mel_filters(8000, 512, 24)
    assert filters.shape == (24, 257) and filters.max() <= 1
    # Between the first middle and the last, the triangles add up to one.
    inside = slice(filters[0].argmax() + 1, filters[-1].argmax())
    np.testing.assert_allclose(filters.sum(axis=0)[inside], 1)
    with pytest.raises(ValueError, match="200 mel bands are too many"):
        mel_filters(8000, 512, 200)


def test_silence_is_cut_off_both_ends():
    noise = np.random.default_rng(0).integers(-20, 20, 12000).astype(np.int16)
    pcm = noise + 50
    pcm[4000:8000] += tone(300, 0.5)
    trimmed = trim_silence(pcm)
    # The tone fills blocks 50 to 99 of 80 samples; one more is kept on either side.
    np.testing.assert_array_equal(trimmed, pcm[49 * 80 : 101 * 80])
    assert trim_silence(pcm, threshold_decibels=90).size == pcm.size


@pytest.mark.parametrize("pcm", [np.zeros(300, np.int16), np.zeros(0, np.int16)])
def test_there_is_nothing_to_trim_in_silence(pcm):
    np.testing.assert_array_equal(trim_silence(pcm), pcm)


@pytest.mark.parametrize(
    ("rate", "channels", "suffix"),
    [(44100, 2, "ogg"), (48000, 1, "ogg"), (8000, 1, "wav"), (22050, 2, "wav")],
)
def test_sound_files_become_short_mono_clips(tmp_path, rate, channels, suffix):
    sound = np.concatenate(
        [np.zeros(rate), tone(600, 0.5, rate) / 32768, np.zeros(rate)]
    )
    path = tmp_path / f"sound.{suffix}"
    soundfile.write(path, np.repeat(sound[:, None], channels, 1), rate)
    clip = read_clip(path)
    assert clip.dtype == np.int16 and abs(clip.size - 4000) < 320
    spectrum = np.abs(np.fft.rfft(clip, 8000))
    assert abs(int(spectrum.argmax()) - 600) <= 2  # bins of 1 Hz
    assert abs(int(np.abs(clip).max()) - 8000) < 1500


def test_long_and_loud_sounds(tmp_path):
    path = tmp_path / "long.wav"
    loud = np.sign(tone(100, 3.0, 16000)).astype(np.float64)
    soundfile.write(path, loud, 16000, subtype="PCM_16")
    clip = read_clip(path)
    assert clip.size == 12000
    # Resampling overshoots at the edges of the square wave. It must not wrap around:
    # the sign changes at its 300 edges alone.
    assert clip.max() == 32767
    assert abs(np.count_nonzero(np.diff(clip > 0)) - 300) <= 1


def test_a_file_that_is_no_sound(tmp_path):
    path = tmp_path / "text.ogg"
    path.write_text("no sound")
    with pytest.raises(OSError, match=r"text\.ogg cannot be read as audio"):
        read_clip(path)
    with pytest.raises(OSError, match="cannot be read as audio: Format not recogn"):
        read_clip(b"RIFFnothing")


def test_a_sound_with_samples_that_are_not_finite(tmp_path):
    samples = np.zeros(800)
    samples[400] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    with pytest.raises(OSError, match=r"a\.wav has samples that are not finite"):
        read_clip(tmp_path / "a.wav")
