//! Finding a drive again that was lost to its user: put back into a slot, or bound to vfio-pci anew.
//!
//! Invariants:
//! - Only what changed since the loss is a return: a drive that failed where it is, or that was given
//!   back to the kernel on purpose, stays what it is. What changed is told by inode numbers: the
//!   kernel gives every device and every binding to a driver one of its own.
//! - Of the drives that the kernel's driver has, only one with the lost one's serial number is it. A
//!   drive that is lent says its serial number only once it was brought up.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use super::{MachineDrive, device_folder, drives};

/// A device, and its binding to a driver, as they were seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sighting {
    /// The inode number of the device's folder.
    pub device: Option<u64>,
    /// That of the link to its driver.
    pub binding: Option<u64>,
}

impl Sighting {
    /// What is at this address now.
    #[must_use]
    pub fn of(root: &Path, address: &str) -> Self {
        let folder = device_folder(root, address);
        let number = |found: std::io::Result<fs::Metadata>| found.ok().map(|found| found.ino());
        Self {
            device: number(fs::metadata(&folder)),
            binding: number(fs::symlink_metadata(folder.join("driver"))),
        }
    }
}

/// A drive that was lost.
#[derive(Clone, Debug, Default)]
pub struct Lost {
    /// Where it was.
    pub address: String,
    /// Its serial number.
    pub serial: String,
    /// What was there while it was used.
    pub seen: Sighting,
    /// It may return at another address. These devices, by inode number, were there when it was lost.
    pub elsewhere: Option<Vec<u64>>,
    /// Bindings that turned out to be other drives.
    pub others: Vec<u64>,
}

/// Where a lost drive may be again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Lent to user space, at this address.
    Lent(String),
    /// The kernel's driver has it, at this address.
    Kernels(String),
}

impl Found {
    /// Its address.
    #[must_use]
    pub fn address(&self) -> &str {
        match self {
            Self::Lent(address) | Self::Kernels(address) => address,
        }
    }
}

/// The inode numbers of all drives that are there.
#[must_use]
pub fn devices(root: &Path) -> Vec<u64> {
    let all = drives(root).into_iter();
    all.filter_map(|drive| Sighting::of(root, &drive.address).device)
        .collect()
}

/// Looks for a lost drive.
#[must_use]
pub fn find(root: &Path, lost: &Lost) -> Option<Found> {
    drives(root)
        .into_iter()
        .find_map(|drive| is_it(root, lost, drive))
}

