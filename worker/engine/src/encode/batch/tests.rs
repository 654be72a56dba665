use super::*;
use proptest::prelude::*;
use std::time::Duration;

const BUDGET: Budget = Budget { units: 100, inputs: 4, max_wait: Duration::ZERO };

fn waiting(job: u64, units: usize, kind: u32, since: Instant) -> Waiting {
    Waiting { job: JobKey(job), cost: Cost { units, kind }, since, turn: Which::First }
}

/// A queue of inputs (units, kind), each of a job of its own.
fn queue(budget: Budget, now: Instant, inputs: &[(usize, u32)]) -> Queue {
    let mut queue = Queue::new(budget);
    for (key, (units, kind)) in (0..).zip(inputs) {
        queue.push(InputKey(key), waiting(key, *units, *kind, now));
    }
    queue
}

fn keys(batch: &[(InputKey, Waiting)]) -> Vec<u64> {
    batch.iter().map(|(key, _)| key.0).collect()
}

fn check(inputs: &[(usize, u32)], expected: &[(&[u64], Close)]) {
    let now = Instant::now();
    let (mut queue, mut batch) = (queue(BUDGET, now, inputs), Vec::new());
    for (inside, close) in expected {
        assert_eq!(queue.choose(now, &mut batch), Choice::Run(*close), "{inputs:?}");
        assert_eq!(keys(&batch), *inside, "{inputs:?}");
    }
    assert_eq!(queue.choose(now, &mut batch), Choice::Empty);
}

#[test]
fn batches_close_for_a_reason() {
    check(&[], &[]);
    check(&[(10, 0), (20, 0)], &[(&[0, 1], Close::Idle)]);
    check(&[(50, 0), (50, 0), (1, 0)], &[(&[0, 1], Close::Full), (&[2], Close::Idle)]);
    check(&[(1, 0); 5], &[(&[0, 1, 2, 3], Close::Full), (&[4], Close::Idle)]);
    check(&[(1, 0), (1, 7), (1, 0)], &[(&[0, 2], Close::Kind), (&[1], Close::Idle)]);
    check(&[(60, 0), (60, 0), (40, 0)], &[(&[0, 2], Close::Full), (&[1], Close::Idle)]);
    check(&[(60, 0), (60, 0), (30, 0)], &[(&[0, 2], Close::Full), (&[1], Close::Idle)]);
}

#[test]
fn batches_without_room_are_halved_and_grow_back() {
    let now = Instant::now();
    let (mut queue, mut batch) = (queue(BUDGET, now, &[(25, 0); 8]), Vec::new());
    let mut next = |queue: &mut Queue| {
        assert!(matches!(queue.choose(now, &mut batch), Choice::Run(_)));
        batch.clone()
    };
    let first = next(&mut queue);
    assert_eq!(keys(&first), [0, 1, 2, 3]);
    queue.halve(&first);
    let half = next(&mut queue);
    assert_eq!(keys(&half), [0, 1]);
    queue.halve(&half);
    assert_eq!(keys(&next(&mut queue)), [0]);
    assert_eq!(keys(&next(&mut queue)), [1], "as small as it was until there is room");
    (0..64).for_each(|_| queue.grow());
    assert_eq!(keys(&next(&mut queue)), [2, 3, 4, 5], "and no larger than the budget then");
}

#[test]
fn what_costs_nothing_gets_fewer_too() {
    let now = Instant::now();
    let (mut queue, mut batch) = (queue(BUDGET, now, &[(0, 0); 4]), Vec::new());
    for inputs in [4, 1] {
        queue.choose(now, &mut batch);
        assert_eq!(batch.len(), inputs);
        queue.halve(&batch);
    }
}

#[test]
fn what_costs_more_than_the_budget_runs_alone() {
    check(&[(500, 0), (0, 0), (1, 0)], &[(&[0], Close::Full), (&[1, 2], Close::Idle)]);
    check(&[(1, 0), (500, 0)], &[(&[0], Close::Full), (&[1], Close::Full)]);
}

#[test]
fn a_short_input_does_not_wait_for_the_end_of_those_that_go_on() {
    let now = Instant::now();
    let (mut queue, mut batch) = (queue(BUDGET, now, &[(60, 0), (60, 0)]), Vec::new());
    let mut seen = Vec::new();
    for _ in 0..4 {
        queue.choose(now, &mut batch);
        seen.push(keys(&batch)[0]);
        let (key, long) = batch[0];
        queue.push(key, Waiting { turn: Which::Next, ..long });
    }
    assert_eq!(seen, [0, 1, 0, 1]);
}

/// Jobs of so many inputs each, that no batch holds together; which job each batch has inputs of.
fn served(budget: Budget, inputs: &[usize]) -> Vec<Vec<u64>> {
    let now = Instant::now();
    let (mut queue, mut batch, mut key) = (Queue::new(budget), Vec::new(), 0);
    for (job, inputs) in (0..).zip(inputs) {
        for _ in 0..*inputs {
            queue.push(InputKey(key), waiting(job, 1, 0, now));
            key += 1;
        }
    }
    let mut served = Vec::new();
    while queue.choose(now, &mut batch) != Choice::Empty {
        served.push(batch.iter().map(|(_, input)| input.job.0).collect());
    }
    served
}

