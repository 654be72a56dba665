"""The answer word by word; an empty message ends it."""
import asyncio, os, nats

async def main():
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox)
    await nc.publish("infer", b"What is the capital of France?", reply=inbox, headers={"Flotilla-Stream": "true"})
    while (chunk := await answers.next_msg(timeout=120)).data:
        print(chunk.data.decode(), end="", flush=True)
    print()
    await nc.close()

asyncio.run(main())
