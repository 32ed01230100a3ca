//! The Identify Controller data structure (CNS 01h), Base 2.1 section 5.1.13.2.1, and its named bits.

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A power state descriptor: an entry of [`IdentifyController::psd`], Base 2.1 section 5.1.13.2.1.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct PowerStateDescriptor {
    /// Maximum power, in centiwatts, or in units of 0.0001 W where bit 0 of `flags` (MXPS) is set.
    pub mp: U16,
    _reserved2: u8,
    /// Bit 0 max power scale (MXPS), bit 1 non-operational state (NOPS).
    pub flags: u8,
    /// Entry latency, in microseconds.
    pub enlat: U32,
    /// Exit latency, in microseconds.
    pub exlat: U32,
    /// Relative read throughput.
    pub rrt: u8,
    /// Relative read latency.
    pub rrl: u8,
    /// Relative write throughput.
    pub rwt: u8,
    /// Relative write latency.
    pub rwl: u8,
    /// Idle power.
    pub idlp: U16,
    /// Idle power scale (bits 7:6).
    pub ips: u8,
    _reserved19: u8,
    /// Active power.
    pub actp: U16,
    /// Active power workload (bits 2:0) and active power scale (bits 7:6).
    pub apws: u8,
    _reserved23: [u8; 9],
}

const _: () = {
    assert!(size_of::<PowerStateDescriptor>() == 32);
    assert!(offset_of!(PowerStateDescriptor, enlat) == 4);
    assert!(offset_of!(PowerStateDescriptor, idlp) == 16);
    assert!(offset_of!(PowerStateDescriptor, actp) == 20);
};