fn is_it(root: &Path, lost: &Lost, drive: MachineDrive) -> Option<Found> {
    let now = Sighting::of(root, &drive.address);
    let (device, binding) = (now.device?, now.binding?);
    let (is_new, is_bound_anew) = match drive.address == lost.address {
        true => (
            now.device != lost.seen.device,
            now.binding != lost.seen.binding,
        ),
        false => {
            let known = lost.elsewhere.as_ref()?;
            let is_new = !known.contains(&device);
            (is_new, is_new)
        }
    };
    if drive.is_lent() {
        let maybe = is_bound_anew && !lost.others.contains(&binding);
        return maybe.then_some(Found::Lent(drive.address));
    }
    let has_serial = drive.serial.as_deref() == Some(&lost.serial);
    (is_new && has_serial).then_some(Found::Kernels(drive.address))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::FakeMachine, *};

    const SLOT: &str = "0000:01:00.0";
    const OTHER_SLOT: &str = "0000:02:00.0";

    fn lost(machine: &FakeMachine) -> Lost {
        Lost {
            address: SLOT.into(),
            serial: "S1".into(),
            seen: Sighting::of(machine.root(), SLOT),
            ..Lost::default()
        }
    }

    /// Takes a device out. What it was stays somewhere, so that its inode numbers are not used again.
    fn take_out(machine: &FakeMachine, address: &str) {
        let folder = device_folder(machine.root(), address);
        let aside = machine.root().join(format!("was-{address}"));
        fs::rename(folder, aside).unwrap();
    }

    #[test]
    fn what_has_not_changed_is_no_return() {
        let machine = FakeMachine::new();
        machine.drive(SLOT, "vfio-pci", 7);
        let lost = lost(&machine);
        assert_eq!(find(machine.root(), &lost), None, "it failed where it is");
        take_out(&machine, SLOT);
        assert_eq!(find(machine.root(), &lost), None, "it is gone");
    }

    #[test]
    fn a_drive_that_is_bound_again_is_found() {
        let machine = FakeMachine::new();
        machine.drive(SLOT, "vfio-pci", 7);
        let mut lost = lost(&machine);
        let link = device_folder(machine.root(), SLOT).join("driver");
        let aside = machine.root().join("was-bound");
        fs::rename(&link, aside).unwrap();
        assert_eq!(find(machine.root(), &lost), None, "without a driver");
        machine.set_driver(SLOT, "vfio-pci");
        let found = find(machine.root(), &lost);
        assert_eq!(found, Some(Found::Lent(SLOT.into())));
        lost.others
            .extend(Sighting::of(machine.root(), SLOT).binding);
        assert_eq!(find(machine.root(), &lost), None, "it is another drive");
    }

    /// A drive that returned formatted, say, is shut down, and counts as lost as it was seen then.
    #[test]
    fn a_drive_that_was_refused_is_left_alone_until_it_is_bound_anew() {
        let machine = FakeMachine::new();
        machine.drive(SLOT, "vfio-pci", 7);
        let lost = lost(&machine);
        let bind_anew = |aside: &str| {
            let link = device_folder(machine.root(), SLOT).join("driver");
            fs::rename(&link, machine.root().join(aside)).unwrap();
            machine.set_driver(SLOT, "vfio-pci");
        };
        bind_anew("first");
        let returned = Some(Found::Lent(SLOT.into()));
        assert_eq!(find(machine.root(), &lost), returned);
        let refused = Lost {
            seen: Sighting::of(machine.root(), SLOT),
            ..lost
        };
        assert_eq!(find(machine.root(), &refused), None, "as it was refused");
        bind_anew("second");
        assert_eq!(find(machine.root(), &refused), returned);
    }

    #[test]
    fn the_kernels_new_drive_of_that_serial_number_is_found() {
        let machine = FakeMachine::new();
        machine.drive(SLOT, "vfio-pci", 7);
        let lost = lost(&machine);
        // Given back to the kernel, it is the device that it was.
        machine.set_driver(SLOT, "nvme");
        machine.namespace(SLOT, "nvme0", "nvme0n1", "259:0");
        assert_eq!(find(machine.root(), &lost), None);
        take_out(&machine, SLOT);
        machine.drive(SLOT, "nvme", 8);
        assert_eq!(find(machine.root(), &lost), None, "not known yet");
        machine.namespace(SLOT, "nvme0", "nvme0n1", "259:0");
        let found = find(machine.root(), &lost);
        assert_eq!(found, Some(Found::Kernels(SLOT.into())));
        let another = Lost {
            serial: "S2".into(),
            ..lost
        };
        assert_eq!(find(machine.root(), &another), None);
    }

    #[test]
    fn elsewhere_only_where_that_is_meant_and_what_was_not_there_before() {
        let machine = FakeMachine::new();
        machine.drive(SLOT, "vfio-pci", 7);
        let mut lost = lost(&machine);
        machine.drive(OTHER_SLOT, "nvme", 8);
        machine.namespace(OTHER_SLOT, "nvme0", "nvme0n1", "259:0");
        assert_eq!(find(machine.root(), &lost), None, "its slot is meant");
        lost.elsewhere = Some(devices(machine.root()));
        assert_eq!(find(machine.root(), &lost), None, "it was there before");
        lost.elsewhere = Some(Vec::new());
        let found = find(machine.root(), &lost);
        assert_eq!(found, Some(Found::Kernels(OTHER_SLOT.into())));
    }
}
