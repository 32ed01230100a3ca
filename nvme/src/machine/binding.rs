//! Lending a drive to user space, and giving it back to the kernel's driver.
//!
//! Invariants:
//! - A drive is not taken away from anybody: not while a file system, swap, array or mapping lies on
//!   it, not from a process that has it open, and not where its IOMMU group would take another device
//!   along. Only giving it back to the kernel may be forced.
//! - Which driver a drive had is written down before it is taken away, and it gets that one back; also
//!   at once where taking it fails.
//! - What is done is decided first, as a list of writes, and then done.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{MachineDrive, VFIO_DRIVER, all_users, device_folder, openers};

/// `open(2)`: of a block device, only where nobody holds it so.
const O_EXCL: i32 = 0o200;

/// Where the former drivers are written down, one line each, and below that what the kernel knew of the
/// drive, as `name=value`. It goes with a restart, as the bindings do.
const RECORDS: &str = "run/corebay/drives";

/// The kernel's driver, for a drive of which nothing is written down.
const KERNEL_DRIVER: &str = "nvme";

/// Why a drive does not change hands.
#[derive(Debug)]
pub enum BindRefusal {
    /// There is no such drive.
    Unknown(String),
    /// It is in use, and by whom.
    InUse(String, Vec<String>),
    /// It is lent, and processes drive it.
    Driven(String, Vec<String>),
    /// It shares its IOMMU group with other devices.
    SharedGroup(String, Vec<String>),
    /// It has no IOMMU group: the IOMMU is off.
    NoIommu(String),
    /// It is lent already, or not lent.
    Already(String, &'static str),
    /// A file of the kernel's could not be written.
    Write(PathBuf, io::Error),
    /// The kernel did not give it to the driver.
    NotTaken(String, &'static str),
}

impl BindRefusal {
    /// How to mend it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Unknown(_) => "`corebay drives` lists the drives".into(),
            Self::InUse(..) => {
                "unmount it, or take it out of what it is part of; its data would be lost to that"
                    .into()
            }
            Self::Driven(..) => {
                "end that, or what it does with the drive; `--force` takes the drive away all the same: \
                 arrays do without it, and what else lies on it fails until it is bound again"
                    .into()
            }
            Self::SharedGroup(..) => "put the drive into a slot of its own, or turn on ACS in the \
                 machine's setup: devices of a group can reach each other's memory"
                .into(),
            Self::NoIommu(_) => "turn the IOMMU on: see `corebay doctor`".into(),
            Self::Already(..) => String::new(),
            Self::Write(_, error) if error.kind() == io::ErrorKind::PermissionDenied => {
                "run it as root".into()
            }
            Self::Write(..) => String::new(),
            Self::NotTaken(..) => "modprobe vfio-pci".into(),
        }
    }
}

impl fmt::Display for BindRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(address) => write!(f, "there is no NVMe drive at {address}"),
            Self::InUse(address, users) => write!(f, "{address} is in use: {}", users.join(", ")),
            Self::Driven(address, by) => write!(f, "{address} is in use: {}", by.join(", ")),
            Self::SharedGroup(address, mates) => write!(
                f,
                "{address} shares its IOMMU group with {}",
                mates.join(", ")
            ),
            Self::NoIommu(address) => write!(f, "{address} has no IOMMU group"),
            Self::Already(address, what) => write!(f, "{address} is {what}"),
            Self::Write(path, error) => write!(f, "cannot write {}: {error}", path.display()),
            Self::NotTaken(address, driver) => {
                write!(f, "the kernel did not give {address} to {driver}")
            }
        }
    }
}

impl std::error::Error for BindRefusal {}

/// A file of the kernel's, and what is written into it.
type Step = (PathBuf, String);

fn found<'a>(drives: &'a [MachineDrive], address: &str) -> Result<&'a MachineDrive, BindRefusal> {
    let drive = drives.iter().find(|drive| drive.address == address);
    drive.ok_or_else(|| BindRefusal::Unknown(address.to_owned()))
}

