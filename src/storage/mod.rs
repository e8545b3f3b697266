//! Data.fs: FileStorage's file format FS21, in Rust.

pub mod disk;
