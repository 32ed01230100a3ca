//! `[[pool]]`.

use super::scalars;
use crate::reader::{At, Field, Section};
use crate::units::Size;

/// `[[pool]]` by itself.
pub(crate) struct RawPool {
    pub(crate) name: Field<String>,
    /// The name of a disk or an array.
    pub(crate) disk: Field<String>,
    pub(crate) create: bool,
    pub(crate) warn_at: Field<u8>,
    pub(crate) critical_at: Field<u8>,
    /// A volume that a new pool begins with, and its size: only on the command line.
    pub(crate) first_volume: Option<(String, Size)>,
}

impl RawPool {
    /// The pool of an appliance that no file describes.
    pub(crate) fn default_of(name: &str, disk: &str, first_volume: (String, Size)) -> Self {
        Self {
            name: Field::Given(At::default(name.to_owned())),
            disk: Field::Given(At::default(disk.to_owned())),
            create: true,
            warn_at: Field::Absent,
            critical_at: Field::Absent,
            first_volume: Some(first_volume),
        }
    }
}

/// Reads one `[[pool]]`.
pub(crate) fn read(mut section: Section<'_, '_>) -> RawPool {
    let name = section.parsed("name", "a name", scalars::name);
    if name.is_absent() {
        section.missing("name", "name = \"pool-1\"");
    }
    let disk = section.text("disk", "the name of a disk or an array");
    if disk.is_absent() {
        section.missing("disk", "disk = \"disk-1\"");
    }
    let raw = RawPool {
        name,
        disk: disk.map(str::to_owned),
        create: section.boolean("create").or(false),
        warn_at: percent(&mut section, "warn_at"),
        critical_at: percent(&mut section, "critical_at"),
        first_volume: None,
    };
    section.finish();
    raw
}

fn percent(section: &mut Section<'_, '_>, key: &'static str) -> Field<u8> {
    let percent = section.integer(key, 3..=100);
    percent.map(|percent| u8::try_from(percent).unwrap_or(100))
}
