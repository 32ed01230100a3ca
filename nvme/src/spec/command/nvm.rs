//! The NVM command set's I/O commands: opcodes and fields.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::SubmissionEntry;

/// Flush (Base, section 7.2).
pub const FLUSH: u8 = 0x00;
/// Write (NVM, section 3.3.6).
pub const WRITE: u8 = 0x01;
/// Read (NVM, section 3.3.4).
pub const READ: u8 = 0x02;
/// Write Uncorrectable (NVM, section 3.3.7).
pub const WRITE_UNCORRECTABLE: u8 = 0x04;
/// Compare (NVM, section 3.3.1).
pub const COMPARE: u8 = 0x05;
/// Write Zeroes (NVM, section 3.3.8).
pub const WRITE_ZEROES: u8 = 0x08;
/// Dataset Management (NVM, section 3.3.3).
pub const DATASET_MANAGEMENT: u8 = 0x09;
/// Verify (NVM, section 3.3.5).
pub const VERIFY: u8 = 0x0C;
/// Reservation Register (Base, section 7.6).
pub const RESERVATION_REGISTER: u8 = 0x0D;
/// Reservation Report (Base, section 7.8).
pub const RESERVATION_REPORT: u8 = 0x0E;
/// Reservation Acquire (Base, section 7.5).
pub const RESERVATION_ACQUIRE: u8 = 0x11;
/// I/O Management Receive (Base, section 7.3).
pub const IO_MANAGEMENT_RECEIVE: u8 = 0x12;
/// Reservation Release (Base, section 7.7).
pub const RESERVATION_RELEASE: u8 = 0x15;
/// Cancel (Base, section 7.1).
pub const CANCEL: u8 = 0x18;
/// Copy (NVM, section 3.3.2).
pub const COPY: u8 = 0x19;
/// I/O Management Send (Base, section 7.4).
pub const IO_MANAGEMENT_SEND: u8 = 0x1D;

/// The most blocks of one command: NLB is 16 bits wide and 0's based.
pub const BLOCKS_MAX: u32 = 1 << 16;
/// The most ranges of one Dataset Management or Copy command.
pub const RANGES_MAX: usize = 256;
/// The bit of CDW12 for Limited Retry.
pub const LR: u32 = 1 << 31;
/// The bit of CDW12 for Force Unit Access.
pub const FUA: u32 = 1 << 30;
/// The bit of CDW12 for Deallocate, in Write Zeroes.
pub const DEAC: u32 = 1 << 25;
/// The bit of CDW12 for Storage Tag Check.
pub const STC: u32 = 1 << 24;
/// The bit of CDW12 for Namespace Zeroes, in Write Zeroes.
pub const NSZ: u32 = 1 << 23;
/// The bit of CDW11 for Attribute Deallocate, in Dataset Management.
pub const AD: u32 = 1 << 2;
/// The bit of CDW11 for Integral Dataset for Write, in Dataset Management.
pub const IDW: u32 = 1 << 1;
/// The bit of CDW11 for Integral Dataset for Read, in Dataset Management.
pub const IDR: u32 = 1;

fn blocks(cdw12: u32) -> u32 {
    (cdw12 & 0xFFFF) + 1
}

fn nlb(blocks: u32) -> u32 {
    blocks.clamp(1, BLOCKS_MAX) - 1
}

/// The fields of Read, Write, Compare, Verify and Write Uncorrectable (NVM, sections 3.3.1 and
/// 3.3.4 to 3.3.7). Those that a command hasn't got are reserved in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadWrite {
    /// Starting LBA.
    pub slba: u64,
    /// How many blocks, 1 to 65,536 (NLB + 1).
    pub blocks: u32,
    /// Force Unit Access.
    pub fua: bool,
    /// Limited Retry.
    pub lr: bool,
    /// Protection Information: PRACT in bit 3, PRCHK in bits 2:0.
    pub prinfo: u8,
    /// Storage Tag Check.
    pub stc: bool,
    /// Directive Type, of writes.
    pub dtype: u8,
    /// Directive Specific, of writes.
    pub dspec: u16,
    /// Command Extension Type.
    pub cetype: u8,
    /// Dataset Management hints.
    pub dsm: u8,
    /// CDW12 to CDW15 as they came.
    pub raw: [u32; 4],
}

