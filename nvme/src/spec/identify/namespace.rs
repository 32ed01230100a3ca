//! The data structures that describe a namespace and the NVM command set's part of a controller: CNS 00h, 05h, 06h
//! and 08h (Base 2.1 section 5.1.13.2, NVM Command Set 1.1 section 4.1.5).

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// LBA Format data structure, NVM Command Set 1.1 section 4.1.5.1.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct LbaFormat {
    /// Metadata size, in bytes.
    pub ms: U16,
    /// LBA data size, a power of two of bytes; 0 means that the format is not supported.
    pub lbads: u8,
    /// Relative performance (bits 1:0), 0 best.
    pub rp: u8,
}

const _: () = assert!(size_of::<LbaFormat>() == 4);

/// Identify Namespace data structure (CNS 00h) of the NVM command set, NVM Command Set 1.1 section 4.1.5.1.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct IdentifyNamespace {
    /// Namespace size, in logical blocks.
    pub nsze: U64,
    /// Namespace capacity, in logical blocks.
    pub ncap: U64,
    /// Namespace utilization, in logical blocks.
    pub nuse: U64,
    /// Namespace features, see [`nsfeat`].
    pub nsfeat: u8,
    /// Number of LBA formats, 0-based.
    pub nlbaf: u8,
    /// Formatted LBA size, see [`flbas`].
    pub flbas: u8,
    /// Metadata capabilities: bit 0 as part of an extended LBA, bit 1 in a buffer of its own.
    pub mc: u8,
    /// End-to-end data protection capabilities.
    pub dpc: u8,
    /// End-to-end data protection type settings.
    pub dps: u8,
    /// Namespace multi-path I/O and namespace sharing capabilities, see [`nmic`].
    pub nmic: u8,
    /// Reservation capabilities, see [`rescap`].
    pub rescap: u8,
    /// Format progress indicator: bits 6:0 percent remaining, bit 7 supported.
    pub fpi: u8,
    /// Deallocate logical block features, see [`dlfeat`].
    pub dlfeat: u8,
    /// Namespace atomic write unit normal, in logical blocks, 0-based.
    pub nawun: U16,
    /// Namespace atomic write unit power fail, in logical blocks, 0-based.
    pub nawupf: U16,
    /// Namespace atomic compare and write unit, in logical blocks, 0-based.
    pub nacwu: U16,
    /// Namespace atomic boundary size normal, in logical blocks, 0-based; 0 means no boundary.
    pub nabsn: U16,
    /// Namespace atomic boundary offset: the LBA of the first boundary.
    pub nabo: U16,
    /// Namespace atomic boundary size power fail, in logical blocks, 0-based; 0 means no boundary.
    pub nabspf: U16,
    /// Namespace optimal I/O boundary, in logical blocks; 0 means not reported.
    pub noiob: U16,
    /// NVM capacity in bytes, little-endian.
    pub nvmcap: [u8; 16],
    /// Namespace preferred write granularity, in logical blocks, 0-based.
    pub npwg: U16,
    /// Namespace preferred write alignment, in logical blocks, 0-based.
    pub npwa: U16,
    /// Namespace preferred deallocate granularity, in logical blocks, 0-based.
    pub npdg: U16,
    /// Namespace preferred deallocate alignment, in logical blocks, 0-based.
    pub npda: U16,
    /// Namespace optimal write size, in logical blocks, 0-based.
    pub nows: U16,
    /// Maximum single source range length of Copy, in logical blocks.
    pub mssrl: U16,
    /// Maximum copy length, in logical blocks.
    pub mcl: U32,
    /// Maximum source range count of Copy, 0-based.
    pub msrc: u8,
    _reserved81: u8,
    /// Number of unique capability LBA formats.
    pub nulbaf: u8,
    /// Key per I/O status.
    pub kpios: u8,
    /// Maximum key tag.
    pub maxkt: U16,
    _reserved86: [u8; 2],
    /// Reachability group identifier.
    pub rgrpid: U32,
    /// ANA group identifier.
    pub anagrpid: U32,
    _reserved96: [u8; 3],
    /// Namespace attributes, see [`nsattr`].
    pub nsattr: u8,
    /// NVM set identifier.
    pub nvmsetid: U16,
    /// Endurance group identifier.
    pub endgid: U16,
    /// Namespace globally unique identifier, big-endian.
    pub nguid: [u8; 16],
    /// IEEE extended unique identifier, big-endian.
    pub eui64: [u8; 8],
    /// LBA formats.
    pub lbaf: [LbaFormat; 64],
    /// Vendor specific.
    pub vs: [u8; 3712],
}

