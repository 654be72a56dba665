"""Our Whisper beside faster-whisper: what is heard, when, and how fast, clip by clip in the same run.

usage: asr.py MODEL.safetensors CT2_FOLDER CLIP.wav... [--threads 2] [--language en] [--words] [--cached FOLDER]
                      [--binary target/release/deps/asr-...] [--truth CLIP=TEXT_FILE]

faster-whisper runs as in DESIGN's baselines: float32, beam 1, default thresholds, no voice detection. Clips are 16 kHz WAV files of
one channel and 16 bits, e.g. of Debian's pocketsphinx-testdata (LibriVox) and asterisk-core-sounds-*-g722. With --cached its
results are read from, or kept in, FOLDER. The word error rate is ours against its text; times are compared word by word."""
import argparse
import difflib
import json
import os
import re
import subprocess
import time

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("peer")
parser.add_argument("clips", nargs="+")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--language")
parser.add_argument("--words", action="store_true")
parser.add_argument("--cached")
parser.add_argument("--binary")
args = parser.parse_args()
os.environ["HF_HUB_OFFLINE"] = "1"
peer = None


def ours(clip):
    command = [args.binary] if args.binary else ["cargo", "bench", "-q", "-p", "engine", "--bench", "asr", "--"]
    command += [args.model, clip, "--threads", str(args.threads)]
    command += ["--words"] * args.words + (["--language", args.language] if args.language else [])
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def theirs(clip):
    global peer
    kept = args.cached and os.path.join(args.cached, f"{os.path.basename(args.model)}.{os.path.basename(clip)}.{args.words}.json")
    if kept and os.path.exists(kept):
        return json.load(open(kept))
    import soundfile
    from faster_whisper import WhisperModel

    peer = peer or WhisperModel(args.peer, device="cpu", compute_type="float32", cpu_threads=args.threads, num_workers=1)
    samples, _ = soundfile.read(clip, dtype="float32")
    begun = time.perf_counter()
    found, info = peer.transcribe(samples, beam_size=1, language=args.language, word_timestamps=args.words)
    segments = [
        {"start": s.start, "end": s.end, "text": s.text,
         "words": [{"start": float(w.start), "end": float(w.end), "text": w.word} for w in s.words or []]}
        for s in found
    ]  # fmt: skip
    result = {"took": time.perf_counter() - begun, "language": info.language, "segments": segments}
    if kept:
        json.dump(result, open(kept, "w"))
    return result


def words(result):
    return re.findall(r"[\w']+", "".join(s["text"] for s in result["segments"]).lower())


def errors(truth, heard):
    row = list(range(len(heard) + 1))
    for i, word in enumerate(truth, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def gaps(ours, theirs):
    """Differences of starts and ends of what has the same text, in order."""
    same = difflib.SequenceMatcher(None, [o["text"] for o in ours], [t["text"] for t in theirs], autojunk=False)
    pairs = [(ours[a + i], theirs[b + i]) for a, b, n in same.get_matching_blocks() for i in range(n)]
    found = [abs(o[end] - t[end]) for o, t in pairs for end in ("start", "end")]
    return f"{len(pairs)} of {len(theirs)} alike, greatest {max(found, default=0):.2f} s, beyond 0.2 s {sum(f > 0.2005 for f in found)}, beyond 0.3 s {sum(f > 0.3005 for f in found)}"


for clip in args.clips:
    a, b = ours(clip), theirs(clip)
    wer = 100 * errors(words(b), words(a)) / max(len(words(b)), 1)
    print(f"{os.path.basename(clip)} {a['seconds']:.0f} s, {a['windows']} windows, language {a['language']} {b['language']}, {len(words(b))} words, differ {wer:.2f} %")
    print("  segments:", gaps(a["segments"], b["segments"]))
    print("  words:", gaps(*[[w for s in r["segments"] for w in s["words"]] for r in (a, b)]))
    print(f"  real-time factor {a['took'] / a['seconds']:.4f} beside {b['took'] / a['seconds']:.4f}: ratio {a['took'] / b['took']:.2f}", flush=True)
