//! Features: identifiers, the Select and Save fields, and the values that Set Features and Get Features carry (Base
//! 2.1 sections 5.1.11 and 5.1.25).

use core::mem::offset_of;

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Feature identifiers: bits 7:0 of command dword 10.
pub mod fid {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power management.
    pub const POWER_MANAGEMENT: u8 = 0x02;
    /// LBA range type.
    pub const LBA_RANGE_TYPE: u8 = 0x03;
    /// Temperature threshold.
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    /// Error recovery.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile write cache.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Interrupt coalescing.
    pub const INTERRUPT_COALESCING: u8 = 0x08;
    /// Interrupt vector configuration.
    pub const INTERRUPT_VECTOR: u8 = 0x09;
    /// Write atomicity normal.
    pub const WRITE_ATOMICITY_NORMAL: u8 = 0x0a;
    /// Asynchronous event configuration.
    pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0b;
    /// Autonomous power state transition.
    pub const AUTONOMOUS_POWER_STATE: u8 = 0x0c;
    /// Host memory buffer.
    pub const HOST_MEMORY_BUFFER: u8 = 0x0d;
    /// Timestamp.
    pub const TIMESTAMP: u8 = 0x0e;
    /// Keep alive timer.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
    /// Host controlled thermal management.
    pub const HOST_THERMAL_MANAGEMENT: u8 = 0x10;
    /// Non-operational power state configuration.
    pub const NON_OPERATIONAL_POWER_STATE: u8 = 0x11;
    /// Read recovery level configuration.
    pub const READ_RECOVERY_LEVEL: u8 = 0x12;
    /// Predictable latency mode configuration.
    pub const PREDICTABLE_LATENCY_CONFIGURATION: u8 = 0x13;
    /// Predictable latency mode window.
    pub const PREDICTABLE_LATENCY_WINDOW: u8 = 0x14;
    /// LBA status information report interval.
    pub const LBA_STATUS_INTERVAL: u8 = 0x15;
    /// Host behavior support.
    pub const HOST_BEHAVIOR_SUPPORT: u8 = 0x16;
    /// Sanitize configuration.
    pub const SANITIZE_CONFIGURATION: u8 = 0x17;
    /// Endurance group event configuration.
    pub const ENDURANCE_GROUP_EVENT: u8 = 0x18;
    /// I/O command set profile.
    pub const COMMAND_SET_PROFILE: u8 = 0x19;
    /// Spinup control.
    pub const SPINUP_CONTROL: u8 = 0x1a;
    /// Power loss signaling configuration.
    pub const POWER_LOSS_SIGNALING: u8 = 0x1b;
    /// Flexible data placement.
    pub const FLEXIBLE_DATA_PLACEMENT: u8 = 0x1d;
    /// Flexible data placement events.
    pub const FLEXIBLE_DATA_PLACEMENT_EVENTS: u8 = 0x1e;
    /// Namespace admin label.
    pub const NAMESPACE_ADMIN_LABEL: u8 = 0x1f;
    /// Embedded management controller address.
    pub const EMBEDDED_MANAGEMENT_ADDRESS: u8 = 0x78;
    /// Host management agent address.
    pub const HOST_MANAGEMENT_ADDRESS: u8 = 0x79;
    /// Enhanced controller metadata.
    pub const ENHANCED_CONTROLLER_METADATA: u8 = 0x7d;
    /// Controller metadata.
    pub const CONTROLLER_METADATA: u8 = 0x7e;
    /// Namespace metadata.
    pub const NAMESPACE_METADATA: u8 = 0x7f;
    /// Software progress marker.
    pub const SOFTWARE_PROGRESS_MARKER: u8 = 0x80;
    /// Host identifier.
    pub const HOST_IDENTIFIER: u8 = 0x81;
    /// Reservation notification mask.
    pub const RESERVATION_NOTIFICATION_MASK: u8 = 0x82;
    /// Reservation persistence.
    pub const RESERVATION_PERSISTENCE: u8 = 0x83;
    /// Namespace write protection configuration.
    pub const NAMESPACE_WRITE_PROTECTION: u8 = 0x84;
    /// Boot partition write protection configuration.
    pub const BOOT_PARTITION_WRITE_PROTECTION: u8 = 0x85;
}

/// Save (SV): bit 31 of Set Features' command dword 10.
pub const SAVE: u32 = 1 << 31;

/// Select (SEL): which value Get Features asks for, bits 10:8 of command dword 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// The value in use.
    Current,
    /// The default value.
    Default,
    /// The saved value.
    Saved,
    /// The capabilities of the feature, see [`capability`].
    SupportedCapabilities,
    /// A value that the specification reserves.
    Reserved(u8),
}

