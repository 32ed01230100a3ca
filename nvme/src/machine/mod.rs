//! The NVMe drives of a Linux machine, as `/sys` and `/proc` tell of them: who drives them, who uses
//! them, and how they change hands.
//!
//! Invariants:
//! - Everything is read and written below a root folder that is handed in, so that tests have a
//!   machine of files.
//! - Looking changes nothing. What cannot be found out is absent, never guessed.
//! - A drive changes hands only where nobody can lose data by it; see [`binding`]. One that was lost is
//!   known again only by what changed; see [`returned`].

pub mod binding;
#[cfg(feature = "vfio")]
pub mod passthrough;
pub mod returned;
mod users;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// PCI class code of an NVM Express I/O controller.
const CLASS_NVME: u32 = 0x01_08_02;

/// PCI class codes of bridges: they may share an IOMMU group with a drive.
const CLASS_BRIDGE: u32 = 0x06;

/// The driver that lends devices to user space.
pub const VFIO_DRIVER: &str = "vfio-pci";

/// A drive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineDrive {
    /// Its PCI address, as in `0000:01:00.0`.
    pub address: String,
    /// PCI vendor and device ID.
    pub ids: (u16, u16),
    /// The driver that has it.
    pub driver: Option<String>,
    /// Its IOMMU group; `None` where the IOMMU is off.
    pub iommu_group: Option<u32>,
    /// The other devices of its group, but for bridges.
    pub group_mates: Vec<String>,
    /// The NUMA node that it is next to.
    pub numa_node: Option<u32>,
    /// Model number, as far as the kernel's driver knows it, or knew it before the drive was lent.
    pub model: Option<String>,
    /// Serial number, the same way.
    pub serial: Option<String>,
    /// The bytes of all its namespaces before it was lent.
    pub former_bytes: Option<u64>,
    /// The kernel's block devices on it.
    pub namespaces: Vec<MachineNamespace>,
}

/// A namespace that the kernel's driver shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineNamespace {
    /// Its block device, as in `nvme0n1`.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// Its identifier in the kernel's words, as in `eui.0025385b71b0a4f9` or `uuid.…`.
    pub wwid: Option<String>,
    /// Who uses it, as in "mounted on /home".
    pub users: Vec<String>,
}

impl MachineDrive {
    /// The bytes of all its namespaces, or of those that it had before it was lent; 0 where nobody knows.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self.former_bytes.filter(|_| self.namespaces.is_empty()) {
            Some(bytes) => bytes,
            None => self
                .namespaces
                .iter()
                .map(|namespace| namespace.bytes)
                .sum(),
        }
    }

    /// Everybody who uses a namespace of it.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        let users = self
            .namespaces
            .iter()
            .flat_map(|namespace| &namespace.users);
        users.map(String::as_str)
    }

    /// True where it is lent to user space.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.driver.as_deref() == Some(VFIO_DRIVER)
    }
}

/// The drives of the machine below `root`, by their addresses.
#[must_use]
pub fn drives(root: &Path) -> Vec<MachineDrive> {
    let mut found: Vec<_> = folders(&root.join("sys/bus/pci/devices"))
        .into_iter()
        .filter(|path| class_of(path) == Some(CLASS_NVME))
        .filter_map(|path| drive(root, &path))
        .collect();
    found.sort_by(|a, b| a.address.cmp(&b.address));
    found
}

/// Everybody who uses a drive: what lies on it, and the processes that have it. In words.
#[must_use]
pub fn all_users(root: &Path, drive: &MachineDrive) -> Vec<String> {
    let on_it = drive.users().map(str::to_owned);
    on_it.chain(openers(root, drive)).collect()
}

