//! More requests at a time than an array has workers for: each ends, whatever the others hold.

use std::{cell::Cell, rc::Rc, time::Duration};

use corebay_core::{
    buffer::Buffer,
    disk::{Disk, DiskError, Durability},
    units::Lba,
};
use corebay_raid::geometry::Level;

use crate::{slow::Rig, support::ec};

type End = Rc<Cell<Option<Result<(), DiskError>>>>;
type Ends = Vec<End>;

/// Members let what they hold go, and nothing else holds the requests up.
fn all_end(rig: &Rig, requests: &Ends, what: &str) {
    rig.pass(Duration::from_millis(10));
    rig.devices.iter().for_each(|device| device.let_go());
    rig.pass(Duration::from_millis(10));
    let ended = requests.iter().filter(|end| end.take() == Some(Ok(())));
    assert_eq!(ended.count(), requests.len(), "{what}");
}

fn hold(rig: &Rig) {
    for device in &rig.devices {
        device.holds.set(true);
    }
}

fn write(rig: &Rig, at: u64, from: &Buffer) -> End {
    let (array, buffer) = (rig.array.clone(), from.clone());
    rig.start(async move { array.write(Lba(at), &[buffer], Durability::Cached).await })
}

/// Pieces of many reads, each on its way to one member, take all workers for transfers.
#[test]
fn reads_of_many_pieces_end() {
    for (level, roles, away) in [
        (Level::Striped, 4, None),
        (Level::Mirrored, 2, None),
        (Level::Raid5, 4, None),
        (Level::Raid5, 4, Some(1)),
        (Level::Raid6, 6, Some(2)),
    ] {
        let rig = Rig::new(level, roles);
        if let Some(role) = away {
            let array = rig.array.clone();
            rig.run(async move { array.give_up(role).await }).unwrap();
        }
        hold(&rig);
        let into = rig.filled(256 << 10, 0);
        let reads = (0..200).map(|read| rig.read(read, &into)).collect();
        all_end(&rig, &reads, &format!("{level} without {away:?}"));
    }
}

/// Parts of many writes, each on its way to several members.
#[test]
fn writes_of_many_parts_end() {
    for (level, roles) in [
        (Level::Striped, 4),
        (Level::Mirrored, 3),
        (Level::StripedMirrors, 4),
        (Level::Raid5, 4),
        (ec(4, 4), 8),
    ] {
        let rig = Rig::new(level, roles);
        hold(&rig);
        let from = rig.filled(256 << 10, 3);
        let begin = |at: u64| write(&rig, at % 500, &from);
        let writes = (0..150).map(|number| begin(number * 64)).collect();
        all_end(&rig, &writes, &level.to_string());
    }
}

/// Small reads of what a member had that is missing: each is made of what many others have.
#[test]
fn reads_of_a_missing_member_of_many_end() {
    let (away, rig) = (3, Rig::new(ec(16, 2), 18));
    let array = rig.array.clone();
    rig.run(async move { array.give_up(away).await }).unwrap();
    let geometry = rig.array.assembled().geometry();
    let lba_of = |stripe: u64| {
        let mut strips = 0..geometry.data();
        let strip = strips.find(|&strip| geometry.role_of(stripe, strip) == away)?;
        let offset = geometry.array_offset(stripe, strip, 0);
        Some(geometry.block_size().blocks_in(offset))
    };
    hold(&rig);
    let into = rig.filled(4096, 0);
    let reads: Ends = (0..210)
        .filter_map(lba_of)
        .map(|at| rig.read(at, &into))
        .collect();
    assert!(reads.len() > 180);
    all_end(&rig, &reads, "without a member");
}
