//! What a certificate says (RFC 5280), as far as it decides who is let in.
//!
//! `webpki` checks chains, but says nothing of what it reads, and reads no certificates of version
//! 1, which `openssl x509 -req` made by default until its version 3.4. So the fields are read here,
//! too; signatures are left to others.

use std::fmt;

use rustls::pki_types::UnixTime;
use x509_cert::der::asn1::{AnyRef, BitStringRef, ObjectIdentifier};
use x509_cert::der::{
    Decode, DecodeValue, Header, Length, Reader, SliceReader, Tag, TagNumber, Tagged,
};
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage};
use x509_cert::ext::{Extension, Extensions};
use x509_cert::name::Name;
use x509_cert::time::{Time, Validity};

use crate::limits::SUBJECT_LEN_MAX;

/// A certificate that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

impl From<x509_cert::der::Error> for Unreadable {
    fn from(_: x509_cert::der::Error) -> Self {
        Self
    }
}

/// The fields of a certificate. Names and algorithms are the contents of their DER values, without
/// tag and length, as `webpki` has them.
#[derive(Clone, Debug)]
pub(super) struct Certificate<'a> {
    /// What the issuer has signed.
    pub(super) signed: &'a [u8],
    pub(super) signature_algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
    /// 1 to 3.
    pub(super) version: u8,
    pub(super) serial: &'a [u8],
    pub(super) issuer: &'a [u8],
    pub(super) subject: &'a [u8],
    /// `SubjectPublicKeyInfo`, with tag and length.
    pub(super) public_key: &'a [u8],
    pub(super) period: Period,
    pub(super) uses: Uses,
}

/// When a certificate is valid; both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Period {
    pub(super) not_before: Time,
    pub(super) not_after: Time,
}

/// What a certificate may be used for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Uses {
    /// It says that it is a certificate authority.
    is_ca: bool,
    /// How many authorities there may be between it and a client.
    pub(super) path_len_max: Option<u8>,
    key_usage: Option<KeyUsage>,
    extended: Option<Vec<ObjectIdentifier>>,
    /// Restrictions that we do not read ourselves.
    pub(super) is_restricted: bool,
}

impl<'a> Certificate<'a> {
    /// Reads the DER form.
    pub(super) fn read(der: &'a [u8]) -> Result<Self, Unreadable> {
        let outer = AnyRef::from_der(der)?;
        outer.tag().assert_eq(Tag::Sequence)?;
        let mut outer = SliceReader::new(outer.value())?;
        let signed = outer.tlv_bytes()?;
        let signature_algorithm = sequence(&mut outer)?;
        let signature = BitStringRef::decode(&mut outer)?;
        let signature = signature.as_bytes().ok_or(Unreadable)?;
        outer.finish()?;

        let inner = AnyRef::from_der(signed)?;
        inner.tag().assert_eq(Tag::Sequence)?;
        let mut inner = SliceReader::new(inner.value())?;
        let version = match explicit(&mut inner, TagNumber(0))? {
            None => 1,
            Some(version) => match u8::from_der(version)? {
                version @ 0..=2 => version + 1,
                _ => return Err(Unreadable),
            },
        };
        let serial = AnyRef::decode(&mut inner)?;
        serial.tag().assert_eq(Tag::Integer)?;
        sequence(&mut inner)?;
        let issuer = sequence(&mut inner)?;
        let validity = Validity::<x509_cert::certificate::Rfc5280>::decode(&mut inner)?;
        let subject = sequence(&mut inner)?;
        let public_key = inner.tlv_bytes()?;
        let mut uses = Uses::default();
        while !inner.is_finished() {
            let tag = Tag::peek(&inner)?;
            match explicit(&mut inner, TagNumber(3))? {
                Some(extensions) => uses = Uses::read(&Extensions::from_der(extensions)?)?,
                // Unique identifiers of issuer and subject, which nobody uses.
                None if tag.is_context_specific() => _ = inner.tlv_bytes()?,
                None => return Err(Unreadable),
            }
        }
        Ok(Self {
            signed,
            signature_algorithm,
            signature,
            version,
            serial: serial.value(),
            issuer,
            subject,
            public_key,
            period: Period {
                not_before: validity.not_before,
                not_after: validity.not_after,
            },
            uses,
        })
    }

