//! TLS (`<ssl>` in `<zeo>`): bytes in, bytes out.
//!
//! ```text
//!  socket ──► Channel::receive ──► plain bytes, at once, as far as records are complete
//!  socket ◄── Channel::send    ◄── an OutQueue, as the socket has room
//! ```
//!
//! rustls does the work, and holds at most a part of a record on its way in and
//! [`TLS_BUFFER_LEN`] on its way out. Whatever was received complete has been given out when
//! [`Channel::receive`] returns: nothing waits in here for a readiness that the socket will not
//! announce again.
//!
//! [`Setup::load`] reads certificates and keys, and is the only thing here that touches files;
//! `verifier` has the rules by which clients are let in.
//!
//! Sessions are not resumed: a client whose certificate has expired or was taken out of
//! `authenticate` meanwhile would come in without being asked for it. Connections of ZEO clients
//! last for days; there is nothing to gain.

mod certificate;
mod key;
mod load;
mod pem;
mod verifier;

use std::fmt;
use std::io::{self, IoSlice, Write};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, InvalidMessage,
    PeerIncompatible, ServerConfig, ServerConnection,
};

use self::certificate::Certificate;
pub use self::key::KeyError;
pub use self::load::{LoadError, Problem, Warning};
pub use self::pem::PemError;
use crate::limits::TLS_BUFFER_LEN;

pub use rustls::pki_types::UnixTime;
pub use rustls::time_provider::TimeProvider;

/// What all connections have in common: our certificate, and who is let in.
#[derive(Clone, Debug)]
pub struct Setup {
    config: Arc<ServerConfig>,
    /// For connections that we make. Who is there has to be one that would be let in.
    client: Arc<ClientConfig>,
    /// Where the verifier says whom it has refused.
    refused: Arc<Mutex<Option<String>>>,
}

/// One connection.
#[derive(Debug)]
pub struct Channel {
    connection: Connection,
    refused: Arc<Mutex<Option<String>>>,
    /// The client has sent something.
    begun: bool,
    /// It will send no more.
    closed: bool,
    /// An error ended it; only its alert is still to be sent.
    failed: bool,
}

/// Why a connection failed: what the log says.
#[derive(Clone, Debug, PartialEq)]
pub enum TlsError {
    /// What came is not TLS.
    NotTls,
    /// The client has no certificate.
    NoCertificate,
    /// Its certificate is not accepted.
    Refused {
        /// What is wrong.
        reason: String,
        /// Whose certificate it is.
        who: String,
    },
    /// The client does not accept our certificate, or the connection, and says so.
    Alert(AlertDescription),
    /// There is no version or cipher that both sides know.
    Incompatible(PeerIncompatible),
    /// Anything else is a violation of the protocol.
    Violation(rustls::Error),
}

impl Channel {
    /// A client has connected.
    ///
    /// # Errors
    ///
    /// rustls cannot use the configuration, which [`Setup::load`] has ruled out.
    pub fn new(setup: &Setup) -> Result<Self, TlsError> {
        let connection = ServerConnection::new(setup.config.clone());
        let connection = connection.map_err(TlsError::Violation)?;
        Ok(Self::with(Connection::Server(connection), setup))
    }

    /// We have connected to somebody who has to have a certificate that we would let in as a
    /// client's. Its name is not looked at.
    ///
    /// # Errors
    ///
    /// As of [`Self::new`].
    pub fn connect(setup: &Setup) -> Result<Self, TlsError> {
        let nobody = core::net::IpAddr::from([0, 0, 0, 0]);
        let connection = ClientConnection::new(setup.client.clone(), ServerName::from(nobody));
        let connection = connection.map_err(TlsError::Violation)?;
        Ok(Self::with(Connection::Client(connection), setup))
    }

    fn with(mut connection: Connection, setup: &Setup) -> Self {
        connection.set_buffer_limit(Some(TLS_BUFFER_LEN));
        Self {
            connection,
            refused: setup.refused.clone(),
            begun: false,
            closed: false,
            failed: false,
        }
    }

    /// Takes what came from the socket, and gives out what it says.
    ///
    /// # Errors
    ///
    /// The connection has to be closed, after [`Self::send`] has sent the alert that says why.
    pub fn receive(
        &mut self,
        mut data: &[u8],
        mut give: impl FnMut(&[u8]),
    ) -> Result<(), TlsError> {
        self.begun |= !data.is_empty();
        // Each piece is taken by rustls, decrypted, and given out, before it gets the next one.
        while !data.is_empty() && !self.closed && !self.failed {
            let taken = self.connection.read_tls(&mut data);
            if !matches!(taken, Ok(1..)) {
                // A record, or a part of the handshake, that is longer than TLS allows.
                self.failed = true;
                return Err(TlsError::Violation(rustls::Error::InvalidMessage(
                    InvalidMessage::MessageTooLarge,
                )));
            }
            let processed = self.connection.process_new_packets();
            // What came before an error is as good as if the error had come later.
            let mut reader = self.connection.reader();
            while let Ok(plain) = io::BufRead::fill_buf(&mut reader) {
                let len = plain.len();
                if len == 0 {
                    break;
                }
                give(plain);
                io::BufRead::consume(&mut reader, len);
            }
            match processed {
                Ok(state) => self.closed = state.peer_has_closed(),
                Err(error) => {
                    self.failed = true;
                    return Err(self.explain(error));
                }
            }
        }
        Ok(())
    }

