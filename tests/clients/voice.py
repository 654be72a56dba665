"""A voice message in a session, then a question in writing."""
import asyncio, json, os, sys, nats

async def main(recording):
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))

    async def ask(body, **headers):
        headers = {"Flotilla-" + name: value for name, value in headers.items()}
        reply = await nc.request("infer", body, headers=headers, timeout=120)
        if reply.headers.get("Flotilla-Status") != "done":
            sys.exit(reply.data.decode())
        return reply.data.decode()

    said = await ask(recording)
    spoken = await ask(recording, Session="anna", Task="chat")
    written = await ask(b"What did I ask you before?", Session="anna")

    history = [("user", said.strip()), ("assistant", spoken), ("user", "What did I ask you before?")]
    turns = [{"type": "text", "role": role, "text": text} for role, text in history]
    alone = await ask(json.dumps({"input": turns, "task": "chat"}).encode(), Cache="bypass")
    print(json.dumps({"said": said, "spoken": spoken, "written": written, "alone": json.loads(alone)["output"][0]["text"]}))
    await nc.close()

asyncio.run(main(open(sys.argv[1], "rb").read()))
