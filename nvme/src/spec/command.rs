//! Submission queue entries: the common fields, opcodes and which way data goes; the commands'
//! own fields are in [`admin`] and [`nvm`] and in [`fabrics`](super::fabrics).
//!
//! Invariants:
//! - A view of a command (`Identify::from(&entry)` and its like) never fails: it takes the fields
//!   apart, and whether they make sense is for the one who executes the command.
//! - Counts in views are counts. The 0's based form is seen on the wire alone.
//! - A builder leaves CID 0 and the data pointer empty: a queue puts these in.

pub mod admin;
pub mod nvm;
pub mod queues;

pub use admin::{Abort, GetFeatures, GetLogPage, Identify, SetFeatures};
pub use nvm::{Copy, CopyRangeFormat0, DatasetManagement, DsmRange, ReadWrite, WriteZeroes};
pub use queues::{CreateCompletionQueue, CreateSubmissionQueue};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::sgl::{Sgl, SglDescriptor};

/// The opcode of all fabrics commands, on the admin queue and on I/O queues (Base, section 6).
pub const FABRICS: u8 = 0x7F;
/// The namespace identifier that means all namespaces (Base, section 3.2.1.5).
pub const NSID_ALL: u32 = 0xFFFF_FFFF;
/// The command identifier that no command should have: error log entries use it for "none" (Base,
/// section 4.1, CID).
pub const CID_RESERVED: u16 = 0xFFFF;
/// PSDT in `flags`: the data pointer is an SGL, metadata is a contiguous buffer. What fabrics
/// commands use (Base, section 4.1).
pub const FLAGS_PSDT_SGL: u8 = 0x40;

/// A submission queue entry (Base, section 4.1).
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
pub struct SubmissionEntry {
    /// Opcode, CDW0 bits 7:0.
    pub opc: u8,
    /// CDW0 bits 15:8: FUSE in bits 1:0, PSDT in bits 7:6.
    pub flags: u8,
    /// Command Identifier, CDW0 bits 31:16.
    pub cid: U16,
    /// Namespace Identifier, CDW1. In a fabrics command, FCTYPE is its lowest byte.
    pub nsid: U32,
    /// CDW2, command specific.
    pub cdw2: U32,
    /// CDW3, command specific.
    pub cdw3: U32,
    /// Metadata Pointer, CDW4 and CDW5.
    pub mptr: U64,
    /// Data Pointer, CDW6 to CDW9: two PRP entries or one SGL descriptor.
    pub dptr: [u8; 16],
    /// CDW10, command specific.
    pub cdw10: U32,
    /// CDW11, command specific.
    pub cdw11: U32,
    /// CDW12, command specific.
    pub cdw12: U32,
    /// CDW13, command specific.
    pub cdw13: U32,
    /// CDW14, command specific.
    pub cdw14: U32,
    /// CDW15, command specific.
    pub cdw15: U32,
}

const _: () = {
    assert!(size_of::<SubmissionEntry>() == 64);
    assert!(std::mem::offset_of!(SubmissionEntry, mptr) == 16);
    assert!(std::mem::offset_of!(SubmissionEntry, dptr) == 24);
    assert!(std::mem::offset_of!(SubmissionEntry, cdw10) == 40);
};

/// Whether a command is part of a fused operation (Base, section 4.1, FUSE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Fuse {
    /// An ordinary command.
    Normal = 0,
    /// The first command of a fused operation.
    First = 1,
    /// The second command of a fused operation.
    Second = 2,
    /// The reserved value.
    Reserved = 3,
}

/// What the data pointer holds (Base, section 4.1, PSDT).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Psdt {
    /// PRP entries.
    Prp = 0,
    /// An SGL; the metadata pointer is the address of a buffer.
    Sgl = 1,
    /// An SGL; the metadata pointer is the address of an SGL segment.
    SglMetadataSgl = 2,
    /// The reserved value.
    Reserved = 3,
}

/// Which way a command's data goes, as its opcode tells (Base, section 3.1.3.4 and 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DataDirection {
    /// The command transfers no data.
    None = 0,
    /// From the host to the controller, as in a write.
    HostToController = 1,
    /// From the controller to the host, as in a read.
    ControllerToHost = 2,
    /// Both ways.
    Both = 3,
}

impl DataDirection {
    /// The direction in the two lowest bits of an opcode, or of a FCTYPE.
    #[must_use]
    pub const fn from_opcode(opcode: u8) -> Self {
        match opcode & 3 {
            0 => Self::None,
            1 => Self::HostToController,
            2 => Self::ControllerToHost,
            _ => Self::Both,
        }
    }
}

impl SubmissionEntry {
    /// A command with this opcode and namespace, all else zero.
    #[must_use]
    pub fn new(opc: u8, nsid: u32) -> Self {
        Self {
            opc,
            nsid: U32::new(nsid),
            ..Self::default()
        }
    }

