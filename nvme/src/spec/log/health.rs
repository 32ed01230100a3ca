//! Error information, SMART / health, firmware slots, changed namespaces and reservation notifications.

use core::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Entry of the Error Information log page (LID 01h), Base 2.1 section 5.1.12.1.2. The newest entry comes first.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct ErrorLogEntry {
    /// Error count: 1 for the controller's first error; 0 marks an entry that is not valid.
    pub error_count: U64,
    /// Submission queue ID.
    pub sqid: U16,
    /// Command ID.
    pub cid: U16,
    /// Status field of the completion in bits 15:1; bit 0 may be the phase tag.
    pub status_field: U16,
    /// Parameter error location: bits 7:0 byte in the command, bits 10:8 bit in the byte; FFFFh where no parameter
    /// is at fault.
    pub parameter_error_location: U16,
    /// First LBA that had the error.
    pub lba: U64,
    /// Namespace of the command.
    pub nsid: U32,
    /// Vendor specific information available: a log page of the vendor, 80h to FFh, or 0.
    pub vendor: u8,
    /// Transport type, see [`trtype`](super::trtype); 0 where not reported.
    pub trtype: u8,
    /// Command set indicator; valid where bit 0 of `log_page_version` says so.
    pub csi: u8,
    /// Opcode; valid where bit 0 of `log_page_version` says so.
    pub opc: u8,
    /// Command specific information.
    pub command_specific: U64,
    /// Transport type specific information.
    pub trtype_specific: U16,
    _reserved42: [u8; 21],
    /// Log page version; 1 where `csi` and `opc` are valid.
    pub log_page_version: u8,
}

const _: () = {
    assert!(size_of::<ErrorLogEntry>() == 64);
    assert!(offset_of!(ErrorLogEntry, status_field) == 12);
    assert!(offset_of!(ErrorLogEntry, lba) == 16);
    assert!(offset_of!(ErrorLogEntry, nsid) == 24);
    assert!(offset_of!(ErrorLogEntry, opc) == 31);
    assert!(offset_of!(ErrorLogEntry, command_specific) == 32);
    assert!(offset_of!(ErrorLogEntry, trtype_specific) == 40);
    assert!(offset_of!(ErrorLogEntry, log_page_version) == 63);
};

/// SMART / Health Information log page (LID 02h), Base 2.1 section 5.1.12.1.3. The 16-byte counters are
/// little-endian: [`counter_get`] and [`counter_add`].
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct SmartLog {
    /// Critical warning, see [`critical_warning`].
    pub critical_warning: u8,
    /// Composite temperature, in kelvins.
    pub composite_temperature: U16,
    /// Available spare, in percent.
    pub available_spare: u8,
    /// Available spare threshold, in percent.
    pub available_spare_threshold: u8,
    /// Percentage used; past 100 is allowed.
    pub percentage_used: u8,
    /// Endurance group critical warning summary.
    pub endurance_group_critical_warning: u8,
    _reserved7: [u8; 25],
    /// Data units read, in units of 1000 x 512 bytes, rounded up.
    pub data_units_read: [u8; 16],
    /// Data units written, in units of 1000 x 512 bytes, rounded up.
    pub data_units_written: [u8; 16],
    /// Host read commands.
    pub host_read_commands: [u8; 16],
    /// Host write commands.
    pub host_write_commands: [u8; 16],
    /// Controller busy time, in minutes.
    pub controller_busy_time: [u8; 16],
    /// Power cycles.
    pub power_cycles: [u8; 16],
    /// Power on hours.
    pub power_on_hours: [u8; 16],
    /// Unexpected power losses.
    pub unsafe_shutdowns: [u8; 16],
    /// Media and data integrity errors.
    pub media_errors: [u8; 16],
    /// Number of error information log entries.
    pub error_log_entries: [u8; 16],
    /// Warning composite temperature time, in minutes.
    pub warning_temperature_time: U32,
    /// Critical composite temperature time, in minutes.
    pub critical_temperature_time: U32,
    /// Temperature sensors 1 to 8, in kelvins; 0 means not implemented.
    pub temperature_sensor: [U16; 8],
    /// Thermal management temperature 1 and 2 transition counts.
    pub thermal_transition_count: [U32; 2],
    /// Total time for thermal management temperature 1 and 2, in seconds.
    pub thermal_total_time: [U32; 2],
    _reserved232: [u8; 280],
}

const _: () = {
    assert!(size_of::<SmartLog>() == 512);
    assert!(offset_of!(SmartLog, composite_temperature) == 1);
    assert!(offset_of!(SmartLog, percentage_used) == 5);
    assert!(offset_of!(SmartLog, data_units_read) == 32);
    assert!(offset_of!(SmartLog, host_read_commands) == 64);
    assert!(offset_of!(SmartLog, error_log_entries) == 176);
    assert!(offset_of!(SmartLog, warning_temperature_time) == 192);
    assert!(offset_of!(SmartLog, temperature_sensor) == 200);
    assert!(offset_of!(SmartLog, thermal_transition_count) == 216);
    assert!(offset_of!(SmartLog, thermal_total_time) == 224);
};

