//! A machine of files, and what is seen of it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::*;

/// A machine of files, removed when it is dropped.
pub(crate) struct FakeMachine {
    root: PathBuf,
}

impl FakeMachine {
    pub(crate) fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("corebay-machine-{}-{number}", std::process::id());
        let root = std::env::temp_dir().join(name);
        fs::create_dir_all(root.join("sys/bus/pci/devices")).unwrap();
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn file(&self, path: &str, content: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn device(&self, address: &str, class: &str, group: Option<u32>) {
        let folder = format!("sys/bus/pci/devices/{address}");
        self.file(&format!("{folder}/class"), class);
        self.file(&format!("{folder}/vendor"), "0x144d\n");
        self.file(&format!("{folder}/device"), "0xa808\n");
        self.file(&format!("{folder}/numa_node"), "-1\n");
        if let Some(group) = group {
            let devices = self
                .root
                .join(format!("sys/kernel/iommu_groups/{group}/devices"));
            fs::create_dir_all(&devices).unwrap();
            let device = self.root.join(&folder);
            symlink(devices.parent().unwrap(), device.join("iommu_group")).unwrap();
            symlink(&device, devices.join(address)).unwrap();
        }
    }

    pub(crate) fn set_driver(&self, address: &str, driver: &str) {
        let drivers = self.root.join("sys/bus/pci/drivers").join(driver);
        fs::create_dir_all(&drivers).unwrap();
        let link = device_folder(&self.root, address).join("driver");
        let _ = fs::remove_file(&link);
        symlink(drivers, link).unwrap();
    }

    pub(crate) fn drive(&self, address: &str, driver: &str, group: u32) {
        self.device(address, "0x010802\n", Some(group));
        self.set_driver(address, driver);
    }

    pub(crate) fn drive_without_group(&self, address: &str) {
        self.device(address, "0x010802\n", None);
        self.set_driver(address, "nvme");
    }

    pub(crate) fn namespace(&self, address: &str, controller: &str, block: &str, number: &str) {
        let folder = format!("sys/bus/pci/devices/{address}/nvme/{controller}");
        self.file(&format!("{folder}/model"), "Model X    \n");
        self.file(&format!("{folder}/serial"), "S1  \n");
        self.file(&format!("{folder}/{block}/dev"), number);
        self.file(&format!("sys/block/{block}/dev"), number);
        self.file(&format!("sys/block/{block}/size"), "2097152\n");
        self.file(&format!("sys/block/{block}/wwid"), "eui.0025385b71b0a4f9\n");
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[test]
fn drives_are_found_and_other_devices_are_not() {
    let machine = FakeMachine::new();
    machine.drive("0000:02:00.0", "vfio-pci", 9);
    machine.drive("0000:01:00.0", "nvme", 7);
    machine.device("0000:00:1f.0", "0x060100", None);
    // A bridge in the group does no harm.
    machine.device("0000:00:01.0", "0x060400", Some(7));
    machine.namespace("0000:01:00.0", "nvme3", "nvme3n1", "259:4");
    let drives = drives(machine.root());
    let addresses: Vec<_> = drives.iter().map(|drive| &*drive.address).collect();
    assert_eq!(addresses, ["0000:01:00.0", "0000:02:00.0"]);
    let first = &drives[0];
    assert_eq!(first.ids, (0x144d, 0xa808));
    assert_eq!((first.iommu_group, first.numa_node), (Some(7), None));
    assert!(first.group_mates.is_empty());
    assert_eq!(first.model.as_deref(), Some("Model X"));
    assert_eq!(first.serial.as_deref(), Some("S1"));
    assert_eq!((first.bytes(), first.namespaces.len()), (1 << 30, 1));
    assert!(drives[1].is_lent() && !first.is_lent());
    assert_eq!(first.users().count(), 0);
}

#[test]
fn every_kind_of_user_is_seen() {
    let machine = FakeMachine::new();
    machine.drive("0000:01:00.0", "nvme", 7);
    machine.namespace("0000:01:00.0", "nvme0", "nvme0n1", "259:0");
    for (part, number) in [
        ("p1", "259:1"),
        ("p2", "259:2"),
        ("p3", "259:3"),
        ("p4", "259:5"),
    ] {
        let folder = format!("sys/block/nvme0n1/nvme0n1{part}");
        machine.file(&format!("{folder}/partition"), "1");
        machine.file(&format!("{folder}/dev"), number);
    }
    machine.file("sys/block/nvme0n1/nvme0n1p3/holders/md0", "");
    machine.file(
        "proc/self/mountinfo",
        "22 1 259:1 / / rw - ext4 /dev/root rw\n\
         23 1 0:40 / /data rw shared:5 - btrfs /dev/nvme0n1p4 rw\n\
         24 1 259:9 / /other rw - ext4 /dev/sda1 rw\n",
    );
    machine.file(
        "proc/swaps",
        "Filename Type Size\n/dev/nvme0n1p2 partition 100 0 -2\n",
    );
    let drives = drives(machine.root());
    let users: Vec<_> = drives[0].users().collect();
    assert_eq!(
        users,
        [
            "nvme0n1p1 is mounted on /",
            "nvme0n1p2 is swap",
            "nvme0n1p3 is part of md0",
            "nvme0n1p4 is mounted on /data",
        ]
    );
}

#[test]
fn paths_of_a_shared_namespace_lead_to_it() {
    assert_eq!(block_name("nvme0n1").as_deref(), Some("nvme0n1"));
    assert_eq!(block_name("nvme2c5n12").as_deref(), Some("nvme2n12"));
    assert_eq!(block_name("nvme0n1p1"), None);
    assert_eq!(block_name("ng0n1"), None);
    assert_eq!(block_name("power"), None);
}

#[test]
fn a_machine_without_anything_has_no_drives() {
    assert!(drives(Path::new("/nonexistent")).is_empty());
}
