//! What is in a packet: from the link layer to the bytes of a TCP segment.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}:{}", self.port),
            IpAddr::V6(address) => write!(f, "[{address}]:{}", self.port),
        }
    }
}

/// A segment of TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    pub from: Endpoint,
    pub to: Endpoint,
    pub seq: u32,
    /// What has been received, if that is told.
    pub ack: Option<u32>,
    pub syn: bool,
    pub fin: bool,
    pub rst: bool,
    pub payload: &'a [u8],
    /// Bytes that it had behind these, and that were not captured.
    pub missing: usize,
    /// The number of the packet; zero for IPv6, which has none.
    pub id: u16,
}

/// Why a packet is of no more use to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Skipped {
    /// It is of a kind of network that we do not know.
    Link(u32),
    /// It is neither IPv4 nor IPv6.
    NotIp,
    /// It is not TCP.
    NotTcp,
    /// It is a fragment of an IP packet, which we do not put together.
    Fragment,
    /// So little of it was captured that one cannot tell what it is.
    CutShort,
    /// Its lengths contradict each other.
    Malformed,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(link) => write!(f, "of link type {link}, which is not known"),
            Self::NotIp => f.write_str("not IP"),
            Self::NotTcp => f.write_str("not TCP"),
            Self::Fragment => f.write_str("fragments of IP packets, which are not put together"),
            Self::CutShort => f.write_str("cut before their TCP header ends"),
            Self::Malformed => f.write_str("malformed"),
        }
    }
}

/// Link types of the tcpdump project's list.
pub(crate) const NULL: u32 = 0;
pub(crate) const ETHERNET: u32 = 1;
const RAW_BSD: u32 = 12;
const RAW_OPENBSD: u32 = 14;
pub(crate) const RAW: u32 = 101;
pub(crate) const LOOP: u32 = 108;
pub(crate) const LINUX_SLL: u32 = 113;
const IPV4: u32 = 228;
const IPV6: u32 = 229;
pub(crate) const LINUX_SLL2: u32 = 276;

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Tags of virtual networks, the usual one and two for tags around tags.
const ETHERTYPES_VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];

const TCP: u8 = 6;

/// Takes a packet apart. `len` is what it had on the wire, of which `data` is the beginning.
pub(crate) fn segment(link: u32, data: &[u8], len: usize) -> Result<Segment<'_>, Skipped> {
    let header_len = ip_pos(link, data)?;
    let ip = data.get(header_len..).ok_or(Skipped::CutShort)?;
    let wire_len = len.saturating_sub(header_len);
    match ip.first().ok_or(Skipped::CutShort)? >> 4 {
        4 => ipv4(ip, wire_len),
        6 => ipv6(ip, wire_len),
        _ => Err(Skipped::NotIp),
    }
}

/// Where the IP packet begins.
fn ip_pos(link: u32, data: &[u8]) -> Result<usize, Skipped> {
    let (ethertype_pos, header_len) = match link {
        RAW | RAW_BSD | RAW_OPENBSD | IPV4 | IPV6 => return Ok(0),
        // The address family, in the byte order of who captured or of the network; the version of
        // IP says as much.
        NULL | LOOP => return Ok(4),
        ETHERNET => (12, 14),
        LINUX_SLL => (14, 16),
        LINUX_SLL2 => (0, 20),
        link => return Err(Skipped::Link(link)),
    };
    let mut ethertype = u16_at(data, ethertype_pos)?;
    let mut pos = header_len;
    while ETHERTYPES_VLAN.contains(&ethertype) {
        ethertype = u16_at(data, pos + 2)?;
        pos += 4;
    }
    match ethertype {
        ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => Ok(pos),
        _ => Err(Skipped::NotIp),
    }
}

fn ipv4(ip: &[u8], wire_len: usize) -> Result<Segment<'_>, Skipped> {
    let header_len = usize::from(ip[0] & 0x0f) * 4;
    if header_len < 20 {
        return Err(Skipped::Malformed);
    }
    let header = ip.get(..header_len).ok_or(Skipped::CutShort)?;
    let total_len = match u16_at(header, 2)? {
        // Packets that the network card is to cut have none, as seen by who sends them.
        0 => wire_len,
        len => len.into(),
    };
    if header[9] != TCP {
        return Err(Skipped::NotTcp);
    }
    // More of them follow, or this is not the first.
    if u16_at(header, 6)? & 0x3fff != 0 {
        return Err(Skipped::Fragment);
    }
    let address = |pos: usize| -> Result<IpAddr, Skipped> {
        let bytes = <[u8; 4]>::try_from(&header[pos..pos + 4]);
        bytes
            .map(|bytes| Ipv4Addr::from(bytes).into())
            .map_err(|_| Skipped::Malformed)
    };
    let addresses = [address(12)?, address(16)?];
    let len = total_len
        .checked_sub(header_len)
        .ok_or(Skipped::Malformed)?;
    let mut segment = tcp(&ip[header_len..], len, addresses)?;
    segment.id = u16_at(header, 4)?;
    Ok(segment)
}

