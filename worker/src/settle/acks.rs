//! Acks of what was delivered, told in rounds. A server takes what comes over one connection in order, so the answer to
//! the last ack of a round tells of all of them, and of what was said before them. While it is awaited the next round
//! gathers, so that a lane without company waits for nothing.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::Subject;
use async_nats::client::Request;
use bytes::Bytes;
use runtime::Bus;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Acks of a round.
const ROUND: usize = 64;
const ACK: Bytes = Bytes::from_static(b"+ACK");

/// Whether the server is known to have an ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It is.
    Surely,
    /// It may have it.
    Perhaps,
}

/// One that waits for its round.
struct Waiting {
    to: Subject,
    told: oneshot::Sender<Heard>,
}

/// The rounds of every lane, each a task of its own.
#[derive(Default)]
pub struct Acks(Mutex<HashMap<usize, UnboundedSender<Waiting>>>);

impl Acks {
    /// Acks in the next round of a lane.
    pub(super) async fn tell(&self, bus: &Bus, lane: usize, to: Subject) -> Heard {
        let (told, heard) = oneshot::channel();
        self.enter(bus, lane, Waiting { to, told });
        heard.await.unwrap_or(Heard::Perhaps)
    }

    fn enter(&self, bus: &Bus, lane: usize, waiting: Waiting) {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rounds = lanes.entry(lane).or_insert_with(|| {
            let (sender, waiting) = unbounded_channel();
            tokio::spawn(rounds(bus.clone(), waiting));
            sender
        });
        // The task lives as long as this sender; did it not, whoever waits would hear of that.
        let _ = rounds.send(waiting);
    }
}

/// Acks and waits for the answer to this very one.
pub(super) async fn tell_alone(bus: &Bus, to: Subject) -> Heard {
    let request = Request::new().payload(ACK).timeout(Some(TIMEOUT));
    match bus.client.send_request(to, request).await {
        Ok(_) => Heard::Surely,
        Err(error) => {
            tracing::debug!(%error, "no answer to an ack");
            Heard::Perhaps
        }
    }
}

async fn rounds(bus: Bus, mut waiting: UnboundedReceiver<Waiting>) {
    let mut round = Vec::new();
    while waiting.recv_many(&mut round, ROUND).await > 0 {
        let heard = tell_all(&bus, &round).await;
        for waiting in round.drain(..) {
            let _ = waiting.told.send(heard);
        }
    }
}

/// Of a round that two connections had, nothing is known.
async fn tell_all(bus: &Bus, round: &[Waiting]) -> Heard {
    let Some((last, others)) = round.split_last() else { return Heard::Surely };
    let connection = bus.connections();
    for other in others {
        if bus.client.publish(other.to.clone(), ACK).await.is_err() {
            return Heard::Perhaps;
        }
    }
    let heard = tell_alone(bus, last.to.clone()).await;
    if bus.connections() == connection { heard } else { Heard::Perhaps }
}

#[cfg(test)]
mod tests {
    use ::tests::servers::NatsServer;
    use async_nats::jetstream::consumer::pull;
    use async_nats::jetstream::stream::{Config, RetentionPolicy, Stream};
    use futures::future::join_all;
    use futures::{StreamExt, TryStreamExt};
    use runtime::bus;
    use runtime::config::Nats;

    use super::*;

    /// Deliveries of a queue, by where they are acked.
    async fn deliveries(bus: &Bus, count: usize) -> (Stream, Vec<Subject>) {
        let queue = Config {
            name: "QUEUE".to_owned(),
            subjects: vec!["queue".to_owned()],
            retention: RetentionPolicy::WorkQueue,
            ..Config::default()
        };
        let queue = bus.js.create_stream(queue).await.unwrap();
        for _ in 0..count {
            bus.js.publish("queue", Bytes::new()).await.unwrap().await.unwrap();
        }
        let durable_name = Some("worker".to_owned());
        let consumer = queue.create_consumer(pull::Config { durable_name, ..pull::Config::default() }).await.unwrap();
        let messages = consumer.fetch().max_messages(count).messages().await.unwrap();
        let to = messages.map_ok(|message| message.message.reply.unwrap()).collect::<Vec<_>>().await;
        (queue, to.into_iter().map(Result::unwrap).collect())
    }

    async fn connect(server: &NatsServer) -> Bus {
        bus::connect(&Nats { url: server.url(), ..Nats::default() }, "acks").await.unwrap()
    }

    #[tokio::test]
    async fn a_round_is_told_as_a_whole() {
        let server = NatsServer::start();
        let bus = connect(&server).await;
        let (mut queue, to) = deliveries(&bus, 10).await;
        let acks = Acks::default();
        let heard = join_all(to.into_iter().map(|to| acks.tell(&bus, 0, to))).await;
        assert_eq!(heard, [Heard::Surely; 10]);
        assert_eq!(queue.info().await.unwrap().state.messages, 0);
    }

    #[tokio::test]
    async fn a_round_without_an_answer_says_nothing_of_any() {
        let server = NatsServer::start();
        let bus = connect(&server).await;
        let (mut queue, mut to) = deliveries(&bus, 3).await;
        to.push(Subject::from_static("nobody"));
        let acks = Acks::default();
        let heard = join_all(to.iter().map(|to| acks.tell(&bus, 0, to.clone()))).await;
        assert_eq!(heard, [Heard::Perhaps; 4]);
        // Each is told once more by itself then: what was acked meanwhile is answered all the same.
        assert_eq!(tell_alone(&bus, to[0].clone()).await, Heard::Surely);
        assert_eq!(queue.info().await.unwrap().state.messages, 0);
    }
}
