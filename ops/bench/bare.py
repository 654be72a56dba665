"""The peers over NATS: a server of its own with the fleet's configuration, and what stands behind it instead of a fleet."""

import os
import shutil
import socket
import subprocess
import sys
import time

import encoders
import load
import ours

PORT = 14222
URL = f"nats://127.0.0.1:{PORT}"
STORE = os.path.abspath(".flotilla/peers/store")
WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "embed_worker.py")

threads = 2
running = []


def prepare(count):
    """Makes the graphs; the server is the fleet's."""
    global threads
    threads = count
    encoders.prepare(count)
    ours.provision()


class Embed:
    """Texts a second of a worker in Python around onnxruntime, weights of a byte."""

    variants = ("onnxruntime",)

    def __init__(self, clients, length):
        self.clients, self.length = clients, length

    def run(self, _):
        command = [sys.executable, WORKER, URL, "embed", encoders.GRAPHS["embed-int8"], str(threads)]
        self.figures = measured([command], "embed", self.clients, load.embed_prompt(self.length))
        return load.rate(self.figures)


class Pipe:
    """Requests a second of the example `barepipe`."""

    variants = ("bare pipe",)

    def __init__(self, clients):
        self.clients = clients

    def run(self, _):
        roles = [[ours.programs["barepipe"], role, URL] for role in ("dispatcher", "worker")]
        self.figures = measured(roles, "bare", self.clients, load.PROMPT)
        return load.rate(self.figures)


class Limit(Pipe):
    """A time in milliseconds that counts in place of the pipe's own, which is shown beside."""

    variants = ("the limit",)

    def __init__(self, clients, milliseconds):
        super().__init__(clients)
        self.milliseconds = milliseconds

    def run(self, variant):
        super().run(variant)
        return self.milliseconds


def measured(commands, subject, clients, prompt):
    """What clients see of these programs beside a new server."""
    start(commands)
    load.wait(URL, subject)
    figures = load.run(URL, subject, clients, prompt)
    stop()
    return figures


def start(commands):
    shutil.rmtree(STORE, ignore_errors=True)
    server = [f"{ours.HOME}/bin/nats-server", "-c", "ops/nats/flotilla.conf", "-a", "127.0.0.1", "-p", str(PORT), "-sd", STORE]
    running.append(subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", PORT)).close()
            break
        except OSError:
            time.sleep(0.1)
    running.extend(subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands)


def stop():
    while running:
        process = running.pop()
        process.terminate()
        process.wait()
