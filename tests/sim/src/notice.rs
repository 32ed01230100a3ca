//! What hosts are to be told of their namespaces: each change that an appliance has announced to a
//! controller, until its host has read it in that controller's Changed Namespace List.
//!
//! Invariants:
//! - A change that was announced before a read of the list began is in that list, unless another read
//!   has taken it; what is in it was announced since it was last taken.
//! - An event is told once for at least one change: there are never more events than changes.

use std::{collections::BTreeMap, time::Duration};

use corebay_core::units::Time;

/// The list where more have changed than it has room for, and with them all may have (Base 2.1, 5.1.12.1.5).
const ALL: u32 = u32::MAX;

/// A change of one namespace.
#[derive(Clone, Copy, Debug, Default)]
struct Change {
    /// When it was announced last, in the order of calls.
    announced: u64,
    /// The same, in simulated time, where nobody has read of it.
    unread: Option<(u64, Time)>,
    /// What was announced before then has been taken by a read that has ended.
    taken: u64,
}

/// One controller of a host.
#[derive(Debug, Default)]
struct Told {
    changes: BTreeMap<u32, Change>,
    announcements: u64,
    events: u64,
    reads: u64,
    under_way: u64,
    /// Its appliance's process is no more: what it had sent may still come.
    gone: bool,
}

/// What an appliance has announced in this life, by host and controller identifier.
#[derive(Debug, Default)]
pub struct Notices {
    clock: u64,
    told: BTreeMap<(usize, u16), Told>,
}

/// A read of a Changed Namespace List that has begun.
#[derive(Debug)]
pub struct Reading {
    of: (usize, u16),
    begun: u64,
    number: u64,
    alone: bool,
    /// What had been taken by then.
    taken: BTreeMap<u32, u64>,
}

impl Notices {
    /// The appliance's process is no more, nor are its controllers.
    pub fn clear(&mut self) {
        self.told.values_mut().for_each(|told| told.gone = true);
    }

    /// The appliance has announced to a controller that a namespace has changed.
    pub fn announce(&mut self, of: (usize, u16), nsid: u32, now: Time) {
        self.clock += 1;
        let told = self.told.entry(of).or_default();
        if told.gone {
            // The next process gives the same identifiers.
            *told = Told::default();
        }
        told.announcements += 1;
        let change = told.changes.entry(nsid).or_default();
        change.announced = self.clock;
        let since = change.unread.map_or(now, |(_, since)| since);
        change.unread = Some((self.clock, since));
    }

    /// A host is told by an event that namespaces have changed.
    ///
    /// # Errors
    /// Where there was no change for it.
    pub fn event(&mut self, of: (usize, u16)) -> Result<(), String> {
        let told = self.told.entry(of).or_default();
        told.events += 1;
        match !told.gone && told.events > told.announcements {
            true => Err(format!(
                "was told {} times that namespaces have changed, after {} changes",
                told.events, told.announcements
            )),
            false => Ok(()),
        }
    }

    /// A host begins to read the list.
    pub fn begin_read(&mut self, of: (usize, u16)) -> Reading {
        self.clock += 1;
        let told = self.told.entry(of).or_default();
        told.reads += 1;
        told.under_way += 1;
        let taken = told.changes.iter();
        Reading {
            of,
            begun: self.clock,
            number: told.reads,
            alone: told.under_way == 1,
            taken: taken.map(|(nsid, change)| (*nsid, change.taken)).collect(),
        }
    }

    /// Nobody knows what came of a read: what was announced may have been taken by it.
    pub fn lose_read(&mut self, reading: &Reading) {
        if let Some(told) = self.told.get_mut(&reading.of) {
            told.under_way = told.under_way.saturating_sub(1);
            // Whoever reads at the same time has to know, too.
            told.reads += 1;
            told.changes
                .values_mut()
                .for_each(|change| change.unread = None);
        }
    }

