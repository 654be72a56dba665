"""What a fleet in containers must hold; each check is one function, run in the order of this file."""

import asyncio
import contextlib
import os
import socket
import tempfile
import time

from client import Client, Refused
from fleet import CLUSTER, PROJECT, ROOT, docker, until

# A second `up`, all images and volumes there, must answer within so many seconds.
READY_MOST = 15
QUESTIONS = ["What is the capital of France?", "Name three colours.", "Why is the sky blue?", "What is a river?"]


async def ready(fleet):
    """Seconds until a client's question is answered."""
    start = time.monotonic()
    client = await connected(fleet)
    limit = start + 300
    while True:
        try:
            answer = await client.ask("What is the capital of France?", timeout=10, cache="bypass")
            break
        except Exception as error:
            if time.monotonic() > limit:
                raise AssertionError(f"no answer after 300 s: {error!r}\n{fleet.logs('worker')[-3000:]}") from error
            await asyncio.sleep(0.1)
    await client.close()
    assert "Paris" in answer, answer
    return time.monotonic() - start


async def connected(fleet):
    return await Client.connect(*fleet.urls)


async def up_from_nothing(fleet):
    """The first up: volumes are empty, the models are fetched or taken from the given folder."""
    start = time.monotonic()
    if fleet.up(check=False).returncode != 0:
        models_from_this_machine(fleet)
        fleet.up()
    await ready(fleet)
    assert fleet.healthy("nats", "redis-sessions", "redis-cache"), fleet.compose("ps").stdout
    until("the roles are healthy", lambda: fleet.healthy("dispatcher", "worker"))
    return f"answers after {time.monotonic() - start:.1f} s"


def models_from_this_machine(fleet):
    """Where containers reach no package index: loudly, since a first `up` was not seen to fetch."""
    said = fleet.logs("models")
    folder = ROOT / ".flotilla/models"
    assert "FLOTILLA_MODELS" not in fleet.variables and folder.is_dir(), said
    print(f"  NOT CHECKED: models were not fetched into a volume, using {folder.name}/ of this clone: {last(said)}", flush=True)
    fleet.variables["FLOTILLA_MODELS"] = str(folder)


async def the_second_up_is_quick(fleet):
    fleet.down()
    start = time.monotonic()
    fleet.up()
    await ready(fleet)
    took = time.monotonic() - start
    assert took < READY_MOST, f"ready after {took:.1f} s"
    return f"answers after {took:.1f} s"


async def every_way_of_asking(fleet):
    """Raw, streamed, stored, and a session: from outside, with a client that is not ours."""
    client = await connected(fleet)
    assert "Paris" in await client.ask("What is the capital of France?")
    stream = await client.chat("What is the capital of France?", 32)
    assert "Paris" in await stream.answer()
    stored = await client.result(await client.submit("What is the capital of France?", 32))
    assert "Paris" in stored["output"][0]["text"], stored
    await client.ask("My name is Ada.", session="compose")
    await client.ask("What is my name?", session="compose")
    told = await client.told("compose")
    assert "My name is Ada." in told and "What is my name?" in told, told
    await client.close()
    said = fleet.compose("run", "--rm", "flotilla", "status").stdout
    assert "smollm2-135m-instruct" in said and "ready" in said, said
    return "raw, streamed, stored, session, flotilla status"


async def two_hundred_chats_while_scaling(fleet):
    """1 -> 4 -> 1 workers and one killed while it streams: all answered, none twice."""
    client = await connected(fleet)
    room, streams = asyncio.Semaphore(24), []

    async def chat(number):
        async with room:
            stream = await client.chat(f"{QUESTIONS[number % 4]} Question {number}.", 40)
            streams.append(stream)
            await stream.answer()

    start = time.monotonic()
    chats = asyncio.gather(*(chat(number) for number in range(200)))
    await begun(streams, 8)
    await off(fleet.up, 4)
    await begun(streams, len(streams) + 8)
    workers = fleet.containers("worker")
    assert len(workers) == 4, workers
    victim = await a_busy_one(fleet, workers)
    await off(docker, "kill", victim)
    await begun(streams, min(len(streams) + 16, 180))
    await off(fleet.up, 1)
    scaled = len(streams)
    await chats
    took = time.monotonic() - start
    # The killed worker's deliveries are out again by the time that the queue is empty: what is said twice has come then.
    await queue_empty(client)
    twice = [stream.job for stream in streams if stream.twice()]
    again = [stream.job for stream in streams if len(stream.attempts) > 1]
    assert len(streams) == 200 and not twice, f"{len(streams)} answered, twice: {twice}"
    for stream in streams:
        assert not stream.faults + stream.holes, f"{stream.job}: {stream.faults} {stream.holes}"
        stored = await client.result(stream.job, patience=5)
        assert stored["output"][0]["text"] == stream.text, f"{stream.job}: the record says something else"
    await client.close()
    until("one worker is left", lambda: len(fleet.containers("worker")) == 1)
    return f"200 answered once in {took:.0f} s, {len(again)} by a second attempt; at 1 worker again after {scaled}"


