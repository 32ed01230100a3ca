//! What the state file keeps of arrays: those that were made while the appliance ran, which no
//! configuration names, and when each was scrubbed last.

use std::{
    net::IpAddr,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use corebay_conf::{
    LocalMachine, Machine, Size, array_words,
    machine::{AddressState, CoreState, KeptArray, PathState},
};
use corebay_raid::sweep::Scrubbed;
use serde::{Deserialize, Serialize};
use tracing::warn;
use uuid::Uuid;

use super::{
    arrays::{ArrayMedium, LastScrub},
    state::{State, kept_in},
};

/// An array that was made while the appliance ran, as `[[array]]` would say it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    uuid: Uuid,
    level: String,
    data: Option<u8>,
    parity: Option<u8>,
    roles: usize,
    members: Vec<String>,
    spares: Vec<String>,
    strip_bytes: u64,
    consistency: String,
    floor_mib: u32,
    ceiling_mib: u32,
    scrub_seconds: Option<u64>,
}

impl Made {
    /// As the array is now.
    pub fn of(array: &ArrayMedium) -> Self {
        let assembled = array.assembled();
        let geometry = assembled.geometry();
        let wish = geometry.wish();
        let (level, code) = array_words::level_words(wish.level);
        let tending = array.tending();
        let members = tending.members().iter().flatten();
        // One that could not step in may be well at the next start.
        let spares = tending.spares.iter().map(|spare| &spare.name);
        let spares = spares.chain(&tending.unfit_spares);
        Self {
            uuid: Uuid::from_bytes(assembled.uuid().0),
            level: level.to_owned(),
            data: code.map(|(data, _)| data),
            parity: code.map(|(_, parity)| parity),
            roles: wish.roles,
            members: members.map(|disk| disk.name.clone()).collect(),
            spares: spares.cloned().collect(),
            strip_bytes: u64::from(wish.strip_bytes),
            consistency: array_words::consistency_word(wish.consistency).to_owned(),
            floor_mib: array.pace.floor_mib_s,
            ceiling_mib: array.pace.ceiling_mib_s,
            scrub_seconds: array.scrub_every.map(|every| every.as_secs()),
        }
    }

    fn kept(self, name: String) -> Result<KeptArray, String> {
        let mib = |count: u32| Size::MIB.times(u64::from(count));
        Ok(KeptArray {
            name,
            uuid: self.uuid,
            level: array_words::level(&self.level, self.data, self.parity)?,
            roles: self.roles,
            members: self.members,
            spares: self.spares,
            strip: Size::from_bytes(self.strip_bytes),
            consistency: array_words::consistency(&self.consistency)?,
            rebuild_floor: mib(self.floor_mib),
            rebuild_ceiling: Some(self.ceiling_mib).filter(|mib| *mib > 0).map(mib),
            scrub: self.scrub_seconds.map(Duration::from_secs),
        })
    }
}

/// When an array was scrubbed last, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptScrub {
    /// From when the next one is reckoned, in seconds since 1970.
    since: u64,
    /// When the last one ended; none has yet.
    at: Option<u64>,
    seconds: u64,
    mismatch_count: u64,
    mismatches: Vec<u64>,
    lost: Vec<u64>,
    error: Option<String>,
}

impl KeptScrub {
    /// None yet; the first is reckoned from now on.
    pub fn none(since: u64) -> Self {
        Self {
            since,
            ..Self::default()
        }
    }

    /// Of one that has ended.
    pub fn of(last: &LastScrub) -> Self {
        let found = last.outcome.clone();
        let error = found.clone().err();
        let found = found.unwrap_or_default();
        Self {
            since: last.at_unix,
            at: Some(last.at_unix),
            seconds: last.seconds,
            mismatch_count: found.mismatch_count,
            mismatches: found.mismatches,
            lost: found.lost,
            error,
        }
    }

    fn last(&self) -> Option<LastScrub> {
        let found = Scrubbed {
            mismatches: self.mismatches.clone(),
            mismatch_count: self.mismatch_count,
            lost: self.lost.clone(),
        };
        Some(LastScrub {
            at_unix: self.at?,
            seconds: self.seconds,
            outcome: match &self.error {
                Some(error) => Err(error.clone()),
                None => Ok(found),
            },
        })
    }
}

/// Tells an array that was found what is kept of it.
pub fn begin(array: &Arc<ArrayMedium>, state: &mut State) {
    let kept = state.scrub_of(array.assembled().uuid(), unix_seconds());
    array.scrubbed_at.store(kept.since, Ordering::Relaxed);
    array.tending().scrubbed = kept.last();
}

/// The wall clock.
#[allow(clippy::disallowed_methods, reason = "the main thread's clock")]
pub fn unix_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The machine, with what appliances on it have made while they ran.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisMachine;

impl Machine for ThisMachine {
    fn core(&self, core: u32) -> CoreState {
        LocalMachine.core(core)
    }

    fn usable_cores(&self) -> String {
        LocalMachine.usable_cores()
    }

    fn path(&self, path: &Path) -> PathState {
        LocalMachine.path(path)
    }

    fn address(&self, address: IpAddr) -> AddressState {
        LocalMachine.address(address)
    }

    fn memory_bytes(&self) -> Option<u64> {
        LocalMachine.memory_bytes()
    }

    fn kept_arrays(&self, data_dir: &Path) -> Vec<KeptArray> {
        // A state that cannot be read is told when it is opened.
        let arrays = kept_in(data_dir).unwrap_or_default().into_iter();
        let kept = arrays.filter_map(|(name, made)| {
            let kept = made.kept(name.clone());
            kept.map_err(|why| warn!("the array \"{name}\" in the data folder: {why}"))
                .ok()
        });
        kept.collect()
    }
}
