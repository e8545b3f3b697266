//! Private keys from PEM files, encrypted or not.
//!
//! | block | encrypted with |
//! |---|---|
//! | `PRIVATE KEY` (PKCS#8), `RSA PRIVATE KEY` (PKCS#1), `EC PRIVATE KEY` (SEC 1) | nothing |
//! | `ENCRYPTED PRIVATE KEY` | PBES2: PBKDF2 or scrypt, then AES-CBC, AES-GCM or 3DES (RFC 8018) |
//! | the first with `Proc-Type: 4,ENCRYPTED` | AES-CBC or 3DES, in OpenSSL's traditional way |
//!
//! The traditional way derives the key by MD5 (`EVP_BytesToKey`), and protects little more than
//! the permissions of the file do; but such files exist.

use std::fmt;

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockModeDecrypt, KeyIvInit};
use aes::{Aes128, Aes192, Aes256};
use cbc::Decryptor;
use des::TdesEde3;
use md5::{Digest, Md5};
use pkcs8::EncryptedPrivateKeyInfoRef;
use rustls::pki_types::PrivateKeyDer;
use x509_cert::der::asn1::AnyRef;
use x509_cert::der::{Decode, SliceReader};
use x509_cert::spki::AlgorithmIdentifierRef;

use super::pem::Block;

/// Why there is no private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The file has none.
    None,
    /// It is encrypted, and no password is configured.
    NoPassword,
    /// The password is not that of the key, or the key is damaged.
    WrongPassword,
    /// It is encrypted in a way that we do not know.
    Encryption(String),
    /// It is of a kind that we do not know.
    Kind(String),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(f, "there is no private key in it"),
            Self::NoPassword => write!(
                f,
                "the key is encrypted: a password-file or a password-command is needed"
            ),
            Self::WrongPassword => write!(f, "the password is wrong, or the key is damaged"),
            Self::Encryption(how) => write!(
                f,
                "a key that is encrypted by {how} cannot be read (openssl pkcs8 -topk8 makes one \
                 that can)"
            ),
            Self::Kind(label) => write!(f, "a key of the kind '{label}' cannot be used"),
        }
    }
}

impl std::error::Error for KeyError {}

/// The first private key among the blocks; `password` is asked only if the key is encrypted.
///
/// # Errors
///
/// What [`KeyError`] says, or the one that `password` returned.
pub(super) fn private_key<E: From<KeyError>>(
    blocks: &[Block],
    password: impl FnOnce() -> Result<Option<Vec<u8>>, E>,
) -> Result<PrivateKeyDer<'static>, E> {
    let block = blocks
        .iter()
        .find(|block| block.label.ends_with("PRIVATE KEY"))
        .ok_or(KeyError::None)?;
    let password = || password()?.ok_or_else(|| E::from(KeyError::NoPassword));
    let key = match block.label.as_str() {
        "ENCRYPTED PRIVATE KEY" => {
            return Ok(PrivateKeyDer::Pkcs8(
                pkcs8(&block.data, &password()?)?.into(),
            ));
        }
        "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" => match header(block, "DEK-Info") {
            Some(how) => traditional(how, &block.data, &password()?)?,
            None => block.data.clone(),
        },
        label => return Err(KeyError::Kind(label.to_owned()).into()),
    };
    Ok(match block.label.as_str() {
        "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(key.into()),
        "EC PRIVATE KEY" => PrivateKeyDer::Sec1(key.into()),
        _ => PrivateKeyDer::Pkcs8(key.into()),
    })
}

fn header<'a>(block: &'a Block, name: &str) -> Option<&'a str> {
    let mut headers = block.headers.iter();
    headers
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

/// RFC 5958, section 3.
fn pkcs8(data: &[u8], password: &[u8]) -> Result<Vec<u8>, KeyError> {
    let encrypted = EncryptedPrivateKeyInfoRef::try_from(data).map_err(|_| {
        let algorithm = algorithm(data).unwrap_or_else(|| "an unknown algorithm".to_owned());
        KeyError::Encryption(algorithm)
    })?;
    match encrypted.decrypt(password) {
        Ok(key) => Ok(key.as_bytes().to_vec()),
        Err(pkcs8::Error::EncryptedPrivateKey(pkcs8::pkcs5::Error::UnsupportedAlgorithm {
            oid,
        })) => Err(KeyError::Encryption(oid.to_string())),
        Err(pkcs8::Error::EncryptedPrivateKey(pkcs8::pkcs5::Error::NoPbes1CryptSupport)) => {
            Err(KeyError::Encryption("PBES1".to_owned()))
        }
        Err(_) => Err(KeyError::WrongPassword),
    }
}

/// The number of an algorithm that `pkcs8` does not know.
fn algorithm(data: &[u8]) -> Option<String> {
    let outer = AnyRef::from_der(data).ok()?;
    let mut outer = SliceReader::new(outer.value()).ok()?;
    let algorithm = AlgorithmIdentifierRef::decode(&mut outer).ok()?;
    Some(algorithm.oid.to_string())
}

/// `DEK-Info: CIPHER,IV in hexadecimal digits`; the first 8 bytes of the IV are the salt, too.
fn traditional(how: &str, data: &[u8], password: &[u8]) -> Result<Vec<u8>, KeyError> {
    let (cipher, iv) = how.split_once(',').unwrap_or((how, ""));
    let cipher = cipher.trim().to_ascii_uppercase();
    let unknown = || KeyError::Encryption(cipher.clone());
    let iv = hex(iv.trim()).ok_or_else(unknown)?;
    let salt = iv.get(..8).ok_or_else(unknown)?;
    let derive = |key_len| bytes_to_key(password, salt, key_len);
    match cipher.as_str() {
        "DES-EDE3-CBC" => decrypt::<Decryptor<TdesEde3>>(&derive(24), &iv, data),
        "AES-128-CBC" => decrypt::<Decryptor<Aes128>>(&derive(16), &iv, data),
        "AES-192-CBC" => decrypt::<Decryptor<Aes192>>(&derive(24), &iv, data),
        "AES-256-CBC" => decrypt::<Decryptor<Aes256>>(&derive(32), &iv, data),
        _ => return Err(unknown()),
    }
    .ok_or(KeyError::WrongPassword)
}

fn decrypt<C: KeyIvInit + BlockModeDecrypt>(key: &[u8], iv: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    let cipher = C::new_from_slices(key, iv).ok()?;
    let mut buf = data.to_vec();
    let len = cipher.decrypt_padded::<Pkcs7>(&mut buf).ok()?.len();
    buf.truncate(len);
    // What a wrong password gives may end like padding, but does not begin like a key.
    (buf.first() == Some(&SEQUENCE)).then_some(buf)
}

/// `EVP_BytesToKey` with MD5 and one round.
fn bytes_to_key(password: &[u8], salt: &[u8], len: usize) -> Vec<u8> {
    let mut key = Vec::new();
    let mut last = Vec::new();
    while key.len() < len {
        let digest = Md5::new()
            .chain_update(&last)
            .chain_update(password)
            .chain_update(salt);
        last = digest.finalize().to_vec();
        key.extend_from_slice(&last);
    }
    key.truncate(len);
    key
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect(),
    )
}

/// The first byte of each form of key (X.690).
const SEQUENCE: u8 = 0x30;
