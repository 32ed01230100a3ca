//! The Discovery log page (LID 70h), Base 2.1 section 5.1.12.3.1: a header of 1,024 bytes, then entries of 1,024 bytes.

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Header of the Discovery log page.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct DiscoveryLogHeader {
    /// Generation counter: differs after every change; a host reads it again after the entries.
    pub genctr: U64,
    /// Number of records that follow.
    pub numrec: U64,
    /// Record format: 0.
    pub recfmt: U16,
    _reserved18: [u8; 1006],
}

const _: () = {
    assert!(size_of::<DiscoveryLogHeader>() == 1024);
    assert!(offset_of!(DiscoveryLogHeader, numrec) == 8);
    assert!(offset_of!(DiscoveryLogHeader, recfmt) == 16);
};

/// Discovery log page entry.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct DiscoveryLogEntry {
    /// Transport type, see [`trtype`].
    pub trtype: u8,
    /// Address family, see [`adrfam`].
    pub adrfam: u8,
    /// Subsystem type, see [`subtype`].
    pub subtype: u8,
    /// Transport requirements, see [`treq`].
    pub treq: u8,
    /// Port ID.
    pub portid: U16,
    /// Controller ID; FFFFh in the dynamic controller model.
    pub cntlid: U16,
    /// Admin max SQ size; at least 32.
    pub asqsz: U16,
    /// Entry flags, see [`eflags`].
    pub eflags: U16,
    _reserved12: [u8; 20],
    /// Transport service identifier, padded ASCII: the TCP port number.
    pub trsvcid: [u8; 32],
    _reserved64: [u8; 192],
    /// NVM subsystem qualified name, NUL-terminated.
    pub subnqn: [u8; 256],
    /// Transport address, padded ASCII.
    pub traddr: [u8; 256],
    /// Transport specific address subtype; its first byte is the [`sectype`] for TCP.
    pub tsas: [u8; 256],
}

const _: () = {
    assert!(size_of::<DiscoveryLogEntry>() == 1024);
    assert!(offset_of!(DiscoveryLogEntry, portid) == 4);
    assert!(offset_of!(DiscoveryLogEntry, cntlid) == 6);
    assert!(offset_of!(DiscoveryLogEntry, asqsz) == 8);
    assert!(offset_of!(DiscoveryLogEntry, eflags) == 10);
    assert!(offset_of!(DiscoveryLogEntry, trsvcid) == 32);
    assert!(offset_of!(DiscoveryLogEntry, subnqn) == 256);
    assert!(offset_of!(DiscoveryLogEntry, traddr) == 512);
    assert!(offset_of!(DiscoveryLogEntry, tsas) == 768);
};

/// Transport types.
pub mod trtype {
    /// RDMA.
    pub const RDMA: u8 = 1;
    /// Fibre Channel.
    pub const FC: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 3;
    /// Intra-host transport (loopback).
    pub const LOOP: u8 = 0xfe;
}

/// Address families.
pub mod adrfam {
    /// PCI.
    pub const PCI: u8 = 0;
    /// IPv4.
    pub const IPV4: u8 = 1;
    /// IPv6.
    pub const IPV6: u8 = 2;
    /// InfiniBand.
    pub const INFINIBAND: u8 = 3;
    /// Fibre Channel.
    pub const FC: u8 = 4;
    /// Intra-host (loopback).
    pub const LOOP: u8 = 0xfe;
}

/// Subsystem types.
pub mod subtype {
    /// A referral to another discovery subsystem.
    pub const REFERRAL: u8 = 1;
    /// An NVM subsystem whose controllers may have attached namespaces.
    pub const NVM: u8 = 2;
    /// The current discovery subsystem.
    pub const CURRENT_DISCOVERY: u8 = 3;
}

/// Bits of [`DiscoveryLogEntry::treq`].
pub mod treq {
    /// Secure channel field (bits 1:0).
    pub const SECURE_CHANNEL_MASK: u8 = 0b11;
    /// Secure channel: not specified.
    pub const SECURE_CHANNEL_NOT_SPECIFIED: u8 = 0;
    /// Secure channel: required.
    pub const SECURE_CHANNEL_REQUIRED: u8 = 1;
    /// Secure channel: not required.
    pub const SECURE_CHANNEL_NOT_REQUIRED: u8 = 2;
    /// Disabling of submission queue flow control is supported.
    pub const DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;
}

/// Bits of [`DiscoveryLogEntry::eflags`].
pub mod eflags {
    /// Duplicate returned information (DUPRETINFO): this port gives the same page as others.
    pub const DUPLICATE_INFORMATION: u16 = 1 << 0;
    /// Explicit persistent connections are supported by the discovery subsystem (EPCSD).
    pub const PERSISTENT_CONNECTIONS: u16 = 1 << 1;
    /// No centralized discovery controller connection (NCC).
    pub const NO_CDC_CONNECTION: u16 = 1 << 2;
}

/// Security types: the first byte of [`DiscoveryLogEntry::tsas`] for TCP.
pub mod sectype {
    /// No security.
    pub const NONE: u8 = 0;
    /// TLS 1.2.
    pub const TLS_1_2: u8 = 1;
    /// TLS 1.3.
    pub const TLS_1_3: u8 = 2;
}
