//! What a capture can make grow, and where it ends. What is beyond a bound is told, with a count,
//! and the rest goes on.

use std::time::Duration;

/// Bytes of a packet in a capture file. Beyond that the file is damaged; tcpdump's own bound.
pub(crate) const PACKET_LEN_MAX: usize = 262_144;

/// Bytes of any other block of a pcapng file, which is skipped unless it describes an interface.
pub(crate) const BLOCK_LEN_MAX: usize = 16 << 20;

/// Interfaces of a section of a pcapng file.
pub(crate) const INTERFACES_MAX: usize = 1000;

/// TCP connections that are followed at a time. Beyond that the one that was silent for longest is
/// taken for ended.
pub(crate) const CONNECTIONS_MAX: usize = 10_000;

/// Bytes of one direction of a connection that wait for what is missing before them. Beyond that
/// it is taken for lost.
pub(crate) const WAITING_LEN_MAX: usize = 8 << 20;

/// Bytes that wait so in all connections. Beyond that it is taken for lost what is missing in the
/// connection that something comes for.
pub(crate) const WAITING_TOTAL_MAX: usize = 256 << 20;

/// Pieces that wait in one direction of a connection. Each takes about a hundred bytes beside its
/// own.
pub(crate) const WAITING_PIECES_MAX: usize = 4096;

/// How long what the receiver has acknowledged may still come, if data behind it have. The capture
/// may have got the two directions by several queues of a network card.
pub(crate) const LATE_MAX: Duration = Duration::from_millis(100);

/// Acknowledgements after which it is taken for lost before that: as many as make TCP itself send
/// again.
pub(crate) const LATE_ACKS_MAX: u32 = 3;

/// Bytes of a frame that is decoded. Longer ones are shown by their length; stores of large objects
/// are decoded without their data.
pub(crate) const FRAME_LEN_MAX: usize = 64 << 20;

/// Bytes of incomplete frames of all connections. A frame that would grow beyond that is skipped.
pub(crate) const INCOMPLETE_LEN_MAX: usize = 256 << 20;

/// Bytes in which the next frame is looked for behind a gap. If there is none, the first half is
/// given up.
pub(crate) const SEARCH_LEN_MAX: usize = 1 << 20;

/// Calls of a connection that wait for their replies. Beyond that they are forgotten, which is
/// counted, and their replies will have no latency.
pub(crate) const CALLS_WAITING_MAX: usize = 100_000;

/// Bytes that calls of all connections take while they wait, about. Beyond that those of the
/// connection that has one more are forgotten.
pub(crate) const CALLS_LEN_MAX: usize = 256 << 20;

/// Calls without a reply that are shown for each connection when it ends; others are counted.
pub(crate) const UNANSWERED_SHOWN_MAX: usize = 100;

/// Characters of a value in a line. Verbose output and JSON have more.
pub(crate) const VALUE_CHARS_MAX: usize = 80;

/// Characters of a value in a tree or in JSON.
pub(crate) const LONG_VALUE_CHARS_MAX: usize = 4000;

/// Bytes of a message in hex, if it is not asked for more.
pub(crate) const HEX_LEN_MAX: usize = 512;

/// Methods that the summary tells apart; a client may invent any number of them.
pub(crate) const METHODS_MAX: usize = 500;

/// Slowest calls in the summary.
pub(crate) const SLOWEST_MAX: usize = 10;

/// Connections in the summary, those with most bytes; all are in its sum.
pub(crate) const CONNECTIONS_SHOWN_MAX: usize = 20;

/// Connections that the summary counts one by one.
pub(crate) const CONNECTIONS_COUNTED_MAX: usize = 100_000;
