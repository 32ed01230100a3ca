//! What /proc and /sys tell about files and devices: who holds a lock, what uses a device, how a
//! device caches. All of it is advice for messages and hints: where it is missing, less is said.

use std::{fmt, fs, path::PathBuf};

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeviceNumber {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl DeviceNumber {
    pub(super) fn from_raw(device: u64) -> Self {
        Self {
            major: rustix::fs::major(device),
            minor: rustix::fs::minor(device),
        }
    }

    fn sysfs(self) -> PathBuf {
        format!("/sys/dev/block/{}:{}", self.major, self.minor).into()
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A process that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process number.
    pub pid: u32,
    /// Its name, if it is known.
    pub name: Option<String>,
}

impl Holder {
    pub(super) fn is_this_process(&self) -> bool {
        self.pid == std::process::id()
    }

    /// True while the process exists.
    pub(super) fn is_alive(&self) -> bool {
        // A zombie holds nothing any more.
        let state = fs::read_to_string(format!("/proc/{}/stat", self.pid));
        state.is_ok_and(|stat| {
            let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            !after_name.trim_start().starts_with(['Z', 'X'])
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            _ if self.is_this_process() => write!(f, "this very process"),
            Some(name) => write!(f, "process {} ({name})", self.pid),
            None => write!(f, "process {}", self.pid),
        }
    }
}

/// Who holds the lock on a file.
pub(super) fn lock_holder(device: DeviceNumber, inode: u64) -> Option<Holder> {
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = lock_holder_in(&locks, device, inode)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    Some(Holder {
        pid,
        name: name.map(|name| name.trim_end().to_owned()),
    })
}

/// Lines look like `1: FLOCK  ADVISORY  WRITE 4242 fd:00:131078 0 EOF`; `->` marks a waiter.
fn lock_holder_in(locks: &str, device: DeviceNumber, inode: u64) -> Option<u32> {
    let holders = locks.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (kind, _, _) = (words.next()?, words.next()?, words.next()?);
        let (pid, place) = (words.next()?, words.next()?);
        let (dev, ino) = place.rsplit_once(':')?;
        (kind == "FLOCK" && ino.parse() == Ok(inode)).then_some((pid.parse().ok()?, dev))
    });
    let holders: Vec<(u32, &str)> = holders.collect();
    let wanted = format!("{:02x}:{:02x}", device.major, device.minor);
    // Some filesystems show another device here than to `stat`: the inode alone must do then.
    holders
        .iter()
        .find(|(_, dev)| *dev == wanted)
        .or(holders.first())
        .map(|(pid, _)| *pid)
        .filter(|pid| *pid != 0)
}

/// The type of the filesystem on a device number.
pub(super) fn filesystem_type(device: DeviceNumber) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts_of(&mounts, &[device])
        .next()
        .map(|mount| mount.filesystem.to_owned())
}

struct Mount<'a> {
    place: &'a str,
    filesystem: &'a str,
}

/// Lines look like `36 35 98:0 / /mnt rw,noatime master:1 - ext4 /dev/root rw`.
fn mounts_of<'a>(
    mounts: &'a str,
    devices: &'a [DeviceNumber],
) -> impl Iterator<Item = Mount<'a>> + 'a {
    mounts.lines().filter_map(move |line| {
        let (left, right) = line.split_once(" - ")?;
        let mut words = left.split_whitespace().skip(2);
        let (device, place) = (words.next()?, words.nth(1)?);
        let wanted = devices.iter().any(|wanted| wanted.to_string() == device);
        wanted.then_some(Mount {
            place,
            filesystem: right.split_whitespace().next()?,
        })
    })
}

