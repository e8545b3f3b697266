//! Following another ZEO server: all that it has committed is committed here, too, with the same
//! tids, so that its clients may come here one day and keep their caches.
//!
//! ```text
//!  the source: runzeo, or standbyd                          this server
//!     iterator_next, iterator_record_next ──► Follower ──► tpc_begin, restorea, storeBlob...
//!     sendBlob, invalidateTransaction                      vote, tpc_finish
//! ```
//!
//! A [`Follower`] is a client of both. To this server it is one that may write though nobody else
//! may ([`connect_feed`]); so what becomes of a transaction (syncs, blobs, invalidations to
//! readers, what a crash leaves) is the same as of any other. To the source it is a reader.
//!
//! It asks, and waits for the answer: on a thread of its own, by [`Wire`]s, which know sockets.
//! What it holds at a time is one record, or one piece of a blob, and what it has not sent of
//! [`FOLLOW_UNSENT_LEN_MAX`](crate::limits::FOLLOW_UNSENT_LEN_MAX) bytes.
//!
//! | state of the source | what happens |
//! |---|---|
//! | has more | it is copied; while one transaction is on its way to our disk the next is read |
//! | has no more | `invalidateTransaction` says that it has; every 30 s it is asked anyway |
//! | gives less than it has told of | [`Reached::Short`]: damage, as a stock server sees it; |
//! | | unless its file ends there: it was stopped behind a vote |
//! | is gone | [`Trouble::Lost`]: whoever runs this connects again |
//! | has less than we | [`Trouble::Behind`]: the same |
//! | is not what it was | [`Trouble::Stop`]: nothing is ever taken back here |
//!
//! [`connect_feed`]: ../server/struct.Server.html#method.connect_feed

mod conversation;
mod copy;
mod extension;
mod history;
#[cfg(test)]
mod tests;

pub use self::conversation::{Came, Conversation, Side, Trouble, Wire};
pub use self::copy::{Follower, Known, Progress, Reached};
