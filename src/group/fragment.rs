//! Messages in fragments: what is longer than a daemon takes at once goes in several bodies.
//!
//! ```text
//!            0        1           3          5                                          end
//!   1 plain  │ 1      │ number u16│ count u16│ data                                      │
//!   2 keyed  │ 2      │ number u16│ count u16│ sequence u64 │ data      │ digest, 32 bytes │
//! ```
//!
//! All numbers are big-endian. `number` counts from zero, `count` is the number of fragments of the
//! message. All but the last have the same length. The fragments of a message follow each other in
//! their sender's lane; other lanes may come between.
//!
//! Anybody who reaches a Spread daemon may join a group and send to it. Where that matters all
//! members have the same key, and send version 2 only: the digest is HMAC-SHA-256 (RFC 2104) over
//! what the fragment says and over what the daemon says of it ([`Context`]), so that nobody can
//! make one, or pass on one of another member as his own. `sequence` rises from fragment to
//! fragment, so that a second copy is none; it is forgotten with the member. What a former member
//! sent may be repeated by one who gets its name: that is for the messages themselves to find out,
//! which name views and epochs.
//!
//! **A view ends what is not complete.** A member that left, or came back, may have missed the
//! rest, and nothing tells; so the receiver drops what it has of a message when the view changes,
//! and the sender gives up what it has not sent as a whole.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use ring::hmac;

use super::{Audience, Body, Lane, MemberId};
use crate::cursor::Cursor;
use crate::limits::{
    INCOMPLETE_MESSAGE_TIMEOUT, INCOMPLETE_MESSAGES_LEN_MAX, WHOLE_MESSAGE_LEN_MAX,
};

/// Bytes before the data of a plain fragment.
pub const HEADER_LEN: usize = 5;

/// Bytes of the sequence number of a keyed one.
const SEQUENCE_LEN: usize = 8;

/// Bytes of the digest of a keyed one.
const DIGEST_LEN: usize = 32;

const PLAIN: u8 = 1;
const KEYED: u8 = 2;

/// Fragments of a message at most.
pub const FRAGMENTS_MAX: usize = u16::MAX as usize;

/// What the daemon says of a body, which the digest covers, too.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The name of the group
    pub group: &'a str,
    /// Who sent it
    pub from: &'a MemberId,
    /// In which lane
    pub lane: Lane,
    /// For whom
    pub audience: Audience,
}

/// How fragments are made, and which are believed.
#[derive(Clone, Debug)]
pub enum Seal {
    /// Version 1; what is keyed is refused.
    Plain,
    /// Version 2; what is plain is refused.
    Keyed(Box<hmac::Key>),
}

impl Seal {
    /// With the secret that all members share.
    pub fn keyed(secret: &[u8]) -> Self {
        Self::Keyed(Box::new(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }

    /// Bytes that a fragment has besides its data.
    pub const fn overhead(&self) -> usize {
        match self {
            Self::Plain => HEADER_LEN,
            Self::Keyed(_) => HEADER_LEN + SEQUENCE_LEN + DIGEST_LEN,
        }
    }

    /// A fragment: what stands before its data, the data, and what stands behind.
    pub fn wrap(
        &self,
        context: Context<'_>,
        (number, count): (u16, u16),
        sequence: u64,
        data: Vec<Bytes>,
    ) -> Vec<Bytes> {
        let mut head = BytesMut::with_capacity(HEADER_LEN + SEQUENCE_LEN);
        let version = match self {
            Self::Plain => PLAIN,
            Self::Keyed(_) => KEYED,
        };
        head.put_u8(version);
        head.put_u16(number);
        head.put_u16(count);
        let mut parts = Vec::with_capacity(data.len() + 2);
        match self {
            Self::Plain => {
                parts.push(head.freeze());
                parts.extend(data);
            }
            Self::Keyed(key) => {
                head.put_u64(sequence);
                parts.push(head.freeze());
                parts.extend(data);
                let digest = digest(key, context, parts.iter().map(|part| &part[..]));
                parts.push(Bytes::copy_from_slice(digest.as_ref()));
            }
        }
        parts
    }

    /// Takes a body for a fragment, if it is one that we believe.
    pub fn unwrap(&self, context: Context<'_>, body: &Bytes) -> Result<Fragment, FragmentError> {
        let fragment = Fragment::decode(body)?;
        match self {
            Self::Plain if fragment.sequence.is_some() => Err(FragmentError::Keyed),
            Self::Plain => Ok(fragment),
            Self::Keyed(_) if fragment.sequence.is_none() => Err(FragmentError::Plain),
            Self::Keyed(key) => {
                let (said, found) = body.split_at(body.len() - DIGEST_LEN);
                let expected = digest(key, context, [said]);
                // All of it is looked at, so that the time tells nothing.
                let differs = expected.as_ref().iter().zip(found);
                let differs = differs.fold(0, |differs, (a, b)| differs | (a ^ b));
                if differs == 0 {
                    Ok(fragment)
                } else {
                    Err(FragmentError::WrongDigest)
                }
            }
        }
    }
}

fn digest<'a>(
    key: &hmac::Key,
    context: Context<'_>,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> hmac::Tag {
    let mut digest = hmac::Context::with_key(key);
    for name in [context.group, context.from.as_str()] {
        digest.update(&(name.len() as u64).to_be_bytes());
        digest.update(name.as_bytes());
    }
    let to_all = u8::from(context.audience == Audience::All);
    digest.update(&[context.lane.number(), to_all]);
    for part in parts {
        digest.update(part);
    }
    digest.sign()
}

/// A fragment as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Its number, from zero
    pub number: u16,
    /// How many its message has
    pub count: u16,
    /// The number that rises, of version 2
    pub sequence: Option<u64>,
    /// Its part of the message
    pub data: Bytes,
}

