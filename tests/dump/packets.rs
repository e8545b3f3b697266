//! Captures made of recorded streams, in every form that captures have.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Bytes that one side sends at once.
#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) to_server: bool,
    pub(crate) data: Vec<u8>,
}

/// A recorded conversation, frame by frame, in the order that `zeodump` shows it in.
pub(crate) fn conversation(name: &str) -> Vec<Sent> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name);
    let read = |suffix: &str| {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        fs::read(name).unwrap()
    };
    let (mut calls, mut answers) = (read(".c2s.bin"), read(".s2c.bin"));
    let output = Command::new(env!("CARGO_BIN_EXE_zeodump"))
        .args(["-j", "--stream", "zeo"])
        .arg(&path)
        .output()
        .unwrap();
    let mut conversation = Vec::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap();
        let (Some(to), Some(len)) = (message["to"].as_str(), message["bytes"].as_u64()) else {
            continue;
        };
        let to_server = to == "server";
        let stream = if to_server { &mut calls } else { &mut answers };
        let rest = stream.split_off(usize::try_from(len).unwrap());
        let data = std::mem::replace(stream, rest);
        conversation.push(Sent { to_server, data });
    }
    assert!(calls.is_empty() && answers.is_empty(), "{name}");
    conversation
}

/// A packet from its IP header on.
#[derive(Clone)]
pub(crate) struct Packet {
    pub(crate) ip: Vec<u8>,
    /// Whether it has no payload.
    pub(crate) is_empty: bool,
}

pub(crate) const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;
pub(crate) const FIN: u8 = 1;

/// The two ends of a connection.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) v6: bool,
    pub(crate) client_port: u16,
    pub(crate) server_port: u16,
}

impl Ends {
    /// An IP packet. Checksums are left out: nobody looks at them.
    pub(crate) fn packet(
        self,
        to_server: bool,
        [seq, ack]: [u32; 2],
        flags: u8,
        data: &[u8],
    ) -> Packet {
        let mut ports = [self.client_port, self.server_port];
        let mut hosts = [1_u8, 2];
        if !to_server {
            ports.reverse();
            hosts.reverse();
        }
        let mut tcp = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
        tcp.extend(seq.to_be_bytes());
        tcp.extend(ack.to_be_bytes());
        tcp.extend([0x50, flags, 255, 255, 0, 0, 0, 0]);
        tcp.extend(data);
        let mut ip;
        if self.v6 {
            ip = vec![0x60, 0, 0, 0];
            ip.extend((tcp.len() as u16).to_be_bytes());
            ip.extend([6, 64]);
            for host in hosts {
                ip.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
            }
        } else {
            ip = vec![0x45, 0];
            ip.extend(((tcp.len() + 20) as u16).to_be_bytes());
            ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
            for host in hosts {
                ip.extend([10, 0, 0, host]);
            }
        }
        ip.extend(tcp);
        Packet {
            ip,
            is_empty: data.is_empty(),
        }
    }

    /// A whole connection, with segments of at most `segment_len` bytes.
    pub(crate) fn connection(self, sent: &[Sent], segment_len: usize) -> Vec<Packet> {
        // Near the end of the numbers.
        let mut seqs = [u32::MAX - 100, 5000_u32];
        let mut packets = Vec::new();
        packets.push(self.packet(true, [seqs[0], 0], SYN, b""));
        packets.push(self.packet(false, [seqs[1], seqs[0].wrapping_add(1)], SYN | ACK, b""));
        seqs = seqs.map(|seq| seq.wrapping_add(1));
        packets.push(self.packet(true, seqs, ACK, b""));
        for sent in sent {
            let (mine, other) = if sent.to_server { (0, 1) } else { (1, 0) };
            for data in sent.data.chunks(segment_len) {
                let numbers = [seqs[mine], seqs[other]];
                packets.push(self.packet(sent.to_server, numbers, ACK, data));
                seqs[mine] = seqs[mine].wrapping_add(data.len() as u32);
                let numbers = [seqs[other], seqs[mine]];
                packets.push(self.packet(!sent.to_server, numbers, ACK, b""));
            }
        }
        packets.push(self.packet(true, seqs, FIN | ACK, b""));
        let seqs = [seqs[1], seqs[0].wrapping_add(1)];
        packets.push(self.packet(false, seqs, FIN | ACK, b""));
        packets.push(self.packet(true, [seqs[1], seqs[0].wrapping_add(1)], ACK, b""));
        packets
    }
}

/// What stands before the IP header, by link type.
pub(crate) fn link_header(link: u32, v6: bool) -> Vec<u8> {
    let ethertype: [u8; 2] = if v6 { [0x86, 0xdd] } else { [8, 0] };
    match link {
        0 => vec![if v6 { 30 } else { 2 }, 0, 0, 0],
        1 => [&[2; 12][..], &[0x81, 0, 0, 7], &ethertype].concat(),
        101 => Vec::new(),
        113 => [&[0; 14][..], &ethertype].concat(),
        276 => [&ethertype[..], &[0; 18]].concat(),
        link => panic!("{link}"),
    }
}

/// A pcap file; packets are a millisecond apart.
pub(crate) fn pcap(packets: &[Packet], link: u32, snap_len: usize, big_endian: bool) -> Vec<u8> {
    let word = |number: u32| match big_endian {
        true => number.to_be_bytes(),
        false => number.to_le_bytes(),
    };
    let mut file = Vec::new();
    for number in [0xa1b2_c3d4, 0x0004_0002, 0, 0, snap_len as u32, link] {
        file.extend(word(number));
    }
    for (n, packet) in packets.iter().enumerate() {
        let v6 = packet.ip[0] >> 4 == 6;
        let whole = [link_header(link, v6), packet.ip.clone()].concat();
        let data = &whole[..whole.len().min(snap_len)];
        let (seconds, micros) = (1_795_222_000 + n as u32 / 1000, n as u32 % 1000 * 1000);
        for number in [seconds, micros, data.len() as u32, whole.len() as u32] {
            file.extend(word(number));
        }
        file.extend(data);
    }
    file
}
