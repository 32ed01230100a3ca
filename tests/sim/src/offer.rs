//! What an appliance offers to hosts, and what those that keep a discovery controller have to know of it.
//!
//! Invariants:
//! - A discovery log that a host has read is what the appliance offered to it at one moment of the read,
//!   with the generation of that moment.
//! - Whoever wants to be told of changes is told of each that its last read does not show. An event comes
//!   once for at least one change.

use std::{collections::BTreeMap, time::Duration};

use corebay_core::units::Time;

/// What an appliance offers beside its own subsystem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// A second subsystem, and whom it admits.
    pub second: Option<Admitted>,
    /// Other discovery services that hosts are told of.
    pub referrals: u16,
}

/// Whom a subsystem admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Every host.
    All,
    /// These, by a bit for each.
    Only(u64),
}

impl Admitted {
    /// True where it admits this host.
    #[must_use]
    pub fn admits(self, host: usize) -> bool {
        match self {
            Self::All => true,
            Self::Only(hosts) => hosts >> host & 1 != 0,
        }
    }
}

impl Offer {
    /// Another one, most likely: one of its parts is drawn anew.
    #[must_use]
    pub fn changed(self, drawn: u64) -> Self {
        let (what, value) = (drawn % 4, drawn >> 8);
        let only = Some(Admitted::Only(value % 8));
        match (what, self.second) {
            (0, _) => Self {
                referrals: (value % 3) as u16,
                ..self
            },
            (1, Some(_)) => Self {
                second: None,
                ..self
            },
            (2, _) => Self {
                second: Some(Admitted::All),
                ..self
            },
            _ => Self {
                second: only,
                ..self
            },
        }
    }
}

/// An offer, since when it holds, and its generation.
#[derive(Clone, Copy, Debug)]
struct State {
    since: u64,
    generation: u64,
    offer: Offer,
}

/// What is known of one discovery controller.
#[derive(Debug, Default)]
struct Told {
    announcements: u64,
    events: u64,
    /// Its host wants to know of changes from now on.
    wants: bool,
    /// The generation that its host has still to read, and since when.
    unread: Option<(u64, Time)>,
}

/// A host and its controller's identifier.
pub type Informed = (usize, u16);

/// See the module.
#[derive(Debug, Default)]
pub struct Offers {
    clock: u64,
    /// The process of the appliance, by its number.
    life: u64,
    states: Vec<State>,
    told: BTreeMap<Informed, Told>,
}

/// A read of a discovery log that has begun.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    of: Informed,
    life: u64,
    begun: u64,
}

impl Offers {
    /// The appliance's process begins.
    pub fn begin_life(&mut self, generation: u64) {
        self.end_life();
        self.change(generation, Offer::default());
    }

    /// The process is no more, nor are its controllers.
    pub fn end_life(&mut self) {
        self.life += 1;
        self.states.clear();
        self.told.clear();
    }

    /// What is offered now.
    #[must_use]
    pub fn current(&self) -> Offer {
        self.states
            .last()
            .map_or_else(Offer::default, |last| last.offer)
    }

    /// This is offered from now on.
    pub fn change(&mut self, generation: u64, offer: Offer) {
        self.clock += 1;
        self.states.push(State {
            since: self.clock,
            generation,
            offer,
        });
    }

    /// The appliance tells hosts that what it offers has changed.
    pub fn announce(&mut self, now: Time) {
        let Some(generation) = self.states.last().map(|last| last.generation) else {
            return;
        };
        for told in self.told.values_mut() {
            told.announcements += 1;
            if told.wants {
                let since = told.unread.map_or(now, |(_, since)| since);
                told.unread = Some((generation, since));
            }
        }
    }

    /// A host says to a new controller that it wants to be told of changes.
    pub fn begin_to_want(&mut self, of: Informed) {
        self.told.insert(of, Told::default());
    }

    /// The controller has taken that.
    pub fn want(&mut self, of: Informed) {
        if let Some(told) = self.told.get_mut(&of) {
            told.wants = true;
        }
    }

    /// The host has lost the controller, or has shut it down.
    pub fn leave(&mut self, of: Informed) {
        self.told.remove(&of);
    }

    /// A host is told by an event that the discovery log has changed.
    ///
    /// # Errors
    /// Where there was no change for it.
    pub fn event(&mut self, of: Informed) -> Result<(), String> {
        let Some(told) = self.told.get_mut(&of) else {
            return Ok(());
        };
        told.events += 1;
        match told.events > told.announcements {
            true => Err(format!(
                "was told {} times that the discovery log has changed, after {} changes",
                told.events, told.announcements
            )),
            false => Ok(()),
        }
    }

