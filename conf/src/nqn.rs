//! NVMe qualified names, checked by the rules of NVMe Base 2.1, section 4.7.

use std::fmt;
use std::str::FromStr;

/// A well-formed NVMe qualified name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nqn(String);

/// The NQN of every discovery service that was given no other.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

const BYTES_MAX: usize = 223;
const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

impl Nqn {
    /// The well-known discovery NQN.
    pub fn discovery() -> Nqn {
        Nqn(DISCOVERY_NQN.to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the well-known discovery NQN.
    pub fn is_discovery(&self) -> bool {
        self.0 == DISCOVERY_NQN
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Why a text is no NQN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NqnError(&'static str);

impl fmt::Display for NqnError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0)
    }
}

impl std::error::Error for NqnError {}

impl FromStr for Nqn {
    type Err = NqnError;

    fn from_str(text: &str) -> Result<Nqn, NqnError> {
        if text.len() > BYTES_MAX {
            return Err(NqnError("an NQN is at most 223 bytes long"));
        }
        if text.chars().any(|c| c.is_control() || c == ' ') {
            return Err(NqnError("an NQN has no spaces or control characters"));
        }
        if let Some(uuid) = text.strip_prefix(UUID_PREFIX) {
            let well_formed = uuid.len() == 36 && uuid::Uuid::try_parse(uuid).is_ok();
            return match well_formed {
                true => Ok(Nqn(text.to_owned())),
                false => Err(NqnError("what follows `uuid:` is not a UUID")),
            };
        }
        let rest = text
            .strip_prefix("nqn.")
            .ok_or(NqnError("an NQN begins with `nqn.`"))?;
        let dated = rest
            .split_once('.')
            .ok_or(NqnError("`nqn.` is followed by a date, `yyyy-mm.`"))?;
        let (date, name) = dated;
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let date_holds = date.split_once('-').is_some_and(|(year, month)| {
            year.len() == 4
                && month.len() == 2
                && digits(year)
                && digits(month)
                && ("01"..="12").contains(&month)
        });
        if !date_holds {
            return Err(NqnError("`nqn.` is followed by a date, `yyyy-mm.`"));
        }
        if name.is_empty() || name.starts_with([':', '.']) {
            return Err(NqnError("the date is followed by a reversed domain name"));
        }
        Ok(Nqn(text.to_owned()))
    }
}
