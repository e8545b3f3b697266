//! stub
/// stub
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    Stopped = 0,
    HungUp = 1,
    Usage = 2,
    StorageFailed = 3,
    WriteFailed = 4,
    Internal = 5,
}
impl From<Exit> for std::process::ExitCode {
    fn from(e: Exit) -> Self {
        Self::from(e as u8)
    }
}
