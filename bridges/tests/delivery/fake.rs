//! A bus in memory that does what a test tells it to.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hookbus_bridges::delivery::{Bus, Fault, Letter, Limits, Receipt, Receipts, Rejection, SendError, Sender, Ticket};
use tokio::sync::{mpsc, watch};

use crate::contract::{Arrival, TestBus};

/// What becomes of one sending of one letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "the list is whole")]
pub(crate) enum Verdict {
    Confirm,
    Duplicate,
    Unroutable,
    /// Refused for now.
    Busy,
    /// Refused for good.
    Refuse,
    /// It arrives, and nothing is told.
    Mute,
    /// It doesn't arrive, and nothing is told.
    Lose,
    /// The bus does not even take it.
    Hang,
    /// The connection is lost over it.
    Break,
    /// The client library refuses it for good before it is sent.
    Invalid,
}

/// The server.
#[derive(Clone)]
pub(crate) struct FakeServer {
    state: Arc<Mutex<State>>,
    /// Which life of the server it is; 0 while it is down.
    life: Arc<watch::Sender<u64>>,
}

struct State {
    lives: u64,
    stopped: bool,
    acknowledges: bool,
    limits: Limits,
    refused: Vec<String>,
    /// What becomes of the next sendings of letters with this body.
    script: HashMap<String, VecDeque<Verdict>>,
    /// The bodies of all letters that were handed over, in order, each time.
    sent: Vec<String>,
    arrived: Vec<Arrival>,
    /// What was sent while the server was stopped.
    queue: Vec<(Ticket, Arrival, Verdict, mpsc::UnboundedSender<Receipt>)>,
    /// Whether receipts wait until the test lets them go.
    held: Option<Vec<(Receipt, mpsc::UnboundedSender<Receipt>)>>,
    connections: Vec<mpsc::UnboundedSender<Receipt>>,
    /// Why it can't be connected to.
    door: Option<Fault>,
    flushes: usize,
}

impl FakeServer {
    pub(crate) fn new() -> Self {
        let state = State {
            lives: 1,
            stopped: false,
            acknowledges: true,
            limits: Limits { letter_bytes: FakeServer::BODY_LIMIT_BYTES + 4096, in_flight: usize::MAX },
            refused: Vec::new(),
            script: HashMap::new(),
            sent: Vec::new(),
            arrived: Vec::new(),
            queue: Vec::new(),
            held: None,
            connections: Vec::new(),
            door: None,
            flushes: 0,
        };
        FakeServer { state: Arc::new(Mutex::new(state)), life: Arc::new(watch::Sender::new(1)) }
    }

    /// One that does not acknowledge.
    pub(crate) fn without_acknowledgements(self) -> Self {
        self.state.lock().unwrap().acknowledges = false;
        self
    }

    /// What becomes of the next sendings of the letter with this body; of all behind them, it is confirmed.
    pub(crate) fn script(&self, body: &str, verdicts: &[Verdict]) {
        self.state.lock().unwrap().script.insert(body.into(), verdicts.iter().copied().collect());
    }

    pub(crate) fn limits(&self, limits: Limits) {
        self.state.lock().unwrap().limits = limits;
    }

    /// Nobody gets in, for this reason.
    pub(crate) fn close_door(&self, fault: Option<Fault>) {
        self.state.lock().unwrap().door = fault;
    }

    /// Keeps receipts until [`let_receipts_go`](Self::let_receipts_go).
    pub(crate) fn hold_receipts(&self) {
        self.state.lock().unwrap().held = Some(Vec::new());
    }

    /// Lets them go, in the order that `shuffle` puts them in.
    pub(crate) fn let_receipts_go(&self, shuffle: impl FnOnce(&mut Vec<Receipt>)) {
        let held = self.state.lock().unwrap().held.take().unwrap_or_default();
        let Some(connection) = held.last().map(|(_, connection)| connection.clone()) else { return };
        let mut receipts = held.into_iter().map(|(receipt, _)| receipt).collect();
        shuffle(&mut receipts);
        for receipt in receipts {
            let _ = connection.send(receipt);
        }
    }

    /// Tells something to all that are connected.
    pub(crate) fn tell(&self, receipt: &Receipt) {
        for connection in &self.state.lock().unwrap().connections {
            let _ = connection.send(receipt.clone());
        }
    }

    /// The bodies of all that was handed over, in order, each time.
    pub(crate) fn sent(&self) -> Vec<String> {
        self.state.lock().unwrap().sent.clone()
    }

    pub(crate) fn flushes(&self) -> usize {
        self.state.lock().unwrap().flushes
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.state.lock().unwrap().arrived.clone()
    }

    pub(crate) fn bodies(&self) -> Vec<String> {
        self.arrivals().iter().map(|arrival| String::from_utf8_lossy(&arrival.body).into_owned()).collect()
    }

    /// Ends all connections; what was told and not read is lost.
    pub(crate) fn die(&self) {
        let mut state = self.state.lock().unwrap();
        state.queue.clear();
        state.connections.clear();
        state.stopped = false;
        drop(state);
        self.life.send_replace(0);
    }

    pub(crate) fn revive(&self) {
        let mut state = self.state.lock().unwrap();
        state.lives += 1;
        let life = state.lives;
        drop(state);
        self.life.send_replace(life);
    }