    /// A read has ended with this list. The longest time that one of its changes was unread.
    ///
    /// # Errors
    /// Where a change is missing, or one is listed that there was not.
    pub fn end_read(
        &mut self,
        reading: &Reading,
        list: &[u32],
        now: Time,
    ) -> Result<Duration, String> {
        self.clock += 1;
        let Some(told) = self.told.get_mut(&reading.of) else {
            return Ok(Duration::ZERO);
        };
        told.under_way = told.under_way.saturating_sub(1);
        if told.gone {
            return Ok(Duration::ZERO);
        }
        let alone = reading.alone && told.reads == reading.number;
        let mut longest = Duration::ZERO;
        for nsid in list.iter().filter(|nsid| **nsid != ALL) {
            let change = told.changes.entry(*nsid).or_default();
            let taken = reading.taken.get(nsid).copied().unwrap_or(0);
            if change.announced <= taken {
                return Err(format!(
                    "reads that namespace {nsid} has changed, which it has not since it was last read"
                ));
            }
            change.taken = change.taken.max(reading.begun);
            if let Some((_, since)) = change.unread.take() {
                longest = longest.max(now.since(since));
            }
        }
        for (nsid, change) in &mut told.changes {
            let due = change.unread.is_some_and(|(at, _)| at < reading.begun);
            if due && !list.contains(&ALL) && alone {
                return Err(format!(
                    "reads {list:?} as the namespaces that have changed, without {nsid}"
                ));
            }
            if due {
                change.unread = None;
            }
        }
        Ok(longest)
    }

    /// True where the host of a controller has not read of everything.
    #[must_use]
    pub fn has_unread(&self, of: (usize, u16)) -> bool {
        let told = self.told.get(&of);
        let told = told.filter(|told| !told.gone);
        told.is_some_and(|told| told.changes.values().any(|change| change.unread.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: (usize, u16) = (0, 1);

    fn read(notices: &mut Notices, list: &[u32]) -> bool {
        let reading = notices.begin_read(OF);
        notices.end_read(&reading, list, Time(9)).is_ok()
    }

    #[test]
    fn a_change_is_read_once() {
        let mut notices = Notices::default();
        notices.announce(OF, 3, Time(1));
        assert!(notices.has_unread(OF));
        assert!(read(&mut notices, &[3]) && !notices.has_unread(OF));
        assert!(!read(&mut notices, &[3]));
        assert!(read(&mut notices, &[]));
    }

    #[test]
    fn a_change_that_is_missing_is_found() {
        let mut notices = Notices::default();
        notices.announce(OF, 3, Time(1));
        assert!(!read(&mut notices, &[]));
        let mut late = Notices::default();
        let reading = late.begin_read(OF);
        late.announce(OF, 3, Time(1));
        assert!(late.end_read(&reading, &[], Time(2)).is_ok());
        assert!(late.has_unread(OF));
    }

    #[test]
    fn of_two_reads_at_a_time_one_takes_a_change() {
        let mut notices = Notices::default();
        notices.announce(OF, 3, Time(1));
        let (a, b) = (notices.begin_read(OF), notices.begin_read(OF));
        assert!(notices.end_read(&a, &[], Time(2)).is_ok());
        assert!(notices.end_read(&b, &[3], Time(2)).is_ok());
        assert!(!notices.has_unread(OF));
    }

    #[test]
    fn a_read_whose_end_nobody_saw_may_have_taken_a_change() {
        let mut notices = Notices::default();
        notices.announce(OF, 3, Time(1));
        let lost = notices.begin_read(OF);
        notices.lose_read(&lost);
        assert!(!notices.has_unread(OF) && read(&mut notices, &[]));
    }

    #[test]
    fn there_are_no_more_events_than_changes() {
        let mut notices = Notices::default();
        notices.announce(OF, 3, Time(1));
        assert!(notices.event(OF).is_ok() && notices.event(OF).is_err());
    }
}
