"""Our side: the engine alone by its bench `step`, and the whole fleet over NATS."""

import asyncio
import glob
import json
import os
import re
import subprocess
import sys
import time

import chats
import nats

FLOTILLA = os.path.abspath(os.environ.get("CARGO_TARGET_DIR", "target")) + "/release/flotilla"
HOME = os.path.abspath(".flotilla/peers/fleet")
MODEL = "smollm2-135m-instruct"
LITE0 = os.path.abspath(".flotilla/models/efficientnet-lite0/efficientnet-lite0.f32.safetensors")

threads = 2
activations = "mixed"
programs = {}
up = False


def prepare(count, kind):
    """Builds what is measured, and fetches its model."""
    global threads, activations, programs
    threads, activations = count, kind
    print("building the fleet and its benches", file=sys.stderr)
    built = ["cargo", "build", "--release", "--locked", "--workspace", "--bins", "--bench", "step", "--bench", "embed", "--example", "classify"]
    printed = subprocess.run([*built, "--message-format", "json"], stdout=subprocess.PIPE, text=True, check=True).stdout
    artifacts = [json.loads(line) for line in printed.splitlines()]
    programs = {a["target"]["name"]: a["executable"] for a in artifacts if a.get("executable")}
    for model in (MODEL, "all-minilm-l6-v2", "efficientnet-lite0"):
        subprocess.run([FLOTILLA, "models", "pull", model], stdout=subprocess.DEVNULL, check=True)


def told(program, arguments, **choices):
    """What a program of the engine prints, with choices of its environment."""
    chosen = {f"FLOTILLA_BENCH_{name.upper()}": choice for name, choice in choices.items()}
    command = [programs[program], *arguments]
    return subprocess.run(command, env={**os.environ, **chosen}, stdout=subprocess.PIPE, text=True, check=True).stdout


class Row:
    """What is measured of ours; most rows have nothing to say beside their figures."""

    def beside(self, _):
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
        start()
        self.times = chats.Times(asyncio.run(self.clients()))
        stop()
        return self.times.rate()

    def beside(self, peer):
        first, gap = (self.times.first(), peer.times.first()), (self.times.gap(), peer.times.gap())
        return f"; first token p50 {first[0]:.0f} to {first[1]:.0f} ms, gap p99 {gap[0]:.0f} to {gap[1]:.0f} ms (last pair)"

    async def clients(self):
        return await asyncio.gather(*(self.client(number) for number in range(chats.CLIENTS)))

    async def client(self, number):
        connection = await nats.connect("nats://127.0.0.1:4222")
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
        start()
        workers = [path for path in glob.glob("/proc/[0-9]*/exe") if executable(path).endswith("release/worker")]
        resident = chats.resident(workers[0].split("/")[2])
        stop()
        return resident


def executable(path):
    try:
        return os.readlink(path)
    except OSError:
        return ""


def start():
    global up
    up = True
    wanted = {"FLOTILLA_WORKER__MODELS": f"['{MODEL}']", "FLOTILLA_WORKER__THREADS": str(threads)}
    wanted["FLOTILLA_WORKER__KV_TOKENS"] = str(chats.CACHE_TOKENS)
    wanted["FLOTILLA_WORKER__ACTIVATIONS"] = activations
    place = ["--home", HOME, "--models", os.path.abspath(".flotilla/models")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([FLOTILLA, "up", "--detach", *place], env={**os.environ, **wanted}, check=True, **quiet)


def stop():
    global up
    if up:
        subprocess.run([FLOTILLA, "down", "--home", HOME], capture_output=True, check=True)
        up = False
