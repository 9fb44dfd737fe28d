//! `hookbus demo`: the whole way of an event, with nothing but this program.
//!
//! Recorded events are published to a broker. Three subscribers are built in, each to show something: `everything` is what is
//! on the screen, `machines` has a prefix, `sleepy` sleeps most of the time and has a small high-water mark, so that it loses some, and
//! is told which. Whoever subscribes to the ZeroMQ port shows up beside them.
//!
//! ```text
//!   recording ─▶ BROKER ─▶ everything ─▶ screen
//!                      ├─▶ machines, sleepy
//!                      └─▶ ZeroMQ port ─▶ whoever connects
//! ```
//!
//! It listens on a free port of 127.0.0.1 and writes no file, so that it disturbs nothing.

mod recording;
mod view;

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use hookbus_bridges::opennebula::Parser;
use hookbus_bridges::zeromq::{Endpoint, Publisher, PublisherOptions};
use hookbus_broker::{
    Broker, BrokerOptions, Delivery, Offset, Overflow, Received, SubscribeOptions, Subscription, SubscriptionStats,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::cli::{DemoArgs, GlobalArgs};
use crate::config::{Config, Problem, Reading};
use crate::log;
use view::{Audience, View, display_name};

/// The slow subscriber sleeps while so many events are published, and has room for so many.
const SLEEPY_NAP_EVENTS: f64 = 15.0;
const SLEEPY_HWM: usize = 10;
/// How often the clock looks whether events are due, at most.
const SHORTEST_TICK: Duration = Duration::from_millis(5);
/// How often it is looked who has come.
const LOOK_AROUND: Duration = Duration::from_millis(250);

/// Plays until it is over or somebody ends it.
pub(crate) fn run(global: &GlobalArgs, args: &DemoArgs) -> ExitCode {
    let config = match configuration(global) {
        Ok(config) => config,
        Err(problems) => {
            // Where standard error is closed nobody wants to know.
            let _ = problems.iter().try_for_each(|problem| writeln!(anstream::stderr(), "error: {problem}"));
            return ExitCode::from(2);
        }
    };
    // What is told on the screen needs no log beside it, so errors and warnings are enough.
    log::to_stderr(global.log_format, config.as_ref().map_or("warn", |config| config.log.level.directive()));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            tracing::error!("demo: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(play(&config.unwrap_or_default(), args)) {
        Ok(()) => ExitCode::SUCCESS,
        // `| head` has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("demo: {e}");
            ExitCode::FAILURE
        }
    }
}

/// The configuration, if one is named. Nothing that lies around on this machine matters to the demo.
fn configuration(global: &GlobalArgs) -> Result<Option<Config>, Vec<Problem>> {
    let Some(path) = &global.config else { return Ok(None) };
    Reading::of_file(Some(path)).strict().map(|(config, _)| Some(config))
}

async fn play(config: &Config, args: &DemoArgs) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let broker = Broker::new(BrokerOptions::default().max_bytes(config.broker.max_bytes.bytes()));
    let free_port = Endpoint::tcp(std::net::Ipv4Addr::LOCALHOST, 0);
    let options = PublisherOptions::new(free_port).hwm(config.zeromq.hwm).hwm_bytes(config.zeromq.hwm_bytes.bytes());
    let publisher = Publisher::bind(broker.clone(), options)?;
    let mut demo = Demo::new(args, broker, View::new());
    demo.view.note(&welcome(args, publisher.local_endpoint()))?;

    let period = Duration::from_secs_f64(1.0 / args.rate);
    let mut tick = interval(period.max(SHORTEST_TICK));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sleepy_wakes = interval(period.mul_f64(SLEEPY_NAP_EVENTS).max(SHORTEST_TICK));
    sleepy_wakes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look_around = interval(LOOK_AROUND);
    look_around.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !demo.is_over() {
        tokio::select! {
            biased;
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            Some(_) = demo.machines.recv() => {}
            Some(delivery) = demo.everything.recv() => demo.show(&delivery)?,
            _ = sleepy_wakes.tick() => demo.wake_sleepy()?,
            _ = look_around.tick() => demo.look_around()?,
            _ = tick.tick() => demo.publish_due()?,
        }
    }
    let took = demo.started.elapsed();
    // Whoever has connected gets the last events, too.
    let subscribers = demo.broker.subscriptions();
    publisher.shutdown(Duration::from_secs(1)).await;
    demo.view.summary(demo.published, took, &subscribers)
}

struct Demo {
    events: Vec<hookbus_broker::Message>,
    rate: f64,
    count: u64,
    broker: Broker,
    everything: Subscription,
    machines: Subscription,
    sleepy: Subscription,
    parser: Parser,
    view: View,
    started: Instant,
    published: u64,
    shown: u64,
    /// Who each event that isn't on the screen yet was for.
    audiences: VecDeque<(Offset, Audience)>,
    /// The ZeroMQ peers that were seen last, by the number of their subscription.
    peers: HashMap<u64, String>,
}

impl Demo {
    fn new(args: &DemoArgs, broker: Broker, view: View) -> Self {
        // What the screen shows is never dropped: it is published by the same task that reads it.
        let everything = broker.subscribe(SubscribeOptions::new("everything").prefix("").hwm(0));
        let machines = broker.subscribe(SubscribeOptions::new("machines").prefix("EVENT STATE VM/").hwm(0));
        let sleepy = SubscribeOptions::new("sleepy").prefix("").hwm(SLEEPY_HWM).overflow(Overflow::DropNewest);
        let sleepy = broker.subscribe(sleepy);
        Demo {
            events: recording::events(),
            rate: args.rate,
            count: args.count.unwrap_or(u64::MAX),
            broker,
            everything,
            machines,
            sleepy,
            parser: Parser::new(),
            view,
            started: Instant::now(),
            published: 0,
            shown: 0,
            audiences: VecDeque::new(),
            peers: HashMap::new(),
        }
    }

