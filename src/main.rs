//! `standbyd`: reads flags and configuration, opens the log, runs the reactor.

fn main() {}