/// Identify Controller data structure (CNS 01h), Base 2.1 section 5.1.13.2.1.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct IdentifyController {
    /// PCI vendor ID.
    pub vid: U16,
    /// PCI subsystem vendor ID.
    pub ssvid: U16,
    /// Serial number, padded ASCII.
    pub sn: [u8; 20],
    /// Model number, padded ASCII.
    pub mn: [u8; 40],
    /// Firmware revision, padded ASCII.
    pub fr: [u8; 8],
    /// Recommended arbitration burst, a power of two of commands.
    pub rab: u8,
    /// IEEE OUI identifier, least significant byte first.
    pub ieee: [u8; 3],
    /// Controller multi-path I/O and namespace sharing capabilities, see [`cmic`].
    pub cmic: u8,
    /// Maximum data transfer size, a power of two of the minimum memory page size; 0 means no limit.
    pub mdts: u8,
    /// Controller ID.
    pub cntlid: U16,
    /// Version, as in the VS property.
    pub ver: U32,
    /// RTD3 resume latency, in microseconds.
    pub rtd3r: U32,
    /// RTD3 entry latency, in microseconds.
    pub rtd3e: U32,
    /// Optional asynchronous events supported, see [`oaes`].
    pub oaes: U32,
    /// Controller attributes, see [`ctratt`].
    pub ctratt: U32,
    /// Read recovery levels supported, a bit for each.
    pub rrls: U16,
    /// Boot partition capabilities.
    pub bpcap: u8,
    _reserved103: u8,
    /// NVM subsystem shutdown latency, in microseconds.
    pub nssl: U32,
    _reserved108: [u8; 2],
    /// Power loss signaling information.
    pub plsi: u8,
    /// Controller type, see [`cntrltype`].
    pub cntrltype: u8,
    /// FRU globally unique identifier, big-endian.
    pub fguid: [u8; 16],
    /// Command retry delay time 1, in units of 100 ms.
    pub crdt1: U16,
    /// Command retry delay time 2, in units of 100 ms.
    pub crdt2: U16,
    /// Command retry delay time 3, in units of 100 ms.
    pub crdt3: U16,
    /// Controller reachability capabilities.
    pub crcap: u8,
    /// Controller instance uniquifier.
    pub ciu: u8,
    /// Controller instance random number.
    pub cirn: [u8; 8],
    _reserved144: [u8; 109],
    /// NVM subsystem report (management interface).
    pub nvmsr: u8,
    /// VPD write cycle information.
    pub vwci: u8,
    /// Management endpoint capabilities.
    pub mec: u8,
    /// Optional admin command support, see [`oacs`].
    pub oacs: U16,
    /// Abort command limit, 0-based.
    pub acl: u8,
    /// Asynchronous event request limit, 0-based.
    pub aerl: u8,
    /// Firmware updates: bit 0 slot 1 read only, bits 3:1 number of slots, bit 4 activation without reset.
    pub frmw: u8,
    /// Log page attributes, see [`lpa`].
    pub lpa: u8,
    /// Error log page entries, 0-based.
    pub elpe: u8,
    /// Number of power states supported, 0-based.
    pub npss: u8,
    /// Admin vendor specific command configuration.
    pub avscc: u8,
    /// Autonomous power state transition attributes.
    pub apsta: u8,
    /// Warning composite temperature threshold, in kelvins.
    pub wctemp: U16,
    /// Critical composite temperature threshold, in kelvins.
    pub cctemp: U16,
    /// Maximum time for firmware activation, in units of 100 ms.
    pub mtfa: U16,
    /// Host memory buffer preferred size, in units of 4 KiB.
    pub hmpre: U32,
    /// Host memory buffer minimum size, in units of 4 KiB.
    pub hmmin: U32,
    /// Total NVM capacity in bytes, little-endian.
    pub tnvmcap: [u8; 16],
    /// Unallocated NVM capacity in bytes, little-endian.
    pub unvmcap: [u8; 16],
    /// Replay protected memory block support.
    pub rpmbs: U32,
    /// Extended device self-test time, in minutes.
    pub edstt: U16,
    /// Device self-test options.
    pub dsto: u8,
    /// Firmware update granularity, in units of 4 KiB.
    pub fwug: u8,
    /// Keep alive support: granularity of the timer in units of 100 ms; 0 means not supported.
    pub kas: U16,
    /// Host controlled thermal management attributes.
    pub hctma: U16,
    /// Minimum thermal management temperature, in kelvins.
    pub mntmt: U16,
    /// Maximum thermal management temperature, in kelvins.
    pub mxtmt: U16,
    /// Sanitize capabilities.
    pub sanicap: U32,
    /// Host memory buffer minimum descriptor entry size, in units of 4 KiB.
    pub hmminds: U32,
    /// Host memory maximum descriptors entries.
    pub hmmaxd: U16,
    /// NVM set identifier maximum.
    pub nsetidmax: U16,
    /// Endurance group identifier maximum.
    pub endgidmax: U16,
    /// ANA transition time, in seconds.
    pub anatt: u8,
    /// Asymmetric namespace access capabilities, see [`anacap`].
    pub anacap: u8,
    /// ANA group identifier maximum.
    pub anagrpmax: U32,
    /// Number of ANA group identifiers.
    pub nanagrpid: U32,
    /// Persistent event log size, in units of 64 KiB.
    pub pels: U32,
    /// Domain identifier.
    pub domainid: U16,
    /// Key per I/O capabilities.
    pub kpioc: u8,
    _reserved359: u8,
    /// Maximum processing time for firmware activation without reset, in units of 100 ms.
    pub mptfawr: U16,
    _reserved362: [u8; 6],
    /// Max endurance group capacity in bytes, little-endian.
    pub megcap: [u8; 16],
    /// Temperature threshold hysteresis attributes.
    pub tmpthha: u8,
    _reserved385: u8,
    /// Command quiesce time, in milliseconds.
    pub cqt: U16,
    _reserved388: [u8; 124],
    /// Submission queue entry size: bits 3:0 required, bits 7:4 maximum, powers of two of bytes.
    pub sqes: u8,
    /// Completion queue entry size: bits 3:0 required, bits 7:4 maximum, powers of two of bytes.
    pub cqes: u8,
    /// Maximum outstanding commands of an I/O queue.
    pub maxcmd: U16,
    /// Number of namespaces: the largest valid NSID.
    pub nn: U32,
    /// Optional NVM command support, see [`oncs`].
    pub oncs: U16,
    /// Fused operation support, see [`fuses`].
    pub fuses: U16,
    /// Format NVM attributes.
    pub fna: u8,
    /// Volatile write cache, see [`vwc`].
    pub vwc: u8,
    /// Atomic write unit normal, in logical blocks, 0-based.
    pub awun: U16,
    /// Atomic write unit power fail, in logical blocks, 0-based.
    pub awupf: U16,
    /// I/O command set vendor specific command configuration.
    pub icsvscc: u8,
    /// Namespace write protection capabilities.
    pub nwpc: u8,
    /// Atomic compare and write unit, in logical blocks, 0-based.
    pub acwu: U16,
    /// Copy descriptor formats supported (formerly OCFS), a bit for each format.
    pub cdfs: U16,
    /// SGL support, see [`sgls`].
    pub sgls: U32,
    /// Maximum number of allowed namespaces.
    pub mnan: U32,
    /// Maximum domain namespace attachments, little-endian.
    pub maxdna: [u8; 16],
    /// Maximum I/O controller namespace attachments.
    pub maxcna: U32,
    /// Optimal aggregated queue depth.
    pub oaqd: U32,
    /// Recommended host-initiated refresh interval.
    pub rhiri: u8,
    /// Host-initiated refresh time.
    pub hirt: u8,
    /// Controller maximum memory range tracking descriptors.
    pub cmmrtd: U16,
    /// NVM subsystem maximum memory range tracking descriptors.
    pub nmmrtd: U16,
    /// Minimum memory range tracking granularity.
    pub minmrtg: u8,
    /// Maximum memory range tracking granularity.
    pub maxmrtg: u8,
    /// Tracking attributes.
    pub trattr: u8,
    _reserved577: u8,
    /// Maximum controller user data migration queues.
    pub mcudmq: U16,
    /// Maximum NVM subsystem user data migration queues.
    pub mnsudmq: U16,
    /// Maximum CDQ memory ranges.
    pub mcmr: U16,
    /// NVM subsystem maximum CDQ memory ranges.
    pub nmcmr: U16,
    /// Maximum controller data queue PRP count.
    pub mcdqpc: U16,
    _reserved588: [u8; 180],
    /// NVM subsystem NVMe qualified name, NUL-terminated UTF-8.
    pub subnqn: [u8; 256],
    _reserved1024: [u8; 768],
    /// I/O queue command capsule supported size, in units of 16 bytes (fabrics).
    pub ioccsz: U32,
    /// I/O queue response capsule supported size, in units of 16 bytes (fabrics).
    pub iorcsz: U32,
    /// In capsule data offset, in units of 16 bytes after the submission queue entry (fabrics).
    pub icdoff: U16,
    /// Fabrics controller attributes, see [`fcatt`].
    pub fcatt: u8,
    /// Maximum SGL data block descriptors of a command; 0 means no limit (fabrics).
    pub msdbd: u8,
    /// Optional fabric commands support, see [`ofcs`].
    pub ofcs: U16,
    /// Discovery controller type.
    pub dctype: u8,
    _reserved1807: [u8; 241],
    /// Power state descriptors.
    pub psd: [PowerStateDescriptor; 32],
    /// Vendor specific.
    pub vs: [u8; 1024],
}

