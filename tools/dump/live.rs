//! Capturing from an interface: a packet socket of Linux.
//!
//! The kernel gives packets from the IP header on (`SOCK_DGRAM`), whatever the interface is, with
//! their time, and with the number of those that it had to drop. It is asked for all packets;
//! those without a port that we know or follow are forgotten by [`Dump`].

use std::io::{self, IoSliceMut, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    self, AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
    setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::dump::Dump;
use crate::failure::Failure;
use crate::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, RAW, Skipped};
use crate::record::Recorder;

/// Bytes of packets that the kernel keeps for us while we are busy.
const KERNEL_BUFFER_LEN: usize = 32 << 20;

/// Bytes of a packet: the most that IP has.
const PACKET_LEN: usize = 65_536 + 128;

/// How long nothing may come before signals are looked at, in milliseconds.
const PATIENCE_MILLIS: i64 = 100;
const PATIENCE: Duration = Duration::from_millis(PATIENCE_MILLIS as u64);

/// Types of link layers and of packets in Linux.
const LOOPBACK: u16 = 772;
const OUTGOING: u8 = 4;

/// Captures until a signal. Returns how many packets the kernel has dropped.
pub(crate) fn capture<W: Write, R: Write>(
    interface: &str,
    dump: &mut Dump<W>,
    mut recorder: Option<&mut Recorder<R>>,
) -> Result<u32, Failure> {
    let socket = open(interface)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Failure::system("signals", error))?;
    }
    // Whoever starts this may wait for it to be ready.
    let _ = writeln!(io::stderr(), "zeodump: capturing on {interface}");
    let mut buf = vec![0; PACKET_LEN];
    let mut dropped = 0;
    let mut flushed = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let packet = match receive(&socket, &mut buf, &mut dropped) {
            Ok(packet) => packet,
            Err(Errno::EAGAIN | Errno::EINTR) => {
                dump.out.flush()?;
                if let Some(recorder) = &mut recorder {
                    recorder.flush()?;
                }
                continue;
            }
            Err(error) => return Err(Failure::system(interface, error)),
        };
        // On the loopback each packet is seen twice: when it is sent and when it is received.
        if packet.is_copy {
            continue;
        }
        if !packet.is_ip {
            // Its first bytes may look as if it were.
            dump.skip(Skipped::NotIp);
            continue;
        }
        let data = &buf[..packet.len.min(PACKET_LEN)];
        let is_ours = dump.packet(packet.time, RAW, data, packet.len)?;
        if let Some(recorder) = recorder.as_mut().filter(|_| is_ours) {
            recorder.packet(packet.time, data, packet.len, None)?;
        }
        // Where there is always something that is not shown, nothing would be for long.
        if packet.time.abs_diff(flushed) > PATIENCE {
            flushed = packet.time;
            dump.out.flush()?;
        }
    }
    Ok(dropped)
}

fn open(interface: &str) -> Result<OwnedFd, Failure> {
    let refused = |error: Errno| Failure::system(format!("capturing on {interface}"), error);
    let link = match interface {
        "any" => None,
        name => {
            let all = getifaddrs().map_err(refused)?;
            let mut links = all.filter(|found| found.interface_name == name);
            let link = links.find_map(|found| found.address?.as_link_addr().copied());
            let unknown = || Failure::Input(format!("there is no interface {name}"));
            Some(link.ok_or_else(unknown)?)
        }
    };
    let socket = socket::socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .map_err(refused)?;
    if let Some(link) = link {
        socket::bind(socket.as_raw_fd(), &link).map_err(refused)?;
    }
    let patience = TimeVal::milliseconds(PATIENCE_MILLIS);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(refused)?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).map_err(refused)?;
    setsockopt(&socket, sockopt::RxqOvfl, &1).map_err(refused)?;
    // It is good to have, and needs more rights than all else.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &KERNEL_BUFFER_LEN);
    Ok(socket)
}

/// What the kernel says of a packet.
struct Received {
    time: Duration,
    /// Bytes that it had, which may be more than were read.
    len: usize,
    /// It was seen before.
    is_copy: bool,
    is_ip: bool,
}

fn receive(socket: &OwnedFd, buf: &mut [u8], dropped: &mut u32) -> Result<Received, Errno> {
    let mut slices = [IoSliceMut::new(buf)];
    let mut control = nix::cmsg_space!([i64; 2], u32);
    let received = socket::recvmsg::<LinkAddr>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_TRUNC,
    )?;
    let mut time = Duration::ZERO;
    for message in received.cmsgs()? {
        match message {
            ControlMessageOwned::ScmTimestampns(stamp) => time = Duration::from(stamp),
            ControlMessageOwned::RxqOvfl(count) => *dropped = count,
            _ => {}
        }
    }
    // On the loopback each packet is seen twice: when it is sent, and when it is received.
    let is_copy = received
        .address
        .is_some_and(|from| from.hatype() == LOOPBACK && from.pkttype() == OUTGOING);
    let is_ip = received.address.is_none_or(|from| {
        let ethertype = u16::from_be(from.protocol());
        [ETHERTYPE_IPV4, ETHERTYPE_IPV6].contains(&ethertype)
    });
    Ok(Received {
        time,
        len: received.bytes,
        is_copy,
        is_ip,
    })
}
