//! The server goes away and comes back.

use std::fs;
use std::time::Duration;

use hookbus_bridges::amqp::{AmqpBus, AmqpOptions};
use hookbus_bridges::delivery::{Bus, Receipts, Sender, Ticket};
use lapin::types::FieldTable;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, timeout};

use super::direct::{assert_numbers, deliver, numbered, refused};
use super::servers::PATIENCE;
use super::servers::rabbitmq::RabbitMq;
use super::{SHORT, options, queue, taken};

const COUNT: usize = 20_000;

/// The server is killed and started again, stopped and continued while events are published: all arrive, in order by first arrival.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away() {
    let mut server = block_in_place(RabbitMq::start);
    queue(&server, "hookbus", &["#"], FieldTable::default()).await;
    block_in_place(|| server.flush());
    nothing_is_lost(&mut server, super::servers::rabbitmq::RabbitMq::restart).await;
    nothing_is_lost(&mut server, |server| {
        server.process.stop();
        std::thread::sleep(Duration::from_secs(3)); // the outage itself
        server.process.resume();
    })
    .await;
    handshakes_that_hang_leave_no_threads(&server).await;
    the_end_of_a_connection_is_told(&mut server).await;
}

async fn nothing_is_lost(server: &mut RabbitMq, outage: impl Fn(&mut RabbitMq)) {
    let letters = numbered::<AmqpBus>(COUNT).await;
    let mut bus = AmqpBus::new(AmqpOptions { step_timeout: Duration::from_secs(2), ..options(server, "hookbus") });
    let (midway, reached) = tokio::sync::oneshot::channel();
    let delivery = tokio::spawn(async move {
        let (first, rest) = letters.split_at(COUNT / 10);
        let outcome = deliver(&mut bus, first, 500, SHORT).await;
        assert_eq!(outcome.confirmed, COUNT / 10, "{}", outcome.summary());
        midway.send(()).unwrap();
        deliver(&mut bus, rest, 500, Duration::from_millis(1000)).await
    });
    reached.await.unwrap();
    block_in_place(|| outage(server));
    let outcome = delivery.await.unwrap();
    assert!(!outcome.faults.is_empty(), "events were on their way: {outcome:?}");
    assert_eq!(outcome.confirmed, COUNT - COUNT / 10, "{}", outcome.summary());
    let arrived = taken(server, "hookbus").await;
    assert_numbers(arrived.into_iter().map(|message| message.delivery.data.clone()), COUNT);
}

/// The library has a thread for each connection. A server that doesn't answer must not collect them.
async fn handshakes_that_hang_leave_no_threads(server: &RabbitMq) {
    // Those of the connections that were closed before; while the server is stopped they would wait for its goodbye.
    no_threads_are_left().await;
    server.process.stop();
    let mut bus = AmqpBus::new(AmqpOptions { step_timeout: Duration::from_millis(100), ..options(server, "hookbus") });
    for _ in 0..5 {
        let fault = refused(&mut bus).await;
        assert!(!fault.needs_help && fault.reason.ends_with("doesn't answer"), "{fault}");
    }
    no_threads_are_left().await;
    server.process.resume();
}

async fn no_threads_are_left() {
    let end = Instant::now() + PATIENCE;
    while threads() > 0 {
        assert!(Instant::now() < end, "{} threads are left", threads());
        sleep(Duration::from_millis(10)).await;
    }
}

fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "lapin-io-loop").count()
}

/// The end of a connection is told to both ends, and nothing hangs.
async fn the_end_of_a_connection_is_told(server: &mut RabbitMq) {
    let mut bus = AmqpBus::new(options(server, "hookbus"));
    let (mut sender, mut receipts) = bus.connect().await.unwrap();
    block_in_place(|| server.process.kill());
    let mut told = Vec::new();
    let fault = timeout(PATIENCE, receipts.next(&mut told)).await.unwrap().unwrap_err();
    assert!(!fault.needs_help && fault.reason.starts_with("the connection to amqp://127.0.0.1:"), "{fault}");
    // The receipts say it, over and over; publishing never waits, and leaves it to them.
    sender.send(Ticket(1), &numbered::<AmqpBus>(1).await[0]).await.unwrap();
    let again = timeout(PATIENCE, receipts.next(&mut told)).await.unwrap().unwrap_err();
    assert_eq!((again, told), (fault, Vec::new()));
    timeout(PATIENCE, sender.close()).await.unwrap();
    let fault = refused(&mut bus).await;
    assert!(!fault.needs_help && fault.reason.contains("can't be reached"), "{fault}");
}
