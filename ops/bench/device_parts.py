"""The parts of `device-peers`: what PyTorch and transformers make of each shape. Each part is a generator of messages.

What a part does before it yields READY (random weights, compiling) may go on beside the other parts; what it measures after that has
the device to itself. A row whose preparation fails yields why, and the other rows of its part are measured all the same."""

import contextlib
import importlib.util
import signal
import statistics
import tempfile
import time

import torch
import torch.nn.functional as functional
import transformers
from torch._dynamo.utils import counters
from transformers import AttentionInterface, AttentionMaskInterface, EncoderDecoderCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

READY = {"ready": True}
# Enough for the compiler's own warm-up, the recording of a CUDA graph and its first replay.
CALLS_TO_WARM = 4
# Until it is raised again, should a compiler have swallowed it.
ALARM_AGAIN_S = 10
BF16 = torch.bfloat16


class Bench:
    """Compiles and times on one device, and knows how long compiling may take, and until when."""

    def __init__(self, shapes, compile_s, until):
        self.shapes, self.compile_s, self.until = shapes, compile_s, until
        self.on_card = shapes.device == "cuda"
        if not self.on_card:
            torch.set_num_threads(1)  # All parts at once are tried on few cores.

    def build(self, kind, config, attention="sdpa", **more):
        with torch.device(self.shapes.device):
            return kind._from_config(config, dtype=BF16, attn_implementation=attention, **more).eval()

    def noise(self, *shape):
        return torch.randn(shape, dtype=BF16, device=self.shapes.device)

    def ids(self, vocab, *shape):
        return torch.randint(2, vocab, shape, device=self.shapes.device)

    def mark(self):
        if not self.on_card:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def settle(self):
        if self.on_card:
            torch.cuda.synchronize()

    def between(self, one, next_one):
        """Milliseconds from a mark to the next: what the host does in between counts too."""
        return one.elapsed_time(next_one) if self.on_card else (next_one - one) * 1e3

    def timed(self, step, repeats=20, reset=lambda: None):
        """Milliseconds of each of a burst of steps, after bursts that only warm."""
        began, warm = time.perf_counter(), False
        while True:
            reset()
            marks = [self.mark()]
            for _ in range(repeats):
                step()
                marks.append(self.mark())
            self.settle()
            if warm:
                return [self.between(*pair) for pair in zip(marks, marks[1:])]
            warm = time.perf_counter() - began >= self.shapes.warm_s

    def compiled(self, row, run, reset=lambda: None):
        """`run`, compiled into a CUDA graph and warm; None where that fails, and a message that says why."""
        before = counters["inductor"]["cudagraph_skips"]
        try:
            with alarm(min(self.compile_s, self.until - time.monotonic())):
                fast = torch.compile(run, mode="reduce-overhead", dynamic=False)
                reset()
                for _ in range(CALLS_TO_WARM):
                    fast()
                self.settle()
            if self.on_card and counters["inductor"]["cudagraph_skips"] > before:
                yield {"note": f"{row} was compiled without a CUDA graph."}
            return fast
        except Exception as error:  # Whatever a compiler raises: the row is missing, and its part goes on.
            yield skipped(row, error)


@contextlib.contextmanager
def alarm(seconds):
    """Raises TimeoutError out of what it encloses when that takes longer: a compiler cannot be asked to stop."""
    late = TimeoutError(f"compiling took longer than {seconds:.0f} s" if seconds > 0 else "no time was left to compile it")
    rung = []

    def ring(*_):
        rung.append(True)
        raise late

    if seconds <= 0:
        raise late
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, ALARM_AGAIN_S)
    try:
        yield
    except Exception:
        # Compilers wrap what is raised in them in errors of their own.
        if rung:
            raise late from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def skipped(row, error):
    said = " ".join(str(error).split()) or "it gives no reason"
    return {"row": row, "skipped": f"{type(error).__name__}: {said[:200]}"}


def row(name, unit, values, how, **more):
    """A row of the table; what more it carries is for rows that are worked out of it."""
    spread = {"value": statistics.median(values), "low": min(values), "high": max(values), "repeats": len(values)}
    return {"row": name, "unit": unit, **spread, "how": how, **more}


def rate(name, unit, count, times, how):
    """A row of how many a second, where each of the times is of so many."""
    return row(name, unit, [count * 1e3 / each for each in times], how)


