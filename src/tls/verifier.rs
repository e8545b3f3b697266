//! Which clients are let in: the rules that OpenSSL follows in runzeo, on webpki.
//!
//! webpki alone would refuse what the manuals of ZEO tell people to make. So a certificate is
//! accepted if it is valid now, may be used by a client, is not revoked, and
//!
//! 1. it is itself one of the configured certificates (a self-signed one, as a rule); or
//! 2. webpki finds a chain from it to a configured certificate that may sign others, and all
//!    between them say that they may, which webpki does not ask; or
//! 3. it has been signed by such a certificate directly, and is one that webpki does not read:
//!    one of version 1, or one that could sign others itself.
//!
//! A configured certificate that must not sign others is trusted for itself alone; webpki, which
//! does not ask its trust anchors, never sees it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, ServerName, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer,
    TrustAnchor, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved,
    SignatureScheme,
};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RawPublicKeyEntity, RevocationCheckDepth, RevocationOptionsBuilder, VerifiedPath,
};

use super::certificate::{Certificate, Period, Unreadable};

/// The certificates of `authenticate`, and the rules.
#[derive(Debug)]
pub(super) struct Verifier {
    algorithms: WebPkiSupportedAlgorithms,
    known: Vec<CertificateDer<'static>>,
    authorities: Vec<Authority>,
    /// Subjects of the others.
    individuals: BTreeSet<Vec<u8>>,
    revoked: Vec<CertRevocationList<'static>>,
    /// Whose certificate was refused last, and why, for the log: rustls passes on only a kind of
    /// error. A handshake step and the look at this follow each other in one thread.
    refused: Arc<Mutex<Option<String>>>,
}

/// A configured certificate that may sign others.
#[derive(Debug)]
struct Authority {
    period: Period,
    anchor: TrustAnchor<'static>,
    /// `SubjectPublicKeyInfo`
    public_key: SubjectPublicKeyInfoDer<'static>,
    /// How many there may be between it and a client, which webpki does not ask it.
    path_len_max: Option<u8>,
    /// It restricts what it signs in ways that only webpki knows.
    is_restricted: bool,
}

/// Why a certificate is refused.
type Refusal = webpki::Error;

impl Verifier {
    /// Nobody is let in yet.
    pub(super) fn new(algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self {
            algorithms,
            known: Vec::new(),
            authorities: Vec::new(),
            individuals: BTreeSet::new(),
            revoked: Vec::new(),
            refused: Arc::default(),
        }
    }