const _: () = {
    assert!(size_of::<IdentifyNamespace>() == 4096);
    assert!(offset_of!(IdentifyNamespace, nsfeat) == 24);
    assert!(offset_of!(IdentifyNamespace, flbas) == 26);
    assert!(offset_of!(IdentifyNamespace, nmic) == 30);
    assert!(offset_of!(IdentifyNamespace, dlfeat) == 33);
    assert!(offset_of!(IdentifyNamespace, nawun) == 34);
    assert!(offset_of!(IdentifyNamespace, noiob) == 46);
    assert!(offset_of!(IdentifyNamespace, nvmcap) == 48);
    assert!(offset_of!(IdentifyNamespace, npwg) == 64);
    assert!(offset_of!(IdentifyNamespace, nows) == 72);
    assert!(offset_of!(IdentifyNamespace, mssrl) == 74);
    assert!(offset_of!(IdentifyNamespace, mcl) == 76);
    assert!(offset_of!(IdentifyNamespace, msrc) == 80);
    assert!(offset_of!(IdentifyNamespace, nulbaf) == 82);
    assert!(offset_of!(IdentifyNamespace, kpios) == 83);
    assert!(offset_of!(IdentifyNamespace, rgrpid) == 88);
    assert!(offset_of!(IdentifyNamespace, anagrpid) == 92);
    assert!(offset_of!(IdentifyNamespace, nsattr) == 99);
    assert!(offset_of!(IdentifyNamespace, nguid) == 104);
    assert!(offset_of!(IdentifyNamespace, eui64) == 120);
    assert!(offset_of!(IdentifyNamespace, lbaf) == 128);
    assert!(offset_of!(IdentifyNamespace, vs) == 384);
};

impl IdentifyNamespace {
    /// The format in use: the entry of `lbaf` that `flbas` names. The upper two bits of the index count only where
    /// more than 16 formats are supported.
    pub fn formatted(&self) -> LbaFormat {
        let low = self.flbas & flbas::INDEX_LOW_MASK;
        let high = (self.flbas & flbas::INDEX_HIGH_MASK) >> 5;
        let formats = u16::from(self.nlbaf) + u16::from(self.nulbaf) + 1;
        let index = if formats > 16 { high << 4 | low } else { low };
        self.lbaf[usize::from(index)]
    }
}

/// I/O Command Set Independent Identify Namespace data structure (CNS 08h), Base 2.1 section 5.1.13.2.8.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct IdentifyNamespaceIndependent {
    /// Common namespace features, see [`nsfeat_independent`].
    pub nsfeat: u8,
    /// Namespace multi-path I/O and namespace sharing capabilities, see [`nmic`].
    pub nmic: u8,
    /// Reservation capabilities, see [`rescap`].
    pub rescap: u8,
    /// Format progress indicator: bits 6:0 percent remaining, bit 7 supported.
    pub fpi: u8,
    /// ANA group identifier.
    pub anagrpid: U32,
    /// Namespace attributes, see [`nsattr`].
    pub nsattr: u8,
    _reserved9: u8,
    /// NVM set identifier.
    pub nvmsetid: U16,
    /// Endurance group identifier.
    pub endgid: U16,
    /// Namespace status, see [`nstat`].
    pub nstat: u8,
    /// Key per I/O status.
    pub kpios: u8,
    /// Maximum key tag.
    pub maxkt: U16,
    _reserved18: [u8; 2],
    /// Reachability group identifier.
    pub rgrpid: U32,
    _reserved24: [u8; 4072],
}

const _: () = {
    assert!(size_of::<IdentifyNamespaceIndependent>() == 4096);
    assert!(offset_of!(IdentifyNamespaceIndependent, anagrpid) == 4);
    assert!(offset_of!(IdentifyNamespaceIndependent, nsattr) == 8);
    assert!(offset_of!(IdentifyNamespaceIndependent, nvmsetid) == 10);
    assert!(offset_of!(IdentifyNamespaceIndependent, nstat) == 14);
    assert!(offset_of!(IdentifyNamespaceIndependent, rgrpid) == 20);
};