const _: () = {
    assert!(size_of::<IdentifyController>() == 4096);
    assert!(offset_of!(IdentifyController, sn) == 4);
    assert!(offset_of!(IdentifyController, mn) == 24);
    assert!(offset_of!(IdentifyController, fr) == 64);
    assert!(offset_of!(IdentifyController, ieee) == 73);
    assert!(offset_of!(IdentifyController, mdts) == 77);
    assert!(offset_of!(IdentifyController, cntlid) == 78);
    assert!(offset_of!(IdentifyController, ver) == 80);
    assert!(offset_of!(IdentifyController, oaes) == 92);
    assert!(offset_of!(IdentifyController, ctratt) == 96);
    assert!(offset_of!(IdentifyController, cntrltype) == 111);
    assert!(offset_of!(IdentifyController, fguid) == 112);
    assert!(offset_of!(IdentifyController, crdt1) == 128);
    assert!(offset_of!(IdentifyController, nvmsr) == 253);
    assert!(offset_of!(IdentifyController, oacs) == 256);
    assert!(offset_of!(IdentifyController, lpa) == 261);
    assert!(offset_of!(IdentifyController, wctemp) == 266);
    assert!(offset_of!(IdentifyController, tnvmcap) == 280);
    assert!(offset_of!(IdentifyController, rpmbs) == 312);
    assert!(offset_of!(IdentifyController, kas) == 320);
    assert!(offset_of!(IdentifyController, sanicap) == 328);
    assert!(offset_of!(IdentifyController, anatt) == 342);
    assert!(offset_of!(IdentifyController, anacap) == 343);
    assert!(offset_of!(IdentifyController, anagrpmax) == 344);
    assert!(offset_of!(IdentifyController, nanagrpid) == 348);
    assert!(offset_of!(IdentifyController, domainid) == 356);
    assert!(offset_of!(IdentifyController, mptfawr) == 360);
    assert!(offset_of!(IdentifyController, megcap) == 368);
    assert!(offset_of!(IdentifyController, tmpthha) == 384);
    assert!(offset_of!(IdentifyController, cqt) == 386);
    assert!(offset_of!(IdentifyController, sqes) == 512);
    assert!(offset_of!(IdentifyController, maxcmd) == 514);
    assert!(offset_of!(IdentifyController, nn) == 516);
    assert!(offset_of!(IdentifyController, oncs) == 520);
    assert!(offset_of!(IdentifyController, fuses) == 522);
    assert!(offset_of!(IdentifyController, vwc) == 525);
    assert!(offset_of!(IdentifyController, awun) == 526);
    assert!(offset_of!(IdentifyController, acwu) == 532);
    assert!(offset_of!(IdentifyController, cdfs) == 534);
    assert!(offset_of!(IdentifyController, sgls) == 536);
    assert!(offset_of!(IdentifyController, mnan) == 540);
    assert!(offset_of!(IdentifyController, maxcna) == 560);
    assert!(offset_of!(IdentifyController, rhiri) == 568);
    assert!(offset_of!(IdentifyController, mcdqpc) == 586);
    assert!(offset_of!(IdentifyController, subnqn) == 768);
    assert!(offset_of!(IdentifyController, ioccsz) == 1792);
    assert!(offset_of!(IdentifyController, iorcsz) == 1796);
    assert!(offset_of!(IdentifyController, icdoff) == 1800);
    assert!(offset_of!(IdentifyController, fcatt) == 1802);
    assert!(offset_of!(IdentifyController, msdbd) == 1803);
    assert!(offset_of!(IdentifyController, ofcs) == 1804);
    assert!(offset_of!(IdentifyController, dctype) == 1806);
    assert!(offset_of!(IdentifyController, psd) == 2048);
    assert!(offset_of!(IdentifyController, vs) == 3072);
};

