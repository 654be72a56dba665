//! The real model: does it speak, and does it say the same in any company.

use super::{Decoder, Model, ModelConfig, Room};
use crate::backend::cpu::Cpu;
use crate::backend::scalar::Scalar;
use crate::backend::{Activations, StepLimits};
use crate::fixture;
use crate::gguf::Gguf;
use crate::plan::{BLOCK_TOKENS, BlockId, Output, Plan, Sampled, SequenceId, Span, TokenId};
use crate::sampler::Sampling;
use crate::simd::Level;

const BLOCKS: usize = 256;
const STEP_TOKENS: usize = 256;
const LIMITS: StepLimits = StepLimits { rows: STEP_TOKENS, outputs: 64, blocks: 64 * 64 };

fn model(level: Level, threads: usize) -> Decoder<Cpu> {
    on(Cpu::new(level, threads, LIMITS))
}

fn on(cpu: Cpu) -> Decoder<Cpu> {
    let gguf = Gguf::open(&fixture::smollm2()).expect("the fixture opens");
    let config = ModelConfig::from_gguf(&gguf).expect("the fixture is a llama");
    let room = Room { step_tokens: STEP_TOKENS, outputs: 64, blocks: BLOCKS };
    Decoder::load(&gguf, config, room, cpu).expect("the fixture loads")
}

/// Words of the vocabulary to tokens, one by one.
fn tokens(words: &[&str]) -> Vec<TokenId> {
    let gguf = Gguf::open(&fixture::smollm2()).expect("the fixture opens");
    let vocabulary = gguf.strings("tokenizer.ggml.tokens").expect("the fixture has a vocabulary");
    let token = |word: &&str| vocabulary.iter().position(|other| other == word).expect("a word of the vocabulary");
    words.iter().map(|word| token(word) as TokenId).collect()
}

fn words(tokens: &[TokenId]) -> String {
    let gguf = Gguf::open(&fixture::smollm2()).expect("the fixture opens");
    let vocabulary = gguf.strings("tokenizer.ggml.tokens").expect("the fixture has a vocabulary");
    tokens.iter().map(|token| vocabulary[*token as usize]).collect()
}

fn question() -> Vec<TokenId> {
    tokens(&[
        "<|im_start|>",
        "user",
        "Ċ",
        "What",
        "Ġis",
        "Ġthe",
        "Ġcapital",
        "Ġof",
        "ĠFrance",
        "?",
        "<|im_end|>",
        "Ċ",
        "<|im_start|>",
        "ass",
        "istant",
        "Ċ",
    ])
}

/// A sequence on its way: what it has, and how much of it the cache holds.
#[derive(Clone)]
struct Sequence {
    id: u64,
    tokens: Vec<TokenId>,
    prompt: usize,
    computed: usize,
    blocks: Vec<BlockId>,
}

impl Sequence {
    fn new(id: u64, tokens: Vec<TokenId>, blocks: Vec<BlockId>) -> Sequence {
        Sequence { id, prompt: tokens.len(), tokens, computed: 0, blocks }
    }

    /// Adds up to `rows` rows to the plan; an output where that reaches the end.
    fn plan(&self, plan: &mut Plan, rows: usize) {
        let end = self.tokens.len().min(self.computed + rows);
        let (row, table) = (plan.rows(), plan.blocks.len());
        plan.tokens.extend_from_slice(&self.tokens[self.computed..end]);
        plan.positions.extend((self.computed..end).map(|position| position as u32));
        plan.blocks.extend_from_slice(&self.blocks[..end.div_ceil(BLOCK_TOKENS)]);
        plan.spans.push(Span {
            sequence: SequenceId(self.id),
            rows: row..plan.rows(),
            computed: self.computed,
            prompt: self.prompt.clamp(self.computed, end) - self.computed,
            blocks: table..plan.blocks.len(),
        });
        if end == self.tokens.len() {
            plan.outputs.push(Output {
                sequence: SequenceId(self.id),
                row: plan.rows() - 1,
                position: end as u32,
                sampling: Sampling::greedy(),
                history: 0..0,
                mask: None,
            });
        }
    }
}

/// Continues a sequence alone, its prompt cut into `chunk` tokens a step.
fn alone(model: &mut Decoder<Cpu>, sequence: &mut Sequence, chunk: usize, outputs: usize) {
    let wanted = sequence.tokens.len() + outputs;
    let (mut plan, mut sampled) = (Plan::default(), Vec::new());
    while sequence.tokens.len() < wanted {
        plan.clear();
        sequence.plan(&mut plan, chunk);
        step(model, &plan, &mut sampled);
        sequence.computed += plan.rows();
        sequence.tokens.extend(sampled.iter().map(|sampled| sampled.token));
    }
}

fn step(model: &mut Decoder<Cpu>, plan: &Plan, sampled: &mut Vec<Sampled>) {
    sampled.clear();
    let ticket = model.forward(plan).expect("the plan fits");
    model.collect(ticket, sampled).expect("the ticket is the last");
}

#[test]
fn it_knows_the_capital_of_france() {
    let mut sequence = Sequence::new(0, question(), (0..8).map(BlockId).collect());
    let prompt = sequence.tokens.len();
    alone(&mut model(Level::detect(), 2), &mut sequence, STEP_TOKENS, 8);
    assert_eq!(words(&sequence.tokens[prompt..]), "TheĠcapitalĠofĠFranceĠisĠParis.<|im_end|>");
}

