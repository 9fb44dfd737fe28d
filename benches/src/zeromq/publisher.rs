//! The publishers, each in a process of its own: [`run`] is the process.

use std::collections::VecDeque;
use std::io::{self, BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use hookbus_bridges::PAYLOAD_BASE64;
use hookbus_bridges::zeromq::{Publisher, PublisherOptions};
use hookbus_broker::{Broker, Message};
use nix::time::{ClockId, clock_gettime};
use tokio::runtime::Builder;
use tokio::task::yield_now;
use tokio::time::sleep;
use zeromq::{PubSocket, Socket, SocketSend, ZmqMessage};
use zmq::{Context, SNDMORE, Socket as ZmqSocket, SocketType};

use super::{ALONE, CRATE, KEY, LIBZMQ, OURS, POOL, PROBE, Published, stamp};
use crate::hm::now_ns;
use crate::libzmq::lossless;
use crate::machine;

/// What is published between two looks at the queues.
const BATCH: usize = 256;
/// What one peer may have queued before the publisher waits.
const MARK: u64 = 1000;
/// Where ours begins to drop: nobody reaches it for whom the publisher waits.
const HWM: usize = 2000;
const _: () = assert!(HWM > MARK as usize + BATCH);

const BETWEEN_PROBES: Duration = Duration::from_millis(5);

/// What the publisher is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
#[repr(u8)]
pub(super) enum Stage {
    Probing,
    Publishing,
    Stopped,
}

/// Told by the harness.
#[derive(Clone, Debug)]
pub(super) struct Control(Arc<AtomicU8>);

impl Control {
    pub(super) fn new() -> Self {
        Control(Arc::new(AtomicU8::new(Stage::Probing as u8)))
    }

    pub(super) fn set(&self, stage: Stage) {
        self.0.store(stage as u8, Ordering::Release);
    }

    fn is_before(&self, stage: Stage) -> bool {
        self.0.load(Ordering::Acquire) < stage as u8
    }
}

/// Publishes as it is told, after it has said where it listens.
pub(super) type Publish = fn(&Control, usize, usize, &mut dyn FnMut(&str) -> bool) -> io::Result<Published>;

/// Who there is.
pub(super) const PUBLISHERS: [(&str, Publish); 4] =
    [(OURS.name, ours), (ALONE.name, ours), (LIBZMQ.name, libzmq), (CRATE.name, zeromq_crate)];

/// The process: says where it listens, sends probes until it reads `go`, publishes, and says what that took when it reads `stop`.
///
/// # Errors
/// When there is no such publisher, or what its socket says.
pub fn run(who: &str, count: usize, payload_bytes: usize) -> io::Result<()> {
    let found = PUBLISHERS.iter().find(|(name, _)| *name == who);
    let (_, publish) = found.ok_or_else(|| io::Error::other(format!("{who}: there is no such publisher")))?;
    let control = Control::new();
    let told = control.clone();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            told.set(if line == "go" { Stage::Publishing } else { Stage::Stopped });
        }
        told.set(Stage::Stopped);
    });
    let published = publish(&control, count, payload_bytes, &mut |endpoint| {
        println!("{endpoint}");
        io::stdout().flush().is_ok()
    })?;
    println!("{}", published.line());
    io::stdout().flush()
}

fn pool(payload_bytes: usize) -> Vec<Bytes> {
    let payload = |n: u64| {
        let stamp = stamp(n);
        let mut payload = vec![b'x'; payload_bytes.max(stamp.len())];
        payload[..stamp.len()].copy_from_slice(&stamp);
        Bytes::from(payload)
    };
    (0..POOL as u64).map(payload).collect()
}

/// When publishing began, and what the process had used by then.
struct Meter {
    started_ns: u64,
    cpu: Duration,
}

fn cpu() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

impl Meter {
    fn start() -> io::Result<Self> {
        Ok(Meter { cpu: cpu()?, started_ns: now_ns() })
    }

    fn read(&self) -> io::Result<Published> {
        let cpu_ns = u64::try_from(cpu()?.saturating_sub(self.cpu).as_nanos()).map_err(io::Error::other)?;
        Ok(Published { started_ns: self.started_ns, cpu_ns })
    }
}

/// What is told to publish.
trait Contender {
    /// Publishes a message without a payload that shows who is there.
    async fn probe(&mut self) -> io::Result<()>;

    /// Publishes so many messages, with payloads from the pool in turn, and loses none of them.
    async fn publish(&mut self, pool: &[Bytes], count: usize) -> io::Result<()>;
}

/// Sends probes, publishes, and waits, as it is told.
async fn follow(control: &Control, mut who: impl Contender, pool: &[Bytes], count: usize) -> io::Result<Published> {
    while control.is_before(Stage::Publishing) {
        who.probe().await?;
        sleep(BETWEEN_PROBES).await;
    }
    let meter = Meter::start()?;
    who.publish(pool, count).await?;
    while control.is_before(Stage::Stopped) {
        sleep(BETWEEN_PROBES).await;
    }
    meter.read()
}

