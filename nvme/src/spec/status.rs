//! Status values: what a command ended with, as number and in words.
//!
//! Invariants:
//! - The constants carry a status code type and a status code, nothing more. "Do Not Retry" is put
//!   on by who completes the command ([`Status::with_dnr`]).
//! - Any 15 bits are a status: one that is not in the table is shown by its numbers.

use std::fmt;

/// The status field of a completion, without the phase tag (Base, section 4.2.3): SC in bits 7:0,
/// SCT in bits 10:8, CRD in bits 12:11, More in bit 13, Do Not Retry in bit 14.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Status(u16);

/// Status code type: Generic Command Status (Base, section 4.2.3.1).
pub const SCT_GENERIC: u8 = 0;
/// Status code type: Command Specific Status (Base, section 4.2.3.2).
pub const SCT_COMMAND_SPECIFIC: u8 = 1;
/// Status code type: Media and Data Integrity Errors (Base, section 4.2.3.3).
pub const SCT_MEDIA: u8 = 2;
/// Status code type: Path Related Status (Base, section 4.2.3.4).
pub const SCT_PATH: u8 = 3;
/// Status code type: Vendor Specific.
pub const SCT_VENDOR: u8 = 7;

const CODE: u16 = 0x07FF;
const MORE: u16 = 1 << 13;
const DNR: u16 = 1 << 14;
const MASK: u16 = 0x7FFF;

macro_rules! statuses {
    ($($constant:ident = $sct:literal, $sc:literal, $words:literal;)*) => {
        impl Status {
            $(
                #[doc = concat!($words, ": SCT ", stringify!($sct), ", SC ", stringify!($sc), ".")]
                pub const $constant: Status = Status::new($sct, $sc);
            )*
        }

        /// Every named status. A code can stand twice: what it means then depends on the command.
        static TABLE: &[(Status, &str)] = &[$((Status::$constant, $words)),*];
    };
}