#[test]
fn a_sequence_says_the_same_alone_and_in_any_company() {
    says_the_same(model(Level::detect(), 2));
}

/// What a worker has: by the matrix unit, where there is one.
#[test]
fn a_sequence_of_rounded_inputs_says_the_same_alone_and_in_any_company() {
    let cpu = Cpu::new(Level::detect(), 2, LIMITS).with(Activations::Mixed);
    says_the_same(on(cpu.with_prompts_by(Level::detect().unit())));
}

fn says_the_same(mut model: Decoder<Cpu>) {
    const SEQUENCES: u64 = 32;
    const OUTPUTS: usize = 6;
    let base = question();
    let prompts: Vec<Vec<TokenId>> = (0..SEQUENCES as usize)
        .map(|n| base.iter().cycle().skip(n * 5 % 11).take(3 + n * 7 % 41).copied().collect())
        .collect();
    let blocks = |first: u64| (0..8).map(|block| BlockId((first * 8 + block) as u32)).collect::<Vec<_>>();
    let expected: Vec<Vec<TokenId>> = prompts
        .iter()
        .map(|prompt| {
            let mut sequence = Sequence::new(0, prompt.clone(), blocks(31));
            alone(&mut model, &mut sequence, STEP_TOKENS, OUTPUTS);
            sequence.tokens
        })
        .collect();
    let mut together: Vec<Sequence> =
        (0..SEQUENCES).map(|id| Sequence::new(id, prompts[id as usize].clone(), blocks(SEQUENCES - 1 - id))).collect();
    let (mut plan, mut sampled) = (Plan::default(), Vec::new());
    for round in 0.. {
        plan.clear();
        for (index, sequence) in together.iter_mut().enumerate() {
            // Some join late, prompts come in pieces of changing sizes, and some pause.
            let joins = round >= index / 4 && (round + index) % 5 != 0;
            if joins && sequence.tokens.len() < prompts[index].len() + OUTPUTS {
                let before = plan.rows();
                sequence.plan(&mut plan, 1 + (round * 3 + index) % 13);
                sequence.computed += plan.rows() - before;
            }
        }
        if plan.rows() > 0 {
            step(&mut model, &plan, &mut sampled);
        } else if round > 20 {
            break;
        }
        for sampled in &sampled {
            together[sampled.sequence.0 as usize].tokens.push(sampled.token);
        }
        sampled.clear();
    }
    for (sequence, expected) in together.iter().zip(&expected) {
        assert_eq!(&sequence.tokens, expected, "sequence {}", sequence.id);
    }
}

/// Logits of the last token of each of two prompts, in one plan cut as `chunks` says.
fn last_logits(model: &mut Decoder<Cpu>, prompt: &[TokenId], chunk: usize) -> Vec<f32> {
    let mut sequence = Sequence::new(0, prompt.to_vec(), (0..8).map(BlockId).collect());
    let mut logits = Vec::new();
    let mut plan = Plan::default();
    while sequence.computed < prompt.len() {
        plan.clear();
        sequence.plan(&mut plan, chunk);
        model.logits(&plan, &mut logits).expect("the plan fits");
        sequence.computed += plan.rows();
    }
    logits
}

#[test]
fn logits_have_the_same_bits_at_every_level_and_chunking() {
    let prompt = question();
    let fastest = last_logits(&mut model(Level::detect(), 2), &prompt, STEP_TOKENS);
    for level in Level::all().into_iter().rev().take(2) {
        let mut model = model(level, 1);
        for chunk in [1, 4, 7, STEP_TOKENS] {
            let logits = last_logits(&mut model, &prompt, chunk);
            assert!(
                logits.iter().map(|x| x.to_bits()).eq(fastest.iter().map(|x| x.to_bits())),
                "{} in chunks of {chunk}",
                level.name()
            );
        }
    }
}

#[test]
fn logits_are_the_oracle_s() {
    let gguf = Gguf::open(&fixture::smollm2()).expect("the fixture opens");
    let config = ModelConfig::from_gguf(&gguf).expect("the fixture is a llama");
    let limits = StepLimits { rows: 16, outputs: 1, blocks: 8 };
    let room = Room { step_tokens: 16, outputs: 1, blocks: 8 };
    let mut oracle = Decoder::load(&gguf, config, room, Scalar::new(limits)).expect("the fixture loads");
    let sequence = Sequence::new(0, question(), (0..8).map(BlockId).collect());
    let (mut plan, mut truth) = (Plan::default(), Vec::new());
    sequence.plan(&mut plan, 16);
    oracle.logits(&plan, &mut truth).expect("the plan fits");
    let got = last_logits(&mut model(Level::detect(), 2), &question(), 16);
    let square = |x: f32| f64::from(x) * f64::from(x);
    let wrong: f64 = truth.iter().zip(&got).map(|(truth, got)| square(truth - got)).sum();
    let error = wrong / truth.iter().map(|x| square(*x)).sum::<f64>();
    // Keys and values are rounded to halves on slightly different sums: that, not the kernels, is the difference.
    assert!(error < 1e-6, "{error}");
}