/// What uses a block device, or a partition of it.
pub(super) fn device_users(device: DeviceNumber) -> Vec<String> {
    let mut devices = vec![device];
    let mut users = Vec::new();
    let base = device.sysfs();
    for entry in fs::read_dir(&base).into_iter().flatten().flatten() {
        let number = fs::read_to_string(entry.path().join("dev")).unwrap_or_default();
        if let Some((major, minor)) = number.trim().split_once(':')
            && let (Ok(major), Ok(minor)) = (major.parse(), minor.parse())
        {
            devices.push(DeviceNumber { major, minor });
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    users.extend(mounts_of(&mounts, &devices).map(|mount| format!("mounted on {}", mount.place)));
    for device in devices {
        let holders = fs::read_dir(device.sysfs().join("holders"));
        for holder in holders.into_iter().flatten().flatten() {
            users.push(format!("part of {}", holder.file_name().to_string_lossy()));
        }
    }
    users
}

/// What a block device's queue tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueLimits {
    /// Completed writes may be lost with the power until they are flushed.
    pub(super) volatile_cache: bool,
    /// The unit that space is best given back in, in bytes, where it can be.
    pub(super) discard_bytes: Option<u64>,
}

pub(super) fn queue_limits(device: DeviceNumber) -> QueueLimits {
    let queue = queue_folder(device);
    let read = |name: &str| fs::read_to_string(queue.join(name)).unwrap_or_default();
    queue_limits_in(
        &read("write_cache"),
        &read("discard_granularity"),
        &read("discard_max_bytes"),
    )
}

fn queue_folder(device: DeviceNumber) -> PathBuf {
    let base = device.sysfs();
    // A partition has its disk's queue.
    if base.join("partition").exists() {
        base.join("..").join("queue")
    } else {
        base.join("queue")
    }
}

/// The bytes that a block device writes as a whole even when the power fails, from the device's
/// begin on; `None` where the system does not tell.
pub(super) fn whole_bytes(device: DeviceNumber) -> Option<u32> {
    let queue = queue_folder(device);
    whole_bytes_in(
        &fs::read_to_string(queue.join("physical_block_size")).ok()?,
        &fs::read_to_string(queue.join("logical_block_size")).ok()?,
        &fs::read_to_string(device.sysfs().join("alignment_offset")).unwrap_or_default(),
    )
}

/// The kernel calls the physical block the smallest unit that a device can write atomically. A
/// partition that does not begin with one consists of logical blocks alone.
fn whole_bytes_in(physical: &str, logical: &str, misaligned_by: &str) -> Option<u32> {
    let number = |text: &str| text.trim().parse::<u32>().ok();
    let whole = match misaligned_by.trim() {
        "" | "0" => number(physical)?,
        _ => number(logical)?,
    };
    whole.is_power_of_two().then_some(whole)
}

fn queue_limits_in(write_cache: &str, granularity: &str, most: &str) -> QueueLimits {
    let number = |text: &str| text.trim().parse::<u64>().ok().filter(|&n| n > 0);
    QueueLimits {
        // Unknown is taken for volatile: a flush too many loses nothing.
        volatile_cache: write_cache.trim() != "write through",
        discard_bytes: number(most).and_then(|_| number(granularity)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_name_their_holder() {
        let locks = "1: POSIX  ADVISORY  READ  77 fe:00:12 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 4242 fe:00:12 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 4343 fe:00:12 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 99 00:1a:13 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 0 00:1a:14 0 EOF\n";
        let device = DeviceNumber {
            major: 0xfe,
            minor: 0,
        };
        assert_eq!(lock_holder_in(locks, device, 12), Some(4242));
        assert_eq!(lock_holder_in(locks, device, 13), Some(99));
        assert_eq!(lock_holder_in(locks, device, 14), None);
        assert_eq!(lock_holder_in(locks, device, 15), None);
    }

    #[test]
    fn mounts_name_place_and_type() {
        let text = "36 35 98:0 /sub /mnt\\040x rw,noatime master:1 - ext4 /dev/root rw\n\
                    37 35 0:22 / /tmp rw - tmpfs tmpfs rw\n";
        let device = [DeviceNumber {
            major: 98,
            minor: 0,
        }];
        let mounts: Vec<_> = mounts_of(text, &device)
            .map(|m| (m.place, m.filesystem))
            .collect();
        assert_eq!(mounts, [("/mnt\\040x", "ext4")]);
    }

    #[test]
    fn a_misaligned_partition_has_no_whole_physical_sectors() {
        assert_eq!(whole_bytes_in("4096\n", "512\n", "0\n"), Some(4096));
        assert_eq!(whole_bytes_in("4096\n", "512\n", ""), Some(4096));
        assert_eq!(whole_bytes_in("4096\n", "512\n", "3584\n"), Some(512));
        assert_eq!(whole_bytes_in("4096\n", "512\n", "-1\n"), Some(512));
        assert_eq!(whole_bytes_in("", "512", "0"), None);
    }

    #[test]
    fn queues_tell_cache_and_discard() {
        let limits = queue_limits_in("write through\n", "4096\n", "2147483648\n");
        assert_eq!(
            (limits.volatile_cache, limits.discard_bytes),
            (false, Some(4096))
        );
        let limits = queue_limits_in("write back\n", "4096\n", "0\n");
        assert_eq!((limits.volatile_cache, limits.discard_bytes), (true, None));
        assert!(queue_limits_in("", "", "").volatile_cache);
    }
}