impl From<&SubmissionEntry> for ReadWrite {
    fn from(entry: &SubmissionEntry) -> Self {
        let (cdw12, cdw13) = (entry.cdw12.get(), entry.cdw13.get());
        Self {
            slba: entry.cdw10_11(),
            blocks: blocks(cdw12),
            fua: cdw12 & FUA != 0,
            lr: cdw12 & LR != 0,
            prinfo: (cdw12 >> 26) as u8 & 0xF,
            stc: cdw12 & STC != 0,
            dtype: (cdw12 >> 20) as u8 & 0xF,
            dspec: (cdw13 >> 16) as u16,
            cetype: (cdw12 >> 16) as u8 & 0xF,
            dsm: cdw13 as u8,
            raw: [cdw12, cdw13, entry.cdw14.get(), entry.cdw15.get()],
        }
    }
}

/// Write Zeroes (NVM, section 3.3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteZeroes {
    /// Starting LBA.
    pub slba: u64,
    /// How many blocks, 1 to 65,536 (NLB + 1). Means nothing where `nsz` is set.
    pub blocks: u32,
    /// Force Unit Access.
    pub fua: bool,
    /// Deallocate: the host would have the blocks deallocated.
    pub deac: bool,
    /// Limited Retry.
    pub lr: bool,
    /// Namespace Zeroes: the whole namespace.
    pub nsz: bool,
    /// Protection Information: PRACT in bit 3, PRCHK in bits 2:0.
    pub prinfo: u8,
    /// Storage Tag Check.
    pub stc: bool,
}

impl From<&SubmissionEntry> for WriteZeroes {
    fn from(entry: &SubmissionEntry) -> Self {
        let cdw12 = entry.cdw12.get();
        Self {
            slba: entry.cdw10_11(),
            blocks: blocks(cdw12),
            fua: cdw12 & FUA != 0,
            deac: cdw12 & DEAC != 0,
            lr: cdw12 & LR != 0,
            nsz: cdw12 & NSZ != 0,
            prinfo: (cdw12 >> 26) as u8 & 0xF,
            stc: cdw12 & STC != 0,
        }
    }
}

/// Dataset Management (NVM, section 3.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatasetManagement {
    /// How many [`DsmRange`] the data holds, 1 to 256 (NR + 1).
    pub ranges: usize,
    /// Attribute Deallocate (AD).
    pub deallocate: bool,
    /// Integral Dataset for Read, a hint.
    pub idr: bool,
    /// Integral Dataset for Write, a hint.
    pub idw: bool,
}

impl From<&SubmissionEntry> for DatasetManagement {
    fn from(entry: &SubmissionEntry) -> Self {
        let cdw11 = entry.cdw11.get();
        Self {
            ranges: (entry.cdw10.get() & 0xFF) as usize + 1,
            deallocate: cdw11 & AD != 0,
            idr: cdw11 & IDR != 0,
            idw: cdw11 & IDW != 0,
        }
    }
}

impl DatasetManagement {
    /// The bytes of the ranges.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.ranges * size_of::<DsmRange>()
    }
}

/// A range of a Dataset Management command (NVM, section 3.3.3.1).
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
pub struct DsmRange {
    /// Context Attributes, bytes 3:0: hints.
    pub cattr: U32,
    /// Length in logical blocks, bytes 7:4; not 0's based.
    pub nlb: U32,
    /// Starting LBA, bytes 15:8.
    pub slba: U64,
}

const _: () = assert!(size_of::<DsmRange>() == 16);

impl DsmRange {
    /// A range without hints.
    #[must_use]
    pub const fn new(slba: u64, nlb: u32) -> Self {
        Self {
            cattr: U32::ZERO,
            nlb: U32::new(nlb),
            slba: U64::new(slba),
        }
    }
}

/// Copy (NVM, section 3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Starting Destination LBA.
    pub sdlba: u64,
    /// How many source ranges the data holds, 1 to 256 (NR + 1).
    pub ranges: usize,
    /// Descriptor Format of the source ranges.
    pub desfmt: u8,
    /// Force Unit Access of the write part.
    pub fua: bool,
    /// Limited Retry.
    pub lr: bool,
    /// Protection Information of the read part.
    pub prinfor: u8,
    /// Protection Information of the write part.
    pub prinfow: u8,
    /// Storage Tag Check of the read part.
    pub stcr: bool,
    /// Storage Tag Check of the write part.
    pub stcw: bool,
    /// Directive Type of the write part.
    pub dtype: u8,
    /// Directive Specific of the write part.
    pub dspec: u16,
}

