//! The identifiers that cross module borders, each with a type of its own.
//!
//! On the wire and in files `oid` and `tid` are 8 bytes, big-endian (ZODB's `p64`). Here they are
//! integers in newtypes, so that comparing, counting and printing them needs no conversion and one
//! is never taken for the other.

use std::fmt;
use std::time::Duration;

macro_rules! eight_bytes {
    ($name:ident) => {
        impl $name {
            /// All zero bytes: ZODB's `z64`.
            pub const ZERO: Self = Self(0);

            /// From the big-endian form that the wire and the file use.
            pub const fn from_bytes(bytes: [u8; 8]) -> Self {
                Self(u64::from_be_bytes(bytes))
            }

            /// The big-endian form that the wire and the file use.
            pub const fn to_bytes(self) -> [u8; 8] {
                self.0.to_be_bytes()
            }

            /// From a slice that must be exactly eight bytes long.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Some(Self::from_bytes(bytes.try_into().ok()?))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }
    };
}

impl Oid {
    /// Oids from here on are refused: they would leave none to be handed out.
    pub const END: Self = Self(1 << 63);
}

/// Object id. Zero is the root object; ids are handed out in sequence from one.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Oid(pub u64);

/// Transaction id, which is also a time stamp (see [`Tid::from_unix_time`]). The *serial* of a
/// revision is the tid of the transaction that wrote it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tid(pub u64);

eight_bytes!(Oid);
eight_bytes!(Tid);

impl Tid {
    /// `ZODB.utils.maxtid`, which clients send to ask for the newest revision.
    pub const MAX: Self = Self(0x7fff_ffff_ffff_ffff);

    /// The time stamp for a time since 1970 (UTC), as `persistent.TimeStamp` computes it: the
    /// upper four bytes count minutes in months of 31 days since 1900, the lower four are the
    /// fraction of the minute in units of 60 s / 2^32. Times before 1970 do not occur.
    pub fn from_unix_time(since_1970: Duration) -> Self {
        let (year, month, day) = civil_from_days(since_1970.as_secs() / 86_400);
        let minute_of_day = since_1970.as_secs() % 86_400 / 60;
        let minutes = (((year - 1900) * 12 + month - 1) * 31 + day - 1) * 24 * 60 + minute_of_day;
        let nanos = u128::from(since_1970.as_secs() % 60) * 1_000_000_000
            + u128::from(since_1970.subsec_nanos());
        let fraction = (nanos << 32) / 60_000_000_000;
        Self((minutes << 32) | u64::try_from(fraction).unwrap_or(u64::from(u32::MAX)))
    }

    /// As [`Self::from_unix_time`], for a time that a client has computed, with the very rounding
    /// of `TimeStamp`. One before 1970 becomes that year's begin. `None` behind the year 9999,
    /// where Python's calendar ends, and for what is no number.
    pub fn from_unix_seconds(seconds: f64) -> Option<Self> {
        const UNIT: f64 = 60.0 / 65_536.0 / 65_536.0;
        const YEAR_10000: f64 = 253_402_300_800.0;
        if seconds.is_nan() || seconds >= YEAR_10000 {
            return None;
        }
        let seconds = seconds.max(0.0);
        let within_minute = seconds % 60.0;
        let minutes = Self::from_unix_time(Duration::from_secs((seconds - within_minute) as u64));
        // Below 2^32, and so nothing is cut off but the fraction.
        let fraction = (within_minute / UNIT) as u32;
        Some(Self(minutes.0 | u64::from(fraction)))
    }

    /// The time since 1970 that this tid stands for; zero for one before 1970.
    pub fn unix_time(self) -> Duration {
        let minutes = self.0 >> 32;
        let days_of_31 = minutes / (24 * 60);
        let (day, months) = (days_of_31 % 31 + 1, days_of_31 / 31);
        let Some(days) = days_from_civil(months / 12 + 1900, months % 12 + 1, day) else {
            return Duration::ZERO;
        };
        let nanos = (u128::from(self.0 & 0xffff_ffff) * 60_000_000_000) >> 32;
        let nanos = u64::try_from(nanos).unwrap_or(0);
        Duration::from_secs(days * 86_400 + minutes % (24 * 60) * 60) + Duration::from_nanos(nanos)
    }

    /// The time in seconds since 1970, with the very rounding of Python's `TimeStamp.timeTime`,
    /// which counts from 1901 first: clients compare such times with those that they compute.
    pub fn unix_seconds(self) -> f64 {
        const UNIT: f64 = 60.0 / 65_536.0 / 65_536.0;
        const FROM_1901: f64 = 25_202.0 * 86_400.0;
        let minutes = Self(self.0 & !0xffff_ffff).unix_time();
        let fraction = (self.0 & 0xffff_ffff) as f64 * UNIT;
        minutes.as_secs_f64() + FROM_1901 + fraction - FROM_1901
    }

    /// Tids from here on are refused: some room below [`Self::MAX`], which has to stay above all.
    /// The year is far beyond 10000.
    pub const END: Self = Self(Self::MAX.0 - (1 << 40));

    /// The smallest tid that is larger than this one.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// One client connection, for as long as it lasts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId {
    /// Counts connections; tells those apart that have had the same key.
    pub serial: u32,
    /// Where the reactor keeps the connection.
    pub key: u32,
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.serial)
    }
}