    /// The subject, for people: one line, of limited length, whatever is in it.
    pub(super) fn subject_text(&self) -> String {
        let mut reader = match SliceReader::new(self.subject) {
            Ok(reader) if !self.subject.is_empty() => reader,
            _ => return "(no subject)".to_owned(),
        };
        let header = u32::try_from(self.subject.len())
            .ok()
            .map(|len| Header::new(Tag::Sequence, Length::from(len)));
        let name = header.and_then(|header| Name::decode_value(&mut reader, header).ok());
        let Some(name) = name else {
            return "(a subject that cannot be read)".to_owned();
        };
        let text = name.to_string();
        let printable = text.chars().map(|c| if c.is_control() { '?' } else { c });
        printable.take(SUBJECT_LEN_MAX).collect()
    }
}

/// The contents of a SEQUENCE.
fn sequence<'a>(reader: &mut SliceReader<'a>) -> Result<&'a [u8], Unreadable> {
    let any = AnyRef::decode(reader)?;
    any.tag().assert_eq(Tag::Sequence)?;
    Ok(any.value())
}

/// What is tagged explicitly by this number, if that comes next.
fn explicit<'a>(
    reader: &mut SliceReader<'a>,
    number: TagNumber,
) -> Result<Option<&'a [u8]>, Unreadable> {
    let expected = Tag::ContextSpecific {
        constructed: true,
        number,
    };
    if Tag::peek(reader)? != expected {
        return Ok(None);
    }
    Ok(Some(AnyRef::decode(reader)?.value()))
}

impl Period {
    /// Whether it has begun.
    pub(super) fn has_begun(&self, now: UnixTime) -> bool {
        self.not_before.to_unix_duration().as_secs() <= now.as_secs()
    }

    /// Whether it is over.
    pub(super) fn is_over(&self, now: UnixTime) -> bool {
        self.not_after.to_unix_duration().as_secs() < now.as_secs()
    }

    /// Whether `now` is in it.
    pub(super) fn contains(&self, now: UnixTime) -> bool {
        self.has_begun(now) && !self.is_over(now)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "valid from {} to {}", self.not_before, self.not_after)
    }
}

impl Uses {
    fn read(extensions: &[Extension]) -> Result<Self, Unreadable> {
        let mut uses = Self::default();
        for extension in extensions {
            let value = extension.extn_value.as_bytes();
            match extension.extn_id {
                BASIC_CONSTRAINTS => {
                    let constraints = BasicConstraints::from_der(value)?;
                    uses.is_ca = constraints.ca;
                    uses.path_len_max = constraints.path_len_constraint;
                }
                KEY_USAGE => uses.key_usage = Some(KeyUsage::from_der(value)?),
                EXTENDED_KEY_USAGE => {
                    uses.extended = Some(ExtendedKeyUsage::from_der(value)?.0);
                }
                SUBJECT_ALT_NAME => {}
                _ => uses.is_restricted |= extension.critical,
            }
        }
        Ok(uses)
    }

    /// Whether it may sign other certificates, and says so in both ways. That it is an authority
    /// is not enough: every self-signed certificate says that if OpenSSL made it without options.
    /// OpenSSL, too, asks for both when it is strict, as it is in runzeo.
    fn signs_others(&self) -> bool {
        let signs = |usage: &KeyUsage| usage.key_cert_sign();
        self.is_ca && self.key_usage.as_ref().is_some_and(signs)
    }

    /// Whether it may sign certificates of clients: OpenSSL asks an authority, too, what it is for.
    pub(super) fn signs_clients(&self) -> bool {
        self.signs_others() && self.is_for_clients()
    }

    /// Whether a client may show it, by the rule of OpenSSL's purpose `sslclient`.
    pub(super) fn allow_client(&self) -> bool {
        let signs = |usage: &KeyUsage| usage.digital_signature() || usage.key_agreement();
        self.key_usage.as_ref().is_none_or(signs) && self.is_for_clients()
    }

    fn is_for_clients(&self) -> bool {
        let extended = self.extended.as_ref();
        extended.is_none_or(|purposes| purposes.contains(&CLIENT_AUTH))
    }
}

const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
