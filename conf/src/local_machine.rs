//! Answers for the machine that this process runs on, from /sys and the file system.
//!
//! Invariants: nothing is changed by asking; what cannot be found out is never made an obstacle
//! (a socket, a file or a thread will say so when it is needed).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};
use rustix::thread::CpuSet;

use crate::machine::{AddressState, CoreState, FileIdentity, Machine, PathState};

/// The machine that this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalMachine;

impl Machine for LocalMachine {
    fn core(&self, core: u32) -> CoreState {
        if allowed_cores().contains(&core) {
            return CoreState::Usable;
        }
        match online_cores() {
            Some(online) if online.contains(&core) => CoreState::NotAllowed,
            _ => CoreState::Absent,
        }
    }

    fn first_core(&self) -> Option<u32> {
        allowed_cores().first().copied()
    }

    fn usable_cores(&self) -> String {
        in_ranges(&allowed_cores())
    }

    fn path(&self, path: &Path) -> PathState {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return missing(path),
            Err(error) => return PathState::Unreadable(why(&error)),
        };
        let kind = metadata.file_type();
        if kind.is_file() {
            let identity = FileIdentity(metadata.dev(), metadata.ino());
            return PathState::File {
                size_bytes: metadata.len(),
                identity,
            };
        }
        match () {
            () if kind.is_block_device() => block_device(metadata.rdev()),
            () if kind.is_dir() => PathState::Folder,
            () if kind.is_char_device() => PathState::Other("a character device"),
            () if kind.is_socket() => PathState::Other("a socket"),
            () if kind.is_fifo() => PathState::Other("a pipe"),
            () => PathState::Other("no file"),
        }
    }

    fn address(&self, address: IpAddr) -> AddressState {
        // A socket of no port in particular tells what a listener would be told, and disturbs nobody.
        match UdpSocket::bind((address, 0)) {
            Ok(_) => AddressState::Local,
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => AddressState::NotLocal,
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                // A link-local address needs its interface, which is not part of the question.
                AddressState::Local
            }
            Err(error) => AddressState::Unusable(why(&error)),
        }
    }

    fn memory_bytes(&self) -> Option<u64> {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    }
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::NotADirectory => "a part of the path is not a folder".to_owned(),
        _ => error.to_string(),
    }
}

fn missing(path: &Path) -> PathState {
    let folder = match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => return PathState::MissingFolder,
    };
    match fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => PathState::Missing,
        _ => PathState::MissingFolder,
    }
}

fn allowed_cores() -> BTreeSet<u32> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        return BTreeSet::new();
    };
    let all = 0..u32::try_from(CpuSet::MAX_CPU).unwrap_or(0);
    all.filter(|core| set.is_set(*core as usize)).collect()
}

fn online_cores() -> Option<BTreeSet<u32>> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    from_ranges(text.trim())
}

/// The numbers of "0-3,8".
fn from_ranges(text: &str) -> Option<BTreeSet<u32>> {
    const CORES_MAX: usize = 1 << 16;
    let mut numbers = BTreeSet::new();
    for range in text.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let range = first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?;
        numbers.extend(range.take(CORES_MAX));
    }
    Some(numbers)
}

/// "0-3,8" of the numbers.
fn in_ranges(numbers: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let shown = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    shown.collect::<Vec<_>>().join(",")
}

/// What the kernel tells of a block device under /sys/dev/block.
fn block_device(device: u64) -> PathState {
    let folder = PathBuf::from(format!(
        "/sys/dev/block/{}:{}",
        major(device),
        minor(device)
    ));
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let Some(sectors) = number(folder.join("size")) else {
        return PathState::Unreadable("no driver serves this device".to_owned());
    };
    // A partition has the queue of the whole drive, one folder up.
    let queue = ["queue/logical_block_size", "../queue/logical_block_size"];
    let block_size = queue
        .iter()
        .find_map(|file| number(folder.join(file)))
        .unwrap_or(512);
    PathState::BlockDevice {
        // The kernel counts in sectors of 512 bytes, whatever the block.
        size_bytes: sectors.saturating_mul(512),
        block_size: u32::try_from(block_size).unwrap_or(u32::MAX),
        identity: FileIdentity(u64::MAX, device),
        used_by: used_by(&folder),
    }
}

/// Who uses the device, or a partition of it.
fn used_by(folder: &Path) -> Option<String> {
    if let Some(holder) = first_entry(&folder.join("holders")) {
        return Some(format!("it is a part of {holder}"));
    }
    let own = fs::read_to_string(folder.join("dev")).ok()?;
    let mut numbers = vec![own.trim().to_owned()];
    let children = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    for partition in children.filter(|child| child.join("partition").exists()) {
        if let Some(holder) = first_entry(&partition.join("holders")) {
            return Some(format!("a partition of it is a part of {holder}"));
        }
        numbers
            .extend(fs::read_to_string(partition.join("dev")).map(|text| text.trim().to_owned()));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // Fields of mountinfo: id, parent, major:minor, root, mount point, ...
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let mounted = numbers
            .iter()
            .any(|number| fields.get(2) == Some(&number.as_str()));
        mounted.then(|| format!("it is mounted on {}", fields.get(4).unwrap_or(&"?")))
    })
}

fn first_entry(folder: &Path) -> Option<String> {
    let entry = fs::read_dir(folder).ok()?.flatten().next()?;
    Some(entry.file_name().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let numbers = from_ranges("0-3,8,10-11").unwrap();
        assert_eq!(numbers.len(), 7);
        assert_eq!(in_ranges(&numbers), "0-3,8,10-11");
        assert_eq!(from_ranges("").unwrap().len(), 0);
        assert_eq!(from_ranges("x"), None);
    }

    #[test]
    fn this_machine() {
        let machine = LocalMachine;
        let first = *allowed_cores().first().unwrap();
        assert_eq!(machine.first_core(), Some(first));
        assert_eq!(machine.core(first), CoreState::Usable);
        assert_eq!(machine.core(8191), CoreState::Absent);
        assert!(!machine.usable_cores().is_empty());
        assert!(machine.memory_bytes().unwrap() > 1 << 20);
        assert_eq!(
            machine.address(IpAddr::from([127, 0, 0, 1])),
            AddressState::Local
        );
        assert_eq!(
            machine.address(IpAddr::from([192, 0, 2, 1])),
            AddressState::NotLocal
        );
        assert_eq!(machine.path(Path::new("/")), PathState::Folder);
        assert_eq!(
            machine.path(Path::new("/dev/null")),
            PathState::Other("a character device")
        );
        assert_eq!(machine.path(Path::new("/nowhere")), PathState::Missing);
        assert_eq!(machine.path(Path::new("nowhere")), PathState::Missing);
        assert_eq!(
            machine.path(Path::new("/nowhere/file")),
            PathState::MissingFolder
        );
        assert!(matches!(
            machine.path(Path::new(file!())),
            PathState::File { .. } | PathState::MissingFolder
        ));
    }
}