/// The processes that have a drive: one of its block devices open, or, where it is lent, itself. In words.
#[must_use]
pub fn openers(root: &Path, drive: &MachineDrive) -> Vec<String> {
    let is_partition = |rest: &str| {
        let number = rest.strip_prefix('p').unwrap_or("-");
        number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let is_it = |path: &str| {
        let Some(name) = path.strip_prefix("/dev/") else {
            return false;
        };
        if drive.is_lent() {
            let group = name.strip_prefix("vfio/");
            let own = drive.iommu_group.map(|own| own.to_string());
            return group.is_some() && group == own.as_deref();
        }
        let mut namespaces = drive.namespaces.iter();
        namespaces.any(|known| {
            let rest = name.strip_prefix(known.name.as_str());
            let generic = known.name.strip_prefix("nvme").zip(name.strip_prefix("ng"));
            rest.is_some_and(|rest| rest.is_empty() || is_partition(rest))
                || generic.is_some_and(|(own, other)| own == other)
        })
    };
    let openers = users::openers(root, is_it).into_iter();
    let words = openers.map(|(device, who)| match drive.is_lent() {
        true => format!("{who} drives it"),
        false => format!("{who} has {device} open"),
    });
    words.collect()
}

/// The folder of a PCI device.
#[must_use]
pub fn device_folder(root: &Path, address: &str) -> PathBuf {
    root.join("sys/bus/pci/devices").join(address)
}

fn drive(root: &Path, path: &Path) -> Option<MachineDrive> {
    let address = name_of(path)?;
    let group = link_name(&path.join("iommu_group"));
    let mut drive = MachineDrive {
        ids: (hex(path, "vendor")? as u16, hex(path, "device")? as u16),
        driver: link_name(&path.join("driver")),
        group_mates: group
            .as_deref()
            .map(|group| mates(root, group, &address))
            .unwrap_or_default(),
        iommu_group: group.and_then(|group| group.parse().ok()),
        numa_node: text(&path.join("numa_node")).and_then(|node| node.parse().ok()),
        address,
        ..MachineDrive::default()
    };
    for controller in folders(&path.join("nvme")) {
        drive.model = text(&controller.join("model"));
        drive.serial = text(&controller.join("serial"));
        let names = folders(&controller).into_iter().filter_map(|child| {
            let name = block_name(&name_of(&child)?)?;
            Some(namespace(root, name))
        });
        drive.namespaces.extend(names);
    }
    drive.namespaces.sort_by(|a, b| a.name.cmp(&b.name));
    if drive.is_lent() {
        binding::recall(root, &mut drive);
    }
    Some(drive)
}

/// The block device of a controller's child: `nvme0n1` is one itself, `nvme0c1n1` is a path to it.
fn block_name(child: &str) -> Option<String> {
    let rest = child.strip_prefix("nvme")?;
    let (head, nsid) = rest.rsplit_once('n')?;
    let subsystem = head.split('c').next()?;
    let numbers = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (numbers(subsystem) && numbers(nsid)).then(|| format!("nvme{subsystem}n{nsid}"))
}

fn namespace(root: &Path, name: String) -> MachineNamespace {
    let block = root.join("sys/block").join(&name);
    let sectors: u64 = text(&block.join("size"))
        .and_then(|size| size.parse().ok())
        .unwrap_or(0);
    MachineNamespace {
        bytes: sectors.saturating_mul(512),
        wwid: text(&block.join("wwid")),
        users: users::of(root, &block),
        name,
    }
}

fn mates(root: &Path, group: &str, address: &str) -> Vec<String> {
    let devices = root
        .join("sys/kernel/iommu_groups")
        .join(group)
        .join("devices");
    let mut mates: Vec<String> = folders(&devices)
        .iter()
        .filter(|path| class_of(path).is_none_or(|class| class >> 16 != CLASS_BRIDGE))
        .filter_map(|path| name_of(path))
        .filter(|name| name != address)
        .collect();
    mates.sort();
    mates
}

fn class_of(path: &Path) -> Option<u32> {
    hex(path, "class")
}

fn hex(path: &Path, file: &str) -> Option<u32> {
    let text = text(&path.join(file))?;
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// A file's text without what surrounds it; `None` where there is none.
pub(crate) fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// What lies in a folder; nothing where there is no such folder.
pub(crate) fn folders(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

fn link_name(path: &Path) -> Option<String> {
    name_of(&fs::read_link(path).ok()?)
}

#[cfg(test)]
pub(crate) mod tests;
