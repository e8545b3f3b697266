//! Capture files: pcap and pcapng, in either byte order.
//!
//! ```text
//!   pcap     header (magic, ..., link type), then for each packet: time, lengths, bytes
//!   pcapng   blocks (type, length, body, length again): sections, interfaces, packets, others
//! ```
//!
//! Written for this tool and not taken from a crate, since it has to tell where a file is damaged,
//! to read files that are still being written and standard input, and to believe no length.

use std::fmt;
use std::io::{self, Read};
use std::time::Duration;

use crate::limits::{BLOCK_LEN_MAX, INTERFACES_MAX, PACKET_LEN_MAX};

/// A packet as it was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Since 1970
    pub time: Duration,
    /// What the bytes begin with: a number of the tcpdump project's list.
    pub link: u32,
    pub data: Vec<u8>,
    /// Bytes that it had on the wire.
    pub len: usize,
}

/// Why a file cannot be read (on).
#[derive(Debug)]
pub(crate) enum PcapError {
    /// The system says so.
    Io(io::Error),
    /// It is no capture at all.
    NotACapture([u8; 4]),
    /// It ends within a packet or a block; it may be still being written.
    Ended { pos: u64 },
    /// What stands there makes no sense.
    Damaged { pos: u64, what: &'static str },
}

impl fmt::Display for PcapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::NotACapture(magic) => {
                write!(f, "no pcap or pcapng file (it begins with {magic:02x?})")
            }
            Self::Ended { pos } => write!(f, "ends within the packet at byte {pos}"),
            Self::Damaged { pos, what } => write!(f, "damaged at byte {pos}: {what}"),
        }
    }
}

/// Reads packets one by one.
#[derive(Debug)]
pub(crate) struct PcapReader<R> {
    input: R,
    /// Bytes read so far.
    pos: u64,
    order: Order,
    format: Format,
    /// Blocks that are neither packets nor describe such.
    pub skipped_blocks: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

#[derive(Debug)]
enum Format {
    Pcap {
        link: u32,
        /// Of the fraction of a second, in nanoseconds.
        unit: u32,
    },
    Pcapng(Vec<Interface>),
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: u32,
    snap_len: u32,
    /// Units of time in a second.
    units: u64,
    /// Seconds to be added.
    offset: i64,
}

const MAGIC_MICROS: u32 = 0xa1b2_c3d4;
const MAGIC_NANOS: u32 = 0xa1b2_3c4d;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OLD_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const PACKET: u32 = 6;

const OPTION_END: u16 = 0;
const OPTION_RESOLUTION: u16 = 9;
const OPTION_OFFSET: u16 = 14;

impl Order {
    fn u16(self, bytes: &[u8]) -> u16 {
        let array = [bytes[0], bytes[1]];
        match self {
            Self::Little => u16::from_le_bytes(array),
            Self::Big => u16::from_be_bytes(array),
        }
    }

    fn u32(self, bytes: &[u8]) -> u32 {
        let array = [bytes[0], bytes[1], bytes[2], bytes[3]];
        match self {
            Self::Little => u32::from_le_bytes(array),
            Self::Big => u32::from_be_bytes(array),
        }
    }

    /// The order in which these bytes are this number.
    fn of(bytes: &[u8], number: u32) -> Option<Self> {
        let orders = [Self::Little, Self::Big];
        orders.into_iter().find(|order| order.u32(bytes) == number)
    }
}

impl<R: Read> PcapReader<R> {
    /// Reads the header of a file, of which `magic` are the first bytes.
    pub(crate) fn new(magic: [u8; 4], mut input: R) -> Result<Self, PcapError> {
        if Order::of(&magic, SECTION).is_some() {
            let mut reader = Self {
                input,
                pos: 4,
                order: Order::Little,
                format: Format::Pcapng(Vec::new()),
                skipped_blocks: 0,
            };
            reader.section()?;
            return Ok(reader);
        }
        let kinds = [(MAGIC_MICROS, 1000), (MAGIC_NANOS, 1)];
        let found = kinds
            .into_iter()
            .find_map(|(number, unit)| Some((Order::of(&magic, number)?, unit)));
        let (order, unit) = found.ok_or(PcapError::NotACapture(magic))?;
        let mut header = [0; 20];
        fill(&mut input, &mut header, 4)?;
        // The upper bits tell of checksums behind Ethernet frames.
        let link = order.u32(&header[16..]) & 0x03ff_ffff;
        Ok(Self {
            input,
            pos: 24,
            order,
            format: Format::Pcap { link, unit },
            skipped_blocks: 0,
        })
    }

