//! Recording to pcapng: packets as they were captured, or connections as if they had been.
//!
//! ```text
//!   section header │ interface (raw IP, nanoseconds) │ packet │ packet │ ...
//! ```
//!
//! What passes a proxy has no packets, and on a Unix socket no addresses either. They are made up:
//! a handshake, segments with the bytes, an acknowledgement for each, and the end. So every program
//! that reads captures can read it.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use crate::failure::Failure;
use crate::message::Way;
use crate::packet::RAW;

/// Writes a pcapng file.
#[derive(Debug)]
pub(crate) struct Recorder<W: Write> {
    name: String,
    to: BufWriter<W>,
    connections: BTreeMap<u64, Made>,
}

/// A connection that is made up.
#[derive(Debug)]
struct Made {
    /// Of the client, and of the server.
    ends: [SocketAddr; 2],
    /// The next sequence number of each.
    seqs: [u32; 2],
    finished: [bool; 2],
}

/// Bytes of a made-up segment: what fits into an IP packet.
const SEGMENT_LEN: usize = 60_000;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;
const RST: u8 = 0x04;

const OPTION_COMMENT: u16 = 1;

impl Recorder<File> {
    /// A new file; one that is there already is replaced.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let file = File::create(path).map_err(|error| Failure::output(&name, &error))?;
        Self::new(name, file)
    }
}

