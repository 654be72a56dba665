"""Our side: the engine alone by its bench `step`, and the whole fleet over NATS."""

import asyncio
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import time

import chats
import load
import nats
import speech
from load import FLOTILLA

HOME = os.path.abspath(".flotilla/peers/fleet")
MODELS = os.path.abspath(".flotilla/models")
PLACE = ["--home", HOME, "--models", MODELS]
MODEL = "smollm2-135m-instruct"
MINILM = "all-minilm-l6-v2"
LITE0 = f"{MODELS}/efficientnet-lite0/efficientnet-lite0.f32.safetensors"
WHISPER = f"{MODELS}/whisper-tiny.en/whisper-tiny.en.f16.safetensors"
# A fleet whose worker computes nothing: its programs, and its catalogue.
NOOP = os.path.abspath(".flotilla/peers/noop")
NOOP_CONFIG = os.path.abspath("ops/bench/noop.toml")
BENCHES = ["--bench", "step", "--bench", "embed"]
EXAMPLES = ["--example", "classify", "--example", "transcribe", "--example", "noop", "--example", "barepipe"]

threads = 2
activations = "mixed"
programs = {}
up = False


def prepare(count, kind):
    """Builds what is measured, and fetches its model."""
    global threads, activations, programs
    threads, activations = count, kind
    print("building the fleet and its benches", file=sys.stderr)
    built = ["cargo", "build", "--release", "--locked", "--workspace", "--bins", *BENCHES, *EXAMPLES]
    printed = subprocess.run([*built, "--message-format", "json"], stdout=subprocess.PIPE, text=True, check=True).stdout
    artifacts = [json.loads(line) for line in printed.splitlines()]
    programs = {a["target"]["name"]: a["executable"] for a in artifacts if a.get("executable")}
    for model in (MODEL, MINILM, "efficientnet-lite0", "whisper-tiny.en"):
        subprocess.run([FLOTILLA, "models", "pull", model], stdout=subprocess.DEVNULL, check=True)


def told(program, arguments, **choices):
    """What a program of the engine prints, with choices of its environment."""
    chosen = {f"FLOTILLA_BENCH_{name.upper()}": choice for name, choice in choices.items()}
    command = [programs[program], *arguments]
    return subprocess.run(command, env={**os.environ, **chosen}, stdout=subprocess.PIPE, text=True, check=True).stdout


class Row:
    """What is measured of ours; most rows have nothing to check or to say beside their figures."""

    def check(self, peer):
        """Raises where the last figures of the two are not of the same work."""

    def holds(self, peer):
        """Whether what is said beside was as it must be in this pair."""
        return True

    def beside(self, peer):
        return ""


class Step(Row):
    """One row of the bench `step`."""

    def __init__(self, row):
        self.row = row

    def run(self):
        printed = told("step", [], only=self.row, threads=str(threads), activations=activations)
        return float(re.search(rf"^{self.row} .* (\d+) mean", printed, re.MULTILINE)[1])


class Embed(Row):
    """One row of the bench `embed`: from text to direction."""

    def __init__(self, weights, batch, length):
        self.weights, self.row = weights, [str(length), str(batch), "3"]

    def run(self):
        return float(told("embed", self.row, threads=str(threads), weights=self.weights))


class Pictures(Row):
    """The example `classify` on pictures that are decoded already."""

    def __init__(self, weights, batch):
        self.weights, self.batch = weights, str(batch)

    def run(self):
        printed = told("classify", [LITE0, "--bench", self.batch, "1", str(threads)], weights=self.weights)
        return float(printed.split("once: ")[1].split()[0])


class Chats(Row):
    """16 clients of a fleet that has just come up."""

    def __init__(self, kind):
        self.kind = kind

    def run(self):
        start(chatting())
        self.times = chats.Times(asyncio.run(self.clients()))
        stop()
        return self.times.rate()

    def beside(self, peer):
        first, gap = (self.times.first(), peer.times.first()), (self.times.gap(), peer.times.gap())
        return f"; first token p50 {first[0]:.0f} to {first[1]:.0f} ms, gap p99 {gap[0]:.0f} to {gap[1]:.0f} ms (last pair)"

    async def clients(self):
        return await asyncio.gather(*(self.client(number) for number in range(chats.CLIENTS)))

    async def client(self, number):
        connection = await nats.connect(url())
        heard = []
        for request in range(chats.REQUESTS):
            heard.append(await self.ask(connection, chats.messages(self.kind, number, request)))
        await connection.close()
        return heard

    async def ask(self, connection, messages):
        parts = [{"role": m["role"], "type": "text", "text": m["content"]} for m in messages]
        envelope = {"input": parts, "stream": True, "cache": "bypass", "params": {"max_tokens": chats.TOKENS}}
        inbox = connection.new_inbox()
        answers = await connection.subscribe(inbox)
        begun, chunks, tokens = time.perf_counter(), [], 0
        await connection.publish("infer", json.dumps(envelope).encode(), reply=inbox)
        while (message := await answers.next_msg(timeout=120)).data:
            status = message.headers.get("Flotilla-Status")
            if status == "chunk":
                chunks.append(time.perf_counter())
            elif status == "done":
                tokens = json.loads(message.data)["usage"]["output_tokens"]
        await answers.unsubscribe()
        return begun, chunks, tokens


