//! What every walk of a delivery needs.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use protocol::token::Token;
use runtime::Bus;
use runtime::cache::Responses;
use runtime::sessions::Sessions;
use tokio_util::sync::CancellationToken;

use crate::company::Company;
use crate::delivery::Hand;
use crate::heard::Heard;
use crate::model::Model;
use crate::reader::Reader;
use crate::settle::Acks;

/// A worker's parts; shared by its tasks.
pub struct Worker {
    /// Its name, new with every start.
    pub name: Token,
    /// The bus.
    pub bus: Bus,
    /// Conversations.
    pub sessions: Sessions,
    /// The response cache.
    pub responses: Responses,
    /// What it computes on.
    pub device: String,
    /// What it runs.
    pub models: Vec<Model>,
    /// Turns input into what they read.
    pub reader: Reader,
    /// Jobs at once.
    pub slots: usize,
    /// Its rank in the queue.
    pub rank: u8,
    /// What changes as it works.
    pub now: Now,
}

/// What is so of a worker just now; one that starts has nothing in hand.
#[derive(Default)]
pub struct Now {
    /// Deliveries in hand.
    pub hand: Arc<Hand>,
    /// Jobs that ended elsewhere. Written by the run loop, read by admission.
    pub heard: Heard,
    /// Acks of what has ended.
    pub acks: Acks,
    /// With whom its jobs compute.
    pub company: Company,
    /// An engine makes no steps: nothing more is pulled. Written by the heart, read by the run loop.
    pub stalled: AtomicBool,
    /// Every lane refuses pulls. Written by the run loop, read by whoever asks for readiness.
    pub astray: AtomicBool,
    /// Second stage of the stop: what computes is given back.
    pub quit: CancellationToken,
}

/// A name that no other worker has.
#[must_use]
pub fn fresh_name() -> Token {
    Token::parse("worker", &format!("w{}", uuid::Uuid::now_v7().simple())).expect("hexadecimal digits are a token")
}
