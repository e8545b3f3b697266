//! Spread: the group daemon of the prototypes, by its client protocol.
//!
//! [`wire`] has the bytes, in both directions. Nothing here knows sockets or the clock. Spread's
//! own C library is not used: it blocks.

pub mod wire;