async def queue_empty(client):
    """Waits until every job is acked, and every frame read that was sent before."""
    limit = time.monotonic() + 60
    while (await client.nats.jetstream().stream_info("JOBS")).state.messages:
        assert time.monotonic() < limit, "jobs are left in the queue"
        await asyncio.sleep(0.2)
    await client.nats.flush()


async def begun(streams, count):
    while sum(stream.begun.is_set() for stream in streams) < count:
        await asyncio.sleep(0.02)


async def a_busy_one(fleet, workers):
    """A worker with jobs in its slots, as its own metrics tell."""
    def busiest():
        busy = {worker: in_hand(worker) for worker in workers}
        worker = max(busy, key=busy.get)
        return worker if busy[worker] > 0 else None
    return await off(lambda: until("a worker is busy", busiest))


def in_hand(worker):
    """Reads /metrics from this machine, over the containers' own network."""
    address = docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", worker).strip()
    with contextlib.suppress(OSError), socket.create_connection((address, 9100), timeout=2) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith('flotilla_jobs_inflight ')]
        return float(values[0]) if values else 0
    return 0


async def off(work, *arguments):
    """Off the loop, so that the streams are read meanwhile."""
    return await asyncio.to_thread(work, *arguments)


async def down_drains(fleet):
    """What was accepted before `down` is answered before it, or after the next `up`."""
    client = await connected(fleet)
    jobs = [await client.submit(f"{QUESTIONS[number % 4]} Job {number}.", 48) for number in range(60)]
    streams = [await client.chat(f"{QUESTIONS[number % 4]} Chat {number}.", 64) for number in range(4)]
    # Sessions need Redis until the last worker has gone.
    streams += [await client.chat(f"{QUESTIONS[number]} Chat {number}.", 64, session=f"drain-{number}") for number in range(4)]
    await asyncio.gather(*(stream.begun.wait() for stream in streams))
    start = time.monotonic()
    await off(fleet.down)
    took = time.monotonic() - start
    before = sum(bool(stream.ends) for stream in streams)
    await client.close()
    fleet.up()
    client = await connected(fleet)
    for job in jobs + [stream.job for stream in streams]:
        stored = await client.result(job)
        assert stored["output"][0]["text"], stored
    assert before == len(streams), f"{before} of {len(streams)} streams were ended before down returned"
    await client.close()
    return f"down took {took:.1f} s; {before} of 8 streams ended before it, 60 jobs answered in all"


async def redis_gone(fleet):
    """Stateless work goes on, sessions are unavailable, and both are back by themselves."""
    client = await connected(fleet)
    await client.ask("My name is Bo.", session="redis")
    roles = fleet.states("dispatcher", "worker")
    fleet.compose("stop", "redis-sessions", "redis-cache")
    assert "Paris" in await client.ask("What is the capital of France?")
    try:
        said = await client.ask("What is my name?", session="redis")
        raise AssertionError(f"answered without a session: {said}")
    except Refused as refused:
        assert refused.code == "unavailable", refused
    fleet.compose("start", "redis-sessions", "redis-cache")
    await patiently(lambda: client.ask("What is my name?", session="redis"))
    told = await client.told("redis")
    assert "My name is Bo." in told and "What is my name?" in told, told
    assert fleet.states("dispatcher", "worker") == roles, "a role was started again"
    await client.close()
    return "stateless answered, session unavailable, then remembered; no restart"


