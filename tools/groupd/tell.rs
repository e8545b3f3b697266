//! A command to a groupd that runs, and its answer.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Gives one command, and waits for the answer: what is to be printed, or what was wrong with it.
pub(crate) fn tell(path: &Path, command: &str) -> io::Result<Result<String, String>> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{}\n", command.replace('\n', " ")).as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    let answer = answer.trim_end();
    let (kind, text) = answer.split_once(' ').unwrap_or((answer, ""));
    match kind {
        "ok" if text.is_empty() => Ok(Ok(String::new())),
        "ok" => Ok(Ok(format!("{text}\n"))),
        "error" => Ok(Err(text.to_owned())),
        _ => Err(io::Error::other("there was no answer")),
    }
}
