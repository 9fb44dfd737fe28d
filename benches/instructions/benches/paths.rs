//! The instructions of the hot paths, counted by valgrind's callgrind: the same on every run, however busy the machine is.
//!
//! `benches/instructions/check` runs it and compares with what is stored; `benches/README.md` says how to renew that. A count says what
//! the code does, not how long it takes: waiting for memory, atomic operations and system calls cost far more than they count
//! here. So this finds out that a path has become longer; whether one is fast, `hookbus-bench` says.

#![allow(missing_docs, unreachable_pub, reason = "made by macros")]

use std::collections::VecDeque;
use std::hint::black_box;

use bytes::Bytes;
use gungraun::{LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use hookbus_bridges::cloudevents::Encoder;
use hookbus_bridges::opennebula::Parser;
use hookbus_bridges::zeromq::codec::{MORE, put_frame, put_head};
use hookbus_broker::{BatchLimit, Message, Received};
use hookbus_instructions::{Journaled, Setting, alike, apart, beside, journaled, lines, prefixes, received, recorded};

fn publish_all(mut setting: Setting) -> Setting {
    for message in setting.messages.drain(..) {
        setting.broker.publish_now(message).expect("the broker is open");
    }
    setting
}

#[library_benchmark]
#[bench::to_0(alike(0))]
#[bench::to_1(alike(1))]
#[bench::to_16(alike(16))]
#[bench::to_64(alike(64))]
#[bench::to_16_apart(apart(16))]
#[bench::to_2(beside(0))]
#[bench::to_2_beside_1(beside(1))]
#[bench::to_2_beside_998(beside(998))]
#[bench::among_100000_prefixes(prefixes(100_000))]
fn publish(setting: Setting) -> Setting {
    publish_all(setting)
}

fn queued() -> (Setting, VecDeque<Message>) {
    let mut setting = alike(1).after_a_batch();
    let batch = setting.messages.drain(..).collect();
    (setting, batch)
}

#[library_benchmark]
#[bench::of_64(queued())]
fn publish_batch((setting, mut batch): (Setting, VecDeque<Message>)) -> (Setting, VecDeque<Message>) {
    setting.broker.publish_batch_now(&mut batch).expect("the broker is open");
    (setting, batch)
}

#[library_benchmark]
#[bench::batch_of_64(alike(1).published())]
fn take(mut setting: Setting) -> Setting {
    for subscription in &mut setting.subscriptions {
        let batch = subscription.try_recv_batch(BatchLimit::default()).expect("something is queued");
        for delivery in batch.iter() {
            if let Some(message) = delivery.message() {
                black_box((message.matched_keys().next(), message.payload()));
            }
        }
    }
    setting
}

#[library_benchmark]
#[bench::batch_of_64(journaled())]
fn append_to_journal(mut journaled: Journaled) -> Journaled {
    journaled.broker.publish_batch_blocking(&mut journaled.batch).expect("the broker is open");
    journaled
}

#[library_benchmark]
#[bench::of_recorded_lines((Parser::new(), lines()))]
fn find_keys((mut parser, lines): (Parser, Vec<Bytes>)) -> Parser {
    for line in lines {
        black_box(parser.line(line).expect("every line is an event"));
    }
    parser
}

#[library_benchmark]
#[bench::of_recorded_events(recorded())]
fn write_zmtp(messages: Vec<Message>) -> Vec<Message> {
    let mut out = Vec::with_capacity(64 << 10);
    for message in &messages {
        for key in message.keys() {
            put_frame(&mut out, MORE, key);
            put_head(&mut out, 0, message.payload().len());
        }
    }
    black_box(out);
    messages
}

#[library_benchmark]
#[bench::of_recorded_events(received())]
fn write_json((encoder, events): (Encoder, Vec<Received>)) -> Vec<Received> {
    for event in &events {
        black_box(encoder.structured(event, None));
    }
    events
}

library_benchmark_group!(name = broker, benchmarks = [publish, publish_batch, take, append_to_journal]);
library_benchmark_group!(name = bridges, benchmarks = [find_keys, write_zmtp, write_json]);
// `check` says by this which of its variants the C library's `memcpy` is to be.
main!(
    config = LibraryBenchmarkConfig::default().pass_through_env("GLIBC_TUNABLES"),
    library_benchmark_groups = [broker, bridges]
);