/// Bits of [`SmartLog::critical_warning`].
pub mod critical_warning {
    /// The available spare is below its threshold.
    pub const SPARE: u8 = 1 << 0;
    /// A temperature is past a threshold.
    pub const TEMPERATURE: u8 = 1 << 1;
    /// Reliability is degraded.
    pub const RELIABILITY: u8 = 1 << 2;
    /// All media is in read only mode.
    pub const READ_ONLY: u8 = 1 << 3;
    /// The volatile memory backup failed.
    pub const BACKUP: u8 = 1 << 4;
    /// The persistent memory region is read only or unreliable.
    pub const PERSISTENT_MEMORY: u8 = 1 << 5;
}

/// The value of a 16-byte counter or capacity.
pub const fn counter_get(counter: &[u8; 16]) -> u128 {
    u128::from_le_bytes(*counter)
}

/// Adds `amount` to a 16-byte counter, which stays at its greatest value instead of wrapping.
pub const fn counter_add(counter: &mut [u8; 16], amount: u128) {
    *counter = counter_get(counter).saturating_add(amount).to_le_bytes();
}

/// Firmware Slot Information log page (LID 03h), Base 2.1 section 5.1.12.1.4.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct FirmwareSlotLog {
    /// Active firmware info: bits 2:0 the active slot, bits 6:4 the slot of the next reset or 0.
    pub afi: u8,
    _reserved1: [u8; 7],
    /// Firmware revision of slots 1 to 7, padded ASCII; all zero means an empty slot.
    pub frs: [[u8; 8]; 7],
    _reserved64: [u8; 448],
}

const _: () = {
    assert!(size_of::<FirmwareSlotLog>() == 512);
    assert!(offset_of!(FirmwareSlotLog, frs) == 8);
};

/// Changed Attached Namespace List log page (LID 04h), Base 2.1 section 5.1.12.1.5: ascending, the unused end zero;
/// where more than 1,024 changed, the first entry is FFFFFFFFh and the rest is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub struct ChangedNamespaceList {
    /// Namespace identifiers, ascending; 0 ends the list.
    pub nsids: [U32; ChangedNamespaceList::CAPACITY],
}

const _: () = assert!(size_of::<ChangedNamespaceList>() == 4096);

impl ChangedNamespaceList {
    /// The most identifiers a list holds.
    pub const CAPACITY: usize = 1024;

    /// Overwrites the list with `nsids`, or with the mark for too many.
    ///
    /// # Panics
    ///
    /// Where `nsids` is not strictly ascending.
    pub fn fill(&mut self, nsids: impl IntoIterator<Item = u32>) {
        self.nsids = [U32::ZERO; Self::CAPACITY];
        let mut before = None;
        for (index, nsid) in nsids.into_iter().enumerate() {
            assert!(before < Some(nsid), "namespace identifiers not ascending");
            before = Some(nsid);
            if index == Self::CAPACITY {
                self.nsids = [U32::ZERO; Self::CAPACITY];
                self.nsids[0] = U32::new(u32::MAX);
                return;
            }
            self.nsids[index] = U32::new(nsid);
        }
    }

    /// Whether more namespaces changed than the list holds: every namespace may have.
    pub fn overflowed(&self) -> bool {
        self.nsids[0].get() == u32::MAX
    }

    /// The identifiers before the first zero; only FFFFFFFFh where the list overflowed.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.nsids
            .iter()
            .map(|nsid| nsid.get())
            .take_while(|nsid| *nsid != 0)
    }
}

/// Reservation Notification log page (LID 80h), Base 2.1 section 5.1.12.1.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
pub struct ReservationNotificationLog {
    /// Log page count: 1 for the first notification; 0 where there is none.
    pub lpc: U64,
    /// Reservation notification log page type, see [`reservation_notification`].
    pub rnlpt: u8,
    /// Number of available log pages that are not read yet, past this one.
    pub nalp: u8,
    _reserved10: [u8; 2],
    /// Namespace of the notification.
    pub nsid: U32,
    _reserved16: [u8; 48],
}

const _: () = {
    assert!(size_of::<ReservationNotificationLog>() == 64);
    assert!(offset_of!(ReservationNotificationLog, rnlpt) == 8);
    assert!(offset_of!(ReservationNotificationLog, nsid) == 12);
};

/// Values of [`ReservationNotificationLog::rnlpt`].
pub mod reservation_notification {
    /// Empty log page.
    pub const EMPTY: u8 = 0;
    /// Registration preempted.
    pub const REGISTRATION_PREEMPTED: u8 = 1;
    /// Reservation released.
    pub const RESERVATION_RELEASED: u8 = 2;
    /// Reservation preempted.
    pub const RESERVATION_PREEMPTED: u8 = 3;
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn counters_add_and_saturate() {
        let mut counter = [0; 16];
        counter_add(&mut counter, 0x1_0000_0000_0000_0002);
        assert_eq!((counter[0], counter[8]), (2, 1));
        counter_add(&mut counter, u128::MAX);
        assert_eq!(counter_get(&counter), u128::MAX);
    }

    #[test]
    fn changed_namespaces_overflow_to_a_mark() {
        let mut list = ChangedNamespaceList::new_zeroed();
        list.fill(1..=1024);
        assert_eq!(list.iter().count(), 1024);
        assert!(!list.overflowed());
        list.fill(1..=1025);
        assert_eq!(list.iter().collect::<Vec<_>>(), [u32::MAX]);
        assert!(list.overflowed());
        list.fill([4, 8]);
        assert_eq!(list.iter().collect::<Vec<_>>(), [4, 8]);
    }
}