class Memory(Row):
    """Resident memory of a worker after sixteen chats."""

    def run(self):
        start(chatting())
        workers = [path for path in glob.glob("/proc/[0-9]*/exe") if executable(path).endswith("release/worker")]
        resident = chats.resident(workers[0].split("/")[2])
        stop()
        return resident


class Speech(Row):
    """Seconds of a transcription by the example `transcribe`."""

    def __init__(self, weights, seconds):
        self.weights, self.seconds = weights, seconds

    def run(self):
        arguments = [WHISPER, str(threads), str(speech.ROUNDS), speech.clip(self.seconds)]
        heard = json.loads(told("transcribe", arguments, weights=self.weights))
        self.text = heard["text"]
        return heard["seconds"]

    def check(self, peer):
        speech.check(self.text, peer.text)


class Over(Row):
    """The whole fleet under the load of so many clients."""

    def __init__(self, clients, figure):
        self.clients, self.figure = clients, figure

    def beside(self, peer):
        return f"; answer p50 {load.median(self.figures):.2f} to {load.median(peer.figures):.2f} ms (last pair)"


class FleetEmbed(Over):
    """Texts of so many tokens."""

    def __init__(self, weights, clients, length):
        super().__init__(clients, load.rate)
        self.weights, self.length = weights, length

    def run(self):
        start({"models": f"['{MINILM}']", "weights": self.weights})
        self.figures = load.run(url(), "infer", self.clients, load.embed_prompt(self.length), "embed")
        stop()
        return self.figure(self.figures)

    def holds(self, peer):
        return load.median(self.figures) < load.median(peer.figures)


class Pipe(Over):
    """Texts that no model computes."""

    def run(self):
        start({}, noop(), NOOP_CONFIG)
        before = asyncio.run(stored())
        self.figures = load.run(url(), "infer", self.clients, load.PROMPT)
        jobs, results = (after - before for after, before in zip(asyncio.run(stored()), before))
        stop()
        # One was asked before the clock ran.
        asked = self.figures["requests"] + 1
        if not jobs == results == asked:
            raise RuntimeError(f"{asked} requests were answered, of {jobs} jobs, with {results} records")
        return self.figure(self.figures)


def noop():
    """The `flotilla` of a folder in which the worker is the example `noop`: it starts what lies beside it."""
    os.makedirs(NOOP, exist_ok=True)
    shutil.copy2(FLOTILLA, NOOP)
    for role, program in (("dispatcher", programs["dispatcher"]), ("worker", programs["noop"])):
        shutil.copy2(program, f"{NOOP}/{role}")
    return f"{NOOP}/flotilla"


async def stored():
    """Jobs that were ever queued, and results that are held."""
    connection = await nats.connect(url())
    jobs, results = [(await connection.jetstream().stream_info(name)).state for name in ("JOBS", "RESULTS")]
    await connection.close()
    return jobs.last_seq, results.messages


def executable(path):
    try:
        return os.readlink(path)
    except OSError:
        return ""


def chatting():
    """Settings of a worker for chats."""
    return {"models": f"['{MODEL}']", "kv_tokens": chats.CACHE_TOKENS, "activations": activations}


def provision():
    """Gets the servers."""
    subprocess.run([FLOTILLA, "provision", "--config", NOOP_CONFIG, *PLACE], stderr=subprocess.DEVNULL, check=True)


def start(settings, flotilla=FLOTILLA, config=os.path.abspath("flotilla.toml")):
    """Brings up a fleet that remembers nothing, with these settings of its worker."""
    global up
    up = True
    shutil.rmtree(f"{HOME}/data", ignore_errors=True)
    chosen = {"threads": threads, **settings}
    wanted = {f"FLOTILLA_WORKER__{name.upper()}": str(value) for name, value in chosen.items()}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([flotilla, "up", "--detach", "--config", config, *PLACE], env={**os.environ, **wanted}, check=True, **quiet)


def url():
    """Where the fleet is, whatever port was free."""
    with open(f"{HOME}/run/state.json") as file:
        return json.load(file)["nats"]


def stop():
    global up
    if up:
        subprocess.run([FLOTILLA, "down", "--home", HOME], capture_output=True, check=True)
        up = False