    /// The next packet; `None` at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Packet>, PcapError> {
        match self.format {
            Format::Pcap { link, unit } => self.next_record(link, unit),
            Format::Pcapng(_) => loop {
                match self.next_block()? {
                    Block::Packet(packet) => return Ok(Some(packet)),
                    Block::Other => {}
                    Block::End => return Ok(None),
                }
            },
        }
    }

    fn next_record(&mut self, link: u32, unit: u32) -> Result<Option<Packet>, PcapError> {
        let pos = self.pos;
        let mut header = [0; 16];
        if !self.read_or_end(&mut header)? {
            return Ok(None);
        }
        let number = |at: usize| self.order.u32(&header[at..]);
        let [secs, fraction, captured, len] = [0, 4, 8, 12].map(number);
        if captured as usize > PACKET_LEN_MAX {
            let what = "a packet that is longer than any";
            return Err(PcapError::Damaged { pos, what });
        }
        // A fraction may be more than a second in a damaged file.
        let nanos = u64::from(fraction) * u64::from(unit);
        let time = Duration::from_secs(secs.into()) + Duration::from_nanos(nanos);
        let data = self.bytes(captured as usize, pos)?;
        let len = data.len().max(len as usize);
        Ok(Some(Packet {
            time,
            link,
            data,
            len,
        }))
    }

    fn next_block(&mut self) -> Result<Block, PcapError> {
        let pos = self.pos;
        let mut kind = [0; 4];
        if !self.read_or_end(&mut kind)? {
            return Ok(Block::End);
        }
        if Order::of(&kind, SECTION).is_some() {
            self.section()?;
            return Ok(Block::Other);
        }
        let body = self.body(pos)?;
        let damaged = |what| PcapError::Damaged { pos, what };
        match self.order.u32(&kind) {
            INTERFACE => {
                let interface = self.interface(&body);
                let interface = interface.ok_or(damaged("no description of an interface"))?;
                match &mut self.format {
                    Format::Pcapng(interfaces) if interfaces.len() < INTERFACES_MAX => {
                        interfaces.push(interface);
                    }
                    _ => return Err(damaged("too many interfaces")),
                }
                Ok(Block::Other)
            }
            PACKET | OLD_PACKET | SIMPLE_PACKET => {
                let packet = self.packet(self.order.u32(&kind), body);
                let packet = packet.ok_or(damaged("a packet that does not fit into its block"))?;
                Ok(Block::Packet(packet))
            }
            _ => {
                self.skipped_blocks += 1;
                Ok(Block::Other)
            }
        }
    }

    /// The rest of a section header, behind its type. What was known of interfaces ends here.
    fn section(&mut self) -> Result<(), PcapError> {
        let pos = self.pos - 4;
        let damaged = |what| PcapError::Damaged { pos, what };
        let mut start = [0; 8];
        self.fill(&mut start)?;
        let order = Order::of(&start[4..], BYTE_ORDER_MAGIC);
        self.order = order.ok_or(damaged("no section header"))?;
        let len = self.order.u32(&start) as usize;
        if !(28..=BLOCK_LEN_MAX).contains(&len) || !len.is_multiple_of(4) {
            return Err(damaged("a section header of a wrong length"));
        }
        self.bytes(len - 12, pos)?;
        self.format = Format::Pcapng(Vec::new());
        Ok(())
    }

    /// The body of a block, behind its type.
    fn body(&mut self, pos: u64) -> Result<Vec<u8>, PcapError> {
        let damaged = |what| PcapError::Damaged { pos, what };
        let mut len = [0; 4];
        self.fill(&mut len)?;
        let len = self.order.u32(&len) as usize;
        if !(12..=BLOCK_LEN_MAX).contains(&len) || !len.is_multiple_of(4) {
            return Err(damaged("a block of a wrong length"));
        }
        let mut body = self.bytes(len - 8, pos)?;
        let again = body.split_off(len - 12);
        if self.order.u32(&again) as usize != len {
            return Err(damaged("a block with two lengths"));
        }
        Ok(body)
    }

    fn interface(&self, body: &[u8]) -> Option<Interface> {
        let mut interface = Interface {
            link: self.order.u16(body.get(..2)?).into(),
            snap_len: self.order.u32(body.get(4..8)?),
            units: 1_000_000,
            offset: 0,
        };
        let mut rest = &body[8..];
        while let Some(head) = rest.get(..4) {
            let (code, len) = (self.order.u16(head), self.order.u16(&head[2..]) as usize);
            let value = rest.get(4..4 + len)?;
            match (code, value) {
                (OPTION_END, _) => break,
                (OPTION_RESOLUTION, [resolution]) => interface.units = units(*resolution)?,
                (OPTION_OFFSET, value) if value.len() == 8 => {
                    let halves = [&value[..4], &value[4..]].map(|half| self.order.u32(half));
                    let [low, high] = match self.order {
                        Order::Little => halves,
                        Order::Big => [halves[1], halves[0]],
                    };
                    interface.offset = (u64::from(high) << 32 | u64::from(low)).cast_signed();
                }
                _ => {}
            }
            rest = rest.get(4 + len.next_multiple_of(4)..).unwrap_or_default();
        }
        Some(interface)
    }

