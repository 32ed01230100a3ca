//! Texts with a form of their own: names, addresses, paths, NQNs and identifiers.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use uuid::Uuid;

use crate::appliance::{Eui64, Model, Nguid, Serial};
use crate::limits::NAME_CHARS_MAX;
use crate::reader::Refusal;
use crate::units::quoted;
use corebay_nvme::spec::nqn::{Nqn, NqnError};

const SERIAL_CHARS_MAX: usize = 20;
const MODEL_CHARS_MAX: usize = 40;

/// The name of a disk or listener.
pub(crate) fn name(text: &str) -> Result<String, Refusal> {
    let help = format!("letters, digits, `-`, `_` and `.`, at most {NAME_CHARS_MAX} of them");
    let holds = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.is_empty() {
        return Err(Refusal::new("a name cannot be empty", help));
    }
    if text.len() > NAME_CHARS_MAX || !text.chars().all(holds) {
        return Err(Refusal::new(
            format!("{} is not a name", quoted(text)),
            help,
        ));
    }
    Ok(text.to_owned())
}

/// A path of the file system; not looked at.
pub(crate) fn path(text: &str) -> Result<PathBuf, Refusal> {
    // PATH_MAX of Linux, with its terminating NUL.
    const BYTES_MAX: usize = 4095;
    if text.is_empty() {
        return Err(Refusal::new(
            "a path cannot be empty",
            "write it as in \"/var/lib/corebay\"",
        ));
    }
    if text.contains('\0') || text.len() > BYTES_MAX {
        let help = format!("no NUL character, and at most {BYTES_MAX} bytes");
        return Err(Refusal::new("this is not a path", help));
    }
    if text.starts_with("~/") {
        return Err(Refusal::new(
            "`~` is not expanded",
            "write the whole path of the home folder",
        ));
    }
    Ok(PathBuf::from(text))
}

/// An IP address and a port that a socket can have.
pub(crate) fn address(text: &str) -> Result<SocketAddr, Refusal> {
    let address: SocketAddr = text.parse().map_err(|_| address_refusal(text))?;
    usable(address)
}

/// The address, unless no socket can have it.
pub(crate) fn usable(address: SocketAddr) -> Result<SocketAddr, Refusal> {
    let refuse =
        |what: &str, help: String| Err(Refusal::new(format!("`{}` is {what}", address.ip()), help));
    match address.ip() {
        IpAddr::V4(ip) if ip.is_multicast() || ip.is_broadcast() => refuse(
            "a multicast or broadcast address",
            "NVMe/TCP needs the address of one machine".to_owned(),
        ),
        IpAddr::V6(ip) if ip.is_multicast() => refuse(
            "a multicast address",
            "NVMe/TCP needs the address of one machine".to_owned(),
        ),
        IpAddr::V6(ip) => match (ip.to_ipv4_mapped(), address) {
            (Some(mapped), _) => {
                let plain = SocketAddr::new(IpAddr::V4(mapped), address.port());
                refuse("an IPv4 address in IPv6 form", format!("write \"{plain}\""))
            }
            (None, SocketAddr::V6(v6)) if ip.is_unicast_link_local() && v6.scope_id() == 0 => {
                let port = address.port();
                let help = format!(
                    "add the number of the interface: \"[{ip}%2]:{port}\" (`ip link` shows the numbers)"
                );
                refuse("a link-local address without its interface", help)
            }
            _ => Ok(address),
        },
        IpAddr::V4(_) => Ok(address),
    }
}

fn address_refusal(text: &str) -> Refusal {
    let message = format!("{} is not an address with a port", quoted(text));
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let example = SocketAddr::new(ip, 4420);
        return Refusal::new(message, format!("add the port: \"{example}\""));
    }
    if let Some((host, port)) = text.rsplit_once(':') {
        if port.parse::<u16>().is_err()
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && !port.is_empty()
        {
            return Refusal::new(message, "a port is a number from 1 to 65535");
        }
        if host.eq_ignore_ascii_case("localhost") {
            return Refusal::new(
                message,
                format!("names are not looked up: write \"127.0.0.1:{port}\" or \"[::1]:{port}\""),
            );
        }
        if host.is_empty() || host == "*" {
            return Refusal::new(
                message,
                format!("for all addresses write \"0.0.0.0:{port}\" or \"[::]:{port}\""),
            );
        }
        if host.parse::<Ipv6Addr>().is_ok() && port.parse::<u16>().is_ok() {
            return Refusal::new(
                message,
                format!("put the IPv6 address in brackets: \"[{host}]:{port}\""),
            );
        }
    }
    Refusal::new(
        message,
        "write an IP address and a port: \"192.168.1.10:4420\", \"[::]:4420\"",
    )
}

