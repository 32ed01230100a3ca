//! NVMe qualified names, the names of hosts and subsystems (Base, section 4.7).
//!
//! Invariants:
//! - An [`Nqn`] is 5 to 223 bytes of UTF-8 without NUL that begin with `nqn.`.
//! - One that was parsed from text ([`FromStr`]) has besides one of the specification's forms. One
//!   that came from a peer ([`Nqn::from_field`]) need not: hosts in the field are less strict.

use std::{fmt, str::FromStr, sync::Arc};

/// The most bytes of an NQN, the NUL that ends it on the wire not counted.
pub const NQN_BYTES_MAX: usize = 223;
/// The NQN of every discovery service that was given no other.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

const PREFIX: &str = "nqn.";
const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";
const UUID_BYTES: usize = 36;

/// An NVMe qualified name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nqn(Arc<str>);

/// Why something is no NQN. Offsets are bytes from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NqnError {
    /// There is nothing.
    Empty,
    /// It is longer than 223 bytes.
    TooLong {
        /// How long.
        bytes: usize,
    },
    /// It is no UTF-8.
    NotUtf8 {
        /// Where the first wrong byte is.
        at: usize,
    },
    /// It doesn't begin with `nqn.`.
    Prefix,
    /// It has a space or a control character.
    Character {
        /// Which.
        character: char,
        /// Where.
        at: usize,
    },
    /// `nqn.` is not followed by a date, `yyyy-mm.`.
    Date {
        /// Where the date should be.
        at: usize,
    },
    /// The date is not followed by a reversed domain name.
    Domain {
        /// Where the domain's wrong part is.
        at: usize,
    },
    /// The domain is not followed by `:` and a name.
    Name {
        /// Where the `:`, or the name, should be.
        at: usize,
    },
    /// What follows `uuid:` is not a UUID.
    Uuid {
        /// Where the UUID should be.
        at: usize,
    },
}

impl fmt::Display for NqnError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(out, "the NQN is empty"),
            Self::TooLong { bytes } => write!(
                out,
                "an NQN is at most {NQN_BYTES_MAX} bytes long, this one has {bytes}"
            ),
            Self::NotUtf8 { at } => write!(out, "an NQN is UTF-8, byte {at} is not"),
            Self::Prefix => write!(out, "an NQN begins with `{PREFIX}`"),
            Self::Character { character, at } => write!(
                out,
                "an NQN has no spaces or control characters, {character:?} is at byte {at}"
            ),
            Self::Date { at } => write!(
                out,
                "`{PREFIX}` is followed by a date, `yyyy-mm.`: look at byte {at}"
            ),
            Self::Domain { at } => write!(
                out,
                "the date is followed by a reversed domain name: look at byte {at}"
            ),
            Self::Name { at } => write!(
                out,
                "the domain is followed by `:` and a name: look at byte {at}"
            ),
            Self::Uuid { at } => {
                write!(out, "what follows `uuid:` is not a UUID: look at byte {at}")
            }
        }
    }
}

impl std::error::Error for NqnError {}

impl Nqn {
    /// The well-known discovery NQN.
    #[must_use]
    pub fn discovery() -> Self {
        Self(DISCOVERY_NQN.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the well-known discovery NQN.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        self.as_str() == DISCOVERY_NQN
    }

    /// The name in a field that a NUL ends (or the field's end), as a peer sent it. Whatever begins
    /// with `nqn.` and isn't too long is taken.
    ///
    /// # Errors
    /// [`NqnError`] where it is empty, too long, no UTF-8 or has another beginning.
    pub fn from_field(field: &[u8]) -> Result<Self, NqnError> {
        field_text(field).map(|text| Self(text.into()))
    }

    /// Fills a field with the name and NUL bytes.
    ///
    /// # Panics
    /// Where the field has no room for the name and one NUL. Fields on the wire have 256 bytes (or
    /// 224), which is enough for any name.
    pub fn write_field(&self, field: &mut [u8]) {
        let bytes = self.0.as_bytes();
        assert!(
            bytes.len() < field.len(),
            "the field is too short for an NQN"
        );
        let (name, rest) = field.split_at_mut(bytes.len());
        name.copy_from_slice(bytes);
        rest.fill(0);
    }
}

/// The text of an NQN field, checked as by [`Nqn::from_field`], without taking memory.
///
/// # Errors
/// As [`Nqn::from_field`].
pub fn field_text(field: &[u8]) -> Result<&str, NqnError> {
    let end = field.iter().position(|byte| *byte == 0);
    let bytes = &field[..end.unwrap_or(field.len())];
    if bytes.is_empty() {
        return Err(NqnError::Empty);
    }
    if bytes.len() > NQN_BYTES_MAX {
        return Err(NqnError::TooLong { bytes: bytes.len() });
    }
    let text = std::str::from_utf8(bytes).map_err(|error| NqnError::NotUtf8 {
        at: error.valid_up_to(),
    })?;
    match text.strip_prefix(PREFIX) {
        Some(rest) if !rest.is_empty() => Ok(text),
        _ => Err(NqnError::Prefix),
    }
}

impl FromStr for Nqn {
    type Err = NqnError;