impl Fragment {
    /// Reads a fragment of either version, whether it is to be believed or not.
    pub fn decode(body: &Bytes) -> Result<Self, FragmentError> {
        let short = |_| FragmentError::TooShort(body.len());
        let mut cursor = Cursor::new(body);
        let version = cursor.u8().map_err(short)?;
        let number = cursor.u16_be().map_err(short)?;
        let count = cursor.u16_be().map_err(short)?;
        let (sequence, tail_len) = match version {
            PLAIN => (None, 0),
            KEYED => (Some(cursor.u64_be().map_err(short)?), DIGEST_LEN),
            version => return Err(FragmentError::Version(version)),
        };
        let start = cursor.pos();
        let end = body.len().checked_sub(tail_len).filter(|end| *end >= start);
        let end = end.ok_or(FragmentError::TooShort(body.len()))?;
        if number >= count {
            return Err(FragmentError::Number { number, count });
        }
        Ok(Self {
            number,
            count,
            sequence,
            data: body.slice(start..end),
        })
    }
}

/// Why a body is no fragment, or none that we believe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FragmentError {
    /// It has no room for what a fragment has.
    TooShort(usize),
    /// A version that we do not know.
    Version(u8),
    /// A number that its message does not have.
    Number {
        /// What it says it is
        number: u16,
        /// How many it says there are
        count: u16,
    },
    /// It has a digest, and we have no key.
    Keyed,
    /// It has no digest, and we have a key.
    Plain,
    /// Its digest is not what our key makes.
    WrongDigest,
}

impl fmt::Display for FragmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort(len) => write!(f, "{len} bytes are no fragment"),
            Self::Version(version) => write!(f, "fragments of version {version} are unknown"),
            Self::Number { number, count } => {
                write!(f, "fragment {number} of {count}, counted from 0")
            }
            Self::Keyed => f.write_str("it has a digest, and there is no key-file here"),
            Self::Plain => f.write_str("it has no digest, and there is a key-file here"),
            Self::WrongDigest => f.write_str("its digest is wrong: another key, or a forgery"),
        }
    }
}

impl std::error::Error for FragmentError {}

/// What fragments make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assembled {
    /// A message that has come as a whole.
    Whole(Bytes),
    /// A part of a message that is longer than [`WHOLE_MESSAGE_LEN_MAX`]. Parts come in order, and
    /// nothing of them is kept here.
    Part {
        /// Its number, from zero
        number: u16,
        /// How many there will be
        count: u16,
        /// The bytes
        data: Bytes,
    },
}

/// Why a fragment was dropped, with what was there of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// It does not continue what is there.
    OutOfOrder,
    /// The message became longer than its first fragment let expect, or than may be kept.
    TooLong,
    /// A copy of one that was there before.
    Repeated,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfOrder => "it does not continue the one before it",
            Self::TooLong => "its message is too long",
            Self::Repeated => "a repetition",
        })
    }
}