fn ipv6(ip: &[u8], wire_len: usize) -> Result<Segment<'_>, Skipped> {
    let header = ip.get(..40).ok_or(Skipped::CutShort)?;
    let mut len = match u16_at(header, 4)? {
        0 => wire_len.saturating_sub(40),
        len => len.into(),
    };
    let address = |pos: usize| -> Result<IpAddr, Skipped> {
        let bytes = <[u8; 16]>::try_from(&header[pos..pos + 16]);
        bytes
            .map(|bytes| Ipv6Addr::from(bytes).into())
            .map_err(|_| Skipped::Malformed)
    };
    let addresses = [address(8)?, address(24)?];
    let mut next = header[6];
    let mut rest = &ip[40..];
    loop {
        let header_len = match next {
            TCP => return tcp(rest, len, addresses),
            // Options for each hop, routing, options for the destination.
            0 | 43 | 60 => (usize::from(byte_at(rest, 1)?) + 1) * 8,
            // Authentication
            51 => (usize::from(byte_at(rest, 1)?) + 2) * 4,
            // A fragment, or a whole packet in the form of one.
            44 if u16_at(rest, 2)? & 0xfff9 == 0 => 8,
            44 => return Err(Skipped::Fragment),
            _ => return Err(Skipped::NotTcp),
        };
        next = byte_at(rest, 0)?;
        rest = rest.get(header_len..).ok_or(Skipped::CutShort)?;
        len = len.checked_sub(header_len).ok_or(Skipped::Malformed)?;
    }
}

/// `len` is what IP says, and may be more than was captured, or less, as Ethernet pads.
fn tcp(data: &[u8], len: usize, addresses: [IpAddr; 2]) -> Result<Segment<'_>, Skipped> {
    let fixed = data.get(..20).ok_or(Skipped::CutShort)?;
    let header_len = usize::from(fixed[12] >> 4) * 4;
    if header_len < 20 || header_len > len {
        return Err(Skipped::Malformed);
    }
    let captured = &data[..data.len().min(len)];
    let payload = captured.get(header_len..).unwrap_or_default();
    let flags = fixed[13];
    let has = |flag: u8| flags & flag != 0;
    Ok(Segment {
        from: Endpoint {
            address: addresses[0],
            port: u16_at(fixed, 0)?,
        },
        to: Endpoint {
            address: addresses[1],
            port: u16_at(fixed, 2)?,
        },
        seq: u32_at(fixed, 4)?,
        ack: if has(0x10) {
            Some(u32_at(fixed, 8)?)
        } else {
            None
        },
        syn: has(0x02),
        fin: has(0x01),
        rst: has(0x04),
        payload,
        missing: len - header_len - payload.len(),
        id: 0,
    })
}

fn byte_at(data: &[u8], pos: usize) -> Result<u8, Skipped> {
    data.get(pos).copied().ok_or(Skipped::CutShort)
}

fn u16_at(data: &[u8], pos: usize) -> Result<u16, Skipped> {
    Ok(u16::from_be_bytes([
        byte_at(data, pos)?,
        byte_at(data, pos + 1)?,
    ]))
}

