//! Features that Set Features changes and that can be saved (Base 2.1, 5.1.25): their values, and a
//! change of one.
//!
//! Current values belong to a controller; saved values belong to its subsystem, outlast the process,
//! and are what a new controller starts with.

use corebay_nvme::spec::feature::{error_recovery, fid, volatile_write_cache};

/// Threshold Type Select of Temperature Threshold: under-temperature.
const UNDER_TEMPERATURE: u32 = 1;

/// The values of the features. The field names are the features'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// Arbitration (01h).
    pub arbitration: u32,
    /// Temperature Threshold (04h): over- and under-temperature of the composite sensor, kelvins.
    pub temperature_threshold: [u16; 2],
    /// Error Recovery (05h).
    pub error_recovery: u32,
    /// Volatile Write Cache (06h): enabled.
    pub volatile_write_cache: bool,
    /// Write Atomicity Normal (0Ah).
    pub write_atomicity: u32,
    /// Asynchronous Event Configuration (0Bh).
    pub async_events: u32,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            arbitration: 0,
            temperature_threshold: [u16::MAX, 0],
            error_recovery: 0,
            volatile_write_cache: true,
            write_atomicity: 0,
            // Nothing is reported that the host did not ask for.
            async_events: 0,
        }
    }
}

/// True for the features that can be saved.
#[must_use]
pub fn is_saveable(fid: u8) -> bool {
    matches!(
        fid,
        fid::ARBITRATION
            | fid::TEMPERATURE_THRESHOLD
            | fid::ERROR_RECOVERY
            | fid::VOLATILE_WRITE_CACHE
            | fid::WRITE_ATOMICITY_NORMAL
            | fid::ASYNC_EVENT_CONFIGURATION
    )
}

/// A change of one of the [`Features`] to a value that it can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureChange {
    fid: u8,
    cdw11: u32,
}

impl FeatureChange {
    /// The change that Set Features asks for with this feature identifier and command dword 11;
    /// `None` where there is no such feature, or it has no such value.
    #[must_use]
    pub fn new(fid: u8, cdw11: u32) -> Option<Self> {
        let valid = match fid {
            // Only the composite temperature has thresholds.
            fid::TEMPERATURE_THRESHOLD => {
                cdw11 >> 20 & 3 <= UNDER_TEMPERATURE && cdw11 >> 16 & 0xf == 0
            }
            fid::ERROR_RECOVERY => cdw11 & error_recovery::DEALLOCATED_ERROR == 0,
            fid => is_saveable(fid),
        };
        valid.then_some(Self { fid, cdw11 })
    }

    /// The feature identifier.
    #[must_use]
    pub fn fid(self) -> u8 {
        self.fid
    }

    /// Command dword 11.
    #[must_use]
    pub fn cdw11(self) -> u32 {
        self.cdw11
    }

    /// True where nothing of the other change is left once this one is made.
    #[must_use]
    pub fn replaces(self, other: Self) -> bool {
        self.fid == other.fid
            && (self.fid != fid::TEMPERATURE_THRESHOLD || self.threshold() == other.threshold())
    }

    /// Makes the change.
    pub fn apply(self, features: &mut Features) {
        let value = self.cdw11;
        match self.fid {
            fid::ARBITRATION => features.arbitration = value,
            fid::TEMPERATURE_THRESHOLD => {
                features.temperature_threshold[self.threshold()] = value as u16;
            }
            fid::ERROR_RECOVERY => {
                features.error_recovery = value & error_recovery::TIME_LIMIT_MASK;
            }
            fid::VOLATILE_WRITE_CACHE => {
                features.volatile_write_cache = value & volatile_write_cache::ENABLE != 0;
            }
            fid::WRITE_ATOMICITY_NORMAL => features.write_atomicity = value & 1,
            fid::ASYNC_EVENT_CONFIGURATION => features.async_events = value,
            fid => unreachable!("feature {fid:02x}h is not among those that can be made"),
        }
    }

    /// Which of the two thresholds, as an index.
    fn threshold(self) -> usize {
        (self.cdw11 >> 20 & 3) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_that_can_be_made_can_be_applied() {
        for fid in 0..=u8::MAX {
            for cdw11 in [0, 1, 0x0010_0000, 0x0020_0000, 0x0001_0000, u32::MAX] {
                let Some(change) = FeatureChange::new(fid, cdw11) else {
                    continue;
                };
                assert!(is_saveable(fid));
                let mut features = Features::default();
                change.apply(&mut features);
            }
        }
        let over = FeatureChange::new(fid::TEMPERATURE_THRESHOLD, 350).unwrap();
        let under = FeatureChange::new(fid::TEMPERATURE_THRESHOLD, 1 << 20 | 270).unwrap();
        assert!(!under.replaces(over) && over.replaces(over));
        let mut features = Features::default();
        over.apply(&mut features);
        under.apply(&mut features);
        assert_eq!(features.temperature_threshold, [350, 270]);
    }
}
