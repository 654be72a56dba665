"""Writes libri.json: what faster-whisper hears in libri.wav, with and without times of words.

usage: transcribe.py MODEL_FOLDER    (CTranslate2's layout of tiny.en; faster-whisper 1.2.1, ctranslate2 4.8.5)

libri.wav was made from Debian's pocketsphinx-testdata: see README.md."""
import json
import os
import sys

import soundfile
from faster_whisper import WhisperModel

here = os.path.dirname(os.path.abspath(__file__))
samples, rate = soundfile.read(os.path.join(here, "libri.wav"), dtype="float32")
assert rate == 16000
model = WhisperModel(sys.argv[1], device="cpu", compute_type="float32", cpu_threads=2)


def segments(words):
    found, _ = model.transcribe(samples, beam_size=1, language="en", word_timestamps=words)
    return [
        {
            "start": round(float(s.start), 3),
            "end": round(float(s.end), 3),
            "text": s.text,
            "words": [{"start": round(float(w.start), 3), "end": round(float(w.end), 3), "text": w.word} for w in s.words or []],
        }
        for s in found
    ]


golden = {"samples": len(samples), "segments": segments(False), "timed": segments(True)}
json.dump(golden, open(os.path.join(here, "libri.json"), "w"), ensure_ascii=False, indent=1)
