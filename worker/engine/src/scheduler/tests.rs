use super::*;
use crate::plan::Placeholder;
use crate::prefix::Scope;
use crate::sampler::Sampling;
use std::time::Duration;

/// A scheduler and what it last said.
struct Bench {
    scheduler: Scheduler,
    plan: Plan,
    notices: Vec<Notice>,
    now: Instant,
}

impl Bench {
    fn new(blocks: usize, step_tokens: usize, sequences_max: usize) -> Self {
        let limits = Limits { context: 1000, blocks, step_tokens, sequences_max };
        Self { scheduler: Scheduler::new(limits), plan: Plan::default(), notices: Vec::new(), now: Instant::now() }
    }

    /// Submits a sequence whose prompt is its id, repeated.
    fn submit(&mut self, id: u64, prompt_tokens: usize, max_tokens: usize) {
        let tokens = vec![id as TokenId; prompt_tokens];
        let sequence = Sequence::new(SequenceId(id), tokens, max_tokens, Sampling::greedy());
        self.scheduler.submit(sequence);
    }

    fn plan(&mut self) -> Option<StepId> {
        self.notices.clear();
        self.scheduler.plan(self.now, &mut self.plan, &mut self.notices)
    }

    /// Lands a step that sampled `token` for everyone that `plan` asks.
    fn land(&mut self, step: StepId, plan: &Plan, token: TokenId) {
        let outputs = plan.outputs.iter();
        let sampled: Vec<Sampled> = outputs.map(|output| Sampled { sequence: output.sequence, token }).collect();
        self.notices.clear();
        let judge = |_, _| Verdict::Continue;
        self.scheduler.advance(step, &sampled, judge, &mut self.notices);
    }

    /// Plans and lands a step; returns its spans as (id, computed before, rows).
    fn step(&mut self) -> Vec<(u64, usize, usize)> {
        if let Some(step) = self.plan() {
            let plan = self.plan.clone();
            self.land(step, &plan, 7);
        }
        self.spans()
    }

    fn spans(&self) -> Vec<(u64, usize, usize)> {
        let spans = self.plan.spans.iter();
        spans.map(|span| (span.sequence.0, span.computed, span.rows.len())).collect()
    }
}

#[test]
fn a_prompt_is_computed_in_chunks_and_then_token_by_token() {
    let mut bench = Bench::new(10, 8, 4);
    bench.submit(1, 20, 3);
    assert_eq!(bench.step(), [(1, 0, 8)]);
    assert!(bench.plan.outputs.is_empty());
    assert_eq!(bench.step(), [(1, 8, 8)]);
    assert_eq!(bench.step(), [(1, 16, 4)]);
    assert_eq!((bench.plan.outputs[0].row, bench.plan.outputs[0].position), (3, 20));
    assert_eq!(bench.step(), [(1, 20, 1)]);
    assert_eq!((bench.plan.tokens[0], bench.plan.positions[0]), (7, 20));
    assert_eq!(bench.step(), [(1, 21, 1)]);
    assert_eq!(bench.notices, [Notice::Ended(SequenceId(1), Ending::Length)]);
    assert_eq!(bench.step(), [], "the last token is not computed: nothing is sampled from it");
    assert_eq!(bench.scheduler.blocks().free(), 10);
}

#[test]
fn those_running_come_before_those_waiting() {
    let mut bench = Bench::new(10, 8, 4);
    bench.submit(1, 2, 9);
    assert_eq!(bench.step(), [(1, 0, 2)]);
    bench.submit(2, 20, 9);
    bench.submit(3, 1, 9);
    assert_eq!(bench.step(), [(1, 2, 1), (2, 0, 7)]);
    assert_eq!(bench.notices, []);
    assert_eq!(bench.step(), [(1, 3, 1), (2, 7, 7)]);
    assert_eq!(bench.step(), [(1, 4, 1), (2, 14, 6), (3, 0, 1)]);
    assert_eq!(bench.step(), [(1, 5, 1), (2, 20, 1), (3, 1, 1)]);
}

