//! Hooks, from the template to the record. Everything here looks at the whole process, so one test runs at a time.

#[path = "../support/mod.rs"]
mod support;

mod documentation;
mod executor;
mod ganeti;
mod hostile;
mod recorded;
