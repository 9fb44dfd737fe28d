//! What the program `hookbus-hem` is made of, and the program itself.

#[path = "../support/mod.rs"]
mod support;

mod oned;
mod run;
mod store;
