//! Who uses a block device or a partition of it: file systems, swap, arrays and mappings.

use std::{fs, path::Path};

use super::{folders, name_of, text};

/// The users of the block device at this folder of `/sys/block`, in words.
pub(super) fn of(root: &Path, block: &Path) -> Vec<String> {
    let mut users = Vec::new();
    let partitions = folders(block)
        .into_iter()
        .filter(|path| path.join("partition").exists());
    for device in std::iter::once(block.to_owned()).chain(partitions) {
        let Some(name) = name_of(&device) else {
            continue;
        };
        users.extend(mounts(root, &device, &name));
        users.extend(swap(root, &name));
        for holder in folders(&device.join("holders")) {
            users.extend(name_of(&holder).map(|holder| format!("{name} is part of {holder}")));
        }
    }
    users.sort();
    users.dedup();
    users
}

/// Mounts name a device by its number, or (where the file system has numbers of its own) by its path.
fn mounts(root: &Path, device: &Path, name: &str) -> Vec<String> {
    let number = text(&device.join("dev"));
    let path = format!("/dev/{name}");
    let Ok(mounts) = fs::read_to_string(root.join("proc/self/mountinfo")) else {
        return Vec::new();
    };
    mounts
        .lines()
        .filter_map(|line| {
            let (mount, source) = line.split_once(" - ")?;
            let mut fields = mount.split(' ');
            let of_number = fields.nth(2) == number.as_deref();
            let place = fields.nth(1)?;
            let of_path = source.split(' ').nth(1) == Some(&path);
            (of_number || of_path).then(|| format!("{name} is mounted on {place}"))
        })
        .collect()
}

fn swap(root: &Path, name: &str) -> Option<String> {
    let swaps = fs::read_to_string(root.join("proc/swaps")).ok()?;
    let path = format!("/dev/{name}");
    let mut used = swaps
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    used.any(|swap| swap == path)
        .then(|| format!("{name} is swap"))
}