impl From<&SubmissionEntry> for Copy {
    fn from(entry: &SubmissionEntry) -> Self {
        let cdw12 = entry.cdw12.get();
        Self {
            sdlba: entry.cdw10_11(),
            ranges: (cdw12 & 0xFF) as usize + 1,
            desfmt: (cdw12 >> 8) as u8 & 0xF,
            fua: cdw12 & FUA != 0,
            lr: cdw12 & LR != 0,
            prinfor: (cdw12 >> 12) as u8 & 0xF,
            prinfow: (cdw12 >> 26) as u8 & 0xF,
            stcr: cdw12 & 1 << 25 != 0,
            stcw: cdw12 & STC != 0,
            dtype: (cdw12 >> 20) as u8 & 0xF,
            dspec: (entry.cdw13.get() >> 16) as u16,
        }
    }
}

/// A source range of a Copy command, Descriptor Format 0h (NVM, section 3.3.2.1). Format 2h has the
/// same layout with SNSID and SOPT in use.
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
pub struct CopyRangeFormat0 {
    /// Source Namespace Identifier, bytes 3:0; reserved in format 0h.
    pub snsid: U32,
    /// Reserved, bytes 7:4.
    pub reserved1: U32,
    /// Starting LBA, bytes 15:8.
    pub slba: U64,
    /// Number of Logical Blocks, bytes 17:16; 0's based.
    pub nlb: U16,
    /// Reserved, bytes 21:18.
    pub reserved2: [u8; 4],
    /// Source Options, bytes 23:22; reserved in format 0h.
    pub sopt: U16,
    /// Expected Initial Logical Block Reference Tag, bytes 27:24.
    pub eilbrt: U32,
    /// Expected Logical Block Application Tag, bytes 29:28.
    pub elbat: U16,
    /// Expected Logical Block Application Tag Mask, bytes 31:30.
    pub elbatm: U16,
}

const _: () = {
    assert!(size_of::<CopyRangeFormat0>() == 32);
    assert!(std::mem::offset_of!(CopyRangeFormat0, slba) == 8);
    assert!(std::mem::offset_of!(CopyRangeFormat0, nlb) == 16);
    assert!(std::mem::offset_of!(CopyRangeFormat0, eilbrt) == 24);
};

impl CopyRangeFormat0 {
    /// The range of `blocks` blocks, 1 to 65,536 (other counts are brought into that range), from
    /// `slba`.
    #[must_use]
    pub fn new(slba: u64, blocks: u32) -> Self {
        Self {
            slba: U64::new(slba),
            nlb: U16::new(nlb(blocks) as u16),
            ..Self::default()
        }
    }

    /// How many blocks, 1 to 65,536.
    #[must_use]
    pub const fn blocks(&self) -> u32 {
        self.nlb.get() as u32 + 1
    }
}

fn io(opc: u8, nsid: u32, slba: u64, blocks: u32, bits: u32) -> SubmissionEntry {
    debug_assert!((1..=BLOCKS_MAX).contains(&blocks), "{blocks} blocks");
    let mut entry = SubmissionEntry::new(opc, nsid);
    entry.set_cdw10_11(slba);
    entry.cdw12 = U32::new(nlb(blocks) | bits);
    entry
}

fn bit(on: bool, mask: u32) -> u32 {
    if on { mask } else { 0 }
}

/// A Flush command.
#[must_use]
pub fn flush(nsid: u32) -> SubmissionEntry {
    SubmissionEntry::new(FLUSH, nsid)
}

/// A Read command of 1 to 65,536 blocks.
#[must_use]
pub fn read(nsid: u32, slba: u64, blocks: u32) -> SubmissionEntry {
    io(READ, nsid, slba, blocks, 0)
}

/// A Write command of 1 to 65,536 blocks.
#[must_use]
pub fn write(nsid: u32, slba: u64, blocks: u32, fua: bool) -> SubmissionEntry {
    io(WRITE, nsid, slba, blocks, bit(fua, FUA))
}

