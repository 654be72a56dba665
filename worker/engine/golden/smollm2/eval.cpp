// Makes the accuracy reference of this folder with llama.cpp. README.md says what it writes; make.sh builds and runs it.
//
//   eval texts  F32.gguf QUANTISED.gguf OUT_DIR THREADS TEXT.txt...   -> OUT_DIR/TEXT.bin, OUT_DIR/reference.json
//   eval greedy F32.gguf PROMPTS.json OUT.json THREADS                -> OUT.json

#include "chat.h"
#include "common.h"
#include "llama.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

using json = nlohmann::ordered_json;

static const int N_POSITIONS = 2048;  // predicted positions a text; the text is cut to one token more
static const int N_TOP       = 16;    // listed tokens a position
static const int CHUNK       = 512;   // tokens a llama_decode call, llama.cpp's own micro-batch
static const int N_GREEDY    = 48;

// The least probability of the "all others" bucket, on either side of the coarse divergence.
static const double REST_FLOOR = 1e-9;

[[noreturn]] static void fail(const std::string & what) {
    fprintf(stderr, "eval: %s\n", what.c_str());
    exit(1);
}

static std::string slurp(const std::string & path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) {
        fail("cannot read " + path);
    }
    return std::string(std::istreambuf_iterator<char>(in), {});
}

struct Model {
    llama_model *       model = nullptr;
    const llama_vocab * vocab = nullptr;
    int                 n_vocab = 0;

    explicit Model(const std::string & path) {
        llama_model_params params = llama_model_default_params();
        params.n_gpu_layers = 0;
        model = llama_model_load_from_file(path.c_str(), params);
        if (!model) {
            fail("cannot load " + path);
        }
        vocab   = llama_model_get_vocab(model);
        n_vocab = llama_vocab_n_tokens(vocab);
    }
    ~Model() { llama_model_free(model); }

    std::vector<llama_token> tokens(const std::string & text, bool parse_special) const {
        std::vector<llama_token> ids(text.size() + 8);
        int n = llama_tokenize(vocab, text.data(), (int) text.size(), ids.data(), (int) ids.size(), true, parse_special);
        if (n < 0) {
            fail("tokenizer failed");
        }
        ids.resize(n);
        return ids;
    }
};

// `exact`: key/value cache in F32 and plain attention; otherwise llama.cpp's defaults (F16 cache, flash attention).
static llama_context * new_context(const Model & m, bool exact, int threads) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = 4096;
    params.n_threads       = threads;
    params.n_threads_batch = threads;
    if (exact) {
        params.type_k          = GGML_TYPE_F32;
        params.type_v          = GGML_TYPE_F32;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    }
    llama_context * ctx = llama_init_from_model(m.model, params);
    if (!ctx) {
        fail("cannot make a context");
    }
    return ctx;
}

// Feeds ids[from, to) at their positions and asks for the logits of all of them, or of the last alone.
static void feed(llama_context * ctx, const std::vector<llama_token> & ids, int from, int to, bool all) {
    llama_batch batch = llama_batch_init(to - from, 0, 1);
    for (int i = from; i < to; i++) {
        const int at = batch.n_tokens++;
        batch.token[at]     = ids[i];
        batch.pos[at]       = i;
        batch.n_seq_id[at]  = 1;
        batch.seq_id[at][0] = 0;
        batch.logits[at]    = all || i + 1 == to;
    }
    if (llama_decode(ctx, batch) != 0) {
        fail("llama_decode failed");
    }
    llama_batch_free(batch);
}

// The index of the largest value; the lowest index of equal ones.
static int argmax(const float * v, int n) {
    return (int) (std::max_element(v, v + n) - v);
}

static double log_sum_exp(const float * v, int n) {
    const double top = *std::max_element(v, v + n);
    double sum = 0.0;
    for (int i = 0; i < n; i++) {
        sum += std::exp((double) v[i] - top);
    }
    return top + std::log(sum);
}

// What one run is like beside the F32 run, summed over positions.
struct Tally {
    int    n = 0;
    int    same_top = 0;
    double nll = 0.0;
    double kl = 0.0;
    double kl_coarse = 0.0;

    void add(const Tally & o) {
        n += o.n; same_top += o.same_top; nll += o.nll; kl += o.kl; kl_coarse += o.kl_coarse;
    }
    json report(bool reference) const {
        json j = { { "mean_nll", nll / n }, { "perplexity", std::exp(nll / n) } };
        if (!reference) {
            j["same_top"]       = (double) same_top / n;
            j["mean_kl"]        = kl / n;
            j["mean_kl_coarse"] = kl_coarse / n;
        }
        return j;
    }
};

