//! The one place where a disk's error becomes an NVMe status.

use corebay_core::disk::DiskError;
use corebay_nvme::spec::status::Status;

/// The status that tells a host of a disk's error. "Do not retry" is set where trying again cannot
/// help.
#[must_use]
pub fn from_disk(error: DiskError) -> Status {
    match error {
        DiskError::OutOfRange => Status::LBA_OUT_OF_RANGE.with_dnr(),
        DiskError::UnrecoveredRead => Status::UNRECOVERED_READ_ERROR.with_dnr(),
        DiskError::WriteFault => Status::WRITE_FAULT.with_dnr(),
        DiskError::NoSpace => Status::CAPACITY_EXCEEDED.with_dnr(),
        DiskError::Unsupported => Status::INVALID_OPCODE.with_dnr(),
        DiskError::TimedOut => Status::COMMAND_INTERRUPTED,
        // Final, and so over every path to this target. A path-related status without DNR would have
        // a host with multipath send the command again on the path that it has, for ever.
        DiskError::Gone => Status::INTERNAL_ERROR.with_dnr(),
        DiskError::Internal(_) => Status::INTERNAL_ERROR,
    }
}
