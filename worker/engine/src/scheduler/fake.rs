//! A model of a few lines: its cache holds tokens instead of keys and values, and the next token is a hash of all that
//! it reads back through the block tables. So a wrong block, position, placeholder or recompute changes the answer.
//! It computes a step as late as it may, when collected, and checks each plan when it gets it.

use crate::Error;
use crate::model::{Model, Shape, Ticket};
use crate::plan::{BLOCK_TOKENS, BlockId, Plan, Sampled, SequenceId, Span, TokenId};
use crate::prefix::Kept;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tokens are less than this.
pub(crate) const VOCABULARY: usize = 120;

/// Ends a text.
pub(crate) const END: TokenId = 0;

/// What the fake does wrong in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Forward,
    Collect,
    /// Told when the step is collected.
    NoRoom,
    Panic,
}

pub(crate) struct Fake {
    shape: Shape,
    depth: usize,
    /// Asked before each step, with its number from 0.
    faults: Box<dyn FnMut(u64) -> Fault + Send>,
    steps: u64,
    /// (blocks) tokens in place of keys and values, marked where it tells from where they are.
    cache: Vec<[Option<TokenId>; BLOCK_TOKENS]>,
    flights: VecDeque<(Ticket, Plan, Fault)>,
    /// What the step collected last sampled.
    last: Vec<TokenId>,
    progress: Arc<AtomicU64>,
}

impl Fake {
    pub(crate) fn new(shape: Shape, depth: usize, faults: impl FnMut(u64) -> Fault + Send + 'static) -> Self {
        Self {
            shape,
            depth,
            faults: Box::new(faults),
            steps: 0,
            cache: vec![[None; BLOCK_TOKENS]; shape.blocks],
            flights: VecDeque::new(),
            last: Vec::new(),
            progress: Arc::default(),
        }
    }

    /// Panics when the plan is not in order by itself, or takes a block that a step in flight gives to another.
    fn check(&self, plan: &Plan) {
        assert!(plan.rows() <= self.shape.step_tokens, "more rows than the budget");
        assert_eq!(plan.positions.len(), plan.rows());
        let mut uses = HashMap::new();
        self.flights.iter().map(|(_, flight, _)| flight).chain([plan]).for_each(|plan| note(&mut uses, plan));
        for (block, used) in uses {
            assert!(
                used.writers.is_empty() || used.sequences.len() == 1,
                "{block:?} is written to and shared: {used:?}"
            );
        }
        let mut next_row = 0;
        for span in &plan.spans {
            assert_eq!(span.rows.start, next_row, "spans have no gaps");
            assert!(!span.rows.is_empty(), "a span has rows");
            next_row = span.rows.end;
            let end = span.computed + span.rows.len();
            assert!(end <= self.shape.context);
            assert_eq!(span.blocks.len(), end.div_ceil(BLOCK_TOKENS));
            let positions = plan.positions[span.rows.clone()].iter().map(|&at| at as usize);
            assert!(positions.eq(span.computed..end), "positions follow the cache");
        }
        assert_eq!(next_row, plan.rows());
        assert!(plan.outputs.is_sorted_by_key(|output| output.row));
        assert!(plan.placeholders.is_empty() || !self.flights.is_empty());
    }

    /// Fills in what the step before sampled.
    fn resolve(&self, plan: &mut Plan) {
        for placeholder in &plan.placeholders {
            let token = self.last[placeholder.output];
            plan.tokens[placeholder.row] = token;
            if let Some(at) = placeholder.history {
                plan.history[at] = token;
            }
        }
    }

    fn compute(&mut self, plan: &Plan) -> Vec<Sampled> {
        for span in &plan.spans {
            for (row, position) in span.rows.clone().zip(span.computed..) {
                let block = plan.blocks[span.blocks.clone()][position / BLOCK_TOKENS];
                let is_sampled = row >= span.rows.start + span.prompt;
                let token = if is_sampled { sampled(plan.tokens[row], self.shape.kept) } else { plan.tokens[row] };
                self.cache[block.0 as usize][position % BLOCK_TOKENS] = Some(token);
            }
        }
        let sample = |output: &crate::plan::Output| {
            let span = plan.spans.iter().find(|span| span.rows.contains(&output.row));
            let span = span.expect("an output is a row of a span");
            assert_eq!(span.sequence, output.sequence);
            let read = self.read(plan, span);
            assert_eq!(read.len(), output.position as usize);
            if output.sampling.looks_back() {
                let tokens = read.iter().map(|token| token % VOCABULARY as TokenId);
                assert!(tokens.eq(plan.history[output.history.clone()].iter().copied()), "a penalty sees all tokens");
            }
            Sampled { sequence: output.sequence, token: next_token(&read) }
        };
        plan.outputs.iter().map(sample).collect()
    }

