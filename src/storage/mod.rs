//! Data.fs: FileStorage's file format FS21, in Rust.

pub mod disk;
pub mod error;
pub mod format;
pub mod index;
pub mod read;
#[cfg(test)]
mod testing;
mod window;
