//! What a drive says of its health and its firmware, for whoever operates it.
//!
//! Invariant: whatever the bytes were, what is here is in range; counters that do not fit stay at their
//! greatest value.

use crate::spec::{
    ascii,
    identify::IdentifyController,
    log::{FirmwareSlotLog, SmartLog, counter_get, critical_warning},
};

/// Slots of firmware that a controller has at most.
const SLOTS_MAX: u8 = 7;

/// Kelvins at 0 degrees Celsius, as drives count them.
const FREEZING_POINT: i32 = 273;

/// A drive's own report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveReport {
    /// Model number.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// The firmware that runs.
    pub firmware: String,
    /// Where firmware is kept.
    pub slots: FirmwareSlots,
    /// How it is.
    pub health: Health,
}

/// Where firmware is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareSlots {
    /// The slot of the firmware that runs.
    pub active: u8,
    /// The slot that the next reset starts from, where that is another one.
    pub next: Option<u8>,
    /// The first slot cannot be written.
    pub first_read_only: bool,
    /// What is in the slots, from the first on: `None` for an empty one.
    pub revisions: Vec<Option<String>>,
}

/// How a drive is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What it warns of, in words.
    pub warnings: Vec<&'static str>,
    /// Degrees Celsius; `None` where it does not say.
    pub temperature: Option<i32>,
    /// From this temperature on it warns; `None` where it does not say.
    pub temperature_warning: Option<i32>,
    /// From this temperature on it may stop working; `None` where it does not say.
    pub temperature_critical: Option<i32>,
    /// Its sensors, by number.
    pub sensors: Vec<(u8, i32)>,
    /// Spare capacity that is left.
    pub spare_percent: u8,
    /// Below this it warns.
    pub spare_threshold_percent: u8,
    /// How much of its life is used, by its maker's estimate; more than 100 is possible.
    pub used_percent: u8,
    /// Bytes that hosts have read.
    pub read_bytes: u64,
    /// Bytes that hosts have written.
    pub written_bytes: u64,
    /// Read commands.
    pub reads: u64,
    /// Write commands.
    pub writes: u64,
    /// Minutes in which commands were under way.
    pub busy_minutes: u64,
    /// Times that it was powered on.
    pub power_cycles: u64,
    /// Hours that it was powered.
    pub power_on_hours: u64,
    /// Times that its power went without a shutdown.
    pub unsafe_shutdowns: u64,
    /// Times that it found data damaged that it could not mend.
    pub media_errors: u64,
    /// Entries that its error log ever had.
    pub error_log_entries: u64,
}

impl DriveReport {
    /// From the structures that a controller gives.
    #[must_use]
    pub fn parse(identify: &IdentifyController, smart: &SmartLog, slots: &FirmwareSlotLog) -> Self {
        Self {
            model: ascii::trim(&identify.mn),
            serial: ascii::trim(&identify.sn),
            firmware: ascii::trim(&identify.fr),
            slots: FirmwareSlots::parse(identify.frmw, slots),
            health: Health::parse(identify, smart),
        }
    }
}

impl FirmwareSlots {
    fn parse(frmw: u8, log: &FirmwareSlotLog) -> Self {
        let count = (frmw >> 1 & 0b111).clamp(1, SLOTS_MAX);
        let (active, next) = (log.afi & 0b111, log.afi >> 4 & 0b111);
        let revisions = log.frs.iter().take(usize::from(count));
        Self {
            active,
            next: (next != 0 && next != active).then_some(next),
            first_read_only: frmw & 1 != 0,
            revisions: revisions
                .map(|text| ascii::trim(text))
                .map(|text| Some(text).filter(|text| !text.is_empty()))
                .collect(),
        }
    }
}

