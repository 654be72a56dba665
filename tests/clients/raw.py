"""Raw text in, plain text out."""
import asyncio, os, nats

async def main():
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    reply = await nc.request("infer", b"What is the capital of France?", timeout=120)
    print(reply.data.decode())
    await nc.close()

asyncio.run(main())
