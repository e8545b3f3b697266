//! Data.fs: FileStorage's file format FS21, in Rust.

pub mod disk;
pub mod error;
pub mod format;
pub mod index;
pub mod iterate;
pub mod oids;
pub mod read;
pub mod recover;
#[cfg(test)]
mod testing;
mod window;
