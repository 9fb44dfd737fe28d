//! To come.
use std::process::ExitCode;

use crate::cli::{DemoArgs, GlobalArgs};

pub(crate) fn run(_: &GlobalArgs, _: &DemoArgs) -> ExitCode {
    ExitCode::FAILURE
}
