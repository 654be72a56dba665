"""JSON in, JSON out."""
import asyncio, json, os, nats

async def main():
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    ask = {"input": [{"type": "text", "text": "What is the capital of France?"}], "params": {"max_tokens": 32}}
    reply = await nc.request("infer", json.dumps(ask).encode(), timeout=120)
    print(json.dumps(json.loads(reply.data), indent=2))
    await nc.close()

asyncio.run(main())