/// Bits of [`IdentifyController::cmic`].
pub mod cmic {
    /// The NVM subsystem may have more than one port.
    pub const MULTI_PORT: u8 = 1 << 0;
    /// The NVM subsystem may have more than one controller.
    pub const MULTI_CONTROLLER: u8 = 1 << 1;
    /// The controller belongs to an SR-IOV virtual function.
    pub const SR_IOV: u8 = 1 << 2;
    /// Asymmetric namespace access reporting is supported.
    pub const ANA_REPORTING: u8 = 1 << 3;
}

/// Bits of [`IdentifyController::oaes`]; the same positions enable the events in the Asynchronous Event
/// Configuration feature.
pub mod oaes {
    /// Attached namespace attribute notices.
    pub const NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
    /// Firmware activation notices.
    pub const FIRMWARE_ACTIVATION: u32 = 1 << 9;
    /// Asymmetric namespace access change notices.
    pub const ANA_CHANGE: u32 = 1 << 11;
    /// Predictable latency event aggregate log change notices.
    pub const PREDICTABLE_LATENCY: u32 = 1 << 12;
    /// LBA status information alert notices.
    pub const LBA_STATUS: u32 = 1 << 13;
    /// Endurance group event aggregate log page change notices.
    pub const ENDURANCE_GROUP: u32 = 1 << 14;
    /// Normal NVM subsystem shutdown event.
    pub const NORMAL_SHUTDOWN: u32 = 1 << 15;
    /// Temperature threshold hysteresis recovery event.
    pub const TEMPERATURE_HYSTERESIS: u32 = 1 << 16;
    /// Allocated namespace attribute notices.
    pub const ALLOCATED_NAMESPACE_ATTRIBUTE: u32 = 1 << 19;
    /// Zone descriptor changed notices.
    pub const ZONE_DESCRIPTOR: u32 = 1 << 27;
    /// Discovery log page change notifications.
    pub const DISCOVERY_LOG_CHANGE: u32 = 1 << 31;
}

