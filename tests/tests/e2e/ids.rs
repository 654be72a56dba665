//! An id is one job, whoever says it, however often, at whichever door.

use futures::future::join_all;
use tests::client::Ask;
use tests::fleet::{Fleet, FleetOptions};

#[tokio::test]
async fn an_id_is_one_job() {
    let (_fleet, client) = Fleet::start(FleetOptions::default()).await;
    let ask = Ask::text("Which ship?", 16).header("Flotilla-Id", "order-1");
    let first = client.ask(&ask).await;
    assert_eq!((first.status(), first.header("Flotilla-Job")), ("done", "order-1"));
    for _ in 0..3 {
        let again = client.ask(&ask).await;
        assert_eq!((again.header("Flotilla-Job"), again.answer()), ("order-1", first.answer()));
    }
    // A repeat may want its answer in another form.
    let streamed = client.open(&ask.clone().streamed()).await.all().await;
    assert!(streamed.last().is_some_and(|end| end.is_end()));
    assert_eq!(client.taken("JOBS").await, 1);

    let other = Ask::text("Which harbour?", 16).header("Flotilla-Id", "order-1");
    assert_eq!(client.ask(&other).await.code(), "invalid_request");
    let mut longer = Ask::text("Which ship?", 17);
    longer = longer.header("Flotilla-Id", "order-1");
    assert_eq!(client.ask(&longer).await.code(), "invalid_request");
    assert_eq!(client.result("order-1").await.answer(), first.answer());
    assert_eq!(client.taken("JOBS").await, 1);

    // Ids are a tenant's own.
    client.submit("red", &other).await;
    assert_eq!(client.result("order-1").await.answer(), first.answer());
}

#[tokio::test]
async fn an_id_at_both_doors_of_two_dispatchers_at_once_is_one_job() {
    let (mut fleet, client) = Fleet::start(FleetOptions::default()).await;
    fleet.add_dispatcher().await;
    for round in 0..5 {
        let id = format!("both-{round}");
        let ask = Ask::text("Which ship?", 64).header("Flotilla-Id", &id);
        let asked = join_all((0..8).map(|_| client.ask(&ask)));
        let submitted = join_all((0..8).map(|_| client.submit("default", &ask)));
        let (asked, _) = tokio::join!(asked, submitted);
        let kept = client.settled(&id).await.answer();
        assert!(asked.iter().all(|reply| reply.answer() == kept && reply.header("Flotilla-Job") == id));
        assert_eq!(client.taken("JOBS").await, round + 1);
        assert_eq!(client.held("RESULTS").await, round + 1);
    }
}

#[tokio::test]
async fn of_two_bodies_under_one_id_one_wins() {
    let (_fleet, client) = Fleet::start(FleetOptions::default()).await;
    let asks: Vec<Ask> =
        (0..8).map(|n| Ask::text(&format!("Ship {}?", n % 2), 32).header("Flotilla-Id", "fight")).collect();
    let replies = join_all(asks.iter().map(|ask| client.ask(ask))).await;
    let done: Vec<usize> = (0..8).filter(|&n| replies[n].status() == "done").collect();
    assert_eq!(done.len(), 4, "{replies:?}");
    assert!(done.iter().all(|n| n % 2 == done[0] % 2));
    assert!((0..8).filter(|n| !done.contains(n)).all(|n| replies[n].code() == "invalid_request"));
    assert_eq!(client.taken("JOBS").await, 1);
}