/// What a fragment led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The parts of an earlier message, which were given out, have come to nothing; or what was
    /// kept of this message was dropped with the fragment.
    pub cut: bool,
    /// What there is to give out.
    pub assembled: Option<Assembled>,
    /// Why not
    pub dropped: Option<Dropped>,
}

/// Messages that have begun to come.
///
/// Invariant: `len` is the sum of what `begun` keeps, and at most [`INCOMPLETE_MESSAGES_LEN_MAX`].
#[derive(Debug, Default)]
pub struct Assembler {
    begun: BTreeMap<(MemberId, Lane, bool), Begun>,
    len: usize,
    /// The highest sequence number of each member.
    sequences: BTreeMap<MemberId, u64>,
}

/// A message that has begun to come.
#[derive(Debug)]
struct Begun {
    count: u16,
    /// The number of the next fragment.
    next: u16,
    /// What has come; nothing, if it is given out in parts.
    data: BytesMut,
    /// Bytes that have come of what is not given out in parts.
    kept: usize,
    in_parts: bool,
    /// The length of all fragments but the last.
    part_len: usize,
    /// When the last fragment came.
    at: Instant,
}

impl Assembler {
    /// Takes a fragment of the body that it came in.
    pub fn receive(&mut self, body: &Body, fragment: Fragment, now: Instant) -> Outcome {
        if let Some(sequence) = fragment.sequence {
            let last = self.sequences.get_mut(&body.from);
            match last {
                Some(last) if sequence <= *last => {
                    return Outcome {
                        dropped: Some(Dropped::Repeated),
                        ..Outcome::default()
                    };
                }
                Some(last) => *last = sequence,
                None => {
                    self.sequences.insert(body.from.clone(), sequence);
                }
            }
        }
        let to_all = body.audience == Audience::All;
        let key = (body.from.clone(), body.lane, to_all);
        let mut outcome = Outcome::default();
        if fragment.number == 0 {
            // What was there will not be continued any more.
            outcome.cut = self.forget(&key);
            if fragment.count == 1 {
                outcome.assembled = Some(Assembled::Whole(fragment.data));
                return outcome;
            }
            let expected = fragment
                .data
                .len()
                .saturating_mul(usize::from(fragment.count));
            let begun = Begun {
                count: fragment.count,
                next: 0,
                data: BytesMut::new(),
                kept: 0,
                in_parts: expected > WHOLE_MESSAGE_LEN_MAX,
                part_len: fragment.data.len(),
                at: now,
            };
            self.begun.insert(key.clone(), begun);
        }
        let problem = match self.begun.get_mut(&key) {
            None => Some(Dropped::OutOfOrder),
            Some(begun) => match begun.check(&fragment, self.len) {
                Some(problem) => Some(problem),
                None => {
                    if !begun.in_parts {
                        self.len += fragment.data.len();
                    }
                    let is_last = begun.take(fragment, now, &mut outcome);
                    if is_last {
                        self.forget(&key);
                    }
                    None
                }
            },
        };
        if problem.is_some() {
            outcome.cut |= self.begun.contains_key(&key);
            self.forget(&key);
            outcome.dropped = problem;
        }
        outcome
    }

    /// Forgets all that has begun, as the view changes; and the numbers of those who are no members
    /// any more. Returns whose messages were given out in parts, and have come to nothing.
    pub fn on_view(&mut self, members: &[MemberId]) -> Vec<(MemberId, Lane)> {
        self.sequences.retain(|member, _| members.contains(member));
        self.len = 0;
        let begun = std::mem::take(&mut self.begun).into_iter();
        let in_parts = begun.filter(|(_, begun)| begun.in_parts);
        in_parts.map(|((from, lane, _), _)| (from, lane)).collect()
    }

    /// Forgets what has not been continued for too long. Returns whose, in which lane.
    pub fn on_time(&mut self, now: Instant) -> Vec<(MemberId, Lane)> {
        let late = self.begun.iter();
        let late = late.filter(|(_, begun)| now >= begun.at + INCOMPLETE_MESSAGE_TIMEOUT);
        let late: Vec<_> = late.map(|(key, _)| key.clone()).collect();
        let forgotten = late.into_iter().map(|key| {
            self.forget(&key);
            (key.0, key.1)
        });
        forgotten.collect()
    }

