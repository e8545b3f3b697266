//! TLS without sockets: who is let in, what both sides are told, and what bytes can do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{IoSlice, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, fs, process};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme,
    SupportedProtocolVersion,
};
use standby::config::{Password, Place, SslConfig};
use standby::limits::TLS_BUFFER_LEN;
use standby::tls::{Channel, LoadError, Setup, TimeProvider, TlsError, UnixTime, Warning};

/// 2028-01-01
const NOW: u64 = 1_830_297_600;

#[derive(Debug)]
struct Stopped;

impl TimeProvider for Stopped {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            NOW,
        )))
    }
}

/// A directory that ends with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("standby-tls-{}-{name}", process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A configuration with the key of the test data that is encrypted in no way.
    fn config(&self, authenticate: &str) -> SslConfig {
        SslConfig {
            place: Place::CommandLine,
            certificate: data("cert.pem"),
            key: Some(data("key-pkcs8.pem")),
            password: None,
            authenticate: self.write("clients.pem", authenticate),
        }
    }

    /// What serves clients with these certificates.
    fn setup(&self, authenticate: &str) -> Setup {
        load(&self.config(authenticate)).unwrap().0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/tls")
        .join(name)
}

fn text_of(name: &str) -> String {
    fs::read_to_string(data(name)).unwrap()
}

fn load(config: &SslConfig) -> Result<(Setup, Vec<Warning>), LoadError> {
    Setup::load(config, Arc::new(Stopped))
}

// -- certificates

/// A certificate with its key.
struct Identity {
    pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    fn of_data(certificate: &str, key: &str) -> Self {
        let pem = text_of(certificate);
        Self {
            chain: vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()],
            pem,
            key: PrivateKeyDer::from_pem_file(data(key)).unwrap(),
        }
    }

    fn self_signed(params: &CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self::new(&certificate, &[], &key)
    }

    fn new(
        certificate: &rcgen::Certificate,
        others: &[CertificateDer<'static>],
        key: &KeyPair,
    ) -> Self {
        let mut chain = vec![certificate.der().clone()];
        chain.extend_from_slice(others);
        Self {
            pem: certificate.pem(),
            chain,
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        }
    }
}

/// What signs others.
struct Signer {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

impl Signer {
    fn root(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self::new(&certificate, params, key)
    }

    fn below(signer: &Self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &signer.issuer).unwrap();
        Self::new(&certificate, params, key)
    }