/// Lends the drive at this address to user space.
///
/// # Errors
/// Where it is not there, somebody would lose something, or the kernel refuses.
pub fn bind(root: &Path, address: &str) -> Result<(), BindRefusal> {
    let drives = super::drives(root);
    let drive = found(&drives, address)?;
    let mut steps = steps_to_bind(root, drive)?.into_iter();
    let claimed = claim(root, drive)?;
    let former = drive.driver.as_deref().unwrap_or_default();
    // One that lost its driver to an attempt that failed is known by what it had before that.
    if !former.is_empty() || !record(root, address).exists() {
        remember(root, drive, former)?;
    }
    let bound = steps
        .try_for_each(write)
        .and_then(|()| expect_driver(root, address, VFIO_DRIVER));
    drop(claimed);
    bound.inspect_err(|_| restore(root, address, former))
}

/// Holds the block devices of a drive as nobody else may by then: file systems, swap, arrays and mappings
/// of every kind hold theirs so, also those that this process does not see.
fn claim(root: &Path, drive: &MachineDrive) -> Result<Vec<File>, BindRefusal> {
    let mut claimed = Vec::new();
    for namespace in &drive.namespaces {
        let path = root.join("dev").join(&namespace.name);
        let mut exclusive = OpenOptions::new();
        match exclusive.read(true).custom_flags(O_EXCL).open(path) {
            Ok(file) => claimed.push(file),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let who = format!("{} is held by the kernel or a program", namespace.name);
                return Err(BindRefusal::InUse(drive.address.clone(), vec![who]));
            }
            // Without a device file there is nobody who could open it by one.
            Err(_) => {}
        }
    }
    Ok(claimed)
}

/// Undoes what a failed attempt to take a drive has done.
fn restore(root: &Path, address: &str, former: &str) {
    let folder = device_folder(root, address);
    let mut done = write((folder.join("driver_override"), "\n".to_owned()));
    if !former.is_empty() && !folder.join("driver").exists() {
        let driver = root.join("sys/bus/pci/drivers").join(former);
        done = done.and(write((driver.join("bind"), address.to_owned())));
    }
    // Where this failed too, `unbind` can do it.
    if done.is_ok() && folder.join("driver").exists() {
        let _ = fs::remove_file(record(root, address));
    }
}

/// Gives the drive at this address back to the driver that it had; by force also where a process drives
/// it.
///
/// # Errors
/// Where it is not there, not lent, or in use, or the kernel refuses.
pub fn unbind(root: &Path, address: &str, force: bool) -> Result<String, BindRefusal> {
    let drives = super::drives(root);
    let drive = found(&drives, address)?;
    let driven_by = openers(root, drive);
    if drive.is_lent() && !force && !driven_by.is_empty() {
        return Err(BindRefusal::Driven(address.to_owned(), driven_by));
    }
    let former = remembered(root, address);
    for step in steps_to_unbind(root, drive, &former)? {
        write(step)?;
    }
    let _ = fs::remove_file(record(root, address));
    Ok(former)
}

fn steps_to_bind(root: &Path, drive: &MachineDrive) -> Result<Vec<Step>, BindRefusal> {
    let address = drive.address.clone();
    if drive.is_lent() {
        return Err(BindRefusal::Already(address, "bound to vfio-pci already"));
    }
    let users = all_users(root, drive);
    if !users.is_empty() {
        return Err(BindRefusal::InUse(address, users));
    }
    if drive.iommu_group.is_none() {
        return Err(BindRefusal::NoIommu(address));
    }
    if !drive.group_mates.is_empty() {
        let mates = drive.group_mates.clone();
        return Err(BindRefusal::SharedGroup(address, mates));
    }
    let folder = device_folder(root, &address);
    let mut steps = vec![(folder.join("driver_override"), VFIO_DRIVER.to_owned())];
    if drive.driver.is_some() {
        steps.push((folder.join("driver/unbind"), address.clone()));
    }
    steps.push((root.join("sys/bus/pci/drivers_probe"), address));
    Ok(steps)
}

