//! stub
/// stub
#[derive(Debug)]
pub struct Handle;
impl Handle {
    /// stub
    pub fn has_files(&self) -> bool {
        false
    }
    /// stub
    pub fn reopen(&self) -> std::io::Result<()> {
        Ok(())
    }
}
/// stub
pub fn local_time_text(_t: std::time::SystemTime) -> String {
    "Sat Nov 21 00:46:53 2026".into()
}