/// A node of a replicated storage: a name that the operator gives. At most ten characters, since a
/// Spread daemon takes no longer private names; it is part of file names, too.
///
/// Ordered as text; unused bytes are zero.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; Self::LEN_MAX]);

impl NodeId {
    /// The length of the longest.
    pub const LEN_MAX: usize = 10;

    /// No node: the one of [`Epoch::ZERO`].
    pub const NONE: Self = Self([0; Self::LEN_MAX]);

    /// From 1 to 10 letters, digits, `-`, `_` and `.`, all of ASCII; `None` for what is none.
    pub fn new(name: &str) -> Option<Self> {
        let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > Self::LEN_MAX || !name.bytes().all(is_valid) {
            return None;
        }
        let mut bytes = [0; Self::LEN_MAX];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self(bytes))
    }

    /// From the form with zeros behind it, that of [`Self::NONE`] included.
    pub fn from_bytes(bytes: [u8; Self::LEN_MAX]) -> Option<Self> {
        let len = bytes.iter().position(|byte| *byte == 0);
        let (name, rest) = bytes.split_at(len.unwrap_or(Self::LEN_MAX));
        if name.is_empty() {
            return (bytes == Self::NONE.0).then_some(Self::NONE);
        }
        let is_padded = rest.iter().all(|byte| *byte == 0);
        Self::new(str::from_utf8(name).ok()?).filter(|_| is_padded)
    }

    /// The form with zeros behind it.
    pub const fn to_bytes(self) -> [u8; Self::LEN_MAX] {
        self.0
    }

    /// The name; empty for [`Self::NONE`].
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|byte| *byte == 0);
        // All bytes are ASCII.
        str::from_utf8(&self.0[..len.unwrap_or(Self::LEN_MAX)]).unwrap_or_default()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::NONE {
            "none"
        } else {
            self.as_str()
        })
    }
}

/// One primary's time in office. Ordered by the counter, then by the node, so that two nodes never
/// claim the same one.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    /// Grows with each claim.
    pub counter: u64,
    /// Who claimed it.
    pub node: NodeId,
}

impl Epoch {
    /// Before all that were claimed.
    pub const ZERO: Self = Self {
        counter: 0,
        node: NodeId::NONE,
    };
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.counter, self.node)
    }
}

/// Number of an entry in the log of a replicated storage. The first is 1; zero is before all.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first.
    pub const ZERO: Self = Self(0);

    /// The one that follows. The largest has none; no log gets there.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