    fn from_str(text: &str) -> Result<Self, NqnError> {
        if text.is_empty() {
            return Err(NqnError::Empty);
        }
        if text.len() > NQN_BYTES_MAX {
            return Err(NqnError::TooLong { bytes: text.len() });
        }
        let wrong = |(_, c): &(usize, char)| c.is_control() || c.is_whitespace();
        if let Some((at, character)) = text.char_indices().find(wrong) {
            return Err(NqnError::Character { character, at });
        }
        if let Some(uuid) = text.strip_prefix(UUID_PREFIX) {
            if !is_uuid(uuid) {
                return Err(NqnError::Uuid {
                    at: UUID_PREFIX.len(),
                });
            }
        } else if text != DISCOVERY_NQN {
            check_dated(text)?;
        }
        Ok(Self(text.into()))
    }
}

/// Checks `nqn.yyyy-mm.reverse.domain:name`.
fn check_dated(text: &str) -> Result<(), NqnError> {
    let rest = text.strip_prefix(PREFIX).ok_or(NqnError::Prefix)?;
    let at = PREFIX.len();
    let (date, rest) = rest.split_once('.').ok_or(NqnError::Date { at })?;
    if !is_date(date) {
        return Err(NqnError::Date { at });
    }
    let at = at + date.len() + 1;
    let domain = rest.split(':').next().unwrap_or_default();
    let mut label_at = at;
    for label in domain.split('.') {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if label.is_empty() || !label.bytes().all(fits) {
            return Err(NqnError::Domain { at: label_at });
        }
        label_at += label.len() + 1;
    }
    let name = &rest[domain.len()..];
    if name.len() < 2 {
        return Err(NqnError::Name {
            at: at + domain.len() + name.len(),
        });
    }
    Ok(())
}

fn is_date(text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('-').is_some_and(|(year, month)| {
        year.len() == 4
            && month.len() == 2
            && digits(year)
            && digits(month)
            && ("01"..="12").contains(&month)
    })
}

fn is_uuid(text: &str) -> bool {
    text.len() == UUID_BYTES
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

impl fmt::Display for Nqn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl AsRef<str> for Nqn {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Nqn {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_the_specification() {
        for text in [
            DISCOVERY_NQN,
            "nqn.2014-08.com.example:nvme.host.sys.xyz",
            "nqn.2014-08.com.example:nvme:nvm-subsystem-sn-d78432",
            "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
            "nqn.2026-01.io.corebay:größe",
        ] {
            let nqn: Nqn = text.parse().unwrap();
            assert_eq!(nqn.to_string(), text);
            assert_eq!(nqn.is_discovery(), text == DISCOVERY_NQN);
        }
    }

    #[test]
    fn what_is_wrong_and_where() {
        let longest = format!("nqn.2026-01.io.corebay:{}", "x".repeat(200));
        assert_eq!(longest.len(), NQN_BYTES_MAX);
        assert!(longest.parse::<Nqn>().is_ok());
        let cases = [
            (String::new(), NqnError::Empty),
            (longest + "x", NqnError::TooLong { bytes: 224 }),
            ("iqn.2026-01.io.corebay:a".into(), NqnError::Prefix),
            ("nqn.".into(), NqnError::Date { at: 4 }),
            ("nqn.2026-13.io.corebay:a".into(), NqnError::Date { at: 4 }),
            ("nqn.26-01.io.corebay:a".into(), NqnError::Date { at: 4 }),
            ("nqn.2026-01.:a".into(), NqnError::Domain { at: 12 }),
            ("nqn.2026-01.io..b:a".into(), NqnError::Domain { at: 15 }),
            ("nqn.2026-01.io.corebay".into(), NqnError::Name { at: 22 }),
            ("nqn.2026-01.io.corebay:".into(), NqnError::Name { at: 23 }),
            (
                "nqn.2026-01.io.corebay:a b".into(),
                NqnError::Character {
                    character: ' ',
                    at: 24,
                },
            ),
            (
                "nqn.2014-08.org.nvmexpress:uuid:f81d4fae".into(),
                NqnError::Uuid { at: 32 },
            ),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Nqn>(), Err(error), "{text}");
        }
        assert_eq!(
            NqnError::Date { at: 4 }.to_string(),
            "`nqn.` is followed by a date, `yyyy-mm.`: look at byte 4"
        );
    }

    #[test]
    fn fields() {
        let nqn = Nqn::discovery();
        let mut field = [0xFF; 256];
        nqn.write_field(&mut field);
        assert_eq!(Nqn::from_field(&field), Ok(nqn));
        assert!(field[DISCOVERY_NQN.len()..].iter().all(|byte| *byte == 0));
        assert_eq!(
            Nqn::from_field(b"nqn.odd host\0nqn.rest").unwrap().as_str(),
            "nqn.odd host"
        );
        assert_eq!(Nqn::from_field(&[0; 256]), Err(NqnError::Empty));
        assert_eq!(
            Nqn::from_field(&[b'n'; 256]),
            Err(NqnError::TooLong { bytes: 256 })
        );
        assert_eq!(Nqn::from_field(b"host\0"), Err(NqnError::Prefix));
        assert_eq!(
            Nqn::from_field(b"nqn.\xFF"),
            Err(NqnError::NotUtf8 { at: 4 })
        );
        let full = format!("nqn.{}", "x".repeat(219));
        let mut field = [0; 224];
        Nqn::from_field(full.as_bytes())
            .unwrap()
            .write_field(&mut field);
        assert_eq!(field_text(&field), Ok(full.as_str()));
    }
}