    fn handle(&self, ticket: Ticket, letter: &Letter, receipts: &mpsc::UnboundedSender<Receipt>) -> Verdict {
        let mut state = self.state.lock().unwrap();
        let body = String::from_utf8_lossy(&letter.body).into_owned();
        let refused = state.refused.iter().any(|part| letter.address.contains(part));
        let scripted = state.script.get_mut(&body).and_then(VecDeque::pop_front);
        let verdict = scripted.unwrap_or(if refused { Verdict::Refuse } else { Verdict::Confirm });
        state.sent.push(body);
        if matches!(verdict, Verdict::Hang | Verdict::Break | Verdict::Invalid) {
            return verdict;
        }
        let arrival = Arrival {
            id: letter.id.to_string(),
            address: letter.address.to_string(),
            body: letter.body.clone(),
            content_type: Some(letter.content_type.to_string()),
            attributes: letter.attributes.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        };
        let item = (ticket, arrival, verdict, receipts.clone());
        if state.stopped {
            state.queue.push(item);
        } else {
            state.process(item);
        }
        verdict
    }
}

impl State {
    fn process(
        &mut self,
        (ticket, arrival, verdict, receipts): (Ticket, Arrival, Verdict, mpsc::UnboundedSender<Receipt>),
    ) {
        let receipt = match verdict {
            Verdict::Confirm => Some(Receipt::Confirmed(ticket)),
            Verdict::Duplicate => Some(Receipt::Duplicate(ticket)),
            Verdict::Unroutable => Some(Receipt::Unroutable(ticket)),
            Verdict::Busy => Some(Receipt::Rejected(ticket, Rejection::Transient("busy".into()))),
            Verdict::Refuse => Some(Receipt::Rejected(ticket, Rejection::Permanent("not allowed".into()))),
            _ => None,
        };
        if !matches!(verdict, Verdict::Busy | Verdict::Refuse | Verdict::Lose | Verdict::Unroutable) {
            self.arrived.push(arrival);
        }
        if let Some(receipt) = receipt.filter(|_| self.acknowledges) {
            match &mut self.held {
                Some(held) => held.push((receipt, receipts)),
                None => drop(receipts.send(receipt)),
            }
        }
    }
}

impl TestBus for FakeServer {
    type Bus = FakeBus;

    const BODY_LIMIT_BYTES: usize = 64 << 10;

    async fn start() -> Self {
        FakeServer::new()
    }

    fn bus(&self) -> FakeBus {
        FakeBus { server: self.clone() }
    }

    async fn arrived(&mut self) -> Vec<Arrival> {
        self.arrivals()
    }

    async fn kill(&mut self) {
        self.die();
    }

    async fn restart(&mut self) {
        self.revive();
    }

    async fn stop(&mut self) {
        self.state.lock().unwrap().stopped = true;
    }

    async fn resume(&mut self) {
        let mut state = self.state.lock().unwrap();
        state.stopped = false;
        for item in std::mem::take(&mut state.queue) {
            state.process(item);
        }
    }

    async fn refuse(&mut self, part: &str, refused: bool) -> bool {
        let mut state = self.state.lock().unwrap();
        state.refused.retain(|known| known != part);
        if refused {
            state.refused.push(part.into());
        }
        true
    }
}

pub(crate) struct FakeBus {
    server: FakeServer,
}

impl Bus for FakeBus {
    type Sender = FakeSender;
    type Receipts = FakeReceipts;

    const SEPARATOR: char = '.';
    const ADDRESS_BYTES: usize = 255;

    fn acknowledges(&self) -> bool {
        self.server.state.lock().unwrap().acknowledges
    }

    async fn connect(&mut self) -> Result<(FakeSender, FakeReceipts), Fault> {
        let life = *self.server.life.borrow();
        let (stopped, door) = {
            let state = self.server.state.lock().unwrap();
            (state.stopped, state.door.clone())
        };
        if let Some(fault) = door {
            return Err(fault);
        }
        if life == 0 {
            return Err(Fault::passing("connection refused"));
        }
        if stopped {
            tokio::time::sleep(Duration::from_millis(100)).await;
            return Err(Fault::passing("no answer within 100 ms"));
        }
        let (receipts, told) = mpsc::unbounded_channel();
        self.server.state.lock().unwrap().connections.push(receipts.clone());
        let sender = FakeSender { server: self.server.clone(), life, receipts };
        Ok((sender, FakeReceipts { life, alive: self.server.life.subscribe(), told }))
    }
}

pub(crate) struct FakeSender {
    server: FakeServer,
    life: u64,
    receipts: mpsc::UnboundedSender<Receipt>,
}

impl Sender for FakeSender {
    fn limits(&self) -> Limits {
        self.server.state.lock().unwrap().limits
    }

    async fn send(&mut self, ticket: Ticket, letter: &Letter) -> Result<(), SendError> {
        if *self.server.life.borrow() != self.life {
            return Err(Fault::passing("connection lost").into());
        }
        match self.server.handle(ticket, letter, &self.receipts) {
            Verdict::Hang => pending().await,
            Verdict::Break => Err(Fault::passing("connection lost over a letter").into()),
            Verdict::Invalid => Err(Rejection::Permanent("invalid".into()).into()),
            _ => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<(), Fault> {
        self.server.state.lock().unwrap().flushes += 1;
        Ok(())
    }

    async fn close(self) {}
}

pub(crate) struct FakeReceipts {
    life: u64,
    alive: watch::Receiver<u64>,
    told: mpsc::UnboundedReceiver<Receipt>,
}

impl Receipts for FakeReceipts {
    async fn next(&mut self, into: &mut Vec<Receipt>) -> Result<(), Fault> {
        let life = self.life;
        tokio::select! {
            biased;
            _ = self.alive.wait_for(|now| *now != life) => Err(Fault::passing("connection reset")),
            count = self.told.recv_many(into, 1024) => {
                if count == 0 { Err(Fault::passing("connection reset")) } else { Ok(()) }
            }
        }
    }
}