    /// Whether the command is part of a fused operation.
    #[must_use]
    pub const fn fuse(&self) -> Fuse {
        match self.flags & 3 {
            0 => Fuse::Normal,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// What the data pointer holds.
    #[must_use]
    pub const fn psdt(&self) -> Psdt {
        match self.flags >> 6 {
            0 => Psdt::Prp,
            1 => Psdt::Sgl,
            2 => Psdt::SglMetadataSgl,
            _ => Psdt::Reserved,
        }
    }

    /// Whether this is a fabrics command.
    #[must_use]
    pub const fn is_fabrics(&self) -> bool {
        self.opc == FABRICS
    }

    /// FCTYPE of a fabrics command: see [`fctype`](super::fabrics::fctype).
    #[must_use]
    pub fn fctype(&self) -> u8 {
        self.nsid.get() as u8
    }

    /// Which way the command's data goes, if it has any: by its opcode, and by FCTYPE where it is a
    /// fabrics command.
    #[must_use]
    pub fn data_direction(&self) -> DataDirection {
        DataDirection::from_opcode(if self.is_fabrics() {
            self.fctype()
        } else {
            self.opc
        })
    }

    /// The data pointer as an SGL descriptor.
    #[must_use]
    pub fn sgl(&self) -> SglDescriptor {
        SglDescriptor::from_bytes(self.dptr)
    }

    /// The data pointer as an SGL descriptor, taken apart.
    #[must_use]
    pub fn sgl_parsed(&self) -> Sgl {
        self.sgl().parse()
    }

    /// Puts an SGL descriptor into the data pointer and says so in PSDT.
    pub fn set_sgl(&mut self, sgl: SglDescriptor) {
        self.dptr = sgl.to_bytes();
        self.flags = self.flags & 0x3F | FLAGS_PSDT_SGL;
    }

    /// This command with an SGL descriptor as its data pointer.
    #[must_use]
    pub fn with_sgl(mut self, sgl: impl Into<SglDescriptor>) -> Self {
        self.set_sgl(sgl.into());
        self
    }

    /// This command with this identifier.
    #[must_use]
    pub const fn with_cid(mut self, cid: u16) -> Self {
        self.cid = U16::new(cid);
        self
    }

    /// This command as this part of a fused operation.
    #[must_use]
    pub const fn with_fuse(mut self, fuse: Fuse) -> Self {
        self.flags = self.flags & 0xFC | fuse as u8;
        self
    }

    /// CDW10 and CDW11 as one number: SLBA of most I/O commands.
    #[must_use]
    pub fn cdw10_11(&self) -> u64 {
        join(self.cdw10, self.cdw11)
    }

    /// Sets CDW10 and CDW11 from one number.
    pub fn set_cdw10_11(&mut self, value: u64) {
        (self.cdw10, self.cdw11) = split(value);
    }
}

pub(super) fn join(low: U32, high: U32) -> u64 {
    u64::from(low.get()) | u64::from(high.get()) << 32
}

pub(super) fn split(value: u64) -> (U32, U32) {
    (U32::new(value as u32), U32::new((value >> 32) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::fabrics::fctype;

    #[test]
    fn directions() {
        let of = |opc| SubmissionEntry::new(opc, 1).data_direction();
        assert_eq!(of(nvm::FLUSH), DataDirection::None);
        assert_eq!(of(nvm::WRITE), DataDirection::HostToController);
        assert_eq!(of(nvm::READ), DataDirection::ControllerToHost);
        assert_eq!(of(nvm::WRITE_ZEROES), DataDirection::None);
        assert_eq!(of(nvm::COPY), DataDirection::HostToController);
        assert_eq!(of(admin::IDENTIFY), DataDirection::ControllerToHost);
        let fabrics = |kind: u8| SubmissionEntry::new(FABRICS, kind.into()).data_direction();
        assert_eq!(fabrics(fctype::CONNECT), DataDirection::HostToController);
        assert_eq!(fabrics(fctype::PROPERTY_GET), DataDirection::None);
        assert_eq!(
            fabrics(fctype::AUTHENTICATION_RECEIVE),
            DataDirection::ControllerToHost
        );
    }

    #[test]
    fn flags_keep_out_of_each_others_way() {
        let entry = SubmissionEntry::new(nvm::COMPARE, 1)
            .with_fuse(Fuse::First)
            .with_sgl(SglDescriptor::transport(512))
            .with_cid(0x0102);
        assert_eq!(entry.fuse(), Fuse::First);
        assert_eq!(entry.psdt(), Psdt::Sgl);
        assert_eq!(entry.sgl_parsed(), Sgl::TransportDataBlock { len: 512 });
        assert_eq!(entry.as_bytes()[..8], [0x05, 0x41, 0x02, 0x01, 1, 0, 0, 0]);
        assert_eq!(entry.as_bytes()[32..40], [0, 2, 0, 0, 0, 0, 0, 0x5A]);
    }

    #[test]
    fn every_byte_pattern_is_an_entry() {
        let entry = SubmissionEntry::read_from_bytes(&[0xFF; 64]).unwrap();
        assert_eq!(entry.fuse(), Fuse::Reserved);
        assert_eq!(entry.psdt(), Psdt::Reserved);
        assert_eq!(ReadWrite::from(&entry).blocks, 65_536);
        assert_eq!(GetLogPage::from(&entry).bytes(), 1 << 34);
        assert_eq!(Copy::from(&entry).ranges, 256);
        assert!(DatasetManagement::from(&entry).deallocate);
    }
}