    fn packet(&self, kind: u32, body: Vec<u8>) -> Option<Packet> {
        let Format::Pcapng(interfaces) = &self.format else {
            return None;
        };
        let number = |at: usize| Some(self.order.u32(body.get(at..at + 4)?));
        if kind == SIMPLE_PACKET {
            let interface = interfaces.first()?;
            let len = number(0)? as usize;
            let snap_len = match interface.snap_len {
                0 => usize::MAX,
                snap_len => snap_len as usize,
            };
            let captured = len.min(snap_len).min(body.len() - 4);
            return Some(Packet {
                time: Duration::ZERO,
                link: interface.link,
                data: body[4..4 + captured].to_vec(),
                len,
            });
        }
        // The older form has a count of drops beside the interface.
        let interface = match kind {
            OLD_PACKET => self.order.u16(body.get(..2)?) as usize,
            _ => number(0)? as usize,
        };
        let interface = interfaces.get(interface)?;
        let (high, low) = (number(4)?, number(8)?);
        let captured = number(12)? as usize;
        let data = body.get(20..20usize.checked_add(captured)?)?.to_vec();
        Some(Packet {
            time: interface.time(u64::from(high) << 32 | u64::from(low)),
            link: interface.link,
            len: data.len().max(number(16)? as usize),
            data,
        })
    }

    fn read_or_end(&mut self, buf: &mut [u8]) -> Result<bool, PcapError> {
        let mut first = [0];
        loop {
            match self.input.read(&mut first) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(PcapError::Io(error)),
            }
        }
        buf[0] = first[0];
        self.pos += 1;
        self.fill(&mut buf[1..])?;
        Ok(true)
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), PcapError> {
        fill(&mut self.input, buf, self.pos)?;
        self.pos += buf.len() as u64;
        Ok(())
    }

    /// The next `len` bytes, for which memory is only taken as they come.
    fn bytes(&mut self, len: usize, pos: u64) -> Result<Vec<u8>, PcapError> {
        let mut bytes = Vec::new();
        let taken = (&mut self.input).take(len as u64).read_to_end(&mut bytes);
        taken.map_err(PcapError::Io)?;
        if bytes.len() < len {
            return Err(PcapError::Ended { pos });
        }
        self.pos += len as u64;
        Ok(bytes)
    }
}

enum Block {
    Packet(Packet),
    Other,
    End,
}

impl Interface {
    fn time(&self, count: u64) -> Duration {
        let nanos = u128::from(count % self.units) * 1_000_000_000 / u128::from(self.units);
        let time = Duration::from_secs(count / self.units)
            + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
        let offset = Duration::from_secs(self.offset.unsigned_abs());
        if self.offset < 0 {
            time.saturating_sub(offset)
        } else {
            time.saturating_add(offset)
        }
    }
}

/// Units in a second: a power of ten, or of two.
fn units(resolution: u8) -> Option<u64> {
    let exponent = u32::from(resolution & 0x7f);
    match resolution & 0x80 {
        0 => 10_u64.checked_pow(exponent),
        _ => 2_u64.checked_pow(exponent),
    }
}

