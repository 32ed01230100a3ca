//! What blocks are stored on, by name: disks and arrays, whose each is, and how to mend a name that
//! nothing has.

use std::collections::HashMap;

use crate::appliance::{ArrayId, DiskId, Store};
use crate::diagnostic::{Sink, Span};
use crate::reader::listed;
use crate::schema::RawAppliance;
use crate::suggest::nearest;

/// Whose a disk is.
pub(super) struct Owner {
    /// As in "a member of the array `a`".
    pub(super) what: String,
    pub(super) span: Option<Span>,
}

/// The disks of arrays, and what pools lie on.
pub(super) type Owners = HashMap<Store, Owner>;

/// Disks and arrays by name.
pub(super) fn stores(raw: &RawAppliance) -> HashMap<&str, Store> {
    let disks = raw.disks.iter().enumerate().rev();
    let disks = disks.filter_map(|(at, disk)| Some((disk.name.value()?, Store::Disk(DiskId(at)))));
    let arrays = raw.arrays.iter().enumerate().rev();
    let arrays =
        arrays.filter_map(|(at, array)| Some((array.name.value()?, Store::Array(ArrayId(at)))));
    arrays
        .chain(disks)
        .map(|(name, store)| (name.as_str(), store))
        .collect()
}

/// How to mend a name that nothing has.
pub(super) fn unknown_help<'n>(
    name: &str,
    known: impl Iterator<Item = &'n str>,
    what: &str,
    sink: &Sink,
) -> String {
    const NAMED_MAX: usize = 8;
    if sink.is_full() {
        return String::new();
    }
    let mut known: Vec<&str> = known.collect();
    known.sort_unstable();
    if let Some(near) = nearest(name, known.iter().copied()) {
        return format!("did you mean \"{near}\"?");
    }
    match known.len() {
        0 => format!(
            "give a [[{what}]] this name: name = \"{}\"",
            name.escape_debug()
        ),
        1..=NAMED_MAX => format!("the {what}s are {}", listed(known)),
        count => format!("there are {count} {what}s, as `{}`", known[0]),
    }
}
