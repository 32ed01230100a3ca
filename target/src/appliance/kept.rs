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
use corebay_raid::{Patience, SlowMembers, sweep::Scrubbed};
use serde::{Deserialize, Serialize};
use tracing::warn;
use uuid::Uuid;

use super::{
    arrays::{ArrayMedium, LastScrub, Scrubbing},
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    member_timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    slow_members_fail: bool,
}

impl Made {
    /// As the array is now.
    pub fn of(array: &ArrayMedium) -> Self {
        let assembled = array.assembled();
        let geometry = assembled.geometry();
        let wish = geometry.wish();
        let (level, code) = array_words::level_words(wish.level);
        let members = array.members().into_iter().flatten();
        Self {
            uuid: Uuid::from_bytes(assembled.uuid().0),
            level: level.to_owned(),
            data: code.map(|(data, _)| data),
            parity: code.map(|(_, parity)| parity),
            roles: wish.roles,
            members: members.map(|disk| disk.name).collect(),
            spares: array.spares(),
            strip_bytes: u64::from(wish.strip_bytes),
            consistency: array_words::consistency_word(wish.consistency).to_owned(),
            floor_mib: array.pace.floor_mib_s,
            ceiling_mib: array.pace.ceiling_mib_s,
            scrub_seconds: array.scrub_every.map(|every| every.as_secs()),
            member_timeout_ms: u64::try_from(assembled.patience().deadline.as_millis()).ok(),
            slow_members_fail: assembled.patience().slow == SlowMembers::Fail,
        }
    }

    fn kept(self, name: String) -> Result<KeptArray, String> {
        let (mib, usual) = (
            |count: u32| Size::MIB.times(u64::from(count)),
            Patience::default(),
        );
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
            patience: Patience {
                deadline: self
                    .member_timeout_ms
                    .map_or(usual.deadline, Duration::from_millis),
                slow: match self.slow_members_fail {
                    true => SlowMembers::Fail,
                    false => SlowMembers::Warn,
                },
                ..usual
            },
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
    /// One that has not come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    under_way: Option<UnderWay>,
}

/// How far a scrub is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnderWay {
    done_stripes: u64,
    seconds: u64,
    mismatch_count: u64,
    mismatches: Vec<u64>,
    lost: Vec<u64>,
}

impl KeptScrub {
    /// None yet; the first is reckoned from now on.
    pub fn none(since: u64) -> Self {
        Self {
            since,
            ..Self::default()
        }
    }

    /// Of an array as it is now.
    pub fn of(array: &ArrayMedium) -> Self {
        let tending = array.tending();
        let under_way = |scrubbing: &Scrubbing| UnderWay {
            done_stripes: scrubbing.found.done,
            seconds: scrubbing.took.as_secs(),
            mismatch_count: scrubbing.found.mismatch_count,
            mismatches: scrubbing.found.mismatches.clone(),
            lost: scrubbing.found.lost.clone(),
        };
        let kept = Self {
            since: array.scrubbed_at.load(Ordering::Relaxed),
            under_way: tending.scrubbing.as_ref().map(under_way),
            ..Self::default()
        };
        let Some(last) = &tending.scrubbed else {
            return kept;
        };
        let found = last.outcome.clone().unwrap_or_default();
        Self {
            at: Some(last.at_unix),
            seconds: last.seconds,
            mismatch_count: found.mismatch_count,
            mismatches: found.mismatches,
            lost: found.lost,
            error: last.outcome.clone().err(),
            ..kept
        }
    }

    fn scrubbing(&self) -> Option<Scrubbing> {
        let begun = self.under_way.clone()?;
        Some(Scrubbing {
            found: Scrubbed {
                mismatches: begun.mismatches,
                mismatch_count: begun.mismatch_count,
                lost: begun.lost,
                done: begun.done_stripes,
            },
            took: Duration::from_secs(begun.seconds),
        })
    }

    fn last(&self) -> Option<LastScrub> {
        let found = Scrubbed {
            mismatches: self.mismatches.clone(),
            mismatch_count: self.mismatch_count,
            lost: self.lost.clone(),
            ..Scrubbed::default()
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
    let mut tending = array.tending();
    tending.scrubbed = kept.last();
    tending.scrubbing = kept.scrubbing();
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

    fn first_core(&self) -> Option<u32> {
        LocalMachine.first_core()
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