fn u32_at(data: &[u8], pos: usize) -> Result<u32, Skipped> {
    let [high, low] = [u16_at(data, pos)?, u16_at(data, pos + 2)?];
    Ok(u32::from(high) << 16 | u32::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::packet;
    use core::net::SocketAddr;

    const ACK: u8 = 0x10;

    fn ip(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
        let [from, to]: [SocketAddr; 2] = [from.parse().unwrap(), to.parse().unwrap()];
        packet(from, to, [7, 9], ACK, payload)
    }

    fn v4() -> Vec<u8> {
        ip("10.0.0.1:40000", "10.0.0.2:8100", b"hello")
    }

    fn v6() -> Vec<u8> {
        ip("[fe80::1]:40000", "[fe80::2]:8100", b"hello")
    }

    #[track_caller]
    fn assert_hello(link: u32, data: &[u8]) {
        let segment = segment(link, data, data.len()).unwrap();
        assert_eq!(segment.payload, b"hello");
        assert_eq!((segment.seq, segment.ack), (7, Some(9)));
        assert_eq!((segment.from.port, segment.to.port), (40_000, 8100));
        assert_eq!(segment.missing, 0);
    }

    #[test]
    fn segments_are_found_behind_every_link_layer() {
        for (ip, ethertype, family) in [(v4(), [8, 0], 2), (v6(), [0x86, 0xdd], 24)] {
            let before = |head: &[u8]| [head, &ip].concat();
            assert_hello(RAW, &ip);
            assert_hello(NULL, &before(&[family, 0, 0, 0]));
            assert_hello(LOOP, &before(&[0, 0, 0, family]));
            assert_hello(ETHERNET, &before(&[&[0; 12], &ethertype[..]].concat()));
            let tag = [0x81, 0, 0, 5];
            let outer = [0x88, 0xa8, 0, 6];
            let tagged = [&[0; 12], &tag[..], &ethertype].concat();
            assert_hello(ETHERNET, &before(&tagged));
            let twice = [&[0; 12], &outer[..], &tag, &ethertype].concat();
            assert_hello(ETHERNET, &before(&twice));
            assert_hello(LINUX_SLL, &before(&[&[0; 14], &ethertype[..]].concat()));
            assert_hello(LINUX_SLL2, &before(&[&ethertype[..], &[0; 18]].concat()));
        }
        assert_eq!(segment(147, &v4(), 60), Err(Skipped::Link(147)));
    }

    #[test]
    fn padding_of_ethernet_is_no_payload() {
        let mut data = [&[0; 12], &[8, 0][..], &v4()].concat();
        data.resize(80, 0);
        assert_hello(ETHERNET, &data);
    }

    #[test]
    fn what_the_capture_cut_off_is_counted() {
        let whole = v4();
        let cut = segment(RAW, &whole[..whole.len() - 3], whole.len()).unwrap();
        assert_eq!((cut.payload, cut.missing), (&b"he"[..], 3));
        for len in 0..40 {
            assert_eq!(
                segment(RAW, &whole[..len], whole.len()),
                Err(Skipped::CutShort)
            );
        }
    }

    #[test]
    fn packets_that_the_card_is_to_cut_have_no_length() {
        for (mut data, len_pos) in [(v4(), 2), (v6(), 4)] {
            data[len_pos..len_pos + 2].fill(0);
            assert_hello(RAW, &data);
        }
    }

    #[test]
    fn extension_headers_are_passed_and_fragments_are_told() {
        let plain = v6();
        let with = |kind: u8, header: &[u8]| {
            let mut data = plain.clone();
            data[6] = kind;
            data[4..6].copy_from_slice(&((plain.len() - 40 + header.len()) as u16).to_be_bytes());
            data.splice(40..40, header.iter().copied());
            data
        };
        assert_hello(RAW, &with(0, &[6, 0, 0, 0, 0, 0, 0, 0]));
        assert_hello(RAW, &with(60, &[&[6, 1], &[0; 14][..]].concat()));
        assert_hello(RAW, &with(44, &[6, 0, 0, 0, 0, 0, 0, 1]));
        let fragment = with(44, &[6, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!(
            segment(RAW, &fragment, fragment.len()),
            Err(Skipped::Fragment)
        );
        let mut fragment = v4();
        fragment[6] = 0x20;
        assert_eq!(
            segment(RAW, &fragment, fragment.len()),
            Err(Skipped::Fragment)
        );
    }

    #[test]
    fn other_protocols_and_nonsense_are_told_apart() {
        let mut udp = v4();
        udp[9] = 17;
        assert_eq!(segment(RAW, &udp, udp.len()), Err(Skipped::NotTcp));
        let arp = [&[0; 12], &[8, 6][..], &[0; 28]].concat();
        assert_eq!(segment(ETHERNET, &arp, arp.len()), Err(Skipped::NotIp));
        let mut short = v4();
        short[0] = 0x44;
        assert_eq!(segment(RAW, &short, short.len()), Err(Skipped::Malformed));
        let mut short = v4();
        short[32] = 0x40;
        assert_eq!(segment(RAW, &short, short.len()), Err(Skipped::Malformed));
    }
}
