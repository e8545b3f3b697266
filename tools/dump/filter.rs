//! Which messages are shown.

use std::time::Duration;

use standby::ids::{Oid, Tid};

use crate::clock::{Clock, When};
use crate::message::{Connection, Field, Message};

/// All that is asked of a message; what is not asked for is `None`, or empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Numbers (`c3`), addresses (`10.0.0.1:4711`), hosts, and nodes of a trace; one of them has to
    /// match.
    pub clients: Vec<String>,
    pub methods: Vec<String>,
    pub oids: Vec<Oid>,
    pub tids: Vec<Tid>,
    pub since: Option<When>,
    pub until: Option<When>,
    pub errors_only: bool,
    pub slower_than: Option<Duration>,
}

impl Filter {
    /// Whether it asks for anything in the messages themselves, so that most of them will not be
    /// shown.
    pub(crate) fn is_narrow(&self) -> bool {
        !(self.methods.is_empty() && self.oids.is_empty() && self.tids.is_empty())
            || self.errors_only
            || self.slower_than.is_some()
            || self.since.is_some()
            || self.until.is_some()
    }

    /// Whether the message is to be shown. `first` is the time of the first one.
    pub(crate) fn passes(&self, message: &Message, clock: &Clock, first: Duration) -> bool {
        self.passes_time(message, clock, first)
            && (self.clients.is_empty() || self.passes_client(message))
            && (self.methods.is_empty() || self.methods.contains(&message.name))
            && (!self.errors_only || message.kind.is_error())
            && self
                .slower_than
                .is_none_or(|least| message.took().is_some_and(|took| took >= least))
            && self.passes_ids(message)
    }

    fn passes_time(&self, message: &Message, clock: &Clock, first: Duration) -> bool {
        let Some(time) = message.time else {
            return self.since.is_none() && self.until.is_none();
        };
        let limit = |when: Option<When>| clock.resolve(when?, first);
        limit(self.since).is_none_or(|since| time >= since)
            && limit(self.until).is_none_or(|until| time <= until)
    }

    fn passes_client(&self, message: &Message) -> bool {
        let node = message.node.as_ref();
        let connection = message.connection.as_ref();
        node.is_some_and(|node| self.clients.contains(node))
            || connection.is_some_and(|connection| self.is_client(connection))
    }

    fn is_client(&self, connection: &Connection) -> bool {
        let host = host_of(&connection.client);
        // So a listener for both versions of IP names its clients of version 4.
        let mapped = host.strip_prefix("::ffff:").filter(|v4| v4.contains('.'));
        let port = connection.client.rsplit(':').next().unwrap_or_default();
        self.clients.iter().any(|wanted| {
            *wanted == format!("c{}", connection.number)
                || *wanted == connection.client
                || wanted == host
                || mapped.is_some_and(|v4| wanted == v4 || *wanted == format!("{v4}:{port}"))
        })
    }

    fn passes_ids(&self, message: &Message) -> bool {
        let any = |look: &mut dyn FnMut(&Field) -> bool| {
            let mut look = |field: &Field| look(field);
            message.fields.iter().any(|(_, field)| field.any(&mut look))
        };
        let has_oid = |field: &Field| matches!(field, Field::Oid(oid) if self.oids.contains(oid));
        let has_tid = |field: &Field| matches!(field, Field::Tid(tid) if self.tids.contains(tid));
        (self.oids.is_empty() || any(&mut { has_oid }))
            && (self.tids.is_empty() || any(&mut { has_tid }))
    }
}

/// An address without its port.
fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}
