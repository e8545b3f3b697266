//! Standby: a storage server for ZODB that unmodified ZEO clients connect to.
//!
//! Where to start reading: `manual` for the whole picture, `reactor` for the loop that everything
//! runs in, `server` for what happens at a call, `node` for one that is part of a cluster. Layers,
//! from the bottom:
//!
//! | layer | what |
//! |---|---|
//! | [`ids`] [`limits`] [`cursor`] [`value`] [`pickle`] [`entry`] | what all share |
//! | [`zeo`] [`storage`] [`group`] | the protocol, data files, other nodes; none knows another |
//! | [`replica`] | the rules of replication, without disks or sockets |
//! | [`log_disk`] | what a replica wants of its disk: `storage` by the words of `replica` |
//! | [`node`] | a replica among others: ties `replica`, `group` and `log_disk` |
//! | [`peer`] | what one node gets of another directly |
//! | [`server`] | clients: ties `zeo`, `storage`, and by events a `node` |
//! | [`follow`] | a client of another server, which copies what that has |
//! | [`admin`] [`tls`] [`config`] [`logging`] | status, certificates, what is configured and said |
//! | [`reactor`] | sockets, signals, threads and the clock, which nobody else knows |

pub mod admin;
pub mod args;
pub mod config;
pub mod cursor;
pub mod entry;
pub mod exit;
pub mod follow;
pub mod group;
pub mod ids;
pub mod limits;
pub mod log_disk;
pub mod logging;
pub mod node;
pub mod out_queue;
pub mod peer;
pub mod pickle;
mod pickle_opcode;
mod pickle_text;
pub mod reactor;
pub mod replica;
pub mod server;
pub mod storage;
pub mod tls;
pub mod value;
pub mod zeo;

/// The manual: how the server works, what it writes, what it says.
pub mod manual {
    #[doc = include_str!("manual/architecture.md")]
    pub mod architecture {}
    #[doc = include_str!("manual/blobs.md")]
    pub mod blobs {}
    #[doc = include_str!("manual/corosync.md")]
    pub mod corosync {}
    #[doc = include_str!("manual/data_file.md")]
    pub mod data_file {}
    #[doc = include_str!("manual/group.md")]
    pub mod group {}
    #[doc = include_str!("manual/groupd.md")]
    pub mod groupd {}
    #[doc = include_str!("manual/journal.md")]
    pub mod journal {}
    #[doc = include_str!("manual/operating.md")]
    pub mod operating {}
    #[doc = include_str!("manual/pack.md")]
    pub mod pack {}
    #[doc = include_str!("manual/peers.md")]
    pub mod peers {}
    #[doc = include_str!("manual/performance.md")]
    pub mod performance {}
    #[doc = include_str!("manual/replication.md")]
    pub mod replication {}
    #[doc = include_str!("manual/simulation.md")]
    pub mod simulation {}
    #[doc = include_str!("manual/spread.md")]
    pub mod spread {}
    #[doc = include_str!("manual/standbyctl.md")]
    pub mod standbyctl {}
    #[doc = include_str!("manual/tls.md")]
    pub mod tls {}
    #[doc = include_str!("manual/zeo.md")]
    pub mod zeo {}
    #[doc = include_str!("manual/zeobench.md")]
    pub mod zeobench {}
    #[doc = include_str!("manual/zeodump.md")]
    pub mod zeodump {}
}
