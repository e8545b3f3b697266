//! The call `pack`.

use super::calls::{CORRUPTED, Outcome, STORAGE, other};
use super::{LOG, NoticeFrames, Now, Output, Server};
use crate::ids::{ClientId, Tid};
use crate::storage::{PackError, PackRefused, Packed};
use crate::zeo::Value;
use crate::zeo::errors::RemoteError;

impl Server {
    /// Packs to a time, in seconds since 1970. Who does not wait is answered at once, and hears
    /// nothing of errors, as from ZEO.
    pub(super) fn pack(
        &mut self,
        id: ClientId,
        msgid: &Value,
        at: usize,
        (time, wait): (f64, bool),
        now: Now,
    ) -> Outcome {
        let begun = self.begin_pack(id, at, time, now);
        match (begun, wait) {
            (Ok(()), true) => {
                let served = &mut self.storages[at];
                served.waiting_for_pack = Some((id, msgid.clone()));
                if let Some(client) = self.clients.get_mut(&id) {
                    client.waiting += 1;
                }
                self.follow_storage(at, now);
                Outcome::Later
            }
            (Err(error), true) => Outcome::Raise(error),
            (_, false) => {
                self.follow_storage(at, now);
                Outcome::Reply(Value::None)
            }
        }
    }

    fn begin_pack(
        &mut self,
        id: ClientId,
        at: usize,
        time: f64,
        now: Now,
    ) -> Result<(), RemoteError> {
        let Some(until) = Tid::from_unix_seconds(time) else {
            return Err(other(STORAGE, "Invalid pack time"));
        };
        if let Some(client) = self.clients.get(&id) {
            log::info!(target: LOG, "{} pack(time={time}) asked for", client.who);
        }
        match self.storages[at].storage.pack(until, now.mono) {
            Ok(()) => Ok(()),
            Err(PackRefused::ReadOnly) => Err(RemoteError::ReadOnly),
            Err(PackRefused::Already) => Err(other(STORAGE, "Already packing")),
        }
    }

    /// A pack has ended: all clients hear of the new length, and then who waits for it.
    pub(super) fn on_packed(&mut self, at: usize, ended: Result<Packed, PackError>) {
        let served = &mut self.storages[at];
        if ended.is_ok() {
            let info = Value::Dict(vec![
                (
                    Value::text("length"),
                    Value::from(served.storage.object_count()),
                ),
                (Value::text("size"), Value::from(served.storage.file_len())),
            ]);
            let mut frames = NoticeFrames::new(self.options.encoding, "info", vec![info]);
            for id in &served.clients {
                let Some(client) = self.clients.get_mut(id).filter(|client| !client.closing) else {
                    continue;
                };
                let frame = frames.of(client.session.dialect());
                client.notices_len += frame.len();
                client.session.push(frame);
                self.to_send.insert(*id);
            }
        }
        let Some((id, msgid)) = served.waiting_for_pack.take() else {
            return;
        };
        let Some(client) = self.clients.get_mut(&id).filter(|client| !client.closing) else {
            return;
        };
        client.waiting -= 1;
        match ended {
            Ok(_) => client.session.reply(&msgid, &Value::None),
            Err(error) => {
                let class = match error {
                    PackError::Read(_) => CORRUPTED,
                    _ => STORAGE,
                };
                client
                    .session
                    .fail(&msgid, &other(class, error.to_string()));
            }
        }
        self.note_output(id);
        self.outputs.push_back(Output::Serve(id));
    }
}