    /// Whether the client has said that it will send no more.
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the client has sent anything at all.
    pub const fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether both sides know each other: plain bytes can be sent.
    pub fn is_open(&self) -> bool {
        !self.connection.is_handshaking() && !self.failed
    }

    /// Whether encrypted bytes wait for the socket.
    pub fn has_unsent(&self) -> bool {
        self.connection.wants_write()
    }

    /// Encrypts as much as there is room for; the number of bytes taken, zero before
    /// [`Self::is_open`].
    pub fn encrypt(&mut self, slices: &[IoSlice<'_>]) -> usize {
        if !self.is_open() {
            return 0;
        }
        // Writing to memory does not fail.
        self.connection.writer().write_vectored(slices).unwrap_or(0)
    }

    /// Writes encrypted bytes, in one call; the number of bytes that were taken.
    ///
    /// # Errors
    ///
    /// Those of `socket`.
    pub fn send(&mut self, socket: &mut impl Write) -> io::Result<usize> {
        self.connection.write_tls(socket)
    }

    /// Says good-bye, behind all that was encrypted.
    pub fn close(&mut self) {
        if !self.failed {
            self.connection.send_close_notify();
        }
    }

    /// What was agreed on, and with whom, for the log.
    pub fn describe(&self) -> String {
        let version = self.connection.protocol_version();
        let suite = self.connection.negotiated_cipher_suite();
        let certificate = self.connection.peer_certificates().and_then(<[_]>::first);
        let who = certificate.and_then(|der| Certificate::read(der).ok());
        format!(
            "{}, {}, {}",
            version.and_then(|it| it.as_str()).unwrap_or("TLS"),
            suite
                .and_then(|it| it.suite().as_str())
                .unwrap_or("no cipher"),
            who.map_or_else(|| "no certificate".to_owned(), |it| it.subject_text())
        )
    }

    fn explain(&self, error: rustls::Error) -> TlsError {
        let note = self.refused.lock();
        let who = note.unwrap_or_else(PoisonError::into_inner).take();
        match error {
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)
            | rustls::Error::InvalidMessage(InvalidMessage::UnknownProtocolVersion)
                if self.connection.protocol_version().is_none() =>
            {
                TlsError::NotTls
            }
            rustls::Error::NoCertificatesPresented => TlsError::NoCertificate,
            rustls::Error::InvalidCertificate(error) => TlsError::Refused {
                reason: certificate_problem(&error),
                who: who.unwrap_or_default(),
            },
            rustls::Error::AlertReceived(alert) => TlsError::Alert(alert),
            rustls::Error::PeerIncompatible(why) => TlsError::Incompatible(why),
            other => TlsError::Violation(other),
        }
    }
}

fn certificate_problem(error: &CertificateError) -> String {
    let text = match error {
        CertificateError::Expired => "has expired",
        CertificateError::NotValidYet => "is not valid yet",
        CertificateError::UnknownIssuer => "is not known",
        CertificateError::Revoked => "is revoked",
        CertificateError::UnknownRevocationStatus => "has an issuer of whom there is no CRL",
        CertificateError::ExpiredRevocationList => "has an issuer whose CRL has expired",
        CertificateError::InvalidPurpose => "is not meant for clients",
        CertificateError::BadEncoding => "is damaged",
        CertificateError::BadSignature => "has a wrong signature",
        other => return format!("is not accepted ({other})"),
    };
    text.to_owned()
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text("the client", "the client's", "a client without <ssl>"))
    }
}

impl TlsError {
    /// The same of another node.
    pub fn of_node(&self) -> String {
        self.text("it", "its", "a node whose <standby> has no <ssl>")
    }

    /// The same of a server that we are a client of.
    pub fn of_server(&self) -> String {
        self.text("it", "its", "a server whose <zeo> has no <ssl>")
    }

    fn text(&self, it: &str, its: &str, plain: &str) -> String {
        match self {
            Self::NotTls => format!("it does not speak TLS: {plain}?"),
            Self::NoCertificate => format!("{it} has no certificate"),
            Self::Refused { reason, who } => format!("{its} certificate {reason} ({who})"),
            Self::Alert(alert) => {
                let alert = alert.as_str().unwrap_or("an unknown alert");
                format!("{it} refuses us: {alert}")
            }
            Self::Incompatible(why) => format!("no common version or cipher: {why:?}"),
            Self::Violation(error) => error.to_string(),
        }
    }
}

impl std::error::Error for TlsError {}
