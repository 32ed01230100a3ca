//! Admin commands that read, to a drive that the kernel's driver has, by its character device.
//!
//! Invariant: nothing but Identify Controller and log pages without side effects is sent.

#![allow(unsafe_code)]

use std::{fs::File, io, os::fd::AsFd, path::Path};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{device_folder, folders, name_of};
use crate::{
    pcie::DriveReport,
    spec::{
        command::{
            NSID_ALL, SubmissionEntry,
            admin::{get_log_page, identify},
        },
        identify::{IdentifyController, cns},
        log::{FirmwareSlotLog, SmartLog, lid},
    },
};

/// NVME_IOCTL_ADMIN_CMD: `_IOWR('N', 0x41, struct nvme_passthru_cmd)`.
const ADMIN_COMMAND: rustix::ioctl::Opcode = 0xC048_4E41;

/// How long a command may take.
const TIMEOUT_MS: u32 = 10_000;

/// The bytes of Identify Controller.
const PAGE_BYTES: usize = 4096;

/// The kernel's `struct nvme_passthru_cmd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Passthrough {
    opcode: u8,
    flags: u8,
    _reserved: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<Passthrough>() == 72);

/// What a drive of the kernel's says of itself.
///
/// # Errors
/// Where the kernel's driver does not have it, may not be asked, or the drive does not answer.
pub fn report(root: &Path, address: &str) -> io::Result<DriveReport> {
    let controllers = folders(&device_folder(root, address).join("nvme"));
    let name = controllers.first().and_then(|path| name_of(path));
    let name = name.ok_or(io::ErrorKind::NotFound)?;
    let device = File::open(root.join("dev").join(name))?;
    let log = |lid, bytes: usize| get_log_page(lid, NSID_ALL, 0, (bytes / 4) as u32, true);
    let controller: IdentifyController = read(&device, identify(cns::CONTROLLER, 0, 0))?;
    let smart = read(&device, log(lid::SMART, size_of::<SmartLog>()))?;
    let slots = log(lid::FIRMWARE_SLOT, size_of::<FirmwareSlotLog>());
    // A controller that has but one slot may not tell of it.
    let slots = read(&device, slots).unwrap_or_else(|_| FirmwareSlotLog::new_zeroed());
    Ok(DriveReport::parse(&controller, &smart, &slots))
}

/// Runs a command whose data are a structure, which fits a page.
fn read<T>(device: &File, entry: SubmissionEntry) -> io::Result<T>
where
    T: FromBytes + IntoBytes + KnownLayout + Immutable,
{
    assert!(size_of::<T>() <= PAGE_BYTES);
    let mut data = T::new_zeroed();
    let mut command = Passthrough {
        opcode: entry.opc,
        nsid: entry.nsid.get(),
        address: std::ptr::from_mut(&mut data) as u64,
        data_len: size_of::<T>() as u32,
        cdw10: entry.cdw10.get(),
        cdw11: entry.cdw11.get(),
        cdw12: entry.cdw12.get(),
        cdw13: entry.cdw13.get(),
        cdw14: entry.cdw14.get(),
        cdw15: entry.cdw15.get(),
        timeout_ms: TIMEOUT_MS,
        ..Passthrough::default()
    };
    // SAFETY: the structure is that of the call, and the kernel writes `data_len` bytes at `address` at
    // most, which is all of `data`, of whose type every bit pattern is a value.
    let status = unsafe {
        let call = ByUpdate::<ADMIN_COMMAND>(&mut command);
        rustix::ioctl::ioctl(device.as_fd(), call)
    }?;
    match status {
        0 => Ok(data),
        status => Err(io::Error::other(format!(
            "the drive answers with status {status:#x}"
        ))),
    }
}

/// The call gives the command's status beside what it writes.
struct ByUpdate<'a, const OPCODE: rustix::ioctl::Opcode>(&'a mut Passthrough);

// SAFETY: the opcode is that of a call that reads and writes the structure, and returns a number.
unsafe impl<const OPCODE: rustix::ioctl::Opcode> rustix::ioctl::Ioctl for ByUpdate<'_, OPCODE> {
    type Output = i32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> rustix::ioctl::Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(
        out: rustix::ioctl::IoctlOutput,
        _: *mut rustix::ffi::c_void,
    ) -> rustix::io::Result<i32> {
        Ok(out)
    }
}