fn steps_to_unbind(
    root: &Path,
    drive: &MachineDrive,
    former: &str,
) -> Result<Vec<Step>, BindRefusal> {
    let address = drive.address.clone();
    let is_left_alone = drive.driver.is_none() && record(root, &address).exists();
    if !drive.is_lent() && !is_left_alone {
        return Err(BindRefusal::Already(address, "not bound to vfio-pci"));
    }
    let folder = device_folder(root, &address);
    // An empty line takes the override away.
    let mut steps = vec![(folder.join("driver_override"), "\n".to_owned())];
    if drive.driver.is_some() {
        steps.push((folder.join("driver/unbind"), address.clone()));
    }
    if !former.is_empty() {
        let driver = root.join("sys/bus/pci/drivers").join(former);
        steps.push((driver.join("bind"), address));
    }
    Ok(steps)
}

fn record(root: &Path, address: &str) -> PathBuf {
    root.join(RECORDS).join(address)
}

fn remember(root: &Path, drive: &MachineDrive, driver: &str) -> Result<(), BindRefusal> {
    let mut written = format!("{driver}\nids={:04x}:{:04x}\n", drive.ids.0, drive.ids.1);
    let known = [("model", &drive.model), ("serial", &drive.serial)];
    for (name, value) in known {
        // A line each, whatever the drive calls itself.
        let value = value.iter().map(|text| text.replace(char::is_control, " "));
        value.for_each(|value| written += &format!("{name}={value}\n"));
    }
    if !drive.namespaces.is_empty() {
        written += &format!("bytes={}\n", drive.bytes());
    }
    let path = record(root, &drive.address);
    let written = fs::create_dir_all(root.join(RECORDS)).and_then(|()| fs::write(&path, written));
    written.map_err(|error| BindRefusal::Write(path, error))
}

/// What the kernel knew of a drive before it was lent, unless that is another one by now.
pub(super) fn recall(root: &Path, drive: &mut MachineDrive) {
    let text = fs::read_to_string(record(root, &drive.address)).unwrap_or_default();
    let field = |name: &str| {
        let mut lines = text.lines().skip(1);
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    };
    let ids = format!("{:04x}:{:04x}", drive.ids.0, drive.ids.1);
    if field("ids") != Some(&ids) {
        return;
    }
    drive.model = field("model").map(str::to_owned);
    drive.serial = field("serial").map(str::to_owned);
    drive.former_bytes = field("bytes").and_then(|bytes| bytes.parse().ok());
}

/// The driver that a drive had; an empty name for one that had none.
fn remembered(root: &Path, address: &str) -> String {
    match fs::read_to_string(record(root, address)) {
        Ok(text) => text.lines().next().unwrap_or_default().trim().to_owned(),
        Err(_) => KERNEL_DRIVER.to_owned(),
    }
}

fn write((path, content): Step) -> Result<(), BindRefusal> {
    fs::write(&path, content).map_err(|error| BindRefusal::Write(path, error))
}