statuses! {
    SUCCESS = 0, 0x00, "Successful Completion";
    INVALID_OPCODE = 0, 0x01, "Invalid Command Opcode";
    INVALID_FIELD = 0, 0x02, "Invalid Field in Command";
    COMMAND_ID_CONFLICT = 0, 0x03, "Command ID Conflict";
    DATA_TRANSFER_ERROR = 0, 0x04, "Data Transfer Error";
    ABORTED_POWER_LOSS = 0, 0x05, "Commands Aborted due to Power Loss Notification";
    INTERNAL_ERROR = 0, 0x06, "Internal Error";
    ABORT_REQUESTED = 0, 0x07, "Command Abort Requested";
    ABORTED_SQ_DELETION = 0, 0x08, "Command Aborted due to SQ Deletion";
    ABORTED_FAILED_FUSED = 0, 0x09, "Command Aborted due to Failed Fused Command";
    ABORTED_MISSING_FUSED = 0, 0x0A, "Command Aborted due to Missing Fused Command";
    INVALID_NAMESPACE_OR_FORMAT = 0, 0x0B, "Invalid Namespace or Format";
    COMMAND_SEQUENCE_ERROR = 0, 0x0C, "Command Sequence Error";
    INVALID_SGL_SEGMENT = 0, 0x0D, "Invalid SGL Segment Descriptor";
    INVALID_SGL_COUNT = 0, 0x0E, "Invalid Number of SGL Descriptors";
    DATA_SGL_LENGTH_INVALID = 0, 0x0F, "Data SGL Length Invalid";
    METADATA_SGL_LENGTH_INVALID = 0, 0x10, "Metadata SGL Length Invalid";
    SGL_TYPE_INVALID = 0, 0x11, "SGL Descriptor Type Invalid";
    INVALID_USE_OF_CMB = 0, 0x12, "Invalid Use of Controller Memory Buffer";
    PRP_OFFSET_INVALID = 0, 0x13, "PRP Offset Invalid";
    ATOMIC_WRITE_UNIT_EXCEEDED = 0, 0x14, "Atomic Write Unit Exceeded";
    OPERATION_DENIED = 0, 0x15, "Operation Denied";
    SGL_OFFSET_INVALID = 0, 0x16, "SGL Offset Invalid";
    HOST_IDENTIFIER_INCONSISTENT = 0, 0x18, "Host Identifier Inconsistent Format";
    KEEP_ALIVE_EXPIRED = 0, 0x19, "Keep Alive Timer Expired";
    KEEP_ALIVE_INVALID = 0, 0x1A, "Keep Alive Timeout Invalid";
    ABORTED_PREEMPT = 0, 0x1B, "Command Aborted due to Preempt and Abort";
    SANITIZE_FAILED = 0, 0x1C, "Sanitize Failed";
    SANITIZE_IN_PROGRESS = 0, 0x1D, "Sanitize In Progress";
    SGL_GRANULARITY_INVALID = 0, 0x1E, "SGL Data Block Granularity Invalid";
    QUEUE_IN_CMB_UNSUPPORTED = 0, 0x1F, "Command Not Supported for Queue in CMB";
    NAMESPACE_WRITE_PROTECTED = 0, 0x20, "Namespace is Write Protected";
    COMMAND_INTERRUPTED = 0, 0x21, "Command Interrupted";
    TRANSIENT_TRANSPORT_ERROR = 0, 0x22, "Transient Transport Error";
    PROHIBITED_BY_LOCKDOWN = 0, 0x23, "Command Prohibited by Command and Feature Lockdown";
    ADMIN_MEDIA_NOT_READY = 0, 0x24, "Admin Command Media Not Ready";
    INVALID_KEY_TAG = 0, 0x25, "Invalid Key Tag";
    DISPERSED_NAMESPACE_NOT_ENABLED = 0, 0x26, "Host Dispersed Namespace Support Not Enabled";
    HOST_IDENTIFIER_NOT_INITIALIZED = 0, 0x27, "Host Identifier Not Initialized";
    INCORRECT_KEY = 0, 0x28, "Incorrect Key";
    FDP_DISABLED = 0, 0x29, "FDP Disabled";
    INVALID_PLACEMENT_HANDLE_LIST = 0, 0x2A, "Invalid Placement Handle List";
    LBA_OUT_OF_RANGE = 0, 0x80, "LBA Out of Range";
    CAPACITY_EXCEEDED = 0, 0x81, "Capacity Exceeded";
    NAMESPACE_NOT_READY = 0, 0x82, "Namespace Not Ready";
    RESERVATION_CONFLICT = 0, 0x83, "Reservation Conflict";
    FORMAT_IN_PROGRESS = 0, 0x84, "Format In Progress";

    COMPLETION_QUEUE_INVALID = 1, 0x00, "Completion Queue Invalid";
    INVALID_QUEUE_IDENTIFIER = 1, 0x01, "Invalid Queue Identifier";
    INVALID_QUEUE_SIZE = 1, 0x02, "Invalid Queue Size";
    ABORT_LIMIT_EXCEEDED = 1, 0x03, "Abort Command Limit Exceeded";
    AER_LIMIT_EXCEEDED = 1, 0x05, "Asynchronous Event Request Limit Exceeded";
    INVALID_FIRMWARE_SLOT = 1, 0x06, "Invalid Firmware Slot";
    INVALID_FIRMWARE_IMAGE = 1, 0x07, "Invalid Firmware Image";
    INVALID_INTERRUPT_VECTOR = 1, 0x08, "Invalid Interrupt Vector";
    INVALID_LOG_PAGE = 1, 0x09, "Invalid Log Page";
    INVALID_FORMAT = 1, 0x0A, "Invalid Format";
    FIRMWARE_NEEDS_CONVENTIONAL_RESET = 1, 0x0B,
        "Firmware Activation Requires Conventional Reset";
    INVALID_QUEUE_DELETION = 1, 0x0C, "Invalid Queue Deletion";
    FEATURE_NOT_SAVEABLE = 1, 0x0D, "Feature Identifier Not Saveable";
    FEATURE_NOT_CHANGEABLE = 1, 0x0E, "Feature Not Changeable";
    FEATURE_NOT_NAMESPACE_SPECIFIC = 1, 0x0F, "Feature Not Namespace Specific";
    FIRMWARE_NEEDS_SUBSYSTEM_RESET = 1, 0x10,
        "Firmware Activation Requires NVM Subsystem Reset";
    FIRMWARE_NEEDS_CONTROLLER_RESET = 1, 0x11,
        "Firmware Activation Requires Controller Level Reset";
    FIRMWARE_TIME_VIOLATION = 1, 0x12,
        "Firmware Activation Requires Maximum Time Violation";
    FIRMWARE_PROHIBITED = 1, 0x13, "Firmware Activation Prohibited";
    OVERLAPPING_RANGE = 1, 0x14, "Overlapping Range";
    NAMESPACE_INSUFFICIENT_CAPACITY = 1, 0x15, "Namespace Insufficient Capacity";
    NAMESPACE_IDENTIFIER_UNAVAILABLE = 1, 0x16, "Namespace Identifier Unavailable";
    NAMESPACE_ALREADY_ATTACHED = 1, 0x18, "Namespace Already Attached";
    NAMESPACE_IS_PRIVATE = 1, 0x19, "Namespace Is Private";
    NAMESPACE_NOT_ATTACHED = 1, 0x1A, "Namespace Not Attached";
    THIN_PROVISIONING_UNSUPPORTED = 1, 0x1B, "Thin Provisioning Not Supported";
    CONTROLLER_LIST_INVALID = 1, 0x1C, "Controller List Invalid";
    SELF_TEST_IN_PROGRESS = 1, 0x1D, "Device Self-test In Progress";
    BOOT_PARTITION_PROHIBITED = 1, 0x1E, "Boot Partition Write Prohibited";
    INVALID_CONTROLLER_IDENTIFIER = 1, 0x1F, "Invalid Controller Identifier";
    INVALID_SECONDARY_STATE = 1, 0x20, "Invalid Secondary Controller State";
    INVALID_RESOURCE_COUNT = 1, 0x21, "Invalid Number of Controller Resources";
    INVALID_RESOURCE_IDENTIFIER = 1, 0x22, "Invalid Resource Identifier";
    SANITIZE_PROHIBITED_PMR = 1, 0x23,
        "Sanitize Prohibited While Persistent Memory Region is Enabled";
    ANA_GROUP_INVALID = 1, 0x24, "ANA Group Identifier Invalid";
    ANA_ATTACH_FAILED = 1, 0x25, "ANA Attach Failed";
    INSUFFICIENT_CAPACITY = 1, 0x26, "Insufficient Capacity";
    ATTACHMENT_LIMIT_EXCEEDED = 1, 0x27, "Namespace Attachment Limit Exceeded";
    PROHIBITION_UNSUPPORTED = 1, 0x28, "Prohibition of Command Execution Not Supported";
    COMMAND_SET_NOT_SUPPORTED = 1, 0x29, "I/O Command Set Not Supported";
    COMMAND_SET_NOT_ENABLED = 1, 0x2A, "I/O Command Set Not Enabled";
    COMMAND_SET_REJECTED = 1, 0x2B, "I/O Command Set Combination Rejected";
    INVALID_COMMAND_SET = 1, 0x2C, "Invalid I/O Command Set";
    IDENTIFIER_UNAVAILABLE = 1, 0x2D, "Identifier Unavailable";
    NAMESPACE_IS_DISPERSED = 1, 0x2E, "Namespace Is Dispersed";
    INVALID_DISCOVERY_INFORMATION = 1, 0x2F, "Invalid Discovery Information";
    ZONING_DATA_LOCKED = 1, 0x30, "Zoning Data Structure Locked";
    ZONING_DATA_NOT_FOUND = 1, 0x31, "Zoning Data Structure Not Found";
    INSUFFICIENT_DISCOVERY_RESOURCES = 1, 0x32, "Insufficient Discovery Resources";
    FUNCTION_DISABLED = 1, 0x33, "Requested Function Disabled";
    ZONEGROUP_ORIGINATOR_INVALID = 1, 0x34, "ZoneGroup Originator Invalid";
    INVALID_HOST = 1, 0x35, "Invalid Host";
    INVALID_NVM_SUBSYSTEM = 1, 0x36, "Invalid NVM Subsystem";
    INVALID_CONTROLLER_DATA_QUEUE = 1, 0x37, "Invalid Controller Data Queue";
    NOT_ENOUGH_RESOURCES = 1, 0x38, "Not Enough Resources";
    CONTROLLER_SUSPENDED = 1, 0x39, "Controller Suspended";
    CONTROLLER_NOT_SUSPENDED = 1, 0x3A, "Controller Not Suspended";
    CONTROLLER_DATA_QUEUE_FULL = 1, 0x3B, "Controller Data Queue Full";

    CONFLICTING_ATTRIBUTES = 1, 0x80, "Conflicting Attributes";
    INVALID_PROTECTION_INFORMATION = 1, 0x81, "Invalid Protection Information";
    WRITE_TO_READ_ONLY_RANGE = 1, 0x82, "Attempted Write to Read Only Range";
    COMMAND_SIZE_LIMIT_EXCEEDED = 1, 0x83, "Command Size Limit Exceeded";
    INVALID_COMMAND_ID = 1, 0x84, "Invalid Command ID";
    INCOMPATIBLE_NAMESPACE = 1, 0x85, "Incompatible Namespace or Format";
    FAST_COPY_NOT_POSSIBLE = 1, 0x86, "Fast Copy Not Possible";
    OVERLAPPING_IO_RANGE = 1, 0x87, "Overlapping I/O Range";
    NAMESPACE_NOT_REACHABLE = 1, 0x88, "Namespace Not Reachable";
    INSUFFICIENT_RESOURCES = 1, 0x89, "Insufficient Resources";

    CONNECT_INCOMPATIBLE_FORMAT = 1, 0x80, "Connect Incompatible Format";
    CONNECT_CONTROLLER_BUSY = 1, 0x81, "Connect Controller Busy";
    CONNECT_INVALID_PARAMETERS = 1, 0x82, "Connect Invalid Parameters";
    CONNECT_RESTART_DISCOVERY = 1, 0x83, "Connect Restart Discovery";
    CONNECT_INVALID_HOST = 1, 0x84, "Connect Invalid Host";
    INVALID_QUEUE_TYPE = 1, 0x85, "Invalid Queue Type";
    DISCOVER_RESTART = 1, 0x90, "Discover Restart";
    AUTHENTICATION_REQUIRED = 1, 0x91, "Authentication Required";

    WRITE_FAULT = 2, 0x80, "Write Fault";
    UNRECOVERED_READ_ERROR = 2, 0x81, "Unrecovered Read Error";
    GUARD_CHECK_ERROR = 2, 0x82, "End-to-end Guard Check Error";
    APPLICATION_TAG_CHECK_ERROR = 2, 0x83, "End-to-end Application Tag Check Error";
    REFERENCE_TAG_CHECK_ERROR = 2, 0x84, "End-to-end Reference Tag Check Error";
    COMPARE_FAILURE = 2, 0x85, "Compare Failure";
    ACCESS_DENIED = 2, 0x86, "Access Denied";
    DEALLOCATED_OR_UNWRITTEN = 2, 0x87, "Deallocated or Unwritten Logical Block";
    STORAGE_TAG_CHECK_ERROR = 2, 0x88, "End-to-end Storage Tag Check Error";

    INTERNAL_PATH_ERROR = 3, 0x00, "Internal Path Error";
    ANA_PERSISTENT_LOSS = 3, 0x01, "Asymmetric Access Persistent Loss";
    ANA_INACCESSIBLE = 3, 0x02, "Asymmetric Access Inaccessible";
    ANA_TRANSITION = 3, 0x03, "Asymmetric Access Transition";
    CONTROLLER_PATHING_ERROR = 3, 0x60, "Controller Pathing Error";
    HOST_PATHING_ERROR = 3, 0x70, "Host Pathing Error";
    ABORTED_BY_HOST = 3, 0x71, "Command Aborted By Host";
}

