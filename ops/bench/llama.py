"""The peer for text: llama.cpp, built from the source that llama-cpp-python's sdist carries."""

import concurrent.futures
import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import urllib.request
from urllib.parse import urljoin

import chats
import tools

VERSION = "llama-cpp-python 0.3.36"
SDIST = "llama_cpp_python-0.3.36.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
INDEX = os.environ.get("FLOTILLA_INDEX", "https://pypi.org/simple")
PEERS = os.path.abspath(".flotilla/peers")
BIN = f"{PEERS}/llama/bin"
MODEL = os.path.abspath(".flotilla/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf")
# llama.cpp's fast type on AVX2 is Q4_0: the same model requantised, and the better of the two counts.
FILES = {"llama.cpp Q4_1": MODEL, "llama.cpp Q4_0": f"{PEERS}/SmolLM2-135M-Instruct.Q4_0.gguf"}
PORT = 18080

threads = 2
server = {}


def prepare(count):
    """Fetches, checks and builds, once."""
    global threads
    threads = count
    os.makedirs(PEERS, exist_ok=True)
    if not os.path.exists(f"{BIN}/llama-server"):
        build(fetch())
    if not os.path.exists(FILES["llama.cpp Q4_0"]):
        run([f"{BIN}/llama-quantize", "--allow-requantize", MODEL, FILES["llama.cpp Q4_0"], "Q4_0"])


def fetch():
    path = f"{PEERS}/{SDIST}"
    if not os.path.exists(path):
        page = f"{INDEX.rstrip('/')}/llama-cpp-python/"
        links = re.findall(r'href="([^"]+)"', urllib.request.urlopen(page, timeout=60).read().decode())
        link = next((urljoin(page, link).split("#")[0] for link in links if SDIST in link), None)
        if link is None:
            raise RuntimeError(f"{page} has no {SDIST}")
        print(f"fetching {SDIST}", file=sys.stderr)
        urllib.request.urlretrieve(link, f"{path}.part")
        os.rename(f"{path}.part", path)
    with open(path, "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() != SHA256:
            raise RuntimeError(f"{path} is not what is pinned: remove it, and try again")
    return path


def build(sdist):
    print("building llama.cpp: some minutes, once", file=sys.stderr)
    with tarfile.open(sdist) as archive:
        archive.extractall(PEERS, filter="data")
    environment = {**os.environ, "PATH": f"{tools.HOME}/bin:{os.environ['PATH']}"}
    source = f"{PEERS}/{SDIST.removesuffix('.tar.gz')}/vendor/llama.cpp"
    off = [f"-DLLAMA_{name}=OFF" for name in ("CURL", "OPENSSL", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_WEBUI")]
    shapes = f"-DCMAKE_CXX_FLAGS=-include {os.path.abspath('ops/bench/tiles.h')}"
    configure = ["cmake", "-G", "Ninja", "-B", f"{PEERS}/llama", "-S", source, "-DCMAKE_BUILD_TYPE=Release"]
    run([*configure, "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", shapes, *off], environment)
    targets = ["llama-bench", "llama-batched-bench", "llama-server", "llama-quantize"]
    run(["cmake", "--build", f"{PEERS}/llama", "--target", *targets], environment)


def run(command, environment=None):
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


class Bench:
    """llama-bench: so many tokens of a prompt, or of an answer after so many."""

    variants = tuple(FILES)

    def __init__(self, prompt, answer, after=0):
        self.arguments = ["-p", str(prompt), "-n", str(answer), "-d", str(after), "-r", "3", "-o", "json"]

    def run(self, file):
        command = [f"{BIN}/llama-bench", "-m", FILES[file], "-t", str(threads), *self.arguments]
        printed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
        return json.loads(printed)[0]["avg_ts"]


class Batched:
    """llama-batched-bench: sequences that are continued together, after 128 tokens each."""

    variants = tuple(FILES)

    def __init__(self, sequences):
        self.sequences = sequences

    def run(self, file):
        size = ["-c", "8192", "-npp", "128", "-ntg", "64", "-npl", str(self.sequences)]
        printed = run([f"{BIN}/llama-batched-bench", "-m", FILES[file], "-t", str(threads), *size])
        row = [line.split("|") for line in printed.splitlines() if re.match(r"\|\s+128 ", line)][-1]
        return float(row[8])


class Chats:
    """llama-server with 16 slots, streamed, its prompt cache on."""

    variants = tuple(FILES)

    def __init__(self, kind):
        self.kind = kind

    def run(self, file):
        start(file)
        with concurrent.futures.ThreadPoolExecutor(chats.CLIENTS) as pool:
            self.times = chats.Times(list(pool.map(self.client, range(chats.CLIENTS))))
        stop()
        return self.times.rate()

    def client(self, number):
        heard = []
        for request in range(chats.REQUESTS):
            messages = chats.messages(self.kind, number, request)
            body = {"messages": messages, "max_tokens": chats.TOKENS, "temperature": 0, "stream": True, "ignore_eos": True}
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
            begun = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            lines = iter(connection.getresponse().readline, b"")
            chunks = [time.perf_counter() for line in lines if b'"content":"' in line]
            heard.append((begun, chunks, chats.TOKENS))
            connection.close()
        return heard


class Memory:
    """Resident memory of llama-server with as many tokens of cache as our worker has."""

    variants = tuple(FILES)

    def run(self, file):
        start(file)
        resident = chats.resident(server["process"].pid)
        stop()
        return resident


def start(file):
    size = ["-np", str(chats.CLIENTS), "-c", str(chats.CACHE_TOKENS), "--host", "127.0.0.1", "--port", str(PORT)]
    command = [f"{BIN}/llama-server", "-m", FILES[file], "-t", str(threads), *size]
    server["process"] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=2)
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("llama-server does not come up")


def stop():
    process = server.pop("process", None)
    if process:
        process.terminate()
        process.wait()
