//! How a volume is shown to hosts, as the pool keeps it: so that drives that move to another machine
//! bring their exports along.
//!
//! Bytes: flags (1: any host may connect), NSID (4), the subsystem's NQN and its serial number, each
//! behind a byte with its length, the number of hosts (2), then each host's NQN likewise; a length of
//! 0 says that 16 bytes of a UUID follow, of which the NQN is made.

use super::{EXPORT_BYTES_MAX, NQN_BYTES_MAX, SERIAL_BYTES_MAX};

/// What an NQN begins with that is made of a UUID.
const UUID_NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:";

const ANY_HOST: u8 = 1;

/// The NSID that addresses all namespaces.
const NSID_ALL: u32 = u32::MAX;

/// A volume's namespace, and who may use it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Export {
    /// The subsystem's NQN, at most 223 bytes.
    pub subsystem: String,
    /// The subsystem's serial number, at most 20 bytes; empty where the exporter chooses it.
    pub serial: String,
    /// The namespace's number in the subsystem; neither 0 nor the broadcast value.
    pub nsid: u32,
    /// Any host may connect.
    pub allow_any_host: bool,
    /// The NQNs of the hosts that may connect.
    pub hosts: Vec<String>,
}

impl Export {
    /// The export's bytes; `None` where a part is too long or may not be so.
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        let known = (1..NSID_ALL).contains(&self.nsid);
        if !known || self.subsystem.is_empty() || self.serial.len() > SERIAL_BYTES_MAX {
            return None;
        }
        let mut bytes = vec![if self.allow_any_host { ANY_HOST } else { 0 }];
        bytes.extend(self.nsid.to_le_bytes());
        put_text(&mut bytes, &self.subsystem)?;
        put_text(&mut bytes, &self.serial)?;
        bytes.extend(u16::try_from(self.hosts.len()).ok()?.to_le_bytes());
        for (number, host) in self.hosts.iter().enumerate() {
            if host.is_empty() || self.hosts[..number].contains(host) {
                return None;
            }
            match uuid_of(host) {
                Some(uuid) => {
                    bytes.push(0);
                    bytes.extend(uuid);
                }
                None => put_text(&mut bytes, host)?,
            }
        }
        (bytes.len() <= EXPORT_BYTES_MAX).then_some(bytes)
    }

    /// The export in `bytes`, all of them.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (flags, rest) = bytes.split_first()?;
        let (nsid, rest) = rest.split_first_chunk::<4>()?;
        let (subsystem, rest) = take_text(rest)?;
        let (serial, rest) = take_text(rest)?;
        let (count, mut rest) = rest.split_first_chunk::<2>()?;
        let mut hosts = Vec::new();
        for _ in 0..u16::from_le_bytes(*count) {
            let (host, after) = match rest.split_first()? {
                (0, after) => {
                    let (uuid, after) = after.split_first_chunk::<16>()?;
                    (nqn_of(uuid), after)
                }
                _ => take_text(rest)?,
            };
            hosts.push(host);
            rest = after;
        }
        let this = Self {
            subsystem,
            serial,
            nsid: u32::from_le_bytes(*nsid),
            allow_any_host: flags & ANY_HOST != 0,
            hosts,
        };
        // What may not be written is not believed either.
        (rest.is_empty() && this.encode().is_some()).then_some(this)
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) -> Option<()> {
    let len = u8::try_from(text.len()).ok()?;
    if usize::from(len) > NQN_BYTES_MAX || text.chars().any(char::is_control) {
        return None;
    }
    bytes.push(len);
    bytes.extend(text.as_bytes());
    Some(())
}

fn take_text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (len, rest) = bytes.split_first()?;
    let (text, rest) = rest.split_at_checked(usize::from(*len))?;
    Some((String::from_utf8(text.to_vec()).ok()?, rest))
}

/// The UUID that an NQN is made of, if making one of it gives the same text.
fn uuid_of(nqn: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = nqn
        .strip_prefix(UUID_NQN)?
        .bytes()
        .filter(|byte| *byte != b'-')
        .collect();
    let mut uuid = [0; 16];
    if digits.len() != 2 * uuid.len() {
        return None;
    }
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    (nqn_of(&uuid) == nqn).then_some(uuid)
}

fn nqn_of(uuid: &[u8; 16]) -> String {
    let mut nqn = UUID_NQN.to_owned();
    for (at, byte) in uuid.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            nqn.push('-');
        }
        nqn.push_str(&format!("{byte:02x}"));
    }
    nqn
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn export() -> Export {
        Export {
            subsystem: "nqn.2024-01.example:pool".to_owned(),
            serial: "S123".to_owned(),
            nsid: 7,
            allow_any_host: false,
            hosts: vec![
                "nqn.2014-08.org.nvmexpress:uuid:01234567-89ab-cdef-0123-456789abcdef".to_owned(),
                "nqn.2014-08.org.nvmexpress:uuid:01234567-89AB-CDEF-0123-456789ABCDEF".to_owned(),
                "nqn.2014-08.org.nvmexpress:uuid:0123456789abcdef0123456789abcdef".to_owned(),
                "nqn.2024-01.example:host".to_owned(),
            ],
        }
    }

    #[test]
    fn an_export_reads_back_and_uuids_are_short() {
        let bytes = export().encode().unwrap();
        assert_eq!(Export::parse(&bytes), Some(export()));
        let mut one = export();
        one.hosts.truncate(1);
        let none = Export {
            hosts: Vec::new(),
            ..export()
        };
        let added = one.encode().unwrap().len() - none.encode().unwrap().len();
        assert_eq!(added, 17);
    }

    #[test]
    fn what_no_host_could_use_is_refused() {
        let with = |change: fn(&mut Export)| {
            let mut export = export();
            change(&mut export);
            export.encode()
        };
        assert_eq!(with(|export| export.nsid = 0), None);
        assert_eq!(with(|export| export.nsid = u32::MAX), None);
        assert_eq!(with(|export| export.subsystem.clear()), None);
        assert_eq!(with(|export| export.subsystem = "n".repeat(224)), None);
        assert_eq!(with(|export| export.serial = "s".repeat(21)), None);
        assert_eq!(with(|export| export.hosts.push(String::new())), None);
        assert_eq!(
            with(|export| export.hosts.push(export.hosts[0].clone())),
            None
        );
        let many = |export: &mut Export| {
            export.hosts = (0..40).map(|n| format!("{n:0200}")).collect();
        };
        assert_eq!(with(many), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_export_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(export) = Export::parse(&bytes) {
                prop_assert_eq!(Export::parse(&export.encode().unwrap()), Some(export));
            }
        }

        #[test]
        fn a_changed_byte_never_panics(at in 0usize..100, value in any::<u8>()) {
            let mut bytes = export().encode().unwrap();
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = Export::parse(&bytes);
        }
    }
}