impl Health {
    fn parse(identify: &IdentifyController, log: &SmartLog) -> Self {
        let celsius = |kelvins: u16| (kelvins != 0).then(|| i32::from(kelvins) - FREEZING_POINT);
        let counter = |counter: &[u8; 16]| u64::try_from(counter_get(counter)).unwrap_or(u64::MAX);
        let bytes = |units: &[u8; 16]| counter(units).saturating_mul(512_000);
        let warnings = WARNINGS
            .iter()
            .filter(|(bit, _)| log.critical_warning & bit != 0);
        let sensors = (1..).zip(&log.temperature_sensor);
        Self {
            warnings: warnings.map(|(_, words)| *words).collect(),
            temperature: celsius(log.composite_temperature.get()),
            temperature_warning: celsius(identify.wctemp.get()),
            temperature_critical: celsius(identify.cctemp.get()),
            sensors: sensors
                .filter_map(|(number, kelvins)| Some((number, celsius(kelvins.get())?)))
                .collect(),
            spare_percent: log.available_spare,
            spare_threshold_percent: log.available_spare_threshold,
            used_percent: log.percentage_used,
            read_bytes: bytes(&log.data_units_read),
            written_bytes: bytes(&log.data_units_written),
            reads: counter(&log.host_read_commands),
            writes: counter(&log.host_write_commands),
            busy_minutes: counter(&log.controller_busy_time),
            power_cycles: counter(&log.power_cycles),
            power_on_hours: counter(&log.power_on_hours),
            unsafe_shutdowns: counter(&log.unsafe_shutdowns),
            media_errors: counter(&log.media_errors),
            error_log_entries: counter(&log.error_log_entries),
        }
    }
}

const WARNINGS: [(u8, &str); 6] = [
    (critical_warning::SPARE, "spare capacity is low"),
    (
        critical_warning::TEMPERATURE,
        "temperature is past a threshold",
    ),
    (critical_warning::RELIABILITY, "reliability is degraded"),
    (critical_warning::READ_ONLY, "media are read only"),
    (
        critical_warning::BACKUP,
        "the backup of volatile memory failed",
    ),
    (
        critical_warning::PERSISTENT_MEMORY,
        "persistent memory is read only or unreliable",
    ),
];

#[cfg(test)]
mod tests {
    use zerocopy::{FromBytes, FromZeros};

    use super::*;

    #[test]
    fn a_drive_that_is_well() {
        let mut identify = IdentifyController::new_zeroed();
        identify.frmw = 1 | 3 << 1;
        identify.wctemp.set(343);
        let mut smart = SmartLog::new_zeroed();
        smart.composite_temperature.set(300);
        smart.temperature_sensor[1].set(310);
        smart.data_units_written[0] = 2;
        let mut slots = FirmwareSlotLog::new_zeroed();
        slots.afi = 2 | 3 << 4;
        slots.frs[1] = *b"2.1     ";
        let report = DriveReport::parse(&identify, &smart, &slots);
        assert_eq!(report.slots.revisions, [None, Some("2.1".into()), None]);
        assert_eq!((report.slots.active, report.slots.next), (2, Some(3)));
        assert!(report.slots.first_read_only);
        let health = report.health;
        assert_eq!(health.temperature, Some(27));
        assert_eq!(health.temperature_warning, Some(70));
        assert_eq!(health.temperature_critical, None);
        assert_eq!(health.sensors, [(2, 37)]);
        assert_eq!(health.written_bytes, 1_024_000);
        assert!(health.warnings.is_empty());
    }

    #[test]
    fn whatever_it_says_is_in_range() {
        let ones = [0xFF; 4096];
        let (identify, _) = IdentifyController::ref_from_prefix(&ones).unwrap();
        let (smart, _) = SmartLog::ref_from_prefix(&ones).unwrap();
        let (slots, _) = FirmwareSlotLog::ref_from_prefix(&ones).unwrap();
        let report = DriveReport::parse(identify, smart, slots);
        assert_eq!(report.slots.revisions.len(), 7);
        assert_eq!(report.health.warnings.len(), WARNINGS.len());
        assert_eq!(report.health.written_bytes, u64::MAX);
        assert_eq!(report.health.sensors.len(), 8);
    }
}