/// Bits of [`IdentifyController::ctratt`].
pub mod ctratt {
    /// 128-bit host identifiers.
    pub const HOST_ID_128: u32 = 1 << 0;
    /// Non-operational power state permissive mode.
    pub const NON_OPERATIONAL_PERMISSIVE: u32 = 1 << 1;
    /// NVM sets.
    pub const NVM_SETS: u32 = 1 << 2;
    /// Read recovery levels.
    pub const READ_RECOVERY_LEVELS: u32 = 1 << 3;
    /// Endurance groups.
    pub const ENDURANCE_GROUPS: u32 = 1 << 4;
    /// Predictable latency mode.
    pub const PREDICTABLE_LATENCY: u32 = 1 << 5;
    /// Traffic based keep alive.
    pub const TRAFFIC_KEEP_ALIVE: u32 = 1 << 6;
    /// Namespace granularity.
    pub const NAMESPACE_GRANULARITY: u32 = 1 << 7;
    /// Submission queue associations.
    pub const SQ_ASSOCIATIONS: u32 = 1 << 8;
    /// UUID list.
    pub const UUID_LIST: u32 = 1 << 9;
    /// Multi-domain subsystem.
    pub const MULTI_DOMAIN: u32 = 1 << 10;
    /// Fixed capacity management.
    pub const FIXED_CAPACITY: u32 = 1 << 11;
    /// Variable capacity management.
    pub const VARIABLE_CAPACITY: u32 = 1 << 12;
    /// Delete endurance group.
    pub const DELETE_ENDURANCE_GROUP: u32 = 1 << 13;
    /// Delete NVM set.
    pub const DELETE_NVM_SET: u32 = 1 << 14;
    /// Extended LBA formats.
    pub const EXTENDED_LBA_FORMATS: u32 = 1 << 15;
    /// Flexible data placement.
    pub const FLEXIBLE_DATA_PLACEMENT: u32 = 1 << 19;
}

/// Values of [`IdentifyController::cntrltype`].
pub mod cntrltype {
    /// Not reported (a controller older than 1.4).
    pub const NOT_REPORTED: u8 = 0;
    /// I/O controller.
    pub const IO: u8 = 1;
    /// Discovery controller.
    pub const DISCOVERY: u8 = 2;
    /// Administrative controller.
    pub const ADMIN: u8 = 3;
}

/// Bits of [`IdentifyController::oacs`].
pub mod oacs {
    /// Security Send and Security Receive.
    pub const SECURITY: u16 = 1 << 0;
    /// Format NVM.
    pub const FORMAT: u16 = 1 << 1;
    /// Firmware Commit and Firmware Image Download.
    pub const FIRMWARE: u16 = 1 << 2;
    /// Namespace Management and Namespace Attachment.
    pub const NAMESPACE_MANAGEMENT: u16 = 1 << 3;
    /// Device Self-test.
    pub const SELF_TEST: u16 = 1 << 4;
    /// Directive Send and Directive Receive.
    pub const DIRECTIVES: u16 = 1 << 5;
    /// NVMe-MI Send and NVMe-MI Receive.
    pub const NVME_MI: u16 = 1 << 6;
    /// Virtualization Management.
    pub const VIRTUALIZATION: u16 = 1 << 7;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER: u16 = 1 << 8;
    /// Get LBA Status.
    pub const LBA_STATUS: u16 = 1 << 9;
    /// Lockdown (command and feature lockdown).
    pub const LOCKDOWN: u16 = 1 << 10;
}

/// Bits of [`IdentifyController::lpa`].
pub mod lpa {
    /// SMART / Health Information for each namespace.
    pub const SMART_PER_NAMESPACE: u8 = 1 << 0;
    /// Commands Supported and Effects log page.
    pub const COMMAND_EFFECTS: u8 = 1 << 1;
    /// Extended data: 32-bit NUMD and a log page offset.
    pub const EXTENDED_DATA: u8 = 1 << 2;
    /// Telemetry log pages and notices.
    pub const TELEMETRY: u8 = 1 << 3;
    /// Persistent event log.
    pub const PERSISTENT_EVENT: u8 = 1 << 4;
    /// Supported Log Pages, Feature Identifiers and their kin (LIDs 00h, 12h, 13h and the scope in 05h).
    pub const SUPPORTED_PAGES: u8 = 1 << 5;
    /// Data area 4 for telemetry.
    pub const TELEMETRY_AREA_4: u8 = 1 << 6;
}

