//! `[[array]]`.

use std::time::Duration;

use corebay_raid::geometry::{Consistency, Level, STRIP_BYTES};
use corebay_raid::{Patience, SlowMembers};
use uuid::Uuid;

use super::scalars;
use crate::diagnostic::Draft;
use crate::limits;
use crate::machine::KeptArray;
use crate::reader::{At, Field, Refusal, Section};
use crate::units::{Size, TimeSpan, quoted};

const STRIP_DEFAULT: Size = Size::KIB.times(64);
const FLOOR_DEFAULT: Size = Size::MIB.times(20);

/// How an array spreads its data, without what its members add to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RawLevel {
    Raid0,
    Raid1,
    Raid10,
    Raid5,
    Raid6,
    ErasureCode,
}

pub(crate) const LEVELS: [(&str, RawLevel); 6] = [
    ("raid0", RawLevel::Raid0),
    ("raid1", RawLevel::Raid1),
    ("raid10", RawLevel::Raid10),
    ("raid5", RawLevel::Raid5),
    ("raid6", RawLevel::Raid6),
    ("ec", RawLevel::ErasureCode),
];

pub(crate) const CONSISTENCIES: [(&str, Consistency); 2] = [
    ("journal", Consistency::Journal),
    ("resync", Consistency::DirtyRegions),
];

const DAY: Duration = Duration::from_secs(86_400);

const INTERVALS: [(&str, Option<Duration>); 4] = [
    ("never", None),
    ("daily", Some(DAY)),
    ("weekly", Some(DAY.saturating_mul(7))),
    ("monthly", Some(DAY.saturating_mul(30))),
];

/// The shortest time between two scrubs that begin by themselves, and the longest.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
const INTERVAL_MAX: Duration = DAY.saturating_mul(366);

pub(crate) const SLOW_MEMBERS: [(&str, SlowMembers); 2] =
    [("warn", SlowMembers::Warn), ("fail", SlowMembers::Fail)];

/// How long a member may take at least, and at most, before it is given up.
const DEADLINE_MIN: Duration = Duration::from_millis(500);
const DEADLINE_MAX: Duration = Duration::from_secs(600);

/// `[[array]]` by itself.
pub(crate) struct RawArray {
    pub(crate) name: Field<String>,
    pub(crate) level: Field<RawLevel>,
    /// Strips of data and parity of a stripe, for `ec`.
    pub(crate) data: Field<u8>,
    pub(crate) parity: Field<u8>,
    /// Names of disks.
    pub(crate) members: Field<Vec<At<String>>>,
    pub(crate) spares: Field<Vec<At<String>>>,
    pub(crate) strip: At<Size>,
    pub(crate) consistency: Consistency,
    /// The mirrored zone, of no bytes where there is to be none.
    pub(crate) zone: Option<At<Size>>,
    pub(crate) create: bool,
    pub(crate) rebuild_floor: At<Size>,
    pub(crate) rebuild_ceiling: Option<At<Size>>,
    pub(crate) scrub: Option<Duration>,
    pub(crate) patience: Patience,
    /// It was made while the appliance ran: what its members call it, and how many they are.
    pub(crate) kept: Option<(Uuid, usize)>,
}

impl RawArray {
    /// One that was made while the appliance ran.
    pub(crate) fn of_kept(kept: KeptArray) -> Self {
        let (level, data, parity) = match kept.level {
            Level::Striped => (RawLevel::Raid0, None, None),
            Level::Mirrored => (RawLevel::Raid1, None, None),
            Level::StripedMirrors => (RawLevel::Raid10, None, None),
            Level::Raid5 => (RawLevel::Raid5, None, None),
            Level::Raid6 => (RawLevel::Raid6, None, None),
            Level::ErasureCode { data, parity } => {
                (RawLevel::ErasureCode, Some(data), Some(parity))
            }
        };
        let count = |count: Option<u8>| {
            let given = |count| Field::Given(At::default(count));
            count.map_or(Field::Absent, given)
        };
        let names = |names: Vec<String>| {
            let names = names.into_iter().map(At::default).collect();
            Field::Given(At::default(names))
        };
        Self {
            name: Field::Given(At::default(kept.name)),
            level: Field::Given(At::default(level)),
            data: count(data),
            parity: count(parity),
            members: names(kept.members),
            spares: names(kept.spares),
            strip: At::default(kept.strip),
            consistency: kept.consistency,
            zone: None,
            create: false,
            rebuild_floor: At::default(kept.rebuild_floor),
            rebuild_ceiling: kept.rebuild_ceiling.map(At::default),
            scrub: kept.scrub,
            patience: kept.patience,
            kept: Some((kept.uuid, kept.roles)),
        }
    }

    /// The names of the disks that may be members.
    pub(crate) fn disks(&self) -> impl Iterator<Item = &At<String>> {
        let lists = [&self.members, &self.spares].into_iter();
        lists.filter_map(Field::value).flatten()
    }
}

