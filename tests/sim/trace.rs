//! Records what happens in a simulation so that `zeodump` can show it.
//!
//! The form is that of captures: pcapng, with a link type that is left to users. Each packet is a
//! pickle as those of the group are:
//!
//! ```text
//!   ("sent",     (step, node, to, message))       message: the bytes as they go through the group,
//!   ("received", (step, node, from, message))     or from node to node
//!   ("note",     (step, node, event, text))       anything else: a view, a crash, a role
//! ```

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use crate::group::message::encode;
use crate::replica::message::Message;
use standby::value::Value;

/// What packets of a trace begin with: `LINKTYPE_USER0` of the tcpdump project's list.
const LINK: u16 = 147;

/// Bytes of a packet at most; longer ones are cut, and `zeodump` says so.
const PACKET_LEN_MAX: usize = 8 << 20;

/// A trace in the making.
pub(crate) struct Trace<W> {
    to: W,
    time: Duration,
    step: u64,
}

impl<W: Write> Trace<W> {
    /// Begins to write.
    pub(crate) fn new(to: W) -> io::Result<Self> {
        let (time, step) = (Duration::ZERO, 0);
        let mut trace = Self { to, time, step };
        // Version 1.0, and a section of unknown length.
        let mut section = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
        section.extend_from_slice(&[1, 0, 0, 0]);
        section.extend_from_slice(&u64::MAX.to_le_bytes());
        trace.block(0x0a0d_0d0a, &section)?;
        let mut interface = LINK.to_le_bytes().to_vec();
        interface.extend_from_slice(&[0; 6]);
        // Times in nanoseconds; the end of the options.
        interface.extend_from_slice(&[9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        trace.block(1, &interface)?;
        Ok(trace)
    }

    /// What is recorded from here on happens at this time and in this step.
    pub(crate) fn at(&mut self, time: Duration, step: u64) {
        self.time = time;
        self.step = step;
    }

    /// Something has happened at a node; `event` is one word, which `zeodump -m` looks for.
    pub(crate) fn note(&mut self, node: &str, event: &str, text: &str) -> io::Result<()> {
        let args = [event, text].map(text_value);
        self.record("note", node, args)
    }

    /// A node has sent a message to another one, or to `all`.
    pub(crate) fn sent(&mut self, node: &str, to: &str, message: &Message) -> io::Result<()> {
        let (method, args) = message.encode();
        self.sent_bytes(node, to, &encode(method, args))
    }

    /// A message has come to a node.
    pub(crate) fn received(&mut self, node: &str, from: &str, message: &Message) -> io::Result<()> {
        let (method, args) = message.encode();
        self.received_bytes(node, from, &encode(method, args))
    }

    /// As [`Self::sent`], of bytes in parts: a `Fetch`, a `Fetched`, or what a channel says.
    pub(crate) fn sent_bytes(&mut self, node: &str, to: &str, parts: &[Bytes]) -> io::Result<()> {
        let message = Value::Bytes(parts.concat().into());
        self.record("sent", node, [text_value(to), message])
    }

    /// As [`Self::received`], of bytes in parts.
    pub(crate) fn received_bytes(
        &mut self,
        node: &str,
        from: &str,
        parts: &[Bytes],
    ) -> io::Result<()> {
        let message = Value::Bytes(parts.concat().into());
        self.record("received", node, [text_value(from), message])
    }

    /// Where it was written to.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.to.flush()?;
        Ok(self.to)
    }

    fn record(&mut self, method: &'static str, node: &str, args: [Value; 2]) -> io::Result<()> {
        let mut all = vec![Value::from(self.step), text_value(node)];
        all.extend(args);
        let packet = encode(method, all).concat();
        let nanos = u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX);
        let kept = &packet[..packet.len().min(PACKET_LEN_MAX)];
        let (high, low) = ((nanos >> 32) as u32, nanos as u32);
        let mut body = vec![0; 4];
        for number in [high, low, kept.len() as u32, packet.len() as u32] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        body.extend_from_slice(kept);
        self.block(6, &body)
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let padding = body.len().next_multiple_of(4) - body.len();
        let len = (12 + body.len() + padding) as u32;
        self.to.write_all(&kind.to_le_bytes())?;
        self.to.write_all(&len.to_le_bytes())?;
        self.to.write_all(body)?;
        self.to.write_all(&[0; 3][..padding])?;
        self.to.write_all(&len.to_le_bytes())
    }
}

fn text_value(text: &str) -> Value {
    Value::from(text.to_owned())
}
