//! Where messages go: through the filter, into the summary, and onto standard output.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use crate::failure::Failure;
use crate::filter::Filter;
use crate::message::{Kind, Message};
use crate::show::{Form, Show};
use crate::summary::Summary;

/// Lines on their way out.
#[derive(Debug)]
pub(crate) struct Output<W: Write> {
    show: Show,
    filter: Filter,
    /// Whether details of connections are shown.
    verbose: bool,
    summary: Option<Box<Summary>>,
    to: io::BufWriter<W>,
    /// What introduces connections of which nothing was shown yet.
    waiting: BTreeMap<u64, Message>,
    /// A transaction, or an entry with one, that did not pass, and of which no record was shown yet.
    transaction: Option<Message>,
    first: Option<Duration>,
    /// Messages that tell of something missing or wrong.
    pub troubles: u64,
}

impl<W: Write> Output<W> {
    pub(crate) fn new(show: Show, filter: Filter, verbose: bool, summary: bool, to: W) -> Self {
        Self {
            show,
            filter,
            verbose,
            summary: summary.then(Box::default),
            to: io::BufWriter::with_capacity(64 * 1024, to),
            waiting: BTreeMap::new(),
            transaction: None,
            first: None,
            troubles: 0,
        }
    }

    /// Shows a message, if it is one of those that are wanted.
    pub(crate) fn put(&mut self, message: Message) -> Result<(), Failure> {
        self.troubles += u64::from(message.kind == Kind::Trouble);
        self.first = self.first.or(message.time);
        let first = self.first.unwrap_or_default();
        if message.is_detail && !self.verbose {
            return Ok(());
        }
        let number = message.connection.as_ref().map(|it| it.number);
        if message.kind == Kind::Connection && self.filter.is_narrow() {
            // To be shown with the first message that passes.
            if let Some(number) = number {
                match message.name.as_str() {
                    "open" => _ = self.waiting.insert(number, message),
                    "close" => _ = self.waiting.remove(&number),
                    _ => {}
                }
            }
            return Ok(());
        }
        let passes = self.filter.passes(&message, &self.show.clock, first);
        if matches!(message.kind, Kind::Transaction | Kind::Entry) {
            self.transaction = (!passes).then(|| message.clone());
        }
        if !passes {
            return Ok(());
        }
        // Who wrote a record stands there.
        if message.kind == Kind::Record
            && let Some(transaction) = self.transaction.take()
        {
            self.write(&transaction)?;
        }
        if let Some(introduction) = number.and_then(|number| self.waiting.remove(&number)) {
            self.write(&introduction)?;
        }
        self.write(&message)
    }

    fn write(&mut self, message: &Message) -> Result<(), Failure> {
        if let Some(summary) = &mut self.summary {
            summary.add(message);
            return Ok(());
        }
        let text = self.show.text(message);
        self.to.write_all(text.as_bytes()).map_err(failed)
    }

    /// All that was shown can be seen from here on.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.to.flush().map_err(failed)
    }

    /// Writes the summary, if that is wanted, and all that waits.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        if let Some(summary) = self.summary.take() {
            let text = if self.show.form == Form::Json {
                let slowest = summary.slowest().iter();
                let slowest = slowest.map(|message| self.show.json(message)).collect();
                format!("{}\n", summary.json(slowest).text())
            } else {
                let lines = Show {
                    form: Form::Line,
                    clock: self.show.clock.clone(),
                    all_bytes: false,
                };
                let slowest = summary.slowest().iter();
                let slowest: String = slowest.map(|message| lines.text(message)).collect();
                summary.text(&self.show.clock, &slowest)
            };
            self.to.write_all(text.as_bytes()).map_err(failed)?;
        }
        self.flush()
    }
}

fn failed(error: io::Error) -> Failure {
    Failure::output("standard output", &error)
}