    /// When [`Self::on_time`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let oldest = self.begun.values().map(|begun| begun.at).min()?;
        Some(oldest + INCOMPLETE_MESSAGE_TIMEOUT)
    }

    /// Bytes that are kept of messages that are not complete.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is kept.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets a message. Returns whether parts of it were given out.
    fn forget(&mut self, key: &(MemberId, Lane, bool)) -> bool {
        let Some(begun) = self.begun.remove(key) else {
            return false;
        };
        self.len -= begun.kept;
        begun.in_parts && begun.next > 0 && begun.next < begun.count
    }
}

impl Begun {
    /// Why the fragment cannot be taken, if it cannot.
    fn check(&self, fragment: &Fragment, kept: usize) -> Option<Dropped> {
        if fragment.number != self.next || fragment.count != self.count {
            return Some(Dropped::OutOfOrder);
        }
        let is_last = fragment.number + 1 == fragment.count;
        let len = fragment.data.len();
        if len > self.part_len || (len < self.part_len && !is_last) {
            return Some(Dropped::TooLong);
        }
        let is_full = !self.in_parts && kept + len > INCOMPLETE_MESSAGES_LEN_MAX;
        is_full.then_some(Dropped::TooLong)
    }

    /// Takes a fragment that was checked. Returns whether it was the last.
    fn take(&mut self, fragment: Fragment, now: Instant, outcome: &mut Outcome) -> bool {
        self.at = now;
        self.next += 1;
        let is_last = self.next == self.count;
        if self.in_parts {
            outcome.assembled = Some(Assembled::Part {
                number: fragment.number,
                count: fragment.count,
                data: fragment.data,
            });
        } else {
            self.kept += fragment.data.len();
            self.data.extend_from_slice(&fragment.data);
            if is_last {
                let data = std::mem::take(&mut self.data);
                outcome.assembled = Some(Assembled::Whole(data.freeze()));
            }
        }
        is_last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way"
    )]
    fn start() -> Instant {
        Instant::now()
    }

    fn body(from: &str, data: Bytes) -> Body {
        Body {
            from: MemberId::new(from),
            lane: Lane::Commit,
            audience: Audience::All,
            data,
        }
    }

    fn fragment(number: u16, count: u16, data: &'static [u8]) -> Fragment {
        Fragment {
            number,
            count,
            sequence: None,
            data: Bytes::from_static(data),
        }
    }

    /// Gives fragments of one member, and tells what came out of each.
    fn assemble(fragments: &[Fragment]) -> Vec<Outcome> {
        let mut assembler = Assembler::default();
        let now = start();
        let body = body("a", Bytes::new());
        let fragments = fragments.iter();
        let outcomes = fragments.map(|it| assembler.receive(&body, it.clone(), now));
        outcomes.collect()
    }

    #[test]
    fn fragments_are_in_the_form_of_the_prototypes() {
        let from = MemberId::new("a");
        let context = Context {
            group: "g",
            from: &from,
            lane: Lane::Bulk,
            audience: Audience::One,
        };
        let data = vec![Bytes::from_static(b"da"), Bytes::from_static(b"ta")];
        let plain = Seal::Plain.wrap(context, (258, 772), 9, data);
        assert_eq!(plain.concat(), b"\x01\x01\x02\x03\x04data");
    }

    #[test]
    fn what_is_missing_is_never_replaced_by_another_message() {
        let whole = |data| Some(Assembled::Whole(Bytes::from_static(data)));
        let dropped = Some(Dropped::OutOfOrder);
        let outcomes = assemble(&[
            fragment(0, 3, b"aa"),
            fragment(2, 3, b"b"),
            fragment(1, 3, b"aa"),
            fragment(0, 3, b"cc"),
            fragment(1, 3, b"cc"),
            fragment(0, 2, b"dd"),
            fragment(1, 3, b"ee"),
            fragment(0, 2, b"ff"),
            fragment(1, 2, b"f"),
            fragment(1, 2, b"f"),
            fragment(0, 1, b"g"),
        ]);
        let is = |at: usize| (outcomes[at].assembled.clone(), outcomes[at].dropped);
        for (at, expected) in [
            (0, (None, None)),
            (1, (None, dropped)),
            (2, (None, dropped)),
            (4, (None, None)),
            (5, (None, None)),
            (6, (None, dropped)),
            (8, (whole(b"fff"), None)),
            (9, (None, dropped)),
            (10, (whole(b"g"), None)),
        ] {
            assert_eq!(is(at), expected, "fragment {at}");
        }
    }

    #[test]
    fn fragments_of_other_lengths_than_the_first_are_no_part_of_its_message() {
        for other in [&b"a"[..], b"aaa"] {
            let other = Fragment {
                data: Bytes::from_static(other),
                ..fragment(1, 3, b"")
            };
            let outcomes = assemble(&[fragment(0, 3, b"aa"), other, fragment(2, 3, b"a")]);
            assert_eq!(outcomes[1].dropped, Some(Dropped::TooLong));
            assert_eq!(outcomes[2].dropped, Some(Dropped::OutOfOrder));
        }
    }

    #[test]
    fn many_senders_cannot_take_more_memory_than_there_is_for_them() {
        let now = start();
        let mut assembler = Assembler::default();
        let data = Bytes::from(vec![0; WHOLE_MESSAGE_LEN_MAX / 8]);
        let mut dropped = 0;
        for sender in 0..20 {
            let body = body(&sender.to_string(), Bytes::new());
            for number in 0..7 {
                let fragment = Fragment {
                    number,
                    count: 8,
                    sequence: None,
                    data: data.clone(),
                };
                let outcome = assembler.receive(&body, fragment, now);
                let too_long = outcome.dropped == Some(Dropped::TooLong);
                assert_eq!(outcome.cut, too_long, "it is told");
                dropped += usize::from(too_long);
                assert!(assembler.len() <= INCOMPLETE_MESSAGES_LEN_MAX);
            }
        }
        assert!(dropped > 0);
        assert!(assembler.on_time(now).is_empty());
        let late = now + INCOMPLETE_MESSAGE_TIMEOUT;
        assert_eq!(assembler.deadline(), Some(late));
        assert!(!assembler.on_time(late).is_empty());
        assert_eq!((assembler.len(), assembler.deadline()), (0, None));
    }

    #[test]
    fn parts_that_were_given_out_are_told_to_come_to_nothing() {
        let now = start();
        let mut assembler = Assembler::default();
        let data = Bytes::from(vec![0; WHOLE_MESSAGE_LEN_MAX / 2]);
        let body = body("a", Bytes::new());
        let begin = Fragment {
            number: 0,
            count: 3,
            sequence: None,
            data,
        };
        let outcome = assembler.receive(&body, begin.clone(), now);
        assert!(matches!(
            outcome.assembled,
            Some(Assembled::Part { number: 0, .. })
        ));
        assert_eq!(assembler.len(), 0);
        assert!(assembler.receive(&body, begin.clone(), now).cut);
        let members = [body.from.clone()];
        assert_eq!(
            assembler.on_view(&members),
            [(body.from.clone(), Lane::Commit)]
        );
        assert_eq!(assembler.on_view(&members), []);
        assembler.receive(&body, begin, now);
        let late = now + INCOMPLETE_MESSAGE_TIMEOUT;
        assert_eq!(assembler.on_time(late), [(body.from.clone(), Lane::Commit)]);
    }

    #[test]
    fn a_digest_is_of_all_that_is_said() {
        let (a, b) = (MemberId::new("a"), MemberId::new("b"));
        let said = Context {
            group: "g",
            from: &a,
            lane: Lane::Commit,
            audience: Audience::All,
        };
        let seal = Seal::keyed(b"secret");
        let body = |data: &'static [u8]| {
            let parts = seal.wrap(said, (0, 1), 7, vec![Bytes::from_static(data)]);
            Bytes::from(parts.concat())
        };
        let good = body(b"data");
        let fragment = seal.unwrap(said, &good);
        assert_eq!(
            fragment,
            Ok(Fragment {
                sequence: Some(7),
                ..super::tests::fragment(0, 1, b"data")
            })
        );
        for other in [
            Context { group: "h", ..said },
            Context { from: &b, ..said },
            Context {
                lane: Lane::Bulk,
                ..said
            },
            Context {
                audience: Audience::One,
                ..said
            },
        ] {
            assert_eq!(
                seal.unwrap(other, &good),
                Err(FragmentError::WrongDigest),
                "{other:?}"
            );
        }
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 1;
            assert!(seal.unwrap(said, &bad.into()).is_err(), "byte {at}");
            assert!(seal.unwrap(said, &good.slice(..at)).is_err(), "cut at {at}");
        }
        let plain = Seal::Plain.wrap(said, (0, 1), 7, vec![Bytes::from_static(b"data")]);
        let plain = Bytes::from(plain.concat());
        assert_eq!(seal.unwrap(said, &plain), Err(FragmentError::Plain));
        assert_eq!(Seal::Plain.unwrap(said, &good), Err(FragmentError::Keyed));
    }
}
