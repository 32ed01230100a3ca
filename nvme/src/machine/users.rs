//! Who uses a block device or a partition of it: file systems, swap, arrays and mappings; and the
//! processes that have a device open.

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
        users.extend(exporters(root, &name));
    }
    users.sort();
    users.dedup();
    users
}

/// What in the kernel opens a device without claiming it: loop devices, and its own NVMe-oF target.
fn exporters(root: &Path, name: &str) -> Vec<String> {
    let path = format!("/dev/{name}");
    let names_it = |file: &Path| text(file).is_some_and(|named| named == path);
    let loops = folders(&root.join("sys/block")).into_iter();
    let loops = loops
        .filter(|device| names_it(&device.join("loop/backing_file")))
        .filter_map(|device| Some(format!("{name} is behind {}", name_of(&device)?)));
    let subsystems = folders(&root.join("sys/kernel/config/nvmet/subsystems")).into_iter();
    let exported = subsystems
        .filter(|subsystem| {
            let namespaces = folders(&subsystem.join("namespaces"));
            let mut paths = namespaces.iter().map(|one| one.join("device_path"));
            paths.any(|file| names_it(&file))
        })
        .filter_map(|nqn| Some(format!("{name} is exported by nvmet as {}", name_of(&nqn)?)));
    loops.chain(exported).collect()
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

/// The processes that have a device open which `is_it` says, by its path: their names and numbers. Those
/// that look at every new device for a moment do not count.
pub(super) fn openers(root: &Path, is_it: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for process in folders(&root.join("proc")) {
        let number = name_of(&process).unwrap_or_default();
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let links = folders(&process.join("fd")).into_iter();
        let open = links.filter_map(|link| fs::read_link(link).ok());
        let device = open
            .filter_map(|path| path.to_str().map(str::to_owned))
            .find(|path| is_it(path));
        let name = text(&process.join("comm")).unwrap_or_else(|| "a program".to_owned());
        if let Some(device) = device.filter(|_| !name.contains("udev")) {
            let device = device.trim_start_matches("/dev/").to_owned();
            found.push((device, format!("{name} (process {number})")));
        }
    }
    found
}
