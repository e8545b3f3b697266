//! What an administrator, a monitor and a load balancer talk to: HTTP, without sockets.
//!
//! [`Http`] is one connection; [`Status`] is what can be seen, in JSON and as [`metrics`];
//! [`Command`] is what can be asked for. Who drives it has the sockets, knows the status and obeys
//! the commands. What is on the wire stands on the page
//! [`standbyctl`](crate::manual::standbyctl) of the manual.

mod command;
mod http;
mod metrics;
mod report;
mod status;

pub use self::command::{Command, Done, MemberAction, Others, Refused, Refusing};
pub use self::http::{Access, Answer, Asked, Http, Page, What};
pub use self::metrics::metrics;
pub use self::report::{ComparisonReport, FindingReport, Report, StorageReport};
pub use self::status::{
    ClientCounts, CopyStatus, DirectStatus, JournalStatus, MemberRole, MemberStatus, NoticeStatus,
    Openness, PackState, PackStatus, Status, StorageStatus, TaskStatus, WitnessStatus,
};