    fn new(certificate: &rcgen::Certificate, params: CertificateParams, key: KeyPair) -> Self {
        Self {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn sign(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity::new(&certificate, &[], &key)
    }
}

/// A certificate as it should be, for a client.
fn client(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2030, 1, 1);
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = client(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

// -- clients

/// Believes anything: what clients check is their business.
#[derive(Debug)]
struct Trusting;

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

type Version = &'static SupportedProtocolVersion;

const TLS12: Version = &rustls::version::TLS12;
const TLS13: Version = &rustls::version::TLS13;

/// Shows what it has, without looking at it.
#[derive(Debug)]
struct Shown(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

fn client_connection(identity: Option<&Identity>, version: Version) -> ClientConnection {
    let certified = identity.map(|it| {
        let key = rustls::crypto::ring::sign::any_supported_type(&it.key).unwrap();
        Arc::new(CertifiedKey::new(it.chain.clone(), key))
    });
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_client_cert_resolver(Arc::new(Shown(certified)));
    let name = ServerName::try_from("localhost").unwrap();
    ClientConnection::new(Arc::new(config), name).unwrap()
}

/// A client and our side of its connection.
struct Pair {
    client: ClientConnection,
    channel: Channel,
    /// Plain bytes that came from the client.
    received: Vec<u8>,
    /// Plain bytes that came to the client.
    answered: Vec<u8>,
    /// How the client's side failed.
    client_error: Option<rustls::Error>,
    /// Bytes that pass at once.
    piece_len: usize,
}

impl Pair {
    fn new(setup: &Setup, client: ClientConnection) -> Self {
        Self {
            client,
            channel: Channel::new(setup).unwrap(),
            received: Vec::new(),
            answered: Vec::new(),
            client_error: None,
            piece_len: usize::MAX,
        }
    }

    /// Lets bytes pass until both sides wait for something else.
    fn run(&mut self) -> Result<(), TlsError> {
        let mut result = Ok(());
        loop {
            let mut sent = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut sent).unwrap();
            }
            for piece in sent.chunks(self.piece_len.min(sent.len().max(1))) {
                if result.is_ok() {
                    let received = &mut self.received;
                    result = self
                        .channel
                        .receive(piece, |data| received.extend_from_slice(data));
                }
            }
            let mut answer = Vec::new();
            while self.channel.has_unsent() {
                self.channel.send(&mut answer).unwrap();
            }
            if sent.is_empty() && answer.is_empty() {
                return result;
            }
            for mut piece in answer.chunks(self.piece_len.min(answer.len().max(1))) {
                while !piece.is_empty() && self.client_error.is_none() {
                    self.client.read_tls(&mut piece).unwrap();
                    self.client_error = self.client.process_new_packets().err();
                    let _ = self.client.reader().read_to_end(&mut self.answered);
                }
            }
        }
    }
}

fn connect(setup: &Setup, identity: Option<&Identity>, version: Version) -> Result<Pair, Refused> {
    let mut pair = Pair::new(setup, client_connection(identity, version));
    match pair.run() {
        Ok(()) => {
            assert!(pair.channel.is_open() && !pair.client.is_handshaking());
            assert_eq!(pair.client_error, None);
            Ok(pair)
        }
        Err(error) => {
            assert!(!pair.channel.is_open());
            let Some(rustls::Error::AlertReceived(alert)) = pair.client_error else {
                panic!("{error}: the client was told {:?}", pair.client_error);
            };
            Err(Refused { error, alert })
        }
    }
}

#[derive(Debug)]
struct Refused {
    error: TlsError,
    alert: AlertDescription,
}

#[track_caller]
fn accepted(setup: &Setup, identity: &Identity) {
    for version in [TLS12, TLS13] {
        if let Err(refused) = connect(setup, Some(identity), version) {
            panic!("{version:?}: {}", refused.error);
        }
    }
}

#[track_caller]
fn refused(setup: &Setup, identity: &Identity, alert: AlertDescription, text: &str) {
    for version in [TLS12, TLS13] {
        match connect(setup, Some(identity), version) {
            Ok(_) => panic!("{version:?}: let in"),
            Err(refused) => {
                assert_eq!(refused.alert, alert, "{}", refused.error);
                let shown = refused.error.to_string();
                assert!(shown.contains(text), "{shown}");
            }
        }
    }
}

// -- who is let in

#[test]
fn a_configured_certificate_lets_its_client_in() {
    let directory = Directory::new("configured");
    let plain = Identity::self_signed(&client("self"));
    // What `openssl req -x509` makes: self-signed, and an authority.
    let mut params = authority("openssl");
    params.key_usages = Vec::new();
    let openssl = Identity::self_signed(&params);
    let setup = directory.setup(&format!("{}{}", plain.pem, openssl.pem));
    accepted(&setup, &plain);
    accepted(&setup, &openssl);
    let other = Identity::self_signed(&client("self"));
    refused(
        &setup,
        &other,
        AlertDescription::UnknownCA,
        "the client's certificate is not known (CN=self; it is not among those of 'authenticate'",
    );
}

#[test]
fn an_authority_lets_its_clients_in() {
    let directory = Directory::new("authority");
    let root = Signer::root(authority("root"));
    let middle = Signer::below(&root, authority("middle"));
    let setup = directory.setup(&root.pem);
    accepted(&setup, &root.sign(&client("direct")));
    let mut below = middle.sign(&client("below"));
    refused(
        &setup,
        &below,
        AlertDescription::UnknownCA,
        "is not known (CN=below",
    );
    below.chain.push(middle.der.clone());
    accepted(&setup, &below);
    // It could sign others itself; OpenSSL does not mind.
    let mut params = authority("careless");
    params.key_usages = Vec::new();
    accepted(&setup, &root.sign(&params));
    let stranger = Signer::root(authority("root"));
    refused(
        &setup,
        &stranger.sign(&params),
        AlertDescription::DecryptError,
        "has a wrong signature",
    );
}

#[test]
fn a_client_that_is_let_in_lets_in_no_others() {
    let directory = Directory::new("issuing");
    let mut params = client("insider");
    params.key_identifier_method = KeyIdMethod::Sha256;
    let insider = Signer::root(params);
    let setup = directory.setup(&insider.pem);
    let friend = insider.sign(&client("friend"));
    refused(
        &setup,
        &friend,
        AlertDescription::UnknownCA,
        "is not known (CN=friend",
    );
    // Nor does one that OpenSSL made an authority without being asked.
    let mut params = authority("openssl");
    params.key_usages = Vec::new();
    let openssl = Signer::root(params);
    let setup = directory.setup(&openssl.pem);
    let friend = openssl.sign(&client("friend"));
    let text = "but does not say that it may sign others";
    refused(&setup, &friend, AlertDescription::UnknownCA, text);
    // Nor one whose key may sign certificates, but that is no authority.
    for is_ca in [IsCa::NoCa, IsCa::ExplicitNoCa] {
        let mut params = authority("half");
        params.is_ca = is_ca;
        let half = Signer::root(params);
        let setup = directory.setup(&half.pem);
        let friend = half.sign(&client("friend"));
        refused(&setup, &friend, AlertDescription::UnknownCA, text);
    }
    // Nor one that may sign others, but no certificates.
    let mut params = authority("signer");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let signer = Signer::root(params);
    let setup = directory.setup(&signer.pem);
    let friend = signer.sign(&client("friend"));
    refused(
        &setup,
        &friend,
        AlertDescription::UnknownCA,
        "is not known (CN=friend",
    );
}

/// What holds for a configured certificate holds for one that a client shows: OpenSSL gives a
/// client an authority's basicConstraints, too, if nobody says otherwise.
#[test]
fn a_client_whose_certificate_was_signed_lets_in_no_others() {
    let directory = Directory::new("signed");
    let root = Signer::root(authority("root"));
    let setup = directory.setup(&root.pem);
    for usages in [Vec::new(), vec![KeyUsagePurpose::DigitalSignature]] {
        let mut params = authority("careless");
        params.key_usages = usages;
        let careless = Signer::below(&root, params);
        let mut friend = careless.sign(&client("friend"));
        friend.chain.push(careless.der.clone());
        refused(
            &setup,
            &friend,
            AlertDescription::UnknownCA,
            "an issuer that may not sign it",
        );
    }
}

#[test]
fn an_authority_signs_only_what_it_says_it_does() {
    let directory = Directory::new("limits");
    let mut params = authority("root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let root = Signer::root(params);
    let setup = directory.setup(&root.pem);
    accepted(&setup, &root.sign(&client("direct")));
    let middle = Signer::below(&root, authority("middle"));
    let mut below = middle.sign(&client("below"));
    below.chain.push(middle.der.clone());
    let text = "an issuer that may not sign it";
    refused(&setup, &below, AlertDescription::UnknownCA, text);
    let mut params = authority("root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    let root = Signer::root(params);
    let setup = directory.setup(&root.pem);
    let middle = Signer::below(&root, authority("middle"));
    let mut below = middle.sign(&client("below"));
    below.chain.push(middle.der.clone());
    accepted(&setup, &below);
    // One for servers has nothing to say of clients.
    let mut params = authority("servers");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let servers = Signer::root(params);
    let mut careless = authority("careless");
    careless.key_usages = Vec::new();
    let setup = directory.setup(&servers.pem);
    for params in [client("one"), careless] {
        refused(
            &setup,
            &servers.sign(&params),
            AlertDescription::UnknownCA,
            "is not known",
        );
    }
}

#[test]
fn certificates_of_version_1_are_good_enough_for_clients() {
    let directory = Directory::new("version1");
    let signed = Identity::of_data("version1.pem", "key-rsa.pem");
    accepted(&directory.setup(&text_of("ca.pem")), &signed);
    let own = Identity::of_data("version1-self.pem", "key-rsa.pem");
    accepted(&directory.setup(&own.pem), &own);
    let setup = directory.setup(&text_of("cert.pem"));
    refused(
        &setup,
        &signed,
        AlertDescription::UnknownCA,
        "is not known (CN=old client,O=Standby",
    );
}

#[test]
fn a_forged_certificate_of_version_1_is_refused() {
    let directory = Directory::new("forged");
    let setup = directory.setup(&text_of("ca.pem"));
    let good = Identity::of_data("version1.pem", "key-rsa.pem");
    let der = good.chain[0].to_vec();
    // In the name, and in the signature.
    let name = der.windows(10).position(|it| it == b"old client").unwrap();
    for pos in [name, der.len() - 3] {
        let mut forged = der.clone();
        forged[pos] ^= 1;
        let identity = Identity {
            pem: String::new(),
            chain: vec![forged.into()],
            key: good.key.clone_key(),
        };
        refused(
            &setup,
            &identity,
            AlertDescription::DecryptError,
            "has a wrong signature",
        );
    }
}

#[test]
fn a_certificate_without_its_key_is_worth_nothing() {
    let directory = Directory::new("stolen");
    let root = Signer::root(authority("root"));
    let good = root.sign(&client("good"));
    let setup = directory.setup(&format!("{}{}", root.pem, good.pem));
    let other = root.sign(&client("other"));
    let stolen = Identity {
        pem: String::new(),
        chain: good.chain.clone(),
        key: other.key,
    };
    refused(
        &setup,
        &stolen,
        AlertDescription::DecryptError,
        "has a wrong signature",
    );
}

#[test]
fn certificates_count_in_their_time_only() {
    let directory = Directory::new("period");
    let root = Signer::root(authority("root"));
    let mut expired = client("expired");
    expired.not_after = date_time_ymd(2027, 12, 31);
    let mut early = client("early");
    early.not_before = date_time_ymd(2028, 1, 2);
    let own = Identity::self_signed(&expired);
    let setup = directory.setup(&format!("{}{}", root.pem, own.pem));
    for identity in [&root.sign(&expired), &own] {
        refused(
            &setup,
            identity,
            AlertDescription::CertificateExpired,
            "has expired (CN=expired, valid from 2020-01-01T00:00:00Z to 2027-12-31T00:00:00Z)",
        );
    }
    refused(
        &setup,
        &root.sign(&early),
        AlertDescription::CertificateExpired,
        "is not valid yet (CN=early",
    );
    // Nor do those count that an expired authority has signed.
    let mut params = authority("old root");
    params.not_after = date_time_ymd(2027, 12, 31);
    let old = Signer::root(params);
    let (setup, warnings) = load(&directory.config(&old.pem)).unwrap();
    // A clone's keys may have permissions that are warned of, too.
    let is_told = warnings
        .iter()
        .any(|warning| warning.0.contains("CN=old root has expired"));
    assert!(is_told);
    refused(
        &setup,
        &old.sign(&client("young")),
        AlertDescription::UnknownCA,
        "but has expired or is not valid yet",
    );
}

#[test]
fn certificates_for_other_purposes_are_refused() {
    let directory = Directory::new("purpose");
    let root = Signer::root(authority("root"));
    let mut server = client("server");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut both = server.clone();
    both.extended_key_usages
        .push(ExtendedKeyUsagePurpose::ClientAuth);
    let mut encipherer = client("encipherer");
    encipherer.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    let own = Identity::self_signed(&server);
    let setup = directory.setup(&format!("{}{}", root.pem, own.pem));
    accepted(&setup, &root.sign(&both));
    for identity in [&own, &root.sign(&server), &root.sign(&encipherer)] {
        refused(
            &setup,
            identity,
            AlertDescription::UnsupportedCertificate,
            "is not meant for clients",
        );
    }
}

#[test]
fn revoked_certificates_are_refused() {
    let directory = Directory::new("revoked");
    let mut params = authority("root");
    params.key_identifier_method = KeyIdMethod::Sha256;
    let root = Signer::root(params);
    let mut params = client("revoked");
    params.serial_number = Some(SerialNumber::from(7_u64));
    let revoked = root.sign(&params);
    params.serial_number = Some(SerialNumber::from(8_u64));
    let good = root.sign(&params);
    let list = |(year, month, day)| {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2027, 1, 1),
            next_update: date_time_ymd(year, month, day),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(7_u64),
                revocation_time: date_time_ymd(2027, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&root.issuer).unwrap().pem().unwrap()
    };
    let fresh = list((2028, 1, 2));
    let setup = directory.setup(&format!("{}{}", root.pem, fresh));
    accepted(&setup, &good);
    refused(
        &setup,
        &revoked,
        AlertDescription::CertificateRevoked,
        "is revoked (CN=revoked",
    );
    // Even if it is configured.
    let setup = directory.setup(&format!("{}{}{}", root.pem, fresh, revoked.pem));
    refused(
        &setup,
        &revoked,
        AlertDescription::CertificateRevoked,
        "is revoked",
    );
    // An authority without a list may have revoked anybody.
    let other = Signer::root(authority("other"));
    let setup = directory.setup(&format!("{}{}{}", root.pem, other.pem, fresh));
    refused(
        &setup,
        &other.sign(&client("x")),
        AlertDescription::UnknownCA,
        "of whom there is no CRL",
    );
    let setup = directory.setup(&format!("{}{}", root.pem, list((2027, 12, 31))));
    refused(
        &setup,
        &good,
        AlertDescription::UnknownCA,
        "whose CRL has expired",
    );
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let directory = Directory::new("missing");
    let setup = directory.setup(&text_of("ca.pem"));
    for version in [TLS12, TLS13] {
        let Err(refused) = connect(&setup, None, version) else {
            panic!("let in");
        };
        assert_eq!(refused.error, TlsError::NoCertificate);
        assert_eq!(refused.alert, AlertDescription::CertificateRequired);
    }
}

#[test]
fn a_subject_cannot_forge_the_log() {
    let directory = Directory::new("subject");
    let setup = directory.setup(&text_of("ca.pem"));
    let nasty = Identity::self_signed(&client(&format!("a\n2026 ERROR b{}", "x".repeat(500))));
    let Err(refused) = connect(&setup, Some(&nasty), TLS13) else {
        panic!("let in");
    };
    let text = refused.error.to_string();
    assert!(!text.contains('\n') && text.len() < 500, "{text}");
}

// -- what bytes can do

#[test]
fn plain_bytes_pass_whatever_the_pieces_are() {
    let directory = Directory::new("pieces");
    let identity = Identity::self_signed(&client("c"));
    let setup = directory.setup(&identity.pem);
    let sent: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    for version in [TLS12, TLS13] {
        for piece_len in [1, 5, 1000, 70_000, usize::MAX] {
            let mut pair = Pair::new(&setup, client_connection(Some(&identity), version));
            pair.piece_len = piece_len;
            pair.run().unwrap();
            let (mut to_client, mut to_server) = (&sent[..], &sent[..]);
            // A record may be of one byte.
            for _ in 0..3 {
                assert_eq!(pair.channel.encrypt(&[IoSlice::new(&to_client[..1])]), 1);
                assert_eq!(pair.client.writer().write(&to_server[..1]).unwrap(), 1);
                (to_client, to_server) = (&to_client[1..], &to_server[1..]);
                pair.run().unwrap();
            }
            while !to_client.is_empty() || !to_server.is_empty() {
                let (first, second) = to_client.split_at(to_client.len() / 3);
                let len = pair
                    .channel
                    .encrypt(&[IoSlice::new(first), IoSlice::new(second)]);
                to_client = &to_client[len..];
                let len = pair.client.writer().write(to_server).unwrap();
                to_server = &to_server[len..];
                pair.run().unwrap();
            }
            assert_eq!(pair.received.len(), sent.len(), "in pieces of {piece_len}");
            assert!(pair.received == sent && pair.answered == sent);
        }
    }
}

#[test]
fn nothing_is_encrypted_before_the_client_is_known() {
    let directory = Directory::new("early");
    let identity = Identity::self_signed(&client("c"));
    let setup = directory.setup(&identity.pem);
    let mut channel = Channel::new(&setup).unwrap();
    assert!(!channel.is_open() && !channel.has_begun());
    assert_eq!(channel.encrypt(&[IoSlice::new(b"greeting")]), 0);
    assert!(!channel.has_unsent());
}

#[test]
fn what_waits_for_the_socket_is_bounded() {
    let directory = Directory::new("bounded");
    let identity = Identity::self_signed(&client("c"));
    let setup = directory.setup(&identity.pem);
    let mut pair = connect(&setup, Some(&identity), TLS13).unwrap();
    let data = vec![1; 10 * TLS_BUFFER_LEN];
    let mut taken = 0;
    for _ in 0..100 {
        taken += pair.channel.encrypt(&[IoSlice::new(&data)]);
    }
    assert!(taken <= TLS_BUFFER_LEN, "{taken}");
    let mut sent = Vec::new();
    while pair.channel.has_unsent() {
        pair.channel.send(&mut sent).unwrap();
    }
    assert!(sent.len() > taken && sent.len() < taken + 1000);
    assert_eq!(pair.channel.encrypt(&[IoSlice::new(&data)]), taken);
}

#[test]
fn both_sides_can_say_good_bye() {
    let directory = Directory::new("close");
    let identity = Identity::self_signed(&client("c"));
    let setup = directory.setup(&identity.pem);
    for version in [TLS12, TLS13] {
        let mut pair = connect(&setup, Some(&identity), version).unwrap();
        pair.channel.encrypt(&[IoSlice::new(b"last words")]);
        pair.channel.close();
        pair.run().unwrap();
        // An end without close_notify would be an error.
        assert_eq!(pair.client.reader().read(&mut [0]).unwrap(), 0);
        assert_eq!(pair.answered, b"last words");

        let mut pair = connect(&setup, Some(&identity), version).unwrap();
        pair.client.writer().write_all(b"last words").unwrap();
        pair.client.send_close_notify();
        pair.run().unwrap();
        assert!(pair.channel.is_closed());
        assert_eq!(pair.received, b"last words");
    }
}

#[test]
fn what_is_not_tls_is_refused_with_an_alert() {
    let directory = Directory::new("plain");
    let setup = directory.setup(&text_of("ca.pem"));
    for bytes in [
        &b"\0\0\0\x02Z5"[..],
        b"\0\0\0\x04ruok",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
    ] {
        let mut channel = Channel::new(&setup).unwrap();
        assert_eq!(channel.receive(bytes, |_| panic!()), Err(TlsError::NotTls));
        let mut alert = Vec::new();
        while channel.has_unsent() {
            channel.send(&mut alert).unwrap();
        }
        // An alert, of TLS 1.2 or less, of two bytes, fatal.
        assert_eq!((alert[0], alert[1], alert[4], alert[5]), (21, 3, 2, 2));
        assert_eq!(alert.len(), 7);
        // And nothing behind it.
        channel.close();
        assert!(!channel.has_unsent());
        assert_eq!(channel.receive(bytes, |_| panic!()), Ok(()));
    }
}

#[test]
fn records_that_are_too_long_end_the_connection() {
    let directory = Directory::new("long");
    let identity = Identity::self_signed(&client("c"));
    let setup = directory.setup(&identity.pem);
    let mut record = vec![23, 3, 3, 0xff, 0xff];
    record.resize(70_000, 0);
    let mut pair = connect(&setup, Some(&identity), TLS13).unwrap();
    assert!(matches!(
        pair.channel.receive(&record, |_| panic!()),
        Err(TlsError::Violation(_))
    ));
    // A message of the handshake, in many records, of which the last never comes.
    let mut channel = Channel::new(&setup).unwrap();
    let mut part = vec![22, 3, 1, 0x40, 0];
    part.resize(5 + 0x4000, 0);
    part[5..9].copy_from_slice(&[1, 0xff, 0xff, 0xff]);
    let mut errors = 0;
    for _ in 0..1000 {
        errors += usize::from(channel.receive(&part, |_| panic!()).is_err());
        part[5..9].copy_from_slice(&[0; 4]);
    }
    assert_eq!(errors, 1);
}

#[test]
fn mutated_beginnings_are_refused_or_waited_for() {
    let directory = Directory::new("hellos");
    let setup = directory.setup(&text_of("ca.pem"));
    let hellos = ["hello-tls12.bin", "hello-tls13.bin"].map(|name| fs::read(data(name)).unwrap());
    for hello in &hellos {
        let mut channel = Channel::new(&setup).unwrap();
        channel.receive(hello, |_| panic!()).unwrap();
        assert!(channel.has_unsent(), "a hello as it is is answered");
    }
    let mut random = Random(1);
    let (mut refused, mut waiting) = (0, 0);
    for _ in 0..3000 {
        let mut bytes = hellos[random.below(2)].clone();
        for _ in 0..=random.below(4) {
            random.mutate(&mut bytes);
        }
        match feed(&setup, &bytes, &mut random) {
            Ok(()) => waiting += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 100 && waiting > 100, "{refused} {waiting}");
    for _ in 0..1000 {
        let bytes: Vec<u8> = (0..random.below(3000))
            .map(|_| random.next() as u8)
            .collect();
        let _ = feed(&setup, &bytes, &mut random);
    }
}

/// In random pieces.
fn feed(setup: &Setup, mut bytes: &[u8], random: &mut Random) -> Result<(), TlsError> {
    let mut channel = Channel::new(setup).unwrap();
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(1 + random.below(bytes.len()));
        bytes = rest;
        let result = channel.receive(piece, |_| panic!("nobody was let in"));
        channel.send(&mut std::io::sink()).unwrap();
        assert!(!channel.is_open());
        result?;
    }
    Ok(())
}

#[test]
fn a_handshake_that_is_tampered_with_lets_nobody_in() {
    let directory = Directory::new("tampered");
    let identity = Identity::self_signed(&client("c"));
    let setup = directory.setup(&identity.pem);
    let mut random = Random(2);
    let mut refused = 0;
    for round in 0..600 {
        let version = [TLS12, TLS13][round % 2];
        let mut client = client_connection(Some(&identity), version);
        let mut channel = Channel::new(&setup).unwrap();
        // The first flight stays as it is in half of the rounds.
        let flight = round / 2 % 2;
        let mut error = None;
        for n in 0..3 {
            let mut sent = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut sent).unwrap();
            }
            let original = sent.clone();
            if n == flight && !sent.is_empty() {
                random.mutate(&mut sent);
            }
            if let Err(it) = channel.receive(&sent, |_| {}) {
                error = Some(it);
                break;
            }
            if n == flight && without_versions(&sent) != without_versions(&original) {
                assert!(!channel.is_open(), "round {round}");
            }
            let mut answer = Vec::new();
            channel.send(&mut answer).unwrap();
            let _ = client.read_tls(&mut &answer[..]);
            if client.process_new_packets().is_err() {
                break;
            }
        }
        refused += usize::from(error.is_some());
    }
    assert!(refused > 200, "{refused}");
}

/// The version in the head of a record means nothing (RFC 8446, section 5.1), and nobody checks it.
fn without_versions(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut pos = 0;
    while let Some(head) = bytes.get_mut(pos..pos + 5) {
        head[1..3].fill(0);
        pos += 5 + usize::from(u16::from_be_bytes([head[3], head[4]]));
    }
    bytes
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let at = self.below(bytes.len());
        match self.below(5) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
            2 => bytes.truncate(at),
            3 => _ = bytes.remove(at),
            _ => {
                let len = self.below(bytes.len() - at);
                let part = bytes[at..at + len].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}

// -- files

#[test]
fn keys_are_read_in_every_form() {
    let directory = Directory::new("keys");
    let password = directory.write("password", "1234\nanother line\n");
    for (key, certificate) in [
        ("key-pkcs8.pem", "cert.pem"),
        ("key-sec1.pem", "cert.pem"),
        ("key-sec1-des3.pem", "cert.pem"),
        ("key-sec1-aes128.pem", "cert.pem"),
        ("key-sec1-aes192.pem", "cert.pem"),
        ("key-sec1-aes256.pem", "cert.pem"),
        ("key-pkcs8-aes256.pem", "cert.pem"),
        ("key-pkcs8-aes128-sha1.pem", "cert.pem"),
        ("key-pkcs8-des3.pem", "cert.pem"),
        ("key-pkcs8-scrypt.pem", "cert.pem"),
        ("key-rsa.pem", "cert-rsa.pem"),
        ("key-rsa-aes256.pem", "cert-rsa.pem"),
        ("key-rsa.pem", "version1.pem"),
    ] {
        let config = SslConfig {
            certificate: data(certificate),
            key: Some(data(key)),
            password: Some(Password::File(password.clone())),
            ..directory.config(&text_of("ca.pem"))
        };
        let setup = load(&config).unwrap_or_else(|error| panic!("{error}")).0;
        drop(setup);
        let encrypted = key.matches('-').count() > 1 && key != "key-sec1.pem";
        let missing = load(&SslConfig {
            password: None,
            ..config.clone()
        });
        let wrong = directory.write("wrong", "12345");
        let wrong = load(&SslConfig {
            password: Some(Password::File(wrong)),
            ..config
        });
        if encrypted {
            let error = missing.unwrap_err().to_string();
            assert!(
                error.contains(key) && error.contains("password-file"),
                "{error}"
            );
            let error = wrong.unwrap_err().to_string();
            assert!(error.contains("the password is wrong"), "{error}");
        } else {
            assert!(missing.is_ok() && wrong.is_ok());
        }
    }
}

#[test]
fn a_key_may_stand_with_its_certificate() {
    let directory = Directory::new("together");
    let both = format!("{}{}", text_of("key-pkcs8.pem"), text_of("cert.pem"));
    let config = SslConfig {
        certificate: directory.write("both.pem", both),
        key: None,
        ..directory.config(&text_of("ca.pem"))
    };
    load(&config).unwrap();
}

#[test]
fn a_password_may_come_from_a_command() {
    let directory = Directory::new("command");
    let config = |command: &str| SslConfig {
        key: Some(data("key-pkcs8-aes256.pem")),
        password: Some(Password::Command(command.to_owned())),
        ..directory.config(&text_of("ca.pem"))
    };
    load(&config("echo 12; exit 3")).unwrap_err();
    load(&config("printf 12; echo 34")).unwrap();
    let error = load(&config("echo 1234; exit 3")).unwrap_err().to_string();
    assert_eq!(
        error,
        "password-command echo 1234; exit 3: it failed (exit status: 3)"
    );
    let error = load(&config("yes")).unwrap_err().to_string();
    assert!(error.contains("too long"), "{error}");
    // Not asked for a key that needs none.
    let touched = directory.0.join("touched");
    let plain = SslConfig {
        key: Some(data("key-pkcs8.pem")),
        ..config(&format!("touch {}", touched.display()))
    };
    load(&plain).unwrap();
    assert!(!touched.exists());
}

#[test]
fn what_cannot_be_used_is_named() {
    let directory = Directory::new("unusable");
    let good = directory.config(&text_of("ca.pem"));
    let empty = directory.write("empty.pem", "nothing\n");
    let cut = directory.write("cut.pem", &text_of("cert.pem")[..100]);
    let bad = "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n";
    let bad = directory.write("bad.pem", bad);
    let long = directory.write("long.pem", vec![b'\n'; 17 << 20]);
    let nowhere = directory.0.join("nowhere.pem");
    let certificate = |path: &PathBuf| SslConfig {
        certificate: path.clone(),
        ..good.clone()
    };
    let key = |name: &str| SslConfig {
        key: Some(data(name)),
        password: Some(Password::File(directory.write("password", "1234"))),
        ..good.clone()
    };
    let clients = |path: &PathBuf| SslConfig {
        authenticate: path.clone(),
        ..good.clone()
    };
    let folder = directory.0.join("folder");
    fs::create_dir_all(&folder).unwrap();
    for (config, start, end) in [
        (
            certificate(&nowhere),
            "certificate ",
            "nowhere.pem: No such file",
        ),
        (
            certificate(&empty),
            "certificate ",
            "empty.pem: there is no certificate in it",
        ),
        (
            certificate(&cut),
            "certificate ",
            "cut.pem: line 1: 'CERTIFICATE' has no end",
        ),
        (
            certificate(&bad),
            "certificate ",
            "bad.pem: certificate 1 in it cannot be read",
        ),
        (
            certificate(&long),
            "certificate ",
            "long.pem: it is too long",
        ),
        (
            SslConfig {
                key: None,
                ..good.clone()
            },
            "certificate ",
            "there is no private key in it",
        ),
        (
            key("cert.pem"),
            "key ",
            "cert.pem: there is no private key in it",
        ),
        (
            key("key-rsa.pem"),
            "key ",
            "the key does not belong to the certificate",
        ),
        (
            key("key-ed25519.pem"),
            "key ",
            "the key does not belong to the certificate",
        ),
        (
            key("key-p521.pem"),
            "key ",
            "the key cannot be used: RSA with 2048 to 4096 bits",
        ),
        (
            key("key-rsa1024.pem"),
            "key ",
            "the key cannot be used: RSA with 2048 to 4096 bits",
        ),
        (
            key("key-sec1-camellia256.pem"),
            "key ",
            "encrypted by CAMELLIA-256-CBC cannot be read",
        ),
        (
            key("key-pkcs8-pbes1.pem"),
            "key ",
            "encrypted by 1.2.840.113549.1.12.1.3 cannot be read",
        ),
        (
            clients(&nowhere),
            "authenticate ",
            "nowhere.pem: No such file",
        ),
        (
            clients(&empty),
            "authenticate ",
            "empty.pem: there is no certificate in it",
        ),
        (
            clients(&bad),
            "authenticate ",
            "bad.pem: certificate 1 in it cannot be read",
        ),
        (
            clients(&folder),
            "authenticate ",
            "folder: there is no certificate in it",
        ),
    ] {
        let error = load(&config).unwrap_err().to_string();
        assert!(error.starts_with(start) && error.contains(end), "{error}");
    }
}

#[test]
fn a_directory_may_hold_the_certificates_of_clients() {
    let directory = Directory::new("directory");
    let (a, b) = (
        Identity::self_signed(&client("a")),
        Identity::self_signed(&client("b")),
    );
    let c = Identity::self_signed(&client("c"));
    let folder = directory.0.join("clients");
    fs::create_dir_all(&folder).unwrap();
    let path = directory.write("clients/a.pem", &a.pem);
    directory.write("clients/b.crt", &b.pem);
    // Not what somebody has put aside.
    directory.write("clients/c.pem.bak", &c.pem);
    directory.write("clients/README", "Who may connect.");
    std::os::unix::fs::symlink(path, folder.join("0123abcd.0")).unwrap();
    let config = SslConfig {
        authenticate: folder.clone(),
        ..directory.config("")
    };
    let setup = load(&config).unwrap().0;
    accepted(&setup, &a);
    accepted(&setup, &b);
    refused(
        &setup,
        &c,
        AlertDescription::UnknownCA,
        "is not known (CN=c",
    );
    std::os::unix::fs::symlink("gone.pem", folder.join("4567abcd.0")).unwrap();
    let error = load(&config).unwrap_err().to_string();
    assert!(error.contains("4567abcd.0: No such file"), "{error}");
}

#[test]
fn an_expired_certificate_of_ours_is_served_with_a_warning() {
    let directory = Directory::new("own");
    let mut params = client("localhost");
    params.not_after = date_time_ymd(2027, 12, 31);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let config = SslConfig {
        certificate: directory.write("own.pem", certificate.pem()),
        key: Some(directory.write("own-key.pem", key.serialize_pem())),
        ..directory.config(&text_of("ca.pem"))
    };
    let key = config.key.as_ref().unwrap();
    fs::set_permissions(key, fs::Permissions::from_mode(0o644)).unwrap();
    let (_, warnings) = load(&config).unwrap();
    let warnings: Vec<String> = warnings.into_iter().map(|Warning(text)| text).collect();
    assert!(
        warnings[0].contains("own.pem: CN=localhost has expired (valid from"),
        "{warnings:?}"
    );
    assert!(
        warnings[1].contains("own-key.pem: everybody may read it"),
        "{warnings:?}"
    );
}
