//! Sizes of memory as people write and read them.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// Units of bytes, the longest names first.
const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// How much memory keys and values get: `8GiB`, `8589934592`, or `60%` of what is left beside everything else.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KvSize {
    /// So many bytes for every model.
    Bytes(u64),
    /// This part, above 0 and at most 1, of the memory that everything else leaves, for all models together.
    Share(f64),
}

/// Why a text is no [`KvSize`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is no size: write bytes (8589934592), bytes with a unit (8GiB, 512MiB, 8GB) or a share of what is left (60%)"
)]
pub struct KvSizeError {
    text: String,
}

impl FromStr for KvSize {
    type Err = KvSizeError;

    fn from_str(text: &str) -> Result<Self, KvSizeError> {
        let refuse = || KvSizeError { text: text.to_owned() };
        let trimmed = text.trim();
        if let Some(percent) = trimmed.strip_suffix('%') {
            let share = percent.trim_end().parse::<f64>().map_err(|_| refuse())? / 100.0;
            return if share > 0.0 && share <= 1.0 { Ok(Self::Share(share)) } else { Err(refuse()) };
        }
        match trimmed.parse() {
            Ok(Bytes(bytes)) if bytes > 0 => Ok(Self::Bytes(bytes)),
            _ => Err(refuse()),
        }
    }
}

impl fmt::Display for KvSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Share(share) => write!(f, "{}%", (share * 1e8).round() / 1e6),
        }
    }
}

impl Serialize for KvSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bytes(bytes) => serializer.serialize_u64(*bytes),
            Self::Share(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for KvSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = KvSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes, \"8GiB\" or \"60%\"")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<KvSize, E> {
                self.visit_str(&bytes.to_string())
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<KvSize, E> {
                self.visit_str(&bytes.to_string())
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<KvSize, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<KvSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Size)
    }
}

/// A number of bytes, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Why a text is no number of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no number of bytes: write it alone (8589934592) or with a unit (8GiB, 512MiB, 8GB)")]
pub struct BytesError {
    text: String,
}

impl FromStr for Bytes {
    type Err = BytesError;

    fn from_str(text: &str) -> Result<Self, BytesError> {
        let refuse = || BytesError { text: text.to_owned() };
        let trimmed = text.trim();
        let unit = UNITS.iter().find_map(|(name, factor)| Some((trimmed.strip_suffix(name)?, *factor)));
        let (number, factor) = unit.unwrap_or((trimmed, 1));
        let number = number.trim_end();
        if factor == 1 {
            return number.parse().map(Self).map_err(|_| refuse());
        }
        let number = number.parse::<f64>().map_err(|_| refuse())?;
        // Below 2^53 a float names every byte; nobody has more.
        let bytes = (number * factor as f64).round();
        if (0.0..9e15).contains(&bytes) { Ok(Self(bytes as u64)) } else { Err(refuse()) }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = self.0 as f64 / 1024.0;
        match kib {
            _ if self.0 < 1024 => write!(f, "{} bytes", self.0),
            0.0..1024.0 => write!(f, "{kib:.0} KiB"),
            1024.0..1_048_576.0 => write!(f, "{:.0} MiB", kib / 1024.0),
            _ => write!(f, "{:.1} GiB", kib / 1_048_576.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_bytes_or_a_share() {
        for (text, size) in [
            ("8589934592", KvSize::Bytes(8 << 30)),
            ("8GiB", KvSize::Bytes(8 << 30)),
            (" 1.5 MiB ", KvSize::Bytes(3 << 19)),
            ("8GB", KvSize::Bytes(8_000_000_000)),
            ("100B", KvSize::Bytes(100)),
            ("60%", KvSize::Share(0.6)),
            ("12.5 %", KvSize::Share(0.125)),
            ("100%", KvSize::Share(1.0)),
        ] {
            assert_eq!(text.parse(), Ok(size), "{text}");
            assert_eq!(size.to_string().parse(), Ok(size), "{text} is written so that it can be read");
        }
        for text in ["", "0", "0%", "101%", "-1GiB", "0.6", "8 gigs", "8gib", "NaN%", "infGiB", "1e300TiB", "GiB", "%"]
        {
            let error = text.parse::<KvSize>().expect_err(text).to_string();
            assert!(error.contains("60%") && error.contains("8GiB"), "{error}");
        }
    }

    #[test]
    fn bytes_have_units() {
        for (text, bytes) in [("3GiB", 3 << 30), ("17", 17), ("2 GB", 2_000_000_000), ("0", 0)] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "GiB", "-1", "99999999999GiB", "60%"] {
            let error = text.parse::<Bytes>().expect_err(text).to_string();
            assert!(error.contains("8GiB"), "{error}");
        }
    }

    #[test]
    fn bytes_are_written_in_the_unit_that_fits() {
        for (bytes, text) in
            [(0, "0 bytes"), (60, "60 bytes"), (1 << 10, "1 KiB"), (3 << 20, "3 MiB"), (3 << 29, "1.5 GiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn json_has_numbers_for_bytes_and_texts_for_shares() {
        for (size, json) in [(KvSize::Bytes(7), "7"), (KvSize::Share(0.25), "\"25%\"")] {
            assert_eq!(serde_json::to_string(&size).expect("written"), json);
            assert_eq!(serde_json::from_str::<KvSize>(json).expect("read"), size);
        }
        assert!(serde_json::from_str::<KvSize>("0.6").is_err(), "a bare fraction is neither");
        assert!(serde_json::from_str::<KvSize>("-5").is_err());
    }
}