/// Bits of [`IdentifyController::anacap`].
pub mod anacap {
    /// May report ANA optimized.
    pub const OPTIMIZED: u8 = 1 << 0;
    /// May report ANA non-optimized.
    pub const NON_OPTIMIZED: u8 = 1 << 1;
    /// May report ANA inaccessible.
    pub const INACCESSIBLE: u8 = 1 << 2;
    /// May report ANA persistent loss.
    pub const PERSISTENT_LOSS: u8 = 1 << 3;
    /// May report ANA change.
    pub const CHANGE: u8 = 1 << 4;
    /// A namespace's ANAGRPID does not change while the namespace is attached to a controller.
    pub const GROUP_FIXED: u8 = 1 << 6;
    /// A non-zero ANAGRPID is accepted by Namespace Management.
    pub const GROUP_SETTABLE: u8 = 1 << 7;
}

/// Bits of [`IdentifyController::oncs`].
pub mod oncs {
    /// Compare.
    pub const COMPARE: u16 = 1 << 0;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u16 = 1 << 1;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u16 = 1 << 2;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// The Save field of Set Features and the Select field of Get Features.
    pub const SAVE_SELECT: u16 = 1 << 4;
    /// Reservations.
    pub const RESERVATIONS: u16 = 1 << 5;
    /// Timestamp feature.
    pub const TIMESTAMP: u16 = 1 << 6;
    /// Verify.
    pub const VERIFY: u16 = 1 << 7;
    /// Copy.
    pub const COPY: u16 = 1 << 8;
    /// The destination of a Copy command is written as atomically as by one Write.
    pub const COPY_SINGLE_ATOMICITY: u16 = 1 << 9;
    /// All Copy commands are fast.
    pub const ALL_FAST_COPY: u16 = 1 << 10;
    /// Write Zeroes with Deallocate has its own size limit (WZDSL).
    pub const WRITE_ZEROES_DEALLOCATE_LIMIT: u16 = 1 << 11;
    /// Write Zeroes of the whole namespace (NSZ).
    pub const NAMESPACE_ZEROES: u16 = 1 << 12;
}

/// Bits of [`IdentifyController::fuses`].
pub mod fuses {
    /// Compare and Write.
    pub const COMPARE_AND_WRITE: u16 = 1 << 0;
}

/// Bits of [`IdentifyController::vwc`].
pub mod vwc {
    /// A volatile write cache is present.
    pub const PRESENT: u8 = 1 << 0;
    /// Flush behavior field (bits 2:1).
    pub const FLUSH_MASK: u8 = 0b11 << 1;
    /// Flush with NSID FFFFFFFFh is not supported.
    pub const FLUSH_ALL_UNSUPPORTED: u8 = 0b10 << 1;
    /// Flush with NSID FFFFFFFFh is supported.
    pub const FLUSH_ALL_SUPPORTED: u8 = 0b11 << 1;
}

/// Bits of [`IdentifyController::sgls`].
pub mod sgls {
    /// SGL support field (bits 1:0); 0 means no SGLs.
    pub const SUPPORT_MASK: u32 = 0b11;
    /// SGLs without an alignment or granularity requirement.
    pub const SUPPORTED: u32 = 0b01;
    /// SGLs with Dword alignment and granularity.
    pub const SUPPORTED_DWORD: u32 = 0b10;
    /// Keyed SGL data block descriptor.
    pub const KEYED: u32 = 1 << 2;
    /// SGL descriptor threshold field (bits 15:8).
    pub const THRESHOLD_MASK: u32 = 0xff << 8;
    /// SGL bit bucket descriptor.
    pub const BIT_BUCKET: u32 = 1 << 16;
    /// A byte aligned contiguous metadata buffer.
    pub const METADATA_BYTE_ALIGNED: u32 = 1 << 17;
    /// An SGL may be longer than the data.
    pub const OVERSIZE: u32 = 1 << 18;
    /// MPTR may hold an SGL descriptor.
    pub const METADATA_SGL: u32 = 1 << 19;
    /// The address field may be an offset (in capsule data).
    pub const OFFSET: u32 = 1 << 20;
    /// Transport SGL data block descriptor.
    pub const TRANSPORT: u32 = 1 << 21;
}

/// Bits of [`IdentifyController::fcatt`].
pub mod fcatt {
    /// Static controller model; dynamic where clear.
    pub const STATIC_MODEL: u8 = 1 << 0;
}

/// Bits of [`IdentifyController::ofcs`].
pub mod ofcs {
    /// Disconnect, and deletion of individual I/O queues.
    pub const DISCONNECT: u16 = 1 << 0;
}