    /// All tokens of the span's sequence, by way of its blocks.
    fn read(&self, plan: &Plan, span: &Span) -> Vec<TokenId> {
        let table: &[BlockId] = &plan.blocks[span.blocks.clone()];
        (0..span.computed + span.rows.len())
            .map(|at| self.cache[table[at / BLOCK_TOKENS].0 as usize][at % BLOCK_TOKENS])
            .map(|token| token.expect("what is attended to was computed"))
            .collect()
    }
}

impl Model for Fake {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn count_progress(&mut self, progress: Arc<AtomicU64>) {
        self.progress = progress;
    }

    fn forward(&mut self, plan: &Plan) -> Result<Ticket, Error> {
        self.check(plan);
        self.progress.fetch_add(1, Ordering::Relaxed);
        let ticket = Ticket(self.steps);
        let fault = (self.faults)(self.steps);
        self.steps += 1;
        match fault {
            Fault::Forward => return Err(Error::Device("forward".into())),
            Fault::Panic => panic!("the fake panics as asked"),
            Fault::None | Fault::Collect | Fault::NoRoom => {}
        }
        self.flights.push_back((ticket, plan.clone(), fault));
        assert!(self.flights.len() <= self.depth + 1, "more steps in flight than wanted");
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket, sampled: &mut Vec<Sampled>) -> Result<(), Error> {
        let (first, mut plan, fault) = self.flights.pop_front().expect("a step is in flight");
        assert_eq!(first, ticket, "steps are collected in order");
        self.resolve(&mut plan);
        let computed = self.compute(&plan);
        self.last = computed.iter().map(|one| one.token).collect();
        match fault {
            Fault::Collect => Err(Error::Device("collect".into())),
            Fault::NoRoom => Err(Error::OutOfMemory { bytes: plan.rows(), free: 0 }),
            _ => {
                sampled.extend(computed);
                Ok(())
            }
        }
    }
}

/// Who has a block in the steps that are under way.
#[derive(Debug, Default)]
struct Use {
    sequences: HashSet<SequenceId>,
    writers: HashSet<SequenceId>,
}

/// Notes what a plan does with the blocks that it names.
fn note(uses: &mut HashMap<BlockId, Use>, plan: &Plan) {
    for span in &plan.spans {
        for (index, block) in plan.blocks[span.blocks.clone()].iter().enumerate() {
            let block = uses.entry(*block).or_default();
            block.sequences.insert(span.sequence);
            if (index + 1) * BLOCK_TOKENS > span.computed {
                block.writers.insert(span.sequence);
            }
        }
    }
}

/// The token after these.
pub(crate) fn next_token(tokens: &[TokenId]) -> TokenId {
    let hash = tokens.iter().fold(1, |hash, &token| mix(hash ^ u64::from(token)));
    (hash % VOCABULARY as u64) as TokenId
}

/// A sampled token as the cache holds it: another than the same of a prompt, where only prompts are shared.
fn sampled(token: TokenId, kept: Kept) -> TokenId {
    match kept {
        Kept::All => token,
        Kept::Prompts => token + VOCABULARY as TokenId,
    }
}

/// What a prompt is continued by when nothing else is there, the end included.
pub(crate) fn alone(prompt: &[TokenId], max_tokens: usize, kept: Kept) -> Vec<TokenId> {
    let (mut read, mut outputs) = (prompt.to_vec(), Vec::new());
    while outputs.len() < max_tokens && outputs.last() != Some(&END) {
        let token = next_token(&read);
        read.push(sampled(token, kept));
        outputs.push(token);
    }
    outputs
}

/// One round of `SplitMix64` (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Choices of a simulation, all from one seed.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number in `range`.
    pub(crate) fn roll(&mut self, range: std::ops::Range<usize>) -> usize {
        self.0 = mix(self.0);
        range.start + (self.0 % range.len() as u64) as usize
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.roll(0..times) == 0
    }

    /// A prompt of `length` tokens.
    pub(crate) fn prompt(&mut self, length: usize) -> Vec<TokenId> {
        (0..length).map(|_| self.roll(1..VOCABULARY) as TokenId).collect()
    }
}
