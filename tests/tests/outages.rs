//! What the bridges promise, while servers and the daemon come and go: every event that was acknowledged arrives, in order by first
//! arrival, and repetitions are the same event.
//!
//! The tests publish a few thousand events. Their full size, and the measurement that is told of in docs/outages.md, are commands:
//!
//! ```sh
//! HOOKBUS_OUTAGE_EVENTS=100000 cargo test --release -p hookbus-tests --test outages
//! cargo test --release -p hookbus-tests --test outages -- --ignored --nocapture
//! ```

use std::env;
use std::time::{Duration, Instant};

use hookbus_tests::{Collector, Home, Kind, Load, LoadOptions, Server, check_delivery, wait_until};
use serde_json::Value;

/// The value of a variable that makes these tests larger or smaller.
fn setting(name: &str, usual: u64) -> u64 {
    env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn ready(bridge: &Value) -> bool {
    bridge["state"] == "ready"
}

fn caught_up(bridge: &Value) -> bool {
    ready(bridge) && bridge["lag_events"] == 0 && bridge["in_flight"] == 0
}

#[test]
fn nats_gets_every_event_whatever_goes_down() {
    outages(Kind::Nats);
}

#[test]
fn mqtt_gets_every_event_whatever_goes_down() {
    outages(Kind::Mqtt);
}

#[test]
fn amqp_gets_every_event_whatever_goes_down() {
    outages(Kind::Amqp);
}

/// Five outages of the server, one of them with the daemon killed meanwhile; a server that stands still; a daemon that is killed while
/// the server is up. Each happens in the middle of publishing.
fn outages(kind: Kind) {
    let events = setting("HOOKBUS_OUTAGE_EVENTS", 4000);
    let name = kind.to_string();
    let mut server = Server::start(kind);
    let home = Home::new(&server.bridge("ack_timeout = \"3s\""));
    let mut serve = home.serve();
    home.until_bridge(&name, "to be ready", ready);
    let collector = server.collect();
    let load = Load::new(&home.socket(), LoadOptions::default());

    // A part is published before something happens, the next while it happens.
    let part = events / 16;
    let mut published = 0;
    let mut busy = |load: &Load| {
        let before = collector.count();
        load.allow(published + 2 * part);
        load.until(published + part);
        published += 2 * part;
        // The bridge has found its way again, so that there is something to interrupt.
        hookbus_tests::wait_until("events to arrive", || match collector.count() {
            count if count > before => Ok(()),
            count => Err(format!("{count}, as before; {}", home.bridge(&name))),
        });
        published
    };
    for outage in 1..=5 {
        let all = busy(&load);
        server.go_down();
        if outage == 3 {
            serve.program.kill();
            serve = home.serve();
        }
        load.until(all);
        server.come_up();
    }
    let all = busy(&load);
    server.freeze();
    load.until(all);
    home.until_bridge(&name, "to give up a connection that is dead", |bridge| !ready(bridge));
    server.thaw();
    busy(&load);
    serve.program.kill();
    serve = home.serve();

    load.allow(events);
    load.until(events);
    let acknowledged = load.finish();
    collector.until_all(&acknowledged);
    let bridge = home.until_bridge(&name, "to have caught up", caught_up);
    assert_eq!((&bridge["dropped"], &bridge["dead"]), (&0.into(), &0.into()), "{bridge}");
    let repeated = check_delivery(&acknowledged, &collector.arrivals());
    eprintln!("{kind}: {} events acknowledged, all arrived in order; {repeated} repetitions", acknowledged.len());
    serve.stop();
}

/// Each outage is told in the log when it begins and when it is over, however many attempts lie between.
#[test]
fn the_log_tells_of_each_outage() {
    let mut server = Server::start(Kind::Nats);
    let home = Home::new(&server.bridge(""));
    let serve = home.serve();
    let told = |what: &str| home.log().lines().filter(|line| line.contains(what)).count();
    home.until_bridge("nats", "to be ready", ready);
    for outage in 1..=3u64 {
        home.publish("some/thing", b"");
        home.until_bridge("nats", "to deliver", |bridge| bridge["confirmed"] == outage);
        server.go_down();
        // Neither the first attempt nor one that is told of for its number.
        home.until_bridge("nats", "to try again and again", |bridge| bridge["attempt"].as_u64() > Some(3));
        server.come_up();
        home.until_bridge("nats", "to be back", ready);
        // The bridge is ready a moment before the log says so.
        let expected = (outage as usize, outage as usize);
        wait_until("the log to tell of it", || match (told("bridge nats: the connection to"), told(" again after ")) {
            both if both == expected => Ok(()),
            _ => Err(home.log()),
        });
    }
    serve.stop();
}

/// Three buses; each stands still for a while, with more to come than memory may hold. The other two get everything meanwhile, and
/// the one that stood still gets it afterwards.
#[test]
fn a_bus_that_stands_still_holds_up_nobody_and_catches_up() {
    const MAX_MIB: u64 = 16;
    let all = Fleet::start(&format!("[broker]\nmax_bytes = \"{MAX_MIB}MiB\"\n"));
    let home = &all.home;
    let serve = home.serve();
    let collectors = all.collect();
    let load = Load::new(&home.socket(), LoadOptions { payload_bytes: 6000, ..LoadOptions::default() });
    let part = setting("HOOKBUS_OUTAGE_EVENTS", 4000);
    for (round, (kind, server)) in (1..).zip(&all.servers) {
        server.freeze();
        load.allow(round * part);
        load.until(round * part);
        // What a few connections in flight add to the count comes soon.
        let acknowledged = load.acknowledged();
        let own = &collectors.iter().find(|(other, _)| other == kind).expect("one for each").1;
        for (other, collector) in &collectors {
            if other != kind {
                collector.until_all(&acknowledged);
            }
        }
        assert!(own.count() < acknowledged.len(), "{kind} stood still and has got everything");
        server.thaw();
        own.until_all(&acknowledged);
    }
    let acknowledged = load.finish();
    for (kind, collector) in &collectors {
        collector.until_all(&acknowledged);
        check_delivery(&acknowledged, &collector.arrivals());
        let bridge = home.until_bridge(&kind.to_string(), "to have caught up", caught_up);
        assert_eq!((&bridge["dropped"], &bridge["dead"]), (&0.into(), &0.into()), "{bridge}");
    }
    let peak = peak_mib(&serve);
    assert!(peak < MAX_MIB + 100, "the daemon needed {peak} MiB");
    serve.stop();
}

fn peak_mib(serve: &hookbus_tests::Serve<'_>) -> u64 {
    let text = serve.program.status("VmHWM");
    text.trim_end_matches(" kB").parse::<u64>().unwrap_or_else(|_| panic!("`VmHWM: {text}`")) / 1024
}

/// A server of each kind, and the home of a daemon with a bridge to each.
struct Fleet {
    home: Home,
    servers: Vec<(Kind, Server)>,
}

impl Fleet {
    fn start(more: &str) -> Self {
        let servers: Vec<_> = Kind::ALL.into_iter().map(|kind| (kind, Server::start(kind))).collect();
        let mut config = more.to_owned();
        for (_, server) in &servers {
            config.push_str(&server.bridge("ack_timeout = \"3s\""));
        }
        Self { home: Home::new(&config), servers }
    }

    /// Consumers of everything, once every bridge is ready.
    fn collect(&self) -> Vec<(Kind, Collector)> {
        for (kind, _) in &self.servers {
            self.home.until_bridge(&kind.to_string(), "to be ready", ready);
        }
        self.servers.iter().map(|(kind, server)| (*kind, server.collect())).collect()
    }
}

/// At `HOOKBUS_OUTAGE_RATE` events a second (5000) one bus stands still for `HOOKBUS_OUTAGE_SECONDS` (60): how fast are the others, against
/// the same time with all of them at work? Medians of `HOOKBUS_OUTAGE_PAIRS` (3) alternating pairs, for each bus. Prints a table.
#[test]
#[ignore = "takes half an hour, and measures time: a command, not a test"]
fn how_much_a_bus_that_stands_still_costs_the_others() {
    let rate = setting("HOOKBUS_OUTAGE_RATE", 5000);
    let seconds = setting("HOOKBUS_OUTAGE_SECONDS", 60);
    let pairs = setting("HOOKBUS_OUTAGE_PAIRS", 3);
    const MAX_MIB: u64 = 64;
    let all = Fleet::start(&format!("[broker]\nmax_bytes = \"{MAX_MIB}MiB\"\n"));
    let serve = all.home.serve();
    let collectors = all.collect();
    let options = LoadOptions { connections: 4, batch: 20, payload_bytes: 300, rate: Some(rate as f64) };
    // One window: what arrived within its time, and how long that took, for each bus.
    let window = |frozen: Option<&Server>| -> (Vec<Measured>, Duration) {
        for (_, collector) in &collectors {
            collector.clear();
        }
        if let Some(server) = frozen {
            server.freeze();
        }
        let load = Load::new(&all.home.socket(), options);
        let start = Instant::now();
        load.allow(u64::MAX);
        std::thread::sleep(Duration::from_secs(seconds));
        let end = Instant::now();
        let acknowledged = load.finish();
        if let Some(server) = frozen {
            server.thaw();
        }
        for (_, collector) in &collectors {
            collector.until_all(&acknowledged);
        }
        let caught_up = end.elapsed();
        let sent: std::collections::HashMap<_, _> =
            acknowledged.iter().map(|event| (event.number, event.sent)).collect();
        let measured = collectors.iter().map(|(kind, collector)| {
            let arrivals = collector.arrivals();
            check_delivery(&acknowledged, &arrivals);
            let in_time = arrivals.iter().filter(|arrival| arrival.at <= end).count();
            let mut latencies: Vec<Duration> = arrivals
                .iter()
                .filter(|arrival| arrival.at <= end)
                .filter_map(|arrival| Some(arrival.at.saturating_duration_since(*sent.get(&arrival.number)?)))
                .collect();
            latencies.sort_unstable();
            let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or_default();
            let throughput = in_time as f64 / (end - start).as_secs_f64();
            Measured { kind: *kind, throughput, median: at(0.5), worst: at(0.99) }
        });
        (measured.collect(), caught_up)
    };
    window(None); // Warm.
    let mut caught_up_after = String::new();
    println!(
        "| stopped | bus | events/s | with the stop | ratio | median latency | with the stop | ratio | 99 % | with the stop |"
    );
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (kind, server) in &all.servers {
        let mut plain = Vec::new();
        let mut stopped = Vec::new();
        let mut caught_up = Vec::new();
        for _ in 0..pairs {
            plain.push(window(None).0);
            let (measured, time) = window(Some(server));
            stopped.push(measured);
            caught_up.push(time);
        }
        for other in Kind::ALL.into_iter().filter(|other| other != kind) {
            let of = |windows: &[Vec<Measured>], what: &dyn Fn(&Measured) -> f64| -> Vec<f64> {
                windows.iter().flatten().filter(|measured| measured.kind == other).map(what).collect()
            };
            let row = |what: &dyn Fn(&Measured) -> f64| {
                let (without, with) = (of(&plain, what), of(&stopped, what));
                let ratios = without.iter().zip(&with).map(|(without, with)| with / without).collect();
                (median(without), median(with), median(ratios))
            };
            let (rate, rate_stopped, rates) = row(&|measured| measured.throughput);
            let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
            let (mid, mid_stopped, mids) = row(&|measured| milliseconds(measured.median));
            let (worst, worst_stopped, _) = row(&|measured| milliseconds(measured.worst));
            println!(
                "| {kind} | {other} | {rate:.0} | {rate_stopped:.0} | {rates:.2} | {mid:.1} ms | {mid_stopped:.1} ms | {mids:.2} | \
                 {worst:.0} ms | {worst_stopped:.0} ms |"
            );
        }
        let seconds = median(caught_up.iter().map(Duration::as_secs_f64).collect());
        caught_up_after.push_str(&format!(
            "\n{kind} had caught up {seconds:.1} s after the end of publishing and of its stop (median)"
        ));
    }
    let peak = peak_mib(&serve);
    println!("{caught_up_after}\nthe daemon needed {peak} MiB at most; [broker] max_bytes is {MAX_MIB} MiB");
    assert!(peak < MAX_MIB + 100, "the daemon needed {peak} MiB");
    serve.stop();
}

struct Measured {
    kind: Kind,
    throughput: f64,
    median: Duration,
    worst: Duration,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