impl Select {
    /// The Select field of Get Features' command dword 10.
    pub fn from_dword(cdw10: u32) -> Self {
        match (cdw10 >> 8 & 0b111) as u8 {
            0 => Self::Current,
            1 => Self::Default,
            2 => Self::Saved,
            3 => Self::SupportedCapabilities,
            reserved => Self::Reserved(reserved),
        }
    }

    /// The field in its place in command dword 10.
    pub fn to_dword(self) -> u32 {
        let field = match self {
            Self::Current => 0,
            Self::Default => 1,
            Self::Saved => 2,
            Self::SupportedCapabilities => 3,
            Self::Reserved(reserved) => u32::from(reserved & 0b111),
        };
        field << 8
    }
}

/// Bits of completion dword 0 where Select asks for supported capabilities.
pub mod capability {
    /// The value can be saved.
    pub const SAVEABLE: u32 = 1 << 0;
    /// The feature is of a namespace; of the controller or a wider scope where clear.
    pub const NAMESPACE_SPECIFIC: u32 = 1 << 1;
    /// The value can be changed.
    pub const CHANGEABLE: u32 = 1 << 2;
}

/// Number of Queues (FID 07h): command dword 11 and completion dword 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberOfQueues {
    /// I/O submission queues, 0-based (NSQR, NSQA); FFFFh is invalid in a request.
    pub nsq: u16,
    /// I/O completion queues, 0-based (NCQR, NCQA); FFFFh is invalid in a request.
    pub ncq: u16,
}

impl NumberOfQueues {
    /// The two numbers in `dword`.
    pub fn from_dword(dword: u32) -> Self {
        Self {
            nsq: dword as u16,
            ncq: (dword >> 16) as u16,
        }
    }

    /// The dword of the two numbers.
    pub fn to_dword(self) -> u32 {
        u32::from(self.ncq) << 16 | u32::from(self.nsq)
    }
}

/// Volatile Write Cache (FID 06h), command dword 11 and completion dword 0.
pub mod volatile_write_cache {
    /// The volatile write cache is enabled (WCE).
    pub const ENABLE: u32 = 1 << 0;
}

/// Write Atomicity Normal (FID 0Ah), command dword 11 and completion dword 0.
pub mod write_atomicity {
    /// The host needs no atomicity past the power fail unit (DN).
    pub const DISABLE_NORMAL: u32 = 1 << 0;
}

/// Error Recovery (FID 05h), command dword 11 and completion dword 0.
pub mod error_recovery {
    /// Time limited error recovery, in units of 100 ms (TLER, bits 15:0).
    pub const TIME_LIMIT_MASK: u32 = 0xffff;
    /// The Deallocated or Unwritten Logical Block error is enabled (DULBE).
    pub const DEALLOCATED_ERROR: u32 = 1 << 16;
}

/// Asynchronous Event Configuration (FID 0Bh): which events are enabled, command dword 11 and completion dword 0.
pub mod async_event {
    /// Each critical warning of the SMART log that raises an event (bits 7:0).
    pub const SMART_MASK: u32 = 0xff;
    /// Available spare below its threshold.
    pub const SMART_SPARE: u32 = 1 << 0;
    /// Temperature past a threshold.
    pub const SMART_TEMPERATURE: u32 = 1 << 1;
    /// Reliability degraded.
    pub const SMART_RELIABILITY: u32 = 1 << 2;
    /// All media in read only mode.
    pub const SMART_READ_ONLY: u32 = 1 << 3;
    /// Volatile memory backup failed.
    pub const SMART_BACKUP: u32 = 1 << 4;
    /// The persistent memory region is read only or unreliable.
    pub const SMART_PERSISTENT_MEMORY: u32 = 1 << 5;
    /// Attached namespace attribute notices.
    pub const NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
    /// Firmware activation notices.
    pub const FIRMWARE_ACTIVATION: u32 = 1 << 9;
    /// Telemetry log notices.
    pub const TELEMETRY: u32 = 1 << 10;
    /// ANA change notices.
    pub const ANA_CHANGE: u32 = 1 << 11;
    /// Predictable latency event aggregate log change notices.
    pub const PREDICTABLE_LATENCY: u32 = 1 << 12;
    /// LBA status information alert notices.
    pub const LBA_STATUS: u32 = 1 << 13;
    /// Endurance group event aggregate log page change notices.
    pub const ENDURANCE_GROUP: u32 = 1 << 14;
    /// Normal NVM subsystem shutdown.
    pub const NORMAL_SHUTDOWN: u32 = 1 << 15;
    /// Temperature threshold hysteresis recovery.
    pub const TEMPERATURE_HYSTERESIS: u32 = 1 << 16;
    /// Allocated namespace attribute notices.
    pub const ALLOCATED_NAMESPACE_ATTRIBUTE: u32 = 1 << 19;
    /// Zone descriptor changed notices.
    pub const ZONE_DESCRIPTOR: u32 = 1 << 27;
    /// Discovery log page change notifications.
    pub const DISCOVERY_LOG_CHANGE: u32 = 1 << 31;
}