impl Status {
    /// The status of this type and code; only the lowest three bits of the type count.
    #[must_use]
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self((sct as u16 & 7) << 8 | sc as u16)
    }

    /// The status in the upper half of a completion's dword 3; the phase tag is dropped.
    #[must_use]
    pub const fn from_wire(value: u16) -> Self {
        Self(value >> 1)
    }

    /// The upper half of a completion's dword 3.
    #[must_use]
    pub const fn to_wire(self, phase: bool) -> u16 {
        self.0 << 1 | phase as u16
    }

    /// The status with these 15 bits; the highest bit is dropped.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & MASK)
    }

    /// The 15 bits.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Status Code Type.
    #[must_use]
    pub const fn sct(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Status Code.
    #[must_use]
    pub const fn sc(self) -> u8 {
        self.0 as u8
    }

    /// Command Retry Delay: 0, or which of the controller's three delays (CRDT).
    #[must_use]
    pub const fn crd(self) -> u8 {
        (self.0 >> 11) as u8 & 3
    }

    /// More: the error log has more about this.
    #[must_use]
    pub const fn more(self) -> bool {
        self.0 & MORE != 0
    }

    /// Do Not Retry: the same command would fail again.
    #[must_use]
    pub const fn dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// Whether the command succeeded.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & CODE == 0
    }

    /// Whether this is a path related status: another path may do.
    #[must_use]
    pub const fn is_path_related(self) -> bool {
        self.sct() == SCT_PATH
    }

    /// This status with Do Not Retry.
    #[must_use]
    pub const fn with_dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// This status with More.
    #[must_use]
    pub const fn with_more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// This status with a Command Retry Delay, 0 to 3.
    #[must_use]
    pub const fn with_crd(self, crd: u8) -> Self {
        Self(self.0 & !(3 << 11) | (crd as u16 & 3) << 11)
    }

    /// Whether both have the same type and code, whatever they say of retries and the error log.
    #[must_use]
    pub const fn same_as(self, other: Self) -> bool {
        self.0 & CODE == other.0 & CODE
    }
}