/// I/O Command Set specific Identify Namespace data structure (CNS 05h) of the NVM command set (CSI 00h),
/// NVM Command Set 1.1 section 4.1.5.3.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct IdentifyNamespaceNvm {
    /// Logical block storage tag mask.
    pub lbstm: U64,
    /// Protection information capabilities.
    pub pic: u8,
    /// Protection information format attribute.
    pub pifa: u8,
    _reserved10: [u8; 2],
    /// Extended LBA formats: bits 6:0 storage tag size, bits 8:7 protection information format.
    pub elbaf: [U32; 64],
    /// Namespace preferred deallocate granularity large, in logical blocks.
    pub npdgl: U32,
    /// Namespace preferred read granularity, in logical blocks.
    pub nprg: U32,
    /// Namespace preferred read alignment, in logical blocks.
    pub npra: U32,
    /// Namespace optimal read size, in logical blocks.
    pub nors: U32,
    /// Namespace preferred deallocate alignment large, in logical blocks.
    pub npdal: U32,
    /// LBA format placement shard size.
    pub lbapss: U32,
    /// Tracked LBA allocation granularity, in logical blocks.
    pub tlbaag: U32,
    _reserved296: [u8; 3800],
}

const _: () = {
    assert!(size_of::<IdentifyNamespaceNvm>() == 4096);
    assert!(offset_of!(IdentifyNamespaceNvm, pic) == 8);
    assert!(offset_of!(IdentifyNamespaceNvm, elbaf) == 12);
    assert!(offset_of!(IdentifyNamespaceNvm, npdgl) == 268);
    assert!(offset_of!(IdentifyNamespaceNvm, tlbaag) == 292);
};

/// I/O Command Set specific Identify Controller data structure (CNS 06h) of the NVM command set (CSI 00h),
/// NVM Command Set 1.1 section 4.1.5.4. The size limits are powers of two of the minimum memory page size; 0 means
/// no limit.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct IdentifyControllerNvm {
    /// Verify size limit.
    pub vsl: u8,
    /// Write zeroes size limit.
    pub wzsl: u8,
    /// Write uncorrectable size limit.
    pub wusl: u8,
    /// Dataset management ranges limit, in ranges; 0 means no limit.
    pub dmrl: u8,
    /// Dataset management range size limit, in logical blocks of one range; 0 means no limit.
    pub dmrsl: U32,
    /// Dataset management size limit, in logical blocks of all ranges; 0 means no limit.
    pub dmsl: U64,
    /// Key per I/O capabilities.
    pub kpiocap: u8,
    /// Write zeroes with deallocate size limit.
    pub wzdsl: u8,
    /// Admin optional command support: bit 0 reporting of allocated LBAs (RALBAS).
    pub aocs: U16,
    /// Version of the NVM Command Set specification.
    pub ver: U32,
    /// LBA migration queue format.
    pub lbamqf: u8,
    _reserved25: [u8; 4071],
}

const _: () = {
    assert!(size_of::<IdentifyControllerNvm>() == 4096);
    assert!(offset_of!(IdentifyControllerNvm, dmrl) == 3);
    assert!(offset_of!(IdentifyControllerNvm, dmrsl) == 4);
    assert!(offset_of!(IdentifyControllerNvm, dmsl) == 8);
    assert!(offset_of!(IdentifyControllerNvm, aocs) == 18);
    assert!(offset_of!(IdentifyControllerNvm, ver) == 20);
};

/// Bits of [`IdentifyNamespace::nsfeat`].
pub mod nsfeat {
    /// Thin provisioning (THINP): NCAP may be less than NSZE, NUSE is tracked.
    pub const THIN: u8 = 1 << 0;
    /// NAWUN, NAWUPF and NACWU are defined (NSABP).
    pub const ATOMICS: u8 = 1 << 1;
    /// The Deallocated or Unwritten Logical Block error is supported (DAE).
    pub const DEALLOCATED_ERROR: u8 = 1 << 2;
    /// NGUID and EUI64 are never reused (UIDREUSE).
    pub const ID_NEVER_REUSED: u8 = 1 << 3;
    /// NPWG, NPWA, NPDG, NPDA and NOWS are defined (the low bit of OPTPERF).
    pub const OPTIMAL_PERFORMANCE: u8 = 1 << 4;
    /// NPDGL (and NPDAL where reported) is defined (the high bit of OPTPERF).
    pub const OPTIMAL_PERFORMANCE_LARGE: u8 = 1 << 5;
    /// Multiple atomicity mode (MAM).
    pub const MULTIPLE_ATOMICITY: u8 = 1 << 6;
    /// NPRG, NPRA and NORS are defined (OPTRPERF).
    pub const OPTIMAL_READ: u8 = 1 << 7;
}

