//! Spread: the group daemon of the prototypes, by its client protocol.
//!
//! [`wire`] has the bytes, in both directions; [`session`] is a client that keeps itself connected
//! and joined. Nothing here knows sockets or the clock. Spread's own C library is not used: it
//! blocks.

mod retry;
pub mod session;
mod view;
pub mod wire;