#[test]
fn slots_are_limited_and_taken_up_between_steps() {
    let mut bench = Bench::new(10, 8, 2);
    for id in 1..=3 {
        bench.submit(id, 1, 5);
    }
    assert_eq!(bench.step(), [(1, 0, 1), (2, 0, 1)]);
    assert!(bench.scheduler.cancel(SequenceId(1)));
    assert!(!bench.scheduler.cancel(SequenceId(1)));
    assert_eq!(bench.step(), [(2, 1, 1), (3, 0, 1)]);
}

#[test]
fn the_youngest_gives_up_its_cache_and_none_is_admitted_in_its_place() {
    let mut bench = Bench::new(4, 40, 8);
    bench.submit(1, 16, 30);
    bench.submit(2, 16, 30);
    bench.submit(3, 1, 5);
    // One block each and one of growth for those running: the third has to wait.
    assert_eq!(bench.step(), [(1, 0, 16), (2, 0, 16)]);
    for at in 16..32 {
        assert_eq!(bench.step(), [(1, at, 1), (2, at, 1)]);
    }
    assert_eq!(bench.scheduler.blocks().free(), 0);
    assert_eq!(bench.step(), [(1, 32, 1)], "the second lost its cache, and nobody took its place");
    assert_eq!(bench.scheduler.preemptions(), 1);
    assert_eq!((bench.scheduler.running(), bench.scheduler.waiting()), (1, 2));
    for at in 33..45 {
        assert_eq!(bench.step(), [(1, at, 1)], "three blocks and one of growth are not free");
    }
    assert_eq!(bench.notices, [Notice::Ended(SequenceId(1), Ending::Length)]);
    assert_eq!(
        bench.step(),
        [(2, 16, 17)],
        "its first block was kept, and it computes the rest again, outputs included"
    );
    assert_eq!(bench.plan.tokens[..2], [7, 7]);
}

#[test]
fn one_that_begins_as_another_computes_the_rest() {
    let mut bench = Bench::new(12, 64, 8);
    let submit = |bench: &mut Bench, id, tokens: Vec<TokenId>| {
        bench.scheduler.submit(Sequence::new(SequenceId(id), tokens, 3, Sampling::greedy()));
    };
    let begin = vec![1; 40];
    submit(&mut bench, 1, begin.clone());
    submit(&mut bench, 2, begin.clone());
    assert_eq!(bench.step(), [(1, 0, 40), (2, 0, 24)], "nothing is shared before it is computed");
    submit(&mut bench, 3, begin.clone());
    submit(&mut bench, 4, [&begin[..20], &[9; 20]].concat());
    assert_eq!(bench.step(), [(1, 40, 1), (2, 24, 16), (3, 32, 8), (4, 16, 24)]);
    assert_eq!(bench.scheduler.blocks().free(), 3, "three blocks of one and two, one of three, two of four");
    while !bench.scheduler.is_empty() {
        bench.step();
    }
    assert_eq!(bench.scheduler.blocks().free(), 12);
    submit(&mut bench, 5, begin[..32].to_vec());
    assert_eq!(bench.step(), [(5, 16, 16)], "the last token is always computed: its output is to come");
}

#[test]
fn what_was_sampled_is_shared_only_where_all_blocks_are_kept() {
    for (kept, shared) in [(Kept::All, 2), (Kept::Prompts, 1)] {
        let mut bench = Bench::new(20, 64, 4);
        bench.scheduler = Scheduler::new(bench.scheduler.limits).keeping(kept);
        bench.submit(7, BLOCK_TOKENS, BLOCK_TOKENS + 1);
        while !bench.step().is_empty() {}
        bench.submit(7, 3 * BLOCK_TOKENS, 1);
        assert_eq!(bench.step(), [(7, shared * BLOCK_TOKENS, (3 - shared) * BLOCK_TOKENS)], "{kept:?}");
    }
}