/// Host Identifier (FID 81h), command dword 11.
pub mod host_identifier {
    /// The identifier is 128 bits, not 64 (EXHID). Fabrics hosts have to set it.
    pub const EXTENDED: u32 = 1 << 0;
}

/// Reservation Notification Mask (FID 82h): notifications that are held back.
pub mod reservation_mask {
    /// Registration preempted (REGPRE).
    pub const REGISTRATION_PREEMPTED: u32 = 1 << 1;
    /// Reservation released (RESREL).
    pub const RESERVATION_RELEASED: u32 = 1 << 2;
    /// Reservation preempted (RESPRE).
    pub const RESERVATION_PREEMPTED: u32 = 1 << 3;
}

/// Reservation Persistence (FID 83h).
pub mod reservation_persistence {
    /// Reservations and registrants persist through power loss (PTPL).
    pub const PERSIST: u32 = 1 << 0;
}

/// Namespace Write Protection Configuration (FID 84h), bits 2:0.
pub mod write_protection {
    /// The field.
    pub const MASK: u32 = 0b111;
    /// No write protect.
    pub const NONE: u32 = 0;
    /// Write protect.
    pub const PROTECT: u32 = 1;
    /// Write protect until power cycle.
    pub const UNTIL_POWER_CYCLE: u32 = 2;
    /// Permanent write protect.
    pub const PERMANENT: u32 = 3;
}

/// Timestamp (FID 0Eh), Base 2.1 section 5.1.25.1.7.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct Timestamp {
    /// Milliseconds since 1970-01-01 00:00 UTC, or since the controller's reset where nobody set it; little-endian.
    pub timestamp: [u8; 6],
    /// Bit 0 synch (the clock stopped at times), bits 3:1 timestamp origin, see [`timestamp_origin`]; zero in Set
    /// Features.
    pub attributes: u8,
    _reserved7: u8,
}

const _: () = {
    assert!(size_of::<Timestamp>() == 8);
    assert!(offset_of!(Timestamp, attributes) == 6);
};

impl Timestamp {
    /// A timestamp of `time_ms` modulo 2^48, with `attributes`.
    pub fn new(time_ms: u64, attributes: u8) -> Self {
        let [a, b, c, d, e, f, _, _] = time_ms.to_le_bytes();
        Self {
            timestamp: [a, b, c, d, e, f],
            attributes,
            _reserved7: 0,
        }
    }

    /// The time, in milliseconds.
    pub fn time_ms(&self) -> u64 {
        let [a, b, c, d, e, f] = self.timestamp;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

/// Timestamp origin, in its place in [`Timestamp::attributes`].
pub mod timestamp_origin {
    /// The field.
    pub const MASK: u8 = 0b111 << 1;
    /// Counted from the controller's reset.
    pub const RESET: u8 = 0b000 << 1;
    /// Set by Set Features.
    pub const SET_FEATURES: u8 = 0b001 << 1;
}

/// Host Behavior Support (FID 16h), Base 2.1 section 5.1.25.1.14. Each byte is 1 where the host enables the
/// behavior and 0 where it does not.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct HostBehaviorSupport {
    /// Advanced command retry enable.
    pub acre: u8,
    /// Extended telemetry data area 4 supported.
    pub etdas: u8,
    /// LBA format extension enable.
    pub lbafee: u8,
    /// Host dispersed namespace support.
    pub hdisns: u8,
    /// Copy descriptor formats enable, a bit for each of the formats 2h and up.
    pub cdfe: U16,
    _reserved6: [u8; 506],
}

const _: () = {
    assert!(size_of::<HostBehaviorSupport>() == 512);
    assert!(offset_of!(HostBehaviorSupport, lbafee) == 2);
    assert!(offset_of!(HostBehaviorSupport, cdfe) == 4);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn select_survives_the_dword() {
        for field in 0..8_u32 {
            assert_eq!(Select::from_dword(field << 8 | 0xff).to_dword(), field << 8);
        }
        assert_eq!(Select::from_dword(0x30b), Select::SupportedCapabilities);
        assert_eq!(Select::Reserved(0xff).to_dword(), 0x700);
    }

    #[test]
    fn number_of_queues_holds_submission_queues_low() {
        let queues = NumberOfQueues { nsq: 7, ncq: 15 };
        assert_eq!(queues.to_dword(), 0x000f_0007);
        assert_eq!(NumberOfQueues::from_dword(0x000f_0007), queues);
    }

    #[test]
    fn timestamp_is_48_bits() {
        let timestamp = Timestamp::new(0xffff_0102_0304_0506, timestamp_origin::SET_FEATURES);
        assert_eq!(timestamp.as_bytes(), [6, 5, 4, 3, 2, 1, 2, 0]);
        assert_eq!(timestamp.time_ms(), 0x0102_0304_0506);
    }
}
