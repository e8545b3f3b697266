//! The development daemon: against recordings of the real one, against what Spread promises, and as
//! a process.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

mod checker;
#[allow(dead_code, unused_imports, reason = "the program uses the rest")]
#[path = "../../tools/groupd/daemon/mod.rs"]
mod daemon;
mod model;
mod process;
#[path = "../recordings/mod.rs"]
mod recordings;
mod replay;
mod rules;
mod world;