/// Else it would find what it sampled as another's prompt, which a device may have computed otherwise.
#[test]
fn who_lost_its_cache_takes_no_prompt_for_what_it_sampled() {
    for (kept, found) in [(Kept::All, 2), (Kept::Prompts, 1)] {
        let mut bench = Bench::new(20, 64, 4);
        bench.scheduler = Scheduler::new(bench.scheduler.limits).keeping(kept);
        bench.submit(7, BLOCK_TOKENS, 2 * BLOCK_TOKENS);
        for _ in 0..BLOCK_TOKENS + 4 {
            bench.step();
        }
        let sequence = Sequence::new(SequenceId(8), vec![7; 2 * BLOCK_TOKENS + 1], 9, Sampling::greedy());
        bench.scheduler.submit(sequence);
        bench.step();
        bench.scheduler.preempt(0);
        assert_eq!(bench.step()[1], (7, found * BLOCK_TOKENS, 37 - found * BLOCK_TOKENS), "{kept:?}");
    }
}

#[test]
fn a_span_tells_what_its_sequence_came_with() {
    let mut bench = Bench::new(10, 8, 4);
    bench.submit(1, 10, 3);
    let mut prompts = Vec::new();
    while !bench.step().is_empty() {
        prompts.extend(bench.plan.spans.iter().map(|span| (span.rows.len(), span.prompt)));
    }
    assert_eq!(prompts, [(8, 8), (2, 2), (1, 0), (1, 0)]);
}

#[test]
fn nothing_is_shared_between_scopes() {
    let mut bench = Bench::new(9, 64, 8);
    for (id, scope) in [(1, "a"), (2, "b"), (3, "a")] {
        let sequence = Sequence::new(SequenceId(id), vec![1; 20], 1, Sampling::greedy());
        bench.scheduler.submit(sequence.in_scope(Scope::of(scope.as_bytes())));
        let cached = if id == 3 { 16 } else { 0 };
        assert_eq!(bench.step(), [(id, cached, 20 - cached)]);
    }
}

#[test]
fn a_large_one_is_not_overtaken_for_ever() {
    let mut bench = Bench::new(4, 64, 8);
    bench.submit(1, 16, 2);
    bench.submit(2, 60, 2);
    bench.submit(3, 1, 2);
    assert_eq!(bench.step(), [(1, 0, 16)]);
    assert_eq!(bench.step(), [(1, 16, 1)]);
    assert_eq!(bench.step(), [(2, 0, 60)]);
}

#[test]
fn a_deadline_ends_those_waiting_and_those_running() {
    let mut bench = Bench::new(10, 8, 1);
    let deadline = Some(bench.now + Duration::from_secs(5));
    for id in [1, 2] {
        let sequence = Sequence::new(SequenceId(id), vec![1], 50, Sampling::greedy());
        bench.scheduler.submit(sequence.with_deadline(deadline));
    }
    bench.submit(3, 1, 1);
    assert_eq!(bench.step(), [(1, 0, 1)]);
    bench.now += Duration::from_secs(5);
    let step = bench.plan().unwrap();
    assert_eq!(bench.spans(), [(3, 0, 1)]);
    let late = [1, 2].map(|id| Notice::Ended(SequenceId(id), Ending::Deadline));
    assert_eq!(bench.notices, [late[0], late[1], Notice::Started(SequenceId(3), 0)]);
    let plan = bench.plan.clone();
    bench.land(step, &plan, 7);
    assert!(bench.scheduler.is_empty());
}

#[test]
fn a_plan_may_run_ahead_by_placeholders() {
    let mut bench = Bench::new(10, 8, 4);
    let penalised = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
    bench.submit(1, 1, 9);
    bench.scheduler.submit(Sequence::new(SequenceId(2), vec![4, 5], 9, penalised));
    let first = bench.plan().unwrap();
    let first_plan = bench.plan.clone();
    assert_eq!(first_plan.history, [4, 5]);
    bench.plan().unwrap();
    assert_eq!(bench.spans(), [(1, 1, 1), (2, 2, 1)]);
    let placeholder = |output, row, history| Placeholder { output, row, history };
    assert_eq!(bench.plan.placeholders, [placeholder(0, 0, None), placeholder(1, 1, Some(2))]);
    assert_eq!(bench.plan.history, [4, 5, 0]);
    bench.land(first, &first_plan, 7);
    bench.plan().unwrap();
    assert_eq!(bench.plan.history, [4, 5, 7, 0]);
}

