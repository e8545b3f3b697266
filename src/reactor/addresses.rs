//! The addresses of a configuration, bound before any file is opened: no server whose address is
//! in use shall read its files for minutes, or change what is in them.

use std::io;

use rustix::fs::Mode;

use super::admin::AdminBound;
use super::listener::{Bound, Listener};
use crate::config::{Address, Config};
use crate::exit::Exit;
use crate::server::Port;

/// See the module's page. Nobody can connect yet.
#[derive(Debug)]
pub(super) struct Addresses {
    /// For clients
    pub(super) clients: Vec<(Bound, Port)>,
    /// For other nodes
    pub(super) peers: Vec<Bound>,
    /// For administrators and monitors, if they can connect.
    pub(super) admin: Option<AdminBound>,
}

impl Addresses {
    /// Binds them all.
    pub(super) fn bind(config: &Config) -> Result<Self, (Exit, String)> {
        let standby = config.standby.as_ref();
        let readers = standby.iter().flat_map(|it| &it.read_addresses);
        let main = config.addresses.iter().map(|it| (it, Port::Main));
        let mut clients = Vec::new();
        for (address, port) in main.chain(readers.map(|it| (it, Port::Read))) {
            let sockets = bind(key_of(port), address)?;
            clients.extend(sockets.into_iter().map(|it| (it, port)));
        }
        let peers = standby.and_then(|it| it.peer_address.as_ref());
        let peers = peers.map(|it| bind("peer-address", it)).transpose()?;
        Ok(Self {
            clients,
            peers: peers.unwrap_or_default(),
            admin: standby.map(AdminBound::new).transpose()?,
        })
    }
}

/// The key of the configuration that names such an address.
pub(super) const fn key_of(port: Port) -> &'static str {
    match port {
        Port::Main => "address",
        Port::Read => "read-address",
    }
}

/// Binds what the address of a key stands for.
pub(super) fn bind(key: &str, address: &Address) -> Result<Vec<Bound>, (Exit, String)> {
    Bound::new(address).map_err(|error| address_error(key, &address.to_string(), &error))
}

/// Lets others connect; a Unix socket gets the mode, if there is one.
pub(super) fn listen(
    key: &str,
    bound: Bound,
    mode: Option<Mode>,
) -> Result<Listener, (Exit, String)> {
    let address = bound.describe();
    // Between two servers that start at once it shows only now who has the address.
    let listening = bound.listen_as(mode);
    listening.map_err(|error| address_error(key, &address, &error))
}

/// An address that is in use, or of no machine, stays so: to be changed in the configuration. What
/// else is wrong with one may pass: after a machine has started it may get its own addresses late,
/// and no server of names answers yet.
fn address_error(key: &str, address: &str, error: &io::Error) -> (Exit, String) {
    let (exit, hint) = match error.kind() {
        io::ErrorKind::AddrInUse | io::ErrorKind::InvalidInput => (Exit::Usage, ""),
        io::ErrorKind::AddrNotAvailable => (Exit::Internal, " (is it an address of this machine?)"),
        _ => (Exit::Internal, ""),
    };
    (exit, format!("{key} {address}: {error}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn what_stays_wrong_with_an_address_is_to_be_changed_in_the_configuration() {
        let bound = bind("address", &tcp("127.0.0.1", 0)).unwrap().remove(0);
        let taken = listen("address", bound, None).unwrap();
        let taken = taken.describe().parse::<std::net::SocketAddr>().unwrap();
        for (address, expected, status) in [
            (tcp("127.0.0.1", taken.port()), "in use", Exit::Usage),
            // For documentation, and so nobody's.
            (
                tcp("203.0.113.1", 0),
                "(is it an address of this machine?)",
                Exit::Internal,
            ),
            // No name, whatever servers of names say; they are not asked.
            (tcp("a..b", 1), "peer-address a..b:1: ", Exit::Usage),
        ] {
            let (exit, error) = bind("peer-address", &address).unwrap_err();
            assert_eq!(exit, status, "{error}");
            assert!(
                error.starts_with(&format!("peer-address {address}: ")),
                "{error}"
            );
            assert!(error.contains(expected), "{error}");
        }
        let later = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(address_error("address", "a:1", &later).0, Exit::Internal);
    }
}