macro_rules! sixteen_bytes {
    ($name:ident) => {
        impl $name {
            /// From 32 hexadecimal digits; `None` for what are none.
            pub fn from_hex(text: &str) -> Option<Self> {
                let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                let number = u128::from_str_radix(text, 16).ok();
                number
                    .filter(|_| is_hex)
                    .map(|number| Self(number.to_be_bytes()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", u128::from_be_bytes(self.0))
            }
        }
    };
}

/// One lineage of a replicated database: 16 random bytes, made when it is founded, and again when
/// an operator accepts a loss. Nodes of different lineages never exchange entries.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HistoryId(pub [u8; 16]);

/// The disk that a node keeps its promises on: 16 random bytes, made with the journal. A node whose
/// disk was replaced has another one, and is not the voter that it was.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub [u8; 16]);

sixteen_bytes!(HistoryId);
sixteen_bytes!(DiskId);

/// SHA-256 of an entry of the log and of all before it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; Self::LEN]);

impl Digest {
    /// Its length.
    pub const LEN: usize = 32;

    /// From 64 hexadecimal digits; `None` for what are none.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; Self::LEN];
        let (digits, rest) = text.as_bytes().as_chunks::<2>();
        if digits.len() != Self::LEN || !rest.is_empty() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

macro_rules! debug_as_display {
    ($($name:ident)*) => {
        $(impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        })*
    };
}

debug_as_display!(NodeId Epoch Seq HistoryId DiskId Digest);

/// Year, month and day of a day number since 1970-01-01, in the Gregorian calendar.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that the leap day is the last of its year.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Days since 1970-01-01 of a date, or `None` before that. Days past the end of a month run on
/// into the next, as the time stamps of a damaged file may ask for.
fn days_from_civil(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_a_client_becomes_the_tid_that_python_makes_of_it() {
        // TimeStamp(*time.gmtime(t)[:5] + (t % 60,)).raw().hex()
        for (seconds, tid) in [
            (0.0, 0x023c_2b00_0000_0000),
            (59.999_999, 0x023c_2b00_ffff_ffb8),
            (1_700_000_000.999_999, 0x03f4_7f95_5999_9955),
            (1_795_222_000.123_456_7, 0x040d_276e_ab31_83aa),
            (253_402_300_799.0, 0x02a0_01ff_fbbb_bbbb),
        ] {
            let found = Tid::from_unix_seconds(seconds);
            assert_eq!(found, Some(Tid(tid)), "{seconds}");
        }
        assert_eq!(Tid::from_unix_seconds(-1e300), Tid::from_unix_seconds(0.0));
        for wrong in [253_402_300_800.0, f64::INFINITY, f64::NAN] {
            assert_eq!(Tid::from_unix_seconds(wrong), None);
        }
    }

    #[test]
    fn a_tid_is_the_time_stamp_that_python_computes() {
        // TimeStamp(2026, 11, 21, 0, 46, 53.5).raw() of persistent 6.9
        let time = Duration::from_millis(1_795_222_013_500);
        assert_eq!(Tid::from_unix_time(time), Tid(0x040d_276e_e444_4444));
    }

    #[test]
    fn a_tid_gives_back_its_time() {
        for secs in [
            0,
            951_782_399,
            951_782_400,
            1_709_164_800,
            1_795_222_013,
            4_102_444_799,
        ] {
            let time = Duration::new(secs, 123_456_789);
            let back = Tid::from_unix_time(time).unix_time();
            assert!(time - back < Duration::from_nanos(20), "{time:?} {back:?}");
        }
    }

    #[test]
    fn seconds_are_rounded_as_in_python() {
        // TimeStamp(bytes.fromhex('040d277469' '0f2033')).timeTime() of persistent 6.9
        assert_eq!(
            Tid(0x040d_2774_690f_2033).unix_seconds(),
            1_795_222_344.623_222_8
        );
        assert_eq!(
            Tid(0x040d_2774_6837_2655).unix_seconds(),
            1_795_222_344.425_490_9
        );
    }

    #[test]
    fn a_node_has_a_short_name_of_plain_characters() {
        for name in ["a", "node-1.b_C", "0123456789"] {
            let node = NodeId::new(name).unwrap();
            assert_eq!(node.as_str(), name);
            assert_eq!(NodeId::from_bytes(node.to_bytes()), Some(node));
        }
        for wrong in ["", "0123456789a", "a b", "a/b", "\u{e4}", "a\0"] {
            assert_eq!(NodeId::new(wrong), None, "{wrong}");
        }
        assert_eq!(NodeId::from_bytes([0; 10]), Some(NodeId::NONE));
        assert_eq!(NodeId::from_bytes(*b"a\0b\0\0\0\0\0\0\0"), None);
        assert_eq!(NodeId::from_bytes(*b"\0a\0\0\0\0\0\0\0\0"), None);
        assert!(NodeId::new("a").unwrap() < NodeId::new("aa").unwrap());
    }

    #[test]
    fn epochs_are_ordered_by_counter_and_then_by_node() {
        let epoch = |counter, name| Epoch {
            counter,
            node: NodeId::new(name).unwrap(),
        };
        assert!(epoch(1, "b") < epoch(2, "a"));
        assert!(epoch(2, "a") < epoch(2, "b"));
        assert!(Epoch::ZERO < epoch(0, "a"));
        assert_eq!(epoch(7, "n1").to_string(), "7-n1");
    }

    #[test]
    fn ids_of_random_bytes_are_read_as_they_are_shown() {
        let text = "000102030405060708090a0b0c0d0e0f";
        assert_eq!(DiskId::from_hex(text).unwrap().to_string(), text);
        assert_eq!(HistoryId::from_hex(text).unwrap().to_string(), text);
        for wrong in ["", "00", &text[1..], &text.replacen('0', "+", 1)] {
            assert_eq!(DiskId::from_hex(wrong), None);
        }
        let text = text.repeat(2);
        assert_eq!(Digest::from_hex(&text).unwrap().to_string(), text);
        for wrong in [&text[2..], &text[1..], &text.replacen('0', "g", 1)] {
            assert_eq!(Digest::from_hex(wrong), None);
        }
    }

    #[test]
    fn any_number_has_some_time() {
        for tid in [0, 1, u64::MAX, Tid::MAX.0, 1 << 56] {
            Tid(tid).unix_time();
        }
    }
}