/// Bits of [`IdentifyNamespaceIndependent::nsfeat`], which has only those that every command set shares.
pub mod nsfeat_independent {
    /// NGUID and EUI64 are never reused (UIDREUSE).
    pub const ID_NEVER_REUSED: u8 = 1 << 3;
    /// The namespace is on rotational media (RMEDIA).
    pub const ROTATIONAL: u8 = 1 << 4;
    /// No volatile write cache is present for the namespace (VWCNP).
    pub const NO_WRITE_CACHE: u8 = 1 << 5;
}

/// Fields of [`IdentifyNamespace::flbas`].
pub mod flbas {
    /// The low four bits of the format's index.
    pub const INDEX_LOW_MASK: u8 = 0x0f;
    /// Metadata is transferred at the end of the data LBA.
    pub const METADATA_EXTENDED: u8 = 1 << 4;
    /// The high two bits of the format's index.
    pub const INDEX_HIGH_MASK: u8 = 0b11 << 5;
}

/// Bits of [`IdentifyNamespace::nmic`].
pub mod nmic {
    /// The namespace may be attached to two or more controllers at once (SHRNS).
    pub const SHARED: u8 = 1 << 0;
    /// Dispersed namespace (DISNS).
    pub const DISPERSED: u8 = 1 << 1;
}

/// Bits of [`IdentifyNamespace::rescap`].
pub mod rescap {
    /// Persist through power loss.
    pub const PERSIST: u8 = 1 << 0;
    /// Write Exclusive.
    pub const WRITE_EXCLUSIVE: u8 = 1 << 1;
    /// Exclusive Access.
    pub const EXCLUSIVE_ACCESS: u8 = 1 << 2;
    /// Write Exclusive - Registrants Only.
    pub const WRITE_EXCLUSIVE_REGISTRANTS: u8 = 1 << 3;
    /// Exclusive Access - Registrants Only.
    pub const EXCLUSIVE_ACCESS_REGISTRANTS: u8 = 1 << 4;
    /// Write Exclusive - All Registrants.
    pub const WRITE_EXCLUSIVE_ALL: u8 = 1 << 5;
    /// Exclusive Access - All Registrants.
    pub const EXCLUSIVE_ACCESS_ALL: u8 = 1 << 6;
    /// Ignore Existing Key as revision 1.3 and later define it.
    pub const IEKEY_1_3: u8 = 1 << 7;
}

/// Fields of [`IdentifyNamespace::dlfeat`].
pub mod dlfeat {
    /// What a deallocated block reads as (bits 2:0, DRB).
    pub const READ_MASK: u8 = 0b111;
    /// Not reported.
    pub const READ_NOT_REPORTED: u8 = 0;
    /// All bytes 00h.
    pub const READ_ZEROES: u8 = 1;
    /// All bytes FFh.
    pub const READ_ONES: u8 = 2;
    /// The Deallocate bit in Write Zeroes is supported (WZDS).
    pub const WRITE_ZEROES_DEALLOCATE: u8 = 1 << 3;
    /// The guard of a deallocated block is the CRC of its data (GDS).
    pub const GUARD_CRC: u8 = 1 << 4;
}

/// Bits of [`IdentifyNamespace::nsattr`].
pub mod nsattr {
    /// Currently write protected (CWP).
    pub const WRITE_PROTECTED: u8 = 1 << 0;
}

/// Bits of [`IdentifyNamespaceIndependent::nstat`].
pub mod nstat {
    /// Namespace ready (NRDY).
    pub const READY: u8 = 1 << 0;
    /// I/O impacted field (bits 2:1, IOI).
    pub const IO_IMPACTED_MASK: u8 = 0b11 << 1;
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn formatted_picks_the_format_that_flbas_names() {
        let mut namespace = IdentifyNamespace::new_zeroed();
        namespace.lbaf[1].lbads = 12;
        namespace.lbaf[33].lbads = 9;
        namespace.flbas = 0b0100_0001;
        namespace.nlbaf = 1;
        assert_eq!(namespace.formatted().lbads, 12);
        namespace.nlbaf = 63;
        assert_eq!(namespace.formatted().lbads, 9);
        namespace.flbas = 0xff;
        namespace.nlbaf = 0xff;
        namespace.nulbaf = 0xff;
        assert_eq!(namespace.formatted(), namespace.lbaf[63]);
    }

    #[test]
    fn fields_are_little_endian() {
        let mut namespace = IdentifyNamespace::new_zeroed();
        namespace.nsze = U64::new(0x0102_0304_0506_0708);
        namespace.anagrpid = U32::new(0x0a0b_0c0d);
        assert_eq!(namespace.as_bytes()[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(namespace.as_bytes()[92..96], [0x0d, 0x0c, 0x0b, 0x0a]);
    }
}
