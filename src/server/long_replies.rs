//! Replies with long data, which are read as the client takes them.
//!
//! The frame of such a reply is queued around a gap. Its data fill it piece by piece, each when
//! little waits for the socket any more; frames that are queued meanwhile come behind it.

use std::io;

use bytes::Bytes;

use super::calls::other;
use super::client::Client;
use super::reads::{PendingRead, Wanted};
use super::{Now, Output, Reason, Server};
use crate::ids::ClientId;
use crate::limits::OUTPUT_RESUME_LEN;
use crate::storage::{Job, LongData};
use crate::zeo::Value;

/// A reply of which data are missing.
#[derive(Debug)]
pub(super) struct LongReply {
    /// The rest of them; with a worker while it reads.
    data: Option<LongData>,
}

impl Client {
    /// Answers a call by `result`, which has a gap for `data`.
    pub(super) fn reply_long(&mut self, msgid: &Value, result: &Value, data: LongData) {
        match self.session.reply_long(msgid, result, data.left()) {
            Ok(()) => self.long_replies.push_back(LongReply { data: Some(data) }),
            Err(error) => {
                let error = other("builtins.ValueError", error.to_string());
                self.session.fail(msgid, &error);
            }
        }
    }
}

impl Server {
    /// Has the next piece of a long reply read for a client, unless enough waits for it.
    pub(super) fn read_long(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let (Some(storage), false) = (client.storage, client.closing) else {
            return;
        };
        if client.session.out.len() > OUTPUT_RESUME_LEN {
            return;
        }
        // It is gone while a worker has it.
        let first = client.long_replies.front_mut();
        let Some(data) = first.and_then(|reply| reply.data.take()) else {
            return;
        };
        let pending = PendingRead {
            client: id,
            msgid: Value::None,
            wanted: Wanted::Piece,
        };
        // Not in turn: a client that is paused for what waits behind this reply would have none.
        let (tag, job) = self.reads.at_once(storage, pending, Job::ReadLong(data));
        self.outputs.push_back(Output::Run(tag, job));
    }

    /// A piece of a long reply was read, or not.
    pub(super) fn on_long_read(
        &mut self,
        at: usize,
        pending: &PendingRead,
        result: io::Result<(LongData, Bytes)>,
        now: Now,
    ) {
        let id = pending.client;
        let Some(client) = self.clients.get_mut(&id).filter(|client| !client.closing) else {
            return;
        };
        match result {
            Ok((data, piece)) => {
                client.session.fill(piece);
                if data.left() == 0 {
                    client.long_replies.pop_front();
                    // Its calls may have waited for this.
                    self.outputs.push_back(Output::Serve(id));
                } else if let Some(reply) = client.long_replies.front_mut() {
                    reply.data = Some(data);
                }
                self.note_output(id);
            }
            // The client has got a part of the frame, and waits for the rest.
            Err(error) => {
                let problem = error.to_string();
                let _ = self.read_failed(at, &problem);
                let name = "load";
                self.hang_up(id, &Reason::Call { name, problem }, now);
            }
        }
    }
}
