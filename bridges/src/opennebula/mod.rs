//! OpenNebula's hook manager driver protocol, without the input and output: lines from oned become messages, answers of hook
//! executors become lines for oned.
//!
//! oned starts a driver and writes one line an event to its standard input: `EXECUTE  -1 <base64 of an XML text>`. The way
//! of such a line is
//!
//! 1. [`LineReader`] cuts what was read into lines that share the block they were read into, so no text is copied, unless the
//!    caller says that they are going to wait for long.
//! 2. [`Parser::line`] decodes the base64 into a buffer of its own, reads the few header fields that name the event
//!    ([`Event`]), and makes a [`Message`](hookbus_broker::Message): OpenNebula's keys, and the base64 text as it came.
//! 3. The broker has it.
//!
//! Hooks and CloudEvents need more than the header: [`Document`] is the whole of an event as libxml2 sees it, so that a hook
//! gets what OpenNebula's own executor would give it. Header and tree come of one scanner.
//!
//! The other direction is [`Execution`], which makes the `EXECUTE` line out of what a hook executor reported, and
//! [`log_line`] for oned's log.
//!
//! Nothing here reads a descriptor, waits or logs: the program that is the driver does. So everything is tested with bytes.
//!
//! # Guarantees
//!
//! - Messages come in the order of oned's lines, and an `EXECUTE` or `RETRY` line with a content gives exactly one message,
//!   however broken the content is: what can't be decoded or has no header is published under the key `EVENT `, and
//!   an [`Oddity`] says what was wrong.
//! - What is no such line is not published; [`LineError`] says why. A line over the [limit](LineReader::with_limits) is
//!   skipped and told as [`Item::TooLong`].
//! - The keys equal those of OpenNebula's own driver, which asks libxml2, save that the header decides: see [`event`].

mod document;
pub mod driver;
pub mod event;
mod header;
pub mod lines;
mod scan;

pub use document::{Document, Element};
pub use driver::{Execution, INIT_ANSWER, Input, Level, LineError, Oddity, Parser, log_line};
pub use event::{Event, Kind};
pub use lines::{Item, LineReader};
