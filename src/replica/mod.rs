//! One node of a replicated storage: the rules by which no acknowledged transaction is lost, and no
//! two nodes commit.
//!
//! [`Replica::step`] takes an event and gives back what is to be done. There are no clocks, sockets,
//! files or threads in here; what travels how, what a transaction is, and what a disk is, others
//! know. The rules and why they are so: [`replication`](crate::manual::replication).

pub mod codec;
pub mod event;
pub mod members;
pub mod message;
pub mod mutant;
pub mod settings;