#[test]
fn a_job_of_many_inputs_does_not_keep_others_waiting() {
    let batches = served(BUDGET, &[256, 1, 2]);
    assert_eq!(batches[..3], [vec![0; 4], vec![1, 2, 2, 0], vec![0; 4]]);
    assert_eq!(batches.iter().flatten().filter(|job| **job == 0).count(), 256);
    // Two of many share what there is.
    let batches = served(Budget { inputs: 1, ..BUDGET }, &[3, 3, 1]);
    assert_eq!(batches.concat(), [0, 1, 2, 0, 1, 0, 1]);
}

#[test]
fn company_is_waited_for_only_where_it_is_hoped_for() {
    let start = Instant::now();
    let max_wait = Duration::from_millis(5);
    let budget = Budget { max_wait, ..BUDGET };
    let (mut queue, mut batch) = (queue(budget, start, &[(1, 0)]), Vec::new());
    assert_eq!(queue.choose(start, &mut batch), Choice::Run(Close::Idle), "nobody was there before");
    for key in 1..3 {
        queue.push(InputKey(key), waiting(key, 1, 0, start));
    }
    assert_eq!(queue.choose(start, &mut batch), Choice::Run(Close::Idle), "as many as before, or more");
    queue.push(InputKey(3), waiting(3, 1, 0, start));
    assert_eq!(queue.choose(start, &mut batch), Choice::Wait(start + max_wait), "two were there before");
    assert!(batch.is_empty() && queue.len() == 1);
    assert_eq!(queue.choose(start + max_wait, &mut batch), Choice::Run(Close::Waited));
    queue.push(InputKey(4), waiting(4, 1, 0, start));
    assert_eq!(queue.choose(start, &mut batch), Choice::Run(Close::Idle), "one was there before");
    // Many inputs of one job are no crowd.
    for key in 5..8 {
        queue.push(InputKey(key), waiting(9, 1, 0, start));
    }
    assert_eq!(queue.choose(start, &mut batch), Choice::Run(Close::Idle));
    queue.push(InputKey(8), waiting(8, 1, 0, start));
    assert_eq!(queue.choose(start, &mut batch), Choice::Run(Close::Idle));
}

#[test]
fn the_wait_counts_from_the_oldest_of_a_batch_wherever_it_stands() {
    let start = Instant::now();
    let max_wait = Duration::from_millis(5);
    let (mut queue, mut batch) = (Queue::new(Budget { max_wait, ..BUDGET }), Vec::new());
    for (key, (job, units)) in (0..).zip([(0, 50), (1, 25), (2, 25), (0, 10)]) {
        queue.push(InputKey(key), waiting(job, units, 0, start));
    }
    let later = start + Duration::from_millis(3);
    queue.push(InputKey(4), waiting(4, 10, 0, later));
    assert_eq!(queue.choose(later, &mut batch), Choice::Run(Close::Full));
    assert_eq!(queue.choose(later, &mut batch), Choice::Wait(start + max_wait), "three jobs were there before");
    assert_eq!(queue.choose(start + max_wait, &mut batch), Choice::Run(Close::Waited));
    assert_eq!(keys(&batch), [4, 3]);
}

#[test]
fn a_hope_that_comes_true_or_an_input_that_goes_on_is_not_waited_for() {
    let now = Instant::now();
    let budget = Budget { max_wait: Duration::from_secs(1), ..BUDGET };
    let (mut queue, mut batch) = (queue(budget, now, &[(1, 0), (1, 0)]), Vec::new());
    queue.choose(now, &mut batch);
    queue.push(InputKey(2), waiting(2, 1, 0, now));
    assert!(matches!(queue.choose(now, &mut batch), Choice::Wait(_)));
    queue.push(InputKey(3), waiting(3, 1, 0, now));
    assert_eq!(queue.choose(now, &mut batch), Choice::Run(Close::Idle));
    let on = Waiting { turn: Which::Next, ..waiting(2, 1, 0, now) };
    queue.push(InputKey(2), on);
    assert_eq!(queue.choose(now, &mut batch), Choice::Run(Close::Idle));
}

#[test]
fn a_jobs_inputs_can_be_taken_out() {
    let now = Instant::now();
    let (mut queue, mut batch) = (queue(BUDGET, now, &[(1, 0); 4]), Vec::new());
    queue.remove(InputKey(1)..InputKey(3));
    queue.choose(now, &mut batch);
    assert_eq!(keys(&batch), [0, 3]);
    queue.remove(InputKey(0)..InputKey(9));
    assert!(queue.is_empty());
}