def grouped(module, query, key, value, attention_mask, scaling=None, **_):
    """Attention of one new token: the heads that share keys are rows of one head, so the cache is read once and never repeated."""
    batch, heads, _, size = query.shape
    rows = query.reshape(batch, key.shape[1], -1, size)
    out = functional.scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, 1, heads, size), None


AttentionInterface.register("grouped", grouped)
AttentionMaskInterface.register("grouped", sdpa_mask)
# Compiled models of transformers write a mask out even where there is nothing to mask, which rules FlashAttention out. Attention
# that has no kind of mask registered gets none.
AttentionInterface.register("unmasked", sdpa_attention_forward)


class Decoder:
    """Greedy decoding over a static cache that is as full as the context says."""

    def __init__(self, logits, token, cache, context):
        self.logits, self.token, self.cache, self.context = logits, token, cache, context

    def predict(self):
        return self.logits(self.token)[:, -1].argmax(-1, keepdim=True)

    def rewind(self):
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.context)

    def follow(self, predict):
        """A step: what was predicted is what is asked next."""
        return lambda: self.token.copy_(predict())


def llama_decoder(bench, model, batch, context):
    """A decoder whose cache holds random keys and values: what a prompt would have left there costs the same to read."""
    config = model.config
    cache = StaticCache(config=config, max_cache_len=context + bench.shapes.steps)
    cache.early_initialization(batch, config.num_key_value_heads, config.head_dim, BF16, model.device)
    for layer in cache.layers:
        layer.keys.normal_()
        layer.values.normal_()
    logits = lambda token: model(input_ids=token, past_key_values=cache, use_cache=True).logits  # noqa: E731
    return Decoder(logits, bench.ids(config.vocab_size, batch, 1), cache, context)


def llama(bench, shape, attention="sdpa"):
    return bench.build(transformers.LlamaForCausalLM, transformers.LlamaConfig(**shape), attention)