/// A Compare command of 1 to 65,536 blocks.
#[must_use]
pub fn compare(nsid: u32, slba: u64, blocks: u32) -> SubmissionEntry {
    io(COMPARE, nsid, slba, blocks, 0)
}

/// A Verify command of 1 to 65,536 blocks.
#[must_use]
pub fn verify(nsid: u32, slba: u64, blocks: u32) -> SubmissionEntry {
    io(VERIFY, nsid, slba, blocks, 0)
}

/// A Write Uncorrectable command of 1 to 65,536 blocks.
#[must_use]
pub fn write_uncorrectable(nsid: u32, slba: u64, blocks: u32) -> SubmissionEntry {
    io(WRITE_UNCORRECTABLE, nsid, slba, blocks, 0)
}

/// A Write Zeroes command of 1 to 65,536 blocks; `deac` asks for them to be deallocated.
#[must_use]
pub fn write_zeroes(nsid: u32, slba: u64, blocks: u32, deac: bool, fua: bool) -> SubmissionEntry {
    io(
        WRITE_ZEROES,
        nsid,
        slba,
        blocks,
        bit(deac, DEAC) | bit(fua, FUA),
    )
}

/// A Dataset Management command of 1 to 256 ranges; `attributes` is of [`AD`], [`IDR`], [`IDW`].
#[must_use]
pub fn dataset_management(nsid: u32, ranges: usize, attributes: u32) -> SubmissionEntry {
    let mut entry = SubmissionEntry::new(DATASET_MANAGEMENT, nsid);
    entry.cdw10 = U32::new(nr(ranges));
    entry.cdw11 = U32::new(attributes);
    entry
}

/// A Dataset Management command that deallocates 1 to 256 ranges.
#[must_use]
pub fn deallocate(nsid: u32, ranges: usize) -> SubmissionEntry {
    dataset_management(nsid, ranges, AD)
}

/// A Copy command of 1 to 256 source ranges of format 0h.
#[must_use]
pub fn copy(nsid: u32, sdlba: u64, ranges: usize, fua: bool) -> SubmissionEntry {
    let mut entry = SubmissionEntry::new(COPY, nsid);
    entry.set_cdw10_11(sdlba);
    entry.cdw12 = U32::new(nr(ranges) | bit(fua, FUA));
    entry
}

fn nr(ranges: usize) -> u32 {
    debug_assert!((1..=RANGES_MAX).contains(&ranges), "{ranges} ranges");
    ranges.clamp(1, RANGES_MAX) as u32 - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_as_it_lies_on_the_wire() {
        let entry = write(1, 0x0102_0304_0506, 8, true);
        let bytes = entry.as_bytes();
        assert_eq!(bytes[0], 0x01);
        assert_eq!(bytes[40..52], [6, 5, 4, 3, 2, 1, 0, 0, 7, 0, 0, 0x40]);
        let view = ReadWrite::from(&entry);
        assert_eq!(
            (view.slba, view.blocks, view.fua),
            (0x0102_0304_0506, 8, true)
        );
        assert!(!view.lr);
        assert_eq!(ReadWrite::from(&read(1, 0, BLOCKS_MAX)).blocks, BLOCKS_MAX);
    }

    #[test]
    fn zeroes_ranges_and_copies() {
        let zeroes = WriteZeroes::from(&write_zeroes(1, 5, 9, true, false));
        assert_eq!((zeroes.slba, zeroes.blocks), (5, 9));
        assert!(zeroes.deac && !zeroes.fua && !zeroes.nsz);
        let dsm = DatasetManagement::from(&deallocate(1, 256));
        assert_eq!((dsm.ranges, dsm.bytes()), (256, 4096));
        assert!(dsm.deallocate && !dsm.idr && !dsm.idw);
        let copied = Copy::from(&copy(1, 77, 3, true));
        assert_eq!((copied.sdlba, copied.ranges, copied.desfmt), (77, 3, 0));
        assert!(copied.fua && !copied.stcr);
        let range = CopyRangeFormat0::new(9, 65_536);
        assert_eq!((range.nlb.get(), range.blocks()), (0xFFFF, 65_536));
        let bytes = [0, 0, 0, 0, 8, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            DsmRange::read_from_bytes(&bytes).unwrap(),
            DsmRange::new(4096, 8)
        );
    }
}
