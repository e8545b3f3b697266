//! The ZEO protocol, version 5, in both its encodings: bytes to typed calls and values to bytes.

mod value;

pub use value::Value;
