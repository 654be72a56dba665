use proptest::prelude::*;

use super::*;

fn lanes() -> Lanes<u32> {
    Lanes::new(Priority::ALL.map(weight))
}

fn asks(turns: Vec<Turn<u32>>) -> Vec<Ask> {
    turns
        .into_iter()
        .filter_map(|turn| match turn {
            Turn::Pull(ask) => Some(ask),
            Turn::Serve(_) => None,
        })
        .collect()
}

/// Answers every pull with "nothing there".
fn all_empty(lanes: &mut Lanes<u32>, asks: &[Ask], now: Instant) {
    for ask in asks {
        lanes.empty(ask.lane, ask.number, now);
    }
}

#[test]
fn without_free_slots_nothing_is_pulled() {
    assert_eq!(lanes().turns(0, Instant::now()), vec![]);
}

#[test]
fn an_idle_lane_has_one_waiting_pull_of_one() {
    let (mut lanes, now) = (lanes(), Instant::now());
    let first = asks(lanes.turns(4, now));
    all_empty(&mut lanes, &first, now);
    let second = asks(lanes.turns(4, now));
    assert_eq!(second.len(), 3);
    assert!(second.iter().all(|ask| ask.kind == Kind::Waiting && ask.batch == 1));
    assert_eq!(lanes.turns(4, now), vec![], "one outstanding pull a lane");
}

#[test]
fn a_lane_known_to_have_jobs_gets_what_is_free() {
    let (mut lanes, now) = (lanes(), Instant::now());
    let first = asks(lanes.turns(8, now));
    all_empty(&mut lanes, &first, now);
    lanes.turns(8, now);
    assert_eq!(lanes.arrived(0, 100, 8, now), Place::Slot);
    assert_eq!(asks(lanes.turns(7, now)), vec![Ask { lane: 0, number: 7, batch: 7, kind: Kind::Now }]);
    assert_eq!(lanes.arrived(2, 0, 7, now), Place::Hold, "the slots are reserved");
}

#[test]
fn a_refused_lane_rests() {
    let (mut lanes, now) = (lanes(), Instant::now());
    let later = now + Duration::from_millis(300);
    for ask in asks(lanes.turns(3, now)) {
        lanes.refused(ask.lane, ask.number, later);
    }
    assert_eq!(lanes.turns(3, now), vec![]);
    assert_eq!(lanes.look_again(now), Some(later));
    assert!(!lanes.turns(1, later).is_empty());
}

#[test]
fn an_unanswered_pull_is_made_anew_and_a_late_answer_is_ignored() {
    let (mut lanes, now) = (lanes(), Instant::now());
    let old = asks(lanes.turns(1, now));
    let later = now + EXPIRES + ANSWER;
    assert_eq!(lanes.overdue(later), old.len());
    let new = asks(lanes.turns(1, later));
    assert!(!new.is_empty());
    all_empty(&mut lanes, &old, later);
    assert!(lanes.pulling());
}

/// A server with a backlog, and slots that fill and empty.
struct Sim {
    lanes: Lanes<u32>,
    now: Instant,
    slots: usize,
    running: usize,
    backlog: [u64; 3],
    open: Vec<Ask>,
    held: [usize; 3],
    served: [u64; 3],
}

impl Sim {
    fn new(slots: usize, backlog: [u64; 3]) -> Self {
        let (lanes, now) = (lanes(), Instant::now());
        Self { lanes, now, slots, running: 0, backlog, open: vec![], held: [0; 3], served: [0; 3] }
    }

    fn turns(&mut self) {
        let free = self.slots - self.running;
        for turn in self.lanes.turns(free, self.now) {
            match turn {
                Turn::Serve(lane) => {
                    self.held[lane as usize] -= 1;
                    self.serve(lane as usize);
                }
                Turn::Pull(ask) => {
                    assert!(ask.batch <= free, "a batch is at most the free slots");
                    assert!(!self.open.iter().any(|open| open.lane == ask.lane), "one pull a lane");
                    self.open.push(ask);
                }
            }
        }
    }

    fn serve(&mut self, lane: usize) {
        self.running += 1;
        self.served[lane] += 1;
        assert!(self.running <= self.slots, "never more than the slots");
    }

    /// The server answers one open pull: with a delivery, or that there is none.
    fn answer(&mut self, which: usize) {
        if self.open.is_empty() {
            return;
        }
        let at = which % self.open.len();
        let lane = self.open[at].lane;
        if self.backlog[lane] == 0 {
            let ask = self.open.remove(at);
            return self.lanes.empty(ask.lane, ask.number, self.now);
        }
        self.backlog[lane] -= 1;
        self.open[at].batch -= 1;
        if self.open[at].batch == 0 {
            self.open.remove(at);
        }
        match self.lanes.arrived(lane, self.backlog[lane], self.slots - self.running, self.now) {
            Place::Slot => self.serve(lane),
            Place::Hold => {
                self.lanes.hold(lane, u32::try_from(lane).unwrap());
                self.held[lane] += 1;
                assert!(self.held[lane] <= 1, "at most one a lane is held");
            }
        }
    }
}

proptest! {
    #[test]
    fn slots_and_hold_are_never_exceeded(
        slots in 1_usize..9,
        backlog in prop::array::uniform3(0_u64..60),
        moves in prop::collection::vec((0_u8..4, 0_usize..9), 1..400),
    ) {
        let mut sim = Sim::new(slots, backlog);
        for (kind, which) in moves {
            match kind {
                0 => sim.running = sim.running.saturating_sub(1),
                1 => sim.backlog[which % 3] += 1,
                2 => sim.now += Duration::from_millis(200),
                _ => sim.answer(which),
            }
            sim.turns();
        }
    }

    #[test]
    fn whatever_waits_is_served(slots in 1_usize..9, backlog in prop::array::uniform3(0_u64..40)) {
        let mut sim = Sim::new(slots, backlog);
        let total: u64 = backlog.iter().sum();
        for round in 0..2000 {
            sim.turns();
            sim.answer(round);
            sim.answer(round + 1);
            sim.running = sim.running.saturating_sub(1);
            sim.now += Duration::from_millis(10);
        }
        prop_assert_eq!(sim.served.iter().sum::<u64>(), total);
    }
}

#[test]
fn under_full_load_lanes_share_by_weight() {
    let mut sim = Sim::new(4, [1_000_000; 3]);
    for _ in 0..24_000 {
        sim.turns();
        for _ in 0..8 {
            sim.answer(0);
        }
        sim.running -= 1;
        sim.now += Duration::from_millis(50);
    }
    let total: u64 = sim.served.iter().sum();
    for (lane, share) in [(0, 8.0 / 12.0), (1, 3.0 / 12.0), (2, 1.0 / 12.0)] {
        let seen = sim.served[lane] as f64 / total as f64;
        assert!((seen - share).abs() < 0.02, "lane {lane}: {seen:.3} of the turns, not {share:.3}");
    }
}