fn fill(input: &mut impl Read, buf: &mut [u8], pos: u64) -> Result<(), PcapError> {
    input.read_exact(buf).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => PcapError::Ended { pos },
        _ => PcapError::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in the byte order of who wrote the file.
    fn word(order: Order, number: u32) -> [u8; 4] {
        match order {
            Order::Little => number.to_le_bytes(),
            Order::Big => number.to_be_bytes(),
        }
    }

    fn half(order: Order, number: u16) -> [u8; 2] {
        match order {
            Order::Little => number.to_le_bytes(),
            Order::Big => number.to_be_bytes(),
        }
    }

    fn read(file: &[u8]) -> (Vec<Packet>, Result<(), String>) {
        let mut packets = Vec::new();
        let magic = file[..4].try_into().unwrap();
        let mut reader = match PcapReader::new(magic, &file[4..]) {
            Ok(reader) => reader,
            Err(error) => return (packets, Err(error.to_string())),
        };
        loop {
            match reader.next() {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) => return (packets, Ok(())),
                Err(error) => return (packets, Err(error.to_string())),
            }
        }
    }

    fn pcap(order: Order, magic: u32, fraction: u32) -> Vec<u8> {
        let mut file = word(order, magic).to_vec();
        for number in [0x0004_0002, 0, 0, 65_535, 1] {
            file.extend(word(order, number));
        }
        for number in [100, fraction, 3, 9] {
            file.extend(word(order, number));
        }
        file.extend(b"abc");
        file
    }

    #[test]
    fn pcap_files_of_both_orders_and_units_are_read() {
        for order in [Order::Little, Order::Big] {
            for (magic, fraction) in [(MAGIC_MICROS, 5), (MAGIC_NANOS, 5000)] {
                let expected = Packet {
                    time: Duration::new(100, 5000),
                    link: 1,
                    data: b"abc".to_vec(),
                    len: 9,
                };
                assert_eq!(
                    read(&pcap(order, magic, fraction)),
                    (vec![expected], Ok(()))
                );
            }
        }
    }

    fn block(order: Order, kind: u32, body: &[u8]) -> Vec<u8> {
        let len = word(order, (body.len() + 12) as u32);
        [&word(order, kind), &len, body, &len].concat()
    }

    fn pcapng(order: Order) -> Vec<u8> {
        let section = [&word(order, BYTE_ORDER_MAGIC)[..], &[0; 12]].concat();
        let interface = |link: u16, options: &[u8]| {
            let fixed = [&half(order, link)[..], &[0; 2], &word(order, 2)].concat();
            block(order, INTERFACE, &[&fixed, options].concat())
        };
        let option = |code: u16, value: &[u8]| {
            let mut bytes = [half(order, code), half(order, value.len() as u16)].concat();
            bytes.extend_from_slice(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let offset = match order {
            Order::Little => 40_i64.to_le_bytes(),
            Order::Big => 40_i64.to_be_bytes(),
        };
        let options = [
            option(2, b"lo"),
            option(OPTION_RESOLUTION, &[9]),
            option(OPTION_OFFSET, &offset),
            option(OPTION_END, b""),
        ];
        let packet = |interface: u32, time: u64| {
            let numbers = [interface, (time >> 32) as u32, time as u32, 3, 9];
            let mut body = numbers.map(|number| word(order, number)).concat();
            body.extend_from_slice(b"abc\0");
            block(order, PACKET, &body)
        };
        [
            block(order, SECTION, &section),
            interface(101, &[]),
            interface(113, &options.concat()),
            block(order, 0x0bad, b"what"),
            packet(0, 100_000_005),
            packet(1, 60_000_005_000),
            block(
                order,
                SIMPLE_PACKET,
                &[&word(order, 9)[..], b"ab\0\0"].concat(),
            ),
        ]
        .concat()
    }

    #[test]
    fn pcapng_files_of_both_orders_are_read() {
        for order in [Order::Little, Order::Big] {
            let (packets, ended) = read(&pcapng(order));
            assert_eq!(ended, Ok(()));
            let found: Vec<_> = packets
                .iter()
                .map(|packet| (packet.time, packet.link, packet.data.len(), packet.len))
                .collect();
            let time = Duration::new(100, 5000);
            // The snap length of the first interface cuts what has no length of its own.
            let expected = [
                (time, 101, 3, 9),
                (time, 113, 3, 9),
                (Duration::ZERO, 101, 2, 9),
            ];
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn sections_may_have_different_orders() {
        let file = [pcapng(Order::Big), pcapng(Order::Little)].concat();
        let (packets, ended) = read(&file);
        assert_eq!((packets.len(), ended), (6, Ok(())));
    }

    #[test]
    fn a_file_that_ends_early_gives_what_it_has() {
        for file in [pcap(Order::Big, MAGIC_NANOS, 1), pcapng(Order::Little)] {
            let (whole, _) = read(&file);
            for len in 4..file.len() {
                let (packets, ended) = read(&file[..len]);
                assert!(packets.len() <= whole.len());
                assert_eq!(packets[..], whole[..packets.len()]);
                assert!(ended.is_err() || len < file.len());
            }
        }
    }

    #[test]
    fn lengths_are_not_believed() {
        let mut file = pcap(Order::Little, MAGIC_MICROS, 1);
        file[24 + 8..24 + 12].fill(0xff);
        let (packets, ended) = read(&file);
        assert_eq!(packets, []);
        assert!(ended.unwrap_err().contains("longer than any"));
        assert!(read(b"GIF8 no capture").1.unwrap_err().contains("no pcap"));
        for resolution in [0x80 | 64, 20] {
            assert_eq!(units(resolution), None);
        }
    }
}
