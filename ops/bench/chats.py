"""The chats that both sides are asked, and what is made of their times."""

import statistics

# Clients at once, and how often each of them asks; all begin together.
CLIENTS, REQUESTS, TOKENS = 16, 2, 64
# Tokens of key-value cache that either side has.
CACHE_TOKENS = 8192
# About 300 tokens, the same for everybody: what a product would put before each chat.
RULES = " ".join(
    f"Rule {n}: when somebody asks about water, wind, steam or wood, answer in plain words and name one part of it."
    for n in range(1, 13)
)


def messages(kind, client, request):
    """Every question is another from its first word; with `shared` rules before it."""
    question = (
        f"Item {client * 100 + request}. Explain in a few sentences how a water mill turns the flow of a river into useful "
        "work, what parts it needs, and where such mills were common."
    )
    rules = [{"role": "system", "content": RULES}] if kind == "shared" else []
    return [*rules, {"role": "user", "content": question}]


class Times:
    """Of each client, of each request: when it was sent, when its chunks came, and the tokens of its answer."""

    def __init__(self, heard):
        self.requests = [request for client in heard for request in client]
        if not all(chunks for _, chunks, _ in self.requests):
            raise RuntimeError("a chat without an answer")

    def rate(self):
        """Tokens a second from the first question to the last chunk."""
        begun = min(begun for begun, _, _ in self.requests)
        ended = max(chunks[-1] for _, chunks, _ in self.requests)
        return sum(tokens for _, _, tokens in self.requests) / (ended - begun)

    def first(self):
        """Median time to the first token, ms."""
        return 1000 * statistics.median(chunks[0] - begun for begun, chunks, _ in self.requests)

    def gap(self):
        """Of the gaps between chunks the 99th percentile, ms."""
        gaps = sorted(b - a for _, chunks, _ in self.requests for a, b in zip(chunks, chunks[1:]))
        return 1000 * gaps[len(gaps) * 99 // 100]


def resident(pid):
    """MiB of a process that are in memory."""
    with open(f"/proc/{pid}/status") as file:
        line = next(line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024