def card(bench):
    """What the card itself gives: the ceilings that the other rows are held against."""
    yield READY
    words = torch.empty(bench.shapes.copied // 4, dtype=torch.int32, device=bench.shapes.device).random_()
    copy = torch.empty_like(words)
    yield rate("copy", "GB/s", 2 * bench.shapes.copied / 1e9, bench.timed(lambda: copy.copy_(words)), "bytes read and written")
    size = bench.shapes.product
    left, right, out = bench.noise(size, size), bench.noise(size, size), bench.noise(size, size)
    times = bench.timed(lambda: torch.mm(left, right, out=out))
    yield rate("gemm", "TFLOP/s", 2 * size**3 / 1e12, times, f"bf16, {size} cubed, random data")


def small(bench):
    """SmolLM2-135M: one sequence."""
    decoder = llama_decoder(bench, llama(bench, bench.shapes.small), 1, bench.shapes.short)
    fast = yield from bench.compiled("decode-135m", decoder.predict, decoder.rewind)
    yield READY
    for name, predict, how in (("decode-135m", fast, "compiled"), ("decode-135m-eager", decoder.predict, "eager")):
        if predict:
            times = bench.timed(decoder.follow(predict), bench.shapes.steps, decoder.rewind)
            yield row(name, "ms/token", times, f"static cache, sdpa, {how}")


def large(bench):
    """The 8B decoder: one sequence, and one prompt."""
    model = llama(bench, bench.shapes.large)
    decoder = llama_decoder(bench, model, 1, bench.shapes.context)
    fast = yield from bench.compiled("decode-8b-1", decoder.predict, decoder.rewind)
    ids = bench.ids(model.config.vocab_size, 1, bench.shapes.prompt)

    def prefill():
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return out.logits, [(layer.keys, layer.values) for layer in out.past_key_values.layers]

    # The decoder has its graph: what it was compiled with may be changed, as long as it is changed back before it runs again.
    model.set_attn_implementation("unmasked")
    whole = yield from bench.compiled("prefill-8b", prefill)
    yield READY
    for name, run, how in (("prefill-8b", whole, "compiled"), ("prefill-8b-eager", prefill, "eager")):
        if run:
            times = bench.timed(run, 10)
            yield row(name, "ms", times, f"{bench.shapes.prompt} tokens, sdpa, {how}", flop=prefill_flop(model, bench.shapes.prompt))
    model.set_attn_implementation("sdpa")
    if fast:
        times = bench.timed(decoder.follow(fast), bench.shapes.steps, decoder.rewind)
        yield row("decode-8b-1", "ms/token", times, "static cache, sdpa, compiled", reads=weights_read(model))


def weights_read(model):
    """Bytes that a decoding step reads of the weights: of the embedding, a row."""
    return sum(weight.nbytes for weight in model.parameters()) - model.get_input_embeddings().weight.nbytes


def prefill_flop(model, tokens):
    """The products of all tokens, attention to what comes before, and the logits of the last token."""
    config = model.config
    products = sum(weight.numel() for weight in model.model.layers.parameters() if weight.dim() == 2)
    attention = tokens * config.hidden_size * config.num_hidden_layers
    return 2 * tokens * (products + attention) + 2 * model.lm_head.weight.numel()


def together(bench):
    """The 8B decoder: a batch of sequences of one length, in a loop of one's own."""
    batch = bench.shapes.together
    model = llama(bench, bench.shapes.large)
    decoder = llama_decoder(bench, model, batch, bench.shapes.context)
    ways = {"sdpa": f"decode-8b-{batch}", "grouped": f"decode-8b-{batch}-grouped"}
    fast = {}
    for attention, name in ways.items():
        model.set_attn_implementation(attention)
        fast[attention] = yield from bench.compiled(name, decoder.predict, decoder.rewind)
    yield READY
    for attention, name in ways.items():
        model.set_attn_implementation(attention)
        if fast[attention]:
            times = bench.timed(decoder.follow(fast[attention]), bench.shapes.steps, decoder.rewind)
            yield rate(name, "tokens/s", batch, times, f"static cache, {attention}, compiled")


def batching(bench):
    """The 8B decoder: the same batch through transformers' continuous batching."""
    yield READY
    shapes, block = bench.shapes, 256
    model = llama(bench, shapes.large)
    blocks = shapes.together * ((shapes.context + shapes.generated) // block + 2)
    # Without a margin, and with prompts in few steps, all sequences come to decode at once; random prompts share nothing.
    settings = transformers.ContinuousBatchingConfig(
        block_size=block, num_blocks=blocks, max_batch_tokens=min(8192, 8 * shapes.context), safety_margin=0.0, allow_block_sharing=False,
    )
    greedy = transformers.GenerationConfig(do_sample=False, max_new_tokens=shapes.generated, eos_token_id=-1)
    prompts = bench.ids(model.config.vocab_size, shapes.together, shapes.context).tolist()
    answers = model.generate_batch(prompts, greedy, settings, record_timestamps=True)
    told = [answer.timestamps for answer in answers.values() if answer.error is None]
    if len(told) < shapes.together:
        raise RuntimeError(f"{shapes.together - len(told)} of {shapes.together} requests came to nothing")
    # It takes FlashAttention by itself where that is installed.
    attention = "flash-attn" if importlib.util.find_spec("flash_attn") else "sdpa"
    how = f"generate_batch, paged {attention}"
    yield rate(f"decode-8b-{shapes.together}-batching", "tokens/s", shapes.together, shared_gaps(told), how)


def shared_gaps(told):
    """Milliseconds between the tokens that come while all sequences decode: from the last one's first to the first one's last."""
    latest, end = max(told, key=lambda times: times[0]), min(times[-1] for times in told)
    shared = [each for each in latest if each <= end]
    gaps = [(after - before) * 1e3 for before, after in zip(shared, shared[1:])]
    if not gaps:
        raise RuntimeError("the sequences never decoded all at once")
    return gaps


def forward_rows(bench, name, unit, count, forward):
    """A model that answers in one pass: compiled, and as it is."""
    fast = yield from bench.compiled(name, forward)
    yield READY
    for name, run, how in ((name, fast, "compiled"), (f"{name}-eager", forward, "eager")):
        if run:
            yield rate(name, unit, count, bench.timed(run, 20), f"bf16, {how}")


def texts(bench):
    """MiniLM: texts of one length, pooled by their mean."""
    batch, length = bench.shapes.texts
    config = transformers.BertConfig(**bench.shapes.bert)
    model = bench.build(transformers.BertModel, config, "unmasked", add_pooling_layer=False)
    ids = bench.ids(config.vocab_size, batch, length)
    forward = lambda: model(input_ids=ids).last_hidden_state.mean(1)  # noqa: E731
    yield from forward_rows(bench, f"embed-{length}x{batch}", "sentences/s", batch, forward)


def speech(bench):
    """Whisper tiny: the encoder, then greedy decoding of what it heard."""
    shapes, clips = bench.shapes, bench.shapes.clips
    config = transformers.WhisperConfig(**shapes.whisper)
    model = bench.build(transformers.WhisperForConditionalGeneration, config)
    mels = bench.noise(clips, config.num_mel_bins, 2 * config.max_source_positions)
    heard = model.model.encoder(mels).last_hidden_state
    decoder = whisper_decoder(bench, model, heard)
    fast = yield from bench.compiled(f"speech-decode-{clips}-compiled", decoder.predict, decoder.rewind)
    yield from forward_rows(bench, f"speech-encode-{clips}", "clips/s", clips, lambda: model.model.encoder(mels).last_hidden_state)

    how = f"{shapes.heard} tokens after the encoder"
    if fast:
        times = bench.timed(decoder.follow(fast), shapes.heard, decoder.rewind)
        yield rate(f"speech-decode-{clips}-compiled", "clips/s", clips / shapes.heard, times, f"bf16, static cache, compiled, {how}")
    encoded = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=heard)
    generate = lambda: model.generate(encoder_outputs=encoded, do_sample=False, max_new_tokens=shapes.heard)  # noqa: E731
    if generate().shape[1] < shapes.heard:
        raise RuntimeError("generate ended before the last token")
    yield rate(f"speech-decode-{clips}", "clips/s", clips, bench.timed(generate, 3), f"bf16, generate, {how}")


def whisper_decoder(bench, model, heard):
    config = model.config
    own = StaticCache(config=config, max_cache_len=bench.shapes.heard + 8)
    cache = EncoderDecoderCache(own, StaticCache(config=config, max_cache_len=config.max_source_positions))
    logits = lambda token: model(  # noqa: E731
        encoder_outputs=(heard,), decoder_input_ids=token, past_key_values=cache, use_cache=True).logits
    decoder = Decoder(logits, bench.ids(config.vocab_size, heard.shape[0], 1), own, 0)
    # The first step keeps the keys of what was heard; those after it, which are compiled, find them there.
    decoder.predict()
    return decoder


def pictures(bench):
    """EfficientNet-Lite0, as timm has it."""
    import timm
    torch.backends.cudnn.benchmark = True
    model = timm.create_model(bench.shapes.picture, pretrained=False).eval()
    model = model.to(bench.shapes.device, BF16, memory_format=torch.channels_last)
    batch = bench.noise(bench.shapes.pictures, 3, 224, 224).to(memory_format=torch.channels_last)
    yield from forward_rows(bench, f"pictures-{len(batch)}", "images/s", len(batch), lambda: model(batch))


def vision(bench):
    """The vision tower of CLIP ViT-B/32."""
    config = transformers.CLIPVisionConfig(**bench.shapes.clip)
    model = bench.build(transformers.CLIPVisionModelWithProjection, config)
    batch = bench.noise(bench.shapes.pictures, 3, config.image_size, config.image_size)
    yield from forward_rows(bench, f"clip-{len(batch)}", "images/s", len(batch), lambda: model(pixel_values=batch).image_embeds)


def vllm(bench):
    """The 8B decoder: the same batch through vLLM, where it is installed."""
    from vllm import LLM, SamplingParams
    yield READY
    shapes = bench.shapes
    with tempfile.TemporaryDirectory() as folder:
        transformers.LlamaConfig(**shapes.large, architectures=["LlamaForCausalLM"], dtype="bfloat16").save_pretrained(folder)
        # With prefixes kept, the second run would not prefill, and what it takes longer than the first would not be decoding alone.
        model = LLM(folder, load_format="dummy", skip_tokenizer_init=True, enable_prefix_caching=False,
                    max_model_len=shapes.prompt, max_num_seqs=shapes.together, gpu_memory_utilization=0.6)
    vocab = shapes.large["vocab_size"]
    prompts = [{"prompt_token_ids": ids} for ids in bench.ids(vocab, shapes.together, shapes.context).tolist()]

    def seconds(count):
        began = time.perf_counter()
        model.generate(prompts, SamplingParams(max_tokens=count, temperature=0, ignore_eos=True, detokenize=False), use_tqdm=False)
        return time.perf_counter() - began

    seconds(2)
    times = [(seconds(1 + shapes.generated) - seconds(1)) * 1e3 / shapes.generated for _ in range(2)]
    yield rate(f"decode-8b-{shapes.together}-vllm", "tokens/s", shapes.together, times, "vLLM as it comes")