#[test]
fn the_last_output_is_not_run_past() {
    let mut bench = Bench::new(10, 8, 4);
    bench.submit(1, 1, 1);
    let step = bench.plan().unwrap();
    let plan = bench.plan.clone();
    assert_eq!(bench.plan(), None);
    bench.land(step, &plan, 7);
    assert_eq!(bench.notices, [Notice::Ended(SequenceId(1), Ending::Length)]);
}

#[test]
fn blocks_linger_until_the_last_step_that_names_them_lands() {
    let mut bench = Bench::new(2, 20, 4);
    bench.submit(1, 17, 9);
    let first = bench.plan().unwrap();
    let first_plan = bench.plan.clone();
    let second = bench.plan().unwrap();
    let second_plan = bench.plan.clone();
    assert!(bench.scheduler.cancel(SequenceId(1)));
    assert_eq!(bench.scheduler.blocks().free(), 0);
    bench.land(first, &first_plan, 7);
    assert_eq!(bench.scheduler.blocks().free(), 0);
    bench.submit(2, 1, 1);
    assert_eq!(bench.plan(), None, "nothing is free yet");
    bench.land(second, &second_plan, 7);
    assert_eq!(bench.notices, [], "its token is dropped");
    assert_eq!(bench.step(), [(2, 0, 1)]);
}

#[test]
fn a_failed_step_loses_its_sequences_and_no_others() {
    let mut bench = Bench::new(10, 4, 4);
    bench.submit(1, 4, 9);
    bench.submit(2, 4, 9);
    let first = bench.plan().unwrap();
    let mut lost = Vec::new();
    bench.scheduler.abandon(first, &mut lost);
    assert_eq!(lost, [SequenceId(1)]);
    assert_eq!(bench.scheduler.blocks().free(), 10);
    assert_eq!(bench.step(), [(2, 0, 4)]);
}

#[test]
fn a_step_without_room_is_done_again_in_halves() {
    let mut bench = Bench::new(10, 8, 4);
    bench.submit(1, 4, 9);
    bench.submit(2, 4, 9);
    assert_eq!(bench.step(), [(1, 0, 4), (2, 0, 4)]);
    let third = bench.plan().unwrap();
    assert!(bench.scheduler.retreat(third));
    assert_eq!((bench.scheduler.running(), bench.scheduler.waiting(), bench.scheduler.blocks().free()), (0, 2, 10));
    assert_eq!(bench.step(), [(1, 0, 1)], "of two tokens, one");
    assert_eq!(bench.step(), [(1, 1, 2)], "and with every step that has room, one more");
    assert_eq!(bench.step(), [(1, 3, 2), (2, 0, 1)]);
    assert_eq!(bench.step(), [(1, 5, 1), (2, 1, 3)]);
}

#[test]
fn a_step_of_one_token_can_be_no_smaller() {
    let mut bench = Bench::new(10, 8, 4);
    bench.submit(1, 1, 9);
    let first = bench.plan().unwrap();
    assert!(!bench.scheduler.retreat(first));
    let mut lost = Vec::new();
    bench.scheduler.abandon(first, &mut lost);
    assert_eq!(lost, [SequenceId(1)]);
}

#[test]
fn a_failed_steps_blocks_linger_for_the_step_before() {
    let mut bench = Bench::new(10, 20, 4);
    bench.submit(1, 4, 9);
    let first = bench.plan().unwrap();
    let first_plan = bench.plan.clone();
    let second = bench.plan().unwrap();
    let mut lost = Vec::new();
    bench.scheduler.abandon(second, &mut lost);
    assert_eq!((lost.len(), bench.scheduler.blocks().free()), (1, 9));
    bench.land(first, &first_plan, 7);
    assert_eq!(bench.scheduler.blocks().free(), 10);
}

#[test]
#[should_panic(expected = "refused at the door")]
fn what_never_fits_does_not_get_in() {
    Bench::new(2, 8, 1).submit(1, 2 * BLOCK_TOKENS, 1);
}