/// The qualified name of a subsystem or host.
pub(crate) fn nqn(text: &str) -> Result<Nqn, Refusal> {
    text.parse::<Nqn>().map_err(|error| {
        let why = error.to_string();
        // The caret shows where: the message need not.
        let why = why.split(": look at byte").next().unwrap_or_default();
        let help = "as in \"nqn.2024-01.com.example:disk-1\" or \"nqn.2014-08.org.nvmexpress:uuid:<uuid>\"";
        let mut refusal = Refusal::new(format!("{} is not an NQN: {why}", quoted(text)), help);
        refusal.byte = match error {
            NqnError::Character { at, .. }
            | NqnError::Date { at }
            | NqnError::Domain { at }
            | NqnError::Name { at }
            | NqnError::Uuid { at } => Some(at),
            NqnError::Empty
            | NqnError::TooLong { .. }
            | NqnError::NotUtf8 { .. }
            | NqnError::Prefix => None,
        };
        refusal
    })
}

/// A UUID in its usual form, and not the nil UUID.
pub(crate) fn uuid(text: &str) -> Result<Uuid, Refusal> {
    const HYPHENATED_CHARS: usize = 36;
    let help = "`uuidgen` makes one, of the form \"xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx\"";
    match Uuid::try_parse(text) {
        Ok(uuid) if uuid.is_nil() => Err(Refusal::new("a UUID of zeros identifies nothing", help)),
        Ok(uuid) if text.len() == HYPHENATED_CHARS => Ok(uuid),
        _ => Err(Refusal::new(
            format!("{} is not a UUID", quoted(text)),
            help,
        )),
    }
}

/// An NGUID: 32 hexadecimal digits.
pub(crate) fn nguid(text: &str) -> Result<Nguid, Refusal> {
    hex::<16>(text, "an NGUID").map(Nguid)
}

/// An EUI-64: 16 hexadecimal digits.
pub(crate) fn eui64(text: &str) -> Result<Eui64, Refusal> {
    hex::<8>(text, "an EUI-64").map(Eui64)
}

fn hex<const BYTES: usize>(text: &str, what: &str) -> Result<[u8; BYTES], Refusal> {
    let help = format!(
        "{} hexadecimal digits, not all zero; `-` may stand between them",
        2 * BYTES
    );
    let refuse = || Refusal::new(format!("{} is not {what}", quoted(text)), &help);
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| *c != '-')
        .take(2 * BYTES + 1)
        .map(|c| c.to_digit(16))
        .collect::<Option<_>>()
        .ok_or_else(refuse)?;
    if digits.len() != 2 * BYTES || digits.iter().all(|digit| *digit == 0) {
        return Err(refuse());
    }
    let mut bytes = [0; BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::try_from(pair[0] * 16 + pair[1]).map_err(|_| refuse())?;
    }
    Ok(bytes)
}

/// A PCI address: domain, bus, device and function in hexadecimal digits. The domain may be left out.
pub(crate) fn pci_address(text: &str) -> Result<String, Refusal> {
    let help = "as `corebay drives` shows it: \"0000:01:00.0\"";
    let refuse = || Refusal::new(format!("{} is not a PCI address", quoted(text)), help);
    let hex = |part: &str, digits: usize| {
        let good = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        good.then_some(())
    };
    let lower = text.to_ascii_lowercase();
    let parts: Vec<&str> = lower.split([':', '.']).collect();
    let (domain, rest) = match parts.as_slice() {
        [domain, rest @ ..] if rest.len() == 3 => (*domain, rest),
        rest if rest.len() == 3 => ("0000", rest),
        _ => return Err(refuse()),
    };
    let whole = hex(domain, 4)
        .and_then(|()| hex(rest[0], 2))
        .and_then(|()| hex(rest[1], 2))
        .and_then(|()| hex(rest[2], 1));
    let address = format!("{domain}:{}:{}.{}", rest[0], rest[1], rest[2]);
    whole
        .filter(|()| address.ends_with(&lower))
        .map(|()| address)
        .ok_or_else(refuse)
}

/// A serial number as it fits the Identify Controller data.
pub(crate) fn serial(text: &str) -> Result<Serial, Refusal> {
    printable(text, "a serial number", SERIAL_CHARS_MAX).map(Serial)
}

/// A model number as it fits the Identify Controller data.
pub(crate) fn model(text: &str) -> Result<Model, Refusal> {
    printable(text, "a model number", MODEL_CHARS_MAX).map(Model)
}

fn printable(text: &str, what: &str, chars_max: usize) -> Result<String, Refusal> {
    let help = format!("1 to {chars_max} ASCII characters, with no space at either end");
    if text.len() > chars_max {
        return Err(Refusal::new(
            format!("{} is too long for {what}", quoted(text)),
            help,
        ));
    }
    let holds = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if text.is_empty() || !holds || text.trim() != text {
        return Err(Refusal::new(
            format!("{} cannot be {what}", quoted(text)),
            help,
        ));
    }
    Ok(text.to_owned())
}
