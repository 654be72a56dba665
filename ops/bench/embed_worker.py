"""What a user would write instead: a worker that embeds whatever has come, at most 32 texts at once.

usage: embed_worker.py URL SUBJECT GRAPH THREADS"""

import asyncio
import os
import sys

import encoders
import nats

TOGETHER = 32


async def work(url, subject, embed):
    connection = await nats.connect(url)
    waiting = asyncio.Queue()
    await connection.subscribe(subject, queue="workers", cb=waiting.put)
    loop = asyncio.get_running_loop()
    while True:
        requests = [await waiting.get()]
        while len(requests) < TOGETHER and not waiting.empty():
            requests.append(waiting.get_nowait())
        # On another thread, so that the next requests come in meanwhile.
        vectors = await loop.run_in_executor(None, embed, [request.data.decode() for request in requests])
        for request, vector in zip(requests, vectors):
            await request.respond(vector.astype("<f4").tobytes())


def main():
    url, subject, graph, count = sys.argv[1:]
    os.environ.update(OMP_NUM_THREADS=count, TOKENIZERS_PARALLELISM="false")
    embed = encoders.embedder(encoders.by_onnxruntime(graph, int(count)))
    embed(["warm"])
    asyncio.run(work(url, subject, embed))


if __name__ == "__main__":
    main()