fn expect_driver(root: &Path, address: &str, driver: &'static str) -> Result<(), BindRefusal> {
    let link = fs::read_link(device_folder(root, address).join("driver"));
    let there = link
        .ok()
        .and_then(|path| Some(path.file_name()?.to_owned()));
    match there {
        Some(name) if name == driver => Ok(()),
        _ => Err(BindRefusal::NotTaken(address.to_owned(), driver)),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::FakeMachine, *};

    #[test]
    fn a_free_drive_is_lent_and_given_back() {
        let machine = FakeMachine::new();
        machine.drive("0000:01:00.0", "nvme", 7);
        let root = machine.root();
        // The files of this machine do what they are told only as far as files do.
        let bound = bind(root, "0000:01:00.0");
        assert!(matches!(bound, Err(BindRefusal::NotTaken(..))), "{bound:?}");
        let folder = device_folder(root, "0000:01:00.0");
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        let found = super::super::drives(root);
        let steps = steps_to_bind(root, &found[0]).unwrap();
        assert_eq!(
            steps[0],
            (folder.join("driver_override"), "vfio-pci".into())
        );
        assert_eq!(read(folder.join("driver_override")), "\n", "undone");
        assert!(!record(root, "0000:01:00.0").exists());
        assert_eq!(
            read(root.join("sys/bus/pci/drivers/nvme/unbind")),
            "0000:01:00.0"
        );
        assert_eq!(read(root.join("sys/bus/pci/drivers_probe")), "0000:01:00.0");
        machine.set_driver("0000:01:00.0", "vfio-pci");
        assert!(matches!(
            bind(root, "0000:01:00.0"),
            Err(BindRefusal::Already(..))
        ));
        assert_eq!(unbind(root, "0000:01:00.0", false).unwrap(), "nvme");
        assert_eq!(read(folder.join("driver_override")), "\n");
        assert_eq!(
            read(root.join("sys/bus/pci/drivers/nvme/bind")),
            "0000:01:00.0"
        );
    }

    #[test]
    fn a_drive_that_nobody_took_gets_its_driver_back() {
        let machine = FakeMachine::new();
        machine.drive("0000:01:00.0", "nvme", 7);
        let root = machine.root();
        let folder = device_folder(root, "0000:01:00.0");
        let bind_file = root.join("sys/bus/pci/drivers/nvme/bind");
        // The kernel's driver lets go of it, and nobody takes it.
        remember(root, &super::super::drives(root)[0], "nvme").unwrap();
        fs::remove_file(folder.join("driver")).unwrap();
        restore(root, "0000:01:00.0", "nvme");
        assert_eq!(fs::read_to_string(&bind_file).unwrap(), "0000:01:00.0");
        // Nor did its own driver; a second attempt does not forget which that was.
        assert!(bind(root, "0000:01:00.0").is_err());
        assert_eq!(remembered(root, "0000:01:00.0"), "nvme");
        fs::remove_file(&bind_file).unwrap();
        assert_eq!(unbind(root, "0000:01:00.0", false).unwrap(), "nvme");
        assert_eq!(fs::read_to_string(&bind_file).unwrap(), "0000:01:00.0");
    }

    #[test]
    fn what_the_kernel_knew_of_a_lent_drive_is_still_known() {
        let machine = FakeMachine::new();
        let (root, address) = (machine.root(), "0000:01:00.0");
        machine.drive(address, "nvme", 7);
        machine.namespace(address, "nvme0", "nvme0n1", "259:0");
        remember(root, &super::super::drives(root)[0], "nvme").unwrap();
        // With its driver the kernel's view of it goes.
        fs::remove_dir_all(device_folder(root, address).join("nvme")).unwrap();
        machine.set_driver(address, "vfio-pci");
        let lent = || super::super::drives(root).remove(0);
        assert_eq!(lent().model.as_deref(), Some("Model X"));
        assert_eq!(lent().serial.as_deref(), Some("S1"));
        assert_eq!((lent().bytes(), lent().namespaces.len()), (1 << 30, 0));
        assert_eq!(remembered(root, address), "nvme");
        machine.file(&format!("sys/bus/pci/devices/{address}/device"), "0xa809\n");
        assert_eq!(lent().serial, None, "it is another one");
        // As earlier versions wrote it.
        fs::write(record(root, address), "nvme").unwrap();
        assert_eq!(remembered(root, address), "nvme");
        assert_eq!(lent().serial, None);
    }

    #[test]
    fn loop_devices_and_the_kernels_target_count() {
        let machine = FakeMachine::new();
        machine.drive("0000:01:00.0", "nvme", 7);
        machine.namespace("0000:01:00.0", "nvme0", "nvme0n1", "259:0");
        let why = |file: &str, expected: &str| {
            machine.file(file, "/dev/nvme0n1\n");
            let refused = bind(machine.root(), "0000:01:00.0").unwrap_err();
            assert!(refused.to_string().ends_with(expected), "{refused}");
            fs::remove_file(machine.root().join(file)).unwrap();
        };
        why(
            "sys/block/loop3/loop/backing_file",
            "nvme0n1 is behind loop3",
        );
        why(
            "sys/kernel/config/nvmet/subsystems/nqn.x/namespaces/1/device_path",
            "nvme0n1 is exported by nvmet as nqn.x",
        );
    }

    #[test]
    fn a_drive_in_use_is_left_alone() {
        let machine = FakeMachine::new();
        machine.drive("0000:01:00.0", "nvme", 7);
        machine.namespace("0000:01:00.0", "nvme0", "nvme0n1", "259:0");
        machine.file(
            "proc/self/mountinfo",
            "30 1 259:0 / /home rw - ext4 /dev/nvme0n1 rw\n",
        );
        let error = bind(machine.root(), "0000:01:00.0").unwrap_err();
        assert_eq!(
            error.to_string(),
            "0000:01:00.0 is in use: nvme0n1 is mounted on /home"
        );
        let folder = device_folder(machine.root(), "0000:01:00.0");
        assert!(!folder.join("driver_override").exists());
    }

    #[test]
    fn a_process_keeps_what_it_has_open() {
        use std::os::unix::fs::symlink;
        let machine = FakeMachine::new();
        machine.drive("0000:01:00.0", "nvme", 7);
        machine.namespace("0000:01:00.0", "nvme0", "nvme0n1", "259:0");
        let root = machine.root();
        let mut process = 10;
        let mut open = |name: &str, device: &str| {
            process += 1;
            machine.file(&format!("proc/{process}/comm"), &format!("{name}\n"));
            fs::create_dir_all(root.join(format!("proc/{process}/fd"))).unwrap();
            symlink(device, root.join(format!("proc/{process}/fd/3"))).unwrap();
        };
        open("other", "/dev/nvme0n10");
        open("(udev-worker)", "/dev/nvme0n1");
        open("vm", "/dev/vfio/7");
        let bound = bind(root, "0000:01:00.0");
        assert!(matches!(bound, Err(BindRefusal::NotTaken(..))), "{bound:?}");
        open("corebay", "/dev/nvme0n1p2");
        let refused = bind(root, "0000:01:00.0").unwrap_err().to_string();
        let expected = "0000:01:00.0 is in use: corebay (process 14) has nvme0n1p2 open";
        assert_eq!(refused, expected);
        machine.set_driver("0000:01:00.0", "vfio-pci");
        let refused = unbind(root, "0000:01:00.0", false).unwrap_err();
        assert!(refused.help().contains("--force"), "{refused}");
        let expected = "0000:01:00.0 is in use: vm (process 13) drives it";
        assert_eq!(refused.to_string(), expected);
        assert!(unbind(root, "0000:01:00.0", true).is_ok());
    }

    #[test]
    fn a_shared_group_a_missing_iommu_and_an_unknown_drive_are_refused() {
        let machine = FakeMachine::new();
        machine.drive("0000:01:00.0", "nvme", 7);
        machine.device("0000:01:00.1", "0x020000", Some(7));
        machine.drive_without_group("0000:02:00.0");
        let refused = |address| bind(machine.root(), address).unwrap_err();
        let shared = refused("0000:01:00.0");
        assert!(
            shared.to_string().ends_with("with 0000:01:00.1"),
            "{shared}"
        );
        assert!(shared.help().contains("slot"));
        assert!(matches!(refused("0000:02:00.0"), BindRefusal::NoIommu(_)));
        assert!(matches!(refused("0000:09:00.0"), BindRefusal::Unknown(_)));
        assert!(matches!(
            unbind(machine.root(), "0000:01:00.0", true),
            Err(BindRefusal::Already(..))
        ));
    }
}