/// What happens to a queue.
#[derive(Clone, Debug)]
enum Move {
    Arrive(usize, u32),
    /// A batch runs, and every input whose number divides by this goes on.
    Run(u64),
    Leave(prop::sample::Index),
    Pass(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        5 => (0_usize..150, 0_u32..3).prop_map(|(units, kind)| Move::Arrive(units, kind)),
        3 => (1_u64..9).prop_map(Move::Run),
        1 => any::<prop::sample::Index>().prop_map(Move::Leave),
        1 => (0_u64..4).prop_map(Move::Pass),
    ];
    prop::collection::vec(one, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing is lost or doubled, the first is always next, budget and kind hold, no wait is longer than it may, and
    /// what did not run is passed by no job that did.
    #[test]
    fn every_batch_keeps_the_rules(moves in moves(), max_wait in 0_u64..3) {
        let mut now = Instant::now();
        let budget = Budget { max_wait: Duration::from_millis(max_wait), ..BUDGET };
        let mut queue = Queue::new(budget);
        let (mut batch, mut next) = (Vec::new(), 0);
        let mut inside: Vec<(InputKey, Waiting)> = Vec::new();
        for step in moves {
            match step {
                Move::Arrive(units, kind) => {
                    let input = waiting(next / 2, units, kind, now);
                    queue.push(InputKey(next), input);
                    inside.push((InputKey(next), input));
                    next += 1;
                }
                Move::Leave(at) if !inside.is_empty() => {
                    let (key, _) = inside.remove(at.index(inside.len()));
                    queue.remove(key..InputKey(key.0 + 1));
                }
                Move::Leave(_) => {}
                Move::Pass(millis) => now += Duration::from_millis(millis),
                Move::Run(divisor) => {
                    let choice = queue.choose(now, &mut batch);
                    let Some((head, first)) = inside.first().copied() else {
                        prop_assert_eq!(choice, Choice::Empty);
                        continue;
                    };
                    let close = match choice {
                        Choice::Run(close) => close,
                        Choice::Wait(end) => {
                            let oldest = inside.iter().map(|(_, input)| input.since).min().expect("the first");
                            prop_assert!(end > now && end == oldest + budget.max_wait);
                            prop_assert!(batch.is_empty());
                            continue;
                        }
                        Choice::Empty => return Err(TestCaseError::fail("inputs wait")),
                    };
                    prop_assert_eq!(batch[0].0, head);
                    let place = |key: InputKey| inside.iter().position(|(other, _)| *other == key);
                    prop_assert!(batch.is_sorted_by_key(|(key, _)| place(*key)) && batch.len() <= budget.inputs);
                    let units: usize = batch.iter().map(|(_, input)| input.cost.units).sum();
                    prop_assert!(units <= budget.units || batch.len() == 1);
                    prop_assert!(batch.iter().all(|(_, input)| input.cost.kind == first.cost.kind));
                    let others = inside.len() - batch.len();
                    prop_assert!(others > 0 || close != Close::Kind);
                    prop_assert!(others == 0 || matches!(close, Close::Full | Close::Kind));
                    for (key, input) in &batch {
                        let place = inside.iter().position(|(other, _)| other == key).expect("it waited");
                        prop_assert_eq!(inside.remove(place).1, *input);
                    }
                    let ran = |job: JobKey| batch.iter().any(|(_, input)| input.job == job);
                    let (behind, before): (Vec<_>, Vec<_>) = inside.into_iter().partition(|(_, input)| ran(input.job));
                    inside = [before, behind].concat();
                    for (key, input) in &batch {
                        if key.0 % divisor == 0 {
                            let on = Waiting { turn: Which::Next, ..*input };
                            queue.push(*key, on);
                            inside.push((*key, on));
                        }
                    }
                }
            }
            prop_assert_eq!(queue.len(), inside.len());
        }
    }

    /// Whatever comes meanwhile, a job that waits has an input in one of as many batches as there are jobs.
    #[test]
    fn no_job_starves(rounds in prop::collection::vec(prop::collection::vec(arrivals(), 0..6), 1..60)) {
        let now = Instant::now();
        let (mut queue, mut batch, mut key) = (Queue::new(BUDGET), Vec::new(), 0);
        let (mut waits, mut passed_by) = ([0; JOBS], [0; JOBS]);
        let still_to_come = rounds.iter().flatten().count();
        for round in rounds.into_iter().chain(std::iter::repeat_n(Vec::new(), still_to_come)) {
            for (job, units, kind) in round {
                queue.push(InputKey(key), waiting(job as u64, units, kind, now));
                waits[job] += 1;
                key += 1;
            }
            queue.choose(now, &mut batch);
            for job in 0..JOBS {
                let served = batch.iter().filter(|(_, input)| input.job.0 == job as u64).count();
                waits[job] -= served;
                passed_by[job] = if served > 0 || waits[job] == 0 { 0 } else { passed_by[job] + 1 };
                prop_assert!(passed_by[job] < JOBS);
            }
        }
        prop_assert_eq!((queue.len(), waits), (0, [0; JOBS]));
    }
}

/// Jobs of [`no_job_starves`].
const JOBS: usize = 7;

/// Job, units and kind of an input.
fn arrivals() -> impl Strategy<Value = (usize, usize, u32)> {
    (0..JOBS, 0_usize..150, 0_u32..3)
}
