"""The same load on either side: clients over NATS, each asking again as soon as it is answered, no two the same."""

import asyncio
import json
import os
import subprocess

import encoders
import nats

FLOTILLA = os.path.abspath(os.environ.get("CARGO_TARGET_DIR", "target")) + "/release/flotilla"
SECONDS = 5
# For a model that computes nothing.
PROMPT = "Question {i}: whatever is asked here is said once more, and that is all there is to it."


def embed_prompt(length):
    """For a model that reads texts: numbers of four digits are two tokens of it."""

    def text(words):
        return " ".join(["1234", *encoders.WORDS[:words]])

    return text(encoders.fitting(length, text)).replace("1234", "{i}")


def run(url, subject, clients, prompt, task=None):
    """What `flotilla bench` says of it."""
    command = [FLOTILLA, "bench", "--nats", url, "--whole", subject, "--clients", str(clients), "--seconds", str(SECONDS)]
    command += ["--prompt", prompt, "--json", "-", *(["--task", task] if task else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"no load on {subject}: {done.stderr[-2000:]}")
    figures = json.loads(done.stdout)["runs"][0]
    if figures["failed"]:
        raise RuntimeError(f"requests to {subject} failed: {figures['failed']}")
    return figures


def rate(figures):
    """Requests a second."""
    return figures["requests_per_second"]


def median(figures):
    """Of the times to the answer, ms."""
    return figures["answer_ms"]["p50"]


def wait(url, subject, seconds=60):
    """Until the subject answers."""
    try:
        asyncio.run(asyncio.wait_for(answer(url, subject), seconds))
    except TimeoutError:
        raise RuntimeError(f"{subject} does not answer at {url}") from None


async def answer(url, subject):
    connection = await nats.connect(url)
    while True:
        try:
            await connection.request(subject, b"Is anybody there?", timeout=5)
            return await connection.close()
        except nats.errors.Error:
            await asyncio.sleep(0.1)
