"""Makes the files beside it: what sentence-transformers computes with all-MiniLM-L6-v2, in f32 on the processor.

usage: make.py MODEL_FOLDER    (the folder with config.json, modules.json and model.safetensors)"""

import json
import random
import sys
from pathlib import Path

import numpy as np
import sentence_transformers
import torch

HERE = Path(__file__).parent
COUNT = 200

SHORT = """
A|Hello|Yes.|No!|?|...|42|3.14159|-1e-9|I|ok|OK|oK|a b c d e f g|The quick brown fox jumps over the lazy dog.
Where is the nearest bus stop?|How do I reset my password?|The invoice was paid twice; please refund one of them.
HTTP/1.1 404 Not Found|https://example.org/path?query=1&other=two#part|someone@example.org|192.168.0.1
for (int i = 0; i < n; i++) { sum += a[i]; }|def f(x):\n    return x ** 2|SELECT name FROM users WHERE age > 30;
{"key": [1, 2, {"nested": null}]}|<p class="x">Hello &amp; goodbye</p>|C:\\Windows\\System32|$ 1,299.99 (incl. 19 % VAT)
Café, naïve, résumé, façade|Ångström, Ærø, Øresund|Crème brûlée à la carte|ÀÉÎÕÜ àéîõü ÀÉÎÕÜ|Zażółć gęślą jaźń|Příliš žluťoučký kůň
Die Straße ist naß und die Brücke gesperrt.|Wie spät ist es in München?|Le musée est fermé le lundi.|¿Dónde está la biblioteca?
O gato dorme na cadeira.|Il treno parte alle otto.|De trein vertrekt om acht uur.|Tåget avgår klockan åtta.|Juna lähtee kello kahdeksan.
Поезд отправляется в восемь часов.|Потяг вирушає о восьмій.|Το τρένο φεύγει στις οκτώ.|הרכבת יוצאת בשמונה.|القطار يغادر في الساعة الثامنة.
火车八点出发。|電車は八時に出発します。|기차는 여덟 시에 출발합니다.|ट्रेन आठ बजे चलती है।|รถไฟออกเวลาแปดโมง|Tàu khởi hành lúc tám giờ.
ট্রেন আটটায় ছাড়ে।|ரயில் எட்டு மணிக்கு புறப்படும்.|მატარებელი რვა საათზე გადის.|Գնացքը մեկնում է ժամը ութին։|ባቡሩ በስምንት ሰዓት ይነሳል።
🙂|😀😃😄😁|I love pizza 🍕 and beer 🍺!|👩‍👩‍👧‍👦 family|🇩🇪🇫🇷🇯🇵|❤️ vs ❤|✓ done ✗ failed|→ ← ↑ ↓ ⇒|½ + ¼ = ¾|x² + y² = z²|∑ ∫ √ ∞ ≠ ≤|№ 5 ™ © ®
“quotes” and ‘others’ – dashes — and… dots|tabs\tand\nlines\r\nand  spaces|   leading and trailing   |\u00a0non\u00a0breaking\u2003space
zero\u200bwidth\u200djoiner|e\u0301 o\u0308 combining|ﬁ ﬂ ligatures|ＦＵＬＬ ｗｉｄｔｈ|control\x07characters\x00inside|\ufeffbyte order mark|\ufffd replacement
[CLS] is a mark|a [SEP] b|[MASK] me|[PAD][UNK]|##ing|don't can't won't it's|state-of-the-art e-mail co-operate|U.S.A. Ph.D. e.g. i.e.|AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
supercalifragilisticexpialidocious|pneumonoultramicroscopicsilicovolcanoconiosis|Donaudampfschifffahrtsgesellschaft|asdkjh qwoeiu zmxncb|lorem ipsum dolor sit amet
"""