/// Reads one `[[array]]`.
pub(crate) fn read(mut section: Section<'_, '_>) -> RawArray {
    let name = section.parsed("name", "a name", scalars::name);
    if name.is_absent() {
        section.missing("name", "name = \"array-1\"");
    }
    let level = section.choice("level", &LEVELS);
    if level.is_absent() {
        section.missing("level", "level = \"raid6\"");
    }
    let members = names(&mut section, "members");
    if members.is_absent() {
        section.missing("members", "members = [\"disk-1\", \"disk-2\", \"disk-3\"]");
    }
    let raw = RawArray {
        name,
        level,
        data: count(&mut section, "data"),
        parity: count(&mut section, "parity"),
        members,
        spares: names(&mut section, "spares"),
        strip: strip(&mut section),
        consistency: section
            .choice("consistency", &CONSISTENCIES)
            .or(Consistency::Journal),
        zone: section.parsed("zone", ZONE_EXPECTED, zone).given().cloned(),
        create: section.boolean("create").or(false),
        rebuild_floor: rate(&mut section, "rebuild_floor").or_at(FLOOR_DEFAULT),
        rebuild_ceiling: rate(&mut section, "rebuild_ceiling").given().cloned(),
        scrub: section
            .parsed("scrub", INTERVAL_EXPECTED, interval)
            .or(None),
        patience: patience(&mut section),
        kept: None,
    };
    section.finish();
    raw
}

const ZONE_EXPECTED: &str = "\"none\" or a size from 512KiB to 1GiB";

/// The size of a mirrored zone; no bytes for none.
pub(crate) fn zone(text: &str) -> Result<Size, Refusal> {
    if text == "none" {
        return Ok(Size::from_bytes(0));
    }
    let size = text.parse::<Size>()?;
    let fits = (Size::KIB.times(512)..=Size::GIB).contains(&size);
    match fits && size.bytes().is_multiple_of(4096) {
        true => Ok(size),
        false => Err(Refusal::new(
            format!("a zone of {} cannot be", quoted(text)),
            "it is a multiple of 4KiB",
        )),
    }
}

const INTERVAL_EXPECTED: &str =
    "\"never\", \"daily\", \"weekly\", \"monthly\" or a time from 1s to 8784h";

/// How often something begins by itself.
pub(crate) fn interval(text: &str) -> Result<Option<Duration>, Refusal> {
    if let Some((_, interval)) = INTERVALS.iter().find(|(word, _)| *word == text) {
        return Ok(*interval);
    }
    let time = text.parse::<TimeSpan>()?.duration();
    match (INTERVAL_MIN..=INTERVAL_MAX).contains(&time) {
        true => Ok(Some(time)),
        false => Err(Refusal::new(
            format!("{} is too short or too long", quoted(text)),
            "",
        )),
    }
}

fn strip(section: &mut Section<'_, '_>) -> At<Size> {
    let least = Size::from_bytes(u64::from(STRIP_BYTES.start));
    let most = Size::from_bytes(u64::from(STRIP_BYTES.end - 1));
    let Field::Given(strip) = section.size("strip", least..=most) else {
        return At::default(STRIP_DEFAULT);
    };
    let bytes = strip.value.bytes();
    if !bytes.is_power_of_two() {
        let below = Size::from_bytes(1 << bytes.ilog2());
        let above = Size::from_bytes(bytes.next_power_of_two());
        let draft = Draft::error(format!("a strip of {bytes} bytes is no power of two"))
            .at(strip.span, "expected a power of two")
            .help(format!("the nearest are \"{below}\" and \"{above}\""));
        section.sink.push(draft);
        return At::default(STRIP_DEFAULT);
    }
    strip
}

fn patience(section: &mut Section<'_, '_>) -> Patience {
    let usual = Patience::default();
    let deadline = section.parsed("member_timeout", DEADLINE_EXPECTED, deadline);
    let slow = section.choice("slow_members", &SLOW_MEMBERS);
    Patience {
        deadline: deadline.or(usual.deadline),
        slow: slow.or(usual.slow),
        ..usual
    }
}

const DEADLINE_EXPECTED: &str = "a time from 500ms to 10m";

/// How long a member may take.
pub(crate) fn deadline(text: &str) -> Result<Duration, Refusal> {
    let time = text.parse::<TimeSpan>()?.duration();
    match (DEADLINE_MIN..=DEADLINE_MAX).contains(&time) {
        true => Ok(time),
        false => Err(Refusal::new(
            format!("{} is too short or too long", quoted(text)),
            "",
        )),
    }
}

/// Bytes in a second.
fn rate(section: &mut Section<'_, '_>, key: &'static str) -> Field<Size> {
    section.size(key, Size::MIB..=Size::TIB)
}

fn count(section: &mut Section<'_, '_>, key: &'static str) -> Field<u8> {
    let count = section.integer(key, 1..=u64::from(u8::MAX));
    count.map(|count| u8::try_from(count).unwrap_or(u8::MAX))
}

fn names(section: &mut Section<'_, '_>, key: &'static str) -> Field<Vec<At<String>>> {
    const EXPECTED: &str = "a list of names of disks";
    let list = match section.list(key, EXPECTED) {
        Field::Absent => return Field::Absent,
        Field::Wrong => return Field::Wrong,
        Field::Given(list) => list,
    };
    if list.value.len() > limits::ARRAY_DISKS_MAX {
        let label = format!("expected at most {}", limits::ARRAY_DISKS_MAX);
        let draft = Draft::error("these are too many disks").at(list.span, label);
        section.sink.push(draft);
        return Field::Wrong;
    }
    let mut names = Vec::new();
    let mut all_right = true;
    for node in list.value {
        match section.element_text(key, node, EXPECTED) {
            Field::Given(text) => names.push(At {
                value: text.value.to_owned(),
                span: text.span,
            }),
            Field::Absent | Field::Wrong => all_right = false,
        }
    }
    match all_right {
        true => Field::Given(At {
            value: names,
            span: list.span,
        }),
        false => Field::Wrong,
    }
}