    /// Lets in who has this certificate, and whom it has signed, if it may sign.
    pub(super) fn trust(&mut self, der: CertificateDer<'static>) -> Result<(), Unreadable> {
        let certificate = Certificate::read(&der)?;
        if certificate.version == 3 && certificate.uses.signs_clients() {
            let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|_| Unreadable)?;
            self.authorities.push(Authority {
                period: certificate.period,
                anchor: anchor.to_owned(),
                public_key: SubjectPublicKeyInfoDer::from(certificate.public_key.to_vec()),
                path_len_max: certificate.uses.path_len_max,
                is_restricted: certificate.uses.is_restricted,
            });
        } else {
            self.individuals.insert(certificate.subject.to_vec());
        }
        self.known.push(der);
        Ok(())
    }

    /// Lets in nobody whose certificate is on this list.
    pub(super) fn revoke(&mut self, list: &[u8]) -> Result<(), Unreadable> {
        let list = OwnedCertRevocationList::from_der(list).map_err(|_| Unreadable)?;
        self.revoked.push(list.into());
        Ok(())
    }

    /// Certificates that it trusts.
    pub(super) fn known(&self) -> &[CertificateDer<'static>] {
        &self.known
    }

    /// Where it says whom it has refused.
    pub(super) fn refused(&self) -> Arc<Mutex<Option<String>>> {
        self.refused.clone()
    }

    fn check(
        &self,
        der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let certificate = Certificate::read(der).map_err(|Unreadable| Refusal::BadDer)?;
        if !certificate.period.has_begun(now) {
            return Err(Refusal::CertNotValidYet {
                time: now,
                not_before: unix_time(certificate.period.not_before),
            });
        }
        if certificate.period.is_over(now) {
            return Err(Refusal::CertExpired {
                time: now,
                not_after: unix_time(certificate.period.not_after),
            });
        }
        let may_be_used = if certificate.uses.allow_client() {
            Ok(())
        } else {
            Err(wrong_purpose())
        };
        if self.known.iter().any(|known| known == der) {
            self.check_not_listed(&certificate)?;
            return may_be_used;
        }
        match self.check_chain(der, intermediates, now) {
            Err(Refusal::UnsupportedCertVersion | Refusal::CaUsedAsEndEntity) => {
                self.check_signed_directly(&certificate, now)?;
            }
            result => result?,
        }
        may_be_used
    }

    /// Rule 2.
    fn check_chain(
        &self,
        der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        // webpki does not ask when its trust anchors are valid.
        let valid = self.authorities.iter().filter(|it| it.period.contains(now));
        let anchors: Vec<TrustAnchor<'_>> = valid.map(|it| it.anchor.clone()).collect();
        let revoked: Vec<&CertRevocationList<'_>> = self.revoked.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&revoked).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::EndEntity)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let certificate = EndEntityCert::try_from(der)?;
        certificate.verify_for_usage(
            self.algorithms.all,
            &anchors,
            intermediates,
            now,
            KeyUsage::client_auth(),
            revocation,
            Some(&|path| self.check_path(path, now)),
        )?;
        Ok(())
    }

    /// What webpki does not ask of those who have signed: whether an intermediate authority may
    /// sign certificates (keyUsage), and how many of these its trust anchor allows.
    fn check_path(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), Refusal> {
        let mut path_len = 0;
        for intermediate in path.intermediate_certificates() {
            let der = intermediate.der();
            let certificate = Certificate::read(&der).map_err(|Unreadable| Refusal::BadDer)?;
            if !certificate.uses.signs_clients() {
                return Err(Refusal::EndEntityUsedAsCa);
            }
            // An authority that renews itself is still one.
            path_len += usize::from(certificate.subject != certificate.issuer);
        }
        let is_allowed = |it: &Authority| {
            it.anchor == *path.anchor()
                && it.period.contains(now)
                && it.path_len_max.is_none_or(|max| path_len <= max.into())
        };
        if self.authorities.iter().any(is_allowed) {
            Ok(())
        } else {
            Err(Refusal::PathLenConstraintViolated)
        }
    }

    /// Rule 3.
    fn check_signed_directly(
        &self,
        certificate: &Certificate<'_>,
        now: UnixTime,
    ) -> Result<(), Refusal> {
        if certificate.uses.is_restricted {
            return Err(Refusal::UnsupportedCriticalExtension);
        }
        let is_issuer = |it: &&Authority| {
            it.anchor.subject.as_ref() == certificate.issuer
                && it.period.contains(now)
                && !it.is_restricted
                && it.anchor.name_constraints.is_none()
        };
        let mut refusal = Refusal::UnknownIssuer;
        for authority in self.authorities.iter().filter(is_issuer) {
            let algorithms = self.algorithms.all.iter().filter(|algorithm| {
                algorithm.signature_alg_id().as_ref() == certificate.signature_algorithm
            });
            let (signed, signature) = (certificate.signed, certificate.signature);
            match verify(&authority.public_key, algorithms, signed, signature) {
                Ok(()) => {
                    // As with webpki: where there are lists, one has to be of this issuer.
                    if !self.revoked.is_empty() && !self.has_list_of(certificate.issuer) {
                        return Err(Refusal::UnknownRevocationStatus);
                    }
                    return self.check_not_listed(certificate);
                }
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    fn has_list_of(&self, issuer: &[u8]) -> bool {
        self.revoked.iter().any(|list| list.issuer() == issuer)
    }

    /// The lists are configured, and are believed without looking at their signatures.
    fn check_not_listed(&self, certificate: &Certificate<'_>) -> Result<(), Refusal> {
        for list in &self.revoked {
            if list.issuer() == certificate.issuer
                && list.find_serial(certificate.serial)?.is_some()
            {
                return Err(Refusal::CertRevoked);
            }
        }
        Ok(())
    }

    /// Notes for the log who was refused, and what may help.
    fn note(&self, der: &CertificateDer<'_>, refusal: &Refusal, now: UnixTime) {
        let text = match Certificate::read(der) {
            Err(Unreadable) => "nothing in it can be read".to_owned(),
            Ok(certificate) => {
                let subject = certificate.subject_text();
                if !certificate.period.contains(now) {
                    format!("{subject}, {}", certificate.period)
                } else if matches!(
                    refusal,
                    Refusal::EndEntityUsedAsCa | Refusal::PathLenConstraintViolated
                ) {
                    format!("{subject}; it has an issuer that may not sign it")
                } else if matches!(refusal, Refusal::UnknownIssuer) {
                    format!("{subject}; {}", self.hint(&certificate, now))
                } else {
                    subject
                }
            }
        };
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    /// Why an issuer may be unknown.
    fn hint(&self, certificate: &Certificate<'_>, now: UnixTime) -> &'static str {
        let is_issuer = |it: &&Authority| it.anchor.subject.as_ref() == certificate.issuer;
        let mut issuers = self.authorities.iter().filter(is_issuer);
        if issuers.any(|it| !it.period.contains(now)) {
            "its issuer is among those of 'authenticate', but has expired or is not valid yet"
        } else if certificate.issuer != certificate.subject
            && self.individuals.contains(certificate.issuer)
        {
            "its issuer is among those of 'authenticate', but does not say that it may sign \
             others (basicConstraints with CA:TRUE, keyUsage with keyCertSign, \
             extendedKeyUsage, if any, with clientAuth, version 3)"
        } else {
            "it is not among those of 'authenticate', nor signed by one of these"
        }
    }
}

impl ClientCertVerifier for Verifier {
    /// None, as OpenSSL in runzeo: a client sends the one that it has.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.check(end_entity, intermediates, now) {
            Ok(()) => Ok(ClientCertVerified::assertion()),
            Err(refusal) => {
                self.note(end_entity, &refusal, now);
                Err(Error::InvalidCertificate(kind_of(refusal)))
            }
        }
    }

    /// RFC 5246, section 7.4.8.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let mut mapping = self.algorithms.mapping.iter();
        let (_, algorithms) = mapping
            .find(|(scheme, _)| *scheme == dss.scheme)
            .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        let public_key = public_key(cert)?;
        verify(&public_key, algorithms.iter(), message, dss.signature())
            .map_err(|refusal| Error::InvalidCertificate(kind_of(refusal)))?;
        Ok(HandshakeSignatureValid::assertion())
    }

    /// RFC 8446, section 4.4.3.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(message, &public_key(cert)?, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whom we talk to when we connect: those whom we would let in.
#[derive(Debug)]
pub(super) struct Others(pub(super) Arc<Verifier>);

impl ServerCertVerifier for Others {
    /// The name is that of no certificate: who is let in decides.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now);
        verified.map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn public_key<'a>(der: &'a CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'a>, Error> {
    let certificate = Certificate::read(der)
        .map_err(|Unreadable| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    Ok(certificate.public_key.into())
}

/// Checks a signature by the first algorithm that is for this kind of key.
fn verify<'a>(
    public_key: &SubjectPublicKeyInfoDer<'_>,
    algorithms: impl Iterator<Item = &'a &'static dyn SignatureVerificationAlgorithm>,
    signed: &[u8],
    signature: &[u8],
) -> Result<(), Refusal> {
    let key = RawPublicKeyEntity::try_from(public_key)?;
    let mut refusal = Refusal::InvalidSignatureForPublicKey;
    for algorithm in algorithms {
        match key.verify_signature(*algorithm, signed, signature) {
            Err(error @ Refusal::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {
                refusal = error;
            }
            result => return result,
        }
    }
    Err(refusal)
}

fn unix_time(time: x509_cert::time::Time) -> UnixTime {
    UnixTime::since_unix_epoch(time.to_unix_duration())
}

fn wrong_purpose() -> Refusal {
    Refusal::RequiredEkuNotFoundContext(webpki::RequiredEkuNotFoundContext {
        required: KeyUsage::client_auth(),
        present: Vec::new(),
    })
}

/// The kind of error that rustls has for it, which decides on the alert that the client gets.
fn kind_of(refusal: Refusal) -> CertificateError {
    match refusal {
        Refusal::BadDer | Refusal::BadDerTime | Refusal::TrailingData(_) => {
            CertificateError::BadEncoding
        }
        Refusal::CertNotValidYet { .. } => CertificateError::NotValidYet,
        Refusal::CertExpired { .. } | Refusal::InvalidCertValidity => CertificateError::Expired,
        Refusal::UnknownIssuer
        | Refusal::EndEntityUsedAsCa
        | Refusal::PathLenConstraintViolated => CertificateError::UnknownIssuer,
        Refusal::CertRevoked => CertificateError::Revoked,
        Refusal::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        Refusal::CrlExpired { .. } => CertificateError::ExpiredRevocationList,
        Refusal::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        Refusal::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
}