    /// A host begins to read the log.
    #[must_use]
    pub fn begin_read(&self, of: Informed) -> Reading {
        Reading {
            of,
            life: self.life,
            begun: self.clock,
        }
    }

    /// True where what is offered changed at least so often while it was being read.
    #[must_use]
    pub fn changed_often(&self, reading: &Reading, times: usize) -> bool {
        let later = self
            .states
            .iter()
            .filter(|state| state.since > reading.begun);
        reading.life != self.life || later.count() >= times
    }

    /// A read has ended with a log of this generation; `shows` says whether it is what a host has to be told
    /// of an offer. The longest time that a change was unread.
    ///
    /// # Errors
    /// Where it is nothing that was offered meanwhile.
    pub fn end_read(
        &mut self,
        reading: &Reading,
        generation: u64,
        now: Time,
        shows: impl Fn(&Offer) -> bool,
    ) -> Result<Duration, String> {
        if reading.life != self.life {
            return Ok(Duration::ZERO);
        }
        let until = self.states.iter().skip(1).map(|next| next.since);
        let until = until.chain([u64::MAX]);
        let during = self.states.iter().zip(until);
        let during = during.filter(|(_, until)| *until > reading.begun);
        let during: Vec<_> = during.map(|(state, _)| state).collect();
        let is = |state: &&&State| state.generation == generation && shows(&state.offer);
        if !during.iter().any(|state| is(&state)) {
            return Err(format!(
                "reads a discovery log of generation {generation} that is none of {during:?}"
            ));
        }
        let told = self.told.get_mut(&reading.of);
        let read = told.and_then(|told| told.unread.take_if(|(unread, _)| *unread <= generation));
        Ok(read.map_or(Duration::ZERO, |(_, since)| now.since(since)))
    }

    /// True where the host of a controller has not read of everything.
    #[must_use]
    pub fn has_unread(&self, of: Informed) -> bool {
        self.told.get(&of).is_some_and(|told| told.unread.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: Informed = (0, 1);

    fn offers() -> Offers {
        let mut offers = Offers::default();
        offers.begin_life(3);
        offers.begin_to_want(OF);
        offers.want(OF);
        offers
    }

    fn with(referrals: u16) -> Offer {
        Offer {
            referrals,
            ..Offer::default()
        }
    }

    fn read(offers: &mut Offers, reading: &Reading, generation: u64, referrals: u16) -> bool {
        let shows = |offer: &Offer| offer.referrals == referrals;
        offers.end_read(reading, generation, Time(9), shows).is_ok()
    }

    #[test]
    fn a_log_is_of_one_moment_of_its_read() {
        let mut offers = offers();
        let before = offers.begin_read(OF);
        offers.change(4, with(1));
        let during = offers.begin_read(OF);
        offers.change(5, with(2));
        let after = offers.begin_read(OF);
        assert!(read(&mut offers, &before, 3, 0) && read(&mut offers, &before, 5, 2));
        assert!(!read(&mut offers, &before, 4, 2) && !read(&mut offers, &before, 3, 1));
        assert!(!read(&mut offers, &during, 3, 0) && read(&mut offers, &during, 4, 1));
        assert!(!read(&mut offers, &after, 4, 1) && read(&mut offers, &after, 5, 2));
    }

    #[test]
    fn a_change_is_unread_until_its_generation_was_read() {
        let mut offers = offers();
        let early = offers.begin_read(OF);
        offers.change(4, with(1));
        offers.announce(Time(1));
        assert!(offers.has_unread(OF));
        assert!(read(&mut offers, &early, 3, 0) && offers.has_unread(OF));
        assert!(read(&mut offers, &early, 4, 1) && !offers.has_unread(OF));
    }

    #[test]
    fn there_are_no_more_events_than_changes() {
        let mut offers = offers();
        offers.announce(Time(1));
        assert!(offers.event(OF).is_ok() && offers.event(OF).is_err());
    }

    #[test]
    fn what_a_former_process_has_told_says_nothing() {
        let mut offers = offers();
        let reading = offers.begin_read(OF);
        offers.announce(Time(1));
        offers.begin_life(1);
        assert!(!offers.has_unread(OF) && offers.event(OF).is_ok());
        assert!(read(&mut offers, &reading, 7, 7));
    }
}
