//! Owns the question whether this machine can run guests at all, and the lab's addresses on it.

use std::fs;
use std::net::Ipv4Addr;

use crate::{guest, process};

/// What the lab calls, and the Debian package that has it.
pub const TOOLS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("tar", "tar"),
    ("dpkg-deb", "dpkg"),
    ("apt-get", "apt"),
];

/// Why no guest can run here, if so.
pub fn obstacle() -> Option<String> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Some("guests need an x86-64 Linux machine".into());
    }
    let missing: Vec<_> = TOOLS
        .iter()
        .filter(|(tool, _)| process::find(tool).is_none())
        .collect();
    if !missing.is_empty() {
        let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
        return Some(format!(
            "missing packages: apt-get install {}",
            packages.join(" ")
        ));
    }
    let needed_mib = guest::MEMORY_MIB + 512;
    match available_mib() {
        Some(mib) if mib < needed_mib => Some(format!(
            "{mib} MiB of memory are free, a guest needs {needed_mib} MiB"
        )),
        _ => None,
    }
}

fn available_mib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}

/// A loopback address ending in .2 of a network that no other run on this machine uses.
pub fn loopback() -> Ipv4Addr {
    let [low, high, ..] = std::process::id().to_le_bytes();
    Ipv4Addr::new(127, 64 + high % 128, low, 2)
}