async def patiently(ask):
    """Again while it is unavailable."""
    limit = time.monotonic() + 60
    while True:
        try:
            return await ask()
        except Refused as refused:
            if refused.code != "unavailable" or time.monotonic() > limit:
                raise
            await asyncio.sleep(0.2)


async def nats_late(fleet):
    """Roles that start before NATS say so, and are ready when it is there."""
    fleet.down()
    fleet.compose("up", "-d", "--no-build", "--no-deps", "dispatcher", "worker")
    for role in ("dispatcher", "worker"):
        until(f"the {role} says what it waits for", lambda: "NATS is away" in fleet.logs(role))
    roles = fleet.states("dispatcher", "worker")
    fleet.compose("up", "-d", "--no-build", "--no-deps", "nats", "redis-sessions", "redis-cache")
    took = await ready(fleet)
    assert fleet.states("dispatcher", "worker") == roles, "a role was started again"
    return f"both waited, then answered {took:.1f} s after NATS was started"


async def nats_emptied(fleet):
    """A NATS that comes back without its volume gets its streams again, from the roles that run."""
    roles = fleet.states("dispatcher", "worker")
    fleet.compose("rm", "--stop", "--force", "nats")
    docker("volume", "rm", f"{PROJECT}_nats")
    fleet.compose("up", "-d", "--no-build", "--no-deps", "nats")
    took = await ready(fleet)
    assert fleet.states("dispatcher", "worker") == roles, "a role was started again"
    return f"answers {took:.1f} s after NATS was back, empty; no restart"


async def models_missing(fleet):
    """An empty models folder that cannot be written: who needs the models says so and fails."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        pull = fleet.compose("run", "--rm", "--no-deps", "models", check=False, FLOTILLA_MODELS=folder)
        assert pull.returncode != 0 and "/models" in pull.stdout, pull.stdout
        worker = fleet.compose("run", "--rm", "--no-deps", "worker", check=False, FLOTILLA_MODELS=folder)
        assert worker.returncode != 0 and "models pull" in worker.stdout, worker.stdout
    return f"models: {last(pull.stdout)!r}; worker: {last(worker.stdout)!r}"


async def port_taken(fleet):
    """The port is named, nothing is lost, and it works once the port is free."""
    fleet.compose("stop", "nats")
    fleet.compose("rm", "--force", "nats")
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", fleet.port))
        holder.listen()
        failed = fleet.up(check=False)
        assert failed.returncode != 0 and str(fleet.port) in failed.stdout, failed.stdout
    fleet.up()
    return f"named, then answered after {await ready(fleet):.1f} s"


async def little_memory(fleet):
    """A worker that cannot work in what it is given says how much it needs."""
    done = fleet.compose("run", "--rm", "--no-deps", "worker", check=False, FLOTILLA_WORKER_MEMORY="96m")
    assert done.returncode == 1 and "MiB" in done.stdout, (done.returncode, done.stdout)
    return repr(last(done.stdout))


def last(text):
    """The last line that speaks of an error."""
    lines = [line for line in text.splitlines() if "error" in line.lower()]
    return lines[-1][-240:] if lines else text[-240:]


async def a_cluster_loses_a_server(fleet):
    """Three NATS servers, strict durability: one is killed under the chats."""
    fleet.remove()
    fleet.files.append(CLUSTER)
    try:
        start = time.monotonic()
        fleet.up()
        await ready(fleet)
        up = time.monotonic() - start
        client = await connected(fleet)
        streams = [await client.chat(f"{QUESTIONS[number % 4]} Chat {number}.", 48) for number in range(24)]
        await begun(streams, 4)
        await off(docker, "kill", fleet.containers(await leader(client))[0])
        await asyncio.gather(*(stream.answer(lossy=True) for stream in streams))
        more = [await client.chat(f"{QUESTIONS[number % 4]} After {number}.", 16) for number in range(8)]
        await asyncio.gather(*(stream.answer() for stream in more))
        await client.close()
    finally:
        fleet.remove()
        fleet.files.remove(CLUSTER)
    return f"up after {up:.1f} s; 24 chats answered while the leader of JOBS was killed, 8 after"


async def leader(client):
    """Where the queue of jobs is led: the name of the server, and of its service."""
    info = await client.nats.jetstream().stream_info("JOBS")
    return info.cluster.leader
