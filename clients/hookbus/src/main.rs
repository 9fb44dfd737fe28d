//! `hookbus`: the daemon and its command line.
//!
//! This crate puts the broker and the bridges together into programs. `main` asks [`cli`] what the process is to be and
//! hands over.

mod cli;
mod config;
mod demo;
mod hm;
mod log;
mod process;
mod writer;

use std::process::ExitCode;

use cli::Invocation;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os().collect()) {
        Ok(Invocation::Hm(words)) => hm::run(words),
        Ok(Invocation::Demo(global, args)) => demo::run(&global, &args),
        Err(e) => {
            // A closed pipe behind --help is no failure.
            let _ = e.print();
            ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2))
        }
    }
}
