//! The one loop that everything runs in.

use std::process::ExitCode;

use crate::config::Config;
use crate::exit::Exit;
use crate::logging;

/// Serves until a signal ends it. `started` is called once, with the addresses, when clients can
/// connect.
pub fn run(_: &Config, _: logging::Handle, _: impl FnOnce(&[String])) -> ExitCode {
    Exit::Internal.into()
}