fn ours(
    control: &Control,
    count: usize,
    payload_bytes: usize,
    say: &mut dyn FnMut(&str) -> bool,
) -> io::Result<Published> {
    let pool = pool(payload_bytes);
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let broker = Broker::default();
        let endpoint = "tcp://127.0.0.1:0".parse().map_err(io::Error::other)?;
        let publisher = Publisher::bind(broker.clone(), PublisherOptions::new(endpoint).hwm(HWM).hwm_bytes(0))?;
        say(&publisher.local_endpoint().to_string());
        follow(control, Ours { broker, publisher }, &pool, count).await
    })
}

struct Ours {
    broker: Broker,
    publisher: Publisher,
}

impl Ours {
    fn message(key: &'static [u8], payload: Bytes) -> Message {
        Message::new(key, payload).with_tag(PAYLOAD_BASE64)
    }

    /// Whether anybody has too much queued. Whoever asked to be told of what is dropped is not waited for.
    fn is_full(&self) -> bool {
        self.publisher.peers().iter().any(|peer| peer.filters < 2 && peer.subscription.queued > MARK)
    }
}

impl Contender for Ours {
    async fn probe(&mut self) -> io::Result<()> {
        self.broker.publish_now(Self::message(PROBE, Bytes::new())).map(drop).map_err(io::Error::other)
    }

    async fn publish(&mut self, pool: &[Bytes], count: usize) -> io::Result<()> {
        let mut batch = VecDeque::with_capacity(BATCH);
        let mut payloads = (0..count).map(|n| pool[n % POOL].clone());
        loop {
            batch.extend(payloads.by_ref().take(BATCH).map(|payload| Self::message(&KEY, payload)));
            if batch.is_empty() {
                return Ok(());
            }
            self.broker.publish_batch_now(&mut batch).map_err(io::Error::other)?;
            // The peers are tasks of this thread.
            yield_now().await;
            while self.is_full() {
                sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

fn libzmq(
    control: &Control,
    count: usize,
    payload_bytes: usize,
    say: &mut dyn FnMut(&str) -> bool,
) -> io::Result<Published> {
    let pool = pool(payload_bytes);
    let context = Context::new();
    let publisher = lossless(&context, SocketType::PUB)?;
    publisher.set_sndhwm(i32::try_from(MARK).map_err(io::Error::other)?)?;
    publisher.bind("tcp://127.0.0.1:*")?;
    let endpoint = publisher.get_last_endpoint()?.map_err(|_| io::Error::other("an endpoint that is no text"))?;
    say(&endpoint);
    Builder::new_current_thread().enable_time().build()?.block_on(follow(control, Libzmq(publisher), &pool, count))
}

/// It sends in a thread of its own, and makes this one wait.
struct Libzmq(ZmqSocket);

impl Contender for Libzmq {
    async fn probe(&mut self) -> io::Result<()> {
        self.0.send(PROBE, SNDMORE)?;
        Ok(self.0.send(&[][..], 0)?)
    }

    async fn publish(&mut self, pool: &[Bytes], count: usize) -> io::Result<()> {
        for n in 0..count {
            self.0.send(&KEY[..], SNDMORE)?;
            self.0.send(&pool[n % POOL][..], 0)?;
        }
        Ok(())
    }
}

fn zeromq_crate(
    control: &Control,
    count: usize,
    payload_bytes: usize,
    say: &mut dyn FnMut(&str) -> bool,
) -> io::Result<Published> {
    let pool = pool(payload_bytes);
    let runtime = Builder::new_multi_thread().worker_threads(machine::cores()).enable_all().build()?;
    runtime.block_on(async {
        let mut publisher = PubSocket::new();
        let endpoint = publisher.bind("tcp://127.0.0.1:0").await.map_err(io::Error::other)?;
        say(&endpoint.to_string());
        follow(control, Crate(publisher), &pool, count).await
    })
}

struct Crate(PubSocket);

impl Crate {
    async fn send(&mut self, key: &'static [u8], payload: Bytes) -> io::Result<()> {
        let mut message = ZmqMessage::from(Bytes::from_static(key));
        message.push_back(payload);
        self.0.send(message).await.map_err(io::Error::other)
    }
}

impl Contender for Crate {
    async fn probe(&mut self) -> io::Result<()> {
        self.send(PROBE, Bytes::new()).await
    }

    async fn publish(&mut self, pool: &[Bytes], count: usize) -> io::Result<()> {
        for n in 0..count {
            self.send(&KEY, pool[n % POOL].clone()).await?;
            if n % BATCH == BATCH - 1 {
                yield_now().await;
            }
        }
        Ok(())
    }
}
