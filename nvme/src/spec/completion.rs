//! Completion queue entries.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

use super::{
    command::{join, split},
    status::Status,
};

/// A completion queue entry (Base, section 4.2.1).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct CompletionEntry {
    /// Dword 0: command specific.
    pub dw0: U32,
    /// Dword 1: command specific.
    pub dw1: U32,
    /// SQ Head Pointer, dword 2 bits 15:0. Over fabrics, reserved where flow control is disabled.
    pub sqhd: U16,
    /// SQ Identifier, dword 2 bits 31:16. Reserved over fabrics.
    pub sqid: U16,
    /// Command Identifier, dword 3 bits 15:0.
    pub cid: U16,
    /// Dword 3 bits 31:16: the phase tag in bit 0 (reserved over fabrics), the status field above.
    pub status: U16,
}

const _: () = {
    assert!(size_of::<CompletionEntry>() == 16);
    assert!(std::mem::offset_of!(CompletionEntry, sqhd) == 8);
    assert!(std::mem::offset_of!(CompletionEntry, cid) == 12);
    assert!(std::mem::offset_of!(CompletionEntry, status) == 14);
};

impl CompletionEntry {
    /// The completion of command `cid` with this status; no result, phase 0.
    #[must_use]
    pub fn new(cid: u16, status: Status) -> Self {
        Self {
            cid: U16::new(cid),
            status: U16::new(status.to_wire(false)),
            ..Self::default()
        }
    }

    /// The successful completion of command `cid`.
    #[must_use]
    pub fn success(cid: u16) -> Self {
        Self::new(cid, Status::SUCCESS)
    }

    /// This completion with another status; the phase stays.
    #[must_use]
    pub fn with_status(mut self, status: Status) -> Self {
        self.status = U16::new(status.to_wire(self.phase()));
        self
    }

    /// This completion with dwords 0 and 1.
    #[must_use]
    pub fn with_result(mut self, result: u64) -> Self {
        (self.dw0, self.dw1) = split(result);
        self
    }

    /// This completion with dword 0.
    #[must_use]
    pub const fn with_dw0(mut self, dw0: u32) -> Self {
        self.dw0 = U32::new(dw0);
        self
    }

    /// This completion with a submission queue head.
    #[must_use]
    pub const fn with_sqhd(mut self, sqhd: u16) -> Self {
        self.sqhd = U16::new(sqhd);
        self
    }

    /// This completion with a submission queue identifier.
    #[must_use]
    pub const fn with_sqid(mut self, sqid: u16) -> Self {
        self.sqid = U16::new(sqid);
        self
    }

    /// This completion with a phase tag.
    #[must_use]
    pub fn with_phase(mut self, phase: bool) -> Self {
        self.status = U16::new(self.status().to_wire(phase));
        self
    }

    /// Dwords 0 and 1 as one number.
    #[must_use]
    pub fn result(&self) -> u64 {
        join(self.dw0, self.dw1)
    }

    /// The status field.
    #[must_use]
    pub const fn status(&self) -> Status {
        Status::from_wire(self.status.get())
    }

    /// The phase tag.
    #[must_use]
    pub const fn phase(&self) -> bool {
        self.status.get() & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_as_it_lies_on_the_wire() {
        let entry = CompletionEntry::new(0x1234, Status::LBA_OUT_OF_RANGE.with_dnr())
            .with_result(0x0807_0605_0403_0201)
            .with_sqhd(0x0A09)
            .with_sqid(0x0C0B);
        let expected = [
            1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x34, 0x12, 0x00, 0x81,
        ];
        assert_eq!(entry.as_bytes(), expected);
        assert_eq!(CompletionEntry::read_from_bytes(&expected).unwrap(), entry);
        assert_eq!(entry.result(), 0x0807_0605_0403_0201);
        let phased = entry.with_phase(true);
        assert!(phased.phase() && phased.status() == entry.status());
        let success = phased.with_status(Status::SUCCESS);
        assert!(success.phase() && success.status().is_success());
        assert_eq!(CompletionEntry::success(7).status.get(), 0);
    }
}
