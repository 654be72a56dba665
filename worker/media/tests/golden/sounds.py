"""Makes the sounds of these tests: python3 sounds.py

All hold the same third of a second: a glide with overtones below 3 kHz, at several rates, in several forms; of two channels the
left one is louder and the right one softer, so that their mean is the sound. sound.i16 holds it at 16 kHz, raw."""

import struct

import av
import numpy as np
import soundfile

SECONDS = 0.3


def sound(rate):
    time = np.arange(round(SECONDS * rate)) / rate
    phase = 2 * np.pi * (180 * time + 400 * time**2)
    swell = np.sin(np.pi * time / SECONDS) ** 2 * (1 + 0.5 * np.sin(2 * np.pi * 9 * time))
    return 0.25 * swell * (np.sin(phase) + 0.6 * np.sin(3 * phase + 1) + 0.4 * np.sin(5 * phase + 2))


def stereo(rate):
    mono = sound(rate)
    return np.stack([mono * 1.5, mono * 0.5], 1)


def encode(name, codec, samples, rate, **options):
    layout = "stereo" if samples.ndim == 2 else "mono"
    with av.open(name, "w") as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        for key, value in options.items():
            setattr(stream, key, value)
        planes = np.atleast_2d(samples.T).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes), format="fltp", layout=layout)
        frame.rate = rate
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate, stream.codec_context.frame_size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))


(sound(16000) * 32768).round().astype("<i2").tofile("sound.i16")
soundfile.write("stereo_22050_s16.wav", stereo(22050), 22050, subtype="PCM_16")
soundfile.write("mono_8000_u8.wav", sound(8000), 8000, subtype="PCM_U8")
soundfile.write("mono_11025_s24.wav", sound(11025), 11025, subtype="PCM_24")
soundfile.write("mono_16000_f32.wav", sound(16000), 16000, subtype="FLOAT")
soundfile.write("mono_8000_ulaw.wav", sound(8000), 8000, subtype="ULAW")
soundfile.write("stereo_48000.flac", stereo(48000), 48000, subtype="PCM_16")
soundfile.write("mono_44100.mp3", sound(44100), 44100, format="MP3")
soundfile.write("stereo_24000.mp3", stereo(24000), 24000, format="MP3")
soundfile.write("stereo_44100_vorbis.ogg", stereo(44100), 44100, format="OGG", subtype="VORBIS")
encode("mono_48000_opus.ogg", "libopus", sound(48000), 48000, bit_rate=32000)
encode("stereo_48000_opus.ogg", "libopus", stereo(48000), 48000, bit_rate=64000)
encode("stereo_44100.m4a", "aac", stereo(44100), 44100, bit_rate=96000)
encode("mono_32000.m4a", "aac", sound(32000), 32000, bit_rate=48000)
encode("mono_16000_alac.m4a", "alac", sound(16000), 16000)
data = open("mono_8000_u8.wav", "rb").read()
with open("promises_4_gb.wav", "wb") as file:
    at = data.index(b"data")
    file.write(data[:4] + struct.pack("<I", 0xFFFFFFFF) + data[8 : at + 4] + struct.pack("<I", 0xFFFFFFF0) + data[at + 8 :])
