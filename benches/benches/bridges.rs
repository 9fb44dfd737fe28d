//! What an event costs on its way through a bridge: finding its keys in what oned wrote, putting it into ZMTP frames, turning
//! its XML into JSON, and keeping account of it until the bus has it.
//!
//! The lines are the recorded ones (`tests/fixtures/opennebula`), all of them, since their sizes decide: most have 2 kB, some
//! 180. Figures are for one pass over them; the throughput is in lines or bytes.
//!
//! As in `broker.rs`, everything runs once in the test pass.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use hookbus_benches::corpus::Corpus;
use hookbus_bridges::cloudevents::{Encoder, Sources};
use hookbus_bridges::delivery::{Ledger, Window};
use hookbus_bridges::opennebula::{Input, Item, LineReader, Parser};
use hookbus_bridges::zeromq::codec::{FrameReader, MORE, put_frame, put_head};
use hookbus_broker::{Broker, Message, Offset, Received, SubscribeOptions};

/// Every line with a blank for its newline, as the line reader hands it out.
fn lines(corpus: &Corpus) -> Vec<Bytes> {
    let line = |at| {
        let mut line = corpus.line(at).to_vec();
        if let Some(end) = line.last_mut() {
            *end = b' ';
        }
        Bytes::from(line)
    };
    (0..corpus.lines()).map(line).collect()
}

fn messages(corpus: &Corpus) -> Vec<Message> {
    let mut parser = Parser::new();
    let message = |line| match parser.line(line) {
        Ok(Input::Message { message, .. }) => message,
        other => panic!("not an event: {other:?}"),
    };
    lines(corpus).into_iter().map(message).collect()
}

fn opennebula(c: &mut Criterion) {
    let corpus = Corpus::recorded();
    let text: Vec<u8> = corpus.pieces(corpus.lines()).flatten().copied().collect();
    let mut group = c.benchmark_group("opennebula");

    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("cut into lines", |b| {
        let mut reader = LineReader::new();
        b.iter(|| {
            let mut left = text.as_slice();
            let mut count = 0;
            while !left.is_empty() {
                let room = reader.room();
                let now = room.len().min(left.len());
                room[..now].copy_from_slice(&left[..now]);
                left = &left[now..];
                reader.filled(now);
                while let Some(Item::Line(line)) = reader.next() {
                    black_box(line);
                    count += 1;
                }
            }
            assert_eq!(count, corpus.lines());
        });
    });

    group.throughput(Throughput::Elements(corpus.lines() as u64));
    group.bench_function("decode, find the keys", |b| {
        let mut parser = Parser::new();
        b.iter_batched(
            || lines(&corpus),
            |lines| {
                for line in lines {
                    black_box(parser.line(line).expect("every line is an event"));
                }
            },
            BatchSize::LargeInput,
        );
    });
}

fn zmtp(c: &mut Criterion) {
    let messages = messages(&Corpus::recorded());
    let frames: usize = messages.iter().map(|message| 2 * message.keys().len()).sum();
    let mut group = c.benchmark_group("zmtp");
    group.throughput(Throughput::Elements(frames as u64));

    // What a publisher does once for all its peers: the contents themselves are not touched.
    let mut out = Vec::new();
    group.bench_function("heads and keys of frames", |b| {
        b.iter(|| {
            out.clear();
            for message in &messages {
                for key in message.keys() {
                    put_frame(&mut out, MORE, key);
                    put_head(&mut out, 0, message.payload().len());
                }
            }
            black_box(out.len())
        });
    });

    let mut wire = Vec::new();
    for message in &messages {
        for key in message.keys() {
            put_frame(&mut wire, MORE, key);
            put_frame(&mut wire, 0, message.payload());
        }
    }
    group.bench_function("read frames", |b| {
        let mut reader = FrameReader::new(64 << 20);
        b.iter(|| {
            let mut count = 0;
            // As a socket would bring them.
            for mut piece in wire.chunks(64 << 10) {
                while let Some(frame) = reader.next(&mut piece).expect("the frames are right") {
                    black_box(frame);
                    count += 1;
                }
            }
            assert_eq!(count, frames);
        });
    });
}

/// The recorded events as a subscriber has them.
fn received(corpus: &Corpus) -> Vec<Received> {
    let broker = Broker::default();
    let mut subscription = broker.subscribe(SubscribeOptions::new("json").prefix("").hwm(corpus.lines()));
    for message in messages(corpus) {
        broker.publish_now(message).expect("the broker is open");
    }
    std::iter::from_fn(|| subscription.try_recv().ok()?.message()).collect()
}

/// A CloudEvent of each: the XML of its payload becomes JSON.
fn json(c: &mut Criterion) {
    let corpus = Corpus::recorded();
    let events = received(&corpus);
    assert_eq!(events.len(), corpus.lines());
    let encoder = Encoder::new(Sources { host: "front-end".into(), zone: None });
    let mut group = c.benchmark_group("cloudevents");
    group.throughput(Throughput::Elements(events.len() as u64));
    group.bench_function("XML to JSON", |b| {
        b.iter(|| {
            for event in &events {
                black_box(encoder.structured(event, None));
            }
        });
    });
}

/// Letters through the ledger, with a window that is full all the time: taken in, sent, told of by the bus, cursor asked for. The
/// figure is for one letter.
fn ledger(c: &mut Criterion) {
    const IN_FLIGHT: usize = 256;
    let window = Window { letters: 2 * IN_FLIGHT, bytes: 64 << 20, ack_timeout: Duration::from_secs(30) };
    let content = Bytes::from(vec![b'x'; 2048]);
    let mut group = c.benchmark_group("ledger");
    group.throughput(Throughput::Elements(1));
    for (name, refused_every) in [("confirmed", None), ("every 16th refused once", Some(16))] {
        let mut ledger = Ledger::new(window);
        let now = Instant::now();
        let mut offset = 0;
        let mut tickets = VecDeque::with_capacity(IN_FLIGHT);
        group.bench_function(name, |b| {
            b.iter(|| {
                while ledger.has_room() {
                    ledger.push(Some(Offset::new(offset)), content.clone(), content.len());
                    offset += 1;
                }
                while let Some((ticket, letter)) = ledger.send_next(now, IN_FLIGHT) {
                    black_box(letter);
                    tickets.push_back(ticket);
                }
                let mut confirmed = false;
                while !confirmed {
                    let ticket = tickets.pop_front().expect("letters are in flight");
                    let first = ledger.attempts(ticket) == Some(1);
                    if first && refused_every.is_some_and(|every| ticket.0 % every == 0) {
                        assert!(ledger.refuse(ticket, |_| now));
                    } else {
                        confirmed = ledger.confirm(ticket).is_some();
                    }
                    if let (false, Some((ticket, _))) = (confirmed, ledger.send_next(now, IN_FLIGHT)) {
                        tickets.push_back(ticket);
                    }
                }
                black_box(ledger.take_cursor())
            });
        });
        assert!(ledger.in_flight() <= IN_FLIGHT && offset > 0);
    }
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
}

criterion_group! {
    name = benches;
    config = config();
    targets = opennebula, zmtp, json, ledger
}
criterion_main!(benches);
