//! `hookbus`: the daemon and its command line.
//!
//! This crate puts the broker and the bridges together into programs. `main` asks [`cli`] what the process is to be and
//! hands over.

mod cli;
mod client;
mod config;
mod cursor;
mod daemon;
mod demo;
mod dlq;
mod forward;
mod ganeti;
mod hm;
mod hook;
mod listing;
mod log;
mod one;
mod process;
mod publish;
mod serve;
mod service;
mod status;
mod tail;
mod writer;

use std::process::ExitCode;

use cli::{ConfigCommand, Invocation};

/// Bytes as base64, without line breaks.
pub(crate) fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine as _;
    ::base64::prelude::BASE64_STANDARD.encode(bytes)
}

fn main() -> ExitCode {
    match cli::parse(std::env::args_os().collect()) {
        Ok(Invocation::Hm(words)) => hm::run(words),
        Ok(Invocation::Demo(global, args)) => demo::run(&global, &args),
        Ok(Invocation::Serve(global)) => serve::run(&global),
        Ok(Invocation::Tail(global, args)) => tail::run(&global, &args),
        Ok(Invocation::Publish(global, args)) => publish::run(&global, &args),
        Ok(Invocation::Status(global, args)) => status::run(&global, &args),
        Ok(Invocation::Config(global, ConfigCommand::Check)) => config::command::check(global.config.as_deref()),
        Ok(Invocation::Config(global, ConfigCommand::Show)) => config::command::show(global.config.as_deref()),
        Ok(Invocation::Dlq(global, command)) => dlq::run(&global, command),
        Ok(Invocation::Cursor(global, command)) => cursor::run(&global, command),
        Ok(Invocation::Hook(global, command)) => hook::run(&global, *command),
        Ok(Invocation::One(global, command)) => one::run(&global, &command),
        Ok(Invocation::Ganeti(global, command)) => ganeti::run(&global, &command),
        Ok(Invocation::Completions(script)) => config::command::printed(&script, 0),
        Err(e) => {
            // A closed pipe behind --help is no failure.
            let _ = e.print();
            ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2))
        }
    }
}