    fn is_over(&self) -> bool {
        self.shown >= self.count
    }

    /// Publishes what is due by now, a bounded number so that what is published is shown meanwhile.
    fn publish_due(&mut self) -> io::Result<()> {
        let elapsed = self.started.elapsed().as_secs_f64();
        // The first one is due at once.
        let due = ((elapsed * self.rate) as u64).saturating_add(1).min(self.count);
        let due = due.min(self.published + 1000);
        let mut before = by_id(self.broker.subscriptions());
        while self.published < due {
            let index = self.published % self.events.len() as u64;
            let event = self.events[usize::try_from(index).expect("less than the events that there are")].clone();
            let offset = self.broker.publish_now(event).map_err(io::Error::other)?;
            self.published += 1;
            let after = self.broker.subscriptions();
            self.audiences.push_back((offset, audience(&before, &after)));
            before = by_id(after);
        }
        Ok(())
    }

    fn show(&mut self, delivery: &Delivery<Received>) -> io::Result<()> {
        let Delivery::Message(message) = delivery else { return Ok(()) };
        self.shown += 1;
        let mut audience = Audience::default();
        while let Some((offset, who)) = self.audiences.pop_front() {
            if offset == message.offset() {
                audience = who;
                break;
            }
        }
        let event = self.parser.event_of(message.payload());
        self.view.event(self.started.elapsed(), &event, &audience)?;
        self.status()
    }

    /// It takes what is there, and so learns what isn't.
    fn wake_sleepy(&mut self) -> io::Result<()> {
        let (mut taken, mut gaps) = (0_u64, Vec::new());
        while let Ok(delivery) = self.sleepy.try_recv() {
            match delivery {
                Delivery::Message(_) => taken += 1,
                Delivery::Gap(gap) => gaps.push(gap),
            }
        }
        self.view.woke_up("sleepy", taken, &gaps)?;
        self.status()
    }

    fn look_around(&mut self) -> io::Result<()> {
        let now = self.broker.subscriptions();
        let now: HashMap<u64, String> = now
            .iter()
            .filter(|stats| stats.name.starts_with("zeromq ") && stats.prefixes > 0)
            .map(|stats| (stats.id, display_name(stats).to_owned()))
            .collect();
        for (id, name) in &now {
            if !self.peers.contains_key(id) {
                self.view.peer(&format!("{name} has subscribed"))?;
            }
        }
        for (id, name) in &self.peers {
            if !now.contains_key(id) {
                self.view.peer(&format!("{name} has left"))?;
            }
        }
        self.peers = now;
        self.status()
    }

    fn status(&mut self) -> io::Result<()> {
        let seconds = self.started.elapsed().as_secs_f64();
        // The first one came at once; the rate is of those behind it.
        let rate = if seconds >= 1.0 { self.shown.saturating_sub(1) as f64 / seconds } else { self.rate };
        let mut subscribers = self.broker.subscriptions();
        subscribers.retain(|stats| stats.id != self.everything.handle().id());
        self.view.status(self.shown, rate, &subscribers)
    }
}

fn by_id(subscriptions: Vec<SubscriptionStats>) -> HashMap<u64, SubscriptionStats> {
    subscriptions.into_iter().map(|stats| (stats.id, stats)).collect()
}

/// Who one event was for: those for whom one more has matched, apart from the screen itself.
fn audience(before: &HashMap<u64, SubscriptionStats>, after: &[SubscriptionStats]) -> Audience {
    let mut audience = Audience::default();
    for stats in after.iter().filter(|stats| &*stats.name != "everything") {
        let (matched, dropped) = before.get(&stats.id).map_or((0, 0), |before| (before.matched, before.dropped));
        if stats.dropped > dropped {
            audience.lost.push(display_name(stats).to_owned());
        } else if stats.matched > matched {
            audience.got.push(display_name(stats).to_owned());
        }
    }
    audience
}

/// What it is, and how to subscribe.
fn welcome(args: &DemoArgs, endpoint: &Endpoint) -> String {
    let strong = anstyle::Style::new().bold();
    let rate = args.rate;
    format!(
        "{strong}hookbus demo{strong:#}: what a real OpenNebula did, {rate} events a second, through a broker to its subscribers.\n\
         Three are built in: everything (this screen), machines (state changes of virtual machines), and\n\
         sleepy, which takes nothing most of the time and has room for {SLEEPY_HWM} events.\n\n\
         Subscribe from another terminal, with Python (Debian's python3-zmq) or Ruby (ruby-ffi-rzmq):\n\
         \n  {}\n\n  {}\n\n\
         Ctrl-C ends it.\n",
        python(endpoint),
        ruby(endpoint)
    )
}

fn python(endpoint: &Endpoint) -> String {
    // `while` can't follow a semicolon in Python; an endless iterator can.
    format!(
        "python3 -c 'import zmq; s = zmq.Context().socket(zmq.SUB); s.connect(\"{endpoint}\"); s.subscribe(\"EVENT STATE\"); \
         [print(k.decode(), flush=True) for k, v in iter(s.recv_multipart, None)]'"
    )
}

fn ruby(endpoint: &Endpoint) -> String {
    format!(
        "ruby -rffi-rzmq -e '$stdout.sync = true; s = ZMQ::Context.new.socket(ZMQ::SUB); s.connect(\"{endpoint}\"); \
         s.setsockopt(ZMQ::SUBSCRIBE, \"EVENT STATE\"); loop {{ s.recv_string(k = \"\"); s.recv_string(v = \"\"); puts k }}'"
    )
}
