//! The words of `[[array]]`, for whoever asks for an array by other means than a file.

use std::time::Duration;

use corebay_raid::SlowMembers;

use crate::appliance::{Consistency, Level};
use crate::schema::array::{CONSISTENCIES, LEVELS, SLOW_MEMBERS, deadline, interval, zone};
use crate::schema::{RawLevel, scalars};

/// The level that a word means; `ec` needs `data` and `parity`, and no other level has them.
///
/// # Errors
/// Says what is wrong.
pub fn level(word: &str, data: Option<u8>, parity: Option<u8>) -> Result<Level, String> {
    let words: Vec<&str> = LEVELS.iter().map(|(word, _)| *word).collect();
    let known = LEVELS.iter().find(|(known, _)| *known == word);
    let (_, raw) = known.ok_or_else(|| {
        let words = words.join(", ");
        format!("there is no level \"{word}\": {words} are possible")
    })?;
    let level = match (raw, data, parity) {
        (RawLevel::ErasureCode, Some(data), Some(parity)) => {
            return Ok(Level::ErasureCode { data, parity });
        }
        (RawLevel::ErasureCode, ..) => {
            return Err("the level \"ec\" needs `data` and `parity`".to_owned());
        }
        (RawLevel::Raid0, ..) => Level::Striped,
        (RawLevel::Raid1, ..) => Level::Mirrored,
        (RawLevel::Raid10, ..) => Level::StripedMirrors,
        (RawLevel::Raid5, ..) => Level::Raid5,
        (RawLevel::Raid6, ..) => Level::Raid6,
    };
    match (data, parity) {
        (None, None) => Ok(level),
        _ => Err("`data` and `parity` are for the level \"ec\" only".to_owned()),
    }
}

/// The word of a level, and its `data` and `parity`.
pub fn level_words(level: Level) -> (&'static str, Option<(u8, u8)>) {
    match level {
        Level::Striped => ("raid0", None),
        Level::Mirrored => ("raid1", None),
        Level::StripedMirrors => ("raid10", None),
        Level::Raid5 => ("raid5", None),
        Level::Raid6 => ("raid6", None),
        Level::ErasureCode { data, parity } => ("ec", Some((data, parity))),
    }
}

/// The consistency that a word means.
///
/// # Errors
/// Says what is wrong.
pub fn consistency(word: &str) -> Result<Consistency, String> {
    let known = CONSISTENCIES.iter().find(|(known, _)| *known == word);
    known.map(|(_, consistency)| *consistency).ok_or_else(|| {
        format!("there is no consistency \"{word}\": journal and resync are possible")
    })
}

/// The word of a consistency.
pub fn consistency_word(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Journal => "journal",
        Consistency::DirtyRegions => "resync",
    }
}

/// The bytes of a mirrored zone of a level; none for "none".
///
/// # Errors
/// Says what is wrong.
pub fn zone_bytes(text: &str, level: Level) -> Result<u64, String> {
    let size = zone(text).map_err(|refusal| {
        let expected = "none or a size from 512KiB to 1GiB that is a multiple of 4KiB";
        format!("{}; expected {expected}", refusal.message)
    })?;
    match size.bytes() > 0 && !level.has_parity() {
        true => Err(NO_ZONE.to_owned()),
        false => Ok(size.bytes()),
    }
}

pub(crate) const NO_ZONE: &str = "a mirrored zone is for levels with parity";

/// How often an array is scrubbed by itself; `None`: never.
///
/// # Errors
/// Says what is wrong.
pub fn scrub_interval(text: &str) -> Result<Option<Duration>, String> {
    interval(text).map_err(|refusal| {
        let expected = "never, daily, weekly, monthly or a time as in 12h";
        format!("{}; expected {expected}", refusal.message)
    })
}

/// How long a member may take before it is given up.
///
/// # Errors
/// Says what is wrong.
pub fn member_timeout(text: &str) -> Result<Duration, String> {
    let expected = "expected a time from 500ms to 10m";
    deadline(text).map_err(|refusal| format!("{}; {expected}", refusal.message))
}

/// What becomes of slow members.
///
/// # Errors
/// Says what is wrong.
pub fn slow_members(word: &str) -> Result<SlowMembers, String> {
    let known = SLOW_MEMBERS.iter().find(|(known, _)| *known == word);
    let wrong = || format!("slow members are not to \"{word}\": warn and fail are possible");
    known.map(|(_, slow)| *slow).ok_or_else(wrong)
}

/// A name that a disk or an array can have.
///
/// # Errors
/// Says what is wrong.
pub fn name(text: &str) -> Result<String, String> {
    scalars::name(text).map_err(|refusal| format!("{}: {}", refusal.message, refusal.help))
}