WORDS = """
the committee met on Tuesday to review plan for repairing old stone bridge over river before winter engineers said that
water had risen twice since spring and mill could no longer be reached by road; children, farmers and merchants waited,
while prices of salt, iron & timber rose sharply (by 12% in one week). Nobody knew why! München café naïve 東京 Москва
tokenisation unbelievably counterrevolutionary 3,141 x86-64 e-mail: someone@example.org
""".split()

PASSAGES = """
The heart pumps blood through the body.|Photosynthesis turns sunlight into sugar in the leaves of plants.|The stock market fell sharply after the announcement.
Boil the pasta for nine minutes and drain it.|A solar eclipse happens when the moon passes between earth and sun.|The train to Berlin leaves from platform seven.
Vaccines train the immune system to recognise a virus.|The striker scored twice in the final minutes.|Interest rates were raised to slow inflation.
Install the package with the command line tool.|The volcano erupted and covered the village in ash.|She learned to play the violin at the age of five.
The court ruled that the contract was void.|Whales are mammals that breathe air.|A binary search halves the interval at every step.
The bridge was closed because of strong winds.|Bake the bread until the crust is golden brown.|The senate passed the bill after a long debate.
Glaciers are melting faster than ten years ago.|The password must have at least twelve characters.|The museum shows paintings of the nineteenth century.
A neural network adjusts its weights by gradient descent.|The cat sleeps on the warm windowsill.|Flights were delayed because of fog.
The vineyard was planted on a steep slope.|Electric cars need charging stations along the road.|Antibiotics do not help against a virus.
The orchestra tuned their instruments before the concert.|The river floods the fields every spring.|Wash your hands before you prepare food.
"""

QUERIES = """
How do plants make food?|central bank policy|cooking instructions|Why is my flight late?|machine learning training|animals of the sea
How does immunisation work?|law and justice|public transport in Germany|climate change
"""


def pieces(block):
    lines = block.strip().split("\n")
    return [piece for line in lines for piece in line.split("|")]


def texts():
    rng = random.Random(7)
    found = ["", " ", "\n"] + pieces(SHORT)
    lengths = [1 + i * 205 // (COUNT - len(found)) for i in range(COUNT - len(found))]
    for words in lengths:
        start = rng.randrange(len(WORDS))
        found.append(" ".join(WORDS[(start + i * rng.choice([1, 1, 1, 2])) % len(WORDS)] for i in range(words)))
    assert len(found) == COUNT
    return found


def main():
    torch.set_num_threads(2)
    model = sentence_transformers.SentenceTransformer(sys.argv[1], device="cpu")
    # The number the authors give: a newer library prefers what tokenizer.json happens to say.
    model.max_seq_length = json.loads((Path(sys.argv[1]) / "sentence_bert_config.json").read_text())["max_seq_length"]
    encode = lambda texts: model.encode(texts, batch_size=8, normalize_embeddings=True, show_progress_bar=False)
    found = texts()
    vectors = encode(found)
    assert vectors.dtype == np.float32 and vectors.shape == (COUNT, 384)
    (HERE / "vectors.f16").write_bytes(vectors.astype("<f2").tobytes())
    features = [model.tokenize([text])["input_ids"].shape[1] for text in found]
    queries, passages = pieces(QUERIES), pieces(PASSAGES)
    scores = encode(queries) @ encode(passages).T
    ranking = np.argsort(-scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, ranking, axis=1)
    gap = float((ordered[:, :-1] - ordered[:, 1:]).min())
    assert gap > 5e-6, f"passages too near to rank: {gap}"
    versions = {"sentence-transformers": sentence_transformers.__version__, "torch": torch.__version__}
    out = {
        "versions": versions,
        "texts": [{"text": text, "tokens": int(tokens)} for text, tokens in zip(found, features)],
        "retrieval": {"queries": queries, "passages": passages, "ranking": ranking.tolist(), "smallest_gap": gap},
    }
    (HERE / "texts.json").write_text(json.dumps(out, ensure_ascii=True, indent=0) + "\n")
    print(versions, "tokens", min(features), "to", max(features), "gap", gap, "at the limit", features.count(256))


main()
