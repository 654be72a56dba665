"""A client that is not ours: nats-py and the contract, nothing of the project."""

import asyncio
import hashlib
import json
import uuid

import nats

PATIENCE = 180
# After a loss: nothing for so long is asked for again, so often.
LOST = 30
TRIES = 5


class Refused(Exception):
    """An error reply; `code` is its stable code."""

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code = code


def refusal(message):
    headers = message.headers or {}
    if "Nats-Service-Error" not in headers:
        return None
    error = json.loads(message.data)["error"]
    return Refused(error["code"], error["message"])


class Client:
    """A connection to a fleet."""

    def __init__(self, connection):
        self.nats = connection

    @classmethod
    async def connect(cls, *urls):
        async def quiet(_):
            """A lost connection is what the checks make happen; who waits for an answer times out by itself."""

        return cls(await nats.connect(list(urls), max_reconnect_attempts=-1, reconnect_time_wait=0.2, error_cb=quiet))

    async def close(self):
        await self.nats.close()

    async def ask(self, text, timeout=PATIENCE, **headers):
        """Plain text in, plain text out."""
        reply = await self.nats.request("infer", text.encode(), timeout=timeout, headers=named(headers))
        if error := refusal(reply):
            raise error
        return reply.data.decode()

    async def told(self, session):
        """A session's conversation, as the fleet remembers it."""
        reply = await self.nats.request("infer.sessions.get", session.encode(), timeout=PATIENCE)
        if error := refusal(reply):
            raise error
        return reply.data.decode()

    async def chat(self, text, max_tokens, **headers):
        """Starts a streamed answer, computed anew, under an id of its own."""
        stream = Stream(self, str(uuid.uuid4()))
        inbox = self.nats.new_inbox()
        stream.subscription = await self.nats.subscribe(inbox, cb=stream.take)
        envelope = {"input": text, "stream": True, "id": stream.job, "cache": "bypass", "params": {"max_tokens": max_tokens}}
        stream.again = lambda: self.nats.publish("infer", json.dumps(envelope).encode(), reply=inbox, headers=named(headers))
        await stream.again()
        return stream

    async def submit(self, text, max_tokens):
        """Queues a job at the durable door; its id, once it is accepted."""
        job = str(uuid.uuid4())
        envelope = {"input": text, "id": job, "cache": "bypass", "params": {"max_tokens": max_tokens}}
        await self.nats.jetstream().publish("submit.default", json.dumps(envelope).encode(), timeout=30)
        return job

    async def result(self, job, patience=PATIENCE):
        """The stored answer, asked for until it is no longer pending."""
        limit = asyncio.get_running_loop().time() + patience
        while True:
            try:
                reply = await self.nats.request("infer.result", job.encode(), timeout=5)
                error = refusal(reply)
            except (nats.errors.Error, asyncio.TimeoutError) as away:
                error = Refused("unavailable", repr(away))
            if error is None:
                return json.loads(reply.data)
            if error.code not in ("pending", "unavailable", "not_found") or asyncio.get_running_loop().time() > limit:
                raise error
            await asyncio.sleep(0.2)


class Stream:
    """A streamed answer as it comes; a new attempt starts it again."""

    def __init__(self, client, job):
        self.client = client
        self.job = job
        self.attempt = -1
        self.next = 0
        self.text = ""
        self.attempts = set()
        self.wholes = []
        self.ends = []
        self.refused = None
        self.faults = []
        self.holes = []
        self.tries = 0
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def take(self, message):
        headers = message.headers or {}
        if not message.data:
            if headers.get("Status") == "503" or not headers.get("Flotilla-Status"):
                self.refused = Refused("unavailable", "no responders")
            else:
                self.ends.append((headers["Flotilla-Status"], headers.get("Flotilla-Sha256")))
            self.ended.set()
            return
        if error := refusal(message):
            self.refused = error
            return
        self.begun.set()
        frame = json.loads(message.data)
        match headers["Flotilla-Status"]:
            case "accepted":
                self.attempt, self.next, self.text = frame["attempt"], 0, ""
                self.attempts.add(self.attempt)
            case "chunk" if frame["attempt"] == self.attempt:
                if frame["seq"] > self.next:
                    self.holes.append(f"chunk {frame['seq']} came for {self.next}")
                elif frame["seq"] < self.next:
                    self.faults.append(f"chunk {frame['seq']} came again, for {self.next}")
                self.next = frame["seq"] + 1
                self.text += frame["delta"]["text"]
            case "done":
                self.wholes.append(frame["output"][0]["text"])

    async def answer(self, lossy=False):
        """The whole text, checked against the chunks and the end mark. A refusal that passes is tried again, same id.

        `lossy`: a server died with the frames that it had in hand. Their numbers tell that chunks are missing, the whole
        answer has what they had, and an answer of which nothing comes is asked for again."""
        while not await self.complete(lossy):
            if self.refused is None or self.refused.code not in ("unavailable", "overloaded"):
                raise AssertionError(f"{self.job} ended with {self.ends}, {self.refused}")
            self.refused = None
            self.ends.clear()
            self.ended.clear()
            await asyncio.sleep(0.3)
            await self.again()
        whole, digest = self.wholes[-1], self.ends[-1][1]
        assert not self.faults, f"{self.job}: {self.faults}"
        assert lossy or not self.holes, f"{self.job}: {self.holes}"
        assert lossy or self.text == whole, f"{self.job}: chunks say {self.text!r}, the answer {whole!r}"
        assert hashlib.sha256(whole.encode()).hexdigest() == digest, f"{self.job}: another digest"
        return whole

    async def complete(self, lossy):
        """Waits for the end; whether the answer came with it."""
        try:
            await asyncio.wait_for(self.ended.wait(), LOST if lossy else PATIENCE)
        except asyncio.TimeoutError:
            self.tries += 1
            if not lossy or self.tries > TRIES:
                raise
            self.refused = Refused("unavailable", "nothing more came")
            return False
        if lossy and self.ends and not self.wholes:
            self.refused = Refused("unavailable", "the end came without the answer")
            return False
        return bool(self.ends) and self.ends[-1][0] == "done"

    def twice(self):
        """Whether its answer was reported more than once."""
        return len(self.ends) > 1 or len(self.wholes) > 1


def named(headers):
    return {f"Flotilla-{name.replace('_', '-').title()}": value for name, value in headers.items()} or None