static double rest(double listed) {
    return std::max(1.0 - listed, REST_FLOOR);
}

struct Position {
    float    logp_next;
    float    top_logp[N_TOP];
    uint16_t top_id[N_TOP];
};

static Position describe(const float * logits, int n_vocab, double lse, llama_token next) {
    std::vector<int> order(n_vocab);
    for (int i = 0; i < n_vocab; i++) {
        order[i] = i;
    }
    std::partial_sort(order.begin(), order.begin() + N_TOP, order.end(), [&](int a, int b) {
        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
    Position p;
    p.logp_next = (float) (logits[next] - lse);
    for (int k = 0; k < N_TOP; k++) {
        p.top_id[k]   = (uint16_t) order[k];
        p.top_logp[k] = (float) (logits[order[k]] - lse);
    }
    return p;
}

// One position of another run `q` beside the F32 run `p`.
static void compare(Tally & t, const Position & at, const float * p, double p_lse, const float * q, int n_vocab, llama_token next) {
    const double q_lse = log_sum_exp(q, n_vocab);
    t.n++;
    t.nll      += q_lse - q[next];
    t.same_top += argmax(q, n_vocab) == at.top_id[0];
    for (int i = 0; i < n_vocab; i++) {
        const double lp = p[i] - p_lse;
        t.kl += std::exp(lp) * (lp - (q[i] - q_lse));
    }
    double p_listed = 0.0;
    double q_listed = 0.0;
    double kl       = 0.0;
    for (int k = 0; k < N_TOP; k++) {
        const double lp = at.top_logp[k];
        const double lq = q[at.top_id[k]] - q_lse;
        p_listed += std::exp(lp);
        q_listed += std::exp(lq);
        kl       += std::exp(lp) * (lp - lq);
    }
    t.kl_coarse += kl + rest(p_listed) * std::log(rest(p_listed) / rest(q_listed));
}

template <typename T> static void put(std::ofstream & out, const T * v, size_t n) {
    out.write((const char *) v, (std::streamsize) (n * sizeof(T)));  // hosts of this tool are little-endian
}

static void write_fixture(const std::string & path, const std::vector<llama_token> & ids, const std::vector<Position> & at, int n_vocab) {
    std::ofstream  out(path, std::ios::binary);
    const uint32_t head[5] = { 1, (uint32_t) ids.size(), (uint32_t) at.size(), (uint32_t) N_TOP, (uint32_t) n_vocab };
    put(out, "FREF", 4);
    put(out, head, 5);
    for (const auto & p : at) {
        put(out, &p.logp_next, 1);
    }
    for (const auto & p : at) {
        put(out, p.top_logp, N_TOP);
    }
    for (const auto & p : at) {
        put(out, p.top_id, N_TOP);
    }
    for (llama_token id : ids) {
        const uint16_t v = (uint16_t) id;
        put(out, &v, 1);
    }
    if (!out) {
        fail("cannot write " + path);
    }
}

static int run_texts(int argc, char ** argv) {
    if (argc < 7) {
        fail("texts F32.gguf QUANTISED.gguf OUT_DIR THREADS TEXT.txt...");
    }
    const Model       exact(argv[2]);
    const Model       quant(argv[3]);
    const std::string dir     = argv[4];
    const int         threads = atoi(argv[5]);
    const int         n_vocab = exact.n_vocab;
    if (n_vocab > 65536) {
        fail("token ids do not fit 16 bits");
    }

    // The reference first, then what is measured against it.
    const struct { const char * name; const Model * model; bool exact; } runs[] = {
        { "f32",           &exact, true },
        { "q4_1",          &quant, false },
        { "q4_1_f32cache", &quant, true },
        { "f32_f16cache",  &exact, false },
    };
    const int n_runs = 4;

    std::vector<Tally> total(n_runs);
    json               texts = json::object();
    for (int a = 6; a < argc; a++) {
        const std::string path = argv[a];
        const size_t      cut  = path.find_last_of('/') + 1;
        const std::string name = path.substr(cut, path.rfind('.') - cut);

        std::vector<llama_token> ids = exact.tokens(slurp(path), false);
        const size_t             all = ids.size();
        if ((int) all < N_POSITIONS + 1) {
            fail(path + " is too short");
        }
        ids.resize(N_POSITIONS + 1);

        std::vector<llama_context *> ctx;
        for (const auto & r : runs) {
            ctx.push_back(new_context(*r.model, r.exact, threads));
        }
        std::vector<Tally>    tally(n_runs);
        std::vector<Position> at;
        for (int from = 0; from < N_POSITIONS; from += CHUNK) {
            const int to = std::min(from + CHUNK, N_POSITIONS);
            for (auto * c : ctx) {
                feed(c, ids, from, to, true);
            }
            for (int i = 0; i < to - from; i++) {
                const llama_token next = ids[from + i + 1];
                const float *     p    = llama_get_logits_ith(ctx[0], i);
                const double      lse  = log_sum_exp(p, n_vocab);
                at.push_back(describe(p, n_vocab, lse, next));
                tally[0].n++;
                tally[0].nll += lse - p[next];
                for (int r = 1; r < n_runs; r++) {
                    compare(tally[r], at.back(), p, lse, llama_get_logits_ith(ctx[r], i), n_vocab, next);
                }
            }
            fprintf(stderr, "eval: %s %d/%d\n", name.c_str(), to, N_POSITIONS);
        }
        for (auto * c : ctx) {
            llama_free(c);
        }
        write_fixture(dir + "/" + name + ".bin", ids, at, n_vocab);

        json j = { { "tokens_in_file", all }, { "positions", N_POSITIONS } };
        for (int r = 0; r < n_runs; r++) {
            j[runs[r].name] = tally[r].report(r == 0);
            total[r].add(tally[r]);
        }
        texts[name] = j;
    }
    json j = { { "positions", total[0].n } };
    for (int r = 0; r < n_runs; r++) {
        j[runs[r].name] = total[r].report(r == 0);
    }
    std::ofstream out(dir + "/reference.json");
    out << json({ { "texts", texts }, { "all", j } }).dump(2) << "\n";
    return out ? 0 : 1;
}

static int run_greedy(int argc, char ** argv) {
    if (argc != 6) {
        fail("greedy F32.gguf PROMPTS.json OUT.json THREADS");
    }
    const Model m(argv[2]);
    const json  prompts   = json::parse(slurp(argv[3]));
    const auto  templates = common_chat_templates_init(m.model, "");

    json all = json::array();
    for (const json & messages : prompts) {
        common_chat_templates_inputs inputs;
        for (const json & message : messages) {
            common_chat_msg msg;
            msg.role    = message.at("role");
            msg.content = message.at("content");
            inputs.messages.push_back(msg);
        }
        const std::string              prompt     = common_chat_templates_apply(templates.get(), inputs).prompt;
        const std::vector<llama_token> prompt_ids = m.tokens(prompt, true);

        std::vector<llama_token> ids = prompt_ids;
        llama_context *          ctx = new_context(m, true, atoi(argv[5]));
        json                     margins = json::array();
        std::string              text;
        bool                     ended = false;
        feed(ctx, ids, 0, (int) ids.size(), false);
        while (true) {
            const float *     logits = llama_get_logits_ith(ctx, -1);
            const llama_token next   = argmax(logits, m.n_vocab);
            float             second = -INFINITY;
            for (int i = 0; i < m.n_vocab; i++) {
                if (i != next) {
                    second = std::max(second, logits[i]);
                }
            }
            margins.push_back(std::round(1e4 * (logits[next] - second)) / 1e4);
            if (llama_vocab_is_eog(m.vocab, next)) {
                ended = true;
                break;
            }
            ids.push_back(next);
            text += common_token_to_piece(ctx, next, false);
            if (ids.size() == prompt_ids.size() + N_GREEDY) {
                break;
            }
            feed(ctx, ids, (int) ids.size() - 1, (int) ids.size(), false);
        }
        llama_free(ctx);
        all.push_back({
            { "messages", messages },
            { "prompt", prompt },
            { "prompt_ids", prompt_ids },
            { "output_ids", std::vector<llama_token>(ids.begin() + prompt_ids.size(), ids.end()) },
            { "finish", ended ? "stop" : "length" },
            { "text", text },
            { "margins", margins },
        });
    }

    // One line a field, so that lists of numbers stay on one line.
    std::ofstream out(argv[4]);
    out << "[\n";
    for (size_t i = 0; i < all.size(); i++) {
        out << "  {\n";
        size_t left = all[i].size();
        for (const auto & [key, value] : all[i].items()) {
            out << "    " << json(key).dump() << ": " << value.dump() << (--left ? ",\n" : "\n");
        }
        out << (i + 1 < all.size() ? "  },\n" : "  }\n");
    }
    out << "]\n";
    return out ? 0 : 1;
}

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_WARN) {
            fputs(text, stderr);
        }
    }, nullptr);
    llama_backend_init();
    const std::string mode = argc > 1 ? argv[1] : "";
    if (mode == "texts") {
        return run_texts(argc, argv);
    }
    if (mode == "greedy") {
        return run_greedy(argc, argv);
    }
    fail("texts | greedy");
}