impl<W: Write> Recorder<W> {
    /// Begins to write.
    pub(crate) fn new(name: String, to: W) -> Result<Self, Failure> {
        let mut recorder = Self {
            name,
            to: BufWriter::new(to),
            connections: BTreeMap::new(),
        };
        // Version 1.0, and a section of unknown length.
        let mut section = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
        section.extend_from_slice(&[1, 0, 0, 0]);
        section.extend_from_slice(&u64::MAX.to_le_bytes());
        recorder.block(0x0a0d_0d0a, &section)?;
        let mut interface = (RAW as u16).to_le_bytes().to_vec();
        interface.extend_from_slice(&[0; 6]);
        // Times in nanoseconds; the end of the options.
        interface.extend_from_slice(&[9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        recorder.block(1, &interface)?;
        Ok(recorder)
    }

    fn failed(&self, error: &io::Error) -> Failure {
        match Failure::output(&self.name, error) {
            // Who reads the recording is not who reads the output.
            Failure::NobodyReads => Failure::Output(format!("{}: {error}", self.name)),
            failure => failure,
        }
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> Result<(), Failure> {
        let padding = body.len().next_multiple_of(4) - body.len();
        let len = (12 + body.len() + padding) as u32;
        let mut write = || {
            self.to.write_all(&kind.to_le_bytes())?;
            self.to.write_all(&len.to_le_bytes())?;
            self.to.write_all(body)?;
            self.to.write_all(&[0; 3][..padding])?;
            self.to.write_all(&len.to_le_bytes())
        };
        write().map_err(|error| self.failed(&error))
    }

    /// A packet that begins with its IP header; `len` is what it had on the wire.
    pub(crate) fn packet(
        &mut self,
        time: Duration,
        data: &[u8],
        len: usize,
        comment: Option<&str>,
    ) -> Result<(), Failure> {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let mut body = vec![0; 4];
        for number in [
            (nanos >> 32) as u32,
            nanos as u32,
            data.len() as u32,
            len as u32,
        ] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        body.extend_from_slice(data);
        body.resize(body.len().next_multiple_of(4), 0);
        if let Some(comment) = comment {
            let comment = &comment.as_bytes()[..comment.len().min(1000)];
            body.extend_from_slice(&OPTION_COMMENT.to_le_bytes());
            body.extend_from_slice(&(comment.len() as u16).to_le_bytes());
            body.extend_from_slice(comment);
            body.resize(body.len().next_multiple_of(4), 0);
            body.extend_from_slice(&[0; 4]);
        }
        self.block(6, &body)
    }

    /// A connection begins. Names that are no addresses are put into a comment, and addresses of
    /// the machine itself in their place; `port` is then that of the server.
    pub(crate) fn open(
        &mut self,
        time: Duration,
        id: u64,
        [client, server]: [&str; 2],
        port: u16,
    ) -> Result<(), Failure> {
        let local =
            |last: u8, port: u16| SocketAddr::new(Ipv4Addr::new(127, 0, 0, last).into(), port);
        let made_up = [local(1, 20_000 + (id % 40_000) as u16), local(2, port)];
        let known = [client.parse(), server.parse()];
        let ends = match known {
            [Ok(client), Ok(server)] if same_version(client, server) => [client, server],
            _ => made_up,
        };
        let comment = format!("{client} > {server}");
        let comment = Some(comment.as_str()).filter(|_| ends == made_up);
        // Different in each direction, and when a port is used again, as they would be.
        let first = 1000 + (id as u32).wrapping_sub(1) % 4_000_000 * 1000;
        let seqs = [first, first.wrapping_add(500)];
        let made = Made {
            ends,
            seqs,
            finished: [false; 2],
        };
        self.connections.insert(id, made);
        self.segment(time, id, Way::ToServer, SYN, &[], comment)?;
        self.segment(time, id, Way::ToClient, SYN | ACK, &[], None)?;
        self.segment(time, id, Way::ToServer, ACK, &[], None)
    }

    /// Bytes of a connection.
    pub(crate) fn data(
        &mut self,
        time: Duration,
        id: u64,
        way: Way,
        data: &[u8],
    ) -> Result<(), Failure> {
        for piece in data.chunks(SEGMENT_LEN) {
            self.segment(time, id, way, PSH | ACK, piece, None)?;
            self.segment(time, id, way.back(), ACK, &[], None)?;
        }
        Ok(())
    }

    /// One side sends no more.
    pub(crate) fn finish(&mut self, time: Duration, id: u64, way: Way) -> Result<(), Failure> {
        let Some(made) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        if std::mem::replace(&mut made.finished[way.index()], true) {
            return Ok(());
        }
        self.segment(time, id, way, FIN | ACK, &[], None)?;
        self.segment(time, id, way.back(), ACK, &[], None)
    }

    /// It has ended, by a reset if both sides had not finished.
    pub(crate) fn close(&mut self, time: Duration, id: u64, way: Way) -> Result<(), Failure> {
        let made = self.connections.get(&id);
        if made.is_some_and(|made| made.finished != [true; 2]) {
            self.segment(time, id, way, RST | ACK, &[], None)?;
        }
        self.connections.remove(&id);
        Ok(())
    }

    /// What was written can be read.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.to.flush().map_err(|error| self.failed(&error))
    }

    fn segment(
        &mut self,
        time: Duration,
        id: u64,
        way: Way,
        flags: u8,
        payload: &[u8],
        comment: Option<&str>,
    ) -> Result<(), Failure> {
        let Some(made) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        let [from, to] = [way, way.back()].map(|way| made.ends[way.index()]);
        let [seq, ack] = [way, way.back()].map(|way| made.seqs[way.index()]);
        let ack = if flags & ACK == 0 { 0 } else { ack };
        let advance = payload.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
        made.seqs[way.index()] = seq.wrapping_add(advance);
        let packet = packet(from, to, [seq, ack], flags, payload);
        self.packet(time, &packet, packet.len(), comment)
    }
}

const fn same_version(a: SocketAddr, b: SocketAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

/// A segment of TCP in an IP packet.
pub(crate) fn packet(
    from: SocketAddr,
    to: SocketAddr,
    [seq, ack]: [u32; 2],
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut tcp = Vec::with_capacity(20 + payload.len());
    tcp.extend_from_slice(&from.port().to_be_bytes());
    tcp.extend_from_slice(&to.port().to_be_bytes());
    tcp.extend_from_slice(&seq.to_be_bytes());
    tcp.extend_from_slice(&ack.to_be_bytes());
    // Five words of header; a window; checksum and urgent pointer.
    tcp.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend_from_slice(payload);
    let len = tcp.len() as u16;
    let addresses = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (from, to) => [from, to].map(v6_octets).concat(),
    };
    let pseudo = [&addresses[..], &[0, 6], &len.to_be_bytes()].concat();
    let sum = checksum([&pseudo[..], &tcp[..]]);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut packet = if addresses.len() == 8 {
        let total = (20 + tcp.len()) as u16;
        let mut header = vec![0x45, 0];
        header.extend_from_slice(&total.to_be_bytes());
        // Not to be fragmented, 64 hops, TCP.
        header.extend_from_slice(&[0, 0, 0x40, 0, 64, 6, 0, 0]);
        header.extend_from_slice(&addresses);
        let sum = checksum([&header[..], &[]]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    } else {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend_from_slice(&len.to_be_bytes());
        header.extend_from_slice(&[6, 64]);
        header.extend_from_slice(&addresses);
        header
    };
    packet.extend_from_slice(&tcp);
    packet
}

fn v6_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The Internet's checksum (RFC 1071). The first part has an even length.
fn checksum(parts: [&[u8]; 2]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