impl fmt::Display for Status {
    /// The words, each meaning where a code has more than one, and the numbers: `LBA Out of Range
    /// (sct 0h, sc 80h)`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut meanings = TABLE
            .iter()
            .filter(|(status, _)| status.same_as(*self))
            .map(|(_, words)| *words);
        out.write_str(meanings.next().unwrap_or("Unknown Status"))?;
        for words in meanings {
            write!(out, " or {words}")?;
        }
        write!(out, " (sct {:X}h, sc {:02X}h", self.sct(), self.sc())?;
        if self.crd() != 0 {
            write!(out, ", crd {}", self.crd())?;
        }
        if self.more() {
            out.write_str(", more")?;
        }
        if self.dnr() {
            out.write_str(", do not retry")?;
        }
        out.write_str(")")
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_words() {
        assert_eq!(
            Status::LBA_OUT_OF_RANGE.to_string(),
            "LBA Out of Range (sct 0h, sc 80h)"
        );
        assert_eq!(
            Status::COMPARE_FAILURE.with_dnr().to_string(),
            "Compare Failure (sct 2h, sc 85h, do not retry)"
        );
        assert_eq!(
            Status::CONNECT_INVALID_PARAMETERS.to_string(),
            "Attempted Write to Read Only Range or Connect Invalid Parameters (sct 1h, sc 82h)"
        );
        assert_eq!(
            Status::new(7, 0xAB).to_string(),
            "Unknown Status (sct 7h, sc ABh)"
        );
    }

    #[test]
    fn bits_on_the_wire() {
        let status = Status::ANA_INACCESSIBLE.with_dnr().with_crd(2).with_more();
        assert_eq!(status.to_wire(true), 0xE605);
        assert!(status.dnr() && status.more() && !status.is_success());
        assert_eq!((status.sct(), status.sc(), status.crd()), (3, 2, 2));
        assert!(status.same_as(Status::ANA_INACCESSIBLE));
        assert_ne!(status, Status::ANA_INACCESSIBLE);
        for bits in 0..=MASK {
            let status = Status::from_bits(bits);
            assert_eq!(Status::from_wire(status.to_wire(true)), status);
            assert_eq!(status.to_wire(false) & 1, 0);
        }
    }

    #[test]
    fn a_name_has_one_meaning_and_no_retry_bits() {
        for (index, (status, words)) in TABLE.iter().enumerate() {
            assert_eq!(status.bits() & !CODE, 0, "{words}");
            assert!(
                TABLE[..index].iter().all(|(_, other)| other != words),
                "{words}"
            );
        }
    }
}
